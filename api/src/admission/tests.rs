//! The built-in plugins, over a handful of objects.

use serde_json::{Value, json};

use super::{Attributes, TolerationSeconds, delete, mutate, validate};
use crate::auth::{Access, User};
use crate::kinds::strategy::Door;
use crate::kinds::table;
use crate::kinds::testing::World;
use crate::object::Object;
use crate::status::Error;
use crate::store::Store as _;
use crate::store::memory::Memory;

fn world() -> World {
    World::new()
        .with("namespaces", json!({"metadata": {"name": "default"}, "status": {"phase": "Active"}}))
        .with("namespaces", json!({"metadata": {"name": "old"}, "status": {"phase": "Terminating"}}))
        .with("serviceaccounts", json!({
            "metadata": {"name": "default", "namespace": "default"}, "imagePullSecrets": [{"name": "s"}],
        }))
        .with("scheduling.k8s.io/priorityclasses", json!({
            "metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never",
        }))
}

fn admit(plural: &str, namespace: &str, object: Value) -> Result<Object, Error> {
    let kind = table()
        .all()
        .iter()
        .find(|kind| kind.plural == plural)
        .expect("served");
    let mut new = Object::new(object).expect("an object");
    let user = User::anonymous();
    let access = Access::new(Memory::new().cache(), crate::auth::tokens::tests::tokens());
    let name = new.name().to_owned();
    let attributes = Attributes {
        kind,
        door: Door::Main,
        verb: "create",
        namespace,
        name: &name,
        user: &user,
        access: &access,
        old: None,
        dry_run: false,
        tolerations: TolerationSeconds {
            not_ready: 30,
            ..TolerationSeconds::default()
        },
    };
    let world = world();
    mutate(&attributes, &mut new, &world)?;
    validate(&attributes, &new, &world)?;
    Ok(new)
}

#[test]
fn nothing_is_made_in_a_namespace_that_is_missing_or_ending() {
    let error =
        admit("configmaps", "nosuch", json!({"metadata": {"name": "x"}})).expect_err("refused");
    assert_eq!(error.message, "namespaces \"nosuch\" not found");
    let error =
        admit("configmaps", "old", json!({"metadata": {"name": "x"}})).expect_err("refused");
    assert_eq!(
        error.message,
        "configmaps \"x\" is forbidden: unable to create new content in namespace old because it is being terminated"
    );
    assert_eq!(
        error.details.causes[0].message,
        "namespace old is being terminated"
    );
}

#[test]
fn a_pod_finds_its_token_in_a_file_unless_somebody_said_no() {
    let pod = |spec: Value| {
        admit(
            "pods",
            "default",
            json!({"metadata": {"name": "p"}, "spec": spec}),
        )
        .expect("admitted")
    };
    let both = json!({"containers": [{"name": "a"}, {"name": "b", "volumeMounts": [
        {"name": "own", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]}]});
    let made = pod(both.clone());
    let volume = &made.at(&["spec", "volumes"]).expect("volumes")[0];
    let name = volume["name"].as_str().expect("a name");
    assert!(
        name.starts_with("kube-api-access-") && name.len() == 21,
        "{name}"
    );
    assert_eq!(
        volume["projected"]["sources"][0]["serviceAccountToken"],
        json!({"expirationSeconds": 3607, "path": "token"})
    );
    let containers = made.at(&["spec", "containers"]).expect("containers");
    assert_eq!(
        containers[0]["volumeMounts"],
        json!([{"name": name, "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}])
    );
    assert_eq!(containers[1]["volumeMounts"][0]["name"], "own");
    let mut without = both;
    without["automountServiceAccountToken"] = json!(false);
    assert_eq!(pod(without).at(&["spec", "volumes"]), None);
    assert_eq!(
        pod(json!({"containers": []})).at(&["spec", "volumes"]),
        None
    );
}

#[test]
fn a_pod_gets_an_account_tolerations_and_a_priority() {
    let pod = admit(
        "pods",
        "default",
        json!({"metadata": {"name": "p"}, "spec": {"priorityClassName": "high"}}),
    )
    .expect("admitted");
    let spec = pod.at(&["spec"]).expect("a spec");
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["serviceAccount"], "default");
    assert_eq!(spec["imagePullSecrets"], json!([{"name": "s"}]));
    assert_eq!(spec["priority"], 1000);
    assert_eq!(spec["preemptionPolicy"], "Never");
    assert_eq!(
        spec["tolerations"][1]["key"],
        "node.kubernetes.io/unreachable"
    );
    assert_eq!(
        spec["tolerations"][0]["key"],
        "node.kubernetes.io/not-ready"
    );
    assert_eq!(
        spec["tolerations"][0]["tolerationSeconds"], 30,
        "as the flag says"
    );
    assert_eq!(
        spec["tolerations"][1]["tolerationSeconds"], 300,
        "as upstream"
    );
}

#[test]
fn a_pod_is_refused_in_upstream_words() {
    let cases = [
        (
            json!({"serviceAccountName": "a"}),
            "pods \"p\" is forbidden: error looking up service account default/a: serviceaccount \"a\" not found",
        ),
        (
            json!({"priorityClassName": "low"}),
            "pods \"p\" is forbidden: no PriorityClass with name low was found",
        ),
        (
            json!({"runtimeClassName": "gvisor"}),
            "pods \"p\" is forbidden: pod rejected: RuntimeClass \"gvisor\" not found",
        ),
    ];
    for (spec, message) in cases {
        let error = admit(
            "pods",
            "default",
            json!({"metadata": {"name": "p"}, "spec": spec}),
        )
        .expect_err("refused");
        assert_eq!(error.message, message);
    }
}

#[test]
fn a_new_node_is_tainted_until_it_is_ready() {
    let node = admit("nodes", "", json!({"metadata": {"name": "n"}})).expect("admitted");
    assert_eq!(
        node.list_at(&["spec", "taints"]),
        [json!({"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"})]
    );
}

#[test]
fn three_namespaces_stay() {
    let user = User::anonymous();
    let access = Access::new(Memory::new().cache(), crate::auth::tokens::tests::tokens());
    let kind = table().find("", "v1", "namespaces").expect("served");
    let ask = |name: &str| {
        delete(&Attributes {
            kind,
            door: Door::Main,
            verb: "delete",
            namespace: "",
            name,
            user: &user,
            access: &access,
            old: None,
            dry_run: false,
            tolerations: TolerationSeconds::default(),
        })
    };
    let error = ask("kube-system").expect_err("refused");
    assert_eq!(
        error.message,
        "namespaces \"kube-system\" is forbidden: this namespace may not be deleted"
    );
    assert!(ask("mine").is_ok());
}

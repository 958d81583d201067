//! Create, read, change, delete.

use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::{CONFIGMAPS, DEPLOYMENTS, World, configmap, deployment};

#[tokio::test]
async fn a_kube_client_creates_reads_changes_and_deletes() {
    let world = World::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(world.client());
    let map: ConfigMap = serde_json::from_value(configmap("a")).expect("a ConfigMap");
    let created = maps
        .create(&PostParams::default(), &map)
        .await
        .expect("created");
    assert!(created.metadata.uid.is_some());
    let mut changed = created.clone();
    changed.data = Some([("b".to_owned(), "2".to_owned())].into());
    let replaced = maps
        .replace("a", &PostParams::default(), &changed)
        .await
        .expect("replaced");
    assert_ne!(
        replaced.metadata.resource_version,
        created.metadata.resource_version
    );
    let stale = maps.replace("a", &PostParams::default(), &created).await;
    assert!(stale.is_err(), "an old revision is a conflict");
    let listed = maps.list(&ListParams::default()).await.expect("listed");
    let names: Vec<_> = listed
        .items
        .iter()
        .filter_map(|m| m.metadata.name.clone())
        .collect();
    assert_eq!(names, ["a", "kube-root-ca.crt"]);
    maps.delete("a", &DeleteParams::default())
        .await
        .expect("deleted");
    assert!(maps.get_opt("a").await.expect("asked").is_none());
}

#[tokio::test]
async fn patches_of_all_four_kinds_change_a_deployment() {
    let world = World::start().await;
    world.post(DEPLOYMENTS, &deployment("d")).await.expect(201);
    let uri = format!("{DEPLOYMENTS}/d");
    let replicas = |value: &Value| value["spec"]["replicas"].clone();
    let merged = world
        .patch(&uri, "merge", &json!({"spec": {"replicas": 2}}))
        .await
        .expect(200)
        .json();
    assert_eq!(replicas(&merged), 2);
    assert_eq!(merged["metadata"]["generation"], 2);
    let image =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "y"}]}}}});
    let patched = world
        .patch(&uri, "strategic-merge", &image)
        .await
        .expect(200)
        .json();
    assert_eq!(
        patched["spec"]["template"]["spec"]["containers"][0]["image"],
        "y"
    );
    let operations = json!([{"op": "replace", "path": "/spec/replicas", "value": 3}]);
    let patched = world
        .patch(&uri, "json", &operations)
        .await
        .expect(200)
        .json();
    assert_eq!(replicas(&patched), 3);
    let config = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"replicas": 4}});
    let conflict = world
        .patch(&format!("{uri}?fieldManager=me"), "apply", &config)
        .await
        .expect(409);
    assert!(
        conflict
            .message()
            .starts_with("Apply failed with 1 conflict: "),
        "{}",
        conflict.text
    );
    let forced = world
        .patch(
            &format!("{uri}?fieldManager=me&force=true"),
            "apply",
            &config,
        )
        .await;
    assert_eq!(replicas(&forced.expect(200).json()), 4);
}

#[tokio::test]
async fn apply_creates_what_is_missing() {
    let world = World::start().await;
    let uri = format!("{CONFIGMAPS}/s?fieldManager=m1");
    let created = world
        .patch(&uri, "apply", &configmap("s"))
        .await
        .expect(201)
        .json();
    let entry = &created["metadata"]["managedFields"][0];
    assert_eq!(entry["manager"], "m1");
    assert_eq!(entry["operation"], "Apply");
    let maps: Api<ConfigMap> = Api::default_namespaced(world.client());
    let params = PatchParams::apply("m1").force();
    maps.patch("s", &params, &Patch::Apply(configmap("s")))
        .await
        .expect("applied again");
}

#[tokio::test]
async fn a_write_that_changes_nothing_keeps_the_revision() {
    let world = World::start().await;
    let created = world
        .post(DEPLOYMENTS, &deployment("d"))
        .await
        .expect(201)
        .json();
    let uri = format!("{DEPLOYMENTS}/d");
    let again = world.put(&uri, &created).await.expect(200).json();
    assert_eq!(
        again["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
    assert_eq!(again, created);
}

#[tokio::test]
async fn status_and_spec_have_separate_doors() {
    let world = World::start().await;
    let created = world
        .post(DEPLOYMENTS, &deployment("d"))
        .await
        .expect(201)
        .json();
    let uri = format!("{DEPLOYMENTS}/d");
    let both = json!({"spec": {"replicas": 5}, "status": {"replicas": 7, "observedGeneration": 1}});
    let status = world
        .patch(&format!("{uri}/status"), "merge", &both)
        .await
        .expect(200)
        .json();
    assert_eq!(status["status"]["replicas"], 7);
    assert_eq!(status["spec"]["replicas"], created["spec"]["replicas"]);
    assert_eq!(status["metadata"]["generation"], 1);
    let other = json!({"spec": {"replicas": 5}, "status": {"replicas": 1}});
    let main = world.patch(&uri, "merge", &other).await.expect(200).json();
    assert_eq!(main["status"]["replicas"], 7);
    assert_eq!(main["metadata"]["generation"], 2);
}

#[tokio::test]
async fn scale_is_one_integer_of_the_deployment() {
    let world = World::start().await;
    world.post(DEPLOYMENTS, &deployment("d")).await.expect(201);
    let uri = format!("{DEPLOYMENTS}/d/scale");
    let scale = world.get(&uri).await.expect(200).json();
    assert_eq!(scale["kind"], "Scale");
    assert_eq!(scale["spec"]["replicas"], 1);
    assert_eq!(scale["status"]["selector"], "app=d");
    let scaled = world
        .patch(&uri, "merge", &json!({"spec": {"replicas": 6}}))
        .await
        .expect(200)
        .json();
    assert_eq!(scaled["spec"]["replicas"], 6);
    let seen = world.get(&format!("{DEPLOYMENTS}/d")).await.json();
    assert_eq!(seen["spec"]["replicas"], 6);
    let missing = world
        .patch(&format!("{DEPLOYMENTS}/zz/scale"), "merge", &json!({}))
        .await
        .expect(404);
    assert_eq!(missing.message(), r#"deployments.apps "zz" not found"#);
}

#[tokio::test]
async fn dry_runs_answer_as_if_and_store_nothing() {
    let world = World::start().await;
    let dry = format!("{CONFIGMAPS}?dryRun=All");
    let created = world.post(&dry, &configmap("a")).await.expect(201).json();
    assert!(created["metadata"]["uid"].is_string());
    assert!(created["metadata"].get("resourceVersion").is_none());
    world.get(&format!("{CONFIGMAPS}/a")).await.expect(404);
    world.post(CONFIGMAPS, &configmap("a")).await.expect(201);
    world
        .delete(&format!("{CONFIGMAPS}/a"), &json!({"dryRun": ["All"]}))
        .await
        .expect(200);
    world.get(&format!("{CONFIGMAPS}/a")).await.expect(200);
}

#[tokio::test]
async fn generated_names_begin_as_asked() {
    let world = World::start().await;
    let map = json!({"metadata": {"generateName": "g-"}});
    let created = world.post(CONFIGMAPS, &map).await.expect(201).json();
    let name = created["metadata"]["name"].as_str().expect("a name");
    assert!(name.starts_with("g-") && name.len() == 7, "{name}");
    assert_eq!(created["kind"], "ConfigMap");
}

#[tokio::test]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let world = World::start().await;
    let mut map = configmap("a");
    map["metadata"]["finalizers"] = json!(["example.com/one"]);
    world.post(CONFIGMAPS, &map).await.expect(201);
    let uri = format!("{CONFIGMAPS}/a");
    let held = world.delete(&uri, &json!({})).await.expect(200).json();
    assert!(held["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/one", "example.com/two"]}});
    let refused = world.patch(&uri, "merge", &more).await.expect(422);
    assert!(
        refused.message().contains("no new finalizers can be added"),
        "{}",
        refused.text
    );
    let freed = json!({"metadata": {"finalizers": null}});
    world.patch(&uri, "merge", &freed).await.expect(200);
    world.get(&uri).await.expect(404);
}

#[tokio::test]
async fn propagation_policies_leave_their_finalizer() {
    let world = World::start().await;
    for (name, policy, finalizer) in [
        ("f", "Foreground", "foregroundDeletion"),
        ("o", "Orphan", "orphan"),
    ] {
        world.post(DEPLOYMENTS, &deployment(name)).await.expect(201);
        let uri = format!("{DEPLOYMENTS}/{name}");
        let held = world
            .delete(&uri, &json!({"propagationPolicy": policy}))
            .await
            .expect(200)
            .json();
        assert_eq!(held["metadata"]["finalizers"], json!([finalizer]));
    }
    world.post(DEPLOYMENTS, &deployment("b")).await.expect(201);
    let uri = format!("{DEPLOYMENTS}/b");
    let gone = world
        .delete(&uri, &json!({"propagationPolicy": "Background"}))
        .await
        .expect(200)
        .json();
    assert_eq!(gone["status"], "Success");
    assert_eq!(gone["details"]["kind"], "deployments");
    world.get(&uri).await.expect(404);
}

#[tokio::test]
async fn preconditions_protect_a_deletion() {
    let world = World::start().await;
    world.post(CONFIGMAPS, &configmap("a")).await.expect(201);
    let uri = format!("{CONFIGMAPS}/a");
    let refused = world
        .delete(&uri, &json!({"preconditions": {"uid": "x"}}))
        .await
        .expect(409);
    let start = r#"Operation cannot be fulfilled on ConfigMap "a": the UID in the precondition (x) does not match"#;
    assert!(refused.message().starts_with(start), "{}", refused.text);
}

#[tokio::test]
async fn many_are_deleted_by_selector() {
    let world = World::start().await;
    for name in ["a", "b", "c"] {
        let mut map = configmap(name);
        map["metadata"]["labels"] = json!({"which": if name == "c" { "keep" } else { "drop" }});
        world.post(CONFIGMAPS, &map).await.expect(201);
    }
    let uri = format!("{CONFIGMAPS}?labelSelector=which%3Ddrop");
    let deleted = world
        .send(Method::DELETE, &uri, "", "")
        .await
        .expect(200)
        .json();
    assert_eq!(deleted["items"].as_array().map(Vec::len), Some(2));
    assert_eq!(deleted["kind"], "ConfigMapList");
    world.get(&format!("{CONFIGMAPS}/c")).await.expect(200);
    world.get(&format!("{CONFIGMAPS}/a")).await.expect(404);
}

#[tokio::test]
async fn a_namespace_terminates_until_it_is_finalized() {
    let world = World::start().await;
    let namespaces: Api<Namespace> = Api::all(world.client());
    let namespace = json!({"metadata": {"name": "n"}});
    let created = world
        .post("/api/v1/namespaces", &namespace)
        .await
        .expect(201)
        .json();
    assert_eq!(
        created["metadata"]["labels"]["kubernetes.io/metadata.name"],
        "n"
    );
    assert_eq!(created["status"]["phase"], "Active");
    namespaces
        .delete("n", &DeleteParams::default())
        .await
        .expect("deletes");
    let going = world.get("/api/v1/namespaces/n").await.expect(200).json();
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = world
        .post("/api/v1/namespaces/n/configmaps", &configmap("x"))
        .await
        .expect(403);
    assert_eq!(
        refused.json()["details"]["causes"][0]["reason"],
        "NamespaceTerminating"
    );
    let mut finalized = going;
    finalized["spec"]["finalizers"] = json!([]);
    world
        .put("/api/v1/namespaces/n/finalize", &finalized)
        .await
        .expect(200);
    world.get("/api/v1/namespaces/n").await.expect(404);
    let refused = world
        .delete("/api/v1/namespaces/default", &json!({}))
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        r#"namespaces "default" is forbidden: this namespace may not be deleted"#
    );
}

#[tokio::test]
async fn the_furniture_is_there() {
    let world = World::start().await;
    for uri in [
        "/api/v1/namespaces/kube-node-lease",
        "/api/v1/namespaces/default/services/kubernetes",
        "/api/v1/namespaces/default/endpoints/kubernetes",
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/networking.k8s.io/v1/servicecidrs/kubernetes",
        "/api/v1/namespaces/kube-system/configmaps/kube-root-ca.crt",
        "/version",
        "/apis",
    ] {
        world.get(uri).await.expect(200);
    }
    let service = world
        .get("/api/v1/namespaces/default/services/kubernetes")
        .await
        .json();
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    let ready = world.get("/readyz?verbose").await.expect(200);
    assert!(
        ready.text.ends_with("readyz check passed\n"),
        "{}",
        ready.text
    );
}

#[tokio::test]
async fn a_new_namespace_gets_the_ca_and_keeps_it() {
    let world = World::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client(), "n");
    world
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}}))
        .await
        .expect(201);
    let there = kube::runtime::wait::await_condition(
        maps.clone(),
        "kube-root-ca.crt",
        |m: Option<&ConfigMap>| m.is_some(),
    );
    tokio::time::timeout(std::time::Duration::from_secs(5), there)
        .await
        .expect("in time")
        .expect("watched");
    let before = maps
        .get("kube-root-ca.crt")
        .await
        .expect("there")
        .metadata
        .uid;
    maps.delete("kube-root-ca.crt", &DeleteParams::default())
        .await
        .expect("deleted");
    let again = kube::runtime::wait::await_condition(
        maps.clone(),
        "kube-root-ca.crt",
        move |m: Option<&ConfigMap>| m.is_some_and(|m| m.metadata.uid != before),
    );
    tokio::time::timeout(std::time::Duration::from_secs(5), again)
        .await
        .expect("in time")
        .expect("watched");
}

#[tokio::test]
async fn binding_gives_a_pod_its_node_once() {
    let world = World::start().await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let pods = "/api/v1/namespaces/default/pods";
    world.post(pods, &pod).await.expect(201);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    world
        .post(&format!("{pods}/p/binding"), &binding)
        .await
        .expect(201);
    let bound = world.get(&format!("{pods}/p")).await.json();
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["status"]["conditions"][0]["type"], "PodScheduled");
    let again = world
        .post(&format!("{pods}/p/binding"), &binding)
        .await
        .expect(409);
    assert!(
        again.message().contains("already assigned to node"),
        "{}",
        again.text
    );
    let wrong = json!({"metadata": {"name": "q"}, "target": {"name": "n1"}});
    let wrong = world
        .post(&format!("{pods}/p/binding"), &wrong)
        .await
        .expect(400);
    assert_eq!(
        wrong.message(),
        "name in URL does not match name in Binding object"
    );
    let graceful = world
        .delete(&format!("{pods}/p"), &json!({}))
        .await
        .expect(200)
        .json();
    assert_eq!(graceful["metadata"]["deletionGracePeriodSeconds"], 30);
    assert_eq!(graceful["metadata"]["generation"], 2);
    let shorter = world
        .delete(&format!("{pods}/p"), &json!({"gracePeriodSeconds": 5}))
        .await
        .expect(200)
        .json();
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    world
        .delete(&format!("{pods}/p"), &json!({"gracePeriodSeconds": 0}))
        .await
        .expect(200);
    world.get(&format!("{pods}/p")).await.expect(404);
}

#[tokio::test]
async fn an_eviction_takes_a_disruption_from_the_budget() {
    let world = World::start().await;
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["a", "b"] {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "x"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        });
        world.post(pods, &pod).await.expect(201);
        let running = json!({"status": {"phase": "Running"}});
        let status = format!("{pods}/{name}/status");
        let merge = "merge";
        world.patch(&status, merge, &running).await.expect(200);
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "x"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}},
    });
    world.post(budgets, &budget).await.expect(201);
    let allowed = json!({"status": {"disruptionsAllowed": 1, "observedGeneration": 1}});
    let status = format!("{budgets}/x/status");
    let merge = "merge";
    world.patch(&status, merge, &allowed).await.expect(200);
    let evict = async |name: &str| {
        let eviction = json!({
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name},
        });
        world
            .post(&format!("{pods}/{name}/eviction"), &eviction)
            .await
    };
    evict("a").await.expect(201);
    evict("b").await.expect(429);
    let after = world.get(&format!("{budgets}/x")).await.expect(200).json();
    assert!(after["status"]["disruptedPods"]["a"].is_string());
    assert_eq!(after["status"]["disruptedPods"].get("b"), None);
}

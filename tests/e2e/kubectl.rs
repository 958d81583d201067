//! The verbs people use, through the real kubectl.

use serde_json::Value;

use crate::harness::{Cluster, have, wait_for};

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: coracle.dev/guests/hello-http}
";

fn text<'o>(object: &'o Value, path: &str) -> &'o str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

#[test]
fn apply_diff_get_describe_and_delete() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    assert_eq!(cluster.apply(WEB), "deployment.apps/web created\n");
    assert_eq!(cluster.apply(WEB), "deployment.apps/web unchanged\n");
    cluster.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    cluster.kubectl_with(&["diff", "-f", "-"], WEB);

    let scaled = WEB.replace("replicas: 2", "replicas: 3");
    assert_eq!(cluster.apply(&scaled), "deployment.apps/web configured\n");
    let table = cluster.kubectl(&["get", "deployments"]);
    assert!(
        table.starts_with("NAME   READY   UP-TO-DATE   AVAILABLE   AGE\nweb    "),
        "{table}"
    );
    let wide = cluster.kubectl(&["get", "deploy", "web", "-o", "wide"]);
    assert!(
        wide.contains("CONTAINERS") && wide.contains("coracle.dev/guests/hello-http"),
        "{wide}"
    );
    let yaml = cluster.kubectl(&["get", "deploy/web", "-o", "yaml"]);
    assert!(
        yaml.contains("progressDeadlineSeconds: 600"),
        "defaults are there: {yaml}"
    );
    let described = cluster.kubectl(&["describe", "deployment", "web"]);
    assert!(
        described.contains("ScalingReplicaSet") && described.contains("NewReplicaSet:"),
        "{described}"
    );
    let pod = cluster.pod_of("app=web");
    let described = cluster.kubectl(&["describe", "pod", &pod]);
    assert!(
        described.contains("Controlled By:  ReplicaSet/web-") && described.contains("Scheduled"),
        "{described}"
    );
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "wide"]);
    assert!(
        nodes.contains(" Ready ") && nodes.contains("v1.36"),
        "{nodes}"
    );
    cluster.kubectl(&["describe", "nodes"]);
    assert!(
        cluster
            .kubectl(&["get", "all"])
            .contains("service/kubernetes")
    );

    let side = cluster.kubectl_with(
        &[
            "apply",
            "--server-side",
            "--field-manager=other",
            "--force-conflicts",
            "-f",
            "-",
        ],
        WEB,
    );
    assert_eq!(side, "deployment.apps/web serverside-applied\n");
    let conflict = cluster.kubectl_fails(&[
        "apply",
        "--server-side",
        "--field-manager=third",
        "-f",
        "tests/e2e/data/web-five.yaml",
    ]);
    assert!(
        conflict.contains("conflict with \"other\"") && conflict.contains(".spec.replicas"),
        "{conflict}"
    );

    assert_eq!(
        cluster.kubectl(&["delete", "deployment", "web"]),
        "deployment.apps \"web\" deleted\n"
    );
    wait_for("the pods to go with their deployment", || {
        cluster
            .get(&["pods", "-l", "app=web"])
            .filter(|list| list["items"].as_array().is_some_and(Vec::is_empty))
    });
}

#[test]
fn rollouts_go_forward_back_and_wait() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(WEB);
    let done =
        |cluster: &Cluster| cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert!(done(&cluster).contains("successfully rolled out"));
    cluster.kubectl(&["scale", "deploy/web", "--replicas=3"]);
    cluster.kubectl(&[
        "set",
        "image",
        "deploy/web",
        "main=coracle.dev/guests/misbehave",
    ]);
    done(&cluster);
    cluster.kubectl(&["set", "env", "deploy/web", "COLOUR=green"]);
    done(&cluster);
    let history = cluster.kubectl(&["rollout", "history", "deploy/web"]);
    assert_eq!(
        history
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
            .count(),
        3,
        "{history}"
    );

    cluster.kubectl(&["rollout", "undo", "deploy/web", "--to-revision=1"]);
    done(&cluster);
    let object = cluster.get(&["deploy", "web"]).expect("it exists");
    assert_eq!(
        text(&object, "/spec/template/spec/containers/0/image"),
        "coracle.dev/guests/hello-http"
    );
    assert_eq!(
        object
            .pointer("/metadata/annotations/deployment.kubernetes.io~1revision")
            .and_then(Value::as_str),
        Some("4")
    );

    cluster.kubectl(&["rollout", "pause", "deploy/web"]);
    cluster.kubectl(&[
        "set",
        "image",
        "deploy/web",
        "main=coracle.dev/guests/caller",
    ]);
    let object = cluster.wait(
        "the paused change to be seen",
        &["deploy", "web"],
        |object| {
            (object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation"))
                .then(|| object.clone())
        },
    );
    assert_eq!(
        object.pointer("/status/updatedReplicas"),
        None,
        "a paused rollout starts nothing"
    );
    cluster.kubectl(&["rollout", "resume", "deploy/web"]);
    done(&cluster);
    cluster.kubectl(&["rollout", "restart", "deploy/web"]);
    done(&cluster);
    assert!(
        cluster
            .kubectl(&[
                "wait",
                "deploy/web",
                "--for=condition=Available",
                "--timeout=30s"
            ])
            .contains("condition met")
    );
}

#[test]
fn objects_are_labelled_annotated_patched_replaced_and_edited() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.kubectl(&["create", "configmap", "settings", "--from-literal=a=1"]);
    cluster.kubectl(&["label", "cm/settings", "tier=gold"]);
    cluster.kubectl(&["annotate", "cm/settings", "note=hello"]);
    assert!(
        cluster
            .kubectl(&["get", "cm", "-l", "tier in (gold,silver)", "-o", "name"])
            .contains("configmap/settings")
    );
    cluster.kubectl(&[
        "patch",
        "cm/settings",
        "--type=merge",
        "-p",
        r#"{"data":{"b":"2"}}"#,
    ]);
    cluster.kubectl(&[
        "patch",
        "cm/settings",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/c","value":"3"}]"#,
    ]);
    cluster.kubectl(&[
        "patch",
        "cm/settings",
        "--type=strategic",
        "-p",
        r#"{"data":{"a":null}}"#,
    ]);
    let object = cluster.get(&["cm", "settings"]).expect("it exists");
    assert_eq!(object["data"], serde_json::json!({"b": "2", "c": "3"}));
    assert_eq!(text(&object, "/metadata/annotations/note"), "hello");

    let mut replaced = object.clone();
    replaced["data"] = serde_json::json!({"z": "before"});
    cluster.kubectl_with(&["replace", "-f", "-"], &replaced.to_string());
    let stale = cluster.kubectl_with_failing(&["replace", "-f", "-"], &object.to_string());
    assert!(stale.contains("the object has been modified"), "{stale}");

    let editor = cluster.path("editor");
    std::fs::write(&editor, "#!/bin/sh\nsed -i 's/before/after/' \"$1\"\n").expect("written");
    std::process::Command::new("chmod")
        .arg("+x")
        .arg(&editor)
        .status()
        .expect("chmod");
    cluster.kubectl_in(
        &[("KUBE_EDITOR", &editor.display().to_string())],
        &["edit", "cm/settings"],
    );
    assert_eq!(
        cluster.kubectl(&["get", "cm/settings", "-o", "jsonpath={.data.z}"]),
        "after"
    );

    let bad = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\nspecial: 1\n";
    let refused = cluster.kubectl_with_failing(&["create", "-f", "-"], bad);
    assert!(refused.contains("unknown field \"special\""), "{refused}");
}

#[test]
fn generators_make_what_they_say() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.kubectl(&["create", "namespace", "team"]);
    let n = ["-n", "team"];
    let run = |args: &[&str]| cluster.kubectl(&[args, &n[..]].concat());
    run(&[
        "create",
        "deployment",
        "web",
        "--image=coracle.dev/guests/hello-http",
        "--replicas=2",
        "--port=8080",
    ]);
    run(&[
        "create",
        "secret",
        "generic",
        "key",
        "--from-literal=password=hunter2",
    ]);
    run(&["create", "serviceaccount", "robot"]);
    run(&[
        "expose",
        "deployment",
        "web",
        "--port=80",
        "--target-port=8080",
    ]);
    run(&["create", "service", "nodeport", "outside", "--tcp=80:8080"]);
    run(&[
        "run",
        "single",
        "--image=coracle.dev/guests/hello-http",
        "--restart=Never",
    ]);
    run(&["create", "role", "reader", "--verb=get", "--resource=pods"]);
    run(&["create", "quota", "small", "--hard=pods=1000"]);
    run(&["rollout", "status", "deployment/web", "--timeout=60s"]);
    run(&[
        "wait",
        "pod/single",
        "--for=condition=Ready",
        "--timeout=60s",
    ]);

    let service = cluster.get(&["svc", "web", "-n", "team"]).expect("exposed");
    assert!(
        text(&service, "/spec/clusterIP").starts_with("10.96."),
        "{service}"
    );
    let outside = cluster
        .get(&["svc", "outside", "-n", "team"])
        .expect("made");
    let port = outside
        .pointer("/spec/ports/0/nodePort")
        .and_then(Value::as_i64)
        .expect("a node port");
    assert!((30000..=32767).contains(&port));
    let slices = cluster.wait(
        "two ready endpoints",
        &[
            "endpointslices",
            "-n",
            "team",
            "-l",
            "kubernetes.io/service-name=web",
        ],
        |list| {
            let endpoints = list.pointer("/items/0/endpoints")?.as_array()?.clone();
            (endpoints.len() == 2 && endpoints.iter().all(|e| e["conditions"]["ready"] == true))
                .then_some(endpoints)
        },
    );
    assert!(slices.iter().all(|endpoint| {
        endpoint["addresses"]
            .as_array()
            .is_some_and(|a| a.len() == 1)
    }));

    assert!(run(&["get", "events"]).contains("Scheduled"));
    assert!(run(&["events"]).contains("Scheduled"));

    cluster.kubectl(&["delete", "namespace", "team", "--timeout=60s"]);
    assert!(cluster.get(&["namespace", "team"]).is_none());
}

#[test]
fn cascades_delete_orphan_or_wait_for_the_dependents() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    cluster.kubectl(&["delete", "deploy/web", "--cascade=orphan"]);
    let sets = cluster.get(&["rs", "-l", "app=web"]).expect("a list");
    assert_eq!(
        sets["items"].as_array().map(Vec::len),
        Some(1),
        "the ReplicaSet outlives its Deployment"
    );
    assert!(sets.pointer("/items/0/metadata/ownerReferences").is_none());
    // Applied again, the Deployment adopts what it left behind.
    cluster.apply(WEB);
    cluster.wait(
        "the orphan to be adopted",
        &["rs", "-l", "app=web"],
        |list| {
            let owner = list
                .pointer("/items/0/metadata/ownerReferences/0/name")
                .and_then(Value::as_str);
            (owner == Some("web")).then_some(())
        },
    );
    cluster.kubectl(&[
        "delete",
        "deploy/web",
        "--cascade=foreground",
        "--timeout=60s",
    ]);
    let left = cluster.get(&["rs,pods", "-l", "app=web"]).expect("a list");
    assert_eq!(
        left["items"].as_array().map(Vec::len),
        Some(0),
        "foreground waits for all of them"
    );
    cluster.apply(WEB);
    let pod = cluster.pod_of("app=web");
    cluster.kubectl(&["delete", "pod", &pod, "--grace-period=0", "--force"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
}

#[test]
fn watches_show_changes_as_they_happen() {
    use std::io::{BufRead as _, BufReader};
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let mut watch =
        cluster.kubectl_spawn(&["get", "configmaps", "-w", "-o", "name", "-l", "watched=yes"]);
    let mut lines = BufReader::new(watch.stdout.take().expect("piped")).lines();
    let manifest =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one, labels: {watched: 'yes'}}\n";
    cluster.apply(manifest);
    let line = lines.next().expect("a line").expect("text");
    watch.kill().expect("it runs");
    watch.wait().expect("it ends");
    assert_eq!(line, "configmap/one");
}

#[test]
fn the_server_describes_itself() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    for (args, wanted) in [
        (&["api-resources"][..], "deployments"),
        (&["api-versions"], "apps/v1"),
        (&["explain", "pod.spec.containers"], "image"),
        (
            &["explain", "deployment.spec.strategy", "--recursive"],
            "maxSurge",
        ),
        (&["version"], "Server Version: v1.36"),
        (&["auth", "can-i", "create", "pods"], "yes"),
        (&["auth", "can-i", "--list"], "*.*"),
        (&["auth", "whoami"], "Username"),
        (&["cluster-info"], "is running at"),
        (&["get", "--raw", "/readyz?verbose"], "readyz check passed"),
        (&["get", "--raw", "/metrics"], "apiserver_request_total"),
        (&["get", "--raw", "/openapi/v2"], "\"swagger\":\"2.0\""),
    ] {
        let said = cluster.kubectl(args);
        assert!(
            said.contains(wanted),
            "kubectl {args:?}: {wanted:?} is missing"
        );
    }
}

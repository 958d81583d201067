//! What a node may write and read, through the router: what is its own and its pods', and nothing else.

use std::time::Duration;

use api::auth::User;
use http::Method;
use serde_json::{Value, json};

use crate::certificates::{CSRS, csr};
use crate::support::{CONFIGMAPS, DEPLOYMENTS, World, configmap, deployment};

const PODS: &str = "/api/v1/namespaces/default/pods";
const NODES: &str = "/api/v1/nodes";
const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const BUDGETS: &str = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
const CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";

fn node(name: &str) -> User {
    User::authenticated(&format!("system:node:{name}"), &["system:nodes"])
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// A pod of `node` that uses the Secret of its own name.
fn pod(name: &str, node: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "nodeName": node, "serviceAccountName": "robot", "containers": [{"name": "c", "image": "x"}],
        "volumes": [{"name": "v", "secret": {"secretName": name}}]}})
}

/// Nodes `n1` and `n2`, pod `own` on the first and `other` on the second; returns the pods' uids.
async fn furnish(world: &World) -> [String; 2] {
    for name in ["n1", "n2"] {
        world.post(NODES, &named(name)).await.expect(201);
        world.post(LEASES, &named(name)).await.expect(201);
    }
    world.post(ACCOUNTS, &named("robot")).await.expect(201);
    let mut uids = Vec::new();
    for (name, node) in [("own", "n1"), ("other", "n2")] {
        world.post(SECRETS, &named(name)).await.expect(201);
        let made = world.post(PODS, &pod(name, node)).await.expect(201).json();
        let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        world
            .patch(&format!("{PODS}/{name}/status"), "merge", &running)
            .await
            .expect(200);
        uids.push(made["metadata"]["uid"].as_str().expect("a uid").to_owned());
    }
    let budget = json!({"metadata": {"name": "other"}, "spec": {"minAvailable": 0, "selector": {"matchLabels": {"app": "other"}}}});
    world.post(BUDGETS, &budget).await.expect(201);
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 1,
        "desiredHealthy": 0, "expectedPods": 1}});
    world
        .patch(&format!("{BUDGETS}/other/status"), "merge", &status)
        .await
        .expect(200);
    uids.try_into().expect("two")
}

/// A request for a token of an account, bound to a pod.
fn token(pod: &str, uid: &str) -> Value {
    json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid}}})
}

fn eviction(pod: &str) -> Value {
    json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod}})
}

/// Method, path, body, and the code that answers it.
type Row = (Method, String, Option<Value>, u16);

fn label(label: &str) -> Value {
    json!({"metadata": {"labels": {(label): "x"}}})
}

fn ready() -> Value {
    json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}})
}

#[rustfmt::skip]
fn pods(n1: &Value) -> Vec<Row> {
    let mirror = |node: &str| {
        json!({"metadata": {"name": format!("mirror-{node}"), "annotations": {"kubernetes.io/config.mirror": "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": n1["metadata"]["uid"], "controller": true}]},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]}})
    };
    let binding = json!({"metadata": {"name": "own"}, "target": {"name": "n1"}});
    vec![
        (Method::PATCH, format!("{PODS}/own/status"), Some(ready()), 200),
        (Method::PATCH, format!("{PODS}/other/status"), Some(ready()), 403),
        (Method::PATCH, format!("{PODS}/own/status"), Some(label("app")), 403),
        (Method::PATCH, format!("{PODS}/own"), Some(label("x")), 403),
        (Method::POST, PODS.to_owned(), Some(pod("new", "n1")), 403),
        (Method::POST, PODS.to_owned(), Some(mirror("n1")), 201),
        (Method::POST, PODS.to_owned(), Some(mirror("n2")), 403),
        (Method::DELETE, format!("{PODS}/other"), None, 403),
        (Method::POST, format!("{PODS}/other/eviction"), Some(eviction("other")), 403),
        (Method::POST, format!("{PODS}/own/binding"), Some(binding), 403),
        (Method::GET, PODS.to_owned(), None, 200),
    ]
}

#[rustfmt::skip]
fn nodes() -> Vec<Row> {
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let lease = json!({"spec": {"holderIdentity": "n1"}});
    vec![
        (Method::POST, NODES.to_owned(), Some(named("n3")), 403),
        (Method::PATCH, format!("{NODES}/n1/status"), Some(ready()), 200),
        (Method::PATCH, format!("{NODES}/n2/status"), Some(ready()), 403),
        (Method::PATCH, format!("{NODES}/n1"), Some(label("example.com/x")), 200),
        (Method::PATCH, format!("{NODES}/n2"), Some(label("example.com/x")), 403),
        (Method::PATCH, format!("{NODES}/n1"), Some(label("node-restriction.kubernetes.io/x")), 403),
        (Method::PATCH, format!("{NODES}/n1"), Some(label("node-role.kubernetes.io/x")), 403),
        (Method::PATCH, format!("{NODES}/n1/status"), Some(label("node-restriction.kubernetes.io/x")), 403),
        (Method::PATCH, format!("{NODES}/n1"), Some(taint.clone()), 403),
        (Method::PATCH, format!("{NODES}/n2"), Some(taint), 403),
        (Method::DELETE, format!("{NODES}/n1"), None, 403),
        (Method::DELETE, format!("{NODES}/n2"), None, 403),
        (Method::PATCH, format!("{LEASES}/n1"), Some(lease.clone()), 200),
        (Method::PATCH, format!("{LEASES}/n2"), Some(lease), 403),
        (Method::POST, LEASES.to_owned(), Some(named("n3")), 403),
        (Method::GET, LEASES.to_owned(), None, 403),
        (Method::POST, LEASES.replace("node-lease", "system"), Some(named("n1")), 403),
        (Method::DELETE, format!("{LEASES}/n2"), None, 403),
    ]
}

/// Secrets, tokens, certificates, and what has nothing to do with nodes.
#[rustfmt::skip]
fn others([own, other]: &[String; 2]) -> Vec<Row> {
    let event = json!({"metadata": {"name": "e", "namespace": "default"}, "reason": "R",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "own"}});
    let ask = |name: &str, node: &str| {
        let subject = format!("system:node:{node}");
        csr(name, CLIENT, (&subject, "system:nodes"), &[])
    };
    vec![
        (Method::GET, format!("{SECRETS}/own"), None, 200),
        (Method::GET, format!("{SECRETS}/other"), None, 403),
        (Method::GET, SECRETS.to_owned(), None, 403),
        (Method::PATCH, format!("{SECRETS}/own"), Some(label("x")), 403),
        (Method::GET, format!("{CONFIGMAPS}/unused"), None, 403),
        (Method::POST, CONFIGMAPS.to_owned(), Some(configmap("c")), 403),
        (Method::POST, format!("{ACCOUNTS}/robot/token"), Some(token("own", own)), 201),
        (Method::POST, format!("{ACCOUNTS}/robot/token"), Some(token("other", other)), 403),
        (Method::POST, format!("{ACCOUNTS}/robot/token"), Some(token("own", "another")), 403),
        (Method::POST, format!("{ACCOUNTS}/robot/token"), Some(json!({"spec": {}})), 403),
        (Method::POST, format!("{ACCOUNTS}/default/token"), Some(token("own", own)), 403),
        (Method::POST, CSRS.to_owned(), Some(ask("mine", "n1")), 201),
        (Method::POST, CSRS.to_owned(), Some(ask("theirs", "n2")), 403),
        (Method::POST, "/api/v1/namespaces/default/events".to_owned(), Some(event), 201),
        (Method::POST, DEPLOYMENTS.to_owned(), Some(deployment("d")), 403),
        // Last: its own pod goes.
        (Method::POST, format!("{PODS}/own/eviction"), Some(eviction("own")), 201),
        (Method::DELETE, format!("{PODS}/own"), Some(json!({"gracePeriodSeconds": 0})), 200),
    ]
}

#[tokio::test]
async fn a_node_writes_what_is_its_own_and_nothing_else() {
    let world = World::start().await;
    let uids = furnish(&world).await;
    let n1 = world.get(&format!("{NODES}/n1")).await.expect(200).json();
    let all = [pods(&n1), nodes(), others(&uids)];
    for (method, path, body, code) in all.into_iter().flatten() {
        let asked = format!("{method} {path} {body:?}");
        let answer = world.ask(&node("n1"), method, &path, body.as_ref()).await;
        assert_eq!(answer.status.as_u16(), code, "{asked}: {}", answer.text);
    }
    let left = world.get(&format!("{PODS}/other")).await;
    let left = left.expect(200).json();
    let conditions = left["status"]["conditions"].to_string();
    assert!(
        !conditions.contains("DisruptionTarget"),
        "marked though refused: {conditions}"
    );
    let budget = world.get(&format!("{BUDGETS}/other")).await;
    let budget = budget.expect(200).json();
    assert_eq!(
        budget["status"]["disruptionsAllowed"], 1,
        "taken though refused"
    );
}

#[tokio::test]
async fn a_bootstrap_token_gets_no_certificate_of_a_node_that_is_alive() {
    let world = World::start().await;
    furnish(&world).await;
    let alive = |renewed: &str| json!({"spec": {"holderIdentity": "n1", "renewTime": renewed}});
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    world
        .patch(&format!("{NODES}/n1/status"), "merge", &ready)
        .await
        .expect(200);
    let path = format!("{LEASES}/n1");
    // The node's clock is behind; the lease was written a moment ago all the same.
    let now = alive("2020-01-01T00:00:00.000000Z");
    world.patch(&path, "merge", &now).await.expect(200);
    let bootstrap = User::authenticated("system:bootstrap:abcdef", &["system:bootstrappers"]);
    for (request, subject) in [("again", "system:node:n1"), ("new", "system:node:n9")] {
        let ask = csr(request, CLIENT, (subject, "system:nodes"), &[]);
        let made = world.ask(&bootstrap, Method::POST, CSRS, Some(&ask)).await;
        made.expect(201);
    }
    crate::certificates::wait(&world, "new", crate::certificates::signed).await;
    // Requests are worked on in their order: the first has been looked at.
    let waits = world.get(&format!("{CSRS}/again")).await.expect(200).json();
    assert_eq!(waits["status"], json!({}), "it waits");
    // Its machine fell silent; any change of a Node makes the servers look again.
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::time::resume();
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    world
        .patch(&format!("{NODES}/n2"), "merge", &label)
        .await
        .expect(200);
    crate::certificates::wait(&world, "again", crate::certificates::signed).await;
}

//! What a node may write and read, through the router: what is its own and its pods', and nothing else.

use api::auth::User;
use http::Method;
use serde_json::{Value, json};

use crate::certificates::{CSRS, csr};
use crate::support::{DEPLOYMENTS, World, configmap, deployment};

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

#[tokio::test]
async fn a_node_writes_what_is_its_own_and_nothing_else() {
    let world = World::start().await;
    let [own, other] = furnish(&world).await;
    let labels = |label: &str| json!({"metadata": {"labels": {(label): "x"}}});
    let taint = json!({"spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]}});
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let n1 = world.get(&format!("{NODES}/n1")).await.expect(200).json();
    let mirror = |node: &str| {
        json!({"metadata": {"name": format!("mirror-{node}"), "annotations": {"kubernetes.io/config.mirror": "x"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": n1["metadata"]["uid"], "controller": true}]},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "x"}]}})
    };
    let lease = json!({"spec": {"holderIdentity": "n1"}});
    let event = json!({"metadata": {"name": "e", "namespace": "default"}, "reason": "R",
        "involvedObject": {"kind": "Pod", "namespace": "default", "name": "own"}});
    let name = |name: &str| format!("system:node:{name}");
    let ask = |at: &str, cn: &str| csr(at, CLIENT, (&name(cn), "system:nodes"), &[]);
    let (get, post, patch, delete) = (Method::GET, Method::POST, Method::PATCH, Method::DELETE);
    for (method, path, body, code) in [
        // Pods.
        (
            &patch,
            format!("{PODS}/own/status"),
            Some(ready.clone()),
            200,
        ),
        (
            &patch,
            format!("{PODS}/other/status"),
            Some(ready.clone()),
            403,
        ),
        (
            &patch,
            format!("{PODS}/own/status"),
            Some(labels("app")),
            403,
        ),
        (&patch, format!("{PODS}/own"), Some(labels("x")), 403),
        (&post, PODS.to_owned(), Some(pod("new", "n1")), 403),
        (&post, PODS.to_owned(), Some(mirror("n1")), 201),
        (&post, PODS.to_owned(), Some(mirror("n2")), 403),
        (&delete, format!("{PODS}/other"), None, 403),
        (
            &post,
            format!("{PODS}/other/eviction"),
            Some(eviction("other")),
            403,
        ),
        (
            &post,
            format!("{PODS}/own/binding"),
            Some(json!({"metadata": {"name": "own"}, "target": {"name": "n1"}})),
            403,
        ),
        (&get, PODS.to_owned(), None, 200),
        // Nodes.
        (&post, NODES.to_owned(), Some(named("n3")), 403),
        (
            &patch,
            format!("{NODES}/n1/status"),
            Some(ready.clone()),
            200,
        ),
        (&patch, format!("{NODES}/n2/status"), Some(ready), 403),
        (
            &patch,
            format!("{NODES}/n1"),
            Some(labels("example.com/x")),
            200,
        ),
        (
            &patch,
            format!("{NODES}/n2"),
            Some(labels("example.com/x")),
            403,
        ),
        (
            &patch,
            format!("{NODES}/n1"),
            Some(labels("node-restriction.kubernetes.io/x")),
            403,
        ),
        (
            &patch,
            format!("{NODES}/n1"),
            Some(labels("node-role.kubernetes.io/x")),
            403,
        ),
        (
            &patch,
            format!("{NODES}/n1/status"),
            Some(labels("node-restriction.kubernetes.io/x")),
            403,
        ),
        (&patch, format!("{NODES}/n1"), Some(taint.clone()), 403),
        (&patch, format!("{NODES}/n2"), Some(taint), 403),
        (&delete, format!("{NODES}/n1"), None, 403),
        (&delete, format!("{NODES}/n2"), None, 403),
        // Leases.
        (&patch, format!("{LEASES}/n1"), Some(lease.clone()), 200),
        (&patch, format!("{LEASES}/n2"), Some(lease.clone()), 403),
        (&post, LEASES.to_owned(), Some(named("n3")), 403),
        (&get, LEASES.to_owned(), None, 403),
        (
            &post,
            LEASES.replace("node-lease", "system"),
            Some(named("n1")),
            403,
        ),
        (&delete, format!("{LEASES}/n2"), None, 403),
        // What its pods refer to.
        (&get, format!("{SECRETS}/own"), None, 200),
        (&get, format!("{SECRETS}/other"), None, 403),
        (&get, SECRETS.to_owned(), None, 403),
        (&patch, format!("{SECRETS}/own"), Some(labels("x")), 403),
        (
            &get,
            "/api/v1/namespaces/default/configmaps/unused".to_owned(),
            None,
            403,
        ),
        (
            &post,
            "/api/v1/namespaces/default/configmaps".to_owned(),
            Some(configmap("c")),
            403,
        ),
        // Tokens.
        (
            &post,
            format!("{ACCOUNTS}/robot/token"),
            Some(token("own", &own)),
            201,
        ),
        (
            &post,
            format!("{ACCOUNTS}/robot/token"),
            Some(token("other", &other)),
            403,
        ),
        (
            &post,
            format!("{ACCOUNTS}/robot/token"),
            Some(token("own", "another")),
            403,
        ),
        (
            &post,
            format!("{ACCOUNTS}/robot/token"),
            Some(json!({"spec": {}})),
            403,
        ),
        (
            &post,
            format!("{ACCOUNTS}/default/token"),
            Some(token("own", &own)),
            403,
        ),
        // Certificates, and the rest.
        (&post, CSRS.to_owned(), Some(ask("mine", "n1")), 201),
        (&post, CSRS.to_owned(), Some(ask("theirs", "n2")), 403),
        (
            &post,
            "/api/v1/namespaces/default/events".to_owned(),
            Some(event),
            201,
        ),
        (&post, DEPLOYMENTS.to_owned(), Some(deployment("d")), 403),
        // Last: its own pod goes.
        (
            &post,
            format!("{PODS}/own/eviction"),
            Some(eviction("own")),
            201,
        ),
        (
            &delete,
            format!("{PODS}/own"),
            Some(json!({"gracePeriodSeconds": 0})),
            200,
        ),
    ] {
        let answer = world
            .ask(&node("n1"), method.clone(), &path, body.as_ref())
            .await;
        let said = answer.status.as_u16();
        assert_eq!(said, code, "{method} {path} {body:?}: {}", answer.text);
    }
    let left = world.get(&format!("{PODS}/other")).await.expect(200).json();
    let conditions = left["status"]["conditions"].to_string();
    assert!(
        !conditions.contains("DisruptionTarget"),
        "marked though refused: {conditions}"
    );
    let budget = world
        .get(&format!("{BUDGETS}/other"))
        .await
        .expect(200)
        .json();
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
    // A clock that is never behind: it was renewed just now, whenever this runs.
    let now = alive("2999-01-01T00:00:00.000000Z");
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
    let then = alive("2020-01-01T00:00:00.000000Z");
    world.patch(&path, "merge", &then).await.expect(200);
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    world
        .patch(&format!("{NODES}/n2"), "merge", &label)
        .await
        .expect(200);
    crate::certificates::wait(&world, "again", crate::certificates::signed).await;
}

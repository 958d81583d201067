//! Streams and proxies, as far as they go without a node: who may, which container, whom a request would be for.

use api::auth::User;
use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::World;

const PODS: &str = "/api/v1/namespaces/default/pods";
const SERVICES: &str = "/api/v1/namespaces/default/services";
const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";

/// Pod `one` on no node, pod `two` with several containers on a node, Service `web` without endpoints.
async fn furnish(world: &World) {
    let account = json!({"metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    world.post(accounts, &account).await.expect(201);
    let container = |name: &str| json!({"name": name, "image": "x"});
    let one = json!({"serviceAccountName": "robot", "containers": [container("a")]});
    let two = json!({"serviceAccountName": "robot", "nodeName": "n1",
        "containers": [container("a"), container("b")], "initContainers": [container("i")]});
    for (name, spec) in [("one", one), ("two", two)] {
        let pod = json!({"metadata": {"name": name}, "spec": spec});
        world.post(PODS, &pod).await.expect(201);
    }
    let web =
        json!({"metadata": {"name": "web"}, "spec": {"ports": [{"name": "http", "port": 80}]}});
    world.post(SERVICES, &web).await.expect(201);
}

#[tokio::test]
async fn what_no_node_needs_to_be_asked_for_is_said_in_upstream_words() {
    let world = World::start().await;
    furnish(&world).await;
    for (path, code, why) in [
        ("nobody/exec?command=ls", 404, "pods \"nobody\" not found"),
        (
            "two/exec?command=ls",
            400,
            "a container name must be specified for pod two, choose one of: [a b] or one of the init containers: [i]",
        ),
        (
            "two/attach?container=x",
            400,
            "container x is not valid for pod two",
        ),
        (
            "one/exec?command=ls",
            400,
            "pod one does not have a host assigned",
        ),
        (
            "one/portforward",
            400,
            "pod one does not have a host assigned",
        ),
        (
            "two/portforward",
            400,
            "Upgrade request required: a stream needs a connection over HTTP/1.1",
        ),
        (
            "two/exec?container=i",
            400,
            "Upgrade request required: a stream needs a connection over HTTP/1.1",
        ),
        ("a:b:c:d/proxy/", 400, "invalid pod request \"a:b:c:d\""),
        ("nobody:80/proxy/", 404, "pods \"nobody\" not found"),
        (
            "one/proxy/",
            400,
            "address not allowed: pod one has none yet",
        ),
        (
            "https:one:1/proxy/",
            501,
            "https to pods is not supported by this server yet",
        ),
    ] {
        for method in [Method::GET, Method::POST] {
            let uri = format!("{PODS}/{path}");
            let refused = world.send(method, &uri, "", "").await.expect(code);
            assert_eq!(refused.message(), why, "{path}");
        }
    }
    for (path, code, why) in [
        ("nobody/proxy/", 404, "services \"nobody\" not found"),
        (
            "web:81/proxy/",
            503,
            "no service port 81 found for service \"web\"",
        ),
        (
            "web:http/proxy/",
            503,
            "no endpoints available for service \"web\"",
        ),
    ] {
        let refused = world.get(&format!("{SERVICES}/{path}")).await.expect(code);
        assert_eq!(refused.message(), why, "{path}");
    }
}

#[tokio::test]
async fn who_may_only_read_begins_no_stream() {
    let world = World::start().await;
    furnish(&world).await;
    let bob = User::authenticated("bob", &[]);
    let may = |verbs: &[&str]| {
        json!({"metadata": {"name": "bob"}, "rules": [
            {"verbs": verbs, "apiGroups": [""], "resources": ["pods/exec"]}]})
    };
    let binding = json!({"metadata": {"name": "bob"}, "subjects": [{"kind": "User", "name": "bob"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "bob"}});
    let roles = format!("{RBAC}/roles");
    world.post(&roles, &may(&["get"])).await.expect(201);
    let bindings = format!("{RBAC}/rolebindings");
    world.post(&bindings, &binding).await.expect(201);
    let uri = format!("{PODS}/one/exec?command=ls");
    let ask = || world.ask(&bob, Method::GET, &uri, None);
    let refused = ask().await.expect(403).message();
    assert_eq!(
        refused,
        r#"pods "one" is forbidden: User "bob" cannot create resource "pods/exec" in API group "" in the namespace "default""#
    );
    let role = format!("{roles}/bob");
    let more: Value = may(&["get", "create"]);
    world.put(&role, &more).await.expect(200);
    let allowed = ask().await.expect(400).message();
    assert_eq!(allowed, "pod one does not have a host assigned");
}

#[tokio::test]
async fn a_proxied_path_that_does_not_end_is_ended() {
    let world = World::start().await;
    furnish(&world).await;
    let slice = json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["100.64.0.2"], "nodeName": "n1"}]});
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    world.post(slices, &slice).await.expect(201);
    let moved = world.get(&format!("{SERVICES}/web:80/proxy?x=1")).await;
    let moved = moved.expect(301);
    assert_eq!(
        moved.headers["location"],
        format!("{SERVICES}/web:80/proxy/?x=1").as_str()
    );
    // There is no such node.
    let head = Request::head(format!("{SERVICES}/web:80/proxy/"))
        .body(Body::empty())
        .expect("a request");
    world.call(head).await.expect(404);
}

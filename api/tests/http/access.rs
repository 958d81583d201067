//! Who may do what, through the router: roles, bindings, escalation, reviews, impersonation, bootstrap tokens.

use api::auth::User;
use axum::body::Body;
use base64::Engine as _;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{CONFIGMAPS, World, configmap};

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

fn bob() -> User {
    User::authenticated("bob", &["dev"])
}

fn role(name: &str, verbs: &[&str]) -> Value {
    json!({"metadata": {"name": name}, "rules": [
        {"verbs": verbs, "apiGroups": [""], "resources": ["configmaps"]}]})
}

fn binding(name: &str, kind: &str, role: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role}})
}

#[tokio::test]
async fn a_binding_lets_its_subject_in_at_once() {
    let world = World::start().await;
    let refused = world
        .ask(&bob(), Method::GET, CONFIGMAPS, None)
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        r#"configmaps is forbidden: User "bob" cannot list resource "configmaps" in API group "" in the namespace "default""#
    );
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    world
        .post(&roles, &role("reader", &["get", "list"]))
        .await
        .expect(201);
    world
        .post(&bindings, &binding("b", "Role", "reader", "bob"))
        .await
        .expect(201);
    world
        .ask(&bob(), Method::GET, CONFIGMAPS, None)
        .await
        .expect(200);
    world
        .ask(&bob(), Method::POST, CONFIGMAPS, Some(&configmap("a")))
        .await
        .expect(403);
    world
        .delete(&format!("{bindings}/b"), &json!({}))
        .await
        .expect(200);
    world
        .ask(&bob(), Method::GET, CONFIGMAPS, None)
        .await
        .expect(403);
}

#[tokio::test]
async fn nobody_gives_away_what_they_do_not_have() {
    let world = World::start().await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    // `admin` may write roles and bindings of its namespace, within what it may itself.
    world
        .post(&bindings, &binding("bob", "ClusterRole", "admin", "bob"))
        .await
        .expect(201);
    world
        .ask(
            &bob(),
            Method::POST,
            &roles,
            Some(&role("mine", &["get", "delete"])),
        )
        .await
        .expect(201);
    let more = json!({"metadata": {"name": "more"}, "rules": [
        {"verbs": ["get", "create"], "apiGroups": [""], "resources": ["nodes"]}]});
    let refused = world
        .ask(&bob(), Method::POST, &roles, Some(&more))
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        "roles.rbac.authorization.k8s.io \"more\" is forbidden: user \"bob\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"create\"]}"
    );
    let all = binding("all", "ClusterRole", "cluster-admin", "bob");
    let refused = world
        .ask(&bob(), Method::POST, &bindings, Some(&all))
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        "rolebindings.rbac.authorization.k8s.io \"all\" is forbidden: user \"bob\" (groups=[\"dev\" \"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"*\"], Resources:[\"*\"], Verbs:[\"*\"]}\n{NonResourceURLs:[\"*\"], Verbs:[\"*\"]}"
    );
    let gone = binding("gone", "Role", "gone", "eve");
    let refused = world
        .ask(&bob(), Method::POST, &bindings, Some(&gone))
        .await
        .expect(404);
    assert_eq!(
        refused.message(),
        "roles.rbac.authorization.k8s.io \"gone\" not found"
    );
    let mine = binding("mine", "Role", "mine", "eve");
    world
        .ask(&bob(), Method::POST, &bindings, Some(&mine))
        .await
        .expect(201);
    // `bind` on that one role is enough.
    let may_bind = json!({"metadata": {"name": "binder"}, "rules": [
        {"verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"]}]});
    world
        .post(&format!("{RBAC}/clusterroles"), &may_bind)
        .await
        .expect(201);
    world
        .post(
            &bindings,
            &binding("binder", "ClusterRole", "binder", "bob"),
        )
        .await
        .expect(201);
    world
        .ask(&bob(), Method::POST, &bindings, Some(&all))
        .await
        .expect(201);
}

#[tokio::test]
async fn aggregated_roles_gather_the_rules_of_others() {
    let world = World::start().await;
    let view = world
        .get(&format!("{RBAC}/clusterroles/view"))
        .await
        .expect(200)
        .json();
    let from = world
        .get(&format!("{RBAC}/clusterroles/system:aggregate-to-view"))
        .await
        .json();
    assert_eq!(view["rules"], from["rules"]);
    let mut more = role("more", &["patch"]);
    more["metadata"]["labels"] = json!({"rbac.authorization.k8s.io/aggregate-to-view": "true"});
    more["rules"][0]["resources"] = json!(["widgets"]);
    world
        .post(&format!("{RBAC}/clusterroles"), &more)
        .await
        .expect(201);
    // Watched, because it happens when it happens.
    let revision = view["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision");
    let client = world.client();
    let watch = http::Request::get(format!(
        "{RBAC}/clusterroles?watch=1&resourceVersion={revision}&fieldSelector=metadata.name%3Dadmin&timeoutSeconds=10"
    ));
    let request = watch.body(Vec::new()).expect("a request");
    let events = client
        .request_events::<Value>(request)
        .await
        .expect("a watch");
    let mut events = std::pin::pin!(events);
    use futures::TryStreamExt as _;
    while let Some(event) = events.try_next().await.expect("an event") {
        if let kube::api::WatchEvent::Modified(admin) = event
            && admin["rules"]
                .as_array()
                .expect("rules")
                .contains(&more["rules"][0])
        {
            return;
        }
    }
    panic!("admin never got the rule of a role that view gathers");
}

#[tokio::test]
async fn reviews_answer_from_the_roles() {
    let world = World::start().await;
    let crb = format!("{RBAC}/clusterrolebindings");
    world
        .post(&crb, &binding("bob", "ClusterRole", "view", "bob"))
        .await
        .expect(201);
    let can = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods", "namespace": "default"}}});
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let answer = world
        .ask(&bob(), Method::POST, uri, Some(&can))
        .await
        .expect(201)
        .json();
    assert_eq!(
        answer["status"],
        json!({"allowed": true, "reason": "RBAC: allowed by ClusterRoleBinding \"bob\" of ClusterRole \"view\" to User \"bob\""})
    );
    let rules = json!({"spec": {"namespace": "default"}});
    let uri = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    let answer = world
        .ask(&bob(), Method::POST, uri, Some(&rules))
        .await
        .expect(201)
        .json();
    let resources = answer["status"]["resourceRules"].as_array().expect("rules");
    let pods = json!("pods");
    assert!(resources.iter().any(|rule| {
        rule["resources"]
            .as_array()
            .is_some_and(|r| r.contains(&pods))
    }));
    assert_eq!(answer["status"]["incomplete"], false);
    // Only who may ask about others is answered.
    let other =
        json!({"spec": {"user": "eve", "resourceAttributes": can["spec"]["resourceAttributes"]}});
    let uri = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    world
        .ask(&bob(), Method::POST, uri, Some(&other))
        .await
        .expect(403);
    let answer = world.post(uri, &other).await.expect(201).json();
    assert_eq!(answer["status"], json!({"allowed": false}));
}

#[tokio::test]
async fn a_bootstrap_token_is_a_user_who_may_only_join() {
    let world = World::start().await;
    let text = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secret = json!({
        "metadata": {"name": "bootstrap-token-abcdef"}, "type": "bootstrap.kubernetes.io/token",
        "data": {"token-id": text("abcdef"), "token-secret": text("0123456789abcdef"),
            "usage-bootstrap-authentication": text("true")},
    });
    world
        .post("/api/v1/namespaces/kube-system/secrets", &secret)
        .await
        .expect(201);
    let get = |token: &str, uri: &str| {
        Request::get(uri)
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .expect("a request")
    };
    let good = "abcdef.0123456789abcdef";
    let csrs = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
    world.call_as(None, get(good, csrs)).await.expect(200);
    let refused = world
        .call_as(None, get(good, "/api/v1/nodes"))
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        r#"nodes is forbidden: User "system:bootstrap:abcdef" cannot list resource "nodes" in API group "" at the cluster scope"#
    );
    let bad = world
        .call_as(None, get("abcdef.0123456789abcdee", csrs))
        .await
        .expect(401);
    assert_eq!(bad.message(), "Unauthorized");
    let review = json!({"spec": {"token": good}});
    let answer = world
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await
        .expect(201);
    assert_eq!(
        answer.json()["status"]["user"]["username"],
        "system:bootstrap:abcdef"
    );
    world
        .delete(
            "/api/v1/namespaces/kube-system/secrets/bootstrap-token-abcdef",
            &json!({}),
        )
        .await
        .expect(200);
    world.call_as(None, get(good, csrs)).await.expect(401);
}

#[tokio::test]
async fn impersonation_needs_permission_for_each_part() {
    let world = World::start().await;
    let whoami = |headers: &[(&str, &str)]| {
        let mut request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json");
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        request.body(Body::from("{}")).expect("a request")
    };
    let headers = [("impersonate-user", "eve"), ("impersonate-group", "ops")];
    let refused = world
        .call_as(Some(bob()), whoami(&headers))
        .await
        .expect(403);
    assert_eq!(
        refused.message(),
        r#"users "eve" is forbidden: User "bob" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
    let role = json!({"metadata": {"name": "eve"}, "rules": [
        {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users"], "resourceNames": ["eve"]}]});
    world
        .post(&format!("{RBAC}/clusterroles"), &role)
        .await
        .expect(201);
    let crb = format!("{RBAC}/clusterrolebindings");
    world
        .post(&crb, &binding("bob", "ClusterRole", "eve", "bob"))
        .await
        .expect(201);
    let refused = world
        .call_as(Some(bob()), whoami(&headers))
        .await
        .expect(403);
    assert!(
        refused.message().starts_with("groups \"ops\" is forbidden"),
        "{}",
        refused.text
    );
    let eve = world
        .call_as(Some(bob()), whoami(&headers[..1]))
        .await
        .expect(201)
        .json();
    assert_eq!(eve["status"]["userInfo"]["username"], "eve");
}

#[tokio::test]
async fn who_may_change_may_not_make() {
    let world = World::start().await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let changes = json!({"metadata": {"name": "changer"}, "rules": [
        {"verbs": ["get", "update", "patch"], "apiGroups": ["", "coordination.k8s.io"], "resources": ["configmaps", "leases"]}]});
    world.post(&roles, &changes).await.expect(201);
    world
        .post(&bindings, &binding("b", "Role", "changer", "bob"))
        .await
        .expect(201);
    let refusal = |resource: &str, group: &str| {
        format!(
            r#"is forbidden: User "bob" cannot create resource "{resource}" in API group "{group}" in the namespace "default""#
        )
    };
    let apply = || {
        Request::builder()
            .method(Method::PATCH)
            .uri(format!("{CONFIGMAPS}/a?fieldManager=m"))
            .header("content-type", "application/apply-patch+yaml")
            .body(Body::from(configmap("a").to_string()))
            .expect("a request")
    };
    let refused = world.call_as(Some(bob()), apply()).await.expect(403);
    let message = refused.message();
    assert!(message.ends_with(&refusal("configmaps", "")), "{message}");
    let lease = json!({"metadata": {"name": "l"}, "spec": {}});
    let uri = "/apis/coordination.k8s.io/v1/namespaces/default/leases/l";
    let refused = world.ask(&bob(), Method::PUT, uri, Some(&lease)).await;
    let message = refused.expect(403).message();
    assert!(
        message.ends_with(&refusal("leases", "coordination.k8s.io")),
        "{message}"
    );
    // What is there already they may change.
    world.post(CONFIGMAPS, &configmap("a")).await.expect(201);
    let conflict = world.call_as(Some(bob()), apply()).await;
    assert!(
        matches!(conflict.status.as_u16(), 200 | 409),
        "{}",
        conflict.text
    );
}

//! Authentication and the sentences of refusals, over an in-memory cache with the bootstrap roles.

use http::Method;
use serde_json::json;

use super::*;
use crate::auth::bootstrap;
use crate::auth::tokens::tests::tokens;
use crate::request::Query;
use crate::store::memory::Memory;
use crate::store::{Change, Draft, Expect, Index, Key, Operation, Store as _};

/// A cache that holds the bootstrap roles and what is given.
async fn access(objects: Vec<(&str, &str, &str, serde_json::Value)>) -> (Memory, Access) {
    let store = Memory::new();
    let mut all: Vec<(String, String, String, serde_json::Value)> = objects
        .into_iter()
        .map(|(resource, namespace, name, object)| {
            (
                resource.to_owned(),
                namespace.to_owned(),
                name.to_owned(),
                object,
            )
        })
        .collect();
    for object in bootstrap::objects() {
        let resource = format!("{}/{}", crate::auth::rbac::GROUP, object.plural);
        all.push((resource, object.namespace, object.name, object.value));
    }
    let operations = all
        .into_iter()
        .map(|(resource, namespace, name, object)| Operation {
            key: Key::new(&resource, &namespace, &name),
            expect: Expect::Absent,
            change: Change::Put(draft(&object)),
        });
    store.commit(operations.collect()).await.expect("committed");
    let access = Access::new(store.cache(), tokens());
    (store, access)
}

fn draft(object: &serde_json::Value) -> Draft {
    Draft {
        head: "{\"revision\":".into(),
        tail: format!(",{}", &object.to_string()[1..]).into(),
        index: Index::default(),
    }
}

fn ask(access: &Access, user: &User, method: &Method, path: &str) -> Result<(), String> {
    let info = RequestInfo::parse(method, path, &Query::default());
    access.authorise(user, &info).map_err(|error| error.message)
}

#[tokio::test]
async fn anonymous_sees_health_and_version_only() {
    let (_store, access) = access(Vec::new()).await;
    let nobody = User::anonymous();
    for path in ["/healthz", "/livez", "/readyz", "/version", "/version/"] {
        assert_eq!(ask(&access, &nobody, &Method::GET, path), Ok(()), "{path}");
    }
    for path in [
        "/",
        "/api",
        "/apis",
        "/metrics",
        "/openapi/v2",
        "/.well-known/openid-configuration",
    ] {
        assert_eq!(
            ask(&access, &nobody, &Method::GET, path),
            Err(format!(
                "forbidden: User \"system:anonymous\" cannot get path {path:?}"
            ))
        );
    }
    assert_eq!(
        ask(&access, &nobody, &Method::GET, "/api/v1/namespaces"),
        Err(r#"namespaces is forbidden: User "system:anonymous" cannot list resource "namespaces" in API group "" at the cluster scope"#.to_owned())
    );
}

#[tokio::test]
async fn masters_do_all_and_others_what_their_roles_say() {
    let (_store, access) = access(Vec::new()).await;
    let pods = "/api/v1/namespaces/default/pods/p";
    assert_eq!(ask(&access, &User::admin(), &Method::DELETE, pods), Ok(()));
    let scheduler = User::component("system:kube-scheduler");
    assert_eq!(ask(&access, &scheduler, &Method::DELETE, pods), Ok(()));
    assert!(ask(&access, &scheduler, &Method::PUT, pods).is_err());
    let pod = User::service_account("default", "default");
    assert_eq!(
        ask(&access, &pod, &Method::GET, pods),
        Err(r#"pods "p" is forbidden: User "system:serviceaccount:default:default" cannot get resource "pods" in API group "" in the namespace "default""#.to_owned())
    );
    let myself = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(ask(&access, &pod, &Method::POST, myself), Ok(()));
    assert_eq!(ask(&access, &pod, &Method::GET, "/apis/apps/v1"), Ok(()));
}

#[tokio::test]
async fn a_binding_to_a_missing_role_is_named_in_the_refusal() {
    let binding = json!({"roleRef": {"kind": "Role", "name": "gone"}, "subjects": [{"kind": "User", "name": "bob"}]});
    let (_store, access) = access(vec![(
        "rbac.authorization.k8s.io/rolebindings",
        "default",
        "b",
        binding,
    )])
    .await;
    let bob = User::authenticated("bob", &[]);
    assert_eq!(
        ask(&access, &bob, &Method::GET, "/api/v1/namespaces/default/pods"),
        Err(r#"pods is forbidden: User "bob" cannot list resource "pods" in API group "" in the namespace "default": RBAC: role.rbac.authorization.k8s.io "gone" not found"#.to_owned())
    );
}

#[tokio::test]
async fn only_the_permitted_impersonate_and_unknown_tokens_are_refused() {
    let (_store, access) = access(Vec::new()).await;
    let now = Timestamp::UNIX_EPOCH;
    let mut headers = HeaderMap::new();
    headers.insert("impersonate-user", "bob".parse().expect("a header value"));
    let bob = access.authenticate(Some(&User::admin()), &headers, now);
    let bob = bob.expect("masters may");
    assert_eq!(bob.name, "bob");
    let refused = access.authenticate(Some(&bob), &headers, now);
    assert_eq!(
        refused.expect_err("bob may not").message,
        r#"users "bob" is forbidden: User "bob" cannot impersonate resource "users" in API group "" at the cluster scope"#
    );
    for credentials in ["Bearer x", "Bearer abcdef.0123456789abcdef", "Basic eDp5"] {
        let mut headers = HeaderMap::new();
        headers.insert(
            "authorization",
            credentials.parse().expect("a header value"),
        );
        let error = access.authenticate(None, &headers, now);
        assert_eq!(error.expect_err("no such token").message, "Unauthorized");
    }
}

#[tokio::test]
async fn a_write_is_seen_by_the_next_question() {
    let (store, access) = access(Vec::new()).await;
    let bob = User::authenticated("bob", &[]);
    let path = "/api/v1/namespaces/default/pods";
    assert!(ask(&access, &bob, &Method::GET, path).is_err());
    let binding = json!({"roleRef": {"kind": "ClusterRole", "name": "system:kube-scheduler"}, "subjects": [{"kind": "User", "name": "bob"}]});
    let put = |change| Operation {
        key: Key::new(crate::auth::rbac::CLUSTER_ROLE_BINDINGS, "", "bob"),
        expect: Expect::Any,
        change,
    };
    let draft = draft(&binding);
    store
        .commit(vec![put(Change::Put(draft.clone()))])
        .await
        .expect("committed");
    assert_eq!(ask(&access, &bob, &Method::GET, path), Ok(()));
    store
        .commit(vec![put(Change::Delete(draft))])
        .await
        .expect("committed");
    assert!(ask(&access, &bob, &Method::GET, path).is_err());
}

#[tokio::test]
async fn a_certificate_that_has_ended_since_the_handshake_says_nothing() {
    let (_store, access) = access(Vec::new()).await;
    let at = |second| Timestamp::from_second(second).expect("a time");
    let user = User {
        until: Some(at(100)),
        ..User::admin()
    };
    let ask = |now| access.authenticate(Some(&user), &HeaderMap::new(), at(now));
    assert_eq!(ask(100).expect("good to the last second").name, user.name);
    let error = ask(101).expect_err("it has ended");
    assert_eq!(error.reason, crate::status::Reason::Unauthorized);
}

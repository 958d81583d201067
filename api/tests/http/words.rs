//! What clients are told when something is wrong, in the words of a real kube-apiserver.

use http::Method;
use serde_json::json;

use crate::support::{CONFIGMAPS, World, configmap};

#[tokio::test]
async fn wrong_bodies_are_refused_in_upstream_words() {
    let world = World::start().await;
    let strict = format!("{CONFIGMAPS}?fieldValidation=Strict");
    let body = r#"{"metadata": {"name": "a", "foo": 1}, "bogus": 2}"#;
    let refused = world
        .send(Method::POST, &strict, "application/json", body)
        .await
        .expect(400);
    assert_eq!(
        refused.message(),
        r#"ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "metadata.foo", unknown field "bogus""#
    );
    let warned = world
        .post(CONFIGMAPS, &json!({"metadata": {"name": "a"}, "bogus": 2}))
        .await
        .expect(201);
    assert_eq!(
        warned.headers["warning"],
        r#"299 - "unknown field \"bogus\"""#
    );
    let exists = world.post(CONFIGMAPS, &configmap("a")).await.expect(409);
    assert_eq!(exists.message(), r#"configmaps "a" already exists"#);
    let unnamed = world.post(CONFIGMAPS, &json!({})).await.expect(422);
    assert_eq!(
        unnamed.message(),
        r#"ConfigMap "" is invalid: metadata.name: Required value: name or generateName is required"#
    );
    let elsewhere = json!({"metadata": {"name": "x", "namespace": "other"}});
    let refused = world.post(CONFIGMAPS, &elsewhere).await.expect(400);
    assert_eq!(
        refused.message(),
        "the namespace of the provided object does not match the namespace sent on the request"
    );
    let nowhere = world
        .post("/api/v1/namespaces/nosuch/configmaps", &configmap("a"))
        .await
        .expect(404);
    assert_eq!(nowhere.message(), r#"namespaces "nosuch" not found"#);
    let odd = world
        .send(Method::POST, CONFIGMAPS, "text/foo", "x")
        .await
        .expect(415);
    assert_eq!(odd.json()["reason"], "UnsupportedMediaType");
    let large = format!("{{\"data\":{{\"a\":\"{}\"}}}}", "x".repeat(3 << 20));
    world
        .send(Method::POST, CONFIGMAPS, "application/json", &large)
        .await
        .expect(413);
}

#[tokio::test]
async fn wrong_updates_are_refused_in_upstream_words() {
    let world = World::start().await;
    let created = world.post(CONFIGMAPS, &configmap("a")).await.json();
    let refused = world
        .put(&format!("{CONFIGMAPS}/zz"), &created)
        .await
        .expect(400);
    assert_eq!(
        refused.message(),
        "the name of the object (a) does not match the name on the URL (zz)"
    );
    let missing = world
        .put(&format!("{CONFIGMAPS}/newone"), &configmap("newone"))
        .await
        .expect(404);
    assert_eq!(missing.message(), r#"configmaps "newone" not found"#);
    let mut stale = configmap("a");
    stale["metadata"]["resourceVersion"] = json!("1");
    let refused = world
        .put(&format!("{CONFIGMAPS}/a"), &stale)
        .await
        .expect(409);
    assert_eq!(
        refused.message(),
        r#"Operation cannot be fulfilled on configmaps "a": the object has been modified; please apply your changes to the latest version and try again"#
    );
    let mut other = configmap("a");
    other["metadata"]["uid"] = json!("zzz");
    let refused = world
        .put(&format!("{CONFIGMAPS}/a"), &other)
        .await
        .expect(409);
    let uid = created["metadata"]["uid"].as_str().expect("a uid");
    assert_eq!(
        refused.message(),
        format!(
            r#"Operation cannot be fulfilled on configmaps "a": StorageError: invalid object, Code: 4, Key: /registry/configmaps/default/a, ResourceVersion: 0, AdditionalErrorMsg: Precondition failed: UID in precondition: zzz, UID in object meta: {uid}"#
        )
    );
    let unowned = world
        .patch(&format!("{CONFIGMAPS}/a"), "apply", &configmap("a"))
        .await
        .expect(422);
    assert_eq!(
        unowned.message(),
        r#"PatchOptions.meta.k8s.io "" is invalid: fieldManager: Required value: is required for apply patch"#
    );
    let broken = world
        .send(
            Method::PATCH,
            &format!("{CONFIGMAPS}/a"),
            "application/merge-patch+json",
            "{b",
        )
        .await
        .expect(400);
    assert!(
        broken.message().starts_with("error decoding patch: "),
        "{}",
        broken.text
    );
    world
        .send(
            Method::PATCH,
            &format!("{CONFIGMAPS}/a"),
            "application/json",
            "{}",
        )
        .await
        .expect(415);
}

#[tokio::test]
async fn paths_that_lead_nowhere_say_so() {
    let world = World::start().await;
    let unknown = world.get("/api/v1/nosuch").await.expect(404);
    assert_eq!(
        unknown.message(),
        "the server could not find the requested resource"
    );
    for uri in ["/apis/nosuch", "/nosuch", "/apis/nosuch/v1/things"] {
        let page = world.get(uri).await.expect(404);
        assert_eq!(page.text, "404 page not found\n", "{uri}");
        assert_eq!(page.headers["content-type"], "text/plain; charset=utf-8");
    }
    for (method, uri) in [
        (Method::POST, "/api/v1/nodes/x"),
        (Method::DELETE, "/api"),
        (Method::OPTIONS, "/api/v1/pods"),
        (Method::PUT, "/api/v1/namespaces/default/pods"),
    ] {
        let refused = world.send(method, uri, "", "").await.expect(405);
        assert_eq!(
            refused.message(),
            "the server does not allow this method on the requested resource"
        );
    }
    let missing = world
        .get("/api/v1/namespaces/default/pods/x")
        .await
        .expect(404);
    assert_eq!(missing.message(), r#"pods "x" not found"#);
    assert!(missing.headers.contains_key("audit-id"));
    assert_eq!(missing.headers["cache-control"], "no-cache, private");
    let exec = world
        .get("/api/v1/namespaces/default/pods/p/exec?command=ls")
        .await
        .expect(404);
    assert_eq!(exec.message(), r#"pods "p" not found"#);
}

#[tokio::test]
async fn wrong_lists_are_refused_in_upstream_words() {
    let world = World::start().await;
    for (query, code, message) in [
        (
            "fieldSelector=foo%3Dbar",
            400,
            "field label not supported: foo",
        ),
        (
            "labelSelector=%3D%3D",
            400,
            "found '==', expected: !, identifier, or 'end of string'",
        ),
        (
            "limit=1&continue=bad",
            400,
            "invalid continue token: continue key is not valid: ",
        ),
        (
            "resourceVersion=9999999&resourceVersionMatch=NotOlderThan",
            504,
            "Timeout: Too large resource version: 9999999, current: ",
        ),
    ] {
        let refused = world
            .get(&format!("{CONFIGMAPS}?{query}"))
            .await
            .expect(code);
        assert!(refused.message().starts_with(message), "{}", refused.text);
    }
}

#[tokio::test]
async fn kinds_that_nothing_acts_on_warn() {
    let world = World::start().await;
    let limits = json!({"metadata": {"name": "l"}, "spec": {"limits": []}});
    let stored = world
        .post("/api/v1/namespaces/default/limitranges", &limits)
        .await
        .expect(201);
    assert!(
        stored.headers.contains_key("warning"),
        "{:?}",
        stored.headers
    );
}

#[tokio::test]
async fn anonymous_callers_see_health_and_nothing_else() {
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;
    let world = World::start().await;
    for (uri, code) in [
        ("/healthz", 200),
        ("/version", 200),
        ("/api/v1/namespaces", 403),
        ("/metrics", 403),
    ] {
        let request = http::Request::get(uri)
            .body(axum::body::Body::empty())
            .expect("a request");
        let response = world
            .handle
            .router()
            .oneshot(request)
            .await
            .expect("infallible");
        assert_eq!(response.status().as_u16(), code, "{uri}");
        response.into_body().collect().await.expect("a body");
    }
}

#[tokio::test]
async fn reviews_answer_who_may_do_what() {
    let world = World::start().await;
    let review = json!({"spec": {"resourceAttributes": {"verb": "create", "resource": "pods", "namespace": "default"}}});
    let answer = world
        .post(
            "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
            &review,
        )
        .await
        .expect(201);
    assert_eq!(answer.json()["status"]["allowed"], true);
    let me = world
        .post(
            "/apis/authentication.k8s.io/v1/selfsubjectreviews",
            &json!({}),
        )
        .await
        .expect(201);
    assert_eq!(
        me.json()["status"]["userInfo"]["username"],
        "kubernetes-admin"
    );
}

#[tokio::test]
async fn protobuf_is_read_and_written() {
    use api::codec::protobuf;
    let world = World::start().await;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "pb"}, "data": {"a": "b"}});
    let body = protobuf::encode("io.k8s.api.core.v1.ConfigMap", &map).expect("encodes");
    let request = http::Request::post(CONFIGMAPS)
        .header("content-type", "application/vnd.kubernetes.protobuf")
        .header(
            "accept",
            "application/vnd.kubernetes.protobuf,application/json",
        )
        .body(axum::body::Body::from(body))
        .expect("a request");
    let created = world.call(request).await.expect(201).json();
    assert_eq!(created["data"]["a"], "b");
    for (uri, kind) in [
        (format!("{CONFIGMAPS}/pb"), "ConfigMap"),
        (CONFIGMAPS.to_owned(), "ConfigMapList"),
        (format!("{CONFIGMAPS}/nosuch"), "Status"),
    ] {
        use http_body_util::BodyExt as _;
        use tower::ServiceExt as _;
        let request = http::Request::get(&uri)
            .header("accept", "application/vnd.kubernetes.protobuf")
            .body(axum::body::Body::empty())
            .expect("a request");
        let router = world.handle.router_as(api::auth::User::admin());
        let response = router.oneshot(request).await.expect("infallible");
        assert_eq!(
            response.headers()["content-type"],
            "application/vnd.kubernetes.protobuf"
        );
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        let (gvk, _) = protobuf::decode(&body).expect("decodes");
        assert_eq!(gvk.kind, kind, "{uri}");
    }
}

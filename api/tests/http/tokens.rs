//! ServiceAccount tokens through the router: asked for, used, ended with what they are bound to.

use api::auth::User;
use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{Answer, World};

const TOKEN: &str = "/api/v1/namespaces/default/serviceaccounts/default/token";
const WHOAMI: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
const PODS: &str = "/api/v1/namespaces/default/pods";

async fn token(world: &World, spec: Value) -> String {
    let answer = world
        .post(TOKEN, &json!({ "spec": spec }))
        .await
        .expect(201);
    let token = answer.json()["status"]["token"].as_str().map(str::to_owned);
    token.expect("a token")
}

async fn whoami(world: &World, token: &str) -> Answer {
    let request = Request::post(WHOAMI)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from("{}"))
        .expect("a request");
    world.call_as(None, request).await
}

#[tokio::test]
async fn a_token_is_its_account_until_the_account_is_gone() {
    let world = World::start().await;
    let robot = "/api/v1/namespaces/default/serviceaccounts/robot";
    let account = json!({"metadata": {"name": "robot"}});
    world
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await
        .expect(201);
    let made = world
        .post(&format!("{robot}/token"), &json!({}))
        .await
        .expect(201)
        .json();
    assert_eq!(made["spec"]["expirationSeconds"], 3600);
    assert_eq!(
        made["spec"]["audiences"],
        json!(["https://kubernetes.default.svc.cluster.local"])
    );
    let token = made["status"]["token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let me = whoami(&world, &token).await.expect(201).json();
    let info = &me["status"]["userInfo"];
    assert_eq!(info["username"], "system:serviceaccount:default:robot");
    assert_eq!(
        info["groups"],
        json!([
            "system:serviceaccounts",
            "system:serviceaccounts:default",
            "system:authenticated"
        ])
    );
    assert!(
        info["extra"]["authentication.kubernetes.io/credential-id"][0]
            .as_str()
            .is_some_and(|id| id.starts_with("JTI="))
    );
    world.delete(robot, &json!({})).await.expect(200);
    assert_eq!(
        whoami(&world, &token).await.expect(401).message(),
        "Unauthorized"
    );
    // Another of the same name is another.
    world
        .post("/api/v1/namespaces/default/serviceaccounts", &account)
        .await
        .expect(201);
    whoami(&world, &token).await.expect(401);
}

#[tokio::test]
async fn a_token_for_others_is_none_for_the_api() {
    let world = World::start().await;
    let token = token(
        &world,
        json!({"audiences": ["vault"], "expirationSeconds": 600}),
    )
    .await;
    whoami(&world, &token).await.expect(401);
    let review = async |audiences: Value| {
        let spec = json!({"spec": {"token": token, "audiences": audiences}});
        let uri = "/apis/authentication.k8s.io/v1/tokenreviews";
        world.post(uri, &spec).await.json()
    };
    let answer = review(json!(["vault", "other"])).await;
    assert_eq!(answer["status"]["authenticated"], true);
    assert_eq!(answer["status"]["audiences"], json!(["vault"]));
    assert_eq!(
        answer["status"]["user"]["username"],
        "system:serviceaccount:default:default"
    );
    assert_eq!(review(json!([])).await["status"]["authenticated"], false);
}

#[tokio::test]
async fn what_cannot_be_bound_is_refused_in_upstream_words() {
    let world = World::start().await;
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "x"}]}});
    let pod = world.post(PODS, &pod).await.expect(201).json();
    for (spec, code, message) in [
        (
            json!({"expirationSeconds": 10}),
            422,
            r#"TokenRequest.authentication.k8s.io "" is invalid: spec.expirationSeconds: Invalid value: 10: may not specify a duration less than 10 minutes"#,
        ),
        (
            json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "gone"}}),
            404,
            r#"pods "gone" not found"#,
        ),
        (
            json!({"boundObjectRef": {"kind": "ConfigMap", "apiVersion": "v1", "name": "x"}}),
            400,
            "cannot bind token to object of type /v1, Kind=ConfigMap",
        ),
        (
            json!({"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": "x"}}),
            409,
            "",
        ),
    ] {
        let refused = world
            .post(TOKEN, &json!({ "spec": spec }))
            .await
            .expect(code);
        if !message.is_empty() {
            assert_eq!(refused.message(), message);
        }
    }
    let missing = "/api/v1/namespaces/default/serviceaccounts/gone/token";
    let refused = world.post(missing, &json!({})).await.expect(404);
    assert_eq!(refused.message(), r#"serviceaccounts "gone" not found"#);
    let uid = &pod["metadata"]["uid"];
    let bound = json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid});
    let made = world
        .post(
            TOKEN,
            &json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": bound}}),
        )
        .await
        .expect(201)
        .json();
    let token = made["status"]["token"].as_str().expect("a token");
    let me = whoami(&world, token).await.expect(201).json();
    let extra = &me["status"]["userInfo"]["extra"];
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], json!(["p"]));
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], json!([uid]));
    // Pending pods go at once.
    world
        .delete(&format!("{PODS}/p"), &json!({"gracePeriodSeconds": 0}))
        .await
        .expect(200);
    whoami(&world, token).await.expect(401);
}

#[tokio::test]
async fn others_can_verify_tokens_by_the_published_keys() {
    let world = World::start().await;
    let account = User::service_account("default", "default");
    let ask = |uri| world.ask(&account, Method::GET, uri, None);
    let found = ask("/.well-known/openid-configuration")
        .await
        .expect(200)
        .json();
    assert_eq!(
        found["issuer"],
        "https://kubernetes.default.svc.cluster.local"
    );
    let keys = ask("/openid/v1/jwks").await.expect(200);
    assert_eq!(keys.headers["content-type"], "application/jwk-set+json");
    assert_eq!(keys.json()["keys"][0]["alg"], "ES256");
    let anonymous = Request::get("/openid/v1/jwks")
        .body(Body::empty())
        .expect("a request");
    world.call_as(None, anonymous).await.expect(403);
}

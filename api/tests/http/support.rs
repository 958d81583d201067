//! A server per test, and requests to it.

use std::time::Duration;

use api::auth::User;
use api::{Config, Handle};
use axum::body::Body;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use kube::Client;
use serde_json::Value;
use tower::ServiceExt as _;

/// One server on the memory store.
pub(crate) struct World {
    pub(crate) handle: Handle,
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl World {
    pub(crate) async fn start() -> Self {
        // TLS is not used in process, but the server makes its certificates.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let handle = api::start(Config::in_memory()).await.expect("starts");
        Self { handle }
    }

    pub(crate) fn client(&self) -> Client {
        self.client_as(User::admin())
    }

    pub(crate) fn client_as(&self, user: User) -> Client {
        let router = self.handle.router_as(user);
        let service = tower::ServiceBuilder::new()
            .map_request(|request: Request<kube::client::Body>| request.map(Body::new))
            .service(router);
        Client::new(service, "default")
    }

    /// A raw request as the admin. `body` is sent as `content_type`, where there is one.
    pub(crate) async fn send(
        &self,
        method: Method,
        uri: &str,
        content_type: &str,
        body: &str,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        if !content_type.is_empty() {
            request = request.header("content-type", content_type);
        }
        let request = request
            .body(Body::from(body.to_owned()))
            .expect("a request");
        self.call(request).await
    }

    pub(crate) async fn call(&self, request: Request<Body>) -> Answer {
        self.call_as(Some(User::admin()), request).await
    }

    /// As `user`, or as whoever the request's headers say.
    pub(crate) async fn call_as(&self, user: Option<User>, request: Request<Body>) -> Answer {
        let router = match user {
            Some(user) => self.handle.router_as(user),
            None => self.handle.router(),
        };
        let response = router.oneshot(request).await.expect("infallible");
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(Duration::from_secs(10), body.collect());
        let bytes = body.await.expect("in time").expect("a body").to_bytes();
        Answer {
            status: parts.status,
            headers: parts.headers,
            text: String::from_utf8_lossy(&bytes).into_owned(),
        }
    }

    /// A request with JSON as `user`.
    pub(crate) async fn ask(
        &self,
        user: &User,
        method: Method,
        uri: &str,
        body: Option<&Value>,
    ) -> Answer {
        let kind = match method {
            Method::PATCH => "application/merge-patch+json",
            _ => "application/json",
        };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", kind)
            .body(body.map_or_else(Body::empty, |body| Body::from(body.to_string())))
            .expect("a request");
        self.call_as(Some(user.clone()), request).await
    }

    pub(crate) async fn get(&self, uri: &str) -> Answer {
        self.send(Method::GET, uri, "", "").await
    }

    pub(crate) async fn post(&self, uri: &str, body: &Value) -> Answer {
        self.send(Method::POST, uri, "application/json", &body.to_string())
            .await
    }

    pub(crate) async fn put(&self, uri: &str, body: &Value) -> Answer {
        self.send(Method::PUT, uri, "application/json", &body.to_string())
            .await
    }

    pub(crate) async fn delete(&self, uri: &str, options: &Value) -> Answer {
        let body = options.to_string();
        self.send(Method::DELETE, uri, "application/json", &body)
            .await
    }

    pub(crate) async fn patch(&self, uri: &str, kind: &str, body: &Value) -> Answer {
        let content_type = match kind {
            "apply" => "application/apply-patch+yaml".to_owned(),
            kind => format!("application/{kind}-patch+json"),
        };
        self.send(Method::PATCH, uri, &content_type, &body.to_string())
            .await
    }
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {}", self.text))
    }

    /// The message of a Status.
    pub(crate) fn message(&self) -> String {
        self.json()["message"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    }

    pub(crate) fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{}", self.text);
        self
    }
}

pub(crate) const CONFIGMAPS: &str = "/api/v1/namespaces/default/configmaps";
pub(crate) const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

/// A small Deployment.
pub(crate) fn deployment(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": name },
        "spec": {
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "c", "image": "x" }] },
            },
        },
    })
}

pub(crate) fn configmap(name: &str) -> Value {
    serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "a": "1" },
    })
}

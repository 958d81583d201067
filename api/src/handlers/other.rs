//! What is not a resource: health, version, metrics, discovery, OpenAPI, the list of paths.

mod graph;
mod health;

use std::sync::Arc;

use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use types::well_known::{GIT_VERSION, KUBERNETES_MAJOR, KUBERNETES_MINOR};

use super::reply::Reply;
use super::{Api, Call};
use crate::auth::tokens::ISSUER;
use crate::request::{Query, RequestInfo};
use crate::status::Error;
use crate::{discovery, openapi};

pub(super) async fn serve(
    api: &Arc<Api>,
    parts: &Parts,
    query: &Query,
    info: &RequestInfo,
) -> Result<Reply, Error> {
    let path = info.path.trim_end_matches('/');
    let first = path.trim_start_matches('/').split('/').next();
    let known = matches!(
        first.unwrap_or_default(),
        "" | "healthz"
            | "livez"
            | "readyz"
            | "version"
            | "metrics"
            | "api"
            | "apis"
            | "openapi"
            | "coracle"
            | "openid"
            | ".well-known"
    );
    if !known {
        return Ok(Reply::no_page());
    }
    if parts.method != Method::GET {
        return Err(Error::method_not_allowed());
    }
    match first.unwrap_or_default() {
        "" => Ok(Reply::value(
            StatusCode::OK,
            &json!({ "paths": paths(api) }),
        )),
        "healthz" | "livez" | "readyz" => Ok(health::serve(api, path, query)),
        "version" if path == "/version" => Ok(Reply::value(StatusCode::OK, &version())),
        "metrics" if path == "/metrics" => {
            let mut page = api.metrics.render(&api.cache);
            let name = "apiserver_authorization_decisions_total";
            let refused = api.access.refused();
            page.push_str(&format!(
                "# TYPE {name} counter\n{name}{{decision=\"denied\"}} {refused}\n"
            ));
            let mut reply = Reply::text(StatusCode::OK, page);
            let kind = http::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            reply.headers.insert(http::header::CONTENT_TYPE, kind);
            Ok(reply)
        }
        "coracle" if path == graph::PATH => graph::serve(api).await,
        "coracle" => Ok(Reply::no_page()),
        "openid" | ".well-known" => Ok(issuer(api, path)),
        _ => derived(api, parts, query, path).await,
    }
}

/// How others verify ServiceAccounts' tokens (OpenID Connect discovery).
fn issuer(api: &Api, path: &str) -> Reply {
    let (value, kind) = match path {
        "/.well-known/openid-configuration" => (
            json!({
                "issuer": ISSUER,
                "jwks_uri": format!("https://{}/openid/v1/jwks", api.settings.advertised),
                "response_types_supported": ["id_token"],
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["ES256"],
            }),
            "application/json",
        ),
        "/openid/v1/jwks" => (api.access.tokens().key_set(), "application/jwk-set+json"),
        _ => return Reply::no_page(),
    };
    let mut reply = Reply::value(StatusCode::OK, &value);
    let kind = http::HeaderValue::from_static(kind);
    reply.headers.insert(http::header::CONTENT_TYPE, kind);
    reply
}

/// Discovery and OpenAPI, derived from kinds and schema.
async fn derived(api: &Api, parts: &Parts, query: &Query, path: &str) -> Result<Reply, Error> {
    if path.starts_with("/openapi/") {
        return documents(parts, query, path).await;
    }
    let server = api.settings.advertised.to_string();
    match discovery::respond(api.kinds, path, &parts.headers, &server) {
        None => Ok(Reply::no_page()),
        Some(response) => Ok(Reply::from_bytes(response?)),
    }
}

/// The first answer is built in tens of milliseconds of pure computing: off the threads that serve everybody.
async fn documents(parts: &Parts, query: &Query, path: &str) -> Result<Reply, Error> {
    let (path, headers) = (path.to_owned(), parts.headers.clone());
    let hash = query.first("hash").map(str::to_owned);
    let work = move || openapi::builtin().respond(&path, hash.as_deref(), &headers);
    let answer = tokio::task::spawn_blocking(work).await;
    match answer.map_err(|error| Error::internal(error.to_string()))? {
        None => Ok(Reply::no_page()),
        Some(response) => Ok(Reply::from_bytes(response?)),
    }
}

fn version() -> Value {
    let (major, minor) = (KUBERNETES_MAJOR, KUBERNETES_MINOR);
    json!({
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": "35",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }),
    })
}

fn paths(api: &Api) -> Vec<String> {
    let mut paths = discovery::paths(api.kinds);
    for path in [
        graph::PATH,
        "/.well-known/openid-configuration",
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/openid/v1/jwks",
        "/readyz",
        "/version",
    ] {
        paths.push(path.to_owned());
    }
    paths.sort();
    paths
}

/// Kinds that are computed, not stored: ComponentStatus. Only what this server knows is said: the store's health.
pub(super) fn computed(call: &Call<'_>) -> Result<Reply, Error> {
    let health = match call.api.store.health() {
        Ok(()) => json!({ "type": "Healthy", "status": "True", "message": "ok" }),
        Err(error) => {
            json!({ "type": "Healthy", "status": "False", "message": error.to_string() })
        }
    };
    let item = json!({
        "kind": call.kind.kind,
        "apiVersion": call.kind.api_version(),
        "metadata": { "name": "store" },
        "conditions": [health],
    });
    let (value, definition) = match &*call.path.name {
        "" => {
            let mut item = item;
            if let Some(item) = item.as_object_mut() {
                item.remove("kind");
                item.remove("apiVersion");
            }
            let list = json!({
                "kind": call.kind.list_kind(),
                "apiVersion": call.kind.api_version(),
                "metadata": {},
                "items": [item],
            });
            (list, format!("{}List", call.kind.definition))
        }
        "store" => (item, call.kind.definition.to_string()),
        name => {
            let (group, plural) = (&call.kind.group, &call.kind.plural);
            return Err(Error::not_found(group, plural, name));
        }
    };
    let mut reply = call.format(StatusCode::OK, value.to_string().into(), &definition)?;
    reply.warn(&["v1 ComponentStatus is deprecated in v1.19+".to_owned()]);
    Ok(reply)
}

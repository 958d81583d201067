//! Which groups, versions and resources there are: the legacy documents and the aggregated one, derived from the kinds.
//!
//! ```text
//! /api  /apis               aggregated v2 when the client asks for it, else APIVersions and APIGroupList
//! /apis/apps                APIGroup
//! /api/v1  /apis/apps/v1    APIResourceList
//! ```
//! Never knows a kind by name; holds no state: a document is a few hundred microseconds of work.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256, Sha512};

use crate::codec;
use crate::kinds::{Kind, Kinds, Scope, Subresource};
use crate::status::{Error, Reason};

/// The content type of the aggregated document, as clients ask for it and get it back.
pub const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Answers a GET of a discovery path; `None` when `path` is none, or names a group or version that is not served.
/// `server` is the address clients reach this server at (`127.0.0.1:6443`).
pub fn respond(
    kinds: &Kinds,
    path: &str,
    headers: &HeaderMap,
    server: &str,
) -> Option<Result<Response<Bytes>, Error>> {
    let path = path.strip_suffix('/').unwrap_or(path);
    let segments: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let (aggregated, legacy) = match segments[..] {
        ["api"] => (
            Some(aggregate(kinds, |group| group.is_empty())),
            api_versions(kinds, server),
        ),
        ["apis"] => (
            Some(aggregate(kinds, |group| !group.is_empty())),
            api_groups(kinds),
        ),
        ["api", version] => (None, api_resources(kinds, "", version)?),
        ["apis", group] => (None, api_group(kinds, group)?),
        ["apis", group, version] if !group.is_empty() => {
            (None, api_resources(kinds, group, version)?)
        }
        _ => return None,
    };
    Some(choose(headers, aggregated, &legacy))
}

/// Every path `GET /` lists for the kinds: `/api`, `/api/v1`, `/apis`, `/apis/apps`, `/apis/apps/v1` ….
pub fn paths(kinds: &Kinds) -> Vec<String> {
    let mut paths = vec!["/api".to_owned(), "/apis".to_owned()];
    for group in kinds.groups() {
        if !group.is_empty() {
            paths.push(format!("/apis/{group}"));
        }
        for version in kinds.versions(group) {
            paths.push(version_path(group, version));
        }
    }
    paths.sort();
    paths
}

/// `/api/v1`, `/apis/apps/v1`
pub(crate) fn version_path(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("/api/{version}")
    } else {
        format!("/apis/{group}/{version}")
    }
}

/// `v1`, `apps/v1`
fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Upper-case SHA-512, quoted: what entity tags look like here.
pub(crate) fn entity_tag(body: &[u8]) -> String {
    format!("\"{}\"", hash(body))
}

pub(crate) fn hash(body: &[u8]) -> String {
    let digest = Sha512::digest(body);
    digest.iter().map(|byte| format!("{byte:02X}")).collect()
}

// ---- content negotiation -------------------------------------------------------------------------------------------

fn choose(
    headers: &HeaderMap,
    aggregated: Option<Value>,
    legacy: &Value,
) -> Result<Response<Bytes>, Error> {
    let accept = headers
        .get(ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .filter(|accept| !accept.trim().is_empty())
        .unwrap_or("*/*");
    for entry in accept.split(',') {
        match (&aggregated, codec::essence(entry)) {
            (Some(document), "application/json") if asks_for_aggregation(entry) => {
                return Ok(aggregated_response(headers, document));
            }
            (_, codec::JSON | "*/*" | "application/*") if !entry.contains("as=") => {
                return Ok(response(legacy.to_string(), codec::JSON));
            }
            (_, codec::YAML) => return Ok(response(codec::to_yaml(legacy)?, codec::YAML)),
            _ => {}
        }
    }
    Err(Error::new(
        Reason::NotAcceptable,
        "only the following media types are accepted: application/json, application/yaml",
    ))
}

/// `application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList`, parameters in any order.
fn asks_for_aggregation(entry: &str) -> bool {
    let has = |wanted: &str| entry.split(';').any(|parameter| parameter.trim() == wanted);
    has("as=APIGroupDiscoveryList") && has("v=v2") && has("g=apidiscovery.k8s.io")
}

fn aggregated_response(headers: &HeaderMap, document: &Value) -> Response<Bytes> {
    let body = document.to_string();
    let tag = entity_tag(body.as_bytes());
    let known = headers
        .get(IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    let mut response = response(body, AGGREGATED);
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        *response.body_mut() = Bytes::new();
    }
    let headers = response.headers_mut();
    set(headers, ETAG, &tag);
    set(headers, CACHE_CONTROL, "public");
    set(headers, VARY, "Accept");
    response
}

fn response(body: String, content_type: &str) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body));
    set(response.headers_mut(), CONTENT_TYPE, content_type);
    response
}

pub(crate) fn set(headers: &mut HeaderMap, name: http::HeaderName, value: &str) {
    if let Ok(value) = value.parse() {
        headers.insert(name, value);
    }
}

// ---- legacy --------------------------------------------------------------------------------------------------------

fn api_versions(kinds: &Kinds, server: &str) -> Value {
    json!({
        "kind": "APIVersions",
        "versions": kinds.versions(""),
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}],
    })
}

fn api_groups(kinds: &Kinds) -> Value {
    let groups = kinds.groups().into_iter().filter(|group| !group.is_empty());
    let groups: Vec<Value> = groups
        .map(|group| Value::Object(group_document(kinds, group)))
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn api_group(kinds: &Kinds, group: &str) -> Option<Value> {
    if group.is_empty() || kinds.versions(group).is_empty() {
        return None;
    }
    let mut document = group_document(kinds, group);
    document.insert("kind".to_owned(), "APIGroup".into());
    document.insert("apiVersion".to_owned(), "v1".into());
    Some(Value::Object(document))
}

fn group_document(kinds: &Kinds, group: &str) -> Map<String, Value> {
    let versions: Vec<Value> = kinds
        .versions(group)
        .into_iter()
        .map(|version| json!({"groupVersion": group_version(group, version), "version": version}))
        .collect();
    let mut document = Map::new();
    document.insert("name".to_owned(), group.into());
    document.insert(
        "preferredVersion".to_owned(),
        versions.first().cloned().unwrap_or_default(),
    );
    document.insert("versions".to_owned(), versions.into());
    document
}

fn api_resources(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for kind in kinds.in_version(group, version) {
        resources.push(resource(kinds, kind));
        resources.extend(kind.subresources.iter().map(|sub| subresource(kind, sub)));
    }
    if resources.is_empty() {
        return None;
    }
    let mut document = json!({
        "kind": "APIResourceList",
        "groupVersion": group_version(group, version),
        "resources": resources,
    });
    if !group.is_empty() {
        document["apiVersion"] = "v1".into();
    }
    Some(document)
}

fn resource(kinds: &Kinds, kind: &Kind) -> Value {
    let mut document = json!({
        "name": kind.plural,
        "singularName": kind.singular,
        "namespaced": kind.is_namespaced(),
        "kind": kind.kind,
        "verbs": kind.verbs,
    });
    names(&mut document, kind);
    if let Some(stored) = kinds.stored(&kind.storage) {
        document["storageVersionHash"] = storage_version_hash(stored).into();
    }
    document
}

fn subresource(kind: &Kind, sub: &Subresource) -> Value {
    let mut document = json!({
        "name": format!("{}/{}", kind.plural, sub.name),
        "singularName": "",
        "namespaced": kind.is_namespaced(),
        "kind": sub.kind,
        "verbs": sub.verbs,
    });
    if !sub.version.is_empty() {
        document["group"] = sub.group.into();
        document["version"] = sub.version.into();
    }
    document
}

fn names(document: &mut Value, kind: &Kind) {
    if !kind.short_names.is_empty() {
        document["shortNames"] = kind.short_names.into();
    }
    if !kind.categories.is_empty() {
        document["categories"] = kind.categories.into();
    }
}

/// The first eight bytes of the SHA-256 of `group/version/Kind`, as stored.
fn storage_version_hash(stored: &Kind) -> String {
    use base64::Engine as _;
    let text = format!("{}/{}/{}", stored.group, stored.version, stored.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

// ---- aggregated ----------------------------------------------------------------------------------------------------

fn aggregate(kinds: &Kinds, wanted: impl Fn(&str) -> bool) -> Value {
    let groups = kinds.groups().into_iter().filter(|group| wanted(group));
    let items: Vec<Value> = groups.map(|group| aggregate_group(kinds, group)).collect();
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": items,
    })
}

fn aggregate_group(kinds: &Kinds, group: &str) -> Value {
    let versions = kinds.versions(group).into_iter().map(|version| {
        let resources = kinds.in_version(group, version).map(aggregate_resource);
        json!({
            "version": version,
            "resources": resources.collect::<Vec<Value>>(),
            "freshness": "Current",
        })
    });
    let versions: Vec<Value> = versions.collect();
    let metadata = if group.is_empty() {
        json!({})
    } else {
        json!({"name": group})
    };
    json!({"metadata": metadata, "versions": versions})
}

fn aggregate_resource(kind: &Kind) -> Value {
    let mut document = json!({
        "resource": kind.plural,
        "responseKind": {"group": "", "version": "", "kind": kind.kind},
        "scope": match kind.scope {
            Scope::Cluster => "Cluster",
            Scope::Namespaced => "Namespaced",
        },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    names(&mut document, kind);
    let subresources = kind.subresources.iter().map(|sub| {
        json!({
            "subresource": sub.name,
            "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
            "verbs": sub.verbs,
        })
    });
    let subresources: Vec<Value> = subresources.collect();
    if !subresources.is_empty() {
        document["subresources"] = subresources.into();
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::{recorded, table};

    fn get(path: &str, accept: &str) -> Response<Bytes> {
        let mut headers = HeaderMap::new();
        set(&mut headers, ACCEPT, accept);
        respond(table(), path, &headers, "127.0.0.1:6443")
            .expect("the path is served")
            .expect("the format is served")
    }

    fn body(response: &Response<Bytes>) -> Value {
        serde_json::from_slice(response.body()).expect("the body is JSON")
    }

    #[test]
    fn the_aggregated_document_is_what_a_stock_server_serves() {
        for path in ["api", "apis"] {
            let answer = get(&format!("/{path}"), AGGREGATED);
            let mut answer = body(&answer);
            // Ours beside them; upstream installs it as CRDs.
            if let Some(groups) = answer["items"].as_array_mut() {
                groups.retain(|g| g["metadata"]["name"] != types::well_known::GATEWAY_GROUP);
            }
            assert_eq!(answer, recorded::aggregated(path == "api"), "{path}");
        }
    }

    #[test]
    fn kubectl_gets_the_type_it_asked_for_with_a_tag() {
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        let answer = get("/apis", accept);
        assert_eq!(answer.headers()[CONTENT_TYPE], AGGREGATED);
        assert_eq!(answer.headers()[VARY], "Accept");
        let mut headers = HeaderMap::new();
        set(&mut headers, ACCEPT, accept);
        headers.insert(IF_NONE_MATCH, answer.headers()[ETAG].clone());
        let again = respond(table(), "/apis", &headers, "").expect("served");
        let again = again.expect("the format is served");
        assert_eq!(again.status(), StatusCode::NOT_MODIFIED);
    }

    #[test]
    fn legacy_documents_read_as_upstreams() {
        let api = body(&get("/api", "application/json"));
        assert_eq!(
            api,
            json!({"kind":"APIVersions","versions":["v1"],"serverAddressByClientCIDRs":[{"clientCIDR":"0.0.0.0/0","serverAddress":"127.0.0.1:6443"}]})
        );
        assert_eq!(
            body(&get("/apis/apps", "*/*")),
            json!({"kind":"APIGroup","apiVersion":"v1","name":"apps","versions":[{"groupVersion":"apps/v1","version":"v1"}],"preferredVersion":{"groupVersion":"apps/v1","version":"v1"}})
        );
        let core = body(&get("/api/v1", "application/json"));
        let find = |name: &str| {
            let list = core["resources"].as_array().expect("a list");
            list.iter()
                .find(|r| r["name"] == name)
                .cloned()
                .expect("listed")
        };
        assert_eq!(find("pods")["storageVersionHash"], "xPOwRZ+Yhw8=");
        assert_eq!(find("pods/eviction")["group"], "policy");
        assert!(find("pods/log").get("group").is_none());
        assert_eq!(find("componentstatuses").get("storageVersionHash"), None);
    }

    #[test]
    fn what_is_not_served_is_left_to_the_caller() {
        let headers = HeaderMap::new();
        for path in [
            "/apis/nosuch",
            "/api/v2",
            "/apis/apps/v1beta1",
            "/",
            "/version",
        ] {
            assert!(respond(table(), path, &headers, "").is_none(), "{path}");
        }
        let mut headers = HeaderMap::new();
        set(&mut headers, ACCEPT, "text/plain");
        let refused = respond(table(), "/apis", &headers, "").expect("the path is served");
        assert_eq!(
            refused.expect_err("no such format").reason,
            Reason::NotAcceptable
        );
    }
}

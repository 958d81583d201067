//! `pods/NAME/proxy/PATH` and `services/NAME/proxy/PATH`: any request, sent on by a node into the pod network. Chooses whom it
//! goes to; the node sends it.
//!
//! Differs from Kubernetes: links in HTML are left as they are, and pods are not asked over https.

use std::time::Duration;

use axum::body::Body;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use rand::seq::IndexedRandom as _;
use serde_json::Value;
use types::well_known::{HEADER_PROXY_FAILED, LABEL_SERVICE_NAME, PROXY_PATH};

use super::node;
use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::strategy::Door;
use crate::status::{Error, Reason};
use crate::streams::{self, Wanted};

const SLICES: &str = "discovery.k8s.io/endpointslices";
/// For whoever is asked to begin its answer.
const ANSWER: Duration = Duration::from_secs(600);
/// Slashes before what is for the other end: `/api/v1/namespaces/NS/pods/NAME/proxy` has as many.
const DEPTH: usize = 7;

/// `[SCHEME:]NAME[:PORT]`
#[derive(Debug, Eq, PartialEq)]
struct Asked<'a> {
    scheme: &'a str,
    name: &'a str,
    port: &'a str,
}

/// Whom it goes to, and through which node.
#[derive(Debug, Eq, PartialEq)]
struct To {
    node: String,
    /// `100.64.0.2:8080`
    authority: String,
}

pub(super) async fn proxy(call: &Call<'_>, body: Body) -> Result<Reply, Error> {
    let id = &call.path.name;
    let kind = call.kind.kind.to_lowercase();
    let asked = Asked::parse(id)
        .ok_or_else(|| Error::bad_request(format!("invalid {kind} request {id:?}")))?;
    if asked.scheme == "https" {
        return Err(Error::not_yet("https to pods"));
    }
    let to = match &*call.kind.plural {
        "pods" => pod(call, &asked)?,
        _ => service(call, &asked)?,
    };
    let uri = &call.parts.uri;
    let (prefix, path) = cut(uri.path());
    let Some(path) = path else {
        return Ok(with_a_slash(prefix, uri.query()));
    };
    let query = uri.query().map(|query| format!("?{query}"));
    let target = format!(
        "{PROXY_PATH}http/{}{path}{}",
        to.authority,
        query.unwrap_or_default()
    );
    let wanted = Wanted::of(call.parts);
    let request = request(call, &target, wanted.as_ref(), body)?;
    // Held until the stream is over, where it becomes one.
    let place = wanted.as_ref().map(|_| streams::place(call.api));
    let place = place.transpose()?;
    let nodes = &call.api.nodes;
    let response = nodes.send(call.api, &to.node, request, ANSWER).await?;
    if response.headers().contains_key(HEADER_PROXY_FAILED) {
        let why = node::refusal(response).await.message;
        let why = format!("error trying to reach service: {why}");
        return Err(Error::new(Reason::ServiceUnavailable, why));
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let (Some(wanted), Some(place)) = (wanted, place)
    {
        return Ok(streams::join(call.api, response, wanted, place));
    }
    let host = call.headers.get(header::HOST);
    Ok(answer(response, prefix, &to.authority, host))
}

// === impl Asked ===

impl<'a> Asked<'a> {
    fn parse(id: &'a str) -> Option<Self> {
        let parts: Vec<&str> = id.split(':').collect();
        let (scheme, name, port) = match parts.as_slice() {
            [name] => ("", *name, ""),
            [name, port] => ("", *name, *port),
            [scheme, name, port] => (*scheme, *name, *port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https");
        (known && !name.is_empty()).then_some(Self { scheme, name, port })
    }
}

/// The port asked for, or the first that a container declares.
fn pod(call: &Call<'_>, asked: &Asked<'_>) -> Result<To, Error> {
    let registry = call.registry(Door::Main, "", false);
    let stored = registry.find(asked.name)?;
    let pod = registry.read(&stored)?;
    let port = match asked.port {
        "" => {
            let containers = pod.list_at(&["spec", "containers"]).iter();
            let mut ports = containers.map(|container| &container["ports"][0]["containerPort"]);
            ports.find_map(Value::as_u64).unwrap_or(80)
        }
        port => port
            .parse::<u16>()
            .map(u64::from)
            .map_err(|_| Error::bad_request(format!("invalid pod request {:?}", call.path.name)))?,
    };
    let node = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    let address = pod.str_at(&["status", "podIP"]).unwrap_or_default();
    if node.is_empty() || address.is_empty() {
        let why = format!("address not allowed: pod {} has none yet", asked.name);
        return Err(Error::bad_request(why));
    }
    Ok(To {
        node: node.to_owned(),
        authority: authority(address, port),
    })
}

/// A ready endpoint of the Service's port.
fn service(call: &Call<'_>, asked: &Asked<'_>) -> Result<To, Error> {
    let registry = call.registry(Door::Main, "", false);
    let stored = registry.find(asked.name)?;
    let service = registry.read(&stored)?;
    let port = match asked.port.parse::<u64>() {
        Ok(number) => {
            let ports = service.list_at(&["spec", "ports"]).iter();
            let mut ports = ports.filter(|port| port["port"].as_u64() == Some(number));
            let found = ports.next().ok_or_else(|| {
                let name = asked.name;
                Error::unavailable(format!(
                    "no service port {number} found for service {name:?}"
                ))
            })?;
            found["name"].as_str().unwrap_or_default().to_owned()
        }
        Err(_) => asked.port.to_owned(),
    };
    let cache = &call.api.cache;
    let slices = cache.snapshot(SLICES);
    let slices = slices
        .in_namespace(call.namespace())
        .filter(|slice| slice.index.label(LABEL_SERVICE_NAME) == Some(asked.name))
        .filter_map(|slice| serde_json::from_slice::<Value>(&slice.bytes).ok());
    let mut found: Vec<(String, String)> = Vec::new();
    for slice in slices {
        found.extend(ready(&slice, &port));
    }
    let none = || {
        let name = asked.name;
        Error::unavailable(format!("no endpoints available for service {name:?}"))
    };
    let (node, authority) = found.choose(&mut rand::rng()).cloned().ok_or_else(none)?;
    let node = match node.is_empty() {
        false => node,
        // It is on no node of ours: any of them can send it on.
        true => any_node(call).ok_or_else(none)?,
    };
    Ok(To { node, authority })
}

/// Pure: nodes and addresses of a slice's ready endpoints at the port of this name.
fn ready(slice: &Value, port: &str) -> Vec<(String, String)> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let ports = list(&slice["ports"]);
    let found = ports
        .iter()
        .find(|known| known["name"].as_str().unwrap_or_default() == port);
    let Some(number) = found.and_then(|port| port["port"].as_u64()) else {
        return Vec::new();
    };
    list(&slice["endpoints"])
        .iter()
        .filter(|endpoint| endpoint["conditions"]["ready"].as_bool().unwrap_or(true))
        .filter_map(|endpoint| {
            let address = endpoint["addresses"][0].as_str()?;
            let node = endpoint["nodeName"].as_str().unwrap_or_default();
            Some((node.to_owned(), authority(address, number)))
        })
        .collect()
}

fn any_node(call: &Call<'_>) -> Option<String> {
    let nodes = call.api.cache.snapshot("nodes");
    let is_ready = |bytes: &[u8]| {
        let node: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    };
    let mut ready = nodes.iter().filter(|node| is_ready(&node.bytes));
    ready.next().map(|node| node.key.name.to_string())
}

fn authority(address: &str, port: u64) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

/// What the client sent, less what is between it and us. Who it is stays here.
fn request(
    call: &Call<'_>,
    target: &str,
    wanted: Option<&Wanted>,
    body: Body,
) -> Result<Request<Body>, Error> {
    let mut headers = call.headers.clone();
    strip(&mut headers);
    headers.remove(header::AUTHORIZATION);
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().starts_with("impersonate-"))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
    if let Ok(path) = HeaderValue::from_str(call.parts.uri.path()) {
        headers.insert(HeaderName::from_static("x-forwarded-uri"), path);
    }
    if let Some(wanted) = wanted {
        wanted.put(&mut headers);
    }
    let target: PathAndQuery = target
        .parse()
        .map_err(|error: http::uri::InvalidUri| Error::bad_request(error.to_string()))?;
    let mut request = Request::new(body);
    *request.method_mut() = call.parts.method.clone();
    *request.uri_mut() = target.into();
    *request.headers_mut() = headers;
    Ok(request)
}

/// Removes what belongs to one connection only.
fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .filter(|name| name != header::HOST)
        .collect();
    for name in &named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRANSFER_ENCODING,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

/// Pure: our part of the path, and the other end's. Of slashes at the beginning all but one mean nothing, as when the path was
/// parsed; left in a `Location`, two would name a host.
fn cut(path: &str) -> (&str, Option<&str>) {
    let more = path.bytes().take_while(|byte| *byte == b'/').count();
    let path = &path[more.saturating_sub(1)..];
    match path.match_indices('/').nth(DEPTH) {
        Some((at, _)) => (&path[..at], Some(&path[at..])),
        None => (path, None),
    }
}

/// Relative links of a page need a path that ends.
fn with_a_slash(prefix: &str, query: Option<&str>) -> Reply {
    let query = query.map(|query| format!("?{query}"));
    let location = format!("{prefix}/{}", query.unwrap_or_default());
    let mut reply = Reply::text(StatusCode::MOVED_PERMANENTLY, "");
    if let Ok(location) = HeaderValue::from_str(&location) {
        reply.headers.insert(header::LOCATION, location);
    }
    reply
}

fn answer(
    response: Response<Incoming>,
    prefix: &str,
    authority: &str,
    host: Option<&HeaderValue>,
) -> Reply {
    let (mut parts, body) = response.into_parts();
    strip(&mut parts.headers);
    let location = parts.headers.get(header::LOCATION);
    let location = location.and_then(|location| location.to_str().ok());
    let host = host.and_then(|host| host.to_str().ok()).unwrap_or_default();
    let moved = location.and_then(|location| moved(location, prefix, &[authority, host]));
    if let Some(moved) = moved.and_then(|moved| HeaderValue::from_str(&moved).ok()) {
        parts.headers.insert(header::LOCATION, moved);
    }
    let mut reply = Reply::stream("", Body::new(body));
    reply.status = parts.status;
    reply.headers = parts.headers;
    reply
}

/// Pure: a redirect within the other end, as this server's client must see it; `None`: as it is.
fn moved(location: &str, prefix: &str, own: &[&str]) -> Option<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Some(format!("{prefix}{location}"));
    }
    let rest = location
        .strip_prefix("http://")
        .or_else(|| location.strip_prefix("https://"))?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    let path = if path.is_empty() { "/" } else { path };
    own.contains(&authority).then(|| format!("{prefix}{path}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_name_may_have_a_scheme_and_a_port() {
        let asked = |id| Asked::parse(id).map(|asked| (asked.scheme, asked.name, asked.port));
        assert_eq!(asked("web"), Some(("", "web", "")));
        assert_eq!(asked("web:80"), Some(("", "web", "80")));
        assert_eq!(asked("https:web:http"), Some(("https", "web", "http")));
        assert_eq!(asked("http:web:"), Some(("http", "web", "")));
        for wrong in ["ftp:web:80", ":80", "a:b:c:d", ""] {
            assert_eq!(asked(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn ready_endpoints_of_the_port_are_found() {
        let slice = json!({
            "ports": [{"name": "http", "port": 8080}, {"name": "admin", "port": 9}],
            "endpoints": [
                {"addresses": ["100.64.0.2"], "nodeName": "a", "conditions": {"ready": true}},
                {"addresses": ["100.64.0.3"], "nodeName": "b", "conditions": {"ready": false}},
                {"addresses": ["fd00::1"]},
            ],
        });
        let pair = |node: &str, address: &str| (node.to_owned(), address.to_owned());
        assert_eq!(
            ready(&slice, "http"),
            [pair("a", "100.64.0.2:8080"), pair("", "[fd00::1]:8080")]
        );
        assert!(ready(&slice, "").is_empty());
        assert!(ready(&json!({}), "http").is_empty());
    }

    #[test]
    fn a_path_is_cut_where_it_was_parsed() {
        let prefix = "/api/v1/namespaces/d/pods/p/proxy";
        for more in ["", "/", "///"] {
            let path = format!("{more}{prefix}");
            assert_eq!(cut(&path), (prefix, None), "{path}");
            let path = format!("{more}{prefix}/a//b/");
            assert_eq!(cut(&path), (prefix, Some("/a//b/")), "{path}");
        }
    }

    #[test]
    fn redirects_stay_within_the_proxy() {
        let prefix = "/api/v1/namespaces/d/services/web/proxy";
        let own = &["100.64.0.2:8080", "api:6443"];
        let to = |location| moved(location, prefix, own);
        assert_eq!(to("/login").as_deref(), Some(&*format!("{prefix}/login")));
        assert_eq!(
            to("http://100.64.0.2:8080/a?b").as_deref(),
            Some(&*format!("{prefix}/a?b"))
        );
        assert_eq!(
            to("https://api:6443").as_deref(),
            Some(&*format!("{prefix}/"))
        );
        assert_eq!(to("https://example.com/a"), None);
        assert_eq!(to("//example.com/a"), None);
        assert_eq!(to("page"), None);
    }
}

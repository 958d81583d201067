//! What routes do to requests and answers on their way: headers, paths, redirects. Pure.

use http::header::{self, HeaderMap, HeaderValue};
use http::uri::PathAndQuery;
use http::{Response, StatusCode};
use types::routing::path::{PathChange, Requested};
use types::routing::table::{Filter, HeaderChange, Redirect, Route};

use super::forwarded::{Client, port_of};
use crate::network::{Body, full_body};

/// What a redirect is made from.
pub(super) struct Place<'a> {
    /// As the client sent it, with its port.
    pub(super) host: &'a str,
    pub(super) path: &'a Requested,
    pub(super) query: &'a str,
    /// The scheme of the connection.
    pub(super) tls: bool,
    /// Port clients must name to reach us by https, when it is not the usual one.
    pub(super) https_port: Option<u16>,
    /// The port of the listener the request came by, as Gateways name it.
    pub(super) port: u16,
}

/// The answer of a filter that needs no backend.
pub(super) fn answer(route: &Route, place: &Place<'_>, client: &Client) -> Option<Response<Body>> {
    for filter in &route.action.filters {
        match filter {
            Filter::ToHttps if !client.https => {
                let name = name_of(place.host);
                let port = place
                    .https_port
                    .map_or_else(String::new, |p| format!(":{p}"));
                let rest = path_and_query(&place.path.sent, place.query);
                let location = format!("https://{name}{port}{rest}");
                return Some(redirect(&location, StatusCode::PERMANENT_REDIRECT));
            }
            Filter::RedirectTo { location, code } => {
                return Some(redirect_to(location.clone(), *code));
            }
            Filter::Redirect(to) => return Some(redirect(&target(to, route, place), to.code)),
            _ => {}
        }
    }
    None
}

fn target(to: &Redirect, route: &Route, place: &Place<'_>) -> String {
    let own = if place.tls { "https" } else { "http" };
    let scheme = to.scheme.as_deref().unwrap_or(own);
    let name = to.host.as_deref().unwrap_or_else(|| name_of(place.host));
    let path = match &to.path {
        Some(change) => change.apply(&route.path, place.path),
        None => place.path.sent.clone(),
    };
    // Without a port of its own: the usual one of a scheme that was named, else the one of the listener.
    let port = match (to.port, &to.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(_)) => None,
        (None, None) => port_of(place.host.as_bytes())
            .and_then(|port| port.parse().ok())
            .or(Some(place.port)),
    };
    let usual = if scheme == "https" { 443 } else { 80 };
    let port = port.filter(|port| *port != usual);
    let port = port.map_or_else(String::new, |port| format!(":{port}"));
    let rest = path_and_query(&path, place.query);
    format!("{scheme}://{name}{port}{rest}")
}

fn path_and_query(path: &str, query: &str) -> String {
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{query}")
    }
}

fn redirect(location: &str, code: StatusCode) -> Response<Body> {
    match HeaderValue::from_str(location) {
        Ok(location) => redirect_to(location, code),
        Err(_) => plain(
            StatusCode::BAD_REQUEST,
            "the redirect has no valid location",
        ),
    }
}

fn redirect_to(location: HeaderValue, code: StatusCode) -> Response<Body> {
    let reason = code.canonical_reason().unwrap_or("Redirect");
    let mut response = plain(code, reason);
    response.headers_mut().insert(header::LOCATION, location);
    response
}

/// A short text as an answer.
pub(super) fn plain(code: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(full_body(format!("{text}\n")));
    *response.status_mut() = code;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// Headers of the request, or of the answer.
pub(super) fn change(headers: &mut HeaderMap, change: &HeaderChange) {
    for (name, value) in &change.set {
        headers.insert(name.clone(), value.clone());
    }
    for (name, value) in &change.add {
        headers.append(name.clone(), value.clone());
    }
    for name in &change.remove {
        headers.remove(name);
    }
}

/// What the backend is asked for, when a rewrite says so; nothing when that is too long for a target.
pub(super) fn rewritten(
    path: &PathChange,
    route: &Route,
    place: &Place<'_>,
) -> Option<PathAndQuery> {
    let path = path.apply(&route.path, place.path);
    // A target may bring parameters of its own.
    let joined = match (path.contains('?'), place.query) {
        (true, query) if !query.is_empty() => format!("{path}&{query}"),
        (true, _) => path,
        (false, query) => path_and_query(&path, query),
    };
    joined.parse().ok()
}

/// `a` of `a:80`, `[::1]` of `[::1]:80`.
pub(super) fn name_of(host: &str) -> &str {
    match port_of(host.as_bytes()) {
        Some(port) => &host[..host.len() - port.len() - 1],
        None => host,
    }
}

//! What of a request's head the network changes on its way: headers of one connection end, a request goes to another name.
//! Never looks at where it leads.

use http::Request;
use http::header::{self, HeaderMap, HeaderName};
use http::uri::Scheme;

use super::super::{Body, HttpError};

/// Removes what belongs to one connection only: `Connection`, what it names, and its fixed companions. `te: trailers`
/// stays, it says what the client can read.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    const FIXED: [HeaderName; 4] = [
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ];
    let is_ours = |name: &HeaderName| {
        FIXED.contains(name)
            || name == header::CONNECTION
            || name == header::TE
            || matches!(name.as_str(), "keep-alive" | "proxy-connection")
    };
    if !headers.keys().any(is_ours) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // A client cannot make us forget whom it asked; `te` is decided below.
        .filter(|name| name != header::HOST && name != header::TE)
        .collect();
    for name in named.iter().chain(&FIXED) {
        headers.remove(name);
    }
    headers.remove(header::CONNECTION);
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

/// Sends the request to another host; its Host header stays.
///
/// Differs from Kubernetes: TLS to an ExternalName asks for the certificate of the target, not of the Service's name.
pub(crate) fn readdress(
    request: &mut Request<Body>,
    host: &str,
    port: Option<u16>,
) -> Result<(), HttpError> {
    let authority = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    let invalid =
        |error: &dyn std::error::Error| HttpError::Invalid(format!("{authority}: {error}"));
    parts.authority = Some(authority.parse().map_err(|error| invalid(&error))?);
    // A request in origin form has none.
    parts.scheme.get_or_insert(Scheme::HTTP);
    *request.uri_mut() = http::Uri::from_parts(parts).map_err(|error| invalid(&error))?;
    Ok(())
}

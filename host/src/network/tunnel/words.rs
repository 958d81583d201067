//! The tunnel's words: header names, what a refusal is called, how an identity is written. Pure.
//!
//! ```text
//!   CONNECT  :authority 100.64.64.9:8080   coracle-from 100.64.0.5:40000   coracle-identity shop/web-1/default/web
//!   200, then bytes          404 refused · 503 unreachable · 504 timed out · 403 · 429
//!
//!   GET /path  :authority cart   coracle-to 100.64.64.9:8080   coracle-from 100.64.0.5   coracle-hops 1
//!   the pod's own answer, or 503 coracle-refused WORD: nobody saw the request; or coracle-error WORD: it failed there
//!
//!   CONNECT  :authority datagrams: frames one way, as `datagrams` describes
//!   CONNECT  :authority kind   coracle-to 100.64.64.9:8080: 200 an HTTP guest, 204 a socket, 404 nothing
//! ```
//! What guests send under these names ends at the tunnel's ends.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::network::identity::Identity;
use crate::network::{HttpError, SocketError};

pub(super) const FROM: HeaderName = HeaderName::from_static("coracle-from");
pub(super) const TO: HeaderName = HeaderName::from_static("coracle-to");
pub(super) const IDENTITY: HeaderName = HeaderName::from_static("coracle-identity");
pub(super) const HOPS: HeaderName = HeaderName::from_static("coracle-hops");
pub(super) const REFUSED: HeaderName = HeaderName::from_static("coracle-refused");
pub(super) const ERROR: HeaderName = HeaderName::from_static("coracle-error");

const OURS: [HeaderName; 6] = [FROM, TO, IDENTITY, HOPS, REFUSED, ERROR];

/// The `:authority` of the stream that carries datagrams.
pub(super) const DATAGRAMS: &str = "datagrams";

/// The `:authority` of a question: what is at `coracle-to`?
pub(super) const KIND: &str = "kind";

/// Refusals: the error, its word, its status.
const REFUSALS: [(SocketError, &str, StatusCode); 5] = [
    (SocketError::Refused, "refused", StatusCode::NOT_FOUND),
    (
        SocketError::Unreachable,
        "unreachable",
        StatusCode::SERVICE_UNAVAILABLE,
    ),
    (
        SocketError::TimedOut,
        "timed-out",
        StatusCode::GATEWAY_TIMEOUT,
    ),
    (SocketError::Denied, "denied", StatusCode::FORBIDDEN),
    (
        SocketError::TooMany,
        "too-many",
        StatusCode::TOO_MANY_REQUESTS,
    ),
];

/// Takes away what only the tunnel may say.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers
        .keys()
        .any(|name| name.as_str().starts_with("coracle-"))
    {
        for name in &OURS {
            headers.remove(name);
        }
    }
}

/// The answer to a CONNECT that failed.
pub(super) fn status(error: SocketError) -> StatusCode {
    let known = REFUSALS.iter().find(|(known, ..)| *known == error);
    known.map_or(StatusCode::BAD_GATEWAY, |(_, _, status)| *status)
}

/// What the answer to a CONNECT says; an unknown one is a reset.
pub(super) fn socket_error(status: StatusCode) -> SocketError {
    let known = REFUSALS.iter().find(|(_, _, known)| *known == status);
    known.map_or(SocketError::Reset, |(error, ..)| *error)
}

pub(super) fn refusal(error: SocketError) -> HeaderValue {
    let known = REFUSALS.iter().find(|(known, ..)| *known == error);
    HeaderValue::from_static(known.map_or("refused", |(_, word, _)| word))
}

/// Why nobody saw a request; an unknown word means refused.
pub(super) fn refused(value: &HeaderValue) -> SocketError {
    let known = REFUSALS.iter().find(|(_, word, _)| value == word);
    known.map_or(SocketError::Refused, |(error, ..)| *error)
}

/// A failure that is not a refusal: its word, its text.
pub(super) fn failure(error: &HttpError) -> (&'static str, &str) {
    match error {
        HttpError::NotReached(text) | HttpError::Returned { reason: text, .. } => {
            ("not-reached", text)
        }
        HttpError::Guest(text) => ("guest", text),
        HttpError::Timeout(text) => ("timeout", text),
        HttpError::Connect(text) | HttpError::Broken(text) => ("connect", text),
        HttpError::Tls(text) => ("tls", text),
        HttpError::Forbidden(text) => ("forbidden", text),
        HttpError::NotFound(text) => ("not-found", text),
        HttpError::Invalid(text) => ("invalid", text),
        HttpError::Loop(text) => ("loop", text),
    }
}

/// The failure it was over there.
pub(super) fn http_error(value: &HeaderValue, text: String) -> HttpError {
    match value.as_bytes() {
        b"not-reached" => HttpError::NotReached(text),
        b"guest" => HttpError::Guest(text),
        b"timeout" => HttpError::Timeout(text),
        b"tls" => HttpError::Tls(text),
        b"forbidden" => HttpError::Forbidden(text),
        b"not-found" => HttpError::NotFound(text),
        b"invalid" => HttpError::Invalid(text),
        b"loop" => HttpError::Loop(text),
        _ => HttpError::Connect(text),
    }
}

/// `NAMESPACE/POD/SERVICEACCOUNT/WORKLOAD`. `None` for what no header can hold, which no name in the API is.
pub(super) fn identity_value(identity: &Identity) -> Option<HeaderValue> {
    let Identity {
        namespace,
        pod,
        service_account,
        workload,
    } = identity;
    HeaderValue::from_str(&format!("{namespace}/{pod}/{service_account}/{workload}")).ok()
}

pub(super) fn identity(value: &HeaderValue) -> Option<Arc<Identity>> {
    let mut parts = value.to_str().ok()?.split('/').map(str::to_owned);
    let mut next = || parts.next();
    let identity = Identity {
        namespace: next()?,
        pod: next()?,
        service_account: next()?,
        workload: next()?,
    };
    parts.next().is_none().then(|| Arc::new(identity))
}

/// Says who sends.
pub(super) fn identify(headers: &mut HeaderMap, identity: Option<&Arc<Identity>>) {
    if let Some(value) = identity.and_then(|identity| identity_value(identity)) {
        headers.insert(IDENTITY, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_the_same_at_both_ends() {
        for (error, ..) in REFUSALS {
            assert_eq!(socket_error(status(error)), error);
            assert_eq!(refused(&refusal(error)), error);
        }
        assert_eq!(socket_error(status(SocketError::Reset)), SocketError::Reset);
    }

    #[test]
    fn an_identity_is_the_same_at_both_ends() {
        let sent = Identity {
            namespace: "shop".to_owned(),
            pod: "web-1".to_owned(),
            service_account: String::new(),
            workload: "web".to_owned(),
        };
        let value = identity_value(&sent).unwrap();
        assert_eq!(value, "shop/web-1//web");
        assert_eq!(*identity(&value).unwrap(), sent);
        let ingress = Identity::ingress();
        let value = identity_value(&ingress).unwrap();
        assert!(identity(&value).unwrap().is_ingress());
        for wrong in ["", "shop/web-1/default", "a/b/c/d/e"] {
            assert!(identity(&HeaderValue::from_static(wrong)).is_none());
        }
    }

    #[test]
    fn guests_cannot_speak_for_the_tunnel() {
        let mut headers = HeaderMap::new();
        headers.insert(REFUSED, HeaderValue::from_static("refused"));
        headers.insert("coracle-note", HeaderValue::from_static("kept"));
        strip(&mut headers);
        assert_eq!(headers.len(), 1);
    }
}

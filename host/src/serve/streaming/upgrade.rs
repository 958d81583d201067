//! What a client wants its connection to become, and the answer: WebSocket or SPDY/3.1, and which protocol inside. Decides
//! from headers; opens nothing.

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use types::well_known::{HEADER_ACCEPTED_PROTOCOLS, HEADER_STREAM_PROTOCOL, UPGRADE_SPDY};

/// What was agreed; `protocol` is one of those offered.
pub(super) struct Agreed {
    pub(super) wire: Wire,
    pub(super) protocol: &'static str,
    pub(super) answer: Response,
    pub(super) upgrade: OnUpgrade,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wire {
    WebSocket,
    Spdy,
}

/// Protocols we speak, best first. The last one is meant when a client names none.
pub(super) struct Offered {
    pub(super) websocket: &'static [&'static str],
    pub(super) spdy: &'static [&'static str],
}

#[derive(Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) message: String,
    accepted: Option<&'static [&'static str]>,
}

// === impl Refusal ===

impl Refusal {
    fn bad(message: &str) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            message: message.to_owned(),
            accepted: None,
        }
    }

    pub(super) fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.message));
        *response.status_mut() = self.status;
        for protocol in self.accepted.unwrap_or_default() {
            let value = HeaderValue::from_static(protocol);
            let headers = response.headers_mut();
            headers.append(HEADER_ACCEPTED_PROTOCOLS, value);
        }
        response
    }
}

/// Reads the wish; the answer is 101 with the protocol that was chosen.
pub(super) fn agree(mut request: Request, offered: &Offered) -> Result<Agreed, Refusal> {
    let (wire, protocol, headers) = choose(request.headers(), offered)?;
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let upgrade = upgrade
        .ok_or_else(|| Refusal::bad("Upgrade request required: only HTTP/1.1 has upgrades"))?;
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *answer.headers_mut() = headers;
    Ok(Agreed {
        wire,
        protocol,
        answer,
        upgrade,
    })
}

/// Pure: which wire, which protocol, and the headers of the answer.
fn choose(
    asked: &HeaderMap,
    offered: &Offered,
) -> Result<(Wire, &'static str, HeaderMap), Refusal> {
    let wanted = asked.get(header::UPGRADE).map(HeaderValue::as_bytes);
    let connection = words(asked, &header::CONNECTION);
    let upgrades = connection
        .iter()
        .any(|word| word.eq_ignore_ascii_case("upgrade"));
    let Some(wanted) = wanted.filter(|_| upgrades) else {
        return Err(Refusal::bad("Upgrade request required"));
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if wanted.eq_ignore_ascii_case(b"websocket") {
        let Some(key) = asked.get(header::SEC_WEBSOCKET_KEY) else {
            return Err(Refusal::bad("a WebSocket without Sec-WebSocket-Key"));
        };
        if asked
            .get(header::SEC_WEBSOCKET_VERSION)
            .is_none_or(|version| version != "13")
        {
            return Err(Refusal::bad("a WebSocket of another version than 13"));
        }
        let names = words(asked, &header::SEC_WEBSOCKET_PROTOCOL);
        let protocol = pick(&names, offered.websocket, false)?;
        let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes()));
        let accept = accept.map_err(|error| Refusal::bad(&error.to_string()))?;
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        if !names.is_empty() {
            let protocol = HeaderValue::from_static(protocol);
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        return Ok((Wire::WebSocket, protocol, headers));
    }
    if wanted.eq_ignore_ascii_case(UPGRADE_SPDY.as_bytes()) {
        let names = words(asked, &HeaderName::from_static(HEADER_STREAM_PROTOCOL));
        let protocol = pick(&names, offered.spdy, true)?;
        headers.insert(header::UPGRADE, HeaderValue::from_static(UPGRADE_SPDY));
        let chosen = HeaderValue::from_static(protocol);
        headers.insert(HEADER_STREAM_PROTOCOL, chosen);
        return Ok((Wire::Spdy, protocol, headers));
    }
    let wanted = String::from_utf8_lossy(wanted);
    Err(Refusal::bad(&format!(
        "unable to upgrade: to {wanted:?}; websocket and {UPGRADE_SPDY} are spoken here"
    )))
}

/// Our best among theirs.
fn pick(
    theirs: &[&str],
    ours: &'static [&'static str],
    told: bool,
) -> Result<&'static str, Refusal> {
    if theirs.is_empty() {
        return Ok(ours.last().copied().unwrap_or_default());
    }
    let found = ours.iter().find(|our| theirs.contains(our)).copied();
    found.ok_or_else(|| Refusal {
        status: if told {
            StatusCode::FORBIDDEN
        } else {
            StatusCode::BAD_REQUEST
        },
        message: format!(
            "unable to upgrade: unable to negotiate protocol: client supports [{}], server accepts [{}]",
            theirs.join(" "),
            ours.join(" ")
        ),
        accepted: told.then_some(ours),
    })
}

/// The words of a header that is a list, however many lines it has.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Vec<&'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|word| !word.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: Offered = Offered {
        websocket: &["v5.channel.k8s.io", "v4.channel.k8s.io", "channel.k8s.io"],
        spdy: &["v4.channel.k8s.io", "channel.k8s.io"],
    };

    fn asked(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            );
        }
        map
    }

    #[test]
    fn our_best_protocol_among_theirs_is_chosen() {
        let websocket = |protocols| {
            asked(&[
                ("connection", "keep-alive, Upgrade"),
                ("upgrade", "WebSocket"),
                ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
                ("sec-websocket-version", "13"),
                ("sec-websocket-protocol", protocols),
            ])
        };
        let both = websocket("v4.channel.k8s.io, v5.channel.k8s.io");
        let (wire, protocol, headers) = choose(&both, &OFFERED).expect("agreed");
        assert_eq!((wire, protocol), (Wire::WebSocket, "v5.channel.k8s.io"));
        // The example of RFC 6455.
        assert_eq!(
            headers[header::SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(headers[header::SEC_WEBSOCKET_PROTOCOL], "v5.channel.k8s.io");
        let (_, protocol, headers) = choose(&websocket(""), &OFFERED).expect("agreed");
        assert_eq!(protocol, "channel.k8s.io");
        assert!(!headers.contains_key(header::SEC_WEBSOCKET_PROTOCOL));
        let refusal = choose(&websocket("chat"), &OFFERED).expect_err("refused");
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn spdy_lists_its_protocols_in_headers_of_their_own() {
        let spdy = asked(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v5.channel.k8s.io"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        let (wire, protocol, headers) = choose(&spdy, &OFFERED).expect("agreed");
        assert_eq!((wire, protocol), (Wire::Spdy, "v4.channel.k8s.io"));
        assert_eq!(headers["x-stream-protocol-version"], "v4.channel.k8s.io");
        let other = asked(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v9"),
        ]);
        let refusal = choose(&other, &OFFERED).expect_err("refused");
        assert_eq!(
            refusal.message,
            "unable to upgrade: unable to negotiate protocol: client supports [v9], server accepts [v4.channel.k8s.io channel.k8s.io]"
        );
        let response = refusal.into_response();
        assert_eq!(response.status(), StatusCode::FORBIDDEN);
        assert_eq!(
            response
                .headers()
                .get_all(HEADER_ACCEPTED_PROTOCOLS)
                .iter()
                .count(),
            2
        );
    }

    #[test]
    fn what_is_no_upgrade_is_told_so() {
        for headers in [
            &[][..],
            &[("upgrade", "websocket")],
            &[("connection", "close"), ("upgrade", "websocket")],
        ] {
            let refusal = choose(&asked(headers), &OFFERED).expect_err("refused");
            assert_eq!(refusal.message, "Upgrade request required");
        }
    }
}

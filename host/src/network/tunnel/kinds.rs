//! What a pod of another node is at a port: an HTTP guest, whose requests can be sent one by one, or something that listens
//! on a socket. Asked of its node, and remembered for a while; decides nothing.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use tokio::time::Instant;

use super::connection::Opened;
use super::incoming::Incoming;
use super::outgoing::open;
use super::peer::Peer;
use super::words;
use crate::network::ports::Target;
use crate::network::vnet::Fabric;

/// An answer counts for this long.
const REMEMBERED: Duration = Duration::from_secs(5);
/// Answers remembered for one node; when there are more it starts anew.
const ENDPOINTS: usize = 4_096;

/// Answers of one node.
#[derive(Default)]
pub(super) struct Kinds {
    /// Held for a few instructions, never over an await.
    known: Mutex<HashMap<SocketAddr, (bool, Instant)>>,
}

/// Whether an HTTP guest answers at `endpoint`; false when its node cannot be asked.
pub(crate) async fn speaks_http(fabric: &Fabric, peer: &Peer, endpoint: SocketAddr) -> bool {
    if let Some(known) = peer.kinds.get(endpoint) {
        return known;
    }
    let Some(answer) = ask(fabric, peer, endpoint).await else {
        return false;
    };
    peer.kinds.remember(endpoint, answer);
    answer
}

async fn ask(fabric: &Fabric, peer: &Peer, endpoint: SocketAddr) -> Option<bool> {
    let mut head = Request::new(());
    *head.method_mut() = Method::CONNECT;
    *head.uri_mut() = Uri::from_static(words::KIND);
    let to = HeaderValue::try_from(endpoint.to_string()).ok()?;
    head.headers_mut().insert(words::TO, to);
    let asking = async {
        let Opened {
            response,
            send: _send,
            in_use: _in_use,
        } = open(fabric, peer, &head, true, false).await.ok()?;
        response.await.ok()
    };
    let timeout = fabric.config.limits.connect_timeout;
    let answer = tokio::time::timeout(timeout, asking).await.ok()??;
    match answer.status() {
        StatusCode::OK => Some(true),
        StatusCode::NO_CONTENT => Some(false),
        _ => None,
    }
}

// === impl Kinds ===

impl Kinds {
    fn get(&self, endpoint: SocketAddr) -> Option<bool> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let (kind, since) = known.get(&endpoint)?;
        (since.elapsed() < REMEMBERED).then_some(*kind)
    }

    fn remember(&self, endpoint: SocketAddr, kind: bool) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= ENDPOINTS {
            known.clear();
        }
        known.insert(endpoint, (kind, Instant::now()));
    }
}

// === impl Incoming ===

impl Incoming {
    /// 200 for an HTTP guest, 204 for what listens on a socket, 404 for nothing.
    pub(super) fn kind(&self, headers: &HeaderMap, mut respond: SendResponse<Bytes>) {
        let to = headers.get(words::TO).and_then(|to| to.to_str().ok());
        let to: Option<SocketAddr> = to.and_then(|to| to.parse().ok());
        let target = to.and_then(|to| match to.ip() {
            IpAddr::V4(ip) => self.fabric.pod(ip)?.ports().target(to.port(), false),
            IpAddr::V6(_) => None,
        });
        let mut answer = Response::new(());
        *answer.status_mut() = match target {
            Some(Target::Http(_)) => StatusCode::OK,
            Some(Target::Socket(_)) => StatusCode::NO_CONTENT,
            None => StatusCode::NOT_FOUND,
        };
        // Who does not wait for the answer does not need it.
        drop(respond.send_response(answer, true));
    }
}

//! HTTP requests to pods of other nodes: a request is a stream of the peer's connection, its body and the answer's flow as
//! they come. Never chooses the node.
//!
//! Who sends to a pod that is gone learns that nobody saw the request, and has it back: what was sent of its body is kept
//! until the other node takes it, and no more than [`KEPT`] is sent before.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use h2::RecvStream;
use http::header::{HOST, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Response, Uri};
use http_body::Body as _;
use http_body_util::{BodyExt, Limited};

use super::body::{self, Sending};
use super::connection::{Opened, unseen};
use super::outgoing::{open, source};
use super::peer::Peer;
use super::words;
use crate::network::vnet::{Caller, Fabric};
use crate::network::{Body, Hops, HttpError, ReturnedRequest, SocketError, serve};

/// How much of a body is sent before the other node has said that somebody takes it.
pub(super) const KEPT: usize = 64 * 1024;
/// What is read of the text of a failure.
const TEXT: usize = 4 * 1024;

/// Sends `request` to a pod's port. Cancel by dropping.
pub(crate) async fn send(
    fabric: &Arc<Fabric>,
    peer: &Peer,
    caller: &Caller<'_>,
    endpoint: SocketAddr,
    request: Request<Body>,
    patient: bool,
) -> Result<Response<Body>, HttpError> {
    let failed = Err;
    let refused = |error: SocketError, request| {
        let reason = format!("{endpoint}: {error}");
        failed(HttpError::Returned {
            reason,
            busy: error == SocketError::TooMany,
            request: ReturnedRequest::new(request),
        })
    };
    serve::refuse_connect(&request)?;
    if caller.budget.is_overdrawn() {
        return refused(SocketError::TooMany, request);
    }
    let head = match head(fabric, caller, endpoint, &request) {
        Ok(head) => head,
        Err(error) => return failed(error),
    };
    let ended = request.body().is_end_stream();
    let opened = match open(fabric, peer, &head, ended, patient).await {
        Ok(opened) => opened,
        Err(SocketError::NotAvailable) => {
            let text = format!("{endpoint}: HTTP/2 cannot carry the request's head");
            return failed(HttpError::Invalid(text));
        }
        Err(error) => return refused(error, request),
    };
    let Opened {
        mut response,
        send,
        in_use,
    } = opened;
    let (parts, body) = request.into_parts();
    let mut sending = (!ended).then(|| Sending::new(body, send, KEPT));
    let answered = std::future::poll_fn(|cx| {
        if let Some(sending) = &mut sending {
            if sending.may_return()
                && let Poll::Ready(Some(Ok(_))) = response.poll_informational(cx)
            {
                sending.taken();
            }
            // Done or not: the answer is what counts.
            let _ = sending.poll(cx);
        }
        Pin::new(&mut response).poll(cx)
    })
    .await;
    let back = |sending: Option<Sending>| match sending {
        None => Some(serve::empty()),
        Some(sending) => sending.back(),
    };
    let unseen_by_all = |error: SocketError, sending| match back(sending) {
        Some(body) => refused(error, Request::from_parts(parts, body)),
        None => failed(HttpError::NotReached(format!("{endpoint}: {error}"))),
    };
    let answer = match answered {
        Ok(answer) => answer,
        Err(error) if unseen(&error) => return unseen_by_all(SocketError::Unreachable, sending),
        Err(error) => {
            let text = format!("{endpoint} on node {}: {error}", peer.node.name);
            return failed(HttpError::Broken(text));
        }
    };
    let (mut answer, recv) = answer.into_parts();
    if let Some(word) = answer.headers.get(words::REFUSED) {
        return match words::refused(word) {
            SocketError::Denied => {
                failed(HttpError::Forbidden(format!("{endpoint}: access denied")))
            }
            error => unseen_by_all(error, sending),
        };
    }
    if let Some(mut sending) = sending {
        sending.taken();
        let stop = fabric.stop.clone();
        if !sending.is_done() {
            fabric.tasks.spawn(async move {
                tokio::select! {
                    biased;
                    () = stop.cancelled() => {}
                    () = sending.run() => {}
                }
            });
        }
    }
    match answer.headers.remove(words::ERROR) {
        Some(word) => Err(words::http_error(&word, text(recv, caller).await)),
        None => {
            words::strip(&mut answer.headers);
            answer.version = http::Version::HTTP_11;
            let body = body::received(recv, &answer.headers, caller.budget, in_use);
            Ok(Response::from_parts(answer, body))
        }
    }
}

/// The text of a failure.
async fn text(recv: RecvStream, caller: &Caller<'_>) -> String {
    let body = body::received(recv, &HeaderMap::new(), caller.budget, ());
    let body = Limited::new(body, TEXT).collect().await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn head(
    fabric: &Fabric,
    caller: &Caller<'_>,
    endpoint: SocketAddr,
    request: &Request<Body>,
) -> Result<Request<()>, HttpError> {
    let invalid =
        |error: &dyn std::fmt::Display| HttpError::Invalid(format!("{endpoint}: {error}"));
    let mut head = Request::new(());
    *head.method_mut() = request.method().clone();
    *head.uri_mut() = uri(request, endpoint).map_err(|error| invalid(&error))?;
    let headers = head.headers_mut();
    *headers = request.headers().clone();
    words::strip(headers);
    let to = HeaderValue::try_from(endpoint.to_string()).map_err(|error| invalid(&error))?;
    headers.insert(words::TO, to);
    // Without the port, which says nothing about a request: the same bytes each time cost one on the wire.
    let from = source(fabric, caller).ip().to_string();
    let from = HeaderValue::try_from(from).map_err(|error| invalid(&error))?;
    headers.insert(words::FROM, from);
    words::identify(headers, caller.identity);
    if let Some(Hops(hops @ 1..)) = request.extensions().get() {
        headers.insert(words::HOPS, HeaderValue::from(u16::from(*hops)));
    }
    Ok(head)
}

/// The request's own, completed: HTTP/2 wants a scheme and an authority.
fn uri(request: &Request<Body>, endpoint: SocketAddr) -> Result<Uri, http::Error> {
    let uri = request.uri();
    if uri.scheme().is_some() && uri.authority().is_some() && !uri.path().is_empty() {
        return Ok(uri.clone());
    }
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    if parts.authority.is_none() {
        let host = request.headers().get(HOST);
        let host = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
        parts.authority = Some(match host {
            Some(host) => host,
            None => Authority::try_from(endpoint.to_string())?,
        });
    }
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
    }
    Ok(Uri::from_parts(parts)?)
}

//! HTTP requests that come in: each goes to the pod it names, as if a pod of this node had sent it, and the answer back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::header::{CONTENT_LENGTH, HOST, HeaderValue};
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Body as _;

use super::body::{self, Sending};
use super::calls::KEPT;
use super::incoming::{Incoming, Source};
use super::words;
use crate::network::http::{Call, strip_hop_by_hop};
use crate::network::pod::PodNetwork;
use crate::network::{Body, Hops, HttpError, SocketError, serve};

// === impl Incoming ===

impl Incoming {
    /// One request, until its answer is sent or nobody waits for it.
    pub(super) async fn call(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        let (source, pod, to) = match self.addressed(request.headers()) {
            Ok(addressed) => addressed,
            Err(error) => return refuse(respond, error),
        };
        if !request.body().is_end_stream()
            && is_long(request.headers())
            && pod.ports().target(to.port(), false).is_some()
        {
            // Somebody answers there: nobody else will be asked, the rest of the body may come. A failure shows below.
            drop(respond.send_informational(status(StatusCode::CONTINUE)));
        }
        let request = incoming(request, &pod);
        let call = Call {
            fabric: &self.fabric,
            caller: source.caller(0, &pod),
        };
        let mut handling = std::pin::pin!(call.pod(&pod, to, request, None));
        let answer = std::future::poll_fn(|cx| {
            if respond.poll_reset(cx).is_ready() {
                return Poll::Ready(None);
            }
            handling.as_mut().poll(cx).map(Some)
        });
        match answer.await {
            // Nobody waits any more: dropping the call cancels it.
            None => {}
            Some(Ok(answer)) => send(respond, answer).await,
            Some(Err(HttpError::Returned { busy: true, .. })) => {
                refuse(respond, SocketError::TooMany);
            }
            Some(Err(HttpError::Returned { .. } | HttpError::NotReached(_))) => {
                refuse(respond, SocketError::Refused);
            }
            Some(Err(error)) => {
                let (word, text) = words::failure(&error);
                let mut answer = Response::new(serve::full(text.to_owned()));
                *answer.status_mut() = StatusCode::BAD_GATEWAY;
                let headers = answer.headers_mut();
                headers.insert(words::ERROR, HeaderValue::from_static(word));
                respond_with(respond, answer).await;
            }
        }
    }

    fn addressed(
        &self,
        headers: &HeaderMap,
    ) -> Result<(Arc<Source>, Arc<PodNetwork>, SocketAddr), SocketError> {
        let to = headers.get(words::TO).and_then(|to| to.to_str().ok());
        let to: SocketAddr = to
            .and_then(|to| to.parse().ok())
            .ok_or(SocketError::Refused)?;
        let (source, _) = self.source(headers)?;
        let pod = self.admit(to)?;
        if pod.budget().is_overdrawn() {
            return Err(SocketError::TooMany);
        }
        Ok((source, pod, to))
    }
}

/// As a pod of this node would have sent it.
fn incoming(request: Request<RecvStream>, pod: &PodNetwork) -> Request<Body> {
    let (mut parts, recv) = request.into_parts();
    let hops = parts.headers.get(words::HOPS);
    let hops = hops.and_then(|hops| hops.to_str().ok()?.parse().ok());
    if let Some(hops) = hops {
        parts.extensions.insert(Hops(hops));
    }
    words::strip(&mut parts.headers);
    if !parts.headers.contains_key(HOST)
        && let Some(host) = parts.uri.authority()
        && let Ok(host) = HeaderValue::from_str(host.as_str())
    {
        parts.headers.insert(HOST, host);
    }
    parts.version = Version::HTTP_11;
    let body = body::received(recv, &parts.headers, pod.budget(), ());
    Request::from_parts(parts, body)
}

/// Whether the other node waits for a word before it sends all of the body.
fn is_long(headers: &HeaderMap) -> bool {
    let length = headers.get(CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    length.is_none_or(|length| length >= KEPT)
}

fn status(status: StatusCode) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    response
}

/// Says that nobody saw the request. Who does not wait for the answer does not need it.
fn refuse(mut respond: SendResponse<Bytes>, error: SocketError) {
    let mut refusal = status(StatusCode::SERVICE_UNAVAILABLE);
    refusal
        .headers_mut()
        .insert(words::REFUSED, words::refusal(error));
    drop(respond.send_response(refusal, true));
}

async fn send(respond: SendResponse<Bytes>, mut answer: Response<Body>) {
    words::strip(answer.headers_mut());
    strip_hop_by_hop(answer.headers_mut());
    respond_with(respond, answer).await;
}

async fn respond_with(mut respond: SendResponse<Bytes>, answer: Response<Body>) {
    let (mut parts, body) = answer.into_parts();
    parts.version = Version::HTTP_2;
    let ended = body.is_end_stream();
    if !ended
        && !parts.headers.contains_key(CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        parts.headers.insert(CONTENT_LENGTH, length.into());
    }
    match respond.send_response(Response::from_parts(parts, ()), ended) {
        Ok(send) if !ended => Sending::new(body, send, 0).run().await,
        Ok(_) => {}
        // A head HTTP/2 cannot carry, or nobody waits.
        Err(_) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

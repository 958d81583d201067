//! Bodies of HTTP messages on their way through the network: what is held while they flow, what is counted of them, and
//! whether policies still let them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Body as _;

use super::balancer::InFlight;
use super::pod::RequestSlot;
use super::policy::Watched;
use super::traffic::Pair;
use super::vnet::OutsideSlot;
use super::{Body, serve};
use crate::idle::Busy;

/// What is kept while a response's body flows.
#[derive(Default)]
#[expect(
    dead_code,
    reason = "held, not read: dropping them is what they are for"
)]
pub(super) struct Guard {
    pub(super) load: Option<InFlight>,
    pub(super) request: Option<RequestSlot>,
    pub(super) outside: Option<OutsideSlot>,
    /// Its connection is in use.
    pub(super) busy: Option<Busy>,
    /// Counts the bytes of the answer.
    pub(super) pair: Option<Arc<Pair>>,
}

/// A response's way, while policies let it flow.
pub(super) type Flow = Option<Watched>;

/// A response's body with its guard.
struct Guarded {
    body: Body,
    guard: Guard,
    flow: Flow,
}

/// A request's body on its way to a pod.
struct Counted {
    body: Body,
    pair: Arc<Pair>,
}

/// The request with a body that is counted as it is read; one without body as it is.
pub(super) fn counted(request: Request<Body>, pair: Option<&Arc<Pair>>) -> Request<Body> {
    match pair {
        Some(pair) if !request.body().is_end_stream() => {
            let pair = Arc::clone(pair);
            request.map(|body| Counted { body, pair }.boxed_unsync())
        }
        _ => request,
    }
}

pub(super) fn guarded(response: Response<Body>, guard: Guard, flow: Flow) -> Response<Body> {
    if response.body().is_end_stream() {
        return response;
    }
    response.map(|body| Guarded { body, guard, flow }.boxed_unsync())
}

// === impl Guarded ===

impl http_body::Body for Guarded {
    type Data = bytes::Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        if self.flow.as_mut().is_some_and(Watched::is_denied) {
            self.body = serve::empty();
            return Poll::Ready(Some(Err(Self::Error::HttpRequestDenied)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let (Poll::Ready(Some(Ok(frame))), Some(pair)) = (&polled, &self.guard.pair)
            && let Some(data) = frame.data_ref()
        {
            pair.received(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

impl http_body::Body for Counted {
    type Data = bytes::Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            self.pair.sent(data.len());
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

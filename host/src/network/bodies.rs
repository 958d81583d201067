//! Bodies of HTTP messages on their way through the network: what is held while they flow, what is counted of them, and
//! whether policies still let them.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use wasmtime_wasi_http::Error;

use super::balancer::InFlight;
use super::pod::RequestSlot;
use super::policy::Watched;
use super::traffic::Pair;
use super::vnet::OutsideSlot;
use super::{Body, serve};
use crate::idle::Busy;

/// What is taken of a body before its head is sent.
const SHORT: usize = 16 * 1024;

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

/// A body of which some has been taken.
#[derive(Default)]
struct Begun {
    frames: VecDeque<Result<Frame<Bytes>, Error>>,
    rest: Option<Body>,
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

/// The body with what is there of it already taken: a short one is whole, so that its length is known and it travels with
/// the head.
pub(crate) fn begun(mut body: Body) -> Body {
    let mut begun = Begun::default();
    let mut cx = Context::from_waker(Waker::noop());
    let ended = begun.poll_take(&mut body, &mut cx).is_ready();
    begun.with(body, ended)
}

/// As [`begun`], after having let others run for up to so many turns while nothing of it was there.
pub(crate) async fn begun_within(mut turns: usize, mut body: Body) -> Body {
    let mut begun = Begun::default();
    let ended = std::future::poll_fn(|cx| {
        if begun.poll_take(&mut body, cx).is_ready() {
            return Poll::Ready(true);
        }
        if turns == 0 {
            return Poll::Ready(false);
        }
        turns -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    begun.with(body, ended)
}

/// A body of which `taken` was taken, as it was before.
pub(super) fn again(taken: Vec<Bytes>, rest: Body) -> Body {
    let begun = Begun {
        frames: taken
            .into_iter()
            .map(|chunk| Ok(Frame::data(chunk)))
            .collect(),
        rest: None,
    };
    let ended = rest.is_end_stream();
    begun.with(rest, ended)
}

// === impl Begun ===

impl Begun {
    /// Takes what is there, and not much more than [`SHORT`]; ready at its end.
    fn poll_take(&mut self, body: &mut Body, cx: &mut Context<'_>) -> Poll<()> {
        let mut taken = 0;
        while taken < SHORT {
            if body.is_end_stream() {
                return Poll::Ready(());
            }
            let Some(frame) = ready!(Pin::new(&mut *body).poll_frame(cx)) else {
                return Poll::Ready(());
            };
            let ended = frame.is_err();
            let data = frame.as_ref().ok().and_then(Frame::data_ref);
            taken += data.map_or(0, Bytes::len);
            self.frames.push_back(frame);
            if ended {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }

    fn with(mut self, body: Body, ended: bool) -> Body {
        if self.frames.is_empty() {
            return if ended { serve::empty() } else { body };
        }
        self.rest = (!ended).then_some(body);
        self.boxed_unsync()
    }
}

impl http_body::Body for Begun {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Some(frame) = self.frames.pop_front() {
            return Poll::Ready(Some(frame));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let frames = self.frames.iter().filter_map(|frame| frame.as_ref().ok());
        let taken = frames.filter_map(Frame::data_ref);
        let taken: u64 = taken.map(|chunk| chunk.len() as u64).sum();
        let mut hint = SizeHint::new();
        let rest = self.rest.as_ref().map_or_else(
            // Of one that breaks off no length is known.
            || match self.frames.back() {
                Some(Err(_)) => SizeHint::default(),
                _ => SizeHint::with_exact(0),
            },
            Body::size_hint,
        );
        hint.set_lower(rest.lower() + taken);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + taken);
        }
        hint
    }
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

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    type Item = Result<Frame<Bytes>, Error>;

    fn body() -> (mpsc::Sender<Item>, Body) {
        let (sender, mut frames) = mpsc::channel(8);
        let frames = futures::stream::poll_fn(move |cx| frames.poll_recv(cx));
        (sender, StreamBody::new(frames).boxed_unsync())
    }

    fn data(text: &'static str) -> Item {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    #[tokio::test]
    async fn a_body_that_is_there_has_a_length_and_ends_with_its_last_frame() {
        let (sender, whole) = body();
        sender.send(data("Hello ")).await.unwrap();
        sender.send(data("World!")).await.unwrap();
        drop(sender);
        let mut whole = begun(whole);
        assert_eq!(whole.size_hint().exact(), Some(12));
        assert!(whole.frame().await.is_some());
        assert!(!whole.is_end_stream());
        assert_eq!(whole.size_hint().exact(), Some(6));
        let last = whole.frame().await.unwrap().unwrap();
        assert_eq!(last.into_data().unwrap(), "World!");
        assert!(whole.is_end_stream());
    }

    #[tokio::test]
    async fn an_empty_body_ends_before_it_begins() {
        let (sender, nothing) = body();
        drop(sender);
        assert!(begun(nothing).is_end_stream());
    }

    #[tokio::test]
    async fn what_comes_later_still_comes() {
        let (sender, later) = body();
        sender.send(data("now")).await.unwrap();
        let later = begun_within(2, later).await;
        assert_eq!(later.size_hint().lower(), 3);
        assert_eq!(later.size_hint().exact(), None);
        sender.send(data(", later")).await.unwrap();
        let trailers = HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())]);
        sender.send(Ok(Frame::trailers(trailers))).await.unwrap();
        drop(sender);
        let all = later.collect().await.unwrap();
        assert!(all.trailers().is_some());
        assert_eq!(all.to_bytes(), "now, later");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_has_no_length_and_breaks_off() {
        let (sender, broken) = body();
        sender.send(data("half")).await.unwrap();
        sender.send(Err(Error::ConnectionTerminated)).await.unwrap();
        let mut broken = begun(broken);
        assert_eq!(broken.size_hint().exact(), None);
        assert!(broken.frame().await.unwrap().is_ok());
        assert!(!broken.is_end_stream());
        assert!(broken.frame().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_long_body_is_not_gathered() {
        let (sender, long) = body();
        let chunk = Bytes::from(vec![0; SHORT]);
        for _ in 0..3 {
            sender.send(Ok(Frame::data(chunk.clone()))).await.unwrap();
        }
        drop(sender);
        let long = begun(long);
        assert_eq!(long.size_hint().lower(), SHORT as u64);
        assert_eq!(long.collect().await.unwrap().to_bytes().len(), 3 * SHORT);
    }
}

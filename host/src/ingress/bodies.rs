//! Bodies on their way through: bounded, timed, counted, copied. Each wrapper does one of these and passes the rest on.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::Error;

use crate::idle::Busy;
use crate::network::Body;

/// Chunks of a mirrored body that wait for the mirror; one that is slower than the backend is given up.
const MIRRORED: usize = 32;

/// Why a request's body ended early, for the answer.
#[derive(Clone, Default)]
pub(super) struct Fault(Arc<AtomicU8>);

const TOO_LARGE: u8 = 1;
const TOO_SLOW: u8 = 2;

/// What a client sends.
pub(super) struct Inbound {
    body: Body,
    left: Option<u64>,
    patience: Patience,
    fault: Fault,
}

/// What a backend answers.
pub(super) struct Outbound {
    body: Body,
    patience: Patience,
    /// When all of it must be there.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// A body that keeps its connection busy.
struct Kept {
    body: Body,
    _busy: Busy,
}

/// A clock that runs only while somebody waits.
struct Patience {
    /// `None` has no end.
    longest: Option<Duration>,
    waiting: Option<Pin<Box<Sleep>>>,
}

/// Passes a body on and copies it for a mirror.
struct Tee {
    body: Body,
    mirror: Option<mpsc::Sender<Bytes>>,
}

/// The copy.
struct Mirrored {
    chunks: mpsc::Receiver<Bytes>,
}

// === impl Fault ===

impl Fault {
    pub(super) fn is_too_large(&self) -> bool {
        self.0.load(Ordering::Relaxed) == TOO_LARGE
    }

    pub(super) fn is_too_slow(&self) -> bool {
        self.0.load(Ordering::Relaxed) == TOO_SLOW
    }
}

// === impl Inbound ===

impl Inbound {
    /// At most `limit` bytes (0 is any number), and no longer pause than `patience`.
    pub(super) fn wrap(body: Body, limit: u64, patience: Duration, fault: &Fault) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Self {
            body,
            left: (limit > 0).then_some(limit),
            patience: Patience::new(Some(patience)),
            fault: fault.clone(),
        }
        .boxed_unsync()
    }

    fn fail(&self, why: u8, error: Error) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.fault.0.store(why, Ordering::Relaxed);
        Poll::Ready(Some(Err(error)))
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
            return match self.patience.poll(cx) {
                Poll::Ready(()) => self.fail(TOO_SLOW, Error::ConnectionReadTimeout),
                Poll::Pending => Poll::Pending,
            };
        };
        self.patience.rest();
        if let (Some(left), Some(Ok(frame))) = (self.left, &frame) {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            match left.checked_sub(length) {
                Some(left) => self.left = Some(left),
                None => return self.fail(TOO_LARGE, Error::HttpRequestBodySize(None)),
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Outbound ===

impl Outbound {
    /// No longer pause than `patience`, where there is one, and all of it before `deadline`.
    pub(super) fn wrap(body: Body, patience: Option<Duration>, deadline: Option<Instant>) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Self {
            body,
            patience: Patience::new(patience),
            deadline: deadline.map(|at| Box::pin(tokio::time::sleep_until(at))),
        }
        .boxed_unsync()
    }

    /// The connection is busy for as long as the body flows.
    pub(super) fn busy(body: Body, busy: Busy) -> Body {
        if body.is_end_stream() {
            return body;
        }
        Kept { body, _busy: busy }.boxed_unsync()
    }
}

impl http_body::Body for Outbound {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            self.patience.rest();
            return Poll::Ready(frame);
        }
        let late = self.deadline.as_mut().map(|d| d.as_mut().poll(cx));
        if self.patience.poll(cx).is_ready() || late.is_some_and(|late| late.is_ready()) {
            return Poll::Ready(Some(Err(Error::HttpResponseTimeout)));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl http_body::Body for Kept {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Patience ===

impl Patience {
    fn new(longest: Option<Duration>) -> Self {
        Self {
            longest,
            waiting: None,
        }
    }

    fn rest(&mut self) {
        self.waiting = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(longest) = self.longest else {
            return Poll::Pending;
        };
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(longest)));
        waiting.as_mut().poll(cx)
    }
}

// === impl Tee ===

/// The body, and a copy of it that is filled as the body is read.
pub(super) fn tee(body: Body) -> (Body, Body) {
    if body.is_end_stream() {
        return (body, crate::network::empty_body());
    }
    let (mirror, chunks) = mpsc::channel(MIRRORED);
    let tee = Tee {
        body,
        mirror: Some(mirror),
    };
    (tee.boxed_unsync(), Mirrored { chunks }.boxed_unsync())
}

impl http_body::Body for Tee {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                let failed = match (&self.mirror, frame.data_ref()) {
                    (Some(mirror), Some(data)) => mirror.try_send(data.clone()).is_err(),
                    _ => false,
                };
                if failed {
                    self.mirror = None;
                }
            }
            Poll::Ready(_) => self.mirror = None,
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl http_body::Body for Mirrored {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let chunk = self.chunks.poll_recv(cx);
        chunk.map(|chunk| chunk.map(|chunk| Ok(Frame::data(chunk))))
    }
}

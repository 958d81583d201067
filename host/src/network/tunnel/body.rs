//! Bodies of HTTP messages between a pod and a stream of the tunnel: what comes in as a body, a body as what goes out.
//! Flow control both ways; trailers pass.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

use super::WINDOW;
use crate::network::pipe::Budget;
use crate::network::{Body, serve};

/// A body that ends with its first frame is sent at once if it is at most this long, whatever the window.
const AT_ONCE: usize = 16 * 1024;
/// A body of unknown length is charged as if at least so much of it waited.
const UNKNOWN: usize = 64 * 1024;

/// What comes in on a stream.
struct Received<T> {
    recv: RecvStream,
    length: Option<u64>,
    data_ended: bool,
    charge: Charge,
    _held: T,
}

/// What may wait unread for a pod, charged to it while the body lives: of a known length what is left of it, of another what
/// was there when it was last read.
struct Charge(Arc<Budget>, usize);

/// A body on its way out.
pub(super) struct Sending {
    body: Option<Body>,
    send: SendStream<Bytes>,
    /// Taken from the body, not yet sent; and whether it is the last.
    chunk: Bytes,
    last: bool,
    sent: Option<Kept>,
}

/// What was sent of a body that may have to be sent again.
#[derive(Default)]
struct Kept {
    frames: Vec<Frame<Bytes>>,
    bytes: usize,
    limit: usize,
}

/// A body of which the first frames were taken.
struct Again {
    kept: std::vec::IntoIter<Frame<Bytes>>,
    rest: Option<Body>,
}

/// `held` lives as long as the body; what waits of it is charged to `budget`.
pub(super) fn received<T: Send + Unpin + 'static>(
    recv: RecvStream,
    headers: &HeaderMap,
    budget: &Arc<Budget>,
    held: T,
) -> Body {
    if recv.is_end_stream() {
        return serve::empty();
    }
    let length = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok()?.parse().ok());
    let mut charge = Charge(Arc::clone(budget), 0);
    charge.set(waiting(length, 0));
    Received {
        recv,
        length,
        data_ended: false,
        charge,
        _held: held,
    }
    .boxed_unsync()
}

/// How much may wait of a body of which `length` is left, when `unread` is known to.
fn waiting(length: Option<u64>, unread: usize) -> usize {
    let most = usize::try_from(WINDOW).unwrap_or(usize::MAX);
    match length {
        Some(left) => usize::try_from(left).unwrap_or(most).min(most),
        None => unread.max(UNKNOWN),
    }
}

// === impl Charge ===

impl Charge {
    fn set(&mut self, bytes: usize) {
        if bytes > self.1 {
            self.0.charge(bytes - self.1);
        } else {
            self.0.refund(self.1 - bytes);
        }
        self.1 = bytes;
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.0.refund(self.1);
    }
}

// === impl Received ===

impl<T: Unpin> http_body::Body for Received<T> {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let broken = |_| wasmtime_wasi_http::Error::ConnectionTerminated;
        if !self.data_ended {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    if let Some(length) = &mut self.length {
                        *length = length.saturating_sub(chunk.len() as u64);
                    }
                    // A stream that has ended meanwhile needs no window.
                    drop(self.recv.flow_control().release_capacity(chunk.len()));
                    let unread = self.recv.flow_control().used_capacity();
                    let waiting = waiting(self.length, unread);
                    self.charge.set(waiting);
                    return Poll::Ready(Some(Ok(Frame::data(chunk))));
                }
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => {
                    return Poll::Ready(None);
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(broken(error)))),
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.recv.poll_trailers(cx)).map_err(broken)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.recv.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.length
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === impl Sending ===

impl Sending {
    /// Remembers what it sends up to `keep` bytes and goes no further before [`Sending::taken`]; 0 remembers nothing.
    pub(super) fn new(body: Body, send: SendStream<Bytes>, keep: usize) -> Self {
        let kept = Kept {
            limit: keep,
            ..Kept::default()
        };
        Self {
            body: Some(body),
            send,
            chunk: Bytes::new(),
            last: false,
            sent: (keep > 0).then_some(kept),
        }
    }

    /// Nobody will ask for it again.
    pub(super) fn taken(&mut self) {
        self.sent = None;
    }

    pub(super) fn is_done(&self) -> bool {
        self.body.is_none() && self.chunk.is_empty()
    }

    pub(super) fn may_return(&self) -> bool {
        self.sent.is_some()
    }

    /// The body as it was, if what was sent of it is still known.
    pub(super) fn back(self) -> Option<Body> {
        let kept = self.sent?;
        Some(
            Again {
                kept: kept.frames.into_iter(),
                rest: self.body,
            }
            .boxed_unsync(),
        )
    }

    /// Ready when everything was sent, or nobody wants it.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if !self.chunk.is_empty() {
                ready!(self.poll_chunk(cx));
                continue;
            }
            if self.send.poll_reset(cx).is_ready() {
                return Poll::Ready(());
            }
            let Some(body) = &mut self.body else {
                return Poll::Ready(());
            };
            if self.sent.as_ref().is_some_and(Kept::is_full) {
                return Poll::Pending;
            }
            let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
            let ended = body.is_end_stream();
            self.frame(frame, ended);
        }
    }

    /// As [`Sending::poll`].
    pub(super) async fn run(mut self) {
        std::future::poll_fn(|cx| self.poll(cx)).await;
    }

    /// An error means that the stream is gone; `poll_reset` tells.
    fn frame(
        &mut self,
        frame: Option<Result<Frame<Bytes>, wasmtime_wasi_http::Error>>,
        ended: bool,
    ) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(kept) = &mut self.sent {
                    kept.add(&frame);
                }
                match frame.into_data() {
                    Ok(chunk) if ended && chunk.len() <= AT_ONCE => {
                        drop(self.send.send_data(chunk, true));
                        self.body = None;
                    }
                    Ok(chunk) => {
                        self.last = ended && !chunk.is_empty();
                        self.chunk = chunk;
                        if ended && self.chunk.is_empty() {
                            self.end();
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            drop(self.send.send_trailers(trailers));
                            self.body = None;
                        }
                    }
                }
            }
            Some(Err(_)) => {
                self.send.send_reset(Reason::INTERNAL_ERROR);
                self.body = None;
                // Half a body is none.
                self.sent = None;
            }
            None => self.end(),
        }
    }

    fn end(&mut self) {
        drop(self.send.send_data(Bytes::new(), true));
        self.body = None;
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.send.reserve_capacity(self.chunk.len());
        let Some(Ok(room)) = ready!(self.send.poll_capacity(cx)) else {
            // The stream is gone. What was not read yet of a body that may be sent again belongs to it still.
            self.chunk = Bytes::new();
            if self.sent.is_none() {
                self.body = None;
            }
            return Poll::Ready(());
        };
        let part = self.chunk.split_to(room.min(self.chunk.len()));
        let last = self.last && self.chunk.is_empty();
        if self.send.send_data(part, last).is_err() {
            self.chunk = Bytes::new();
        }
        if last {
            self.body = None;
        }
        Poll::Ready(())
    }
}

// === impl Kept ===

impl Kept {
    fn is_full(&self) -> bool {
        self.bytes >= self.limit
    }

    fn add(&mut self, frame: &Frame<Bytes>) {
        if let Some(chunk) = frame.data_ref() {
            self.bytes += chunk.len();
            self.frames.push(Frame::data(chunk.clone()));
        } else if let Some(trailers) = frame.trailers_ref() {
            self.frames.push(Frame::trailers(trailers.clone()));
        }
    }
}

// === impl Again ===

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Some(frame) = self.kept.next() {
            return Poll::Ready(Some(Ok(frame)));
        }
        match &mut self.rest {
            Some(rest) => Pin::new(rest).poll_frame(cx),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.kept.as_slice().is_empty() && self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let kept = self.kept.as_slice().iter().filter_map(Frame::data_ref);
        let kept: u64 = kept.map(|chunk| chunk.len() as u64).sum();
        let rest = self
            .rest
            .as_ref()
            .map_or_else(|| SizeHint::with_exact(0), Body::size_hint);
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept);
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use http_body_util::StreamBody;

    use super::*;

    #[tokio::test]
    async fn a_body_of_which_not_all_was_sent_comes_back_whole_when_nobody_took_it() {
        // More than h2 gives a stream before it is read, so that the first frame waits.
        let frames = [vec![1; 100_000], vec![2; 10]];
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut client, connection) = h2::client::handshake(near).await.unwrap();
        tokio::spawn(connection);
        let (reset, mut wanted) = tokio::sync::oneshot::channel();
        tokio::spawn(async move {
            let mut server = h2::server::handshake(far).await.unwrap();
            let (_request, mut respond) = server.accept().await.unwrap().unwrap();
            let _closed = tokio::select! {
                closed = server.accept() => closed,
                _ = &mut wanted => None,
            };
            respond.send_reset(Reason::REFUSED_STREAM);
            while server.accept().await.is_some() {}
        });
        let (answer, send) = client.send_request(Request::new(()), false).unwrap();
        let body = futures::stream::iter(frames.clone().map(|frame| Ok(Frame::data(frame.into()))));
        let mut sending = Sending::new(StreamBody::new(body).boxed_unsync(), send, 64 * 1024);
        let waits = std::future::poll_fn(|cx| Poll::Ready(sending.poll(cx).is_pending()));
        assert!(waits.await);
        reset.send(()).unwrap();
        assert!(answer.await.is_err());
        std::future::poll_fn(|cx| sending.poll(cx)).await;
        let back = sending.back().unwrap().collect().await.unwrap().to_bytes();
        assert_eq!(back, frames.concat());
    }
}

//! What goes out on a connection that carries several streams: one bounded queue, in which every stream has an outlet. Knows
//! neither WebSocket nor SPDY.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

/// A piece is at most this long, and this many wait.
const PIECE: usize = 32 * 1024;
const QUEUE: usize = 16;

/// One thing to send.
#[derive(Debug)]
pub(super) enum Out {
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// SPDY: the stream is taken.
    Accept(u32),
    /// SPDY: the stream is not.
    Refuse(u32),
    /// SPDY: an answer.
    Ping(u32),
    /// SPDY: so much of the stream has been read.
    Window { stream: u32, delta: u32 },
    /// Nothing more comes: said in the protocol's way.
    Close,
}

pub(super) type Queue = mpsc::Sender<Out>;

/// Writes to one stream.
pub(super) struct Outlet {
    stream: u32,
    queue: PollSender<Out>,
    ended: bool,
}

pub(super) fn queue() -> (Queue, mpsc::Receiver<Out>) {
    mpsc::channel(QUEUE)
}

// === impl Outlet ===

impl Outlet {
    pub(super) fn new(stream: u32, queue: &Queue) -> Self {
        Self {
            stream,
            queue: PollSender::new(queue.clone()),
            ended: false,
        }
    }

    fn send(&mut self, cx: &mut Context<'_>, bytes: &[u8], fin: bool) -> Poll<io::Result<()>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        ready!(self.queue.poll_reserve(cx)).map_err(gone)?;
        let out = Out::Data {
            stream: self.stream,
            bytes: Bytes::copy_from_slice(bytes),
            fin,
        };
        Poll::Ready(self.queue.send_item(out).map_err(gone))
    }
}

impl AsyncWrite for Outlet {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let piece = &bytes[..bytes.len().min(PIECE)];
        ready!(self.send(cx, piece, false))?;
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            ready!(self.send(cx, &[], true))?;
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

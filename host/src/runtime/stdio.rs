//! A process' stdin: a bounded pipe between whoever holds [`Input`] and the guest that reads. Never blocks a thread; knows
//! nothing of terminals but whether it is one.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use wasmtime_wasi::cli::{IsTerminal, StdinStream};
use wasmtime_wasi::p2::{InputStream, Pollable, StreamError, StreamResult};

/// Most bytes that wait for the guest.
const WAITING: usize = 64 * 1024;

/// What a process will read. Shared by who writes it and the guest.
pub struct Input {
    // Locked to copy one chunk.
    queue: Mutex<Queue>,
    readable: Notify,
    writable: Notify,
    terminal: bool,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<Piece>,
    bytes: usize,
    closed: bool,
}

/// In the order they will be read.
enum Piece {
    Bytes(Bytes),
    /// One read finds the end here; what follows is read by the next.
    End,
}

/// The guest's side.
struct Reader(Arc<Input>);

/// The same for WASI 0.3, which reads through `AsyncRead`.
struct AsyncReader {
    input: Arc<Input>,
    // Only this reader locks it, while it is polled: the mutex is there because the trait object must be `Sync`.
    waiting: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

// === impl Input ===

impl Input {
    /// The guest is told whether it is a terminal.
    pub fn new(terminal: bool) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            readable: Notify::new(),
            writable: Notify::new(),
            terminal,
        })
    }

    /// Waits until all of it has room. Cancel by dropping: then a part may have been written.
    pub async fn write(&self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let writable = self.writable.notified();
            tokio::pin!(writable);
            writable.as_mut().enable();
            match self.try_write(bytes) {
                0 => writable.await,
                written => bytes = &bytes[written..],
            }
        }
    }

    /// Writes what has room now and says how much that was. After [`Input::close`] everything is taken and nobody reads it.
    pub fn try_write(&self, bytes: &[u8]) -> usize {
        let mut queue = self.lock();
        if queue.closed {
            return bytes.len();
        }
        let room = WAITING.saturating_sub(queue.bytes).min(bytes.len());
        if room > 0 {
            queue.bytes += room;
            let piece = Bytes::copy_from_slice(&bytes[..room]);
            queue.pieces.push_back(Piece::Bytes(piece));
            drop(queue);
            self.readable.notify_waiters();
        }
        room
    }

    /// One read finds the end; the input goes on after it, as a terminal's does.
    pub fn end_once(&self) {
        let mut queue = self.lock();
        // Bounded like the bytes: each end counts as one.
        if !queue.closed && queue.bytes < WAITING {
            queue.bytes += 1;
            queue.pieces.push_back(Piece::End);
        }
        drop(queue);
        self.readable.notify_waiters();
    }

    /// Everything unread is forgotten, and `mark` is read next. `false`: the last mark is still unread, nobody listens.
    pub fn interrupt(&self, mark: u8) -> bool {
        let mut queue = self.lock();
        let unheard = matches!(queue.pieces.front(), Some(Piece::Bytes(bytes)) if bytes.first() == Some(&mark));
        queue.pieces.clear();
        queue
            .pieces
            .push_back(Piece::Bytes(Bytes::copy_from_slice(&[mark])));
        queue.bytes = 1;
        drop(queue);
        self.readable.notify_waiters();
        self.writable.notify_waiters();
        !unheard
    }

    /// No more will come.
    pub fn close(&self) {
        self.lock().closed = true;
        self.readable.notify_waiters();
        self.writable.notify_waiters();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something can be read, or the end.
    async fn ready(&self) {
        loop {
            let readable = self.readable.notified();
            tokio::pin!(readable);
            readable.as_mut().enable();
            if self.is_ready() {
                return;
            }
            readable.await;
        }
    }

    fn is_ready(&self) -> bool {
        let queue = self.lock();
        queue.closed || !queue.pieces.is_empty()
    }

    /// `None` is the end; empty: nothing yet.
    fn take(&self, most: usize) -> Option<Bytes> {
        let mut queue = self.lock();
        if most == 0 {
            // Some ask so whether the end is there.
            let end = match queue.pieces.front() {
                Some(Piece::End) => true,
                Some(Piece::Bytes(_)) => false,
                None => queue.closed,
            };
            return (!end).then(Bytes::new);
        }
        let taken = match queue.pieces.pop_front() {
            None if queue.closed => return None,
            None => return Some(Bytes::new()),
            Some(Piece::End) => {
                queue.bytes = queue.bytes.saturating_sub(1);
                None
            }
            Some(Piece::Bytes(mut bytes)) => {
                let taken = bytes.split_to(most.min(bytes.len()));
                if !bytes.is_empty() {
                    queue.pieces.push_front(Piece::Bytes(bytes));
                }
                queue.bytes = queue.bytes.saturating_sub(taken.len());
                Some(taken)
            }
        };
        drop(queue);
        self.writable.notify_waiters();
        taken
    }

    /// As the guest sees it.
    pub(super) fn stream(self: &Arc<Self>) -> impl StdinStream + 'static {
        Reader(Arc::clone(self))
    }
}

impl IsTerminal for Reader {
    fn is_terminal(&self) -> bool {
        self.0.terminal
    }
}

impl StdinStream for Reader {
    fn async_stream(&self) -> Box<dyn AsyncRead + Send + Sync> {
        Box::new(AsyncReader {
            input: Arc::clone(&self.0),
            waiting: Mutex::new(None),
        })
    }

    fn p2_stream(&self) -> Box<dyn InputStream> {
        Box::new(Reader(Arc::clone(&self.0)))
    }
}

#[async_trait::async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        self.0.ready().await;
    }
}

#[async_trait::async_trait]
impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        self.0.take(size).ok_or(StreamError::Closed)
    }
}

impl AsyncRead for AsyncReader {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let waiting = this
            .waiting
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(future) = waiting {
                ready!(future.as_mut().poll(cx));
                *waiting = None;
            }
            match this.input.take(buffer.remaining()) {
                Some(bytes) if bytes.is_empty() && buffer.remaining() > 0 => {
                    let input = Arc::clone(&this.input);
                    *waiting = Some(Box::pin(async move { input.ready().await }));
                }
                Some(bytes) => {
                    buffer.put_slice(&bytes);
                    return Poll::Ready(Ok(()));
                }
                None => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_is_written_is_read_in_order_and_then_the_end() {
        let input = Input::new(false);
        assert_eq!(input.try_write(b"one two"), 7);
        assert_eq!(input.take(3), Some(Bytes::from_static(b"one")));
        assert_eq!(input.take(9), Some(Bytes::from_static(b" two")));
        assert_eq!(input.take(9), Some(Bytes::new()), "nothing yet");
        assert!(input.ready().now_or_never().is_none());
        input.close();
        assert!(input.ready().now_or_never().is_some());
        assert_eq!(input.take(9), None);
        assert_eq!(input.take(0), None);
        assert_eq!(input.try_write(b"late"), 4, "nobody will read it");
        assert_eq!(input.take(9), None);
    }

    #[test]
    fn a_terminal_goes_on_after_an_end() {
        let input = Input::new(true);
        input.try_write(b"a");
        input.end_once();
        input.try_write(b"b");
        assert_eq!(input.take(9), Some(Bytes::from_static(b"a")));
        assert_eq!(input.take(9), None);
        assert_eq!(input.take(9), Some(Bytes::from_static(b"b")));
    }

    #[test]
    fn what_waits_is_bounded() {
        let input = Input::new(false);
        let much = vec![b'x'; WAITING + 1];
        assert_eq!(input.try_write(&much), WAITING);
        assert!(input.write(b"y").now_or_never().is_none());
        assert_eq!(input.take(10).map(|bytes| bytes.len()), Some(10));
        assert!(input.write(b"y").now_or_never().is_some());
        for _ in 0..2 * WAITING {
            input.end_once();
        }
        assert!(input.lock().pieces.len() <= WAITING);
    }

    #[test]
    fn an_interrupt_comes_before_what_was_typed_and_says_when_nobody_listens() {
        let input = Input::new(true);
        input.try_write(b"typed ahead\n");
        assert!(input.interrupt(3));
        assert!(!input.interrupt(3), "the first one was not read");
        assert_eq!(input.take(9), Some(Bytes::from_static(&[3])));
        assert!(input.interrupt(3));
    }
}

//! What a guest writes on its way to one client: a bounded queue that keeps the order of stdout and stderr. Knows no protocol.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::runtime::{LogSink, LogStream};

/// Most bytes that wait for the client of `exec`; the guest waits for it then.
pub(super) const EXEC: usize = 64 * 1024;
/// Most bytes that wait for the client of `attach`; the container does not wait, the client is cut off.
pub(super) const ATTACH: usize = 1024 * 1024;
/// What an entry costs beside its bytes, so that empty writes are bounded, too.
const ENTRY: usize = 32;

/// One client's queue.
pub(in crate::pods) struct Outlet {
    bound: usize,
    // Locked to copy one chunk.
    queue: Mutex<Queue>,
    readable: Notify,
    writable: Notify,
}

#[derive(Default)]
struct Queue {
    pieces: VecDeque<(LogStream, Bytes)>,
    bytes: usize,
    end: Option<End>,
}

/// Why no more comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum End {
    Closed,
    /// It did not keep up.
    FellBehind,
}

impl Outlet {
    pub(super) fn new(bound: usize) -> Arc<Outlet> {
        Arc::new(Outlet {
            bound,
            queue: Mutex::default(),
            readable: Notify::new(),
            writable: Notify::new(),
        })
    }

    /// Takes it if there is room; a client that has fallen behind gets nothing any more.
    pub(in crate::pods) fn offer(&self, stream: LogStream, bytes: &[u8]) {
        let mut queue = self.lock();
        if queue.end.is_none() && queue.bytes + bytes.len() + ENTRY > self.bound {
            queue.end = Some(End::FellBehind);
        }
        queue.push(stream, bytes);
        drop(queue);
        self.readable.notify_waiters();
    }

    /// No more comes; what waits is still read.
    pub(in crate::pods) fn close(&self) {
        self.lock().end.get_or_insert(End::Closed);
        self.readable.notify_waiters();
        self.writable.notify_waiters();
    }

    /// The next piece, or why there is none.
    pub(super) async fn next(&self) -> Result<(LogStream, Bytes), End> {
        loop {
            let readable = self.readable.notified();
            tokio::pin!(readable);
            readable.as_mut().enable();
            if let Some(next) = self.take() {
                self.writable.notify_waiters();
                return next;
            }
            readable.await;
        }
    }

    fn take(&self) -> Option<Result<(LogStream, Bytes), End>> {
        let mut queue = self.lock();
        match queue.pieces.pop_front() {
            Some((stream, bytes)) => {
                queue.bytes -= bytes.len() + ENTRY;
                Some(Ok((stream, bytes)))
            }
            None => queue.end.map(Err),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn room(&self) -> usize {
        let queue = self.lock();
        match queue.end {
            // Nobody reads it: the guest may go on.
            Some(_) => self.bound,
            None => self.bound.saturating_sub(queue.bytes + ENTRY),
        }
    }
}

impl Queue {
    fn push(&mut self, stream: LogStream, bytes: &[u8]) {
        if self.end.is_none() && !bytes.is_empty() {
            self.bytes += bytes.len() + ENTRY;
            self.pieces
                .push_back((stream, Bytes::copy_from_slice(bytes)));
        }
    }
}

impl LogSink for Outlet {
    fn capacity(&self) -> usize {
        self.room()
    }

    fn write(&self, stream: LogStream, bytes: &[u8]) {
        self.lock().push(stream, bytes);
        self.readable.notify_waiters();
    }

    fn writable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            loop {
                let writable = self.writable.notified();
                tokio::pin!(writable);
                writable.as_mut().enable();
                if self.room() > 0 {
                    return;
                }
                writable.await;
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn next(outlet: &Outlet) -> Result<String, End> {
        let next = outlet.next().now_or_never().expect("something waits");
        next.map(|(_, bytes)| String::from_utf8_lossy(&bytes).into_owned())
    }

    #[test]
    fn the_guest_waits_for_a_client_of_exec_and_loses_nothing() {
        let outlet = Outlet::new(100);
        outlet.write(LogStream::Stdout, &[b'x'; 68]);
        assert_eq!(outlet.capacity(), 0);
        assert!(outlet.writable().now_or_never().is_none());
        assert_eq!(next(&outlet).map(|text| text.len()), Ok(68));
        assert!(outlet.writable().now_or_never().is_some());
        outlet.write(LogStream::Stderr, b"last");
        outlet.close();
        assert_eq!(next(&outlet), Ok("last".to_owned()));
        assert_eq!(next(&outlet), Err(End::Closed));
        assert!(outlet.capacity() > 0, "nobody reads, nobody waits");
    }

    #[test]
    fn a_client_of_attach_that_falls_behind_is_cut_off_and_told() {
        let outlet = Outlet::new(100);
        outlet.offer(LogStream::Stdout, b"one");
        outlet.offer(LogStream::Stdout, &[b'x'; 100]);
        outlet.offer(LogStream::Stdout, b"two");
        assert_eq!(next(&outlet), Ok("one".to_owned()));
        assert_eq!(next(&outlet), Err(End::FellBehind));
    }
}

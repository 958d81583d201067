//! A connection's bytes between its socket and its TLS: notes when anything comes in, and reads as much at once as there
//! is. Never looks at what they say.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Io;
use super::keep_alive::Activity;

/// What is read at once, while little comes and while much does. TLS by itself asks for 4 KiB, a system call each.
const LITTLE: usize = 8 * 1024;
const MUCH: usize = 64 * 1024;
/// After so many reads in a row that needed no large buffer, it is small again.
const CALM: u32 = 256;

/// What carries a connection.
pub(super) struct Wire {
    io: Box<dyn Io>,
    activity: Arc<Activity>,
    buffer: Box<[u8]>,
    /// Read and not yet taken.
    from: usize,
    to: usize,
    /// Reads in a row that would have fitted a small buffer.
    calm: u32,
}

/// Lets other tasks that are ready go first, once for each wake-up: what they send goes out together with the rest.
#[derive(Default)]
pub(super) struct Gather {
    waited: bool,
}

// === impl Gather ===

impl Gather {
    /// As `inner`; the first poll after it was pending only waits for the others' turn, when `busy`.
    pub(super) fn poll<T>(
        &mut self,
        cx: &mut Context<'_>,
        busy: bool,
        inner: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Poll<T> {
        if busy && !self.waited {
            self.waited = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = inner(cx);
        self.waited = polled.is_ready();
        polled
    }
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(io: Box<dyn Io>, activity: Arc<Activity>) -> Self {
        Self {
            io,
            activity,
            buffer: vec![0; LITTLE].into_boxed_slice(),
            from: 0,
            to: 0,
            calm: 0,
        }
    }

    /// Reads into the buffer, which is empty.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut into = ReadBuf::new(&mut self.buffer);
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut into))?;
        (self.from, self.to) = (0, into.filled().len());
        if self.to > 0 {
            self.activity.hear();
        }
        Poll::Ready(Ok(()))
    }

    /// Fits the empty buffer to what came lately.
    fn fit(&mut self) {
        let small = self.buffer.len() == LITTLE;
        let size = if self.to == LITTLE && small {
            MUCH
        } else if self.to > LITTLE || small {
            self.calm = 0;
            return;
        } else {
            self.calm += 1;
            if self.calm < CALM {
                return;
            }
            LITTLE
        };
        self.calm = 0;
        self.buffer = vec![0; size].into_boxed_slice();
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self;
        if wire.from == wire.to {
            ready!(wire.poll_fill(cx))?;
        }
        let length = (wire.to - wire.from).min(buffer.remaining());
        buffer.put_slice(&wire.buffer[wire.from..wire.from + length]);
        wire.from += length;
        if wire.from == wire.to {
            wire.fit();
            (wire.from, wire.to) = (0, 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn much_is_read_at_once_and_nothing_is_lost() {
        let (mut far, near) = tokio::io::duplex(4 * MUCH);
        let sent: Vec<u8> = (0..3 * MUCH).map(|n| (n % 251) as u8).collect();
        far.write_all(&sent).await.unwrap();
        drop(far);
        let mut wire = Wire::new(Box::new(near), Arc::default());
        let mut came = vec![0; LITTLE];
        wire.read_exact(&mut came).await.unwrap();
        assert_eq!(wire.buffer.len(), MUCH, "more has filled the small one");
        // As TLS reads: in pieces that fit nothing.
        let mut piece = [0; 4_000];
        loop {
            match wire.read(&mut piece).await.unwrap() {
                0 => break,
                length => came.extend_from_slice(&piece[..length]),
            }
        }
        assert!(came == sent);
    }

    #[tokio::test]
    async fn a_connection_that_has_calmed_down_needs_little_memory() {
        let (mut far, near) = tokio::io::duplex(4 * MUCH);
        let mut wire = Wire::new(Box::new(near), Arc::default());
        let mut bytes = vec![0; LITTLE];
        far.write_all(&bytes).await.unwrap();
        wire.read_exact(&mut bytes).await.unwrap();
        assert_eq!(wire.buffer.len(), MUCH);
        for _ in 0..CALM {
            far.write_all(b"x").await.unwrap();
            wire.read_u8().await.unwrap();
        }
        assert_eq!(wire.buffer.len(), LITTLE);
    }

    #[test]
    fn one_that_is_busy_waits_once_for_each_wake_up() {
        let mut gather = Gather::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut polled = 0;
        let mut poll = |busy, answer: Poll<()>| {
            let answer = gather.poll(&mut cx, busy, |_| {
                polled += 1;
                answer
            });
            (answer.is_ready(), polled)
        };
        assert_eq!(poll(false, Poll::Pending), (false, 1));
        assert_eq!(poll(true, Poll::Pending), (false, 1), "others first");
        assert_eq!(poll(true, Poll::Ready(())), (true, 2));
        assert_eq!(poll(true, Poll::Pending), (false, 3), "still its turn");
        assert_eq!(poll(true, Poll::Pending), (false, 3), "others first, again");
    }
}

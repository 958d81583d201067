//! A connection as the pod sees it, and the same connection as bytes for hyper and for `forward`.
//! Never knows where the other end is.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::SocketError;
pub use super::pipe::{Reader, Writer};

/// An established TCP connection, pod side.
pub struct Stream {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub reader: Reader,
    pub writer: Writer,
}

/// A [`Stream`] that speaks tokio's byte traits.
pub(crate) struct StreamIo {
    stream: Stream,
    /// Rest of a chunk the last read had no room for.
    rest: Bytes,
}

// === impl Stream ===

impl Stream {
    /// Both sides see a reset; nothing more is delivered.
    pub fn reset(self) {
        self.reader.reset();
    }

    pub(crate) fn into_io(self) -> StreamIo {
        StreamIo {
            stream: self,
            rest: Bytes::new(),
        }
    }
}

// === impl StreamIo ===

impl StreamIo {
    /// A reset of what nobody has read is a refusal: the other end has closed before it accepted.
    fn explain(&self, error: SocketError) -> io::Error {
        match error {
            SocketError::Reset if self.stream.writer.was_refused() => SocketError::Refused.into(),
            error => error.into(),
        }
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(this.stream.reader.poll_read(cx)) {
                Some(Ok(chunk)) => this.rest = chunk,
                Some(Err(error)) => return Poll::Ready(Err(this.explain(error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = this.rest.len().min(buffer.remaining());
        buffer.put_slice(&this.rest[..length]);
        this.rest.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let ready = ready!(this.stream.writer.poll_ready(cx));
        let length = ready.map_err(|e| this.explain(e))?.min(bytes.len());
        let writer = &mut this.stream.writer;
        writer.send(Bytes::copy_from_slice(&bytes[..length]))?;
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let ready = ready!(this.stream.writer.poll_ready(cx));
        let room = ready.map_err(|e| this.explain(e))?;
        let writer = &mut this.stream.writer;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        let mut joined = BytesMut::with_capacity(total.min(room));
        for slice in slices {
            let length = slice.len().min(room - joined.len());
            joined.extend_from_slice(&slice[..length]);
        }
        let length = joined.len();
        writer.send(joined.freeze())?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().stream.writer.shutdown();
        Poll::Ready(Ok(()))
    }
}

impl From<SocketError> for io::Error {
    fn from(error: SocketError) -> Self {
        let kind = match error {
            SocketError::Refused => io::ErrorKind::ConnectionRefused,
            SocketError::Reset => io::ErrorKind::ConnectionReset,
            SocketError::Closed => io::ErrorKind::BrokenPipe,
            SocketError::InUse => io::ErrorKind::AddrInUse,
            SocketError::NotAvailable => io::ErrorKind::AddrNotAvailable,
            SocketError::Unreachable => io::ErrorKind::HostUnreachable,
            SocketError::TimedOut => io::ErrorKind::TimedOut,
            SocketError::Denied => io::ErrorKind::PermissionDenied,
            SocketError::TooMany => io::ErrorKind::QuotaExceeded,
            SocketError::TooLarge => io::ErrorKind::InvalidInput,
        };
        io::Error::new(kind, error)
    }
}

impl From<&io::Error> for SocketError {
    fn from(error: &io::Error) -> Self {
        if let Some(own) = error
            .get_ref()
            .and_then(|e| e.downcast_ref::<SocketError>())
        {
            return *own;
        }
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused,
            io::ErrorKind::TimedOut => Self::TimedOut,
            io::ErrorKind::PermissionDenied => Self::Denied,
            io::ErrorKind::AddrInUse => Self::InUse,
            io::ErrorKind::AddrNotAvailable => Self::NotAvailable,
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Reset,
        }
    }
}

//! A guest's stdout and stderr as wasmtime sees them, over [`LogSink`]. Never blocks a thread: a full sink makes the guest wait.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamError, StreamResult};

use super::{LogSink, LogStream};

/// Most bytes a guest may hand over at once.
const CHUNK: usize = 64 * 1024;

/// One of the two streams of a workload.
#[derive(Clone)]
pub(super) struct Pipe {
    sink: Arc<dyn LogSink>,
    stream: LogStream,
    terminal: bool,
}

/// The same for WASI 0.3, which writes through `AsyncWrite`.
struct Writer {
    pipe: Pipe,
    // Only this writer locks it, while it is polled: the mutex is there because the trait object must be `Sync`.
    waiting: Mutex<Option<Pin<Box<dyn Future<Output = ()> + Send>>>>,
}

impl Pipe {
    pub(super) fn new(sink: Arc<dyn LogSink>, stream: LogStream, terminal: bool) -> Self {
        Self {
            sink,
            stream,
            terminal,
        }
    }
}

impl IsTerminal for Pipe {
    fn is_terminal(&self) -> bool {
        self.terminal
    }
}

impl StdoutStream for Pipe {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(Writer {
            pipe: self.clone(),
            waiting: Mutex::new(None),
        })
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

#[async_trait::async_trait]
impl Pollable for Pipe {
    async fn ready(&mut self) {
        while self.sink.capacity() == 0 {
            self.sink.writable().await;
        }
    }
}

impl OutputStream for Pipe {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > CHUNK {
            return Err(StreamError::trap("wrote more than check-write allowed"));
        }
        self.sink.write(self.stream, &bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(self.sink.capacity().min(CHUNK))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
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
            let room = this.pipe.sink.capacity().min(buffer.len()).min(CHUNK);
            if room > 0 || buffer.is_empty() {
                this.pipe.sink.write(this.pipe.stream, &buffer[..room]);
                return Poll::Ready(Ok(room));
            }
            let sink = Arc::clone(&this.pipe.sink);
            *waiting = Some(Box::pin(async move { sink.writable().await }));
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

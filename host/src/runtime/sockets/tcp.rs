//! A TCP socket of a guest: what it may do in which state. The versions' words are in `p2` and `p3`.
//!
//! ```text
//! New ─ bind ─► Bound ─ listen ─► Listening
//!   └───────── connect ─────────► Connected       a failed connect: Closed
//! ```
//! There is no Nagle and no delayed ACK between pods: a chunk written is a chunk to read.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::address::Family;
use super::{Accepted, Fault, Sockets};
use crate::network::{Bound, Listener, Reader, SocketError, Stream, Writer};

/// Connections that may wait to be accepted, unless the guest says otherwise.
const BACKLOG: usize = 128;
/// Most bytes a guest reads or writes at once.
pub(super) const CHUNK: usize = 64 * 1024;

/// A connect that is going on.
pub(super) type Connecting =
    Pin<Box<dyn Future<Output = Result<Stream, SocketError>> + Send + 'static>>;

#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Tcp {
    pub(super) family: Family,
    pub(super) options: Options,
    backlog: usize,
    state: State,
}

enum State {
    New,
    Bound(Bound),
    Listening {
        local: SocketAddr,
    },
    /// The bound port stays taken while the connection lives.
    Connecting(Option<Bound>),
    Connected {
        local: SocketAddr,
        peer: SocketAddr,
        halves: Option<(Input, Output)>,
        _bound: Option<Bound>,
    },
    Closed,
}

/// What guests set and read back. In a virtual network only the values exist.
#[derive(Clone, Copy)]
pub(super) struct Options {
    pub(super) keep_alive: bool,
    pub(super) keep_alive_idle: u64,
    pub(super) keep_alive_interval: u64,
    pub(super) keep_alive_count: u32,
    pub(super) hop_limit: u8,
    pub(super) receive_buffer: u64,
    pub(super) send_buffer: u64,
}

/// The receiving half.
pub(super) struct Input {
    reader: Option<Reader>,
    rest: Bytes,
    accepted: Option<Arc<Accepted>>,
}

/// The sending half. Dropping it is FIN.
pub(super) struct Output {
    writer: Option<Writer>,
    accepted: Option<Arc<Accepted>>,
}

// === impl Tcp ===

impl Tcp {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            options: Options::default(),
            backlog: BACKLOG,
            state: State::New,
        }
    }

    /// A connection somebody else opened.
    pub(super) fn accepted(family: Family, sockets: &Sockets, stream: Stream) -> Self {
        let accepted = Arc::new(Accepted::new(&sockets.traffic));
        let mut socket = Self::new(family);
        socket.state = connected(stream, Some(accepted), None);
        socket
    }

    pub(super) fn bind(&mut self, sockets: &Sockets, address: SocketAddr) -> Result<(), Fault> {
        if !matches!(self.state, State::New) {
            return Err(Fault::InvalidState);
        }
        let bound = sockets.network.bind_tcp(self.family.local(address)?)?;
        self.state = State::Bound(bound);
        Ok(())
    }

    pub(super) fn is_bound(&self) -> bool {
        matches!(self.state, State::Bound(_))
    }

    /// Begins to connect; the outcome goes to [`Tcp::finish_connect`].
    pub(super) fn connect(
        &mut self,
        sockets: &Sockets,
        address: SocketAddr,
    ) -> Result<Connecting, Fault> {
        if !matches!(self.state, State::New | State::Bound(_)) {
            return Err(Fault::InvalidState);
        }
        let address = self.family.remote(address)?;
        let bound = match std::mem::replace(&mut self.state, State::Closed) {
            State::Bound(bound) => Some(bound),
            _ => None,
        };
        self.state = State::Connecting(bound);
        let network = Arc::clone(&sockets.network);
        Ok(Box::pin(async move { network.connect(address).await }))
    }

    pub(super) fn finish_connect(
        &mut self,
        outcome: Result<Stream, SocketError>,
    ) -> Result<(), Fault> {
        let State::Connecting(bound) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(Fault::InvalidState);
        };
        self.state = connected(outcome?, None, bound);
        Ok(())
    }

    /// An unbound socket gets a port of its own.
    pub(super) fn listen(&mut self, sockets: &Sockets) -> Result<Listener, Fault> {
        if matches!(self.state, State::New) {
            let any = match self.family {
                Family::V4 => SocketAddr::from(([0; 4], 0)),
                Family::V6 => SocketAddr::from(([0_u16; 8], 0)),
            };
            self.bind(sockets, any)?;
        }
        let State::Bound(bound) = std::mem::replace(&mut self.state, State::Closed) else {
            return Err(Fault::InvalidState);
        };
        let listener = bound.listen(self.backlog)?;
        self.state = State::Listening {
            local: listener.local(),
        };
        Ok(listener)
    }

    pub(super) fn is_listening(&self) -> bool {
        matches!(self.state, State::Listening { .. })
    }

    /// The two halves of a connection, once.
    pub(super) fn halves(&mut self) -> Result<(Input, Output), Fault> {
        match &mut self.state {
            State::Connected { halves, .. } => halves.take().ok_or(Fault::InvalidState),
            _ => Err(Fault::InvalidState),
        }
    }

    /// One half; the other stays.
    pub(super) fn input(&mut self) -> Result<Input, Fault> {
        self.half(|(input, _)| {
            (input.reader.is_some() || !input.rest.is_empty()).then(|| input.take())
        })
    }

    /// As [`Tcp::input`].
    pub(super) fn output(&mut self) -> Result<Output, Fault> {
        self.half(|(_, output)| output.writer.is_some().then(|| output.take()))
    }

    fn half<T>(
        &mut self,
        take: impl FnOnce(&mut (Input, Output)) -> Option<T>,
    ) -> Result<T, Fault> {
        match &mut self.state {
            State::Connected {
                halves: Some(halves),
                ..
            } => take(halves).ok_or(Fault::InvalidState),
            _ => Err(Fault::InvalidState),
        }
    }

    pub(super) fn local(&self) -> Result<SocketAddr, Fault> {
        match &self.state {
            State::Bound(bound) => Ok(self.family.show(bound.local())),
            State::Listening { local } | State::Connected { local, .. } => {
                Ok(self.family.show(*local))
            }
            _ => Err(Fault::InvalidState),
        }
    }

    pub(super) fn peer(&self) -> Result<SocketAddr, Fault> {
        match &self.state {
            State::Connected { peer, .. } => Ok(self.family.show(*peer)),
            _ => Err(Fault::InvalidState),
        }
    }

    pub(super) fn set_backlog(&mut self, value: u64) -> Result<(), Fault> {
        let value = usize::try_from(value).unwrap_or(usize::MAX);
        match self.state {
            _ if value == 0 => Err(Fault::InvalidArgument),
            State::New | State::Bound(_) => {
                self.backlog = value;
                Ok(())
            }
            // As on some systems: fixed once it listens.
            State::Listening { .. } => Err(Fault::NotSupported),
            _ => Err(Fault::InvalidState),
        }
    }
}

fn connected(stream: Stream, accepted: Option<Arc<Accepted>>, bound: Option<Bound>) -> State {
    let input = Input {
        reader: Some(stream.reader),
        rest: Bytes::new(),
        accepted: accepted.clone(),
    };
    let output = Output {
        writer: Some(stream.writer),
        accepted,
    };
    State::Connected {
        local: stream.local,
        peer: stream.peer,
        halves: Some((input, output)),
        _bound: bound,
    }
}

impl Default for Options {
    /// Linux's defaults; times in nanoseconds.
    fn default() -> Self {
        Self {
            keep_alive: false,
            keep_alive_idle: 7_200_000_000_000,
            keep_alive_interval: 75_000_000_000,
            keep_alive_count: 9,
            hop_limit: 64,
            receive_buffer: CHUNK as u64,
            send_buffer: CHUNK as u64,
        }
    }
}

// === impl Input ===

impl Input {
    fn take(&mut self) -> Self {
        Self {
            reader: self.reader.take(),
            rest: std::mem::take(&mut self.rest),
            accepted: self.accepted.clone(),
        }
    }

    /// Ready when a read would give bytes, the end, or an error.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), SocketError>> {
        if !self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let Some(reader) = &mut self.reader else {
            return Poll::Ready(Ok(()));
        };
        match ready!(reader.poll_read(cx)) {
            Some(Ok(chunk)) => {
                self.rest = chunk;
                if let Some(accepted) = &self.accepted {
                    accepted.moved();
                }
            }
            Some(Err(error)) => {
                self.reader = None;
                return Poll::Ready(Err(error));
            }
            None => self.reader = None,
        }
        Poll::Ready(Ok(()))
    }

    /// At most `most` bytes; empty is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
    ) -> Poll<Result<Bytes, SocketError>> {
        ready!(self.poll_ready(cx))?;
        let length = self.rest.len().min(most);
        Poll::Ready(Ok(self.rest.split_to(length)))
    }

    /// Nothing more is read.
    pub(super) fn shut(&mut self) {
        self.reader = None;
        self.rest = Bytes::new();
    }
}

// === impl Output ===

impl Output {
    fn take(&mut self) -> Self {
        Self {
            writer: self.writer.take(),
            accepted: self.accepted.clone(),
        }
    }

    /// How many bytes may be written now.
    pub(super) fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, SocketError>> {
        match &mut self.writer {
            Some(writer) => writer.poll_ready(cx),
            None => Poll::Ready(Err(SocketError::Closed)),
        }
    }

    /// No more than [`Output::poll_ready`] has allowed.
    pub(super) fn write(&mut self, bytes: Bytes) -> Result<(), SocketError> {
        if let Some(accepted) = &self.accepted {
            accepted.moved();
        }
        match &mut self.writer {
            Some(writer) => writer.send(bytes),
            None => Err(SocketError::Closed),
        }
    }

    /// FIN.
    pub(super) fn shut(&mut self) {
        if let Some(mut writer) = self.writer.take() {
            writer.shutdown();
        }
    }
}

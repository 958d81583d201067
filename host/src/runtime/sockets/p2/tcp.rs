//! `wasi:sockets/tcp` 0.2: start and finish, pollables, the two streams.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::{
    DynInputStream, DynOutputStream, DynPollable, InputStream, OutputStream, Pollable, StreamError,
    StreamResult,
};

use super::super::View;
use super::super::tcp::{CHUNK, Connecting, Input, Output, Tcp};
use super::sockets::tcp::{Host, HostTcpSocket, ShutdownType};
use super::sockets::tcp_create_socket;
use super::{SocketResult, code, family, refuse, show_family};
use crate::network::{Listener, SocketError as NetworkError, Stream};

/// A socket with what 0.2 keeps between start and finish.
#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct TcpSocket {
    socket: Tcp,
    step: Step,
    listener: Option<Listener>,
    /// A connection seen while polling, for the next `accept`.
    next: Option<Result<Stream, NetworkError>>,
    halves: Option<(Receiver, Sender)>,
}

enum Step {
    None,
    Bind,
    Listen,
    Connect(Connecting),
    Connected(Result<Stream, NetworkError>),
}

/// The two halves are held by their streams and, for `shutdown`, by the socket. Locked for one poll each.
#[derive(Clone)]
struct Receiver(Arc<Mutex<Input>>);

#[derive(Clone)]
struct Sender(Arc<Mutex<Output>>);

// === impl TcpSocket ===

impl TcpSocket {
    fn new(socket: Tcp) -> Self {
        Self {
            socket,
            step: Step::None,
            listener: None,
            next: None,
            halves: None,
        }
    }

    fn idle(&self) -> SocketResult<()> {
        match self.step {
            Step::None => Ok(()),
            _ => Err(ErrorCode::ConcurrencyConflict.into()),
        }
    }

    fn finish(&mut self, is: impl FnOnce(&Step) -> bool) -> SocketResult<()> {
        if !is(&self.step) {
            return Err(ErrorCode::NotInProgress.into());
        }
        self.step = Step::None;
        Ok(())
    }

    fn poll_connect(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Step::Connect(connecting) = &mut self.step {
            match connecting.as_mut().poll(cx) {
                Poll::Ready(outcome) => self.step = Step::Connected(outcome),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none()
            && let Some(listener) = &mut self.listener
        {
            match listener.poll_accept(cx) {
                Poll::Ready(stream) => self.next = Some(stream),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }

    fn streams(&mut self) -> SocketResult<(DynInputStream, DynOutputStream)> {
        let (input, output) = self.socket.halves().map_err(refuse)?;
        let receiver = Receiver(Arc::new(Mutex::new(input)));
        let sender = Sender(Arc::new(Mutex::new(output)));
        self.halves = Some((receiver.clone(), sender.clone()));
        Ok((Box::new(receiver), Box::new(sender)))
    }
}

#[async_trait::async_trait]
impl Pollable for TcpSocket {
    async fn ready(&mut self) {
        match self.step {
            Step::Connect(_) => poll_fn(|cx| self.poll_connect(cx)).await,
            Step::None if self.listener.is_some() => poll_fn(|cx| self.poll_next(cx)).await,
            _ => {}
        }
    }
}

impl tcp_create_socket::Host for View<'_> {
    fn create_tcp_socket(&mut self, wanted: IpAddressFamily) -> SocketResult<Resource<TcpSocket>> {
        let socket = TcpSocket::new(Tcp::new(family(wanted)));
        self.table
            .push(socket)
            .map_err(|_| ErrorCode::NewSocketLimit.into())
    }
}

impl Host for View<'_> {}

/// A pair of functions for each option: what is set is read back.
macro_rules! options {
    ($($get:ident $set:ident: $type:ty = $field:ident $(, not $zero:literal)?;)*) => {$(
        fn $get(&mut self, this: Resource<TcpSocket>) -> SocketResult<$type> {
            Ok(self.table.get(&this)?.socket.options.$field)
        }

        fn $set(&mut self, this: Resource<TcpSocket>, value: $type) -> SocketResult<()> {
            $(if value == $zero {
                return Err(ErrorCode::InvalidArgument.into());
            })?
            self.table.get_mut(&this)?.socket.options.$field = value;
            Ok(())
        }
    )*};
}

impl HostTcpSocket for View<'_> {
    options! {
        keep_alive_enabled set_keep_alive_enabled: bool = keep_alive;
        keep_alive_idle_time set_keep_alive_idle_time: u64 = keep_alive_idle, not 0;
        keep_alive_interval set_keep_alive_interval: u64 = keep_alive_interval, not 0;
        keep_alive_count set_keep_alive_count: u32 = keep_alive_count, not 0;
        hop_limit set_hop_limit: u8 = hop_limit, not 0;
        receive_buffer_size set_receive_buffer_size: u64 = receive_buffer, not 0;
        send_buffer_size set_send_buffer_size: u64 = send_buffer, not 0;
    }

    fn start_bind(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let socket = self.table.get_mut(&this)?;
        socket.idle()?;
        socket
            .socket
            .bind(self.sockets, SocketAddr::from(address))
            .map_err(refuse)?;
        socket.step = Step::Bind;
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        self.table
            .get_mut(&this)?
            .finish(|step| matches!(step, Step::Bind))
    }

    fn start_connect(
        &mut self,
        this: Resource<TcpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let socket = self.table.get_mut(&this)?;
        socket.idle()?;
        let connecting = socket
            .socket
            .connect(self.sockets, SocketAddr::from(address))
            .map_err(refuse)?;
        socket.step = Step::Connect(connecting);
        Ok(())
    }

    fn finish_connect(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(Resource<DynInputStream>, Resource<DynOutputStream>)> {
        let socket = self.table.get_mut(&this)?;
        if !matches!(socket.step, Step::Connect(_) | Step::Connected(_)) {
            return Err(ErrorCode::NotInProgress.into());
        }
        let _ = socket.poll_connect(&mut Context::from_waker(Waker::noop()));
        let outcome = match std::mem::replace(&mut socket.step, Step::None) {
            Step::Connected(outcome) => outcome,
            step => {
                socket.step = step;
                return Err(ErrorCode::WouldBlock.into());
            }
        };
        socket.socket.finish_connect(outcome).map_err(refuse)?;
        let (input, output) = socket.streams()?;
        Ok((
            self.table.push_child(input, &this)?,
            self.table.push_child(output, &this)?,
        ))
    }

    fn start_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        socket.idle()?;
        if !socket.socket.is_bound() {
            return Err(ErrorCode::InvalidState.into());
        }
        socket.listener = Some(socket.socket.listen(self.sockets).map_err(refuse)?);
        socket.step = Step::Listen;
        Ok(())
    }

    fn finish_listen(&mut self, this: Resource<TcpSocket>) -> SocketResult<()> {
        self.table
            .get_mut(&this)?
            .finish(|step| matches!(step, Step::Listen))
    }

    fn accept(
        &mut self,
        this: Resource<TcpSocket>,
    ) -> SocketResult<(
        Resource<TcpSocket>,
        Resource<DynInputStream>,
        Resource<DynOutputStream>,
    )> {
        let socket = self.table.get_mut(&this)?;
        if socket.listener.is_none() || !matches!(socket.step, Step::None) {
            return Err(ErrorCode::InvalidState.into());
        }
        let _ = socket.poll_next(&mut Context::from_waker(Waker::noop()));
        let stream = match socket.next.take() {
            None => return Err(ErrorCode::WouldBlock.into()),
            Some(Err(_)) => return Err(ErrorCode::ConnectionAborted.into()),
            Some(Ok(stream)) => stream,
        };
        let mut accepted = Tcp::accepted(socket.socket.family, self.sockets, stream);
        accepted.options = socket.socket.options;
        let mut accepted = TcpSocket::new(accepted);
        let (input, output) = accepted.streams()?;
        let accepted = self.table.push(accepted)?;
        let input = self.table.push_child(input, &accepted)?;
        let output = self.table.push_child(output, &accepted)?;
        Ok((accepted, input, output))
    }

    fn local_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let local = self.table.get(&this)?.socket.local().map_err(refuse)?;
        Ok(local.into())
    }

    fn remote_address(&mut self, this: Resource<TcpSocket>) -> SocketResult<IpSocketAddress> {
        let peer = self.table.get(&this)?.socket.peer().map_err(refuse)?;
        Ok(peer.into())
    }

    fn is_listening(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<bool> {
        Ok(self.table.get(&this)?.socket.is_listening())
    }

    fn address_family(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(show_family(self.table.get(&this)?.socket.family))
    }

    fn set_listen_backlog_size(
        &mut self,
        this: Resource<TcpSocket>,
        value: u64,
    ) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        socket.socket.set_backlog(value).map_err(refuse)
    }

    fn subscribe(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, this)
    }

    fn shutdown(&mut self, this: Resource<TcpSocket>, how: ShutdownType) -> SocketResult<()> {
        let socket = self.table.get(&this)?;
        let (receiver, sender) = socket.halves.as_ref().ok_or(ErrorCode::InvalidState)?;
        if matches!(how, ShutdownType::Receive | ShutdownType::Both) {
            receiver.lock().shut();
        }
        if matches!(how, ShutdownType::Send | ShutdownType::Both) {
            sender.lock().shut();
        }
        Ok(())
    }

    fn drop(&mut self, this: Resource<TcpSocket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

// === impl Receiver ===

impl Receiver {
    fn lock(&self) -> MutexGuard<'_, Input> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl InputStream for Receiver {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        if size == 0 {
            return Ok(Bytes::new());
        }
        let mut nobody = Context::from_waker(Waker::noop());
        match self.lock().poll_read(&mut nobody, size.min(CHUNK)) {
            Poll::Pending => Ok(Bytes::new()),
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => Err(StreamError::Closed),
            Poll::Ready(Ok(bytes)) => Ok(bytes),
            Poll::Ready(Err(error)) => Err(failed(error)),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Receiver {
    async fn ready(&mut self) {
        // An error met here is met again as the end of the stream.
        let _ = poll_fn(|cx| self.lock().poll_ready(cx)).await;
    }
}

// === impl Sender ===

impl Sender {
    fn lock(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OutputStream for Sender {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        match self.lock().write(bytes) {
            Err(NetworkError::TooLarge) => {
                Err(StreamError::trap("wrote more than check-write allowed"))
            }
            result => result.map_err(failed),
        }
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        let mut nobody = Context::from_waker(Waker::noop());
        match self.lock().poll_ready(&mut nobody) {
            Poll::Pending => Ok(0),
            Poll::Ready(room) => Ok(room.map_err(failed)?.min(CHUNK)),
        }
    }
}

#[async_trait::async_trait]
impl Pollable for Sender {
    async fn ready(&mut self) {
        let _ = poll_fn(|cx| self.lock().poll_ready(cx)).await;
    }
}

fn failed(error: NetworkError) -> StreamError {
    match error {
        NetworkError::Closed => StreamError::Closed,
        error => StreamError::LastOperationFailed(code(error.into()).into()),
    }
}

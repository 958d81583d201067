//! `wasi:sockets/types.tcp-socket` 0.3: connections as streams of bytes, a listener as a stream of sockets.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::oneshot;
use wasmtime::component::{
    Access, Accessor, Destination, FutureReader, Resource, Source, StreamConsumer, StreamProducer,
    StreamReader, StreamResult,
};
use wasmtime::{AsContextMut, StoreContextMut};

use super::super::tcp::{CHUNK, Input, Output, Tcp};
use super::super::{HasSockets, Sockets, View};
use super::types::{
    Duration, ErrorCode, HostTcpSocket, HostTcpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use super::{SocketResult, refuse};
use crate::network::{Listener, SocketError as NetworkError};
use crate::runtime::sockets::address::Family;

type Outcome = Result<(), ErrorCode>;

/// Accepted connections, as the guest asks for them.
struct Accepting<T: 'static> {
    listener: Listener,
    family: Family,
    sockets: Sockets,
    view: for<'a> fn(&'a mut T) -> View<'a>,
}

/// Bytes from the peer; the outcome is told when they end.
struct Receiving {
    input: Input,
    outcome: Option<oneshot::Sender<Outcome>>,
}

/// Bytes to the peer; the outcome is told when the guest ends them or the connection does.
struct Sending {
    output: Output,
    outcome: Option<oneshot::Sender<Outcome>>,
}

impl<T: 'static> StreamProducer<T> for Accepting<T> {
    type Item = Resource<Tcp>;
    type Buffer = Option<Resource<Tcp>>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        // A read of nothing asks whether there is something; we cannot look without taking, so say: try.
        if destination.remaining(&mut store) == Some(0) {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.listener.poll_accept(cx) {
            Poll::Ready(Ok(stream)) => {
                let socket = Tcp::accepted(self.family, &self.sockets, stream);
                let socket = (self.view)(store.data_mut()).table.push(socket)?;
                destination.set_buffer(Some(socket));
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Err(_)) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T> StreamProducer<T> for Receiving {
    type Item = u8;
    type Buffer = Bytes;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, T>,
        mut destination: Destination<'a, Self::Item, Self::Buffer>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let most = match destination.remaining(store.as_context_mut()) {
            Some(0) => {
                return match self.input.poll_ready(cx) {
                    Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
                    Poll::Pending => Poll::Pending,
                    // What it is, data, end or error, is told by the next read.
                    Poll::Ready(_) => Poll::Ready(Ok(StreamResult::Completed)),
                };
            }
            Some(most) => most.min(CHUNK),
            None => CHUNK,
        };
        match self.input.poll_read(cx, most) {
            Poll::Ready(Ok(bytes)) if bytes.is_empty() => {
                tell(&mut self.outcome, Ok(()));
                Poll::Ready(Ok(StreamResult::Dropped))
            }
            Poll::Ready(Ok(bytes)) => {
                destination.set_buffer(bytes);
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Ready(Err(error)) => {
                tell(
                    &mut self.outcome,
                    Err(ErrorCode::from(super::Fault::from(error))),
                );
                Poll::Ready(Ok(StreamResult::Dropped))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        tell(&mut self.outcome, Ok(()));
    }
}

impl<T> StreamConsumer<T> for Sending {
    type Item = u8;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<T>,
        source: Source<Self::Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let mut source = source.as_direct(store);
        let room = match self.output.poll_ready(cx) {
            Poll::Ready(Ok(room)) => room,
            Poll::Ready(Err(error)) => return self.broken(error),
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
        };
        let bytes = source.remaining();
        let length = bytes.len().min(room).min(CHUNK);
        // A write of nothing asks whether there is room.
        if length > 0 {
            if let Err(error) = self.output.write(Bytes::copy_from_slice(&bytes[..length])) {
                return self.broken(error);
            }
            source.mark_read(length);
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

impl Sending {
    fn broken(&mut self, error: NetworkError) -> Poll<wasmtime::Result<StreamResult>> {
        tell(
            &mut self.outcome,
            Err(ErrorCode::from(super::Fault::from(error))),
        );
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.output.shut();
        tell(&mut self.outcome, Ok(()));
    }
}

fn tell(outcome: &mut Option<oneshot::Sender<Outcome>>, result: Outcome) {
    if let Some(outcome) = outcome.take() {
        // The guest may have dropped the future.
        let _ = outcome.send(result);
    }
}

impl<T: Send + 'static> HostTcpSocketWithStore<T> for HasSockets {
    async fn connect(
        accessor: &Accessor<T, Self>,
        this: Resource<Tcp>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        let connecting = accessor.with(|mut access| {
            let mut view = access.get();
            let sockets = view.sockets;
            view.tcp(&this)?
                .connect(sockets, SocketAddr::from(address))
                .map_err(refuse)
        })?;
        let outcome = connecting.await;
        accessor.with(|mut access| {
            let mut view = access.get();
            view.tcp(&this)?.finish_connect(outcome).map_err(refuse)
        })
    }

    fn listen(
        mut access: Access<'_, T, Self>,
        this: Resource<Tcp>,
    ) -> SocketResult<StreamReader<Resource<Tcp>>> {
        let view = access.getter();
        let mut guest = access.get();
        let sockets = guest.sockets.clone();
        let socket = guest.tcp(&this)?;
        let family = socket.family;
        let listener = socket.listen(&sockets).map_err(refuse)?;
        let accepting = Accepting {
            listener,
            family,
            sockets,
            view,
        };
        StreamReader::new(&mut access, accepting).map_err(super::SocketError::trap)
    }

    fn send(
        mut access: Access<'_, T, Self>,
        this: Resource<Tcp>,
        mut data: StreamReader<u8>,
    ) -> wasmtime::Result<FutureReader<Outcome>> {
        let (outcome, told) = oneshot::channel();
        match access.get().table.get_mut(&this)?.output() {
            Ok(output) => {
                let sending = Sending {
                    output,
                    outcome: Some(outcome),
                };
                data.pipe(&mut access, sending)?;
            }
            Err(fault) => {
                data.close(&mut access)?;
                let _ = outcome.send(Err(fault.into()));
            }
        }
        FutureReader::new(&mut access, told)
    }

    fn receive(
        mut access: Access<'_, T, Self>,
        this: Resource<Tcp>,
    ) -> wasmtime::Result<(StreamReader<u8>, FutureReader<Outcome>)> {
        let (outcome, told) = oneshot::channel();
        let stream = match access.get().table.get_mut(&this)?.input() {
            Ok(input) => {
                let receiving = Receiving {
                    input,
                    outcome: Some(outcome),
                };
                StreamReader::new(&mut access, receiving)?
            }
            Err(fault) => {
                let _ = outcome.send(Err(fault.into()));
                StreamReader::new(&mut access, std::iter::empty())?
            }
        };
        Ok((stream, FutureReader::new(&mut access, told)?))
    }
}

/// A pair of functions for each option: what is set is read back.
macro_rules! options {
    ($($get:ident $set:ident: $type:ty = $field:ident $(, not $zero:literal)?;)*) => {$(
        fn $get(&mut self, this: Resource<Tcp>) -> SocketResult<$type> {
            Ok(self.tcp(&this)?.options.$field)
        }

        fn $set(&mut self, this: Resource<Tcp>, value: $type) -> SocketResult<()> {
            $(if value == $zero {
                return Err(ErrorCode::InvalidArgument.into());
            })?
            self.tcp(&this)?.options.$field = value;
            Ok(())
        }
    )*};
}

impl HostTcpSocket for View<'_> {
    options! {
        get_keep_alive_enabled set_keep_alive_enabled: bool = keep_alive;
        get_keep_alive_idle_time set_keep_alive_idle_time: Duration = keep_alive_idle, not 0;
        get_keep_alive_interval set_keep_alive_interval: Duration = keep_alive_interval, not 0;
        get_keep_alive_count set_keep_alive_count: u32 = keep_alive_count, not 0;
        get_hop_limit set_hop_limit: u8 = hop_limit, not 0;
        get_receive_buffer_size set_receive_buffer_size: u64 = receive_buffer, not 0;
        get_send_buffer_size set_send_buffer_size: u64 = send_buffer, not 0;
    }

    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<Tcp>> {
        let socket = Tcp::new(family.into());
        self.table.push(socket).map_err(super::SocketError::trap)
    }

    fn bind(&mut self, this: Resource<Tcp>, address: IpSocketAddress) -> SocketResult<()> {
        let sockets = self.sockets;
        self.tcp(&this)?
            .bind(sockets, SocketAddr::from(address))
            .map_err(refuse)
    }

    fn get_local_address(&mut self, this: Resource<Tcp>) -> SocketResult<IpSocketAddress> {
        let local = self.tcp(&this)?.local().map_err(refuse)?;
        Ok(local.into())
    }

    fn get_remote_address(&mut self, this: Resource<Tcp>) -> SocketResult<IpSocketAddress> {
        let peer = self.tcp(&this)?.peer().map_err(refuse)?;
        Ok(peer.into())
    }

    fn get_is_listening(&mut self, this: Resource<Tcp>) -> wasmtime::Result<bool> {
        Ok(self.table.get(&this)?.is_listening())
    }

    fn get_address_family(&mut self, this: Resource<Tcp>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&this)?.family.into())
    }

    fn set_listen_backlog_size(&mut self, this: Resource<Tcp>, value: u64) -> SocketResult<()> {
        self.tcp(&this)?.set_backlog(value).map_err(refuse)
    }

    fn drop(&mut self, this: Resource<Tcp>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

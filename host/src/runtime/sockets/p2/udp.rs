//! `wasi:sockets/udp` 0.2: a bound socket and its two datagram streams.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use wasmtime::component::Resource;
use wasmtime_wasi::p2::bindings::sockets::network::{
    ErrorCode, IpAddressFamily, IpSocketAddress, Network,
};
use wasmtime_wasi::p2::{DynPollable, Pollable, SocketError};

use super::super::View;
use super::super::udp::{Flow, Udp};
use super::sockets::udp::{
    Host, HostIncomingDatagramStream, HostOutgoingDatagramStream, HostUdpSocket, IncomingDatagram,
    OutgoingDatagram,
};
use super::sockets::udp_create_socket;
use super::{SocketResult, family, refuse, show_family};
use crate::network::SocketError as NetworkError;

/// Datagrams handed over at once.
const BATCH: usize = 16;
/// Bytes of datagrams handed over at once, about.
const BATCH_BYTES: usize = 64 * 1024;

#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct UdpSocket {
    socket: Udp,
    binding: bool,
}

#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Incoming {
    flow: Flow,
    /// A datagram seen while polling, for the next `receive`.
    next: Option<Result<(Bytes, SocketAddr), NetworkError>>,
}

#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Outgoing {
    flow: Flow,
    permitted: usize,
}

impl udp_create_socket::Host for View<'_> {
    fn create_udp_socket(&mut self, wanted: IpAddressFamily) -> SocketResult<Resource<UdpSocket>> {
        let socket = UdpSocket {
            socket: Udp::new(family(wanted)),
            binding: false,
        };
        self.table
            .push(socket)
            .map_err(|_| ErrorCode::NewSocketLimit.into())
    }
}

impl Host for View<'_> {}

/// A pair of functions for each option: what is set is read back.
macro_rules! options {
    ($($get:ident $set:ident: $type:ty = $field:ident;)*) => {$(
        fn $get(&mut self, this: Resource<UdpSocket>) -> SocketResult<$type> {
            Ok(self.table.get(&this)?.socket.$field)
        }

        fn $set(&mut self, this: Resource<UdpSocket>, value: $type) -> SocketResult<()> {
            if value == 0 {
                return Err(ErrorCode::InvalidArgument.into());
            }
            self.table.get_mut(&this)?.socket.$field = value;
            Ok(())
        }
    )*};
}

impl HostUdpSocket for View<'_> {
    options! {
        unicast_hop_limit set_unicast_hop_limit: u8 = hop_limit;
        receive_buffer_size set_receive_buffer_size: u64 = receive_buffer;
        send_buffer_size set_send_buffer_size: u64 = send_buffer;
    }

    fn start_bind(
        &mut self,
        this: Resource<UdpSocket>,
        network: Resource<Network>,
        address: IpSocketAddress,
    ) -> SocketResult<()> {
        self.table.get(&network)?;
        let socket = self.table.get_mut(&this)?;
        if socket.binding {
            return Err(ErrorCode::ConcurrencyConflict.into());
        }
        socket
            .socket
            .bind(self.sockets, SocketAddr::from(address))
            .map_err(refuse)?;
        socket.binding = true;
        Ok(())
    }

    fn finish_bind(&mut self, this: Resource<UdpSocket>) -> SocketResult<()> {
        let socket = self.table.get_mut(&this)?;
        if !std::mem::take(&mut socket.binding) {
            return Err(ErrorCode::NotInProgress.into());
        }
        Ok(())
    }

    fn stream(
        &mut self,
        this: Resource<UdpSocket>,
        peer: Option<IpSocketAddress>,
    ) -> SocketResult<(Resource<Incoming>, Resource<Outgoing>)> {
        let streams = self
            .table
            .iter_children(&this)?
            .any(|child| child.is::<Incoming>() || child.is::<Outgoing>());
        if streams {
            let error = wasmtime::Error::msg("the streams of this UDP socket are still in use");
            return Err(SocketError::trap(error));
        }
        let socket = &mut self.table.get_mut(&this)?.socket;
        socket.flow().map_err(refuse)?;
        socket.connect(peer.map(SocketAddr::from)).map_err(refuse)?;
        let flow = socket.flow().map_err(refuse)?;
        let incoming = Incoming {
            flow: flow.clone(),
            next: None,
        };
        let outgoing = Outgoing { flow, permitted: 0 };
        Ok((
            self.table.push_child(incoming, &this)?,
            self.table.push_child(outgoing, &this)?,
        ))
    }

    fn local_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let local = self.table.get(&this)?.socket.local().map_err(refuse)?;
        Ok(local.into())
    }

    fn remote_address(&mut self, this: Resource<UdpSocket>) -> SocketResult<IpSocketAddress> {
        let peer = self.table.get(&this)?.socket.peer().map_err(refuse)?;
        Ok(peer.into())
    }

    fn address_family(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<IpAddressFamily> {
        Ok(show_family(self.table.get(&this)?.socket.family))
    }

    fn subscribe(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<UdpSocket>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for UdpSocket {
    async fn ready(&mut self) {
        // Binding is done when it is started.
    }
}

impl HostIncomingDatagramStream for View<'_> {
    fn receive(
        &mut self,
        this: Resource<Incoming>,
        most: u64,
    ) -> SocketResult<Vec<IncomingDatagram>> {
        let stream = self.table.get_mut(&this)?;
        let most = usize::try_from(most).unwrap_or(BATCH).min(BATCH);
        let mut datagrams = Vec::new();
        let mut bytes = 0;
        while datagrams.len() < most && bytes < BATCH_BYTES {
            let _ = stream.poll_next(&mut Context::from_waker(Waker::noop()));
            match stream.next.take() {
                None => break,
                Some(Ok((data, from))) => {
                    bytes += data.len();
                    datagrams.push(IncomingDatagram {
                        data: data.into(),
                        remote_address: from.into(),
                    });
                }
                Some(Err(error)) if datagrams.is_empty() => return Err(refuse(error)),
                Some(error) => {
                    stream.next = Some(error);
                    break;
                }
            }
        }
        Ok(datagrams)
    }

    fn subscribe(&mut self, this: Resource<Incoming>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Incoming>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

impl Incoming {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none() {
            match self.flow.poll_receive(cx) {
                Poll::Ready(datagram) => self.next = Some(datagram),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(())
    }
}

#[async_trait::async_trait]
impl Pollable for Incoming {
    async fn ready(&mut self) {
        poll_fn(|cx| self.poll_next(cx)).await;
    }
}

impl HostOutgoingDatagramStream for View<'_> {
    fn check_send(&mut self, this: Resource<Outgoing>) -> SocketResult<u64> {
        self.table.get_mut(&this)?.permitted = BATCH;
        Ok(BATCH as u64)
    }

    fn send(
        &mut self,
        this: Resource<Outgoing>,
        datagrams: Vec<OutgoingDatagram>,
    ) -> SocketResult<u64> {
        let stream = self.table.get_mut(&this)?;
        if datagrams.len() > stream.permitted {
            let error = wasmtime::Error::msg("sent more datagrams than check-send allowed");
            return Err(SocketError::trap(error));
        }
        if !datagrams.is_empty() {
            stream.permitted = 0;
        }
        let mut sent = 0;
        for datagram in datagrams {
            let to = datagram.remote_address.map(SocketAddr::from);
            match stream.flow.send(datagram.data, to) {
                Ok(()) => sent += 1,
                // The error of a later datagram is met again by the next call.
                Err(_) if sent > 0 => break,
                Err(fault) => return Err(refuse(fault)),
            }
        }
        Ok(sent)
    }

    fn subscribe(&mut self, this: Resource<Outgoing>) -> wasmtime::Result<Resource<DynPollable>> {
        wasmtime_wasi::p2::subscribe(self.table, this)
    }

    fn drop(&mut self, this: Resource<Outgoing>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

#[async_trait::async_trait]
impl Pollable for Outgoing {
    async fn ready(&mut self) {
        // There is always room: what does not fit is lost.
    }
}

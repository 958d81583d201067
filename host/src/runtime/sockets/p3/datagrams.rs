//! `wasi:sockets/types.udp-socket` 0.3: whole datagrams, one call each.

use std::future::poll_fn;
use std::net::SocketAddr;

use wasmtime::component::{Accessor, Resource};

use super::super::udp::Udp;
use super::super::{HasSockets, View};
use super::types::{
    ErrorCode, HostUdpSocket, HostUdpSocketWithStore, IpAddressFamily, IpSocketAddress,
};
use super::{SocketResult, refuse};

impl<T: Send> HostUdpSocketWithStore<T> for HasSockets {
    async fn send(
        accessor: &Accessor<T, Self>,
        this: Resource<Udp>,
        data: Vec<u8>,
        to: Option<IpSocketAddress>,
    ) -> SocketResult<()> {
        accessor.with(|mut access| {
            let mut view = access.get();
            let sockets = view.sockets;
            let socket = view.udp(&this)?;
            socket.bind_if_needed(sockets).map_err(refuse)?;
            let flow = socket.flow().map_err(refuse)?;
            flow.send(data, to.map(SocketAddr::from)).map_err(refuse)
        })
    }

    async fn receive(
        accessor: &Accessor<T, Self>,
        this: Resource<Udp>,
    ) -> SocketResult<(Vec<u8>, IpSocketAddress)> {
        let flow = accessor.with(|mut access| -> SocketResult<_> {
            access.get().udp(&this)?.flow().map_err(refuse)
        })?;
        let (data, from) = poll_fn(|cx| flow.poll_receive(cx)).await.map_err(refuse)?;
        Ok((data.into(), from.into()))
    }
}

/// A pair of functions for each option: what is set is read back.
macro_rules! options {
    ($($get:ident $set:ident: $type:ty = $field:ident;)*) => {$(
        fn $get(&mut self, this: Resource<Udp>) -> SocketResult<$type> {
            Ok(self.udp(&this)?.$field)
        }

        fn $set(&mut self, this: Resource<Udp>, value: $type) -> SocketResult<()> {
            if value == 0 {
                return Err(ErrorCode::InvalidArgument.into());
            }
            self.udp(&this)?.$field = value;
            Ok(())
        }
    )*};
}

impl HostUdpSocket for View<'_> {
    options! {
        get_unicast_hop_limit set_unicast_hop_limit: u8 = hop_limit;
        get_receive_buffer_size set_receive_buffer_size: u64 = receive_buffer;
        get_send_buffer_size set_send_buffer_size: u64 = send_buffer;
    }

    fn create(&mut self, family: IpAddressFamily) -> SocketResult<Resource<Udp>> {
        let socket = Udp::new(family.into());
        self.table.push(socket).map_err(super::SocketError::trap)
    }

    fn bind(&mut self, this: Resource<Udp>, address: IpSocketAddress) -> SocketResult<()> {
        let sockets = self.sockets;
        self.udp(&this)?
            .bind(sockets, SocketAddr::from(address))
            .map_err(refuse)
    }

    fn connect(&mut self, this: Resource<Udp>, peer: IpSocketAddress) -> SocketResult<()> {
        let sockets = self.sockets;
        let socket = self.udp(&this)?;
        socket
            .connect(Some(SocketAddr::from(peer)))
            .map_err(refuse)?;
        socket.bind_if_needed(sockets).map_err(refuse)
    }

    fn disconnect(&mut self, this: Resource<Udp>) -> SocketResult<()> {
        let socket = self.udp(&this)?;
        socket.peer().map_err(refuse)?;
        socket.connect(None).map_err(refuse)
    }

    fn get_local_address(&mut self, this: Resource<Udp>) -> SocketResult<IpSocketAddress> {
        let local = self.udp(&this)?.local().map_err(refuse)?;
        Ok(local.into())
    }

    fn get_remote_address(&mut self, this: Resource<Udp>) -> SocketResult<IpSocketAddress> {
        let peer = self.udp(&this)?.peer().map_err(refuse)?;
        Ok(peer.into())
    }

    fn get_address_family(&mut self, this: Resource<Udp>) -> wasmtime::Result<IpAddressFamily> {
        Ok(self.table.get(&this)?.family.into())
    }

    fn drop(&mut self, this: Resource<Udp>) -> wasmtime::Result<()> {
        self.table.delete(this)?;
        Ok(())
    }
}

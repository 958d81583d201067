//! `wasi:sockets` 0.2: the interfaces that open sockets or look up names, bound to our own resources.
//! `network` and `instance-network` stay wasmtime's: they are only tokens.

mod lookup;
mod tcp;
mod udp;

use wasmtime::component::{Linker, Resource};
use wasmtime_wasi::p2::SocketError;
use wasmtime_wasi::p2::bindings::sockets::network::{
    self, ErrorCode, HostNetwork, IpAddressFamily, Network,
};

use super::address::Family;
use super::{Fault, HasSockets, View};
use crate::network::SocketError as NetworkError;
use crate::runtime::guest::Guest;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/p2",
        world: "coracle:node/sockets",
        imports: { default: trappable },
        with: {
            "wasi:io": wasmtime_wasi::p2::bindings::io,
            "wasi:clocks": wasmtime_wasi::p2::bindings::clocks,
            "wasi:sockets/network": wasmtime_wasi::p2::bindings::sockets::network,
            "wasi:sockets/tcp.tcp-socket": super::tcp::TcpSocket,
            "wasi:sockets/udp.udp-socket": super::udp::UdpSocket,
            "wasi:sockets/udp.incoming-datagram-stream": super::udp::Incoming,
            "wasi:sockets/udp.outgoing-datagram-stream": super::udp::Outgoing,
            "wasi:sockets/ip-name-lookup.resolve-address-stream": super::lookup::Lookup,
        },
        trappable_error_type: {
            "wasi:sockets/network.error-code" => wasmtime_wasi::p2::SocketError,
        },
        require_store_data_send: true,
    });
}

use bindings::wasi::sockets;

type SocketResult<T> = Result<T, SocketError>;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let view = Guest::socket_view;
    sockets::tcp::add_to_linker::<_, HasSockets>(linker, view)?;
    sockets::tcp_create_socket::add_to_linker::<_, HasSockets>(linker, view)?;
    sockets::udp::add_to_linker::<_, HasSockets>(linker, view)?;
    sockets::udp_create_socket::add_to_linker::<_, HasSockets>(linker, view)?;
    sockets::ip_name_lookup::add_to_linker::<_, HasSockets>(linker, view)?;
    Ok(())
}

/// Our interfaces report errors through this one, so its conversions are needed on our view too.
impl network::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }

    fn network_error_code(
        &mut self,
        error: Resource<wasmtime::Error>,
    ) -> wasmtime::Result<Option<ErrorCode>> {
        Ok(self.table.get(&error)?.downcast_ref::<ErrorCode>().copied())
    }
}

impl HostNetwork for View<'_> {
    fn drop(&mut self, network: Resource<Network>) -> wasmtime::Result<()> {
        self.table.delete(network)?;
        Ok(())
    }
}

fn code(fault: Fault) -> ErrorCode {
    match fault {
        Fault::InvalidArgument => ErrorCode::InvalidArgument,
        Fault::InvalidState => ErrorCode::InvalidState,
        Fault::NotSupported => ErrorCode::NotSupported,
        Fault::Network(error) => match error {
            NetworkError::Refused => ErrorCode::ConnectionRefused,
            NetworkError::Reset => ErrorCode::ConnectionReset,
            NetworkError::Closed => ErrorCode::InvalidState,
            NetworkError::InUse => ErrorCode::AddressInUse,
            NetworkError::NotAvailable => ErrorCode::AddressNotBindable,
            NetworkError::Unreachable => ErrorCode::RemoteUnreachable,
            NetworkError::TimedOut => ErrorCode::Timeout,
            NetworkError::Denied => ErrorCode::AccessDenied,
            NetworkError::TooMany => ErrorCode::NewSocketLimit,
            NetworkError::TooLarge => ErrorCode::DatagramTooLarge,
        },
    }
}

fn refuse(fault: impl Into<Fault>) -> SocketError {
    code(fault.into()).into()
}

fn family(family: IpAddressFamily) -> Family {
    match family {
        IpAddressFamily::Ipv4 => Family::V4,
        IpAddressFamily::Ipv6 => Family::V6,
    }
}

fn show_family(family: Family) -> IpAddressFamily {
    match family {
        Family::V4 => IpAddressFamily::Ipv4,
        Family::V6 => IpAddressFamily::Ipv6,
    }
}

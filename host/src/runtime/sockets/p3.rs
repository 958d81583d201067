//! `wasi:sockets` 0.3: `types` bound to our own resources, `ip-name-lookup` answered by the pod network.

mod datagrams;
mod streams;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::Arc;

use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::TrappableError;
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup;

use super::address::Family;
use super::tcp::Tcp;
use super::udp::Udp;
use super::{Fault, HasSockets, View};
use crate::network::{ResolveError, SocketError as NetworkError};
use crate::runtime::guest::Guest;

mod bindings {
    wasmtime::component::bindgen!({
        path: "wit/p3",
        world: "coracle:node/sockets",
        imports: {
            "wasi:sockets/types.[method]tcp-socket.listen": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.send": store | trappable,
            "wasi:sockets/types.[method]tcp-socket.receive": store | trappable,
            default: trappable,
        },
        with: {
            "wasi:clocks/types": wasmtime_wasi::p3::bindings::clocks::types,
            "wasi:sockets/types.tcp-socket": crate::runtime::sockets::tcp::Tcp,
            "wasi:sockets/types.udp-socket": crate::runtime::sockets::udp::Udp,
        },
        trappable_error_type: {
            "wasi:sockets/types.error-code" => super::SocketError,
        },
        require_store_data_send: true,
    });
}

use bindings::wasi::sockets::types;
use types::{ErrorCode, IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, Ipv6SocketAddress};

type SocketError = TrappableError<ErrorCode>;
type SocketResult<T> = Result<T, SocketError>;

/// Longest name DNS knows, as text.
const LONGEST: usize = 254;

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    types::add_to_linker::<_, HasSockets>(linker, Guest::socket_view)?;
    ip_name_lookup::add_to_linker::<_, HasSockets>(linker, Guest::socket_view)?;
    Ok(())
}

impl types::Host for View<'_> {
    fn convert_error_code(&mut self, error: SocketError) -> wasmtime::Result<ErrorCode> {
        error.downcast()
    }
}

impl View<'_> {
    fn tcp(&mut self, this: &Resource<Tcp>) -> SocketResult<&mut Tcp> {
        self.table.get_mut(this).map_err(SocketError::trap)
    }

    fn udp(&mut self, this: &Resource<Udp>) -> SocketResult<&mut Udp> {
        self.table.get_mut(this).map_err(SocketError::trap)
    }
}

impl ip_name_lookup::Host for View<'_> {}

impl<T> ip_name_lookup::HostWithStore<T> for HasSockets {
    async fn resolve_addresses(
        accessor: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<
        Result<
            Vec<wasmtime_wasi::p3::bindings::sockets::types::IpAddress>,
            ip_name_lookup::ErrorCode,
        >,
    > {
        if name.is_empty() || name.len() > LONGEST {
            return Ok(Err(ip_name_lookup::ErrorCode::InvalidArgument));
        }
        let network = accessor.with(|mut access| Arc::clone(&access.get().sockets.network));
        Ok(match network.resolve(&name).await {
            // The interface promises at least one.
            Ok(addresses) if addresses.is_empty() => {
                Err(ip_name_lookup::ErrorCode::NameUnresolvable)
            }
            Ok(addresses) => Ok(addresses.into_iter().map(Into::into).collect()),
            Err(ResolveError::NotFound) => Err(ip_name_lookup::ErrorCode::NameUnresolvable),
            Err(ResolveError::Temporary) => {
                Err(ip_name_lookup::ErrorCode::TemporaryResolverFailure)
            }
        })
    }
}

impl From<Fault> for ErrorCode {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::InvalidArgument => Self::InvalidArgument,
            Fault::InvalidState => Self::InvalidState,
            Fault::NotSupported => Self::NotSupported,
            Fault::Network(error) => match error {
                NetworkError::Refused => Self::ConnectionRefused,
                NetworkError::Reset => Self::ConnectionReset,
                NetworkError::Closed => Self::ConnectionBroken,
                NetworkError::InUse => Self::AddressInUse,
                NetworkError::NotAvailable => Self::AddressNotBindable,
                NetworkError::Unreachable => Self::RemoteUnreachable,
                NetworkError::TimedOut => Self::Timeout,
                NetworkError::Denied => Self::AccessDenied,
                NetworkError::TooMany => Self::Other(Some(error.to_string())),
                NetworkError::TooLarge => Self::DatagramTooLarge,
            },
        }
    }
}

fn refuse(fault: impl Into<Fault>) -> SocketError {
    ErrorCode::from(fault.into()).into()
}

impl From<IpAddressFamily> for Family {
    fn from(family: IpAddressFamily) -> Self {
        match family {
            IpAddressFamily::Ipv4 => Self::V4,
            IpAddressFamily::Ipv6 => Self::V6,
        }
    }
}

impl From<Family> for IpAddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Ipv4,
            Family::V6 => Self::Ipv6,
        }
    }
}

impl From<IpSocketAddress> for SocketAddr {
    fn from(address: IpSocketAddress) -> Self {
        match address {
            IpSocketAddress::Ipv4(Ipv4SocketAddress { port, address }) => {
                let (a, b, c, d) = address;
                SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port).into()
            }
            IpSocketAddress::Ipv6(v6) => {
                let (a, b, c, d, e, f, g, h) = v6.address;
                let ip = Ipv6Addr::new(a, b, c, d, e, f, g, h);
                SocketAddrV6::new(ip, v6.port, v6.flow_info, v6.scope_id).into()
            }
        }
    }
}

impl From<SocketAddr> for IpSocketAddress {
    fn from(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(v4) => {
                let [a, b, c, d] = v4.ip().octets();
                Self::Ipv4(Ipv4SocketAddress {
                    port: v4.port(),
                    address: (a, b, c, d),
                })
            }
            SocketAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h] = v6.ip().segments();
                Self::Ipv6(Ipv6SocketAddress {
                    port: v6.port(),
                    flow_info: v6.flowinfo(),
                    address: (a, b, c, d, e, f, g, h),
                    scope_id: v6.scope_id(),
                })
            }
        }
    }
}

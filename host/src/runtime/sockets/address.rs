//! Which addresses a socket of a family may be given, and how the pod's IPv4 addresses look through an IPv6 socket. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::Fault;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// An address to bind to. WASI's IPv6 sockets are IPv6 only: they know no mapped addresses.
    pub(super) fn local(self, address: SocketAddr) -> Result<SocketAddr, Fault> {
        let fits = match address.ip() {
            IpAddr::V4(_) => self == Self::V4,
            IpAddr::V6(ip) => self == Self::V6 && ip.to_ipv4_mapped().is_none(),
        };
        if fits && !address.ip().is_multicast() {
            Ok(address)
        } else {
            Err(Fault::InvalidArgument)
        }
    }

    /// An address to talk to.
    pub(super) fn remote(self, address: SocketAddr) -> Result<SocketAddr, Fault> {
        if address.ip().is_unspecified() || address.port() == 0 {
            return Err(Fault::InvalidArgument);
        }
        self.local(address)
    }

    /// How an address of the pod network, which is IPv4, is shown to the guest.
    pub(super) fn show(self, address: SocketAddr) -> SocketAddr {
        let IpAddr::V4(ip) = address.ip() else {
            return address;
        };
        if self == Self::V4 {
            return address;
        }
        let ip = match ip {
            Ipv4Addr::UNSPECIFIED => Ipv6Addr::UNSPECIFIED,
            Ipv4Addr::LOCALHOST => Ipv6Addr::LOCALHOST,
            ip => ip.to_ipv6_mapped(),
        };
        SocketAddr::from((ip, address.port()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(family: Family, address: &str, local: bool, remote: bool) {
        let address: SocketAddr = address.parse().unwrap();
        assert_eq!(family.local(address).is_ok(), local, "bind {address}");
        assert_eq!(family.remote(address).is_ok(), remote, "connect {address}");
    }

    #[test]
    fn a_socket_takes_addresses_of_its_own_family() {
        check(Family::V4, "0.0.0.0:80", true, false);
        check(Family::V4, "10.0.0.1:0", true, false);
        check(Family::V4, "10.0.0.1:80", true, true);
        check(Family::V4, "[::1]:80", false, false);
        check(Family::V4, "224.0.0.1:80", false, false);
        check(Family::V6, "[::1]:80", true, true);
        check(Family::V6, "[::ffff:10.0.0.1]:80", false, false);
        check(Family::V6, "10.0.0.1:80", false, false);
    }

    #[test]
    fn an_ipv6_socket_shows_ipv6_addresses() {
        let show = |address: &str| Family::V6.show(address.parse().unwrap()).to_string();
        assert_eq!(show("0.0.0.0:80"), "[::]:80");
        assert_eq!(show("127.0.0.1:80"), "[::1]:80");
        assert_eq!(show("100.64.0.2:80"), "[::ffff:100.64.0.2]:80");
    }
}

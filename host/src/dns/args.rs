//! Flags of a node's DNS. Parses; starts nothing.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::Ipv4Net;
use types::well_known::DNS_ADDRESS;

use super::server::{Config, PORT};

/// Where the server listens when nobody says: not on 53, which needs privileges and is often taken.
const DEFAULT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10_053);

#[derive(clap::Args, Clone, Debug, Default)]
#[group(skip)]
pub struct DnsArgs {
    /// Where this node answers DNS for programs that are no pods, UDP and TCP; `off`: nowhere. May be repeated
    /// [default: 127.0.0.1:10053, unless it is taken]
    #[arg(long = "dns-address", value_name = "IP:PORT")]
    pub addresses: Vec<Listen>,

    /// Server to ask for names outside the cluster, for pods and for other programs; may be repeated [default: those of
    /// /etc/resolv.conf]
    #[arg(long = "dns-upstream", value_name = "IP[:PORT]")]
    pub upstream: Vec<Server>,

    /// Seconds that answers about the cluster may be kept
    #[arg(long = "dns-ttl", value_name = "SECONDS", default_value_t = Config::default().ttl,
        value_parser = clap::value_parser!(u32).range(0..=3600))]
    pub ttl: u32,

    /// Where pods find DNS [default: the tenth address of the Services' range]
    #[arg(long, value_name = "IP")]
    pub cluster_dns: Option<Ipv4Addr>,
}

/// `127.0.0.1:10053`, or `off`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Listen {
    Off,
    At(SocketAddr),
}

/// `10.0.0.53`, or with a port
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Server(pub SocketAddr);

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not {1}")]
pub struct AddressError(String, &'static str);

impl FromStr for Listen {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "off" {
            return Ok(Self::Off);
        }
        let address = text
            .parse()
            .map_err(|_| AddressError(text.to_owned(), "IP:PORT or off"));
        address.map(Self::At)
    }
}

impl FromStr for Server {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let with_port = text.parse::<SocketAddr>().ok();
        let alone = || {
            text.parse()
                .ok()
                .map(|ip: IpAddr| SocketAddr::new(ip, PORT))
        };
        let address = with_port.or_else(alone);
        address
            .map(Self)
            .ok_or_else(|| AddressError(text.to_owned(), "IP or IP:PORT"))
    }
}

// === impl DnsArgs ===

impl DnsArgs {
    /// What they mean in a cluster whose Services are in `services`.
    pub fn config(&self, services: Ipv4Net) -> Config {
        let mut listen: Vec<SocketAddr> = self
            .addresses
            .iter()
            .filter_map(|address| match address {
                Listen::Off => None,
                Listen::At(address) => Some(*address),
            })
            .collect();
        let optional = self.addresses.is_empty();
        if optional {
            listen.push(DEFAULT);
        }
        Config {
            cluster_address: self.cluster_dns.or_else(|| tenth(services)),
            listen,
            optional,
            upstream: self.upstream.iter().map(|server| server.0).collect(),
            ttl: self.ttl,
            ..Config::default()
        }
    }
}

/// `None` when the range is smaller than that.
pub(crate) fn tenth(services: Ipv4Net) -> Option<Ipv4Addr> {
    let address = Ipv4Addr::from(u32::from(services.network()).checked_add(DNS_ADDRESS)?);
    (services.contains(&address) && address != services.broadcast()).then_some(address)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        dns: DnsArgs,
    }

    fn config(flags: &[&str]) -> Config {
        let line = std::iter::once("x").chain(flags.iter().copied());
        let dns = Line::try_parse_from(line).unwrap().dns;
        dns.config("10.96.0.0/16".parse().unwrap())
    }

    #[test]
    fn flags_say_where_dns_is() {
        let default = config(&[]);
        assert_eq!(default.listen, [DEFAULT]);
        assert!(default.optional);
        assert_eq!(default.cluster_address, Some(Ipv4Addr::new(10, 96, 0, 10)));
        assert!(config(&["--dns-address", "off"]).listen.is_empty());
        let given = config(&[
            "--dns-address=10.0.0.1:53",
            "--dns-address=[::1]:53",
            "--dns-upstream=9.9.9.9",
            "--dns-upstream=[::1]:54",
            "--dns-ttl=30",
            "--cluster-dns=10.96.0.53",
        ]);
        assert_eq!(given.listen.len(), 2);
        assert!(!given.optional);
        let upstream: Vec<String> = given.upstream.iter().map(ToString::to_string).collect();
        assert_eq!(upstream, ["9.9.9.9:53", "[::1]:54"]);
        assert_eq!(
            (given.ttl, given.cluster_address),
            (30, Some(Ipv4Addr::new(10, 96, 0, 53)))
        );
        for wrong in [
            "--dns-address=10.0.0.1",
            "--dns-upstream=example.com",
            "--dns-ttl=-1",
        ] {
            assert!(Line::try_parse_from(["x", wrong]).is_err(), "{wrong}");
        }
        assert_eq!(tenth("10.0.0.0/29".parse().unwrap()), None);
    }
}

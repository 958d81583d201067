//! Where an API server is: a host and a port. Parses and prints; looks nothing up.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

/// What `coracle server` listens on by default.
const PORT: u16 = 6443;

/// `https://192.0.2.7:6443`, `control.example.org`, `[2001:db8::1]:443`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Address {
    host: String,
    port: u16,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{text:?} is no address of an API server such as https://192.0.2.7:6443: {why}")]
pub struct AddressError {
    text: String,
    why: &'static str,
}

// === impl Address ===

impl Address {
    /// As the resolver takes it.
    pub(crate) fn target(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    pub(crate) fn is_loopback(&self) -> bool {
        match self.host.parse::<IpAddr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => self.host == "localhost",
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Self {
        Self {
            host: address.ip().to_string(),
            port: address.port(),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = |why| AddressError {
            text: text.to_owned(),
            why,
        };
        let rest = match text.split_once("://") {
            Some(("https", rest)) => rest,
            Some(_) => return Err(wrong("servers speak https only")),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(wrong("wanted a host and a port, and nothing else"));
        }
        if let Ok(address) = rest.parse::<IpAddr>() {
            return Ok(SocketAddr::new(address, PORT).into());
        }
        let (host, port) = match rest.rsplit_once(':') {
            Some((host, port)) if !host.ends_with(':') => {
                let port = port.parse().map_err(|_| wrong("the port is no port"))?;
                (host, port)
            }
            _ => (rest, PORT),
        };
        let host = match host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
        {
            Some(inner) if inner.parse::<std::net::Ipv6Addr>().is_ok() => inner,
            Some(_) => return Err(wrong("there is no IPv6 address in the brackets")),
            None => host,
        };
        if host.is_empty() {
            return Err(wrong("there is no host in it"));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "https://[{}]:{}", self.host, self.port)
        } else {
            write!(f, "https://{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, printed) in [
            ("https://192.0.2.7:6443", "https://192.0.2.7:6443"),
            ("192.0.2.7", "https://192.0.2.7:6443"),
            (
                "https://control.example.org/",
                "https://control.example.org:6443",
            ),
            ("control:443", "https://control:443"),
            ("2001:db8::1", "https://[2001:db8::1]:6443"),
            ("https://[2001:db8::1]:443", "https://[2001:db8::1]:443"),
        ] {
            let address: Address = text.parse().expect(text);
            assert_eq!(address.to_string(), printed, "{text}");
            assert_eq!(printed.parse::<Address>().as_ref(), Ok(&address));
        }
        for wrong in ["http://a", "", "https://", "a:x", "a/b", "[x]:1", "u@h"] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
    }
}

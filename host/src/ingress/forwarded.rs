//! Who the client is, and what backends are told about it: `X-Forwarded-…`. What a client says of itself is believed only
//! when it is a trusted proxy. Pure.

use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use ipnet::IpNet;

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PORT: HeaderName = HeaderName::from_static("x-forwarded-port");
const PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");
const REAL_IP: HeaderName = HeaderName::from_static("x-real-ip");

/// What is known of the client of one request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Client {
    /// The first address from our side that is no trusted proxy; `None` when a trusted one gives none that can be read.
    pub(super) address: Option<IpAddr>,
    /// Did it speak https, with us or with a trusted proxy?
    pub(super) https: bool,
    trusted: bool,
    peer: IpAddr,
}

// === impl Client ===

impl Client {
    pub(super) fn of(peer: SocketAddr, tls: bool, headers: &HeaderMap, trusted: &[IpNet]) -> Self {
        let is_trusted = |address: &IpAddr| trusted.iter().any(|net| net.contains(address));
        let peer = peer.ip();
        let mut client = Self {
            address: Some(peer),
            https: tls,
            trusted: is_trusted(&peer),
            peer,
        };
        if !client.trusted {
            return client;
        }
        let chain: Vec<&str> = headers
            .get_all(FOR)
            .iter()
            // What is no text is no address either.
            .map(|value| value.to_str().unwrap_or("?"))
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|hop| !hop.is_empty())
            .collect();
        for hop in chain.into_iter().rev() {
            client.address = address(hop);
            if !client.address.as_ref().is_some_and(is_trusted) {
                break;
            }
        }
        if let Some(proto) = headers.get(PROTO) {
            client.https = proto.as_bytes().eq_ignore_ascii_case(b"https");
        }
        client
    }

    /// Whether it may come in. Who is not known may not where somebody may not.
    pub(super) fn may(&self, allow: &[IpNet], deny: &[IpNet]) -> bool {
        let Some(address) = self.address else {
            return allow.is_empty() && deny.is_empty();
        };
        let listed = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        !listed(deny) && (allow.is_empty() || listed(allow))
    }

    /// Writes what backends are told. `host` is what the client asked for, `port` what it stands for without a port.
    pub(super) fn tell(&self, headers: &mut HeaderMap, host: &HeaderValue, tls: bool) {
        let port = port_of(host.as_bytes()).unwrap_or(if tls { "443" } else { "80" });
        let port = HeaderValue::from_str(port);
        let proto = HeaderValue::from_static(if tls { "https" } else { "http" });
        if self.trusted {
            let mut chain: Vec<u8> = Vec::new();
            for value in headers.get_all(FOR) {
                chain.extend_from_slice(value.as_bytes());
                chain.extend_from_slice(b", ");
            }
            chain.extend_from_slice(self.peer.to_string().as_bytes());
            if let Ok(chain) = HeaderValue::from_bytes(&chain) {
                headers.insert(FOR, chain);
            }
            let mut keep = |name: HeaderName, value: Option<HeaderValue>| {
                if let Some(value) = value.filter(|_| !headers.contains_key(&name)) {
                    headers.insert(name, value);
                }
            };
            keep(PROTO, Some(proto));
            keep(HOST, Some(host.clone()));
            keep(PORT, port.ok());
        } else {
            if let Ok(own) = HeaderValue::from_str(&self.peer.to_string()) {
                headers.insert(FOR, own);
            }
            headers.insert(PROTO, proto);
            headers.insert(HOST, host.clone());
            if let Ok(port) = port {
                headers.insert(PORT, port);
            }
            headers.remove(PREFIX);
            headers.remove(header::FORWARDED);
        }
        let address = self.address.map(|address| address.to_string());
        match address.map(|address| HeaderValue::from_str(&address)) {
            Some(Ok(address)) => drop(headers.insert(REAL_IP, address)),
            _ => drop(headers.remove(REAL_IP)),
        }
    }
}

/// As proxies write it: `192.0.2.9`, `192.0.2.9:4711`, `2001:db8::9`, `[2001:db8::9]`, `[2001:db8::9]:4711`.
fn address(hop: &str) -> Option<IpAddr> {
    let bracketed = hop.strip_prefix('[').and_then(|hop| hop.strip_suffix(']'));
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    let address = bracketed.unwrap_or(hop).parse::<IpAddr>().ok();
    address
        .or_else(with_port)
        .map(|address| address.to_canonical())
}

pub(super) fn set_prefix(headers: &mut HeaderMap, prefix: &HeaderValue) {
    headers.insert(PREFIX, prefix.clone());
}

/// `8080` of `a:8080`, `[::1]:8080`.
pub(super) fn port_of(host: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(host).ok()?;
    let (rest, port) = text.rsplit_once(':')?;
    let bare = !rest.contains(':') || rest.ends_with(']');
    (bare && !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())).then_some(port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (name.clone(), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn a_stranger_is_not_believed() {
        let peer = "192.0.2.9:5".parse().unwrap();
        let mut sent = headers(&[
            (FOR, "10.0.0.1"),
            (PROTO, "https"),
            (header::FORWARDED, "for=10.0.0.1"),
        ]);
        let client = Client::of(peer, false, &sent, &["127.0.0.0/8".parse().unwrap()]);
        assert!(!client.https);
        client.tell(&mut sent, &HeaderValue::from_static("shop:8080"), false);
        assert_eq!(sent[FOR], "192.0.2.9");
        assert_eq!(sent[PROTO], "http");
        assert_eq!(sent[HOST], "shop:8080");
        assert_eq!(sent[PORT], "8080");
        assert_eq!(sent[REAL_IP], "192.0.2.9");
        assert!(!sent.contains_key(header::FORWARDED));
    }

    #[test]
    fn a_trusted_proxy_is_followed_back_to_its_client() {
        let peer = "127.0.0.1:5".parse().unwrap();
        let mut sent = headers(&[
            (FOR, "6.6.6.6, 203.0.113.4, 10.0.0.2"),
            (PROTO, "https"),
            (HOST, "outer"),
        ]);
        let trusted = [
            "127.0.0.0/8".parse().unwrap(),
            "10.0.0.0/8".parse().unwrap(),
        ];
        let client = Client::of(peer, false, &sent, &trusted);
        assert_eq!(client.address, Some("203.0.113.4".parse().unwrap()));
        assert!(client.https);
        client.tell(&mut sent, &HeaderValue::from_static("inner"), false);
        assert_eq!(sent[FOR], "6.6.6.6, 203.0.113.4, 10.0.0.2, 127.0.0.1");
        assert_eq!(
            (&sent[PROTO], &sent[HOST]),
            (
                &HeaderValue::from_static("https"),
                &HeaderValue::from_static("outer")
            )
        );
        assert_eq!(sent[REAL_IP], "203.0.113.4");
    }

    #[test]
    fn a_client_that_cannot_be_read_may_not_where_somebody_may_not() {
        let peer = "127.0.0.1:5".parse().unwrap();
        let trusted = ["127.0.0.0/8".parse().unwrap()];
        let deny: [IpNet; 2] = ["203.0.113.0/24", "2001:db8::/32"].map(|net| net.parse().unwrap());
        for (hops, is_denied) in [
            ("203.0.113.4:4711", true),
            ("203.0.113.4, ", true),
            ("[2001:db8::9]", true),
            ("[2001:db8::9]:4711", true),
            ("203.0.113.4, unknown", true),
            ("203.0.113.4, 192.0.2.1:80", false),
            ("", false),
        ] {
            let value = HeaderValue::from_static(hops);
            let mut sent = HeaderMap::from_iter([(FOR, value)]);
            let client = Client::of(peer, false, &sent, &trusted);
            assert_eq!(client.may(&[], &deny), !is_denied, "{hops}: {client:?}");
            if client.address.is_none() {
                assert!(client.may(&[], &[]) && !client.may(&deny, &[]));
                sent.insert(REAL_IP, HeaderValue::from_static("10.0.0.1"));
                client.tell(&mut sent, &HeaderValue::from_static("shop"), false);
                assert!(!sent.contains_key(REAL_IP));
            }
        }
    }

    #[test]
    fn ports_are_found_behind_names_and_addresses() {
        assert_eq!(port_of(b"a:80"), Some("80"));
        assert_eq!(port_of(b"[::1]:80"), Some("80"));
        assert_eq!(port_of(b"[::1]"), None);
        assert_eq!(port_of(b"a"), None);
    }
}

//! The cluster's zone: question × table → answer. PURE.
//!
//! ```text
//! <service>.<ns>.svc.<domain>              ClusterIP, or the ready addresses of a headless Service, or an alias
//! <hostname>.<service>.<ns>.svc.<domain>   one endpoint, by its hostname or as 100-64-0-2
//! _<port>._<proto>.<service>.<ns>.svc.…    SRV
//! 100-64-0-2.<ns>.pod.<domain>             that address
//! dns-version.<domain>                     TXT: the version of Kubernetes' DNS specification
//! ns.dns.<domain>                          whoever answers
//! ```

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::Ipv4Net;

use crate::network::namespaces::Namespaces;
use crate::network::table::{Host, Kind, Protocol, Service, Table};

/// What the zone is made of.
#[derive(Clone, Copy)]
pub(crate) struct Zone<'a> {
    pub(crate) table: &'a Table,
    pub(crate) namespaces: &'a Namespaces,
    /// `cluster.local`
    pub(crate) domain: &'a str,
}

/// What the zone says of a name.
#[derive(Debug)]
pub(crate) enum Answer<'a> {
    Service(&'a Arc<Service>),
    /// One endpoint of a Service: several when it is in several slices.
    Hosts(&'a Arc<Service>, Vec<&'a Host>),
    /// A pod, by its address.
    Pod(IpAddr),
    /// A port of a Service, by name.
    Port(Vec<Srv>),
    /// The domain itself.
    Apex,
    /// `ns.dns`
    NameServer,
    /// `dns-version`
    Version,
    /// The name exists, but has no records.
    NoData,
    NxDomain,
    /// Outside the cluster's domain.
    NotOurs,
}

/// One SRV record, and where its target is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Srv {
    pub(crate) target: String,
    pub(crate) port: u16,
    pub(crate) addresses: Vec<IpAddr>,
}

/// What the zone says of an address.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Pointer {
    Names(Vec<String>),
    /// Addresses of the cluster begin so.
    NoData,
    NxDomain,
    NotOurs,
}

/// The names of endpoints by their addresses. Made of one table, for that table.
#[derive(Debug, Default)]
pub(crate) struct Reverse {
    names: HashMap<IpAddr, Vec<String>>,
}

// === impl Zone ===

impl<'a> Zone<'a> {
    /// `name` is lower case, without a final dot.
    pub(crate) fn answer(&self, name: &str) -> Answer<'a> {
        let Some(rest) = relative(self.domain, name) else {
            return Answer::NotOurs;
        };
        let mut labels = rest.rsplit('.').filter(|label| !label.is_empty());
        match (labels.next(), labels.next(), labels.next()) {
            (None, ..) => Answer::Apex,
            (Some("dns-version"), None, _) => Answer::Version,
            (Some("dns"), Some("ns"), None) => Answer::NameServer,
            (Some("svc" | "pod" | "dns"), None, _) => Answer::NoData,
            (Some("svc"), Some(namespace), Some(service)) => {
                self.in_service(namespace, service, labels)
            }
            (Some("pod"), Some(namespace), Some(dashed)) => {
                match from_dashed(dashed).filter(|_| labels.next().is_none()) {
                    Some(ip) if self.has(namespace) => Answer::Pod(ip),
                    _ => Answer::NxDomain,
                }
            }
            (Some("svc" | "pod"), Some(namespace), None) if self.has(namespace) => Answer::NoData,
            _ => Answer::NxDomain,
        }
    }

    fn has(&self, namespace: &str) -> bool {
        self.table.has_namespace(namespace) || self.namespaces.has(namespace)
    }

    fn in_service<'b>(
        &self,
        namespace: &str,
        name: &str,
        mut labels: impl Iterator<Item = &'b str>,
    ) -> Answer<'a> {
        let Some(service) = self.table.get(namespace, name) else {
            return Answer::NxDomain;
        };
        match (labels.next(), labels.next(), labels.next()) {
            (None, ..) => Answer::Service(service),
            (Some(protocol), None, _) if protocol.starts_with('_') => {
                let known =
                    ports(service).any(|(port, p, _)| !port.is_empty() && named(protocol, p));
                if known {
                    Answer::NoData
                } else {
                    Answer::NxDomain
                }
            }
            (Some(protocol), Some(port), None) if protocol.starts_with('_') => {
                let wanted = |name: &str, p: Protocol| labelled(port, name) && named(protocol, p);
                if ports(service).any(|(name, p, _)| wanted(name, p)) {
                    Answer::Port(self.srv(service, wanted))
                } else {
                    Answer::NxDomain
                }
            }
            (Some(host), None, _) => {
                let hosts = service.hosts.iter().filter(|h| host_name(h) == host);
                let hosts: Vec<&Host> = hosts.collect();
                if hosts.is_empty() {
                    Answer::NxDomain
                } else {
                    Answer::Hosts(service, hosts)
                }
            }
            _ => Answer::NxDomain,
        }
    }

    /// SRV records of those ports of `service` that are wanted, by name and protocol.
    pub(crate) fn srv(
        &self,
        service: &Service,
        wanted: impl Fn(&str, Protocol) -> bool,
    ) -> Vec<Srv> {
        match service.kind {
            Kind::Headless => {
                let hosts = service.hosts.iter();
                hosts
                    .flat_map(|host| self.srv_of(service, host, &wanted))
                    .collect()
            }
            Kind::ClusterIp => ports(service)
                .filter(|(name, protocol, _)| wanted(name, *protocol))
                .map(|(.., port)| Srv {
                    target: self.name_of(service),
                    port,
                    addresses: service.cluster_ips.clone(),
                })
                .collect(),
            Kind::ExternalName(_) => Vec::new(),
        }
    }

    /// The same of one endpoint.
    pub(crate) fn srv_of(
        &self,
        service: &Service,
        host: &Host,
        wanted: impl Fn(&str, Protocol) -> bool,
    ) -> Vec<Srv> {
        let ports = host.ports.iter();
        ports
            .filter(|(name, protocol, _)| wanted(name, *protocol))
            .map(|(.., port)| Srv {
                target: format!("{}.{}", host_name(host), self.name_of(service)),
                port: *port,
                addresses: vec![host.address],
            })
            .collect()
    }

    fn name_of(&self, service: &Service) -> String {
        let key = &service.key;
        format!("{}.{}.svc.{}", key.name, key.namespace, self.domain)
    }

    /// Who has the address that `name` (`2.0.64.100.in-addr.arpa`) asks for, when it is one of `ranges`.
    pub(crate) fn pointer(&self, reverse: &Reverse, ranges: &[Ipv4Net], name: &str) -> Pointer {
        let Some(network) = from_arpa(name) else {
            return match name.strip_suffix(".in-addr.arpa") {
                // Nonsense below an address of ours, or anywhere else.
                Some(rest) if below_ours(rest, ranges) => Pointer::NxDomain,
                _ => Pointer::NotOurs,
            };
        };
        if !ranges.iter().any(|range| range.contains(&network)) {
            return Pointer::NotOurs;
        }
        if network.prefix_len() < 32 {
            return Pointer::NoData;
        }
        let ip = IpAddr::V4(network.addr());
        if let Some(services) = self.table.at(ip) {
            return Pointer::Names(services.map(|service| self.name_of(service)).collect());
        }
        match reverse.names.get(&ip) {
            Some(names) => Pointer::Names(names.clone()),
            None => Pointer::NxDomain,
        }
    }

    /// The zone's reverse side: endpoints with a hostname; those without one by the name headless Services give them.
    pub(crate) fn reverse(&self) -> Reverse {
        let mut named: HashMap<IpAddr, Vec<String>> = HashMap::new();
        let mut unnamed: HashMap<IpAddr, Vec<String>> = HashMap::new();
        for service in self.table.services() {
            for host in &service.hosts {
                let names = match host.hostname {
                    Some(_) => &mut named,
                    None if service.kind == Kind::Headless => &mut unnamed,
                    None => continue,
                };
                let name = format!("{}.{}", host_name(host), self.name_of(service));
                names.entry(host.address).or_default().push(name);
            }
        }
        for (ip, names) in unnamed {
            named.entry(ip).or_insert(names);
        }
        for names in named.values_mut() {
            names.sort_unstable();
            names.dedup();
        }
        Reverse { names: named }
    }
}

/// A and AAAA records of a Service's own name.
pub(crate) fn addresses(service: &Service) -> Vec<IpAddr> {
    match service.kind {
        Kind::ClusterIp => service.cluster_ips.clone(),
        Kind::Headless => {
            let mut ips: Vec<IpAddr> = service.hosts.iter().map(|host| host.address).collect();
            ips.dedup();
            ips
        }
        Kind::ExternalName(_) => Vec::new(),
    }
}

/// Name, protocol and number of the ports a Service is asked for by SRV.
fn ports(service: &Service) -> impl Iterator<Item = (&str, Protocol, u16)> {
    let own = service.ports.iter();
    own.map(|port| (port.name.as_str(), port.protocol, port.number))
}

/// `_http` names `http`.
fn labelled(label: &str, name: &str) -> bool {
    !name.is_empty() && label.strip_prefix('_') == Some(name)
}

/// `_tcp` names TCP.
fn named(label: &str, protocol: Protocol) -> bool {
    label
        .strip_prefix('_')
        .is_some_and(|label| label.eq_ignore_ascii_case(protocol.as_str()))
}

fn relative<'a>(domain: &str, name: &'a str) -> Option<&'a str> {
    let rest = name.strip_suffix(domain)?;
    if rest.is_empty() {
        return Some(rest);
    }
    rest.strip_suffix('.')
}

fn host_name(host: &Host) -> String {
    host.hostname
        .clone()
        .unwrap_or_else(|| host.address.to_string().replace(['.', ':'], "-"))
}

fn from_dashed(label: &str) -> Option<IpAddr> {
    if let Ok(ip) = label.replace('-', ".").parse::<Ipv4Addr>() {
        return Some(IpAddr::V4(ip));
    }
    label.replace('-', ":").parse().ok().map(IpAddr::V6)
}

/// `64.100.in-addr.arpa` is 100.64.0.0/16.
fn from_arpa(name: &str) -> Option<Ipv4Net> {
    let rest = name.strip_suffix(".in-addr.arpa")?;
    let mut octets = [0; 4];
    let mut length = 0;
    for label in rest.rsplit('.') {
        // As it is written: "01" is nobody's name.
        let octet: u8 = label
            .parse()
            .ok()
            .filter(|octet: &u8| octet.to_string() == label)?;
        *octets.get_mut(usize::from(length))? = octet;
        length += 1;
    }
    Ipv4Net::new(Ipv4Addr::from(octets), length * 8).ok()
}

/// Whether the last labels of `rest` are octets of an address in `ranges`.
fn below_ours(rest: &str, ranges: &[Ipv4Net]) -> bool {
    let labels: Vec<&str> = rest.rsplit('.').take(3).collect();
    (1..=labels.len()).any(|count| {
        let mut known: Vec<&str> = labels[..count].to_vec();
        known.reverse();
        from_arpa(&format!("{}.in-addr.arpa", known.join(".")))
            .is_some_and(|network| ranges.iter().any(|range| range.contains(&network)))
    })
}

/// Where the reverse zone of `name` begins: after as many labels as `ranges` need.
pub(crate) fn reverse_apex(ranges: &[Ipv4Net], name: &str) -> String {
    let labels: Vec<&str> = name.split('.').collect();
    for count in 3..=labels.len() {
        let apex = labels[labels.len() - count..].join(".");
        let ours = from_arpa(&apex)
            .is_some_and(|network| ranges.iter().any(|range| range.contains(&network)));
        if ours {
            return apex;
        }
    }
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::network::table::tests::{service, slice};
    use crate::network::table::{Key, Loads};

    const DOMAIN: &str = "cluster.local";

    fn put(table: &mut Table, name: &str, spec: Value, endpoints: Value, ports: Value) {
        let object =
            service(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec}));
        let slice = slice(json!({
            "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "shop", "labels": {"kubernetes.io/service-name": name}},
            "endpoints": endpoints, "ports": ports,
        }));
        let key = Key {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
        };
        table.insert(Service::build(
            key,
            object,
            &[&slice],
            &mut Loads::default(),
            None,
        ));
    }

    fn table() -> Table {
        let mut table = Table::default();
        let http = json!([{"name": "http", "port": 8080, "protocol": "TCP"}]);
        let two = json!([
            {"addresses": ["100.64.0.2"], "hostname": "db-0"},
            {"addresses": ["100.64.0.3"]},
            {"addresses": ["100.64.0.4"], "conditions": {"ready": false}},
        ]);
        put(
            &mut table,
            "web",
            json!({"clusterIP": "10.96.0.7", "ports": [{"name": "http", "port": 80}]}),
            two.clone(),
            http.clone(),
        );
        put(
            &mut table,
            "db",
            json!({"clusterIP": "None", "ports": [{"name": "http", "port": 80}]}),
            two,
            http,
        );
        put(
            &mut table,
            "out",
            json!({"type": "ExternalName", "externalName": "example.com"}),
            json!([]),
            json!([]),
        );
        table
    }

    fn ask(name: &str) -> String {
        let (table, namespaces) = (table(), Namespaces::of(&["empty"]));
        let zone = Zone {
            table: &table,
            namespaces: &namespaces,
            domain: DOMAIN,
        };
        match zone.answer(name) {
            Answer::Service(service) => match &service.kind {
                Kind::ExternalName(target) => format!("→ {target}"),
                _ => format!("{:?}", addresses(service)),
            },
            Answer::Hosts(_, hosts) => {
                format!("{:?}", hosts.iter().map(|h| h.address).collect::<Vec<_>>())
            }
            Answer::Pod(ip) => format!("[{ip}]"),
            Answer::Port(records) => records
                .iter()
                .map(|r| format!("{}:{}", r.target, r.port))
                .collect::<Vec<_>>()
                .join(" "),
            Answer::Apex => "apex".to_owned(),
            Answer::NameServer => "name server".to_owned(),
            Answer::Version => "version".to_owned(),
            Answer::NoData => "no data".to_owned(),
            Answer::NxDomain => "nxdomain".to_owned(),
            Answer::NotOurs => "not ours".to_owned(),
        }
    }

    #[test]
    fn every_kind_of_name_has_its_answer() {
        for (name, expected) in [
            ("web.shop.svc.cluster.local", "[10.96.0.7]"),
            ("db.shop.svc.cluster.local", "[100.64.0.2, 100.64.0.3]"),
            ("db-0.db.shop.svc.cluster.local", "[100.64.0.2]"),
            ("100-64-0-3.db.shop.svc.cluster.local", "[100.64.0.3]"),
            ("100-64-0-4.db.shop.svc.cluster.local", "nxdomain"),
            ("out.shop.svc.cluster.local", "→ example.com"),
            ("100-64-0-9.shop.pod.cluster.local", "[100.64.0.9]"),
            ("2001-db8--1.shop.pod.cluster.local", "[2001:db8::1]"),
            ("100-64-0-9.nowhere.pod.cluster.local", "nxdomain"),
            ("100-64-0-9.empty.pod.cluster.local", "[100.64.0.9]"),
            ("x.100-64-0-9.shop.pod.cluster.local", "nxdomain"),
            ("nonsense.shop.pod.cluster.local", "nxdomain"),
            (
                "_http._tcp.web.shop.svc.cluster.local",
                "web.shop.svc.cluster.local:80",
            ),
            (
                "_http._tcp.db.shop.svc.cluster.local",
                "db-0.db.shop.svc.cluster.local:8080 100-64-0-3.db.shop.svc.cluster.local:8080",
            ),
            ("_http._udp.web.shop.svc.cluster.local", "nxdomain"),
            ("_tcp.web.shop.svc.cluster.local", "no data"),
            ("_udp.web.shop.svc.cluster.local", "nxdomain"),
            ("_grpc._tcp.web.shop.svc.cluster.local", "nxdomain"),
            ("shop.svc.cluster.local", "no data"),
            ("empty.svc.cluster.local", "no data"),
            ("shop.pod.cluster.local", "no data"),
            ("nowhere.pod.cluster.local", "nxdomain"),
            ("nowhere.svc.cluster.local", "nxdomain"),
            ("svc.cluster.local", "no data"),
            ("cluster.local", "apex"),
            ("dns.cluster.local", "no data"),
            ("ns.dns.cluster.local", "name server"),
            ("dns-version.cluster.local", "version"),
            ("x.dns-version.cluster.local", "nxdomain"),
            ("web.cluster.local", "nxdomain"),
            ("nothing.shop.svc.cluster.local", "nxdomain"),
            ("a.b.c.web.shop.svc.cluster.local", "nxdomain"),
            ("example.com", "not ours"),
            ("mycluster.local", "not ours"),
            ("web", "not ours"),
        ] {
            assert_eq!(ask(name), expected, "{name}");
        }
    }

    #[test]
    fn addresses_of_the_cluster_have_names() {
        let (table, namespaces) = (table(), Namespaces::default());
        let zone = Zone {
            table: &table,
            namespaces: &namespaces,
            domain: DOMAIN,
        };
        let ranges = [
            "100.64.0.0/10".parse().unwrap(),
            "10.96.0.0/16".parse().unwrap(),
        ];
        let reverse = zone.reverse();
        for (name, expected) in [
            ("7.0.96.10", "web.shop.svc.cluster.local"),
            // Both Services have it; each names it by its hostname.
            (
                "2.0.64.100",
                "db-0.db.shop.svc.cluster.local db-0.web.shop.svc.cluster.local",
            ),
            ("3.0.64.100", "100-64-0-3.db.shop.svc.cluster.local"),
            ("4.0.64.100", "nxdomain"),
            ("8.0.96.10", "nxdomain"),
            ("0.64.100", "no data"),
            ("64.100", "no data"),
            ("96.10", "no data"),
            ("x.64.100", "nxdomain"),
            ("x.2.0.64.100", "nxdomain"),
            ("02.0.64.100", "nxdomain"),
            // Part of it is somebody else's.
            ("100", "not ours"),
            ("10", "not ours"),
            ("8.8.8.8", "not ours"),
            ("x.8.8.8", "not ours"),
        ] {
            let got = match zone.pointer(&reverse, &ranges, &format!("{name}.in-addr.arpa")) {
                Pointer::Names(names) => names.join(" "),
                Pointer::NoData => "no data".to_owned(),
                Pointer::NxDomain => "nxdomain".to_owned(),
                Pointer::NotOurs => "not ours".to_owned(),
            };
            assert_eq!(got, expected, "{name}");
        }
        let apex = |name: &str| reverse_apex(&ranges, name);
        assert_eq!(apex("4.0.64.100.in-addr.arpa"), "64.100.in-addr.arpa");
        assert_eq!(apex("x.0.96.10.in-addr.arpa"), "96.10.in-addr.arpa");
    }
}

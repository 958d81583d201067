//! The cluster's zone: question × table → answer. PURE.
//!
//! ```text
//! <service>.<ns>.svc.<domain>              ClusterIP, or the ready addresses of a headless Service, or an alias
//! <hostname>.<service>.<ns>.svc.<domain>   one endpoint, by its hostname or as 100-64-0-2
//! _<port>._<proto>.<service>.<ns>.svc.…    SRV
//! 100-64-0-2.<ns>.pod.<domain>             that address
//! ```

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::network::table::{Host, Kind, Service, Table};

/// What the zone says of a name.
#[derive(Debug)]
pub(crate) enum Answer<'a> {
    Service(&'a Arc<Service>),
    Addresses(Vec<IpAddr>),
    /// The name exists, but not with addresses.
    NoData,
    NxDomain,
    /// Outside the cluster's domain.
    NotOurs,
}

/// One SRV record.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Srv {
    pub(crate) target: String,
    pub(crate) port: u16,
}

/// `name` is lower case, without a final dot.
pub(crate) fn answer<'a>(table: &'a Table, domain: &str, name: &str) -> Answer<'a> {
    let Some(rest) = relative(domain, name) else {
        return Answer::NotOurs;
    };
    let mut labels = rest.rsplit('.').filter(|label| !label.is_empty());
    match (labels.next(), labels.next()) {
        (None | Some("svc" | "pod"), None) => Answer::NoData,
        (Some("svc"), Some(namespace)) => in_services(table, namespace, labels),
        (Some("pod"), Some(namespace)) => match (labels.next(), labels.next()) {
            (None, _) if table.has_namespace(namespace) => Answer::NoData,
            (Some(dashed), None) => match from_dashed(dashed) {
                Some(ip) => Answer::Addresses(vec![ip]),
                None => Answer::NxDomain,
            },
            _ => Answer::NxDomain,
        },
        _ => Answer::NxDomain,
    }
}

fn in_services<'a, 'b>(
    table: &'a Table,
    namespace: &str,
    mut labels: impl Iterator<Item = &'b str>,
) -> Answer<'a> {
    let Some(name) = labels.next() else {
        return if table.has_namespace(namespace) {
            Answer::NoData
        } else {
            Answer::NxDomain
        };
    };
    let Some(service) = table.get(namespace, name) else {
        return Answer::NxDomain;
    };
    match (labels.next(), labels.next(), labels.next()) {
        (None, ..) => Answer::Service(service),
        (Some(protocol), None, _) if protocol.starts_with('_') => Answer::NoData,
        (Some(protocol), Some(port), None) if protocol.starts_with('_') => {
            if srv_ports(service, port, protocol).next().is_some() {
                Answer::NoData
            } else {
                Answer::NxDomain
            }
        }
        (Some(host), None, _) => {
            let ips: Vec<IpAddr> = service
                .hosts
                .iter()
                .filter(|h| host_name(h) == host)
                .map(|h| h.address)
                .collect();
            if ips.is_empty() {
                Answer::NxDomain
            } else {
                Answer::Addresses(ips)
            }
        }
        _ => Answer::NxDomain,
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

/// SRV records of `_port._proto.service.ns.svc.domain`; `None` when the name is not of that form or not there.
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "guests cannot ask for SRV; the node's DNS server will"
    )
)]
pub(crate) fn srv(table: &Table, domain: &str, name: &str) -> Option<Vec<Srv>> {
    let mut labels = relative(domain, name)?.rsplit('.');
    let (svc, namespace, service) = (labels.next()?, labels.next()?, labels.next()?);
    let (protocol, port) = (labels.next()?, labels.next()?);
    if svc != "svc" || labels.next().is_some() {
        return None;
    }
    let service = table.get(namespace, service)?;
    let base = format!("{}.{namespace}.svc.{domain}", service.key.name);
    let mut records = Vec::new();
    if service.kind == Kind::Headless {
        for host in &service.hosts {
            let ports = host.ports.iter().filter(|(name, p, _)| {
                labelled(port, name) && labelled(protocol, &p.as_str().to_ascii_lowercase())
            });
            records.extend(ports.map(|(_, _, number)| Srv {
                target: format!("{}.{base}", host_name(host)),
                port: *number,
            }));
        }
    } else {
        records.extend(srv_ports(service, port, protocol).map(|number| Srv {
            target: base.clone(),
            port: number,
        }));
    }
    Some(records)
}

fn srv_ports<'a>(
    service: &'a Service,
    port: &'a str,
    protocol: &'a str,
) -> impl Iterator<Item = u16> + 'a {
    service
        .ports
        .iter()
        .filter(move |p| {
            labelled(port, &p.name) && labelled(protocol, &p.protocol.as_str().to_ascii_lowercase())
        })
        .map(|p| p.number)
}

/// `_http` names `http`.
fn labelled(label: &str, name: &str) -> bool {
    !name.is_empty() && label.strip_prefix('_') == Some(name)
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
    let ip: Ipv4Addr = label.replace('-', ".").parse().ok()?;
    Some(IpAddr::V4(ip))
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
        match answer(&table(), DOMAIN, name) {
            Answer::Service(service) => match &service.kind {
                Kind::ExternalName(target) => format!("→ {target}"),
                _ => format!("{:?}", addresses(service)),
            },
            Answer::Addresses(ips) => format!("{ips:?}"),
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
            ("nonsense.shop.pod.cluster.local", "nxdomain"),
            ("_http._tcp.web.shop.svc.cluster.local", "no data"),
            ("_grpc._tcp.web.shop.svc.cluster.local", "nxdomain"),
            ("shop.svc.cluster.local", "no data"),
            ("nowhere.svc.cluster.local", "nxdomain"),
            ("svc.cluster.local", "no data"),
            ("cluster.local", "no data"),
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
    fn srv_records_name_the_service_or_each_host() {
        let table = table();
        let ask = |name| {
            let records = srv(&table, DOMAIN, name)?;
            Some(
                records
                    .iter()
                    .map(|r| format!("{}:{}", r.target, r.port))
                    .collect::<Vec<_>>(),
            )
        };
        assert_eq!(
            ask("_http._tcp.web.shop.svc.cluster.local").unwrap(),
            ["web.shop.svc.cluster.local:80"]
        );
        assert_eq!(
            ask("_http._tcp.db.shop.svc.cluster.local").unwrap(),
            [
                "db-0.db.shop.svc.cluster.local:8080",
                "100-64-0-3.db.shop.svc.cluster.local:8080"
            ]
        );
        assert_eq!(
            ask("_http._udp.web.shop.svc.cluster.local").unwrap().len(),
            0
        );
        assert_eq!(ask("web.shop.svc.cluster.local"), None);
    }
}

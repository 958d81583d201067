//! Which listeners the table asks this node for, and what the node says of those it opened. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Service as Object, ServiceSpec};
use types::listeners::{self, Balanced, Deviation, Report};
use types::well_known::ANNOTATION_LISTENERS;

use super::{Listening, Origin};
use crate::network::table::{Key, Protocol, Service, Table};

/// Which listener.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Id {
    pub(super) key: Key,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    pub(super) origin: Origin,
    pub(super) ip: IpAddr,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Wanted {
    pub(super) port: u16,
    /// Any other port is better than none.
    pub(super) replaceable: bool,
    /// What it had to listen on before a restart.
    pub(super) previous: Option<u16>,
    pub(super) name: String,
}

/// What of this machine matters.
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) service_address: IpAddr,
    /// Addresses on the machine's interfaces.
    pub(super) own: &'a BTreeSet<IpAddr>,
}

/// Listeners the table asks for, older Services first: they keep their ports.
pub(super) fn wanted(table: &Table, place: &Place<'_>) -> Vec<(Id, Wanted)> {
    let mut services: Vec<&Arc<Service>> = table
        .services()
        .filter(|service| is_exposed(&service.object))
        .collect();
    services.sort_by_cached_key(|s| {
        let created = s.object.metadata.creation_timestamp.as_ref();
        (created.map(|t| t.0), s.key.clone())
    });
    let mut all = Vec::new();
    for service in services {
        if let Some(spec) = &service.object.spec {
            of_service(service, spec, place, &mut all);
        }
    }
    all
}

/// Some Service asks for an address that this machine may get or lose at any time.
pub(super) fn asks_for_addresses(table: &Table) -> bool {
    table.services().any(|service| {
        let object = &service.object;
        object.spec.as_ref().is_some_and(|spec| {
            spec.external_ips.iter().flatten().next().is_some()
                || matches!(
                    listeners::balanced(spec, object.status.as_ref()),
                    Balanced::Pool(_)
                )
        })
    })
}

fn is_exposed(object: &Object) -> bool {
    object.metadata.deletion_timestamp.is_none()
        && object.spec.as_ref().is_some_and(|spec| {
            matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
                || spec.external_ips.is_some()
        })
}

fn of_service(
    service: &Service,
    spec: &ServiceSpec,
    place: &Place<'_>,
    all: &mut Vec<(Id, Wanted)>,
) {
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if kind == "ExternalName" {
        return;
    }
    let object = &service.object;
    let previous = replaced_ports(object, place.node);
    let mut want = |origin: Origin, ip, (port, protocol, name): (u16, Protocol, &str), wanted| {
        let id = Id {
            key: service.key.clone(),
            port,
            protocol,
            origin,
            ip,
        };
        let replaceable = ip == place.service_address && origin != Origin::HealthCheck;
        let wanted = Wanted {
            port: wanted,
            replaceable,
            previous: previous.get(&wanted).copied().filter(|_| replaceable),
            name: name.to_owned(),
        };
        all.push((id, wanted));
    };
    // A class may be somebody else's load balancer; its node ports are still ours.
    let balanced = match listeners::balanced(spec, object.status.as_ref()) {
        Balanced::Nodes => vec![place.service_address],
        Balanced::Pool(addresses) => on_machine(addresses, place.own),
        Balanced::Elsewhere => Vec::new(),
    };
    let external = spec.external_ips.iter().flatten();
    let external = on_machine(
        external.filter_map(|ip| ip.parse().ok()).collect(),
        place.own,
    );
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else {
            continue;
        };
        let name = port.name.as_deref().unwrap_or_default();
        let this = (number, Protocol::parse(port.protocol.as_deref()), name);
        for ip in &balanced {
            want(Origin::LoadBalancer, *ip, this, number);
        }
        for ip in external.iter().filter(|ip| !balanced.contains(ip)) {
            want(Origin::ExternalIp, *ip, this, number);
        }
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok());
        let exposed = matches!(kind, "NodePort" | "LoadBalancer");
        if let Some(node_port) = node_port.filter(|p| exposed && *p != 0) {
            want(Origin::NodePort, place.service_address, this, node_port);
        }
    }
    let health = spec
        .health_check_node_port
        .and_then(|p| u16::try_from(p).ok());
    let local = spec.external_traffic_policy.as_deref() == Some("Local");
    if let Some(health) = health.filter(|p| *p != 0 && local && kind == "LoadBalancer") {
        let this = (health, Protocol::Tcp, "");
        want(Origin::HealthCheck, place.service_address, this, health);
    }
}

fn on_machine(mut addresses: Vec<IpAddr>, own: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
    addresses.retain(|ip| own.contains(ip));
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Wanted port → the port it was replaced by on this node, as the object says: `80=40123,443=40124@node-a`.
fn replaced_ports(object: &Object, node: &str) -> BTreeMap<u16, u16> {
    let annotations = object.metadata.annotations.as_ref();
    let text = annotations.and_then(|all| all.get(ANNOTATION_LISTENERS));
    text.map(String::as_str)
        .unwrap_or_default()
        .split(',')
        .filter_map(|pair| {
            let (pair, at) = pair.split_once('@').unwrap_or((pair, node));
            let (wanted, got) = pair.split_once('=')?;
            (at == node).then_some((wanted.parse().ok()?, got.parse().ok()?))
        })
        .collect()
}

/// What the node says of the listeners it opened.
pub(super) fn report(table: &Table, open: &[(IpAddr, Listening)], address: IpAddr) -> Report {
    let digests = table.services().filter_map(|service| {
        let (object, spec) = (&service.object, service.object.spec.as_ref()?);
        let ours = is_exposed(object)
            && listeners::balanced(spec, object.status.as_ref()) == Balanced::Nodes;
        let uid = object.metadata.uid.as_deref().unwrap_or_default();
        ours.then(|| listeners::digest(uid, spec))
    });
    let holds = open
        .iter()
        .filter(|(ip, listening)| *ip != address && listening.address.is_some())
        .map(|(ip, _)| *ip);
    let deviations = open.iter().filter_map(|(_, listening)| {
        Some(Deviation {
            namespace: listening.namespace.clone(),
            service: listening.service.clone(),
            kind: listening.origin.as_str().to_owned(),
            port: listening.port,
            protocol: listening.protocol.to_owned(),
            wanted: listening.wanted,
            got: listening.address.map(|address| address.port()),
            problem: listening.problem.clone()?,
        })
    });
    Report::new(
        (!address.is_unspecified()).then_some(address),
        digests.collect(),
        holds.collect(),
        deviations.collect(),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::network::table::Loads;
    use crate::network::table::tests::service;

    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7));

    fn table(services: &[Value]) -> Table {
        let mut table = Table::default();
        for value in services {
            let object = service(value.clone());
            let key = Key {
                namespace: "default".to_owned(),
                name: object.metadata.name.clone().unwrap(),
            };
            table.insert(Service::build(
                key,
                object,
                &[],
                &mut Loads::default(),
                None,
            ));
        }
        table
    }

    /// `web LoadBalancer 192.0.2.7:80`
    fn asked(services: &[Value], own: &[&str]) -> Vec<String> {
        let own = own.iter().map(|ip| ip.parse().unwrap()).collect();
        let place = Place {
            node: "here",
            service_address: NODE,
            own: &own,
        };
        let all = wanted(&table(services), &place);
        let line = |(id, w): (Id, Wanted)| {
            let mark = if w.replaceable { "" } else { "!" };
            format!(
                "{} {} {}:{}{mark}",
                id.key.name,
                id.origin.as_str(),
                id.ip,
                w.port
            )
        };
        all.into_iter().map(line).collect()
    }

    fn object(name: &str, spec: Value) -> Value {
        json!({"metadata": {"name": name, "namespace": "default", "uid": name}, "spec": spec})
    }

    #[test]
    fn every_way_in_is_a_listener() {
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local",
            "healthCheckNodePort": 30009, "externalIPs": ["192.0.2.40", "198.51.100.1"],
            "ports": [{"port": 80, "nodePort": 30001}]});
        assert_eq!(
            asked(&[object("web", spec)], &["192.0.2.7", "192.0.2.40"]),
            [
                "web LoadBalancer 192.0.2.7:80",
                "web ExternalIP 192.0.2.40:80!",
                "web NodePort 192.0.2.7:30001",
                "web HealthCheck 192.0.2.7:30009!",
            ]
        );
        let inside = json!({"clusterIP": "10.96.0.7", "externalIPs": ["192.0.2.40"], "ports": [{"port": 80}]});
        assert_eq!(
            asked(&[object("web", inside.clone())], &["192.0.2.40"]),
            ["web ExternalIP 192.0.2.40:80!"]
        );
        assert_eq!(
            asked(&[object("web", inside)], &[]),
            [""; 0],
            "not an address of this machine"
        );
    }

    #[test]
    fn an_address_of_the_pool_is_served_where_it_is() {
        let mut web = object(
            "web",
            json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]}),
        );
        web["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.40", "ipMode": "VIP"}]},
            "conditions": [{"type": "coracle.dev/PoolAddress", "status": "True", "reason": "Assigned", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let both = ["192.0.2.7", "192.0.2.40"];
        assert_eq!(
            asked(&[web.clone()], &both),
            ["web LoadBalancer 192.0.2.40:80!"]
        );
        assert_eq!(
            asked(&[web.clone()], &["192.0.2.7"]),
            [""; 0],
            "another machine has it"
        );
        assert!(asks_for_addresses(&table(&[web])));
    }

    #[test]
    fn a_port_it_got_last_time_is_asked_for_again_on_the_same_node() {
        let mut web = object(
            "web",
            json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": 30001}]}),
        );
        let mut previous = |text: &str| {
            web["metadata"]["annotations"] = json!({"coracle.dev/listeners": text});
            replaced_ports(&service(web.clone()), "here")
                .get(&80)
                .copied()
        };
        assert_eq!(previous("80=40123"), Some(40123));
        assert_eq!(previous("80=40124@there,80=40125@here"), Some(40125));
        assert_eq!(previous("80=40124@there"), None);
    }

    #[test]
    fn a_report_spells_out_only_what_differs() {
        let balancer = |name| {
            object(
                name,
                json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]}),
            )
        };
        let table = table(&[
            balancer("a"),
            balancer("b"),
            object("c", json!({"ports": [{"port": 80}]})),
        ]);
        let listening = |service: &str, address: &str, problem: Option<&str>| Listening {
            namespace: "default".to_owned(),
            service: service.to_owned(),
            port_name: String::new(),
            port: 80,
            protocol: "TCP",
            origin: Origin::LoadBalancer,
            wanted: 80,
            address: Some(address.parse().unwrap()),
            problem: problem.map(str::to_owned),
        };
        let held = IpAddr::from([192, 0, 2, 40]);
        let open = [
            (NODE, listening("a", "192.0.2.7:80", None)),
            (
                NODE,
                listening("b", "192.0.2.7:40123", Some("port 80 is taken")),
            ),
            (held, listening("d", "192.0.2.40:80", None)),
        ];
        let report = report(&table, &open, NODE);
        assert_eq!(report.address, Some(NODE));
        assert_eq!(report.balanced.len(), 14);
        assert_eq!(report.holds, [held]);
        let [deviation] = report.deviations.as_slice() else {
            panic!("one: {report:?}");
        };
        assert_eq!(
            (deviation.service.as_str(), deviation.wanted, deviation.got),
            ("b", 80, Some(40123))
        );
    }
}

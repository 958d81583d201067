//! What the network knows of Services: one immutable table, replaced as a whole. PURE: objects in, table out.
//!
//! Readers hold an `Arc` of it and never wait. What outlives a table is shared through it: the load of an endpoint
//! ([`Loads`]) and the memory of session affinity.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use super::balancer::{Affinity, Endpoint, Load};

/// `sessionAffinityConfig.clientIP.timeoutSeconds`, when absent.
const AFFINITY_TIMEOUT: Duration = Duration::from_secs(10_800);

/// Namespace and name of a Service.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(crate) enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// All Services of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    names: HashMap<String, HashMap<String, Arc<Service>>>,
    vips: HashMap<IpAddr, Arc<Service>>,
    /// Services and EndpointSlices have been listed completely at least once.
    pub(crate) complete: bool,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    ClusterIp,
    Headless,
    ExternalName(String),
}

#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) key: Key,
    pub(crate) kind: Kind,
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) ports: Vec<Arc<Port>>,
    /// Ready addresses (all of them with `publishNotReadyAddresses`), for DNS and headless Services.
    pub(crate) hosts: Vec<Host>,
    /// As last seen, without managedFields; for listeners.
    pub(crate) object: Arc<core::Service>,
}

/// One `spec.ports[]` with where it leads.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) service: Arc<Key>,
    pub(crate) name: String,
    pub(crate) number: u16,
    pub(crate) protocol: Protocol,
    /// Ready ones; when there is none, those that still serve while terminating.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    pub(crate) affinity: Option<Sticky>,
    /// Leads to the API server: the egress policy does not apply.
    pub(crate) trusted: bool,
}

/// `sessionAffinity: ClientIP`
#[derive(Clone, Debug)]
pub(crate) struct Sticky {
    pub(crate) timeout: Duration,
    /// Held for a few instructions, never over an await.
    pub(crate) clients: Arc<Mutex<Affinity>>,
}

/// One address behind a Service, for DNS.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Host {
    pub(crate) address: IpAddr,
    pub(crate) hostname: Option<String>,
    /// Port name, protocol, number: as the EndpointSlice has them.
    pub(crate) ports: Arc<Vec<(String, Protocol, u16)>>,
}

/// What is kept of an EndpointSlice.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub(crate) service: Key,
    pub(crate) name: String,
    ports: Arc<Vec<(String, Protocol, u16)>>,
    endpoints: Vec<SliceAddress>,
}

#[derive(Clone, Debug)]
struct SliceAddress {
    address: IpAddr,
    hostname: Option<String>,
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// The load of every endpoint address in use.
#[derive(Debug, Default)]
pub(crate) struct Loads(HashMap<SocketAddr, Arc<Load>>);

// === impl Protocol ===

impl Protocol {
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            _ => Self::Tcp,
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}

// === impl Table ===

impl Table {
    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.names.get(namespace)?.get(name)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.names.contains_key(namespace)
    }

    pub(crate) fn vip(&self, ip: IpAddr) -> Option<&Arc<Service>> {
        self.vips.get(&ip)
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.names.values().flat_map(HashMap::values)
    }

    /// Puts `service` in the place of what had its name.
    pub(crate) fn insert(&mut self, service: Service) {
        self.remove(&service.key);
        let service = Arc::new(service);
        for ip in &service.cluster_ips {
            self.vips.insert(*ip, Arc::clone(&service));
        }
        self.names
            .entry(service.key.namespace.clone())
            .or_default()
            .insert(service.key.name.clone(), service);
    }

    pub(crate) fn remove(&mut self, key: &Key) {
        let Some(namespace) = self.names.get_mut(&key.namespace) else {
            return;
        };
        let removed = namespace.remove(&key.name);
        if namespace.is_empty() {
            self.names.remove(&key.namespace);
        }
        for ip in removed.iter().flat_map(|service| &service.cluster_ips) {
            // Another Service may have got the address meanwhile.
            if self.vips.get(ip).is_some_and(|owner| owner.key == *key) {
                self.vips.remove(ip);
            }
        }
    }
}

// === impl Service ===

impl Service {
    /// The Service with the endpoints of its `slices`. `old` is what it was, to keep what clients have got used to.
    pub(crate) fn build(
        key: Key,
        object: Arc<core::Service>,
        slices: &[&Slice],
        loads: &mut Loads,
        old: Option<&Service>,
    ) -> Self {
        let spec = object.spec.clone().unwrap_or_default();
        let kind = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => {
                Kind::ExternalName(spec.external_name.clone().unwrap_or_default())
            }
            (_, Some("None")) => Kind::Headless,
            _ => Kind::ClusterIp,
        };
        let cluster_ips = if kind == Kind::ClusterIp {
            let first = spec.cluster_ip.iter();
            let mut ips: Vec<IpAddr> = first
                .chain(spec.cluster_ips.iter().flatten())
                .filter_map(|ip| ip.parse().ok())
                .collect();
            ips.dedup();
            ips
        } else {
            Vec::new()
        };
        let publish_not_ready = spec.publish_not_ready_addresses.unwrap_or(false);
        let trusted =
            key.namespace == types::well_known::NAMESPACE_DEFAULT && key.name == "kubernetes";
        let timeout = affinity_timeout(&spec);
        let owner = Arc::new(key.clone());
        let ports = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let name = port.name.clone().unwrap_or_default();
                let protocol = Protocol::parse(port.protocol.as_deref());
                let number = u16::try_from(port.port).ok()?;
                let known = old
                    .and_then(|old| old.port(number, protocol))
                    .and_then(|port| port.affinity.as_ref());
                Some(Arc::new(Port {
                    service: Arc::clone(&owner),
                    endpoints: endpoints(slices, &name, protocol, publish_not_ready, loads),
                    affinity: timeout.map(|timeout| Sticky {
                        timeout,
                        clients: known.map(|k| Arc::clone(&k.clients)).unwrap_or_default(),
                    }),
                    name,
                    number,
                    protocol,
                    trusted,
                }))
            })
            .collect();
        Self {
            key,
            kind,
            cluster_ips,
            ports,
            hosts: hosts(slices, publish_not_ready),
            object,
        }
    }

    pub(crate) fn port(&self, number: u16, protocol: Protocol) -> Option<&Arc<Port>> {
        self.ports
            .iter()
            .find(|port| port.number == number && port.protocol == protocol)
    }
}

fn affinity_timeout(spec: &core::ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let seconds = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref()?.timeout_seconds)
        .and_then(|seconds| u64::try_from(seconds).ok());
    Some(seconds.map_or(AFFINITY_TIMEOUT, Duration::from_secs))
}

fn endpoints(
    slices: &[&Slice],
    name: &str,
    protocol: Protocol,
    publish_not_ready: bool,
    loads: &mut Loads,
) -> Vec<Arc<Endpoint>> {
    let mut ready = Vec::new();
    let mut last_resort = Vec::new();
    for slice in slices {
        let port = slice
            .ports
            .iter()
            .find(|(n, p, _)| n == name && *p == protocol);
        let Some((_, _, port)) = port else { continue };
        for endpoint in &slice.endpoints {
            let address = SocketAddr::new(endpoint.address, *port);
            if endpoint.ready || publish_not_ready {
                ready.push(address);
            } else if endpoint.serving && endpoint.terminating {
                last_resort.push(address);
            }
        }
    }
    let mut chosen = if ready.is_empty() { last_resort } else { ready };
    // A pod may be in two slices for a moment; in order, so that a table is the same for the same objects.
    chosen.sort_unstable();
    chosen.dedup();
    chosen
        .into_iter()
        .map(|address| {
            Arc::new(Endpoint {
                address,
                load: loads.get(address),
            })
        })
        .collect()
}

fn hosts(slices: &[&Slice], publish_not_ready: bool) -> Vec<Host> {
    let mut hosts: Vec<Host> = slices
        .iter()
        .flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .filter(move |endpoint| endpoint.ready || publish_not_ready)
                .map(|endpoint| Host {
                    address: endpoint.address,
                    hostname: endpoint.hostname.clone(),
                    ports: Arc::clone(&slice.ports),
                })
        })
        .collect();
    hosts.sort_by_key(|host| host.address);
    hosts.dedup_by(|a, b| a.address == b.address && a.ports == b.ports);
    hosts
}

// === impl Port ===

impl Port {
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.endpoints.iter().any(|e| e.address == address)
    }

    pub(crate) fn same_endpoints(&self, other: &Self) -> bool {
        let addresses = |port: &'_ Self| -> Vec<SocketAddr> {
            port.endpoints.iter().map(|e| e.address).collect()
        };
        addresses(self) == addresses(other)
    }
}

// === impl Slice ===

impl Slice {
    /// `None` for a slice of no Service, or of FQDNs, which no Service of Kubernetes routes to.
    pub(crate) fn parse(object: &EndpointSlice) -> Option<Self> {
        let labels = object.metadata.labels.as_ref()?;
        let service = labels.get(types::well_known::LABEL_SERVICE_NAME)?;
        if object.address_type == "FQDN" {
            return None;
        }
        let ports = object
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let number = u16::try_from(port.port?).ok()?;
                let name = port.name.clone().unwrap_or_default();
                Some((name, Protocol::parse(port.protocol.as_deref()), number))
            })
            .collect();
        Some(Self {
            service: Key {
                namespace: object.metadata.namespace.clone()?,
                name: service.clone(),
            },
            name: object.metadata.name.clone()?,
            ports: Arc::new(ports),
            endpoints: object
                .endpoints
                .iter()
                .flatten()
                .filter_map(SliceAddress::parse)
                .collect(),
        })
    }
}

impl SliceAddress {
    fn parse(endpoint: &SliceEndpoint) -> Option<Self> {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        Some(Self {
            // Kubernetes gives the addresses after the first no meaning.
            address: endpoint.addresses.first()?.parse().ok()?,
            hostname: endpoint.hostname.clone(),
            ready,
            serving: conditions.serving.unwrap_or(ready),
            terminating: conditions.terminating.unwrap_or(false),
        })
    }
}

// === impl Loads ===

impl Loads {
    fn get(&mut self, address: SocketAddr) -> Arc<Load> {
        Arc::clone(self.0.entry(address).or_default())
    }

    /// Forgets addresses no table and no request refers to.
    pub(crate) fn prune(&mut self) {
        self.0.retain(|_, load| Arc::strong_count(load) > 1);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use serde_json::{Value, json};

    use super::*;

    pub(crate) fn service(value: Value) -> Arc<core::Service> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    pub(crate) fn slice(value: Value) -> Slice {
        Slice::parse(&serde_json::from_value(value).unwrap()).unwrap()
    }

    pub(crate) fn web(spec: Value) -> Arc<core::Service> {
        service(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
    }

    pub(crate) fn web_slice(name: &str, ports: Value, endpoints: Value) -> Slice {
        slice(json!({
            "addressType": "IPv4",
            "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": ports, "endpoints": endpoints,
        }))
    }

    fn key() -> Key {
        Key {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        }
    }

    fn build(spec: Value, slices: &[&Slice]) -> Service {
        Service::build(key(), web(spec), slices, &mut Loads::default(), None)
    }

    fn addresses(service: &Service, port: u16) -> Vec<String> {
        let port = service.port(port, Protocol::Tcp).unwrap();
        port.endpoints
            .iter()
            .map(|e| e.address.to_string())
            .collect()
    }

    #[test]
    fn only_ready_endpoints_serve() {
        let slice = web_slice(
            "web-1",
            json!([{"name": "", "port": 8080, "protocol": "TCP"}]),
            json!([
                {"addresses": ["100.64.0.2"], "conditions": {"ready": true}},
                {"addresses": ["100.64.0.3"], "conditions": {"ready": false}},
                {"addresses": ["100.64.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["100.64.0.5"]},
            ]),
        );
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
        let service = build(spec, &[&slice]);
        assert_eq!(
            addresses(&service, 80),
            ["100.64.0.2:8080", "100.64.0.5:8080"]
        );
        assert_eq!(service.cluster_ips, [IpAddr::from([10, 96, 0, 7])]);
    }

    #[test]
    fn terminating_endpoints_that_serve_are_the_last_resort() {
        let slice = web_slice(
            "web-1",
            json!([{"port": 8080}]),
            json!([
                {"addresses": ["100.64.0.3"], "conditions": {"ready": false}},
                {"addresses": ["100.64.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["100.64.0.5"], "conditions": {"ready": false, "serving": false, "terminating": true}},
            ]),
        );
        let service = build(
            json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}),
            &[&slice],
        );
        assert_eq!(addresses(&service, 80), ["100.64.0.4:8080"]);
        assert!(service.hosts.is_empty(), "DNS publishes only what is ready");
    }

    #[test]
    fn not_ready_ones_serve_when_the_service_publishes_them() {
        let slice = web_slice(
            "web-1",
            json!([{"port": 8080}]),
            json!([{"addresses": ["100.64.0.3"], "conditions": {"ready": false}}]),
        );
        let spec =
            json!({"clusterIP": "None", "publishNotReadyAddresses": true, "ports": [{"port": 80}]});
        let service = build(spec, &[&slice]);
        assert_eq!(service.kind, Kind::Headless);
        assert_eq!(addresses(&service, 80), ["100.64.0.3:8080"]);
        assert_eq!(service.hosts.len(), 1);
    }

    #[test]
    fn ports_meet_by_name() {
        // A named targetPort may be another number in each pod: one slice per set of numbers.
        let old = web_slice(
            "web-1",
            json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}]),
            json!([{"addresses": ["100.64.0.2"]}]),
        );
        let new = web_slice(
            "web-2",
            json!([{"name": "http", "port": 8081}]),
            json!([{"addresses": ["100.64.0.3"]}]),
        );
        let spec = json!({"clusterIP": "10.96.0.7", "ports": [
            {"name": "http", "port": 80}, {"name": "admin", "port": 81}, {"name": "http", "port": 80, "protocol": "UDP"},
        ]});
        let service = build(spec, &[&old, &new]);
        assert_eq!(
            addresses(&service, 80),
            ["100.64.0.2:8080", "100.64.0.3:8081"]
        );
        assert_eq!(addresses(&service, 81), ["100.64.0.2:9090"]);
        let udp = service.port(80, Protocol::Udp).unwrap();
        assert!(udp.endpoints.is_empty());
    }

    #[test]
    fn load_and_affinity_survive_a_rebuild() {
        let slice = web_slice(
            "web-1",
            json!([{"port": 8080}]),
            json!([{"addresses": ["100.64.0.2"]}]),
        );
        let spec = json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
        let mut loads = Loads::default();
        let first = Service::build(key(), web(spec.clone()), &[&slice], &mut loads, None);
        let busy = first.ports[0].endpoints[0].load.begin();
        let second = Service::build(key(), web(spec), &[&slice], &mut loads, Some(&first));
        assert_eq!(second.ports[0].endpoints[0].load.get(), 1);
        let clients = |s: &Service| Arc::clone(&s.ports[0].affinity.as_ref().unwrap().clients);
        assert!(Arc::ptr_eq(&clients(&first), &clients(&second)));
        drop((busy, first, second));
        loads.prune();
        assert!(loads.0.is_empty());
    }

    #[test]
    fn an_address_moves_with_its_service() {
        let mut table = Table::default();
        let ip = IpAddr::from([10, 96, 0, 7]);
        table.insert(build(
            json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}),
            &[],
        ));
        assert!(table.vip(ip).is_some());
        table.insert(build(
            json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]}),
            &[],
        ));
        assert!(table.vip(ip).is_none());
        table.remove(&key());
        assert!(table.services().next().is_none());
        assert!(!table.has_namespace("default"));
    }
}

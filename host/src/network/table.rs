//! What the network knows of Services: one immutable table, replaced as a whole. PURE: objects in, table out.
//!
//! Readers hold an `Arc` of it and never wait. What outlives a table is shared through it: the load of an endpoint
//! ([`Loads`]) and the memory of session affinity.
//!
//! A traffic policy makes a Service lead to other endpoints from here than from elsewhere, or for clients outside than for
//! those inside: that is decided when the table is built, never when it is read.

mod slice;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net};
use k8s_openapi::api::core::v1 as core;
use types::listeners::{self, Balanced};

pub(crate) use self::slice::Slice;
use self::slice::{Locality, Selection};
use super::balancer::{Affinity, Endpoint, Endpoints, Load};
use super::nodes::Nodes;

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
    /// Several share one where their ports differ; the newest is the last.
    vips: HashMap<IpAddr, Vec<Arc<Service>>>,
    /// Where ClusterIPs are, when that is known: an address elsewhere is somebody's, whatever a Service says.
    range: Option<Ipv4Net>,
    /// Services and EndpointSlices have been listed completely at least once.
    pub(crate) complete: bool,
    /// Another number whenever a Service's object is another one: endpoints change more often.
    pub(crate) objects: u64,
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
    /// Addresses of the pool: the Service's wherever they are, so pods need not leave the node to reach it there.
    balanced_ips: Vec<IpAddr>,
    /// For clients in the cluster.
    pub(crate) ports: Vec<Arc<Port>>,
    /// For clients outside, where `externalTrafficPolicy` makes them others; else empty.
    external: Vec<Arc<Port>>,
    /// For pods that call an address of the pool, where `internalTrafficPolicy` would lead them elsewhere; else empty.
    balanced: Vec<Arc<Port>>,
    /// Who may use the load balancer, pods included; none is everybody.
    pub(crate) sources: Arc<[IpNet]>,
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
    pub(crate) scope: Scope,
    pub(crate) endpoints: Endpoints,
    pub(crate) affinity: Option<Sticky>,
    /// Leads to the API server: the egress policy does not apply.
    pub(crate) trusted: bool,
}

/// Whose connections a [`Port`] is for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Scope {
    /// Pods, and the node itself.
    Cluster,
    /// Clients of NodePorts, load balancers and external addresses.
    External,
    /// Pods that call an address of the pool: as upstream, no traffic policy is for them.
    Balanced,
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

/// What endpoints share across Services and rebuilds: the load of every address in use, and where things are.
#[derive(Default)]
pub(crate) struct Loads {
    by_address: HashMap<SocketAddr, Arc<Load>>,
    nodes: Arc<Nodes>,
    /// This node's zone, when it has one.
    zone: Option<String>,
}

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
    /// Without Services; their ClusterIPs will be in `range`.
    pub(crate) fn of(range: Ipv4Net) -> Self {
        Self {
            range: Some(range),
            ..Self::default()
        }
    }

    /// Of what a Service has for a ClusterIP, what cannot be one.
    pub(crate) fn foreign<'a>(&self, service: &'a Service) -> impl Iterator<Item = &'a IpAddr> {
        let ips = service.cluster_ips.iter();
        ips.filter(|ip| !self.is_cluster_ip(**ip))
    }

    fn is_cluster_ip(&self, ip: IpAddr) -> bool {
        match (self.range, ip) {
            (None, _) => true,
            (Some(range), IpAddr::V4(ip)) => range.contains(&ip),
            (Some(_), IpAddr::V6(_)) => false,
        }
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Service>> {
        self.names.get(namespace)?.get(name)
    }

    pub(crate) fn has_namespace(&self, namespace: &str) -> bool {
        self.names.contains_key(namespace)
    }

    /// The Services that have this address, the newest first; none when it is no Service's.
    pub(crate) fn at(
        &self,
        ip: IpAddr,
    ) -> Option<impl Iterator<Item = &Arc<Service>> + Clone + use<'_>> {
        Some(self.vips.get(&ip)?.iter().rev())
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.names.values().flat_map(HashMap::values)
    }

    /// Puts `service` in the place of what had its name.
    pub(crate) fn insert(&mut self, service: Service) {
        self.remove(&service.key);
        let service = Arc::new(service);
        let own = service.cluster_ips.iter().copied();
        let own: Vec<IpAddr> = own.filter(|ip| self.is_cluster_ip(*ip)).collect();
        for ip in own.iter().chain(&service.balanced_ips) {
            let known = self.vips.entry(*ip).or_default();
            known.push(Arc::clone(&service));
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
        for ip in removed.iter().flat_map(|service| service.addresses()) {
            // Another Service may share the address, or have got it meanwhile.
            if let Some(known) = self.vips.get_mut(ip) {
                known.retain(|service| service.key != *key);
                if known.is_empty() {
                    self.vips.remove(ip);
                }
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
        let build = Build {
            owner: Arc::new(key.clone()),
            spec: &spec,
            slices,
            old,
            selection: Selection {
                publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
                ipv4: cluster_ips.first().map(IpAddr::is_ipv4),
            },
        };
        let locality = |policy: Option<&str>| match policy {
            Some("Local") => Locality::Local,
            _ => Locality::Cluster,
        };
        let inside = locality(spec.internal_traffic_policy.as_deref());
        let outside = locality(spec.external_traffic_policy.as_deref());
        let ports = build.ports(Scope::Cluster, inside, loads);
        let external = if inside != outside && is_exposed(&spec) {
            build.ports(Scope::External, outside, loads)
        } else {
            Vec::new()
        };
        let balanced_ips = match listeners::balanced(&spec, object.status.as_ref()) {
            Balanced::Pool(addresses) => addresses,
            Balanced::Nodes | Balanced::Elsewhere => Vec::new(),
        };
        let balanced = if inside == Locality::Local && !balanced_ips.is_empty() {
            build.ports(Scope::Balanced, Locality::Cluster, loads)
        } else {
            Vec::new()
        };
        let hosts = slice::hosts(slices, build.selection.publish_not_ready);
        Self {
            key,
            kind,
            cluster_ips,
            balanced_ips,
            ports,
            external,
            balanced,
            sources: sources(&spec),
            hosts,
            object,
        }
    }

    fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.cluster_ips.iter().chain(&self.balanced_ips)
    }

    /// As clients in the cluster see it.
    pub(crate) fn port(&self, number: u16, protocol: Protocol) -> Option<&Arc<Port>> {
        self.port_for(Scope::Cluster, number, protocol)
    }

    /// As clients in the cluster see it that call `ip`, one of its addresses.
    pub(crate) fn port_at(
        &self,
        ip: IpAddr,
        number: u16,
        protocol: Protocol,
    ) -> Option<&Arc<Port>> {
        let scope = if self.is_balanced(ip) {
            Scope::Balanced
        } else {
            Scope::Cluster
        };
        self.port_for(scope, number, protocol)
    }

    /// Whether `client`, a pod, may call `ip`, one of its addresses.
    pub(crate) fn admits(&self, ip: IpAddr, client: IpAddr) -> bool {
        !self.is_balanced(ip) || is_among(&self.sources, client)
    }

    fn is_balanced(&self, ip: IpAddr) -> bool {
        self.balanced_ips.contains(&ip) && !self.cluster_ips.contains(&ip)
    }

    pub(crate) fn port_for(
        &self,
        scope: Scope,
        number: u16,
        protocol: Protocol,
    ) -> Option<&Arc<Port>> {
        let ports = match scope {
            Scope::External if !self.external.is_empty() => &self.external,
            Scope::Balanced if !self.balanced.is_empty() => &self.balanced,
            _ => &self.ports,
        };
        ports
            .iter()
            .find(|port| port.number == number && port.protocol == protocol)
    }

    /// Addresses of ready endpoints on this node.
    pub(crate) fn local_ready(&self) -> usize {
        let ports = self.ports.iter().chain(&self.external);
        let ready = ports.flat_map(|port| port.endpoints.ready());
        let mut local: Vec<IpAddr> = ready
            .filter(|endpoint| endpoint.is_local())
            .map(|endpoint| endpoint.address.ip())
            .collect();
        local.sort_unstable();
        local.dedup();
        local.len()
    }
}

/// What the ports of one Service are made from.
struct Build<'a> {
    owner: Arc<Key>,
    spec: &'a core::ServiceSpec,
    slices: &'a [&'a Slice],
    old: Option<&'a Service>,
    selection: Selection,
}

// === impl Build ===

impl Build<'_> {
    fn ports(&self, scope: Scope, locality: Locality, loads: &mut Loads) -> Vec<Arc<Port>> {
        let timeout = affinity_timeout(self.spec);
        let trusted = self.owner.namespace == types::well_known::NAMESPACE_DEFAULT
            && self.owner.name == "kubernetes";
        let ports = self.spec.ports.iter().flatten();
        ports
            .filter_map(|port| {
                let name = port.name.clone().unwrap_or_default();
                let protocol = Protocol::parse(port.protocol.as_deref());
                let number = u16::try_from(port.port).ok()?;
                let known = self
                    .old
                    .and_then(|old| old.port_for(scope, number, protocol))
                    .and_then(|port| port.affinity.as_ref());
                Some(Arc::new(Port {
                    service: Arc::clone(&self.owner),
                    endpoints: slice::endpoints(
                        self.slices,
                        (&name, protocol),
                        self.selection,
                        locality,
                        loads,
                    ),
                    affinity: timeout.map(|timeout| Sticky {
                        timeout,
                        clients: known.map(|k| Arc::clone(&k.clients)).unwrap_or_default(),
                    }),
                    name,
                    number,
                    protocol,
                    scope,
                    trusted,
                }))
            })
            .collect()
    }
}

/// Whether `client` is in one of `sources`; all are in none.
pub(crate) fn is_among(sources: &[IpNet], client: IpAddr) -> bool {
    sources.is_empty() || sources.iter().any(|source| source.contains(&client))
}

/// `spec.loadBalancerSourceRanges`. What cannot be read admits nobody.
fn sources(spec: &core::ServiceSpec) -> Arc<[IpNet]> {
    let ranges = spec.load_balancer_source_ranges.iter().flatten();
    let nobody = IpNet::V4(Ipv4Net::from(Ipv4Addr::UNSPECIFIED));
    ranges
        .map(|range| range.trim().parse().unwrap_or(nobody))
        .collect()
}

/// Clients outside can reach it.
fn is_exposed(spec: &core::ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec.external_ips.iter().flatten().next().is_some()
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

// === impl Port ===

impl Port {
    pub(crate) fn has(&self, address: SocketAddr) -> bool {
        self.endpoints.iter().any(|e| e.address == address)
    }

    pub(crate) fn same_endpoints(&self, other: &Self) -> bool {
        self.endpoints.current().iter().map(|e| e.address).eq(other
            .endpoints
            .current()
            .iter()
            .map(|e| e.address))
    }
}

// === impl Loads ===

impl Loads {
    pub(crate) fn new(nodes: Arc<Nodes>) -> Self {
        Self {
            nodes,
            ..Self::default()
        }
    }

    /// False when it was that already.
    pub(crate) fn set_zone(&mut self, zone: Option<String>) -> bool {
        let changed = self.zone != zone;
        self.zone = zone;
        changed
    }

    fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }

    fn is_own(&self, node: &str) -> bool {
        self.nodes.is_own(node)
    }

    fn endpoint(&mut self, address: SocketAddr, node: Option<&str>) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            address,
            load: Arc::clone(self.by_address.entry(address).or_default()),
            node: node.map(|name| self.nodes.get(name)),
        })
    }

    /// Forgets addresses and nodes no table and no request refers to.
    pub(crate) fn prune(&mut self) {
        self.by_address
            .retain(|_, load| Arc::strong_count(load) > 1);
        self.nodes.prune();
    }
}

#[cfg(test)]
pub(crate) mod tests;

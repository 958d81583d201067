//! What is kept of an EndpointSlice, and how the slices of a Service become the endpoints of a port as this node sees them.
//! PURE.
//!
//! Names of nodes and zones are kept once per slice: a slice of a hundred endpoints has few of them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint as SliceEndpoint, EndpointSlice};

use super::{Host, Key, Loads, Protocol};
use crate::network::balancer::Endpoints;

/// What is kept of an EndpointSlice.
#[derive(Clone, Debug)]
pub(crate) struct Slice {
    pub(crate) service: Key,
    pub(crate) name: String,
    ports: Arc<Vec<(String, Protocol, u16)>>,
    names: Box<[Box<str>]>,
    endpoints: Box<[SliceAddress]>,
}

/// Position in a slice's names.
type Name = u16;

#[derive(Clone, Debug)]
struct SliceAddress {
    address: IpAddr,
    hostname: Option<Box<str>>,
    node: Option<Name>,
    /// `hints.forNodes`
    for_nodes: Box<[Name]>,
    /// `hints.forZones`
    for_zones: Box<[Name]>,
    state: State,
}

/// In the order in which they are used.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum State {
    Ready,
    /// Terminating, and still serving.
    Leaving,
    NotReady,
}

/// Which of its endpoints a Service uses here.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Locality {
    /// All, those first that the slices' hints mean for this node.
    Cluster,
    /// A traffic policy `Local`: those of this node and no others.
    Local,
}

/// Which endpoints count at all.
#[derive(Clone, Copy, Debug)]
pub(super) struct Selection {
    pub(super) publish_not_ready: bool,
    /// Whether to take IPv4 addresses only (true) or IPv6 only (false): a Service with a ClusterIP leads to its own family, as
    /// upstream's proxy is one for each. A Service without one leads to both.
    pub(super) ipv4: Option<bool>,
}

/// One endpoint on its way into a port's list.
struct Candidate<'a> {
    address: SocketAddr,
    state: State,
    node: Option<&'a str>,
    slice: &'a Slice,
    of: &'a SliceAddress,
}

/// The endpoints for a port of that name.
///
/// As upstream's proxy, hints count only when every ready endpoint has them and one of them means this node, or its zone.
/// Differs from Kubernetes: endpoints that hints do not mean stay as a second choice for when the others do not answer.
pub(super) fn endpoints(
    slices: &[&Slice],
    (name, protocol): (&str, Protocol),
    selection: Selection,
    locality: Locality,
    loads: &mut Loads,
) -> Endpoints {
    let mut found: Vec<Candidate<'_>> = slices
        .iter()
        .flat_map(|slice| slice.candidates(name, protocol, selection))
        .collect();
    if locality == Locality::Local {
        found.retain(|c| c.node.is_some_and(|node| loads.is_own(node)));
    }
    // A pod may be in two slices for a moment; in order, so that a table is the same for the same objects.
    found.sort_unstable_by_key(|c| (c.address, c.state));
    found.dedup_by_key(|c| c.address);
    let ready = found.iter().filter(|c| c.state == State::Ready).count();
    let preferred = match locality {
        Locality::Cluster => preferred(&found, loads),
        Locality::Local => None,
    };
    let near = |c: &Candidate<'_>| match preferred {
        Some(Hint::Nodes) => c.is_for_node(loads),
        Some(Hint::Zones) => c.is_for_zone(loads),
        None => false,
    };
    let mut order: Vec<(State, bool, &Candidate<'_>)> =
        found.iter().map(|c| (c.state, !near(c), c)).collect();
    order.sort_by_key(|(state, far, _)| (*state, *far));
    let is_near = |(state, far, _): &&(State, bool, &Candidate<'_>)| *state == State::Ready && !far;
    let near = order.iter().filter(is_near).count();
    let all = order
        .into_iter()
        .map(|(_, _, c)| loads.endpoint(c.address, c.node))
        .collect();
    Endpoints::new(all, near, ready)
}

#[derive(Clone, Copy)]
enum Hint {
    Nodes,
    Zones,
}

fn preferred(found: &[Candidate<'_>], loads: &Loads) -> Option<Hint> {
    let ready = || found.iter().filter(|c| c.state == State::Ready);
    if ready().all(|c| !c.of.for_nodes.is_empty()) && ready().any(|c| c.is_for_node(loads)) {
        return Some(Hint::Nodes);
    }
    let zones =
        ready().all(|c| !c.of.for_zones.is_empty()) && ready().any(|c| c.is_for_zone(loads));
    zones.then_some(Hint::Zones)
}

/// Ready addresses, for DNS and headless Services.
pub(super) fn hosts(slices: &[&Slice], publish_not_ready: bool) -> Vec<Host> {
    let mut hosts: Vec<Host> = slices
        .iter()
        .flat_map(|slice| {
            slice
                .endpoints
                .iter()
                .filter(move |endpoint| endpoint.state == State::Ready || publish_not_ready)
                .map(|endpoint| Host {
                    address: endpoint.address,
                    hostname: endpoint.hostname.as_deref().map(str::to_owned),
                    ports: Arc::clone(&slice.ports),
                })
        })
        .collect();
    hosts.sort_by_key(|host| host.address);
    hosts.dedup_by(|a, b| a.address == b.address && a.ports == b.ports);
    hosts.shrink_to_fit();
    hosts
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
        let mut names = Names::default();
        let endpoints = object.endpoints.iter().flatten();
        let endpoints = endpoints
            .filter_map(|endpoint| SliceAddress::parse(endpoint, &mut names))
            .collect();
        Some(Self {
            service: Key {
                namespace: object.metadata.namespace.clone()?,
                name: service.clone(),
            },
            name: object.metadata.name.clone()?,
            ports: Arc::new(ports),
            names: names.all.into(),
            endpoints,
        })
    }

    fn candidates(
        &self,
        name: &str,
        protocol: Protocol,
        selection: Selection,
    ) -> impl Iterator<Item = Candidate<'_>> {
        let port = self
            .ports
            .iter()
            .find(|(n, p, _)| n == name && *p == protocol);
        port.into_iter().flat_map(move |(_, _, port)| {
            let other = move |of: &SliceAddress| {
                let ipv4 = of.address.is_ipv4();
                selection.ipv4.is_some_and(|wanted| wanted != ipv4)
            };
            self.endpoints.iter().filter_map(move |of| {
                if other(of) {
                    return None;
                }
                let state = match of.state {
                    State::NotReady if selection.publish_not_ready => State::Ready,
                    State::NotReady => return None,
                    state => state,
                };
                Some(Candidate {
                    address: SocketAddr::new(of.address, *port),
                    state,
                    node: of.node.and_then(|name| self.name(name)),
                    slice: self,
                    of,
                })
            })
        })
    }

    fn name(&self, name: Name) -> Option<&str> {
        self.names.get(usize::from(name)).map(AsRef::as_ref)
    }
}

// === impl Candidate ===

impl Candidate<'_> {
    fn is_for_node(&self, loads: &Loads) -> bool {
        let mut names = self.of.for_nodes.iter().filter_map(|n| self.slice.name(*n));
        names.any(|node| loads.is_own(node))
    }

    fn is_for_zone(&self, loads: &Loads) -> bool {
        let mut names = self.of.for_zones.iter().filter_map(|n| self.slice.name(*n));
        names.any(|zone| loads.zone() == Some(zone))
    }
}

// === impl SliceAddress ===

impl SliceAddress {
    fn parse(endpoint: &SliceEndpoint, names: &mut Names) -> Option<Self> {
        let conditions = endpoint.conditions.clone().unwrap_or_default();
        let ready = conditions.ready.unwrap_or(true);
        let serving = conditions.serving.unwrap_or(ready);
        let terminating = conditions.terminating.unwrap_or(false);
        let hints = endpoint.hints.as_ref();
        let for_nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
        let for_zones = hints.and_then(|hints| hints.for_zones.as_ref());
        let mut name = |name: &str| names.position(name);
        Some(Self {
            // Kubernetes gives the addresses after the first no meaning.
            address: endpoint.addresses.first()?.parse().ok()?,
            hostname: endpoint.hostname.as_deref().map(Box::from),
            node: endpoint.node_name.as_deref().and_then(&mut name),
            for_nodes: for_nodes
                .into_iter()
                .flatten()
                .filter_map(|n| name(&n.name))
                .collect(),
            for_zones: for_zones
                .into_iter()
                .flatten()
                .filter_map(|z| name(&z.name))
                .collect(),
            state: match (ready, serving && terminating) {
                (true, _) => State::Ready,
                (false, true) => State::Leaving,
                (false, false) => State::NotReady,
            },
        })
    }
}

/// Names while a slice is read.
#[derive(Default)]
struct Names {
    all: Vec<Box<str>>,
    positions: HashMap<Box<str>, Name>,
}

// === impl Names ===

impl Names {
    /// `None` beyond 65,536 names, which no slice can have: it has at most 1,000 endpoints with 17 names each.
    fn position(&mut self, name: &str) -> Option<Name> {
        if let Some(known) = self.positions.get(name) {
            return Some(*known);
        }
        let position = Name::try_from(self.all.len()).ok()?;
        self.all.push(name.into());
        self.positions.insert(name.into(), position);
        Some(position)
    }
}

//! What the network knows of NetworkPolicies and of the pods they may mean: one immutable table, replaced as a whole. PURE.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::rules::{Facts, NamedPort, Policy};
use crate::network::namespaces::{Labels, Namespaces};
use crate::network::table::Protocol;

/// So few interned values are not looked through.
const FEW: usize = 256;

#[derive(Clone, Debug)]
pub(crate) struct Table {
    /// Policies have been listed: until then there may be any.
    pub(crate) known: bool,
    /// By namespace, ordered by name.
    pub(crate) policies: Arc<HashMap<String, Vec<Arc<Policy>>>>,
    /// Empty while there is no policy.
    pub(crate) peers: Arc<Peers>,
    pub(crate) namespaces: Arc<Namespaces>,
}

/// The cluster's pods.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peers {
    names: HashMap<Arc<str>, HashMap<Box<str>, Arc<Peer>>>,
    addresses: HashMap<IpAddr, Arc<Peer>>,
    /// All pods have been listed.
    pub(crate) complete: bool,
}

/// What is kept of a Pod. Labels, ports and names of nodes are shared between the pods that have the same.
#[derive(Debug, Eq, PartialEq)]
pub(crate) struct Peer {
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Box<str>,
    pub(crate) uid: Box<str>,
    pub(crate) labels: Arc<Labels>,
    pub(crate) ports: Arc<[NamedPort]>,
    pub(crate) addresses: Box<[IpAddr]>,
    /// `spec.nodeName`; empty before it is bound.
    pub(crate) node: Arc<str>,
}

/// What many pods have in common.
#[derive(Default)]
pub(crate) struct Interned {
    /// Namespaces and nodes.
    words: HashSet<Arc<str>>,
    labels: HashSet<Arc<Labels>>,
    ports: HashSet<Arc<[NamedPort]>>,
    /// How many were left when it was looked last for those that nobody has any more.
    left: usize,
}

// === impl Table ===

impl Default for Table {
    /// No policy anywhere, and that is known.
    fn default() -> Self {
        Self {
            known: true,
            policies: Arc::default(),
            peers: Arc::default(),
            namespaces: Arc::default(),
        }
    }
}

impl Table {
    /// Before anything has been listed.
    pub(crate) fn unknown() -> Self {
        Self {
            known: false,
            ..Self::default()
        }
    }

    /// Those of `namespace`.
    pub(crate) fn of(&self, namespace: &str) -> &[Arc<Policy>] {
        self.policies.get(namespace).map_or(&[], Vec::as_slice)
    }

    /// Nothing is forbidden anywhere.
    pub(crate) fn is_open(&self) -> bool {
        self.known && self.policies.is_empty()
    }

    /// Everything needed for a decision has been listed.
    pub(crate) fn is_complete(&self) -> bool {
        self.known && (self.policies.is_empty() || self.peers.complete && self.namespaces.complete)
    }
}

// === impl Peers ===

impl Peers {
    pub(crate) fn named(&self, namespace: &str, name: &str) -> Option<&Arc<Peer>> {
        self.names.get(namespace)?.get(name)
    }

    pub(crate) fn at(&self, ip: IpAddr) -> Option<&Arc<Peer>> {
        self.addresses.get(&ip)
    }

    /// Puts it in the place of what had its name; `Some(true)`: that one had other labels or ports, `None`: it is new.
    pub(crate) fn put(&mut self, peer: Peer) -> Option<bool> {
        let old = self.remove(&peer.namespace, &peer.name);
        let peer = Arc::new(peer);
        for ip in &peer.addresses {
            self.addresses.insert(*ip, Arc::clone(&peer));
        }
        let changed = old.map(|old| old.labels != peer.labels || old.ports != peer.ports);
        let namespace = self.names.entry(Arc::clone(&peer.namespace)).or_default();
        namespace.insert(peer.name.clone(), peer);
        changed
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) -> Option<Arc<Peer>> {
        let pods = self.names.get_mut(namespace)?;
        let old = pods.remove(name)?;
        if pods.is_empty() {
            self.names.remove(namespace);
        }
        for ip in &old.addresses {
            // Another pod may have got the address meanwhile.
            if self
                .addresses
                .get(ip)
                .is_some_and(|owner| Arc::ptr_eq(owner, &old))
            {
                self.addresses.remove(ip);
            }
        }
        Some(old)
    }

    /// Namespace and name of all.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&str, &str)> {
        let namespaces = self.names.iter();
        namespaces
            .flat_map(|(namespace, pods)| pods.keys().map(move |name| (&**namespace, &**name)))
    }
}

// === impl Peer ===

impl Peer {
    pub(crate) fn of(pod: Pod, interned: &mut Interned) -> Self {
        let ports = named_ports(&pod);
        let node = pod.spec.and_then(|spec| spec.node_name);
        let metadata = pod.metadata;
        let status = pod.status.unwrap_or_default();
        // What has ended has no address any more, whatever it says.
        let ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let ips = status
            .pod_ips
            .unwrap_or_default()
            .into_iter()
            .map(|ip| ip.ip);
        let mut addresses: Vec<IpAddr> = ips
            .chain(status.pod_ip)
            .filter_map(|ip| ip.parse().ok())
            .filter(|_| !ended)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let text = |value: Option<String>| value.unwrap_or_default().into_boxed_str();
        Self {
            namespace: interned.word(&metadata.namespace.unwrap_or_default()),
            name: text(metadata.name),
            uid: text(metadata.uid),
            labels: interned.labels(metadata.labels.unwrap_or_default()),
            ports: interned.ports(ports),
            addresses: addresses.into_boxed_slice(),
            node: interned.word(&node.unwrap_or_default()),
        }
    }

    pub(crate) fn facts(&self) -> Facts<'_> {
        Facts {
            namespace: &self.namespace,
            labels: &self.labels,
            ports: &self.ports,
        }
    }
}

/// Ports with names, of containers that run beside each other.
pub(crate) fn named_ports(pod: &Pod) -> Vec<NamedPort> {
    let spec = pod.spec.as_ref();
    let containers = spec
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    let sidecars = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default();
    let sidecars = sidecars
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    containers
        .iter()
        .chain(sidecars)
        .flat_map(of_container)
        .collect()
}

fn of_container(container: &Container) -> impl Iterator<Item = NamedPort> {
    container.ports.iter().flatten().filter_map(|port| {
        Some(NamedPort {
            name: port.name.clone()?,
            protocol: Protocol::parse(port.protocol.as_deref()),
            number: u16::try_from(port.container_port).ok()?,
        })
    })
}

// === impl Interned ===

impl Interned {
    fn word(&mut self, word: &str) -> Arc<str> {
        intern(&mut self.words, word, || Arc::from(word))
    }

    fn labels(&mut self, labels: Labels) -> Arc<Labels> {
        if let Some(known) = self.labels.get(&labels) {
            return Arc::clone(known);
        }
        let labels = Arc::new(labels);
        self.labels.insert(Arc::clone(&labels));
        labels
    }

    fn ports(&mut self, ports: Vec<NamedPort>) -> Arc<[NamedPort]> {
        intern(&mut self.ports, ports.as_slice(), || {
            Arc::from(ports.as_slice())
        })
    }

    pub(super) fn len(&self) -> usize {
        self.words.len() + self.labels.len() + self.ports.len()
    }

    /// Forgets what no pod has any more, when there are twice as many as were left the last time: pods come and go with
    /// labels of their own (`pod-template-hash`).
    pub(crate) fn prune_when_grown(&mut self) {
        if self.len() >= FEW.max(self.left * 2) {
            self.prune();
        }
    }

    /// Forgets what no pod has any more.
    pub(crate) fn prune(&mut self) {
        self.words.retain(|value| Arc::strong_count(value) > 1);
        self.labels.retain(|value| Arc::strong_count(value) > 1);
        self.ports.retain(|value| Arc::strong_count(value) > 1);
        self.left = self.len();
    }
}

fn intern<T: ?Sized + std::hash::Hash + Eq>(
    known: &mut HashSet<Arc<T>>,
    value: &T,
    make: impl FnOnce() -> Arc<T>,
) -> Arc<T> {
    if let Some(known) = known.get(value) {
        return Arc::clone(known);
    }
    let value = make();
    known.insert(Arc::clone(&value));
    value
}

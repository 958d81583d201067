//! What is on every node, and what is assumed to be. Pure data; nothing here asks the server.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;
use types::quantity::Quantity;
use types::well_known::{LABEL_HOSTNAME, TAINT_UNSCHEDULABLE};

use super::pod::{Amounts, HostPort, Namespaces, PodInfo};
use crate::objects::{Node, Pod};

/// One node with everything that counts against it.
#[derive(Clone, Debug)]
pub struct NodeInfo {
    pub name: String,
    /// `None` while only pods say that there is such a node.
    pub node: Option<Arc<Node>>,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    pub allocatable: Amounts,
    pub most_pods: usize,
    pub requested: Amounts,
    /// Requests with assumptions in place of nothing: millicores and bytes.
    pub assumed: (i64, i64),
    pub ports: Vec<HostPort>,
    pub pods: HashMap<Arc<str>, Arc<PodInfo>>,
    /// Controller → its pods here.
    pub owners: HashMap<Arc<str>, usize>,
}

/// All nodes, in the order of their names.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    nodes: Vec<NodeInfo>,
    by_name: HashMap<String, usize>,
    /// Pod → the node it is, or is assumed to be, on.
    placed: HashMap<Arc<str>, String>,
    pub namespaces: Namespaces,
    /// How many pods have required anti-affinity: mostly none, and then nobody has to look.
    pub with_anti_affinity: usize,
}

// === impl NodeInfo ===

impl NodeInfo {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: None,
            unschedulable: false,
            taints: Vec::new(),
            allocatable: Amounts::default(),
            most_pods: 0,
            requested: Amounts::default(),
            assumed: (0, 0),
            ports: Vec::new(),
            pods: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    fn set(&mut self, node: Arc<Node>) {
        let allocatable = node.status.allocatable.clone().unwrap_or_default();
        self.allocatable = Amounts::parse(&allocatable);
        self.most_pods = allocatable
            .get("pods")
            .and_then(|q| Quantity::try_from(q).ok())
            .map_or(0, |q| usize::try_from(q.units()).unwrap_or(0));
        self.unschedulable = node.spec.unschedulable == Some(true);
        self.taints = node.spec.taints.clone().unwrap_or_default();
        // Cordoned nodes have their own reason; the taint that mirrors it must not hide it.
        if self.unschedulable {
            self.taints.retain(|t| t.key != TAINT_UNSCHEDULABLE);
        }
        self.node = Some(node);
    }

    pub fn label(&self, key: &str) -> Option<&str> {
        let labels = &self.node.as_ref()?.metadata.labels;
        match labels.get(key) {
            Some(value) => Some(value),
            None if key == LABEL_HOSTNAME => Some(&self.name),
            None => None,
        }
    }

    fn add(&mut self, pod: Arc<PodInfo>) {
        self.requested.add(&pod.requests);
        self.assumed.0 += pod.assumed.0;
        self.assumed.1 += pod.assumed.1;
        self.ports.extend(pod.ports.iter().cloned());
        if let Some(owner) = &pod.owner {
            *self.owners.entry(Arc::clone(owner)).or_default() += 1;
        }
        self.pods.insert(Arc::clone(&pod.uid), pod);
    }

    fn remove(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let pod = self.pods.remove(uid)?;
        self.requested.subtract(&pod.requests);
        self.assumed.0 -= pod.assumed.0;
        self.assumed.1 -= pod.assumed.1;
        for port in &pod.ports {
            if let Some(index) = self.ports.iter().position(|p| p == port) {
                self.ports.swap_remove(index);
            }
        }
        if let Some(owner) = &pod.owner
            && let Some(count) = self.owners.get_mut(owner)
        {
            *count -= 1;
            if *count == 0 {
                self.owners.remove(owner);
            }
        }
        Some(pod)
    }
}

// === impl Cluster ===

impl Cluster {
    /// The nodes that exist, in the order of their names.
    pub fn nodes(&self) -> impl Iterator<Item = &NodeInfo> {
        self.nodes.iter().filter(|n| n.node.is_some())
    }

    /// All entries, those of nodes known only from pods included.
    pub fn entries(&self) -> &[NodeInfo] {
        &self.nodes
    }

    pub fn get(&self, name: &str) -> Option<&NodeInfo> {
        self.by_name.get(name).map(|i| &self.nodes[*i])
    }

    pub fn contains(&self, uid: &str) -> bool {
        self.placed.contains_key(uid)
    }

    /// Is this version of the pod counted already?
    pub fn is_confirmed(&self, uid: &str, pod: &Pod) -> bool {
        let Some(node) = self.placed.get(uid).filter(|n| **n == pod.spec.node_name) else {
            return false;
        };
        self.get(node)
            .and_then(|n| n.pods.get(uid))
            .is_some_and(|known| {
                let (a, b) = (&known.pod, pod);
                a.metadata.labels == b.metadata.labels
                    && a.spec.containers == b.spec.containers
                    && a.spec.resources == b.spec.resources
            })
    }

    /// Takes a node as it is now. True when pods that did not fit may fit now.
    pub fn set_node(&mut self, name: &str, node: Option<Arc<Node>>) -> bool {
        match node {
            Some(node) => {
                let index = self.entry(name);
                self.nodes[index].set(node);
                true
            }
            None => {
                if let Some(index) = self.by_name.get(name).copied() {
                    self.nodes[index].node = None;
                    self.nodes[index].taints.clear();
                    self.drop_unused(index);
                }
                false
            }
        }
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<BTreeMap<String, String>>) {
        match labels {
            Some(labels) => self.namespaces.insert(name.to_owned(), labels),
            None => self.namespaces.remove(name),
        };
    }

    /// Counts a pod against a node, whether it is there or only assumed to be.
    pub fn place(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.remove(&pod.uid);
        let index = self.entry(node);
        self.with_anti_affinity += usize::from(!pod.anti_affinity.is_empty());
        self.placed.insert(Arc::clone(&pod.uid), node.to_owned());
        self.nodes[index].add(pod);
    }

    /// True when the pod was counted and no longer is.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(node) = self.placed.remove(uid) else {
            return false;
        };
        let Some(index) = self.by_name.get(&node).copied() else {
            return false;
        };
        if let Some(pod) = self.nodes[index].remove(uid) {
            self.with_anti_affinity -= usize::from(!pod.anti_affinity.is_empty());
        }
        self.drop_unused(index);
        true
    }

    fn entry(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.nodes.partition_point(|n| n.name.as_str() < name);
        self.nodes.insert(index, NodeInfo::new(name));
        self.index_from(index);
        index
    }

    fn drop_unused(&mut self, index: usize) {
        if self.nodes[index].node.is_none() && self.nodes[index].pods.is_empty() {
            let gone = self.nodes.remove(index);
            self.by_name.remove(&gone.name);
            self.index_from(index);
        }
    }

    fn index_from(&mut self, from: usize) {
        for (offset, node) in self.nodes[from..].iter().enumerate() {
            self.by_name.insert(node.name.clone(), from + offset);
        }
    }
}

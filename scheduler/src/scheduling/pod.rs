//! A pod as scheduling sees it: everything parsed once, numbers instead of quantities.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PodAffinityTerm, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use kube::core::Selector;
use types::quantity::Quantity;

use crate::events;
use crate::objects::{Container, Key, PODS, Pod};

/// Namespace → its labels.
pub type Namespaces = HashMap<String, BTreeMap<String, String>>;

/// What scoring assumes of a container that requests nothing: it will still use something.
const ASSUMED_MILLICORES: i64 = 100;
const ASSUMED_BYTES: i64 = 200 * 1024 * 1024;

/// Amounts of resources. Units: millicores, bytes, and whole numbers of extended resources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub millicores: i64,
    pub memory: i64,
    pub storage: i64,
    pub extended: BTreeMap<String, i64>,
}

/// A port of the node itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Empty means every address.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

/// One pod (anti-)affinity term, compiled.
#[derive(Clone, Debug)]
pub struct Term {
    pub topology_key: String,
    selector: Option<Selector>,
    /// Namespaces named, or the pod's own when none are and there is no selector.
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
    pub weight: i64,
}

#[derive(Clone, Debug)]
pub struct PodInfo {
    pub key: Key,
    pub uid: Arc<str>,
    pub pod: Arc<Pod>,
    pub priority: i32,
    pub requests: Amounts,
    /// Requests with assumptions in place of nothing, for scoring: millicores and bytes.
    pub assumed: (i64, i64),
    pub ports: Vec<HostPort>,
    /// The uid of its controller: pods of one controller are spread.
    pub owner: Option<Arc<str>>,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    pub preferred: Vec<Term>,
}

// === impl PodInfo ===

impl PodInfo {
    pub fn new(pod: &Arc<Pod>) -> Self {
        let meta = &pod.metadata;
        let requests = requests(pod);
        let mut assumed = (0, 0);
        for container in &pod.spec.containers {
            let own = container_requests(container.resources.as_ref());
            assumed.0 += if own.millicores == 0 {
                ASSUMED_MILLICORES
            } else {
                own.millicores
            };
            assumed.1 += if own.memory == 0 {
                ASSUMED_BYTES
            } else {
                own.memory
            };
        }
        let affinity = pod.spec.affinity.as_deref();
        let near = affinity.and_then(|a| a.pod_affinity.as_ref());
        let apart = affinity.and_then(|a| a.pod_anti_affinity.as_ref());
        let required = |terms: Option<&Vec<PodAffinityTerm>>| -> Vec<Term> {
            terms
                .into_iter()
                .flatten()
                .map(|t| Term::new(t, pod, 0))
                .collect()
        };
        let mut preferred = Vec::new();
        for weighted in near
            .iter()
            .filter_map(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            })
            .flatten()
        {
            preferred.push(Term::new(
                &weighted.pod_affinity_term,
                pod,
                i64::from(weighted.weight),
            ));
        }
        for weighted in apart
            .iter()
            .filter_map(|a| {
                a.preferred_during_scheduling_ignored_during_execution
                    .as_ref()
            })
            .flatten()
        {
            preferred.push(Term::new(
                &weighted.pod_affinity_term,
                pod,
                -i64::from(weighted.weight),
            ));
        }
        Self {
            key: meta.key(),
            uid: meta.uid.as_str().into(),
            priority: pod.spec.priority,
            assumed: (
                assumed.0.max(requests.millicores),
                assumed.1.max(requests.memory),
            ),
            requests,
            ports: host_ports(pod),
            owner: meta.controller().map(|o| o.uid.as_str().into()),
            affinity: required(near.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            anti_affinity: required(apart.and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            })),
            preferred,
            pod: Arc::clone(pod),
        }
    }

    /// A reference for Events.
    pub fn reference(&self) -> ObjectReference {
        events::reference(PODS, &self.pod.metadata)
    }
}

/// The larger of what the containers need together and what the init containers need at any moment, plus overhead;
/// requests of the pod as a whole win where they are given.
pub fn requests(pod: &Pod) -> Amounts {
    let mut sidecars = Amounts::default();
    let mut peak = Amounts::default();
    for container in &pod.spec.init_containers {
        let own = container_requests(container.resources.as_ref());
        if is_sidecar(container) {
            sidecars.add(&own);
            peak.raise(&sidecars);
        } else {
            let mut now = sidecars.clone();
            now.add(&own);
            peak.raise(&now);
        }
    }
    let mut total = sidecars;
    for container in &pod.spec.containers {
        total.add(&container_requests(container.resources.as_ref()));
    }
    total.raise(&peak);
    if let Some(resources) = &pod.spec.resources {
        let own = container_requests(Some(resources));
        let named = |name: &str| {
            let has = |m: &Option<BTreeMap<String, ApiQuantity>>| {
                m.as_ref().is_some_and(|m| m.contains_key(name))
            };
            has(&resources.requests) || has(&resources.limits)
        };
        if named("cpu") {
            total.millicores = own.millicores;
        }
        if named("memory") {
            total.memory = own.memory;
        }
    }
    total.add(&Amounts::parse(&pod.spec.overhead));
    total
}

fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// Requests; a limit without a request is its request.
fn container_requests(resources: Option<&ResourceRequirements>) -> Amounts {
    let Some(resources) = resources else {
        return Amounts::default();
    };
    let mut merged = resources.limits.clone().unwrap_or_default();
    merged.extend(resources.requests.clone().unwrap_or_default());
    Amounts::parse(&merged)
}

fn host_ports(pod: &Pod) -> Vec<HostPort> {
    pod.containers()
        .flat_map(|c| &c.ports)
        .filter_map(|p| {
            Some(HostPort {
                ip: p
                    .host_ip
                    .clone()
                    .filter(|ip| ip != "0.0.0.0")
                    .unwrap_or_default(),
                protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: p.host_port.filter(|port| *port > 0)?,
            })
        })
        .collect()
}

// === impl HostPort ===

impl HostPort {
    pub fn conflicts(&self, other: &Self) -> bool {
        let same_address = self.ip == other.ip || self.ip.is_empty() || other.ip.is_empty();
        same_address && self.port == other.port && self.protocol == other.protocol
    }
}

// === impl Amounts ===

impl Amounts {
    pub fn parse(map: &BTreeMap<String, ApiQuantity>) -> Self {
        let mut amounts = Self::default();
        for (name, amount) in map {
            // The server accepts no quantity that does not parse.
            let Ok(amount) = Quantity::try_from(amount) else {
                continue;
            };
            let whole = i64::try_from(amount.bytes()).unwrap_or(i64::MAX);
            match name.as_str() {
                "cpu" => amounts.millicores = amount.millis(),
                "memory" => amounts.memory = whole,
                "ephemeral-storage" => amounts.storage = whole,
                "pods" => {}
                _ => {
                    amounts.extended.insert(name.clone(), whole);
                }
            }
        }
        amounts
    }

    pub fn add(&mut self, other: &Self) {
        self.millicores = self.millicores.saturating_add(other.millicores);
        self.memory = self.memory.saturating_add(other.memory);
        self.storage = self.storage.saturating_add(other.storage);
        for (name, amount) in &other.extended {
            let sum = self.extended.entry(name.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
    }

    pub fn subtract(&mut self, other: &Self) {
        self.millicores -= other.millicores;
        self.memory -= other.memory;
        self.storage -= other.storage;
        for (name, amount) in &other.extended {
            if let Some(left) = self.extended.get_mut(name) {
                *left -= amount;
            }
        }
    }

    fn raise(&mut self, least: &Self) {
        self.millicores = self.millicores.max(least.millicores);
        self.memory = self.memory.max(least.memory);
        self.storage = self.storage.max(least.storage);
        for (name, amount) in &least.extended {
            let most = self.extended.entry(name.clone()).or_default();
            *most = (*most).max(*amount);
        }
    }
}

// === impl Term ===

impl Term {
    fn new(term: &PodAffinityTerm, pod: &Pod, weight: i64) -> Self {
        let mut labels = term.label_selector.clone();
        // Keys whose values are taken from the pod itself narrow the selector further.
        if let Some(labels) = &mut labels {
            for key in term.match_label_keys.iter().flatten() {
                if let Some(value) = pod.metadata.labels.get(key) {
                    labels
                        .match_labels
                        .get_or_insert_default()
                        .insert(key.clone(), value.clone());
                }
            }
        }
        let mut namespaces = term.namespaces.clone().unwrap_or_default();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.push(pod.metadata.namespace.clone());
        }
        Self {
            topology_key: term.topology_key.clone(),
            // No selector selects nothing.
            selector: labels.and_then(|l| Selector::try_from(l).ok()),
            namespaces,
            namespace_selector: term
                .namespace_selector
                .clone()
                .and_then(|s| Selector::try_from(s).ok()),
            weight,
        }
    }

    /// Does the term mean this pod? `namespaces` has the labels of every namespace.
    pub fn means(&self, pod: &Pod, namespaces: &Namespaces) -> bool {
        use kube::core::SelectorExt as _;
        let Some(selector) = &self.selector else {
            return false;
        };
        let namespace = &pod.metadata.namespace;
        let there = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|s| {
                namespaces
                    .get(namespace)
                    .map_or_else(|| s.selects_all(), |labels| s.matches(labels))
            });
        there && selector.matches(&pod.metadata.labels)
    }
}

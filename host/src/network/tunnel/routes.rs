//! Which node has which pod addresses, and where its tunnel is: an index of Node objects. Pure; events in, routes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node as Object;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use types::well_known::{ANNOTATION_TUNNEL, TUNNEL_RELAY};

/// Where another node's tunnel is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    Address(SocketAddr),
    /// It cannot be dialled; the connections it keeps to the API servers lead to it.
    Relay,
}

/// What counts of a Node object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Known {
    pub(super) cidrs: Vec<Ipv4Net>,
    /// `None`: its Node does not say.
    pub(super) target: Option<Target>,
    created: Option<jiff::Timestamp>,
}

/// Every node but this one.
#[derive(Default)]
pub(super) struct Index {
    own: String,
    nodes: BTreeMap<String, Known>,
    /// What a relist has not mentioned yet is gone when it ends.
    relisted: Option<BTreeSet<String>>,
    listed: bool,
}

// === impl Known ===

impl Known {
    fn of(object: &Object) -> Self {
        let spec = object.spec.as_ref();
        let plural = spec.and_then(|spec| spec.pod_cidrs.clone());
        let single = spec.and_then(|spec| spec.pod_cidr.clone());
        let texts = plural.unwrap_or_else(|| single.into_iter().collect());
        let target = object.annotations().get(ANNOTATION_TUNNEL);
        Self {
            // The pod network is IPv4.
            cidrs: texts.iter().filter_map(|text| text.parse().ok()).collect(),
            target: target.and_then(|text| match text.as_str() {
                TUNNEL_RELAY => Some(Target::Relay),
                address => address.parse().ok().map(Target::Address),
            }),
            created: object.creation_timestamp().map(|time| time.0),
        }
    }
}

// === impl Index ===

impl Index {
    pub(super) fn new(own: &str) -> Self {
        Self {
            own: own.to_owned(),
            ..Self::default()
        }
    }

    /// Whether all nodes were heard of once.
    pub(super) fn is_listed(&self) -> bool {
        self.listed
    }

    /// True when something has changed.
    pub(super) fn event(&mut self, event: Event<Object>) -> bool {
        match event {
            Event::Init => {
                self.relisted = Some(BTreeSet::new());
                false
            }
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.relisted {
                    seen.insert(object.name_any());
                }
                self.apply(&object)
            }
            Event::InitDone => {
                self.listed = true;
                let before = self.nodes.len();
                if let Some(seen) = self.relisted.take() {
                    self.nodes.retain(|name, _| seen.contains(name));
                }
                self.nodes.len() != before
            }
            Event::Apply(object) => self.apply(&object),
            Event::Delete(object) => self.nodes.remove(&object.name_any()).is_some(),
        }
    }

    fn apply(&mut self, object: &Object) -> bool {
        let name = object.name_any();
        if name == self.own {
            return false;
        }
        let known = Known::of(object);
        if self.nodes.get(&name) == Some(&known) {
            return false;
        }
        self.nodes.insert(name, known);
        true
    }

    pub(super) fn nodes(&self) -> impl Iterator<Item = (&str, &Known)> {
        self.nodes.iter().map(|(name, known)| (&**name, known))
    }

    /// Ranges by their first address, none overlapping another: of two nodes that claim the same addresses the older one
    /// has them.
    pub(super) fn ranges(&self) -> Vec<(Ipv4Net, &str)> {
        let mut order: Vec<(&str, &Known)> = self.nodes().collect();
        order.sort_by_key(|(name, known)| (known.created.is_none(), known.created, *name));
        let mut taken: BTreeMap<Ipv4Addr, (Ipv4Net, &str)> = BTreeMap::new();
        for (name, known) in order {
            for cidr in &known.cidrs {
                let below = taken.range(..=cidr.broadcast()).next_back();
                if below.is_none_or(|(_, (other, _))| other.broadcast() < cidr.network()) {
                    taken.insert(cidr.network(), (*cidr, name));
                }
            }
        }
        taken.into_values().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn node(name: &str, cidr: &str, tunnel: Option<&str>, second: u32) -> Object {
        let mut annotations = serde_json::Map::new();
        if let Some(tunnel) = tunnel {
            annotations.insert(ANNOTATION_TUNNEL.to_owned(), json!(tunnel));
        }
        let created = format!("2026-11-23T10:00:{second:02}Z");
        let object = json!({"metadata": {"name": name, "annotations": annotations,
            "creationTimestamp": created}, "spec": {"podCIDR": cidr, "podCIDRs": [cidr]}});
        serde_json::from_value(object).unwrap()
    }

    fn ranges(index: &Index) -> Vec<String> {
        let ranges = index.ranges();
        ranges
            .iter()
            .map(|(cidr, name)| format!("{name} {cidr}"))
            .collect()
    }

    #[test]
    fn nodes_come_change_and_go() {
        let mut index = Index::new("a");
        assert!(!index.event(Event::Init));
        assert!(
            !index.event(Event::InitApply(node("a", "100.64.0.0/18", None, 0))),
            "own"
        );
        assert!(index.event(Event::InitApply(node("b", "100.64.64.0/18", None, 1))));
        index.event(Event::InitDone);
        assert!(index.is_listed());
        assert_eq!(ranges(&index), ["b 100.64.64.0/18"]);
        assert!(
            !index.event(Event::Apply(node("b", "100.64.64.0/18", None, 1))),
            "the same"
        );
        assert!(index.event(Event::Apply(node(
            "b",
            "100.64.64.0/18",
            Some("192.0.2.7:15008"),
            1
        ))));
        let target = |index: &Index| index.nodes().next().unwrap().1.target;
        let address = "192.0.2.7:15008".parse().unwrap();
        assert_eq!(target(&index), Some(Target::Address(address)));
        index.event(Event::Apply(node("b", "100.64.64.0/18", Some("relay"), 1)));
        assert_eq!(target(&index), Some(Target::Relay));
        index.event(Event::Apply(node(
            "b",
            "100.64.64.0/18",
            Some("nonsense"),
            1,
        )));
        assert_eq!(target(&index), None);
        index.event(Event::Init);
        index.event(Event::InitApply(node("c", "100.64.128.0/18", None, 1)));
        assert!(
            index.event(Event::InitDone),
            "b was deleted while nobody watched"
        );
        assert_eq!(ranges(&index), ["c 100.64.128.0/18"]);
        assert!(index.event(Event::Delete(node("c", "100.64.128.0/18", None, 1))));
        assert!(ranges(&index).is_empty());
    }

    #[test]
    fn of_two_that_claim_the_same_addresses_the_older_has_them() {
        let mut index = Index::new("a");
        index.event(Event::Apply(node("young", "100.64.64.0/20", None, 9)));
        index.event(Event::Apply(node("old", "100.64.64.0/18", None, 1)));
        index.event(Event::Apply(node("beside", "100.64.128.0/18", None, 5)));
        index.event(Event::Apply(node("around", "100.64.0.0/10", None, 7)));
        assert_eq!(
            ranges(&index),
            ["old 100.64.64.0/18", "beside 100.64.128.0/18"]
        );
    }
}

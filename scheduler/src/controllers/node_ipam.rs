//! Gives each Node the addresses of its pods: `spec.podCIDR`, a part of the cluster's range.
//!
//! Owns that field of Nodes that came without one. Keeps no book: what is taken is what Nodes say, what pods that still
//! exist have, and what was just written and is not visible yet. One pass at a time, so that no part is given twice.

use std::collections::{BTreeSet, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;
use serde_json::{Value, json};
use tracing::warn;

use super::{Shared, caught_up};
use crate::events::{self, Recorder};
use crate::objects::{Key, NODES, Node};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Error, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// A Node that got nothing asks again; the end of another wakes it earlier.
const RETRY: Duration = Duration::from_secs(30);

/// The cluster's range, cut into equal parts.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    cluster: Ipv4Net,
    mask: u8,
}

/// What is taken, and where to look first.
#[derive(Debug, Default)]
pub struct Taken {
    parts: BTreeSet<u32>,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    Assign(Ipv4Net),
    /// Everything is taken.
    NoneLeft,
}

/// Which part a Node without one gets: the next free one after the last that was given, so that a part rests as long as
/// possible before it is given again.
pub fn plan(node: &Node, range: &Range, taken: &Taken, after: Option<Ipv4Net>) -> Option<Action> {
    if node.metadata.is_deleting() || !cidrs(node).is_empty() {
        return None;
    }
    let start = after
        .and_then(|last| range.part_of(last.network()))
        .map_or(0, |last| last.wrapping_add(1));
    let free = range.free(taken, start);
    Some(free.map_or(Action::NoneLeft, Action::Assign))
}

/// Every range a Node has, whoever gave it.
fn cidrs(node: &Node) -> Vec<&str> {
    let many = node.spec.pod_cidrs.iter().flatten().map(String::as_str);
    let one = node.spec.pod_cidr.as_deref();
    many.chain(one).filter(|cidr| !cidr.is_empty()).collect()
}

/// The name of a Node that has some of the same addresses, the elder of the two being in the right.
fn conflict<'a>(node: &Node, others: &'a [Arc<Node>]) -> Option<&'a str> {
    let own: Vec<Ipv4Net> = cidrs(node).iter().filter_map(|c| c.parse().ok()).collect();
    let overlap = |other: &Node| {
        let theirs = cidrs(other).into_iter().filter_map(|c| c.parse().ok());
        theirs.into_iter().any(|their: Ipv4Net| {
            own.iter()
                .any(|own| own.contains(&their.network()) || their.contains(&own.network()))
        })
    };
    let age = |n: &Node| (n.metadata.created_at(), n.metadata.uid.clone());
    others
        .iter()
        .find(|o| o.metadata.uid != node.metadata.uid && age(o) < age(node) && overlap(o))
        .map(|o| o.metadata.name.as_str())
}

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    range: Range,
    /// Keys are Nodes. Worked on one at a time.
    pub queue: Arc<Queue<Key>>,
    given: Mutex<Given>,
}

#[derive(Default)]
struct Given {
    last: Option<Ipv4Net>,
    /// Node uid → what was written for it; kept until the Node shows it, because a write without an answer may have
    /// happened.
    unseen: HashMap<String, Ipv4Net>,
}

// === impl Range ===

impl Range {
    pub fn new(cluster: Ipv4Net, mask: u8) -> Self {
        Self {
            cluster: cluster.trunc(),
            mask,
        }
    }

    /// How many parts there are; none when a part would be larger than the whole.
    pub fn parts(&self) -> u32 {
        match self.mask.checked_sub(self.cluster.prefix_len()) {
            Some(bits) if self.mask <= 32 && bits < 32 => 1 << bits,
            _ => 0,
        }
    }

    fn part(&self, index: u32) -> Option<Ipv4Net> {
        let size = 1u32.checked_shl(u32::from(32 - self.mask)).unwrap_or(0);
        let start = u32::from(self.cluster.network()).checked_add(index.checked_mul(size)?)?;
        Ipv4Net::new(Ipv4Addr::from(start), self.mask).ok()
    }

    fn part_of(&self, address: Ipv4Addr) -> Option<u32> {
        if self.parts() == 0 || !self.cluster.contains(&address) {
            return None;
        }
        let offset = u32::from(address) - u32::from(self.cluster.network());
        Some(offset.checked_shr(u32::from(32 - self.mask)).unwrap_or(0))
    }

    fn free(&self, taken: &Taken, start: u32) -> Option<Ipv4Net> {
        let parts = self.parts();
        let start = if start < parts { start } else { 0 };
        (start..parts)
            .chain(0..start)
            .find(|index| !taken.parts.contains(index))
            .and_then(|index| self.part(index))
    }
}

// === impl Taken ===

impl Taken {
    /// Every part that has an address in common with the range.
    pub fn range(&mut self, range: &Range, cidr: Ipv4Net) {
        let cidr = cidr.trunc();
        if cidr.contains(&range.cluster) {
            self.parts.extend(0..range.parts());
            return;
        }
        let ends = (
            range.part_of(cidr.network()),
            range.part_of(cidr.broadcast()),
        );
        if let (Some(first), Some(last)) = ends {
            self.parts.extend(first..=last);
        }
    }

    pub fn address(&mut self, range: &Range, address: &str) {
        let part = address.parse().ok().and_then(|a| range.part_of(a));
        self.parts.extend(part);
    }
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let range = Range::new(shared.args.cluster_cidr, shared.args.node_cidr_mask_size);
        if range.parts() == 0 {
            warn!(
                cluster = %range.cluster, mask = range.mask,
                "A node's part would be larger than the cluster's range: no node gets one"
            );
        }
        let queue = Queue::new("nodeipam", Duration::ZERO);
        let waker = Arc::clone(&queue);
        let nodes = Arc::downgrade(&shared.informers.nodes);
        shared.informers.nodes.on_change(move |change| {
            match (change.old, change.new) {
                (Some(old), Some(new)) if old.spec == new.spec => {}
                (_, Some(new)) => waker.add(new.metadata.key()),
                // What it had may be free now.
                (_, None) => {
                    let nodes = nodes.upgrade().map(|n| n.all()).unwrap_or_default();
                    for waiting in nodes.iter().filter(|n| cidrs(n).is_empty()) {
                        waker.add(waiting.metadata.key());
                    }
                }
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("cidrAllocator"),
            writer: shared.writer("node-controller"),
            range,
            queue,
            given: Mutex::new(Given::default()),
        })
    }

    /// One pass over one Node.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(node) = self.shared.informers.nodes.get(&key) else {
            return Ok(Outcome::Done);
        };
        if !cidrs(&node).is_empty() {
            let all = self.shared.informers.nodes.all();
            if let Some(other) = conflict(&node, &all) {
                let message = format!(
                    "Node {} has pod addresses ({}) that node {other} has too",
                    key.name,
                    cidrs(&node).join(", ")
                );
                let about = events::reference(NODES, &node.metadata);
                self.recorder.warning(about, "CIDRConflict", message);
            }
            return Ok(Outcome::Done);
        }
        let Some((action, earlier)) = self.decide(&node) else {
            return Ok(Outcome::Done);
        };
        match action {
            Action::NoneLeft => {
                let message = format!("Node {} status is now: CIDRNotAvailable", key.name);
                let about = events::reference(NODES, &node.metadata);
                self.recorder.normal(about, "CIDRNotAvailable", message);
                Ok(Outcome::Again(RETRY))
            }
            Action::Assign(cidr) => {
                let target = Target::of(NODES, &node.metadata);
                let written = self.writer.patch(&target, &assignment(&node, cidr)).await;
                if let Err(error) = &written
                    && error.code().is_some()
                    && !earlier
                {
                    // Refused, so it did not happen.
                    self.given().unseen.remove(&node.metadata.uid);
                }
                let written = gone_is_fine(written)?;
                self.given().last = Some(cidr);
                let store = &self.shared.informers.nodes;
                caught_up(store, "nodes", written.metadata.revision(), CATCH_UP).await?;
                Ok(Outcome::Done)
            }
        }
    }

    /// What to do, and whether the same was tried before.
    fn decide(&self, node: &Node) -> Option<(Action, bool)> {
        let informers = &self.shared.informers;
        let nodes = informers.nodes.all();
        let mut given = self.given();
        let shown: HashMap<&str, bool> = nodes
            .iter()
            .map(|n| (n.metadata.uid.as_str(), !cidrs(n).is_empty()))
            .collect();
        given
            .unseen
            .retain(|uid, _| shown.get(uid.as_str()) == Some(&false));
        if let Some(again) = given.unseen.get(&node.metadata.uid) {
            return Some((Action::Assign(*again), true));
        }
        let mut taken = Taken::default();
        for cidr in nodes.iter().flat_map(|n| cidrs(n)) {
            if let Ok(cidr) = cidr.parse() {
                taken.range(&self.range, cidr);
            }
        }
        for cidr in given.unseen.values() {
            taken.range(&self.range, *cidr);
        }
        for pod in informers.pods.all() {
            taken.address(&self.range, &pod.status.pod_ip);
        }
        let action = plan(node, &self.range, &taken, given.last)?;
        if let Action::Assign(cidr) = action {
            given.unseen.insert(node.metadata.uid.clone(), cidr);
        }
        Some((action, false))
    }

    fn given(&self) -> std::sync::MutexGuard<'_, Given> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Refused when the Node changed: it may have got one from elsewhere.
fn assignment(node: &Node, cidr: Ipv4Net) -> Value {
    json!({
        "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(cluster: &str, mask: u8) -> Range {
        Range::new(cluster.parse().expect("a range"), mask)
    }

    fn node(name: &str, created: &str, cidr: Option<&str>) -> Arc<Node> {
        let node = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": created},
            "spec": {"podCIDR": cidr}
        });
        Arc::new(serde_json::from_value(node).expect("a node"))
    }

    #[test]
    fn a_part_rests_before_it_is_given_again() {
        let range = range("100.64.0.0/10", 18);
        assert_eq!(range.parts(), 256);
        let fresh = node("a", "2026-01-01T00:00:00Z", None);
        let mut taken = Taken::default();
        taken.range(&range, "100.64.0.0/17".parse().expect("a range"));
        let given = |taken: &Taken, after| match plan(&fresh, &range, taken, after) {
            Some(Action::Assign(cidr)) => cidr.to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(given(&taken, None), "100.64.128.0/18");
        let last = "100.127.192.0/18".parse().ok();
        assert_eq!(given(&taken, last), "100.64.128.0/18", "it goes round");
        taken.address(&range, "100.64.130.7");
        assert_eq!(given(&taken, None), "100.64.192.0/18", "pods hold a part");
        taken.range(&range, "0.0.0.0/0".parse().expect("a range"));
        assert_eq!(plan(&fresh, &range, &taken, None), Some(Action::NoneLeft));
        let has = node("b", "2026-01-01T00:00:00Z", Some("10.0.0.0/24"));
        assert_eq!(plan(&has, &range, &Taken::default(), None), None);
    }

    #[test]
    fn a_part_larger_than_the_whole_is_never_given() {
        for (cluster, mask) in [("10.0.0.0/24", 16), ("10.0.0.0/8", 33)] {
            let range = range(cluster, mask);
            let fresh = node("a", "2026-01-01T00:00:00Z", None);
            let action = plan(&fresh, &range, &Taken::default(), None);
            assert_eq!(action, Some(Action::NoneLeft), "{cluster} {mask}");
        }
        assert_eq!(range("10.0.0.0/24", 24).parts(), 1);
        assert_eq!(range("0.0.0.0/0", 30).parts(), 1 << 30);
    }

    #[test]
    fn the_younger_of_two_with_the_same_addresses_is_told() {
        let elder = node("elder", "2026-01-01T00:00:00Z", Some("100.64.0.0/18"));
        let younger = node("younger", "2026-01-02T00:00:00Z", Some("100.64.1.0/24"));
        let all = [Arc::clone(&elder), Arc::clone(&younger)];
        assert_eq!(conflict(&younger, &all), Some("elder"));
        assert_eq!(conflict(&elder, &all), None);
    }

    proptest! {
        #[test]
        fn nothing_that_is_taken_is_given(
            bits in 0u8..8,
            nodes in prop::collection::vec((any::<u32>(), 8u8..30), 0..20),
            pods in prop::collection::vec(any::<u32>(), 0..20),
            after in any::<u32>(),
        ) {
            let range = range("100.64.0.0/10", 10 + bits);
            let inside = |n: u32| Ipv4Addr::from(u32::from(Ipv4Addr::new(100, 64, 0, 0)) | (n >> 10));
            let held: Vec<Ipv4Net> = nodes
                .iter()
                .filter_map(|(n, mask)| Ipv4Net::new(inside(*n), *mask).ok())
                .map(|net| net.trunc())
                .collect();
            let mut taken = Taken::default();
            for net in &held {
                taken.range(&range, *net);
            }
            for pod in &pods {
                taken.address(&range, &inside(*pod).to_string());
            }
            let last = Ipv4Net::new(inside(after), 32).ok();
            let fresh = node("a", "2026-01-01T00:00:00Z", None);
            match plan(&fresh, &range, &taken, last) {
                Some(Action::Assign(cidr)) => {
                    prop_assert!(range.cluster.contains(&cidr));
                    prop_assert!(held.iter().all(|h| !h.contains(&cidr.network()) && !cidr.contains(&h.network())));
                    prop_assert!(pods.iter().all(|p| !cidr.contains(&inside(*p))));
                }
                other => {
                    prop_assert_eq!(other, Some(Action::NoneLeft));
                    let free = (0..range.parts()).filter_map(|i| range.part(i)).find(|part| {
                        !held.iter().any(|h| h.contains(part) || part.contains(h))
                            && !pods.iter().any(|p| part.contains(&inside(*p)))
                    });
                    prop_assert_eq!(free, None);
                }
            }
        }
    }
}

//! Two pods cannot have the same port of one node.

use crate::scheduling::plugin::{Filter, FilterNode, Verdict};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::Cluster;

const REASON: &str = "node(s) didn't have free ports for the requested pod ports";

pub(super) struct NodePorts;

// === impl NodePorts ===

impl Filter for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<FilterNode<'a>> {
        if pod.ports.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            let taken = |port| node.ports.iter().any(|used| used.conflicts(port));
            if pod.ports.iter().any(taken) {
                Verdict::no(REASON)
            } else {
                Verdict::Fits
            }
        }))
    }
}

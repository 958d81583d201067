//! A pod that names its node fits there only. Such pods rarely come here: who names a node needs no scheduling.

use crate::scheduling::plugin::{Filter, FilterNode, Verdict};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::Cluster;

const REASON: &str = "node(s) didn't match the requested node name";

pub(super) struct NodeName;

// === impl NodeName ===

impl Filter for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<FilterNode<'a>> {
        let wanted = pod.pod.spec.node_name.as_str();
        if wanted.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            if node.name == wanted {
                Verdict::Fits
            } else {
                Verdict::never(REASON)
            }
        }))
    }
}

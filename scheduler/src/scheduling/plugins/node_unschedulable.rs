//! Cordoned nodes take no new pods, except those that tolerate it.

use k8s_openapi::api::core::v1::Taint;
use types::well_known::TAINT_UNSCHEDULABLE;

use crate::scheduling::plugin::{Filter, FilterNode, Verdict};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::Cluster;
use crate::taints::{NO_SCHEDULE, tolerates};

const REASON: &str = "node(s) were unschedulable";

pub(super) struct NodeUnschedulable;

// === impl NodeUnschedulable ===

impl Filter for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<FilterNode<'a>> {
        let taint = Taint {
            key: TAINT_UNSCHEDULABLE.to_owned(),
            effect: NO_SCHEDULE.to_owned(),
            ..Taint::default()
        };
        if pod
            .pod
            .spec
            .tolerations
            .iter()
            .any(|t| tolerates(t, &taint))
        {
            return None;
        }
        Some(Box::new(|node| {
            if node.unschedulable {
                Verdict::never(REASON)
            } else {
                Verdict::Fits
            }
        }))
    }
}

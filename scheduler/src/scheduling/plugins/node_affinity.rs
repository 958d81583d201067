//! Node selectors and node affinity: the labels a node must, or should, have.

use crate::scheduling::node_selector::{matches_any, matches_required, matches_term};
use crate::scheduling::plugin::{Filter, FilterNode, Score, ScoreNode, Verdict, more_is_better};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::Cluster;

const REASON: &str = "node(s) didn't match Pod's node affinity/selector";

pub(super) struct NodeAffinity;

// === impl NodeAffinity ===

impl Filter for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<FilterNode<'a>> {
        let spec = &pod.pod.spec;
        let required = spec
            .affinity
            .as_ref()
            .and_then(|a| a.node_affinity.as_ref())
            .and_then(|a| {
                a.required_during_scheduling_ignored_during_execution
                    .as_ref()
            });
        if spec.node_selector.is_empty() && required.is_none() {
            return None;
        }
        Some(Box::new(move |node| {
            if matches_required(&pod.pod, node) {
                Verdict::Fits
            } else {
                Verdict::never(REASON)
            }
        }))
    }
}

impl Score for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<ScoreNode<'a>> {
        let affinity = pod.pod.spec.affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity
            .preferred_during_scheduling_ignored_during_execution
            .as_ref()
            .filter(|p| !p.is_empty())?;
        Some(Box::new(move |node| {
            preferred
                .iter()
                .filter(|p| matches_any(&p.preference) && matches_term(&p.preference, node))
                .map(|p| i64::from(p.weight))
                .sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        more_is_better(scores);
    }
}

//! Taints keep pods away that do not tolerate them; `PreferNoSchedule` only makes a node less welcome.

use k8s_openapi::api::core::v1::Toleration;

use crate::scheduling::plugin::{Filter, FilterNode, Score, ScoreNode, Verdict, less_is_better};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::Cluster;
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, PREFER_NO_SCHEDULE, tolerates, untolerated};

const REASON: &str = "node(s) had untolerated taint(s)";

pub(super) struct TaintToleration;

// === impl TaintToleration ===

impl Filter for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<FilterNode<'a>> {
        let tolerations = &pod.pod.spec.tolerations;
        Some(Box::new(move |node| {
            if node.taints.is_empty() {
                return Verdict::Fits;
            }
            match untolerated(&node.taints, tolerations, &[NO_SCHEDULE, NO_EXECUTE]) {
                Some(_) => Verdict::never(REASON),
                None => Verdict::Fits,
            }
        }))
    }
}

impl Score for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<ScoreNode<'a>> {
        if cluster.nodes().all(|n| n.taints.is_empty()) {
            return None;
        }
        let soft: Vec<&Toleration> = pod
            .pod
            .spec
            .tolerations
            .iter()
            .filter(|t| matches!(t.effect.as_deref(), None | Some("" | PREFER_NO_SCHEDULE)))
            .collect();
        Some(Box::new(move |node| {
            let unwelcome = node
                .taints
                .iter()
                .filter(|t| t.effect == PREFER_NO_SCHEDULE)
                .filter(|taint| !soft.iter().any(|t| tolerates(t, taint)));
            i64::try_from(unwelcome.count()).unwrap_or(i64::MAX)
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        less_is_better(scores);
    }
}

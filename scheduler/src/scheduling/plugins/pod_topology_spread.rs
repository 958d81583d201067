//! Spreads pods over topology domains: as their constraints demand, or softly by controller where they have none.
//!
//! Worked example: maxSkew 1 over zones with 2, 1 and 1 matching pods. The least is 1; one more in the first zone would
//! make 3 there, 2 above the least, so only the other two will do.
//!
//! Differs from Kubernetes: without constraints, pods of one controller are spread over nodes only, not over zones too.

use std::collections::{HashMap, HashSet};

use k8s_openapi::api::core::v1::TopologySpreadConstraint;
use kube::core::{Selector, SelectorExt};

use crate::scheduling::node_selector::matches_required;
use crate::scheduling::plugin::{Filter, FilterNode, Score, ScoreNode, Verdict, less_is_better};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::{Cluster, NodeInfo};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE, untolerated};

const SKEWED: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str =
    "node(s) didn't match pod topology spread constraints (missing required label)";
const DO_NOT_SCHEDULE: &str = "DoNotSchedule";

pub(super) struct PodTopologySpread;

/// One constraint with its pods counted.
struct Counted<'a> {
    key: &'a str,
    max_skew: i64,
    /// Would the pod itself be counted?
    own: i64,
    least: i64,
    domains: HashMap<&'a str, i64>,
}

// === impl PodTopologySpread ===

impl Filter for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<FilterNode<'a>> {
        let hard = counted(pod, cluster, |when| when == DO_NOT_SCHEDULE);
        if hard.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            for constraint in &hard {
                let Some(domain) = node.label(constraint.key) else {
                    return Verdict::never(NO_LABEL);
                };
                let there = constraint.domains.get(domain).copied().unwrap_or(0);
                if there + constraint.own - constraint.least > constraint.max_skew {
                    return Verdict::no(SKEWED);
                }
            }
            Verdict::Fits
        }))
    }
}

impl Score for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<ScoreNode<'a>> {
        if pod.pod.spec.topology_spread_constraints.is_empty() {
            let owner = pod.owner.as_ref()?;
            return Some(Box::new(move |node| {
                let there = node.owners.get(owner).copied().unwrap_or(0);
                i64::try_from(there).unwrap_or(i64::MAX)
            }));
        }
        let soft = counted(pod, cluster, |when| when != DO_NOT_SCHEDULE);
        if soft.is_empty() {
            return None;
        }
        Some(Box::new(move |node| {
            soft.iter()
                .map(|constraint| match node.label(constraint.key) {
                    Some(domain) => constraint.domains.get(domain).copied().unwrap_or(0),
                    // Outside all domains is the last resort.
                    None => {
                        constraint.domains.values().copied().max().unwrap_or(0)
                            + constraint.max_skew
                    }
                })
                .sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        less_is_better(scores);
    }
}

fn counted<'a>(
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    wanted: impl Fn(&str) -> bool,
) -> Vec<Counted<'a>> {
    pod.pod
        .spec
        .topology_spread_constraints
        .iter()
        .filter(|c| wanted(&c.when_unsatisfiable))
        .map(|c| count(c, pod, cluster))
        .collect()
}

fn count<'a>(
    constraint: &'a TopologySpreadConstraint,
    pod: &'a PodInfo,
    cluster: &'a Cluster,
) -> Counted<'a> {
    let selector = selector(constraint, pod);
    let meant = |other: &PodInfo| {
        other.key.namespace == pod.key.namespace
            && !other.pod.metadata.is_deleting()
            && selector
                .as_ref()
                .is_some_and(|s| s.matches(&other.pod.metadata.labels))
    };
    let mut domains: HashMap<&str, i64> = HashMap::new();
    let eligible: HashSet<&str> = cluster
        .nodes()
        .filter(|n| is_eligible(constraint, pod, n))
        .map(|n| n.name.as_str())
        .collect();
    for node in cluster
        .nodes()
        .filter(|n| eligible.contains(n.name.as_str()))
    {
        if let Some(domain) = node.label(&constraint.topology_key) {
            let here = node.pods.values().filter(|p| meant(p)).count();
            *domains.entry(domain).or_default() += i64::try_from(here).unwrap_or(i64::MAX);
        }
    }
    let too_few = constraint
        .min_domains
        .is_some_and(|min| domains.len() < usize::try_from(min).unwrap_or(0));
    let least = if too_few {
        0
    } else {
        domains.values().copied().min().unwrap_or(0)
    };
    Counted {
        key: &constraint.topology_key,
        max_skew: i64::from(constraint.max_skew),
        own: i64::from(meant(pod)),
        least,
        domains,
    }
}

/// Does the node count as a place the pod could be?
fn is_eligible(constraint: &TopologySpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    let honors_affinity = constraint.node_affinity_policy.as_deref() != Some("Ignore");
    let honors_taints = constraint.node_taints_policy.as_deref() == Some("Honor");
    if honors_affinity && !matches_required(&pod.pod, node) {
        return false;
    }
    let effects = [NO_SCHEDULE, NO_EXECUTE];
    !honors_taints || untolerated(&node.taints, &pod.pod.spec.tolerations, &effects).is_none()
}

fn selector(constraint: &TopologySpreadConstraint, pod: &PodInfo) -> Option<Selector> {
    let mut labels = constraint.label_selector.clone()?;
    for key in constraint.match_label_keys.iter().flatten() {
        if let Some(value) = pod.pod.metadata.labels.get(key) {
            labels
                .match_labels
                .get_or_insert_default()
                .insert(key.clone(), value.clone());
        }
    }
    Selector::try_from(labels).ok()
}

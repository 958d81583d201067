//! Pods that want to be near, or not near, other pods.
//!
//! Differs from Kubernetes: preferences of pods that are placed already do not draw new pods to them; only the new pod's
//! own preferences count.

use std::collections::HashMap;

use crate::scheduling::plugin::{Filter, FilterNode, Score, ScoreNode, Verdict, between_extremes};
use crate::scheduling::pod::{PodInfo, Term};
use crate::scheduling::snapshot::Cluster;

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

pub(super) struct InterPodAffinity;

/// Domain → pods a term means there.
type Domains<'a> = HashMap<&'a str, i64>;

// === impl InterPodAffinity ===

impl Filter for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<FilterNode<'a>> {
        let asks = !pod.affinity.is_empty() || !pod.anti_affinity.is_empty();
        if !asks && cluster.with_anti_affinity == 0 {
            return None;
        }
        let near: Vec<(&Term, Domains<'_>)> = pod
            .affinity
            .iter()
            .map(|t| (t, domains(t, cluster)))
            .collect();
        let apart: Vec<(&Term, Domains<'_>)> = pod
            .anti_affinity
            .iter()
            .map(|t| (t, domains(t, cluster)))
            .collect();
        let forbidden = forbidden_by_others(pod, cluster);
        // The first of a group that wants to be together has nobody to join.
        let first = near.iter().all(|(_, d)| d.is_empty())
            && pod
                .affinity
                .iter()
                .all(|t| t.means(&pod.pod, &cluster.namespaces));
        Some(Box::new(move |node| {
            for (term, domains) in &near {
                let Some(domain) = node.label(&term.topology_key) else {
                    return Verdict::never(AFFINITY);
                };
                if !first && !domains.contains_key(domain) {
                    return Verdict::never(AFFINITY);
                }
            }
            for (term, domains) in &apart {
                if node
                    .label(&term.topology_key)
                    .is_some_and(|d| domains.contains_key(d))
                {
                    return Verdict::no(ANTI_AFFINITY);
                }
            }
            for (key, domain) in &forbidden {
                if node.label(key) == Some(domain) {
                    return Verdict::no(EXISTING);
                }
            }
            Verdict::Fits
        }))
    }
}

impl Score for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<ScoreNode<'a>> {
        if pod.preferred.is_empty() {
            return None;
        }
        let preferred: Vec<(&Term, Domains<'_>)> = pod
            .preferred
            .iter()
            .map(|t| (t, domains(t, cluster)))
            .collect();
        Some(Box::new(move |node| {
            preferred
                .iter()
                .filter_map(|(term, domains)| {
                    let there = domains.get(node.label(&term.topology_key)?)?;
                    Some(term.weight * there)
                })
                .sum()
        }))
    }

    fn normalize(&self, scores: &mut [i64]) {
        between_extremes(scores);
    }
}

fn domains<'a>(term: &Term, cluster: &'a Cluster) -> Domains<'a> {
    let mut domains = Domains::new();
    for node in cluster.nodes() {
        let Some(domain) = node.label(&term.topology_key) else {
            continue;
        };
        let meant = node
            .pods
            .values()
            .filter(|p| term.means(&p.pod, &cluster.namespaces));
        let count = i64::try_from(meant.count()).unwrap_or(i64::MAX);
        if count > 0 {
            *domains.entry(domain).or_default() += count;
        }
    }
    domains
}

/// Topology key and domain of every placed pod that does not want this one near.
fn forbidden_by_others<'a>(pod: &PodInfo, cluster: &'a Cluster) -> Vec<(&'a str, &'a str)> {
    let mut forbidden = Vec::new();
    if cluster.with_anti_affinity == 0 {
        return forbidden;
    }
    for node in cluster.nodes() {
        for other in node.pods.values() {
            for term in &other.anti_affinity {
                if term.means(&pod.pod, &cluster.namespaces)
                    && let Some(domain) = node.label(&term.topology_key)
                {
                    forbidden.push((term.topology_key.as_str(), domain));
                }
            }
        }
    }
    forbidden.sort_unstable();
    forbidden.dedup();
    forbidden
}

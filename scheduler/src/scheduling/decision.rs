//! One decision: which node, or why none. Pure but for the choice between equals, which a seed decides.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::plugin::{FilterNode, Reason, Verdict};
use super::plugins::{FILTERS, SCORES};
use super::pod::PodInfo;
use super::snapshot::{Cluster, NodeInfo};

/// With fewer nodes than this all are looked at.
const FEW: usize = 100;
const NO_NODES: &str = "no nodes available to schedule pods";

/// Why no node fits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unfit {
    pub nodes: usize,
    /// Reason → nodes.
    pub reasons: BTreeMap<Cow<'static, str>, usize>,
    /// Nodes where removing other pods could have helped, had there been less important ones.
    without_victims: usize,
    /// Nodes where there are less important pods.
    with_victims: usize,
    never_preempts: bool,
}

pub struct Scheduler {
    pub cluster: Cluster,
    random: SmallRng,
    /// Where the next search starts, so that not always the same nodes are looked at.
    start: usize,
}

// === impl Scheduler ===

impl Scheduler {
    pub fn new(cluster: Cluster, seed: u64) -> Self {
        Self {
            cluster,
            random: SmallRng::seed_from_u64(seed),
            start: 0,
        }
    }

    /// The node for a pod. The caller places the pod there; until then nothing is taken.
    pub fn decide(&mut self, pod: &PodInfo) -> Result<String, Unfit> {
        let fitting = self.filter(pod)?;
        if let [only] = fitting.as_slice() {
            return Ok(self.cluster.entries()[*only].name.clone());
        }
        let totals = self.score(pod, &fitting);
        let best = totals.iter().copied().max().unwrap_or(0);
        let equals: Vec<usize> = fitting
            .iter()
            .zip(&totals)
            .filter(|(_, total)| **total == best)
            .map(|(index, _)| *index)
            .collect();
        let chosen = equals[self.random.random_range(0..equals.len())];
        Ok(self.cluster.entries()[chosen].name.clone())
    }

    /// Indices of nodes that fit; on a large cluster only as many as are worth comparing.
    fn filter(&mut self, pod: &PodInfo) -> Result<Vec<usize>, Unfit> {
        let entries = self.cluster.entries();
        let filters: Vec<FilterNode<'_>> = FILTERS
            .iter()
            .filter_map(|f| f.prepare(pod, &self.cluster))
            .collect();
        let enough = enough(entries.len());
        let mut fitting = Vec::with_capacity(enough);
        let mut unfit = Unfit::default();
        let mut looked_at = 0;
        for offset in 0..entries.len() {
            let index = (self.start + offset) % entries.len();
            let node = &entries[index];
            looked_at += 1;
            if node.node.is_none() {
                continue;
            }
            unfit.nodes += 1;
            match filters
                .iter()
                .map(|f| f(node))
                .find(|v| *v != Verdict::Fits)
            {
                None | Some(Verdict::Fits) => {
                    fitting.push(index);
                    if fitting.len() >= enough {
                        break;
                    }
                }
                // Only counted when it may be told.
                Some(Verdict::No(reasons)) if fitting.is_empty() => unfit.add(reasons, pod, node),
                Some(Verdict::No(_)) => {}
            }
        }
        if !entries.is_empty() {
            self.start = (self.start + looked_at) % entries.len();
        }
        if fitting.is_empty() {
            unfit.never_preempts = pod.pod.spec.preemption_policy.as_deref() == Some("Never");
            return Err(unfit);
        }
        Ok(fitting)
    }

    fn score(&self, pod: &PodInfo, fitting: &[usize]) -> Vec<i64> {
        let entries = self.cluster.entries();
        let mut totals = vec![0; fitting.len()];
        let mut scores = vec![0; fitting.len()];
        for (plugin, weight) in SCORES {
            let Some(score) = plugin.prepare(pod, &self.cluster) else {
                continue;
            };
            for (slot, index) in scores.iter_mut().zip(fitting) {
                *slot = score(&entries[*index]);
            }
            plugin.normalize(&mut scores);
            for (total, score) in totals.iter_mut().zip(&scores) {
                *total += score * weight;
            }
        }
        totals
    }
}

/// How many fitting nodes are enough to choose from: all of a small cluster, from half down to 5 % of a large one.
fn enough(nodes: usize) -> usize {
    if nodes < FEW {
        return nodes.max(1);
    }
    let percent = 50usize.saturating_sub(nodes / 125).max(5);
    (nodes * percent / 100).max(FEW)
}

// === impl Unfit ===

impl Unfit {
    fn add(&mut self, reasons: Vec<Reason>, pod: &PodInfo, node: &NodeInfo) {
        if reasons.iter().all(|r| r.resolvable) {
            if node.pods.values().any(|p| p.priority < pod.priority) {
                self.with_victims += 1;
            } else {
                self.without_victims += 1;
            }
        }
        for reason in reasons {
            *self.reasons.entry(reason.text).or_default() += 1;
        }
    }

    /// What users read, such as `0/1 nodes are available: 1 Insufficient cpu. preemption: …`.
    pub fn message(&self) -> String {
        let nodes = self.nodes;
        if nodes == 0 {
            return NO_NODES.to_owned();
        }
        format!(
            "0/{nodes} nodes are available: {}. preemption: {}",
            listed(
                self.reasons
                    .iter()
                    .map(|(reason, count)| format!("{count} {reason}"))
            ),
            self.preemption()
        )
    }

    /// Differs from Kubernetes: nothing is preempted yet, and where it might have helped the message says so.
    fn preemption(&self) -> String {
        if self.never_preempts {
            return "not eligible due to preemptionPolicy=Never.".to_owned();
        }
        let helpless = self.nodes - self.without_victims - self.with_victims;
        let counts = [
            (
                self.without_victims,
                "No preemption victims found for incoming pod",
            ),
            (helpless, "Preemption is not helpful for scheduling"),
            (self.with_victims, "Preemption is not supported yet"),
        ];
        let parts = counts
            .iter()
            .filter(|(count, _)| *count > 0)
            .map(|(count, text)| format!("{count} {text}"));
        format!("0/{} nodes are available: {}.", self.nodes, listed(parts))
    }
}

fn listed(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = parts.collect();
    parts.sort();
    parts.join(", ")
}

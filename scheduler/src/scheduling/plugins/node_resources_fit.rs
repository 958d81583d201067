//! A node must have what a pod requests and room for one more pod; the emptier it is, the better.

use std::borrow::Cow;

use crate::scheduling::plugin::{Filter, FilterNode, Reason, Score, ScoreNode, Verdict};
use crate::scheduling::pod::PodInfo;
use crate::scheduling::snapshot::{Cluster, NodeInfo};

const TOO_MANY_PODS: &str = "Too many pods";
const CPU: &str = "Insufficient cpu";
const MEMORY: &str = "Insufficient memory";
const STORAGE: &str = "Insufficient ephemeral-storage";

pub(super) struct NodeResourcesFit;

// === impl NodeResourcesFit ===

impl Filter for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<FilterNode<'a>> {
        Some(Box::new(move |node| {
            let (wants, has, used) = (&pod.requests, &node.allocatable, &node.requested);
            let fits = node.pods.len() < node.most_pods
                && (wants.millicores == 0 || wants.millicores <= has.millicores - used.millicores)
                && (wants.memory == 0 || wants.memory <= has.memory - used.memory)
                && (wants.storage == 0 || wants.storage <= has.storage - used.storage)
                && wants.extended.is_empty();
            if fits {
                return Verdict::Fits;
            }
            let reasons = lacking(pod, node);
            if reasons.is_empty() {
                Verdict::Fits
            } else {
                Verdict::No(reasons)
            }
        }))
    }
}

/// Everything the node lacks. More than the whole node has cannot be helped by removing pods.
fn lacking(pod: &PodInfo, node: &NodeInfo) -> Vec<Reason> {
    let (wants, has, used) = (&pod.requests, &node.allocatable, &node.requested);
    let mut reasons = Vec::new();
    if node.pods.len() >= node.most_pods {
        reasons.push(Reason {
            text: Cow::Borrowed(TOO_MANY_PODS),
            resolvable: true,
        });
    }
    let amounts = [
        (CPU, wants.millicores, has.millicores, used.millicores),
        (MEMORY, wants.memory, has.memory, used.memory),
        (STORAGE, wants.storage, has.storage, used.storage),
    ];
    for (text, wanted, whole, taken) in amounts {
        if wanted > 0 && wanted > whole - taken {
            reasons.push(Reason {
                text: Cow::Borrowed(text),
                resolvable: wanted <= whole,
            });
        }
    }
    for (name, wanted) in &wants.extended {
        let whole = has.extended.get(name).copied().unwrap_or(0);
        let taken = used.extended.get(name).copied().unwrap_or(0);
        if *wanted > 0 && *wanted > whole - taken {
            reasons.push(Reason {
                text: Cow::Owned(format!("Insufficient {name}")),
                resolvable: *wanted <= whole,
            });
        }
    }
    reasons
}

impl Score for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    /// Least allocated: the mean share of cpu and memory that would be left.
    fn prepare<'a>(&'a self, pod: &'a PodInfo, _: &'a Cluster) -> Option<ScoreNode<'a>> {
        Some(Box::new(move |node| {
            let left = |whole: i64, taken: i64| {
                if whole <= 0 || taken > whole {
                    0
                } else {
                    (whole - taken) * 100 / whole
                }
            };
            let cpu = left(node.allocatable.millicores, node.assumed.0 + pod.assumed.0);
            let memory = left(node.allocatable.memory, node.assumed.1 + pod.assumed.1);
            (cpu + memory) / 2
        }))
    }

    fn normalize(&self, _: &mut [i64]) {}
}

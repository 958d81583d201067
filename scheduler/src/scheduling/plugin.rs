//! What a plugin is. Two traits: who may have the pod, and who should.
//!
//! A plugin looks at the pod and the cluster once, in `prepare`, and answers with a closure that is asked per node; or
//! with `None` when this pod asks nothing of it, and then it costs nothing.

use std::borrow::Cow;

use super::pod::PodInfo;
use super::snapshot::{Cluster, NodeInfo};

/// Why a node does not fit, in the words users see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    pub text: Cow<'static, str>,
    /// Could removing other pods help?
    pub resolvable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Fits,
    No(Vec<Reason>),
}

pub type FilterNode<'a> = Box<dyn Fn(&NodeInfo) -> Verdict + 'a>;
pub type ScoreNode<'a> = Box<dyn Fn(&NodeInfo) -> i64 + 'a>;

pub trait Filter: Send + Sync {
    fn name(&self) -> &'static str;
    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<FilterNode<'a>>;
}

pub trait Score: Send + Sync {
    fn name(&self) -> &'static str;
    fn prepare<'a>(&'a self, pod: &'a PodInfo, cluster: &'a Cluster) -> Option<ScoreNode<'a>>;
    /// Brings raw scores to 0 (worst) ..= 100 (best).
    fn normalize(&self, scores: &mut [i64]);
}

// === impl Verdict ===

impl Verdict {
    /// Not now; other pods stand in the way.
    pub fn no(text: &'static str) -> Self {
        Self::No(vec![Reason {
            text: Cow::Borrowed(text),
            resolvable: true,
        }])
    }

    /// Not on this node, whoever else is there.
    pub fn never(text: &'static str) -> Self {
        Self::No(vec![Reason {
            text: Cow::Borrowed(text),
            resolvable: false,
        }])
    }
}

/// More is better: scales the highest to 100.
pub fn more_is_better(scores: &mut [i64]) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if most > 0 { *score * 100 / most } else { 0 };
    }
}

/// Less is better: nothing is 100, the most is 0.
pub fn less_is_better(scores: &mut [i64]) {
    let most = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = if most > 0 {
            100 - *score * 100 / most
        } else {
            100
        };
    }
}

/// Between the lowest and the highest.
pub fn between_extremes(scores: &mut [i64]) {
    let most = scores.iter().copied().max().unwrap_or(0);
    let least = scores.iter().copied().min().unwrap_or(0);
    for score in scores {
        *score = if most > least {
            (*score - least) * 100 / (most - least)
        } else {
            0
        };
    }
}

//! ReplicaSets: as many pods of one template as were asked for.
//!
//! Owns creating and deleting those pods and the ReplicaSet's status. Never looks into pods' specs.

mod apply;
mod ranking;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

pub use apply::Controller;

use crate::objects::{Key, Pod, REPLICA_SETS, ReplicaSet};
use crate::write::merge_patch_of;

/// The most pods one pass creates or deletes.
const BURST: usize = 1000;
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The world as one pass sees it.
pub struct Observed {
    pub set: Arc<ReplicaSet>,
    /// The pods this set controls.
    pub pods: Vec<Arc<Pod>>,
    /// Node → active pods there of this set and its siblings under the same Deployment. Only read when pods must go.
    pub crowding: HashMap<String, usize>,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    CreatePods(usize),
    DeletePods(Vec<(Key, String)>),
}

/// What went wrong with creating or deleting.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
}

/// How many pods to create, or which to delete.
pub fn plan(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let set = &*observed.set;
    if set.metadata.is_deleting() {
        return Vec::new();
    }
    let active: Vec<&Arc<Pod>> = observed.pods.iter().filter(|p| p.is_active()).collect();
    let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
    if active.len() < wanted {
        return vec![Action::CreatePods((wanted - active.len()).min(BURST))];
    }
    let surplus = (active.len() - wanted).min(BURST);
    if surplus == 0 {
        return Vec::new();
    }
    let victims = ranking::first_to_go(active, &observed.crowding, surplus, now);
    vec![Action::DeletePods(
        victims
            .into_iter()
            .map(|p| (p.metadata.key(), p.metadata.uid.clone()))
            .collect(),
    )]
}

/// Sizes of the batches in which `count` pods are created: 1, 2, 4, … so that a template that cannot be created fails
/// once and not a thousand times.
pub fn batches(count: usize) -> impl Iterator<Item = usize> {
    let mut left = count;
    let mut size = 1;
    std::iter::from_fn(move || {
        let batch = size.min(left);
        left -= batch;
        size *= 2;
        (batch > 0).then_some(batch)
    })
}

/// The status this set should have, and when time alone will change it.
pub fn status(
    observed: &Observed,
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let set = &*observed.set;
    let labels = set
        .spec
        .template
        .as_ref()
        .and_then(|t| t.metadata.as_ref())
        .and_then(|m| m.labels.clone())
        .unwrap_or_default();
    let min_ready = i64::from(set.spec.min_ready_seconds.unwrap_or(0));
    let (mut replicas, mut labelled, mut ready, mut available, mut terminating) = (0, 0, 0, 0, 0);
    let mut soonest: Option<i64> = None;
    for pod in &observed.pods {
        if pod.metadata.is_deleting() && !pod.is_terminal() {
            terminating += 1;
        }
        if !pod.is_active() {
            continue;
        }
        replicas += 1;
        if labels
            .iter()
            .all(|(k, v)| pod.metadata.labels.get(k) == Some(v))
        {
            labelled += 1;
        }
        let Some(since) = pod.ready_since() else {
            continue;
        };
        ready += 1;
        let left = since + min_ready - now.as_second();
        if min_ready == 0 || left <= 0 {
            available += 1;
        } else {
            soonest = Some(soonest.map_or(left, |s| s.min(left)));
        }
    }
    let status = ReplicaSetStatus {
        replicas,
        fully_labeled_replicas: positive(labelled),
        ready_replicas: positive(ready),
        available_replicas: positive(available),
        terminating_replicas: Some(terminating),
        observed_generation: Some(set.metadata.generation),
        conditions: conditions(set, failure, now),
    };
    let again = soonest.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(1)));
    (status, again)
}

fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}

fn conditions(
    set: &ReplicaSet,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut list = set.status.conditions.clone().unwrap_or_default();
    match failure {
        None => list.retain(|c| c.type_ != REPLICA_FAILURE),
        Some(failure) => {
            let same = list
                .iter()
                .any(|c| c.type_ == REPLICA_FAILURE && c.reason.as_deref() == Some(failure.reason));
            if !same {
                list.retain(|c| c.type_ != REPLICA_FAILURE);
                list.push(ReplicaSetCondition {
                    type_: REPLICA_FAILURE.to_owned(),
                    status: "True".to_owned(),
                    reason: Some(failure.reason.to_owned()),
                    message: Some(failure.message.clone()),
                    last_transition_time: Some(Time(now)),
                });
            }
        }
    }
    (!list.is_empty()).then_some(list)
}

/// The patch from the known status to the wanted one.
fn status_patch(set: &ReplicaSet, wanted: &ReplicaSetStatus) -> Option<Value> {
    // Compared as written: an absent status has no `replicas`, not zero of them.
    let mut patch = merge_patch_of(&set.status, wanted);
    if set.status.observed_generation.is_none() {
        patch = serde_json::to_value(wanted).ok();
    }
    patch.map(|status| json!({"status": status}))
}

/// A pod of this set; all of them are created from the same bytes.
fn pod(set: &ReplicaSet) -> core::Pod {
    let template = set.spec.template.clone().unwrap_or_default();
    let metadata = template.metadata.unwrap_or_default();
    core::Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name)),
            labels: metadata.labels,
            annotations: metadata.annotations,
            finalizers: metadata.finalizers,
            owner_references: Some(vec![REPLICA_SETS.controller_reference(&set.metadata)]),
            ..ObjectMeta::default()
        },
        spec: template.spec,
        status: None,
    }
}

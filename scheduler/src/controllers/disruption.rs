//! PodDisruptionBudgets: how many of the pods they cover are healthy, and how many may be evicted.
//!
//! Owns the status of PodDisruptionBudgets, together with the eviction subresource, which takes disruptions out of it; and
//! the end of `DisruptionTarget` conditions that nothing came of. Never evicts.

mod apply;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::api::policy::v1::PodDisruptionBudgetStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use types::condition;

pub use apply::Controller;

use super::amount::scaled;
use crate::objects::{Budget, Pod};
use crate::write::merge_patch_of;

/// An eviction that was allowed and did not happen within this many seconds will not.
const DELETION_TIMEOUT: i64 = 120;
const ALLOWED: &str = "DisruptionAllowed";
const SUFFICIENT: &str = "SufficientPods";
const INSUFFICIENT: &str = "InsufficientPods";
const SYNC_FAILED: &str = "SyncFailed";
const TARGET: &str = "DisruptionTarget";

/// What one pass sees.
pub struct Observed {
    pub budget: Arc<Budget>,
    /// The pods it selects.
    pub pods: Vec<Arc<Pod>>,
    /// How many pods their controllers want in all, or why that cannot be said. Asked only where [`needs_scale`].
    pub scale: Result<i32, String>,
}

#[derive(Debug, PartialEq)]
pub enum Action {
    PatchStatus(Value),
    /// It selects nothing.
    TellNoPods,
    TellFailed(String),
    /// An eviction was allowed and the pod is still there.
    TellNotDeleted(Arc<Pod>),
    LookAgain(Duration),
}

/// Must the pods' controllers be asked how many pods they want? Otherwise the pods there are count.
pub fn needs_scale(budget: &Budget) -> bool {
    let spec = &budget.spec;
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(_), _) => true,
        (None, Some(IntOrString::String(_))) => true,
        (None, _) => false,
    }
}

/// What to say of one budget, and when to look again.
pub fn plan(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let budget = &observed.budget;
    let mut actions = Vec::new();
    if observed.pods.is_empty() {
        actions.push(Action::TellNoPods);
    }
    let mut status = budget.status.clone();
    match expected(observed) {
        Err(why) => {
            actions.push(Action::TellFailed(why.clone()));
            status.disruptions_allowed = Some(0);
            let generation = status.observed_generation;
            set_allowed(&mut status, false, SYNC_FAILED, why, generation, now);
        }
        Ok((expected, desired)) => {
            let disrupted = disrupted(observed, now, &mut actions);
            let healthy = healthy(&observed.pods, &disrupted);
            let allowed = if expected <= 0 {
                0
            } else {
                (healthy - desired).max(0)
            };
            status.current_healthy = Some(healthy);
            status.desired_healthy = Some(desired);
            status.expected_pods = Some(expected);
            status.disruptions_allowed = Some(allowed);
            status.observed_generation = Some(budget.metadata.generation);
            status.disrupted_pods = (!disrupted.is_empty()).then_some(disrupted);
            let reason = if allowed > 0 {
                SUFFICIENT
            } else {
                INSUFFICIENT
            };
            let generation = status.observed_generation;
            let message = String::new();
            set_allowed(&mut status, allowed > 0, reason, message, generation, now);
        }
    }
    if let Some(patch) = merge_patch_of(&budget.status, &status) {
        // Evictions take disruptions out of the status: not of one we have not seen.
        let version = &budget.metadata.resource_version;
        actions.push(Action::PatchStatus(
            json!({"metadata": {"resourceVersion": version}, "status": patch}),
        ));
    }
    actions
}

/// How many pods there should be, and how many of them healthy.
fn expected(observed: &Observed) -> Result<(i32, i32), String> {
    let spec = &observed.budget.spec;
    let here = i32::try_from(observed.pods.len()).unwrap_or(i32::MAX);
    if let Some(most) = &spec.max_unavailable {
        let expected = observed.scale.clone()?;
        return Ok((expected, (expected - scaled(most, expected, true)).max(0)));
    }
    match &spec.min_available {
        Some(IntOrString::Int(least)) => Ok((here, *least)),
        Some(percent) => {
            let expected = observed.scale.clone()?;
            Ok((expected, scaled(percent, expected, true)))
        }
        None => Ok((0, 0)),
    }
}

/// The pods whose eviction was allowed and is still to come. Those that are going, or have gone, are no longer counted
/// anyway.
fn disrupted(
    observed: &Observed,
    now: Timestamp,
    actions: &mut Vec<Action>,
) -> BTreeMap<String, Time> {
    let known = observed.budget.status.disrupted_pods.iter().flatten();
    let mut kept = BTreeMap::new();
    let mut next: Option<i64> = None;
    for (name, since) in known {
        let pod = observed.pods.iter().find(|p| p.metadata.name == *name);
        let Some(pod) = pod.filter(|p| !p.metadata.is_deleting()) else {
            continue;
        };
        let until = since.0.as_second().saturating_add(DELETION_TIMEOUT);
        if until <= now.as_second() {
            actions.push(Action::TellNotDeleted(Arc::clone(pod)));
            continue;
        }
        kept.insert(name.clone(), since.clone());
        next = Some(next.map_or(until, |n| n.min(until)));
    }
    if let Some(next) = next {
        let seconds = u64::try_from(next - now.as_second()).unwrap_or(1);
        actions.push(Action::LookAgain(Duration::from_secs(seconds)));
    }
    kept
}

fn healthy(pods: &[Arc<Pod>], disrupted: &BTreeMap<String, Time>) -> i32 {
    let healthy = pods.iter().filter(|p| {
        p.is_ready() && !p.metadata.is_deleting() && !disrupted.contains_key(&p.metadata.name)
    });
    i32::try_from(healthy.count()).unwrap_or(i32::MAX)
}

fn set_allowed(
    status: &mut PodDisruptionBudgetStatus,
    allowed: bool,
    reason: &str,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) {
    let word = if allowed { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().position(|c| c.type_ == ALLOWED);
    let since = old
        .map(|at| &conditions[at])
        .filter(|c| c.status == word)
        .map_or(Time(now), |c| c.last_transition_time.clone());
    let new = Condition {
        type_: ALLOWED.to_owned(),
        status: word.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: since,
    };
    match old {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
}

/// A pod that somebody meant to disrupt and did not: when its condition is no longer true, and what then to write.
#[derive(Debug, PartialEq)]
pub enum Stale {
    No,
    In(Duration),
    Now(Value),
}

pub fn stale(pod: &Pod, now: Timestamp) -> Stale {
    let condition = pod.condition(TARGET).filter(|c| c.status == "True");
    let Some(condition) = condition.filter(|_| pod.is_active()) else {
        return Stale::No;
    };
    let since = condition
        .last_transition_time
        .as_ref()
        .map_or(now.as_second(), |t| t.0.as_second());
    let left = since.saturating_add(DELETION_TIMEOUT) - now.as_second();
    if left > 0 {
        return Stale::In(Duration::from_secs(u64::try_from(left).unwrap_or(1)));
    }
    let mut conditions = pod.status.conditions.clone();
    condition::set(
        &mut conditions,
        PodCondition {
            type_: TARGET.to_owned(),
            status: "False".to_owned(),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        },
    );
    Stale::Now(json!({
        "metadata": {"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": conditions},
    }))
}

//! A Deployment's status: counts, and the conditions with upstream's reasons and messages. Pure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::Round;
use crate::objects::Deployment;

pub(super) mod conditions {
    pub(in super::super) const AVAILABLE: &str = "Available";
    pub(in super::super) const PROGRESSING: &str = "Progressing";
    pub(in super::super) const REPLICA_FAILURE: &str = "ReplicaFailure";
}

pub(super) mod reasons {
    pub(in super::super) const REPLICA_SET_UPDATED: &str = "ReplicaSetUpdated";
    pub(in super::super) const FAILED_CREATE: &str = "ReplicaSetCreateError";
    pub(in super::super) const NEW_REPLICA_SET: &str = "NewReplicaSetCreated";
    pub(in super::super) const FOUND_NEW: &str = "FoundNewReplicaSet";
    pub(in super::super) const NEW_AVAILABLE: &str = "NewReplicaSetAvailable";
    pub(in super::super) const TIMED_OUT: &str = "ProgressDeadlineExceeded";
    pub(in super::super) const PAUSED: &str = "DeploymentPaused";
    pub(in super::super) const RESUMED: &str = "DeploymentResumed";
    pub(in super::super) const MINIMUM_AVAILABLE: &str = "MinimumReplicasAvailable";
    pub(in super::super) const MINIMUM_UNAVAILABLE: &str = "MinimumReplicasUnavailable";
}

pub(super) fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub(super) fn find<'a>(
    list: &'a [DeploymentCondition],
    type_: &str,
) -> Option<&'a DeploymentCondition> {
    list.iter().find(|c| c.type_ == type_)
}

/// Puts the condition last, unless one of the same status and reason is there already.
pub(super) fn set(list: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    if let Some(old) = find(list, &new.type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(list, &new.type_);
    list.push(new);
}

fn remove(list: &mut Vec<DeploymentCondition>, type_: &str) {
    list.retain(|c| c.type_ != type_);
}

/// Seconds of the progress deadline; `None` when there is none (the largest number means none, too).
pub(super) fn deadline(deployment: &Deployment) -> Option<i64> {
    deployment
        .spec
        .progress_deadline_seconds
        .filter(|s| *s != i32::MAX)
        .map(i64::from)
}

/// Pausing stops the clock of the progress deadline, resuming starts it anew.
pub(super) fn note_pause(round: &mut Round<'_>) {
    if deadline(round.deployment).is_none() {
        return;
    }
    let paused = round.deployment.spec.paused == Some(true);
    let reason = find(&round.conditions, conditions::PROGRESSING).and_then(|c| c.reason.as_deref());
    if reason == Some(reasons::TIMED_OUT) {
        return;
    }
    let was_paused = reason == Some(reasons::PAUSED);
    let (reason, message) = match (paused, was_paused) {
        (true, false) => (reasons::PAUSED, "Deployment is paused"),
        (false, true) => (reasons::RESUMED, "Deployment is resumed"),
        _ => return,
    };
    let new = condition(
        conditions::PROGRESSING,
        "Unknown",
        reason,
        message.to_owned(),
        round.now,
    );
    set(&mut round.conditions, new);
}

/// Counts and the `Available` condition.
pub(super) fn calculate(round: &Round<'_>) -> DeploymentStatus {
    let sum = |f: fn(&super::Set) -> i32| round.sets.iter().map(f).sum::<i32>();
    let available = sum(|s| s.available);
    let updated = round.new.map_or(0, |i| round.sets[i].actual);
    let mut conditions = round.conditions.clone();
    let new = if available >= round.bounds.least_available() {
        condition(
            conditions::AVAILABLE,
            "True",
            reasons::MINIMUM_AVAILABLE,
            "Deployment has minimum availability.".to_owned(),
            round.now,
        )
    } else {
        condition(
            conditions::AVAILABLE,
            "False",
            reasons::MINIMUM_UNAVAILABLE,
            "Deployment does not have minimum availability.".to_owned(),
            round.now,
        )
    };
    set(&mut conditions, new);
    DeploymentStatus {
        observed_generation: Some(round.deployment.metadata.generation),
        replicas: positive(sum(|s| s.actual)),
        updated_replicas: positive(updated),
        ready_replicas: positive(sum(|s| s.ready)),
        available_replicas: positive(available),
        unavailable_replicas: positive(round.total() - available),
        terminating_replicas: round
            .sets
            .iter()
            .map(|s| s.terminating)
            .try_fold(0, |sum, t| Some(sum + t?)),
        collision_count: round.deployment.status.collision_count,
        conditions: Some(conditions),
    }
}

/// Zero counts are absent, as upstream writes them.
fn positive(count: i32) -> Option<i32> {
    (count > 0).then_some(count)
}

/// Everything that was asked for is there and available, and nothing else is.
pub(super) fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let replicas = deployment.spec.replicas.unwrap_or(1);
    status.updated_replicas.unwrap_or(0) == replicas
        && status.replicas.unwrap_or(0) == replicas
        && status.available_replicas.unwrap_or(0) == replicas
        && status.observed_generation.unwrap_or(0) >= deployment.metadata.generation
}

fn is_progressing(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let n = |count: Option<i32>| count.unwrap_or(0);
    let old_ones = |s: &DeploymentStatus| n(s.replicas) - n(s.updated_replicas);
    n(new.updated_replicas) > n(old.updated_replicas)
        || old_ones(new) < old_ones(old)
        || n(new.ready_replicas) > n(old.ready_replicas)
        || n(new.available_replicas) > n(old.available_replicas)
}

fn has_timed_out(round: &Round<'_>, status: &DeploymentStatus) -> bool {
    let Some(deadline) = deadline(round.deployment) else {
        return false;
    };
    let list = status.conditions.as_deref().unwrap_or_default();
    let Some(progressing) = find(list, conditions::PROGRESSING) else {
        return false;
    };
    match progressing.reason.as_deref() {
        Some(reasons::NEW_AVAILABLE) => false,
        Some(reasons::TIMED_OUT) => true,
        _ => progressing
            .last_update_time
            .as_ref()
            .is_some_and(|t| t.0.as_second() + deadline < round.now.as_second()),
    }
}

/// The status of a rollout: counts plus how it progresses.
pub(super) fn of_rollout(round: &Round<'_>) -> DeploymentStatus {
    let mut status = calculate(round);
    let mut list = status.conditions.take().unwrap_or_default();
    let current = find(&round.conditions, conditions::PROGRESSING).cloned();
    let already_complete = status.replicas == status.updated_replicas
        && current.as_ref().and_then(|c| c.reason.as_deref()) == Some(reasons::NEW_AVAILABLE);
    if deadline(round.deployment).is_none() {
        remove(&mut list, conditions::PROGRESSING);
    } else if !already_complete {
        status.conditions = Some(list);
        let what = match round.new {
            Some(new) => format!("ReplicaSet \"{}\"", round.sets[new].name),
            None => format!("Deployment \"{}\"", round.deployment.metadata.name),
        };
        let progressing = |status: &str, reason: &str, message: String| {
            condition(conditions::PROGRESSING, status, reason, message, round.now)
        };
        let (complete, moving, late) = (
            is_complete(round.deployment, &status),
            is_progressing(&round.deployment.status, &status),
            has_timed_out(round, &status),
        );
        list = status.conditions.take().unwrap_or_default();
        if complete {
            let message = format!("{what} has successfully progressed.");
            set(
                &mut list,
                progressing("True", reasons::NEW_AVAILABLE, message),
            );
        } else if moving {
            let mut new = progressing(
                "True",
                reasons::REPLICA_SET_UPDATED,
                format!("{what} is progressing."),
            );
            // Each bit of progress moves the update time, which the deadline counts from.
            if let Some(current) = current.filter(|c| c.status == "True") {
                new.last_transition_time = current.last_transition_time;
            }
            remove(&mut list, conditions::PROGRESSING);
            list.push(new);
        } else if late {
            let message = format!("{what} has timed out progressing.");
            set(&mut list, progressing("False", reasons::TIMED_OUT, message));
        }
    }
    match failure(round) {
        Some(failure) => set(&mut list, failure),
        None => remove(&mut list, conditions::REPLICA_FAILURE),
    }
    status.conditions = Some(list);
    status
}

/// The ReplicaSets' own failure to create pods, the new set's first.
fn failure(round: &Round<'_>) -> Option<DeploymentCondition> {
    let of = |set: &super::Set| set.failure.clone();
    let failure = round
        .new
        .and_then(|i| of(&round.sets[i]))
        .or_else(|| round.sets.iter().find_map(of))?;
    Some(DeploymentCondition {
        type_: failure.type_,
        status: failure.status,
        reason: failure.reason,
        message: failure.message,
        last_transition_time: failure.last_transition_time.clone(),
        last_update_time: failure.last_transition_time,
    })
}

/// When the deadline has to be looked at even if nothing happens.
pub(super) fn look_again(round: &Round<'_>, status: &DeploymentStatus) -> Option<Duration> {
    let deadline = deadline(round.deployment)?;
    let list = status.conditions.as_deref()?;
    let progressing = find(list, conditions::PROGRESSING)?;
    let settled = matches!(
        progressing.reason.as_deref(),
        Some(reasons::TIMED_OUT | reasons::NEW_AVAILABLE | reasons::PAUSED)
    );
    if settled || is_complete(round.deployment, status) {
        return None;
    }
    let from = progressing.last_update_time.as_ref()?.0.as_second();
    let left = (from + deadline - round.now.as_second()).max(0);
    // One more second, because times have whole seconds.
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0) + 1))
}

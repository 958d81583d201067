//! What users are told of pods that wait: the condition `PodScheduled`. Pure.

use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use types::condition;

use crate::objects::Pod;

pub(super) mod reasons {
    pub(in super::super) const FAILED_SCHEDULING: &str = "FailedScheduling";
    pub(in super::super) const SCHEDULED: &str = "Scheduled";
    pub(in super::super) const UNSCHEDULABLE: &str = "Unschedulable";
    pub(in super::super) const GATED: &str = "SchedulingGated";
}

const POD_SCHEDULED: &str = "PodScheduled";

/// No node fits. `None` when the pod says so already.
pub(super) fn unschedulable(pod: &Pod, message: String, now: Timestamp) -> Option<Value> {
    condition(pod, reasons::UNSCHEDULABLE, message, now)
}

/// Somebody else has to open a gate first.
pub(super) fn gated(pod: &Pod, now: Timestamp) -> Option<Value> {
    let message = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
    condition(pod, reasons::GATED, message, now)
}

fn condition(pod: &Pod, reason: &str, message: String, now: Timestamp) -> Option<Value> {
    let said = pod.condition(POD_SCHEDULED).is_some_and(|c| {
        c.status == "False"
            && c.reason.as_deref() == Some(reason)
            && c.message.as_deref() == Some(message.as_str())
    });
    if said {
        return None;
    }
    let mut conditions = pod.status.conditions.clone();
    condition::set(
        &mut conditions,
        PodCondition {
            type_: POD_SCHEDULED.to_owned(),
            status: "False".to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        },
    );
    Some(json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": conditions}}))
}

//! Writes to a pod's API object: its status, and its removal when it is over. Says what went wrong; does not retry.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

use super::context::Context;
use super::status::{BY_KUBELET, DISRUPTION};

const WRITE: Duration = Duration::from_secs(15);

/// Conditions this node writes; others belong to others and are not touched.
const OWN: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Fields of a status that nobody but this node writes.
const OWN_FIELDS: [&str; 9] = [
    "reason",
    "message",
    "podIP",
    "podIPs",
    "hostIP",
    "hostIPs",
    "containerStatuses",
    "initContainerStatuses",
    "startTime",
];

/// What a condition may lack.
const CONDITION_FIELDS: [&str; 4] = ["reason", "message", "lastProbeTime", "observedGeneration"];

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// The object is gone.
    #[error("the pod is gone from the API")]
    Gone,
    #[error("{0}")]
    Api(String),
}

/// A disruption is this node's to tell only when its shutting down is the cause; otherwise others do.
fn is_written(condition: &PodCondition) -> bool {
    is_own(&condition.type_)
        || condition.type_ == DISRUPTION && condition.reason.as_deref() == Some(BY_KUBELET)
}

pub(super) fn is_own(condition: &str) -> bool {
    OWN.contains(&condition)
}

/// The part of a status that others write: their conditions, and `Ready`, which is taken away from the pods of a node
/// that nothing is heard of.
pub(super) fn of_others(status: PodStatus) -> PodStatus {
    let mut conditions = status.conditions.unwrap_or_default();
    conditions.retain(|condition| !is_own(&condition.type_) || condition.type_ == "Ready");
    PodStatus {
        conditions: (!conditions.is_empty()).then_some(conditions),
        ..PodStatus::default()
    }
}

/// The store's revision of this version of the pod.
pub(super) fn revision(pod: &Pod) -> u64 {
    let version = pod.metadata.resource_version.as_deref();
    version.and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// Makes the API say `status`, and returns the revision at which it does. Only this very pod is written, never a namesake.
pub(super) async fn status(context: &Context, pod: &Pod, status: &PodStatus) -> Result<u64, Error> {
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": patch(status)?});
    // The semaphore is never closed.
    let _turn = context.publishing.acquire().await;
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let api = api(context, pod);
    let params = PatchParams::default();
    let patch = Patch::Strategic(patch);
    let written = api.patch_status(name, &params, &patch);
    match tokio::time::timeout(WRITE, written).await {
        Ok(written) => written.map(|pod| revision(&pod)).map_err(explain),
        Err(_) => Err(Error::Api("no answer in time".to_owned())),
    }
}

/// What makes a status say this, and nothing else where this node speaks: a strategic merge keeps what it is not told to
/// drop.
fn patch(status: &PodStatus) -> Result<Value, Error> {
    let mut own = status.clone();
    if let Some(conditions) = &mut own.conditions {
        conditions.retain(is_written);
    }
    let mut patch = serde_json::to_value(own).map_err(|error| Error::Api(error.to_string()))?;
    drop_absent(&mut patch, &OWN_FIELDS);
    for condition in patch["conditions"].as_array_mut().into_iter().flatten() {
        drop_absent(condition, &CONDITION_FIELDS);
    }
    // Lists that merge by address: an old one would stay.
    for list in ["podIPs", "hostIPs"] {
        if let Some(addresses) = patch[list].as_array_mut() {
            addresses.insert(0, json!({"$patch": "replace"}));
        }
    }
    Ok(patch)
}

/// Says of each of these fields that is not there that it shall not be there.
fn drop_absent(object: &mut Value, fields: &[&str]) {
    let Some(object) = object.as_object_mut() else {
        return;
    };
    for field in fields {
        object.entry(*field).or_insert(Value::Null);
    }
}

/// Removes the object now: nothing of the pod is left on this node.
pub(super) async fn delete(context: &Context, pod: &Pod) -> Result<(), Error> {
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        preconditions: Some(Preconditions {
            uid: pod.metadata.uid.clone(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    let _turn = context.publishing.acquire().await;
    let api = api(context, pod);
    let deleted = api.delete(pod.metadata.name.as_deref().unwrap_or_default(), &params);
    match tokio::time::timeout(WRITE, deleted).await {
        // A conflict is about the uid: this pod is gone, another has its name.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Err(Error::Gone),
        Ok(deleted) => deleted.map(drop).map_err(explain),
        Err(_) => Err(Error::Api("no answer in time".to_owned())),
    }
}

fn api(context: &Context, pod: &Pod) -> Api<Pod> {
    Api::namespaced(
        context.client.clone(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
    )
}

fn explain(error: kube::Error) -> Error {
    match &error {
        kube::Error::Api(status) if status.code == 404 => Error::Gone,
        _ => Error::Api(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_status_no_longer_says_is_taken_out_of_the_object() {
        let status: PodStatus = serde_json::from_value(json!({
            "phase": "Running",
            "podIPs": [{"ip": "100.64.0.2"}],
            "conditions": [
                {"type": "Ready", "status": "True"},
                {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady"},
                {"type": "example.com/gate", "status": "True"},
            ],
        }))
        .expect("well formed");
        let patch = patch(&status).expect("a patch");
        assert_eq!(
            patch["conditions"],
            json!([
                {"type": "Ready", "status": "True", "reason": null, "message": null,
                    "lastProbeTime": null, "observedGeneration": null},
                {"type": "ContainersReady", "status": "False", "reason": "ContainersNotReady", "message": null,
                    "lastProbeTime": null, "observedGeneration": null},
            ]),
            "others' conditions are left alone"
        );
        assert_eq!(
            patch["podIPs"],
            json!([{"$patch": "replace"}, {"ip": "100.64.0.2"}])
        );
        let fields = patch.as_object().expect("an object");
        for field in ["reason", "message", "initContainerStatuses"] {
            assert_eq!(fields.get(field), Some(&Value::Null), "{field}");
        }
        assert!(!fields.contains_key("nominatedNodeName"), "not ours");
    }
}

//! `eviction`: a deletion that asks the PodDisruptionBudgets first.
//!
//! Differs from Kubernetes: no controller keeps `disruptionsAllowed` yet, so a budget that covers a pod which still runs
//! refuses unless its status allows a disruption; it is never guessed.

use http::StatusCode;
use serde_json::{Value, json};

use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::label_selector;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::registry::delete::DeleteOptions;
use crate::schema::GroupVersionKind;
use crate::status::{Cause, CauseReason, Error};

const EVICTION: &str = "io.k8s.api.policy.v1.Eviction";

pub(super) async fn evict(call: &Call<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = call.query.write_options("CreateOptions")?;
    let gvk = GroupVersionKind {
        group: "policy".to_owned(),
        version: "v1".to_owned(),
        kind: "Eviction".to_owned(),
    };
    let mut warnings = Vec::new();
    let eviction = call.decode(body, EVICTION, &gvk, options.validation, &mut warnings)?;
    if eviction.name() != call.path.name {
        return Err(Error::bad_request(
            "name in URL does not match name in Eviction object",
        ));
    }
    let mut deletion = match eviction.at(&["deleteOptions"]) {
        Some(options) => DeleteOptions::from_value(options)?,
        None => DeleteOptions::default(),
    };
    deletion.dry_run |= options.dry_run;
    let mut registry = call.registry(Door::Main, "", deletion.dry_run);
    let stored = registry.find(&call.path.name)?;
    let pod = registry.read(&stored)?;
    if !may_go_freely(&pod) {
        ask_budgets(call, &pod)?;
    }
    registry.delete(&call.path.name, &deletion).await?;
    let status = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Success",
        "code": 201,
    });
    Ok(Reply::value(StatusCode::CREATED, &status))
}

/// Pods that are over, not begun or already going are nobody's loss.
fn may_go_freely(pod: &Object) -> bool {
    pod.is_deleting()
        || matches!(
            pod.str_at(&["status", "phase"]),
            Some("Succeeded" | "Failed" | "Pending")
        )
}

fn ask_budgets(call: &Call<'_>, pod: &Object) -> Result<(), Error> {
    let snapshot = call.api.cache.snapshot("policy/poddisruptionbudgets");
    let none = Value::Null;
    let labels = pod.at(&["metadata", "labels"]).unwrap_or(&none);
    for stored in snapshot.in_namespace(call.namespace()) {
        let budget: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
        if !label_selector::matches(&budget["spec"]["selector"], labels) {
            continue;
        }
        if budget["status"]["disruptionsAllowed"].as_i64().unwrap_or(0) > 0 {
            continue;
        }
        let mut error = Error::too_many_requests(
            "Cannot evict pod as it would violate the pod's disruption budget.",
            0,
        );
        let name = &stored.key.name;
        let text = format!("The disruption budget {name} does not allow evicting pods currently");
        error
            .details
            .causes
            .push(Cause::other(CauseReason::DisruptionBudget, "", text));
        return Err(error);
    }
    Ok(())
}

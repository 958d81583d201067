//! `eviction`: a deletion that asks the PodDisruptionBudgets first.
//!
//! Differs from Kubernetes: no controller keeps `disruptionsAllowed` yet, so a budget that covers a pod which still runs
//! refuses unless its status allows a disruption; it is never guessed. Each eviction takes one from the status, by
//! compare-and-set, before the pod is deleted.

use http::StatusCode;
use serde_json::{Value, json};

use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::strategy::Door;
use crate::kinds::{Kind, label_selector};
use crate::object::Object;
use crate::registry::delete::DeleteOptions;
use crate::registry::{Change, Registry};
use crate::schema::GroupVersionKind;
use crate::status::{Cause, CauseReason, Error, Reason};

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
    demand(&pod, &mut deletion)?;
    if !may_go_freely(&pod) {
        ask_budget(call, &pod, deletion.dry_run).await?;
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

/// Takes one disruption from the budget that covers the pod, if one does.
async fn ask_budget(call: &Call<'_>, pod: &Object, dry_run: bool) -> Result<(), Error> {
    let snapshot = call.api.cache.snapshot("policy/poddisruptionbudgets");
    let none = Value::Null;
    let labels = pod.at(&["metadata", "labels"]).unwrap_or(&none);
    let mut covering = snapshot.in_namespace(call.namespace()).filter(|stored| {
        let budget: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
        label_selector::matches(&budget["spec"]["selector"], labels)
    });
    let Some(stored) = covering.next() else {
        return Ok(());
    };
    if covering.next().is_some() {
        return Err(Error::internal(
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        ));
    }
    let budgets: &'static Kind = call
        .api
        .kinds
        .find("policy", "v1", "poddisruptionbudgets")
        .ok_or_else(|| Error::internal("there are no budgets to ask"))?;
    let mut registry = Registry {
        kind: budgets,
        ..call.registry(Door::Subresource("status"), "", dry_run)
    };
    let name = &*stored.key.name;
    let at = crate::registry::time(call.now);
    // Runs again when somebody else took one in between.
    let mut take = |old: Option<&Object>| {
        let Some(old) = old else {
            return Err(Error::internal("there is no budget to ask"));
        };
        let allowed = old
            .i64_at(&["status", "disruptionsAllowed"])
            .unwrap_or_default();
        if allowed <= 0 {
            return Err(refused(name));
        }
        let mut new = old.clone();
        new.set(&["status", "disruptionsAllowed"], json!(allowed - 1));
        new.set(&["status", "disruptedPods", pod.name()], json!(at));
        Ok(Change { new, owned: true })
    };
    match registry.update(name, "update", false, &mut take).await {
        // A budget that has just gone forbids nothing.
        Err(error) if error.reason == Reason::NotFound => Ok(()),
        done => done.map(|_| ()),
    }
}

fn refused(budget: &str) -> Error {
    let mut error = Error::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        0,
    );
    let text = format!("The disruption budget {budget} does not allow evicting pods currently");
    error
        .details
        .causes
        .push(Cause::other(CauseReason::DisruptionBudget, "", text));
    error
}

/// The pod that is judged is the pod that goes: what the caller demands of it is checked first, and its uid is demanded
/// of the deletion.
fn demand(pod: &Object, deletion: &mut DeleteOptions) -> Result<(), Error> {
    let uid = deletion.uid.get_or_insert_with(|| pod.uid().to_owned());
    let revision = deletion.resource_version.as_deref();
    if uid != pod.uid() || revision.is_some_and(|revision| revision != pod.resource_version()) {
        let why =
            "the pod does not meet the preconditions; it might have been modified or recreated";
        return Err(Error::conflict("", "Pod", pod.name(), why));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deletion_is_of_the_judged_pod() {
        let pod = json!({"metadata": {"name": "p", "uid": "u", "resourceVersion": "7"}});
        let pod = Object::new(pod).expect("an object");
        let mut deletion = DeleteOptions::default();
        demand(&pod, &mut deletion).expect("nothing was demanded");
        assert_eq!(deletion.uid.as_deref(), Some("u"));
        deletion.resource_version = Some("6".to_owned());
        assert!(demand(&pod, &mut deletion).is_err());
        let mut other = DeleteOptions {
            uid: Some("v".to_owned()),
            ..DeleteOptions::default()
        };
        assert!(demand(&pod, &mut other).is_err());
    }
}

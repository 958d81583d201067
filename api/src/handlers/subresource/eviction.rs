//! `eviction`: a deletion that asks the PodDisruptionBudgets first.
//!
//! A budget's status is the disruption controller's word; each eviction takes one disruption from it, by
//! compare-and-set, before the pod is marked and deleted. Nothing is guessed: a budget whose status is behind its spec
//! refuses for now.

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
const DISRUPTION_TARGET: &str = "DisruptionTarget";
const DISRUPTION_ALLOWED: &str = "DisruptionAllowed";
/// More evictions than this that the controller has not confirmed are too many.
const MOST_DISRUPTED: usize = 2_000;

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
    // Who may not delete it must not use up its budget either.
    registry.admit_deletion(&call.path.name, &pod)?;
    let mut unready = false;
    if !may_go_freely(&pod) {
        unready = ask_budget(call, &pod, deletion.dry_run).await? == Leave::WhileUnready;
    }
    if !deletion.dry_run {
        mark(call, unready, &mut deletion).await?;
    }
    registry.delete(&call.path.name, &deletion).await?;
    call.created()
}

/// How a pod may go.
#[derive(Debug, PartialEq)]
enum Leave {
    /// Whatever it does meanwhile.
    Granted,
    /// No disruption was taken for it, because it is not ready: should it become so, it may not go.
    WhileUnready,
}

/// Says on the pod why it goes, and holds the deletion to the pod that was judged.
async fn mark(call: &Call<'_>, unready: bool, deletion: &mut DeleteOptions) -> Result<(), Error> {
    let name = &call.path.name;
    let at = crate::registry::time(call.now);
    let mut registry = call.registry(Door::Subresource("status"), "", false);
    let mut condition = |old: Option<&Object>| {
        let Some(old) = old else {
            return Err(Error::internal("there is no pod to evict"));
        };
        demand(old, deletion)?;
        if unready && is_ready(old) {
            return Err(became_ready(old));
        }
        let mut new = old.clone();
        let mut conditions = old.list_at(&["status", "conditions"]).to_vec();
        conditions.retain(|condition| condition["type"] != DISRUPTION_TARGET);
        conditions.push(json!({
            "type": DISRUPTION_TARGET,
            "status": "True",
            "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting",
            "lastTransitionTime": at,
            "lastProbeTime": null,
        }));
        new.set(&["status", "conditions"], Value::Array(conditions));
        Ok(Change { new, owned: false })
    };
    registry
        .update(name, "update", false, &mut condition)
        .await?;
    if unready || deletion.resource_version.is_some() {
        let stored = registry.find(name)?;
        let pod = registry.read(&stored)?;
        if unready && is_ready(&pod) {
            return Err(became_ready(&pod));
        }
        deletion.resource_version = Some(pod.resource_version().to_owned());
    }
    Ok(())
}

fn became_ready(pod: &Object) -> Error {
    let why = "the pod became ready while it was being evicted; please try again";
    Error::conflict("", "pods", pod.name(), why)
}

fn is_ready(pod: &Object) -> bool {
    pod.list_at(&["status", "conditions"])
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

/// Pods that are over, not begun or already going are nobody's loss.
fn may_go_freely(pod: &Object) -> bool {
    pod.is_deleting()
        || matches!(
            pod.str_at(&["status", "phase"]),
            Some("Succeeded" | "Failed" | "Pending")
        )
}

/// Takes one disruption from the budget that covers the pod, if one does and the pod counts in it.
async fn ask_budget(call: &Call<'_>, pod: &Object, dry_run: bool) -> Result<Leave, Error> {
    let snapshot = call.api.cache.snapshot("policy/poddisruptionbudgets");
    let none = Value::Null;
    let labels = pod.at(&["metadata", "labels"]).unwrap_or(&none);
    let mut covering = snapshot.in_namespace(call.namespace()).filter(|stored| {
        let budget: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
        covers(&budget, labels)
    });
    let Some(stored) = covering.next() else {
        return Ok(Leave::Granted);
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
    let budget = registry.read(stored)?;
    if !is_ready(pod) && lets_the_unready_go(&budget) {
        return Ok(Leave::WhileUnready);
    }
    let at = crate::registry::time(call.now);
    // Runs again when somebody else took one in between.
    let mut take = |old: Option<&Object>| {
        let Some(old) = old else {
            return Err(Error::internal("there is no budget to ask"));
        };
        let new = taken(old, pod.name(), &json!(at))?;
        Ok(Change { new, owned: true })
    };
    match registry.update(name, "update", false, &mut take).await {
        // A budget that has just gone forbids nothing.
        Err(error) if error.reason == Reason::NotFound => Ok(Leave::Granted),
        done => done.map(|_| Leave::Granted),
    }
}

/// An empty selector covers all pods, none covers nothing.
fn covers(budget: &Value, labels: &Value) -> bool {
    let selector = &budget["spec"]["selector"];
    selector.is_object() && label_selector::matches(selector, labels)
}

/// A pod that is not ready is no loss when the budget says so, or when enough others are healthy.
fn lets_the_unready_go(budget: &Object) -> bool {
    let always = budget.str_at(&["spec", "unhealthyPodEvictionPolicy"]) == Some("AlwaysAllow");
    let status = |field: &str| budget.i64_at(&["status", field]).unwrap_or_default();
    let desired = status("desiredHealthy");
    always || (desired > 0 && status("currentHealthy") >= desired)
}

/// The budget with one disruption less.
fn taken(budget: &Object, pod: &str, at: &Value) -> Result<Object, Error> {
    let status = |field: &str| budget.i64_at(&["status", field]).unwrap_or_default();
    let generation = budget
        .i64_at(&["metadata", "generation"])
        .unwrap_or_default();
    if status("observedGeneration") < generation {
        let name = budget.name();
        let text = format!("The disruption budget {name} is still being processed by the server.");
        return Err(refused(text, 10));
    }
    let allowed = status("disruptionsAllowed");
    let forbidden =
        |why: &str| Error::forbidden("policy", "poddisruptionbudgets", budget.name(), why);
    if allowed < 0 {
        return Err(forbidden("pdb disruptions allowed is negative"));
    }
    let disrupted = budget
        .at(&["status", "disruptedPods"])
        .and_then(Value::as_object);
    if disrupted.is_some_and(|pods| pods.len() > MOST_DISRUPTED) {
        let why = "DisruptedPods map too big - too many evictions not confirmed by PDB controller";
        return Err(forbidden(why));
    }
    if allowed == 0 {
        return Err(refused(why_none(budget), 0));
    }
    let mut new = budget.clone();
    new.set(&["status", "disruptionsAllowed"], json!(allowed - 1));
    if allowed == 1 {
        let mut conditions = budget.list_at(&["status", "conditions"]).to_vec();
        conditions.retain(|condition| condition["type"] != DISRUPTION_ALLOWED);
        conditions.push(json!({
            "type": DISRUPTION_ALLOWED,
            "status": "False",
            "reason": "InsufficientPods",
            "message": "",
            "observedGeneration": status("observedGeneration"),
            "lastTransitionTime": at,
        }));
        new.set(&["status", "conditions"], Value::Array(conditions));
    }
    new.set(&["status", "disruptedPods", pod], at.clone());
    Ok(new)
}

fn why_none(budget: &Object) -> String {
    let name = budget.name();
    let failed = budget.list_at(&["status", "conditions"]).iter().find(|c| {
        c["type"] == DISRUPTION_ALLOWED && c["status"] == "False" && c["reason"] == "SyncFailed"
    });
    if let Some(failed) = failed {
        let why = failed["message"].as_str().unwrap_or_default();
        return format!(
            "The disruption budget {name} does not allow evicting pods currently because it failed sync: {why}"
        );
    }
    let status = |field: &str| budget.i64_at(&["status", field]).unwrap_or_default();
    let (desired, current) = (status("desiredHealthy"), status("currentHealthy"));
    format!("The disruption budget {name} needs {desired} healthy pods and has {current} currently")
}

fn refused(text: String, retry_after: u32) -> Error {
    let mut error = Error::too_many_requests(
        "Cannot evict pod as it would violate the pod's disruption budget.",
        retry_after,
    );
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

    fn budget(spec: Value, status: Value) -> Object {
        let budget =
            json!({"metadata": {"name": "b", "generation": 2}, "spec": spec, "status": status});
        Object::new(budget).expect("an object")
    }

    #[test]
    fn a_budget_is_asked_as_upstream_asks() {
        let at = json!("2026-01-01T00:00:00Z");
        let refusal = |status: Value| {
            let error = taken(&budget(json!({}), status), "p", &at).expect_err("it is refused");
            (
                error.message.clone(),
                error.details.causes.first().map(|c| c.message.clone()),
            )
        };
        let (message, cause) = refusal(json!({"observedGeneration": 1, "disruptionsAllowed": 3}));
        assert_eq!(
            message,
            "Cannot evict pod as it would violate the pod's disruption budget."
        );
        let cause = cause.unwrap_or_default();
        assert_eq!(
            cause,
            "The disruption budget b is still being processed by the server."
        );
        let none = json!({"observedGeneration": 2, "disruptionsAllowed": 0, "desiredHealthy": 2, "currentHealthy": 1});
        let cause = refusal(none).1.unwrap_or_default();
        assert_eq!(
            cause,
            "The disruption budget b needs 2 healthy pods and has 1 currently"
        );
        let (message, _) = refusal(json!({"observedGeneration": 2, "disruptionsAllowed": -1}));
        assert!(message.contains("is negative"), "{message}");

        let one = json!({"observedGeneration": 2, "disruptionsAllowed": 1});
        let left = taken(&budget(json!({}), one), "p", &at).expect("it is granted");
        assert_eq!(left.i64_at(&["status", "disruptionsAllowed"]), Some(0));
        assert_eq!(left.at(&["status", "disruptedPods", "p"]), Some(&at));
        let condition = &left.list_at(&["status", "conditions"])[0];
        assert_eq!(condition["reason"], "InsufficientPods");
    }

    #[test]
    fn a_budget_without_a_selector_covers_nothing_and_one_that_is_empty_everything() {
        let labels = json!({"app": "a"});
        let covers = |spec: Value| covers(&json!({"spec": spec}), &labels);
        assert!(!covers(json!({"minAvailable": 1})));
        assert!(!covers(json!({"selector": null})));
        assert!(covers(json!({"selector": {}})));
        assert!(covers(json!({"selector": {"matchLabels": {"app": "a"}}})));
        assert!(!covers(json!({"selector": {"matchLabels": {"app": "b"}}})));
    }

    #[test]
    fn pods_that_are_not_ready_go_when_they_are_no_loss() {
        let enough = json!({"desiredHealthy": 2, "currentHealthy": 2});
        let few = json!({"desiredHealthy": 2, "currentHealthy": 1});
        let always = json!({"unhealthyPodEvictionPolicy": "AlwaysAllow"});
        assert!(lets_the_unready_go(&budget(json!({}), enough)));
        assert!(!lets_the_unready_go(&budget(json!({}), few.clone())));
        assert!(lets_the_unready_go(&budget(always, few)));
        assert!(!lets_the_unready_go(&budget(json!({}), json!({}))));
    }
}

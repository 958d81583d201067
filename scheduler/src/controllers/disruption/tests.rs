//! What a budget allows, against pods in every state: tables, and properties over random pods.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

fn budget(spec: Value, status: Value) -> Arc<Budget> {
    let budget = json!({
        "metadata": {"name": "b", "generation": 3, "resourceVersion": "9"}, "spec": spec, "status": status
    });
    Arc::new(serde_json::from_value(budget).expect("a budget"))
}

fn pod(name: &str, ready: bool) -> Arc<Pod> {
    let pod = json!({
        "metadata": {"name": name, "uid": name},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}
    });
    Arc::new(serde_json::from_value(pod).expect("a pod"))
}

fn pods(ready: usize, unready: usize) -> Vec<Arc<Pod>> {
    (0..ready + unready)
        .map(|i| pod(&format!("p{i}"), i < ready))
        .collect()
}

/// The status after the plan was carried out.
fn after(observed: &Observed, now: i64) -> PodDisruptionBudgetStatus {
    let mut status = json!(observed.budget.status);
    for action in plan(observed, at(now)) {
        if let Action::PatchStatus(patch) = action {
            assert_eq!(patch["metadata"]["resourceVersion"], "9");
            merge(&mut status, &patch["status"]);
        }
    }
    serde_json::from_value(status).expect("a status")
}

fn merge(into: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *into = patch.clone();
        return;
    };
    for (name, value) in patch {
        match value {
            Value::Null => {
                into.as_object_mut().map(|o| o.remove(name));
            }
            value => merge(&mut into[name], value),
        }
    }
}

#[test]
fn what_may_be_disrupted_is_what_upstream_says() {
    // (spec, ready, unready, scale) → (desired, expected, allowed)
    let cases = [
        (json!({"minAvailable": 2}), (3, 0, 9), (2, 3, 1)),
        (json!({"minAvailable": 2}), (1, 2, 9), (2, 3, 0)),
        (json!({"minAvailable": 5}), (3, 0, 9), (5, 3, 0)),
        (json!({"minAvailable": 0}), (2, 0, 9), (0, 2, 2)),
        (json!({"minAvailable": 0}), (0, 0, 0), (0, 0, 0)),
        (json!({"minAvailable": "50%"}), (3, 0, 3), (2, 3, 1)),
        (json!({"minAvailable": "100%"}), (3, 0, 3), (3, 3, 0)),
        (json!({"maxUnavailable": 1}), (3, 0, 3), (2, 3, 1)),
        (json!({"maxUnavailable": 1}), (3, 0, 5), (4, 5, 0)),
        (json!({"maxUnavailable": 9}), (3, 0, 3), (0, 3, 3)),
        (json!({"maxUnavailable": "30%"}), (10, 0, 10), (7, 10, 3)),
        (json!({"maxUnavailable": "1%"}), (3, 0, 3), (2, 3, 1)),
        (json!({}), (3, 0, 3), (0, 0, 0)),
    ];
    for (spec, (ready, unready, scale), (desired, expected, allowed)) in cases {
        let observed = Observed {
            budget: budget(spec.clone(), json!({})),
            pods: pods(ready, unready),
            scale: Ok(scale),
        };
        let status = after(&observed, 1000);
        let got = (
            status.desired_healthy,
            status.expected_pods,
            status.disruptions_allowed,
        );
        assert_eq!(
            got,
            (Some(desired), Some(expected), Some(allowed)),
            "{spec}"
        );
        assert_eq!(status.observed_generation, Some(3));
        let condition = &status.conditions.expect("conditions")[0];
        let reason = if allowed > 0 {
            SUFFICIENT
        } else {
            INSUFFICIENT
        };
        assert_eq!(condition.reason, reason);
        assert_eq!(condition.observed_generation, Some(3));
    }
}

#[test]
fn an_eviction_that_was_allowed_counts_until_it_is_overdue() {
    let since = at(1000).to_string();
    let mut observed = Observed {
        budget: budget(
            json!({"minAvailable": 1}),
            json!({"disruptedPods": {"p0": since, "gone": since}}),
        ),
        pods: pods(3, 0),
        scale: Ok(0),
    };
    let status = after(&observed, 1060);
    assert_eq!(status.current_healthy, Some(2));
    assert_eq!(status.disruptions_allowed, Some(1));
    let names: Vec<String> = status
        .disrupted_pods
        .into_iter()
        .flatten()
        .map(|p| p.0)
        .collect();
    assert_eq!(names, ["p0"]);
    assert!(plan(&observed, at(1060)).contains(&Action::LookAgain(Duration::from_secs(60))));

    let actions = plan(&observed, at(1120));
    assert!(actions.contains(&Action::TellNotDeleted(pod("p0", true))));
    assert_eq!(after(&observed, 1120).current_healthy, Some(3));

    let mut going = (*pod("p0", true)).clone();
    going.metadata.deletion_timestamp = Some(Time(at(1010)));
    observed.pods[0] = Arc::new(going);
    let status = after(&observed, 1060);
    assert_eq!(
        (status.current_healthy, status.disrupted_pods),
        (Some(2), None)
    );
}

#[test]
fn what_cannot_be_counted_allows_nothing_and_says_why() {
    let observed = Observed {
        budget: budget(
            json!({"maxUnavailable": 1}),
            json!({"disruptionsAllowed": 2, "observedGeneration": 2}),
        ),
        pods: pods(3, 0),
        scale: Err("jobs.batch does not implement the scale subresource".to_owned()),
    };
    let status = after(&observed, 1000);
    assert_eq!(status.disruptions_allowed, Some(0));
    assert_eq!(status.observed_generation, Some(2));
    let condition = &status.conditions.expect("conditions")[0];
    assert_eq!(condition.reason, SYNC_FAILED);
    assert_eq!(condition.status, "False");
    assert!(condition.message.contains("jobs.batch"));
}

#[test]
fn a_disruption_that_never_came_is_forgotten() {
    let mut pod = (*pod("p", true)).clone();
    assert_eq!(stale(&pod, at(0)), Stale::No);
    pod.status.conditions.push(PodCondition {
        type_: TARGET.to_owned(),
        status: "True".to_owned(),
        last_transition_time: Some(Time(at(1000))),
        ..PodCondition::default()
    });
    assert_eq!(stale(&pod, at(1100)), Stale::In(Duration::from_secs(20)));
    assert!(matches!(stale(&pod, at(1120)), Stale::Now(_)));
    pod.metadata.deletion_timestamp = Some(Time(at(1001)));
    assert_eq!(stale(&pod, at(1120)), Stale::No);
}

proptest! {
    /// As often as the status allows a disruption, one may be taken and at least `desiredHealthy` are left.
    #[test]
    fn what_is_allowed_leaves_enough(
        ready in 0usize..8, unready in 0usize..4, scale in 0i32..12,
        bound in 0i32..10, percent in any::<bool>(), most in any::<bool>(),
        taken in proptest::collection::btree_set(0usize..12, 0..4),
    ) {
        let amount = if percent { json!(format!("{}%", bound * 10)) } else { json!(bound) };
        let spec = if most { json!({"maxUnavailable": amount}) } else { json!({"minAvailable": amount}) };
        let taken: BTreeSet<String> = taken.iter().map(|i| format!("p{i}")).collect();
        let disrupted: serde_json::Map<String, Value> =
            taken.iter().map(|n| (n.clone(), json!(at(990).to_string()))).collect();
        let observed = Observed {
            budget: budget(spec, json!({"disruptedPods": disrupted})),
            pods: pods(ready, unready),
            scale: Ok(scale),
        };
        let status = after(&observed, 1000);
        let healthy = (0..ready).filter(|i| !taken.contains(&format!("p{i}"))).count();
        prop_assert_eq!(status.current_healthy, i32::try_from(healthy).ok());
        let allowed = status.disruptions_allowed.unwrap_or(-1);
        prop_assert!(allowed >= 0);
        let left = i32::try_from(healthy).unwrap_or(0) - allowed;
        prop_assert!(allowed == 0 || left >= status.desired_healthy.unwrap_or(0));
        // Said once, there is nothing more to say.
        let again = Observed {
            budget: Arc::new(Budget { status, ..(*observed.budget).clone() }),
            ..observed
        };
        let quiet = plan(&again, at(1000)).iter().all(|a| !matches!(a, Action::PatchStatus(_)));
        prop_assert!(quiet);
    }
}

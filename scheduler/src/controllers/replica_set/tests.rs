//! What ReplicaSet plans promise.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use serde_json::json;

use super::*;

fn set(replicas: i32, min_ready: i32) -> Arc<ReplicaSet> {
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "default", "uid": "s", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": min_ready,
                     "selector": {"matchLabels": {"app": "web"}},
                     "template": {"metadata": {"labels": {"app": "web"}, "annotations": {"a": "b"}},
                                  "spec": {"containers": [{"name": "c", "image": "i"}]}}}
        }))
        .expect("a set"),
    )
}

fn pods(count: usize, since: &str) -> Vec<Arc<Pod>> {
    (0..count)
        .map(|i| {
            let name = format!("web-{i}");
            Arc::new(
                serde_json::from_value(json!({
                    "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
                    "spec": {"nodeName": "n"},
                    "status": {"phase": "Running", "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": since}]}
                }))
                .expect("a pod"),
            )
        })
        .collect()
}

fn observed(set: Arc<ReplicaSet>, pods: Vec<Arc<Pod>>) -> Observed {
    Observed {
        set,
        pods,
        crowding: HashMap::new(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

#[test]
fn missing_pods_are_created_and_surplus_ones_deleted() {
    let since = "1970-01-01T00:00:00Z";
    let create = plan(&observed(set(5, 0), pods(2, since)), at(100));
    assert_eq!(create, vec![Action::CreatePods(3)]);
    let delete = plan(&observed(set(1, 0), pods(3, since)), at(100));
    assert!(matches!(delete.as_slice(), [Action::DeletePods(pods)] if pods.len() == 2));
    assert!(plan(&observed(set(2, 0), pods(2, since)), at(100)).is_empty());
}

#[test]
fn finished_and_leaving_pods_do_not_count() {
    let mut list = pods(2, "1970-01-01T00:00:00Z");
    let mut failed = (*list[0]).clone();
    failed.status.phase = "Failed".to_owned();
    list[0] = Arc::new(failed);
    let mut leaving = (*list[1]).clone();
    leaving.metadata.deletion_timestamp =
        serde_json::from_value(json!("1970-01-01T00:00:00Z")).ok();
    list[1] = Arc::new(leaving);
    let now = observed(set(2, 0), list);
    assert_eq!(plan(&now, at(100)), vec![Action::CreatePods(2)]);
    let (status, _) = status(&now, None, at(100));
    assert_eq!((status.replicas, status.terminating_replicas), (0, Some(1)));
}

#[test]
fn batches_double() {
    assert_eq!(batches(10).collect::<Vec<_>>(), [1, 2, 4, 3]);
    assert_eq!(batches(0).count(), 0);
    assert_eq!(batches(1000).sum::<usize>(), 1000);
}

#[test]
fn pods_become_available_after_their_minimum() {
    let now = observed(set(2, 10), pods(2, "1970-01-01T00:01:40Z"));
    let (early, again) = status(&now, None, at(104));
    assert_eq!(early.ready_replicas, Some(2));
    assert_eq!(early.available_replicas, None);
    assert_eq!(again, Some(Duration::from_secs(6)));
    let (late, again) = status(&now, None, at(110));
    assert_eq!((late.available_replicas, again), (Some(2), None));
    assert_eq!(late.observed_generation, Some(3));
}

#[test]
fn a_failure_is_a_condition_until_it_is_over() {
    let failure = Failure {
        reason: "FailedCreate",
        message: "quota".to_owned(),
    };
    let now = observed(set(1, 0), Vec::new());
    let (failed, _) = status(&now, Some(&failure), at(1));
    let conditions = failed.conditions.clone().expect("a condition");
    assert_eq!(conditions[0].reason.as_deref(), Some("FailedCreate"));
    let mut later = (*now.set).clone();
    later.status = failed;
    let (healed, _) = status(&observed(Arc::new(later), Vec::new()), None, at(2));
    assert_eq!(healed.conditions, None);
}

#[test]
fn pods_carry_the_template_and_their_owner() {
    let pod = pod(&set(1, 0));
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
    assert_eq!(pod.metadata.owner_references.expect("an owner")[0].uid, "s");
    assert_eq!(pod.metadata.annotations.expect("annotations")["a"], "b");
}

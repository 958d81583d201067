//! Which pods go first when there are too many. Pure.
//!
//! In this order: not on a node yet; Pending before Unknown before Running; not ready; cheaper to delete (annotation
//! `controller.kubernetes.io/pod-deletion-cost`); on a node with more siblings; ready for a shorter time; restarted more
//! often; younger. Times are compared by their order of magnitude, so that deletions spread over pods of like age.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;

use crate::objects::Pod;

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Smaller goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    assigned: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    crowding: Reverse<usize>,
    ready_for: u32,
    restarts: Reverse<i32>,
    age: u32,
    uid: &'a str,
}

pub(super) fn first_to_go<'a>(
    pods: Vec<&'a Arc<Pod>>,
    crowding: &HashMap<String, usize>,
    count: usize,
    now: Timestamp,
) -> Vec<&'a Arc<Pod>> {
    let mut ranked: Vec<(Rank<'_>, &Arc<Pod>)> = pods
        .into_iter()
        .map(|p| (rank(p, crowding, now), p))
        .collect();
    let order =
        |a: &(Rank<'_>, &Arc<Pod>), b: &(Rank<'_>, &Arc<Pod>)| -> Ordering { a.0.cmp(&b.0) };
    if count < ranked.len() {
        ranked.select_nth_unstable_by(count, order);
        ranked.truncate(count);
    }
    ranked.sort_unstable_by(order);
    ranked.into_iter().map(|(_, p)| p).collect()
}

fn rank<'a>(pod: &'a Pod, crowding: &HashMap<String, usize>, now: Timestamp) -> Rank<'a> {
    let age_of = |second: i64| magnitude(now.as_second() - second);
    Rank {
        assigned: !pod.spec.node_name.is_empty(),
        phase: match pod.status.phase.as_str() {
            "" | "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready: pod.is_ready(),
        cost: pod
            .metadata
            .annotations
            .get(DELETION_COST)
            .and_then(|c| c.parse().ok())
            .unwrap_or(0),
        crowding: Reverse(crowding.get(&pod.spec.node_name).copied().unwrap_or(0)),
        ready_for: pod.ready_since().map_or(0, age_of),
        restarts: Reverse(
            pod.status
                .container_statuses
                .iter()
                .map(|s| s.restart_count)
                .max()
                .unwrap_or(0),
        ),
        age: age_of(pod.metadata.created_at()),
        uid: &pod.metadata.uid,
    }
}

/// The binary logarithm of an age in seconds.
fn magnitude(seconds: i64) -> u32 {
    u64::try_from(seconds)
        .unwrap_or(0)
        .checked_ilog2()
        .map_or(0, |l| l + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Arc<Pod> {
        Arc::new(serde_json::from_value(json).expect("a pod"))
    }

    #[test]
    fn the_least_useful_pod_goes_first() {
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let ready = serde_json::json!([{"type": "Ready", "status": "True"}]);
        let pods = [
            pod(
                serde_json::json!({"metadata": {"name": "ready"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": ready}}),
            ),
            pod(
                serde_json::json!({"metadata": {"name": "cheap", "annotations": {(DELETION_COST): "-5"}}, "spec": {"nodeName": "n"}, "status": {"phase": "Running", "conditions": ready}}),
            ),
            pod(
                serde_json::json!({"metadata": {"name": "unready"}, "spec": {"nodeName": "n"}, "status": {"phase": "Running"}}),
            ),
            pod(
                serde_json::json!({"metadata": {"name": "pending"}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending"}}),
            ),
            pod(serde_json::json!({"metadata": {"name": "unassigned"}})),
        ];
        let order = first_to_go(pods.iter().collect(), &HashMap::new(), 5, now);
        let names: Vec<&str> = order.iter().map(|p| p.metadata.name.as_str()).collect();
        assert_eq!(
            names,
            ["unassigned", "pending", "unready", "cheap", "ready"]
        );
    }

    #[test]
    fn crowded_nodes_give_first() {
        let now = Timestamp::from_second(1_000_000).expect("a time");
        let on = |name: &str, node: &str| {
            pod(
                serde_json::json!({"metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"phase": "Running"}}),
            )
        };
        let pods = [on("a", "one"), on("b", "two"), on("c", "two")];
        let crowding = HashMap::from([("one".to_owned(), 1), ("two".to_owned(), 2)]);
        let order = first_to_go(pods.iter().collect(), &crowding, 1, now);
        assert_eq!(order[0].spec.node_name, "two");
    }
}

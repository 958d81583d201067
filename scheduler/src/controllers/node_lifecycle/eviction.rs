//! Which pods have to leave a node because of its `NoExecute` taints, and when the next one has to. Pure.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Taint;
use k8s_openapi::jiff::Timestamp;

use crate::objects::Pod;
use crate::taints::{NO_EXECUTE, tolerates};

/// The pods that have to go now, and how long until the next has to. `since` is when taints without a time were first seen.
pub(super) fn due(
    taints: &[Taint],
    pods: &[Arc<Pod>],
    since: i64,
    now: Timestamp,
) -> (Vec<Arc<Pod>>, Option<Duration>) {
    let taints: Vec<&Taint> = taints.iter().filter(|t| t.effect == NO_EXECUTE).collect();
    let mut evicted = Vec::new();
    let mut next: Option<i64> = None;
    if taints.is_empty() {
        return (evicted, None);
    }
    for pod in pods.iter().filter(|p| p.is_active()) {
        match deadline(&taints, pod, since.min(now.as_second()), now) {
            Stay::Always => {}
            Stay::Until(second) if second <= now.as_second() => evicted.push(Arc::clone(pod)),
            Stay::Until(second) => next = Some(next.map_or(second, |n| n.min(second))),
        }
    }
    let next = next.map(|s| {
        Duration::from_secs(u64::try_from(s.saturating_sub(now.as_second())).unwrap_or(1))
    });
    (evicted, next)
}

enum Stay {
    Always,
    /// Seconds since the epoch.
    Until(i64),
}

/// The pod may stay as long as the least patient of the tolerations that cover the taints.
fn deadline(taints: &[&Taint], pod: &Pod, first_seen: i64, now: Timestamp) -> Stay {
    let mut until: Option<i64> = None;
    for taint in taints {
        let mut covered = false;
        for toleration in pod.spec.tolerations.iter().filter(|t| tolerates(t, taint)) {
            covered = true;
            if let Some(seconds) = toleration.toleration_seconds {
                // A time that is still to come says nothing.
                let since = taint
                    .time_added
                    .as_ref()
                    .map(|t| t.0.as_second())
                    .filter(|added| *added <= now.as_second())
                    .unwrap_or(first_seen);
                let end = since.saturating_add(seconds.max(0));
                until = Some(until.map_or(end, |u| u.min(end)));
            }
        }
        if !covered {
            return Stay::Until(0);
        }
    }
    until.map_or(Stay::Always, Stay::Until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(tolerations: serde_json::Value) -> Arc<Pod> {
        let pod = serde_json::json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "tolerations": tolerations}});
        Arc::new(serde_json::from_value(pod).expect("a pod"))
    }

    #[test]
    fn patience_ends_when_the_toleration_says() {
        let taint: Taint = serde_json::from_value(serde_json::json!(
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"}
        ))
        .expect("a taint");
        let patient = pod(serde_json::json!([
            {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        ]));
        let forever = pod(serde_json::json!([{"operator": "Exists"}]));
        let none = pod(serde_json::json!([]));
        let at = |s| Timestamp::from_second(s).expect("a time");
        let pods = [patient, forever, none];
        let (evicted, next) = due(std::slice::from_ref(&taint), &pods, 0, at(150));
        assert_eq!(evicted.len(), 1);
        assert!(evicted[0].spec.tolerations.is_empty());
        assert_eq!(next, Some(Duration::from_secs(250)));
        let (evicted, next) = due(&[taint], &pods, 0, at(400));
        assert_eq!((evicted.len(), next), (2, None));
    }

    #[test]
    fn the_longest_patience_is_no_overflow() {
        let taint: Taint =
            serde_json::from_value(serde_json::json!({"key": "a", "effect": "NoExecute", "timeAdded": "1970-01-01T00:01:40Z"}))
                .expect("a taint");
        let patient =
            pod(serde_json::json!([{"operator": "Exists", "tolerationSeconds": i64::MAX}]));
        let now = Timestamp::from_second(150).expect("a time");
        let (evicted, next) = due(&[taint], &[patient], 0, now);
        assert!(evicted.is_empty());
        assert!(next.is_some());
    }

    #[test]
    fn a_taint_without_a_time_counts_from_when_it_was_seen() {
        let taint: Taint =
            serde_json::from_value(serde_json::json!({"key": "a", "effect": "NoExecute"}))
                .expect("a taint");
        let patient = pod(serde_json::json!([{"operator": "Exists", "tolerationSeconds": 60}]));
        let at = |s| Timestamp::from_second(s).expect("a time");
        let (evicted, next) = due(
            std::slice::from_ref(&taint),
            std::slice::from_ref(&patient),
            100,
            at(150),
        );
        assert!(evicted.is_empty());
        assert_eq!(next, Some(Duration::from_secs(10)));
        assert_eq!(due(&[taint], &[patient], 100, at(160)).0.len(), 1);
    }
}

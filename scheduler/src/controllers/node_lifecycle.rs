//! Nodes that stop reporting: their conditions become Unknown, they are tainted, and pods leave when they tolerate it no
//! longer.
//!
//! Owns the `node.kubernetes.io/*` taints that mirror conditions. Never judges by a node's clock: a node is silent when
//! *we* have seen neither its Lease nor its status change for the grace period. What does harm is decided on a fresh look
//! at the Node and its Lease, because a watch may stall. When many nodes go at once [`zones`] holds the evictions.
//!
//! Differs from Kubernetes: a taint's `timeAdded` counts, where upstream counts from when it first saw the taint, so that
//! a new leader goes on where the old one stopped.

mod apply;
mod eviction;
#[cfg(test)]
mod simulation;
pub mod zones;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeCondition, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use types::condition;
use types::well_known::{
    TAINT_DISK_PRESSURE, TAINT_MEMORY_PRESSURE, TAINT_NOT_READY, TAINT_PID_PRESSURE,
    TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE,
};

pub use apply::Controller;
use zones::Permit;

use crate::objects::{Key, Node, Pod};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE};

/// A node that has never said anything gets at least this long, in seconds.
const STARTUP_GRACE: i64 = 60;
const MANAGED: &[&str] = &[
    TAINT_NOT_READY,
    TAINT_UNREACHABLE,
    TAINT_UNSCHEDULABLE,
    TAINT_MEMORY_PRESSURE,
    TAINT_DISK_PRESSURE,
    TAINT_PID_PRESSURE,
];
const PRESSURES: &[(&str, &str)] = &[
    ("MemoryPressure", TAINT_MEMORY_PRESSURE),
    ("DiskPressure", TAINT_DISK_PRESSURE),
    ("PIDPressure", TAINT_PID_PRESSURE),
];

pub struct Observed {
    pub node: Arc<Node>,
    /// When we last saw the node say something, in seconds since the epoch.
    pub heard: i64,
    /// How long it may be silent, in seconds.
    pub grace: i64,
    /// Since when taints without `timeAdded` are there, as far as we know.
    pub tainted_since: i64,
    pub pods: Vec<Arc<Pod>>,
}

#[derive(Debug)]
pub enum Action {
    PatchStatus {
        patch: Value,
        /// It was ready before.
        lost: bool,
    },
    PatchTaints(Value),
    /// The node is lost: its pods are not ready, whatever they last said.
    MarkUnready {
        pod: Key,
        patch: Value,
    },
    Evict {
        pod: Arc<Pod>,
    },
    LookAgain(Duration),
}

// === impl Action ===

impl Action {
    /// Does it take anything away from pods or their node? Then it is decided on fresh facts.
    pub fn harms(&self) -> bool {
        !matches!(self, Self::LookAgain(_))
    }
}

// === impl Observed ===

impl Observed {
    pub fn is_silent(&self, now: Timestamp) -> bool {
        let fresh = self
            .node
            .status
            .conditions
            .iter()
            .flatten()
            .next()
            .is_none();
        let grace = if fresh {
            self.grace.max(STARTUP_GRACE)
        } else {
            self.grace
        };
        self.heard.saturating_add(grace) <= now.as_second()
    }
}

/// What to do about one node. `permit` is asked, at most once, when its pods have to go, and told whether they were told so
/// before.
pub fn plan(
    observed: &Observed,
    now: Timestamp,
    permit: impl FnOnce(bool) -> Permit,
) -> Vec<Action> {
    let node = &*observed.node;
    let old = node.status.conditions.clone().unwrap_or_default();
    let mut conditions = old.clone();
    let silent = observed.is_silent(now);
    if silent {
        silence(&mut conditions, now);
    }
    let was_ready = ready(&old) == "True";
    let mut actions = Vec::new();
    if conditions != old {
        actions.push(Action::PatchStatus {
            patch: json!({
                "metadata": {"resourceVersion": node.metadata.resource_version},
                "status": {"conditions": conditions},
            }),
            lost: was_ready,
        });
    }
    let before = node.spec.taints.clone().unwrap_or_default();
    let wanted = execution(&conditions, &before, silent, permit, &mut actions);
    let taints = taints(node, &conditions, wanted, now);
    if taints != before {
        actions.push(Action::PatchTaints(json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        })));
    }
    // Differs from Kubernetes: a node that says of itself that it is not ready still speaks for its pods.
    if silent {
        actions.extend(observed.pods.iter().filter_map(|p| unready(p, now)));
    }
    // One that was lost and says something again is about to say what it is: nothing goes until then.
    let back = !silent && ready(&conditions) == "Unknown";
    let mut due = taints;
    due.retain(|t| !(back && t.key == TAINT_UNREACHABLE));
    let (evicted, next) = eviction::due(&due, &observed.pods, observed.tainted_since, now);
    actions.extend(evicted.into_iter().map(|pod| Action::Evict { pod }));
    actions.extend(next.map(Action::LookAgain));
    actions
}

fn ready(conditions: &[NodeCondition]) -> &str {
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    ready.map_or("", |c| c.status.as_str())
}

/// The `NoExecute` taint the node shall have, if any.
fn execution(
    conditions: &[NodeCondition],
    taints: &[Taint],
    silent: bool,
    permit: impl FnOnce(bool) -> Permit,
    actions: &mut Vec<Action>,
) -> Option<&'static str> {
    let key = match ready(conditions) {
        "False" => TAINT_NOT_READY,
        // Not silent (any more): it is about to say what it is.
        "Unknown" if silent => TAINT_UNREACHABLE,
        "Unknown" => {
            let has = |t: &&Taint| t.key == TAINT_UNREACHABLE && t.effect == NO_EXECUTE;
            return taints.iter().find(has).map(|_| TAINT_UNREACHABLE);
        }
        _ => return None,
    };
    let already = taints.iter().any(|t| {
        t.effect == NO_EXECUTE && [TAINT_NOT_READY, TAINT_UNREACHABLE].contains(&t.key.as_str())
    });
    match permit(already) {
        Permit::Stopped => None,
        Permit::Granted => Some(key),
        Permit::Later(delay) => {
            actions.push(Action::LookAgain(delay));
            None
        }
    }
}

fn silence(conditions: &mut Vec<NodeCondition>, now: Timestamp) {
    for type_ in ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"] {
        let known = conditions.iter().find(|c| c.type_ == type_).cloned();
        let (reason, message) = match &known {
            Some(c) if c.status == "Unknown" => continue,
            Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
            None => (
                "NodeStatusNeverUpdated",
                "Kubelet never posted node status.",
            ),
        };
        condition::set(
            conditions,
            NodeCondition {
                type_: type_.to_owned(),
                status: "Unknown".to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message.to_owned()),
                last_heartbeat_time: known.and_then(|c| c.last_heartbeat_time),
                last_transition_time: Some(Time(now)),
            },
        );
    }
}

/// The node's taints with ours as its conditions demand; taints that stay keep their time.
fn taints(
    node: &Node,
    conditions: &[NodeCondition],
    execution: Option<&'static str>,
    now: Timestamp,
) -> Vec<Taint> {
    let status = |type_: &str| {
        conditions
            .iter()
            .find(|c| c.type_ == type_)
            .map_or("", |c| c.status.as_str())
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status("Ready") {
        "False" => wanted.push((TAINT_NOT_READY, NO_SCHEDULE)),
        "Unknown" => wanted.push((TAINT_UNREACHABLE, NO_SCHEDULE)),
        _ => {}
    }
    wanted.extend(execution.map(|key| (key, NO_EXECUTE)));
    if node.spec.unschedulable == Some(true) {
        wanted.push((TAINT_UNSCHEDULABLE, NO_SCHEDULE));
    }
    for (pressure, taint) in PRESSURES {
        if status(pressure) == "True" {
            wanted.push((taint, NO_SCHEDULE));
        }
    }
    let old = node.spec.taints.as_deref().unwrap_or_default();
    let mut taints: Vec<Taint> = old
        .iter()
        .filter(|t| {
            !MANAGED.contains(&t.key.as_str())
                || wanted
                    .iter()
                    .any(|(key, effect)| t.key == *key && t.effect == *effect)
        })
        .cloned()
        .collect();
    for (key, effect) in wanted {
        if !taints.iter().any(|t| t.key == key && t.effect == effect) {
            taints.push(Taint {
                key: key.to_owned(),
                effect: effect.to_owned(),
                value: None,
                time_added: Some(Time(now)),
            });
        }
    }
    taints
}

fn unready(pod: &Arc<Pod>, now: Timestamp) -> Option<Action> {
    if !pod.is_ready() {
        return None;
    }
    let ready = pod.condition("Ready")?.clone();
    let condition = PodCondition {
        status: "False".to_owned(),
        last_transition_time: Some(Time(now)),
        ..ready
    };
    Some(Action::MarkUnready {
        pod: pod.metadata.key(),
        patch: with_condition(pod, condition),
    })
}

/// A strategic merge patch with this one condition: the others are the node's, which may be writing them.
fn with_condition(pod: &Pod, new: PodCondition) -> Value {
    let mut conditions: Vec<PodCondition> =
        pod.condition(&new.type_).cloned().into_iter().collect();
    condition::set(&mut conditions, new);
    json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": conditions}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n", "resourceVersion": "7"},
            "spec": {"taints": [{"key": "mine", "effect": "NoSchedule"}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}
        }))
        .expect("a node")
    }

    #[test]
    fn of_a_pods_conditions_only_the_one_that_is_ours_is_written() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u"},
            "status": {"conditions": [{"type": "Initialized", "status": "True"},
                {"type": "Ready", "status": "True", "reason": "Yes"}]}
        }))
        .expect("a pod");
        let Some(Action::MarkUnready { patch, .. }) = unready(&Arc::new(pod), at(100)) else {
            panic!("it was ready");
        };
        let conditions = patch["status"]["conditions"].as_array().expect("a list");
        let [ready] = conditions.as_slice() else {
            panic!("others' conditions: {patch}");
        };
        assert_eq!(
            (&ready["type"], &ready["status"]),
            (&json!("Ready"), &json!("False"))
        );
        assert_eq!(ready["lastTransitionTime"], "1970-01-01T00:01:40Z");
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_unreachable() {
        let observed = Observed {
            node: Arc::new(node()),
            heard: 100,
            grace: 40,
            tainted_since: 100,
            pods: Vec::new(),
        };
        assert!(plan(&observed, at(139), |_| Permit::Granted).is_empty());
        let actions = plan(&observed, at(140), |_| Permit::Granted);
        let [
            Action::PatchStatus {
                patch: status,
                lost: true,
            },
            Action::PatchTaints(spec),
        ] = actions.as_slice()
        else {
            panic!("status and taints: {actions:?}");
        };
        assert_eq!(status["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(
            status["status"]["conditions"][0]["reason"],
            "NodeStatusUnknown"
        );
        assert_eq!(
            status["status"]["conditions"][1]["reason"],
            "NodeStatusNeverUpdated"
        );
        let taints = spec["spec"]["taints"].as_array().expect("taints");
        assert_eq!(taints[0]["key"], "mine");
        assert_eq!(taints[1]["key"], TAINT_UNREACHABLE);
        assert_eq!(taints.len(), 3);
    }

    #[test]
    fn cordoned_nodes_are_tainted_and_healed_ones_cleaned() {
        let mut cordoned = node();
        cordoned.spec.unschedulable = Some(true);
        cordoned.spec.taints =
            serde_json::from_value(json!([{"key": TAINT_NOT_READY, "effect": "NoExecute"}]))
                .expect("taints");
        let observed = Observed {
            node: Arc::new(cordoned),
            heard: 100,
            grace: 40,
            tainted_since: 100,
            pods: Vec::new(),
        };
        let actions = plan(&observed, at(101), |_| Permit::Granted);
        let [Action::PatchTaints(spec)] = actions.as_slice() else {
            panic!("taints: {actions:?}");
        };
        let taints = spec["spec"]["taints"].as_array().expect("taints");
        assert_eq!(taints.len(), 1);
        assert_eq!(taints[0]["key"], TAINT_UNSCHEDULABLE);
    }

    #[test]
    fn pods_are_held_while_their_zone_is() {
        let observed = Observed {
            node: Arc::new(node()),
            heard: 100,
            grace: 40,
            tainted_since: 100,
            pods: Vec::new(),
        };
        let effects = |permit: Permit| -> Vec<String> {
            let actions = plan(&observed, at(140), |_| permit);
            let taints = actions.iter().find_map(|a| match a {
                Action::PatchTaints(patch) => patch["spec"]["taints"].as_array().cloned(),
                _ => None,
            });
            let taints = taints.into_iter().flatten();
            taints
                .map(|t| t["effect"].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(effects(Permit::Stopped), ["NoSchedule", "NoSchedule"]);
        let later = Permit::Later(Duration::from_secs(3));
        assert_eq!(effects(later), ["NoSchedule", "NoSchedule"]);
        assert_eq!(effects(Permit::Granted).len(), 3);
    }

    #[test]
    fn a_new_node_gets_longer() {
        let mut fresh = node();
        fresh.status.conditions = None;
        let observed = Observed {
            node: Arc::new(fresh),
            heard: 100,
            grace: 40,
            tainted_since: 100,
            pods: Vec::new(),
        };
        assert!(!observed.is_silent(at(159)));
        assert!(observed.is_silent(at(160)));
    }
}

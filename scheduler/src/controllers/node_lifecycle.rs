//! Nodes that stop reporting: their conditions become Unknown, they are tainted, and pods leave when they tolerate it no
//! longer.
//!
//! Owns the `node.kubernetes.io/*` taints that mirror conditions. Never judges by a node's clock: a node is silent when
//! *we* have seen neither its Lease nor its status change for 40 seconds.
//!
//! Differs from Kubernetes: no rate limit on evictions when most of a zone is gone.

mod eviction;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeCondition, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use types::condition;
use types::well_known::{
    NAMESPACE_NODE_LEASE, TAINT_DISK_PRESSURE, TAINT_MEMORY_PRESSURE, TAINT_NOT_READY,
    TAINT_PID_PRESSURE, TAINT_UNREACHABLE, TAINT_UNSCHEDULABLE,
};

use super::Shared;
use crate::clock;
use crate::events::{self, Recorder};
use crate::objects::{Key, NODES, Node, PODS, Pod};
use crate::reconcile::{Outcome, Queue};
use crate::taints::{NO_EXECUTE, NO_SCHEDULE};
use crate::write::{Delete, Error, Target, Writer, gone_is_fine};

/// Silence after which a node counts as lost, in seconds.
const GRACE: i64 = 40;
const TICK: Duration = Duration::from_secs(5);
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
    pub pods: Vec<Arc<Pod>>,
}

#[derive(Debug)]
pub enum Action {
    PatchStatus(Value),
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

/// What to do about one node.
pub fn plan(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let node = &*observed.node;
    let old = node.status.conditions.clone().unwrap_or_default();
    let mut conditions = old.clone();
    let silent = observed.heard + GRACE <= now.as_second();
    if silent {
        silence(&mut conditions, now);
    }
    let mut actions = Vec::new();
    if conditions != old {
        actions.push(Action::PatchStatus(
            json!({"status": {"conditions": conditions}}),
        ));
    }
    let taints = taints(node, &conditions, now);
    if taints != node.spec.taints.clone().unwrap_or_default() {
        actions.push(Action::PatchTaints(json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        })));
    }
    if silent {
        actions.extend(observed.pods.iter().filter_map(|p| unready(p, now)));
    }
    let (evicted, next) = eviction::due(&taints, &observed.pods, now);
    actions.extend(evicted.into_iter().map(|pod| Action::Evict { pod }));
    actions.extend(next.map(Action::LookAgain));
    actions
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
fn taints(node: &Node, conditions: &[NodeCondition], now: Timestamp) -> Vec<Taint> {
    let status = |type_: &str| {
        conditions
            .iter()
            .find(|c| c.type_ == type_)
            .map_or("", |c| c.status.as_str())
    };
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match status("Ready") {
        "False" => wanted.extend([
            (TAINT_NOT_READY, NO_SCHEDULE),
            (TAINT_NOT_READY, NO_EXECUTE),
        ]),
        "Unknown" => {
            wanted.extend([
                (TAINT_UNREACHABLE, NO_SCHEDULE),
                (TAINT_UNREACHABLE, NO_EXECUTE),
            ]);
        }
        _ => {}
    }
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
    let mut conditions = pod.status.conditions.clone();
    let ready = pod.condition("Ready")?.clone();
    condition::set(
        &mut conditions,
        PodCondition {
            status: "False".to_owned(),
            last_transition_time: Some(Time(now)),
            ..ready
        },
    );
    Some(Action::MarkUnready {
        pod: pod.metadata.key(),
        patch: json!({"status": {"conditions": conditions}}),
    })
}

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    /// Keys are nodes.
    pub queue: Arc<Queue<Key>>,
    /// Node → when it last said something, by our clock. Short sections only.
    heard: Arc<Mutex<HashMap<String, i64>>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue: Arc<Queue<Key>> = Queue::new("nodelifecycle", Duration::from_millis(5));
        let heard = Arc::new(Mutex::new(HashMap::<String, i64>::new()));
        let (waker, listening) = (Arc::clone(&queue), Arc::clone(&heard));
        shared.informers.nodes.on_change(move |change| {
            let Some(node) = change.new else {
                if let Some(node) = change.old {
                    lock(&listening).remove(&node.metadata.name);
                }
                return;
            };
            // Our own writes change the node as well; only its heartbeats count.
            if change
                .old
                .is_none_or(|old| heartbeats(old) != heartbeats(node))
            {
                lock(&listening).insert(node.metadata.name.clone(), clock::now().as_second());
            }
            waker.add(node.metadata.key());
        });
        let listening = Arc::clone(&heard);
        shared.informers.leases.on_change(move |change| {
            if let Some(lease) = change.new
                && lease.metadata.namespace == NAMESPACE_NODE_LEASE
            {
                lock(&listening).insert(lease.metadata.name.clone(), clock::now().as_second());
            }
        });
        // A pod that arrives on a tainted node may have to leave again.
        let waker = Arc::clone(&queue);
        let nodes = Arc::downgrade(&shared.informers.nodes);
        shared.informers.pods.on_change(move |change| {
            let Some(pod) = change.new.filter(|p| !p.spec.node_name.is_empty()) else {
                return;
            };
            if change
                .old
                .is_some_and(|old| old.spec.node_name == pod.spec.node_name)
            {
                return;
            }
            let key = Key::new("", &pod.spec.node_name);
            let Some(node) = nodes.upgrade().and_then(|n| n.get(&key)) else {
                return;
            };
            if node
                .spec
                .taints
                .iter()
                .flatten()
                .any(|t| t.effect == NO_EXECUTE)
            {
                waker.add(key);
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("node-controller"),
            writer: shared.writer("node-controller"),
            queue,
            heard,
        })
    }

    /// Looks at every node now and then: silence makes no event.
    pub async fn tick(self: Arc<Self>, shutdown: CancellationToken) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            for key in self.shared.informers.nodes.keys() {
                self.queue.add(key);
            }
        }
    }

    /// One pass over one node.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(node) = self.shared.informers.nodes.get(&key) else {
            return Ok(Outcome::Done);
        };
        let now = clock::now();
        let heard = *lock(&self.heard)
            .entry(key.name.clone())
            .or_insert(now.as_second());
        let tainted = node
            .spec
            .taints
            .iter()
            .flatten()
            .any(|t| t.effect == NO_EXECUTE);
        let quiet = heard + GRACE <= now.as_second();
        let ready = node
            .status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        // Pods are only looked through when they may be concerned.
        let pods = if tainted || quiet || !ready {
            let all = self.shared.informers.pods.all();
            all.into_iter()
                .filter(|p| p.spec.node_name == key.name)
                .collect()
        } else {
            Vec::new()
        };
        let observed = Observed { node, heard, pods };
        let target = Target::new(NODES, "", &key.name);
        let mut outcome = Outcome::Done;
        for action in plan(&observed, now) {
            match action {
                Action::PatchStatus(patch) => {
                    gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
                    let about = events::reference(NODES, &observed.node.metadata);
                    let message = format!("Node {} status is now: NodeNotReady", key.name);
                    self.recorder.normal(about, "NodeNotReady", message);
                }
                Action::PatchTaints(patch) => {
                    gone_is_fine(self.writer.patch(&target, &patch).await)?;
                }
                Action::MarkUnready { pod, patch } => {
                    let pod = Target::new(PODS, &pod.namespace, &pod.name);
                    gone_is_fine(self.writer.patch_status(&pod, &patch).await)?;
                }
                Action::Evict { pod } => self.evict(&pod, now).await?,
                Action::LookAgain(delay) => outcome = Outcome::Again(delay),
            }
        }
        Ok(outcome)
    }

    async fn evict(&self, pod: &Arc<Pod>, now: Timestamp) -> Result<(), Error> {
        let target = Target::of(PODS, &pod.metadata);
        let message = format!("Marking for deletion Pod {}", pod.metadata.key());
        let about = events::reference(PODS, &pod.metadata);
        self.recorder.named("taint-eviction-controller").normal(
            about,
            "TaintManagerEviction",
            message,
        );
        let mut conditions = pod.status.conditions.clone();
        condition::set(
            &mut conditions,
            PodCondition {
                type_: "DisruptionTarget".to_owned(),
                status: "True".to_owned(),
                reason: Some("DeletionByTaintManager".to_owned()),
                message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
                last_transition_time: Some(Time(now)),
                ..PodCondition::default()
            },
        );
        let patch = json!({"status": {"conditions": conditions}});
        gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
        gone_is_fine(
            self.writer
                .delete(&target, Delete::of(&pod.metadata.uid))
                .await,
        )
        .map(drop)
    }
}

fn heartbeats(node: &Node) -> Vec<&Option<Time>> {
    node.status
        .conditions
        .iter()
        .flatten()
        .map(|c| &c.last_heartbeat_time)
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_silent_node_becomes_unknown_and_unreachable() {
        let observed = Observed {
            node: Arc::new(node()),
            heard: 100,
            pods: Vec::new(),
        };
        assert!(plan(&observed, at(139)).is_empty());
        let actions = plan(&observed, at(140));
        let [Action::PatchStatus(status), Action::PatchTaints(spec)] = actions.as_slice() else {
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
            pods: Vec::new(),
        };
        let actions = plan(&observed, at(101));
        let [Action::PatchTaints(spec)] = actions.as_slice() else {
            panic!("taints: {actions:?}");
        };
        let taints = spec["spec"]["taints"].as_array().expect("taints");
        assert_eq!(taints.len(), 1);
        assert_eq!(taints[0]["key"], TAINT_UNSCHEDULABLE);
    }
}

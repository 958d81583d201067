//! Pods nobody will ever finish: those of nodes that are gone, those deleted before they got a node, and the oldest of too
//! many finished ones. Never touches pods of existing nodes that still run.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use types::condition;

use super::Shared;
use crate::clock;
use crate::objects::{Key, NODES, PODS, Pod};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Delete, Error, Target, Writer, gone_is_fine};

const INTERVAL: Duration = Duration::from_secs(20);
/// A node may be away this long before its pods are given up, in seconds.
const QUARANTINE: i64 = 40;
const MOST_FINISHED: usize = 12_500;

pub struct Observed {
    pub pods: Vec<Arc<Pod>>,
    pub nodes: HashSet<String>,
    /// Node that is gone → since when, in seconds since the epoch.
    pub missing: HashMap<String, i64>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Its node is gone: mark it failed, then remove it.
    Fail {
        pod: Key,
        uid: String,
        node: String,
    },
    Remove {
        pod: Key,
        uid: String,
    },
}

pub fn plan(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut finished: Vec<&Arc<Pod>> = Vec::new();
    for pod in &observed.pods {
        let (key, uid) = (pod.metadata.key(), pod.metadata.uid.clone());
        let node = &pod.spec.node_name;
        if node.is_empty() {
            if pod.metadata.is_deleting() {
                actions.push(Action::Remove { pod: key, uid });
            }
        } else if !observed.nodes.contains(node) {
            let since = observed.missing.get(node).copied();
            if since.is_some_and(|s| s + QUARANTINE <= now.as_second()) {
                let node = node.clone();
                actions.push(Action::Fail {
                    pod: key,
                    uid,
                    node,
                });
            }
        } else if pod.is_terminal() && !pod.metadata.is_deleting() {
            finished.push(pod);
        }
    }
    if let Some(surplus) = finished.len().checked_sub(MOST_FINISHED) {
        finished.sort_by_key(|p| p.metadata.created_at());
        actions.extend(finished.iter().take(surplus).map(|p| Action::Remove {
            pod: p.metadata.key(),
            uid: p.metadata.uid.clone(),
        }));
    }
    actions
}

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    /// There is one key: the whole cluster.
    pub queue: Arc<Queue<Key>>,
    missing: Mutex<HashMap<String, i64>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::new("podgc", Duration::from_secs(1));
        queue.add(Key::default());
        let waker = Arc::clone(&queue);
        shared.informers.nodes.on_change(move |change| {
            if change.new.is_none() {
                waker.add(Key::default());
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer("pod-garbage-collector"),
            queue,
            missing: Mutex::new(HashMap::new()),
        })
    }

    /// One pass over the whole cluster.
    pub async fn pass(&self, _: Key) -> Result<Outcome, Error> {
        let now = clock::now();
        let informers = &self.shared.informers;
        let pods = informers.pods.all();
        let nodes: HashSet<String> = informers.nodes.keys().into_iter().map(|k| k.name).collect();
        let missing = {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.retain(|node, _| !nodes.contains(node));
            for pod in &pods {
                let node = &pod.spec.node_name;
                if !node.is_empty() && !nodes.contains(node) {
                    missing.entry(node.clone()).or_insert(now.as_second());
                }
            }
            missing.clone()
        };
        let observed = Observed {
            pods,
            nodes,
            missing,
        };
        let writer = &self.writer;
        for action in plan(&observed, now) {
            let (key, uid) = match action {
                Action::Remove { pod, uid } => (pod, uid),
                Action::Fail { pod, uid, node } => {
                    // The cache may be behind: ask.
                    let node = Target::new(NODES, "", &node);
                    if writer.metadata(&node).await?.is_some() {
                        continue;
                    }
                    self.fail(&pod, now).await?;
                    (pod, uid)
                }
            };
            let target = Target::new(PODS, &key.namespace, &key.name);
            gone_is_fine(writer.delete(&target, Delete::of(&uid).at_once()).await)?;
        }
        Ok(Outcome::Again(INTERVAL))
    }

    async fn fail(&self, key: &Key, now: Timestamp) -> Result<(), Error> {
        let Some(pod) = self
            .shared
            .informers
            .pods
            .get(key)
            .filter(|p| !p.is_terminal())
        else {
            return Ok(());
        };
        let mut conditions = pod.status.conditions.clone();
        condition::set(
            &mut conditions,
            PodCondition {
                type_: "DisruptionTarget".to_owned(),
                status: "True".to_owned(),
                reason: Some("DeletionByPodGC".to_owned()),
                message: Some("PodGC: node no longer exists".to_owned()),
                last_transition_time: Some(Time(now)),
                ..PodCondition::default()
            },
        );
        let target = Target::new(PODS, &key.namespace, &key.name);
        let patch = json!({"status": {"phase": "Failed", "conditions": conditions}});
        gone_is_fine(self.writer.patch_status(&target, &patch).await).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_of_a_lost_node_wait_for_the_quarantine() {
        let mut pod = Pod::default();
        pod.spec.node_name = "lost".to_owned();
        let mut observed = Observed {
            pods: vec![Arc::new(pod)],
            nodes: HashSet::from(["here".to_owned()]),
            missing: HashMap::from([("lost".to_owned(), 100)]),
        };
        let at = |second| Timestamp::from_second(second).expect("a time");
        assert!(plan(&observed, at(120)).is_empty());
        assert!(
            matches!(plan(&observed, at(140)).as_slice(), [Action::Fail { node, .. }] if node == "lost")
        );
        observed.nodes.insert("lost".to_owned());
        assert!(plan(&observed, at(140)).is_empty());
    }
}

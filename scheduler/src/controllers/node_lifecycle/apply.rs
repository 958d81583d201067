//! Watches, fresh looks and writes for node lifecycle.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::PodCondition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use types::well_known::NAMESPACE_NODE_LEASE;

use super::zones::{self, Brake, Change, Permit};
use super::{Action, Observed, plan, ready, with_condition};
use crate::clock;
use crate::controllers::Shared;
use crate::events::{self, Recorder};
use crate::objects::{Key, LEASES, NODES, Node, PODS, Pod};
use crate::reconcile::{Outcome, Queue};
use crate::taints::NO_EXECUTE;
use crate::write::{Delete, Error, Target, Writer, gone_is_fine};

/// Between looks at all nodes; more often where the grace period is short.
const TICK: Duration = Duration::from_secs(5);

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    /// Keys are nodes.
    pub queue: Arc<Queue<Key>>,
    /// Short sections only.
    heard: Arc<Mutex<HashMap<String, Heard>>>,
    brake: Mutex<Brake>,
}

/// What we know of a node's signs of life, by our clock, in seconds since the epoch.
#[derive(Clone, Debug, Default)]
struct Heard {
    at: i64,
    /// The version of its Lease that was last seen.
    lease: String,
    /// Since when it has `NoExecute` taints.
    tainted: Option<i64>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue: Arc<Queue<Key>> = Queue::new("nodelifecycle", Duration::from_millis(5));
        let heard = Arc::new(Mutex::new(HashMap::<String, Heard>::new()));
        let (waker, listening) = (Arc::clone(&queue), Arc::clone(&heard));
        shared.informers.nodes.on_change(move |change| {
            let Some(node) = change.new else {
                if let Some(node) = change.old {
                    lock(&listening).remove(&node.metadata.name);
                }
                return;
            };
            let now = clock::now().as_second();
            let mut heard = lock(&listening);
            let known = heard.entry(node.metadata.name.clone()).or_default();
            // Our own writes change the node as well; only its heartbeats count.
            if change
                .old
                .is_none_or(|old| heartbeats(old) != heartbeats(node))
            {
                known.at = now;
            }
            known.tainted = executes(node).then(|| known.tainted.unwrap_or(now));
            drop(heard);
            waker.add(node.metadata.key());
        });
        let listening = Arc::clone(&heard);
        shared.informers.leases.on_change(move |change| {
            if let Some(lease) = change.new
                && lease.metadata.namespace == NAMESPACE_NODE_LEASE
            {
                let mut heard = lock(&listening);
                let known = heard.entry(lease.metadata.name.clone()).or_default();
                known.hear(&lease.metadata.resource_version);
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
            // Nor may it be ready there while the node is not.
            if executes(&node) || is_lost(&node) {
                waker.add(key);
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("node-controller"),
            writer: shared.writer("node-controller"),
            queue,
            heard,
            brake: Mutex::default(),
        })
    }

    /// Looks at every node now and then: silence makes no event. And counts who is lost, zone by zone.
    pub async fn tick(self: Arc<Self>, shutdown: CancellationToken) {
        let grace = self.shared.args.node_monitor_grace_period;
        let mut ticks = tokio::time::interval(TICK.min(grace / 8).max(Duration::from_millis(100)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                _ = ticks.tick() => {}
            }
            let nodes = self.shared.informers.nodes.all();
            let now = clock::now().as_second();
            let counted = nodes.iter().map(|n| (zones::zone_of(n), !is_lost(n)));
            match lock(&self.brake).observe(counted, now) {
                Change::None => {}
                Change::Stopped => warn!("No node is ready: no pod has to leave its node"),
                Change::Resumed => {
                    warn!("Nodes are ready again: the others are given time");
                    lock(&self.heard).values_mut().for_each(|h| h.at = now);
                }
            }
            for node in nodes {
                self.queue.add(node.metadata.key());
            }
        }
    }

    /// One pass over one node: decided on what the watches say, and, where that would do harm, again on what is.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(node) = self.shared.informers.nodes.get(&key) else {
            return Ok(Outcome::Done);
        };
        let now = clock::now();
        let mut observed = self.observe(node, now);
        let zone = zones::zone_of(&observed.node);
        // Only asked: what is taken here would be missed below.
        let rehearsal = plan(&observed, now, |told| self.permit(&zone, told, false, now));
        if rehearsal.iter().any(Action::harms) {
            let Some(fresh) = self.look(&key).await? else {
                return Ok(Outcome::Done);
            };
            observed = self.observe(fresh, now);
        }
        let mut granted = false;
        let actions = plan(&observed, now, |told| {
            let permit = self.permit(&zone, told, true, now);
            granted = !told && permit == Permit::Granted;
            permit
        });
        let done = self.carry_out(&observed, actions, now).await;
        if done.is_err() && granted {
            // Tried again soon: not a second permit.
            lock(&self.brake).give_back(&zone);
        }
        done
    }

    /// Who was told to go needs no second permit, only that not everything is stopped.
    fn permit(&self, zone: &str, told: bool, take: bool, now: Timestamp) -> Permit {
        let mut brake = lock(&self.brake);
        match (told, take) {
            (true, _) if brake.is_stopped() => Permit::Stopped,
            (true, _) => Permit::Granted,
            (false, true) => brake.take(zone, now.as_second()),
            (false, false) => brake.ask(zone, now.as_second()),
        }
    }

    fn observe(&self, node: Arc<Node>, now: Timestamp) -> Observed {
        let second = now.as_second();
        let heard = {
            let mut heard = lock(&self.heard);
            let known = heard.entry(node.metadata.name.clone()).or_default();
            if known.at == 0 {
                known.at = second;
            }
            known.clone()
        };
        let grace = self.shared.args.node_monitor_grace_period.as_secs();
        let mut observed = Observed {
            heard: heard.at,
            grace: i64::try_from(grace).unwrap_or(i64::MAX),
            tainted_since: heard.tainted.unwrap_or(second),
            pods: Vec::new(),
            node,
        };
        // Pods are only looked through when they may be concerned.
        if executes(&observed.node) || is_lost(&observed.node) || observed.is_silent(now) {
            let name = &observed.node.metadata.name;
            observed.pods = self.shared.informers.pods.all();
            observed.pods.retain(|p| p.spec.node_name == *name);
        }
        observed
    }

    /// The Node as it is now, and whether its Lease says more than the watch did.
    async fn look(&self, key: &Key) -> Result<Option<Arc<Node>>, Error> {
        let target = Target::new(NODES, "", &key.name);
        let node: Node = match self.writer.get(target.url()).await {
            Ok(node) => node,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error),
        };
        let lease = Target::new(LEASES, NAMESPACE_NODE_LEASE, &key.name);
        let lease = self.writer.metadata(&lease).await?;
        let mut heard = lock(&self.heard);
        let known = heard.entry(key.name.clone()).or_default();
        if let Some(lease) = lease
            && lease.resource_version != known.lease
        {
            known.hear(&lease.resource_version);
        }
        let shown = self.shared.informers.nodes.get(key);
        if shown.is_none_or(|shown| heartbeats(&shown) != heartbeats(&node)) {
            known.at = clock::now().as_second();
        }
        Ok(Some(Arc::new(node)))
    }

    async fn carry_out(
        &self,
        observed: &Observed,
        actions: Vec<Action>,
        now: Timestamp,
    ) -> Result<Outcome, Error> {
        let node = &observed.node.metadata;
        let target = Target::of(NODES, node);
        let mut outcome = Outcome::Done;
        // The node's version after our own last write to it.
        let mut version = None;
        for action in actions {
            match action {
                Action::PatchStatus { patch, lost } => {
                    let written = self.writer.patch_status(&target, &patch).await;
                    version = Some(gone_is_fine(written)?.metadata.resource_version);
                    if lost {
                        let message = format!("Node {} status is now: NodeNotReady", node.name);
                        let about = events::reference(NODES, node);
                        self.recorder.normal(about, "NodeNotReady", message);
                    }
                }
                Action::PatchTaints(mut patch) => {
                    if let Some(version) = version.take() {
                        patch["metadata"]["resourceVersion"] = json!(version);
                    }
                    gone_is_fine(self.writer.patch(&target, &patch).await)?;
                }
                Action::MarkUnready { pod, patch } => {
                    let pod = Target::new(PODS, &pod.namespace, &pod.name);
                    gone_is_fine(self.writer.merge_status(&pod, &patch).await)?;
                }
                Action::Evict { pod } => self.evict(&pod, now).await?,
                Action::LookAgain(delay) => {
                    outcome = match outcome {
                        Outcome::Again(known) => Outcome::Again(known.min(delay)),
                        Outcome::Done => Outcome::Again(delay),
                    };
                }
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
        let condition = PodCondition {
            type_: "DisruptionTarget".to_owned(),
            status: "True".to_owned(),
            reason: Some("DeletionByTaintManager".to_owned()),
            message: Some("Taint manager: deleting due to NoExecute taint".to_owned()),
            last_transition_time: Some(Time(now)),
            ..PodCondition::default()
        };
        let patch = with_condition(pod, condition);
        match self.writer.merge_status(&target, &patch).await {
            // Another pod has its name: this one is gone.
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            written => written?,
        };
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

/// Must pods leave this node?
fn executes(node: &Node) -> bool {
    let mut taints = node.spec.taints.iter().flatten();
    taints.any(|t| t.effect == NO_EXECUTE)
}

/// Not ready, or not known to be.
fn is_lost(node: &Node) -> bool {
    let conditions = node.status.conditions.as_deref().unwrap_or_default();
    ready(conditions) != "True"
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Heard ===

impl Heard {
    fn hear(&mut self, lease: &str) {
        lease.clone_into(&mut self.lease);
        self.at = clock::now().as_second();
    }
}

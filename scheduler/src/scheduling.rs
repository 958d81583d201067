//! Scheduling: finds a node for every pod that has none.
//!
//! ```text
//! watch ─► queue ─► pop ─► snapshot ─► filter ─► score ─► assume ─► bind (POST pods/binding)
//!            ▲                            │ none fits                  │ refused
//!            └── backoff ◄── unschedulable ◄┘                forget ◄──┘
//! ```
//!
//! One task owns the queue and the snapshot; binds run beside it. A pod is *assumed* to be on its node from the moment it
//! was chosen, so the next decision sees it, whether or not the watch has shown it.

mod bind;
pub mod decision;
pub mod node_selector;
pub mod plugin;
pub mod plugins;
pub mod pod;
pub mod queue;
mod report;
pub mod snapshot;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::error::chain;
use types::well_known::DEFAULT_SCHEDULER;

use crate::controllers::{Informers, Shared};
use crate::events::Recorder;
use crate::objects::{Key, Node, Pod};
use crate::write::Writer;
use bind::Done;
use decision::Scheduler;
use pod::PodInfo;
use queue::Queue;
use snapshot::Cluster;

/// Binds and reports that are open at once; more wait in the queue.
const IN_FLIGHT: usize = 64;

/// What changed, by name only: the stores say what it is now.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Dirty {
    Pod(Key),
    Node(String),
    Namespace(String),
}

/// Collects what changed, each thing once, in the order of its first change.
#[derive(Default)]
struct Changes {
    /// Short sections only.
    waiting: Mutex<(VecDeque<Dirty>, HashSet<Dirty>)>,
    wake: Notify,
}

/// The scheduling task's state.
pub struct Scheduling {
    shared: Arc<Shared>,
    writer: Writer,
    recorder: Recorder,
    changes: Arc<Changes>,
    scheduler: Scheduler,
    queue: Queue,
    /// Which object we know under a name.
    known: HashMap<Key, Arc<str>>,
    /// Pods that were told to be gated, so that it is told once.
    gated: HashSet<Arc<str>>,
    open: JoinSet<Done>,
}

// === impl Scheduling ===

impl Scheduling {
    /// Registers its handlers; must be called before the informers run.
    pub fn new(shared: &Arc<Shared>, writer: Writer, seed: u64) -> Self {
        let changes = Arc::new(Changes::default());
        listen(&shared.informers, &changes);
        Self {
            shared: Arc::clone(shared),
            writer,
            recorder: shared.recorder.named(DEFAULT_SCHEDULER),
            changes,
            scheduler: Scheduler::new(Cluster::default(), seed),
            queue: Queue::default(),
            known: HashMap::new(),
            gated: HashSet::new(),
            open: JoinSet::new(),
        }
    }

    /// Schedules until told to stop. Binds that are open then may or may not have happened.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let changes = Arc::clone(&self.changes);
        loop {
            let changed = changes.wake.notified();
            self.take_changes();
            self.schedule_ready();
            let deadline = self.queue.next_deadline();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return,
                Some(done) = self.open.join_next(), if !self.open.is_empty() => {
                    self.finish(done);
                    while let Some(done) = self.open.try_join_next() {
                        self.finish(done);
                    }
                }
                () = changed => {}
                () = timer => {}
            }
        }
    }

    fn take_changes(&mut self) {
        let mut freed = false;
        for change in self.changes.take() {
            match change {
                Dirty::Pod(key) => {
                    let pod = self.shared.informers.pods.get(&key);
                    freed |= self.pod_changed(&key, pod);
                }
                Dirty::Node(name) => {
                    let node = self.shared.informers.nodes.get(&Key::new("", &name));
                    freed |= self.scheduler.cluster.set_node(&name, node);
                }
                Dirty::Namespace(name) => {
                    let namespace = self.shared.informers.namespaces.get(&Key::new("", &name));
                    let labels = namespace.map(|n| n.metadata.labels.clone());
                    self.scheduler.cluster.set_namespace(&name, labels);
                }
            }
        }
        if freed {
            self.queue.wake(Instant::now());
        }
    }

    /// True when pods that did not fit may fit now.
    fn pod_changed(&mut self, key: &Key, pod: Option<Arc<Pod>>) -> bool {
        let pod = pod.filter(|p| !p.is_terminal());
        let mut freed = false;
        if let Some(uid) = self.known.get(key).cloned()
            && pod.as_ref().is_none_or(|p| *p.metadata.uid != *uid)
        {
            self.known.remove(key);
            self.queue.remove(&uid);
            self.gated.remove(&uid);
            freed = self.scheduler.cluster.remove(&uid);
        }
        let Some(pod) = pod else { return freed };
        if !pod.spec.node_name.is_empty() {
            return self.pod_placed(key, &pod) || freed;
        }
        let ours = matches!(pod.spec.scheduler_name.as_str(), "" | DEFAULT_SCHEDULER);
        let uid: Arc<str> = pod.metadata.uid.as_str().into();
        if !ours {
            return freed;
        }
        self.known.insert(key.clone(), Arc::clone(&uid));
        if pod.metadata.is_deleting() {
            self.queue.remove(&uid);
        } else if !pod.spec.scheduling_gates.is_empty() {
            if self.gated.insert(uid) {
                self.report(report::gated(&pod, crate::clock::now()), &pod);
            }
        } else if !self.scheduler.cluster.contains(&uid) {
            self.queue.put(Arc::new(PodInfo::new(&pod)), Instant::now());
        }
        freed
    }

    fn pod_placed(&mut self, key: &Key, pod: &Arc<Pod>) -> bool {
        if let Some(uid) = self.known.get(key)
            && self.scheduler.cluster.is_confirmed(uid, pod)
        {
            return false;
        }
        let info = Arc::new(PodInfo::new(pod));
        self.known.insert(key.clone(), Arc::clone(&info.uid));
        self.queue.remove(&info.uid);
        // Assumed elsewhere, it frees what it does not take.
        let moved = self.scheduler.cluster.remove(&info.uid);
        self.scheduler.cluster.place(info, &pod.spec.node_name);
        moved || self.queue.waits_for_company()
    }

    fn schedule_ready(&mut self) {
        while self.open.len() < IN_FLIGHT {
            let Some(entry) = self.queue.pop(Instant::now()) else {
                return;
            };
            let pod = Arc::clone(&entry.pod);
            match self.scheduler.decide(&pod) {
                Ok(node) => {
                    self.scheduler.cluster.place(Arc::clone(&pod), &node);
                    debug!(pod = %pod.key, node, "Chose a node");
                    let writer = self.writer.clone();
                    self.open.spawn(bind::bind(writer, entry, node));
                }
                Err(unfit) => {
                    let message = unfit.message();
                    self.queue.unschedulable(entry, Instant::now());
                    self.recorder.warning(
                        pod.reference(),
                        report::reasons::FAILED_SCHEDULING,
                        message.clone(),
                    );
                    if let Some(pod) = self.shared.informers.pods.get(&pod.key) {
                        let patch = report::unschedulable(&pod, message, crate::clock::now());
                        self.report(patch, &pod);
                    }
                }
            }
        }
    }

    fn report(&mut self, patch: Option<serde_json::Value>, pod: &Pod) {
        let Some(patch) = patch else { return };
        let writer = self.writer.clone();
        let key = pod.metadata.key();
        self.open.spawn(bind::report(writer, key, patch));
    }

    fn finish(&mut self, done: Result<Done, tokio::task::JoinError>) {
        match done {
            Ok(Done::Bound { pod, node }) => {
                let message = format!("Successfully assigned {} to {node}", pod.key);
                self.recorder.note(
                    pod.reference(),
                    crate::events::Type::Normal,
                    report::reasons::SCHEDULED,
                    message,
                    Some("Binding"),
                );
            }
            Ok(Done::Refused { entry, error }) => {
                let pod = Arc::clone(&entry.pod);
                // Shown on a node meanwhile? Then that is the truth.
                let placed =
                    |p: Arc<Pod>| *p.metadata.uid == *pod.uid && !p.spec.node_name.is_empty();
                if self.shared.informers.pods.get(&pod.key).is_some_and(placed) {
                    return;
                }
                self.scheduler.cluster.remove(&pod.uid);
                if error.is_not_found() || self.known.get(&pod.key) != Some(&pod.uid) {
                    return;
                }
                warn!(pod = %pod.key, error = %chain(&error), "Binding was refused");
                self.queue.failed(entry, Instant::now());
            }
            Ok(Done::Reported) => {}
            Err(error) => warn!(error = %chain(&error), "A bind task ended badly"),
        }
    }
}

// === impl Changes ===

impl Changes {
    fn add(&self, change: Dirty) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.1.insert(change.clone()) {
            waiting.0.push_back(change);
            drop(waiting);
            self.wake.notify_one();
        }
    }

    fn take(&self) -> VecDeque<Dirty> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.1.clear();
        std::mem::take(&mut waiting.0)
    }
}

fn listen(informers: &Informers, changes: &Arc<Changes>) {
    let waker = Arc::clone(changes);
    informers.pods.on_change(move |change| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && !concerns_scheduling(old, new)
        {
            return;
        }
        if let Some(pod) = change.latest() {
            waker.add(Dirty::Pod(pod.metadata.key()));
        }
    });
    let waker = Arc::clone(changes);
    informers.nodes.on_change(move |change| {
        let same = |old: &Arc<Node>| change.new.is_some_and(|new| same_to_scheduling(old, new));
        if change.old.is_some_and(same) {
            return;
        }
        if let Some(node) = change.latest() {
            waker.add(Dirty::Node(node.metadata.name.clone()));
        }
    });
    let waker = Arc::clone(changes);
    informers.namespaces.on_change(move |change| {
        if let Some(namespace) = change.latest() {
            waker.add(Dirty::Namespace(namespace.metadata.name.clone()));
        }
    });
}

/// Most changes of a pod are its node's reports: they change nothing here.
fn concerns_scheduling(old: &Pod, new: &Pod) -> bool {
    old.metadata.uid != new.metadata.uid
        || old.is_terminal() != new.is_terminal()
        || old.metadata.is_deleting() != new.metadata.is_deleting()
        || old.metadata.labels != new.metadata.labels
        || old.spec != new.spec
}

fn same_to_scheduling(old: &Node, new: &Node) -> bool {
    old.spec == new.spec
        && old.metadata.labels == new.metadata.labels
        && old.status.allocatable == new.status.allocatable
}

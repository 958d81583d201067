//! The one task that owns a pod: feeds events to the [`lifecycle`], performs its effects (`perform.rs`), publishes what
//! became of them. No other task changes anything of the pod.
//!
//! ```text
//!  watch ──┐                                     ┌─▶ operations (pull, start, wait, stop, probe …) ──┐
//!  timer ──┼─▶ Event ─▶ lifecycle::next ─▶ Effect┤                                                   ├─▶ Event …
//!          │                                     └─▶ status, once settled ─▶ API                     │
//!          └─────────────────────────────────────────────────────────────────────────────────────────┘
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::{AbortHandle, FuturesUnordered};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::watch;
use types::error::chain;

use super::End;
use super::context::{Context, now};
use super::events::Severity;
use super::known::Record;
use super::lifecycle::{self, Deletion, Event, Failure, Phase, Rules, Stage, State, Why};
use super::probes::{Answer, Kind, Probes, Verdict};
use super::sandbox::Directories;
use super::start::{Started, container, log_directory};
use super::status::{self, Facts};
use super::tell::{At, Teller};
use super::{objects, publish, refusal};
use crate::images::{self, Image, Origin};
use crate::network::{PodNetwork, Serving};
use crate::runtime::{Component, Running};

mod perform;
mod update;

/// A status with work still under way is published when it has been true for this long.
const UNSETTLED: Duration = Duration::from_secs(1);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(1);
/// Between looks at volumes that follow other objects or may outgrow their limit.
const UPKEEP: Duration = Duration::from_secs(10);
/// Of volumes that hold a token, the cluster's CA and nothing else that may change.
const QUIET_UPKEEP: Duration = Duration::from_secs(600);

pub(super) struct Worker {
    context: Arc<Context>,
    pod: Arc<Pod>,
    teller: Teller,
    record: Arc<Record>,
    /// Taken and put back within one step.
    state: Option<State>,
    slots: Vec<Slot>,
    facts: Facts,
    network: Option<Arc<PodNetwork>>,
    directories: Option<Arc<Directories>>,
    /// Why the pod is refused: nothing of it is begun.
    refused: bool,
    preparing: Option<AbortHandle>,
    upkeep_at: Option<Timestamp>,
    operations: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// What the API says, as far as this worker knows.
    published: PodStatus,
    /// The revision of the last write.
    published_at: u64,
    publishing: bool,
    /// Since when the status may differ from what is published, and when to write it at the latest.
    dirty: Option<Timestamp>,
    retry_at: Option<Timestamp>,
}

/// What belongs to one container.
#[derive(Default)]
struct Slot {
    image: Option<Arc<Image>>,
    running: Option<Arc<Running>>,
    component: Option<Arc<Component>>,
    serving: Option<Serving>,
    probes: Option<Box<Probes>>,
    remembered: objects::Memory,
    /// A pull, a start or a stop that is under way.
    operation: Option<AbortHandle>,
}

/// What came of an operation.
enum Outcome {
    Event(Event),
    Prepared(Result<Directories, String>),
    Pulled(usize, Result<(Arc<Image>, Origin), images::Error>),
    Started(usize, Box<Result<Started, lifecycle::Trouble>>),
    Probed {
        container: usize,
        instance: u32,
        kind: Kind,
        answer: Answer,
    },
    Published(Box<PodStatus>, Result<u64, publish::Error>),
    Finalized(Result<(), publish::Error>),
    /// The message of an eviction.
    Kept(Option<String>),
    Nothing,
}

/// Runs until the pod is gone from the API, or until the node leaves and the API knows how the pod ended, or until the
/// process stops.
pub(super) async fn run(
    context: Arc<Context>,
    pod: Arc<Pod>,
    mut updates: watch::Receiver<Arc<Pod>>,
    end: End,
) {
    let mut worker = Worker::new(context, pod);
    let mut gone = false;
    let mut leaving = false;
    worker.begin();
    while !(gone && worker.state().is_over()) {
        worker.publish();
        if leaving && worker.is_done() {
            return;
        }
        let alarm = worker.alarm();
        tokio::select! {
            biased;
            () = end.stop.cancelled() => {
                worker.stop_all(end.grace).await;
                return;
            }
            () = end.leaving.cancelled(), if !leaving => {
                leaving = true;
                worker.leave(end.leaving_grace);
            }
            changed = updates.changed(), if !gone => match changed {
                Ok(()) => {
                    let pod = Arc::clone(&updates.borrow_and_update());
                    worker.update(pod);
                }
                Err(_) => {
                    gone = true;
                    worker.step(Event::Removed);
                }
            },
            Some(outcome) = worker.operations.next(), if !worker.operations.is_empty() => worker.happened(outcome),
            () = sleep_until(alarm), if alarm.is_some() => worker.woke(),
        }
    }
    worker.forget().await;
}

async fn sleep_until(alarm: Option<Timestamp>) {
    let wait = alarm.map(|at| at.duration_since(now()));
    let wait = wait
        .and_then(|wait| Duration::try_from(wait).ok())
        .unwrap_or_default();
    // Timers have a granularity of a millisecond: never early.
    tokio::time::sleep(wait).await;
}

// === impl Worker ===

impl Worker {
    fn new(context: Arc<Context>, pod: Arc<Pod>) -> Worker {
        let teller = Teller::new(context.recorder.clone(), &pod);
        let (rules, memories) = (Rules::of(&pod), status::recall(&pod));
        let names = (0..rules.containers.len())
            .filter_map(|index| Some(container(&pod, index)?.name.clone()));
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        let metadata = &pod.metadata;
        let record = Arc::new(Record::new(
            &part(&metadata.namespace),
            &part(&metadata.name),
            &part(&metadata.uid),
            log_directory(&context, &pod),
            names,
        ));
        for (index, memory) in memories.iter().enumerate() {
            record.update(index, |container| container.instances = memory.instances);
        }
        context.known.insert(Arc::clone(&record));
        let slots = rules.containers.iter().map(|_| Slot::default()).collect();
        let facts = Facts {
            host_ip: context.host_ip.clone(),
            pod_ip: None,
            image_ids: status::recalled_images(&pod),
            refusal: None,
        };
        Worker {
            published: pod.status.clone().unwrap_or_default(),
            context,
            pod,
            teller,
            record,
            state: None,
            slots,
            facts,
            network: None,
            directories: None,
            refused: false,
            preparing: None,
            upkeep_at: None,
            operations: FuturesUnordered::new(),
            published_at: 0,
            publishing: false,
            dirty: None,
            retry_at: None,
        }
    }

    /// From what the API says of the pod: new, known from an earlier process, or over.
    fn begin(&mut self) {
        let now = now();
        let rules = Rules::of(&self.pod);
        let memories = status::recall(&self.pod);
        let started = self.published.start_time.as_ref().map(|time| time.0);
        if types::pod::is_terminal(&self.pod) {
            self.facts.pod_ip = self.published.pod_ip.clone();
            self.state = Some(lifecycle::ended(rules, memories, started.unwrap_or(now)));
        } else {
            let refusals = refusal::refusals(&self.pod);
            let remarks = refusal::remarks(&self.pod);
            if !refusals.is_empty() {
                self.refuse(refusals.join("; "), now);
            } else if started.is_none() && !remarks.is_empty() {
                self.teller
                    .pod(Severity::Warning, refusal::PARTLY, remarks.join("; "));
            }
            let (state, effects) = match started {
                Some(started) => lifecycle::resume(rules, memories, started, now),
                None => lifecycle::new(rules, now),
            };
            self.state = Some(state);
            self.dirty = Some(now);
            self.perform_all(effects);
        }
        let grace = match started {
            Some(_) => update::grace_left(&self.pod, now),
            None => update::deletion_grace(&self.pod),
        };
        if let Some(grace) = grace {
            self.step(Event::DeleteRequested { grace });
        }
    }

    /// The pod fails, but not faster than its owner may make new ones.
    fn refuse(&mut self, message: String, now: Timestamp) {
        self.refused = true;
        self.facts.refusal = Some(message.clone());
        self.teller
            .pod(Severity::Warning, refusal::REASON, message.clone());
        let delay = self.context.refusal_delay(&self.pod, now);
        let failure = Failure {
            reason: refusal::REASON.to_owned(),
            message,
        };
        self.operations.push(Box::pin(async move {
            tokio::time::sleep(delay).await;
            Outcome::Event(Event::Fail(failure))
        }));
    }

    fn state(&self) -> &State {
        self.state
            .as_ref()
            .expect("the state is put back at the end of each step")
    }

    /// One step of the lifecycle, with everything that follows at once.
    fn step(&mut self, event: Event) {
        let now = now();
        let state = self
            .state
            .take()
            .expect("the state is put back at the end of each step");
        let (state, effects) = lifecycle::next(state, event, now);
        self.state = Some(state);
        self.dirty.get_or_insert(now);
        self.perform_all(effects);
    }

    fn perform_all(&mut self, effects: Vec<lifecycle::Effect>) {
        let mut answers = VecDeque::new();
        for effect in effects {
            answers.extend(self.perform(effect));
        }
        while let Some(event) = answers.pop_front() {
            self.step(event);
        }
        self.note_waits();
    }

    /// The node endpoint's view of containers that do not run.
    fn note_waits(&self) {
        for (index, container) in self.state().containers.iter().enumerate() {
            let waiting = match &container.phase {
                Phase::Failed { trouble, .. } => Some(trouble.reason.to_owned()),
                _ => None,
            };
            let previous = container.last.as_ref().map(|exit| exit.instance);
            self.record.update(index, |known| {
                known.waiting = waiting;
                known.previous = previous;
            });
        }
    }

    fn happened(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Event(event) => {
                if let Event::Exited { container, .. } = &event {
                    self.ended(*container);
                }
                self.step(event);
            }
            Outcome::Prepared(prepared) => self.prepared(prepared),
            Outcome::Pulled(index, pulled) => self.pulled(index, pulled),
            Outcome::Started(index, started) => self.started(index, *started),
            Outcome::Probed {
                container,
                instance,
                kind,
                answer,
            } => self.probed(container, instance, kind, &answer),
            Outcome::Published(status, written) => self.written(*status, written),
            Outcome::Finalized(deleted) => match deleted {
                Ok(()) | Err(publish::Error::Gone) => {}
                Err(error) => {
                    tracing::warn!(pod = %self.record.name, error = %chain(&error), "Failed to remove a pod that is over");
                    self.finalize_after(AGAIN);
                }
            },
            Outcome::Kept(outgrown) => {
                self.schedule_upkeep();
                if let Some(message) = outgrown {
                    self.teller
                        .pod(Severity::Warning, "Evicted", message.clone());
                    self.step(Event::Fail(Failure {
                        reason: "Evicted".to_owned(),
                        message,
                    }));
                }
            }
            Outcome::Nothing => {}
        }
    }

    fn prepared(&mut self, prepared: Result<Directories, String>) {
        self.preparing = None;
        match prepared {
            Ok(directories) => {
                self.directories = Some(Arc::new(directories));
                self.schedule_upkeep();
                self.step(Event::Prepared);
            }
            Err(message) => {
                self.teller.pod(Severity::Warning, "FailedMount", message);
                self.step(Event::PrepareFailed);
            }
        }
    }

    fn pulled(&mut self, index: usize, pulled: Result<(Arc<Image>, Origin), images::Error>) {
        self.slots[index].operation = None;
        match pulled {
            Ok((image, origin)) => {
                self.tell(index, |teller, at| teller.pulled(at, &image, origin));
                if let Some(id) = self.facts.image_ids.get_mut(index) {
                    id.clone_from(&image.id);
                }
                self.slots[index].image = Some(image);
                self.step(Event::Pulled(index));
            }
            Err(error) => {
                let trouble = lifecycle::Trouble {
                    reason: error.reason(),
                    message: error.to_string(),
                };
                self.tell(index, |teller, at| {
                    teller.trouble(at, &trouble);
                    if trouble.reason == "ErrImagePull" {
                        teller.back_off_pulling(at);
                    }
                });
                self.step(Event::PullFailed(index, trouble));
            }
        }
    }

    fn started(&mut self, index: usize, started: Result<Started, lifecycle::Trouble>) {
        self.slots[index].operation = None;
        match started {
            Ok(started) => {
                self.tell(index, |teller, at| teller.started(at));
                let instance = self.state().containers[index].instances;
                self.record.update(index, |known| {
                    known.instances = instance + 1;
                    known.log = Some(Arc::clone(&started.log));
                    known.running = Some(Arc::clone(&started.running));
                    known.stdin.clone_from(&started.stdin);
                });
                let spec = container(&self.pod, index);
                let slot = &mut self.slots[index];
                slot.serving = started.serving;
                slot.component = Some(started.component);
                slot.probes = spec.and_then(|spec| Probes::new(spec, now()));
                slot.running = Some(Arc::clone(&started.running));
                let fall_back = spec.is_some_and(|spec| {
                    spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError")
                });
                self.operations.push(perform::wait(
                    index,
                    started.running,
                    started.log,
                    fall_back,
                ));
                self.step(Event::Started(index));
                self.ask_probes();
            }
            Err(trouble) => {
                self.tell(index, |teller, at| teller.trouble(at, &trouble));
                self.step(Event::StartFailed(index, trouble));
            }
        }
    }

    /// An instance is over: what it held is given back.
    fn ended(&mut self, index: usize) {
        let slot = &mut self.slots[index];
        slot.running = None;
        slot.component = None;
        slot.serving = None;
        slot.probes = None;
        if let Some(operation) = slot.operation.take() {
            operation.abort();
        }
        self.record.update(index, |known| {
            known.running = None;
            known.log = None;
            known.stdin = None;
        });
    }

    fn probed(&mut self, index: usize, instance: u32, kind: Kind, answer: &Answer) {
        if self.state().containers[index].instances != instance {
            return;
        }
        let Some(probes) = &mut self.slots[index].probes else {
            return;
        };
        let verdict = probes.answered(kind, answer, now());
        self.tell(index, |teller, at| teller.probed(at, kind, answer));
        match verdict {
            Some(Verdict::StartupSucceeded) => self.step(Event::StartupSucceeded(index)),
            Some(Verdict::Ready(ready)) => self.step(Event::Readiness(index, ready)),
            Some(Verdict::Failed(kind)) => {
                let grace = container(&self.pod, index)
                    .and_then(|spec| kind.of(spec)?.termination_grace_period_seconds)
                    .map_or(self.state().rules.grace, lifecycle::grace);
                let why = if kind == Kind::Startup {
                    Why::Startup
                } else {
                    Why::Liveness
                };
                self.step(Event::Unhealthy {
                    container: index,
                    why,
                    grace,
                });
            }
            None => {}
        }
        self.ask_probes();
    }

    fn woke(&mut self) {
        let now = now();
        if self.state().wake_at().is_some_and(|at| at <= now) {
            self.step(Event::Woke);
        }
        if self.upkeep_at.is_some_and(|at| at <= now) {
            self.upkeep();
        }
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
        }
        self.ask_probes();
        if status::changes_at(self.state(), now).is_none() {
            self.dirty.get_or_insert(now);
        }
    }

    /// The earliest moment at which something is due.
    fn alarm(&self) -> Option<Timestamp> {
        let probes = self
            .slots
            .iter()
            .filter_map(|slot| slot.probes.as_ref()?.wake_at());
        let unsettled = self
            .dirty
            .filter(|_| !self.publishing && self.retry_at.is_none());
        let unsettled = unsettled.and_then(|since| since.saturating_add(UNSETTLED).ok());
        let changes = status::changes_at(self.state(), now());
        [
            self.state().wake_at(),
            self.upkeep_at,
            self.retry_at,
            unsettled,
            changes,
        ]
        .into_iter()
        .flatten()
        .chain(probes)
        .min()
    }

    /// Nothing is under way that will change the status in a moment.
    fn is_settled(&self) -> bool {
        let state = self.state();
        match state.stage {
            Stage::Active => {}
            Stage::Released => return true,
            _ => return self.refused,
        }
        !state
            .containers
            .iter()
            .any(|container| matches!(container.phase, Phase::Pulling | Phase::Starting))
    }

    /// Writes the status if it changed and either stays for now or has been waiting long enough.
    fn publish(&mut self) {
        let Some(since) = self.dirty else { return };
        let now = now();
        let due = self.is_settled() || now.duration_since(since).unsigned_abs() >= UNSETTLED;
        let deletion = self.state().deletion;
        if self.publishing || self.retry_at.is_some() || !due || deletion == Deletion::Gone {
            return;
        }
        self.dirty = None;
        // A pod that is over and being deleted disappears in a moment; only who holds it by a finalizer sees how it ended.
        if deletion == Deletion::Requested && self.state().is_ended() && !self.is_held() {
            return;
        }
        let status = status::status(&self.pod, self.state(), &self.facts, &self.published, now);
        if status::same(&status, &self.published) {
            return;
        }
        self.publishing = true;
        let (context, pod) = (Arc::clone(&self.context), Arc::clone(&self.pod));
        self.operations.push(Box::pin(async move {
            let written = publish::status(&context, &pod, &status).await;
            Outcome::Published(Box::new(status), written)
        }));
    }

    fn written(&mut self, status: PodStatus, written: Result<u64, publish::Error>) {
        self.publishing = false;
        match written {
            Ok(revision) => {
                self.published = status;
                self.published_at = revision;
            }
            Err(publish::Error::Gone) => {}
            Err(error) => {
                tracing::warn!(ns = %self.record.namespace, name = %self.record.name, error = %chain(&error), "Failed to write pod status");
                self.dirty = Some(now());
                self.retry_at = now().saturating_add(AGAIN).ok();
            }
        }
    }

    fn tell(&self, index: usize, say: impl FnOnce(&Teller, &At<'_>)) {
        if let Some(spec) = container(&self.pod, index) {
            say(&self.teller, &At::of(&self.pod, index, spec));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_small_because_there_may_be_thousands() {
        assert!(size_of::<Worker>() <= 2 * 1024, "{}", size_of::<Worker>());
    }
}

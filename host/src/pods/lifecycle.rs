//! The life of one pod, as a pure state machine: it never does I/O, never reads the clock and knows no Kubernetes object.
//!
//! ```text
//!             Prepare ok        all main containers ended, deadline, refusal
//!  Preparing ───────────▶ Active ─────────────────────────┐
//!   │  ▲ retry              │ deletion                     ▼
//!   └──┘                    └───────────────────────▶ Stopping ──▶ Releasing ──▶ Released ──▶ (Finalize, if deleted)
//!
//!  one container:
//!            Pull        ok          ok            exit, to be restarted
//!  Waiting ──────▶ Pulling ──▶ Starting ──▶ Running ─────────────▶ BackingOff ──▶ Pulling …
//!                    │ ▲          │ ▲          │ stop                  ▲
//!                    ▼ │ later    ▼ │ later    ▼                       │ unhealthy, replaced
//!                   Failed       Failed     Stopping ──────────────────┴──▶ Exited (for good)
//! ```
//!
//! [`next`] takes a state by value and gives the next one with the effects the pod's one worker performs; what comes of
//! them returns as events. A pod that was released never starts anything again.

use std::time::Duration;

use jiff::Timestamp;

use super::backoff::Backoff;

mod containers;
mod rules;
#[cfg(test)]
mod tests;

pub(crate) use rules::{ContainerRules, Role, Rules, grace};

/// A pod on this node.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) rules: Rules,
    pub(crate) stage: Stage,
    /// When this node took the pod on.
    pub(crate) started_at: Timestamp,
    /// In the order of [`Rules::containers`]: init containers first.
    pub(crate) containers: Vec<Container>,
    /// All init containers are done (sidecars: started). Never becomes false again.
    pub(crate) initialized: bool,
    /// Why the pod as a whole failed, when it is not its containers' exit codes.
    pub(crate) failure: Option<Failure>,
    /// The API asked for deletion: an end is followed by [`Effect::Finalize`].
    pub(crate) deletion: Deletion,
    prepare: Backoff,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Deletion {
    No,
    Requested,
    /// The object is gone already: nothing may be written about it.
    Gone,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Failure {
    pub(crate) reason: String,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Stage {
    /// Address and volumes are not there yet. `retry_at` is `None` while an attempt is under way.
    Preparing {
        retry_at: Option<Timestamp>,
    },
    Active,
    /// Containers are being stopped; none will start again.
    Stopping {
        deadline: Timestamp,
    },
    /// Nothing runs; address and volumes are being given back.
    Releasing,
    Released,
}

#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) phase: Phase,
    /// Instances started so far, over restarts of the node too. `restartCount` is one less.
    pub(crate) instances: u32,
    /// How the instance before the present one ended.
    pub(crate) last: Option<Exit>,
    crash: Backoff,
    failed: Backoff,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Phase {
    /// Not its turn yet.
    Waiting,
    Pulling,
    /// Environment, component, instance.
    Starting,
    Running {
        since: Timestamp,
        /// The startup probe succeeded, or there is none.
        started: bool,
        /// The readiness probe says so, or there is none.
        ready: bool,
    },
    Stopping {
        since: Timestamp,
        why: Why,
    },
    /// Pulling or starting did not work; tried again at `until`.
    Failed {
        trouble: Trouble,
        at: Timestamp,
        until: Timestamp,
    },
    /// Ended (see `last`) and will be started again at `until`.
    BackingOff {
        until: Timestamp,
        delay: Duration,
    },
    /// Ended for good.
    Exited(Exit),
}

/// Why a container is being stopped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Why {
    PodEnds,
    Liveness,
    Startup,
    /// Its image was changed in the spec.
    Replaced,
}

/// A container that cannot be pulled or started: Kubernetes' reason and a sentence.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Trouble {
    /// `ErrImagePull`, `ErrImageNeverPull`, `InvalidImageName`, `CreateContainerConfigError`, `CreateContainerError`,
    /// `RunContainerError`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// How an instance ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Exit {
    pub(crate) code: i32,
    /// `Completed`, `Error`, `OOMKilled`, `ContainerStatusUnknown`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) started_at: Timestamp,
    pub(crate) finished_at: Timestamp,
    /// Which instance it was, from 0.
    pub(crate) instance: u32,
}

/// Everything that can happen to a pod.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// Address and volumes are there.
    Prepared,
    PrepareFailed,
    Pulled(usize),
    PullFailed(usize, Trouble),
    Started(usize),
    StartFailed(usize, Trouble),
    /// `reason` as in [`Exit`].
    Exited {
        container: usize,
        code: i32,
        reason: &'static str,
        message: String,
    },
    StartupSucceeded(usize),
    Readiness(usize, bool),
    /// A startup or liveness probe crossed its failure threshold.
    Unhealthy {
        container: usize,
        why: Why,
        grace: Duration,
    },
    /// The spec names another image.
    Replaced(usize),
    /// The spec has more containers than before, the new ones last.
    Grown(Rules),
    /// The pod cannot or may not go on: refused, evicted.
    Fail(Failure),
    /// The node is shutting down: as a failure, but no longer than `grace`.
    Leave {
        failure: Failure,
        grace: Duration,
    },
    DeleteRequested {
        grace: Duration,
    },
    /// The object is gone from the API.
    Removed,
    Released,
    /// Time passed; see [`State::wake_at`].
    Woke,
}

/// What the worker is to do. Each container effect is answered by one event, unless abandoned.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Effect {
    Prepare,
    Pull(usize),
    Start(usize),
    /// Ask to end, then make it end after `grace`. May come again with a shorter grace.
    Stop {
        container: usize,
        grace: Duration,
        why: Why,
    },
    /// Drop whatever is under way for this container; no answer.
    Abandon(usize),
    /// Give address and volumes back; drop a preparation under way.
    Release,
    /// Remove the object from the API: the pod is over.
    Finalize,
    /// Tell people about a wait.
    BackOff(usize),
}

/// What is known of a container from before this process: see [`resume`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    pub(crate) instances: u32,
    /// The exit the API reports in `state`, or else in `lastState`.
    pub(crate) last: Option<Exit>,
    /// It was running when the process before this one went away.
    pub(crate) was_running: bool,
}

pub(crate) fn new(rules: Rules, now: Timestamp) -> (State, Vec<Effect>) {
    let containers = rules.containers.iter().map(|_| Container::new()).collect();
    begin(rules, containers, now, now)
}

/// A pod an earlier process of this node ran: its main containers go on where they were, each running one as a restart;
/// its init containers run again, as after a reboot. `memories` are in the order of the rules.
pub(crate) fn resume(
    rules: Rules,
    memories: Vec<Memory>,
    started_at: Timestamp,
    now: Timestamp,
) -> (State, Vec<Effect>) {
    let containers: Vec<Container> = rules
        .containers
        .iter()
        .zip(
            memories
                .into_iter()
                .chain(std::iter::repeat_with(Memory::default)),
        )
        .map(|(rules, memory)| Container::resumed(rules, memory, now))
        .collect();
    let done = rules
        .containers
        .iter()
        .zip(&containers)
        .all(|(rules, container)| {
            rules.role != Role::Main || matches!(container.phase, Phase::Exited(_))
        });
    let (mut state, mut effects) = begin(rules, containers, started_at, now);
    if done {
        effects.clear();
        state.initialized = true;
        state.stop(Duration::ZERO, now, &mut effects);
        state.advance(now, &mut effects);
    }
    (state, effects)
}

/// A pod that had ended before this process began: it only waits for its deletion.
pub(crate) fn ended(rules: Rules, memories: Vec<Memory>, started_at: Timestamp) -> State {
    let (mut state, _) = resume(rules, memories, started_at, started_at);
    state.stage = Stage::Released;
    state
}

fn begin(
    rules: Rules,
    containers: Vec<Container>,
    started_at: Timestamp,
    now: Timestamp,
) -> (State, Vec<Effect>) {
    let mut state = State {
        rules,
        stage: Stage::Preparing {
            retry_at: Some(now),
        },
        started_at,
        containers,
        initialized: false,
        failure: None,
        deletion: Deletion::No,
        prepare: Backoff::quick(),
    };
    let mut effects = Vec::new();
    state.advance(now, &mut effects);
    (state, effects)
}

/// One step. Events that no longer matter (an answer to something abandoned) change nothing.
pub(crate) fn next(mut state: State, event: Event, now: Timestamp) -> (State, Vec<Effect>) {
    let mut effects = Vec::new();
    state.apply(event, now, &mut effects);
    state.advance(now, &mut effects);
    (state, effects)
}

// === impl State ===

impl State {
    /// When [`Event::Woke`] is due: the earliest of all deadlines in the state.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        let stage = match self.stage {
            Stage::Preparing { retry_at } => retry_at,
            Stage::Active => self.active_until(),
            Stage::Stopping { .. } | Stage::Releasing | Stage::Released => return None,
        };
        let containers = self
            .containers
            .iter()
            .filter_map(|container| match &container.phase {
                Phase::BackingOff { until, .. } => Some(*until),
                Phase::Failed { until, .. } => Some(*until),
                _ => None,
            });
        stage
            .into_iter()
            .chain(containers)
            .chain(self.active_until())
            .min()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stage == Stage::Released
    }

    /// No container runs or will run.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.stage, Stage::Releasing | Stage::Released)
    }

    fn active_until(&self) -> Option<Timestamp> {
        let limit = self.rules.active_deadline?;
        self.started_at.saturating_add(limit).ok()
    }

    fn apply(&mut self, event: Event, now: Timestamp, effects: &mut Vec<Effect>) {
        match event {
            Event::Prepared => {
                if matches!(self.stage, Stage::Preparing { .. }) {
                    self.stage = Stage::Active;
                }
            }
            Event::PrepareFailed => {
                if matches!(self.stage, Stage::Preparing { .. }) {
                    let wait = self.prepare.failed(now);
                    self.stage = Stage::Preparing {
                        retry_at: Some(later(now, wait)),
                    };
                }
            }
            Event::Fail(failure) => {
                if !self.is_ended() && self.failure.is_none() {
                    self.failure = Some(failure);
                    self.stop(self.rules.grace, now, effects);
                }
            }
            Event::Leave { failure, grace } => {
                if !self.is_ended() && self.failure.is_none() {
                    self.failure = Some(failure);
                }
                self.stop(grace.min(self.rules.grace), now, effects);
            }
            Event::DeleteRequested { grace } => {
                if self.deletion == Deletion::No {
                    self.deletion = Deletion::Requested;
                    if self.stage == Stage::Released {
                        effects.push(Effect::Finalize);
                        return;
                    }
                }
                self.stop(grace, now, effects);
            }
            Event::Removed => {
                self.deletion = Deletion::Gone;
                self.stop(Duration::ZERO, now, effects);
            }
            Event::Released => {
                if self.stage == Stage::Releasing {
                    self.stage = Stage::Released;
                    if self.deletion == Deletion::Requested {
                        effects.push(Effect::Finalize);
                    }
                }
            }
            Event::Grown(rules) => {
                self.containers
                    .resize_with(rules.containers.len(), Container::new);
                self.rules = rules;
            }
            Event::Woke => {}
            container => self.apply_to_container(container, now, effects),
        }
    }

    /// Begins or shortens the end of the pod.
    fn stop(&mut self, grace: Duration, now: Timestamp, effects: &mut Vec<Effect>) {
        let deadline = later(now, grace);
        match self.stage {
            Stage::Releasing | Stage::Released => return,
            Stage::Stopping { deadline: earlier } if earlier <= deadline => return,
            _ => self.stage = Stage::Stopping { deadline },
        }
        for index in 0..self.containers.len() {
            let phase = &mut self.containers[index].phase;
            match phase {
                Phase::Pulling | Phase::Starting => {
                    *phase = Phase::Waiting;
                    effects.push(Effect::Abandon(index));
                }
                Phase::Stopping { .. } => effects.push(Effect::Stop {
                    container: index,
                    grace,
                    why: Why::PodEnds,
                }),
                _ => {}
            }
        }
    }

    /// Level-driven: whatever happened, do what the state now calls for.
    fn advance(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        if let Some(until) = self.active_until()
            && until <= now
            && matches!(self.stage, Stage::Preparing { .. } | Stage::Active)
        {
            self.failure = Some(Failure {
                reason: "DeadlineExceeded".to_owned(),
                message: "Pod was active on the node longer than the specified deadline".to_owned(),
            });
            self.stop(self.rules.grace, now, effects);
        }
        if let Stage::Preparing { retry_at: Some(at) } = self.stage
            && at <= now
        {
            self.stage = Stage::Preparing { retry_at: None };
            effects.push(Effect::Prepare);
        }
        if self.stage == Stage::Active {
            self.run(now, effects);
        }
        if let Stage::Stopping { deadline } = self.stage {
            let grace = deadline
                .duration_since(now)
                .try_into()
                .unwrap_or(Duration::ZERO);
            self.wind_down(grace, effects);
        }
    }
}

/// `now + wait`, as far as time goes.
fn later(now: Timestamp, wait: Duration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

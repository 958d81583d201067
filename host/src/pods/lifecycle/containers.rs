//! The containers' half of the lifecycle: whose turn it is, restarts, the order of stopping. Pure.

use std::time::Duration;

use jiff::Timestamp;

use super::{
    Container, ContainerRules, Effect, Event, Exit, Memory, Phase, Role, Stage, State, Trouble,
    Why, later,
};
use crate::pods::backoff::Backoff;

impl Container {
    pub(crate) fn new() -> Container {
        Container {
            phase: Phase::Waiting,
            instances: 0,
            last: None,
            crash: Backoff::slow(),
            failed: Backoff::slow(),
        }
    }

    /// One an earlier process ran. What ran then was ended by that process' end: 137.
    pub(super) fn resumed(rules: &ContainerRules, memory: Memory, now: Timestamp) -> Container {
        let mut container = Container::new();
        container.instances = memory.instances;
        if memory.was_running {
            let exit = Exit {
                code: 137,
                reason: "Error",
                message: "The node's process ended while the container ran".to_owned(),
                started_at: memory.last.as_ref().map_or(now, |exit| exit.started_at),
                finished_at: now,
                instance: memory.instances.saturating_sub(1),
            };
            let again = matches!(rules.role, Role::Init | Role::Sidecar);
            if again || rules.restart.restarts_after(exit.code) {
                container.last = Some(exit);
            } else {
                container.phase = Phase::Exited(exit);
            }
            return container;
        }
        match memory.last {
            Some(exit)
                if matches!(rules.role, Role::Main | Role::Ephemeral)
                    && !rules.restart.restarts_after(exit.code) =>
            {
                container.phase = Phase::Exited(exit);
            }
            last => container.last = last,
        }
        container
    }

    /// Neither running nor on the way to it.
    pub(crate) fn is_idle(&self) -> bool {
        !matches!(
            self.phase,
            Phase::Pulling | Phase::Starting | Phase::Running { .. } | Phase::Stopping { .. }
        )
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. } | Phase::Stopping { .. })
    }
}

impl State {
    pub(super) fn apply_to_container(
        &mut self,
        event: Event,
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        match event {
            Event::Pulled(index) => {
                if let Some(container) = self.in_phase(index, |phase| *phase == Phase::Pulling) {
                    container.phase = Phase::Starting;
                    effects.push(Effect::Start(index));
                }
            }
            Event::PullFailed(index, trouble) => {
                if let Some(container) = self.in_phase(index, |phase| *phase == Phase::Pulling) {
                    container.fail(trouble, now);
                }
            }
            Event::Started(index) => self.started(index, now),
            Event::StartFailed(index, trouble) => {
                if let Some(container) = self.in_phase(index, |phase| *phase == Phase::Starting) {
                    container.fail(trouble, now);
                }
            }
            Event::Exited {
                container,
                code,
                reason,
                message,
            } => self.exited(container, (code, reason, message), now, effects),
            Event::StartupSucceeded(index) => {
                let has_readiness = self.rules.containers[index].readiness_probe;
                if let Some(Phase::Running { started, ready, .. }) = self.phase(index) {
                    *started = true;
                    *ready = !has_readiness;
                }
            }
            Event::Readiness(index, value) => {
                if let Some(Phase::Running {
                    started: true,
                    ready,
                    ..
                }) = self.phase(index)
                {
                    *ready = value;
                }
            }
            Event::Unhealthy {
                container,
                why,
                grace,
            } => self.stop_container(container, why, grace, effects),
            Event::Replaced(index) => self.replaced(index, effects),
            // The pod's own events never come here.
            _ => {}
        }
    }

    fn phase(&mut self, index: usize) -> Option<&mut Phase> {
        self.containers
            .get_mut(index)
            .map(|container| &mut container.phase)
    }

    fn in_phase(&mut self, index: usize, is: impl Fn(&Phase) -> bool) -> Option<&mut Container> {
        self.containers
            .get_mut(index)
            .filter(|container| is(&container.phase))
    }

    fn started(&mut self, index: usize, now: Timestamp) {
        let Some(rules) = self.rules.containers.get(index) else {
            return;
        };
        let (startup, readiness) = (rules.startup_probe, rules.readiness_probe);
        if let Some(container) = self.in_phase(index, |phase| *phase == Phase::Starting) {
            container.instances += 1;
            container.failed.reset();
            container.phase = Phase::Running {
                since: now,
                started: !startup,
                ready: !startup && !readiness,
            };
        }
    }

    fn exited(
        &mut self,
        index: usize,
        (code, reason, message): (i32, &'static str, String),
        now: Timestamp,
        effects: &mut Vec<Effect>,
    ) {
        let active = self.stage == Stage::Active;
        let Some(restart) = self.rules.containers.get(index).map(|rules| rules.restart) else {
            return;
        };
        let Some(container) = self.in_phase(index, |phase| {
            matches!(phase, Phase::Running { .. } | Phase::Stopping { .. })
        }) else {
            return;
        };
        let (started_at, replaced) = match container.phase {
            Phase::Running { since, .. } => (since, false),
            Phase::Stopping { since, why } => (since, why == Why::Replaced),
            _ => return,
        };
        let exit = Exit {
            code,
            reason,
            message,
            started_at,
            finished_at: now,
            instance: container.instances.saturating_sub(1),
        };
        if active && replaced {
            container.last = Some(exit);
            container.phase = Phase::Waiting;
        } else if active && restart.restarts_after(code) {
            container.last = Some(exit);
            let delay = container.crash.exited(now);
            container.phase = Phase::BackingOff {
                until: later(now, delay),
                delay,
            };
            if delay > Duration::ZERO {
                effects.push(Effect::BackOff(index));
            }
        } else {
            container.phase = Phase::Exited(exit);
        }
    }

    fn replaced(&mut self, index: usize, effects: &mut Vec<Effect>) {
        if self.stage != Stage::Active {
            return;
        }
        let Some(container) = self.containers.get_mut(index) else {
            return;
        };
        container.failed.reset();
        container.crash.reset();
        match container.phase {
            Phase::Running { .. } => {
                let grace = self.rules.grace;
                self.stop_container(index, Why::Replaced, grace, effects);
            }
            Phase::Pulling | Phase::Starting => {
                container.phase = Phase::Waiting;
                effects.push(Effect::Abandon(index));
            }
            Phase::Failed { .. } | Phase::BackingOff { .. } => container.phase = Phase::Waiting,
            Phase::Waiting | Phase::Stopping { .. } | Phase::Exited(_) => {}
        }
    }

    fn stop_container(
        &mut self,
        index: usize,
        why: Why,
        grace: Duration,
        effects: &mut Vec<Effect>,
    ) {
        let Some(phase) = self.phase(index) else {
            return;
        };
        if let Phase::Running { since, .. } = *phase {
            *phase = Phase::Stopping { since, why };
            effects.push(Effect::Stop {
                container: index,
                grace,
                why,
            });
        }
    }

    /// Whose turn is it? Called while the pod is active.
    pub(super) fn run(&mut self, now: Timestamp, effects: &mut Vec<Effect>) {
        for index in 0..self.containers.len() {
            if self.rules.containers[index].role == Role::Ephemeral {
                self.drive(index, now, effects);
            }
        }
        for index in 0..self.containers.len() {
            let role = self.rules.containers[index].role;
            if role == Role::Main && !self.initialized {
                self.initialized = true;
            }
            match role {
                Role::Init if self.initialized => {}
                Role::Init => match &self.containers[index].phase {
                    Phase::Exited(exit) if exit.code == 0 => {}
                    Phase::Exited(_) => {
                        self.stop(self.rules.grace, now, effects);
                        return;
                    }
                    _ => {
                        self.drive(index, now, effects);
                        return;
                    }
                },
                Role::Sidecar => {
                    self.drive(index, now, effects);
                    let started = matches!(
                        self.containers[index].phase,
                        Phase::Running { started: true, .. }
                    );
                    if !self.initialized && !started {
                        return;
                    }
                }
                Role::Main => self.drive(index, now, effects),
                Role::Ephemeral => {}
            }
        }
        let mut main = self
            .rules
            .containers
            .iter()
            .zip(&self.containers)
            .filter(|(rules, _)| rules.role == Role::Main);
        if main.all(|(_, container)| matches!(container.phase, Phase::Exited(_))) {
            self.stop(self.rules.grace, now, effects);
        }
    }

    fn drive(&mut self, index: usize, now: Timestamp, effects: &mut Vec<Effect>) {
        let container = &mut self.containers[index];
        let due = match &container.phase {
            Phase::Waiting => true,
            Phase::BackingOff { until, .. } | Phase::Failed { until, .. } => *until <= now,
            _ => false,
        };
        if due {
            container.phase = Phase::Pulling;
            effects.push(Effect::Pull(index));
        }
    }

    /// Main and init containers at once; then sidecars, the last one first; then release.
    pub(super) fn wind_down(&mut self, grace: Duration, effects: &mut Vec<Effect>) {
        for index in 0..self.containers.len() {
            if self.rules.containers[index].role != Role::Sidecar {
                self.stop_container(index, Why::PodEnds, grace, effects);
            }
            self.settle(index);
        }
        let main_runs = self
            .rules
            .containers
            .iter()
            .zip(&self.containers)
            .any(|(rules, container)| rules.role != Role::Sidecar && container.is_running());
        if main_runs && grace > Duration::ZERO {
            return;
        }
        for index in (0..self.containers.len()).rev() {
            self.stop_container(index, Why::PodEnds, grace, effects);
            if self.containers[index].is_running() && grace > Duration::ZERO {
                return;
            }
        }
        if self.containers.iter().all(Container::is_idle) {
            self.stage = Stage::Releasing;
            effects.push(Effect::Release);
        }
    }

    /// A container waiting for its restart when the pod ends: its last exit was the final one.
    fn settle(&mut self, index: usize) {
        let container = &mut self.containers[index];
        if matches!(
            container.phase,
            Phase::BackingOff { .. } | Phase::Failed { .. }
        ) && let Some(exit) = container.last.take()
        {
            container.phase = Phase::Exited(exit);
        }
    }
}

impl Container {
    fn fail(&mut self, trouble: Trouble, now: Timestamp) {
        let mut quick = Backoff::quick();
        let wait = match trouble.reason {
            // Waits for somebody to create a ConfigMap or Secret: look again soon.
            "CreateContainerConfigError" => quick.failed(now) * 2,
            _ => self.failed.failed(now),
        };
        self.phase = Phase::Failed {
            trouble,
            at: now,
            until: later(now, wait),
        };
    }
}

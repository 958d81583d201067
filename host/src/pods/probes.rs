//! When to probe a container and how many answers flip its state. Pure: takes `now`; the worker asks and reports back.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Probe};

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Kind {
    Startup,
    Readiness,
    Liveness,
}

/// One answer of a container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Answer {
    Well,
    /// What was wrong, as upstream words it: `HTTP probe failed with statuscode: 500`.
    Badly(String),
    /// Why nothing was learnt: it could not be asked. Counts as nothing.
    Unknown(String),
}

/// A container's standing, after enough equal answers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    StartupSucceeded,
    Ready(bool),
    /// The container is to be restarted.
    Failed(Kind),
}

/// The probes of one running instance. Liveness and readiness wait for startup.
#[derive(Clone, Debug)]
pub(crate) struct Probes {
    startup: Option<Schedule>,
    readiness: Option<Schedule>,
    liveness: Option<Schedule>,
}

#[derive(Clone, Debug)]
struct Schedule {
    period: Duration,
    success_threshold: u32,
    failure_threshold: u32,
    due: Timestamp,
    /// An answer is awaited.
    asking: bool,
    /// Equal answers in a row.
    run: u32,
    well: Option<bool>,
    /// The last verdict given.
    verdict: Option<bool>,
}

impl Kind {
    /// As Events name it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }

    pub(crate) fn of(self, container: &Container) -> Option<&Probe> {
        match self {
            Kind::Startup => container.startup_probe.as_ref(),
            Kind::Readiness => container.readiness_probe.as_ref(),
            Kind::Liveness => container.liveness_probe.as_ref(),
        }
    }
}

/// `timeoutSeconds`, at least one second.
pub(crate) fn timeout(probe: &Probe) -> Duration {
    seconds(probe.timeout_seconds, 1)
}

// === impl Probes ===

impl Probes {
    /// `None` when the container declares no probe: such a container costs no timer.
    pub(crate) fn new(container: &Container, started: Timestamp) -> Option<Box<Probes>> {
        let startup = container
            .startup_probe
            .as_ref()
            .map(|probe| Schedule::new(probe, started));
        let readiness = container
            .readiness_probe
            .as_ref()
            .map(|probe| Schedule::new(probe, started));
        let liveness = container
            .liveness_probe
            .as_ref()
            .map(|probe| Schedule::new(probe, started));
        (startup.is_some() || readiness.is_some() || liveness.is_some()).then(|| {
            Box::new(Probes {
                startup,
                readiness,
                liveness,
            })
        })
    }

    /// The probes to ask at `now`; each counts as asked until [`Probes::answered`].
    pub(crate) fn due(&mut self, now: Timestamp) -> Vec<Kind> {
        let mut due = Vec::new();
        for &kind in self.active() {
            if let Some(schedule) = self.schedule(kind)
                && !schedule.asking
                && schedule.due <= now
            {
                schedule.asking = true;
                schedule.due = later(now, schedule.period);
                due.push(kind);
            }
        }
        due
    }

    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        let schedules: [Option<&Schedule>; 2] = match &self.startup {
            Some(startup) => [Some(startup), None],
            None => [self.readiness.as_ref(), self.liveness.as_ref()],
        };
        schedules
            .into_iter()
            .flatten()
            .filter(|schedule| !schedule.asking)
            .map(|schedule| schedule.due)
            .min()
    }

    pub(crate) fn answered(
        &mut self,
        kind: Kind,
        answer: &Answer,
        now: Timestamp,
    ) -> Option<Verdict> {
        let well = match answer {
            Answer::Well => true,
            Answer::Badly(_) => false,
            Answer::Unknown(_) => {
                self.schedule(kind)?.asking = false;
                return None;
            }
        };
        let verdict = self.schedule(kind)?.answered(well)?;
        match (kind, verdict) {
            (Kind::Startup, true) => {
                self.startup = None;
                for schedule in [&mut self.readiness, &mut self.liveness]
                    .into_iter()
                    .flatten()
                {
                    // The others' initial delay counts from the container's start, which is over in most cases.
                    schedule.due = schedule.due.max(now);
                }
                Some(Verdict::StartupSucceeded)
            }
            (Kind::Readiness, ready) => Some(Verdict::Ready(ready)),
            (Kind::Liveness, true) => None,
            (kind, false) => Some(Verdict::Failed(kind)),
        }
    }

    fn active(&self) -> &'static [Kind] {
        match self.startup {
            Some(_) => &[Kind::Startup],
            None => &[Kind::Readiness, Kind::Liveness],
        }
    }

    fn schedule(&mut self, kind: Kind) -> Option<&mut Schedule> {
        match kind {
            Kind::Startup => self.startup.as_mut(),
            Kind::Readiness => self.readiness.as_mut(),
            Kind::Liveness => self.liveness.as_mut(),
        }
    }
}

impl Schedule {
    fn new(probe: &Probe, started: Timestamp) -> Schedule {
        let initial_delay = seconds(probe.initial_delay_seconds, 0);
        Schedule {
            period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
            due: later(started, initial_delay),
            asking: false,
            run: 0,
            well: None,
            verdict: None,
        }
    }

    /// `Some` when this answer makes the standing change.
    fn answered(&mut self, well: bool) -> Option<bool> {
        self.asking = false;
        self.run = if self.well == Some(well) {
            self.run.saturating_add(1)
        } else {
            1
        };
        self.well = Some(well);
        let threshold = if well {
            self.success_threshold
        } else {
            self.failure_threshold
        };
        if self.run < threshold || self.verdict == Some(well) {
            return None;
        }
        self.verdict = Some(well);
        Some(well)
    }
}

fn seconds(value: Option<i32>, default: u64) -> Duration {
    let value = value.and_then(|value| u64::try_from(value).ok());
    Duration::from_secs(match (value, default) {
        (Some(0), default) if default > 0 => default,
        (value, default) => value.unwrap_or(default),
    })
}

fn count(value: Option<i32>, default: u32) -> u32 {
    value
        .and_then(|value| u32::try_from(value).ok())
        .filter(|value| *value > 0)
        .unwrap_or(default)
}

fn later(now: Timestamp, wait: Duration) -> Timestamp {
    now.saturating_add(wait).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    fn container(json: serde_json::Value) -> Container {
        serde_json::from_value(json).expect("the test's container is well formed")
    }

    fn badly() -> Answer {
        Answer::Badly("HTTP probe failed with statuscode: 500".to_owned())
    }

    #[test]
    fn a_container_without_probes_has_no_schedule() {
        assert!(Probes::new(&container(serde_json::json!({"name": "a"})), at(0)).is_none());
    }

    #[test]
    fn readiness_flips_after_its_thresholds() {
        let container = container(serde_json::json!({"name": "a", "readinessProbe":
            {"httpGet": {"port": 80}, "initialDelaySeconds": 5, "periodSeconds": 2, "failureThreshold": 2}}));
        let mut probes = Probes::new(&container, at(0)).expect("a probe");
        assert_eq!(probes.wake_at(), Some(at(5)));
        assert!(probes.due(at(4)).is_empty());
        assert_eq!(probes.due(at(5)), [Kind::Readiness]);
        assert!(probes.due(at(100)).is_empty(), "one question at a time");
        assert_eq!(probes.wake_at(), None);
        assert_eq!(
            probes.answered(Kind::Readiness, &Answer::Well, at(5)),
            Some(Verdict::Ready(true))
        );
        assert_eq!(probes.wake_at(), Some(at(7)));
        assert_eq!(probes.answered(Kind::Readiness, &badly(), at(7)), None);
        assert_eq!(
            probes.answered(Kind::Readiness, &badly(), at(9)),
            Some(Verdict::Ready(false))
        );
        assert_eq!(
            probes.answered(Kind::Readiness, &badly(), at(11)),
            None,
            "said once"
        );
    }

    #[test]
    fn what_could_not_be_asked_counts_as_nothing() {
        let container = container(serde_json::json!({"name": "a", "livenessProbe":
            {"exec": {"command": ["true"]}, "periodSeconds": 1, "failureThreshold": 2}}));
        let mut probes = Probes::new(&container, at(0)).expect("a probe");
        let unknown = Answer::Unknown("32 sessions run on this pod already".to_owned());
        let mut answered = |answer: &Answer, now| {
            assert_eq!(probes.due(at(now)), [Kind::Liveness], "asked on at {now}");
            probes.answered(Kind::Liveness, answer, at(now))
        };
        for now in 0..10 {
            assert_eq!(answered(&unknown, now), None);
        }
        assert_eq!(answered(&badly(), 10), None);
        assert_eq!(answered(&unknown, 11), None, "neither a failure …");
        // … nor the end of a row of them.
        let failed = Some(Verdict::Failed(Kind::Liveness));
        assert_eq!(answered(&badly(), 12), failed);
    }

    #[test]
    fn liveness_waits_for_startup_and_kills_after_three_failures() {
        let container = container(serde_json::json!({"name": "a",
            "startupProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1}}));
        let mut probes = Probes::new(&container, at(0)).expect("probes");
        assert_eq!(probes.due(at(0)), [Kind::Startup]);
        assert_eq!(
            probes.answered(Kind::Startup, &Answer::Well, at(3)),
            Some(Verdict::StartupSucceeded)
        );
        assert_eq!(probes.due(at(3)), [Kind::Liveness]);
        assert_eq!(probes.answered(Kind::Liveness, &badly(), at(3)), None);
        assert_eq!(probes.answered(Kind::Liveness, &badly(), at(4)), None);
        assert_eq!(
            probes.answered(Kind::Liveness, &badly(), at(5)),
            Some(Verdict::Failed(Kind::Liveness))
        );
    }
}

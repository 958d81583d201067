//! When to dial another node, what callers may expect, and whether it counts as reachable. PURE: events and the time in,
//! actions out; no I/O, no clock, no dice of its own.
//!
//! ```text
//!          Wanted             Dialled               Ended: lived long → at once, else backoff
//!   Idle ─────────► Dialling ─────────► Up ────────────────────────────────► Dialling
//!                      │ Failed          │ Suspected: silent; what runs on it goes on, new streams wait for another
//!                      ▼                 ▼
//!                    Down ──backoff──► Dialling (Down to callers)      Recovered: it was only slow
//! ```

use std::time::Duration;

use crate::network::balancer::Millis;

/// Durations the machine decides by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// A dial that takes longer makes the node doubtful: the balancer avoids it, a caller with a choice leaves.
    pub(super) doubt: Duration,
    /// A dial, with its handshakes, has this long.
    pub(super) dial: Duration,
    /// Pause after the first failure; doubles up to `longest`, and is shortened by up to a third at random.
    pub(super) pause: Duration,
    pub(super) longest: Duration,
    /// A connection that ends sooner counts as a failed dial.
    pub(super) stable: Duration,
}

/// Number of a connection: larger is newer.
pub(super) type Generation = u64;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Event {
    /// Somebody wants to send something there.
    Wanted,
    /// Its Node object says where it is, for the first time or differently.
    Addressed,
    /// Its Node object does not say any more.
    Unaddressed,
    Dialled,
    Failed,
    /// Nothing is heard on a connection.
    Suspected(Generation),
    Recovered(Generation),
    /// A connection is gone, or takes no new streams.
    Ended(Generation),
    /// The deadline has passed.
    Time,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Action {
    /// Dial now; an earlier dial, if it still runs, is dropped.
    Dial(Generation),
    /// Drop the dial that runs.
    Abandon,
}

/// What callers see.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Link {
    Idle,
    /// Wait: it may be up any moment.
    Dialling,
    /// As before, but it takes long.
    Doubtful,
    /// Known to be dead, or nowhere.
    Down,
    Up(Generation),
}

pub(super) struct Machine {
    timing: Timing,
    addressed: bool,
    wanted: bool,
    current: Option<(Generation, Millis)>,
    suspect: Option<(Generation, Millis)>,
    dial: Option<Attempt>,
    /// In a row.
    failures: u32,
    retry_at: Millis,
    /// Nothing has worked since the last failure.
    lost: bool,
    newest: Generation,
}

struct Attempt {
    generation: Generation,
    since: Millis,
    doubtful: bool,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            doubt: Duration::from_millis(500),
            dial: Duration::from_secs(3),
            pause: Duration::from_millis(100),
            longest: Duration::from_secs(5),
            stable: Duration::from_secs(1),
        }
    }
}

// === impl Machine ===

impl Machine {
    pub(super) fn new(timing: Timing) -> Self {
        Self {
            timing,
            addressed: false,
            wanted: false,
            current: None,
            suspect: None,
            dial: None,
            failures: 0,
            retry_at: 0,
            lost: false,
            newest: 0,
        }
    }

    pub(super) fn link(&self) -> Link {
        if let Some((generation, _)) = self.current {
            return Link::Up(generation);
        }
        if !self.addressed || self.failures > 0 {
            return Link::Down;
        }
        match &self.dial {
            Some(dial) if dial.doubtful => Link::Doubtful,
            Some(_) => Link::Dialling,
            None if self.lost => Link::Down,
            None => Link::Idle,
        }
    }

    /// Whether the balancer should send anything there.
    pub(super) fn is_reachable(&self) -> bool {
        self.current.is_some() || (self.addressed && !self.lost)
    }

    /// When [`Event::Time`] is due.
    pub(super) fn deadline(&self) -> Option<Millis> {
        match &self.dial {
            Some(dial) if dial.doubtful => Some(after(dial.since, self.timing.dial)),
            Some(dial) => Some(after(dial.since, self.timing.doubt.min(self.timing.dial))),
            None if self.may_dial() => Some(self.retry_at),
            None => None,
        }
    }

    /// `below(n)` draws from `0..n`.
    pub(super) fn on(
        &mut self,
        event: Event,
        now: Millis,
        below: impl FnMut(u64) -> u64,
    ) -> Option<Action> {
        let running = self.dial.is_some() && !matches!(event, Event::Dialled | Event::Failed);
        self.take(event, now, below);
        if self.dial.is_none() && self.may_dial() && now >= self.retry_at {
            self.newest += 1;
            self.dial = Some(Attempt {
                generation: self.newest,
                since: now,
                doubtful: false,
            });
            return Some(Action::Dial(self.newest));
        }
        (running && self.dial.is_none()).then_some(Action::Abandon)
    }

    fn may_dial(&self) -> bool {
        self.wanted && self.addressed && self.current.is_none()
    }

    fn take(&mut self, event: Event, now: Millis, below: impl FnMut(u64) -> u64) {
        match event {
            Event::Wanted => self.wanted = true,
            Event::Addressed => {
                self.addressed = true;
                self.failures = 0;
                self.retry_at = now;
                self.dial = None;
            }
            Event::Unaddressed => {
                self.addressed = false;
                self.dial = None;
            }
            Event::Dialled => {
                if let Some(dial) = self.dial.take() {
                    self.current = Some((dial.generation, now));
                    self.suspect = None;
                    self.lost = false;
                }
            }
            Event::Failed if self.dial.is_some() => self.failed(now, below),
            Event::Failed => {}
            Event::Suspected(generation) => {
                if let Some(current) = self.current.take_if(|(g, _)| *g == generation) {
                    self.suspect = Some(current);
                    self.lost = true;
                    self.failures = 0;
                    self.retry_at = now;
                }
            }
            Event::Recovered(generation) => {
                let back = self.suspect.take_if(|(g, _)| *g == generation);
                if back.is_some() && self.current.is_none() {
                    self.current = back;
                    self.dial = None;
                    self.failures = 0;
                    self.lost = false;
                }
            }
            Event::Ended(generation) => self.ended(generation, now, below),
            Event::Time => {
                let Some(dial) = &mut self.dial else { return };
                if now >= after(dial.since, self.timing.dial) {
                    self.failed(now, below);
                } else if now >= after(dial.since, self.timing.doubt) {
                    dial.doubtful = true;
                    self.lost = true;
                }
            }
        }
    }

    fn ended(&mut self, generation: Generation, now: Millis, below: impl FnMut(u64) -> u64) {
        self.suspect.take_if(|(g, _)| *g == generation);
        let Some((_, since)) = self.current.take_if(|(g, _)| *g == generation) else {
            return;
        };
        if now >= after(since, self.timing.stable) {
            self.lost = true;
            self.failures = 0;
            self.retry_at = now;
        } else {
            self.failed(now, below);
        }
    }

    fn failed(&mut self, now: Millis, mut below: impl FnMut(u64) -> u64) {
        self.dial = None;
        self.lost = true;
        let pause = self
            .timing
            .pause
            .saturating_mul(1 << self.failures.min(16))
            .min(self.timing.longest);
        self.failures = self.failures.saturating_add(1);
        let pause = millis(pause);
        self.retry_at = now.saturating_add(pause - below(pause / 3 + 1));
    }
}

fn after(since: Millis, duration: Duration) -> Millis {
    since.saturating_add(millis(duration))
}

pub(super) fn millis(duration: Duration) -> Millis {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine, its time, and dice that always show 0.
    struct Bench(Machine, Millis);

    impl Bench {
        fn new() -> Self {
            let mut bench = Self(Machine::new(Timing::default()), 0);
            assert_eq!(bench.on(Event::Addressed), None, "nobody wants it yet");
            bench
        }

        fn on(&mut self, event: Event) -> Option<Action> {
            self.0.on(event, self.1, |_| 0)
        }

        fn at(&mut self, now: Millis, event: Event) -> Option<Action> {
            self.1 = now;
            self.on(event)
        }

        fn up() -> Self {
            let mut bench = Self::new();
            assert_eq!(bench.on(Event::Wanted), Some(Action::Dial(1)));
            assert_eq!(bench.on(Event::Dialled), None);
            assert_eq!(bench.0.link(), Link::Up(1));
            bench
        }
    }

    #[test]
    fn a_node_is_dialled_when_somebody_wants_it() {
        let mut bench = Bench::new();
        assert_eq!(bench.0.link(), Link::Idle);
        assert!(bench.0.is_reachable());
        assert_eq!(bench.on(Event::Wanted), Some(Action::Dial(1)));
        assert_eq!(bench.on(Event::Wanted), None, "one dial at a time");
        assert_eq!(bench.0.link(), Link::Dialling);
        bench.on(Event::Dialled);
        assert_eq!(bench.0.link(), Link::Up(1));
        assert_eq!(bench.0.deadline(), None);
    }

    #[test]
    fn failures_are_followed_by_growing_pauses() {
        let mut bench = Bench::new();
        bench.on(Event::Wanted);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            bench.on(Event::Failed);
            assert!(!bench.0.is_reachable());
            assert_eq!(bench.0.link(), Link::Down);
            assert_eq!(bench.on(Event::Wanted), None, "the pause holds");
            let retry = bench.0.deadline().unwrap();
            pauses.push(retry - bench.1);
            assert!(matches!(
                bench.at(retry, Event::Time),
                Some(Action::Dial(_))
            ));
            assert_eq!(
                bench.0.link(),
                Link::Down,
                "known to be dead until it answers"
            );
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        bench.on(Event::Dialled);
        assert!(bench.0.is_reachable());
    }

    #[test]
    fn a_slow_dial_is_doubted_then_given_up() {
        let mut bench = Bench::new();
        bench.on(Event::Wanted);
        assert_eq!(bench.0.deadline(), Some(500));
        assert_eq!(bench.at(500, Event::Time), None);
        assert_eq!(bench.0.link(), Link::Doubtful);
        assert!(!bench.0.is_reachable());
        assert_eq!(bench.0.deadline(), Some(3000));
        assert_eq!(bench.at(3000, Event::Time), Some(Action::Abandon));
        assert_eq!(bench.0.link(), Link::Down);
        assert_eq!(bench.at(3100, Event::Time), Some(Action::Dial(2)));
    }

    #[test]
    fn a_lost_connection_is_replaced_at_once() {
        let mut bench = Bench::up();
        assert_eq!(bench.at(5000, Event::Ended(1)), Some(Action::Dial(2)));
        assert!(!bench.0.is_reachable());
        assert_eq!(bench.0.link(), Link::Dialling, "callers wait for it");
    }

    #[test]
    fn one_that_ends_at_once_is_not() {
        let mut bench = Bench::up();
        assert_eq!(bench.at(10, Event::Ended(1)), None);
        assert_eq!(bench.0.deadline(), Some(110));
    }

    #[test]
    fn a_silent_connection_comes_back_or_is_replaced() {
        let mut bench = Bench::up();
        assert_eq!(bench.at(5000, Event::Suspected(1)), Some(Action::Dial(2)));
        assert!(!bench.0.is_reachable());
        assert_eq!(bench.on(Event::Recovered(1)), Some(Action::Abandon));
        assert_eq!(bench.0.link(), Link::Up(1));
        assert!(bench.0.is_reachable());

        assert_eq!(bench.at(9000, Event::Suspected(1)), Some(Action::Dial(3)));
        bench.on(Event::Dialled);
        assert_eq!(bench.0.link(), Link::Up(3));
        assert_eq!(bench.on(Event::Recovered(1)), None, "too late");
        assert_eq!(bench.on(Event::Ended(1)), None, "nobody cares");
        assert_eq!(bench.0.link(), Link::Up(3));
    }

    #[test]
    fn a_new_address_is_tried_at_once() {
        let mut bench = Bench::new();
        bench.on(Event::Wanted);
        bench.on(Event::Failed);
        assert_eq!(bench.on(Event::Addressed), Some(Action::Dial(2)));
        assert_eq!(
            bench.on(Event::Addressed),
            Some(Action::Dial(3)),
            "even while dialling"
        );
        assert_eq!(bench.on(Event::Unaddressed), Some(Action::Abandon));
        assert_eq!(bench.0.link(), Link::Down);
    }
}

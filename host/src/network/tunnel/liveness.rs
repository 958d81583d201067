//! Is the other end of a connection still there? PURE: told at every tick what was heard, says when to ping and what to
//! think. Time in which this process itself was asleep does not count against the other end.

use std::time::Duration;

use super::machine::millis;
use crate::network::balancer::Millis;

/// Durations of keep-alive. With the defaults a silent peer is suspected 600 to 800 ms after it was last heard.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepAlive {
    /// How often a connection in use is looked at.
    pub(super) tick: Duration,
    /// Ping when nothing was heard for this long.
    pub(super) probe: Duration,
    /// A ping is unanswered for this long: suspect. New streams go elsewhere, the node counts as unreachable.
    pub(super) suspect: Duration,
    /// A ping is unanswered for this long: dead. Every stream is reset.
    pub(super) dead: Duration,
    /// Without a stream for this long a connection is idle.
    pub(super) rest: Duration,
    /// How often an idle connection is pinged.
    pub(super) idle: Duration,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Sign {
    Nothing,
    /// Send one now.
    Ping,
    Suspected,
    Recovered,
    Dead,
}

/// What was seen since the last tick.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    /// Any byte came in.
    pub(super) heard: bool,
    /// Streams are open, or were opened.
    pub(super) used: bool,
}

pub(super) struct Liveness {
    timing: KeepAlive,
    last: Millis,
    /// Since anything was heard.
    silent: Millis,
    /// Since the ping that nothing has followed.
    unanswered: Option<Millis>,
    unused: Millis,
    suspected: bool,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(100),
            probe: Duration::from_millis(200),
            suspect: Duration::from_millis(400),
            dead: Duration::from_millis(2_000),
            rest: Duration::from_secs(5),
            idle: Duration::from_secs(10),
        }
    }
}

// === impl Liveness ===

impl Liveness {
    pub(super) fn new(timing: KeepAlive, now: Millis) -> Self {
        Self {
            timing,
            last: now,
            silent: 0,
            unanswered: None,
            unused: 0,
            suspected: false,
        }
    }

    /// Nobody uses the connection: the next tick may be far.
    pub(super) fn is_resting(&self) -> bool {
        self.unused >= millis(self.timing.rest) && self.unanswered.is_none()
    }

    /// How long to sleep.
    pub(super) fn pause(&self) -> Duration {
        if self.is_resting() {
            self.timing.idle
        } else {
            self.timing.tick
        }
    }

    pub(super) fn tick(&mut self, now: Millis, seen: Seen) -> Sign {
        let passed = now.saturating_sub(self.last);
        // Asleep for longer than asked: the rest of it says nothing about the other end.
        let counted = passed.min(2 * millis(self.pause()));
        self.last = now;
        self.unused = if seen.used { 0 } else { self.unused + passed };
        if seen.heard {
            self.silent = 0;
            self.unanswered = None;
            return if std::mem::take(&mut self.suspected) {
                Sign::Recovered
            } else {
                Sign::Nothing
            };
        }
        self.silent += counted;
        let Some(unanswered) = &mut self.unanswered else {
            if self.silent < millis(self.timing.probe) {
                return Sign::Nothing;
            }
            self.unanswered = Some(0);
            return Sign::Ping;
        };
        *unanswered += counted.min(2 * millis(self.timing.tick));
        if *unanswered >= millis(self.timing.dead) {
            return Sign::Dead;
        }
        if !self.suspected && *unanswered >= millis(self.timing.suspect) {
            self.suspected = true;
            return Sign::Suspected;
        }
        Sign::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USED: Seen = Seen {
        heard: false,
        used: true,
    };
    const HEARD: Seen = Seen {
        heard: true,
        used: true,
    };

    #[test]
    fn a_silent_peer_is_suspected_within_a_second_and_dead_after_three() {
        let mut liveness = Liveness::new(KeepAlive::default(), 0);
        let mut signs = Vec::new();
        for now in (100..=3_000).step_by(100) {
            let sign = liveness.tick(now, USED);
            if sign != Sign::Nothing {
                signs.push((now, sign));
            }
            if sign == Sign::Dead {
                break;
            }
        }
        let expected = [
            (200, Sign::Ping),
            (600, Sign::Suspected),
            (2_200, Sign::Dead),
        ];
        assert_eq!(signs, expected);
    }

    #[test]
    fn one_that_answers_is_left_alone_and_pinged_when_it_says_nothing_else() {
        let mut liveness = Liveness::new(KeepAlive::default(), 0);
        for round in 0..10 {
            let now = round * 300;
            assert_eq!(liveness.tick(now + 100, USED), Sign::Nothing);
            assert_eq!(liveness.tick(now + 200, USED), Sign::Ping);
            assert_eq!(liveness.tick(now + 300, HEARD), Sign::Nothing);
        }
    }

    #[test]
    fn a_slow_one_recovers() {
        let mut liveness = Liveness::new(KeepAlive::default(), 0);
        for now in [100, 200, 300, 400, 500] {
            liveness.tick(now, USED);
        }
        assert_eq!(liveness.tick(600, USED), Sign::Suspected);
        assert_eq!(liveness.tick(700, HEARD), Sign::Recovered);
        assert_eq!(liveness.tick(800, HEARD), Sign::Nothing);
    }

    #[test]
    fn a_process_that_slept_accuses_nobody() {
        let mut liveness = Liveness::new(KeepAlive::default(), 0);
        assert_eq!(liveness.tick(60_000, USED), Sign::Ping);
        assert_eq!(liveness.tick(120_000, USED), Sign::Nothing);
    }

    #[test]
    fn an_idle_connection_is_pinged_slowly_and_watched_until_it_answers() {
        let mut liveness = Liveness::new(KeepAlive::default(), 0);
        let unused = Seen::default();
        for now in (100..=5_000).step_by(100) {
            liveness.tick(
                now,
                Seen {
                    heard: true,
                    ..unused
                },
            );
        }
        assert!(liveness.is_resting());
        assert_eq!(liveness.pause(), Duration::from_secs(10));
        assert_eq!(liveness.tick(15_000, unused), Sign::Ping);
        assert_eq!(liveness.pause(), Duration::from_millis(100));
        assert_eq!(
            liveness.tick(
                15_100,
                Seen {
                    heard: true,
                    ..unused
                }
            ),
            Sign::Nothing
        );
        assert!(liveness.is_resting());
        // Somebody uses it: looked at at once.
        assert_eq!(liveness.tick(20_000, USED), Sign::Ping);
        assert!(!liveness.is_resting());
    }
}

//! How long to wait before trying again. Pure: takes `now`, never sleeps.

use std::time::Duration;

use jiff::Timestamp;

/// Doubles from `initial` to `max`; forgets when the last try was more than `2 * max` ago.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Backoff {
    initial: Duration,
    max: Duration,
    /// What the next failure waits; `None` before the first.
    delay: Option<Duration>,
    last: Timestamp,
}

impl Backoff {
    /// Restarts of a container and pulls of an image: 10 s, doubling to 5 min, forgotten after 10 min.
    pub(crate) const fn slow() -> Backoff {
        Backoff::new(Duration::from_secs(10), Duration::from_secs(300))
    }

    /// Things that may appear any moment (a ConfigMap, a volume): 1 s, doubling to 30 s.
    pub(crate) const fn quick() -> Backoff {
        Backoff::new(Duration::from_secs(1), Duration::from_secs(30))
    }

    const fn new(initial: Duration, max: Duration) -> Backoff {
        Backoff {
            initial,
            max,
            delay: None,
            last: Timestamp::UNIX_EPOCH,
        }
    }

    /// The wait after a failure at `now`, when every failure waits: 10 s, 20 s, 40 s …
    pub(crate) fn failed(&mut self, now: Timestamp) -> Duration {
        let wait = self.current(now).unwrap_or(self.initial);
        self.tried(wait, now);
        wait
    }

    /// The wait after an exit at `now`, when the first restart is free: 0, 10 s, 20 s …
    pub(crate) fn exited(&mut self, now: Timestamp) -> Duration {
        match self.current(now) {
            None => {
                self.delay = Some(self.initial);
                self.last = now;
                Duration::ZERO
            }
            Some(wait) => {
                self.tried(wait, now);
                wait
            }
        }
    }

    pub(crate) fn reset(&mut self) {
        self.delay = None;
    }

    /// `None` when there was no failure that still counts.
    fn current(&self, now: Timestamp) -> Option<Duration> {
        let delay = self.delay?;
        let quiet = now.duration_since(self.last).unsigned_abs();
        (now < self.last || quiet <= self.max * 2).then_some(delay)
    }

    /// The try happens after `wait`; only then does the quiet time begin.
    fn tried(&mut self, wait: Duration, now: Timestamp) {
        self.delay = Some((wait * 2).min(self.max));
        self.last = now.saturating_add(wait).unwrap_or(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).expect("in range")
    }

    #[test]
    fn restarts_wait_nothing_then_ten_seconds_doubling_to_five_minutes() {
        let mut backoff = Backoff::slow();
        let mut now = 1_000;
        let waits: Vec<u64> = (0..8)
            .map(|_| {
                let wait = backoff.exited(at(now)).as_secs();
                now += i64::try_from(wait).expect("small") + 1;
                wait
            })
            .collect();
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn pulls_wait_from_the_first_failure() {
        let mut backoff = Backoff::slow();
        assert_eq!(backoff.failed(at(0)).as_secs(), 10);
        assert_eq!(backoff.failed(at(11)).as_secs(), 20);
    }

    #[test]
    fn ten_quiet_minutes_are_forgiven() {
        let mut backoff = Backoff::slow();
        backoff.exited(at(0));
        assert_eq!(
            backoff.exited(at(600)).as_secs(),
            10,
            "600 s is not yet over ten minutes"
        );
        // That restart happens at 610.
        assert_eq!(backoff.exited(at(610 + 601)).as_secs(), 0);
    }
}

//! How often a server is asked whether it is fit that answers badly or not at all, though its connection lives, and how often
//! the others are. Pure: no I/O, no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A request without an answer for so long makes its server doubtful, and again after as long.
pub(super) const SLOW: Duration = Duration::from_secs(3);
/// For a server's word that it is ready, connecting included.
pub(super) const WORD: Duration = Duration::from_secs(3);
/// A server that says it is ready is not asked again for so long, …
const REST: Duration = Duration::from_secs(2);
/// … nor is anybody when nobody was ready: twice as long every time, up to this.
const LONGEST: Duration = Duration::from_secs(16);

#[derive(Debug, Default)]
pub(super) struct Doubt {
    not_before: Option<Instant>,
    in_vain: u32,
}

// === impl Doubt ===

impl Doubt {
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|at| at <= now)
    }

    /// There is a server that is ready: the present one, or one that was moved to.
    pub(super) fn settle(&mut self, now: Instant) {
        self.in_vain = 0;
        self.not_before = Some(now + REST);
    }

    /// Nobody is ready. When what all servers stand on is away, moving helps nobody, and asking costs them all.
    pub(super) fn give_up(&mut self, now: Instant) {
        let pause = REST.saturating_mul(1 << self.in_vain.min(8)).min(LONGEST);
        self.in_vain = self.in_vain.saturating_add(1);
        self.not_before = Some(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn nobody_is_asked_too_often_and_everybody_again_in_time() {
        let start = Instant::now();
        let mut doubt = Doubt::default();
        assert!(doubt.may_ask(start), "the first time at once");
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..40 {
            doubt.give_up(now);
            let asked = now;
            while !doubt.may_ask(now) {
                now += Duration::from_secs(1);
            }
            pauses.push((now - asked).as_secs());
        }
        assert_eq!(pauses[..5], [2, 4, 8, 16, 16]);
        assert_eq!(pauses[39], 16, "well before a node counts as lost");
        doubt.settle(now);
        assert!(!doubt.may_ask(now) && doubt.may_ask(now + REST));
        doubt.give_up(now);
        assert!(doubt.may_ask(now + REST), "it begins anew");
    }
}

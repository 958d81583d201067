//! When which revision was committed: what retention and expiry are decided by. Times are milliseconds since the Unix
//! epoch as the store's opener gave it (0 in memory), running on tokio's clock.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::store::Revision;

/// Milliseconds; see the module.
pub type Millis = u64;

/// At `at`, `revision` was the newest.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Mark {
    pub at: Millis,
    pub revision: Revision,
}

#[derive(Debug)]
pub(super) struct Clock {
    base: Millis,
    started: Instant,
}

/// A coarse history of revision over time: one mark per `every`, and the last one.
#[derive(Debug)]
pub(super) struct Marks {
    every: Millis,
    keep: Millis,
    old: VecDeque<Mark>,
    last: Option<Mark>,
}

// === impl Clock ===

impl Clock {
    pub(super) fn starting_at(base: Millis) -> Self {
        Self {
            base,
            started: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Millis {
        self.base + millis(self.started.elapsed())
    }
}

pub(super) fn millis(duration: Duration) -> Millis {
    Millis::try_from(duration.as_millis()).unwrap_or(Millis::MAX)
}

// === impl Marks ===

impl Marks {
    pub(super) fn new(every: Duration, keep: Duration, known: Vec<Mark>) -> Self {
        let mut old = VecDeque::from(known);
        let last = old.pop_back();
        Self {
            every: millis(every),
            keep: millis(keep),
            old,
            last,
        }
    }

    /// The mark that the next publication, at `at`, will settle; a durable store writes it down with that batch.
    pub(super) fn due(&self, at: Millis) -> Option<Mark> {
        let last = self.last?;
        // What is followed by a pause is kept too: else what was written before it would seem as young as what ended it.
        let settled = at >= last.at + self.every
            || self.old.back().is_none_or(|m| last.at >= m.at + self.every);
        (settled && at > last.at).then_some(last)
    }

    /// Notes that `revision` was published at `at`, and drops marks nobody will ask for.
    pub(super) fn note(&mut self, at: Millis, revision: Revision) {
        if let Some(mark) = self.due(at) {
            self.old.push_back(mark);
        }
        self.last = Some(Mark { at, revision });
        while self.old.get(1).is_some_and(|m| m.at + self.keep < at) {
            self.old.pop_front();
        }
    }

    /// The oldest mark still kept.
    pub(super) fn oldest(&self) -> Option<Mark> {
        self.old.front().copied().or(self.last)
    }

    /// A revision that was reached at or before `at`, at most `every` behind the newest such; 0 when none is known.
    pub(super) fn revision_at(&self, at: Millis) -> Revision {
        match self.last {
            Some(last) if last.at <= at => last.revision,
            _ => {
                let after = self.old.partition_point(|m| m.at <= at);
                let before = after.checked_sub(1).and_then(|i| self.old.get(i));
                before.map_or(0, |m| m.revision)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_never_dated_earlier_than_it_was_committed() {
        let mut marks = Marks::new(Duration::from_secs(5), Duration::from_secs(60), Vec::new());
        let mut published = Vec::new();
        for (revision, at) in (1..400u64).map(|r| (r, r * 700)) {
            marks.note(at, revision);
            published.push((at, revision));
            for ask in [at, at.saturating_sub(3_000), at.saturating_sub(30_000)] {
                let truth = published.iter().rev().find(|(t, _)| *t <= ask);
                let truth = truth.map_or(0, |(_, r)| *r);
                let said = marks.revision_at(ask);
                assert!(said <= truth, "{said} was not there at {ask}");
                assert!(
                    truth - said <= 5_700 / 700 + 1,
                    "{said} is too far behind {truth}"
                );
            }
        }
        assert!(marks.old.len() < 20, "old marks are dropped");
    }

    #[test]
    fn a_pause_is_not_forgotten_by_what_ends_it() {
        let mut marks = Marks::new(Duration::from_secs(5), Duration::from_secs(60), Vec::new());
        marks.note(0, 1);
        marks.note(300, 2);
        marks.note(60_000, 3);
        marks.note(60_100, 4);
        assert_eq!(marks.revision_at(20_000), 2);
    }

    #[test]
    fn a_quiet_store_still_grows_older() {
        let mut marks = Marks::new(Duration::from_secs(5), Duration::from_secs(60), Vec::new());
        marks.note(1_000, 1);
        marks.note(1_001, 2);
        assert_eq!(marks.revision_at(1_000), 1);
        assert_eq!(marks.revision_at(900_000), 2);
    }
}

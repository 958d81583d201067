//! What was decided by each NetworkPolicy: counters, and when a denial was last told.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rules::Direction;
use crate::network::balancer::Millis;

/// Denials of one policy are logged once in this time.
const PAUSE: Millis = 1_000;

/// Of one policy; they outlive its changes.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    ingress: Pair,
    egress: Pair,
    /// When a denial was logged last, plus one; 0 is never.
    logged: AtomicU64,
    unlogged: AtomicU64,
}

#[derive(Debug, Default)]
struct Pair {
    allowed: AtomicU64,
    denied: AtomicU64,
}

/// A copy of one policy's counters for one direction.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Decisions {
    pub direction: Direction,
    pub namespace: String,
    pub policy: String,
    /// Connections, requests and flows of datagrams that it was the first to allow.
    pub allowed: u64,
    /// Those that no policy of the pod allowed, where this is the first of them by name.
    pub denied: u64,
}

/// Prometheus' text format 0.0.4.
pub(crate) fn prometheus(decisions: &[Decisions]) -> String {
    const NAME: &str = "coracle_networkpolicy_decisions_total";
    let mut out = format!(
        "# HELP {NAME} Connections, requests and flows of datagrams that NetworkPolicies decided about\n\
         # TYPE {NAME} counter\n"
    );
    for one in decisions {
        let (namespace, policy) = (&one.namespace, &one.policy);
        let direction = one.direction.as_str();
        for (verdict, count) in [("allowed", one.allowed), ("denied", one.denied)] {
            // Writing into a String cannot fail.
            let _ = writeln!(
                out,
                "{NAME}{{namespace=\"{namespace}\",policy=\"{policy}\",direction=\"{direction}\",verdict=\"{verdict}\"}} {count}"
            );
        }
    }
    out
}

// === impl Counts ===

impl Counts {
    fn of(&self, direction: Direction) -> &Pair {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }

    pub(crate) fn allowed(&self, direction: Direction) {
        self.of(direction).allowed.fetch_add(1, Ordering::Relaxed);
    }

    /// How many went untold since the last one that was told; `None` when this is to go untold as well.
    pub(crate) fn denied(&self, direction: Direction, now: Millis) -> Option<u64> {
        self.of(direction).denied.fetch_add(1, Ordering::Relaxed);
        let last = self.logged.load(Ordering::Relaxed);
        let due = last == 0 || now.saturating_sub(last - 1) >= PAUSE;
        let ours = due
            && self
                .logged
                .compare_exchange(last, now + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if ours {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Allowed and denied.
    pub(crate) fn read(&self, direction: Direction) -> (u64, u64) {
        let pair = self.of(direction);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (read(&pair.allowed), read(&pair.denied))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn denials_are_told_once_in_a_while_and_all_counted() {
        let counts = Counts::default();
        assert_eq!(counts.denied(Direction::Egress, 0), Some(0));
        assert_eq!(counts.denied(Direction::Egress, 10), None);
        assert_eq!(counts.denied(Direction::Ingress, 999), None);
        assert_eq!(counts.denied(Direction::Egress, 1_000), Some(2));
        counts.allowed(Direction::Ingress);
        assert_eq!(counts.read(Direction::Egress), (0, 3));
        assert_eq!(counts.read(Direction::Ingress), (1, 1));
        let text = prometheus(&[Decisions {
            direction: Direction::Ingress,
            namespace: "shop".to_owned(),
            policy: "only-web".to_owned(),
            allowed: 1,
            denied: 2,
        }]);
        let line =
            "{namespace=\"shop\",policy=\"only-web\",direction=\"ingress\",verdict=\"denied\"} 2\n";
        assert!(text.ends_with(line), "{text}");
    }
}

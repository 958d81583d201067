//! How one endpoint address is doing: what is in flight, and whether it is passed over for a while. PURE: takes the time.
//!
//! Two things eject an endpoint: refusing a connection (nobody was there; short, doubling), and answering badly several
//! times in a row (somebody was there and is not well; longer, and only a bounded share of a Service's endpoints). Either
//! way it comes back by itself, and a good answer forgives everything. What an endpoint refused because its node could not be
//! reached is forgotten when the node can.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use super::Millis;

/// How long an endpoint that refused is passed over: 500 ms, doubling with each refusal in a row up to 8 s.
const REFUSED: Pause = Pause {
    first: Duration::from_millis(500),
    doublings: 4,
};
/// How long one that answers badly is: 5 s, doubling up to 80 s.
const FAILING: Pause = Pause {
    first: Duration::from_secs(5),
    doublings: 4,
};
/// Bad answers in a row until then.
const FAILURES: u32 = 5;

struct Pause {
    first: Duration,
    doublings: u32,
}

/// How busy one endpoint address is; shared by every Service that has it, and kept when tables are rebuilt.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicU32,
    /// In a row, as all of these.
    refusals: AtomicU32,
    failures: AtomicU32,
    /// Times it was ejected for failures since it last answered well.
    ejections: AtomicU32,
    refused_until: AtomicU64,
    failing_until: AtomicU64,
    /// How often its node had come back when this was last looked at.
    returns: AtomicU32,
}

/// One thing in flight to an endpoint; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Load>);

// === impl Pause ===

impl Pause {
    /// The end of the pause after `times` earlier ones.
    fn after(&self, times: u32, now: Millis) -> Millis {
        let pause = self.first * 2_u32.pow(times.min(self.doublings));
        now.saturating_add(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX))
    }
}

// === impl Load ===

impl Load {
    pub(crate) fn get(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(crate) fn is_ejected(&self, now: Millis) -> bool {
        let until = |mark: &AtomicU64| mark.load(Ordering::Relaxed) > now;
        until(&self.refused_until) || until(&self.failing_until)
    }

    /// Its node has come back this often: refusals of before say nothing about it now.
    pub(super) fn node_returned(&self, returns: u32) {
        // Written only when it changed: the line is shared by all processors.
        if self.returns.load(Ordering::Relaxed) != returns {
            self.returns.store(returns, Ordering::Relaxed);
            self.refusals.store(0, Ordering::Relaxed);
            self.refused_until.store(0, Ordering::Relaxed);
        }
    }

    /// The endpoint refused a connection.
    pub(crate) fn refused(&self, now: Millis) {
        let times = self.refusals.fetch_add(1, Ordering::Relaxed);
        self.refused_until
            .fetch_max(REFUSED.after(times, now), Ordering::Relaxed);
    }

    /// The endpoint answered.
    pub(crate) fn succeeded(&self) {
        let spotless = [&self.refusals, &self.failures, &self.ejections]
            .iter()
            .all(|count| count.load(Ordering::Relaxed) == 0);
        // Written only when there is something to forgive: the line is shared by all processors.
        if !spotless {
            self.refusals.store(0, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
            self.ejections.store(0, Ordering::Relaxed);
            self.refused_until.store(0, Ordering::Relaxed);
            self.failing_until.store(0, Ordering::Relaxed);
        }
    }

    /// The endpoint took something and answered badly. True when that was once too often: it should be ejected, if its
    /// Service can do without.
    pub(super) fn failed(&self) -> bool {
        self.refusals.store(0, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES
    }

    /// Passed over for failures. It begins with a clean count when it comes back.
    pub(super) fn eject_failing(&self, now: Millis) {
        self.failures.store(0, Ordering::Relaxed);
        let times = self.ejections.fetch_add(1, Ordering::Relaxed);
        self.failing_until
            .fetch_max(FAILING.after(times, now), Ordering::Relaxed);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

//! Watches one connection: notes that something comes in, counts its streams, pings when `liveness` says so. Acts on
//! nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Waker};

use h2::{Ping, PingPong};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::liveness::{KeepAlive, Liveness, Seen, Sign};
use super::machine::millis;

/// What happens on one connection.
#[derive(Default)]
pub(super) struct Activity {
    heard: AtomicBool,
    used: AtomicBool,
    streams: AtomicUsize,
    /// The watch sleeps long: whoever opens a stream wakes it.
    resting: AtomicBool,
    wake: Notify,
}

/// One open stream of a connection.
pub(super) struct InUse(Arc<Activity>);

/// The watch over one connection.
pub(super) struct Keeper {
    activity: Arc<Activity>,
    ping: Option<PingPong>,
    liveness: Liveness,
    epoch: Instant,
    next: Instant,
}

// === impl Activity ===

impl Activity {
    /// Counts a stream, or `None` when there are `limit`.
    pub(super) fn begin(self: &Arc<Self>, limit: usize) -> Option<InUse> {
        let before = self.streams.fetch_add(1, Ordering::Relaxed);
        let stream = InUse(Arc::clone(self));
        if before >= limit {
            return None;
        }
        self.used.store(true, Ordering::SeqCst);
        if self.resting.swap(false, Ordering::SeqCst) {
            self.wake.notify_one();
        }
        Some(stream)
    }

    /// Something came in.
    pub(super) fn hear(&self) {
        if !self.heard.load(Ordering::Relaxed) {
            self.heard.store(true, Ordering::Relaxed);
        }
    }

    /// Several streams are open.
    pub(super) fn is_busy(&self) -> bool {
        self.streams.load(Ordering::Relaxed) > 1
    }

    fn seen(&self) -> Seen {
        let used = self.used.swap(false, Ordering::SeqCst);
        Seen {
            heard: self.heard.swap(false, Ordering::Relaxed),
            used: used || self.streams.load(Ordering::Relaxed) > 0,
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(activity: Arc<Activity>, ping: Option<PingPong>, timing: KeepAlive) -> Self {
        let epoch = Instant::now();
        Self {
            activity,
            ping,
            liveness: Liveness::new(timing, 0),
            epoch,
            next: epoch + timing.tick,
        }
    }

    /// The next thing worth knowing: suspected, recovered, dead. Cancel by dropping: nothing is lost.
    pub(super) async fn next(&mut self) -> Sign {
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(self.next) => {}
                () = self.activity.wake.notified() => {}
            }
            let now = Instant::now();
            let seen = self.activity.seen();
            let sign = self
                .liveness
                .tick(millis(now.duration_since(self.epoch)), seen);
            self.collect();
            if sign == Sign::Ping
                && let Some(ping) = &mut self.ping
            {
                // One that is still under way says the same. A connection that has ended says so itself.
                drop(ping.send_ping(Ping::opaque()));
            }
            let resting = self.liveness.is_resting();
            self.activity.resting.store(resting, Ordering::SeqCst);
            let awake = resting && self.activity.used.load(Ordering::SeqCst);
            self.next = if awake {
                now
            } else {
                now + self.liveness.pause()
            };
            if matches!(sign, Sign::Suspected | Sign::Recovered | Sign::Dead) {
                return sign;
            }
        }
    }

    /// Returns when the other end is dead.
    pub(super) async fn dead(&mut self) {
        while self.next().await != Sign::Dead {}
    }

    /// Takes an answer to a ping, so that the next can be sent; that it came was heard already.
    fn collect(&mut self) {
        if let Some(ping) = &mut self.ping {
            let mut cx = Context::from_waker(Waker::noop());
            drop(ping.poll_pong(&mut cx));
        }
    }
}

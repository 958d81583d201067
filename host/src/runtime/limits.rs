//! What a workload may use and has used: memory over all its stores, CPU over all its polls.
//!
//! CPU is the time of the polling thread while a guest's future is polled: what the host does on the guest's behalf counts
//! too; what it hands to other tasks (sockets, disk) does not. A workload over its quota is not polled until its next period.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::{Instant, Sleep};
use wasmtime::ResourceLimiter;

use super::engine::Tick;
use super::{Limits, Usage};

/// The kernel's CFS uses the same period for cgroups.
const PERIOD: Duration = Duration::from_millis(100);
/// Room a table needs per element.
const ELEMENT: u64 = size_of::<usize>() as u64;

/// The account of one workload, shared by its stores, and who was denied something.
pub(super) struct Meter {
    account: Arc<Account>,
    out_of_memory: AtomicBool,
}

/// What is used, by a workload and the processes beside it.
struct Account {
    tick: Arc<Tick>,
    memory_limit: u64,
    memory: AtomicU64,
    cpu_nanos: AtomicU64,
    // Locked for a few instructions around each poll of a workload that has a quota.
    quota: Option<Mutex<Bucket>>,
    throttled: AtomicU64,
    throttled_nanos: AtomicU64,
}

/// CPU time left in the current period; debt carries over. With 500 millicores a period holds 50 ms: a poll that used
/// 60 ms leaves −10 ms, so the next period starts with 40 ms.
#[derive(Debug, Eq, PartialEq)]
struct Bucket {
    quota_nanos: i64,
    left_nanos: i64,
    period: Instant,
}

/// One instance's part in the account; gives back on drop.
pub(super) struct Limiter {
    meter: Arc<Meter>,
    held: u64,
    granted: u64,
}

/// The reason of a trap in a guest that asked for more memory than it may have.
#[derive(Debug, thiserror::Error)]
#[error("memory limit of {limit} bytes exceeded: {held} bytes in use, {asked} more asked")]
pub(super) struct OutOfMemory {
    limit: u64,
    held: u64,
    asked: u64,
}

/// Polls a guest's future on its account.
pub(super) struct Metered<F> {
    meter: Arc<Meter>,
    guest: Pin<Box<F>>,
    pause: Option<Pause>,
}

struct Pause {
    since: Instant,
    sleep: Pin<Box<Sleep>>,
}

thread_local! {
    /// CPU time of guests polled inside the guest that is being polled: a call from one to another runs in place, and
    /// each pays for itself.
    static INNER: Cell<u64> = const { Cell::new(0) };
}

// === impl Meter ===

impl Meter {
    pub(super) fn new(limits: Limits, tick: Arc<Tick>) -> Self {
        let account = Account {
            tick,
            memory_limit: match limits.memory_bytes {
                0 => u64::MAX,
                bytes => bytes,
            },
            memory: AtomicU64::new(0),
            cpu_nanos: AtomicU64::new(0),
            quota: (limits.cpu_millis > 0)
                .then(|| Mutex::new(Bucket::new(limits.cpu_millis, Instant::now()))),
            throttled: AtomicU64::new(0),
            throttled_nanos: AtomicU64::new(0),
        };
        Self {
            account: Arc::new(account),
            out_of_memory: AtomicBool::new(false),
        }
    }

    /// Another process on the same account. What it is denied is its own end.
    pub(super) fn beside(&self) -> Self {
        Self {
            account: Arc::clone(&self.account),
            out_of_memory: AtomicBool::new(false),
        }
    }

    pub(super) fn run<F: Future>(self: &Arc<Self>, guest: F) -> Metered<F> {
        Metered {
            meter: Arc::clone(self),
            guest: Box::pin(guest),
            pause: None,
        }
    }

    /// Whether an instance was denied memory.
    pub(super) fn out_of_memory(&self) -> bool {
        self.out_of_memory.load(Ordering::Relaxed)
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            cpu_nanos: self.account.cpu_nanos.load(Ordering::Relaxed),
            memory_bytes: self.account.memory.load(Ordering::Relaxed),
            throttled: self.account.throttled.load(Ordering::Relaxed),
            throttled_nanos: self.account.throttled_nanos.load(Ordering::Relaxed),
            ..Usage::default()
        }
    }

    fn take(&self, bytes: u64) -> Result<(), OutOfMemory> {
        let limit = self.account.memory_limit;
        self.account
            .memory
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
                held.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .map(drop)
            .map_err(|held| {
                self.out_of_memory.store(true, Ordering::Relaxed);
                OutOfMemory {
                    limit,
                    held,
                    asked: bytes,
                }
            })
    }

    fn admit(&self) -> Result<(), Instant> {
        match &self.account.quota {
            None => Ok(()),
            Some(bucket) => bucket
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .admit(Instant::now()),
        }
    }

    fn charge(&self, nanos: u64) {
        self.account.cpu_nanos.fetch_add(nanos, Ordering::Relaxed);
        if let Some(bucket) = &self.account.quota {
            let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
            bucket.left_nanos = bucket.left_nanos.saturating_sub_unsigned(nanos);
        }
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(millis: u64, now: Instant) -> Self {
        let quota = millis.saturating_mul(PERIOD.as_micros() as u64);
        let quota = i64::try_from(quota).unwrap_or(i64::MAX / 2);
        Self {
            quota_nanos: quota,
            left_nanos: quota,
            period: now,
        }
    }

    /// Whether the workload may run now, else when to ask again.
    fn admit(&mut self, now: Instant) -> Result<(), Instant> {
        let periods = now.saturating_duration_since(self.period).as_nanos() / PERIOD.as_nanos();
        let periods = u32::try_from(periods).unwrap_or(u32::MAX);
        if periods > 0 {
            self.period += PERIOD * periods;
            self.left_nanos = self
                .quota_nanos
                .saturating_mul(i64::from(periods))
                .saturating_add(self.left_nanos)
                .min(self.quota_nanos);
        }
        if self.left_nanos > 0 {
            return Ok(());
        }
        let debt = self.left_nanos.unsigned_abs() / self.quota_nanos.unsigned_abs();
        let wait = u32::try_from(debt).unwrap_or(u32::MAX - 1) + 1;
        Err(self.period + PERIOD * wait)
    }
}

// === impl Limiter ===

impl Limiter {
    pub(super) fn new(meter: Arc<Meter>) -> Self {
        Self {
            meter,
            held: 0,
            granted: 0,
        }
    }

    /// Denial is a trap, not a failed `memory.grow`: a container over its limit is killed, whatever its allocator would do.
    fn grow(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
        unit: u64,
    ) -> wasmtime::Result<bool> {
        if maximum.is_some_and(|maximum| desired > maximum) {
            return Ok(false);
        }
        let bytes = (desired.saturating_sub(current) as u64).saturating_mul(unit);
        self.meter.take(bytes)?;
        self.held += bytes;
        self.granted = bytes;
        Ok(true)
    }

    fn give_back(&mut self) {
        let bytes = std::mem::take(&mut self.granted);
        self.held -= bytes;
        self.meter
            .account
            .memory
            .fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, 1)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back();
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        self.grow(current, desired, maximum, ELEMENT)
    }

    fn table_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.give_back();
        Ok(())
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        self.meter
            .account
            .memory
            .fetch_sub(self.held, Ordering::Relaxed);
    }
}

// === impl Metered ===

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        loop {
            if let Some(pause) = &mut this.pause {
                ready!(pause.sleep.as_mut().poll(cx));
                let waited = pause.since.elapsed().as_nanos() as u64;
                this.meter
                    .account
                    .throttled_nanos
                    .fetch_add(waited, Ordering::Relaxed);
                this.pause = None;
            }
            match this.meter.admit() {
                Ok(()) => break,
                Err(until) => {
                    this.meter.account.throttled.fetch_add(1, Ordering::Relaxed);
                    this.pause = Some(Pause {
                        since: Instant::now(),
                        sleep: Box::pin(tokio::time::sleep_until(until)),
                    });
                }
            }
        }
        let _ticking = this.meter.account.tick.enter();
        let outer = INNER.replace(0);
        let start = thread_nanos();
        let result = this.guest.as_mut().poll(cx);
        let total = thread_nanos().saturating_sub(start);
        let inner = INNER.replace(outer + total);
        this.meter.charge(total.saturating_sub(inner));
        result
    }
}

/// CPU time of this thread.
fn thread_nanos() -> u64 {
    // The clock exists since Linux 2.6.12; without it nothing is charged.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |time| Duration::from(time).as_nanos() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    fn meter(limits: Limits) -> Arc<Meter> {
        Arc::new(Meter::new(limits, Arc::default()))
    }

    #[test]
    fn memory_is_summed_over_all_stores_and_given_back() {
        let meter = meter(Limits {
            memory_bytes: 1000,
            cpu_millis: 0,
        });
        let mut one = Limiter::new(Arc::clone(&meter));
        let mut two = Limiter::new(Arc::clone(&meter));
        assert!(one.memory_growing(0, 600, None).unwrap());
        assert!(two.table_growing(0, 50, None).unwrap());
        assert_eq!(meter.usage().memory_bytes, 1000);
        assert!(
            two.memory_growing(0, 1, None).is_err(),
            "over the limit is a trap"
        );
        assert!(meter.out_of_memory());
        drop(one);
        assert_eq!(meter.usage().memory_bytes, 400);
    }

    #[test]
    fn a_memory_at_its_own_maximum_is_not_out_of_memory() {
        let meter = meter(Limits::default());
        let mut limiter = Limiter::new(Arc::clone(&meter));
        assert!(!limiter.memory_growing(0, 2, Some(1)).unwrap());
        assert!(!meter.out_of_memory());
        assert!(limiter.memory_growing(0, 2, None).unwrap());
        limiter
            .memory_grow_failed(wasmtime::Error::msg("no room"))
            .unwrap();
        assert_eq!(meter.usage().memory_bytes, 0);
    }

    #[test]
    fn cpu_debt_carries_over_and_savings_do_not() {
        let start = Instant::now();
        let mut bucket = Bucket::new(500, start);
        assert_eq!(bucket.quota_nanos, 50 * MILLI as i64);
        bucket.left_nanos -= 120 * MILLI as i64;
        // 70 ms of debt: two refills of 50 ms are needed.
        assert_eq!(bucket.admit(start), Err(start + PERIOD * 2));
        assert_eq!(bucket.admit(start + PERIOD), Err(start + PERIOD * 2));
        assert_eq!(bucket.admit(start + PERIOD * 2), Ok(()));
        assert_eq!(bucket.left_nanos, 30 * MILLI as i64);
        assert_eq!(bucket.admit(start + PERIOD * 50), Ok(()));
        assert_eq!(bucket.left_nanos, 50 * MILLI as i64);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_over_its_quota_waits_and_is_counted() {
        let meter = meter(Limits {
            memory_bytes: 0,
            cpu_millis: 100,
        });
        meter.charge(25 * MILLI);
        let start = Instant::now();
        meter.run(async {}).await;
        assert_eq!(
            start.elapsed().as_millis() / 100,
            2,
            "15 ms of debt are two periods of 10 ms"
        );
        let usage = meter.usage();
        assert_eq!(usage.throttled, 1);
        assert!(usage.throttled_nanos >= 100 * MILLI);
    }

    #[tokio::test]
    async fn a_call_inside_a_guest_is_charged_to_the_callee_only() {
        fn burn() {
            let start = thread_nanos();
            while thread_nanos() - start < 20 * MILLI {}
        }
        let (outer, inner) = (meter(Limits::default()), meter(Limits::default()));
        outer.run(inner.run(async { burn() })).await;
        assert!(inner.usage().cpu_nanos >= 20 * MILLI);
        assert!(outer.usage().cpu_nanos < 10 * MILLI);
    }
}

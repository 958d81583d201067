//! A keyed queue and the loop that empties it.
//!
//! A key that is added while it waits is there once; added while it is worked on, it is worked on again afterwards, never
//! twice at the same time. A failed key comes back with exponential, jittered backoff. The queue holds at most one entry
//! per object, so it is bounded by the number of objects. Never knows what a key means.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::error::chain;

use crate::write;

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LAST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_REST: Duration = Duration::from_secs(1);
/// A pass too early does no harm; a clock cannot hold every number of seconds an object may name.
const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Keys that wait for work.
pub struct Queue<K> {
    name: &'static str,
    /// After a key was worked on it rests this long, so that a burst of changes becomes one pass.
    rest: Duration,
    /// It rests at least this many times as long as the pass took: who is slow is asked less often.
    times: u32,
    /// Short sections only, never held over an await.
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// What is in `ready`.
    queued: HashSet<K>,
    /// Since when each key is worked on.
    working: HashMap<K, Instant>,
    /// Added while being worked on.
    again: HashSet<K>,
    /// When to look again; at most one time per key, the earliest.
    later: BTreeMap<(Instant, u64), K>,
    due: HashMap<K, (Instant, u64)>,
    failures: HashMap<K, u32>,
    rested: HashMap<K, Instant>,
    sequence: u64,
}

/// What became of one pass over a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// Nothing failed, but time alone will bring more to do.
    Again(Duration),
}

/// `first · 2^(failures-1)`, at most `cap`, minus up to a fifth by chance.
pub fn backoff(failures: u32, first: Duration, cap: Duration) -> Duration {
    let doubled = first.saturating_mul(
        1u32.checked_shl(failures.saturating_sub(1).min(31))
            .unwrap_or(u32::MAX),
    );
    doubled.min(cap).mul_f64(1.0 - 0.2 * rand::random::<f64>())
}

/// Works on keys, up to `width` at once, until told to stop. Passes that are running then are dropped at their next await.
pub async fn run<K, F, Fut>(
    queue: Arc<Queue<K>>,
    width: usize,
    shutdown: CancellationToken,
    pass: F,
) where
    K: Clone + Eq + Hash + Display + Send + 'static,
    F: Fn(K) -> Fut,
    Fut: Future<Output = Result<Outcome, write::Error>>,
{
    let mut open = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            Some((key, result)) = open.next(), if !open.is_empty() => queue.finish(key, result),
            key = queue.next(), if open.len() < width => {
                let work = pass(key.clone());
                open.push(async move { (key, work.await) });
            }
        }
    }
}

// === impl Queue ===

impl<K: Clone + Eq + Hash + Display> Queue<K> {
    pub fn new(name: &'static str, rest: Duration) -> Arc<Self> {
        Self::throttled(name, rest, 0)
    }

    /// A queue whose keys rest in proportion to how long their passes take, at most a second.
    pub fn throttled(name: &'static str, rest: Duration, times: u32) -> Arc<Self> {
        Arc::new(Self {
            name,
            rest,
            times,
            state: Mutex::new(State {
                ready: VecDeque::new(),
                queued: HashSet::new(),
                working: HashMap::new(),
                again: HashSet::new(),
                later: BTreeMap::new(),
                due: HashMap::new(),
                failures: HashMap::new(),
                rested: HashMap::new(),
                sequence: 0,
            }),
            wake: Notify::new(),
        })
    }

    pub fn add(&self, key: K) {
        let mut state = self.lock();
        if state.working.contains_key(&key) {
            state.again.insert(key);
            return;
        }
        match state.rested.get(&key).copied() {
            Some(until) if until > Instant::now() => state.delay(key, until),
            _ => state.push(key),
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The next key. Cancel safe: a key is taken only when this returns.
    async fn next(&self) -> K {
        loop {
            let wake = self.wake.notified();
            let until = {
                let mut state = self.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.queued.remove(&key);
                    state.working.insert(key.clone(), Instant::now());
                    return key;
                }
                state.later.keys().next().map(|(at, _)| *at)
            };
            match until {
                Some(at) => tokio::select! {
                    () = wake => {}
                    () = tokio::time::sleep_until(at) => {}
                },
                None => wake.await,
            }
        }
    }

    fn finish(&self, key: K, result: Result<Outcome, write::Error>) {
        let now = Instant::now();
        let mut state = self.lock();
        let began = state.working.remove(&key).unwrap_or(now);
        let slow = (now - began).saturating_mul(self.times).min(LONGEST_REST);
        let until = now + self.rest.max(slow);
        if !self.rest.is_zero() {
            if state.rested.len() > 1024 {
                state.rested.retain(|_, at| *at > now);
            }
            state.rested.insert(key.clone(), until);
        }
        match result {
            Ok(outcome) => {
                state.failures.remove(&key);
                if let Outcome::Again(delay) = outcome {
                    state.delay(key.clone(), now + delay.min(LONGEST_DELAY));
                }
            }
            Err(error) => {
                let failures = state.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                let pause = backoff(*failures, FIRST_RETRY, LAST_RETRY);
                if error.is_conflict() || matches!(error, write::Error::Behind { .. }) {
                    debug!(queue = self.name, %key, error = %chain(&error), "Will try again");
                } else {
                    warn!(queue = self.name, %key, error = %chain(&error), ?pause, "Pass failed");
                }
                // What changed while it failed is looked at after the pause.
                state.again.remove(&key);
                state.delay(key.clone(), now + pause);
            }
        }
        if state.again.remove(&key) {
            state.delay(key, until);
        }
        drop(state);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl State ===

impl<K: Clone + Eq + Hash> State<K> {
    /// Looks at the key again at that time, or earlier if that was planned already.
    fn delay(&mut self, key: K, at: Instant) {
        if let Some(known) = self.due.get(&key).copied() {
            if known.0 <= at {
                return;
            }
            self.later.remove(&known);
        }
        self.sequence += 1;
        let slot = (at, self.sequence);
        self.due.insert(key.clone(), slot);
        self.later.insert(slot, key);
    }

    /// Makes ready what is due.
    fn promote(&mut self, now: Instant) {
        while let Some(entry) = self.later.first_entry() {
            if entry.key().0 > now {
                return;
            }
            let key = entry.remove();
            self.due.remove(&key);
            if self.working.contains_key(&key) {
                self.again.insert(key);
            } else {
                self.push(key);
            }
        }
    }

    fn push(&mut self, key: K) {
        if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn refused() -> write::Error {
        write::Error::Behind {
            what: "pods",
            revision: 1,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_twice_is_worked_on_once() {
        let queue = Queue::new("test", Duration::ZERO);
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.next().await, "b");
        queue.add("a");
        queue.finish("a", Ok(Outcome::Done));
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn any_delay_is_taken() {
        let queue = Queue::new("test", Duration::ZERO);
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.finish("a", Ok(Outcome::Again(Duration::MAX)));
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_come_back_later_and_later() {
        let queue = Queue::new("test", Duration::ZERO);
        queue.add("a");
        let mut pauses = Vec::new();
        for _ in 0..4 {
            let before = Instant::now();
            let key = queue.next().await;
            pauses.push(before.elapsed());
            queue.finish(key, Err(refused()));
        }
        assert!(pauses[1] < pauses[2] && pauses[2] < pauses[3], "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_becomes_one_pass() {
        let queue = Queue::new("test", Duration::from_millis(20));
        let shutdown = CancellationToken::new();
        let passes = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&passes);
        let worker = tokio::spawn(run(
            Arc::clone(&queue),
            4,
            shutdown.clone(),
            move |_: &str| {
                count.fetch_add(1, Ordering::Relaxed);
                async { Ok(Outcome::Done) }
            },
        ));
        for _ in 0..100 {
            queue.add("a");
            tokio::time::advance(Duration::from_millis(1)).await;
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        worker.await.expect("the worker ends when told");
        let passes = passes.load(Ordering::Relaxed);
        assert!((3..=10).contains(&passes), "{passes} passes");
    }

    #[test]
    fn backoff_is_capped() {
        let pause = backoff(40, FIRST_RETRY, LAST_RETRY);
        assert!(pause <= LAST_RETRY && pause >= LAST_RETRY.mul_f64(0.79));
    }
}

//! Pods that wait for a node. Pure: takes the time.
//!
//! ```text
//!            pop                      unschedulable
//!  active ─────────► being decided ──────────────────► unschedulable
//!    ▲                     │ failed                          │ wake, or five minutes
//!    │ time                ▼                                 ▼
//!    └───────────────── backoff ◄────────────────────────────┘
//! ```
//! Order: higher priority first, then who came first.
//!
//! Differs from Kubernetes: backoff grows from 50 ms (there: a second) to ten seconds, because here a node may come up
//! moments after the pods that wait for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::pod::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(10);
/// Nobody waits longer than this for a reason to try again.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A pod that was taken out of the queue.
#[derive(Clone, Debug)]
pub struct Entry {
    pub pod: Arc<PodInfo>,
    attempts: u32,
    sequence: u64,
}

type Rank = (Reverse<i32>, u64, Arc<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    Backoff(Instant),
    /// Not to be tried before the first instant, even if woken; tried anyway at the second.
    Unschedulable(Instant, Instant),
}

#[derive(Default)]
pub struct Queue {
    waiting: HashMap<Arc<str>, (Entry, Place)>,
    active: BTreeSet<Rank>,
    /// Both by the time at which they become active.
    timed: BTreeMap<(Instant, u64), Arc<str>>,
    unschedulable: usize,
    sequence: u64,
}

// === impl Queue ===

impl Queue {
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Does a pod that did not fit want to be near others? Then a new neighbour may help it.
    pub fn waits_for_company(&self) -> bool {
        let wants = |(entry, place): &(Entry, Place)| {
            matches!(place, Place::Unschedulable(..)) && !entry.pod.affinity.is_empty()
        };
        self.unschedulable > 0 && self.waiting.values().any(wants)
    }

    /// A new pod, or a new version of a waiting one: its change may be what it was waiting for.
    pub fn put(&mut self, pod: Arc<PodInfo>, now: Instant) {
        let uid = Arc::clone(&pod.uid);
        let entry = match self.take(&uid) {
            Some((old, Place::Backoff(until))) if until > now => {
                return self.insert(Entry { pod, ..old }, Place::Backoff(until));
            }
            Some((old, Place::Unschedulable(not_before, at)))
                if old.pod.pod.spec == pod.pod.spec
                    && old.pod.pod.metadata.labels == pod.pod.metadata.labels =>
            {
                return self.insert(Entry { pod, ..old }, Place::Unschedulable(not_before, at));
            }
            Some((old, _)) => Entry { pod, ..old },
            None => {
                self.sequence += 1;
                Entry {
                    pod,
                    attempts: 0,
                    sequence: self.sequence,
                }
            }
        };
        self.insert(entry, Place::Active);
    }

    pub fn remove(&mut self, uid: &str) {
        self.take(uid);
    }

    /// The next pod to decide on.
    pub fn pop(&mut self, now: Instant) -> Option<Entry> {
        while let Some((&(at, sequence), _)) = self.timed.first_key_value() {
            if at > now {
                break;
            }
            let Some(uid) = self.timed.remove(&(at, sequence)) else {
                break;
            };
            if let Some((entry, place)) = self.waiting.remove(&uid) {
                if matches!(place, Place::Unschedulable(..)) {
                    self.unschedulable -= 1;
                }
                self.insert(entry, Place::Active);
            }
        }
        let (_, _, uid) = self.active.pop_first()?;
        let (mut entry, _) = self.waiting.remove(&uid)?;
        entry.attempts = entry.attempts.saturating_add(1);
        Some(entry)
    }

    /// No node fits: wait until something changes.
    pub fn unschedulable(&mut self, entry: Entry, now: Instant) {
        let not_before = now + backoff(entry.attempts);
        self.insert(entry, Place::Unschedulable(not_before, now + LONGEST_WAIT));
    }

    /// Something went wrong that has nothing to do with the nodes.
    pub fn failed(&mut self, entry: Entry, now: Instant) {
        let until = now + backoff(entry.attempts);
        self.insert(entry, Place::Backoff(until));
    }

    /// Something changed: all that did not fit are tried again, not before their backoff is over.
    pub fn wake(&mut self, now: Instant) {
        if self.unschedulable == 0 {
            return;
        }
        let asleep: Vec<Arc<str>> = self
            .waiting
            .iter()
            .filter(|(_, (_, place))| matches!(place, Place::Unschedulable(..)))
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        for uid in asleep {
            let Some((entry, Place::Unschedulable(not_before, _))) = self.take(&uid) else {
                continue;
            };
            let place = if not_before > now {
                Place::Backoff(not_before)
            } else {
                Place::Active
            };
            self.insert(entry, place);
        }
    }

    /// When the next waiting pod becomes active by itself; now, when one is.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.timed.first_key_value().map(|((at, _), _)| *at)
    }

    fn insert(&mut self, entry: Entry, place: Place) {
        let uid = Arc::clone(&entry.pod.uid);
        match place {
            Place::Active => {
                self.active.insert(rank(&entry));
            }
            Place::Backoff(at) => {
                self.timed.insert((at, entry.sequence), Arc::clone(&uid));
            }
            Place::Unschedulable(_, at) => {
                self.timed.insert((at, entry.sequence), Arc::clone(&uid));
                self.unschedulable += 1;
            }
        }
        self.waiting.insert(uid, (entry, place));
    }

    fn take(&mut self, uid: &str) -> Option<(Entry, Place)> {
        let (entry, place) = self.waiting.remove(uid)?;
        match place {
            Place::Active => {
                self.active.remove(&rank(&entry));
            }
            Place::Backoff(at) => {
                self.timed.remove(&(at, entry.sequence));
            }
            Place::Unschedulable(_, at) => {
                self.timed.remove(&(at, entry.sequence));
                self.unschedulable -= 1;
            }
        }
        Some((entry, place))
    }
}

fn rank(entry: &Entry) -> Rank {
    (
        Reverse(entry.pod.priority),
        entry.sequence,
        Arc::clone(&entry.pod.uid),
    )
}

fn backoff(attempts: u32) -> Duration {
    let doubled = FIRST_BACKOFF.saturating_mul(1 << attempts.saturating_sub(1).min(16));
    doubled.min(LAST_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Pod;

    fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
        let mut pod = Pod::default();
        pod.metadata.uid = uid.to_owned();
        pod.spec.priority = priority;
        Arc::new(PodInfo::new(&Arc::new(pod)))
    }

    #[tokio::test(start_paused = true)]
    async fn the_important_come_first_then_the_early() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (uid, priority) in [("a", 0), ("b", 5), ("c", 0)] {
            queue.put(pod(uid, priority), now);
        }
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(now))
            .map(|e| e.pod.uid.to_string())
            .collect();
        assert_eq!(order, ["b", "a", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_did_not_fit_sleeps_until_woken_and_not_before_its_backoff() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), now);
        let entry = queue.pop(now).expect("a is active");
        queue.unschedulable(entry, now);
        assert!(queue.pop(now + Duration::from_secs(100)).is_none());
        queue.wake(now);
        assert!(queue.pop(now).is_none());
        assert_eq!(queue.next_deadline(), Some(now + FIRST_BACKOFF));
        let entry = queue.pop(now + FIRST_BACKOFF).expect("a is back");
        queue.unschedulable(entry, now);
        assert!(
            queue.pop(now + LONGEST_WAIT).is_some(),
            "nobody sleeps for ever"
        );
        assert!(queue.is_empty());
        assert_eq!(queue.unschedulable, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_removed_pod_is_nowhere() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.put(pod("a", 0), now);
        queue.put(pod("a", 0), now);
        queue.remove("a");
        assert!(queue.pop(now).is_none() && queue.is_empty());
    }
}

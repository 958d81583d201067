//! Who talks to whom: counters by source and destination workload. Never blocks a request for more than a map lookup.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Workload names remembered; later ones are counted together as `other`.
const WORKLOADS: usize = 10_000;
const PAIRS: usize = 100_000;

/// The destination of egress, the source of listeners.
pub(crate) const OUTSIDE: &str = "outside";
const OTHER: &str = "other";

/// A name with a number, shared by all pods of a workload.
#[derive(Debug)]
pub(crate) struct Workload {
    number: u32,
    name: String,
}

/// Counters of one direction between two workloads.
#[derive(Debug, Default)]
pub(crate) struct Pair {
    source: String,
    destination: String,
    connections: AtomicU64,
    requests: AtomicU64,
    errors: AtomicU64,
    nanos: AtomicU64,
}

/// A copy of one pair's counters.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Flow {
    /// `default/web`, or `outside`.
    pub source: String,
    pub destination: String,
    pub connections: u64,
    pub requests: u64,
    /// Requests that got no answer, or one of 500 and above.
    pub errors: u64,
    /// Time to the response's head, summed.
    pub duration: Duration,
}

#[derive(Default)]
pub(crate) struct Traffic {
    workloads: RwLock<HashMap<String, Arc<Workload>>>,
    pairs: RwLock<HashMap<(u32, u32), Arc<Pair>>>,
}

// === impl Traffic ===

impl Traffic {
    /// The one `Workload` of that name.
    pub(crate) fn workload(&self, name: &str) -> Arc<Workload> {
        let known = self
            .workloads
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)
            .cloned();
        if let Some(known) = known {
            return known;
        }
        let mut all = self
            .workloads
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let name = if all.len() < WORKLOADS || all.contains_key(name) {
            name
        } else {
            OTHER
        };
        if let Some(workload) = all.get(name) {
            return Arc::clone(workload);
        }
        let workload = Arc::new(Workload {
            number: u32::try_from(all.len()).unwrap_or(u32::MAX),
            name: name.to_owned(),
        });
        all.insert(name.to_owned(), Arc::clone(&workload));
        workload
    }

    pub(crate) fn pair(&self, source: &Workload, destination: &Workload) -> Option<Arc<Pair>> {
        let key = (source.number, destination.number);
        let known = self
            .pairs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if known.is_some() {
            return known;
        }
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        if pairs.len() >= PAIRS {
            return None;
        }
        let pair = pairs.entry(key).or_insert_with(|| {
            Arc::new(Pair {
                source: source.name.clone(),
                destination: destination.name.clone(),
                ..Pair::default()
            })
        });
        Some(Arc::clone(pair))
    }

    pub(crate) fn flows(&self) -> Vec<Flow> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let mut flows: Vec<Flow> = pairs.values().map(|pair| pair.read()).collect();
        flows.sort_by(|a, b| (&a.source, &a.destination).cmp(&(&b.source, &b.destination)));
        flows
    }
}

// === impl Workload ===

impl Workload {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

// === impl Pair ===

impl Pair {
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn answered(&self, failed: bool, took: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        if failed {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    fn read(&self) -> Flow {
        Flow {
            source: self.source.clone(),
            destination: self.destination.clone(),
            connections: self.connections.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            duration: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

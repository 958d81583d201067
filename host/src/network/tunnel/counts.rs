//! How much of something each of many has at once, and that none has more than it may. Knows neither nodes nor addresses.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those that have any.
pub(super) struct Counts<K> {
    /// Held for a few instructions, never over an await.
    all: Mutex<HashMap<K, usize>>,
    most: usize,
}

/// One of them; dropping it gives it back.
pub(super) struct Counted<K: Eq + Hash> {
    counts: Arc<Counts<K>>,
    key: K,
}

// === impl Counts ===

impl<K: Clone + Eq + Hash> Counts<K> {
    /// `most` for each.
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            all: Mutex::new(HashMap::new()),
            most,
        })
    }

    /// `None` when `key` has as many as it may.
    pub(super) fn take(self: &Arc<Self>, key: K) -> Option<Counted<K>> {
        let mut all = self.lock();
        let count = all.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Counted {
            counts: Arc::clone(self),
            key,
        })
    }
}

impl<K> Counts<K> {
    #[cfg(test)]
    pub(super) fn of<Q: Eq + Hash + ?Sized>(&self, key: &Q) -> usize
    where
        K: std::borrow::Borrow<Q> + Eq + Hash,
    {
        self.lock().get(key).copied().unwrap_or(0)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut all = self.counts.lock();
        if let Some(count) = all.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_own_and_gives_it_back() {
        let counts = Counts::new(2);
        let (first, second) = (counts.take("a"), counts.take("a"));
        assert!(first.is_some() && second.is_some());
        assert!(counts.take("a").is_none());
        assert!(counts.take("b").is_some());
        drop(first);
        assert!(counts.take("a").is_some());
        drop(second);
        assert!(counts.lock().is_empty());
    }
}

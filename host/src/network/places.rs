//! How much of what is scarce each of many may have at once: nobody can take what is left for the others. Knows neither
//! clients nor pods.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One alone can have three quarters of all there is, two three sevenths each, ten three parts in thirty-one: some is
/// always left for who has nothing yet.
const SHARE: usize = 3;

/// Whether who has `held` may have `more` of what is `free`.
pub(crate) fn admits(held: usize, more: usize, free: usize) -> bool {
    more <= free && held < free.saturating_mul(SHARE)
}

/// So many places, shared by those who ask.
pub(crate) struct Places<K> {
    /// Held for a few instructions, never over an await.
    state: Mutex<State<K>>,
}

struct State<K> {
    held: HashMap<K, usize>,
    free: usize,
}

/// One of them; dropping it gives it back.
pub(crate) struct Place<K: Eq + Hash> {
    places: Arc<Places<K>>,
    of: K,
}

// === impl Places ===

impl<K: Clone + Eq + Hash> Places<K> {
    pub(crate) fn new(all: usize) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                held: HashMap::new(),
                free: all,
            }),
        })
    }

    /// `None` when none is free, or too few for somebody who has that many.
    pub(crate) fn take(self: &Arc<Self>, of: K) -> Option<Place<K>> {
        let mut state = self.lock();
        let held = state.held.get(&of).copied().unwrap_or(0);
        if !admits(held, 1, state.free) {
            return None;
        }
        state.free -= 1;
        state.held.insert(of.clone(), held + 1);
        drop(state);
        Some(Place {
            places: Arc::clone(self),
            of,
        })
    }
}

impl<K> Places<K> {
    #[cfg(test)]
    pub(crate) fn free(&self) -> usize {
        self.lock().free
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Place ===

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.free += 1;
        if let Some(held) = state.held.get_mut(&self.of) {
            *held -= 1;
            if *held == 0 {
                state.held.remove(&self.of);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_takes_all_he_can_leaves_some_for_the_next() {
        let places = Places::new(1_000);
        let all = |of: &'static str| -> Vec<_> { std::iter::from_fn(|| places.take(of)).collect() };
        let greedy = all("greedy");
        assert_eq!(greedy.len(), 750);
        let second = all("second");
        assert_eq!(second.len(), 188, "three quarters of what was left");
        let mut held = vec![greedy, second];
        for name in ["c", "d", "e"] {
            let more = all(name);
            assert!(!more.is_empty(), "{name} gets none");
            held.push(more);
        }
        drop(held);
        assert_eq!(places.free(), 1_000);
        assert!(
            places.lock().held.is_empty(),
            "nobody is remembered for nothing"
        );
    }

    #[test]
    fn the_only_place_can_be_had() {
        let places = Places::new(1);
        let only = places.take("a");
        assert!(only.is_some() && places.take("b").is_none());
        drop(only);
        assert!(places.take("b").is_some());
    }
}

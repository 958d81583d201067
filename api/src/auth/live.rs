//! Something worked out from resources of the cache, kept up to date by whoever asks for it.
//!
//! A reader sees every change that was published before it asked: nobody is refused because an index lagged behind the
//! write that allows it. Objects are parsed when they change, never when a question is asked. Owns its watches and
//! nothing else; never waits.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use crate::cache::{Cache, Watcher};
use crate::store::{Key, Stored};

/// What is worked out.
pub(super) trait Derived: Default + Send + Sync {
    /// Storage names of what it is worked out from.
    const RESOURCES: &'static [&'static str];

    /// One object has become `new`, or is gone.
    fn apply(&mut self, key: &Key, old: Option<&Stored>, new: Option<&Stored>);
}

pub(super) struct Live<T> {
    cache: Arc<Cache>,
    state: RwLock<State<T>>,
    /// The state has every change up to here.
    seen: AtomicU64,
}

struct State<T> {
    derived: T,
    /// One per resource; empty before the first look and after a watch was cut off.
    watchers: Vec<Watcher>,
}

/// The state, which does not change while this is held. Not to be held over an await.
pub struct Reading<'a, T>(RwLockReadGuard<'a, State<T>>);

impl<T: Derived> Live<T> {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            state: RwLock::new(State {
                derived: T::default(),
                watchers: Vec::new(),
            }),
            seen: AtomicU64::new(0),
        }
    }

    /// The newest state.
    pub(super) fn read(&self) -> Reading<'_, T> {
        self.refresh();
        Reading(self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Takes in what has changed. Somebody must do so now and then even when nobody asks, or the watches overflow.
    pub(super) fn refresh(&self) {
        // Read before the watches: what was published by then has been offered to them.
        let newest = self.cache.revision();
        if self.seen.load(Ordering::Acquire) >= newest && newest > 0 {
            return;
        }
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if !state.take() {
            state.rebuild(&self.cache);
        }
        self.seen.fetch_max(newest, Ordering::Release);
    }
}

impl<T: Derived> State<T> {
    /// Applies what the watches have; false when one of them is missing changes.
    fn take(&mut self) -> bool {
        if self.watchers.is_empty() {
            return false;
        }
        for watcher in &mut self.watchers {
            while let Some(event) = watcher.try_next() {
                let new = (!event.deleted).then_some(&*event.object);
                self.derived
                    .apply(&event.object.key, event.previous.as_deref(), new);
            }
            if watcher.is_ended() {
                return false;
            }
        }
        true
    }

    fn rebuild(&mut self, cache: &Arc<Cache>) {
        self.derived = T::default();
        self.watchers.clear();
        for resource in T::RESOURCES {
            let snapshot = cache.snapshot(resource);
            for stored in snapshot.iter() {
                self.derived.apply(&stored.key, None, Some(stored));
            }
            match cache.watch(resource, snapshot.revision) {
                Ok(watcher) => self.watchers.push(watcher),
                // The snapshot is a moment old at most, so this is a cache that forgets everything at once: next time.
                Err(_) => {
                    self.watchers.clear();
                    return;
                }
            }
        }
    }
}

impl<T> Deref for Reading<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.derived
    }
}

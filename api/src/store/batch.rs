//! Decides commits: expectations against the cache, revisions, finished bytes. Pure; what comes out is written and
//! published by a store, or thrown away as a whole. One process owns a store, so the cache *is* the current state
//! and a batch needs no reads from disk.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Change, Error, Event, Expect, Key, Operation, Revision, Stored};
use crate::cache::Cache;

/// Commits decided one after the other, to be made durable and published together.
pub(super) struct Batch<'a> {
    cache: &'a Cache,
    last: Revision,
    /// Objects as they will be after this batch, where they differ from the cache.
    pending: HashMap<Key, Pending>,
    events: Vec<Arc<Event>>,
}

/// One object the batch changes.
pub(super) struct Pending {
    /// `Stored::created` of the object in the cache, if there is one.
    pub(super) base: Option<Revision>,
    pub(super) now: Option<Arc<Stored>>,
}

// === impl Batch ===

impl<'a> Batch<'a> {
    pub(super) fn new(cache: &'a Cache) -> Self {
        Self {
            cache,
            last: cache.revision(),
            pending: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Adds one commit, or nothing of it.
    pub(super) fn apply(&mut self, operations: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error> {
        let mut staged: Vec<Arc<Event>> = Vec::with_capacity(operations.len());
        for (position, operation) in operations.into_iter().enumerate() {
            let found = self.current(&staged, &operation.key);
            if !holds(&operation, found.as_deref()) {
                return Err(Error::Conflict {
                    operation: position,
                    key: operation.key,
                    found,
                });
            }
            let revision = self.last + 1 + staged.len() as Revision;
            staged.push(Arc::new(self.event(operation, found, revision)));
        }
        self.last += staged.len() as Revision;
        for event in &staged {
            let now = (!event.deleted).then(|| Arc::clone(&event.object));
            let key = &event.object.key;
            match self.pending.get_mut(key) {
                Some(pending) => pending.now = now,
                None => {
                    let base = event.previous.as_ref().map(|previous| previous.created);
                    self.pending.insert(key.clone(), Pending { base, now });
                }
            }
        }
        let answers = staged.iter().map(|e| Arc::clone(&e.object)).collect();
        self.events.append(&mut staged);
        Ok(answers)
    }

    /// In the order of their revisions, which are gap-free and begin after the cache's.
    pub(super) fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    pub(super) fn into_events(self) -> Vec<Arc<Event>> {
        self.events
    }

    /// The objects changed, with their final state.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Pending> {
        self.pending.values()
    }

    /// The newest revision, once this batch is published.
    pub(super) fn revision(&self) -> Revision {
        self.last
    }

    fn current(&self, staged: &[Arc<Event>], key: &Key) -> Option<Arc<Stored>> {
        if let Some(event) = staged.iter().rev().find(|e| e.object.key == *key) {
            return (!event.deleted).then(|| Arc::clone(&event.object));
        }
        match self.pending.get(key) {
            Some(pending) => pending.now.clone(),
            None => self.cache.get(key),
        }
    }

    fn event(
        &self,
        operation: Operation,
        previous: Option<Arc<Stored>>,
        revision: Revision,
    ) -> Event {
        let (draft, deleted) = match operation.change {
            Change::Put(draft) => (draft, false),
            Change::Delete(draft) => (draft, true),
        };
        // Sharing the strings of a key keeps an object small.
        let key = match &previous {
            Some(previous) => previous.key.clone(),
            None => self.cache.intern(operation.key),
        };
        let object = Stored {
            key,
            revision,
            created: previous.as_ref().map_or(revision, |p| p.created),
            bytes: draft.finish(revision),
            index: draft.index,
        };
        Event::new(Arc::new(object), previous, deleted)
    }
}

fn holds(operation: &Operation, found: Option<&Stored>) -> bool {
    let present = match operation.expect {
        Expect::Absent => return found.is_none() && matches!(operation.change, Change::Put(_)),
        Expect::At(revision) => found.is_some_and(|found| found.revision == revision),
        Expect::Any => found.is_some(),
    };
    present || (operation.expect == Expect::Any && matches!(operation.change, Change::Put(_)))
}

//! Decides commits: expectations against the cache, revisions, finished bytes. Pure; what comes out is written and
//! published by a store, or thrown away as a whole. The cache is the current state as of the batch's base, and a batch
//! needs no reads: a SQLite file has one owner, and several on one database make sure that the base is still the newest.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Change, Error, Event, Expect, Key, Operation, Revision, Stored, line};
use crate::cache::Cache;

/// Commits decided one after the other, to be made durable and published together.
pub(super) struct Batch<'a> {
    cache: &'a Cache,
    /// The revision this batch follows.
    base: Revision,
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
        let base = cache.revision();
        Self {
            cache,
            base,
            last: base,
            pending: HashMap::new(),
            events: Vec::new(),
        }
    }

    /// Adds one commit, or nothing of it.
    pub(super) fn apply(&mut self, operations: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error> {
        let before = self.events.len();
        for (position, operation) in operations.into_iter().enumerate() {
            let found = self.current(&operation.key);
            if !holds(&operation, found.as_deref()) {
                self.take_back(before);
                return Err(Error::Conflict {
                    operation: position,
                    key: operation.key,
                    found,
                });
            }
            self.last += 1;
            let event = self.event(operation, found, self.last);
            self.set(&event);
            self.events.push(Arc::new(event));
        }
        let done = self.events[before..].iter();
        Ok(done.map(|event| Arc::clone(&event.object)).collect())
    }

    /// Undoes the events from position `before` on, newest first.
    fn take_back(&mut self, before: usize) {
        for event in self.events.split_off(before).iter().rev() {
            self.last -= 1;
            if let Some(pending) = self.pending.get_mut(&event.object.key) {
                pending.now.clone_from(&event.previous);
            }
        }
    }

    fn set(&mut self, event: &Event) {
        let key = &event.object.key;
        let now = (!event.deleted).then(|| Arc::clone(&event.object));
        match self.pending.get_mut(key) {
            Some(pending) => pending.now = now,
            None => {
                let base = event.previous.as_ref().map(|previous| previous.created);
                self.pending.insert(key.clone(), Pending { base, now });
            }
        }
    }

    /// In the order of their revisions, which are gap-free and begin after the cache's.
    pub(super) fn events(&self) -> &[Arc<Event>] {
        &self.events
    }

    pub(super) fn into_events(self) -> Vec<Arc<Event>> {
        self.events
    }

    /// The objects changed, with their final state.
    pub(super) fn objects(&self) -> impl Iterator<Item = (&Key, &Pending)> {
        let base = self.base;
        let changed = move |now: &Arc<Stored>| now.revision > base;
        self.pending
            .iter()
            .filter(move |(_, object)| object.now.as_ref().is_none_or(changed))
    }

    /// The newest revision when deciding began. Where others write too, the batch counts only if it still is.
    pub(super) fn base(&self) -> Revision {
        self.base
    }

    /// The newest revision, once this batch is published.
    pub(super) fn revision(&self) -> Revision {
        self.last
    }

    fn current(&self, key: &Key) -> Option<Arc<Stored>> {
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
        let kind_of_change = line::kind_of_change(previous.is_some(), deleted);
        let (line, bytes) = draft.finish_in_line(kind_of_change, revision);
        let object = Stored {
            key,
            revision,
            created: previous.as_ref().map_or(revision, |p| p.created),
            bytes,
            index: draft.index,
        };
        Event::new(Arc::new(object), previous, deleted).in_line(line)
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

//! From one stream of events to many watchers: who wants what, one bounded queue each. A watcher that does not keep
//! up is ended cleanly: it gets what is queued, then the end, and its client resumes by revision.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use super::Cache;
use crate::store::{Event, Revision, Stored};

/// What a watcher wants of a resource; the default is everything. An event that left or entered the field's value is
/// wanted too, so that selectors can be told.
#[derive(Clone, Debug, Default)]
pub struct Interest {
    pub namespace: Option<Arc<str>>,
    pub name: Option<Arc<str>>,
    /// `("spec.nodeName", "n1")`: one of `Index::fields`, before or after the change.
    pub field: Option<(&'static str, Box<str>)>,
}

/// One open watch. Dropping it ends it.
pub struct Watcher {
    cache: Arc<Cache>,
    place: Place,
    /// Changes that had already happened when the watch began.
    backlog: std::vec::IntoIter<Arc<Event>>,
    queue: mpsc::Receiver<Arc<Event>>,
    after: Revision,
}

/// Where a watcher's slot is.
pub(super) struct Place {
    pub(super) resource: Arc<str>,
    pub(super) namespace: Option<Arc<str>>,
    pub(super) id: u64,
}

/// The watchers of one resource.
#[derive(Default)]
pub(super) struct Watchers {
    everywhere: Vec<Slot>,
    by_namespace: HashMap<Arc<str>, Vec<Slot>>,
}

struct Slot {
    id: u64,
    after: Revision,
    interest: Interest,
    queue: mpsc::Sender<Arc<Event>>,
}

// === impl Interest ===

impl Interest {
    pub fn in_namespace(namespace: &str) -> Self {
        Self {
            namespace: Some(namespace.into()),
            ..Self::default()
        }
    }

    pub fn wants(&self, event: &Event) -> bool {
        let key = &event.object.key;
        let has = |object: &Stored| {
            let (path, value) = self.field.as_ref()?;
            Some(object.index.field(path) == Some(value))
        };
        self.namespace.as_ref().is_none_or(|n| *n == key.namespace)
            && self.name.as_ref().is_none_or(|n| *n == key.name)
            && (has(&event.object).unwrap_or(true)
                || event.previous.as_deref().and_then(has).unwrap_or(false))
    }
}

// === impl Watchers ===

impl Watchers {
    pub(super) fn add(
        &mut self,
        id: u64,
        after: Revision,
        interest: Interest,
        queue: mpsc::Sender<Arc<Event>>,
    ) {
        let slots = match &interest.namespace {
            Some(namespace) => self.by_namespace.entry(Arc::clone(namespace)).or_default(),
            None => &mut self.everywhere,
        };
        slots.push(Slot {
            id,
            after,
            interest,
            queue,
        });
    }

    pub(super) fn remove(&mut self, place: &Place) {
        match &place.namespace {
            Some(namespace) => {
                if let Some(slots) = self.by_namespace.get_mut(namespace) {
                    slots.retain(|slot| slot.id != place.id);
                    if slots.is_empty() {
                        self.by_namespace.remove(namespace);
                    }
                }
            }
            None => self.everywhere.retain(|slot| slot.id != place.id),
        }
    }

    /// Hands `event` to everybody who wants it; those whose queue is full are ended. Returns how many.
    pub(super) fn offer(&mut self, event: &Arc<Event>) -> usize {
        let mut ended = 0;
        let mut offer = |slots: &mut Vec<Slot>| {
            let before = slots.len();
            slots.retain(|slot| slot.takes(event));
            ended += before - slots.len();
        };
        offer(&mut self.everywhere);
        if let Some(slots) = self.by_namespace.get_mut(&event.object.key.namespace) {
            offer(slots);
        }
        ended
    }

    pub(super) fn len(&self) -> usize {
        self.everywhere.len() + self.by_namespace.values().map(Vec::len).sum::<usize>()
    }

    /// Ends every watch.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Slot {
    fn takes(&self, event: &Arc<Event>) -> bool {
        event.revision <= self.after
            || !self.interest.wants(event)
            || self.queue.try_send(Arc::clone(event)).is_ok()
    }
}

// === impl Watcher ===

impl Watcher {
    pub(super) fn new(
        cache: Arc<Cache>,
        place: Place,
        backlog: Vec<Arc<Event>>,
        queue: mpsc::Receiver<Arc<Event>>,
        after: Revision,
    ) -> Self {
        Self {
            cache,
            place,
            backlog: backlog.into_iter(),
            queue,
            after,
        }
    }

    /// The next change, in the order of revisions, none left out. `None`: the watch has ended, because it was too
    /// slow or the store is closing; the client resumes from the last revision it saw. Cancel safe.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        match self.backlog.next() {
            Some(event) => Some(event),
            None => self.queue.recv().await,
        }
    }

    /// Waits for at least one change and appends up to `limit` to `into`: many events, one write to the socket.
    /// Returns how many; 0 means the end. Cancel safe.
    pub async fn next_many(&mut self, into: &mut Vec<Arc<Event>>, limit: usize) -> usize {
        let before = into.len();
        into.extend(self.backlog.by_ref().take(limit));
        match into.len() - before {
            0 => self.queue.recv_many(into, limit).await,
            taken => taken,
        }
    }

    /// A change that is already there, without waiting.
    pub fn try_next(&mut self) -> Option<Arc<Event>> {
        let queued = self.backlog.next();
        queued.or_else(|| self.queue.try_recv().ok())
    }

    /// Will `try_next` never give anything again?
    pub fn is_ended(&self) -> bool {
        self.backlog.len() == 0 && self.queue.is_empty() && self.queue.is_closed()
    }

    /// How far this watcher has come: when everything offered was taken, the store's revision, which a bookmark may
    /// carry. `None` while changes are waiting to be taken, or after the end.
    pub fn progress(&self) -> Option<Revision> {
        if self.backlog.len() > 0 {
            return None;
        }
        self.cache.quiet(|revision| {
            let idle = self.queue.is_empty() && !self.queue.is_closed();
            (idle && revision >= self.after).then_some(revision)
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.cache.forget(&self.place);
    }
}

//! The objects of one resource in key order, as a persistent set: a snapshot is a pointer copy. One entry costs one
//! pointer; its key is the object's own.

use std::borrow::Borrow;
use std::cmp::Ordering;
use std::ops::Bound;
use std::sync::Arc;

use imbl::OrdSet;

use crate::store::{Event, Revision, Stored};

/// Ordered by (namespace, name). Cloning is O(1).
#[derive(Clone, Default)]
pub(super) struct Objects(OrdSet<Entry>);

/// All objects of one resource as they were at one revision.
#[derive(Clone)]
pub struct Snapshot {
    /// A list made from this snapshot carries this resourceVersion.
    pub revision: Revision,
    objects: Objects,
}

#[derive(Clone)]
struct Entry(Arc<Stored>);

/// Something with a place in the order; look-ups borrow this, so that they need no allocation.
trait Place {
    fn place(&self) -> (&str, &str);
}

// === impl Place ===

impl Place for Entry {
    fn place(&self) -> (&str, &str) {
        (&self.0.key.namespace, &self.0.key.name)
    }
}

impl Place for (&str, &str) {
    fn place(&self) -> (&str, &str) {
        *self
    }
}

impl Ord for dyn Place + '_ {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for dyn Place + '_ {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for dyn Place + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for dyn Place + '_ {}

impl<'a> Borrow<dyn Place + 'a> for Entry {
    fn borrow(&self) -> &(dyn Place + 'a) {
        self
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place().cmp(&other.place())
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.place() == other.place()
    }
}

impl Eq for Entry {}

// === impl Objects ===

impl Objects {
    pub(super) fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Stored>> {
        let place: &dyn Place = &(namespace, name);
        self.0.get(place).map(|entry| &entry.0)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn put(&mut self, object: Arc<Stored>) -> Option<Arc<Stored>> {
        self.0.insert(Entry(object)).map(|entry| entry.0)
    }

    fn remove(&mut self, object: &Stored) {
        let place: &dyn Place = &(&*object.key.namespace, &*object.key.name);
        self.0.remove(place);
    }

    pub(super) fn apply(&mut self, event: &Event) {
        if event.deleted {
            self.remove(&event.object);
        } else {
            self.put(Arc::clone(&event.object));
        }
    }

    /// Takes `event`, the newest one applied, back.
    pub(super) fn undo(&mut self, event: &Event) {
        match &event.previous {
            Some(previous) => {
                self.put(Arc::clone(previous));
            }
            None => self.remove(&event.object),
        }
    }
}

// === impl Snapshot ===

impl Snapshot {
    pub(super) fn new(revision: Revision, objects: Objects) -> Self {
        Self { revision, objects }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<&Arc<Stored>> {
        self.objects.get(namespace, name)
    }

    /// Of all namespaces.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// In the order of (namespace, name).
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.0.iter().map(|entry| &entry.0)
    }

    /// The objects of one namespace, in the order of their names.
    pub fn in_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + 'a {
        self.from(Bound::Included((namespace, "")))
            .take_while(move |object| &*object.key.namespace == namespace)
    }

    /// The objects of one namespace or of all, behind `start` = (namespace, name), which need not exist:
    /// the next page of a list.
    pub fn page<'a>(
        &'a self,
        namespace: Option<&'a str>,
        start: Option<(&'a str, &'a str)>,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + 'a {
        let first = (namespace.unwrap_or_default(), "");
        let from = match start {
            Some(start) if start >= first => Bound::Excluded(start),
            _ => Bound::Included(first),
        };
        self.from(from)
            .take_while(move |object| namespace.is_none_or(|ns| &*object.key.namespace == ns))
    }

    fn from<'a>(
        &'a self,
        start: Bound<(&'a str, &'a str)>,
    ) -> impl Iterator<Item = &'a Arc<Stored>> + 'a {
        let range: (Bound<&dyn Place>, Bound<&dyn Place>) = (
            start.as_ref().map(|place| place as &dyn Place),
            Bound::Unbounded,
        );
        let entries = self.objects.0.range::<_, dyn Place>(range);
        entries.map(|entry| &entry.0)
    }
}

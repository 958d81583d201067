//! From rows to a cache, whatever the rows were in: opening what is sealed, indexing on all processors, and making
//! events of the log. What does not fit together is refused rather than served. Reads nothing itself.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::seal::{Sealed, Sealer};
use super::{Error, Event, Indexer, Key, Revision, Stored};
use crate::cache::{Loaded, Mark, Millis};

/// Objects from which on indexing is worth more than one thread.
const MANY: usize = 2_000;
/// Objects that an error names.
const SHOWN: usize = 3;

/// Collects rows in the order they are read: all objects, then all changes by revision.
#[derive(Default)]
pub(super) struct Rows {
    strings: Strings,
    raws: Vec<Raw>,
    /// As many of `raws` are objects; the others are states of the log.
    objects: usize,
    changes: Vec<Change>,
}

/// What a store says about itself.
pub(super) struct Counters {
    pub(super) revision: Revision,
    pub(super) written_at: Millis,
    pub(super) horizon: Revision,
    pub(super) marks: Vec<Mark>,
    pub(super) now: Millis,
}

/// A change as it is in the log.
pub(super) struct Entry {
    pub(super) revision: Revision,
    pub(super) created: Revision,
    pub(super) previous: Option<(Revision, Vec<u8>)>,
    /// What watchers were shown of a deletion.
    pub(super) last: Option<Vec<u8>>,
}

/// A state read, before it is opened and indexed.
struct Raw {
    key: Key,
    revision: Revision,
    created: Revision,
    bytes: Vec<u8>,
}

/// A change read; `Event` without the state it led to. Positions are among the states read.
struct Change {
    revision: Revision,
    key: Key,
    previous: Option<usize>,
    last: Option<usize>,
}

/// Resources and namespaces, each kept once.
#[derive(Default)]
struct Strings(HashMap<String, Arc<str>>);

// === impl Rows ===

impl Rows {
    /// `key`: resource, namespace, name.
    pub(super) fn object(
        &mut self,
        key: [&str; 3],
        revision: Revision,
        created: Revision,
        bytes: Vec<u8>,
    ) {
        let key = self.strings.key(key);
        self.state(key, revision, created, bytes);
        self.objects = self.raws.len();
    }

    pub(super) fn change(&mut self, key: [&str; 3], entry: Entry) {
        let key = self.strings.key(key);
        let Entry {
            revision, created, ..
        } = entry;
        let previous = entry.previous;
        let previous =
            previous.map(|(revision, bytes)| self.state(key.clone(), revision, created, bytes));
        let last = entry.last;
        let last = last.map(|bytes| self.state(key.clone(), revision, created, bytes));
        self.changes.push(Change {
            revision,
            key,
            previous,
            last,
        });
    }

    fn state(&mut self, key: Key, revision: Revision, created: Revision, bytes: Vec<u8>) -> usize {
        self.raws.push(Raw {
            key,
            revision,
            created,
            bytes,
        });
        self.raws.len() - 1
    }

    /// Everything that was read, as a cache takes it.
    pub(super) async fn finish(
        self,
        counters: Counters,
        indexer: Indexer,
        sealer: Arc<Sealer>,
    ) -> Result<Loaded, Error> {
        let work = move || self.finish_here(counters, &indexer, &sealer);
        tokio::task::spawn_blocking(work)
            .await
            .map_err(|error| Error::Unavailable(format!("indexing failed: {error}")))?
    }

    fn finish_here(
        self,
        counters: Counters,
        indexer: &Indexer,
        sealer: &Sealer,
    ) -> Result<Loaded, Error> {
        let Counters {
            revision,
            horizon,
            mut marks,
            ..
        } = counters;
        if revision > 0 {
            let at = counters.written_at;
            marks.push(Mark { at, revision });
        }
        // Several writers' clocks may differ by a little; time does not run backwards here.
        for next in 1..marks.len() {
            marks[next].at = marks[next].at.max(marks[next - 1].at);
        }
        let raws = open(self.raws, sealer)?;
        let mut states = index(raws, indexer);
        let events = link(&states, self.objects, &self.changes, horizon, revision)?;
        states.truncate(self.objects);
        Ok(Loaded {
            revision,
            horizon,
            objects: states,
            events,
            marks,
            now: counters.now,
        })
    }
}

/// Opens what is sealed, or says how much cannot be opened, and why.
fn open(mut raws: Vec<Raw>, sealer: &Sealer) -> Result<Vec<Raw>, Error> {
    let mut damaged = None;
    let mut unknown = BTreeMap::<String, usize>::new();
    let mut some = BTreeSet::new();
    for raw in &mut raws {
        match sealer.open(&raw.key, std::mem::take(&mut raw.bytes)) {
            Ok(bytes) => raw.bytes = bytes,
            Err(Sealed::UnknownKey(name)) => {
                *unknown.entry(name).or_default() += 1;
                if some.len() < SHOWN {
                    some.insert(raw.key.to_string());
                }
            }
            Err(Sealed::Damaged) => damaged = damaged.or_else(|| Some(raw.key.clone())),
        }
    }
    if !unknown.is_empty() {
        let count: usize = unknown.values().sum();
        let names: Vec<_> = unknown.into_keys().collect();
        let hint = if sealer.is_empty() {
            "no key was given (--encryption-key-file)"
        } else {
            "the key file does not have them"
        };
        let names = names.join(", ");
        let some = some.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::Unavailable(format!(
            "{count} stored states of objects (such as {some}) are sealed with keys ({names}) that are not here: {hint}"
        )));
    }
    match damaged {
        Some(key) => Err(broken(format!("the seal of {key} is broken"))),
        None => Ok(raws),
    }
}

/// Parses and indexes all states, on all processors when there are many.
fn index(raws: Vec<Raw>, indexer: &Indexer) -> Vec<Arc<Stored>> {
    let finish = |raw: Raw| {
        let index = indexer(&raw.key, &raw.bytes);
        Arc::new(Stored {
            key: raw.key,
            revision: raw.revision,
            created: raw.created,
            bytes: raw.bytes.into(),
            index,
        })
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if raws.len() < MANY || threads == 1 {
        return raws.into_iter().map(finish).collect();
    }
    let share = raws.len().div_ceil(threads);
    let mut rest = raws.into_iter();
    let shares: Vec<Vec<Raw>> = (0..threads)
        .map(|_| rest.by_ref().take(share).collect())
        .collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || share.into_iter().map(finish).collect::<Vec<_>>()))
            .collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(states) => states,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect()
    })
}

/// Makes events of changes, from the newest to the oldest: the state a change led to is what the next change of the
/// same object found, or the object as it is.
fn link(
    states: &[Arc<Stored>],
    objects: usize,
    changes: &[Change],
    horizon: Revision,
    revision: Revision,
) -> Result<Vec<Arc<Event>>, Error> {
    let mut current: HashMap<&Key, &Arc<Stored>> = HashMap::with_capacity(objects);
    for object in &states[..objects] {
        if object.revision > revision || current.insert(&object.key, object).is_some() {
            return Err(broken(format!("{} cannot be as it is", object.key)));
        }
    }
    if changes.len() as u64 != revision.saturating_sub(horizon) {
        let found = changes.len();
        let message = format!("{found} changes between revisions {horizon} and {revision}");
        return Err(broken(message));
    }
    let mut events = Vec::with_capacity(changes.len());
    for (change, expected) in changes.iter().rev().zip((0..=revision).rev()) {
        let after = match change.last {
            Some(last) if !current.contains_key(&change.key) => Some(&states[last]),
            Some(_) => None,
            None => current.remove(&change.key),
        };
        let after = after
            .filter(|state| state.revision == change.revision && change.revision == expected)
            .ok_or_else(|| broken(format!("revision {expected}, of {}", change.key)))?;
        let previous = change.previous.map(|previous| &states[previous]);
        if let Some(previous) = previous {
            current.insert(&change.key, previous);
        }
        let deleted = change.last.is_some();
        let event = Event::new(Arc::clone(after), previous.cloned(), deleted);
        events.push(Arc::new(event));
    }
    events.reverse();
    Ok(events)
}

pub(super) fn broken(what: String) -> Error {
    Error::Unavailable(format!("the database is damaged: {what}"))
}

// === impl Strings ===

impl Strings {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(text.to_owned(), Arc::clone(&new));
        new
    }

    fn key(&mut self, [resource, namespace, name]: [&str; 3]) -> Key {
        Key {
            resource: self.shared(resource),
            namespace: self.shared(namespace),
            name: name.into(),
        }
    }
}

/// Databases' integers are signed; revisions and times never reach the sign.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

pub(super) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

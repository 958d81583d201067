//! The one way into the cache of a shared store: what the writer committed, and what the follower read, in the order of
//! revisions, each once. Does no I/O.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::load::Step;
use crate::cache::{Cache, Loaded};
use crate::store::load::broken;
use crate::store::seal::Sealer;
use crate::store::{Error, Event, Index, Indexer, Key, Revision, Stored};

pub(super) struct Publisher {
    cache: Arc<Cache>,
    indexer: Indexer,
    sealer: Arc<Sealer>,
    step: Step,
    /// Held while something is published, never over an await.
    gate: Mutex<()>,
    /// The newest change that is published, and the commit it was part of.
    last: Mutex<Option<Committed>>,
    /// Why the database is not the one the cache came from any longer. Stays, whatever its numbers become.
    lost: OnceLock<Error>,
}

/// By which a change is known to be the same change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Committed {
    pub(super) revision: Revision,
    pub(super) commit: i64,
}

/// A row of the log, opened and indexed: what a change led to.
pub(super) struct Change {
    pub(super) revision: Revision,
    commit: i64,
    created: Revision,
    key: Key,
    previous: Option<Revision>,
    deleted: bool,
    bytes: Vec<u8>,
    index: Index,
}

/// A row of the log as it was read.
pub(super) struct Row {
    pub(super) revision: Revision,
    pub(super) commit: i64,
    pub(super) created: Revision,
    pub(super) key: Key,
    pub(super) previous: Option<Revision>,
    pub(super) deleted: bool,
    pub(super) bytes: Vec<u8>,
}

// === impl Publisher ===

impl Publisher {
    /// `last` is the newest change that `cache` has, unless its log is gone already.
    pub(super) fn new(
        cache: Arc<Cache>,
        last: Option<Committed>,
        indexer: Indexer,
        sealer: Arc<Sealer>,
    ) -> Self {
        Self {
            last: Mutex::new(last),
            lost: OnceLock::new(),
            cache,
            indexer,
            sealer,
            step: Step::default(),
            gate: Mutex::new(()),
        }
    }

    pub(super) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    pub(super) fn indexer(&self) -> Indexer {
        Arc::clone(&self.indexer)
    }

    pub(super) fn sealer(&self) -> Arc<Sealer> {
        Arc::clone(&self.sealer)
    }

    /// The newest change that is published, where its commit is known.
    pub(super) fn last(&self) -> Option<Committed> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on nothing is read from the database or written to it: the cache has what the database has lost. That its
    /// number catches up, by what others write, changes nothing. Answers the first reason.
    pub(super) fn lose(&self, why: Error) -> Error {
        tracing::error!(error = %why, "The database is not what it was");
        self.lost.get_or_init(|| why).clone()
    }

    /// # Errors
    /// When the database has lost what the cache has.
    pub(super) fn is_not_lost(&self) -> Result<(), Error> {
        self.lost.get().map_or(Ok(()), |why| Err(why.clone()))
    }

    /// How the log is read, whoever reads it.
    pub(super) fn step(&self) -> &Step {
        &self.step
    }

    /// Opens and indexes a row, before anything is locked.
    pub(super) fn read(&self, row: Row) -> Result<Change, Error> {
        let bytes = self.sealer.open(&row.key, row.bytes);
        let bytes = bytes.map_err(|why| Error::Unavailable(format!("{}: {why}", row.key)))?;
        let index = (self.indexer)(&row.key, &bytes);
        Ok(Change {
            revision: row.revision,
            commit: row.commit,
            created: row.created,
            key: row.key,
            previous: row.previous,
            deleted: row.deleted,
            bytes,
            index,
        })
    }

    /// Shows what this server has committed, as `commit`. The follower may have been quicker.
    pub(super) fn committed(&self, events: Vec<Arc<Event>>, commit: i64) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = self.cache.revision();
        let unseen = events.iter().position(|event| event.revision > reached);
        if let Some(unseen) = unseen {
            let newest = events.last().map(|event| event.revision);
            self.note(newest.map(|revision| Committed { revision, commit }));
            let events = events.into_iter().skip(unseen).collect();
            self.cache.publish(events, self.cache.now());
        }
    }

    /// Shows rows of the log, which follow each other. Those that the cache has already are passed over.
    ///
    /// # Errors
    /// When the rows do not go on where the cache is.
    pub(super) fn followed(&self, changes: Vec<Change>) -> Result<(), Error> {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        let reached = self.cache.revision();
        let mut events: Vec<Arc<Event>> = Vec::with_capacity(changes.len());
        let mut now: HashMap<Key, Option<Arc<Stored>>> = HashMap::new();
        let mut newest = None;
        let unseen = changes.into_iter().filter(|c| c.revision > reached);
        for (change, expected) in unseen.zip(reached + 1..) {
            let previous = match now.get(&change.key) {
                Some(state) => state.clone(),
                None => self.cache.get(&change.key),
            };
            let found = previous.as_ref().map(|previous| previous.revision);
            if change.revision != expected || change.previous != found {
                let Change { revision, key, .. } = change;
                let what = format!("revision {revision}, of {key}, does not follow {found:?}");
                return Err(broken(what));
            }
            let key = match &previous {
                Some(previous) => previous.key.clone(),
                None => self.cache.intern(change.key),
            };
            let object = Arc::new(Stored {
                key: key.clone(),
                revision: change.revision,
                created: change.created,
                bytes: change.bytes.into(),
                index: change.index,
            });
            newest = Some(Committed {
                revision: change.revision,
                commit: change.commit,
            });
            let state = (!change.deleted).then(|| Arc::clone(&object));
            now.insert(key, state);
            events.push(Arc::new(Event::new(object, previous, change.deleted)));
        }
        self.note(newest);
        self.cache.publish(events, self.cache.now());
        Ok(())
    }

    /// Starts over, if this is newer than what the cache has.
    pub(super) fn replace(&self, loaded: Loaded, last: Option<Committed>) {
        let _gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.revision > self.cache.revision() {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
            self.cache.replace(loaded);
        }
    }

    fn note(&self, newest: Option<Committed>) {
        if newest.is_some() {
            *self.last.lock().unwrap_or_else(PoisonError::into_inner) = newest;
        }
    }
}

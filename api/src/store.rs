//! The store: keys, bytes and revisions. It knows no kinds; all SQL of the project lives below this file.
//!
//! Promises, tested by one suite over every implementation (`api/tests/store.rs`):
//! 1. **One revision per change, gap-free, in commit order.** The first change of a new store has revision 1... every
//!    committed operation takes `last + 1`; a failed commit takes none.
//! 2. **All or nothing.** The operations of one `commit` happen together or not at all.
//! 3. **Durable.** When `commit` returned, the change survives `kill -9` and power loss.
//! 4. **Compare and set.** An operation whose `Expect` does not hold fails the whole commit with `Error::Conflict`, naming it.
//! 5. **Finished bytes.** What is stored is `head + revision + tail` of the draft; readers get exactly these bytes.
//! 6. **Read your writes.** When `commit` returned, the cache has the change, and watchers have been offered it, in order.
//! 7. **Compaction forgets history, never state.** A watch or exact read older than the horizon is `Error::Compacted`.
//! 8. **Full or broken disk**: writes fail with `Error::Full` / `Error::Unavailable`, reads go on, nothing is corrupted.
//! 9. **Bounded.** The queue of waiting commits is bounded; when it stays full until the deadline: `Error::Busy`.

use std::sync::Arc;

use bytes::Bytes;

/// Global, monotonic, gap-free; rendered as `metadata.resourceVersion`.
pub type Revision = u64;

/// Where one object lives.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    /// Storage name of the resource, `pods`, `apps/deployments`; `events` for both event groups.
    pub resource: Arc<str>,
    /// Empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    pub name: Arc<str>,
}

/// What readers select on without parsing the bytes.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Index {
    pub uid: Box<str>,
    pub labels: Box<[(Box<str>, Box<str>)]>,
    /// Selectable fields beside `metadata.name` and `metadata.namespace`: `("spec.nodeName", "n1")`.
    pub fields: Box<[(&'static str, Box<str>)]>,
}

/// An object at rest.
#[derive(Debug)]
pub struct Stored {
    pub key: Key,
    pub revision: Revision,
    /// The finished JSON, `metadata.resourceVersion` included. Begins `{"kind":"…","apiVersion":"…",`.
    pub bytes: Bytes,
    pub index: Index,
}

/// An object about to be stored: the revision's decimal digits are written between `head` and `tail`.
#[derive(Clone, Debug)]
pub struct Draft {
    pub head: Bytes,
    pub tail: Bytes,
    pub index: Index,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expect {
    Absent,
    At(Revision),
    /// Present or not.
    Any,
}

#[derive(Clone, Debug)]
pub enum Change {
    Put(Draft),
    /// The draft is the last state, which watchers are shown with the deletion's revision.
    Delete(Draft),
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub key: Key,
    pub expect: Expect,
    pub change: Change,
}

/// What a watcher sees.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: Revision,
    /// `None` after a deletion event's `object`… see `deleted`.
    pub object: Arc<Stored>,
    /// The state before; `None` when it was created.
    pub previous: Option<Arc<Stored>>,
    pub deleted: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("operation {operation} expected another state of {key:?}")]
    Conflict {
        operation: usize,
        key: Key,
        found: Option<Arc<Stored>>,
    },
    #[error("revision {requested} has been compacted; the oldest readable one is {oldest}")]
    Compacted {
        requested: Revision,
        oldest: Revision,
    },
    #[error("too many writes are waiting")]
    Busy,
    #[error("the disk is full")]
    Full,
    #[error("the store is unavailable: {0}")]
    Unavailable(String),
    #[error("the data directory is in use by another process: {0}")]
    Locked(String),
}

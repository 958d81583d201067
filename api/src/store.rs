//! The store: keys, bytes and revisions. It knows no kinds; all SQL of the project lives below this file.
//!
//! Promises, tested by one suite over every implementation (`api/tests/store.rs`):
//! 1. **One revision per change, gap-free, in commit order.** The first change of a new store has revision 1; every
//!    committed operation takes `last + 1`; a failed commit takes none.
//! 2. **All or nothing.** The operations of one `commit` happen together or not at all.
//! 3. **Durable.** When `commit` returned, the change survives `kill -9` and power loss (of the memory store: nothing does).
//! 4. **Compare and set.** An operation whose `Expect` does not hold fails the whole commit with `Error::Conflict`, naming it.
//! 5. **Finished bytes.** What is stored is `head + revision + tail` of the draft; readers get exactly these bytes.
//! 6. **Read your writes.** When `commit` returned, the cache has the change, and watchers have been offered it, in order.
//!    Nobody, by reading or by a conflict, learns of a change before it is durable.
//! 7. **Compaction forgets history, never state.** A watch or exact read older than the horizon is `Error::Compacted`.
//! 8. **Full or broken disk**: writes fail with `Error::Full` / `Error::Unavailable`, reads go on, nothing is corrupted.
//! 9. **Bounded.** The queue of waiting commits is bounded; when it stays full until the deadline: `Error::Busy`.
//! 10. **Replicas.** Where several processes share a store, all of this holds across them: one order of revisions, in
//!     which each cache is a prefix; expectations are decided on the newest state; after `newest` a cache has what any
//!     process acknowledged before.

mod batch;
pub(crate) mod line;
mod load;
pub mod memory;
mod place;
pub mod postgres;
mod queue;
mod reseal;
pub mod seal;
pub mod sqlite;

use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

pub use self::place::{Error as NotAPlace, Place};
pub use self::queue::Limits;
use crate::cache::Cache;

/// Global, monotonic, gap-free; rendered as `metadata.resourceVersion`.
pub type Revision = u64;

/// Works out an object's [`Index`] from its bytes, when a store is loaded.
pub type Indexer = Arc<dyn Fn(&Key, &[u8]) -> Index + Send + Sync>;

/// Where objects are kept. See the module for what every implementation promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The read side. It is complete from the moment the store is open.
    fn cache(&self) -> &Arc<Cache>;

    /// Makes all `operations` happen, or none. Later operations see the effect of earlier ones. Answers in the same
    /// order; for a deletion with the last state under the deletion's revision.
    ///
    /// Dropping the future does not take the operations back: they may still happen.
    async fn commit(&self, operations: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error>;

    /// Whether other processes may write too.
    fn is_shared(&self) -> bool {
        false
    }

    /// Waits until the cache has everything that was acknowledged, by whichever process, before this call. `None` where
    /// only this process writes: then the cache has it already.
    fn newest(&self) -> Option<BoxFuture<'_, Result<(), Error>>> {
        None
    }

    /// Forgets history up to and including `through` (at most the newest revision). Retention does this by itself;
    /// this is for whoever wants it sooner.
    async fn compact(&self, through: Revision) -> Result<(), Error>;

    /// The error of the last write when the medium is to blame; what a readiness check asks.
    fn health(&self) -> Result<(), Error>;

    /// Finishes what is queued, ends all watches, lets go of the medium. Later commits are `Unavailable`, reads go on.
    async fn close(&self);
}

/// Where one object lives.
#[derive(Clone, Eq, Hash, Ord, PartialEq, PartialOrd)]
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
    /// The revision that created the object; stays the same until it is deleted.
    pub created: Revision,
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
    /// A put: present or not. A deletion: present, at whatever revision.
    Any,
}

#[derive(Clone, Debug)]
pub enum Change {
    Put(Draft),
    /// The draft is the last state, which watchers are shown with the deletion's revision. Deleting what is not there
    /// is a conflict whatever was expected.
    Delete(Draft),
}

#[derive(Clone, Debug)]
pub struct Operation {
    pub key: Key,
    pub expect: Expect,
    pub change: Change,
}

/// One change, as watchers see it.
#[derive(Debug)]
pub struct Event {
    pub revision: Revision,
    /// The new state; of a deletion the last state, under the deletion's revision.
    pub object: Arc<Stored>,
    /// The state before; `None` when this created the object.
    pub previous: Option<Arc<Stored>>,
    pub deleted: bool,
    /// Read by [`Event::line`], which fills it where the object was not made inside it.
    line: OnceLock<Bytes>,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("operation {operation} expected another state of {key:?}")]
    Conflict {
        /// Position in the commit.
        operation: usize,
        key: Key,
        /// What is there instead.
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

// === impl Key ===

impl Key {
    pub fn new(resource: &str, namespace: &str, name: &str) -> Self {
        Self {
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

/// `pods/default/web-0`, `nodes/n1`.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.resource, self.name)
        } else {
            write!(f, "{}/{}/{}", self.resource, self.namespace, self.name)
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

// === impl Index ===

impl Index {
    pub fn label(&self, key: &str) -> Option<&str> {
        let found = self.labels.iter().find(|(k, _)| &**k == key);
        found.map(|(_, value)| &**value)
    }

    pub fn field(&self, path: &str) -> Option<&str> {
        let found = self.fields.iter().find(|(p, _)| *p == path);
        found.map(|(_, value)| &**value)
    }
}

// === impl Draft ===

impl Draft {
    /// The finished bytes of this draft under `revision`.
    pub fn finish(&self, revision: Revision) -> Bytes {
        self.finish_in_line("", revision).1
    }

    /// The line that tells watchers of the change, and the finished bytes as a part of it.
    fn finish_in_line(&self, kind_of_change: &str, revision: Revision) -> (Bytes, Bytes) {
        let mut digits = [0u8; 20];
        let digits = decimal(revision, &mut digits);
        line::of_parts(kind_of_change, &[&self.head, digits, &self.tail])
    }
}

/// Writes `number` at the end of `buffer` and returns its digits.
fn decimal(mut number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    loop {
        at -= 1;
        buffer[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &buffer[at..];
        }
    }
}

// === impl Event ===

impl Event {
    pub fn new(object: Arc<Stored>, previous: Option<Arc<Stored>>, deleted: bool) -> Self {
        Self {
            revision: object.revision,
            object,
            previous,
            deleted,
            line: OnceLock::new(),
        }
    }

    /// `line`: what holds the object's bytes.
    fn in_line(self, line: Bytes) -> Self {
        Self {
            line: line.into(),
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draft_is_finished_with_the_digits_of_its_revision() {
        for revision in [0, 7, 10, 1234, u64::MAX] {
            let draft = Draft {
                head: "{\"rv\":\"".into(),
                tail: "\"}".into(),
                index: Index::default(),
            };
            assert_eq!(
                draft.finish(revision),
                Bytes::from(format!("{{\"rv\":\"{revision}\"}}"))
            );
        }
    }
}

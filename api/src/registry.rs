//! Every write: one transaction from a decoded object to committed bytes. Generic; no kind is named here.
//!
//! ```text
//! create:  new ─► default ─► own ─► mutate ─► prepare ─► name, uid ─► validate ─► validating admission ─► allocate ─► commit
//! update:  read old from the cache ─► new = transform(old) ─► keep what may not change ─► (as above) ─► commit at old's
//!          revision; on conflict again, unless the caller named a revision. No difference: nothing is written.
//! delete:  preconditions ─► grace, finalizers by propagation policy ─► marked as deleting, or gone
//! ```
//! `commit` is the store's; what has to happen together (an object and its allocations) is one commit.

pub mod delete;
pub mod encode;
mod lookup;
mod system;
mod write;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::auth::User;
use crate::handlers::Api;
use crate::kinds::Kind;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::status::Error;
use crate::store::{Index, Key, Stored};

pub use lookup::Lookups;
pub(crate) use system::suffix;
pub use system::time;

/// One write and who does it.
pub struct Registry<'a> {
    pub api: &'a Api,
    pub kind: &'a Kind,
    pub door: Door<'a>,
    /// Empty for cluster-scoped kinds.
    pub namespace: &'a str,
    pub user: &'a User,
    /// Who will own the fields this write sets; empty: no ownership is recorded.
    pub manager: &'a str,
    pub dry_run: bool,
    /// The server's own writes skip the kind's validation.
    pub trusted: bool,
    pub now: Timestamp,
    /// Texts for `Warning:` headers, collected on the way.
    pub warnings: Vec<String>,
}

/// The result of a write.
pub struct Outcome {
    /// Finished bytes in the row's own version.
    pub bytes: Bytes,
    pub created: bool,
    /// The object is gone from the store.
    pub deleted: bool,
}

/// How often a write that named no revision is tried against a moving object. Every lost race means that another write
/// succeeded, so this is only reached under absurd contention.
const ATTEMPTS: usize = 100;

/// What a transform made of the current object.
pub struct Change {
    pub new: Object,
    /// Field ownership has been worked out already (server-side apply).
    pub owned: bool,
}

// === impl Registry ===

impl<'a> Registry<'a> {
    pub fn key(&self, name: &str) -> Key {
        Key::new(&self.kind.storage, self.namespace, name)
    }

    /// The object as this row's version shows it.
    pub fn read(&self, stored: &Stored) -> Result<Object, Error> {
        parse(self.kind, &stored.bytes)
    }

    pub fn find(&self, name: &str) -> Result<Arc<Stored>, Error> {
        self.api
            .cache
            .find(&self.kind.storage, self.namespace, name)
            .ok_or_else(|| self.not_found(name))
    }

    pub fn not_found(&self, name: &str) -> Error {
        Error::not_found(&self.kind.group, &self.kind.plural, name)
    }

    fn modified(&self, name: &str) -> Error {
        Error::modified(&self.kind.group, &self.kind.plural, name)
    }

    fn lookups(&self) -> Lookups<'a> {
        Lookups::new(self.api, self.now)
    }

    /// The stored form and its index.
    fn stored_form<'o>(&self, object: &'o Object) -> (Cow<'o, Object>, Index) {
        let Some(convert) = self.kind.convert else {
            return (Cow::Borrowed(object), index(self.kind, object));
        };
        let stored = convert.store(object.clone());
        let row = self.api.kinds.stored(&self.kind.storage);
        let index = index(row.unwrap_or(self.kind), &stored);
        (Cow::Owned(stored), index)
    }

    fn outcome(&self, stored: &Stored, created: bool) -> Result<Outcome, Error> {
        Ok(Outcome {
            bytes: serve(self.kind, stored)?,
            created,
            deleted: false,
        })
    }
}

/// Parses stored bytes into the form of `kind`'s row.
pub fn parse(kind: &Kind, bytes: &[u8]) -> Result<Object, Error> {
    let value = serde_json::from_slice(bytes)
        .map_err(|error| Error::internal(format!("a stored {} is broken: {error}", kind.kind)))?;
    let object = Object::new(value)
        .map_err(|_| Error::internal(format!("a stored {} is not an object", kind.kind)))?;
    Ok(match kind.convert {
        Some(convert) => convert.serve(object),
        None => object,
    })
}

/// Finished bytes in the form of `kind`'s row: the stored ones, unless another version is stored.
pub fn serve(kind: &Kind, stored: &Stored) -> Result<Bytes, Error> {
    match kind.convert {
        None => Ok(stored.bytes.clone()),
        Some(_) => Ok(encode::finished(&parse(kind, &stored.bytes)?)),
    }
}

/// What readers select on. `object` is in the stored form, `row` the row of that form.
pub fn index(row: &Kind, object: &Object) -> Index {
    let boxed = |(key, value): (&str, &str)| (Box::from(key), Box::from(value));
    Index {
        uid: Box::from(object.uid()),
        labels: object.labels().map(boxed).collect(),
        fields: row
            .strategy
            .fields(object)
            .into_iter()
            .map(|(name, value)| (name, value.into_boxed_str()))
            .collect(),
    }
}

/// Works out the index of what a store loads.
pub fn indexer(kinds: &'static crate::kinds::Kinds) -> crate::store::Indexer {
    Arc::new(move |key: &Key, bytes: &[u8]| {
        let Some(row) = kinds.stored(&key.resource) else {
            return Index::default();
        };
        let object = serde_json::from_slice(bytes).ok().map(Object::new);
        match object {
            Some(Ok(object)) => index(row, &object),
            _ => Index::default(),
        }
    })
}

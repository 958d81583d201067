//! The embedded store: one SQLite file, one process.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Error, Indexer, Operation, Revision, Store, Stored};
use crate::cache::{self, Cache};

pub struct Sqlite {
    never: Infallible,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub cache: cache::Config,
    /// The database refuses to grow beyond this and reports `Error::Full`; `None`: only the disk is the limit.
    pub max_bytes: Option<u64>,
}

impl Sqlite {
    /// Opens or creates the database `path`, and loads it.
    pub async fn open(path: &Path, indexer: Indexer) -> Result<Self, Error> {
        Self::open_with(path, indexer, Options::default()).await
    }

    pub async fn open_with(path: &Path, _: Indexer, _: Options) -> Result<Self, Error> {
        let message = format!("SQLite is not built yet ({})", path.display());
        Err(Error::Unavailable(message))
    }
}

#[async_trait]
impl Store for Sqlite {
    fn cache(&self) -> &Arc<Cache> {
        match self.never {}
    }

    async fn commit(&self, _: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error> {
        match self.never {}
    }

    async fn compact(&self, _: Revision) -> Result<(), Error> {
        match self.never {}
    }

    fn health(&self) -> Result<(), Error> {
        match self.never {}
    }

    async fn close(&self) {
        match self.never {}
    }
}

//! The store without a disk: for tests, also under tokio's paused clock. Its state is the cache and nothing else.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::batch::Batch;
use super::{Error, Operation, Revision, Store, Stored};
use crate::cache::{self, Cache};

pub struct Memory {
    cache: Arc<Cache>,
    /// Held while one commit is decided and published, never over an await. Says whether the store is open.
    open: Mutex<bool>,
}

// === impl Memory ===

impl Memory {
    pub fn new() -> Self {
        Self::with(cache::Config::default())
    }

    pub fn with(config: cache::Config) -> Self {
        Self {
            cache: Arc::new(Cache::new(config)),
            open: Mutex::new(true),
        }
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Store for Memory {
    fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    async fn commit(&self, operations: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if !*open {
            return Err(closed());
        }
        let mut batch = Batch::new(&self.cache);
        let answers = batch.apply(operations)?;
        self.cache.publish(batch.into_events(), self.cache.now());
        Ok(answers)
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        self.cache.compact(through);
        Ok(())
    }

    fn health(&self) -> Result<(), Error> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if *open { Ok(()) } else { Err(closed()) }
    }

    async fn close(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.cache.end_watches();
    }
}

fn closed() -> Error {
    Error::Unavailable("it has been closed".to_owned())
}

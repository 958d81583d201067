//! The embedded store: one SQLite file, owned by one process.
//!
//! ```text
//! commit ─► bounded queue ─► the writer: decide many commits against the cache ─► one transaction, flushed
//!                                        └─► publish to the cache ─► answer each commit
//! ```
//! The file is read once, at start; every read after that is the cache's. This file owns opening and the queue;
//! [`writer`] owns the connection; [`load`] reads; [`statements`] has the SQL of a batch.

mod file;
mod load;
mod reseal;
mod statements;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::error::chain;

use self::writer::Writer;
use super::queue::{Health, Limits, Queue};
use super::seal::Sealer;
use super::{Error, Indexer, Operation, Revision, Store, Stored};
use crate::cache::{self, Cache};

#[derive(Clone, Debug)]
pub struct Options {
    pub cache: cache::Config,
    /// The database refuses to grow beyond this and reports `Error::Full`; `None`: only the disk is the limit.
    pub max_bytes: Option<u64>,
    pub queue: Limits,
    pub sealer: Arc<Sealer>,
    /// How long a write waits for somebody else's lock on the file (a backup tool's) before it is `Unavailable`.
    pub lock_deadline: Duration,
    /// Pause between looks for history to compact.
    pub housekeeping: Duration,
}

/// See the module. Dropping it closes the file after what is queued; [`Store::close`] waits for that.
pub struct Sqlite {
    cache: Arc<Cache>,
    queue: Queue,
    health: Arc<Health>,
    closing: CancellationToken,
    writer: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: cache::Config::default(),
            max_bytes: None,
            queue: Limits::default(),
            sealer: Arc::default(),
            lock_deadline: Duration::from_secs(5),
            housekeeping: Duration::from_secs(30),
        }
    }
}

// === impl Sqlite ===

impl Sqlite {
    /// Opens or creates the database at `path`, whose directory exists, and loads it. `indexer` is asked once per
    /// object and per superseded state, from several threads when there are many.
    ///
    /// # Errors
    /// `Locked` when another process (or another `Sqlite`) has it open; `Unavailable` when it cannot be read, is
    /// damaged, or was written by a newer version; `Full` when it cannot be created for want of space.
    pub async fn open(path: &Path, indexer: Indexer) -> Result<Self, Error> {
        Self::open_with(path, indexer, Options::default()).await
    }

    pub async fn open_with(path: &Path, indexer: Indexer, options: Options) -> Result<Self, Error> {
        let lock = file::lock(path)?;
        let mut connection = file::connect(path, &options).await?;
        file::migrate(&mut connection).await?;
        let loaded = load::load(&mut connection, indexer, Arc::clone(&options.sealer)).await?;
        reseal::run(&mut connection, &options.sealer).await?;
        let horizon = loaded.horizon;
        let cache = Arc::new(Cache::load(options.cache.clone(), loaded));
        let health = Arc::<Health>::default();
        let closing = CancellationToken::new();
        let (queue, requests) = Queue::new(options.queue.clone());
        let writer = Writer::new(
            Arc::clone(&cache),
            requests,
            file::Owned::new(path, &options, lock),
            connection,
            horizon,
            Arc::clone(&health),
            Arc::clone(&options.sealer),
        );
        let writer = tokio::spawn(writer.run(options.housekeeping, closing.clone()));
        Ok(Self {
            cache,
            queue,
            health,
            closing,
            writer: tokio::sync::Mutex::new(Some(writer)),
        })
    }

    fn closed(&self) -> Error {
        let why = if self.closing.is_cancelled() {
            "it has been closed"
        } else {
            "its writer has stopped"
        };
        Error::Unavailable(why.to_owned())
    }
}

impl Drop for Sqlite {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

#[async_trait]
impl Store for Sqlite {
    fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    async fn commit(&self, operations: Vec<Operation>) -> Result<Vec<Arc<Stored>>, Error> {
        if operations.is_empty() {
            return Ok(Vec::new());
        }
        self.queue.commit(operations, || self.closed()).await
    }

    async fn compact(&self, through: Revision) -> Result<(), Error> {
        // The writer's housekeeping lets the file follow.
        self.cache.compact(through);
        Ok(())
    }

    fn health(&self) -> Result<(), Error> {
        if self.queue.is_closed() {
            return Err(self.closed());
        }
        self.health.get().map_or(Ok(()), Err)
    }

    async fn close(&self) {
        self.closing.cancel();
        self.cache.end_watches();
        let writer = self.writer.lock().await.take();
        if let Some(writer) = writer
            && let Err(error) = writer.await
        {
            tracing::error!(error = %chain(&error), "The store's writer failed");
        }
    }
}

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
mod statements;
mod writer;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::writer::{Request, Writer};
use super::{Change, Error, Indexer, Operation, Revision, Store, Stored};
use crate::cache::{self, Cache};

/// How long an accepted commit waits for the disk before its caller is told that nobody knows.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The queue's permits are of this many bytes.
const PERMIT_BYTES: usize = 1 << 10;

#[derive(Clone, Debug)]
pub struct Options {
    pub cache: cache::Config,
    /// The database refuses to grow beyond this and reports `Error::Full`; `None`: only the disk is the limit.
    pub max_bytes: Option<u64>,
    /// Commits waiting at most…
    pub queue: usize,
    /// …and the bytes of their drafts.
    pub queue_bytes: usize,
    /// How long a commit waits for a place in the queue before it is `Error::Busy`.
    pub queue_deadline: Duration,
    /// How long a write waits for somebody else's lock on the file (a backup tool's) before it is `Unavailable`.
    pub lock_deadline: Duration,
    /// Pause between looks for history to compact.
    pub housekeeping: Duration,
}

/// See the module. Dropping it closes the file after what is queued; [`Store::close`] waits for that.
pub struct Sqlite {
    cache: Arc<Cache>,
    queue: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    options: Options,
    health: Arc<Health>,
    closing: CancellationToken,
    writer: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

/// The last write's error, while it is the medium's.
#[derive(Default)]
struct Health(Mutex<Option<Error>>);

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self {
            cache: cache::Config::default(),
            max_bytes: None,
            queue: 1_024,
            queue_bytes: 64 << 20,
            queue_deadline: Duration::from_secs(5),
            lock_deadline: Duration::from_secs(5),
            housekeeping: Duration::from_secs(30),
        }
    }
}

// === impl Health ===

impl Health {
    fn set(&self, error: Option<Error>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    fn get(&self) -> Option<Error> {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        error.clone()
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
        let loaded = load::load(&mut connection, indexer).await?;
        let horizon = loaded.horizon;
        let cache = Arc::new(Cache::load(options.cache.clone(), loaded));
        let health = Arc::<Health>::default();
        let closing = CancellationToken::new();
        let (queue, requests) = mpsc::channel(options.queue);
        let writer = Writer::new(
            Arc::clone(&cache),
            requests,
            file::Owned::new(path, &options, lock),
            connection,
            horizon,
            Arc::clone(&health),
        );
        let writer = tokio::spawn(writer.run(options.housekeeping, closing.clone()));
        Ok(Self {
            cache,
            queue,
            room: Arc::new(Semaphore::new(options.queue_bytes / PERMIT_BYTES)),
            options,
            health,
            closing,
            writer: tokio::sync::Mutex::new(Some(writer)),
        })
    }

    async fn enqueue(
        &self,
        operations: Vec<Operation>,
    ) -> Result<oneshot::Receiver<Result<Vec<Arc<Stored>>, Error>>, Error> {
        let bytes: usize = operations.iter().map(size).sum();
        // A single commit larger than the whole queue gets all of it.
        let permits = (bytes / PERMIT_BYTES + 1).min(self.options.queue_bytes / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let waited = timeout(self.options.queue_deadline, async {
            let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
            let slot = self.queue.reserve().await;
            room.ok().zip(slot.ok())
        });
        let (room, slot) = waited
            .await
            .map_err(|_| Error::Busy)?
            .ok_or_else(|| self.closed())?;
        let (reply, answer) = oneshot::channel();
        slot.send(Request {
            operations,
            reply,
            room,
        });
        Ok(answer)
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

fn size(operation: &Operation) -> usize {
    let (Change::Put(draft) | Change::Delete(draft)) = &operation.change;
    draft.head.len() + draft.tail.len()
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
        let answer = self.enqueue(operations).await?;
        match timeout(ANSWER_DEADLINE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.closed()),
            Err(_) => {
                let why = format!("no answer from the disk in {ANSWER_DEADLINE:?}");
                Err(Error::Unavailable(why))
            }
        }
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
            tracing::error!(%error, "The store's writer failed");
        }
    }
}

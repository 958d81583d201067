//! The one task that writes: it takes what has queued up while the disk was busy, decides all of it, and makes it
//! durable with one flush. In quiet moments it lets the file forget what the cache has forgotten.

use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use types::error::chain;

use super::statements::{Statements, Transaction};
use super::{file, load};
use crate::cache::Cache;
use crate::store::batch::Batch;
use crate::store::load::signed;
use crate::store::queue::{Health, Request};
use crate::store::seal::Sealer;
use crate::store::{Error, Revision};

/// Commits of one transaction…
const MOST_REQUESTS: usize = 256;
/// …and operations, beyond which no further commit is added.
const MOST_OPERATIONS: usize = 512;
/// Changes forgotten by one transaction.
const COMPACT_STEP: u64 = 500;
/// Changes the file may be behind the cache's horizon before batches have to help.
const COMPACT_BEHIND: u64 = 5_000;
/// Pause after a failure before the file is opened again.
const REOPEN_PAUSE: Duration = Duration::from_secs(1);
/// Free pages above which the file is shrunk, when they are also a quarter of it; and how many at a time.
const FREE_PAGES: i64 = 1_024;

pub(super) struct Writer {
    cache: Arc<Cache>,
    queue: mpsc::Receiver<Request>,
    file: file::Owned,
    /// `None` after a failure, until the file could be opened again.
    connection: Option<SqliteConnection>,
    reopen_at: Instant,
    statements: Statements,
    /// What the file has forgotten; at or behind the cache's horizon.
    horizon: Revision,
    health: Arc<Health>,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        cache: Arc<Cache>,
        queue: mpsc::Receiver<Request>,
        file: file::Owned,
        connection: SqliteConnection,
        horizon: Revision,
        health: Arc<Health>,
        sealer: Arc<Sealer>,
    ) -> Self {
        Self {
            cache,
            queue,
            file,
            connection: Some(connection),
            reopen_at: Instant::now(),
            statements: Statements::new(sealer),
            horizon,
            health,
        }
    }

    /// Runs until `closing`, and then until the queue is empty.
    pub(super) async fn run(mut self, housekeeping: Duration, closing: CancellationToken) {
        let mut look = interval(housekeeping);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut compacting = false;
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                request = self.queue.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => break,
                },
                () = std::future::ready(()), if compacting => compacting = self.compact().await,
                _ = look.tick() => {
                    self.cache.trim();
                    self.probe().await;
                    self.shrink().await;
                    compacting = true;
                }
            }
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::warn!(error = %chain(&error), "Could not close the database");
        }
    }

    /// Commits `first` and whatever else is waiting.
    async fn serve(&mut self, first: Request) {
        // Those just answered may be about to ask again: let them join this flush.
        tokio::task::yield_now().await;
        let cache = Arc::clone(&self.cache);
        let mut batch = Batch::new(&cache);
        let mut answers = Vec::new();
        let mut next = Some(first);
        while let Some(request) = next {
            let Request {
                operations,
                reply,
                room,
                ..
            } = request;
            answers.push((reply, batch.apply(operations), room));
            let full = answers.len() >= MOST_REQUESTS || batch.events().len() >= MOST_OPERATIONS;
            next = if full {
                None
            } else {
                self.queue.try_recv().ok()
            };
        }
        let mut failure = None;
        if !batch.events().is_empty() {
            let at = cache.now();
            let transaction = Transaction::new(&batch, at, cache.due_mark(at));
            match self.write(transaction).await {
                Ok(()) => cache.publish(batch.into_events(), at),
                // A conflict may have been with a change that did not happen: nobody is told of it.
                Err(error) => failure = Some(error),
            }
        }
        for (reply, answer, room) in answers {
            let answer = failure.clone().map_or(answer, Err);
            // Whoever asked may have gone; the change stands.
            drop(reply.send(answer));
            drop(room);
        }
    }

    /// One transaction. A full disk is met by giving up the history, and one more attempt.
    async fn write(&mut self, transaction: Transaction) -> Result<(), Error> {
        let behind = self.cache.horizon() - self.horizon > COMPACT_BEHIND;
        let step = behind.then(|| self.step());
        let transaction = transaction.compacting(step);
        let mut written = self.attempt(&transaction, step).await;
        if matches!(written, Err(Error::Full)) && self.cache.stats().events > 0 {
            self.cache.compact(self.cache.revision());
            self.empty_log().await;
            while self.compact().await {}
            written = self.attempt(&transaction.compacting(None), None).await;
        }
        written
    }

    async fn attempt(
        &mut self,
        transaction: &Transaction,
        horizon: Option<Revision>,
    ) -> Result<(), Error> {
        let mut connection = self.connect().await?;
        let done = self.statements.run(&mut connection, transaction).await;
        if let Err(error) = done {
            let message = error.to_string();
            let error = file::refused(error);
            tracing::warn!(error = %message, "Could not write to the database");
            self.health.set(Some(error.clone()));
            // SQLite may have rolled back by itself already.
            let rolled_back = sqlx::query("ROLLBACK").execute(&mut connection).await;
            tracing::debug!(?rolled_back, "Rolled back");
            if matches!(error, Error::Full) {
                self.connection = Some(connection);
            } else {
                self.reopen_at = Instant::now() + REOPEN_PAUSE;
                drop(connection.close().await);
            }
            return Err(error);
        }
        self.connection = Some(connection);
        self.health.set(None);
        self.horizon = self.horizon.max(horizon.unwrap_or(0));
        Ok(())
    }

    /// The connection; opened again after a failure, if the file is where the cache is.
    async fn connect(&mut self) -> Result<SqliteConnection, Error> {
        if let Some(connection) = self.connection.take() {
            return Ok(connection);
        }
        if Instant::now() < self.reopen_at {
            let known = self.health.get();
            return Err(known.unwrap_or_else(|| Error::Unavailable("it failed".to_owned())));
        }
        self.reopen_at = Instant::now() + REOPEN_PAUSE;
        let mut connection = self.file.connect().await?;
        let (found, _, _) = load::counters(&mut connection).await?;
        let expected = self.cache.revision();
        if found != expected {
            // The write that failed has reached the disk after all: only a fresh start can tell what it was.
            return Err(Error::Unavailable(format!(
                "the database is at revision {found} instead of {expected}; restart to load it"
            )));
        }
        Ok(connection)
    }

    /// After a failure, finds out whether the medium is back though nobody writes.
    async fn probe(&mut self) {
        if matches!(self.health.get(), Some(Error::Unavailable(_))) {
            let nothing = Transaction::compaction(self.horizon);
            // A failure has been logged, and is the health still.
            drop(self.attempt(&nothing, None).await);
        }
    }

    /// The next horizon on the way to the cache's.
    fn step(&self) -> Revision {
        self.cache.horizon().min(self.horizon + COMPACT_STEP)
    }

    /// Lets the file forget a little. Says whether there is more.
    async fn compact(&mut self) -> bool {
        let step = self.step();
        if step <= self.horizon {
            return false;
        }
        let done = self
            .attempt(&Transaction::compaction(step), Some(step))
            .await;
        done.is_ok() && self.step() > self.horizon
    }

    /// Copies the write-ahead log into the database, so that the log's room can be used again.
    async fn empty_log(&mut self) {
        if let Some(connection) = &mut self.connection {
            let sql = "PRAGMA wal_checkpoint(TRUNCATE)";
            let done = sqlx::query(sql).execute(connection).await;
            tracing::info!(?done, "Emptied the log because the disk is full");
        }
    }

    /// Drops old marks, and gives free pages back to the file system, some at a time.
    async fn shrink(&mut self) {
        let oldest = self.cache.oldest_mark().map_or(0, |mark| mark.revision);
        let Some(connection) = &mut self.connection else {
            return;
        };
        let shrunk = async {
            sqlx::query("DELETE FROM marks WHERE revision < ?")
                .bind(signed(oldest))
                .execute(&mut *connection)
                .await?;
            let free = "SELECT f.freelist_count, p.page_count FROM pragma_freelist_count f, pragma_page_count p";
            let row = sqlx::query(free).fetch_one(&mut *connection).await?;
            let (free, pages) = (row.get::<i64, _>(0), row.get::<i64, _>(1));
            if free > FREE_PAGES && free * 4 > pages {
                sqlx::query("PRAGMA incremental_vacuum(1024)")
                    .execute(&mut *connection)
                    .await?;
            }
            Ok::<_, sqlx::Error>(())
        };
        if let Err(error) = shrunk.await {
            tracing::warn!(error = %chain(&error), "Could not shrink the database");
        }
    }
}

//! In quiet moments lets the database forget what this server's cache has forgotten; of several servers one at a time.

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Row};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::connect::{COMPACTING, Server};
use crate::cache::Cache;
use crate::store::Revision;
use crate::store::load::{signed, unsigned};

/// Changes forgotten by one transaction.
const STEP: u64 = 500;
/// For one round.
const ROUND: Duration = Duration::from_secs(60);

pub(super) struct Keeper {
    server: Arc<Server>,
    connection: Option<PgConnection>,
    cache: Arc<Cache>,
    /// What the database has forgotten, or a little less.
    forgotten: Revision,
}

// === impl Keeper ===

impl Keeper {
    pub(super) fn new(server: Arc<Server>, cache: Arc<Cache>, forgotten: Revision) -> Self {
        Self {
            server,
            connection: None,
            cache,
            forgotten,
        }
    }

    pub(super) async fn run(mut self, every: Duration, closing: CancellationToken) {
        let mut look = interval(every);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                _ = look.tick() => {}
            }
            self.cache.trim();
            tokio::select! {
                biased;
                () = closing.cancelled() => break,
                done = timeout(ROUND, self.compact()) => if let Ok(Err(why)) = done {
                    tracing::warn!(error = %why, "Could not compact the database");
                },
            }
        }
        if let Some(connection) = self.connection.take() {
            drop(connection.close().await);
        }
    }

    /// Lets the database catch up with the cache's horizon.
    async fn compact(&mut self) -> Result<(), String> {
        while self.forgotten < self.cache.horizon() {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => self.server.connect().await.map_err(|e| e.to_string())?,
            };
            let step = self.cache.horizon().min(self.forgotten + STEP);
            let oldest = self.cache.oldest_mark().map_or(0, |mark| mark.revision);
            let stepped = forget(&mut connection, step, oldest).await;
            let stepped = stepped.map_err(|error| error.to_string())?;
            self.connection = Some(connection);
            let Some(forgotten) = stepped else {
                // Another server is at it.
                return Ok(());
            };
            self.forgotten = forgotten;
        }
        Ok(())
    }
}

/// One step, unless another server is compacting. Answers the horizon.
async fn forget(
    connection: &mut PgConnection,
    through: Revision,
    oldest_mark: Revision,
) -> Result<Option<Revision>, sqlx::Error> {
    let mut transaction = connection.begin().await?;
    let row = sqlx::query("SELECT pg_try_advisory_xact_lock($1)")
        .bind(COMPACTING)
        .fetch_one(&mut *transaction)
        .await?;
    if !row.get::<bool, _>(0) {
        transaction.rollback().await?;
        return Ok(None);
    }
    let row = sqlx::query(
        "UPDATE coracle.horizon SET revision = greatest(revision, $1) RETURNING revision",
    )
    .bind(signed(through))
    .fetch_one(&mut *transaction)
    .await?;
    let horizon = unsigned(row.get(0));
    sqlx::query("DELETE FROM coracle.history WHERE revision <= $1")
        .bind(signed(horizon))
        .execute(&mut *transaction)
        .await?;
    sqlx::query("DELETE FROM coracle.marks WHERE revision < $1")
        .bind(signed(oldest_mark))
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Some(horizon))
}

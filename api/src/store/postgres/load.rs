//! Reads the database: all of it at start, and the log after a revision from then on. Writes nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::TryStreamExt;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Executor, Row};
use tokio::time::timeout;

use super::connect::{Failure, judge};
use super::publisher::{self, Committed, Publisher};
use crate::cache::{Loaded, Mark};
use crate::store::load::{Counters, Entry, Rows, broken, signed, unsigned};
use crate::store::seal::Sealer;
use crate::store::{Error, Indexer, Key, Revision};

/// Rows of the log that are read at once, when all is well.
const STEP: u64 = 256;
/// For one such step: a network that swallows must not be waited for.
const LOOK: Duration = Duration::from_secs(10);
const LOAD: Duration = Duration::from_secs(300);

/// Where the log is after a look at it.
pub(super) enum Tail {
    /// The cache has come to the newest revision.
    Reached,
    /// Changes that the cache does not have are gone.
    Forgotten,
}

/// How many rows are read at once. Objects may be large and the way to the database slow: a step that did not come in time
/// is half as long the next time, whoever tries it.
pub(super) struct Step(AtomicU64);

/// The log after the cache, a step at a time. One statement sees one state: the change's own row, and where it led to —
/// the object as it is, or what the next change of it replaced.
const LOG: &str = "SELECT m.revision, h.revision, h.created, h.resource, h.namespace, h.name, \
        h.previous_revision, h.last IS NOT NULL, coalesce(h.last, o.value, n.previous), h.commit_id \
    FROM coracle.meta m \
    LEFT JOIN coracle.history h ON h.revision > $1 AND h.revision <= $2 \
    LEFT JOIN coracle.objects o ON h.last IS NULL AND o.resource = h.resource \
        AND o.namespace = h.namespace AND o.name = h.name AND o.revision = h.revision \
    LEFT JOIN LATERAL (SELECT c.previous FROM coracle.history c \
        WHERE o.revision IS NULL AND h.last IS NULL AND c.created = h.created AND c.revision > h.revision \
        ORDER BY c.revision LIMIT 1) n ON true \
    ORDER BY h.revision";

// === impl Step ===

impl Default for Step {
    fn default() -> Self {
        Self(AtomicU64::new(STEP))
    }
}

impl Step {
    /// The length of one that begins now. It counts as failed until it is [`Step::done`].
    fn begin(&self) -> u64 {
        let step = self.0.load(Ordering::Relaxed);
        self.0.store((step / 2).max(1), Ordering::Relaxed);
        step
    }

    fn done(&self, step: u64) {
        self.0.store((step * 2).min(STEP), Ordering::Relaxed);
    }
}

pub(super) async fn load(
    connection: &mut PgConnection,
    indexer: Indexer,
    sealer: Arc<Sealer>,
) -> Result<(Loaded, Option<Committed>), Error> {
    let (found, counters, last) = timeout(LOAD, read(connection))
        .await
        .map_err(|_| Error::Unavailable(format!("the database was not read in {LOAD:?}")))?
        .map_err(|error| judge(error).into_error())?;
    Ok((found.finish(counters, indexer, sealer).await?, last))
}

async fn read(
    connection: &mut PgConnection,
) -> Result<(Rows, Counters, Option<Committed>), sqlx::Error> {
    let mut snapshot = connection.begin().await?;
    snapshot
        .execute(
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY; \
             SET LOCAL enable_seqscan = on; SET LOCAL statement_timeout = 0; \
             SET LOCAL idle_in_transaction_session_timeout = 0",
        )
        .await?;
    let row = snapshot
        .fetch_one(
            "SELECT m.revision, m.written_at, h.revision, \
             (extract(epoch FROM clock_timestamp()) * 1000)::bigint \
             FROM coracle.meta m, coracle.horizon h",
        )
        .await?;
    let mut counters = Counters {
        revision: number(&row, 0),
        written_at: number(&row, 1),
        horizon: number(&row, 2),
        marks: Vec::new(),
        now: number(&row, 3),
    };
    let mut found = Rows::default();
    let sql = "SELECT resource, namespace, name, revision, created, value FROM coracle.objects";
    let mut rows = snapshot.fetch(sql);
    while let Some(row) = rows.try_next().await? {
        let (revision, created) = (number(&row, 3), number(&row, 4));
        found.object(key(&row, 0), revision, created, row.get(5));
    }
    drop(rows);
    let mut last = None;
    let sql = "SELECT resource, namespace, name, revision, created, previous_revision, previous, last, \
               commit_id FROM coracle.history WHERE revision > $1 ORDER BY revision";
    let mut rows = sqlx::query(sql)
        .bind(signed(counters.horizon))
        .fetch(&mut *snapshot);
    while let Some(row) = rows.try_next().await? {
        let previous: Option<Vec<u8>> = row.get(6);
        let entry = Entry {
            revision: number(&row, 3),
            created: number(&row, 4),
            previous: previous.map(|bytes| (number(&row, 5), bytes)),
            last: row.get(7),
        };
        last = Some(Committed {
            revision: entry.revision,
            commit: row.get(8),
        });
        found.change(key(&row, 0), entry);
    }
    drop(rows);
    let rows = snapshot
        .fetch_all("SELECT revision, at FROM coracle.marks ORDER BY revision")
        .await?;
    let mark = |row: &PgRow| Mark {
        revision: number(row, 0),
        at: number(row, 1),
    };
    counters.marks = rows.iter().map(mark).collect();
    snapshot.commit().await?;
    Ok((found, counters, last))
}

/// Publishes the log after the cache, to its end as of the last statement.
pub(super) async fn follow(
    connection: &mut PgConnection,
    publisher: &Publisher,
) -> Result<Tail, Failure> {
    publisher.is_not_lost().map_err(Failure::Refused)?;
    loop {
        let after = publisher.cache().revision();
        let step = publisher.step().begin();
        let rows = sqlx::query(LOG)
            .bind(signed(after))
            .bind(signed(after + step))
            .fetch_all(&mut *connection);
        let rows = timeout(LOOK, rows).await.map_err(|_| {
            let why = format!("the log was not read in {LOOK:?}");
            Failure::Lost(Error::Unavailable(why))
        })?;
        let rows = rows.map_err(judge)?;
        publisher.step().done(step);
        let newest = rows.first().map_or(0, |row| number(row, 0));
        if newest <= after {
            if newest < after {
                return Err(Failure::Refused(publisher.lose(behind(newest, after))));
            }
            return Ok(Tail::Reached);
        }
        let first: Option<i64> = rows[0].get(1);
        if first.map(unsigned) != Some(after + 1) {
            return Ok(Tail::Forgotten);
        }
        let read = rows.iter().map(|row| publisher.read(change(row)?));
        let changes = read.collect::<Result<Vec<_>, _>>();
        let changes = changes.map_err(Failure::Refused)?;
        let end = changes.last().map_or(after, |change| change.revision);
        publisher.followed(changes).map_err(Failure::Refused)?;
        if end >= newest {
            return Ok(Tail::Reached);
        }
    }
}

/// Is the newest change of the cache still that change in the database? Asked on every new connection: it may lead to
/// another machine, which was behind when it took over, and whose number others may have brought forward since.
pub(super) async fn is_same(
    connection: &mut PgConnection,
    publisher: &Publisher,
) -> Result<(), Error> {
    publisher.is_not_lost()?;
    let Some(last) = publisher.last() else {
        return Ok(());
    };
    let asking = sqlx::query("SELECT commit_id FROM coracle.history WHERE revision = $1")
        .bind(signed(last.revision))
        .fetch_optional(connection);
    let row = match timeout(LOOK, asking).await {
        Ok(row) => row.map_err(|error| judge(error).into_error())?,
        Err(_) => {
            let why = format!("the log was not read in {LOOK:?}");
            return Err(Error::Unavailable(why));
        }
    };
    // Without the row it is compacted, or the database is behind, which its number tells.
    match row {
        Some(row) if row.get::<i64, _>(0) != last.commit => {
            let revision = last.revision;
            Err(publisher.lose(Error::Unavailable(format!(
                "revision {revision} in the database is another change than the one it had acknowledged: \
                 {LOST}"
            ))))
        }
        _ => Ok(()),
    }
}

const LOST: &str = "it has lost writes; restart every server to go on with what it has";

/// The database is behind what it has acknowledged: it was restored, or a standby that was not up to date took over.
fn behind(newest: Revision, ours: Revision) -> Error {
    Error::Unavailable(format!(
        "the database is at revision {newest}, behind {ours} which it had acknowledged: {LOST}"
    ))
}

/// Loads everything anew, when [`follow`] found that changes are gone.
pub(super) async fn start_over(
    connection: &mut PgConnection,
    publisher: &Publisher,
) -> Result<(), Failure> {
    let loaded = load(connection, publisher.indexer(), publisher.sealer()).await;
    let (loaded, last) = loaded.map_err(Failure::Lost)?;
    tracing::warn!(
        from = publisher.cache().revision(),
        to = loaded.revision,
        "Changes that this server has not seen are compacted already: loaded everything anew"
    );
    publisher.replace(loaded, last);
    Ok(())
}

fn change(row: &PgRow) -> Result<publisher::Row, Error> {
    let [resource, namespace, name] = key(row, 3);
    let (revision, key) = (number(row, 1), Key::new(resource, namespace, name));
    let bytes: Option<Vec<u8>> = row.get(8);
    let bytes = bytes.ok_or_else(|| {
        broken(format!(
            "revision {revision}, of {key}, has no state: neither the object nor a later change has it"
        ))
    })?;
    Ok(publisher::Row {
        revision,
        commit: row.get(9),
        created: number(row, 2),
        key,
        previous: row.get::<Option<i64>, _>(6).map(unsigned),
        deleted: row.get(7),
        bytes,
    })
}

/// Resource, namespace, name, from column `at` on.
fn key(row: &PgRow, at: usize) -> [&str; 3] {
    [row.get(at), row.get(at + 1), row.get(at + 2)]
}

fn number(row: &PgRow, column: usize) -> u64 {
    unsigned(row.get(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_that_did_not_come_is_half_as_long_the_next_time() {
        let step = Step::default();
        let failed: Vec<u64> = (0..10).map(|_| step.begin()).collect();
        assert_eq!(failed, [256, 128, 64, 32, 16, 8, 4, 2, 1, 1]);
        let mut come = Vec::new();
        for _ in 0..10 {
            let length = step.begin();
            step.done(length);
            come.push(length);
        }
        assert_eq!(come, [1, 2, 4, 8, 16, 32, 64, 128, 256, 256]);
    }
}

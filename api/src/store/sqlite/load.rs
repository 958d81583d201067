//! Reads the whole file once, at start: the objects, and the history that lets watches resume across the restart.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::file::refused;
use crate::cache::{Loaded, Mark};
use crate::store::load::{Counters, Entry, Rows, signed, unsigned};
use crate::store::seal::Sealer;
use crate::store::{Error, Indexer, Revision};

pub(super) async fn load(
    connection: &mut SqliteConnection,
    indexer: Indexer,
    sealer: Arc<Sealer>,
) -> Result<Loaded, Error> {
    let (revision, written_at, horizon) = counters(connection).await?;
    let mut found = Rows::default();
    let sql = "SELECT resource, namespace, name, revision, id, value FROM objects ORDER BY id";
    let mut rows = sqlx::query(sql).fetch(&mut *connection);
    while let Some(row) = rows.try_next().await.map_err(refused)? {
        found.object(key(&row), number(&row, 3), number(&row, 4), row.get(5));
    }
    drop(rows);

    let sql = "SELECT resource, namespace, name, revision, id, previous_revision, previous, last \
               FROM history WHERE revision > ? ORDER BY revision";
    let mut rows = sqlx::query(sql)
        .bind(signed(horizon))
        .fetch(&mut *connection);
    while let Some(row) = rows.try_next().await.map_err(refused)? {
        let previous: Option<Vec<u8>> = row.get(6);
        let entry = Entry {
            revision: number(&row, 3),
            created: number(&row, 4),
            previous: previous.map(|bytes| (number(&row, 5), bytes)),
            last: row.get(7),
        };
        found.change(key(&row), entry);
    }
    drop(rows);

    let counters = Counters {
        revision,
        written_at,
        horizon,
        marks: marks(connection).await?,
        now: now(),
    };
    found.finish(counters, indexer, sealer).await
}

/// Revision, time of the last write, horizon.
pub(super) async fn counters(
    connection: &mut SqliteConnection,
) -> Result<(Revision, u64, Revision), Error> {
    let row = sqlx::query("SELECT revision, written_at, horizon FROM meta")
        .fetch_one(connection)
        .await
        .map_err(refused)?;
    Ok((number(&row, 0), number(&row, 1), number(&row, 2)))
}

async fn marks(connection: &mut SqliteConnection) -> Result<Vec<Mark>, Error> {
    let rows = sqlx::query("SELECT revision, at FROM marks ORDER BY revision")
        .fetch_all(connection)
        .await
        .map_err(refused)?;
    let mark = |row: &SqliteRow| Mark {
        revision: number(row, 0),
        at: number(row, 1),
    };
    Ok(rows.iter().map(mark).collect())
}

/// Columns 0, 1, 2.
fn key(row: &SqliteRow) -> [&str; 3] {
    [row.get(0), row.get(1), row.get(2)]
}

fn number(row: &SqliteRow, column: usize) -> u64 {
    unsigned(row.get(column))
}

/// Milliseconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "times are kept across restarts, which only the wall clock can tell; it is read once, at start"
)]
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

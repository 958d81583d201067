//! Seals at start what is not sealed with the first key, in place: no revision, no event, the same objects. Decides
//! nothing ([`Tally`] does).
//!
//! What was deleted before there was a key may still be in free pages, and in the log: the file is rewritten once, and then
//! says so in its header, until it is opened without a key again.

use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, Row};
use types::error::chain;

use super::file::refused;
use crate::store::reseal::Tally;
use crate::store::seal::{self, Sealer};
use crate::store::{Error, Key};

/// Rows read at once.
const STEP: i64 = 256;
/// `application_id` of a file in which nothing was ever deleted in plain text: "cor1".
const CLEAN: i64 = 0x636f_7231;

const OBJECTS: &str = "SELECT resource, namespace, name, id, value FROM objects \
    WHERE id > ? AND resource = ? ORDER BY id LIMIT ?";
const HISTORY: &str = "SELECT resource, namespace, name, revision, previous, last FROM history \
    WHERE revision > ? AND resource = ? ORDER BY revision LIMIT ?";

pub(super) async fn run(connection: &mut SqliteConnection, sealer: &Sealer) -> Result<(), Error> {
    let clean = is_clean(connection).await.map_err(refused)?;
    if sealer.is_empty() {
        if clean {
            // From now on pages are freed as they are.
            say(connection, 0).await.map_err(refused)?;
        }
        return Ok(());
    }
    let mut tally = Tally::default();
    execute(connection, "BEGIN IMMEDIATE").await?;
    if let Err(error) = seal(connection, sealer, &mut tally).await {
        drop(execute(connection, "ROLLBACK").await);
        return Err(error);
    }
    execute(connection, "COMMIT").await?;
    if tally.found_plain() || !clean {
        // The states themselves are sealed: what is left over must not keep the server from starting.
        if let Err(error) = rewrite(connection).await {
            tracing::warn!(
                error = %chain(&error),
                "Secrets are sealed, but the file could not be rewritten: what was deleted from it earlier may still be there in plain text"
            );
        }
    }
    tally.tell(sealer);
    Ok(())
}

async fn seal(
    connection: &mut SqliteConnection,
    sealer: &Sealer,
    tally: &mut Tally,
) -> Result<(), Error> {
    for resource in seal::SEALED {
        let mut after = 0;
        loop {
            let rows = rows(connection, OBJECTS, after, resource).await?;
            for row in &rows {
                after = row.get(3);
                if let Some(value) = tally.anew(sealer, &key(row), row.get(4))? {
                    sqlx::query("UPDATE objects SET value = ? WHERE id = ?")
                        .bind(value)
                        .bind(after)
                        .execute(&mut *connection)
                        .await
                        .map_err(refused)?;
                }
            }
            if rows.is_empty() {
                break;
            }
        }
        let mut after = 0;
        loop {
            let rows = rows(connection, HISTORY, after, resource).await?;
            for row in &rows {
                after = row.get(3);
                let previous = tally.anew(sealer, &key(row), row.get(4))?;
                let last = tally.anew(sealer, &key(row), row.get(5))?;
                if previous.is_none() && last.is_none() {
                    continue;
                }
                let sql = "UPDATE history SET previous = coalesce(?, previous), \
                           last = coalesce(?, last) WHERE revision = ?";
                sqlx::query(sql)
                    .bind(previous)
                    .bind(last)
                    .bind(after)
                    .execute(&mut *connection)
                    .await
                    .map_err(refused)?;
            }
            if rows.is_empty() {
                break;
            }
        }
    }
    Ok(())
}

async fn rows(
    connection: &mut SqliteConnection,
    sql: &'static str,
    after: i64,
    resource: &str,
) -> Result<Vec<SqliteRow>, Error> {
    let rows = sqlx::query(sql).bind(after).bind(resource).bind(STEP);
    rows.fetch_all(connection).await.map_err(refused)
}

/// No page of the file, nor of its log, holds what is not in it.
async fn rewrite(connection: &mut SqliteConnection) -> Result<(), Error> {
    execute(connection, "VACUUM").await?;
    say(connection, CLEAN).await.map_err(refused)?;
    execute(connection, "PRAGMA wal_checkpoint(TRUNCATE)").await
}

async fn is_clean(connection: &mut SqliteConnection) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("PRAGMA application_id")
        .fetch_one(connection)
        .await?;
    Ok(row.get::<i64, _>(0) == CLEAN)
}

async fn say(connection: &mut SqliteConnection, id: i64) -> Result<(), sqlx::Error> {
    let sql = format!("PRAGMA application_id = {id}");
    let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await;
    done.map(drop)
}

async fn execute(connection: &mut SqliteConnection, sql: &'static str) -> Result<(), Error> {
    let done = sqlx::raw_sql(sql).execute(connection).await;
    done.map(drop).map_err(refused)
}

fn key(row: &SqliteRow) -> Key {
    Key::new(row.get(0), row.get(1), row.get(2))
}

//! Seals at start what is not sealed with the first key, in place: no revision, no event, the same objects. Decides
//! nothing ([`Tally`] does).
//!
//! A step holds the row that orders all writers, so that it never writes over what somebody writes meanwhile; steps are
//! small, so that nobody waits long. Of several servers that start at once each finds what the others have left. What the
//! database keeps of replaced rows, in its files, its log and its backups, is the database's.

use std::time::Duration;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{Connection, Row};
use tokio::time::timeout;

use super::connect::{COMPACTING, judge};
use crate::store::reseal::Tally;
use crate::store::seal::{self, Sealer};
use crate::store::{Error, Key};

/// Values of one transaction.
const STEP: i64 = 64;
/// For one such step.
const DEADLINE: Duration = Duration::from_secs(20);

/// First the lock that compaction takes, then the one all writers take: nobody takes both the other way round.
const LOCK: &str = "WITH quiet AS MATERIALIZED (SELECT pg_advisory_xact_lock($1)) \
    SELECT 1 FROM quiet";
const ORDER: &str = "SELECT revision FROM coracle.meta FOR UPDATE";
const OBJECTS: &str = "SELECT resource, namespace, name, value FROM coracle.objects \
    WHERE resource = ANY($1) AND substring(value FROM 1 FOR octet_length($2)) <> $2 LIMIT $3";
const PUT: &str = "UPDATE coracle.objects o SET value = n.value \
    FROM unnest($1::text[], $2::text[], $3::text[], $4::bytea[]) AS n(resource, namespace, name, value) \
    WHERE o.resource = n.resource AND o.namespace = n.namespace AND o.name = n.name";
const HISTORY: &str = "SELECT resource, namespace, name, revision, previous, last FROM coracle.history \
    WHERE resource = ANY($1) AND (substring(previous FROM 1 FOR octet_length($2)) <> $2 \
        OR substring(last FROM 1 FOR octet_length($2)) <> $2) LIMIT $3";
const LOG: &str = "UPDATE coracle.history h \
    SET previous = coalesce(n.previous, h.previous), last = coalesce(n.last, h.last) \
    FROM unnest($1::bigint[], $2::bytea[], $3::bytea[]) AS n(revision, previous, last) \
    WHERE h.revision = n.revision";

pub(super) async fn run(connection: &mut PgConnection, sealer: &Sealer) -> Result<(), Error> {
    let Some(head) = sealer.head() else {
        return Ok(());
    };
    let mut tally = Tally::default();
    for table in [Table::Objects, Table::History] {
        loop {
            let step = step(connection, table, &head, sealer, &mut tally);
            let found = timeout(DEADLINE, step).await.map_err(|_| {
                let why = format!("sealing what is stored took longer than {DEADLINE:?}");
                Error::Unavailable(why)
            })??;
            if !found {
                break;
            }
        }
    }
    tally.tell(sealer);
    Ok(())
}

#[derive(Clone, Copy)]
enum Table {
    Objects,
    History,
}

/// Seals some rows. Says whether there were any.
async fn step(
    connection: &mut PgConnection,
    table: Table,
    head: &[u8],
    sealer: &Sealer,
    tally: &mut Tally,
) -> Result<bool, Error> {
    let failed = |error| judge(error).into_error();
    let mut transaction = connection.begin().await.map_err(failed)?;
    let quiet = sqlx::query(LOCK).bind(COMPACTING);
    quiet.execute(&mut *transaction).await.map_err(failed)?;
    let order = sqlx::query(ORDER).execute(&mut *transaction);
    order.await.map_err(failed)?;
    let sql = match table {
        Table::Objects => OBJECTS,
        Table::History => HISTORY,
    };
    let rows = sqlx::query(sql)
        .bind(seal::SEALED)
        .bind(head)
        .bind(STEP)
        .fetch_all(&mut *transaction)
        .await
        .map_err(failed)?;
    match table {
        Table::Objects => objects(&mut transaction, &rows, sealer, tally).await,
        Table::History => history(&mut transaction, &rows, sealer, tally).await,
    }?;
    transaction.commit().await.map_err(failed)?;
    Ok(!rows.is_empty())
}

async fn objects(
    connection: &mut PgConnection,
    rows: &[PgRow],
    sealer: &Sealer,
    tally: &mut Tally,
) -> Result<(), Error> {
    let (mut resources, mut namespaces, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let mut values = Vec::new();
    for row in rows {
        if let Some(value) = tally.anew(sealer, &key(row), row.get(3))? {
            resources.push(row.get::<&str, _>(0));
            namespaces.push(row.get::<&str, _>(1));
            names.push(row.get::<&str, _>(2));
            values.push(value);
        }
    }
    let done = sqlx::query(PUT)
        .bind(resources)
        .bind(namespaces)
        .bind(names)
        .bind(values)
        .execute(connection);
    done.await
        .map(drop)
        .map_err(|error| judge(error).into_error())
}

async fn history(
    connection: &mut PgConnection,
    rows: &[PgRow],
    sealer: &Sealer,
    tally: &mut Tally,
) -> Result<(), Error> {
    let (mut revisions, mut previous, mut last) = (Vec::new(), Vec::new(), Vec::new());
    for row in rows {
        revisions.push(row.get::<i64, _>(3));
        previous.push(tally.anew(sealer, &key(row), row.get(4))?);
        last.push(tally.anew(sealer, &key(row), row.get(5))?);
    }
    let done = sqlx::query(LOG)
        .bind(revisions)
        .bind(previous)
        .bind(last)
        .execute(connection);
    done.await
        .map(drop)
        .map_err(|error| judge(error).into_error())
}

fn key(row: &PgRow) -> Key {
    Key::new(row.get(0), row.get(1), row.get(2))
}

//! Reads the whole file once, at start: the objects, and the history that lets watches resume across the restart.
//! What does not fit together is refused rather than served.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use futures::TryStreamExt;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::file::refused;
use crate::cache::{Loaded, Mark};
use crate::store::{Error, Event, Indexer, Key, Revision, Stored};

/// Objects from which on indexing is worth more than one thread.
const MANY: usize = 2_000;

/// An object read, before it is indexed.
struct Raw {
    key: Key,
    revision: Revision,
    created: Revision,
    bytes: Vec<u8>,
}

/// A change read; `Event` without the state it led to.
struct Change {
    revision: Revision,
    key: Key,
    /// Position of the previous state among those read, if there was one.
    previous: Option<usize>,
    last: Option<usize>,
}

pub(super) async fn load(
    connection: &mut SqliteConnection,
    indexer: Indexer,
) -> Result<Loaded, Error> {
    let (revision, written_at, horizon) = counters(connection).await?;
    let mut raws = Vec::new();
    let mut strings = Strings::default();
    let sql = "SELECT resource, namespace, name, revision, id, value FROM objects ORDER BY id";
    let mut rows = sqlx::query(sql).fetch(&mut *connection);
    while let Some(row) = rows.try_next().await.map_err(refused)? {
        raws.push(strings.raw(&row, 3, 4, row.get(5)));
    }
    drop(rows);
    let objects = raws.len();

    let mut changes = Vec::new();
    let sql = "SELECT resource, namespace, name, revision, id, previous_revision, previous, last \
               FROM history WHERE revision > ? ORDER BY revision";
    let mut rows = sqlx::query(sql)
        .bind(signed(horizon))
        .fetch(&mut *connection);
    while let Some(row) = rows.try_next().await.map_err(refused)? {
        let mut state = |at, bytes: Option<Vec<u8>>| {
            let raw = strings.raw(&row, at, 4, bytes?);
            raws.push(raw);
            Some(raws.len() - 1)
        };
        let previous = state(5, row.get(6));
        let last = state(3, row.get(7));
        changes.push(Change {
            revision: number(&row, 3),
            key: strings.key(&row),
            previous,
            last,
        });
    }
    drop(rows);

    let mut marks = marks(connection).await?;
    if revision > 0 {
        let at = written_at;
        marks.push(Mark { at, revision });
    }
    let states = tokio::task::spawn_blocking(move || index(raws, &indexer))
        .await
        .map_err(|error| Error::Unavailable(format!("indexing failed: {error}")))?;
    let events = link(&states, objects, &changes, horizon, revision)?;
    let mut states = states;
    states.truncate(objects);
    Ok(Loaded {
        revision,
        horizon,
        objects: states,
        events,
        marks,
        now: now(),
    })
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

/// Parses and indexes all states, on all processors when there are many.
fn index(raws: Vec<Raw>, indexer: &Indexer) -> Vec<Arc<Stored>> {
    let finish = |raw: Raw| {
        let index = indexer(&raw.key, &raw.bytes);
        Arc::new(Stored {
            key: raw.key,
            revision: raw.revision,
            created: raw.created,
            bytes: raw.bytes.into(),
            index,
        })
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if raws.len() < MANY || threads == 1 {
        return raws.into_iter().map(finish).collect();
    }
    let share = raws.len().div_ceil(threads);
    let mut rest = raws.into_iter();
    let shares: Vec<Vec<Raw>> = (0..threads)
        .map(|_| rest.by_ref().take(share).collect())
        .collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = shares
            .into_iter()
            .map(|share| scope.spawn(move || share.into_iter().map(finish).collect::<Vec<_>>()))
            .collect();
        let joined = workers.into_iter().map(|worker| match worker.join() {
            Ok(states) => states,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.flatten().collect()
    })
}

/// Makes events of changes, from the newest to the oldest: the state a change led to is what the next change of the
/// same object found, or the object as it is.
fn link(
    states: &[Arc<Stored>],
    objects: usize,
    changes: &[Change],
    horizon: Revision,
    revision: Revision,
) -> Result<Vec<Arc<Event>>, Error> {
    let damaged = |what: String| Error::Unavailable(format!("the database is damaged: {what}"));
    let mut current: HashMap<&Key, &Arc<Stored>> = HashMap::with_capacity(objects);
    for object in &states[..objects] {
        if object.revision > revision || current.insert(&object.key, object).is_some() {
            return Err(damaged(format!("{} cannot be as it is", object.key)));
        }
    }
    if changes.len() as u64 != revision.saturating_sub(horizon) {
        let found = changes.len();
        let message = format!("{found} changes between revisions {horizon} and {revision}");
        return Err(damaged(message));
    }
    let mut events = Vec::with_capacity(changes.len());
    for (change, expected) in changes.iter().rev().zip((0..=revision).rev()) {
        let after = match change.last {
            Some(last) if !current.contains_key(&change.key) => Some(&states[last]),
            Some(_) => None,
            None => current.remove(&change.key),
        };
        let after = after
            .filter(|state| state.revision == change.revision && change.revision == expected)
            .ok_or_else(|| damaged(format!("revision {expected}, of {}", change.key)))?;
        let previous = change.previous.map(|previous| &states[previous]);
        if let Some(previous) = previous {
            current.insert(&change.key, previous);
        }
        let deleted = change.last.is_some();
        let event = Event::new(Arc::clone(after), previous.cloned(), deleted);
        events.push(Arc::new(event));
    }
    events.reverse();
    Ok(events)
}

/// Resources and namespaces, each kept once.
#[derive(Default)]
struct Strings(HashMap<String, Arc<str>>);

impl Strings {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let new: Arc<str> = text.into();
        self.0.insert(text.to_owned(), Arc::clone(&new));
        new
    }

    /// Columns 0, 1, 2.
    fn key(&mut self, row: &SqliteRow) -> Key {
        Key {
            resource: self.shared(row.get(0)),
            namespace: self.shared(row.get(1)),
            name: row.get::<&str, _>(2).into(),
        }
    }

    fn raw(&mut self, row: &SqliteRow, revision: usize, created: usize, bytes: Vec<u8>) -> Raw {
        Raw {
            key: self.key(row),
            revision: number(row, revision),
            created: number(row, created),
            bytes,
        }
    }
}

fn number(row: &SqliteRow, column: usize) -> u64 {
    u64::try_from(row.get::<i64, _>(column)).unwrap_or_default()
}

/// SQLite's integers are signed; revisions and times never reach the sign.
pub(super) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
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

//! The SQL of one batch: whatever its size, a handful of prepared statements. A statement for many rows exists in
//! sizes of powers of two; the rows that are left over are NULL and skipped by the statement itself.

use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe};

use crate::cache::Mark;
use crate::store::batch::Batch;
use crate::store::load::signed;
use crate::store::seal::Sealer;
use crate::store::{Event, Revision, Stored};

/// Rows of the largest statement; more rows take several.
const MOST_ROWS: usize = 256;
/// Changes up to which the statements of a transaction are joined to one.
const FEW_ROWS: usize = 8;

/// Everything one transaction writes.
pub(super) struct Transaction {
    puts: Vec<Arc<Stored>>,
    deletes: Vec<Revision>,
    events: Vec<Arc<Event>>,
    /// `None`: this transaction changes no object.
    counters: Option<(Revision, u64)>,
    mark: Option<Mark>,
    horizon: Option<Revision>,
}

/// The statements, by size.
pub(super) struct Statements {
    sealer: Arc<Sealer>,
    puts: Vec<Arc<str>>,
    deletes: Vec<Arc<str>>,
    history: Vec<Arc<str>>,
}

// === impl Transaction ===

impl Transaction {
    /// The changes of `batch`, written down as of `at`.
    pub(super) fn new(batch: &Batch<'_>, at: u64, mark: Option<Mark>) -> Self {
        let mut puts = Vec::new();
        let mut deletes = Vec::new();
        for (_, object) in batch.objects() {
            let now = object.now.as_ref();
            if let Some(base) = object.base
                && now.is_none_or(|now| now.created != base)
            {
                deletes.push(base);
            }
            puts.extend(now.cloned());
        }
        // Neighbours share pages.
        puts.sort_unstable_by_key(|object| object.created);
        Self {
            puts,
            deletes,
            events: batch.events().to_vec(),
            counters: Some((batch.revision(), at)),
            mark,
            horizon: None,
        }
    }

    /// Only the removal of history.
    pub(super) fn compaction(horizon: Revision) -> Self {
        Self {
            puts: Vec::new(),
            deletes: Vec::new(),
            events: Vec::new(),
            counters: None,
            mark: None,
            horizon: Some(horizon),
        }
    }

    /// Removes history up to and including `horizon` too.
    pub(super) fn compacting(mut self, horizon: Option<Revision>) -> Self {
        self.horizon = horizon;
        self
    }
}

// === impl Statements ===

impl Statements {
    pub(super) fn new(sealer: Arc<Sealer>) -> Self {
        let sizes = || (0..=MOST_ROWS.ilog2()).map(|power| 1usize << power);
        let values = |rows: usize, columns: usize| {
            let row = format!("({})", vec!["?"; columns].join(","));
            format!(
                "SELECT * FROM (VALUES {}) WHERE column1 IS NOT NULL",
                vec![row; rows].join(",")
            )
        };
        let insert = |verb: &str, columns| {
            let sql = sizes().map(|rows| format!("{verb} {}", values(rows, columns)).into());
            sql.collect()
        };
        let delete = |rows| {
            let ids = vec!["?"; rows].join(",");
            format!("DELETE FROM objects WHERE id IN ({ids})").into()
        };
        Self {
            sealer,
            puts: insert("REPLACE INTO objects", 6),
            history: insert("INSERT INTO history", 8),
            deletes: sizes().map(delete).collect(),
        }
    }

    /// Runs `transaction` up to and including COMMIT. After an error the caller rolls back.
    pub(super) async fn run(
        &self,
        connection: &mut SqliteConnection,
        transaction: &Transaction,
    ) -> Result<(), sqlx::Error> {
        let small = transaction.events.len() <= FEW_ROWS;
        let parts = self.parts(transaction);
        if small {
            // Each statement is a trip to SQLite's thread and back: a small transaction makes one.
            let (sql, values): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
            let values = values.into_iter().flatten().collect();
            return execute(connection, sql.join("; ").into(), values).await;
        }
        for (sql, values) in parts {
            execute(connection, sql, values).await?;
        }
        Ok(())
    }

    fn parts(&self, transaction: &Transaction) -> Vec<(Arc<str>, Vec<Value>)> {
        let mut parts: Vec<(Arc<str>, Vec<Value>)> = vec![("BEGIN IMMEDIATE".into(), Vec::new())];
        for rows in transaction.puts.chunks(MOST_ROWS) {
            let values = rows
                .iter()
                .flat_map(|object| put(object, &self.sealer))
                .collect();
            parts.push(sized(&self.puts, rows.len(), values));
        }
        for rows in transaction.deletes.chunks(MOST_ROWS) {
            let values = rows.iter().map(|id| number(*id)).collect();
            parts.push(sized(&self.deletes, rows.len(), values));
        }
        for rows in transaction.events.chunks(MOST_ROWS) {
            let values = rows
                .iter()
                .flat_map(|event| entry(event, &self.sealer))
                .collect();
            parts.push(sized(&self.history, rows.len(), values));
        }
        if let Some(mark) = transaction.mark {
            let sql = "INSERT OR REPLACE INTO marks (revision, at) VALUES (?, ?)";
            parts.push((sql.into(), vec![number(mark.revision), number(mark.at)]));
        }
        if let Some(horizon) = transaction.horizon {
            let sql = "UPDATE meta SET horizon = ?; DELETE FROM history WHERE revision <= ?";
            parts.push((sql.into(), vec![number(horizon), number(horizon)]));
        }
        if let Some((revision, at)) = transaction.counters {
            let sql = "UPDATE meta SET revision = ?, written_at = ?";
            parts.push((sql.into(), vec![number(revision), number(at)]));
        }
        parts.push(("COMMIT".into(), Vec::new()));
        parts
    }
}

#[derive(Clone)]
enum Value {
    Null,
    Number(i64),
    Text(Arc<str>),
    Bytes(Vec<u8>),
}

/// A row of `objects`.
fn put(object: &Stored, sealer: &Sealer) -> [Value; 6] {
    let key = &object.key;
    [
        number(object.created),
        number(object.revision),
        Value::Text(Arc::clone(&key.resource)),
        Value::Text(Arc::clone(&key.namespace)),
        Value::Text(Arc::clone(&key.name)),
        Value::Bytes(sealer.seal(key, &object.bytes).into_owned()),
    ]
}

/// A row of `history`.
fn entry(event: &Event, sealer: &Sealer) -> [Value; 8] {
    let key = &event.object.key;
    let sealed = |object: &Stored| sealer.seal(key, &object.bytes).into_owned();
    let previous = event.previous.as_ref();
    let last = event.deleted.then(|| sealed(&event.object));
    [
        number(event.revision),
        number(event.object.created),
        Value::Text(Arc::clone(&key.resource)),
        Value::Text(Arc::clone(&key.namespace)),
        Value::Text(Arc::clone(&key.name)),
        previous.map_or(Value::Null, |p| number(p.revision)),
        previous.map_or(Value::Null, |p| Value::Bytes(sealed(p))),
        last.map_or(Value::Null, Value::Bytes),
    ]
}

fn number(number: u64) -> Value {
    Value::Number(signed(number))
}

/// The smallest statement for `rows` rows, and its values, filled up with NULLs.
fn sized(statements: &[Arc<str>], rows: usize, mut values: Vec<Value>) -> (Arc<str>, Vec<Value>) {
    let room = rows.next_power_of_two();
    values.resize(values.len() / rows * room, Value::Null);
    (Arc::clone(&statements[room.ilog2() as usize]), values)
}

async fn execute(
    connection: &mut SqliteConnection,
    sql: Arc<str>,
    values: Vec<Value>,
) -> Result<(), sqlx::Error> {
    let mut arguments = SqliteArguments::default();
    arguments.reserve(values.len(), 0);
    for value in values {
        add(&mut arguments, value).map_err(sqlx::Error::Encode)?;
    }
    let query = sqlx::query_with(AssertSqlSafe(sql), arguments);
    query.execute(connection).await.map(drop)
}

fn add(arguments: &mut SqliteArguments, value: Value) -> Result<(), BoxDynError> {
    match value {
        Value::Null => arguments.add(None::<i64>),
        Value::Number(number) => arguments.add(number),
        Value::Text(text) => arguments.add(text),
        Value::Bytes(bytes) => arguments.add(bytes),
    }
}

//! The SQL of one batch: a single statement, whatever its size, that does nothing unless the database is where the batch
//! was decided.

use std::borrow::Cow;

use sqlx::postgres::PgConnection;

use super::connect::CHANNEL;
use crate::cache::Mark;
use crate::store::batch::Batch;
use crate::store::load::signed;
use crate::store::seal::Sealer;
use crate::store::{Event, Key};

/// All parts see the state before the statement; they write different rows: no object is both put and gone.
const WRITE: &str = "WITH step AS ( \
        UPDATE coracle.meta SET revision = $2, written_at = $3 WHERE revision = $1 RETURNING revision \
    ), gone AS ( \
        DELETE FROM coracle.objects o \
        USING step, unnest($4::text[], $5::text[], $6::text[]) AS k(resource, namespace, name) \
        WHERE o.resource = k.resource AND o.namespace = k.namespace AND o.name = k.name \
    ), put AS ( \
        INSERT INTO coracle.objects (resource, namespace, name, created, revision, value) \
        SELECT p.* FROM step, unnest($7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[], \
            $12::bytea[]) AS p(resource, namespace, name, created, revision, value) \
        ON CONFLICT (resource, namespace, name) DO UPDATE \
        SET created = excluded.created, revision = excluded.revision, value = excluded.value \
    ), log AS ( \
        INSERT INTO coracle.history (commit_id, revision, created, resource, namespace, name, \
            previous_revision, previous, last) \
        SELECT $13::bigint, l.* FROM step, unnest($14::bigint[], $15::bigint[], $16::text[], $17::text[], \
            $18::text[], $19::bigint[], $20::bytea[], $21::bytea[]) AS l(revision, created, resource, \
            namespace, name, previous_revision, previous, last) \
    ), mark AS ( \
        INSERT INTO coracle.marks (revision, at) \
        SELECT m.* FROM step, unnest($22::bigint[], $23::bigint[]) AS m(revision, at) \
        ON CONFLICT (revision) DO NOTHING \
    ) SELECT pg_notify($24, $25) FROM step";

/// Columns of keys.
#[derive(Default)]
struct Keys<'b> {
    resources: Vec<&'b str>,
    namespaces: Vec<&'b str>,
    names: Vec<&'b str>,
}

/// Rows of `objects`.
#[derive(Default)]
struct Puts<'b> {
    keys: Keys<'b>,
    created: Vec<i64>,
    revisions: Vec<i64>,
    values: Vec<Cow<'b, [u8]>>,
}

/// Rows of `history`.
#[derive(Default)]
struct Log<'b> {
    keys: Keys<'b>,
    revisions: Vec<i64>,
    created: Vec<i64>,
    previous_revisions: Vec<Option<i64>>,
    previous: Vec<Option<Cow<'b, [u8]>>>,
    last: Vec<Option<Cow<'b, [u8]>>>,
}

/// What identifies this write among all.
pub(super) struct Stamp<'a> {
    pub(super) commit: i64,
    pub(super) server: &'a str,
    pub(super) at: u64,
    pub(super) mark: Option<Mark>,
}

/// Writes `batch`. Answers whether the database was at the batch's base; if not, nothing has happened.
pub(super) async fn write(
    connection: &mut PgConnection,
    batch: &Batch<'_>,
    stamp: &Stamp<'_>,
    sealer: &Sealer,
) -> Result<bool, sqlx::Error> {
    let mut gone = Keys::default();
    let mut puts = Puts::default();
    // Neighbours in the same order in every server.
    let mut objects: Vec<_> = batch.objects().collect();
    objects.sort_unstable_by_key(|(key, _)| *key);
    for (key, object) in objects {
        match &object.now {
            None => gone.push(key),
            Some(object) => {
                puts.keys.push(key);
                puts.created.push(signed(object.created));
                puts.revisions.push(signed(object.revision));
                puts.values.push(sealer.seal(key, &object.bytes));
            }
        }
    }
    let mut log = Log::default();
    for event in batch.events() {
        log.push(event, sealer);
    }
    let marks: Vec<_> = stamp.mark.iter().map(|m| signed(m.revision)).collect();
    let times: Vec<_> = stamp.mark.iter().map(|m| signed(m.at)).collect();
    let done = sqlx::query(WRITE)
        .bind(signed(batch.base()))
        .bind(signed(batch.revision()))
        .bind(signed(stamp.at))
        .bind(gone.resources)
        .bind(gone.namespaces)
        .bind(gone.names)
        .bind(puts.keys.resources)
        .bind(puts.keys.namespaces)
        .bind(puts.keys.names)
        .bind(puts.created)
        .bind(puts.revisions)
        .bind(plain(&puts.values))
        .bind(stamp.commit)
        .bind(log.revisions)
        .bind(log.created)
        .bind(log.keys.resources)
        .bind(log.keys.namespaces)
        .bind(log.keys.names)
        .bind(log.previous_revisions)
        .bind(optional(&log.previous))
        .bind(optional(&log.last))
        .bind(marks)
        .bind(times)
        .bind(CHANNEL)
        .bind(stamp.server)
        .fetch_optional(connection)
        .await?;
    Ok(done.is_some())
}

fn plain<'v>(values: &'v [Cow<'_, [u8]>]) -> Vec<&'v [u8]> {
    values.iter().map(|value| &**value).collect()
}

fn optional<'v>(values: &'v [Option<Cow<'_, [u8]>>]) -> Vec<Option<&'v [u8]>> {
    values.iter().map(Option::as_deref).collect()
}

// === impl Keys ===

impl<'b> Keys<'b> {
    fn push(&mut self, key: &'b Key) {
        self.resources.push(&key.resource);
        self.namespaces.push(&key.namespace);
        self.names.push(&key.name);
    }
}

// === impl Log ===

impl<'b> Log<'b> {
    fn push(&mut self, event: &'b Event, sealer: &Sealer) {
        let key = &event.object.key;
        self.keys.push(key);
        self.revisions.push(signed(event.revision));
        self.created.push(signed(event.object.created));
        let previous = event.previous.as_ref();
        self.previous_revisions
            .push(previous.map(|p| signed(p.revision)));
        self.previous
            .push(previous.map(|p| sealer.seal(key, &p.bytes)));
        let last = event.deleted.then_some(&event.object);
        self.last.push(last.map(|o| sealer.seal(key, &o.bytes)));
    }
}

//! What several servers do to one Postgres database. What the database does to them is in `outages.rs`.

use std::collections::BTreeMap;
use std::sync::Mutex;

use api::store::seal::Sealer;
use proptest::prelude::*;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use super::postgres_server::Server;
use super::*;

pub(crate) async fn open(server: &Server) -> World {
    open_with(server, database::Options::default()).await
}

pub(crate) async fn open_with(server: &Server, options: database::Options) -> World {
    World {
        store: Arc::new(try_open(&server.url(), options).await.unwrap()),
        _directory: None,
        _server: None,
    }
}

pub(crate) async fn try_open(url: &str, options: database::Options) -> Result<Postgres, Error> {
    Postgres::open_with(database::Address::parse(url)?, indexer(), options).await
}

/// Another program's connection.
async fn stranger(server: &Server) -> PgConnection {
    PgConnection::connect(&server.url()).await.unwrap()
}

/// Takes everything away.
pub(crate) async fn empty(server: &Server) {
    let mut stranger = stranger(server).await;
    let sql = "SET client_min_messages = 'warning'; DROP SCHEMA IF EXISTS coracle CASCADE";
    stranger.execute(sql).await.unwrap();
    stranger.close().await.unwrap();
}

pub(crate) fn server() -> Option<Server> {
    Server::start(&["fsync=off"])
}

/// Everything that a watcher of all pods has been shown, to a revision.
pub(crate) async fn history(cache: &Arc<Cache>, to: Revision) -> Vec<String> {
    let mut watcher = cache.watch("pods", 0).unwrap();
    let mut seen = Vec::new();
    while (seen.len() as Revision) < to {
        seen.push(next(&mut watcher).await.unwrap());
    }
    seen
}

/// Waits until the store has moved on by `changes`.
pub(crate) async fn moved(world: &World, changes: Revision) {
    let to = world.cache().revision() + changes;
    let reached = world.cache().wait_for(to, Instant::now() + DEADLINE).await;
    assert_eq!(reached, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_acknowledged_the_other_reads_and_resumes_watches_from() {
    let Some(server) = server() else { return };
    let (a, b) = (open(&server).await, open(&server).await);
    let mut watcher = b.cache().watch("pods", 0).unwrap();
    a.put(&pod("x"), Expect::Absent, "1").await.unwrap();
    assert_eq!(next(&mut watcher).await.unwrap(), "1+pods/default/x=1");
    for i in 2..50u64 {
        let (writer, reader) = if i % 2 == 0 { (&b, &a) } else { (&a, &b) };
        let body = i.to_string();
        writer
            .put(&pod("x"), Expect::At(i - 1), &body)
            .await
            .unwrap();
        reader.store.newest().unwrap().await.unwrap();
        assert_eq!(
            reader.cache().get(&pod("x")).unwrap().bytes,
            bytes(&body, i)
        );
    }
    let stale = a.put(&pod("x"), Expect::At(7), "no").await.unwrap_err();
    let Error::Conflict { found, .. } = stale else {
        panic!("{stale}")
    };
    assert_eq!(found.unwrap().revision, 49);
    b.delete(&pod("x"), Expect::Any).await.unwrap();
    // A's cache may still have the object: the conflict and the creation are decided on the newest state.
    a.put(&pod("x"), Expect::Absent, "new").await.unwrap();
    let c = open(&server).await;
    assert_eq!(history(a.cache(), 51).await, history(c.cache(), 51).await);
    assert_eq!(history(b.cache(), 51).await, history(c.cache(), 51).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_on_three_servers_none_loses_an_update() {
    let Some(server) = server() else { return };
    let mut worlds = Vec::new();
    for _ in 0..3 {
        worlds.push(open(&server).await);
    }
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..12 {
        let store = Arc::clone(&worlds[client % 3].store);
        tasks.spawn(async move {
            let counter = pod(&format!("counter-{}", client % 2));
            for _ in 0..25 {
                loop {
                    let found = store.cache().get(&counter);
                    let body = found.as_ref().map_or(0, |object| {
                        let body = object.index.field("body").unwrap();
                        body.parse::<u64>().unwrap()
                    });
                    let expect = found.map_or(Expect::Absent, |f| Expect::At(f.revision));
                    let next = put(&counter, expect, &(body + 1).to_string());
                    match store.commit(vec![next]).await {
                        Ok(_) => break,
                        Err(Error::Conflict { found, .. }) => {
                            let found = found.map_or(0, |found| found.revision);
                            assert!(store.cache().revision() >= found);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    let mut histories = Vec::new();
    for world in &worlds {
        world.store.newest().unwrap().await.unwrap();
        assert_eq!(world.cache().revision(), 300, "no revision was lost");
        for counter in ["counter-0", "counter-1"] {
            let counter = world.cache().get(&pod(counter)).unwrap();
            assert_eq!(counter.index.field("body"), Some("150"));
        }
        histories.push(history(world.cache(), 300).await);
    }
    assert_eq!(histories[0], histories[1]);
    assert_eq!(histories[0], histories[2]);
}

/// What a client of a random history does: which server, which object, what.
#[derive(Clone, Debug)]
struct Act {
    server: usize,
    key: usize,
    delete: bool,
    expect: u8,
    with: Option<usize>,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = (
        0..2usize,
        0..4usize,
        prop::bool::weighted(0.3),
        0..4u8,
        prop::option::weighted(0.3, 0..4usize),
    );
    let act = act.prop_map(|(server, key, delete, expect, with)| Act {
        server,
        key,
        delete,
        expect,
        with,
    });
    prop::collection::vec(act, 1..60)
}

/// What the answers to concurrent commits say happened, by revision: key and body, or its absence.
type Answers = BTreeMap<Revision, (Key, Option<String>)>;

/// All acts at once, on two servers; then: both caches have the same history, every answer is in it, and each expectation held.
async fn concurrently(server: &Server, acts: Vec<Act>) {
    empty(server).await;
    let worlds = [open(server).await, open(server).await];
    let answers = Arc::new(Mutex::new(Answers::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for (number, act) in acts.into_iter().enumerate() {
        let store = Arc::clone(&worlds[act.server].store);
        let answers = Arc::clone(&answers);
        tasks.spawn(async move {
            let mut operations = Vec::new();
            for key in [Some(act.key), act.with].into_iter().flatten() {
                let key = pod(&format!("k{key}"));
                let found = store.cache().get(&key).map_or(0, |found| found.revision);
                let expect = match act.expect {
                    0 => Expect::Absent,
                    1 => Expect::At(found),
                    _ => Expect::Any,
                };
                operations.push(match act.delete {
                    true => delete(&key, expect),
                    false => put(&key, expect, &number.to_string()),
                });
            }
            let expected = operations.clone();
            match store.commit(operations).await {
                Ok(done) => {
                    let mut answers = answers.lock().unwrap();
                    for (operation, done) in expected.iter().zip(done) {
                        let body = done.index.field("body").unwrap().to_owned();
                        let body = (!act.delete).then_some(body);
                        let new = answers.insert(done.revision, (done.key.clone(), body));
                        assert!(new.is_none(), "a revision belongs to one change");
                        assert_eq!(done.key, operation.key);
                    }
                    assert!(store.cache().revision() >= *answers.keys().next().unwrap());
                }
                Err(Error::Conflict { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        });
    }
    tasks.join_all().await;
    let answers = Arc::into_inner(answers).unwrap().into_inner().unwrap();
    let count = answers.len() as Revision;
    let mut state = BTreeMap::new();
    let mut told = Vec::new();
    for (expected, (revision, (key, body))) in (1..).zip(&answers) {
        assert_eq!(expected, *revision, "no gaps");
        let mark = if body.is_some() { "+" } else { "-" };
        let shown = body.as_deref().unwrap_or("gone");
        told.push(format!("{revision}{mark}{key}={shown}"));
        match body {
            Some(body) => state.insert(key.clone(), (body.clone(), *revision)),
            None => {
                let there = state.remove(key);
                assert!(there.is_some(), "what is deleted was there");
                there
            }
        };
    }
    for world in &worlds {
        world.store.newest().unwrap().await.unwrap();
        assert_eq!(world.cache().revision(), count);
        assert_eq!(history(world.cache(), count).await, told);
        let snapshot = world.cache().snapshot("pods");
        assert_eq!(snapshot.len(), state.len());
        for object in snapshot.iter() {
            let (body, revision) = &state[&object.key];
            assert_eq!(object.bytes, bytes(body, *revision));
        }
        world.store.close().await;
    }
    let loaded = open(server).await;
    assert_eq!(history(loaded.cache(), count).await, told);
    loaded.store.close().await;
}

#[test]
fn random_histories_on_two_servers_are_one_history() {
    let Some(server) = server() else { return };
    let cases = ProptestConfig {
        cases: 10,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(cases);
    let ran = runner.run(&acts(), |acts| {
        runtime.block_on(concurrently(&server, acts));
        Ok(())
    });
    ran.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_compacted_and_a_server_that_missed_it_starts_over() {
    let Some(mut server) = server() else { return };
    let quick = database::Options {
        housekeeping: Duration::from_millis(20),
        ..database::Options::default()
    };
    let w = open_with(&server, quick.clone()).await;
    let behind = open_with(&server, database::Options::default()).await;
    let mut watcher = behind.cache().watch("pods", 0).unwrap();
    for _ in 0..3 {
        let puts = (0..1_000).map(|i| put(&pod(&format!("p{i}")), Expect::Any, "x"));
        w.store.commit(puts.collect()).await.unwrap();
    }
    moved(&behind, 3_000 - behind.cache().revision()).await;
    w.store.compact(1_400).await.unwrap();
    let count = || async {
        let mut stranger = stranger(&server).await;
        let sql = "SELECT count(*) FROM coracle.history";
        stranger.fetch_one(sql).await.unwrap().get::<i64, _>(0)
    };
    let begun = Instant::now();
    while count().await != 1_600 {
        assert!(
            begun.elapsed() < DEADLINE,
            "old history leaves the database"
        );
    }
    assert_eq!(behind.cache().stats().horizon, 0, "each cache by itself");

    // As if the log had gone on, and been forgotten, while this server could not look.
    server.halt("fast");
    server.run();
    let mut stranger = stranger(&server).await;
    let forget = "BEGIN; UPDATE coracle.meta SET revision = 9000; UPDATE coracle.horizon SET revision = 9000; \
        DELETE FROM coracle.history; UPDATE coracle.objects SET revision = 9000, value = \
        convert_to('{\"body\":\"y\",\"rv\":\"9000\"}', 'UTF8') WHERE name = 'p7'; COMMIT";
    stranger.execute(forget).await.unwrap();
    for world in [&w, &behind] {
        world.store.newest().unwrap().await.unwrap();
        assert_eq!(world.cache().revision(), 9_000);
        assert_eq!(
            world.cache().get(&pod("p7")).unwrap().bytes,
            bytes("y", 9_000)
        );
        assert!(world.cache().watch("pods", 3_000).is_err(), "too old now");
    }
    while next(&mut watcher).await.is_some() {}
    assert_eq!(
        w.put(&pod("p7"), Expect::At(9_000), "z").await.unwrap(),
        9_001
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_servers_may_begin_a_new_database_at_once() {
    let Some(server) = server() else { return };
    let url = server.url();
    let opening = (0..4).map(|_| try_open(&url, database::Options::default()));
    let stores = futures::future::join_all(opening).await;
    for store in stores {
        store.unwrap().newest().unwrap().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_sealed_in_the_database_and_read_by_every_server_that_has_the_key() {
    let Some(server) = server() else { return };
    let sealed = |keys: &[[u8; 32]]| database::Options {
        sealer: Arc::new(Sealer::new(keys.iter().copied())),
        read_patience: Duration::from_secs(1),
        ..database::Options::default()
    };
    let a = open_with(&server, sealed(&[[1; 32]])).await;
    let b = open_with(&server, sealed(&[[2; 32], [1; 32]])).await;
    let secret = Key::new("secrets", "default", "s");
    a.put(&secret, Expect::Absent, "hush").await.unwrap();
    b.store.newest().unwrap().await.unwrap();
    assert_eq!(b.cache().get(&secret).unwrap().bytes, bytes("hush", 1));
    let mut stranger = stranger(&server).await;
    for table in [
        "objects WHERE position('hush' in encode(value, 'escape')) > 0",
        "history",
    ] {
        let sql = format!("SELECT count(*) FROM coracle.{table}");
        let count: i64 = stranger.fetch_one(AssertSqlSafe(sql)).await.unwrap().get(0);
        assert_eq!(count, i64::from(table == "history"));
    }
    // A key that A does not have yet: it says so instead of showing what it cannot read.
    b.put(&secret, Expect::Any, "still").await.unwrap();
    let error = a.store.newest().unwrap().await.unwrap_err().to_string();
    assert!(
        error.contains("secrets/default/s: it is sealed with the key"),
        "{error}"
    );
    let error = try_open(&server.url(), sealed(&[])).await.err().unwrap();
    assert!(error.to_string().contains("2 stored states"), "{error}");
}

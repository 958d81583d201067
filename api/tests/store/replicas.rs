//! What several servers do to one Postgres database, and what the database does to them.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use api::store::seal::Sealer;
use proptest::prelude::*;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use super::postgres_server::Server;
use super::*;

/// The environment variable that makes `writes_until_it_is_killed` write.
const CHILD: &str = "STORE_TEST_DATABASE";

pub(crate) async fn open(server: &Server) -> World {
    open_with(server, database::Options::default()).await
}

async fn open_with(server: &Server, options: database::Options) -> World {
    World {
        store: Arc::new(try_open(&server.url(), options).await.unwrap()),
        _directory: None,
        _server: None,
    }
}

async fn try_open(url: &str, options: database::Options) -> Result<Postgres, Error> {
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

fn server() -> Option<Server> {
    Server::start(&["fsync=off"])
}

/// Everything that a watcher of all pods has been shown, to a revision.
async fn history(cache: &Arc<Cache>, to: Revision) -> Vec<String> {
    let mut watcher = cache.watch("pods", 0).unwrap();
    let mut seen = Vec::new();
    while (seen.len() as Revision) < to {
        seen.push(next(&mut watcher).await.unwrap());
    }
    seen
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

/// Clients that create objects through both servers until told to stop; answers what was acknowledged.
struct Load {
    stop: Arc<std::sync::atomic::AtomicBool>,
    tasks: tokio::task::JoinSet<Vec<(Key, Revision)>>,
}

impl Load {
    fn begin(worlds: &[World]) -> Self {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..8 {
            let store = Arc::clone(&worlds[client % worlds.len()].store);
            let stop = Arc::clone(&stop);
            tasks.spawn(async move {
                let mut acknowledged = Vec::new();
                for i in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let key = pod(&format!("{client}-{i}"));
                    match store.commit(vec![put(&key, Expect::Absent, "x")]).await {
                        Ok(done) => acknowledged.push((key, done[0].revision)),
                        Err(Error::Conflict { .. }) => panic!("{key} is nobody else's"),
                        // Honest: it may have happened or not.
                        Err(_) => {}
                    }
                }
                acknowledged
            });
        }
        Self { stop, tasks }
    }

    async fn end(self) -> Vec<(Key, Revision)> {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.tasks.join_all().await.concat()
    }
}

/// Waits until the store has moved on by `changes`.
async fn moved(world: &World, changes: Revision) {
    let to = world.cache().revision() + changes;
    let reached = world.cache().wait_for(to, Instant::now() + DEADLINE).await;
    assert_eq!(reached, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_under_load_loses_nothing_and_fails_nobody_patient() {
    let Some(mut server) = server() else { return };
    let worlds = [open(&server).await, open(&server).await];
    let load = Load::begin(&worlds);
    for _ in 0..3 {
        moved(&worlds[0], 50).await;
        server.crash();
    }
    moved(&worlds[1], 50).await;
    let acknowledged = load.end().await;
    for world in &worlds {
        world.store.newest().unwrap().await.unwrap();
        world.store.health().unwrap();
    }
    let late = open(&server).await;
    let count = late.cache().revision();
    assert_eq!(count, worlds[0].cache().revision());
    for (key, revision) in &acknowledged {
        for world in worlds.iter().chain([&late]) {
            let there = world.cache().get(key).map(|object| object.revision);
            assert_eq!(there, Some(*revision), "{key} was acknowledged");
        }
    }
    // Creations that were in doubt were looked for, not done twice: nobody met their own object.
    let whole = history(late.cache(), count).await;
    assert_eq!(history(worlds[0].cache(), count).await, whole);
    assert_eq!(history(worlds[1].cache(), count).await, whole);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_are_cut_again_and_again_leave_no_commit_in_doubt() {
    let Some(server) = server() else { return };
    let worlds = [open(&server).await, open(&server).await];
    let load = Load::begin(&worlds);
    let mut admin = PgConnection::connect(&server.admin_url()).await.unwrap();
    for _ in 0..20 {
        moved(&worlds[0], 10).await;
        let cut =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'coracle'";
        admin.execute(cut).await.unwrap();
    }
    let acknowledged = load.end().await;
    let late = open(&server).await;
    assert_eq!(late.cache().revision(), acknowledged.len() as Revision);
    for (key, revision) in &acknowledged {
        assert_eq!(late.cache().get(key).unwrap().revision, *revision);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_database_is_down_writes_and_newest_reads_fail_clearly_and_the_cache_is_read() {
    let Some(mut server) = server() else { return };
    let options = database::Options {
        patience: Duration::from_millis(300),
        read_patience: Duration::from_millis(300),
        ..database::Options::default()
    };
    let w = open_with(&server, options.clone()).await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    let mut watcher = w.cache().watch("pods", 0).unwrap();
    server.halt("immediate");
    let error = w.put(&pod("b"), Expect::Absent, "1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    let error = w.store.newest().unwrap().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    assert!(w.store.health().is_err());
    assert_eq!(w.cache().get(&pod("a")).unwrap().bytes, bytes("1", 1));
    assert!(try_open(&server.url(), options).await.is_err());

    server.run();
    let begun = Instant::now();
    while w.put(&pod("c"), Expect::Any, "1").await.is_err() {
        assert!(begun.elapsed() < DEADLINE, "writes work again");
    }
    while w.store.newest().unwrap().await.is_err() {
        assert!(begun.elapsed() < DEADLINE, "reads work again");
    }
    w.store.health().unwrap();
    assert_eq!(next(&mut watcher).await.unwrap(), "1+pods/default/a=1");
    let next = next(&mut watcher).await.unwrap();
    assert!(next.starts_with('2'), "the watch goes on: {next}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_in_the_middle_holds_nobody_up_and_loses_nothing() {
    let Some(server) = server() else { return };
    let w = open(&server).await;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "replicas::writes_until_it_is_killed",
                "--exact",
                "--ignored",
            ])
            .arg("--nocapture")
            .env(CHILD, server.url())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let acknowledged: Vec<(Revision, String)> = output
            .lines()
            .filter_map(|line| {
                let line = line.unwrap();
                let (revision, name) = line.strip_prefix("revision ")?.split_once(' ')?;
                Some((revision.parse().ok()?, name.to_owned()))
            })
            .take(50 * round)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(acknowledged.len(), 50 * round, "the child wrote");
        let own = pod(&format!("own-{round}"));
        w.put(&own, Expect::Absent, "x").await.unwrap();
        for (revision, name) in acknowledged {
            let there = w.cache().get(&pod(&name)).map(|object| object.revision);
            assert_eq!(there, Some(revision), "{name} was acknowledged");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test above"]
async fn writes_until_it_is_killed() {
    let Ok(url) = std::env::var(CHILD) else {
        return;
    };
    let store = try_open(&url, database::Options::default()).await;
    let store = Arc::new(store.unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..8 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for i in 0.. {
                let name = format!("{}-{client}-{i}", std::process::id());
                let put = put(&pod(&name), Expect::Absent, &"x".repeat(1_000));
                let done = store.commit(vec![put]).await.unwrap();
                println!("revision {} {name}", done[0].revision);
            }
        });
    }
    tasks.join_all().await;
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
async fn a_database_that_cannot_keep_the_promises_is_refused_and_named() {
    let Some(server) = server() else { return };
    let error = |url: String| async move {
        let opened = try_open(&url, database::Options::default()).await;
        opened.err().expect("it must not open").to_string()
    };
    let mut admin = PgConnection::connect(&server.admin_url()).await.unwrap();
    for (sql, undo, expected) in [
        (
            "ALTER ROLE coracle SET synchronous_commit = off",
            "ALTER ROLE coracle RESET synchronous_commit",
            "synchronous_commit is off",
        ),
        (
            "ALTER ROLE coracle SET default_transaction_read_only = on",
            "ALTER ROLE coracle RESET default_transaction_read_only",
            "it is read-only",
        ),
    ] {
        admin.execute(sql).await.unwrap();
        let error = error(server.url()).await;
        assert!(error.contains(expected), "{error}");
        admin.execute(undo).await.unwrap();
    }
    let latin = "CREATE DATABASE latin OWNER coracle ENCODING 'LATIN1' TEMPLATE template0";
    admin.execute(latin).await.unwrap();
    let url = server.url().replace(":5432/coracle", ":5432/latin");
    let said = error(url).await;
    assert!(said.contains("its encoding is LATIN1"), "{said}");

    let w = open(&server).await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    w.store.close().await;
    for (sql, undo, expected) in [
        (
            "INSERT INTO coracle.migrations VALUES (99)",
            "DELETE FROM coracle.migrations WHERE version = 99",
            "schema version 99, and this program knows versions up to 1",
        ),
        (
            "UPDATE coracle.meta SET revision = 3",
            "UPDATE coracle.meta SET revision = 1",
            "damaged: 1 changes between revisions 0 and 3",
        ),
    ] {
        admin.execute(sql).await.unwrap();
        let error = error(server.url()).await;
        assert!(error.contains(expected), "{error}");
        admin.execute(undo).await.unwrap();
    }
    let late = open(&server).await;
    // Restored from a backup while servers run.
    late.put(&pod("a"), Expect::Any, "2").await.unwrap();
    admin
        .execute("UPDATE coracle.meta SET revision = 1")
        .await
        .unwrap();
    let error = late.put(&pod("b"), Expect::Absent, "1").await.unwrap_err();
    assert!(error.to_string().contains("has lost writes"), "{error}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::disallowed_methods, reason = "TLS reads the real clock")]
async fn a_database_over_tls_is_verified_against_the_authority_in_the_address() {
    let now = jiff::Timestamp::now();
    let (pki, other) = (
        api::pki::Pki::open(None, now),
        api::pki::Pki::open(None, now),
    );
    let (pki, other) = (pki.unwrap(), other.unwrap());
    let identity = pki.api_server([10, 96, 0, 1].into(), &[], &[]).unwrap();
    let started = Server::start_tls(&identity.certificate_pem, &identity.key_pem);
    let Some((_server, port)) = started else {
        return;
    };
    let directory = tempfile::tempdir().unwrap();
    let authority = |name: &str, pem: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        let path = path.display();
        format!(
            "postgres://coracle@localhost:{port}/coracle?sslmode=verify-full&sslrootcert={path}"
        )
    };
    let url = authority("ca.crt", pki.ca_pem());
    let store = try_open(&url, database::Options::default()).await.unwrap();
    let put = put(&pod("a"), Expect::Absent, "1");
    store.commit(vec![put]).await.unwrap();
    let mut stranger = PgConnection::connect(&url).await.unwrap();
    let plain = "SELECT count(*) FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) \
        WHERE a.usename = 'coracle' AND NOT s.ssl";
    let plain: i64 = stranger.fetch_one(plain).await.unwrap().get(0);
    assert_eq!(plain, 0, "every connection is encrypted");
    store.close().await;
    let url = authority("other.crt", other.ca_pem());
    let error = try_open(&url, database::Options::default()).await.err();
    let error = error.expect("another authority").to_string();
    assert!(error.contains("certificate"), "{error}");
}

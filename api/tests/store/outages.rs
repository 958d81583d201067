//! What a Postgres database, the network and the kernel do to the servers: crashes, cut sessions, kills; databases that
//! cannot keep the promises; TLS.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor, Row};

use super::postgres_server::Server;
use super::replicas::{history, moved, open, open_with, server, try_open};
use super::*;

/// The environment variable that makes `writes_until_it_is_killed` write.
const CHILD: &str = "STORE_TEST_DATABASE";

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
            .args(["outages::writes_until_it_is_killed", "--exact", "--ignored"])
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
async fn ages_survive_a_restart_of_every_server() {
    let Some(server) = server() else { return };
    let w = open(&server).await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    w.store.close().await;
    let hour = Duration::from_secs(3_600);
    let mut admin = PgConnection::connect(&server.admin_url()).await.unwrap();
    for (back, expected) in [(3_500, 0), (3_700, 1)] {
        let sql = format!(
            "UPDATE coracle.meta SET written_at = (extract(epoch FROM now()) - {back}) * 1000"
        );
        admin.execute(AssertSqlSafe(sql)).await.unwrap();
        let w = open(&server).await;
        assert_eq!(w.cache().older_than("pods", hour).len(), expected);
        w.store.close().await;
    }
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
async fn a_server_does_not_go_on_with_a_database_that_lost_its_writes_when_others_bring_its_number_forward()
 {
    let Some(server) = server() else { return };
    // The one looks all the time, the other only when it has to.
    let options = |poll| database::Options {
        poll,
        patience: Duration::from_millis(300),
        read_patience: Duration::from_millis(300),
        ..database::Options::default()
    };
    let looking = open_with(&server, options(Duration::from_millis(20))).await;
    let resting = open_with(&server, options(Duration::from_secs(3_600))).await;
    for i in 1..=5 {
        let key = pod(&format!("lost-{i}"));
        looking.put(&key, Expect::Absent, "1").await.unwrap();
    }
    resting.store.newest().unwrap().await.unwrap();
    // A standby that had three of them takes over.
    let mut admin = PgConnection::connect(&server.admin_url()).await.unwrap();
    let behind = "BEGIN; UPDATE coracle.meta SET revision = 3; \
        DELETE FROM coracle.history WHERE revision > 3; \
        DELETE FROM coracle.objects WHERE revision > 3; COMMIT";
    admin.execute(behind).await.unwrap();
    let begun = Instant::now();
    while looking.store.health().is_ok() {
        assert!(begun.elapsed() < DEADLINE, "it is seen");
        tokio::task::yield_now().await;
    }
    let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'coracle'";
    admin.execute(cut).await.unwrap();
    let fresh = open(&server).await;
    for i in 1..=10 {
        let key = pod(&format!("new-{i}"));
        fresh.put(&key, Expect::Absent, "1").await.unwrap();
    }
    for old in [&looking, &resting] {
        let error = old.put(&pod("x"), Expect::Any, "1").await.unwrap_err();
        assert!(error.to_string().contains("has lost writes"), "{error}");
        let error = old.store.newest().unwrap().await.unwrap_err();
        assert!(error.to_string().contains("has lost writes"), "{error}");
        assert!(old.store.health().is_err());
        assert_eq!(old.cache().revision(), 5, "nothing is mixed into it");
    }
    fresh.store.health().unwrap();
    let again = open(&server).await;
    again.put(&pod("x"), Expect::Absent, "1").await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_places_the_one_that_is_writable_is_used_and_left_when_another_is() {
    let (Some(mut first), Some(mut second)) = (
        Server::start(&["fsync=off", "default_transaction_read_only=on"]),
        server(),
    ) else {
        return;
    };
    let host = |server: &Server| {
        let url = server.url();
        url["postgres://coracle@".len()..url.len() - "/coracle".len()].to_owned()
    };
    let (a, b) = (host(&first), host(&second));
    let url = format!(
        "postgres://coracle@%2Fnowhere:5432,{a},{b}/coracle?target_session_attrs=read-write"
    );
    let options = || database::Options {
        poll: Duration::from_millis(50),
        ..database::Options::default()
    };
    let world = World {
        store: Arc::new(try_open(&url, options()).await.unwrap()),
        _directory: None,
        _server: None,
    };
    world.put(&pod("x"), Expect::Absent, "1").await.unwrap();
    // It is where the second place is.
    let late = open(&second).await;
    assert!(late.cache().get(&pod("x")).is_some());
    drop((world, late));
    // Nothing is writable: every place is named with what is wrong there.
    second.halt("fast");
    let error = try_open(&url, options()).await.err().expect("no place");
    let error = error.to_string();
    assert!(
        error.contains("it is read-only") && error.contains("/nowhere"),
        "{error}"
    );
    first.halt("fast");
}

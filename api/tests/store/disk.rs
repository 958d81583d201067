//! What only a store on a disk can do, or suffer: restarts, kills, a second process, a full or broken disk.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};

use super::*;

/// The environment variable that makes `writes_until_it_is_killed` write.
const CHILD: &str = "STORE_TEST_CHILD";

struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("state.db")
    }

    async fn open(&self) -> World {
        self.open_with(Options::default()).await
    }

    async fn open_with(&self, options: Options) -> World {
        let store = Sqlite::open_with(&self.path(), indexer(), options).await;
        World {
            store: Arc::new(store.unwrap()),
            _directory: None,
            _server: None,
        }
    }

    async fn error(&self) -> Error {
        let opened = Sqlite::open(&self.path(), indexer()).await;
        opened.err().expect("it must not open")
    }

    /// Another program's connection to the file.
    async fn stranger(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.path());
        options.connect().await.unwrap()
    }

    async fn count(&self, sql: &'static str) -> i64 {
        let mut stranger = self.stranger().await;
        stranger.fetch_one(sql).await.unwrap().get(0)
    }
}

/// Waits until `check` holds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let waited = timeout(DEADLINE, async {
        while !check().await {
            look.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "{what}");
}

#[tokio::test]
async fn everything_is_there_after_a_restart_and_watches_resume() {
    let disk = Disk::new();
    let w = disk.open().await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    w.put(&pod("a"), Expect::At(1), "2").await.unwrap();
    w.put(&pod("b"), Expect::Absent, "3").await.unwrap();
    w.delete(&pod("b"), Expect::Any).await.unwrap();
    w.put(&pod("b"), Expect::Absent, "4").await.unwrap();
    w.store.close().await;

    let w = disk.open().await;
    assert_eq!(w.cache().revision(), 5);
    let a = w.cache().get(&pod("a")).unwrap();
    assert_eq!((a.created, a.revision), (1, 2));
    assert_eq!(a.bytes, bytes("2", 2));
    assert_eq!(a.index, index("2"));
    let mut watcher = w.cache().watch("pods", 1).unwrap();
    for expected in [
        "2+pods/default/a=2",
        "3+pods/default/b=3",
        "4-pods/default/b=gone",
        "5+pods/default/b=4",
    ] {
        assert_eq!(next(&mut watcher).await.unwrap(), expected);
    }
    let old = w.cache().snapshot_at("pods", 1).unwrap();
    assert_eq!(names(old.iter()), ["pods/default/a"]);
    assert_eq!(old.get("default", "a").unwrap().bytes, bytes("1", 1));
    assert_eq!(w.put(&pod("c"), Expect::Absent, "5").await.unwrap(), 6);
    assert_eq!(next(&mut watcher).await.unwrap(), "6+pods/default/c=5");
}

#[tokio::test]
async fn nobody_else_may_read_the_files() {
    let disk = Disk::new();
    let w = disk.open().await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    let mut files = 0;
    for file in std::fs::read_dir(disk.directory.path()).unwrap() {
        let file = file.unwrap();
        let mode = file.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{}", file.path().display());
        files += 1;
    }
    assert_eq!(files, 4, "database, log, index of the log, lock");
}

#[tokio::test]
async fn a_second_owner_is_refused_with_one_clear_line() {
    let disk = Disk::new();
    let first = disk.open().await;
    let error = disk.error().await;
    assert!(matches!(error, Error::Locked(_)), "{error:?}");
    let expected = format!(
        "the data directory is in use by another process: {} (process {})",
        disk.path().display(),
        std::process::id()
    );
    assert_eq!(error.to_string(), expected);
    first.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    first.store.close().await;
    let second = disk.open().await;
    assert_eq!(second.cache().revision(), 1);
}

#[tokio::test]
async fn a_kill_loses_nothing_that_was_acknowledged_and_blocks_no_start() {
    let disk = Disk::new();
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "disk::writes_until_it_is_killed",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(CHILD, disk.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let acknowledged: Vec<Revision> = output
            .lines()
            .filter_map(|line| line.unwrap().strip_prefix("revision ")?.parse().ok())
            .take(50 * round)
            .collect();
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(acknowledged.len(), 50 * round, "the child wrote");

        let w = disk.open().await;
        let last = *acknowledged.iter().max().unwrap();
        assert!(w.cache().revision() >= last);
        let snapshot = w.cache().snapshot("pods");
        let there: std::collections::HashSet<_> = snapshot.iter().map(|o| o.revision).collect();
        for revision in acknowledged {
            assert!(there.contains(&revision), "{revision} was acknowledged");
        }
        for object in snapshot.iter() {
            assert_eq!(
                object.bytes,
                bytes(object.index.field("body").unwrap(), object.revision)
            );
        }
        w.store.close().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the other process of the test above"]
async fn writes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let store = Sqlite::open(Path::new(&path), indexer()).await.unwrap();
    let store = Arc::new(store);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..8 {
        let store = Arc::clone(&store);
        tasks.spawn(async move {
            for i in 0.. {
                let key = pod(&format!("{}-{client}-{i}", std::process::id()));
                let put = put(&key, Expect::Absent, &"x".repeat(1_000));
                let done = store.commit(vec![put]).await.unwrap();
                println!("revision {}", done[0].revision);
            }
        });
    }
    tasks.join_all().await;
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_serves_reads() {
    let disk = Disk::new();
    let options = Options {
        max_bytes: Some(1 << 20),
        ..Options::default()
    };
    let w = disk.open_with(options.clone()).await;
    let body = "x".repeat(3_000);
    let mut stored = 0;
    let error = loop {
        let key = pod(&format!("p{stored:04}"));
        match w.put(&key, Expect::Absent, &body).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full), "{error}");
    assert!(matches!(w.store.health(), Err(Error::Full)));
    assert!(stored > 150, "{stored} objects fit into a mebibyte");
    assert_eq!(
        w.cache().revision(),
        stored,
        "a failed write takes no revision"
    );
    let read = |w: &World| w.cache().get(&pod("p0007")).unwrap().bytes.clone();
    assert_eq!(read(&w), bytes(&body, 8));

    // Deleting makes room.
    for i in 0..20 {
        let key = pod(&format!("p{:04}", i + 100));
        w.delete(&key, Expect::Any).await.unwrap();
    }
    w.put(&pod("new"), Expect::Absent, &body).await.unwrap();
    w.store.health().unwrap();
    let revision = w.cache().revision();
    w.store.close().await;

    let w = disk.open_with(options).await;
    assert_eq!(w.cache().revision(), revision);
    assert_eq!(w.cache().snapshot("pods").len() as u64, stored - 20 + 1);
    assert_eq!(read(&w), bytes(&body, 8));
    let damage = "SELECT count(*) FROM pragma_integrity_check WHERE integrity_check <> 'ok'";
    assert_eq!(disk.count(damage).await, 0);
}

#[tokio::test]
async fn a_broken_disk_is_unavailable_until_it_is_back() {
    let disk = Disk::new();
    let w = disk
        .open_with(Options {
            lock_deadline: Duration::from_millis(20),
            ..Options::default()
        })
        .await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    let mut stranger = disk.stranger().await;
    stranger.execute("BEGIN IMMEDIATE").await.unwrap();
    let first = put(&pod("b"), Expect::Absent, "1");
    let second = put(&pod("b"), Expect::Absent, "2");
    let both = tokio::join!(w.store.commit(vec![first]), w.store.commit(vec![second]));
    for answer in [both.0, both.1] {
        let error = answer.unwrap_err();
        let unavailable = matches!(error, Error::Unavailable(_));
        assert!(
            unavailable,
            "nobody hears of a change that did not happen: {error:?}"
        );
    }
    assert!(w.store.health().is_err());
    assert_eq!(w.cache().revision(), 1);
    assert_eq!(w.cache().get(&pod("a")).unwrap().bytes, bytes("1", 1));

    stranger.execute("ROLLBACK").await.unwrap();
    eventually("writes work again", || async {
        w.put(&pod("b"), Expect::Absent, "3").await.is_ok()
    })
    .await;
    assert_eq!(w.cache().get(&pod("b")).unwrap().bytes, bytes("3", 2));
    w.store.health().unwrap();
}

#[tokio::test]
async fn a_queue_that_stays_full_is_busy() {
    let disk = Disk::new();
    let w = disk
        .open_with(Options {
            queue: Limits {
                commits: 2,
                deadline: Duration::from_millis(50),
                ..Limits::default()
            },
            ..Options::default()
        })
        .await;
    let mut stranger = disk.stranger().await;
    stranger.execute("BEGIN IMMEDIATE").await.unwrap();
    let mut waiting = tokio::task::JoinSet::new();
    for i in 0..8 {
        let store = Arc::clone(&w.store);
        let put = put(&pod(&format!("p{i}")), Expect::Absent, "1");
        waiting.spawn(async move { store.commit(vec![put]).await });
    }
    // The writer and the queue have taken some; the first to be answered is one that found no place.
    let first = timeout(DEADLINE, waiting.join_next()).await.unwrap();
    let first = first.unwrap().unwrap();
    assert!(matches!(first, Err(Error::Busy)), "{first:?}");
    stranger.execute("ROLLBACK").await.unwrap();
    let answers = waiting.join_all().await;
    let done = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!(done >= 2, "those who had a place are served");
    assert_eq!(w.cache().revision(), done as Revision);
}

#[tokio::test]
async fn the_file_forgets_what_the_cache_has_forgotten() {
    let disk = Disk::new();
    let w = disk
        .open_with(Options {
            housekeeping: Duration::from_millis(20),
            ..Options::default()
        })
        .await;
    for _ in 0..3 {
        let puts = (0..1_000).map(|i| put(&pod(&format!("p{i}")), Expect::Any, "x"));
        w.store.commit(puts.collect()).await.unwrap();
    }
    assert_eq!(disk.count("SELECT count(*) FROM history").await, 3_000);
    w.store.compact(1_400).await.unwrap();
    eventually("old history leaves the file", || async {
        disk.count("SELECT count(*) FROM history").await == 1_600
    })
    .await;
    w.store.close().await;
    let w = disk.open().await;
    assert_eq!(w.cache().stats().horizon, 1_400);
    assert_eq!(w.cache().snapshot("pods").len(), 1_000);
    let mut watcher = w.cache().watch("pods", 2_999).unwrap();
    assert_eq!(
        next(&mut watcher).await.unwrap(),
        "3000+pods/default/p999=x"
    );
}

#[tokio::test]
async fn ages_survive_a_restart() {
    let disk = Disk::new();
    let w = disk.open().await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    w.store.close().await;
    let hour = Duration::from_secs(3_600);
    for (back, expected) in [(3_500_000, 0), (3_700_000, 1)] {
        let sql = format!("UPDATE meta SET written_at = unixepoch() * 1000 - {back}");
        let mut stranger = disk.stranger().await;
        stranger.execute(AssertSqlSafe(sql)).await.unwrap();
        drop(stranger);
        let w = disk.open().await;
        assert_eq!(w.cache().older_than("pods", hour).len(), expected);
        w.store.close().await;
    }
}

#[tokio::test]
async fn a_file_that_is_damaged_foreign_or_newer_is_refused_and_named() {
    let disk = Disk::new();
    let w = disk.open().await;
    w.put(&pod("a"), Expect::Absent, "1").await.unwrap();
    w.put(&pod("a"), Expect::Any, "2").await.unwrap();
    w.store.close().await;
    for (sql, undo, expected) in [
        (
            "UPDATE meta SET revision = 3",
            "UPDATE meta SET revision = 2",
            "damaged: 2 changes between revisions 0 and 3",
        ),
        (
            "UPDATE objects SET revision = 1",
            "UPDATE objects SET revision = 2",
            "damaged: revision 2, of pods/default/a",
        ),
        (
            "PRAGMA user_version = 99",
            "PRAGMA user_version = 1",
            "schema version 99, and this program knows versions up to 1",
        ),
    ] {
        disk.stranger().await.execute(sql).await.unwrap();
        let error = disk.error().await.to_string();
        assert!(error.contains(expected), "{error}");
        disk.stranger().await.execute(undo).await.unwrap();
    }
    assert_eq!(disk.open().await.cache().revision(), 2);

    let other = Disk::new();
    std::fs::write(
        other.path(),
        "not a database, but long enough to be looked at".repeat(99),
    )
    .unwrap();
    let error = other.error().await;
    assert!(matches!(error, Error::Unavailable(_)), "{error}");
    let nowhere = Path::new("/nonexistent/state.db");
    let error = Sqlite::open(nowhere, indexer()).await.err().unwrap();
    assert!(
        error.to_string().contains("/nonexistent/state.db"),
        "{error}"
    );
}

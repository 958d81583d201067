//! Encryption at rest, as whoever steals the disk sees it.

use std::path::Path;

use api::store::seal::Sealer;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnection;

use super::*;

const HUSH: &str = "correct-horse-battery-staple";

async fn open(path: &Path, keys: &[[u8; 32]]) -> Result<World, Error> {
    let options = Options {
        sealer: Arc::new(Sealer::new(keys.iter().copied())),
        ..Options::default()
    };
    let store = Sqlite::open_with(path, indexer(), options).await?;
    Ok(World {
        store: Arc::new(store),
        _directory: None,
        _server: None,
    })
}

/// Is the text in any file of the directory?
fn found(directory: &Path, text: &str) -> bool {
    let files = std::fs::read_dir(directory).unwrap();
    files.flatten().any(|file| {
        let bytes = std::fs::read(file.path()).unwrap();
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    })
}

#[tokio::test]
async fn what_is_secret_is_nowhere_in_the_files() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let secret = Key::new("secrets", "default", "password");
    let w = open(&path, &[[1; 32]]).await.unwrap();
    w.put(&secret, Expect::Absent, HUSH).await.unwrap();
    w.put(&secret, Expect::Any, &format!("{HUSH}-2"))
        .await
        .unwrap();
    let gone = vec![Operation {
        key: secret.clone(),
        expect: Expect::Any,
        change: Change::Delete(draft(&format!("{HUSH}-3"))),
    }];
    w.store.commit(gone).await.unwrap();
    w.put(&secret, Expect::Absent, HUSH).await.unwrap();
    w.put(&pod("plain"), Expect::Absent, "visible")
        .await
        .unwrap();
    assert!(!found(directory.path(), HUSH), "not in the log either");
    assert!(found(directory.path(), "visible"), "the search works");
    w.store.close().await;
    assert!(!found(directory.path(), HUSH));

    let w = open(&path, &[[1; 32]]).await.unwrap();
    let read = w.cache().get(&secret).unwrap();
    assert_eq!(read.bytes, bytes(HUSH, 4));
    let mut history = w.cache().watch("secrets", 0).unwrap();
    for expected in [HUSH, &format!("{HUSH}-2"), &format!("{HUSH}-3"), HUSH] {
        let event = next(&mut history).await.unwrap();
        assert!(event.ends_with(&format!("={expected}")), "{event}");
    }
}

#[tokio::test]
async fn a_start_seals_what_is_there_with_the_first_key_and_leaves_no_plain_text_behind() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let [a, b, gone] = ["a", "b", "gone"].map(|name| Key::new("secrets", "default", name));
    let w = open(&path, &[]).await.unwrap();
    for key in [&a, &b, &gone] {
        w.put(key, Expect::Absent, HUSH).await.unwrap();
    }
    w.put(&a, Expect::Any, &format!("{HUSH}-2")).await.unwrap();
    let delete = Operation {
        key: gone.clone(),
        expect: Expect::Any,
        change: Change::Delete(draft(HUSH)),
    };
    w.store.commit(vec![delete]).await.unwrap();
    w.store.close().await;
    assert!(found(directory.path(), HUSH), "the search works");

    // Nobody writes, and history is sealed as the objects are.
    let w = open(&path, &[[1; 32]]).await.unwrap();
    assert!(!found(directory.path(), HUSH), "sealed while it runs");
    assert_eq!(w.cache().get(&b).unwrap().bytes, bytes(HUSH, 2));
    w.store.close().await;
    assert!(!found(directory.path(), HUSH));

    // What was sealed with another key only, is named.
    for (keys, hint) in [
        (&[][..], "no key was given"),
        (&[[2; 32]][..], "does not have them"),
    ] {
        let error = open(&path, keys).await.err().unwrap().to_string();
        assert!(error.starts_with("the store is unavailable: "), "{error}");
        assert!(error.contains("5 stored states of objects"), "{error}");
        assert!(error.contains("secrets/default/a"), "{error}");
        assert!(error.contains(hint), "{error}");
    }

    // One start with both keys, and the old one is not needed any more.
    let w = open(&path, &[[2; 32], [1; 32]]).await.unwrap();
    w.store.close().await;
    let w = open(&path, &[[2; 32]]).await.unwrap();
    assert_eq!(w.cache().get(&b).unwrap().bytes, bytes(HUSH, 2));
    let mut history = w.cache().watch("secrets", 0).unwrap();
    for _ in 0..5 {
        let event = next(&mut history).await.unwrap();
        assert!(event.contains(HUSH), "{event}");
    }
    w.store.close().await;
    assert!(!found(directory.path(), HUSH));
}

#[tokio::test]
async fn what_was_deleted_before_there_was_a_key_is_not_left_in_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let secret = Key::new("secrets", "default", "a");
    let w = open(&path, &[]).await.unwrap();
    let long = HUSH.repeat(500);
    w.put(&secret, Expect::Absent, &long).await.unwrap();
    let delete = Operation {
        key: secret,
        expect: Expect::Any,
        change: Change::Delete(draft("-")),
    };
    w.store.commit(vec![delete]).await.unwrap();
    w.store.close().await;
    // As compaction forgets it.
    let mut raw = SqliteConnection::connect(path.to_str().unwrap())
        .await
        .unwrap();
    let forget = "DELETE FROM history; UPDATE meta SET horizon = revision";
    sqlx::raw_sql(forget).execute(&mut raw).await.unwrap();
    raw.close().await.unwrap();
    assert!(found(directory.path(), HUSH), "in free pages");

    let w = open(&path, &[[1; 32]]).await.unwrap();
    assert!(!found(directory.path(), HUSH));
    w.store.close().await;
}

//! Encryption at rest, as whoever steals the disk sees it.

use std::path::Path;

use api::store::seal::Sealer;

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
async fn keys_are_rotated_by_writing_and_a_missing_one_is_named_at_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let [a, b] = ["a", "b"].map(|name| Key::new("secrets", "default", name));
    let w = open(&path, &[]).await.unwrap();
    w.put(&a, Expect::Absent, HUSH).await.unwrap();
    w.put(&b, Expect::Absent, HUSH).await.unwrap();
    w.store.close().await;

    // Plain values are read, and sealed when they are written again.
    let w = open(&path, &[[1; 32]]).await.unwrap();
    for key in [&a, &b] {
        w.put(key, Expect::Any, HUSH).await.unwrap();
    }
    w.store.compact(4).await.unwrap();
    w.store.close().await;
    let w = open(&path, &[[2; 32], [1; 32]]).await.unwrap();
    w.put(&b, Expect::Any, HUSH).await.unwrap();
    assert_eq!(w.cache().get(&a).unwrap().bytes, bytes(HUSH, 3));
    w.store.close().await;

    for (keys, sealed, hint) in [
        (&[][..], "stored states", "no key was given"),
        (&[[2; 32]][..], "stored states", "does not have them"),
    ] {
        let error = open(&path, keys).await.err().unwrap().to_string();
        assert!(error.contains(sealed) && error.contains(hint), "{error}");
        assert!(error.starts_with("the store is unavailable: "), "{error}");
        let count = error.split(' ').find_map(|word| word.parse::<u32>().ok());
        assert!(count.is_some_and(|count| count > 0), "{error}");
    }
}

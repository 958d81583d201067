//! A store of a test's own, and short words for what is done to it.

use super::*;

/// Longer than anything here takes.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) _directory: Option<tempfile::TempDir>,
    pub(crate) _server: Option<postgres_server::Server>,
}

impl World {
    pub(crate) async fn memory(config: Config) -> Self {
        Self {
            store: Arc::new(Memory::with(config)),
            _directory: None,
            _server: None,
        }
    }

    pub(crate) async fn sqlite(config: Config) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = Options {
            cache: config,
            ..Options::default()
        };
        let path = directory.path().join("state.db");
        let store = Sqlite::open_with(&path, indexer(), options).await.unwrap();
        Self {
            store: Arc::new(store),
            _directory: Some(directory),
            _server: None,
        }
    }

    /// `None` where Postgres is not installed.
    pub(crate) async fn postgres(config: Config) -> Option<Self> {
        let server = postgres_server::Server::start(&["fsync=off"])?;
        let options = database::Options {
            cache: config,
            ..database::Options::default()
        };
        let address = database::Address::parse(&server.url()).unwrap();
        let store = Postgres::open_with(address, indexer(), options).await;
        Some(Self {
            store: Arc::new(store.unwrap()),
            _directory: None,
            _server: Some(server),
        })
    }

    pub(crate) fn cache(&self) -> &Arc<Cache> {
        self.store.cache()
    }

    pub(crate) async fn put(
        &self,
        key: &Key,
        expect: Expect,
        body: &str,
    ) -> Result<Revision, Error> {
        let done = self.store.commit(vec![put(key, expect, body)]).await?;
        Ok(done[0].revision)
    }

    pub(crate) async fn delete(&self, key: &Key, expect: Expect) -> Result<Revision, Error> {
        let done = self.store.commit(vec![delete(key, expect)]).await?;
        Ok(done[0].revision)
    }
}

/// The field `body` of the test's objects: what an index has to be worked out from when loaded.
pub(crate) fn indexer() -> Indexer {
    Arc::new(|_, bytes| {
        let object: serde_json::Value = serde_json::from_slice(bytes).unwrap();
        index(object["body"].as_str().unwrap())
    })
}

pub(crate) fn index(body: &str) -> Index {
    Index {
        uid: "u".into(),
        labels: Box::default(),
        fields: Box::new([("body", body.into())]),
    }
}

pub(crate) fn draft(body: &str) -> Draft {
    Draft {
        head: format!("{{\"body\":\"{body}\",\"rv\":\"").into(),
        tail: "\"}".into(),
        index: index(body),
    }
}

pub(crate) fn bytes(body: &str, revision: Revision) -> String {
    format!("{{\"body\":\"{body}\",\"rv\":\"{revision}\"}}")
}

pub(crate) fn put(key: &Key, expect: Expect, body: &str) -> Operation {
    Operation {
        key: key.clone(),
        expect,
        change: Change::Put(draft(body)),
    }
}

pub(crate) fn delete(key: &Key, expect: Expect) -> Operation {
    Operation {
        key: key.clone(),
        expect,
        change: Change::Delete(draft("gone")),
    }
}

pub(crate) fn pod(name: &str) -> Key {
    Key::new("pods", "default", name)
}

pub(crate) fn names<'a>(objects: impl IntoIterator<Item = &'a Arc<Stored>>) -> Vec<String> {
    objects.into_iter().map(|o| o.key.to_string()).collect()
}

/// The next change as `revision key body`, `-` for deletions.
pub(crate) async fn next(watcher: &mut Watcher) -> Option<String> {
    let event = timeout(DEADLINE, watcher.next()).await.unwrap()?;
    let mark = if event.deleted { "-" } else { "+" };
    let body = event.object.index.field("body").unwrap();
    Some(format!(
        "{}{mark}{}={body}",
        event.revision, event.object.key
    ))
}

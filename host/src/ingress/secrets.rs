//! The Secrets that Ingresses and Gateways refer to, each watched on its own: a node may read no others. Keeps what TLS
//! needs of them, and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret as Object;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls::sign::CertifiedKey;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use types::routing::{Key, Secret};

use super::certificates;

/// Each is a watch on the API server; those beyond count as absent, and the log says so.
const MOST: usize = 4_096;
const QUEUE: usize = 64;

type Loaded = Result<Arc<CertifiedKey>, String>;
pub(super) type News = (Key, Option<Loaded>);

/// Owned by the task that follows the API.
pub(super) struct Secrets {
    client: Client,
    watched: HashMap<Key, AbortOnDropHandle<()>>,
    /// What is known; a Secret that does not exist is not in it.
    loaded: HashMap<Key, Loaded>,
    news: mpsc::Sender<News>,
    full: bool,
}

// === impl Secrets ===

impl Secrets {
    pub(super) fn new(client: Client) -> (Self, mpsc::Receiver<News>) {
        let (news, inbox) = mpsc::channel(QUEUE);
        let secrets = Self {
            client,
            watched: HashMap::new(),
            loaded: HashMap::new(),
            news,
            full: false,
        };
        (secrets, inbox)
    }

    /// Watches exactly these.
    pub(super) fn watch(&mut self, wanted: &BTreeSet<Key>) {
        self.watched.retain(|key, _| wanted.contains(key));
        self.loaded.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if self.watched.contains_key(key) {
                continue;
            }
            if self.watched.len() >= MOST {
                if !std::mem::replace(&mut self.full, true) {
                    warn!(secret = %key, most = MOST, "Too many TLS Secrets, not watched");
                }
                return;
            }
            let task = follow(self.client.clone(), key.clone(), self.news.clone());
            let task = AbortOnDropHandle::new(tokio::spawn(task));
            self.watched.insert(key.clone(), task);
        }
        self.full = false;
    }

    /// True when something is different now.
    pub(super) fn take(&mut self, (key, loaded): News) -> bool {
        if !self.watched.contains_key(&key) {
            return false;
        }
        match loaded {
            Some(loaded) => {
                if let Err(error) = &loaded {
                    warn!(secret = %key, error, "Secret cannot be used for TLS");
                }
                self.loaded.insert(key, loaded);
                true
            }
            None => self.loaded.remove(&key).is_some(),
        }
    }

    pub(super) fn known(&self) -> HashMap<Key, Secret> {
        let state = |loaded: &Loaded| match loaded {
            Ok(_) => Secret::Good,
            Err(why) => Secret::Bad(why.clone()),
        };
        let all = self.loaded.iter();
        all.map(|(key, loaded)| (key.clone(), state(loaded)))
            .collect()
    }

    pub(super) fn certificates(&self) -> HashMap<Key, Arc<CertifiedKey>> {
        let all = self.loaded.iter();
        all.filter_map(|(key, loaded)| Some((key.clone(), Arc::clone(loaded.as_ref().ok()?))))
            .collect()
    }
}

/// Tells of one Secret until it is dropped. Watch errors are retried with backoff inside kube's watcher.
async fn follow(client: Client, key: Key, news: mpsc::Sender<News>) {
    let api: Api<Object> = Api::namespaced(client, &key.namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={}", key.name));
    let events = watcher(api, only).default_backoff().inspect_err(|error| {
        let error = error as &dyn std::error::Error;
        warn!(secret = %key, error, "Watch of a TLS Secret failed");
    });
    let mut events = std::pin::pin!(events);
    let mut listed = false;
    while let Some(event) = events.next().await {
        let loaded = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                listed = true;
                Some(load(&object))
            }
            Ok(Event::Delete(_)) => None,
            Ok(Event::Init) => {
                listed = false;
                continue;
            }
            // A list without it.
            Ok(Event::InitDone) if !listed => None,
            Ok(Event::InitDone) | Err(_) => continue,
        };
        if news.send((key.clone(), loaded)).await.is_err() {
            return;
        }
    }
}

fn load(object: &Object) -> Loaded {
    let part = |name: &str| {
        let data = object.data.as_ref().and_then(|data| data.get(name));
        data.map(|bytes| bytes.0.as_slice())
            .ok_or_else(|| format!("has no {name}"))
    };
    certificates::parse(part("tls.crt")?, part("tls.key")?).map(Arc::new)
}

//! The Secrets that Ingresses and Gateways refer to, each watched on its own: a node may read no others. Keeps what TLS
//! needs of them, and nothing else.
//!
//! A watch is a stream of the node's one connection to the API, which has room for few hundred: its leases and its pods
//! need some too. So only the first [`WATCHES`] are watched, the others are read now and then.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Secret as Object;
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls::sign::CertifiedKey;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use types::certificate;
use types::routing::{Key, Secret};

/// Those beyond count as absent, and the log says so.
const MOST: usize = 4_096;
/// Watches at once.
const WATCHES: usize = 100;
/// How often the others are read, and how often those that cannot be used yet.
const AGAIN: Duration = Duration::from_secs(60);
const SOON: Duration = Duration::from_secs(10);
/// Reads under way, and how long one may take.
const READS: usize = 8;
const DEADLINE: Duration = Duration::from_secs(15);
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
    shares: Arc<Shares>,
    full: bool,
}

/// What all of them may ask of the API at once.
struct Shares {
    watches: Semaphore,
    reads: Semaphore,
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
            shares: Arc::new(Shares {
                watches: Semaphore::new(WATCHES),
                reads: Semaphore::new(READS),
            }),
            full: false,
        };
        (secrets, inbox)
    }

    /// Follows exactly these.
    pub(super) fn watch(&mut self, wanted: &BTreeSet<Key>) {
        self.watched.retain(|key, _| wanted.contains(key));
        self.loaded.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if self.watched.contains_key(key) {
                continue;
            }
            if self.watched.len() >= MOST {
                if !std::mem::replace(&mut self.full, true) {
                    warn!(secret = %key, most = MOST, "Too many TLS Secrets, not followed");
                }
                return;
            }
            let api = Api::namespaced(self.client.clone(), &key.namespace);
            let shares = Arc::clone(&self.shares);
            let task = follow(api, key.clone(), shares, self.news.clone());
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

/// Tells of one Secret until it is dropped.
async fn follow(api: Api<Object>, key: Key, shares: Arc<Shares>, news: mpsc::Sender<News>) {
    let mut last = None;
    let mut usable = false;
    loop {
        if let Ok(_place) = shares.watches.try_acquire() {
            return watch(api, key, news).await;
        }
        let read = {
            let Ok(_turn) = shares.reads.acquire().await else {
                return;
            };
            tokio::time::timeout(DEADLINE, api.get_opt(&key.name)).await
        };
        match read {
            Ok(Ok(object)) => {
                let version = object.as_ref().map(|o| o.metadata.resource_version.clone());
                if last.as_ref() != Some(&version) {
                    last = Some(version);
                    let loaded = object.as_ref().map(load);
                    usable = matches!(loaded, Some(Ok(_)));
                    if news.send((key.clone(), loaded)).await.is_err() {
                        return;
                    }
                }
            }
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                warn!(secret = %key, error, "Reading a TLS Secret failed");
            }
            Err(_) => {
                warn!(secret = %key, deadline = ?DEADLINE, "Reading a TLS Secret took too long")
            }
        }
        let pause = if usable { AGAIN } else { SOON };
        tokio::select! {
            place = shares.watches.acquire() => match place {
                Ok(_place) => return watch(api, key, news).await,
                Err(_) => return,
            },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Watch errors are retried with backoff inside kube's watcher.
async fn watch(api: Api<Object>, key: Key, news: mpsc::Sender<News>) {
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
    };
    certificate::of_secret(part("tls.crt"), part("tls.key")).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use serde_json::json;

    use super::*;

    /// Every Secret exists, at `version`; counts watches, which never say anything.
    fn api(version: &Arc<AtomicUsize>, watches: &Arc<AtomicUsize>) -> Client {
        let (version, watches) = (Arc::clone(version), Arc::clone(watches));
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let query = request.uri().query().unwrap_or_default().to_owned();
            let name = match query.split_once("metadata.name%3D") {
                Some((_, name)) => name.split('&').next().unwrap().to_owned(),
                None => request.uri().path().rsplit('/').next().unwrap().to_owned(),
            };
            let version = version.load(Ordering::Relaxed).to_string();
            let object = json!({"metadata": {"name": name, "namespace": "shop", "resourceVersion": version},
                "data": {}});
            let text = if query.contains("watch=true") {
                watches.fetch_add(1, Ordering::Relaxed);
                None
            } else if query.contains("metadata.name") {
                Some(json!({"metadata": {"resourceVersion": version}, "items": [object]}))
            } else {
                Some(object)
            };
            let first =
                text.map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text.to_string()))));
            let body = match first {
                Some(first) => futures::stream::iter([first]).boxed(),
                None => futures::stream::pending().boxed(),
            };
            async move { Ok::<_, Infallible>(Response::new(StreamBody::new(body).boxed_unsync())) }
        });
        Client::new(service, "default")
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_get_no_watch_are_read_and_read_again() {
        let (version, watches) = (Arc::new(AtomicUsize::new(1)), Arc::default());
        let (mut secrets, mut news) = Secrets::new(api(&version, &watches));
        let key = |number: usize| Key {
            namespace: "shop".to_owned(),
            name: format!("tls-{number}"),
        };
        let mut wanted: BTreeSet<Key> = (0..300).map(key).collect();
        secrets.watch(&wanted);
        while secrets.known().len() < 300 {
            secrets.take(news.recv().await.unwrap());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(watches.load(Ordering::Relaxed), WATCHES);
        version.store(2, Ordering::Relaxed);
        let mut changed = BTreeSet::new();
        while changed.len() < 300 - WATCHES {
            changed.insert(news.recv().await.unwrap().0);
        }
        // Who is not wanted any more leaves its watch to another.
        wanted.retain(|key| changed.contains(key));
        secrets.watch(&wanted);
        let told = async { while news.recv().await.is_some() {} };
        drop(tokio::time::timeout(Duration::from_secs(1), told).await);
        assert_eq!(watches.load(Ordering::Relaxed), 2 * WATCHES);
    }
}

//! The Secrets that Ingresses and Gateways of ours name, each watched on its own: no others are read. Keeps whether nodes can
//! use them, and nothing else.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use types::routing::{Key as RouteKey, Secret as State};

use super::TlsSecret;
use crate::informers::Store;
use crate::objects::{Key, SECRETS};
use crate::reconcile::Queue;

/// Each is a watch on the API server, as on every node; those beyond count as absent, and the log says so.
const MOST: usize = 4_096;

/// Their watches end when this does.
pub(super) struct Secrets {
    client: Client,
    /// Whom a change wakes, and with what.
    queue: Arc<Queue<Key>>,
    key: Key,
    watched: Mutex<HashMap<RouteKey, Watched>>,
}

/// What has become of watching them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Known {
    AsBefore,
    /// Some were not looked at before.
    More,
    /// Not all of them yet.
    NotYet,
}

struct Watched {
    store: Arc<Store<TlsSecret>>,
    _task: AbortOnDropHandle<()>,
}

// === impl Secrets ===

impl Secrets {
    pub(super) fn new(client: Client, queue: Arc<Queue<Key>>, key: Key) -> Self {
        Self {
            client,
            queue,
            key,
            watched: Mutex::default(),
        }
    }

    /// Watches exactly these, and waits until they are known.
    pub(super) async fn watch(&self, wanted: &BTreeSet<RouteKey>, patience: Duration) -> Known {
        let (stores, new) = self.begin(wanted);
        let deadline = Instant::now() + patience;
        for store in stores {
            if timeout_at(deadline, store.synced()).await.is_err() {
                return Known::NotYet;
            }
        }
        if new { Known::More } else { Known::AsBefore }
    }

    /// The stores of all that are wanted, and whether there are new ones.
    fn begin(&self, wanted: &BTreeSet<RouteKey>) -> (Vec<Arc<Store<TlsSecret>>>, bool) {
        let mut watched = self.lock();
        let mut new = false;
        watched.retain(|key, _| wanted.contains(key));
        for key in wanted {
            if watched.contains_key(key) {
                continue;
            }
            if watched.len() >= MOST {
                warn!(secret = %key, most = MOST, "Too many TLS Secrets, not watched");
                break;
            }
            watched.insert(key.clone(), self.follow(key));
            new = true;
        }
        let all = watched.values();
        let all = all.map(|watched| Arc::clone(&watched.store));
        (all.collect(), new)
    }

    fn follow(&self, key: &RouteKey) -> Watched {
        let store = Arc::new(Store::named(SECRETS.url(&key.namespace), &key.name));
        let (waker, everything) = (Arc::clone(&self.queue), self.key.clone());
        store.on_change(move |_| waker.add(everything.clone()));
        let (client, running) = (self.client.clone(), Arc::clone(&store));
        // Aborted when nobody wants it any more, or the term ends.
        let task = async move { running.run(client, CancellationToken::new()).await };
        Watched {
            store,
            _task: AbortOnDropHandle::new(tokio::spawn(task)),
        }
    }

    /// What is known; a Secret that does not exist is not in it.
    pub(super) fn known(&self) -> HashMap<RouteKey, State> {
        let watched = self.lock();
        let found = watched.iter().filter_map(|(key, watched)| {
            let object = watched.store.get(&Key::new(&key.namespace, &key.name))?;
            Some((key.clone(), object.state.clone()))
        });
        found.collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RouteKey, Watched>> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

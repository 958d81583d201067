//! Follows NetworkPolicies and, while there is one, Pods; publishes the table made of them and of the Namespaces. One task
//! owns the index; the gate reads the latest table. Judges nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::counts::Counts;
use super::rules::Policy;
use super::table::{Interned, Peer, Peers, Table};
use crate::network::namespaces::Namespaces;
use crate::network::services::follow;
use crate::network::table::Key;
use crate::network::vnet::Fabric;

/// A burst of changes is published as one table: at most one in this time.
const QUIET: Duration = Duration::from_millis(20);

/// Everything known of policies and pods. No I/O: events in, tables out.
#[derive(Default)]
pub(crate) struct Index {
    policies: HashMap<Key, Arc<Policy>>,
    counts: HashMap<Key, Arc<Counts>>,
    peers: Peers,
    interned: Interned,
    namespaces: Arc<Namespaces>,
    /// What a relist has not mentioned yet is gone when it ends.
    policies_relisted: Option<HashSet<Key>>,
    pods_relisted: Option<HashSet<(String, String)>>,
    listed: bool,
    changed: Changed,
}

/// What the next table does not share with the last.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
struct Changed {
    policies: bool,
    peers: bool,
    /// What was allowed may not be any more.
    decisions: bool,
}

/// A table, and whether open connections are to be judged again.
pub(crate) struct Published {
    pub(crate) table: Table,
    pub(crate) decisions: bool,
}

/// Runs until the network stops. Watch errors are retried with backoff inside kube's watcher; the last table stays meanwhile.
pub(crate) async fn run(client: Client, fabric: Arc<Fabric>) {
    let stop = fabric.stop.clone();
    let mut namespaces: watch::Receiver<Arc<Namespaces>> = fabric.namespaces.clone();
    let mut policies = std::pin::pin!(follow::<NetworkPolicy>(client.clone(), "NetworkPolicy"));
    let mut pods: Option<BoxStream<'static, Event<Pod>>> = None;
    let mut index = Index::default();
    let mut next_publish = Instant::now();
    loop {
        let pending = index.is_dirty();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next_publish), if pending => {
                let last = fabric.policy.table();
                let published = index.publish(&last);
                fabric.publish_policies(published);
                next_publish = Instant::now() + QUIET;
                match (index.policies.is_empty(), &pods) {
                    (false, None) => pods = Some(follow_pods(client.clone()).boxed()),
                    (true, Some(_)) => {
                        pods = None;
                        index.forget_pods();
                    }
                    _ => {}
                }
            }
            event = policies.next() => match event {
                Some(event) => index.policy(event),
                None => return,
            },
            changed = namespaces.changed() => match changed {
                Ok(()) => index.namespaces(Arc::clone(&namespaces.borrow_and_update())),
                Err(_) => return,
            },
            Some(event) = next(&mut pods) => index.pod(event),
        }
    }
}

async fn next(pods: &mut Option<BoxStream<'static, Event<Pod>>>) -> Option<Event<Pod>> {
    match pods {
        Some(pods) => pods.next().await,
        None => std::future::pending().await,
    }
}

fn follow_pods(client: Client) -> impl Stream<Item = Event<Pod>> + Send {
    follow::<Pod>(client, "Pod")
}

// === impl Index ===

impl Index {
    /// Nothing is told before policies have been listed: half of them would forbid what the other half allows.
    fn is_dirty(&self) -> bool {
        self.listed && self.changed != Changed::default()
    }

    pub(super) fn publish(&mut self, last: &Table) -> Published {
        let changed = std::mem::take(&mut self.changed);
        debug!(
            policies = self.policies.len(),
            ?changed,
            "Published network policies"
        );
        let policies = if changed.policies {
            let mut policies: HashMap<String, Vec<Arc<Policy>>> = HashMap::new();
            for policy in self.policies.values() {
                let namespace = policies.entry(policy.namespace.clone()).or_default();
                namespace.push(Arc::clone(policy));
            }
            for namespace in policies.values_mut() {
                namespace.sort_by(|a, b| a.name.cmp(&b.name));
            }
            Arc::new(policies)
        } else {
            Arc::clone(&last.policies)
        };
        let peers = if changed.peers {
            // What the last table alone still has is forgotten the next time.
            self.interned.prune_when_grown();
            Arc::new(self.peers.clone())
        } else {
            Arc::clone(&last.peers)
        };
        let table = Table {
            known: true,
            policies,
            peers,
            namespaces: Arc::clone(&self.namespaces),
        };
        Published {
            table,
            decisions: changed.decisions,
        }
    }

    pub(super) fn namespaces(&mut self, namespaces: Arc<Namespaces>) {
        self.namespaces = namespaces;
        if !self.policies.is_empty() {
            self.changed.decisions = true;
        }
    }

    pub(crate) fn policy(&mut self, event: Event<NetworkPolicy>) {
        match event {
            Event::Init => self.policies_relisted = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.policies_relisted {
                    seen.insert(key_of(&object));
                }
                self.put_policy(&object);
            }
            Event::Apply(object) => self.put_policy(&object),
            Event::Delete(object) => self.drop_policy(&key_of(&object)),
            Event::InitDone => {
                let seen = self.policies_relisted.take().unwrap_or_default();
                let gone = self.policies.keys().filter(|key| !seen.contains(*key));
                for key in gone.cloned().collect::<Vec<_>>() {
                    self.drop_policy(&key);
                }
                if !std::mem::replace(&mut self.listed, true) {
                    // Even that there is none must be told.
                    self.policies_changed();
                }
            }
        }
    }

    fn put_policy(&mut self, object: &NetworkPolicy) {
        let key = key_of(object);
        let counts = Arc::clone(self.counts.entry(key.clone()).or_default());
        let (policy, problems) = Policy::compile(object, counts);
        for problem in problems {
            let Key { namespace, name } = &key;
            warn!(%namespace, policy = %name, %problem, "Part of a NetworkPolicy allows nothing");
        }
        self.policies.insert(key, Arc::new(policy));
        self.policies_changed();
    }

    fn drop_policy(&mut self, key: &Key) {
        self.policies.remove(key);
        self.counts.remove(key);
        self.policies_changed();
    }

    fn policies_changed(&mut self) {
        self.changed.policies = true;
        self.changed.decisions = true;
    }

    pub(crate) fn pod(&mut self, event: Event<Pod>) {
        match event {
            Event::Init => self.pods_relisted = Some(HashSet::new()),
            Event::InitApply(pod) => {
                if let Some(seen) = &mut self.pods_relisted {
                    seen.insert((pod.namespace().unwrap_or_default(), pod.name_any()));
                }
                self.put_pod(pod);
            }
            Event::Apply(pod) => self.put_pod(pod),
            Event::Delete(pod) => {
                self.peers
                    .remove(&pod.namespace().unwrap_or_default(), &pod.name_any());
                self.changed.peers = true;
            }
            Event::InitDone => {
                let seen = self.pods_relisted.take().unwrap_or_default();
                let known = self.peers.keys();
                let known = known.map(|(namespace, name)| (namespace.to_owned(), name.to_owned()));
                for gone in known.filter(|key| !seen.contains(key)).collect::<Vec<_>>() {
                    self.peers.remove(&gone.0, &gone.1);
                }
                self.interned.prune();
                self.peers.complete = true;
                self.changed.peers = true;
                // What waited to be known was let go on only if it was allowed anyway.
                self.changed.decisions = true;
            }
        }
    }

    fn put_pod(&mut self, pod: Pod) {
        let peer = Peer::of(pod, &mut self.interned);
        let known = self.peers.named(&peer.namespace, &peer.name);
        if known.is_some_and(|known| **known == peer) {
            return;
        }
        self.changed.decisions |= self.peers.put(peer) == Some(true);
        self.changed.peers = true;
    }

    #[cfg(test)]
    pub(super) fn interned(&self) -> usize {
        self.interned.len()
    }

    /// There is no policy any more that could mean them.
    fn forget_pods(&mut self) {
        self.peers = Peers::default();
        self.interned = Interned::default();
        self.pods_relisted = None;
        self.changed.peers = true;
    }
}

fn key_of(object: &NetworkPolicy) -> Key {
    Key {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

//! Follows Services and EndpointSlices and publishes the table made of them. One task owns the index; readers get the
//! latest table through a `watch` channel. Never balances, never opens a socket.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service as ServiceObject};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::well_known::LABEL_ZONE;

use super::nodes::Nodes;
use super::table::{Key, Loads, Service, Slice, Table};

/// A burst of changes is published as one table: at most one in this time.
const QUIET: Duration = Duration::from_millis(5);

/// Everything known of Services and EndpointSlices. No I/O: events in, tables out.
pub(crate) struct Index {
    services: HashMap<Key, Arc<ServiceObject>>,
    slices: HashMap<Key, BTreeMap<String, Slice>>,
    /// Namespace and name of a slice → its Service: a deleted slice, or one whose label changed, must be found.
    slice_owners: HashMap<(String, String), Key>,
    dirty: HashSet<Key>,
    loads: Loads,
    /// Counts changes of Services' objects.
    objects: u64,
    /// What a relist has not mentioned yet is gone when it ends.
    services_relisted: Option<HashSet<Key>>,
    slices_relisted: Option<HashSet<(String, String)>>,
    services_listed: bool,
    slices_listed: bool,
}

enum Change {
    Service(Box<Event<ServiceObject>>),
    Slice(Box<Event<EndpointSlice>>),
    /// Of this very node.
    Node(Box<Event<PartialObjectMeta<Node>>>),
}

/// Runs until `stop`. Watch errors are retried with backoff inside kube's watcher; the last table stays meanwhile.
pub(crate) async fn run(
    client: Client,
    tables: watch::Sender<Arc<Table>>,
    nodes: Arc<Nodes>,
    stop: CancellationToken,
) {
    let services = follow(client.clone(), "Service").map(|event| Change::Service(Box::new(event)));
    let slices =
        follow(client.clone(), "EndpointSlice").map(|event| Change::Slice(Box::new(event)));
    let node = follow_node(client, nodes.own()).map(|event| Change::Node(Box::new(event)));
    let changes = futures::stream::select(futures::stream::select(services, slices), node);
    let mut changes = std::pin::pin!(changes);
    let mut index = Index::new(nodes);
    let mut next_publish = Instant::now();
    loop {
        let pending = index.is_dirty();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(next_publish), if pending => {
                index.publish(&tables);
                next_publish = Instant::now() + QUIET;
            }
            change = changes.next() => match change {
                Some(Change::Service(event)) => index.service(*event),
                Some(Change::Slice(event)) => index.slice(*event),
                Some(Change::Node(event)) => index.node(*event),
                None => return,
            }
        }
    }
}

/// Events of all objects of a kind, without end: errors are logged and retried with backoff.
pub(super) fn follow<K>(client: Client, kind: &'static str) -> impl Stream<Item = Event<K>>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
{
    watch_objects(Api::<K>::all(client), watcher::Config::default())
        .default_backoff()
        .inspect_err(move |error| {
            warn!(
                kind,
                error = error as &dyn std::error::Error,
                "Watch failed"
            );
        })
        .filter_map(|event| std::future::ready(event.ok()))
}

/// The metadata of this node's own object: its labels say where it is.
fn follow_node(
    client: Client,
    name: &str,
) -> impl Stream<Item = Event<PartialObjectMeta<Node>>> + use<> {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    watch_objects(Api::<PartialObjectMeta<Node>>::all(client), config)
        .default_backoff()
        .inspect_err(|error| {
            warn!(
                kind = "Node",
                error = error as &dyn std::error::Error,
                "Watch failed"
            );
        })
        .filter_map(|event| std::future::ready(event.ok()))
}

// === impl Index ===

impl Index {
    pub(crate) fn new(nodes: Arc<Nodes>) -> Self {
        Self {
            services: HashMap::new(),
            slices: HashMap::new(),
            slice_owners: HashMap::new(),
            dirty: HashSet::new(),
            loads: Loads::new(nodes),
            objects: 0,
            services_relisted: None,
            slices_relisted: None,
            services_listed: false,
            slices_listed: false,
        }
    }

    pub(crate) fn node(&mut self, event: Event<PartialObjectMeta<Node>>) {
        let (Event::InitApply(node) | Event::Apply(node)) = event else {
            return;
        };
        let zone = node
            .labels()
            .get(LABEL_ZONE)
            .filter(|zone| !zone.is_empty());
        if self.loads.set_zone(zone.cloned()) {
            // What is near has changed for all of them.
            self.dirty.extend(self.services.keys().cloned());
        }
    }

    /// Nothing is sent before both kinds were listed: half a table would refuse connections that should be accepted.
    fn is_dirty(&self) -> bool {
        self.services_listed && self.slices_listed && !self.dirty.is_empty()
    }

    /// Puts what changed into the table and sends it.
    fn publish(&mut self, tables: &watch::Sender<Arc<Table>>) {
        let mut table = Table::clone(&tables.borrow());
        let changed = self.dirty.len();
        self.update(&mut table);
        debug!(services = changed, "Published services");
        tables.send_replace(Arc::new(table));
    }

    pub(crate) fn update(&mut self, table: &mut Table) {
        for key in std::mem::take(&mut self.dirty) {
            let Some(object) = self.services.get(&key) else {
                table.remove(&key);
                continue;
            };
            let slices: Vec<&Slice> = self
                .slices
                .get(&key)
                .into_iter()
                .flat_map(BTreeMap::values)
                .collect();
            let old = table.get(&key.namespace, &key.name).cloned();
            let service = Service::build(
                key,
                Arc::clone(object),
                &slices,
                &mut self.loads,
                old.as_deref(),
            );
            let is_news = old.is_none_or(|old| !Arc::ptr_eq(&old.object, object));
            for address in table.foreign(&service).filter(|_| is_news) {
                let key = &service.key;
                warn!(service = %format_args!("{}/{}", key.namespace, key.name), %address,
                    "Not a cluster IP here: outside of --service-cidr");
            }
            table.insert(service);
        }
        self.loads.prune();
        table.complete = true;
        table.objects = self.objects;
    }

    pub(crate) fn service(&mut self, event: Event<ServiceObject>) {
        match event {
            Event::Init => self.services_relisted = Some(HashSet::new()),
            Event::InitApply(object) => {
                let key = key_of(&object);
                if let Some(seen) = &mut self.services_relisted {
                    seen.insert(key.clone());
                }
                self.put_service(key, object);
            }
            Event::Apply(object) => self.put_service(key_of(&object), object),
            Event::Delete(object) => {
                let key = key_of(&object);
                self.objects += 1;
                self.services.remove(&key);
                self.dirty.insert(key);
            }
            Event::InitDone => {
                let seen = self.services_relisted.take().unwrap_or_default();
                self.objects += 1;
                let gone = self.services.extract_if(|key, _| !seen.contains(key));
                self.dirty.extend(gone.map(|(key, _)| key));
                if !std::mem::replace(&mut self.services_listed, true) {
                    self.touch();
                }
            }
        }
    }

    pub(crate) fn slice(&mut self, event: Event<EndpointSlice>) {
        match event {
            Event::Init => self.slices_relisted = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.slices_relisted {
                    seen.insert(slice_key(&object));
                }
                self.put_slice(&object);
            }
            Event::Apply(object) => self.put_slice(&object),
            Event::Delete(object) => self.drop_slice(&slice_key(&object)),
            Event::InitDone => {
                let seen = self.slices_relisted.take().unwrap_or_default();
                let known: Vec<_> = self.slice_owners.keys().cloned().collect();
                for slice in known.iter().filter(|slice| !seen.contains(*slice)) {
                    self.drop_slice(slice);
                }
                if !std::mem::replace(&mut self.slices_listed, true) {
                    self.touch();
                }
            }
        }
    }

    /// Even an empty cluster publishes a (complete) table: some key must be dirty.
    fn touch(&mut self) {
        self.dirty.insert(Key {
            namespace: String::new(),
            name: String::new(),
        });
    }

    fn put_service(&mut self, key: Key, mut object: ServiceObject) {
        object.metadata.managed_fields = None;
        if let Some(annotations) = &mut object.metadata.annotations {
            // As large as all the rest, and nobody's business here.
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
        self.objects += 1;
        self.services.insert(key.clone(), Arc::new(object));
        self.dirty.insert(key);
    }

    fn put_slice(&mut self, object: &EndpointSlice) {
        let owner = slice_key(object);
        let parsed = Slice::parse(object);
        if self.slice_owners.get(&owner) != parsed.as_ref().map(|slice| &slice.service) {
            self.drop_slice(&owner);
        }
        if let Some(slice) = parsed {
            let service = slice.service.clone();
            self.slice_owners.insert(owner, service.clone());
            self.slices
                .entry(service.clone())
                .or_default()
                .insert(slice.name.clone(), slice);
            self.dirty.insert(service);
        }
    }

    fn drop_slice(&mut self, slice: &(String, String)) {
        let Some(service) = self.slice_owners.remove(slice) else {
            return;
        };
        if let Some(slices) = self.slices.get_mut(&service) {
            slices.remove(&slice.1);
            if slices.is_empty() {
                self.slices.remove(&service);
            }
        }
        self.dirty.insert(service);
    }
}

fn key_of(object: &ServiceObject) -> Key {
    Key {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

fn slice_key(object: &EndpointSlice) -> (String, String) {
    (object.namespace().unwrap_or_default(), object.name_any())
}

//! Follows the kinds that routes are made of, and publishes the table compiled from them. One task owns the index; readers
//! get the latest through a `watch` channel. Never opens a socket.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::SelectAll;
use futures::{Stream, StreamExt, TryStreamExt};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::Event;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;
use types::error::chain;
use types::routing::gateway_api::{
    Gateway, GatewayClass, HttpRoute, Ingress, IngressClass, Object, ReferenceGrant,
};
use types::routing::{Key, World, compile};
use types::well_known::GATEWAY_GROUP;

use super::Live;
use super::secrets::Secrets;

/// A burst of changes is compiled once: at most one table in this time.
const QUIET: Duration = Duration::from_millis(10);

const NETWORKING: &str = "networking.k8s.io";

/// Which kind an event is about.
#[derive(Clone, Copy)]
enum Which {
    IngressClass,
    Ingress,
    GatewayClass,
    Gateway,
    Route,
    Grant,
    Namespace,
}

const KINDS: [(Which, &str, &str, &str); 7] = [
    (
        Which::IngressClass,
        NETWORKING,
        "IngressClass",
        "ingressclasses",
    ),
    (Which::Ingress, NETWORKING, "Ingress", "ingresses"),
    (
        Which::GatewayClass,
        GATEWAY_GROUP,
        "GatewayClass",
        "gatewayclasses",
    ),
    (Which::Gateway, GATEWAY_GROUP, "Gateway", "gateways"),
    (Which::Route, GATEWAY_GROUP, "HTTPRoute", "httproutes"),
    (
        Which::Grant,
        GATEWAY_GROUP,
        "ReferenceGrant",
        "referencegrants",
    ),
    (Which::Namespace, "", "Namespace", "namespaces"),
];

/// Of a namespace only its labels are read.
#[derive(Clone, Debug, Default, Deserialize)]
struct Unread {}

/// All objects of one kind.
struct Shelf<T> {
    objects: BTreeMap<Key, Arc<T>>,
    /// What a relist has not mentioned yet is gone when it ends.
    relisted: Option<HashSet<Key>>,
    listed: bool,
}

#[derive(Default)]
struct Index {
    ingress_classes: Shelf<IngressClass>,
    ingresses: Shelf<Ingress>,
    gateway_classes: Shelf<GatewayClass>,
    gateways: Shelf<Gateway>,
    routes: Shelf<HttpRoute>,
    grants: Shelf<ReferenceGrant>,
    namespaces: Shelf<Object<Unread>>,
}

/// Runs until it is dropped. Watch errors are retried with backoff inside kube's watcher; the last table stays meanwhile.
pub(super) async fn run(client: Client, tables: watch::Sender<Arc<Live>>) {
    let mut changes: SelectAll<_> = KINDS
        .into_iter()
        .map(|(which, group, kind, plural)| {
            let events = follow(client.clone(), group, kind, plural);
            events.map(move |event| (which, event)).boxed()
        })
        .collect();
    let (mut secrets, mut news) = Secrets::new(client);
    let mut index = Index::default();
    let mut dirty = false;
    let mut next_publish = Instant::now();
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(next_publish), if dirty && index.is_complete() => {
                publish(&index, &mut secrets, &tables);
                dirty = false;
                next_publish = Instant::now() + QUIET;
            }
            change = changes.next() => match change {
                Some((which, event)) => {
                    index.take(which, event);
                    dirty = true;
                }
                None => return,
            },
            Some(news) = news.recv() => dirty |= secrets.take(news),
        }
    }
}

fn publish(index: &Index, secrets: &mut Secrets, tables: &watch::Sender<Arc<Live>>) {
    let mut world = index.world();
    world.secrets = secrets.known();
    let compiled = compile(&world);
    secrets.watch(&compiled.secrets);
    for problem in &compiled.problems {
        // Users see them as Events, from the controller.
        tracing::debug!(kind = problem.kind, object = %problem.about, problem = problem.message, "Not as asked");
    }
    tables.send_replace(Arc::new(Live {
        table: compiled.table,
        certificates: secrets.certificates(),
    }));
}

/// Events of all objects of a kind, without end: errors are logged and retried with backoff.
fn follow(
    client: Client,
    group: &'static str,
    kind: &'static str,
    plural: &'static str,
) -> impl Stream<Item = Event<DynamicObject>> + Send {
    let gvk = GroupVersionKind::gvk(group, "v1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    watcher(api, watcher::Config::default())
        .default_backoff()
        .inspect_err(move |error| {
            let error = error as &dyn std::error::Error;
            warn!(kind, error, "Watch failed");
        })
        .filter_map(|event| std::future::ready(event.ok()))
}

// === impl Index ===

impl Index {
    /// Nothing is compiled before every kind was listed: half a table would refuse what should be served.
    fn is_complete(&self) -> bool {
        self.ingress_classes.listed
            && self.ingresses.listed
            && self.gateway_classes.listed
            && self.gateways.listed
            && self.routes.listed
            && self.grants.listed
            && self.namespaces.listed
    }

    fn take(&mut self, which: Which, event: Event<DynamicObject>) {
        match which {
            Which::IngressClass => self.ingress_classes.take(event),
            Which::Ingress => self.ingresses.take(event),
            Which::GatewayClass => self.gateway_classes.take(event),
            Which::Gateway => self.gateways.take(event),
            Which::Route => self.routes.take(event),
            Which::Grant => self.grants.take(event),
            Which::Namespace => self.namespaces.take(event),
        }
    }

    fn world(&self) -> World {
        let labels = self.namespaces.objects.iter();
        World {
            ingress_classes: self.ingress_classes.all(),
            ingresses: self.ingresses.all(),
            gateway_classes: self.gateway_classes.all(),
            gateways: self.gateways.all(),
            routes: self.routes.all(),
            grants: self.grants.all(),
            namespaces: labels
                .map(|(key, object)| (key.name.clone(), object.metadata.labels.clone()))
                .collect(),
            secrets: HashMap::new(),
            // Looked up for each request instead.
            services: None,
            external_names: HashSet::new(),
        }
    }
}

// === impl Shelf ===

impl<T> Default for Shelf<T> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            relisted: None,
            listed: false,
        }
    }
}

impl<T: DeserializeOwned> Shelf<T> {
    fn take(&mut self, event: Event<DynamicObject>) {
        match event {
            Event::Init => self.relisted = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.relisted {
                    seen.insert(key_of(&object));
                }
                self.put(object);
            }
            Event::Apply(object) => self.put(object),
            Event::Delete(object) => {
                self.objects.remove(&key_of(&object));
            }
            Event::InitDone => {
                if let Some(seen) = self.relisted.take() {
                    self.objects.retain(|key, _| seen.contains(key));
                }
                self.listed = true;
            }
        }
    }

    fn put(&mut self, mut object: DynamicObject) {
        let key = key_of(&object);
        object.metadata.managed_fields = None;
        let parsed = serde_json::to_value(&object).and_then(serde_json::from_value);
        match parsed {
            Ok(object) => {
                self.objects.insert(key, Arc::new(object));
            }
            Err(error) => {
                warn!(object = %key, error = %chain(&error), "Could not read an object");
                self.objects.remove(&key);
            }
        }
    }

    fn all(&self) -> Vec<Arc<T>> {
        self.objects.values().cloned().collect()
    }
}

fn key_of(object: &DynamicObject) -> Key {
    Key {
        namespace: object.metadata.namespace.clone().unwrap_or_default(),
        name: object.metadata.name.clone().unwrap_or_default(),
    }
}

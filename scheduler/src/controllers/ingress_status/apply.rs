//! Carries the plan out: one pass over everything, because everything hangs together.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;
use types::routing::report::Report;
use types::routing::{Key as RouteKey, Problem, RouteStatus, World, compile};
use types::well_known::{ANNOTATION_INGRESS, GATEWAY_CONTROLLER};

use super::desired::{Change, Nodes, plan};
use super::routing;
use super::secrets::{Known, Secrets};
use crate::clock;
use crate::controllers::Shared;
use crate::events::{Recorder, reference};
use crate::objects::{
    GATEWAY_CLASSES, GATEWAYS, HTTP_ROUTES, INGRESS_CLASSES, INGRESSES, Key, Meta, Node, Resource,
};
use crate::reconcile::{Outcome, Queue};
use crate::write::{self, Error, Target, Writer, gone_is_fine};

const ACCOUNT: &str = "ingress-status-controller";
/// For Secrets to be known.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between two passes.
const REST: Duration = Duration::from_millis(50);
/// What is still so after this long is told: objects applied together come one after the other.
const SETTLED: Duration = Duration::from_secs(2);

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    recorder: Recorder,
    secrets: Secrets,
    /// Since when each problem is there, and whether it was told.
    problems: Mutex<HashMap<Problem, (Instant, bool)>>,
    /// One key stands for everything.
    pub queue: Arc<Queue<Key>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::new("ingressstatus", REST);
        macro_rules! wake_on {
            ($($store:ident),*) => {$(
                let waker = Arc::clone(&queue);
                shared.informers.$store.on_change(move |_| waker.add(everything()));
            )*};
        }
        wake_on!(
            ingress_classes,
            ingresses,
            gateway_classes,
            gateways,
            http_routes,
            reference_grants,
            services,
            namespaces
        );
        // Nodes write themselves all the time.
        let waker = Arc::clone(&queue);
        shared.informers.nodes.on_change(move |change| {
            let says = |node: Option<&Arc<Node>>| node.and_then(|node| report_of(node));
            if says(change.old) != says(change.new) {
                waker.add(everything());
            }
        });
        let client = (shared.accounts)(ACCOUNT);
        Arc::new(Self {
            secrets: Secrets::new(client, Arc::clone(&queue), everything()),
            writer: shared.writer(ACCOUNT),
            recorder: shared.recorder.named(ACCOUNT),
            shared: Arc::clone(shared),
            problems: Mutex::default(),
            queue,
        })
    }

    pub async fn pass(&self, _: Key) -> Result<Outcome, Error> {
        let mut compiled = compile(&self.world());
        // Nothing is said of Secrets that have not been looked at.
        match self.secrets.watch(&compiled.secrets, PATIENCE).await {
            Known::AsBefore => {}
            Known::More => compiled = compile(&self.world()),
            Known::NotYet => return Ok(Outcome::Again(PATIENCE)),
        }
        self.forsaken(&mut compiled.routes);
        let now = clock::now();
        let (writes, more) = {
            // Written is what was read: others have entries in these lists too.
            let read = RefCell::new(HashMap::new());
            let find = |kind: &'static str, key: &RouteKey| {
                let found = self.find(kind, key)?;
                let status = found.1.clone();
                read.borrow_mut().insert((kind, key.clone()), found);
                Some(status)
            };
            let (changes, more) = plan(&compiled, &self.nodes(), find, now);
            let read = read.into_inner();
            let writes: Vec<_> = changes
                .into_iter()
                .filter_map(|change| {
                    let (meta, old) = read.get(&(change.kind, change.key.clone()))?;
                    self.write(change, meta, old)
                })
                .collect();
            (writes, more)
        };
        compiled.problems.extend(more);
        let waiting = self.tell(compiled.problems);
        let mut failed = None;
        for result in write::all(writes).await {
            if let Err(error) = result {
                failed = Some(error);
            }
        }
        match (failed, waiting) {
            (Some(error), _) => Err(error),
            (None, Some(rest)) => Ok(Outcome::Again(rest)),
            (None, None) => Ok(Outcome::Done),
        }
    }

    fn world(&self) -> World {
        let informers = &self.shared.informers;
        macro_rules! all {
            ($store:ident) => {
                informers
                    .$store
                    .all()
                    .iter()
                    .map(|object| Arc::new(routing(object)))
                    .collect()
            };
        }
        let services = informers.services.all().into_iter().map(|service| {
            let ports = service.spec.ports.iter().flatten().filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                Some((port.name.clone().unwrap_or_default(), number))
            });
            (key_of(&service.metadata), ports.collect())
        });
        let services_outside = informers.services.all().into_iter();
        let external_names = services_outside
            .filter(|service| service.spec.type_.as_deref() == Some("ExternalName"))
            .map(|service| key_of(&service.metadata));
        let namespaces = informers.namespaces.all().into_iter();
        World {
            ingress_classes: all!(ingress_classes),
            ingresses: all!(ingresses),
            gateway_classes: all!(gateway_classes),
            gateways: all!(gateways),
            routes: all!(http_routes),
            grants: all!(reference_grants),
            namespaces: namespaces
                .map(|n| (n.metadata.name.clone(), n.metadata.labels.clone()))
                .collect(),
            secrets: self.secrets.known(),
            services: Some(services.collect()),
            external_names: external_names.collect(),
        }
    }

    fn nodes(&self) -> Nodes {
        let nodes = self.shared.informers.nodes.all().into_iter();
        nodes
            .filter_map(|node| Some((node.metadata.name.clone(), report_of(&node)?)))
            .collect()
    }

    /// Routes that still say something of a Gateway of ours which they have left.
    fn forsaken(&self, routes: &mut Vec<RouteStatus>) {
        let known: HashSet<RouteKey> = routes.iter().map(|route| route.key.clone()).collect();
        for route in self.shared.informers.http_routes.all() {
            let key = key_of(&route.metadata);
            let parents = route.status["parents"].as_array().into_iter().flatten();
            let mut ours = parents.filter(|parent| parent["controllerName"] == GATEWAY_CONTROLLER);
            if ours.next().is_some() && !known.contains(&key) {
                routes.push(RouteStatus {
                    key,
                    generation: route.metadata.generation,
                    parents: Vec::new(),
                });
            }
        }
    }

    fn find(&self, kind: &str, key: &RouteKey) -> Option<(Meta, Value)> {
        let informers = &self.shared.informers;
        let key = Key::new(&key.namespace, &key.name);
        macro_rules! get {
            ($store:ident) => {
                informers
                    .$store
                    .get(&key)
                    .map(|object| (object.metadata.clone(), object.status.clone()))
            };
        }
        match kind {
            "IngressClass" => {
                let class = informers.ingress_classes.get(&key)?;
                Some((class.metadata.clone(), Value::Null))
            }
            "Ingress" => get!(ingresses),
            "GatewayClass" => get!(gateway_classes),
            "Gateway" => get!(gateways),
            "HTTPRoute" => get!(http_routes),
            _ => None,
        }
    }

    /// Refused when somebody wrote meanwhile: then it is decided again.
    fn write(
        &self,
        change: Change,
        meta: &Meta,
        old: &Value,
    ) -> Option<impl Future<Output = Result<(), Error>> + Send + 'static> {
        let resource = resource(change.kind)?;
        let patch = patch(meta, old, change.status)?;
        let (writer, target) = (self.writer.clone(), Target::of(resource, meta));
        Some(async move {
            let written = writer.patch_status(&target, &patch).await;
            gone_is_fine(written).map(drop)
        })
    }

    /// Events for what has been wrong for a while; how long until there may be more to tell.
    fn tell(&self, problems: Vec<Problem>) -> Option<Duration> {
        let mut known = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let current: HashSet<&Problem> = problems.iter().collect();
        known.retain(|problem, _| current.contains(problem));
        let now = Instant::now();
        let mut soonest = None;
        for problem in problems {
            let (since, told) = known.entry(problem.clone()).or_insert((now, false));
            if *told {
                continue;
            }
            let age = now.saturating_duration_since(*since);
            if age < SETTLED {
                let rest = SETTLED.saturating_sub(age);
                soonest = Some(soonest.map_or(rest, |other: Duration| other.min(rest)));
                continue;
            }
            *told = true;
            if let Some(resource) = resource(problem.kind)
                && let Some((meta, _)) = self.find(problem.kind, &problem.about)
            {
                let about = reference(resource, &meta);
                self.recorder
                    .warning(about, problem.reason, problem.message);
            }
        }
        soonest
    }
}

/// A list goes as a whole, also what others put into it: hence the precondition.
fn patch(meta: &Meta, old: &Value, new: Value) -> Option<Value> {
    let mut status = write::merge_patch(old, &new)?;
    if old.is_null() {
        status = new;
    }
    let metadata = json!({"uid": meta.uid, "resourceVersion": meta.resource_version});
    Some(json!({"metadata": metadata, "status": status}))
}

fn everything() -> Key {
    Key::new("", "everything")
}

fn key_of(meta: &Meta) -> RouteKey {
    RouteKey::new(&meta.namespace, &meta.name)
}

fn resource(kind: &str) -> Option<Resource> {
    Some(match kind {
        "Ingress" => INGRESSES,
        "IngressClass" => INGRESS_CLASSES,
        "GatewayClass" => GATEWAY_CLASSES,
        "Gateway" => GATEWAYS,
        "HTTPRoute" => HTTP_ROUTES,
        _ => return None,
    })
}

/// What a node says, if it is there to serve.
fn report_of(node: &Node) -> Option<Report> {
    if !types::condition::is_true(node.status.conditions.as_ref(), "Ready") {
        return None;
    }
    Report::parse(node.metadata.annotations.get(ANNOTATION_INGRESS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_others_write_too_is_written_at_the_revision_it_was_read_at() {
        let meta = Meta {
            uid: "u".to_owned(),
            resource_version: "7".to_owned(),
            ..Meta::default()
        };
        let theirs = json!({"controllerName": "example.com/other"});
        let ours = json!({"controllerName": GATEWAY_CONTROLLER});
        let old = json!({"parents": [theirs]});
        let new = json!({"parents": [theirs, ours]});
        let expect = json!({"metadata": {"uid": "u", "resourceVersion": "7"}, "status": new});
        assert_eq!(patch(&meta, &old, new.clone()), Some(expect.clone()));
        assert_eq!(patch(&meta, &Value::Null, new), Some(expect));
        assert_eq!(patch(&meta, &old, old.clone()), None);
    }
}

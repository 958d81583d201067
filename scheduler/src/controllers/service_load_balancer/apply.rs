//! Carries out the plan for one Service. One pass at a time: an address that was just given must be seen before the next
//! is chosen.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use types::listeners::{self, CONDITION_POOL};

use super::{Action, Holders, NodeView, Observed, Terms, holders, plan};
use crate::clock;
use crate::controllers::{Shared, caught_up};
use crate::events::{self, Recorder};
use crate::objects::{Key, Node, SERVICES, Service};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Error, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// Events remembered as told; then all are told once more.
const TOLD: usize = 16_384;
const COMPONENT: &str = "service-controller";

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    recorder: Recorder,
    pub queue: Arc<Queue<Key>>,
    /// By name, as of a version of the Node: reports are read once.
    nodes: Mutex<BTreeMap<String, (String, Arc<NodeView>)>>,
    told: Mutex<HashSet<(String, String)>>,
}

fn waits_for_address(service: &Service) -> bool {
    let conditions = service.status.conditions.iter().flatten();
    conditions
        .into_iter()
        .any(|c| c.type_ == CONDITION_POOL && c.status == "False")
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::throttled("service-load-balancer", Duration::from_millis(5), 4);
        let waker = Arc::clone(&queue);
        let weak = Arc::downgrade(shared);
        shared.informers.services.on_change(move |change| {
            if let Some(service) = change.latest() {
                waker.add(service.metadata.key());
            }
            let held = |service: Option<&Arc<Service>>| {
                service.map_or_else(Vec::new, |s| listeners::virtual_addresses(Some(&s.status)))
            };
            let (before, after) = (held(change.old), held(change.new));
            let freed = before.iter().any(|ip| !after.contains(ip));
            let terms = |service: Option<&Arc<Service>>| service.map(|s| Terms::of(s));
            let other_terms = !before.is_empty() && terms(change.old) != terms(change.new);
            if let (true, Some(shared)) = (freed || other_terms, weak.upgrade()) {
                // Those that wait may get it; those that share it may not fit any longer.
                let concerned = |service: &&Arc<Service>| {
                    let held = listeners::virtual_addresses(Some(&service.status));
                    waits_for_address(service) || held.iter().any(|ip| before.contains(ip))
                };
                let all = shared.informers.services.all();
                let concerned = all.iter().filter(concerned);
                concerned.for_each(|service| waker.add(service.metadata.key()));
            }
        });
        let waker = Arc::clone(&queue);
        let weak = Arc::downgrade(shared);
        shared.informers.endpoint_slices.on_change(move |change| {
            let Some(shared) = weak.upgrade() else { return };
            let Some(slice) = change.latest() else { return };
            let name = slice
                .metadata
                .labels
                .get(types::well_known::LABEL_SERVICE_NAME);
            let Some(name) = name else { return };
            let key = Key::new(&slice.metadata.namespace, name);
            let service = shared.informers.services.get(&key);
            if service.is_some_and(|s| s.spec.external_traffic_policy.as_deref() == Some("Local")) {
                waker.add(key);
            }
        });
        let waker = Arc::clone(&queue);
        let weak = Arc::downgrade(shared);
        shared.informers.nodes.on_change(move |change| {
            let Some(shared) = weak.upgrade() else { return };
            let view =
                |node: Option<&Arc<Node>>| node.map_or_else(NodeView::default, |n| NodeView::of(n));
            let (old, new) = (view(change.old), view(change.new));
            if old == new {
                return;
            }
            for service in shared.informers.services.all() {
                if new.differs_for(&old, &service) || old.name != new.name {
                    waker.add(service.metadata.key());
                }
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer(COMPONENT),
            recorder: shared.recorder.named(COMPONENT),
            queue,
            nodes: Mutex::default(),
            told: Mutex::default(),
        })
    }

    /// One pass over one Service.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let informers = &self.shared.informers;
        let Some(service) = informers.services.get(&key) else {
            return Ok(Outcome::Done);
        };
        let pool = self.shared.args.load_balancer_pool.clone();
        let observed = Observed {
            nodes: self.nodes(),
            local: self.local(&key),
            holders: match &pool {
                Some(_) => holders(&informers.services.all()),
                None => Holders::new(),
            },
            pool,
            service: Arc::clone(&service),
        };
        let target = Target::of(SERVICES, &service.metadata);
        let mut revision = 0;
        for action in plan(&observed, clock::now()) {
            let written = match action {
                Action::PatchStatus(patch) => self.writer.patch_status(&target, &patch).await,
                Action::Patch(patch) => self.writer.patch(&target, &patch).await,
                Action::Tell {
                    type_,
                    reason,
                    message,
                } => {
                    self.tell(&service, type_, reason, message);
                    continue;
                }
            };
            revision = revision.max(gone_is_fine(written)?.metadata.revision());
        }
        caught_up(&informers.services, "services", revision, CATCH_UP).await?;
        Ok(Outcome::Done)
    }

    fn nodes(&self) -> Vec<Arc<NodeView>> {
        let mut known = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = BTreeMap::new();
        for node in self.shared.informers.nodes.all() {
            let (name, version) = (&node.metadata.name, &node.metadata.resource_version);
            let entry = match known.remove(name) {
                Some((of, view)) if of == *version => (of, view),
                _ => (version.clone(), Arc::new(NodeView::of(&node))),
            };
            next.insert(name.clone(), entry);
        }
        *known = next;
        known.values().map(|(_, view)| Arc::clone(view)).collect()
    }

    /// Nodes with endpoints that serve, terminating ones included: their clients are not to be sent away early.
    fn local(&self, key: &Key) -> BTreeSet<String> {
        let slices = self
            .shared
            .informers
            .endpoint_slices
            .by_index(&format!("{}/{}", key.namespace, key.name));
        let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
        endpoints
            .filter(|endpoint| {
                let conditions = endpoint.conditions.as_ref();
                let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
                ready || conditions.and_then(|c| c.serving).unwrap_or(ready)
            })
            .filter_map(|endpoint| endpoint.node_name.clone())
            .collect()
    }

    fn tell(&self, service: &Service, type_: events::Type, reason: &'static str, message: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TOLD {
            told.clear();
        }
        if told.insert((service.metadata.uid.clone(), message.clone())) {
            let about = events::reference(SERVICES, &service.metadata);
            self.recorder.note(about, type_, reason, message, None);
        }
    }
}

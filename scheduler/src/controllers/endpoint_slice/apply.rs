//! Carries out the plan for one Service's EndpointSlices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use types::well_known::LABEL_MANAGED_BY_SLICE;

use super::{Action, MANAGED_BY, Observed, plan};
use crate::controllers::ownership::simple_selector_matches;
use crate::controllers::{Shared, caught_up, service_ports};
use crate::objects::{ENDPOINT_SLICES, Key, Node, Pod, Service};
use crate::reconcile::{Outcome, Queue};
use crate::write::{self, Delete, Error, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two passes over one Service: many pods becoming ready together are few writes.
const REST: Duration = Duration::from_millis(20);
const ZONE: &str = "topology.kubernetes.io/zone";

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
}

/// Adds to `queue` every Service whose endpoints a change of a pod can alter.
pub(in crate::controllers) fn wake_services(shared: &Arc<Shared>, queue: &Arc<Queue<Key>>) {
    let waker = Arc::clone(queue);
    shared.informers.services.on_change(move |change| {
        if let Some(service) = change.latest() {
            waker.add(service.metadata.key());
        }
    });
    let waker = Arc::clone(queue);
    let shared_by_handler = Arc::downgrade(shared);
    shared.informers.pods.on_change(move |change| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && !service_ports::differs(old, new)
        {
            return;
        }
        let Some(shared) = shared_by_handler.upgrade() else {
            return;
        };
        // A pod without an address never was, and is not, behind anything.
        let pods: Vec<&Arc<Pod>> = change
            .both()
            .filter(|p| service_ports::has_address(p))
            .collect();
        let Some(first) = pods.first() else { return };
        let services = shared
            .informers
            .services
            .in_namespace(&first.metadata.namespace, |s| {
                service_ports::selector(s).is_some_and(|selector| {
                    pods.iter()
                        .any(|p| simple_selector_matches(selector, &p.metadata.labels))
                })
            });
        for service in services {
            waker.add(service.metadata.key());
        }
    });
}

/// The pods a Service selects.
pub(in crate::controllers) fn pods_behind(shared: &Shared, service: &Service) -> Vec<Arc<Pod>> {
    let Some(selector) = service_ports::selector(service) else {
        return Vec::new();
    };
    shared
        .informers
        .pods
        .in_namespace(&service.metadata.namespace, |pod| {
            service_ports::has_address(pod)
                && simple_selector_matches(selector, &pod.metadata.labels)
        })
}

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::throttled("endpointslice", REST, 4);
        wake_services(shared, &queue);
        // Somebody may have changed or deleted a slice.
        let waker = Arc::clone(&queue);
        shared.informers.endpoint_slices.on_change(move |change| {
            if let Some(slice) = change.old
                && let Some(owner) = slice.metadata.controller()
            {
                waker.add(Key::new(&slice.metadata.namespace, &owner.name));
            }
        });
        // Where a node is, is said of every endpoint on it, and that it is.
        let waker = Arc::clone(&queue);
        let weak = Arc::downgrade(shared);
        shared.informers.nodes.on_change(move |change| {
            let zone =
                |node: Option<&Arc<Node>>| node.map(|n| n.metadata.labels.get(ZONE).cloned());
            if zone(change.old) == zone(change.new) {
                return;
            }
            let Some(shared) = weak.upgrade() else { return };
            for service in shared.informers.services.all() {
                if service_ports::selector(&service).is_some() {
                    waker.add(service.metadata.key());
                }
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer("endpointslice-controller"),
            queue,
        })
    }

    /// One pass over one Service.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let informers = &self.shared.informers;
        // Slices of a Service that is gone go with it: they have an owner.
        let Some(service) = informers.services.get(&key) else {
            return Ok(Outcome::Done);
        };
        if service_ports::selector(&service).is_none() {
            return Ok(Outcome::Done);
        }
        let slices = informers
            .endpoint_slices
            .by_index(&format!("{}/{}", key.namespace, key.name))
            .into_iter()
            .filter(|s| {
                s.metadata
                    .labels
                    .get(LABEL_MANAGED_BY_SLICE)
                    .map(String::as_str)
                    == Some(MANAGED_BY)
                    && !s.metadata.is_deleting()
            })
            .collect();
        let observed = Observed {
            pods: pods_behind(&self.shared, &service),
            slices,
            nodes: self.nodes(),
            service,
        };
        self.apply(&key, plan(&observed)).await
    }

    fn nodes(&self) -> HashMap<String, Option<String>> {
        let nodes = self.shared.informers.nodes.all();
        nodes
            .iter()
            .map(|n| {
                let zone = n.metadata.labels.get(ZONE).cloned();
                (n.metadata.name.clone(), zone)
            })
            .collect()
    }

    async fn apply(&self, key: &Key, actions: Vec<Action>) -> Result<Outcome, Error> {
        let writes = actions.into_iter().map(|action| {
            let (writer, namespace) = (self.writer.clone(), key.namespace.clone());
            async move {
                let named = |name: &str| Target::new(ENDPOINT_SLICES, &namespace, name);
                match action {
                    Action::Create(slice) => {
                        writer.create(ENDPOINT_SLICES, &namespace, &slice).await
                    }
                    Action::Patch { name, patch } => writer.patch(&named(&name), &patch).await,
                    Action::Delete { name, uid } => {
                        gone_is_fine(writer.delete(&named(&name), Delete::of(&uid)).await)
                    }
                }
            }
        });
        let mut revision = 0;
        let mut failed = None;
        for result in write::all(writes).await {
            match result {
                Ok(written) => revision = revision.max(written.metadata.revision()),
                Err(error) if error.is_namespace_terminating() => {}
                Err(error) => failed = Some(error),
            }
        }
        let store = &self.shared.informers.endpoint_slices;
        caught_up(store, "endpointslices", revision, CATCH_UP).await?;
        match failed {
            Some(error) => Err(error),
            None => Ok(Outcome::Done),
        }
    }
}

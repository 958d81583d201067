//! Carries out the plan for one Service's EndpointSlices.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use types::well_known::{LABEL_MANAGED_BY_SLICE, LABEL_ZONE};

use super::{Action, MANAGED_BY, Observed, plan};
use crate::controllers::service_pods::{pods_behind, wake_services};
use crate::controllers::{Shared, caught_up, service_ports};
use crate::objects::{ENDPOINT_SLICES, Key, Node};
use crate::reconcile::{Outcome, Queue};
use crate::write::{self, Delete, Error, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two passes over one Service: many pods becoming ready together are few writes.
const REST: Duration = Duration::from_millis(20);

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
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
                |node: Option<&Arc<Node>>| node.map(|n| n.metadata.labels.get(LABEL_ZONE).cloned());
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
                let zone = n.metadata.labels.get(LABEL_ZONE).cloned();
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

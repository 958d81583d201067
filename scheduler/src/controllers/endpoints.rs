//! Endpoints: the same as EndpointSlices in one object per Service, for kubectl and older clients.
//!
//! Owns Endpoints of Services that have a selector. At most 1,000 addresses are listed, as upstream.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};

use super::service_pods::{pods_behind, wake_services};
use super::service_ports::{self, Port};
use super::{Shared, caught_up};
use crate::objects::{ENDPOINTS, Endpoints, Key, Pod, Service};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Delete, Error, Target, Writer, gone_is_fine, merge_patch_of};

const MANAGED_BY: (&str, &str) = ("endpoints.kubernetes.io/managed-by", "endpoint-controller");
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MOST_ADDRESSES: usize = 1000;
const CATCH_UP: Duration = Duration::from_secs(5);
/// Nothing of ours reads Endpoints, and with many pods the object is large: it may lag.
const REST: Duration = Duration::from_millis(100);

/// The world as one pass sees it.
pub struct Observed {
    pub service: Arc<Service>,
    pub pods: Vec<Arc<Pod>>,
    pub endpoints: Option<Arc<Endpoints>>,
}

#[derive(Debug)]
pub enum Action {
    Create(Box<core::Endpoints>),
    Patch(Value),
}

#[derive(Default)]
struct Subset {
    ready: Vec<EndpointAddress>,
    not_ready: Vec<EndpointAddress>,
}

/// What to do for one Service; at most one action.
pub fn plan(observed: &Observed) -> Vec<Action> {
    let service = &observed.service;
    let (subsets, truncated) = subsets(service, &observed.pods);
    let mut labels = service_ports::labels(service);
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    let mut annotations = BTreeMap::new();
    if truncated {
        annotations.insert(OVER_CAPACITY.to_owned(), "truncated".to_owned());
    }
    let Some(old) = &observed.endpoints else {
        return vec![Action::Create(Box::new(core::Endpoints {
            metadata: ObjectMeta {
                name: Some(service.metadata.name.clone()),
                namespace: Some(service.metadata.namespace.clone()),
                labels: Some(labels),
                annotations: (!annotations.is_empty()).then_some(annotations),
                ..ObjectMeta::default()
            },
            subsets: (!subsets.is_empty()).then_some(subsets),
        }))];
    };
    let mut patch = json!({});
    if old.subsets != subsets {
        patch["subsets"] = json!(subsets);
    }
    if let Some(labels) = merge_patch_of(&old.metadata.labels, &labels) {
        patch["metadata"]["labels"] = labels;
    }
    if old.metadata.annotations.contains_key(OVER_CAPACITY) != truncated {
        patch["metadata"]["annotations"] = match truncated {
            true => json!(annotations),
            false => json!({(OVER_CAPACITY): null}),
        };
    }
    if patch.as_object().is_some_and(serde_json::Map::is_empty) {
        return Vec::new();
    }
    vec![Action::Patch(patch)]
}

fn subsets(service: &Service, pods: &[Arc<Pod>]) -> (Vec<EndpointSubset>, bool) {
    let anyway = service.spec.publish_not_ready_addresses == Some(true);
    let mut groups: BTreeMap<Vec<Port>, Subset> = BTreeMap::new();
    let mut pods: Vec<&Arc<Pod>> = pods
        .iter()
        .filter(|p| service_ports::has_address(p) && (anyway || !p.metadata.is_deleting()))
        .collect();
    let truncated = pods.len() > MOST_ADDRESSES;
    // Ready ones first, so that they are the last to be cut off.
    pods.sort_by_key(|p| !(anyway || p.is_ready()));
    pods.truncate(MOST_ADDRESSES);
    for pod in pods {
        let ports = service_ports::ports(service, pod);
        if ports.is_empty() && !service_ports::is_headless(service) {
            continue;
        }
        let address = EndpointAddress {
            ip: pod.status.pod_ip.clone(),
            hostname: service_ports::hostname(service, pod),
            node_name: (!pod.spec.node_name.is_empty()).then(|| pod.spec.node_name.clone()),
            target_ref: Some(service_ports::reference(pod)),
        };
        let group = groups.entry(ports).or_default();
        if anyway || pod.is_ready() {
            group.ready.push(address);
        } else {
            group.not_ready.push(address);
        }
    }
    let subsets = groups.into_iter().map(|(ports, group)| group.finish(ports));
    (subsets.collect(), truncated)
}

// === impl Subset ===

impl Subset {
    fn finish(mut self, ports: Vec<Port>) -> EndpointSubset {
        let ports: Vec<EndpointPort> = ports
            .into_iter()
            .map(|p| EndpointPort {
                name: (!p.name.is_empty()).then_some(p.name),
                port: p.port,
                protocol: Some(p.protocol),
                app_protocol: p.app_protocol,
            })
            .collect();
        self.ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        self.not_ready.sort_by(|a, b| a.ip.cmp(&b.ip));
        EndpointSubset {
            addresses: (!self.ready.is_empty()).then_some(self.ready),
            not_ready_addresses: (!self.not_ready.is_empty()).then_some(self.not_ready),
            ports: (!ports.is_empty()).then_some(ports),
        }
    }
}

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::throttled("endpoints", REST, 10);
        wake_services(shared, &queue);
        let waker = Arc::clone(&queue);
        shared.informers.endpoints.on_change(move |change| {
            if let Some(endpoints) = change.latest() {
                waker.add(endpoints.metadata.key());
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer("endpoint-controller"),
            queue,
        })
    }

    /// One pass over one Service.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let store = &self.shared.informers.endpoints;
        let target = Target::new(ENDPOINTS, &key.namespace, &key.name);
        let known = store.get(&key);
        let Some(service) = self.shared.informers.services.get(&key) else {
            let ours = |e: &Arc<Endpoints>| {
                e.metadata.labels.get(MANAGED_BY.0).map(String::as_str) == Some(MANAGED_BY.1)
            };
            if let Some(leftover) = known.filter(ours) {
                let options = Delete::of(&leftover.metadata.uid);
                gone_is_fine(self.writer.delete(&target, options).await)?;
            }
            return Ok(Outcome::Done);
        };
        if service_ports::selector(&service).is_none() {
            return Ok(Outcome::Done);
        }
        let observed = Observed {
            pods: pods_behind(&self.shared, &service),
            service,
            endpoints: known,
        };
        let mut revision = 0;
        for action in plan(&observed) {
            let result = match action {
                Action::Create(endpoints) => {
                    self.writer
                        .create(ENDPOINTS, &key.namespace, &endpoints)
                        .await
                }
                Action::Patch(patch) => self.writer.patch(&target, &patch).await,
            };
            match result {
                Ok(written) => revision = written.metadata.revision(),
                Err(error) if error.is_namespace_terminating() => {}
                Err(error) => return Err(error),
            }
        }
        caught_up(store, "endpoints", revision, CATCH_UP).await?;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::endpoint_slice::tests::{pod, service};

    #[test]
    fn unready_pods_are_listed_apart() {
        let observed = Observed {
            service: Arc::new(service(json!([{"port": 80, "targetPort": 8080}]))),
            pods: vec![pod("a", "10.0.0.1", true), pod("b", "10.0.0.2", false)],
            endpoints: None,
        };
        let actions = plan(&observed);
        let [Action::Create(endpoints)] = actions.as_slice() else {
            panic!("one create: {actions:?}");
        };
        let subset = &endpoints.subsets.as_ref().expect("subsets")[0];
        assert_eq!(subset.addresses.as_ref().expect("ready")[0].ip, "10.0.0.1");
        assert_eq!(
            subset.not_ready_addresses.as_ref().expect("not ready")[0].ip,
            "10.0.0.2"
        );
        assert_eq!(subset.ports.as_ref().expect("ports")[0].port, 8080);
        let stored: Endpoints =
            serde_json::from_value(json!(endpoints)).expect("what is written can be read");
        let again = Observed {
            endpoints: Some(Arc::new(stored)),
            ..observed
        };
        assert!(plan(&again).is_empty(), "planning twice does nothing");
    }
}

//! Endpoints that somebody else writes, for a Service without a selector, as EndpointSlices: what everybody reads.
//!
//! Owns the slices it labels as managed by itself: one for each family and set of ports, of at most 1,000 addresses. Says
//! nothing of Endpoints that ask not to be mirrored, and of Services that have a selector or slices of their own making.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointSubset};
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use types::well_known::{LABEL_MANAGED_BY_SLICE, LABEL_SERVICE_NAME};

use super::{Shared, caught_up};
use crate::objects::{ENDPOINT_SLICES, ENDPOINTS, EndpointSlice, Endpoints, Key, Service};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Delete, Error, Target, Writer, gone_is_fine, merge_patch_of};

pub const MANAGED_BY: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
const LEADER: &str = "control-plane.alpha.kubernetes.io/leader";
/// Annotations that are about the Endpoints object only.
const NOT_COPIED: [&str; 2] = [
    "endpoints.kubernetes.io/last-change-trigger-time",
    "kubectl.kubernetes.io/last-applied-configuration",
];
const MOST_ADDRESSES: usize = 1000;
const CATCH_UP: Duration = Duration::from_secs(5);

/// The world as one pass sees it.
pub struct Observed {
    pub endpoints: Option<Arc<Endpoints>>,
    pub service: Option<Arc<Service>>,
    /// Slices of this name that are managed here.
    pub slices: Vec<Arc<EndpointSlice>>,
}

#[derive(Debug)]
pub enum Action {
    Create(Box<discovery::EndpointSlice>),
    Patch { name: String, patch: Value },
    Delete { name: String, uid: String },
}

/// Family and ports of a slice.
type Group = (&'static str, Vec<SlicePort>);

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct SlicePort {
    name: String,
    port: i32,
    protocol: String,
    app_protocol: Option<String>,
}

/// What to do for one Endpoints object. Nothing, when the slices are as they should be.
pub fn plan(observed: &Observed) -> Vec<Action> {
    let endpoints = observed.endpoints.as_ref().filter(|endpoints| {
        let selects = |service: &Arc<Service>| {
            service
                .spec
                .selector
                .as_ref()
                .is_some_and(|s| !s.is_empty())
        };
        is_mirrored(endpoints) && observed.service.as_ref().is_some_and(|s| !selects(s))
    });
    let mut left: Vec<&Arc<EndpointSlice>> = observed.slices.iter().collect();
    let mut actions = Vec::new();
    if let Some(endpoints) = endpoints {
        for (group, addresses) in wanted(endpoints) {
            // One of Endpoints that had this name before goes with those.
            let owner = Some(&endpoints.metadata.uid);
            let known = left.iter().position(|slice| {
                slice.metadata.controller().map(|o| &o.uid) == owner && group_of(slice) == group
            });
            let known = known.map(|at| left.swap_remove(at));
            actions.extend(write(endpoints, known, group, addresses));
        }
    }
    actions.extend(left.into_iter().map(|slice| Action::Delete {
        name: slice.metadata.name.clone(),
        uid: slice.metadata.uid.clone(),
    }));
    actions
}

fn is_mirrored(endpoints: &Endpoints) -> bool {
    let meta = &endpoints.metadata;
    !meta.is_deleting()
        && meta.labels.get(SKIP).is_none_or(|skip| skip != "true")
        && !meta.annotations.contains_key(LEADER)
}

fn wanted(endpoints: &Endpoints) -> BTreeMap<Group, Vec<Endpoint>> {
    let mut groups: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for subset in &endpoints.subsets {
        let ready = subset.addresses.iter().flatten().map(|a| (a, true));
        let not_ready = subset
            .not_ready_addresses
            .iter()
            .flatten()
            .map(|a| (a, false));
        for (address, ready) in ready.chain(not_ready) {
            let Some(family) = family(&address.ip) else {
                continue;
            };
            let group = groups.entry((family, ports(subset))).or_default();
            if group.len() < MOST_ADDRESSES || group.contains_key(&address.ip) {
                // Listed as ready and as not: ready, as it comes first.
                let one = || endpoint(address, ready);
                group.entry(address.ip.clone()).or_insert_with(one);
            }
        }
    }
    let list = |group: BTreeMap<String, Endpoint>| group.into_values().collect();
    groups
        .into_iter()
        .map(|(key, group)| (key, list(group)))
        .collect()
}

/// `None` for what is no address.
fn family(ip: &str) -> Option<&'static str> {
    ip.parse().ok().map(|ip| match ip {
        IpAddr::V4(_) => "IPv4",
        IpAddr::V6(_) => "IPv6",
    })
}

fn ports(subset: &EndpointSubset) -> Vec<SlicePort> {
    let ports = subset.ports.iter().flatten();
    let mut ports: Vec<SlicePort> = ports
        .map(|port| SlicePort {
            name: port.name.clone().unwrap_or_default(),
            port: port.port,
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    ports
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            ..EndpointConditions::default()
        }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn group_of(slice: &EndpointSlice) -> Group {
    let family = match slice.address_type.as_str() {
        "IPv6" => "IPv6",
        _ => "IPv4",
    };
    let ports = slice.ports.iter().map(|port| SlicePort {
        name: port.name.clone().unwrap_or_default(),
        port: port.port.unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
        app_protocol: port.app_protocol.clone(),
    });
    let mut ports: Vec<SlicePort> = ports.collect();
    ports.sort();
    (family, ports)
}

fn write(
    endpoints: &Endpoints,
    known: Option<&Arc<EndpointSlice>>,
    (family, ports): Group,
    addresses: Vec<Endpoint>,
) -> Option<Action> {
    let meta = &endpoints.metadata;
    let mut labels = meta.labels.clone();
    labels.insert(LABEL_SERVICE_NAME.to_owned(), meta.name.clone());
    labels.insert(LABEL_MANAGED_BY_SLICE.to_owned(), MANAGED_BY.to_owned());
    let mut annotations = meta.annotations.clone();
    annotations.retain(|key, _| !NOT_COPIED.contains(&key.as_str()));
    let Some(known) = known else {
        let ports = ports.into_iter().map(|port| EndpointPort {
            name: Some(port.name),
            port: Some(port.port),
            protocol: Some(port.protocol),
            app_protocol: port.app_protocol,
        });
        return Some(Action::Create(Box::new(discovery::EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", meta.name)),
                namespace: Some(meta.namespace.clone()),
                labels: Some(labels),
                annotations: (!annotations.is_empty()).then_some(annotations),
                owner_references: Some(vec![ENDPOINTS.controller_reference(meta)]),
                ..ObjectMeta::default()
            },
            address_type: family.to_owned(),
            endpoints: Some(addresses),
            ports: Some(ports.collect()),
        })));
    };
    let mut patch = json!({});
    if known.endpoints != addresses {
        patch["endpoints"] = json!(addresses);
    }
    if let Some(labels) = merge_patch_of(&known.metadata.labels, &labels) {
        patch["metadata"]["labels"] = labels;
    }
    if let Some(annotations) = merge_patch_of(&known.metadata.annotations, &annotations) {
        patch["metadata"]["annotations"] = annotations;
    }
    if patch.as_object().is_some_and(serde_json::Map::is_empty) {
        return None;
    }
    patch["metadata"]["resourceVersion"] = known.metadata.resource_version.as_str().into();
    Some(Action::Patch {
        name: known.metadata.name.clone(),
        patch,
    })
}

pub struct Controller {
    shared: Arc<Shared>,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::throttled("endpointslicemirroring", Duration::from_millis(20), 4);
        let waker = Arc::clone(&queue);
        shared.informers.endpoints.on_change(move |change| {
            if let Some(endpoints) = change.new.or(change.old) {
                waker.add(endpoints.metadata.key());
            }
        });
        let waker = Arc::clone(&queue);
        shared.informers.services.on_change(move |change| {
            if let Some(service) = change.new.or(change.old) {
                waker.add(service.metadata.key());
            }
        });
        // Somebody may have changed or deleted a slice.
        let waker = Arc::clone(&queue);
        shared.informers.endpoint_slices.on_change(move |change| {
            if let Some(slice) = change.old.filter(|slice| is_ours(slice))
                && let Some(name) = slice.metadata.labels.get(LABEL_SERVICE_NAME)
            {
                waker.add(Key::new(&slice.metadata.namespace, name));
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            writer: shared.writer("endpointslicemirroring-controller"),
            queue,
        })
    }

    /// One pass over one Endpoints object.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let informers = &self.shared.informers;
        let slices = informers
            .endpoint_slices
            .by_index(&format!("{}/{}", key.namespace, key.name));
        let observed = Observed {
            endpoints: informers.endpoints.get(&key),
            service: informers.services.get(&key),
            slices: slices
                .into_iter()
                .filter(|slice| is_ours(slice) && !slice.metadata.is_deleting())
                .collect(),
        };
        let mut revision = 0;
        for action in plan(&observed) {
            let named = |name: &str| Target::new(ENDPOINT_SLICES, &key.namespace, name);
            let result = match action {
                Action::Create(slice) => {
                    let namespace = &key.namespace;
                    self.writer.create(ENDPOINT_SLICES, namespace, &slice).await
                }
                Action::Patch { name, patch } => self.writer.patch(&named(&name), &patch).await,
                Action::Delete { name, uid } => {
                    gone_is_fine(self.writer.delete(&named(&name), Delete::of(&uid)).await)
                }
            };
            match result {
                Ok(written) => revision = revision.max(written.metadata.revision()),
                Err(error) if error.is_namespace_terminating() => {}
                Err(error) => return Err(error),
            }
        }
        caught_up(
            &informers.endpoint_slices,
            "endpointslices",
            revision,
            CATCH_UP,
        )
        .await?;
        Ok(Outcome::Done)
    }
}

fn is_ours(slice: &EndpointSlice) -> bool {
    let managed_by = slice.metadata.labels.get(LABEL_MANAGED_BY_SLICE);
    managed_by.is_some_and(|by| by == MANAGED_BY)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoints(labels: Value) -> Arc<Endpoints> {
        let object = json!({
            "metadata": {"name": "db", "namespace": "default", "uid": "e", "labels": labels},
            "subsets": [
                {"addresses": [{"ip": "192.0.2.5", "hostname": "one"}, {"ip": "2001:db8::5"}],
                 "notReadyAddresses": [{"ip": "192.0.2.6"}], "ports": [{"name": "sql", "port": 5432}]},
            ],
        });
        Arc::new(serde_json::from_value(object).expect("endpoints"))
    }

    fn service(spec: Value) -> Option<Arc<Service>> {
        let object =
            json!({"metadata": {"name": "db", "namespace": "default", "uid": "s"}, "spec": spec});
        Some(Arc::new(serde_json::from_value(object).expect("a service")))
    }

    fn made(actions: Vec<Action>) -> Vec<Arc<EndpointSlice>> {
        let slices = actions.into_iter().enumerate().map(|(i, action)| {
            let Action::Create(slice) = action else {
                panic!("a create: {action:?}");
            };
            let mut slice: EndpointSlice = serde_json::from_value(json!(slice)).expect("a slice");
            slice.metadata.name = format!("db-{i}");
            Arc::new(slice)
        });
        slices.collect()
    }

    #[test]
    fn each_family_gets_a_slice_and_planning_twice_does_nothing() {
        let mut observed = Observed {
            endpoints: Some(endpoints(json!({"team": "a"}))),
            service: service(json!({"ports": [{"port": 5432}]})),
            slices: Vec::new(),
        };
        let slices = made(plan(&observed));
        assert_eq!(slices.len(), 2);
        let four = slices
            .iter()
            .find(|s| s.address_type == "IPv4")
            .expect("one of IPv4");
        let ready: Vec<_> = four
            .endpoints
            .iter()
            .map(|e| {
                (
                    e.addresses[0].as_str(),
                    e.conditions.as_ref().and_then(|c| c.ready),
                )
            })
            .collect();
        assert_eq!(
            ready,
            [("192.0.2.5", Some(true)), ("192.0.2.6", Some(false))]
        );
        assert_eq!(four.endpoints[0].hostname.as_deref(), Some("one"));
        assert_eq!(four.metadata.labels["kubernetes.io/service-name"], "db");
        assert_eq!(
            four.metadata.labels["endpointslice.kubernetes.io/managed-by"],
            MANAGED_BY
        );
        assert_eq!(four.metadata.labels["team"], "a");
        assert_eq!(
            four.metadata.controller().expect("an owner").kind,
            "Endpoints"
        );
        observed.slices = slices.clone();
        assert!(plan(&observed).is_empty());

        let mut fewer = (*endpoints(json!({"team": "a"}))).clone();
        fewer.subsets[0].not_ready_addresses = None;
        observed.endpoints = Some(Arc::new(fewer));
        let actions = plan(&observed);
        assert!(
            matches!(actions.as_slice(), [Action::Patch { .. }]),
            "{actions:?}"
        );
        let mut replaced = (*endpoints(json!({"team": "a"}))).clone();
        replaced.metadata.uid = "another".to_owned();
        observed.endpoints = Some(Arc::new(replaced));
        let actions = plan(&observed);
        let made = |action: &&Action| matches!(action, Action::Create(_));
        let count = actions.iter().filter(made).count();
        assert_eq!((actions.len(), count), (4, 2), "two go, two come");
        observed.endpoints = None;
        assert_eq!(plan(&observed).len(), 2, "both go");
    }

    #[test]
    fn what_others_look_after_is_not_mirrored() {
        let without = || service(json!({"ports": [{"port": 5432}]}));
        let slices = |endpoints, service| {
            let observed = Observed {
                endpoints: Some(endpoints),
                service,
                slices: Vec::new(),
            };
            plan(&observed).len()
        };
        let plain = || endpoints(json!({}));
        assert_eq!(slices(plain(), without()), 2);
        assert_eq!(slices(plain(), None), 0, "no Service");
        assert_eq!(
            slices(plain(), service(json!({"selector": {"app": "db"}}))),
            0
        );
        assert_eq!(slices(endpoints(json!({SKIP: "true"})), without()), 0);
        let mut leader = (*plain()).clone();
        leader
            .metadata
            .annotations
            .insert(LEADER.to_owned(), "{}".to_owned());
        assert_eq!(slices(Arc::new(leader), without()), 0);
    }
}

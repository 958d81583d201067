//! EndpointSlices: where the pods behind a Service are, at most 100 in one slice.
//!
//! Owns the slices it labels as managed by itself. Moves as little as possible: an endpoint stays in its slice, and a
//! slice that needs no change is not written.

mod apply;
mod hints;
#[cfg(test)]
pub(super) mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use types::well_known::{LABEL_MANAGED_BY_SLICE, LABEL_SERVICE_NAME};

pub use apply::Controller;

use crate::controllers::service_ports::{self, Port};
use crate::objects::{EndpointSlice, Pod, SERVICES, Service};
use crate::write::merge_patch_of;

pub const MANAGED_BY: &str = "endpointslice-controller.k8s.io";
const IPV4: &str = "IPv4";
const MOST_ENDPOINTS: usize = 100;

/// The world as one pass sees it.
pub struct Observed {
    pub service: Arc<Service>,
    /// Pods the selector matches.
    pub pods: Vec<Arc<Pod>>,
    /// Slices of this Service that are managed here.
    pub slices: Vec<Arc<EndpointSlice>>,
    /// Node → zone, where it has one.
    pub nodes: HashMap<String, Option<String>>,
}

#[derive(Debug)]
pub enum Action {
    Create(Box<discovery::EndpointSlice>),
    Patch { name: String, patch: Value },
    Delete { name: String, uid: String },
}

/// One slice as it shall be.
struct Slice {
    from: Option<Arc<EndpointSlice>>,
    ports: Vec<Port>,
    endpoints: Vec<Endpoint>,
    changed: bool,
}

// === impl Observed ===

impl Observed {
    fn zone_of(&self, node: &str) -> Option<&String> {
        self.nodes.get(node)?.as_ref()
    }
}

/// What to do for one Service. Nothing, when the slices are as they should be.
pub fn plan(observed: &Observed) -> Vec<Action> {
    let mut groups = wanted(observed);
    if groups.is_empty() {
        // A Service without endpoints still has one slice, so that watchers see it is known.
        groups.insert(Vec::new(), BTreeMap::new());
    }
    let mut free: Vec<Arc<EndpointSlice>> = Vec::new();
    let mut matched: BTreeMap<Vec<Port>, Vec<Arc<EndpointSlice>>> = BTreeMap::new();
    let mut foreign = Vec::new();
    for slice in &observed.slices {
        let ports = ports_of(slice);
        if slice.metadata.controller().map(|o| &o.uid) != Some(&observed.service.metadata.uid) {
            // Of a Service that had this name before: it goes with that one, and no patch would keep it.
            foreign.push(Arc::clone(slice));
        } else if slice.address_type == IPV4 && groups.contains_key(&ports) {
            matched.entry(ports).or_default().push(Arc::clone(slice));
        } else {
            free.push(Arc::clone(slice));
        }
    }
    let mut slices = Vec::new();
    for (ports, endpoints) in groups {
        let mut existing = matched.remove(&ports).unwrap_or_default();
        if existing.is_empty() {
            // The ports changed: rather another content for a known slice than a new one.
            let reusable = free.iter().position(|s| s.address_type == IPV4);
            existing.extend(reusable.map(|i| free.swap_remove(i)));
        }
        slices.extend(distribute(ports, endpoints, existing));
    }
    let labels = labels(&observed.service);
    let gone = free.iter().chain(&foreign);
    let mut actions: Vec<Action> = gone.map(|s| delete(s)).collect();
    let nothing_but_empty = slices.iter().all(|s| s.endpoints.is_empty());
    let mut kept_empty = false;
    for slice in slices {
        if slice.endpoints.is_empty() {
            if !nothing_but_empty || kept_empty {
                actions.extend(slice.from.as_deref().map(delete));
                continue;
            }
            kept_empty = true;
        }
        actions.extend(slice.write(&observed.service, &labels));
    }
    actions
}

/// Ports → pod uid → endpoint.
fn wanted(observed: &Observed) -> BTreeMap<Vec<Port>, BTreeMap<String, Endpoint>> {
    let mut groups: BTreeMap<Vec<Port>, BTreeMap<String, Endpoint>> = BTreeMap::new();
    let zonal = hints::is_zonal(observed);
    let anyway = observed.service.spec.publish_not_ready_addresses == Some(true);
    // What ran on a node that is gone is gone, though its pod may still be there and say it is ready.
    let is_somewhere = |pod: &Pod| anyway || observed.nodes.contains_key(&pod.spec.node_name);
    for pod in observed
        .pods
        .iter()
        .filter(|p| service_ports::has_address(p) && is_somewhere(p))
    {
        let ports = service_ports::ports(&observed.service, pod);
        groups
            .entry(ports)
            .or_default()
            .insert(pod.metadata.uid.clone(), endpoint(observed, pod, zonal));
    }
    groups
}

fn endpoint(observed: &Observed, pod: &Pod, zonal: bool) -> Endpoint {
    let serving = pod.is_ready();
    let terminating = pod.metadata.is_deleting();
    let anyway = observed.service.spec.publish_not_ready_addresses == Some(true);
    let ready = anyway || (serving && !terminating);
    let zone = observed.zone_of(&pod.spec.node_name).cloned();
    let hints = ready.then(|| hints::of(&observed.service, pod, zone.as_deref(), zonal));
    Endpoint {
        addresses: vec![pod.status.pod_ip.clone()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: service_ports::hostname(&observed.service, pod),
        node_name: (!pod.spec.node_name.is_empty()).then(|| pod.spec.node_name.clone()),
        target_ref: Some(service_ports::reference(pod)),
        hints: hints.flatten(),
        zone,
        ..Endpoint::default()
    }
}

/// Puts the endpoints of one set of ports into slices: first where they are, then where there is room, then into new ones.
fn distribute(
    ports: Vec<Port>,
    mut endpoints: BTreeMap<String, Endpoint>,
    existing: Vec<Arc<EndpointSlice>>,
) -> Vec<Slice> {
    let mut slices: Vec<Slice> = existing
        .into_iter()
        .map(|from| {
            let kept: Vec<Endpoint> = from
                .endpoints
                .iter()
                .filter_map(|e| endpoints.remove(uid(e)))
                .collect();
            let changed = kept.len() != from.endpoints.len()
                || ports_of(&from) != ports
                || kept.iter().zip(&from.endpoints).any(|(a, b)| !same(a, b));
            Slice {
                from: Some(from),
                ports: ports.clone(),
                endpoints: kept,
                changed,
            }
        })
        .collect();
    // Slices that are written anyway are filled first, then the fullest.
    let mut order: Vec<usize> = (0..slices.len()).collect();
    order.sort_by_key(|i| {
        (
            !slices[*i].changed,
            usize::MAX - slices[*i].endpoints.len(),
            *i,
        )
    });
    let mut rest = endpoints.into_values().peekable();
    for index in order {
        let slice = &mut slices[index];
        while slice.endpoints.len() < MOST_ENDPOINTS
            && let Some(endpoint) = rest.next()
        {
            slice.endpoints.push(endpoint);
            slice.changed = true;
        }
    }
    while rest.peek().is_some() {
        slices.push(Slice {
            from: None,
            ports: ports.clone(),
            endpoints: rest.by_ref().take(MOST_ENDPOINTS).collect(),
            changed: true,
        });
    }
    if slices.is_empty() {
        slices.push(Slice {
            from: None,
            ports,
            endpoints: Vec::new(),
            changed: true,
        });
    }
    slices
}

fn uid(endpoint: &Endpoint) -> &str {
    endpoint
        .target_ref
        .as_ref()
        .and_then(|r| r.uid.as_deref())
        .unwrap_or_default()
}

/// Equal in everything this controller writes.
fn same(a: &Endpoint, b: &Endpoint) -> bool {
    a.addresses == b.addresses
        && a.conditions == b.conditions
        && a.hostname == b.hostname
        && a.node_name == b.node_name
        && a.zone == b.zone
        && a.hints == b.hints
        && uid(a) == uid(b)
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    slice
        .ports
        .iter()
        .map(|p| Port {
            name: p.name.clone().unwrap_or_default(),
            port: p.port.unwrap_or_default(),
            protocol: p.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            app_protocol: p.app_protocol.clone(),
        })
        .collect()
}

fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service_ports::labels(service);
    labels.insert(LABEL_SERVICE_NAME.to_owned(), service.metadata.name.clone());
    labels.insert(LABEL_MANAGED_BY_SLICE.to_owned(), MANAGED_BY.to_owned());
    labels
}

fn delete(slice: &EndpointSlice) -> Action {
    Action::Delete {
        name: slice.metadata.name.clone(),
        uid: slice.metadata.uid.clone(),
    }
}

// === impl Slice ===

impl Slice {
    fn write(self, service: &Service, labels: &BTreeMap<String, String>) -> Option<Action> {
        let ports: Vec<EndpointPort> = self
            .ports
            .into_iter()
            .map(|p| EndpointPort {
                name: Some(p.name),
                port: Some(p.port),
                protocol: Some(p.protocol),
                app_protocol: p.app_protocol,
            })
            .collect();
        let Some(from) = self.from else {
            return Some(Action::Create(Box::new(discovery::EndpointSlice {
                metadata: ObjectMeta {
                    generate_name: Some(format!("{}-", service.metadata.name)),
                    namespace: Some(service.metadata.namespace.clone()),
                    labels: Some(labels.clone()),
                    owner_references: Some(vec![SERVICES.controller_reference(&service.metadata)]),
                    ..ObjectMeta::default()
                },
                address_type: IPV4.to_owned(),
                endpoints: Some(self.endpoints),
                ports: Some(ports),
            })));
        };
        let mut patch = json!({});
        let mut changed = self.changed;
        if self.changed {
            patch["endpoints"] = json!(self.endpoints);
            patch["ports"] = json!(ports);
        }
        if let Some(labels) = merge_patch_of(&from.metadata.labels, labels) {
            patch["metadata"]["labels"] = labels;
            changed = true;
        }
        if !changed {
            return None;
        }
        patch["metadata"]["resourceVersion"] = from.metadata.resource_version.as_str().into();
        Some(Action::Patch {
            name: from.metadata.name.clone(),
            patch,
        })
    }
}

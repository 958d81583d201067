//! Which pods stand behind a Service, and on which ports: shared by EndpointSlices and Endpoints. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ObjectReference, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::{Pod, Service};

pub const HEADLESS: &str = "service.kubernetes.io/headless";

/// One port as endpoints publish it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    pub name: String,
    pub port: i32,
    pub protocol: String,
    pub app_protocol: Option<String>,
}

/// Services with a selector have endpoints made by us; the others' are their owner's.
pub fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    if service.spec.type_.as_deref() == Some("ExternalName") || service.metadata.is_deleting() {
        return None;
    }
    service.spec.selector.as_ref().filter(|s| !s.is_empty())
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.cluster_ip.as_deref() == Some("None")
}

/// Has an address and is not finished.
pub fn has_address(pod: &Pod) -> bool {
    !pod.is_terminal() && !pod.status.pod_ip.is_empty()
}

/// Did anything change that endpoints show?
pub fn differs(old: &Pod, new: &Pod) -> bool {
    let shown = |p: &Pod| {
        (
            has_address(p),
            p.is_ready(),
            p.metadata.is_deleting(),
            p.metadata.uid.clone(),
        )
    };
    shown(old) != shown(new)
        || old.metadata.labels != new.metadata.labels
        || old.status.pod_ip != new.status.pod_ip
        || old.spec.node_name != new.spec.node_name
}

/// The Service's ports as they are on this pod. A named target port the pod does not have is left out.
pub fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let declared = service.spec.ports.iter().flatten();
    declared
        .filter_map(|port| {
            Some(Port {
                name: port.name.clone().unwrap_or_default(),
                port: target(port, pod)?,
                protocol: protocol(port).to_owned(),
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect()
}

fn protocol(port: &ServicePort) -> &str {
    port.protocol.as_deref().unwrap_or("TCP")
}

fn target(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let sidecars = pod
                .spec
                .init_containers
                .iter()
                .filter(|c| c.restart_policy.as_deref() == Some("Always"));
            pod.spec
                .containers
                .iter()
                .chain(sidecars)
                .flat_map(|c| &c.ports)
                .find(|p| {
                    p.name.as_deref() == Some(name)
                        && p.protocol.as_deref().unwrap_or("TCP") == protocol(port)
                })
                .map(|p| p.container_port)
        }
    }
}

/// The pod's own name below the Service's, where it asks for one.
pub fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    (!pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name)
        .then(|| pod.spec.hostname.clone())
}

pub fn reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.metadata.namespace.clone()),
        name: Some(pod.metadata.name.clone()),
        uid: Some(pod.metadata.uid.clone()),
        ..ObjectReference::default()
    }
}

/// The Service's labels and, for a headless one, the label that says so.
pub fn labels(service: &Service) -> BTreeMap<String, String> {
    let mut labels = service.metadata.labels.clone();
    labels.remove(HEADLESS);
    if is_headless(service) {
        labels.insert(HEADLESS.to_owned(), String::new());
    }
    labels
}

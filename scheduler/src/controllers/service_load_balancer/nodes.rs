//! What nodes say of their listeners, and what follows for a Service. PURE.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, PortStatus};
use types::listeners::{self, Deviation, MODE_PROXY, Report};
use types::well_known::ANNOTATION_LISTENERS;

use super::{Action, Observed, REASON_REPLACED, REASON_UNAVAILABLE, REPLACED, is_balancer};
use crate::events::Type;
use crate::objects::Node;

/// Keeps a node's address out of load balancers, as upstream.
const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What matters of one node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeView {
    pub name: String,
    /// Ready, not being deleted, and not excluded.
    pub eligible: bool,
    /// Where clients outside reach it.
    pub address: Option<IpAddr>,
    pub report: Report,
}

// === impl NodeView ===

impl NodeView {
    pub fn of(node: &Node) -> Self {
        let meta = &node.metadata;
        let ready = node.status.conditions.iter().flatten();
        let ready = ready
            .into_iter()
            .any(|c| c.type_ == "Ready" && c.status == "True");
        let said = meta.annotations.get(ANNOTATION_LISTENERS);
        let report = said
            .and_then(|text| Report::parse(text))
            .unwrap_or_default();
        let known = |type_: &str| {
            let mut all = node.status.addresses.iter().flatten();
            all.find_map(|a| (a.type_ == type_).then(|| a.address.parse().ok())?)
        };
        Self {
            name: meta.name.clone(),
            eligible: ready && !meta.is_deleting() && !meta.labels.contains_key(EXCLUDED),
            address: report
                .address
                .or_else(|| known("ExternalIP"))
                .or_else(|| known("InternalIP")),
            report,
        }
    }

    /// Where this node differs from `other` for a Service: only then is it worth looking at the Service again.
    pub fn differs_for(&self, other: &Self, service: &crate::objects::Service) -> bool {
        let reached = |view: &Self| {
            let digest = listeners::digest(&service.metadata.uid, &service.spec);
            (view.eligible, view.address, view.report.balances(&digest))
        };
        let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
        (is_balancer(service) && reached(self) != reached(other))
            || !self
                .report
                .deviations_of(namespace, name)
                .eq(other.report.deviations_of(namespace, name))
    }
}

/// Every node that listens, at its own address.
pub(super) fn ingress(observed: &Observed) -> Vec<LoadBalancerIngress> {
    let service = &observed.service;
    let digest = listeners::digest(&service.metadata.uid, &service.spec);
    let local = service.spec.external_traffic_policy.as_deref() == Some("Local");
    let mut seen = Vec::new();
    observed
        .nodes
        .iter()
        .filter(|node| node.eligible && node.report.balances(&digest))
        .filter(|node| !local || observed.local.contains(&node.name))
        .filter_map(|node| {
            let address = node.address?;
            // Several nodes on one machine, all behind its loopback address: listed once.
            if seen.contains(&address) {
                return None;
            }
            let ports = ports(observed, node)?;
            seen.push(address);
            Some(LoadBalancerIngress {
                hostname: None,
                ip: Some(address.to_string()),
                ip_mode: Some(MODE_PROXY.to_owned()),
                ports: Some(ports),
            })
        })
        .collect()
}

/// How each port does on a node; `None` when none listens.
fn ports(observed: &Observed, node: &NodeView) -> Option<Vec<PortStatus>> {
    let meta = &observed.service.metadata;
    let deviations: Vec<&Deviation> = node
        .report
        .deviations_of(&meta.namespace, &meta.name)
        .filter(|d| d.kind == "LoadBalancer")
        .collect();
    let mut listens = false;
    let ports = observed.service.spec.ports.iter().flatten().map(|port| {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let same = |d: &&&Deviation| i32::from(d.port) == port.port && d.protocol == protocol;
        let deviation = deviations.iter().find(same);
        listens |= deviation.is_none_or(|d| d.got.is_some());
        PortStatus {
            error: deviation.map(|d| format!("coracle.dev/{}", reason(d))),
            port: port.port,
            protocol: protocol.to_owned(),
        }
    });
    let ports: Vec<PortStatus> = ports.collect();
    listens.then_some(ports)
}

fn reason(deviation: &Deviation) -> &'static str {
    match deviation.got {
        Some(_) => REASON_REPLACED,
        None => REASON_UNAVAILABLE,
    }
}

/// All that nodes say differs for this Service.
fn said(observed: &Observed) -> impl Iterator<Item = (&NodeView, &Deviation)> {
    let meta = &observed.service.metadata;
    observed.nodes.iter().flat_map(|node| {
        let deviations = node.report.deviations_of(&meta.namespace, &meta.name);
        deviations.map(move |deviation| (&**node, deviation))
    })
}

/// `80=40123`, or with several nodes `80=40123@node-a,443=40124@node-b`; `None` when no port was replaced.
pub(super) fn replaced(observed: &Observed) -> Option<String> {
    let alone = observed.nodes.len() == 1;
    let mut all: Vec<String> = said(observed)
        .filter_map(|(node, deviation)| {
            let pair = format!("{}={}", deviation.wanted, deviation.got?);
            Some(if alone {
                pair
            } else {
                format!("{pair}@{}", node.name)
            })
        })
        .collect();
    all.dedup();
    all.truncate(REPLACED);
    (!all.is_empty()).then(|| all.join(","))
}

/// One Event for each listener that is not where it was wanted.
pub(super) fn deviations(observed: &Observed) -> Vec<Action> {
    let alone = observed.nodes.len() == 1;
    said(observed)
        .map(|(node, deviation)| {
            let (wanted, problem) = (deviation.wanted, &deviation.problem);
            let at = if alone {
                String::new()
            } else {
                format!(" (node {})", node.name)
            };
            let message = match (deviation.got, node.address) {
                (Some(got), Some(ip)) => {
                    let address = std::net::SocketAddr::new(ip, got);
                    format!("Listening on {address} instead of port {wanted}{at}: {problem}")
                }
                (Some(got), None) => {
                    format!("Listening on port {got} instead of port {wanted}{at}: {problem}")
                }
                (None, _) => format!("Not listening on port {wanted}{at}: {problem}"),
            };
            Action::Tell {
                type_: Type::Warning,
                reason: reason(deviation),
                message,
            }
        })
        .collect()
}

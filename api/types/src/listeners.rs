//! What a node says of its Service listeners, and who balances a Service: shared by the node, which listens, and by the
//! controller, which composes Services' status from what all nodes say. PURE.
//!
//! The report is an annotation ([`ANNOTATION_LISTENERS`](crate::well_known::ANNOTATION_LISTENERS)) of the Node, as JSON. It
//! is bounded: what listens where it was wanted is one digest of 7 letters, only what differs is spelled out.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, ServiceSpec, ServiceStatus};
use serde::{Deserialize, Serialize};

/// `spec.loadBalancerClass` of Services that want an address of the pool, and of those that want the nodes' addresses.
/// Without a class a Service gets one of the pool where the cluster has one, else the nodes'.
pub const CLASS_POOL: &str = "coracle.dev/pool";
pub const CLASS_NODE: &str = "coracle.dev/node";

/// Condition of a Service of the pool: `True` when it has an address. Nodes listen on addresses of the pool only.
pub const CONDITION_POOL: &str = "coracle.dev/PoolAddress";

/// `ipMode` of an address that belongs to the Service wherever it is, and of one where a node's listener stands.
pub const MODE_VIP: &str = "VIP";
pub const MODE_PROXY: &str = "Proxy";

/// Load-balanced Services one report can name, and deviations it spells out.
const BALANCED: usize = 4096;
const DEVIATIONS: usize = 256;
const DIGEST: usize = 7;

/// What one node says.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Report {
    /// Where node ports and the node's own load balancing listen; `None` is every address of the node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// Digests of the Services whose load-balanced ports were acted on at that address, in order, without a separator.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub balanced: String,
    /// Addresses of the pool and external addresses that are on this machine and have a listener.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub holds: Vec<IpAddr>,
    /// Listeners that are not where they were wanted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub deviations: Vec<Deviation>,
    /// Deviations and Services there was no room for.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: usize,
}

/// A listener that is not where it was wanted.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Deviation {
    pub namespace: String,
    pub service: String,
    /// `LoadBalancer`, `NodePort`, `ExternalIP`, `HealthCheck`
    pub kind: String,
    /// The Service's port.
    pub port: u16,
    pub protocol: String,
    /// The port that was asked for: the Service's, or its node port.
    pub wanted: u16,
    /// The port it got instead; `None` when it does not listen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub got: Option<u16>,
    /// `port 80 is not permitted on 192.0.2.7`
    pub problem: String,
}

/// Who balances a Service of type `LoadBalancer`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Balanced {
    /// Every node, on its own address.
    Nodes,
    /// Nodes that have one of these addresses; none are known while it waits for one.
    Pool(Vec<IpAddr>),
    /// Somebody with another `loadBalancerClass`; or it is no load balancer.
    Elsewhere,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Stands for one Service with its ports: 42 bits as letters. Other ports, another digest.
pub fn digest(uid: &str, spec: &ServiceSpec) -> String {
    let mut ports: Vec<(i32, &str)> = spec
        .ports
        .iter()
        .flatten()
        .map(|port| (port.port, port.protocol.as_deref().unwrap_or("TCP")))
        .collect();
    ports.sort_unstable();
    // FNV-1a: every node and every version must agree.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes.iter().chain(&[0]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    feed(uid.as_bytes());
    for (port, protocol) in ports {
        feed(port.to_string().as_bytes());
        feed(protocol.as_bytes());
    }
    hash ^= hash >> 32;
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(DIGEST);
    for at in 0..DIGEST {
        let index = usize::try_from((hash >> (6 * at)) & 63).unwrap_or(0);
        text.push(char::from(letters[index]));
    }
    text
}

/// How a Service is balanced, as its class and what its status says tell.
pub fn balanced(spec: &ServiceSpec, status: Option<&ServiceStatus>) -> Balanced {
    if spec.type_.as_deref() != Some("LoadBalancer") {
        return Balanced::Elsewhere;
    }
    let marked = status
        .and_then(|status| status.conditions.as_ref())
        .is_some_and(|conditions| conditions.iter().any(|c| c.type_ == CONDITION_POOL));
    match spec.load_balancer_class.as_deref() {
        Some(CLASS_POOL) => Balanced::Pool(virtual_addresses(status)),
        None if marked => Balanced::Pool(virtual_addresses(status)),
        None | Some(CLASS_NODE) => Balanced::Nodes,
        Some(_) => Balanced::Elsewhere,
    }
}

/// Addresses in a Service's status that are the Service's own.
pub fn virtual_addresses(status: Option<&ServiceStatus>) -> Vec<IpAddr> {
    ingress(status)
        .iter()
        .filter(|ingress| ingress.ip_mode.as_deref() == Some(MODE_VIP))
        .filter_map(|ingress| ingress.ip.as_ref()?.parse().ok())
        .collect()
}

pub fn ingress(status: Option<&ServiceStatus>) -> &[LoadBalancerIngress] {
    status
        .and_then(|status| status.load_balancer.as_ref()?.ingress.as_deref())
        .unwrap_or_default()
}

// === impl Report ===

impl Report {
    /// Keeps what there is room for. `balanced` are digests.
    pub fn new(
        address: Option<IpAddr>,
        mut balanced: Vec<String>,
        mut holds: Vec<IpAddr>,
        mut deviations: Vec<Deviation>,
    ) -> Self {
        balanced.sort_unstable();
        balanced.dedup();
        holds.sort_unstable();
        holds.dedup();
        let left_out = balanced.len().saturating_sub(BALANCED)
            + holds.len().saturating_sub(DEVIATIONS)
            + deviations.len().saturating_sub(DEVIATIONS);
        balanced.truncate(BALANCED);
        holds.truncate(DEVIATIONS);
        deviations.truncate(DEVIATIONS);
        Self {
            address,
            balanced: balanced.concat(),
            holds,
            deviations,
            left_out,
        }
    }

    /// `None` when the text is not one.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// For the annotation.
    pub fn print(&self) -> Option<String> {
        serde_json::to_string(self).ok()
    }

    /// The node has acted on the Service with this digest.
    pub fn balances(&self, digest: &str) -> bool {
        let known = self.balanced.as_bytes().chunks_exact(DIGEST);
        known.into_iter().any(|known| known == digest.as_bytes())
    }

    pub fn deviations_of<'a>(
        &'a self,
        namespace: &'a str,
        service: &'a str,
    ) -> impl Iterator<Item = &'a Deviation> {
        let all = self.deviations.iter();
        all.filter(move |d| d.namespace == namespace && d.service == service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> ServiceSpec {
        serde_json::from_value(value).expect("a spec")
    }

    #[test]
    fn a_digest_stands_for_the_service_and_its_ports() {
        let web = spec(json!({"ports": [{"port": 80}, {"port": 53, "protocol": "UDP"}]}));
        let same = spec(
            json!({"ports": [{"port": 53, "protocol": "UDP"}, {"port": 80, "protocol": "TCP"}]}),
        );
        let other = spec(json!({"ports": [{"port": 81}]}));
        assert_eq!(digest("u", &web).len(), 7);
        assert_eq!(digest("u", &web), digest("u", &same));
        assert_ne!(digest("u", &web), digest("u", &other));
        assert_ne!(digest("u", &web), digest("v", &web));
        let report = Report::new(
            None,
            vec![digest("u", &web), digest("v", &web)],
            vec![],
            vec![],
        );
        assert!(report.balances(&digest("v", &web)) && !report.balances(&digest("u", &other)));
    }

    #[test]
    fn a_report_is_bounded_and_says_so() {
        let digests = (0..10_000).map(|n| format!("{n:07}")).collect();
        let deviations = vec![Deviation::default(); 1_000];
        let report = Report::new(None, digests, vec![], deviations);
        assert_eq!(report.left_out, 10_000 - 4096 + 1_000 - 256);
        let text = report.print().expect("text");
        assert!(text.len() < 64 << 10, "{} bytes", text.len());
        assert_eq!(Report::parse(&text), Some(report));
        assert_eq!(Report::default().print().as_deref(), Some("{}"));
        assert_eq!(Report::parse("nonsense"), None);
    }

    #[test]
    fn the_class_and_the_status_say_who_balances() {
        let of = |spec_json, status: serde_json::Value| {
            let status: ServiceStatus = serde_json::from_value(status).expect("a status");
            balanced(&spec(spec_json), Some(&status))
        };
        let ip = IpAddr::from([192, 0, 2, 10]);
        let given = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.10", "ipMode": "VIP"}]},
            "conditions": [{"type": CONDITION_POOL, "status": "True", "reason": "Assigned", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let balancer = json!({"type": "LoadBalancer"});
        assert_eq!(of(balancer.clone(), json!({})), Balanced::Nodes);
        assert_eq!(of(balancer, given.clone()), Balanced::Pool(vec![ip]));
        let class = |class| json!({"type": "LoadBalancer", "loadBalancerClass": class});
        assert_eq!(of(class(CLASS_POOL), json!({})), Balanced::Pool(vec![]));
        assert_eq!(of(class(CLASS_NODE), given.clone()), Balanced::Nodes);
        assert_eq!(
            of(class("example.com/other"), given.clone()),
            Balanced::Elsewhere
        );
        assert_eq!(of(json!({"type": "NodePort"}), given), Balanced::Elsewhere);
    }
}

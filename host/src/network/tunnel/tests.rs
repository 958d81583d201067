//! Several nodes in one process, with real TLS on loopback and Node objects in memory.

mod calls;
mod datagrams;
mod streams;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::runtime::watcher::Event;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use serde_json::json;
use types::well_known::ANNOTATION_TUNNEL;

use super::routes::Index;
use super::{Config, Tunnel};
use crate::network::{self, Limits, Network, TunnelConfig};
use crate::tls::{Certificates, NodeTls};

/// A cluster's authority.
pub(crate) struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A node: number 1 has 100.64.64.0/18 and so on.
pub(super) struct Host {
    pub(super) name: String,
    number: u8,
    pub(super) network: Network,
}

pub(super) struct Cluster {
    pub(super) authority: Authority,
    pub(super) hosts: Vec<Host>,
}

// === impl Authority ===

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            pem,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn node(&self, name: &str) -> Arc<Certificates> {
        self.certificates(name, &format!("system:node:{name}"), "system:nodes")
    }

    pub(super) fn certificates(&self, dns: &str, cn: &str, group: &str) -> Arc<Certificates> {
        let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, cn);
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        Certificates::new(&NodeTls {
            ca_pem: self.pem.clone().into_bytes(),
            cert_pem: certificate.pem().into_bytes(),
            key_pem: key.serialize_pem().into_bytes(),
        })
        .unwrap()
    }
}

// === impl Host ===

impl Host {
    pub(super) fn start(authority: &Authority, number: u8) -> Self {
        Self::start_with(authority, number, |_| {}, Limits::default())
    }

    pub(super) fn start_with(
        authority: &Authority,
        number: u8,
        change: impl FnOnce(&mut TunnelConfig),
        limits: Limits,
    ) -> Self {
        let name = format!("node-{number}");
        let mut tunnel = Config::new(authority.node(&name));
        tunnel.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        change(&mut tunnel);
        let network = Network::new(network::Config {
            node_name: name.clone(),
            pod_cidr: cidr(number).parse().unwrap(),
            tunnel: Some(tunnel),
            limits,
            ..network::Config::default()
        })
        .unwrap();
        network.listen_tunnel().unwrap();
        Self {
            name,
            number,
            network,
        }
    }

    pub(super) fn tunnel(&self) -> &Arc<Tunnel> {
        self.network.fabric.tunnel.as_ref().unwrap()
    }

    pub(super) fn object(&self, tunnel: &str) -> NodeObject {
        serde_json::from_value(
            json!({"metadata": {"name": self.name, "annotations": {ANNOTATION_TUNNEL: tunnel}},
            "spec": {"podCIDR": cidr(self.number)}}),
        )
        .unwrap()
    }

    /// The Node object as it is.
    pub(super) fn truth(&self) -> NodeObject {
        self.object(&self.network.tunnel_address().unwrap().to_string())
    }

    /// What the API has told this host.
    pub(super) fn learn(&self, objects: Vec<NodeObject>) {
        let mut index = Index::new(&self.name);
        for object in objects {
            index.event(Event::Apply(object));
        }
        self.tunnel().update(&index, &self.network.fabric.nodes);
    }

    pub(super) fn sees(&self, other: &Host) -> bool {
        self.network.fabric.nodes.get(&other.name).is_reachable()
    }
}

// === impl Cluster ===

impl Cluster {
    /// Hosts that know each other.
    pub(super) fn of(count: u8) -> Self {
        let authority = Authority::new();
        let hosts: Vec<Host> = (0..count)
            .map(|number| Host::start(&authority, number))
            .collect();
        let cluster = Self { authority, hosts };
        cluster.introduce();
        cluster
    }

    pub(super) fn introduce(&self) {
        for host in &self.hosts {
            host.learn(self.hosts.iter().map(Host::truth).collect());
        }
    }
}

pub(super) fn cidr(number: u8) -> String {
    format!("100.64.{}.0/18", u16::from(number) * 64)
}

/// Polls until `condition` holds, or fails after `limit`.
pub(super) async fn eventually(
    limit: std::time::Duration,
    what: &str,
    condition: impl Fn() -> bool,
) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    assert!(
        tokio::time::timeout(limit, waiting).await.is_ok(),
        "not within {limit:?}: {what}"
    );
}

//! Which Services may have one address of the pool together, and what they ask of it, in MetalLB's words. PURE.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::objects::{Key, Service};

/// Services with the same value may share an address.
const ALLOW: [&str; 3] = [
    "coracle.dev/allow-shared-ip",
    "metallb.io/allow-shared-ip",
    "metallb.universe.tf/allow-shared-ip",
];
/// The address a Service wants, as `spec.loadBalancerIP` says it.
const WANTS: [&str; 3] = [
    "coracle.dev/loadBalancerIPs",
    "metallb.io/loadBalancerIPs",
    "metallb.universe.tf/loadBalancerIPs",
];
/// There is one pool.
const POOL: [&str; 2] = [
    "metallb.io/address-pool",
    "metallb.universe.tf/address-pool",
];

/// Who holds an address, and on what terms.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Holder {
    pub key: Key,
    pub terms: Terms,
}

/// On what terms a Service shares its address.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Terms {
    /// `None`: with nobody.
    sharing: Option<String>,
    ports: BTreeSet<(i32, String)>,
    /// With `externalTrafficPolicy: Local` an address goes where the pods are: only those of the same pods share it.
    local: Option<BTreeMap<String, String>>,
}

// === impl Terms ===

impl Terms {
    pub fn of(service: &Service) -> Self {
        let spec = &service.spec;
        let ports = spec.ports.iter().flatten().map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            (port.port, protocol.to_owned())
        });
        let local = spec.external_traffic_policy.as_deref() == Some("Local");
        Self {
            sharing: annotation(service, &ALLOW).map(str::to_owned),
            ports: ports.collect(),
            local: local.then(|| spec.selector.clone().unwrap_or_default()),
        }
    }

    /// The error says why not.
    pub fn fit(&self, other: &Self) -> Result<(), &'static str> {
        if self.sharing.is_none() || self.sharing != other.sharing {
            return Err(
                "they do not both allow it with the same annotation coracle.dev/allow-shared-ip",
            );
        }
        if !self.ports.is_disjoint(&other.ports) {
            return Err("they have a port in common");
        }
        if self.local != other.local {
            return Err("with externalTrafficPolicy Local they must select the same pods");
        }
        Ok(())
    }

    pub fn shares(&self) -> bool {
        self.sharing.is_some()
    }
}

/// The address a Service asks for. The error is for people.
pub(super) fn wanted(service: &Service) -> Result<Option<IpAddr>, String> {
    let field = service.spec.load_balancer_ip.as_deref();
    let field = field.filter(|ip| !ip.is_empty());
    let said = match (field, annotation(service, &WANTS)) {
        (Some(field), Some(said)) if field != said => {
            return Err(format!(
                "loadBalancerIP {field} and the annotation that asks for {said} differ"
            ));
        }
        (Some(said), _) | (None, Some(said)) => said,
        (None, None) => return Ok(None),
    };
    let ip = said.parse();
    ip.map(Some)
        .map_err(|_| format!("loadBalancerIP {said} is not an address"))
}

/// What is asked for and is not there.
pub(super) fn unsupported(service: &Service) -> Option<String> {
    let pool = annotation(service, &POOL)?;
    Some(format!(
        "address-pool {pool:?} is not looked at: there is one pool (--load-balancer-pool)"
    ))
}

fn annotation<'a>(service: &'a Service, names: &[&str]) -> Option<&'a str> {
    let all = &service.metadata.annotations;
    let mut found = names.iter().filter_map(|name| all.get(*name));
    found
        .find(|value| !value.is_empty())
        .map(|value| value.trim())
}

//! Where Services of type `LoadBalancer` are reached: `status.loadBalancer`, and where node ports really are.
//!
//! Two ways. With an address pool a Service gets an address of its own, and whichever node has that address on an interface
//! answers there; who moves addresses between machines (keepalived, a router, a person) is not our business. Without one
//! the nodes' own addresses are the Service's, as far as the nodes say that they listen.
//!
//! Owns Services' `status.loadBalancer`, their condition `coracle.dev/PoolAddress` and annotation `coracle.dev/listeners`,
//! unless another `loadBalancerClass` is asked for. A Service's status is the record of what it holds: there is no other.
//! Never listens.

mod apply;
mod nodes;
pub mod sharing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{LoadBalancerIngress, ServiceStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use types::listeners::{self, CLASS_NODE, CLASS_POOL, CONDITION_POOL, MODE_VIP};
use types::well_known::ANNOTATION_LISTENERS;

pub use apply::Controller;
pub use nodes::NodeView;
pub use sharing::{Holder, Terms};

use crate::events::Type;
use crate::objects::{Key, Service};
use crate::pool::Pool;

/// Reasons of Events: users script against them. The first two are MetalLB's.
pub const REASON_ALLOCATED: &str = "IPAllocated";
pub const REASON_FAILED: &str = "AllocationFailed";
pub const REASON_UNSUPPORTED: &str = "AnnotationNotSupported";
pub const REASON_REPLACED: &str = "PortReplaced";
pub const REASON_UNAVAILABLE: &str = "PortUnavailable";

/// Replaced ports an annotation lists.
const REPLACED: usize = 32;

/// The world as one pass sees it.
pub struct Observed {
    pub service: Arc<Service>,
    /// In the order of their names.
    pub nodes: Vec<Arc<NodeView>>,
    /// Nodes with endpoints of this Service that serve.
    pub local: BTreeSet<String>,
    pub pool: Option<Pool>,
    /// Who holds which address of the pool.
    pub holders: Holders,
}

/// Several where they share it.
pub type Holders = BTreeMap<IpAddr, Vec<Holder>>;

#[derive(Debug, PartialEq)]
pub enum Action {
    PatchStatus(Value),
    Patch(Value),
    /// Worth an Event, once.
    Tell {
        type_: Type,
        reason: &'static str,
        message: String,
    },
}

/// Who holds which address: of several Services that claim one and may not share it, the oldest.
pub fn holders(services: &[Arc<Service>]) -> Holders {
    let mut claims: Vec<(i64, Key, IpAddr, &Arc<Service>)> = services
        .iter()
        .filter(|service| is_balancer(service))
        .flat_map(|service| {
            let meta = &service.metadata;
            listeners::virtual_addresses(Some(&service.status))
                .into_iter()
                .map(move |ip| (meta.created_at(), meta.key(), ip, service))
        })
        .collect();
    claims.sort_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
    let mut holders = Holders::new();
    for (_, key, ip, service) in claims {
        let terms = Terms::of(service);
        let known = holders.entry(ip).or_default();
        if known.iter().all(|holder| holder.terms.fit(&terms).is_ok()) {
            known.push(Holder { key, terms });
        }
    }
    holders
}

/// What to do for one Service. Nothing, when it says what it should.
pub fn plan(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let service = &observed.service;
    if service.metadata.is_deleting() {
        return Vec::new();
    }
    let mut actions = Vec::new();
    actions.extend(annotate(observed));
    let class = service.spec.load_balancer_class.as_deref();
    if !is_balancer(service) {
        // The status of what was one until now.
        if service.spec.type_.as_deref() != Some("LoadBalancer") {
            actions.extend(write(service, Vec::new(), None));
        }
    } else if class == Some(CLASS_POOL) || (class != Some(CLASS_NODE) && observed.pool.is_some()) {
        actions.extend(of_pool(observed, now));
    } else {
        actions.extend(write(service, nodes::ingress(observed), None));
    }
    actions.extend(nodes::deviations(observed));
    actions
}

/// Of type `LoadBalancer`, and ours.
fn is_balancer(service: &Service) -> bool {
    let class = service.spec.load_balancer_class.as_deref();
    service.spec.type_.as_deref() == Some("LoadBalancer")
        && class.is_none_or(|class| class == CLASS_POOL || class == CLASS_NODE)
}

// === The pool ===

fn of_pool(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let service = &observed.service;
    let key = service.metadata.key();
    let held = listeners::virtual_addresses(Some(&service.status));
    let held = held.into_iter().find(|ip| {
        let holders = observed.holders.get(ip).into_iter().flatten();
        holders.into_iter().any(|holder| holder.key == key)
    });
    let (ingress, status, reason, message) = match choose(observed, held, &key) {
        Ok(ip) => (vec![of_ip(ip)], "True", "Assigned", String::new()),
        Err((reason, message)) => (Vec::new(), "False", reason, message),
    };
    let condition = Condition {
        type_: CONDITION_POOL.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.clone(),
        last_transition_time: Time(now),
        observed_generation: None,
    };
    let given = ingress.first().and_then(|ingress| ingress.ip.clone());
    let mut actions: Vec<Action> = write(service, ingress, Some(condition))
        .into_iter()
        .collect();
    if let (Some(ip), false) = (&given, actions.is_empty()) {
        actions.push(Action::Tell {
            type_: Type::Normal,
            reason: REASON_ALLOCATED,
            message: format!("Assigned IP [{ip:?}]"),
        });
    }
    if given.is_none() {
        actions.push(Action::Tell {
            type_: Type::Warning,
            reason: REASON_FAILED,
            message: format!("Failed to allocate IP for \"{key}\": {message}"),
        });
    }
    if let Some(message) = sharing::unsupported(service) {
        actions.push(Action::Tell {
            type_: Type::Warning,
            reason: REASON_UNSUPPORTED,
            message,
        });
    }
    actions
}

/// The address a Service keeps or gets; or why it gets none.
fn choose(
    observed: &Observed,
    held: Option<IpAddr>,
    key: &Key,
) -> Result<IpAddr, (&'static str, String)> {
    let Some(pool) = &observed.pool else {
        let why = "the cluster has no address pool (--load-balancer-pool)";
        return Err(("NoPool", why.to_owned()));
    };
    let terms = Terms::of(&observed.service);
    // Why this Service may not have an address that others hold.
    let conflict = |ip: &IpAddr| {
        let holders = observed.holders.get(ip).into_iter().flatten();
        let mut others = holders.filter(|holder| holder.key != *key);
        others.find_map(|other| Some((other, other.terms.fit(&terms).err()?)))
    };
    let asked = sharing::wanted(&observed.service).map_err(|why| ("NotInPool", why))?;
    if let Some(ip) = asked {
        if !pool.contains(ip) {
            let why = format!("loadBalancerIP {ip} is not in the address pool {pool}");
            return Err(("NotInPool", why));
        }
        return match conflict(&ip) {
            Some((other, why)) => {
                let other = &other.key;
                let why = format!(
                    "loadBalancerIP {ip} is the address of Service {other} and cannot be shared with it: {why}"
                );
                Err(("Taken", why))
            }
            None => Ok(ip),
        };
    }
    let is_free = |ip: &IpAddr| observed.holders.get(ip).is_none_or(Vec::is_empty);
    let shared = || {
        let mut held = observed.holders.keys().filter(|ip| !is_free(ip));
        held.find(|ip| pool.contains(**ip) && conflict(ip).is_none())
    };
    held.filter(|ip| pool.contains(*ip))
        .or_else(|| terms.shares().then(shared).flatten().copied())
        .or_else(|| pool.addresses().find(is_free))
        .ok_or_else(|| {
            (
                "Exhausted",
                format!("no available IPs in the address pool {pool}"),
            )
        })
}

fn of_ip(ip: IpAddr) -> LoadBalancerIngress {
    LoadBalancerIngress {
        ip: Some(ip.to_string()),
        ip_mode: Some(MODE_VIP.to_owned()),
        ..LoadBalancerIngress::default()
    }
}

// === Writing ===

/// The status patch, when something differs. Conditions of others stay.
fn write(
    service: &Service,
    ingress: Vec<LoadBalancerIngress>,
    condition: Option<Condition>,
) -> Option<Action> {
    let old = &service.status;
    let mut status = json!({});
    if listeners::ingress(Some(old)) != ingress {
        status["loadBalancer"]["ingress"] = match ingress.is_empty() {
            true => Value::Null,
            false => json!(ingress),
        };
    }
    if let Some(conditions) = conditions(old, condition) {
        status["conditions"] = match conditions.is_empty() {
            true => Value::Null,
            false => json!(conditions),
        };
    }
    let differs = status.as_object().is_some_and(|status| !status.is_empty());
    differs.then(|| {
        let meta = &service.metadata;
        // The version makes it a conflict when somebody wrote meanwhile: an address must not be given on an old picture.
        let metadata = json!({"uid": meta.uid, "resourceVersion": meta.resource_version});
        Action::PatchStatus(json!({"metadata": metadata, "status": status}))
    })
}

/// All conditions with ours as it should be; `None` when they are.
fn conditions(old: &ServiceStatus, wanted: Option<Condition>) -> Option<Vec<Condition>> {
    let all = old.conditions.as_deref().unwrap_or_default();
    let (ours, others): (Vec<&Condition>, Vec<&Condition>) =
        all.iter().partition(|c| c.type_ == CONDITION_POOL);
    let known = ours.first();
    let mut wanted = wanted;
    if let (Some(wanted), Some(known)) = (&mut wanted, known)
        && wanted.status == known.status
    {
        wanted.last_transition_time = known.last_transition_time.clone();
    }
    let same = match (&wanted, known) {
        (Some(wanted), Some(known)) => wanted == *known,
        (None, None) => true,
        _ => false,
    };
    (!same).then(|| others.into_iter().cloned().chain(wanted).collect())
}

/// The annotation that lists replaced ports.
fn annotate(observed: &Observed) -> Option<Action> {
    let meta = &observed.service.metadata;
    let wanted = nodes::replaced(observed);
    let now = meta.annotations.get(ANNOTATION_LISTENERS);
    (now != wanted.as_ref()).then(|| {
        Action::Patch(
            json!({"metadata": {"uid": meta.uid, "annotations": {(ANNOTATION_LISTENERS): wanted}}}),
        )
    })
}

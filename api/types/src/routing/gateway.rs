//! GatewayClasses, Gateways and what is said of them and of their routes: the conditions of the Gateway API's specification.

use std::sync::Arc;

use super::gateway_api::{AllowedRoutes, Gateway, ParentReference, RouteGroupKind};
use super::listener::{self, Bound};
use super::table::HostPattern;
use super::{Compiled, Doors, Key, World, route};
use crate::well_known::{GATEWAY_CONTROLLER, GATEWAY_GROUP};

/// One condition, before it has a time.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fact {
    pub type_: &'static str,
    pub status: bool,
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ClassStatus {
    pub name: String,
    pub generation: i64,
    pub conditions: Vec<Fact>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct GatewayStatus {
    pub key: Key,
    pub generation: i64,
    /// `Programmed` is still without what nodes say.
    pub conditions: Vec<Fact>,
    pub listeners: Vec<ListenerStatus>,
    /// Addresses that were asked for.
    pub wanted: Vec<String>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ListenerStatus {
    pub name: String,
    pub port: u16,
    pub tls: bool,
    pub supported_kinds: Vec<RouteGroupKind>,
    pub attached_routes: i32,
    pub conditions: Vec<Fact>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RouteStatus {
    pub key: Key,
    pub generation: i64,
    /// Of Gateways that are ours.
    pub parents: Vec<ParentStatus>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ParentStatus {
    pub parent: ParentReference,
    pub conditions: Vec<Fact>,
}

/// A Gateway of ours with its listeners.
pub(super) struct Ours<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    pub(super) listeners: Vec<Bound<'a>>,
}

pub(super) fn compile(world: &World, doors: &mut Doors, out: &mut Compiled) {
    for class in &world.gateway_classes {
        if class.spec.controller_name != GATEWAY_CONTROLLER {
            continue;
        }
        let accepted = if class.spec.parameters_ref.is_some() {
            let message = "parametersRef is not supported".to_owned();
            Fact::new("Accepted", false, "InvalidParameters", message)
        } else {
            Fact::new("Accepted", true, "Accepted", String::new())
        };
        out.classes.push(ClassStatus {
            name: class.metadata.name.clone(),
            generation: class.metadata.generation,
            conditions: vec![accepted],
        });
    }
    let is_ours = |gateway: &&Arc<Gateway>| {
        let class = &gateway.spec.gateway_class_name;
        let mut accepted = out.classes.iter().filter(|c| c.conditions[0].status);
        accepted.any(|c| c.name == *class)
    };
    let mut gateways: Vec<&Arc<Gateway>> = world.gateways.iter().filter(is_ours).collect();
    gateways.sort_by_key(|gateway| gateway.metadata.age());
    let mut ours: Vec<Ours<'_>> = Vec::new();
    for gateway in gateways {
        let listeners = listener::bind(world, gateway, doors, &mut out.secrets);
        ours.push(Ours { gateway, listeners });
    }
    let mut routes: Vec<_> = world.routes.iter().collect();
    routes.sort_by_key(|route| route.metadata.age());
    for route in routes {
        let status = route::attach(world, route, &mut ours, doors, out);
        if !status.parents.is_empty() {
            out.routes.push(status);
        }
    }
    out.gateways.extend(ours.into_iter().map(Ours::status));
}

// === impl Ours ===

impl Ours<'_> {
    fn status(self) -> GatewayStatus {
        let good = self.listeners.iter().filter(|l| l.is_good()).count();
        let all = good == self.listeners.len();
        let mut accepted = match (good, all) {
            (_, true) => Fact::new("Accepted", true, "Accepted", String::new()),
            (0, false) => {
                let message = "no listener is valid".to_owned();
                Fact::new("Accepted", false, "ListenersNotValid", message)
            }
            (_, false) => {
                let message = "some listeners are not valid".to_owned();
                Fact::new("Accepted", true, "ListenersNotValid", message)
            }
        };
        let addresses = &self.gateway.spec.addresses;
        let odd = addresses.iter().find(|address| {
            let kind = address.type_.as_deref().unwrap_or("IPAddress");
            kind != "IPAddress"
        });
        if let Some(odd) = odd {
            let kind = odd.type_.as_deref().unwrap_or_default();
            let message = format!("addresses of type {kind:?} are not supported");
            accepted = Fact::new("Accepted", false, "UnsupportedAddress", message);
        }
        let programmed = if accepted.status {
            Fact::new("Programmed", true, "Programmed", String::new())
        } else {
            Fact::new("Programmed", false, "Invalid", accepted.message.clone())
        };
        let wanted = addresses.iter().filter_map(|address| address.value.clone());
        GatewayStatus {
            key: self.gateway.metadata.key(),
            generation: self.gateway.metadata.generation,
            wanted: wanted.collect(),
            conditions: vec![accepted, programmed],
            listeners: self.listeners.into_iter().map(Bound::status).collect(),
        }
    }
}

// === impl Fact ===

impl Fact {
    pub fn new(type_: &'static str, status: bool, reason: &'static str, message: String) -> Self {
        Self {
            type_,
            status,
            reason,
            message,
        }
    }
}

/// May an object of `from` refer to one in another namespace? `from` and `to` are kinds; Gateways and HTTPRoutes refer to
/// Secrets and Services only, which are of the core group.
pub(super) fn is_granted(world: &World, from: (&str, &str), to: (&str, &Key)) -> bool {
    let ((from_kind, from_namespace), (to_kind, target)) = (from, to);
    if from_namespace == target.namespace {
        return true;
    }
    let grants = world
        .grants
        .iter()
        .filter(|grant| grant.metadata.namespace == target.namespace);
    grants.into_iter().any(|grant| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == GATEWAY_GROUP
                && from.kind == from_kind
                && from.namespace == from_namespace
        });
        let to = grant.spec.to.iter().any(|to| {
            to.group.is_empty()
                && to.kind == to_kind
                && to
                    .name
                    .as_deref()
                    .is_none_or(|n| n.is_empty() || n == target.name)
        });
        from && to
    })
}

/// May routes of `namespace` attach to a listener of a Gateway in `own`?
pub(super) fn allows(
    world: &World,
    allowed: Option<&AllowedRoutes>,
    own: &str,
    namespace: &str,
) -> bool {
    let namespaces = allowed.and_then(|allowed| allowed.namespaces.as_ref());
    let from = namespaces.and_then(|n| n.from.as_deref()).unwrap_or("Same");
    match from {
        "All" => true,
        "Same" => own == namespace,
        "Selector" => {
            let selector = namespaces.and_then(|n| n.selector.as_ref());
            match (selector, world.namespaces.get(namespace)) {
                (Some(selector), Some(labels)) => listener::selects(selector, labels),
                _ => false,
            }
        }
        _ => false,
    }
}

/// Hosts of `all` that are within `host`: others of the same Gateway that are more specific.
pub(super) fn more_specific(host: &HostPattern, all: &[HostPattern]) -> Vec<HostPattern> {
    let within = all.iter().filter(|other| other.is_within(host));
    within.cloned().collect()
}

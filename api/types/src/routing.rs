//! From Ingresses, and the kinds of the Gateway API, to one table of routes and to what their status should say. PURE:
//! nodes compile it to serve, the controller compiles the same to report. Never asks anybody, never answers a request.

pub mod annotations;
pub mod gateway_api;
pub mod origin;
pub mod path;
pub mod report;
pub mod table;

mod gateway;
mod grants;
mod ingress;
mod listener;
mod route;
mod status;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::well_known::INGRESS_CONTROLLER;

use self::gateway_api::{Gateway, GatewayClass, HttpRoute, Ingress, IngressClass, ReferenceGrant};
pub use self::grants::lets;
pub use self::status::{
    ClassStatus, Fact, GatewayStatus, ListenerStatus, ParentStatus, RouteStatus,
};
use self::table::{Door, PortRef, Table};

/// The ports of Ingresses.
pub const HTTP: u16 = 80;
pub const HTTPS: u16 = 443;

/// Namespace (empty for what has none) and name.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

/// Everything routes are made of, as it is known at one moment.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub ingress_classes: Vec<Arc<IngressClass>>,
    pub ingresses: Vec<Arc<Ingress>>,
    pub gateway_classes: Vec<Arc<GatewayClass>>,
    pub gateways: Vec<Arc<Gateway>>,
    pub routes: Vec<Arc<HttpRoute>>,
    pub grants: Vec<Arc<ReferenceGrant>>,
    /// Labels of each namespace.
    pub namespaces: HashMap<String, BTreeMap<String, String>>,
    /// What is known of Secrets; one that is not in it does not exist.
    pub secrets: HashMap<Key, Secret>,
    /// Ports by name and number. `None`: not known here, and every reference is taken to be good.
    pub services: Option<HashMap<Key, Vec<(String, u16)>>>,
    /// Those of them that are names of something outside: every number is a port there.
    pub external_names: HashSet<Key>,
}

/// Can it be used for TLS?
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Secret {
    Good,
    Bad(String),
}

/// What comes of a [`World`].
#[derive(Debug, Default)]
pub struct Compiled {
    pub table: Table,
    /// What users should be told of their objects, as Events.
    pub problems: Vec<Problem>,
    /// Secrets that are referred to, whether they exist or not.
    pub secrets: BTreeSet<Key>,
    /// Ingresses that are ours, and the ports that serve each.
    pub ingresses: Vec<(Key, Vec<u16>)>,
    pub classes: Vec<ClassStatus>,
    pub gateways: Vec<GatewayStatus>,
    pub routes: Vec<RouteStatus>,
    /// Kind and key of Ingresses and Gateways that nobody serves, here or elsewhere: they are of no class that exists.
    pub orphans: Vec<(&'static str, Key)>,
}

/// Something an object asks for that is not done.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Problem {
    /// `Ingress`, `IngressClass`, `Gateway`, `HTTPRoute`
    pub kind: &'static str,
    pub about: Key,
    pub reason: &'static str,
    pub message: String,
}

/// Reasons of [`Problem`]s: users script against them.
pub mod reason {
    pub const SECRET: &str = "InvalidCertificate";
    pub const BACKEND: &str = "BackendNotFound";
    pub const RESOURCE: &str = "ResourceBackendNotSupported";
    pub const CONFLICT: &str = "PathConflict";
    pub const CLASS: &str = "IngressClassNotFound";
    pub const ANNOTATION: &str = "AnnotationNotSupported";
    pub const REFUSED: &str = "IngressRefused";
    pub const PATH: &str = "InvalidPath";
    pub const PORT: &str = "PortConflict";
    pub const PARAMETERS: &str = "InvalidParameters";
    pub const UNSUPPORTED: &str = "UnsupportedValue";
}

/// Ports while they are built.
#[derive(Default)]
struct Doors(BTreeMap<u16, Door>);

/// Compiles everything. The same objects give the same table, whatever order they come in.
pub fn compile(world: &World) -> Compiled {
    let mut out = Compiled::default();
    let mut doors = Doors::default();
    ingress::compile(world, &mut doors, &mut out);
    gateway::compile(world, &mut doors, &mut out);
    for (port, mut door) in doors.0 {
        door.finish();
        out.table.doors.insert(port, Arc::new(door));
    }
    out
}

// === impl World ===

impl World {
    /// Names of IngressClasses that are ours.
    fn own_classes(&self) -> BTreeSet<&str> {
        let own = self
            .ingress_classes
            .iter()
            .filter(|class| class.spec.controller.as_deref() == Some(INGRESS_CONTROLLER));
        own.map(|class| class.metadata.name.as_str()).collect()
    }

    /// Why a Secret cannot be used, if so.
    fn secret_problem(&self, key: &Key) -> Option<String> {
        match self.secrets.get(key) {
            Some(Secret::Good) => None,
            Some(Secret::Bad(why)) => Some(format!("Secret {key} {why}")),
            None => Some(format!("Secret {key} does not exist")),
        }
    }

    /// Why a port of a Service cannot be used, if so.
    fn service_problem(&self, key: &Key, port: &PortRef) -> Option<String> {
        let services = self.services.as_ref()?;
        let Some(ports) = services.get(key) else {
            return Some(format!("Service {key} does not exist"));
        };
        let found = ports.iter().any(|(name, number)| match port {
            PortRef::Name(wanted) => name == wanted,
            PortRef::Number(wanted) => number == wanted,
        });
        let outside = matches!(port, PortRef::Number(_)) && self.external_names.contains(key);
        (!found && !outside).then(|| format!("Service {key} has no port {port}"))
    }
}

// === impl Doors ===

impl Doors {
    /// The door at a port, unless somebody has it for the other protocol.
    fn open(&mut self, port: u16, tls: bool) -> Option<&mut Door> {
        let door = self.0.entry(port).or_insert_with(|| Door {
            tls,
            ..Door::default()
        });
        (door.tls == tls).then_some(door)
    }
}

// === impl Key ===

impl Key {
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

impl std::fmt::Display for PortRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => write!(f, "{name:?}"),
        }
    }
}

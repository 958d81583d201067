//! What is said of GatewayClasses, Gateways and routes: conditions of the Gateway API's specification, before they have a time.

use super::Key;
use super::gateway_api::{ParentReference, RouteGroupKind};

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

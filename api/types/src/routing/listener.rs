//! One Gateway's listeners: which are valid, which conflict, what they show as certificates, which door each opens.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::gateway_api::{Gateway, Listener, RouteGroupKind};
use super::grants::is_granted;
use super::status::{Fact, GatewayStatus, ListenerStatus};
use super::table::{HostPattern, Shown};
use super::{Doors, Key, World};
use crate::well_known::GATEWAY_GROUP;

/// A listener and what became of it.
pub(super) struct Bound<'a> {
    pub(super) spec: &'a Listener,
    pub(super) port: u16,
    pub(super) tls: bool,
    pub(super) host: HostPattern,
    /// More specific listeners beside it.
    pub(super) not_for: Arc<Vec<HostPattern>>,
    pub(super) attached: i32,
    accepted: Fact,
    conflicted: Option<Fact>,
    resolved: Fact,
    /// None of its certificates can be used, or nothing of its Gateway is served.
    unusable: bool,
    kinds: Vec<RouteGroupKind>,
}

/// A Gateway of ours with its listeners.
pub(super) struct Ours<'a> {
    pub(super) gateway: &'a Arc<Gateway>,
    /// Why none of it is served.
    pub(super) refused: Option<Fact>,
    pub(super) listeners: Vec<Bound<'a>>,
}

// === impl Ours ===

impl Ours<'_> {
    pub(super) fn status(self) -> GatewayStatus {
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
        let accepted = self.refused.unwrap_or(accepted);
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

// === impl Bound ===

impl Bound<'_> {
    /// Accepted, without conflict, and able to serve: its references need not all be good.
    pub(super) fn serves(&self) -> bool {
        self.accepted.status && self.conflicted.is_none() && !self.unusable
    }

    pub(super) fn is_good(&self) -> bool {
        self.serves() && self.resolved.status
    }

    /// Do HTTPRoutes attach to it?
    pub(super) fn takes_routes(&self) -> bool {
        !self.kinds.is_empty()
    }

    pub(super) fn status(self) -> ListenerStatus {
        let programmed = if self.serves() {
            Fact::new("Programmed", true, "Programmed", String::new())
        } else {
            let message = "the listener is not valid".to_owned();
            Fact::new("Programmed", false, "Invalid", message)
        };
        let conflicted = self
            .conflicted
            .unwrap_or_else(|| Fact::new("Conflicted", false, "NoConflicts", String::new()));
        ListenerStatus {
            name: self.spec.name.clone(),
            port: self.port,
            tls: self.tls,
            supported_kinds: self.kinds,
            attached_routes: self.attached,
            conditions: vec![self.accepted, programmed, self.resolved, conflicted],
        }
    }
}

/// Judges all listeners of a Gateway and opens doors for those that can serve, if any may.
pub(super) fn bind<'a>(
    world: &World,
    gateway: &'a Gateway,
    serves: bool,
    doors: &mut Doors,
    secrets: &mut BTreeSet<Key>,
) -> Vec<Bound<'a>> {
    let all = &gateway.spec.listeners;
    let mut bound: Vec<Bound<'a>> = Vec::with_capacity(all.len());
    for spec in all {
        let tls = spec.protocol == "HTTPS";
        let port = u16::try_from(spec.port).unwrap_or(0);
        let host = HostPattern::parse(spec.hostname.as_deref());
        let (kinds, bad_kinds) = kinds(spec);
        let certificates = certificates(world, gateway, spec, tls, secrets);
        let mut accepted = accepted(spec);
        let conflicted = conflict(spec, all);
        if serves && accepted.status && conflicted.is_none() && doors.open(port, tls).is_none() {
            let message = format!("port {port} is taken for another protocol");
            accepted = Fact::new("Accepted", false, "PortUnavailable", message);
        }
        let resolved = match (&certificates, bad_kinds) {
            (_, true) => {
                let message = "only HTTPRoutes of gateway.networking.k8s.io attach here".to_owned();
                Fact::new("ResolvedRefs", false, "InvalidRouteKinds", message)
            }
            (Err((reason, message)), _) => {
                Fact::new("ResolvedRefs", false, reason, message.clone())
            }
            (Ok(_), false) => Fact::new("ResolvedRefs", true, "ResolvedRefs", String::new()),
        };
        let entry = Bound {
            spec,
            port,
            tls,
            host,
            not_for: Arc::default(),
            attached: 0,
            accepted,
            conflicted,
            resolved,
            unusable: !serves || certificates.is_err(),
            kinds,
        };
        if entry.serves()
            && let Some(door) = doors.open(port, tls)
            && let Ok(keys) = certificates
        {
            door.certificates
                .extend(keys.into_iter().map(|secret| Shown {
                    host: entry.host.clone(),
                    deep: true,
                    secret,
                }));
            if tls && !door.scopes.contains(&entry.host) {
                door.scopes.push(entry.host.clone());
            }
        }
        bound.push(entry);
    }
    let hosts: Vec<_> = bound
        .iter()
        .filter(|entry| entry.serves())
        .map(|entry| (entry.port, entry.host.clone()))
        .collect();
    for entry in &mut bound {
        let beside = hosts.iter().filter(|(port, _)| *port == entry.port);
        let beside: Vec<_> = beside.map(|(_, host)| host.clone()).collect();
        entry.not_for = Arc::new(more_specific(&entry.host, &beside));
    }
    bound
}

/// Hosts of `all` that are within `host`: others of the same Gateway that are more specific.
fn more_specific(host: &HostPattern, all: &[HostPattern]) -> Vec<HostPattern> {
    let within = all.iter().filter(|other| other.is_within(host));
    within.cloned().collect()
}

fn accepted(spec: &Listener) -> Fact {
    let no = |reason, message: String| Fact::new("Accepted", false, reason, message);
    if !matches!(spec.protocol.as_str(), "HTTP" | "HTTPS") {
        let message = format!("protocol {:?} is not supported", spec.protocol);
        return no("UnsupportedProtocol", message);
    }
    let tls = spec.tls.as_ref();
    match tls.and_then(|tls| tls.mode.as_deref()) {
        Some(mode) if mode != "Terminate" => {
            let message = format!("tls.mode {mode:?} is not supported");
            return no("UnsupportedValue", message);
        }
        _ => {}
    }
    // Perhaps the least version of TLS: serving without it would be less than was asked for.
    match tls.and_then(|tls| tls.options.keys().next()) {
        Some(option) => no(
            "UnsupportedValue",
            format!("tls.options {option:?} is not supported"),
        ),
        None => Fact::new("Accepted", true, "Accepted", String::new()),
    }
}

/// Another listener of the same Gateway that wants the same.
fn conflict(spec: &Listener, all: &[Listener]) -> Option<Fact> {
    let others = all
        .iter()
        .filter(|other| other.name != spec.name && other.port == spec.port);
    let conflict = |reason, other: &Listener| {
        let message = format!("listener {:?} wants the same port and host", other.name);
        Some(Fact::new("Conflicted", true, reason, message))
    };
    for other in others {
        if other.protocol != spec.protocol {
            return conflict("ProtocolConflict", other);
        }
        let host = |l: &Listener| HostPattern::parse(l.hostname.as_deref());
        if host(other) == host(spec) {
            return conflict("HostnameConflict", other);
        }
    }
    None
}

/// Kinds of routes that attach, and whether others were asked for.
fn kinds(spec: &Listener) -> (Vec<RouteGroupKind>, bool) {
    let own = RouteGroupKind {
        group: Some(GATEWAY_GROUP.to_owned()),
        kind: "HTTPRoute".to_owned(),
    };
    let asked = spec.allowed_routes.as_ref().map_or(&[][..], |a| &a.kinds);
    if asked.is_empty() {
        let serves = matches!(spec.protocol.as_str(), "HTTP" | "HTTPS");
        return (if serves { vec![own] } else { Vec::new() }, false);
    }
    let is_own = |kind: &&RouteGroupKind| {
        let group = kind.group.as_deref().unwrap_or(GATEWAY_GROUP);
        group == GATEWAY_GROUP && kind.kind == own.kind
    };
    let good = asked.iter().filter(is_own).count();
    let bad = good < asked.len();
    (if good > 0 { vec![own] } else { Vec::new() }, bad)
}

/// The Secrets of a listener, or the reason and message of the first that cannot be used.
fn certificates(
    world: &World,
    gateway: &Gateway,
    spec: &Listener,
    tls: bool,
    secrets: &mut BTreeSet<Key>,
) -> Result<Vec<Key>, (&'static str, String)> {
    if !tls {
        return Ok(Vec::new());
    }
    let references = spec
        .tls
        .as_ref()
        .map_or(&[][..], |tls| &tls.certificate_refs);
    if references.is_empty() {
        let message = "tls.certificateRefs names no Secret".to_owned();
        return Err(("InvalidCertificateRef", message));
    }
    let mut good = Vec::new();
    for reference in references {
        let kind = reference.kind.as_deref().unwrap_or("Secret");
        let group = reference.group.as_deref().unwrap_or_default();
        if kind != "Secret" || !group.is_empty() {
            let message = format!(
                "certificate reference to {kind} {:?} of group {group:?}: only Secrets are supported",
                reference.name
            );
            return Err(("InvalidCertificateRef", message));
        }
        let own = &gateway.metadata.namespace;
        let namespace = reference.namespace.as_deref().unwrap_or(own);
        let key = Key::new(namespace, &reference.name);
        if !is_granted(world, ("Gateway", own), ("Secret", &key)) {
            let message = format!(
                "no ReferenceGrant in namespace {namespace:?} lets Gateways of {own:?} use Secret {key}"
            );
            return Err(("RefNotPermitted", message));
        }
        secrets.insert(key.clone());
        if let Some(why) = world.secret_problem(&key) {
            return Err(("InvalidCertificateRef", why));
        }
        good.push(key);
    }
    Ok(good)
}

//! Cluster IPs and node ports: chosen here, recorded in the same commit as the Service, so two can never hold the same.
//!
//! A cluster IP is a stored `networking.k8s.io/v1` IPAddress, created `Absent`. A node port is an internal record of
//! resource [`NODE_PORTS`], never served. A conflict on a record makes the caller ask again.
//!
//! As upstream, unasked choices avoid the low end of a range, which is for addresses people write down:
//! 10.96.0.0/16 keeps 10.96.0.1 … 10.96.1.0 (256), 30000–32767 keeps 30000–30085 (86).

use std::net::{Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::{has_cluster_ip, is_headless, wants_health_port, wants_node_ports};
use crate::kinds::path::put;
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::{Cause, Error};
use crate::store::{Change, Draft, Expect, Index, Key, Operation, Stored};

/// Storage name of the internal records of node ports; name = the port's digits.
pub(super) const NODE_PORTS: &str = "nodeports";
const ADDRESSES: &str = "networking.k8s.io/ipaddresses";
const TAKEN_IP: &str = "provided IP is already allocated";
pub(super) const TAKEN_PORT: &str = "provided port is already allocated";

pub(super) fn allocate(
    new: &mut Object,
    old: Option<&Object>,
    lookup: &dyn Lookup,
) -> Result<Vec<Operation>, Error> {
    let mut operations = Vec::new();
    let owner = owner(new);
    allocate_cluster_ip(new, old, lookup, &owner, &mut operations)?;
    allocate_node_ports(new, old, lookup, &owner, &mut operations)?;
    if let Some(old) = old {
        release_what_is_gone(new, old, lookup, &owner, &mut operations);
    }
    Ok(operations)
}

pub(super) fn release(old: &Object, lookup: &dyn Lookup) -> Vec<Operation> {
    let owner = owner(old);
    let mut operations = Vec::new();
    for ip in addresses(old) {
        free(ADDRESSES, &ip.to_string(), &owner, lookup, &mut operations);
    }
    for port in ports(old) {
        free(
            NODE_PORTS,
            &port.to_string(),
            &owner,
            lookup,
            &mut operations,
        );
    }
    operations
}

/// Who holds a record: `namespace/name`.
fn owner(service: &Object) -> (String, String) {
    (service.namespace().to_owned(), service.name().to_owned())
}

/// Cluster IPs of a Service that are addresses.
fn addresses(service: &Object) -> Vec<Ipv4Addr> {
    let ips = service.list_at(&["spec", "clusterIPs"]).iter();
    ips.filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

/// Node ports a Service holds, each once.
fn ports(service: &Object) -> Vec<u16> {
    let listed = service.list_at(&["spec", "ports"]).iter();
    let health = service.i64_at(&["spec", "healthCheckNodePort"]);
    let mut ports: Vec<u16> = listed
        .filter_map(|port| port["nodePort"].as_i64())
        .chain(health)
        .filter_map(|port| u16::try_from(port).ok().filter(|port| *port != 0))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

fn invalid(service: &Object, cause: Cause) -> Error {
    Error::invalid("", "Service", service.name(), vec![cause])
}

// === Cluster IPs ===

fn allocate_cluster_ip(
    new: &mut Object,
    old: Option<&Object>,
    lookup: &dyn Lookup,
    owner: &(String, String),
    operations: &mut Vec<Operation>,
) -> Result<(), Error> {
    if !has_cluster_ip(new) {
        return Ok(());
    }
    families(new)?;
    if is_headless(new) {
        return Ok(());
    }
    let held = old.map(addresses).unwrap_or_default();
    let wanted = new.list_at(&["spec", "clusterIPs"]).to_vec();
    let address = match wanted.first().and_then(Value::as_str) {
        Some(text) => match text.parse::<Ipv4Addr>() {
            // It is the only one: `families` and validation have seen to that.
            Ok(ip) if held.contains(&ip) && wanted.len() == 1 => return Ok(()),
            Ok(ip) => {
                requested_ip(new, ip, &wanted, lookup)?;
                ip
            }
            Err(_) => return Ok(()),
        },
        None => pick_ip(lookup)
            .ok_or_else(|| Error::internal("failed to allocate a serviceIP: range is full"))?,
    };
    new.set(&["spec", "clusterIP"], address.to_string().into());
    new.set(&["spec", "clusterIPs"], json!([address.to_string()]));
    operations.push(address_record(address, owner, lookup));
    Ok(())
}

/// One family, IPv4: what asks for more is told so.
fn families(new: &mut Object) -> Result<(), Error> {
    if new.str_at(&["spec", "ipFamilyPolicy"]) == Some("RequireDualStack") {
        let why = "this cluster is not configured for dual-stack services";
        let cause = Cause::invalid("spec.ipFamilyPolicy", &"RequireDualStack".into(), why);
        return Err(invalid(new, cause));
    }
    let families = new.list_at(&["spec", "ipFamilies"]);
    if let Some(at) = families.iter().position(|family| family != "IPv4") {
        let field = format!("spec.ipFamilies[{at}]");
        let cause = Cause::invalid(field, &families[at], "not configured on this cluster");
        return Err(invalid(new, cause));
    }
    let ips = new.list_at(&["spec", "clusterIPs"]);
    let other = |ip: &Value| ip.as_str().is_some_and(|ip| ip.parse::<Ipv6Addr>().is_ok());
    if let Some(at) = ips.iter().position(other) {
        let why = "IPv6 is not configured on this cluster";
        let cause = Cause::invalid(format!("spec.clusterIPs[{at}]"), &ips[at], why);
        return Err(invalid(new, cause));
    }
    new.set_default(&["spec", "ipFamilies"], json!(["IPv4"]));
    new.set_default(&["spec", "ipFamilyPolicy"], "SingleStack".into());
    Ok(())
}

fn requested_ip(
    new: &Object,
    ip: Ipv4Addr,
    wanted: &[Value],
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    let range = lookup.service_cidr();
    let why = if !range.contains(&ip) || ip == range.network() || ip == range.broadcast() {
        format!(
            "the provided IP ({ip}) is not in the valid range. The range of valid IPs is {range}"
        )
    } else if lookup
        .get(&Key::new(ADDRESSES, "", &ip.to_string()))
        .is_some()
    {
        TAKEN_IP.to_owned()
    } else {
        return Ok(());
    };
    let why = format!("failed to allocate IP {ip}: {why}");
    let cause = Cause::invalid("spec.clusterIPs", &Value::Array(wanted.to_vec()), &why);
    Err(invalid(new, cause))
}

/// A free address, from the upper part of the range while that has one.
fn pick_ip(lookup: &dyn Lookup) -> Option<Ipv4Addr> {
    let range = lookup.service_cidr();
    let base = u32::from(range.network());
    let usable = (u32::from(range.broadcast()) - base).saturating_sub(1);
    let offset = if usable < 16 {
        0
    } else {
        (usable / 16).clamp(16, 256)
    };
    let free = |n: u32| {
        let ip = Ipv4Addr::from(base + 1 + n);
        let taken = lookup
            .get(&Key::new(ADDRESSES, "", &ip.to_string()))
            .is_some();
        (!taken).then_some(ip)
    };
    pick(usable, offset, lookup.random(), free)
}

/// Tries `offset..size` from a random start on, then `0..offset`.
fn pick<T>(size: u32, offset: u32, random: u64, free: impl Fn(u32) -> Option<T>) -> Option<T> {
    let upper = size.saturating_sub(offset);
    let start = random.checked_rem(u64::from(upper)).unwrap_or(0);
    let start = u32::try_from(start).unwrap_or(0);
    let in_upper = (0..upper).map(|n| offset + (start + n) % upper);
    in_upper.chain(0..offset.min(size)).find_map(free)
}

fn address_record(ip: Ipv4Addr, owner: &(String, String), lookup: &dyn Lookup) -> Operation {
    let uid = uuid(lookup);
    let object = json!({
        "kind": "IPAddress",
        "apiVersion": "networking.k8s.io/v1",
        "metadata": {
            "name": ip.to_string(),
            "uid": uid,
            "creationTimestamp": lookup.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "labels": {
                "ipaddress.kubernetes.io/ip-family": "IPv4",
                "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io",
            },
        },
        "spec": {"parentRef": {"group": "", "resource": "services", "namespace": owner.0, "name": owner.1}},
    });
    Operation {
        key: Key::new(ADDRESSES, "", &ip.to_string()),
        expect: Expect::Absent,
        change: Change::Put(draft(object)),
    }
}

fn uuid(lookup: &dyn Lookup) -> String {
    let bytes = (u128::from(lookup.random()) << 64) | u128::from(lookup.random());
    uuid::Builder::from_random_bytes(bytes.to_be_bytes())
        .into_uuid()
        .to_string()
}

// === Node ports ===

fn allocate_node_ports(
    new: &mut Object,
    old: Option<&Object>,
    lookup: &dyn Lookup,
    owner: &(String, String),
    operations: &mut Vec<Operation>,
) -> Result<(), Error> {
    let held = old.map(ports).unwrap_or_default();
    let mut mine: Vec<u16> = held.clone();
    let listed = new.list_at(&["spec", "ports"]).to_vec();
    for (i, port) in listed.iter().enumerate() {
        let field = format!("spec.ports[{i}].nodePort");
        if let Some(asked) = requested_port(new, &port["nodePort"], &field, lookup, &mine)? {
            mine.push(asked);
            operations.push(port_record(asked, owner));
        }
    }
    let health = new
        .at(&["spec", "healthCheckNodePort"])
        .cloned()
        .unwrap_or_default();
    if let Some(asked) = requested_port(new, &health, "spec.healthCheckNodePort", lookup, &mine)? {
        mine.push(asked);
        operations.push(port_record(asked, owner));
    }
    let mut take = |new: &mut Object, path: Take| -> Result<(), Error> {
        let port = pick_port(lookup, &mine)
            .ok_or_else(|| Error::internal("failed to allocate a nodePort: range is full"))?;
        mine.push(port);
        operations.push(port_record(port, owner));
        match path {
            Take::Port(at) => {
                if let Some(slot) = new
                    .at_mut(&["spec", "ports"])
                    .and_then(|ports| ports.get_mut(at))
                {
                    put(slot, "nodePort", port);
                }
            }
            Take::Health => new.set(&["spec", "healthCheckNodePort"], port.into()),
        }
        Ok(())
    };
    if wants_node_ports(new) {
        // TCP and UDP of one port number share a node port, as upstream: DNS is the case.
        for at in 0..listed.len() {
            if number(&listed[at]["nodePort"]) != 0 {
                continue;
            }
            let twin = (0..at).find(|other| {
                listed[*other]["port"] == listed[at]["port"]
                    && listed[*other]["protocol"] != listed[at]["protocol"]
            });
            let shared = twin.map(|twin| new.list_at(&["spec", "ports"])[twin]["nodePort"].clone());
            match shared.filter(|port| number(port) != 0) {
                Some(port) => {
                    if let Some(slot) = new
                        .at_mut(&["spec", "ports"])
                        .and_then(|ports| ports.get_mut(at))
                    {
                        put(slot, "nodePort", port);
                    }
                }
                None => take(new, Take::Port(at))?,
            }
        }
    }
    if wants_health_port(new) && number(&health) == 0 {
        take(new, Take::Health)?;
    }
    Ok(())
}

enum Take {
    Port(usize),
    Health,
}

fn number(value: &Value) -> i64 {
    value.as_i64().unwrap_or(0)
}

/// The port a client asked for, if it is not held already; refused when it is out of range or another's.
fn requested_port(
    new: &Object,
    asked: &Value,
    field: &str,
    lookup: &dyn Lookup,
    mine: &[u16],
) -> Result<Option<u16>, Error> {
    let asked_number = number(asked);
    if asked_number == 0 {
        return Ok(None);
    }
    let range = lookup.node_ports();
    let port = u16::try_from(asked_number)
        .ok()
        .filter(|port| range.contains(port));
    let why = match port {
        Some(port) if mine.contains(&port) => return Ok(None),
        Some(port)
            if lookup
                .get(&Key::new(NODE_PORTS, "", &port.to_string()))
                .is_none() =>
        {
            return Ok(Some(port));
        }
        Some(_) => TAKEN_PORT.to_owned(),
        None => format!(
            "provided port is not in the valid range. The range of valid ports is {}-{}",
            range.start(),
            range.end()
        ),
    };
    Err(invalid(new, Cause::invalid(field, asked, &why)))
}

fn pick_port(lookup: &dyn Lookup, mine: &[u16]) -> Option<u16> {
    let range = lookup.node_ports();
    let size = u32::from(*range.end()) - u32::from(*range.start()) + 1;
    let offset = if size < 32 {
        0
    } else {
        (size / 32).clamp(16, 128)
    };
    let free = |n: u32| {
        let port = range.start() + u16::try_from(n).ok()?;
        let taken = mine.contains(&port)
            || lookup
                .get(&Key::new(NODE_PORTS, "", &port.to_string()))
                .is_some();
        (!taken).then_some(port)
    };
    pick(size, offset, lookup.random(), free)
}

fn port_record(port: u16, owner: &(String, String)) -> Operation {
    let object = json!({
        "kind": "NodePort",
        "apiVersion": "internal",
        "metadata": {"name": port.to_string()},
        "spec": {"parentRef": {"resource": "services", "namespace": owner.0, "name": owner.1}},
    });
    Operation {
        key: Key::new(NODE_PORTS, "", &port.to_string()),
        expect: Expect::Absent,
        change: Change::Put(draft(object)),
    }
}

// === Release ===

fn release_what_is_gone(
    new: &Object,
    old: &Object,
    lookup: &dyn Lookup,
    owner: &(String, String),
    operations: &mut Vec<Operation>,
) {
    let kept = addresses(new);
    for ip in addresses(old).into_iter().filter(|ip| !kept.contains(ip)) {
        free(ADDRESSES, &ip.to_string(), owner, lookup, operations);
    }
    let kept = ports(new);
    for port in ports(old).into_iter().filter(|port| !kept.contains(port)) {
        free(NODE_PORTS, &port.to_string(), owner, lookup, operations);
    }
}

/// Deletes the record `name` if it is this owner's.
fn free(
    resource: &str,
    name: &str,
    owner: &(String, String),
    lookup: &dyn Lookup,
    operations: &mut Vec<Operation>,
) {
    let key = Key::new(resource, "", name);
    let Some(stored) = lookup.get(&key) else {
        return;
    };
    let object: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
    let parent = &object["spec"]["parentRef"];
    if parent["namespace"] == owner.0 && parent["name"] == owner.1 {
        operations.push(delete(&stored, object));
    }
}

fn delete(stored: &Stored, object: Value) -> Operation {
    Operation {
        key: stored.key.clone(),
        expect: Expect::At(stored.revision),
        change: Change::Delete(draft(object)),
    }
}

/// The two halves round the revision. Metadata comes last so that `resourceVersion` can come last in it.
fn draft(mut object: Value) -> Draft {
    let mut metadata = object["metadata"].take();
    if let Value::Object(metadata) = &mut metadata {
        metadata.remove("resourceVersion");
    }
    let text = |key: &str| metadata[key].as_str().unwrap_or_default();
    let labels = metadata["labels"].as_object().into_iter().flatten();
    let index = Index {
        uid: text("uid").into(),
        labels: labels
            .map(|(key, value)| {
                (
                    key.as_str().into(),
                    value.as_str().unwrap_or_default().into(),
                )
            })
            .collect(),
        fields: Box::default(),
    };
    let metadata = metadata.to_string();
    let open = metadata.strip_suffix('}').unwrap_or(&metadata);
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{open},\"resourceVersion\":\"",
        object["kind"], object["apiVersion"]
    );
    let tail = format!("\"}},\"spec\":{}}}", object["spec"]);
    Draft {
        head: head.into(),
        tail: tail.into(),
        index,
    }
}

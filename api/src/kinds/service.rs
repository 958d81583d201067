//! Services: what each type means for addresses and ports, and which of them an update may change.
//!
//! `allocate` has the part that only the cluster can choose: cluster IPs and node ports.

mod allocate;
mod validate;

use serde_json::{Value, json};

use super::path::{put, walk_mut};
use super::rules::Literal::Text;
use super::rules::Rules;
use super::strategy::{Door, NameRule};
use crate::object::Object;

pub static SERVICE: Rules = Rules {
    defaults: &[
        ("spec.sessionAffinity", Text("None")),
        ("spec.type", Text("ClusterIP")),
        ("spec.ports[].protocol", Text("TCP")),
    ],
    default,
    status: r#"{"loadBalancer":{}}"#,
    prepare,
    checks: validate::CHECKS,
    validate: validate::validate,
    allocates: true,
    allocate: allocate::allocate,
    release: allocate::release,
    fields: &["spec.clusterIP", "spec.type"],
    name: NameRule::Label1035,
    create_on_update: true,
    returns_deleted: true,
    ..Rules::NEW
};

/// `None` as an address: the service is headless.
const HEADLESS: &str = "None";

// === What a type means ===

fn kind_of(service: &Object) -> &str {
    service.str_at(&["spec", "type"]).unwrap_or_default()
}

fn has_cluster_ip(service: &Object) -> bool {
    matches!(kind_of(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Reached from outside the cluster.
fn is_external(service: &Object) -> bool {
    matches!(kind_of(service), "NodePort" | "LoadBalancer")
}

/// Every port gets a node port.
fn wants_node_ports(service: &Object) -> bool {
    let refused =
        service.at(&["spec", "allocateLoadBalancerNodePorts"]) == Some(&Value::Bool(false));
    kind_of(service) == "NodePort" || (kind_of(service) == "LoadBalancer" && !refused)
}

/// A load balancer that keeps traffic local asks each node's health at a port of its own.
fn wants_health_port(service: &Object) -> bool {
    kind_of(service) == "LoadBalancer"
        && service.str_at(&["spec", "externalTrafficPolicy"]) == Some("Local")
}

fn is_headless(service: &Object) -> bool {
    service.str_at(&["spec", "clusterIP"]) == Some(HEADLESS)
}

// === Defaults ===

fn default(new: &mut Object) {
    if new.str_at(&["spec", "sessionAffinity"]) == Some("ClientIP") {
        let path = [
            "spec",
            "sessionAffinityConfig",
            "clientIP",
            "timeoutSeconds",
        ];
        new.set_default(&path, 10800.into());
    }
    walk_mut(
        new.at_mut(&["spec"]).unwrap_or(&mut Value::Null),
        "ports[]",
        &mut default_target_port,
    );
    walk_mut(
        new.at_mut(&["status", "loadBalancer"])
            .unwrap_or(&mut Value::Null),
        "ingress[]",
        &mut default_ip_mode,
    );
    if has_cluster_ip(new) {
        new.set_default(&["spec", "internalTrafficPolicy"], "Cluster".into());
    }
    if is_external(new) {
        new.set_default(&["spec", "externalTrafficPolicy"], "Cluster".into());
    }
    if kind_of(new) == "LoadBalancer" {
        new.set_default(&["spec", "allocateLoadBalancerNodePorts"], true.into());
    }
}

/// An address whose writer does not know `ipMode` is the Service's own.
fn default_ip_mode(ingress: &mut Value) {
    let Value::Object(ingress) = ingress else {
        return;
    };
    let has = |key: &str| {
        ingress
            .get(key)
            .is_some_and(|value| !value.is_null() && value != "")
    };
    if has("ip") && !has("ipMode") {
        ingress.insert("ipMode".to_owned(), "VIP".into());
    }
}

fn default_target_port(port: &mut Value) {
    let Value::Object(port) = port else { return };
    let unset = match port.get("targetPort") {
        None | Some(Value::Null) => true,
        Some(Value::String(name)) => name.is_empty(),
        Some(number) => *number == 0,
    };
    if let (true, Some(number)) = (unset, port.get("port").cloned()) {
        port.insert("targetPort".to_owned(), number);
    }
}

// === Prepare ===

fn prepare(new: &mut Object, old: Option<&Object>, door: Door<'_>) {
    if door == Door::Subresource("status") {
        return;
    }
    normalize_cluster_ips(new, old);
    if let Some(old) = old {
        keep_allocated(new, old);
        drop_with_type(new, old);
    }
}

/// `clusterIP` is the first of `clusterIPs`. A client that knows only the one field is understood.
fn normalize_cluster_ips(new: &mut Object, old: Option<&Object>) {
    let one = |service: &Object| {
        service
            .str_at(&["spec", "clusterIP"])
            .unwrap_or_default()
            .to_owned()
    };
    let many = |service: &Object| service.list_at(&["spec", "clusterIPs"]).to_vec();
    let (ip, ips) = (one(new), many(new));
    let Some(old) = old else {
        if !ip.is_empty() && ips.is_empty() {
            new.set(&["spec", "clusterIPs"], json!([ip]));
        }
        return;
    };
    let (old_ip, old_ips) = (one(old), many(old));
    if ip == old_ip || !(ips == old_ips || ips.is_empty()) {
        return;
    }
    if ip.is_empty() {
        new.remove(&["spec", "clusterIPs"]);
    } else {
        new.set(&["spec", "clusterIPs"], json!([ip]));
    }
}

/// What was allocated stays when an update leaves it out.
fn keep_allocated(new: &mut Object, old: &Object) {
    if has_cluster_ip(new) && has_cluster_ip(old) {
        let unset = |service: &Object| {
            service
                .str_at(&["spec", "clusterIP"])
                .is_none_or(str::is_empty)
                && service.list_at(&["spec", "clusterIPs"]).is_empty()
        };
        if unset(new) {
            copy(new, old, "clusterIP");
            copy(new, old, "clusterIPs");
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if new.at(&["spec", key]).is_none_or(Value::is_null) {
                copy(new, old, key);
            }
        }
    }
    if wants_node_ports(new) && wants_node_ports(old) {
        keep_node_ports(new, old);
    }
    if wants_health_port(new)
        && wants_health_port(old)
        && new.i64_at(&["spec", "healthCheckNodePort"]).unwrap_or(0) == 0
    {
        copy(new, old, "healthCheckNodePort");
    }
}

fn copy(new: &mut Object, old: &Object, key: &str) {
    if let Some(value) = old.at(&["spec", key]) {
        new.set(&["spec", key], value.clone());
    }
}

/// A port that keeps protocol and number keeps its node port, unless another port of the update asks for that one.
fn keep_node_ports(new: &mut Object, old: &Object) {
    let number = |port: &Value| port["nodePort"].as_i64().unwrap_or(0);
    let same = |a: &Value, b: &Value| a["port"] == b["port"] && a["protocol"] == b["protocol"];
    let mut asked: Vec<i64> = new.list_at(&["spec", "ports"]).iter().map(number).collect();
    let old_ports = old.list_at(&["spec", "ports"]);
    let ports = new.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten() {
        if number(port) != 0 {
            continue;
        }
        let before = old_ports
            .iter()
            .find(|other| same(other, port))
            .map_or(0, number);
        if before != 0 && !asked.contains(&before) {
            asked.push(before);
            put(port, "nodePort", before);
        }
    }
}

/// What only the old type has goes with it, unless the update changed it (then validation will speak).
fn drop_with_type(new: &mut Object, old: &Object) {
    let same = |new: &Object, key: &str| new.at(&["spec", key]) == old.at(&["spec", key]);
    let lost_ip = has_cluster_ip(old) && !has_cluster_ip(new);
    if wants_node_ports(old) && !wants_node_ports(new) && kind_of(new) != "LoadBalancer" {
        drop_node_ports(new, old);
    }
    let lost_balancer = kind_of(old) == "LoadBalancer" && kind_of(new) != "LoadBalancer";
    let sticky =
        |service: &Object| service.str_at(&["spec", "sessionAffinity"]) == Some("ClientIP");
    let lost: [(bool, &[&str]); 5] = [
        (
            lost_ip,
            &[
                "clusterIP",
                "clusterIPs",
                "ipFamilies",
                "ipFamilyPolicy",
                "internalTrafficPolicy",
            ],
        ),
        (
            wants_health_port(old) && !wants_health_port(new),
            &["healthCheckNodePort"],
        ),
        (
            is_external(old) && !is_external(new),
            &["externalTrafficPolicy"],
        ),
        (
            lost_balancer,
            &["allocateLoadBalancerNodePorts", "loadBalancerClass"],
        ),
        (sticky(old) && !sticky(new), &["sessionAffinityConfig"]),
    ];
    for (gone, keys) in lost {
        for key in keys.iter().filter(|_| gone) {
            if same(new, key) {
                new.remove(&["spec", key]);
            }
        }
    }
}

/// Node ports that are as they were go; new ones stay for validation to refuse.
fn drop_node_ports(new: &mut Object, old: &Object) {
    let numbers = |service: &Object| -> Vec<i64> {
        let ports = service.list_at(&["spec", "ports"]).iter();
        ports
            .filter_map(|port| port["nodePort"].as_i64())
            .filter(|port| *port != 0)
            .collect()
    };
    if numbers(new).iter().any(|port| !numbers(old).contains(port)) {
        return;
    }
    let ports = new.at_mut(&["spec", "ports"]).and_then(Value::as_array_mut);
    for port in ports.into_iter().flatten().filter_map(Value::as_object_mut) {
        port.remove("nodePort");
    }
}

#[cfg(test)]
mod tests;

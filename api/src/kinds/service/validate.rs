//! What is wrong with a Service, in upstream's words. Pure; whether an address is free is `allocate`'s business.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::allocate::TAKEN_PORT;
use super::{HEADLESS, has_cluster_ip, is_external, is_headless, kind_of, wants_health_port};
use crate::kinds::names;
use crate::kinds::path::Path;
use crate::kinds::pod_spec::port_or_name;
use crate::kinds::rules::Check::{Between, Labels, Name, NameOrEmpty, OneOf, Port, Required, With};
use crate::kinds::rules::Checks;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::status::Cause;

pub(super) const CHECKS: Checks = &[
    (
        "spec.type",
        OneOf(&["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]),
    ),
    ("spec.ports[].name", NameOrEmpty(names::dns_label)),
    ("spec.ports[].port", Port),
    ("spec.ports[].protocol", Required),
    ("spec.ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
    ("spec.ports[].targetPort", With(port_or_name)),
    ("spec.ports[].nodePort", Between(0, 65535)),
    ("spec.selector", Labels),
    ("spec.sessionAffinity", Required),
    ("spec.sessionAffinity", OneOf(&["ClientIP", "None"])),
    (
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        With(|path, value, causes| {
            if value
                .as_i64()
                .is_some_and(|seconds| !(1..=86400).contains(&seconds))
            {
                let why = "must be greater than 0 and less than 86400";
                causes.push(Cause::invalid(path, value, why));
            }
        }),
    ),
    (
        "spec.ports[].appProtocol",
        NameOrEmpty(names::qualified_name),
    ),
    ("spec.externalIPs[]", Name(names::ip_of_somebody)),
    ("spec.loadBalancerIP", NameOrEmpty(names::ip)),
    ("spec.loadBalancerSourceRanges[]", Name(names::cidr)),
    ("spec.loadBalancerClass", Name(names::qualified_name)),
    ("spec.externalTrafficPolicy", OneOf(&["Cluster", "Local"])),
    ("spec.internalTrafficPolicy", OneOf(&["Cluster", "Local"])),
    (
        "spec.ipFamilyPolicy",
        OneOf(&["SingleStack", "PreferDualStack", "RequireDualStack"]),
    ),
    ("spec.ipFamilies[]", OneOf(&["IPv4", "IPv6"])),
    (
        "spec.trafficDistribution",
        OneOf(&["PreferClose", "PreferSameNode", "PreferSameZone"]),
    ),
];

pub(super) fn validate(
    new: &Object,
    old: Option<&Object>,
    door: Door<'_>,
    causes: &mut Vec<Cause>,
) {
    if door == Door::Subresource("status") {
        return;
    }
    let headless = is_headless(new);
    if !headless && kind_of(new) != "ExternalName" && new.list_at(&["spec", "ports"]).is_empty() {
        causes.push(Cause::required("spec.ports", ""));
    }
    validate_type(new, causes);
    validate_ports(new, causes);
    validate_policies(new, causes);
    validate_cluster_ips(new, causes);
    if let Some(old) = old {
        validate_update(new, old, causes);
    }
}

fn validate_type(new: &Object, causes: &mut Vec<Cause>) {
    match kind_of(new) {
        "LoadBalancer" | "NodePort" if is_headless(new) => {
            let noun = kind_of(new);
            let why = format!("may not be set to 'None' for {noun} services");
            causes.push(Cause::invalid("spec.clusterIPs[0]", &HEADLESS.into(), &why));
        }
        "ExternalName" => {
            if !new.list_at(&["spec", "clusterIPs"]).is_empty() {
                let why = "may not be set for ExternalName services";
                causes.push(Cause::forbidden("spec.clusterIPs", why));
            }
            let name = new.str_at(&["spec", "externalName"]).unwrap_or_default();
            let name = name.strip_suffix('.').unwrap_or(name);
            if name.is_empty() {
                causes.push(Cause::required("spec.externalName", ""));
            } else {
                for why in names::dns_subdomain(name) {
                    causes.push(Cause::invalid("spec.externalName", &name.into(), &why));
                }
            }
        }
        _ => {}
    }
}

fn validate_ports(new: &Object, causes: &mut Vec<Cause>) {
    let spec = Path::ROOT.key("spec");
    let path = spec.key("ports");
    let ports = new.list_at(&["spec", "ports"]);
    let may_have_node_ports = is_external(new);
    let (mut names, mut taken, mut node_ports) = (Vec::new(), Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let path = path.index(i);
        let name = port["name"].as_str().unwrap_or_default();
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(path.key("name"), ""));
        } else if !name.is_empty() && names.contains(&name) {
            causes.push(Cause::duplicate(path.key("name"), &name.into()));
        }
        names.push(name);
        let protocol = port["protocol"].as_str().unwrap_or_default();
        let number = port["port"].as_i64().unwrap_or(0);
        if taken.contains(&(protocol, number)) {
            let value = json!({"protocol": protocol, "port": number});
            causes.push(Cause::duplicate(path, &value));
        }
        taken.push((protocol, number));
        let node_port = port["nodePort"].as_i64().unwrap_or(0);
        if node_port == 0 {
            continue;
        }
        if !may_have_node_ports {
            let why = format!("may not be used when `type` is '{}'", kind_of(new));
            causes.push(Cause::forbidden(path.key("nodePort"), &why));
        }
        if node_ports.contains(&(protocol, node_port)) {
            causes.push(Cause::duplicate(path.key("nodePort"), &node_port.into()));
        }
        node_ports.push((protocol, node_port));
    }
}

fn validate_policies(new: &Object, causes: &mut Vec<Cause>) {
    let external = new
        .at(&["spec", "externalTrafficPolicy"])
        .filter(|policy| !policy.is_null());
    if let Some(policy) = external
        && !is_external(new)
        && new.list_at(&["spec", "externalIPs"]).is_empty()
    {
        let why = "may only be set for externally-accessible services";
        causes.push(Cause::invalid("spec.externalTrafficPolicy", policy, why));
    }
    let health = new.i64_at(&["spec", "healthCheckNodePort"]).unwrap_or(0);
    if health != 0 && !wants_health_port(new) {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        causes.push(Cause::invalid(
            "spec.healthCheckNodePort",
            &health.into(),
            why,
        ));
    }
    let ports = new.list_at(&["spec", "ports"]).iter();
    let mut taken = ports.filter_map(|port| port["nodePort"].as_i64());
    if health != 0 && taken.any(|port| port == health) {
        causes.push(Cause::invalid(
            "spec.healthCheckNodePort",
            &health.into(),
            TAKEN_PORT,
        ));
    }
    let balancer = kind_of(new) == "LoadBalancer";
    if !balancer
        && !new
            .list_at(&["spec", "loadBalancerSourceRanges"])
            .is_empty()
    {
        let why = "may only be used when `type` is 'LoadBalancer'";
        // Upstream's spelling of the path.
        causes.push(Cause::forbidden("spec.LoadBalancerSourceRanges", why));
    }
    for key in ["allocateLoadBalancerNodePorts", "loadBalancerClass"] {
        if !balancer && new.at(&["spec", key]).is_some_and(|value| !value.is_null()) {
            let why = "may only be used when `type` is 'LoadBalancer'";
            causes.push(Cause::forbidden(format!("spec.{key}"), why));
        }
    }
    let sticky = new.str_at(&["spec", "sessionAffinity"]) == Some("ClientIP");
    if !sticky
        && new
            .at(&["spec", "sessionAffinityConfig"])
            .is_some_and(|config| !config.is_null())
    {
        let why = "must not be set when session affinity is None";
        causes.push(Cause::forbidden("spec.sessionAffinityConfig", why));
    }
}

fn validate_cluster_ips(new: &Object, causes: &mut Vec<Cause>) {
    let ips = new.list_at(&["spec", "clusterIPs"]);
    let one = new.str_at(&["spec", "clusterIP"]).unwrap_or_default();
    if !one.is_empty() && ips.first().is_some_and(|first| first != one) {
        let why = "first value must match `clusterIP`";
        causes.push(Cause::invalid(
            "spec.clusterIPs",
            &Value::Array(ips.to_vec()),
            why,
        ));
    }
    let list = || Value::Array(ips.to_vec());
    if one.is_empty() && !ips.is_empty() {
        let why = "must be empty when `clusterIP` is not specified";
        causes.push(Cause::invalid("spec.clusterIPs", &list(), why));
    }
    if ips.len() > 2 {
        let why = "may only hold up to 2 values";
        causes.push(Cause::invalid("spec.clusterIPs", &list(), why));
    }
    let mut families = Vec::new();
    for (i, ip) in ips.iter().enumerate() {
        let text = ip.as_str().unwrap_or_default();
        if text == HEADLESS && i == 0 {
            if ips.len() > 1 {
                let why = "'None' must be the first and only value";
                causes.push(Cause::invalid("spec.clusterIPs[0]", &list(), why));
            }
            continue;
        }
        for why in names::ip(text) {
            causes.push(Cause::invalid(format!("spec.clusterIPs[{i}]"), ip, &why));
        }
        families.extend(text.parse().ok().map(|ip: IpAddr| ip.is_ipv4()));
    }
    // Nodes send what is for any of them to the Service: an address nobody has checked is somebody else's.
    let twice = |family| families.iter().filter(|known| **known == family).count() > 1;
    if twice(true) || twice(false) {
        let why = "may specify no more than one IP for each IP family";
        causes.push(Cause::invalid("spec.clusterIPs", &list(), why));
    }
}

fn validate_update(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    if has_cluster_ip(new) && has_cluster_ip(old) {
        let first = |service: &Object| service.list_at(&["spec", "clusterIPs"]).first().cloned();
        if let Some(before) = first(old)
            && first(new).as_ref() != Some(&before)
        {
            let now = new.list_at(&["spec", "clusterIPs"]).to_vec();
            let why = if now.is_empty() {
                "primary clusterIP can not be unset"
            } else {
                "may not change once set"
            };
            causes.push(Cause::invalid(
                "spec.clusterIPs[0]",
                &Value::Array(now),
                why,
            ));
        }
    }
    let health = |service: &Object| {
        service
            .i64_at(&["spec", "healthCheckNodePort"])
            .unwrap_or(0)
    };
    if wants_health_port(new) && wants_health_port(old) && health(new) != health(old) {
        causes.push(Cause::forbidden(
            "spec.healthCheckNodePort",
            "field is immutable",
        ));
    }
    let class = |service: &Object| {
        service
            .at(&["spec", "loadBalancerClass"])
            .cloned()
            .unwrap_or_default()
    };
    if kind_of(new) == "LoadBalancer" && kind_of(old) == "LoadBalancer" && class(new) != class(old)
    {
        let why = "may not change once set";
        causes.push(Cause::invalid("spec.loadBalancerClass", &class(new), why));
    }
}

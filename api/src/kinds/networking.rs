//! Ingresses, their classes, network policies and address objects.

use serde_json::Value;

use super::names;
use super::path::Path;
use super::pod_spec::port_or_name;
use super::rules::Check::{Immutable, Name, OneOf, Required, Selector, With};
use super::rules::Literal::Text;
use super::rules::{Checks, Rules, check};
use super::strategy::Door;
use crate::object::Object;
use crate::status::Cause;

pub static INGRESS: Rules = Rules {
    status: r#"{"loadBalancer":{}}"#,
    checks: &[
        ("spec.ingressClassName", Name(names::dns_subdomain)),
        ("spec.rules[].host", With(host)),
        ("spec.rules[].http.paths", Required),
        ("spec.rules[].http.paths[]", With(ingress_path)),
        ("spec.defaultBackend", With(backend)),
        ("spec.tls[].hosts[]", With(host)),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        let none = new.list_at(&["spec", "rules"]).is_empty();
        let backend = new
            .at(&["spec", "defaultBackend"])
            .is_some_and(|backend| !backend.is_null());
        if none && !backend {
            let value = new.at(&["spec", "rules"]).cloned().unwrap_or_default();
            let why = "either `defaultBackend` or `rules` must be specified";
            causes.push(Cause::invalid("spec", &value, why));
        }
    },
    has_generation: true,
    ..Rules::NEW
};

pub static INGRESS_CLASS: Rules = Rules {
    defaults: &[("spec.parameters?.scope", Text("Cluster"))],
    checks: &[
        ("spec.controller", Required),
        ("spec.controller", With(domain_path)),
        ("spec.parameters.kind", Required),
        ("spec.parameters.name", Required),
        ("spec.parameters.scope", OneOf(&["Cluster", "Namespace"])),
    ],
    validate: |new, old, _, causes| {
        if let Some(old) = old {
            let of = |class: &Object| {
                class
                    .at(&["spec", "controller"])
                    .cloned()
                    .unwrap_or_default()
            };
            if of(new) != of(old) {
                causes.push(Cause::invalid(
                    "spec.controller",
                    &of(new),
                    "field is immutable",
                ));
            }
        }
    },
    has_generation: true,
    ..Rules::NEW
};

pub static NETWORK_POLICY: Rules = Rules {
    defaults: &[
        ("spec.ingress[].ports[].protocol", Text("TCP")),
        ("spec.egress[].ports[].protocol", Text("TCP")),
    ],
    default: |new| {
        if new.list_at(&["spec", "policyTypes"]).is_empty() && new.at(&["spec"]).is_some() {
            let mut types = vec![Value::from("Ingress")];
            if !new.list_at(&["spec", "egress"]).is_empty() {
                types.push("Egress".into());
            }
            new.set(&["spec", "policyTypes"], types.into());
        }
    },
    checks: &[
        ("spec.podSelector", Selector),
        ("spec.policyTypes[]", OneOf(&["Egress", "Ingress"])),
        ("spec.ingress[].ports[]", With(policy_port)),
        ("spec.egress[].ports[]", With(policy_port)),
        ("spec.ingress[].from[]", With(peer)),
        ("spec.egress[].to[]", With(peer)),
    ],
    has_generation: true,
    ..Rules::NEW
};

pub static IP_ADDRESS: Rules = Rules {
    checks: &[
        ("metadata.name", Name(names::ip)),
        ("spec.parentRef", Required),
        ("spec.parentRef.resource", Required),
        ("spec.parentRef.name", Required),
        ("spec.parentRef", Immutable),
    ],
    ..Rules::NEW
};

pub static SERVICE_CIDR: Rules = Rules {
    status: "{}",
    checks: &[
        ("spec.cidrs", Required),
        ("spec.cidrs[]", Name(names::cidr)),
        ("spec.cidrs", Immutable),
    ],
    ..Rules::NEW
};

/// A host name, or `*.` and a domain.
fn host(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() {
        return;
    }
    if text.parse::<std::net::IpAddr>().is_ok() {
        let why = "must be a DNS name, not an IP address";
        causes.push(Cause::invalid(path, value, why));
        return;
    }
    let name = text.strip_prefix("*.").unwrap_or(text);
    for why in names::dns_subdomain(name) {
        causes.push(Cause::invalid(path, value, &why));
    }
}

fn ingress_path(path: &Path<'_>, item: &Value, causes: &mut Vec<Cause>) {
    let kind = path.key("pathType");
    let text = item["path"].as_str().unwrap_or_default();
    match item["pathType"].as_str() {
        None | Some("") => causes.push(Cause::required(kind, "pathType must be specified")),
        Some("Exact" | "Prefix") => {
            if !text.starts_with('/') {
                causes.push(Cause::invalid(
                    path.key("path"),
                    &text.into(),
                    "must be an absolute path",
                ));
            }
            for part in ["//", "/./", "/../", "%2f", "%2F"] {
                if text.contains(part) {
                    let why = format!("must not contain '{part}'");
                    causes.push(Cause::invalid(path.key("path"), &text.into(), &why));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !text.is_empty() && !text.starts_with('/') {
                causes.push(Cause::invalid(
                    path.key("path"),
                    &text.into(),
                    "must be an absolute path",
                ));
            }
        }
        Some(_) => causes.push(Cause::not_supported(
            kind,
            &item["pathType"],
            &["Exact", "ImplementationSpecific", "Prefix"],
        )),
    }
    backend(&path.key("backend"), &item["backend"], causes);
}

fn backend(path: &Path<'_>, backend: &Value, causes: &mut Vec<Cause>) {
    let (service, resource) = (&backend["service"], &backend["resource"]);
    match (service.is_null(), resource.is_null()) {
        (false, false) => {
            let why = "cannot set both resource and service backends";
            causes.push(Cause::invalid(path, &"".into(), why));
        }
        (true, true) => {
            let why = "resource or service backend is required";
            causes.push(Cause::required(path, why));
        }
        (true, false) => {}
        (false, true) => {
            const SERVICE: Checks = &[("name", Required), ("name", Name(names::dns_1035_label))];
            let path = path.key("service");
            check(SERVICE, &path, service, causes);
            service_port(&path.key("port"), &service["port"], causes);
        }
    }
}

fn service_port(path: &Path<'_>, port: &Value, causes: &mut Vec<Cause>) {
    let name = port["name"].as_str().unwrap_or_default();
    let number = port["number"].as_i64().unwrap_or(0);
    match (name.is_empty(), number) {
        (true, 0) => causes.push(Cause::required(path, "port name or number is required")),
        (false, n) if n != 0 => {
            let why = "cannot set both port name & port number";
            causes.push(Cause::invalid(path, &"".into(), why));
        }
        (true, _) => port_or_name(&path.key("number"), &port["number"], causes),
        (false, _) => port_or_name(&path.key("name"), &port["name"], causes),
    }
}

/// `example.com/controller`.
fn domain_path(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() {
        return;
    }
    match text.split_once('/') {
        Some((domain, rest)) if !rest.is_empty() => {
            for why in names::dns_subdomain(domain) {
                causes.push(Cause::invalid(path, value, &why));
            }
        }
        _ => {
            let why = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            causes.push(Cause::invalid(path, value, why));
        }
    }
}

fn policy_port(path: &Path<'_>, port: &Value, causes: &mut Vec<Cause>) {
    check(
        &[("protocol", OneOf(&["SCTP", "TCP", "UDP"]))],
        path,
        port,
        causes,
    );
    let (from, to) = (&port["port"], &port["endPort"]);
    if !from.is_null() {
        port_or_name(&path.key("port"), from, causes);
    }
    match (from, to.as_i64()) {
        (_, None) => {}
        (Value::Null, Some(_)) => {
            causes.push(Cause::required(
                path.key("port"),
                "must be specified when `endPort` is set",
            ));
        }
        (Value::String(_), Some(_)) => {
            let why = "may not be specified when `port` is non-numeric";
            causes.push(Cause::invalid(path.key("endPort"), to, why));
        }
        (from, Some(end)) if end < from.as_i64().unwrap_or(0) => {
            let why = "must be greater than or equal to `port`";
            causes.push(Cause::invalid(path.key("endPort"), to, why));
        }
        _ => {}
    }
}

fn peer(path: &Path<'_>, peer: &Value, causes: &mut Vec<Cause>) {
    const PEER: Checks = &[
        ("podSelector", Selector),
        ("namespaceSelector", Selector),
        ("ipBlock.cidr", Required),
        ("ipBlock.cidr", Name(names::cidr)),
        ("ipBlock.except[]", Name(names::cidr)),
    ];
    let given = |key: &str| !peer[key].is_null();
    if !given("podSelector") && !given("namespaceSelector") && !given("ipBlock") {
        causes.push(Cause::required(path, "must specify a peer"));
    } else if given("ipBlock") && (given("podSelector") || given("namespaceSelector")) {
        let why = "may not specify both ipBlock and another peer";
        causes.push(Cause::forbidden(path, why));
    }
    check(PEER, path, peer, causes);
    let block = &peer["ipBlock"];
    let net = |cidr: &Value| cidr.as_str()?.parse::<ipnet::IpNet>().ok();
    let Some(whole) = net(&block["cidr"]) else {
        return;
    };
    let except = path.key("ipBlock");
    let except = except.key("except");
    for (i, cidr) in block["except"].as_array().into_iter().flatten().enumerate() {
        let within =
            |part: ipnet::IpNet| whole.contains(&part) && part.prefix_len() > whole.prefix_len();
        if net(cidr).is_some_and(|part| !within(part)) {
            let why = "must be a strict subset of `cidr`";
            causes.push(Cause::invalid(except.index(i), cidr, why));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, defaulted};
    use serde_json::json;

    #[test]
    fn an_ingress_leads_somewhere() {
        check(
            "ingresses",
            "{metadata: {name: i}, spec: {rules: [{host: 1.2.3.4, http: {paths: [{path: x, pathType: Prefix, backend: {service: {name: s, port: {}}}}, {backend: {}}]}}]}}",
            &[
                "spec.rules[0].host: Invalid value: \"1.2.3.4\": must be a DNS name, not an IP address",
                "spec.rules[0].http.paths[0].path: Invalid value: \"x\": must be an absolute path",
                "spec.rules[0].http.paths[0].backend.service.port: Required value: port name or number is required",
                "spec.rules[0].http.paths[1].pathType: Required value: pathType must be specified",
                "spec.rules[0].http.paths[1].backend: Required value: resource or service backend is required",
            ],
        );
    }

    #[test]
    fn a_policy_is_for_ingress_unless_it_has_egress_rules() {
        let made = |spec: &str| {
            let text = format!("{{metadata: {{name: n}}, spec: {spec}}}");
            defaulted("networkpolicies", &text)["spec"]["policyTypes"].clone()
        };
        assert_eq!(made("{podSelector: {}}"), json!(["Ingress"]));
        assert_eq!(
            made("{podSelector: {}, egress: [{}]}"),
            json!(["Ingress", "Egress"])
        );
        check(
            "networkpolicies",
            "{metadata: {name: n}, spec: {podSelector: {}, ingress: [{from: [{}], ports: [{port: 80, endPort: 70}]}]}}",
            &[
                "spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`",
                "spec.ingress[0].from[0]: Required value: must specify a peer",
            ],
        );
        check(
            "networkpolicies",
            "{metadata: {name: n}, spec: {podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 11.0.0.0/16, 10.0.0.0/8, '::/8']}}]}]}}",
            &[
                "spec.egress[0].to[0].ipBlock.except[1]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                "spec.egress[0].to[0].ipBlock.except[2]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                "spec.egress[0].to[0].ipBlock.except[3]: Invalid value: \"::/8\": must be a strict subset of `cidr`",
            ],
        );
    }
}

//! Endpoints and EndpointSlices: addresses of one family, ports with names that differ.

use serde_json::Value;
use types::well_known::{LABEL_SERVICE_NAME, NAMESPACE_DEFAULT};

use super::names;
use super::path::Path;
use super::rules::Check::{Immutable, Name, NameOrEmpty, OneOf, Port, Required, With};
use super::rules::Literal::Text;
use super::rules::{Rules, text};
use super::strategy::NameRule;
use crate::object::Object;
use crate::status::Cause;

pub static ENDPOINTS: Rules = Rules {
    defaults: &[("subsets[].ports[].protocol", Text("TCP"))],
    checks: &[
        ("subsets[].ports[].port", Port),
        ("subsets[].ports[].name", NameOrEmpty(names::dns_label)),
        ("subsets[].ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
        ("subsets[]", With(subset)),
    ],
    validate: |new, _, _, causes| {
        let rule = rule(new);
        let path = Path::ROOT.key("subsets");
        for (i, subset) in new.list_at(&["subsets"]).iter().enumerate() {
            let path = path.index(i);
            for key in ["addresses", "notReadyAddresses"] {
                let path = path.key(key);
                for (i, address) in subset[key].as_array().into_iter().flatten().enumerate() {
                    text(&path.index(i).key("ip"), &address["ip"], rule, causes);
                }
            }
        }
    },
    create_on_update: true,
    ..Rules::NEW
};

pub static ENDPOINT_SLICE: Rules = Rules {
    defaults: &[
        ("ports[].name", Text("")),
        ("ports[].protocol", Text("TCP")),
    ],
    checks: &[
        ("addressType", Required),
        ("addressType", OneOf(&["FQDN", "IPv4", "IPv6"])),
        ("ports", With(names_of_ports)),
        ("ports[].port", Port),
        ("ports[].name", NameOrEmpty(names::dns_label)),
        ("ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
        ("endpoints[].addresses", Required),
        ("endpoints[].nodeName", Name(names::dns_subdomain)),
        ("endpoints[].hostname", Name(names::dns_label)),
        ("addressType", Immutable),
    ],
    validate: |new, _, _, causes| {
        let endpoints = new.list_at(&["endpoints"]);
        if endpoints.len() > 1000 {
            causes.push(Cause::too_many("endpoints", endpoints.len(), 1000));
        }
        let family = new.str_at(&["addressType"]).unwrap_or_default();
        let path = Path::ROOT.key("endpoints");
        for (i, endpoint) in endpoints.iter().enumerate() {
            addresses(&path.index(i), endpoint, family, rule(new), causes);
        }
    },
    name: NameRule::Subdomain,
    has_generation: true,
    ..Rules::NEW
};

fn subset(path: &Path<'_>, subset: &Value, causes: &mut Vec<Cause>) {
    let ports = subset["ports"].as_array().map_or(&[][..], Vec::as_slice);
    for (i, port) in ports.iter().enumerate() {
        if ports.len() > 1 && port["name"].as_str().is_none_or(str::is_empty) {
            causes.push(Cause::required(path.key("ports").index(i).key("name"), ""));
        }
    }
    let none = |key: &str| subset[key].as_array().is_none_or(Vec::is_empty);
    if none("addresses") && none("notReadyAddresses") {
        let why = "must specify `addresses` or `notReadyAddresses`";
        causes.push(Cause::required(path, why));
    }
}

/// They differ; one may have none. Whoever looks a port up by its name would take the first.
fn names_of_ports(path: &Path<'_>, ports: &Value, causes: &mut Vec<Cause>) {
    let mut seen = Vec::new();
    for (i, port) in ports.as_array().into_iter().flatten().enumerate() {
        let name = port["name"].as_str().unwrap_or_default();
        if seen.contains(&name) {
            causes.push(Cause::duplicate(path.index(i).key("name"), &name.into()));
        }
        seen.push(name);
    }
}

/// What an address must be. Differs from Kubernetes: API servers may listen on loopback, in a cluster of one.
fn rule(object: &Object) -> names::Rule {
    let label = object.str_at(&["metadata", "labels", LABEL_SERVICE_NAME]);
    let service = label.unwrap_or_else(|| object.name());
    if object.namespace() == NAMESPACE_DEFAULT && service == "kubernetes" {
        names::ip
    } else {
        names::ip_of_somebody
    }
}

fn addresses(
    path: &Path<'_>,
    endpoint: &Value,
    family: &str,
    rule: names::Rule,
    causes: &mut Vec<Cause>,
) {
    let list = endpoint["addresses"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    let path = path.key("addresses");
    if list.len() > 100 {
        causes.push(Cause::too_many(path, list.len(), 100));
    }
    for (i, address) in list.iter().enumerate() {
        let text = address.as_str().unwrap_or_default();
        let wrong = match family {
            "IPv4" if text.parse::<std::net::Ipv4Addr>().is_err() => {
                vec!["must be an IPv4 address".to_owned()]
            }
            "IPv6" if text.parse::<std::net::Ipv6Addr>().is_err() => {
                vec!["must be an IPv6 address".to_owned()]
            }
            "FQDN" => names::dns_subdomain(text),
            "IPv4" | "IPv6" => rule(text),
            _ => Vec::new(),
        };
        for why in wrong {
            causes.push(Cause::invalid(path.index(i), address, &why));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, check_update, defaulted};

    #[test]
    fn a_slice_has_one_family_for_ever() {
        check(
            "endpointslices",
            "{metadata: {name: s}, addressType: IPv4, endpoints: [{addresses: ['::1']}, {addresses: [127.0.0.1, 169.254.169.254]}], ports: [{port: 1}, {port: 2}]}",
            &[
                "ports[1].name: Duplicate value: \"\"",
                "endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
                "endpoints[1].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
                "endpoints[1].addresses[1]: Invalid value: \"169.254.169.254\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            ],
        );
        check_update(
            "endpointslices",
            "{metadata: {name: s}, addressType: IPv4}",
            "{metadata: {name: s}, addressType: IPv6}",
            &["addressType: Invalid value: \"IPv6\": field is immutable"],
        );
        let slice = defaulted(
            "endpointslices",
            "{metadata: {name: s}, addressType: IPv4, ports: [{port: 1}]}",
        );
        assert_eq!(slice["ports"][0]["protocol"], "TCP");
        assert_eq!(slice["ports"][0]["name"], "");
    }

    #[test]
    fn endpoints_need_addresses_and_names_of_ports() {
        check(
            "endpoints",
            "{metadata: {name: s}, subsets: [{addresses: [{ip: x}], ports: [{port: 1, name: a}, {port: 2}]}]}",
            &[
                "subsets[0].ports[1].name: Required value",
                "subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        );
        let local = "subsets: [{addresses: [{ip: 127.0.0.1}], ports: [{port: 1}]}]}";
        check(
            "endpoints",
            &format!("{{metadata: {{name: s, namespace: default}}, {local}"),
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            ],
        );
        check(
            "endpoints",
            &format!("{{metadata: {{name: kubernetes, namespace: default}}, {local}"),
            &[],
        );
    }
}

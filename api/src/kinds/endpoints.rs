//! Endpoints and EndpointSlices: addresses of one family, ports with names that differ.

use serde_json::Value;

use super::names;
use super::path::Path;
use super::rules::Check::{Immutable, Name, NameOrEmpty, OneOf, Port, Required, Unique, With};
use super::rules::Literal::Text;
use super::rules::Rules;
use super::strategy::NameRule;
use crate::status::Cause;

pub static ENDPOINTS: Rules = Rules {
    defaults: &[("subsets[].ports[].protocol", Text("TCP"))],
    checks: &[
        ("subsets[].addresses[].ip", Name(names::ip)),
        ("subsets[].notReadyAddresses[].ip", Name(names::ip)),
        ("subsets[].ports[].port", Port),
        ("subsets[].ports[].name", NameOrEmpty(names::dns_label)),
        ("subsets[].ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
        ("subsets[]", With(subset)),
    ],
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
        ("ports", Unique("name")),
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
            addresses(&path.index(i), endpoint, family, causes);
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

fn addresses(path: &Path<'_>, endpoint: &Value, family: &str, causes: &mut Vec<Cause>) {
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
            "{metadata: {name: s}, addressType: IPv4, endpoints: [{addresses: ['::1']}], ports: [{port: 1}, {port: 2}]}",
            &["endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address"],
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
                "subsets[0].addresses[0].ip: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                "subsets[0].ports[1].name: Required value",
            ],
        );
    }
}

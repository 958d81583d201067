//! Services, their endpoints and what leads to them, in one line.

use serde_json::Value;

use super::{
    AGE, NAME, NONE, UNSET, age, at, at_or, first_three, labels, list, map, name, text, wide,
};
use crate::kinds::{Columns, label_selector};

pub static SERVICE: Columns = Columns {
    definitions: &[
        NAME,
        text("Type"),
        text("Cluster-IP"),
        text("External-IP"),
        text("Port(s)"),
        AGE,
        wide("Selector"),
    ],
    cells: |object, now| {
        vec![
            name(object),
            at(object, "spec.type").into(),
            at_or(object, "spec.clusterIP", NONE),
            external_ip(object).into(),
            service_ports(object).into(),
            age(object, now),
            labels(map(object, "spec.selector")).into(),
        ]
    },
};

pub static ENDPOINTS: Columns = Columns {
    definitions: &[NAME, text("Endpoints"), AGE],
    cells: |object, now| {
        let mut addresses = Vec::new();
        for subset in list(object, "subsets") {
            let ips = || {
                list(subset, "addresses")
                    .iter()
                    .map(|address| at(address, "ip"))
            };
            let ports = list(subset, "ports");
            if ports.is_empty() {
                addresses.extend(ips().map(str::to_owned));
            }
            for port in ports {
                addresses.extend(ips().map(|ip| joined(ip, &port["port"])));
            }
        }
        vec![
            name(object),
            first_three(&addresses, NONE).into(),
            age(object, now),
        ]
    },
};

pub static ENDPOINT_SLICE: Columns = Columns {
    definitions: &[
        NAME,
        text("AddressType"),
        text("Ports"),
        text("Endpoints"),
        AGE,
    ],
    cells: |object, now| {
        let port = |port: &Value| match (port["port"].as_i64(), at(port, "name")) {
            (Some(number), _) => number.to_string(),
            (None, "") => "*".to_owned(),
            (None, name) => name.to_owned(),
        };
        let ports: Vec<String> = list(object, "ports").iter().map(port).collect();
        let endpoints = list(object, "endpoints").iter();
        let addresses: Vec<String> = endpoints
            .flat_map(|endpoint| list(endpoint, "addresses"))
            .filter_map(|address| address.as_str().map(str::to_owned))
            .collect();
        vec![
            name(object),
            at(object, "addressType").into(),
            first_three(&ports, UNSET).into(),
            first_three(&addresses, UNSET).into(),
            age(object, now),
        ]
    },
};

pub static INGRESS: Columns = Columns {
    definitions: &[
        NAME,
        text("Class"),
        text("Hosts"),
        text("Address"),
        text("Ports"),
        AGE,
    ],
    cells: |object, now| {
        let rules = list(object, "spec.rules").iter();
        let hosts: Vec<String> = rules
            .map(|rule| at(rule, "host").to_owned())
            .filter(|host| !host.is_empty())
            .collect();
        let encrypted = !list(object, "spec.tls").is_empty();
        vec![
            name(object),
            at_or(object, "spec.ingressClassName", NONE),
            first_three(&hosts, "*").into(),
            balancer(object).into(),
            if encrypted { "80, 443" } else { "80" }.into(),
            age(object, now),
        ]
    },
};

pub static INGRESS_CLASS: Columns = Columns {
    definitions: &[NAME, text("Controller"), text("Parameters"), AGE],
    cells: |object, now| {
        let parameters = &object["spec"]["parameters"];
        let parameters = match (at(parameters, "kind"), at(parameters, "apiGroup")) {
            ("", _) => NONE.to_owned(),
            (kind, "") => format!("{kind}/{}", at(parameters, "name")),
            (kind, group) => format!("{kind}.{group}/{}", at(parameters, "name")),
        };
        vec![
            name(object),
            at(object, "spec.controller").into(),
            parameters.into(),
            age(object, now),
        ]
    },
};

pub static NETWORK_POLICY: Columns = Columns {
    definitions: &[NAME, text("Pod-Selector"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            label_selector::format(&object["spec"]["podSelector"]).into(),
            age(object, now),
        ]
    },
};

pub static SERVICE_CIDR: Columns = Columns {
    definitions: &[NAME, text("CIDRs"), AGE],
    cells: |object, now| {
        let ranges: Vec<&str> = list(object, "spec.cidrs")
            .iter()
            .filter_map(Value::as_str)
            .collect();
        vec![name(object), ranges.join(",").into(), age(object, now)]
    },
};

pub static IP_ADDRESS: Columns = Columns {
    definitions: &[NAME, text("ParentRef")],
    cells: |object, _| {
        let parent = &object["spec"]["parentRef"];
        let resource = match (at(parent, "resource"), at(parent, "group")) {
            (resource, "") => resource.to_owned(),
            (resource, group) => format!("{resource}.{group}"),
        };
        let text = format!(
            "{resource}/{}/{}",
            at(parent, "namespace"),
            at(parent, "name")
        );
        vec![name(object), text.into()]
    },
};

fn joined(ip: &str, port: &Value) -> String {
    if ip.contains(':') {
        format!("[{ip}]:{port}")
    } else {
        format!("{ip}:{port}")
    }
}

/// Addresses or names a load balancer answers at.
fn balancer(object: &Value) -> String {
    let ingress = list(object, "status.loadBalancer.ingress").iter();
    let texts: Vec<&str> = ingress
        .map(|point| match at(point, "ip") {
            "" => at(point, "hostname"),
            ip => ip,
        })
        .filter(|text| !text.is_empty())
        .collect();
    texts.join(",")
}

fn external_ip(service: &Value) -> String {
    let listed: Vec<&str> = list(service, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match at(service, "spec.type") {
        "ClusterIP" | "NodePort" if listed.is_empty() => NONE.to_owned(),
        "ClusterIP" | "NodePort" => listed.join(","),
        "LoadBalancer" => {
            let balancer = balancer(service);
            let mut all: Vec<&str> = balancer.split(',').filter(|ip| !ip.is_empty()).collect();
            all.extend(listed);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        "ExternalName" => at(service, "spec.externalName").to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

/// `80/TCP,443:30443/TCP`.
fn service_ports(service: &Value) -> String {
    let ports = list(service, "spec.ports").iter().map(|port| {
        let protocol = at(port, "protocol");
        match port["nodePort"].as_i64().filter(|port| *port > 0) {
            Some(node_port) => format!("{}:{node_port}/{protocol}", port["port"]),
            None => format!("{}/{protocol}", port["port"]),
        }
    });
    let texts: Vec<String> = ports.collect();
    if texts.is_empty() {
        NONE.to_owned()
    } else {
        texts.join(",")
    }
}

//! What status should say, from what was compiled and what nodes report. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};
use types::routing::report::{Listening, Report};
use types::routing::{
    Compiled, Fact, GatewayStatus, HTTP, HTTPS, Key, ListenerStatus, Problem, RouteStatus,
};
use types::well_known::GATEWAY_CONTROLLER;

/// What we can do beyond the core, by the names the Gateway API gives it.
const FEATURES: &[&str] = &[
    "Gateway",
    "GatewayHTTPListenerIsolation",
    "GatewayPort8080",
    "HTTPRoute",
    "HTTPRouteBackendRequestHeaderModification",
    "HTTPRouteBackendTimeout",
    "HTTPRouteHostRewrite",
    "HTTPRouteMethodMatching",
    "HTTPRouteParentRefPort",
    "HTTPRoutePathRedirect",
    "HTTPRoutePathRewrite",
    "HTTPRoutePortRedirect",
    "HTTPRouteQueryParamMatching",
    "HTTPRouteRequestMirror",
    "HTTPRouteRequestMultipleMirrors",
    "HTTPRouteRequestPercentageMirror",
    "HTTPRouteRequestTimeout",
    "HTTPRouteResponseHeaderModification",
    "HTTPRouteSchemeRedirect",
    "ReferenceGrant",
];

/// In an Ingress's status: the port is another one than it should be.
const PORT_REPLACED: &str = "coracle.dev/PortReplaced";

/// What nodes that are ready say, by name.
pub type Nodes = BTreeMap<String, Report>;

/// A status that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// `Ingress`, `GatewayClass`, `Gateway`, `HTTPRoute`
    pub kind: &'static str,
    pub key: Key,
    pub status: Value,
}

/// The statuses to write, and what to tell besides what the compiler says. `current` finds the status an object has.
pub fn plan(
    compiled: &Compiled,
    nodes: &Nodes,
    current: impl Fn(&'static str, &Key) -> Option<Value>,
    now: Timestamp,
) -> (Vec<Change>, Vec<Problem>) {
    let mut changes = Vec::new();
    let mut problems = Vec::new();
    let mut want = |kind, key: &Key, make: &dyn Fn(&Value) -> Value| {
        let Some(old) = current(kind, key) else {
            return;
        };
        let status = make(&old);
        if status != old {
            let key = key.clone();
            changes.push(Change { kind, key, status });
        }
    };
    for (key, ports) in &compiled.ingresses {
        want("Ingress", key, &|_| ingress(nodes, ports));
        replaced("Ingress", key, nodes, ports, &mut problems);
    }
    for class in &compiled.classes {
        let key = Key::new("", &class.name);
        want("GatewayClass", &key, &|old| {
            let features: Vec<Value> = FEATURES.iter().map(|name| json!({"name": name})).collect();
            let conditions = conditions(old, &class.conditions, class.generation, now);
            with(
                old,
                &[
                    ("conditions", conditions),
                    ("supportedFeatures", features.into()),
                ],
            )
        });
    }
    for one in &compiled.gateways {
        want("Gateway", &one.key, &|old| gateway(nodes, one, old, now));
        let ports: Vec<u16> = one.listeners.iter().map(|l| l.port).collect();
        replaced("Gateway", &one.key, nodes, &ports, &mut problems);
    }
    for one in &compiled.routes {
        want("HTTPRoute", &one.key, &|old| route(one, old, now));
    }
    for (kind, key) in &compiled.orphans {
        want(kind, key, &|old| match *kind {
            "Ingress" => ingress_of_nobody(old),
            _ => gateway_of_nobody(old, now),
        });
    }
    (changes, problems)
}

/// `old` with some of its fields replaced.
fn with(old: &Value, fields: &[(&str, Value)]) -> Value {
    let mut map = old.as_object().cloned().unwrap_or_default();
    for (name, value) in fields {
        let empty = value.as_array().is_some_and(Vec::is_empty);
        if empty {
            map.remove(*name);
        } else {
            map.insert((*name).to_owned(), value.clone());
        }
    }
    Value::Object(map)
}

/// Addresses of nodes that listen on one of these ports, with what they say of each.
fn open<'n>(nodes: &'n Nodes, ports: &[u16]) -> BTreeMap<IpAddr, BTreeMap<u16, &'n Listening>> {
    let mut found: BTreeMap<IpAddr, BTreeMap<u16, &Listening>> = BTreeMap::new();
    for report in nodes.values() {
        for port in ports {
            if let Some(listening) = report.port(*port)
                && let Some(address) = listening.address
            {
                let here = found.entry(address.ip()).or_default();
                here.insert(*port, listening);
            }
        }
    }
    found
}

fn ingress(nodes: &Nodes, ports: &[u16]) -> Value {
    let points: Vec<Value> = open(nodes, ports)
        .into_iter()
        .map(|(ip, ports)| {
            let ports: Vec<Value> = ports
                .into_iter()
                .map(|(port, listening)| {
                    let mut status = json!({"port": port, "protocol": "TCP"});
                    if listening.problem.is_some() {
                        status["error"] = PORT_REPLACED.into();
                    }
                    status
                })
                .collect();
            json!({"ip": ip, "ports": ports})
        })
        .collect();
    if points.is_empty() {
        json!({"loadBalancer": {}})
    } else {
        json!({"loadBalancer": {"ingress": points}})
    }
}

/// Without the addresses that nodes had when it was ours: somebody may publish them. No other controller that we know of
/// says ports in an Ingress's status, and the class tells of none.
fn ingress_of_nobody(old: &Value) -> Value {
    let points = old["loadBalancer"]["ingress"].as_array();
    let points = points.map_or(&[][..], Vec::as_slice);
    let port = |port: &Value| {
        let is_known = [HTTP, HTTPS].iter().any(|known| port["port"] == *known);
        is_known && (port["error"].is_null() || port["error"] == PORT_REPLACED)
    };
    let ours = |point: &Value| {
        let ports = point["ports"].as_array();
        ports.is_some_and(|ports| !ports.is_empty() && ports.iter().all(port))
    };
    if points.is_empty() || !points.iter().all(ours) {
        return old.clone();
    }
    json!({"loadBalancer": {}})
}

/// As the API server makes it: who serves Gateways goes by their classes, and there is none.
fn gateway_of_nobody(old: &Value, now: Timestamp) -> Value {
    let known = old["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let types = ["Accepted", "Programmed"];
    let is_said = |condition: &&Value| types.iter().any(|type_| condition["type"] == *type_);
    let waits = known
        .iter()
        .filter(is_said)
        .all(|c| c["status"] == "Unknown");
    if waits && old["addresses"].is_null() && old["listeners"].is_null() {
        return old.clone();
    }
    let second = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let waiting = types.iter().map(|type_| {
        json!({"type": type_, "status": "Unknown", "reason": "Pending",
            "message": "Waiting for controller", "lastTransitionTime": second})
    });
    let foreign = known.iter().filter(|condition| !is_said(condition));
    let conditions: Vec<Value> = waiting.chain(foreign.cloned()).collect();
    let nothing = || Value::Array(Vec::new());
    with(
        old,
        &[
            ("addresses", nothing()),
            ("conditions", conditions.into()),
            ("listeners", nothing()),
        ],
    )
}

fn replaced(
    kind: &'static str,
    key: &Key,
    nodes: &Nodes,
    ports: &[u16],
    problems: &mut Vec<Problem>,
) {
    for (node, report) in nodes {
        let listeners = report.listeners.iter();
        for listening in listeners.filter(|l| ports.contains(&l.port)) {
            let Some(problem) = &listening.problem else {
                continue;
            };
            let port = listening.port;
            let (reason, message) = match listening.address {
                Some(address) => (
                    "PortReplaced",
                    format!("node {node} listens on {address} instead of port {port}: {problem}"),
                ),
                None => (
                    "PortUnavailable",
                    format!("node {node} does not listen on port {port}: {problem}"),
                ),
            };
            problems.push(Problem {
                kind,
                about: key.clone(),
                reason,
                message,
            });
        }
    }
}

fn gateway(nodes: &Nodes, one: &GatewayStatus, old: &Value, now: Timestamp) -> Value {
    let ports: Vec<u16> = one.listeners.iter().map(|l| l.port).collect();
    let open = open(nodes, &ports);
    let is_open = |port: &u16| open.values().any(|ports| ports.contains_key(port));
    let ours: Vec<String> = open.keys().map(IpAddr::to_string).collect();
    let mut facts = one.conditions.clone();
    for fact in facts
        .iter_mut()
        .filter(|f| f.type_ == "Programmed" && f.status)
    {
        let missing: Vec<_> = one.wanted.iter().filter(|a| !ours.contains(a)).collect();
        if let Some(missing) = missing.first() {
            let message = format!("no node listens on {missing}");
            *fact = Fact::new("Programmed", false, "AddressNotUsable", message);
        } else if ours.is_empty() {
            let message = "no node listens yet".to_owned();
            *fact = Fact::new("Programmed", false, "AddressNotAssigned", message);
        }
    }
    let shown = ours
        .iter()
        .filter(|address| one.wanted.is_empty() || one.wanted.contains(address));
    let addresses: Vec<Value> = shown
        .map(|address| json!({"type": "IPAddress", "value": address}))
        .collect();
    let listeners: Vec<Value> = one
        .listeners
        .iter()
        .map(|l| listener(l, is_open(&l.port), old, one.generation, now))
        .collect();
    with(
        old,
        &[
            ("addresses", addresses.into()),
            ("conditions", conditions(old, &facts, one.generation, now)),
            ("listeners", listeners.into()),
        ],
    )
}

fn listener(
    one: &ListenerStatus,
    open: bool,
    gateway: &Value,
    generation: i64,
    now: Timestamp,
) -> Value {
    let known = gateway["listeners"].as_array().into_iter().flatten();
    let mut known = known.filter(|l| l["name"] == one.name);
    let old = known.next().cloned().unwrap_or_default();
    let mut facts = one.conditions.clone();
    for fact in facts
        .iter_mut()
        .filter(|f| f.type_ == "Programmed" && f.status)
    {
        if !open {
            let message = format!("no node listens on port {} yet", one.port);
            *fact = Fact::new("Programmed", false, "Pending", message);
        }
    }
    json!({
        "name": one.name,
        "attachedRoutes": one.attached_routes,
        "supportedKinds": one.supported_kinds,
        "conditions": conditions(&old, &facts, generation, now),
    })
}

fn route(one: &RouteStatus, old: &Value, now: Timestamp) -> Value {
    let known = old["parents"].as_array().map_or(&[][..], Vec::as_slice);
    let ours = |parent: &&Value| parent["controllerName"] == GATEWAY_CONTROLLER;
    let mut parents: Vec<Value> = known.iter().filter(|p| !ours(p)).cloned().collect();
    for parent in &one.parents {
        let reference = serde_json::to_value(&parent.parent).unwrap_or_default();
        let mut before = known.iter().filter(ours);
        let before = before.find(|p| p["parentRef"] == reference);
        let before = before.cloned().unwrap_or_default();
        parents.push(json!({
            "parentRef": reference,
            "controllerName": GATEWAY_CONTROLLER,
            "conditions": conditions(&before, &parent.conditions, one.generation, now),
        }));
    }
    json!({"parents": parents})
}

/// Facts as conditions; those that say the same as before keep their time. Conditions of types we do not write stay.
fn conditions(old: &Value, facts: &[Fact], generation: i64, now: Timestamp) -> Value {
    let known = old["conditions"].as_array().map_or(&[][..], Vec::as_slice);
    let mut all: Vec<Value> = facts
        .iter()
        .map(|fact| {
            let status = if fact.status { "True" } else { "False" };
            let before = known.iter().find(|c| c["type"] == fact.type_);
            let same = before.filter(|c| c["status"] == status);
            let time = same.map(|c| c["lastTransitionTime"].clone());
            let mut map = Map::new();
            let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
            put("type", fact.type_.into());
            put("status", status.into());
            put("reason", fact.reason.into());
            put("message", fact.message.clone().into());
            if generation > 0 {
                put("observedGeneration", generation.into());
            }
            let second = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
            put("lastTransitionTime", time.unwrap_or_else(|| second.into()));
            Value::Object(map)
        })
        .collect();
    let foreign = known.iter().filter(|condition| {
        // `PartiallyInvalid` is ours, and is not there when nothing is.
        condition["type"] != "PartiallyInvalid"
            && !facts.iter().any(|fact| condition["type"] == fact.type_)
    });
    all.extend(foreign.cloned());
    all.into()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use types::routing::{World, compile};

    use super::*;

    fn object<T: serde::de::DeserializeOwned>(value: Value) -> Arc<T> {
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn world() -> World {
        World {
            ingress_classes: vec![object(
                json!({"metadata": {"name": "coracle"}, "spec": {"controller": "coracle.dev/ingress"}}),
            )],
            ingresses: vec![object(json!({
                "metadata": {"name": "web", "namespace": "shop"},
                "spec": {"ingressClassName": "coracle", "rules": [{"http": {"paths": [
                    {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]},
            }))],
            gateway_classes: vec![object(
                json!({"metadata": {"name": "coracle"}, "spec": {"controllerName": "coracle.dev/gateway"}}),
            )],
            gateways: vec![object(json!({
                "metadata": {"name": "edge", "namespace": "shop", "generation": 3},
                "spec": {"gatewayClassName": "coracle", "listeners": [{"name": "web", "port": 8080, "protocol": "HTTP"}]},
            }))],
            ..World::default()
        }
    }

    fn nodes() -> Nodes {
        let report = |ip: &str, problem: Value| {
            let text = json!({"listeners": [
                {"port": 80, "tls": false, "address": format!("{ip}:80"), "problem": problem},
                {"port": 8080, "tls": false, "address": format!("{ip}:8080")}]});
            Report::parse(&text.to_string()).unwrap()
        };
        BTreeMap::from([
            ("a".to_owned(), report("192.0.2.1", Value::Null)),
            (
                "b".to_owned(),
                report("192.0.2.2", "port 80 is taken".into()),
            ),
        ])
    }

    #[test]
    fn addresses_are_those_of_the_nodes_that_listen() {
        let compiled = compile(&world());
        let now = Timestamp::UNIX_EPOCH;
        let (changes, problems) = plan(&compiled, &nodes(), |_, _| Some(Value::Null), now);
        let of = |kind: &str| &changes.iter().find(|c| c.kind == kind).unwrap().status;
        assert_eq!(
            of("Ingress")["loadBalancer"]["ingress"],
            json!([
                {"ip": "192.0.2.1", "ports": [{"port": 80, "protocol": "TCP"}]},
                {"ip": "192.0.2.2", "ports": [{"port": 80, "protocol": "TCP", "error": "coracle.dev/PortReplaced"}]},
            ])
        );
        let gateway = of("Gateway");
        assert_eq!(gateway["addresses"].as_array().unwrap().len(), 2);
        assert_eq!(gateway["conditions"][1]["type"], "Programmed");
        assert_eq!(gateway["conditions"][1]["status"], "True");
        assert_eq!(gateway["conditions"][1]["observedGeneration"], 3);
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].reason, "PortReplaced");

        // What was written is what is wanted, whatever the time.
        let later = Timestamp::from_second(1_000_000).unwrap();
        let again = |kind: &'static str, key: &Key| {
            let found = changes.iter().find(|c| c.kind == kind && c.key == *key);
            found.map(|change| change.status.clone())
        };
        let (changes, _) = plan(&compiled, &nodes(), again, later);
        assert_eq!(changes, []);
    }

    #[test]
    fn what_nobody_serves_any_more_keeps_no_address_of_ours() {
        let now = Timestamp::UNIX_EPOCH;
        let (ours, _) = plan(&compile(&world()), &nodes(), |_, _| Some(Value::Null), now);
        let status = |changes: &[Change], kind: &str| {
            let found = changes.iter().find(|c| c.kind == kind);
            found.map(|change| change.status.clone())
        };
        let gone = World {
            ingress_classes: Vec::new(),
            gateway_classes: Vec::new(),
            ..world()
        };
        let gone = compile(&gone);
        // Nodes have closed their ports meanwhile.
        let nodes = Nodes::new();
        let (changes, _) = plan(&gone, &nodes, |kind, _| status(&ours, kind), now);
        assert_eq!(
            status(&changes, "Ingress"),
            Some(json!({"loadBalancer": {}}))
        );
        let gateway = status(&changes, "Gateway").unwrap();
        let said = gateway["conditions"].as_array().unwrap().iter();
        let said: Vec<String> = said
            .map(|c| format!("{}={} {}", c["type"], c["status"], c["reason"]).replace('"', ""))
            .collect();
        assert_eq!(
            said,
            ["Accepted=Unknown Pending", "Programmed=Unknown Pending"]
        );
        assert!(gateway["addresses"].is_null() && gateway["listeners"].is_null());
        // That is all; and what others wrote stays, as does what is of a class of others.
        let (again, _) = plan(&gone, &nodes, |kind, _| status(&changes, kind), now);
        assert_eq!(again, []);
        let theirs = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}});
        let find = |kind: &'static str, _: &Key| (kind == "Ingress").then(|| theirs.clone());
        assert_eq!(plan(&gone, &nodes, find, now).0, []);
        let others = World {
            ingress_classes: vec![object(
                json!({"metadata": {"name": "coracle"}, "spec": {"controller": "x.test/y"}}),
            )],
            gateway_classes: vec![object(
                json!({"metadata": {"name": "coracle"}, "spec": {"controllerName": "x.test/y"}}),
            )],
            ..world()
        };
        let (changes, _) = plan(
            &compile(&others),
            &nodes,
            |kind, _| status(&ours, kind),
            now,
        );
        assert_eq!(changes, []);
    }

    #[test]
    fn a_gateway_nobody_listens_for_is_not_programmed() {
        let compiled = compile(&world());
        let now = Timestamp::UNIX_EPOCH;
        let (changes, _) = plan(&compiled, &Nodes::new(), |_, _| Some(Value::Null), now);
        let gateway = changes.iter().find(|c| c.kind == "Gateway").unwrap();
        let programmed = &gateway.status["conditions"][1];
        assert_eq!(programmed["status"], "False");
        assert_eq!(programmed["reason"], "AddressNotAssigned");
        assert_eq!(
            gateway.status["listeners"][0]["conditions"][1]["reason"],
            "Pending"
        );
    }
}

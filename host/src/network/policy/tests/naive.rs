//! Any policies against an evaluator too simple to be wrong: the same question, answered from the objects' text.

use std::net::IpAddr;

use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{World, pod};
use crate::network::namespaces::Namespaces;
use crate::network::table::Protocol;

fn selected(selector: &Value, labels: &Value) -> bool {
    let pairs = selector["matchLabels"]
        .as_object()
        .cloned()
        .unwrap_or_default();
    let expressions = selector["matchExpressions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    pairs.iter().all(|(key, value)| labels[key] == *value)
        && expressions.iter().all(|e| {
            let label = &labels[e["key"].as_str().unwrap()];
            let among = e["values"]
                .as_array()
                .is_some_and(|values| values.contains(label));
            match e["operator"].as_str().unwrap() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => !label.is_null(),
                _ => label.is_null(),
            }
        })
}

fn naive(
    world: &[Value],
    teams: &[(&str, &str)],
    policies: &[Value],
    from: &str,
    to: &str,
    port: u16,
) -> bool {
    let find = |ip: &str| world.iter().find(|pod| pod["status"]["podIP"] == ip);
    let one_side = |subject: &Value,
                    other: &str,
                    direction: &str,
                    rules: &str,
                    peers: &str,
                    target: Option<&Value>| {
        let namespace = &subject["metadata"]["namespace"];
        let mut isolated = false;
        for policy in policies
            .iter()
            .filter(|p| p["metadata"]["namespace"] == *namespace)
        {
            let spec = &policy["spec"];
            let types = spec["policyTypes"].as_array().unwrap();
            if !types.contains(&direction.into())
                || !selected(&spec["podSelector"], &subject["metadata"]["labels"])
            {
                continue;
            }
            isolated = true;
            for rule in spec[rules].as_array().cloned().unwrap_or_default() {
                let ports = rule["ports"].as_array().cloned().unwrap_or_default();
                let port_fits = ports.is_empty()
                    || ports.iter().any(|wanted| {
                        if wanted["protocol"].as_str().is_some_and(|p| p != "TCP") {
                            return false;
                        }
                        match (&wanted["port"], &wanted["endPort"]) {
                            (Value::Null, _) => true,
                            (Value::String(name), _) => target.is_some_and(|pod| {
                                let named =
                                    pod["spec"]["containers"][0]["ports"].as_array().unwrap();
                                named.iter().any(|p| {
                                    p["name"] == *name
                                        && p["containerPort"] == port
                                        && p["protocol"].is_null()
                                })
                            }),
                            (first, Value::Null) => *first == port,
                            (first, last) => (first.as_u64().unwrap()..=last.as_u64().unwrap())
                                .contains(&port.into()),
                        }
                    });
                let all = rule[peers].as_array().cloned().unwrap_or_default();
                let peer_fits = all.is_empty()
                    || all.iter().any(|peer| {
                        if let Some(cidr) = peer["ipBlock"]["cidr"].as_str() {
                            let inside = |net: &str| {
                                net.parse::<IpNet>()
                                    .unwrap()
                                    .contains(&other.parse::<IpAddr>().unwrap())
                            };
                            let except = peer["ipBlock"]["except"]
                                .as_array()
                                .cloned()
                                .unwrap_or_default();
                            return inside(cidr)
                                && !except.iter().any(|net| inside(net.as_str().unwrap()));
                        }
                        let Some(pod) = find(other) else { return false };
                        let theirs = &pod["metadata"]["namespace"];
                        let in_namespace = match &peer["namespaceSelector"] {
                            Value::Null => theirs == namespace,
                            selector => {
                                let team = teams.iter().find(|(name, _)| theirs == name).unwrap().1;
                                selected(
                                    selector,
                                    &json!({"team": team, "kubernetes.io/metadata.name": theirs}),
                                )
                            }
                        };
                        let is_pod = peer["podSelector"].is_null()
                            || selected(&peer["podSelector"], &pod["metadata"]["labels"]);
                        in_namespace && is_pod
                    });
                if port_fits && peer_fits {
                    return true;
                }
            }
        }
        !isolated
    };
    let (source, destination) = (find(from), find(to));
    source.is_none_or(|source| one_side(source, to, "Egress", "egress", "to", destination))
        && destination
            .is_none_or(|pod| one_side(pod, from, "Ingress", "ingress", "from", destination))
}

fn selector() -> impl Strategy<Value = Value> {
    let key = prop_oneof![Just("a"), Just("b"), Just("team")];
    let value = prop_oneof![Just("0"), Just("1")];
    prop_oneof![
        Just(json!({})),
        (key.clone(), value.clone()).prop_map(|(key, value)| json!({"matchLabels": {(key): value}})),
        (key, prop_oneof![Just("In"), Just("NotIn"), Just("Exists"), Just("DoesNotExist")], value)
            .prop_map(|(key, operator, value)| json!({"matchExpressions": [{"key": key, "operator": operator, "values": [value]}]})),
    ]
}

fn rule(peers: &'static str) -> impl Strategy<Value = Value> {
    let block = prop_oneof![
        Just(json!({"ipBlock": {"cidr": "100.64.0.0/30"}})),
        Just(json!({"ipBlock": {"cidr": "0.0.0.0/0", "except": ["100.64.0.0/30", "9.0.0.0/8"]}})),
        Just(json!({"ipBlock": {"cidr": "8.8.8.8/32"}})),
    ];
    let peer = prop_oneof![
        block,
        selector().prop_map(|pods| json!({"podSelector": pods})),
        selector().prop_map(|namespaces| json!({"namespaceSelector": namespaces})),
        (selector(), selector())
            .prop_map(|(n, p)| json!({"namespaceSelector": n, "podSelector": p})),
    ];
    let port = prop_oneof![
        Just(json!({"port": 80})),
        Just(json!({"port": "web"})),
        Just(json!({"port": 80, "endPort": 8080})),
        Just(json!({"port": 80, "protocol": "UDP"})),
        Just(json!({"protocol": "TCP"})),
    ];
    let lists = (
        proptest::collection::vec(peer, 0..3),
        proptest::collection::vec(port, 0..3),
    );
    lists.prop_map(move |(all, ports)| json!({(peers): all, "ports": ports}))
}

fn any_policy() -> impl Strategy<Value = Value> {
    let types = prop_oneof![
        Just(json!(["Ingress"])),
        Just(json!(["Egress"])),
        Just(json!(["Ingress", "Egress"])),
    ];
    let rules = |peers| proptest::collection::vec(rule(peers), 0..3);
    let namespace = prop_oneof![Just("x"), Just("y")];
    (namespace, selector(), types, rules("from"), rules("to")).prop_map(|(namespace, pods, types, ingress, egress)| {
        json!({"metadata": {"namespace": namespace},
            "spec": {"podSelector": pods, "policyTypes": types, "ingress": ingress, "egress": egress}})
    })
}

proptest! {
    #[test]
    fn any_policies_mean_what_their_text_says(
        labels in proptest::collection::vec(("[01]?", "[01]?"), 5),
        teams in ("[01]", "[01]"),
        policies in proptest::collection::vec(any_policy(), 0..4),
    ) {
        let pods: Vec<Value> = labels.iter().enumerate().map(|(n, (a, b))| {
            let mut labels = json!({});
            for (key, value) in [("a", a), ("b", b)] {
                if !value.is_empty() {
                    labels[key] = value.as_str().into();
                }
            }
            let namespace = if n < 3 { "x" } else { "y" };
            pod(namespace, &format!("p{n}"), &format!("100.64.0.{}", n + 1), labels)
        }).collect();
        let named: Vec<Value> = policies.iter().enumerate().map(|(n, policy)| {
            let mut policy = policy.clone();
            policy["metadata"]["name"] = format!("p{n}").into();
            policy
        }).collect();
        let namespaces = Namespaces::of(&["x", "y"]).label("x", "team", &teams.0).label("y", "team", &teams.1);
        let world = World::new(namespaces, pods.clone(), &named);
        let teams = [("x", teams.0.as_str()), ("y", teams.1.as_str())];
        let ends: Vec<String> = (1..=5).map(|n| format!("100.64.0.{n}")).chain(["8.8.8.8".to_owned(), "9.9.9.9".to_owned()]).collect();
        for from in &ends {
            for to in ends.iter().filter(|to| *to != from) {
                for port in [80, 443, 8080] {
                    let expected = naive(&pods, &teams, &named, from, to, port);
                    prop_assert_eq!(world.allows(from, to, port, Protocol::Tcp), expected, "{} → {}:{}", from, to, port);
                }
            }
        }
    }
}

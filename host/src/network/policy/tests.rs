//! Policies as people write them.

mod naive;

use kube::runtime::watcher::Event;
use serde_json::{Value, json};

use super::index::Index;
use super::rules::{At, Direction, End, Facts, Verdict, judge};
use super::table::Table;
use crate::network::namespaces::Namespaces;
use crate::network::table::Protocol;

/// A cluster of values: pods, namespaces with labels, policies.
struct World {
    table: Table,
    pods: Vec<Value>,
}

fn pod(namespace: &str, name: &str, ip: &str, labels: Value) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "uid": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "ports": [
            {"name": "web", "containerPort": 8080}, {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        ]}]},
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

impl World {
    fn new(namespaces: Namespaces, pods: Vec<Value>, policies: &[Value]) -> Self {
        let mut index = Index::default();
        index.policy(Event::Init);
        for policy in policies {
            index.policy(Event::InitApply(
                serde_json::from_value(policy.clone()).unwrap(),
            ));
        }
        index.policy(Event::InitDone);
        index.pod(Event::Init);
        for pod in &pods {
            index.pod(Event::InitApply(
                serde_json::from_value(pod.clone()).unwrap(),
            ));
        }
        index.pod(Event::InitDone);
        index.namespaces(std::sync::Arc::new(namespaces));
        let table = index.publish(&Table::unknown()).table;
        assert!(table.is_complete());
        Self { table, pods }
    }

    /// `shop/web` or an address.
    fn end(&self, who: &str) -> End<'_> {
        if let Ok(ip) = who.parse() {
            let peer = self.table.peers.at(ip);
            return End {
                ip,
                pod: peer.map(|peer| peer.facts()),
                stranger: false,
            };
        }
        let (namespace, name) = who.split_once('/').unwrap();
        let peer = self.table.peers.named(namespace, name).unwrap();
        End {
            ip: peer.addresses[0],
            pod: Some(peer.facts()),
            stranger: false,
        }
    }

    /// Both sides' say.
    fn allows(&self, from: &str, to: &str, port: u16, protocol: Protocol) -> bool {
        let (source, destination) = (self.end(from), self.end(to));
        let at = At { port, protocol };
        let side = |direction, subject: Option<Facts<'_>>, other: &End<'_>| {
            subject.is_none_or(|subject| {
                let policies = self.table.of(subject.namespace);
                let namespaces = &self.table.namespaces;
                match judge(policies, namespaces, direction, &subject, other, at) {
                    Verdict::Open | Verdict::Allowed(_) => true,
                    Verdict::Denied(_) => false,
                    Verdict::Unknown(policy) => panic!("{policy:?} does not know"),
                }
            })
        };
        side(Direction::Egress, source.pod, &destination)
            && side(Direction::Ingress, destination.pod, &source)
    }
}

/// Two namespaces of teams, `kube-system` with DNS, and an address outside.
fn shop(policies: &[Value]) -> World {
    let namespaces = Namespaces::of(&["shop", "lab", "kube-system"]).label("lab", "team", "lab");
    let pods = vec![
        pod(
            "shop",
            "web",
            "100.64.0.2",
            json!({"app": "web", "tier": "front"}),
        ),
        pod(
            "shop",
            "api",
            "100.64.0.3",
            json!({"app": "api", "tier": "back"}),
        ),
        pod(
            "shop",
            "db",
            "100.64.0.4",
            json!({"app": "db", "tier": "back"}),
        ),
        pod("lab", "web", "100.64.0.5", json!({"app": "web"})),
        pod("lab", "spy", "100.64.0.6", json!({"app": "spy"})),
        pod(
            "kube-system",
            "dns",
            "100.64.0.7",
            json!({"k8s-app": "kube-dns"}),
        ),
    ];
    World::new(namespaces, pods, policies)
}

fn policy(name: &str, spec: Value) -> Value {
    json!({"metadata": {"namespace": "shop", "name": name}, "spec": spec})
}

const ALL: [&str; 6] = [
    "shop/web",
    "shop/api",
    "lab/web",
    "lab/spy",
    "kube-system/dns",
    "9.9.9.9",
];

/// Who of [`ALL`] reaches `shop/db`'s TCP port 5432.
fn who_reaches_the_database(spec: Value) -> Vec<&'static str> {
    let world = shop(&[policy("p", spec)]);
    let reaches = |from: &&str| world.allows(from, "shop/db", 5432, Protocol::Tcp);
    ALL.into_iter().filter(reaches).collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn ingress_recipes_mean_what_they_say() {
    let db = json!({"matchLabels": {"app": "db"}});
    let from = |peers: Value| json!({"podSelector": db, "ingress": [{"from": peers}]});
    let of_team = json!({"matchLabels": {"team": "lab"}});
    let web = json!({"matchLabels": {"app": "web"}});
    let all = ALL.to_vec();
    for (what, spec, expected) in [
        (
            "selects another pod",
            json!({"podSelector": {"matchLabels": {"app": "api"}}}),
            all.clone(),
        ),
        ("deny all to one app", json!({"podSelector": db}), vec![]),
        (
            "deny all in the namespace",
            json!({"podSelector": {}}),
            vec![],
        ),
        ("no rule", json!({"podSelector": db, "ingress": []}), vec![]),
        (
            "allow all",
            json!({"podSelector": db, "ingress": [{}]}),
            all.clone(),
        ),
        (
            "an empty list of peers is everybody",
            from(json!([])),
            all.clone(),
        ),
        (
            "from pods of the same namespace",
            from(json!([{"podSelector": {}}])),
            vec!["shop/web", "shop/api"],
        ),
        (
            "from some pods of the same namespace",
            from(json!([{"podSelector": web}])),
            vec!["shop/web"],
        ),
        (
            "from all namespaces",
            from(json!([{"namespaceSelector": {}}])),
            vec![
                "shop/web",
                "shop/api",
                "lab/web",
                "lab/spy",
                "kube-system/dns",
            ],
        ),
        (
            "from a namespace by label",
            from(json!([{"namespaceSelector": of_team}])),
            vec!["lab/web", "lab/spy"],
        ),
        (
            "from a namespace by name",
            from(
                json!([{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}]),
            ),
            vec!["shop/web", "shop/api"],
        ),
        (
            "from some pods of a namespace: both",
            from(json!([{"namespaceSelector": of_team, "podSelector": web}])),
            vec!["lab/web"],
        ),
        (
            "from a namespace, or from some pods of ours: either",
            from(json!([{"namespaceSelector": of_team}, {"podSelector": web}])),
            vec!["shop/web", "lab/web", "lab/spy"],
        ),
        (
            "by expressions",
            from(
                json!([{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]},
                "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["api"]}]}}]),
            ),
            vec!["shop/web", "kube-system/dns"],
        ),
        (
            "from outside",
            from(json!([{"ipBlock": {"cidr": "9.0.0.0/8"}}])),
            vec!["9.9.9.9"],
        ),
        (
            "from a block without a part of it",
            from(json!([{"ipBlock": {"cidr": "100.64.0.0/29", "except": ["100.64.0.2/31"]}}])),
            vec!["lab/web", "lab/spy", "kube-system/dns"],
        ),
        (
            "two rules",
            json!({"podSelector": db, "ingress": [
                {"from": [{"podSelector": web}]}, {"from": [{"ipBlock": {"cidr": "9.9.9.9/32"}}]}]}),
            vec!["shop/web", "9.9.9.9"],
        ),
        (
            "about egress only",
            json!({"podSelector": db, "policyTypes": ["Egress"]}),
            all.clone(),
        ),
        (
            "a selector nobody can read isolates everybody",
            json!({"podSelector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}),
            vec![],
        ),
        (
            "a peer nobody can read is nobody",
            from(json!([{"ipBlock": {"cidr": "nonsense"}}, {"podSelector": web}])),
            vec!["shop/web"],
        ),
    ] {
        assert_eq!(who_reaches_the_database(spec), expected, "{what}");
    }
}

#[test]
fn policies_add_up() {
    let rule = |name: &str, app: &str| {
        let from = json!([{"podSelector": {"matchLabels": {"app": app}}}]);
        policy(
            name,
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [{"from": from}]}),
        )
    };
    let deny = policy("deny", json!({"podSelector": {}}));
    let world = shop(&[deny, rule("a", "web"), rule("b", "api")]);
    let reaches = |from, to| world.allows(from, to, 80, Protocol::Tcp);
    assert!(reaches("shop/web", "shop/db") && reaches("shop/api", "shop/db"));
    assert!(!reaches("lab/web", "shop/db") && !reaches("shop/web", "shop/api"));
    assert!(
        reaches("shop/web", "lab/web"),
        "another namespace's pods are its own business"
    );
}

#[test]
fn ports_are_numbers_names_and_ranges() {
    for (ports, tcp) in [
        (json!([]), vec![80, 8080, 9000]),
        (json!([{"port": 80}]), vec![80]),
        (json!([{"port": 80, "protocol": "UDP"}]), vec![]),
        (json!([{"protocol": "TCP"}]), vec![80, 8080, 9000]),
        (json!([{"port": "web"}]), vec![8080]),
        (json!([{"port": "dns"}]), vec![]),
        (json!([{"port": "nothing"}]), vec![]),
        (json!([{"port": 8000, "endPort": 9000}]), vec![8080, 9000]),
        (json!([{"port": 80}, {"port": "web"}]), vec![80, 8080]),
    ] {
        let web = json!({"matchLabels": {"app": "web"}});
        let db = json!({"matchLabels": {"app": "db"}});
        let ingress = json!({"podSelector": db, "ingress": [{"from": [{"podSelector": web}], "ports": ports}]});
        let egress = json!({"podSelector": web, "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": db}], "ports": ports}]});
        for spec in [ingress, egress] {
            let world = shop(&[policy("p", spec)]);
            let open: Vec<u16> = [80, 8080, 9000]
                .into_iter()
                .filter(|port| world.allows("shop/web", "shop/db", *port, Protocol::Tcp))
                .collect();
            assert_eq!(open, tcp, "{ports}");
        }
    }
}

#[test]
fn egress_recipes_mean_what_they_say() {
    let dns = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    let only_dns = json!([{"to": [dns], "ports": [{"port": 53, "protocol": "UDP"}, {"port": 53}]}]);
    let web = json!({"matchLabels": {"app": "web"}});
    let reached = |spec: Value| -> Vec<String> {
        let world = shop(&[policy("p", spec)]);
        let targets = [
            ("shop/db", 80, Protocol::Tcp),
            ("lab/web", 80, Protocol::Tcp),
            ("kube-system/dns", 53, Protocol::Udp),
            ("kube-system/dns", 53, Protocol::Tcp),
            ("kube-system/dns", 80, Protocol::Tcp),
            ("9.9.9.9", 443, Protocol::Tcp),
        ];
        let reaches = targets
            .into_iter()
            .filter(|(to, port, p)| world.allows("shop/web", to, *port, *p));
        reaches
            .map(|(to, port, protocol)| format!("{to} {port}/{}", protocol.as_str()))
            .collect()
    };
    let everything = reached(json!({"podSelector": {"matchLabels": {"app": "nobody"}}}));
    assert_eq!(everything.len(), 6);
    let none: [String; 0] = [];
    assert_eq!(
        reached(json!({"podSelector": web, "policyTypes": ["Egress"]})),
        none
    );
    // An empty list of rules says nothing about egress unless policyTypes does.
    assert_eq!(
        reached(json!({"podSelector": web, "egress": []})),
        everything
    );
    assert_eq!(
        reached(json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": only_dns})),
        ["kube-system/dns 53/UDP", "kube-system/dns 53/TCP"]
    );
    // Nothing outside: all pods of all namespaces.
    assert_eq!(
        reached(
            json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"namespaceSelector": {}}]}]})
        ),
        everything[..5]
    );
    assert_eq!(
        reached(json!({"podSelector": web, "policyTypes": ["Egress"],
            "egress": [{"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["100.64.0.0/10"]}}]}]})),
        ["9.9.9.9 443/TCP"]
    );
}

#[test]
fn who_is_not_known_yet_is_not_judged_for_good() {
    let from = json!([{"podSelector": {"matchLabels": {"app": "web"}}}]);
    let spec = json!({"podSelector": {}, "ingress": [{"from": from}]});
    let world = shop(&[policy("p", spec.clone())]);
    let db = world.end("shop/db").pod.unwrap();
    let at = At {
        port: 80,
        protocol: Protocol::Tcp,
    };
    let verdict = |stranger, namespaces: &Namespaces| {
        let other = End {
            ip: "100.64.9.9".parse().unwrap(),
            pod: None,
            stranger,
        };
        let policies = world.table.of("shop");
        match judge(policies, namespaces, Direction::Ingress, &db, &other, at) {
            Verdict::Unknown(_) => "unknown",
            Verdict::Denied(_) => "denied",
            _ => "passes",
        }
    };
    assert_eq!(verdict(true, &world.table.namespaces), "unknown");
    assert_eq!(verdict(false, &world.table.namespaces), "denied");
}

#[test]
fn pods_that_end_give_their_address_back() {
    let mut ended = pod("shop", "old", "100.64.0.2", json!({"app": "old"}));
    ended["status"]["phase"] = "Succeeded".into();
    let world = World::new(
        Namespaces::of(&["shop"]),
        vec![
            pod("shop", "new", "100.64.0.2", json!({"app": "new"})),
            ended,
        ],
        &[policy("p", json!({"podSelector": {}}))],
    );
    let owner = world.table.peers.at("100.64.0.2".parse().unwrap()).unwrap();
    assert_eq!(&*owner.name, "new");
    assert_eq!(world.pods.len(), 2);
}

#[test]
fn what_pods_had_in_common_is_forgotten_with_them() {
    let mut index = Index::default();
    index.pod(Event::Init);
    index.pod(Event::InitDone);
    let mut last = index.publish(&Table::unknown()).table;
    for number in 0..5_000 {
        let labels = json!({"pod-template-hash": number.to_string()});
        let name = format!("job-{number}");
        let pod: k8s_openapi::api::core::v1::Pod =
            serde_json::from_value(pod("shop", &name, "100.64.0.5", labels)).unwrap();
        index.pod(Event::Apply(pod.clone()));
        last = index.publish(&last).table;
        index.pod(Event::Delete(pod));
        last = index.publish(&last).table;
        assert!(
            index.interned() <= 256,
            "{} after {number}",
            index.interned()
        );
    }
}

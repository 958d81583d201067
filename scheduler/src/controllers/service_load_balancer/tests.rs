//! What plans for load-balanced Services promise.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn service(name: &str, created: i64, spec: Value) -> Service {
    let created = Timestamp::from_second(created).expect("a time").to_string();
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "7",
                     "creationTimestamp": created},
        "spec": spec,
    }))
    .expect("a service")
}

fn balancer(name: &str) -> Service {
    service(
        name,
        0,
        json!({"type": "LoadBalancer", "ports": [{"port": 80, "nodePort": 30001}]}),
    )
}

fn node(
    name: &str,
    ip: [u8; 4],
    services: &[&Service],
    deviations: Vec<Deviation>,
) -> Arc<NodeView> {
    let digests = services
        .iter()
        .map(|s| listeners::digest(&s.metadata.uid, &s.spec))
        .collect();
    Arc::new(NodeView {
        name: name.to_owned(),
        eligible: true,
        address: Some(ip.into()),
        report: Report::new(Some(ip.into()), digests, Vec::new(), deviations),
    })
}

use types::listeners::{Deviation, Report};

fn taken(kind: &str, wanted: u16, got: Option<u16>) -> Deviation {
    Deviation {
        namespace: "default".to_owned(),
        service: "web".to_owned(),
        kind: kind.to_owned(),
        port: 80,
        protocol: "TCP".to_owned(),
        wanted,
        got,
        problem: format!("port {wanted} is taken on 192.0.2.7"),
    }
}

fn observed(service: Service, nodes: Vec<Arc<NodeView>>) -> Observed {
    Observed {
        service: Arc::new(service),
        nodes,
        local: BTreeSet::new(),
        pool: None,
        holders: Holders::new(),
    }
}

/// The Service after the actions.
fn carry_out(service: &Service, actions: &[Action]) -> Service {
    let mut service = service.clone();
    for action in actions {
        if let Action::PatchStatus(patch) = action {
            let mut status = json!(service.status);
            for (key, value) in patch["status"].as_object().expect("a status") {
                status[key] = value.clone();
            }
            service.status = serde_json::from_value(status).expect("a status");
        }
        if let Action::Patch(patch) = action {
            let said = &patch["metadata"]["annotations"][ANNOTATION_LISTENERS];
            match said.as_str() {
                Some(text) => service
                    .metadata
                    .annotations
                    .insert(ANNOTATION_LISTENERS.to_owned(), text.to_owned()),
                None => service.metadata.annotations.remove(ANNOTATION_LISTENERS),
            };
        }
    }
    service
}

fn addresses(service: &Service) -> Vec<String> {
    let all = listeners::ingress(Some(&service.status)).iter();
    all.filter_map(|ingress| ingress.ip.clone()).collect()
}

fn told(actions: &[Action]) -> Vec<String> {
    let told = actions.iter().filter_map(|action| match action {
        Action::Tell {
            reason, message, ..
        } => Some(format!("{reason}: {message}")),
        _ => None,
    });
    told.collect()
}

#[test]
fn the_nodes_that_listen_are_the_addresses() {
    let web = balancer("web");
    let nodes = vec![
        node("a", [192, 0, 2, 7], &[&web], vec![]),
        node("b", [192, 0, 2, 8], &[&web], vec![]),
        node("c", [192, 0, 2, 9], &[], vec![]),
    ];
    let world = observed(web.clone(), nodes.clone());
    let actions = plan(&world, NOW);
    let [Action::PatchStatus(patch)] = actions.as_slice() else {
        panic!("one patch: {actions:?}");
    };
    assert_eq!(
        patch["status"]["loadBalancer"]["ingress"][0],
        json!({"ip": "192.0.2.7", "ipMode": "Proxy", "ports": [{"port": 80, "protocol": "TCP"}]})
    );
    assert_eq!(patch["metadata"]["uid"], "uid-web");
    let after = carry_out(&web, &actions);
    assert_eq!(
        addresses(&after),
        ["192.0.2.7", "192.0.2.8"],
        "c has not seen it yet"
    );
    assert!(
        plan(&observed(after.clone(), nodes.clone()), NOW).is_empty(),
        "planning twice does nothing"
    );

    let mut gone = (*nodes[0]).clone();
    gone.eligible = false;
    let world = observed(after, vec![Arc::new(gone), Arc::clone(&nodes[1])]);
    assert_eq!(
        addresses(&carry_out(&world.service, &plan(&world, NOW))),
        ["192.0.2.8"]
    );
}

#[test]
fn a_local_policy_lists_nodes_with_endpoints() {
    let spec =
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "ports": [{"port": 80}]});
    let web = service("web", 0, spec);
    let nodes = vec![
        node("a", [192, 0, 2, 7], &[&web], vec![]),
        node("b", [192, 0, 2, 8], &[&web], vec![]),
    ];
    let mut world = observed(web.clone(), nodes);
    world.local.insert("b".to_owned());
    assert_eq!(
        addresses(&carry_out(&web, &plan(&world, NOW))),
        ["192.0.2.8"]
    );
}

#[test]
fn a_replaced_port_is_told_in_status_annotation_and_event() {
    let web = balancer("web");
    let alone = vec![node(
        "a",
        [192, 0, 2, 7],
        &[&web],
        vec![taken("LoadBalancer", 80, Some(40123))],
    )];
    let world = observed(web.clone(), alone);
    let actions = plan(&world, NOW);
    let after = carry_out(&web, &actions);
    assert_eq!(after.metadata.annotations[ANNOTATION_LISTENERS], "80=40123");
    let ports = listeners::ingress(Some(&after.status))[0]
        .ports
        .clone()
        .expect("ports");
    assert_eq!(ports[0].error.as_deref(), Some("coracle.dev/PortReplaced"));
    assert_eq!(
        told(&actions),
        [
            "PortReplaced: Listening on 192.0.2.7:40123 instead of port 80: port 80 is taken on 192.0.2.7"
        ]
    );

    let two = vec![
        node(
            "a",
            [192, 0, 2, 7],
            &[&web],
            vec![
                taken("LoadBalancer", 80, None),
                taken("NodePort", 30001, Some(40124)),
            ],
        ),
        node("b", [192, 0, 2, 8], &[&web], vec![]),
    ];
    let world = observed(after, two);
    let actions = plan(&world, NOW);
    let after = carry_out(&world.service, &actions);
    assert_eq!(
        after.metadata.annotations[ANNOTATION_LISTENERS],
        "30001=40124@a"
    );
    assert_eq!(addresses(&after), ["192.0.2.8"], "a listens on no port");
    assert!(told(&actions)[0].starts_with("PortUnavailable: Not listening on port 80 (node a): "));
    let healed = observed(after, vec![node("b", [192, 0, 2, 8], &[&web], vec![])]);
    let after = carry_out(&healed.service, &plan(&healed, NOW));
    assert!(after.metadata.annotations.is_empty());
}

#[test]
fn somebody_elses_balancer_is_left_alone() {
    let spec = json!({"type": "LoadBalancer", "loadBalancerClass": "example.com/other", "ports": [{"port": 80}]});
    let mut web = service("web", 0, spec);
    web.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.1"}]}}))
            .expect("a status");
    let mut world = observed(
        web.clone(),
        vec![node("a", [192, 0, 2, 7], &[&web], vec![])],
    );
    world.pool = "192.0.2.10".parse().ok();
    assert!(plan(&world, NOW).is_empty());
    let mut was = (*world.service).clone();
    was.spec.type_ = Some("ClusterIP".to_owned());
    was.spec.load_balancer_class = None;
    let world = observed(was, vec![]);
    let after = carry_out(&world.service, &plan(&world, NOW));
    assert!(addresses(&after).is_empty(), "no balancer any more");
}

fn with_pool(service: &Service, pool: &str, holders: Holders) -> Observed {
    Observed {
        pool: pool.parse().ok(),
        holders,
        ..observed(service.clone(), vec![])
    }
}

#[test]
fn an_address_of_the_pool_is_given_and_kept() {
    let web = balancer("web");
    let world = with_pool(&web, "192.0.2.10-192.0.2.11", Holders::new());
    let actions = plan(&world, NOW);
    assert_eq!(
        told(&actions),
        ["IPAllocated: Assigned IP [\"192.0.2.10\"]"]
    );
    let after = carry_out(&web, &actions);
    let ingress = &listeners::ingress(Some(&after.status))[0];
    assert_eq!(
        (ingress.ip_mode.as_deref(), &ingress.ports),
        (Some("VIP"), &None)
    );
    let condition = &after.status.conditions.as_ref().expect("conditions")[0];
    assert_eq!(
        (condition.type_.as_str(), condition.status.as_str()),
        ("coracle.dev/PoolAddress", "True")
    );
    let again = with_pool(
        &after,
        "192.0.2.10-192.0.2.11",
        holders(&[Arc::new(after.clone())]),
    );
    assert!(plan(&again, NOW).is_empty(), "planning twice does nothing");
    let no_pool = observed(after, vec![]);
    let after = carry_out(&no_pool.service, &plan(&no_pool, NOW));
    assert!(addresses(&after).is_empty() && after.status.conditions.is_none_or(|c| c.is_empty()));
}

#[test]
fn who_gets_no_address_is_told_why() {
    let other = |ip: [u8; 4]| {
        let holder = Holder {
            key: Key::new("default", "other"),
            terms: Terms::default(),
        };
        Holders::from([(IpAddr::from(ip), vec![holder])])
    };
    let why = |service: &Service, pool: &str, holders| {
        let actions = plan(&with_pool(service, pool, holders), NOW);
        let after = carry_out(service, &actions);
        assert!(addresses(&after).is_empty());
        let condition = after.status.conditions.expect("conditions").remove(0);
        assert_eq!(condition.status, "False");
        (condition.reason, told(&actions).remove(0))
    };
    let web = balancer("web");
    let (reason, event) = why(&web, "192.0.2.10", other([192, 0, 2, 10]));
    assert_eq!(reason, "Exhausted");
    assert_eq!(
        event,
        "AllocationFailed: Failed to allocate IP for \"default/web\": no available IPs in the address pool 192.0.2.10"
    );
    let asks = |ip: &str| {
        service(
            "web",
            0,
            json!({"type": "LoadBalancer", "loadBalancerIP": ip, "ports": [{"port": 80}]}),
        )
    };
    assert_eq!(
        why(&asks("198.51.100.1"), "192.0.2.10", Holders::new()).0,
        "NotInPool"
    );
    assert_eq!(
        why(&asks("192.0.2.10"), "192.0.2.10", other([192, 0, 2, 10])).0,
        "Taken"
    );
    let class = service(
        "web",
        0,
        json!({"type": "LoadBalancer", "loadBalancerClass": CLASS_POOL, "ports": [{"port": 80}]}),
    );
    let world = observed(class.clone(), vec![]);
    let after = carry_out(&class, &plan(&world, NOW));
    assert_eq!(
        after.status.conditions.expect("conditions")[0].reason,
        "NoPool"
    );
}

#[test]
fn an_address_asked_for_is_given() {
    let asks = service(
        "web",
        0,
        json!({"type": "LoadBalancer", "loadBalancerIP": "192.0.2.11", "ports": [{"port": 80}]}),
    );
    let world = with_pool(&asks, "192.0.2.10/31", Holders::new());
    assert_eq!(
        addresses(&carry_out(&asks, &plan(&world, NOW))),
        ["192.0.2.11"]
    );
}

/// A Service of the pool: its port, its annotations, more of its spec.
fn sharing(name: &str, created: i64, port: i32, annotations: Value, more: Value) -> Service {
    let mut spec = json!({"type": "LoadBalancer", "ports": [{"port": port}]});
    for (key, value) in more.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    let mut service = service(name, created, spec);
    service.metadata.annotations = serde_json::from_value(annotations).expect("annotations");
    service
}

/// The addresses of all after everybody's pass, twice; and what was told of the last one.
fn settle(services: Vec<Service>, pool: &str) -> (Vec<String>, Vec<String>) {
    let mut services = services;
    let mut events = Vec::new();
    for _ in 0..2 {
        for at in 0..services.len() {
            let all: Vec<Arc<Service>> = services.iter().cloned().map(Arc::new).collect();
            let world = with_pool(&services[at], pool, holders(&all));
            let actions = plan(&world, NOW);
            events = told(&actions);
            services[at] = carry_out(&services[at], &actions);
        }
    }
    let all = services.iter().map(|s| addresses(s).join(","));
    (all.collect(), events)
}

#[test]
fn services_that_allow_it_share_an_address() {
    let pool = "192.0.2.10-192.0.2.11";
    let metallb = json!({"metallb.universe.tf/allow-shared-ip": "k"});
    let ours = json!({"coracle.dev/allow-shared-ip": "k"});
    let none = json!({});
    let (a, b) = ("192.0.2.10".to_owned(), "192.0.2.11".to_owned());
    let local = |app: &str| json!({"externalTrafficPolicy": "Local", "selector": {"app": app}});
    let one = |annotations: &Value, more: Value| sharing("one", 1, 80, annotations.clone(), more);
    let two =
        |annotations: &Value, port, more: Value| sharing("two", 2, port, annotations.clone(), more);
    for (first, second, expected, why) in [
        (
            one(&metallb, none.clone()),
            two(&ours, 443, none.clone()),
            [&a, &a],
            "same key, other port",
        ),
        (
            one(&metallb, none.clone()),
            two(&ours, 80, none.clone()),
            [&a, &b],
            "the same port",
        ),
        (
            one(&none, none.clone()),
            two(&ours, 443, none.clone()),
            [&a, &b],
            "one allows it",
        ),
        (
            one(&none, none.clone()),
            two(&none, 443, none.clone()),
            [&a, &b],
            "nobody allows it",
        ),
        (
            one(&ours, local("x")),
            two(&ours, 443, local("x")),
            [&a, &a],
            "Local, the same pods",
        ),
        (
            one(&ours, local("x")),
            two(&ours, 443, local("y")),
            [&a, &b],
            "Local, other pods",
        ),
        (
            one(&ours, local("x")),
            two(&ours, 443, none.clone()),
            [&a, &b],
            "one is Local",
        ),
    ] {
        let (got, _) = settle(vec![first, second], pool);
        assert_eq!(got, expected.map(String::clone), "{why}");
    }
}

#[test]
fn an_address_asked_for_by_annotation_is_given_or_refused_with_the_reason() {
    let pool = "192.0.2.10-192.0.2.11";
    let asks = json!({"metallb.universe.tf/loadBalancerIPs": "192.0.2.11", "metallb.universe.tf/address-pool": "prod"});
    let first = sharing("one", 1, 80, asks.clone(), json!({}));
    let (got, events) = settle(vec![first.clone()], pool);
    assert_eq!(got, ["192.0.2.11"]);
    assert_eq!(
        events,
        [
            "AnnotationNotSupported: address-pool \"prod\" is not looked at: there is one pool (--load-balancer-pool)"
        ]
    );
    let second = sharing(
        "two",
        2,
        443,
        json!({"metallb.universe.tf/loadBalancerIPs": "192.0.2.11"}),
        json!({}),
    );
    let (got, events) = settle(vec![first.clone(), second], pool);
    assert_eq!(got, ["192.0.2.11", ""]);
    assert!(
        events[0].contains("is the address of Service default/one and cannot be shared with it: they do not both allow it"),
        "{events:?}"
    );
    let both = sharing("two", 2, 443, asks, json!({"loadBalancerIP": "192.0.2.10"}));
    let (_, events) = settle(vec![both], pool);
    assert!(events[0].contains("differ"), "{events:?}");
    let six = json!({"metallb.universe.tf/loadBalancerIPs": "192.0.2.10,2001:db8::1"});
    let (_, events) = settle(vec![sharing("two", 2, 443, six, json!({}))], pool);
    assert!(events[0].contains("is not an address"), "{events:?}");
}

#[test]
fn who_no_longer_fits_gets_another_address() {
    let ours = json!({"coracle.dev/allow-shared-ip": "k"});
    let mut one = sharing("one", 1, 80, ours.clone(), json!({}));
    let mut two = sharing("two", 2, 443, ours, json!({}));
    let at = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.10", "ipMode": "VIP"}]}});
    for service in [&mut one, &mut two] {
        service.status = serde_json::from_value(at.clone()).expect("a status");
    }
    // The older one takes the other's port.
    one.spec.ports = two.spec.ports.clone();
    let (got, _) = settle(vec![one, two], "192.0.2.10-192.0.2.11");
    assert_eq!(got, ["192.0.2.10", "192.0.2.11"]);
}

proptest! {
    /// Whatever happens to Services and pool, in the end every address has one holder, and no address is idle while a
    /// Service waits for one.
    #[test]
    fn no_address_is_given_twice(
        steps in proptest::collection::vec((0_usize..8, 0_u8..6), 1..60),
        size in 1_u8..6,
    ) {
        let pool = format!("192.0.2.1-192.0.2.{size}");
        let mut services: BTreeMap<usize, Service> = BTreeMap::new();
        for (which, what) in steps {
            let name = format!("s{which}");
            match what {
                0 => { services.remove(&which); }
                1 => {
                    // Somebody wrote an address that may be another's.
                    if let Some(service) = services.get_mut(&which) {
                        service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [
                            {"ip": "192.0.2.1", "ipMode": "VIP"}]}})).expect("a status");
                    }
                }
                _ => {
                    let spec = json!({"type": "LoadBalancer", "ports": [{"port": 80}]});
                    services.entry(which).or_insert_with(|| service(&name, i64::try_from(which).expect("small"), spec));
                }
            }
            // Passes in any order, each seeing the last one's write.
            for _ in 0..2 {
                for key in services.keys().copied().collect::<Vec<_>>() {
                    let all: Vec<Arc<Service>> = services.values().cloned().map(Arc::new).collect();
                    let world = with_pool(&services[&key], &pool, holders(&all));
                    let after = carry_out(&services[&key], &plan(&world, NOW));
                    services.insert(key, after);
                }
            }
            let mut held: Vec<String> = services.values().flat_map(addresses).collect();
            let count = held.len();
            held.sort();
            held.dedup();
            prop_assert_eq!(held.len(), count, "given twice");
            prop_assert_eq!(count, services.len().min(usize::from(size)), "idle while somebody waits");
        }
    }
}

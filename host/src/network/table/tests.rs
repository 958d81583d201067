//! What the table makes of objects. Its makers of objects serve other tests too.

use serde_json::{Value, json};

use super::*;

pub(crate) fn service(value: Value) -> Arc<core::Service> {
    Arc::new(serde_json::from_value(value).unwrap())
}

pub(crate) fn slice(value: Value) -> Slice {
    Slice::parse(&serde_json::from_value(value).unwrap()).unwrap()
}

pub(crate) fn web(spec: Value) -> Arc<core::Service> {
    service(json!({"metadata": {"name": "web", "namespace": "default"}, "spec": spec}))
}

pub(crate) fn web_slice(name: &str, ports: Value, endpoints: Value) -> Slice {
    slice(json!({
        "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": ports, "endpoints": endpoints,
    }))
}

fn key() -> Key {
    Key {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    }
}

fn build(spec: Value, slices: &[&Slice]) -> Service {
    Service::build(key(), web(spec), slices, &mut Loads::default(), None)
}

fn addresses(service: &Service, port: u16) -> Vec<String> {
    let port = service.port(port, Protocol::Tcp).unwrap();
    port.endpoints
        .iter()
        .map(|e| e.address.to_string())
        .collect()
}

#[test]
fn only_ready_endpoints_serve() {
    let slice = web_slice(
        "web-1",
        json!([{"name": "", "port": 8080, "protocol": "TCP"}]),
        json!([
            {"addresses": ["100.64.0.2"], "conditions": {"ready": true}},
            {"addresses": ["100.64.0.3"], "conditions": {"ready": false}},
            {"addresses": ["100.64.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["100.64.0.5"]},
        ]),
    );
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    let service = build(spec, &[&slice]);
    assert_eq!(
        addresses(&service, 80),
        ["100.64.0.2:8080", "100.64.0.5:8080", "100.64.0.4:8080"]
    );
    let ready = service.ports[0].endpoints.ready().len();
    assert_eq!(ready, 2, "the one that is leaving is the last resort");
    assert_eq!(service.cluster_ips, [IpAddr::from([10, 96, 0, 7])]);
}

#[test]
fn terminating_endpoints_that_serve_are_the_last_resort() {
    let slice = web_slice(
        "web-1",
        json!([{"port": 8080}]),
        json!([
            {"addresses": ["100.64.0.3"], "conditions": {"ready": false}},
            {"addresses": ["100.64.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["100.64.0.5"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        ]),
    );
    let service = build(
        json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}),
        &[&slice],
    );
    assert_eq!(addresses(&service, 80), ["100.64.0.4:8080"]);
    assert!(service.hosts.is_empty(), "DNS publishes only what is ready");
}

#[test]
fn not_ready_ones_serve_when_the_service_publishes_them() {
    let slice = web_slice(
        "web-1",
        json!([{"port": 8080}]),
        json!([{"addresses": ["100.64.0.3"], "conditions": {"ready": false}}]),
    );
    let spec =
        json!({"clusterIP": "None", "publishNotReadyAddresses": true, "ports": [{"port": 80}]});
    let service = build(spec, &[&slice]);
    assert_eq!(service.kind, Kind::Headless);
    assert_eq!(addresses(&service, 80), ["100.64.0.3:8080"]);
    assert_eq!(service.hosts.len(), 1);
}

#[test]
fn ports_meet_by_name() {
    // A named targetPort may be another number in each pod: one slice per set of numbers.
    let old = web_slice(
        "web-1",
        json!([{"name": "http", "port": 8080}, {"name": "admin", "port": 9090}]),
        json!([{"addresses": ["100.64.0.2"]}]),
    );
    let new = web_slice(
        "web-2",
        json!([{"name": "http", "port": 8081}]),
        json!([{"addresses": ["100.64.0.3"]}]),
    );
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [
        {"name": "http", "port": 80}, {"name": "admin", "port": 81}, {"name": "http", "port": 80, "protocol": "UDP"},
    ]});
    let service = build(spec, &[&old, &new]);
    assert_eq!(
        addresses(&service, 80),
        ["100.64.0.2:8080", "100.64.0.3:8081"]
    );
    assert_eq!(addresses(&service, 81), ["100.64.0.2:9090"]);
    let udp = service.port(80, Protocol::Udp).unwrap();
    assert!(udp.endpoints.is_empty());
}

#[test]
fn load_and_affinity_survive_a_rebuild() {
    let slice = web_slice(
        "web-1",
        json!([{"port": 8080}]),
        json!([{"addresses": ["100.64.0.2"]}]),
    );
    let spec =
        json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    let mut loads = Loads::default();
    let first = Service::build(key(), web(spec.clone()), &[&slice], &mut loads, None);
    let busy = first.ports[0].endpoints[0].load.begin();
    let second = Service::build(key(), web(spec), &[&slice], &mut loads, Some(&first));
    assert_eq!(second.ports[0].endpoints[0].load.get(), 1);
    let clients = |s: &Service| Arc::clone(&s.ports[0].affinity.as_ref().unwrap().clients);
    assert!(Arc::ptr_eq(&clients(&first), &clients(&second)));
    drop((busy, first, second));
    loads.prune();
    assert!(loads.by_address.is_empty());
}

#[test]
fn an_address_moves_with_its_service() {
    let mut table = Table::default();
    let ip = IpAddr::from([10, 96, 0, 7]);
    table.insert(build(
        json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]}),
        &[],
    ));
    assert!(table.at(ip).is_some());
    table.insert(build(
        json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]}),
        &[],
    ));
    assert!(table.at(ip).is_none());
    table.remove(&key());
    assert!(table.services().next().is_none());
    assert!(!table.has_namespace("default"));
}

/// A node `here` in zone `a`.
fn here() -> Loads {
    let mut loads = Loads::new(Arc::new(Nodes::new("here")));
    loads.set_zone(Some("a".to_owned()));
    loads
}

/// Four endpoints: ready ones here, next door and in zone `b`, and one that is leaving, here.
fn spread(hints: [Value; 4]) -> Slice {
    let [here, door, far, leaving] = hints;
    web_slice(
        "web-1",
        json!([{"port": 8080}]),
        json!([
            {"addresses": ["100.64.0.2"], "nodeName": "here", "zone": "a", "hints": here},
            {"addresses": ["100.64.0.3"], "nodeName": "door", "zone": "a", "hints": door},
            {"addresses": ["100.64.0.4"], "nodeName": "far", "zone": "b", "hints": far},
            {"addresses": ["100.64.0.5"], "nodeName": "here", "zone": "a", "hints": leaving,
             "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]),
    )
}

fn unhinted() -> Slice {
    spread([json!(null), json!(null), json!(null), json!(null)])
}

fn zone(name: &str) -> Value {
    json!({"forZones": [{"name": name}]})
}

fn order(port: &Port) -> (Vec<u8>, usize) {
    let last = |e: &Arc<Endpoint>| match e.address.ip() {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(_) => 0,
    };
    (
        port.endpoints.iter().map(last).collect(),
        port.endpoints.ready().len(),
    )
}

fn tcp(service: &Service, scope: Scope) -> (Vec<u8>, usize) {
    order(service.port_for(scope, 80, Protocol::Tcp).unwrap())
}

#[test]
fn hints_for_this_zone_come_first_when_all_have_them() {
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    let built = |slice: &Slice, loads: &mut Loads| {
        let service = Service::build(key(), web(spec.clone()), &[slice], loads, None);
        let picked = |n: usize| {
            let port = service.port(80, Protocol::Tcp).unwrap();
            let none = crate::network::balancer::Tried::default();
            let picked =
                crate::network::balancer::pick(&port.endpoints, &none, 0, |m| n % m).unwrap();
            picked.address.ip().to_string()
        };
        let mut picked: Vec<String> = (0..12).map(picked).collect();
        picked.sort();
        picked.dedup();
        picked
    };
    let hinted = spread([zone("a"), zone("a"), zone("b"), zone("a")]);
    assert_eq!(built(&hinted, &mut here()), ["100.64.0.2", "100.64.0.3"]);
    let some = spread([zone("a"), json!(null), zone("b"), json!(null)]);
    assert_eq!(built(&some, &mut here()).len(), 3, "not all have hints");
    let elsewhere = spread([zone("c"), zone("c"), zone("b"), zone("c")]);
    assert_eq!(
        built(&elsewhere, &mut here()).len(),
        3,
        "none for this zone"
    );
    let mut nowhere = Loads::new(Arc::new(Nodes::new("here")));
    assert_eq!(
        built(&hinted, &mut nowhere).len(),
        3,
        "this node has no zone"
    );
    let node = |name: &str| json!({"forNodes": [{"name": name}], "forZones": [{"name": "a"}]});
    let by_node = spread([node("here"), node("door"), node("far"), node("here")]);
    assert_eq!(built(&by_node, &mut here()), ["100.64.0.2"]);
}

#[test]
fn a_local_policy_leads_to_this_node_only() {
    let slice = unhinted();
    let spec = |internal: &str, external: &str| {
        json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80}],
               "internalTrafficPolicy": internal, "externalTrafficPolicy": external})
    };
    let built = |spec: Value| Service::build(key(), web(spec), &[&slice], &mut here(), None);
    let (all, local) = ((vec![2, 3, 4, 5], 3), (vec![2, 5], 1));
    let both = built(spec("Cluster", "Cluster"));
    assert_eq!(
        (tcp(&both, Scope::Cluster), tcp(&both, Scope::External)),
        (all.clone(), all.clone())
    );
    assert!(both.external.is_empty(), "kept once");
    let outside = built(spec("Cluster", "Local"));
    assert_eq!(
        (
            tcp(&outside, Scope::Cluster),
            tcp(&outside, Scope::External)
        ),
        (all.clone(), local.clone())
    );
    let inside = built(spec("Local", "Cluster"));
    assert_eq!(
        (tcp(&inside, Scope::Cluster), tcp(&inside, Scope::External)),
        (local.clone(), all)
    );
    assert_eq!(inside.local_ready(), 1);
    let neither = built(spec("Local", "Local"));
    assert_eq!(
        (
            tcp(&neither, Scope::Cluster),
            tcp(&neither, Scope::External)
        ),
        (local.clone(), local)
    );
}

#[test]
fn where_an_endpoint_is_says_its_slice() {
    let slice = unhinted();
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    let mut loads = here();
    let service = Service::build(key(), web(spec), &[&slice], &mut loads, None);
    let port = service.port(80, Protocol::Tcp).unwrap();
    let local: Vec<bool> = port.endpoints.iter().map(|e| e.is_local()).collect();
    assert_eq!(local, [true, false, false, true]);
    let names = |e: &Arc<Endpoint>| e.node.as_ref().map(|node| node.name.to_string());
    assert_eq!(names(&port.endpoints[2]).as_deref(), Some("far"));
    loads.nodes.get("far").set_reachable(false);
    assert!(
        !port.endpoints[2].node.as_ref().unwrap().is_reachable(),
        "it is the same node"
    );
}

#[test]
fn services_that_share_an_address_are_told_apart_by_port() {
    let mut table = Table::default();
    let ip = IpAddr::from([192, 0, 2, 40]);
    let shared = |name: &str, port: u16, at: &str| {
        let mut object = json!({"metadata": {"name": name, "namespace": "default", "uid": name},
            "spec": {"type": "LoadBalancer", "clusterIP": at, "ports": [{"port": port}]}});
        object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.40", "ipMode": "VIP"}]},
            "conditions": [{"type": "coracle.dev/PoolAddress", "status": "True", "reason": "Assigned", "message": "",
                            "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
        let key = Key {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        };
        Service::build(key, service(object), &[], &mut Loads::default(), None)
    };
    table.insert(shared("web", 80, "10.96.0.7"));
    table.insert(shared("mail", 25, "10.96.0.8"));
    let whose = |table: &Table, port| {
        let mut at = table.at(ip).into_iter().flatten();
        at.find_map(|s| Some(s.port(port, Protocol::Tcp)?.service.name.clone()))
    };
    assert_eq!(whose(&table, 80).as_deref(), Some("web"));
    assert_eq!(whose(&table, 25).as_deref(), Some("mail"));
    assert_eq!(whose(&table, 443), None);
    table.remove(&Key {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
    });
    assert_eq!(whose(&table, 80), None);
    assert_eq!(whose(&table, 25).as_deref(), Some("mail"));
}

#[test]
fn endpoints_of_another_family_are_not_the_services() {
    let four = web_slice(
        "web-4",
        json!([{"port": 8080}]),
        json!([{"addresses": ["100.64.0.2"]}]),
    );
    let six = slice(json!({
        "addressType": "IPv6",
        "metadata": {"name": "web-6", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 8080}], "endpoints": [{"addresses": ["2001:db8::2"]}],
    }));
    let spec = |ip: &str| json!({"clusterIP": ip, "ports": [{"port": 80}]});
    let service = build(spec("10.96.0.7"), &[&four, &six]);
    assert_eq!(addresses(&service, 80), ["100.64.0.2:8080"]);
    assert_eq!(service.ports[0].endpoints.ready().len(), 1);
    let headless = build(spec("None"), &[&four, &six]);
    assert_eq!(headless.hosts.len(), 2, "names lead to both");
}

#[test]
fn at_an_address_of_the_pool_no_traffic_policy_is_for_pods() {
    let (pool, own) = (IpAddr::from([192, 0, 2, 40]), IpAddr::from([10, 96, 0, 7]));
    let built = |internal: &str, external: &str| {
        let object = service(json!({"metadata": {"name": "web", "namespace": "default"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}],
                     "internalTrafficPolicy": internal, "externalTrafficPolicy": external,
                     "loadBalancerSourceRanges": ["100.64.0.0/18", "nonsense"]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.40", "ipMode": "VIP"}]},
                "conditions": [{"type": "coracle.dev/PoolAddress", "status": "True", "reason": "Assigned", "message": "",
                                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}));
        Service::build(key(), object, &[&unhinted()], &mut here(), None)
    };
    let (all, local) = ((vec![2, 3, 4, 5], 3), (vec![2, 5], 1));
    for (internal, external) in [
        ("Cluster", "Cluster"),
        ("Cluster", "Local"),
        ("Local", "Cluster"),
        ("Local", "Local"),
    ] {
        let service = built(internal, external);
        let at = |ip: IpAddr| order(service.port_at(ip, 80, Protocol::Tcp).unwrap());
        assert_eq!(at(pool), all, "{internal}, {external}");
        let expected = if internal == "Local" { &local } else { &all };
        assert_eq!(at(own), *expected, "{internal}, {external}");
        let admits = |ip: IpAddr, client: [u8; 4]| service.admits(ip, client.into());
        assert!(admits(pool, [100, 64, 0, 5]) && !admits(pool, [100, 64, 64, 5]));
        assert!(
            admits(own, [100, 64, 64, 5]),
            "its ClusterIP is everybody's"
        );
    }
}

#[test]
fn an_address_outside_the_range_is_no_services() {
    let mut table = Table::of("10.96.0.0/16".parse().unwrap());
    let ips = json!(["10.96.0.7", "8.8.8.8", "2001:db8::1"]);
    let spec = json!({"clusterIP": "10.96.0.7", "clusterIPs": ips, "ports": [{"port": 80}]});
    let service = build(spec, &[]);
    assert_eq!(table.foreign(&service).count(), 2);
    table.insert(service);
    let is_served = |ip: &str| table.at(ip.parse().unwrap()).is_some();
    assert!(is_served("10.96.0.7"));
    assert!(!is_served("8.8.8.8") && !is_served("2001:db8::1"));
    table.remove(&key());
    assert!(table.at("10.96.0.7".parse().unwrap()).is_none());
}

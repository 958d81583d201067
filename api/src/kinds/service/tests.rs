//! Services: defaults, validation, and the life of cluster IPs and node ports in a small world.

use serde_json::{Value, json};

use super::SERVICE;
use crate::kinds::strategy::{Door, Strategy};
use crate::kinds::testing::{World, check, check_update, defaulted, yaml};
use crate::object::Object;

/// A Service in `default`.
fn service(name: &str, spec: &str) -> Object {
    yaml(&format!(
        "{{kind: Service, apiVersion: v1, metadata: {{name: {name}, namespace: default}}, spec: {spec}}}"
    ))
}

/// Writes a service as the generic path does; what was allocated is in the answer.
fn write(world: &mut World, mut new: Object, old: Option<&Object>) -> Result<Object, String> {
    SERVICE.default(&mut new);
    SERVICE.prepare(&mut new, old, Door::Main);
    SERVICE.default(&mut new);
    let causes = SERVICE.validate(&new, old, Door::Main);
    if let Some(cause) = causes.first() {
        return Err(format!("{}: {}", cause.field, cause.message));
    }
    let operations = SERVICE
        .allocate(&mut new, old, &*world)
        .map_err(|error| error.message)?;
    world
        .commit(operations)
        .map_err(|key| format!("conflict on {key}"))?;
    Ok(new)
}

fn ip(service: &Object) -> &str {
    service.str_at(&["spec", "clusterIP"]).unwrap_or_default()
}

fn node_port(service: &Object) -> i64 {
    service.list_at(&["spec", "ports"])[0]["nodePort"]
        .as_i64()
        .unwrap_or(0)
}

fn taken(world: &World, resource: &str) -> Vec<String> {
    use crate::kinds::strategy::Lookup as _;
    let records = world.list(resource, None);
    records
        .iter()
        .map(|record| record.key.name.to_string())
        .collect()
}

const CLUSTER_IP: &str = "{ports: [{port: 80}]}";
const NODE_PORT: &str = "{type: NodePort, ports: [{port: 80}]}";

#[test]
fn a_service_gets_the_observed_defaults() {
    let object = defaulted(
        "services",
        "{metadata: {name: s}, spec: {ports: [{port: 80}]}}",
    );
    assert_eq!(
        object["spec"],
        json!({
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
            "ports": [{"port": 80, "targetPort": 80, "protocol": "TCP"}],
        })
    );
    assert_eq!(object["status"], json!({"loadBalancer": {}}));
    let object = defaulted(
        "services",
        "{metadata: {name: s}, spec: {type: LoadBalancer, sessionAffinity: ClientIP, ports: [{port: 80, targetPort: http}]}}",
    );
    assert_eq!(object["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(object["spec"]["allocateLoadBalancerNodePorts"], true);
    assert_eq!(
        object["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"],
        10800
    );
    assert_eq!(object["spec"]["ports"][0]["targetPort"], "http");
}

#[test]
fn a_cluster_ip_is_chosen_kept_and_freed() {
    let mut world = World::new();
    let made = write(&mut world, service("s", CLUSTER_IP), None).expect("written");
    assert_eq!(made.at(&["spec", "clusterIPs"]), Some(&json!([ip(&made)])));
    assert_eq!(made.at(&["spec", "ipFamilies"]), Some(&json!(["IPv4"])));
    assert_eq!(
        made.str_at(&["spec", "ipFamilyPolicy"]),
        Some("SingleStack")
    );
    assert_eq!(taken(&world, "networking.k8s.io/ipaddresses"), [ip(&made)]);

    let kept = write(&mut world, service("s", CLUSTER_IP), Some(&made)).expect("written");
    assert_eq!(
        ip(&kept),
        ip(&made),
        "an update that says nothing keeps the address"
    );

    let gone = write(
        &mut world,
        service("s", "{type: ExternalName, externalName: example.com}"),
        Some(&kept),
    )
    .expect("written");
    assert_eq!(ip(&gone), "");
    assert_eq!(taken(&world, "networking.k8s.io/ipaddresses"), [""; 0]);

    let back = write(&mut world, service("s", CLUSTER_IP), Some(&gone)).expect("written");
    world.commit(SERVICE.release(&back, &world)).expect("freed");
    assert_eq!(taken(&world, "networking.k8s.io/ipaddresses"), [""; 0]);
}

#[test]
fn a_requested_address_is_honoured_or_refused_in_upstream_words() {
    let mut world = World::new();
    let asked = "{clusterIP: 10.96.0.10, ports: [{port: 53}]}";
    let made = write(&mut world, service("dns", asked), None).expect("written");
    assert_eq!(ip(&made), "10.96.0.10");
    let error = write(&mut world, service("other", asked), None).expect_err("refused");
    assert_eq!(
        error,
        "Service \"other\" is invalid: spec.clusterIPs: Invalid value: [\"10.96.0.10\"]: failed to allocate IP 10.96.0.10: \
         provided IP is already allocated"
    );
    let error = write(
        &mut world,
        service("other", "{clusterIP: 1.2.3.4, ports: [{port: 53}]}"),
        None,
    )
    .expect_err("refused");
    assert!(error.contains("the provided IP (1.2.3.4) is not in the valid range. The range of valid IPs is 10.96.0.0/28"), "{error}");
    let error = write(
        &mut world,
        service("dns", "{clusterIP: 10.96.0.9, ports: [{port: 53}]}"),
        Some(&made),
    )
    .expect_err("refused");
    assert_eq!(
        error,
        "spec.clusterIPs[0]: Invalid value: [\"10.96.0.9\"]: may not change once set"
    );
}

#[test]
fn no_write_brings_an_address_that_was_not_allocated() {
    let mut world = World::new();
    let made = write(&mut world, service("s", CLUSTER_IP), None).expect("written");
    let own = ip(&made).to_owned();
    let spec = |one: &str, list: &str| {
        format!("{{clusterIP: '{one}', clusterIPs: [{list}], ports: [{{port: 80}}]}}")
    };
    for (list, why) in [
        (
            format!("'{own}', 10.96.0.9"),
            "no more than one IP for each IP family",
        ),
        (
            format!("'{own}', 8.8.8.8"),
            "no more than one IP for each IP family",
        ),
        (format!("'{own}', '2001:db8::1'"), "IPv6 is not configured"),
        (
            format!("'{own}', '{own}'"),
            "no more than one IP for each IP family",
        ),
    ] {
        let changed = service("s", &spec(&own, &list));
        let error = write(&mut world, changed, Some(&made)).expect_err("refused");
        assert!(error.contains(why), "{list}: {error}");
    }
    for (one, list, why) in [
        ("2001:db8::1", "'2001:db8::1'", "IPv6 is not configured"),
        (
            "None",
            "None, 10.96.0.9",
            "'None' must be the first and only value",
        ),
        (
            "",
            "10.96.0.9",
            "must be empty when `clusterIP` is not specified",
        ),
        (
            "10.96.0.9",
            "10.96.0.9, 10.96.0.11",
            "no more than one IP for each IP family",
        ),
    ] {
        let error = write(&mut world, service("t", &spec(one, list)), None).expect_err("refused");
        assert!(error.contains(why), "{list}: {error}");
    }
    assert_eq!(
        taken(&world, "networking.k8s.io/ipaddresses"),
        [own.as_str()]
    );
    let kept = service("s", &spec(&own, &format!("'{own}'")));
    write(&mut world, kept, Some(&made)).expect("the same address is no change");
}

#[test]
fn a_full_range_says_so_and_never_gives_one_address_twice() {
    let mut world = World::new();
    let mut seen = Vec::new();
    for n in 0..14 {
        let made = write(&mut world, service(&format!("s{n}"), CLUSTER_IP), None)
            .expect("a /28 has 14 addresses");
        assert!(!seen.contains(&ip(&made).to_owned()));
        seen.push(ip(&made).to_owned());
    }
    let error = write(&mut world, service("last", CLUSTER_IP), None).expect_err("full");
    assert_eq!(
        error,
        "Internal error occurred: failed to allocate a serviceIP: range is full"
    );
}

#[test]
fn node_ports_follow_the_type() {
    let mut world = World::new();
    let made = write(&mut world, service("s", NODE_PORT), None).expect("written");
    let port = node_port(&made);
    assert!((30000..=30002).contains(&port));
    let kept = write(
        &mut world,
        service("s", "{type: LoadBalancer, ports: [{port: 80, name: web}]}"),
        Some(&made),
    )
    .expect("written");
    assert_eq!(
        node_port(&kept),
        port,
        "protocol and port are the same, so is the node port"
    );
    // A client that sends back all it got, with another type, loses the node port.
    let mut back = kept.clone();
    back.set(&["spec", "type"], "ClusterIP".into());
    let plain = write(&mut world, back, Some(&kept)).expect("written");
    assert_eq!(node_port(&plain), 0);
    assert_eq!(plain.at(&["spec", "externalTrafficPolicy"]), None);
    assert_eq!(taken(&world, "nodeports"), [""; 0]);
}

#[test]
fn requested_node_ports_are_honoured_or_refused() {
    let mut world = World::new();
    let asked = "{type: NodePort, ports: [{port: 80, nodePort: 30001}]}";
    let made = write(&mut world, service("a", asked), None).expect("written");
    assert_eq!(node_port(&made), 30001);
    assert_eq!(
        write(&mut world, service("b", asked), None).expect_err("refused"),
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 30001: provided port is already allocated"
    );
    assert_eq!(
        write(
            &mut world,
            service("b", "{type: NodePort, ports: [{port: 80, nodePort: 80}]}"),
            None
        )
        .expect_err("refused"),
        "Service \"b\" is invalid: spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The \
         range of valid ports is 30000-30002"
    );
    let both = "{type: NodePort, ports: [{port: 53, name: t}, {port: 53, name: u, protocol: UDP}, {port: 54, name: v}]}";
    let made = write(&mut world, service("dns", both), None)
        .expect("TCP and UDP of one port share a node port");
    let ports: Vec<&Value> = made
        .list_at(&["spec", "ports"])
        .iter()
        .map(|port| &port["nodePort"])
        .collect();
    assert_eq!(ports[0], ports[1]);
    assert_ne!(ports[0], ports[2]);
    assert_eq!(
        write(&mut world, service("c", NODE_PORT), None).expect_err("full"),
        "Internal error occurred: failed to allocate a nodePort: range is full"
    );
}

#[test]
fn a_local_load_balancer_has_a_health_port() {
    let mut world = World::new();
    let spec = "{type: LoadBalancer, externalTrafficPolicy: Local, ports: [{port: 80}]}";
    let made = write(&mut world, service("s", spec), None).expect("written");
    let health = made
        .i64_at(&["spec", "healthCheckNodePort"])
        .expect("chosen");
    assert_ne!(health, node_port(&made));
    assert_eq!(taken(&world, "nodeports").len(), 2);
    assert_eq!(SERVICE.release(&made, &world).len(), 3);
}

#[test]
fn headless_services_have_no_address() {
    let mut world = World::new();
    let made = write(&mut world, service("s", "{clusterIP: None}"), None).expect("written");
    assert_eq!(made.at(&["spec", "clusterIPs"]), Some(&json!(["None"])));
    assert_eq!(taken(&world, "networking.k8s.io/ipaddresses"), [""; 0]);
    assert_eq!(
        write(
            &mut world,
            service("t", "{ipFamilies: [IPv6], ports: [{port: 1}]}"),
            None
        )
        .expect_err("refused"),
        "Service \"t\" is invalid: spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster"
    );
}

#[test]
fn a_bad_service_is_told_every_field() {
    check(
        "services",
        "{metadata: {name: s}, spec: {}}",
        &["spec.ports: Required value"],
    );
    check(
        "services",
        "{metadata: {name: s}, spec: {type: Magic, clusterIP: x, clusterIPs: [x], sessionAffinity: Forever, ports: [{port: 0, nodePort: 30000}, {port: 80, targetPort: 0x, name: a}, {port: 80, name: a}]}}",
        &[
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
            "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
            "spec.sessionAffinity: Unsupported value: \"Forever\": supported values: \"ClientIP\", \"None\"",
            "spec.ports[0].name: Required value",
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'Magic'",
            "spec.ports[2].name: Duplicate value: \"a\"",
            "spec.ports[2]: Duplicate value: {\"port\":80,\"protocol\":\"TCP\"}",
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ],
    );
    check(
        "services",
        "{metadata: {name: s}, spec: {externalTrafficPolicy: Local, ports: [{port: 1}]}}",
        &[
            "spec.externalTrafficPolicy: Invalid value: \"Local\": may only be set for externally-accessible services",
        ],
    );
    check(
        "services",
        "{metadata: {name: s}, spec: {type: ExternalName}}",
        &["spec.externalName: Required value"],
    );
}

#[test]
fn a_load_balancer_class_stays() {
    check_update(
        "services",
        "{metadata: {name: s}, spec: {type: LoadBalancer, loadBalancerClass: a.io/b, ports: [{port: 1}]}}",
        "{metadata: {name: s}, spec: {type: LoadBalancer, loadBalancerClass: a.io/c, ports: [{port: 1}]}}",
        &["spec.loadBalancerClass: Invalid value: \"a.io/c\": may not change once set"],
    );
}

#[test]
fn addresses_and_ports_for_clients_outside_are_checked() {
    check(
        "services",
        "{metadata: {name: s}, spec: {externalIPs: [127.0.0.1, 0.0.0.0, 169.254.1.1, x], loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 1, appProtocol: 'a b'}]}}",
        &[
            "spec.ports[0].appProtocol: Invalid value: \"a b\": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')",
            "spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
            "spec.externalIPs[1]: Invalid value: \"0.0.0.0\": may not be unspecified (0.0.0.0 or ::)",
            "spec.externalIPs[2]: Invalid value: \"169.254.1.1\": may not be in the link-local range (169.254.0.0/16, fe80::/10)",
            "spec.externalIPs[3]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            "spec.LoadBalancerSourceRanges: Forbidden: may only be used when `type` is 'LoadBalancer'",
        ],
    );
    check_update(
        "services",
        "{metadata: {name: s}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001, ports: [{port: 1}]}}",
        "{metadata: {name: s}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30002, ports: [{port: 1}]}}",
        &["spec.healthCheckNodePort: Forbidden: field is immutable"],
    );
    check(
        "services",
        "{metadata: {name: s}, spec: {type: LoadBalancer, externalTrafficPolicy: Local, healthCheckNodePort: 30001, ports: [{port: 1, nodePort: 30001}]}}",
        &["spec.healthCheckNodePort: Invalid value: 30001: provided port is already allocated"],
    );
}

#[test]
fn an_address_without_a_mode_is_the_services_own() {
    let mut object = service("s", "{type: LoadBalancer, ports: [{port: 80}]}");
    let ingress = json!([{"ip": "192.0.2.1"}, {"hostname": "a.example"}]);
    object.set(&["status", "loadBalancer", "ingress"], ingress);
    SERVICE.default(&mut object);
    assert_eq!(
        object.at(&["status", "loadBalancer", "ingress"]),
        Some(&json!([{"ip": "192.0.2.1", "ipMode": "VIP"}, {"hostname": "a.example"}]))
    );
}

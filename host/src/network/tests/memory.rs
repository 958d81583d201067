//! What a node keeps for each Service and each endpoint of the cluster: measured, printed, bounded.

use std::sync::Arc;

use kube::runtime::watcher::Event;
use serde_json::json;

use crate::network::nodes::Nodes;
use crate::network::services::Index;
use crate::network::table::Table;

const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;

/// Bytes the process has in memory.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[test]
fn a_thousand_services_and_ten_thousand_endpoints_are_lean() {
    let mut index = Index::new(Arc::new(Nodes::new("node-0")));
    let before = resident();
    for n in 0..SERVICES {
        let object = json!({
            "metadata": {"name": format!("service-{n}"), "namespace": format!("team-{}", n % 20), "uid": format!("uid-{n}"),
                         "resourceVersion": "1", "labels": {"app": format!("service-{n}")},
                         "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"type": "ClusterIP", "clusterIP": format!("10.96.{}.{}", n / 250, n % 250),
                     "ports": [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]},
        });
        index.service(Event::Apply(serde_json::from_value(object).unwrap()));
    }
    let services = resident().saturating_sub(before);
    for n in 0..SERVICES {
        let endpoints: Vec<_> = (0..ENDPOINTS)
            .map(|e| {
                let number = n * ENDPOINTS + e;
                json!({"addresses": [format!("100.64.{}.{}", number / 250, number % 250)],
                       "conditions": {"ready": true, "serving": true, "terminating": false},
                       "nodeName": format!("node-{}", number % 100), "zone": format!("zone-{}", number % 3),
                       "targetRef": {"kind": "Pod", "name": format!("pod-{number}")}})
            })
            .collect();
        let slice = json!({
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "metadata": {"name": format!("service-{n}-abcde"), "namespace": format!("team-{}", n % 20),
                         "labels": {"kubernetes.io/service-name": format!("service-{n}")}},
        });
        index.slice(Event::Apply(serde_json::from_value(slice).unwrap()));
    }
    let mut table = Table::default();
    index.update(&mut table);
    let all = resident().saturating_sub(before);
    assert_eq!(table.services().count(), SERVICES);
    let endpoint = all.saturating_sub(services) / (SERVICES * ENDPOINTS);
    println!(
        "{} bytes per Service, {endpoint} bytes per endpoint; {} KiB for {SERVICES} Services with {ENDPOINTS} endpoints each",
        services / SERVICES,
        all / 1024,
    );
    // The test's own allocator keeps some of what was freed; even so.
    assert!(all < 32 << 20, "{all} bytes");
}

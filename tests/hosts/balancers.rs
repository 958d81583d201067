//! Addresses of Services that hosts have on their interfaces: of a pool, external ones, and traffic that stays on a host.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cluster::{Cluster, NODES, address};
use crate::lab::wait_for;
use crate::load;

pub(crate) const POOL: &str = "192.0.2.100-192.0.2.109";
const EXTERNAL: &str = "192.0.2.60";
const LOCAL: u16 = 30_301;
/// Hosts look at their interfaces every 5 s; and a busy machine.
const SECONDS: Duration = Duration::from_secs(20);

/// One pod, on h2.
const WORKLOADS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: balanced, labels: {app: web}}
spec: {nodeName: h2, containers: [{name: main, image: coracle.dev/guests/hello-http}]}
---
apiVersion: v1
kind: Service
metadata: {name: pooled, namespace: balanced}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 8100, targetPort: 8000}]}
---
apiVersion: v1
kind: Service
metadata: {name: external, namespace: balanced}
spec: {externalIPs: [192.0.2.60], selector: {app: web}, ports: [{port: 8101, targetPort: 8000}]}
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: balanced}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 8102, targetPort: 8000, nodePort: 30301}]
";

pub(crate) fn works(cluster: &Cluster) {
    let lab = &cluster.lab;
    lab.make_namespace("balanced", "");
    lab.apply(WORKLOADS);
    let service = ["-n", "balanced", "svc", "pooled"];
    let pooled = lab.wait("an address of the pool", &service, |service| {
        let given = service.pointer("/status/loadBalancer/ingress/0/ip")?;
        given.as_str().map(str::to_owned)
    });
    assert!(pooled.starts_with("192.0.2.10"), "{pooled}");

    let served = |ip: &str, port| {
        let at = SocketAddr::new(ip.parse::<IpAddr>().expect("an address"), port);
        lab.inside("hub", || {
            wait_for(&format!("an answer at {at}"), || load::get(at, "/").ok());
        });
    };
    for (ip, port, way) in [
        (&*pooled, 8100, ["h1", "h3"]),
        (EXTERNAL, 8101, ["h3", "h2"]),
    ] {
        let [from, to] = way;
        lab.address(from, ip, true);
        served(ip, port);
        // To another host, as when the first one fails.
        lab.address(from, ip, false);
        lab.address(to, ip, true);
        let moved = Instant::now();
        served(ip, port);
        let took = moved.elapsed();
        println!("{ip} moved from {from} to {to} and was served there after {took:?}");
        assert!(took < SECONDS, "{ip} was served after {took:?} only");
    }
    stays_local(cluster);
}

/// Only the host with the endpoint answers, and says so to who asks for its health.
fn stays_local(cluster: &Cluster) {
    let service = ["-n", "balanced", "svc", "local"];
    let service = cluster.lab.get(&service).expect("it is there");
    let health = service.pointer("/spec/healthCheckNodePort");
    let health = health.and_then(Value::as_u64).expect("a port for health");
    let health = u16::try_from(health).expect("a port");
    cluster.lab.inside("hub", || {
        for (node, number) in NODES {
            let here = node == "h2";
            wait_for(&format!("{node} answers: {here}"), || {
                let answer = load::ask(address(number, LOCAL), node, "/");
                (answer.is_ok_and(|(status, _)| status == 200) == here).then_some(())
            });
            wait_for(&format!("{node} is healthy: {here}"), || {
                let (status, _) = load::ask(address(number, health), node, "/healthz").ok()?;
                (status == if here { 200 } else { 503 }).then_some(())
            });
        }
    });
}

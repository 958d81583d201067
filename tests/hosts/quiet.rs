//! What works while nothing breaks, all at once on one cluster whose certificates live for half a minute: and then a
//! host dies.

use crate::cluster::{Cluster, EDGE, NODES, Setup, address};
use crate::lab::{together, wait_for};
use crate::load::Load;
use crate::{balancers, edge, ingress, policy};

const SETUP: Setup = Setup {
    server: &[
        "--load-balancer-pool",
        balancers::POOL,
        // Every node gets new certificates every half a minute.
        "--cluster-signing-duration",
        "30s",
    ],
    edge: true,
    patient: false,
};
const STEADY: u16 = 30_400;
const WORKLOADS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: steady}
spec:
  replicas: 4
  selector: {matchLabels: {app: steady}}
  template:
    metadata: {labels: {app: steady}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: steady}}}
      tolerations: [{key: edge, operator: Exists}]
      containers: [{name: main, image: coracle.dev/guests/hello-http}]
---
apiVersion: v1
kind: Service
metadata: {name: steady}
spec: {type: NodePort, selector: {app: steady}, ports: [{port: 80, targetPort: 8000, nodePort: 30400}]}
";

#[test]
fn everything_at_once_while_certificates_change() {
    let Some(mut cluster) = Cluster::start_as(SETUP) else {
        return;
    };
    cluster.lab.apply(WORKLOADS);
    cluster.wait_pods("app=steady", 4);
    cluster.answers_everywhere(STEADY, "/");
    let everywhere: Vec<_> = NODES.iter().map(|(_, n)| address(*n, STEADY)).collect();
    let load = Load::start(&cluster.lab, &everywhere);
    together(&[
        ("the node that cannot be dialled", &|| edge::works(&cluster)),
        ("policies", &|| policy::works(&cluster)),
        ("ingress", &|| ingress::works(&cluster)),
        ("load balancers", &|| balancers::works(&cluster)),
    ]);
    let nodes = NODES.iter().map(|(node, _)| *node).chain([EDGE]);
    for node in nodes {
        wait_for(&format!("renewed certificates of {node}"), || {
            let log = cluster.lab.log(node);
            let times = |role: &str| {
                let said = format!("Renewed a certificate of this node role={role}");
                log.matches(&said).count()
            };
            (times("Client") >= 1 && times("Server") >= 1).then_some(())
        });
    }
    let report = load.stop();
    println!(
        "certificates renewed under {} requests",
        report.samples.len()
    );
    report.assert_none_failed("certificates that change");
    cluster.wait_ready(&["h1", "h2", "h3", EDGE]);

    cluster.lab.kill("h3");
    together(&[("ingress without a host", &|| {
        ingress::leaves_out(&cluster, "h3")
    })]);
}

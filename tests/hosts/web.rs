//! The Deployment that everything happens to: six replicas behind a NodePort of every host, gone from a lost node after 2 s.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::Value;

use crate::cluster::{Cluster, NODES, address};
use crate::lab::Lab;

/// Where every host answers for it.
pub(crate) const PORT: u16 = 30_080;

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 6
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      tolerations:
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
      - name: main
        image: coracle.dev/guests/hello-http
        readinessProbe: {httpGet: {path: /, port: 8000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8000, nodePort: 30080}]}
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web}
spec: {minAvailable: 4, selector: {matchLabels: {app: web}}}
";

pub(crate) fn deploy(cluster: &Cluster) {
    cluster.lab.apply(WEB);
    cluster.wait_pods("app=web", 6);
    cluster.answers_everywhere(PORT, "/");
}

/// Every pod is made anew; returns when all of them are.
pub(crate) fn roll(lab: &Lab, round: u32) {
    let round = format!("ROUND={round}");
    lab.kubectl(&["set", "env", "deployment/web", &round]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]);
}

/// The ports of these hosts.
pub(crate) fn at(hosts: &[&str]) -> Vec<SocketAddr> {
    let chosen = NODES.iter().filter(|(node, _)| hosts.contains(node));
    chosen.map(|(_, number)| address(*number, PORT)).collect()
}

/// Where every pod is: its name → its uid, node and address.
pub(crate) fn placements(lab: &Lab) -> BTreeMap<String, [String; 3]> {
    let list = lab.get(&["pods", "-A"]).expect("a server answers");
    let pods = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pods.iter()
        .map(|pod| {
            let name = text(&pod["metadata"]["name"]);
            let uid = text(&pod["metadata"]["uid"]);
            let node = text(&pod["spec"]["nodeName"]);
            (name, [uid, node, text(&pod["status"]["podIP"])])
        })
        .collect()
}

pub(crate) fn no_address_twice(lab: &Lab) {
    let placed = placements(lab);
    let addresses = placed
        .values()
        .map(|[_, _, ip]| ip)
        .filter(|ip| !ip.is_empty());
    let mut addresses: Vec<&String> = addresses.collect();
    let all = addresses.len();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), all, "no address twice: {placed:?}");
}

pub(crate) fn on(pods: &[(String, String)], node: &str) -> usize {
    pods.iter().filter(|(_, n)| n == node).count()
}

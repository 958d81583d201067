//! What breaks, under steady load: a rolling update, a drain, a host that dies, a link that is cut, servers that go away.

use std::time::Duration;

use crate::cluster::{Cluster, NODES, address};
use crate::lab::wait_for;
use crate::load::{Load, get};

/// A request that is sent this long after a host went away must not fail any more: a second, and a busy machine.
const AVOIDED: Duration = Duration::from_millis(1_500);

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

fn web(cluster: &Cluster) {
    cluster.lab.apply(WEB);
    cluster.wait_pods("app=web", 6);
    cluster.lab.inside("hub", || {
        for (node, number) in NODES {
            wait_for(&format!("an answer through {node}"), || {
                get(address(number, 30080), "/").ok()
            });
        }
    });
}

fn on(pods: &[(String, String)], node: &str) -> usize {
    pods.iter().filter(|(_, n)| n == node).count()
}

/// Nothing of this may cost a request: it is announced before it happens.
#[test]
fn rolls_and_drains_lose_no_request() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    web(&cluster);
    let lab = &cluster.lab;
    let everywhere: Vec<_> = NODES.iter().map(|(_, n)| address(*n, 30080)).collect();

    let load = Load::start(lab, &everywhere);
    lab.kubectl(&["set", "env", "deployment/web", "ROUND=2"]);
    lab.kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]);
    load.stop().assert_none_failed("a rolling update");

    let load = Load::start(lab, &[address(11, 30080), address(12, 30080)]);
    lab.kubectl(&["drain", "h3", "--ignore-daemonsets", "--timeout=80s"]);
    let pods = cluster.wait_pods("app=web", 6);
    load.stop().assert_none_failed("a drain");
    assert_eq!(on(&pods, "h3"), 0, "{pods:?}");
    lab.kubectl(&["uncordon", "h3"]);

    // A node that is told to stop hands its pods over; nobody waits until it counts as lost.
    let load = Load::start(lab, &[address(12, 30080), address(13, 30080)]);
    assert_eq!(cluster.lab.terminate("h1"), Some(0), "it ends well");
    let pods = wait_for("replacements of the pods that ended", || {
        let pods = cluster.pods("app=web");
        (pods.len() == 6 && on(&pods, "h1") == 0).then_some(pods)
    });
    load.stop()
        .assert_none_failed("a node that was told to stop");
    assert_eq!(on(&pods, "h1"), 0);
}

#[test]
fn a_dead_host_is_avoided_within_a_second_and_replaced() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    web(&cluster);
    let before = cluster.pods("app=web");
    assert!(on(&before, "h2") > 0, "{before:?}");

    // Through the hosts that stay.
    let load = Load::start(&cluster.lab, &[address(11, 30080), address(13, 30080)]);
    let killed = load.now();
    cluster.lab.kill("h2");
    cluster
        .lab
        .wait("h2 to be NotReady", &["node", "h2"], |node| {
            let conditions = node["status"]["conditions"].as_array()?;
            let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
            (ready["status"] != "True").then_some(())
        });
    let pods = wait_for("replacements elsewhere", || {
        let pods = cluster.pods("app=web");
        (pods.len() == 6 && on(&pods, "h2") == 0).then_some(pods)
    });
    let report = load.stop();
    let failed = report.failures().count();
    println!(
        "a host killed: {failed} of {} requests failed, the last of them sent {:?} after",
        report.samples.len(),
        report.last_failure_after(killed)
    );
    if let Some(last) = report.last_failure_after(killed) {
        assert!(
            last < AVOIDED,
            "traffic avoids a dead host; last failure sent after {last:?}"
        );
    }
    assert_eq!(on(&pods, "h2"), 0);

    // It comes back, with the same name and addresses that nobody else has got.
    cluster.start_node("h2", 12);
    cluster.wait_ready(&["h2"]);
    wait_for("its old pods to be gone", || {
        (cluster.wait_pods("app=web", 6).len() == 6).then_some(())
    });
}

#[test]
fn a_cut_link_is_avoided_and_heals() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let lab = &cluster.lab;
    web(&cluster);
    let load = Load::start(lab, &[address(11, 30080), address(13, 30080)]);
    let cut = load.now();
    lab.cable("h2", false);
    lab.wait("h2 to be NotReady", &["node", "h2"], |node| {
        let conditions = node["status"]["conditions"].as_array()?;
        let ready = conditions.iter().find(|c| c["type"] == "Ready")?;
        (ready["status"] != "True").then_some(())
    });
    let report = load.stop();
    println!(
        "a link cut: {} of {} requests failed, the last of them sent {:?} after",
        report.failures().count(),
        report.samples.len(),
        report.last_failure_after(cut)
    );
    if let Some(last) = report.last_failure_after(cut) {
        assert!(
            last < AVOIDED,
            "traffic avoids a host that cannot be reached; last failure sent after {last:?}"
        );
    }
    lab.cable("h2", true);
    cluster.wait_ready(&["h2"]);
    wait_for("as many pods as wanted, none twice", || {
        let list = lab.get(&["pods", "-l", "app=web"])?;
        (list["items"].as_array()?.len() == 6 && cluster.pods("app=web").len() == 6).then_some(())
    });
    let mut ips: Vec<String> = lab
        .kubectl(&[
            "get",
            "pods",
            "-A",
            "-o",
            "jsonpath={.items[*].status.podIP}",
        ])
        .split_whitespace()
        .map(str::to_owned)
        .collect();
    let all = ips.len();
    ips.sort();
    ips.dedup();
    assert_eq!(ips.len(), all, "no address twice");
    lab.inside("hub", || {
        wait_for("an answer through the host that was cut off", || {
            get(address(12, 30080), "/").ok()
        })
    });
}

#[test]
fn servers_come_and_go_and_nobody_notices() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    web(&cluster);
    let everywhere: Vec<_> = NODES.iter().map(|(_, n)| address(*n, 30080)).collect();
    let load = Load::start(&cluster.lab, &everywhere);
    // One of two: kubectl on the other goes on, and so do controllers and nodes.
    cluster.lab.kill("s1");
    cluster.talk_to("s2");
    cluster
        .lab
        .kubectl(&["set", "env", "deployment/web", "ROUND=2"]);
    cluster
        .lab
        .kubectl(&["rollout", "status", "deployment/web", "--timeout=80s"]);
    cluster.wait_ready(&["h1", "h2", "h3"]);
    // Both: what runs goes on.
    cluster.lab.kill("s2");
    std::thread::park_timeout(Duration::from_secs(12));
    load.stop().assert_none_failed("servers that went away");
    cluster.start_server("s1", 21);
    cluster.talk_to("s1");
    cluster
        .lab
        .kubectl(&["scale", "deployment/web", "--replicas=7"]);
    cluster.wait_pods("app=web", 7);
    cluster.wait_ready(&["h1", "h2", "h3"]);
}

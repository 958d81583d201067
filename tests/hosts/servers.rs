//! API servers that are killed and come back, one of two and both: what runs goes on, and nothing is done twice.

use std::time::Duration;

use serde_json::Value;

use crate::cluster::{Cluster, EDGE, NODES, Setup, address};
use crate::lab::{HUB, wait_for};
use crate::load::{Load, get};
use crate::network::lookup;
use crate::web;

/// Dies of a request for more memory than it may have.
const FRAGILE: u16 = 30_120;
/// Lives where nobody can dial.
const REMOTE: u16 = 30_121;

const WORKLOADS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: fragile, labels: {app: fragile}}
spec:
  nodeName: h2
  containers: [{name: main, image: coracle.dev/guests/misbehave, resources: {limits: {memory: 32Mi}}}]
---
apiVersion: v1
kind: Service
metadata: {name: fragile}
spec: {type: NodePort, selector: {app: fragile}, ports: [{port: 80, targetPort: 8000, nodePort: 30120}]}
---
apiVersion: v1
kind: Pod
metadata: {name: remote, labels: {app: remote}}
spec: {nodeName: e1, containers: [{name: main, image: coracle.dev/guests/hello-http}]}
---
apiVersion: v1
kind: Service
metadata: {name: remote}
spec: {type: NodePort, selector: {app: remote}, ports: [{port: 80, targetPort: 8000, nodePort: 30121}]}
";
const EVERYWHERE: [&str; 3] = ["h1", "h2", "h3"];

#[test]
fn servers_come_and_go_and_nobody_notices() {
    let setup = Setup {
        edge: true,
        ..Setup::default()
    };
    let Some(mut cluster) = Cluster::start_as(setup) else {
        return;
    };
    web::deploy(&cluster);
    cluster.lab.apply(WORKLOADS);
    cluster.answers_everywhere(FRAGILE, "/");
    cluster.answers_everywhere(REMOTE, "/");
    let load = Load::start(&cluster.lab, &web::at(&EVERYWHERE));
    // Streams to the edge go through a server: what is under way breaks with it, what comes later finds the other one.
    let through = NODES.iter().map(|(_, number)| address(*number, REMOTE));
    let remote = Load::start(&cluster.lab, &through.collect::<Vec<_>>());
    let kills = [
        one_of_two(&mut cluster, &remote),
        the_other_one(&mut cluster, &remote),
    ];
    remote
        .stop()
        .assert_bounded("a server killed that relayed", &kills);
    none(&mut cluster, load);
}

/// Watches, nodes and controllers go on with the one that is left.
fn one_of_two(cluster: &mut Cluster, remote: &Load) -> Duration {
    cluster.talk_to("s2");
    let columns = "custom-columns=NAME:.metadata.name,PHASE:.status.phase";
    let watch = ["get", "pods", "-l", "app=web", "-w", "-o", columns];
    let mut watch = cluster.lab.follow(&watch);
    watch.says("Running");
    let killed = remote.now();
    cluster.lab.kill("s1");
    web::roll(&cluster.lab, 2);
    let pods = cluster.wait_pods("app=web", 6);
    for (pod, _) in pods {
        wait_for(&format!("the watch to tell of {pod}"), || {
            let said = watch.said();
            let mut lines = said.lines().filter(|line| line.starts_with(&pod));
            lines.any(|line| line.contains("Running")).then_some(())
        });
    }
    assert!(watch.goes_on());
    cluster.wait_ready(&["h1", "h2", "h3", EDGE]);
    cluster.answers_everywhere(REMOTE, "/");

    // It returns: what is done by way of it is seen by way of the other.
    cluster.start_server("s1", 21);
    cluster.talk_to("s1");
    cluster
        .lab
        .kubectl(&["scale", "deployment/web", "--replicas=7"]);
    for (pod, _) in cluster.wait_pods("app=web", 7) {
        watch.says(&pod);
    }
    assert!(watch.goes_on(), "one watch saw it all");
    killed
}

fn the_other_one(cluster: &mut Cluster, remote: &Load) -> Duration {
    let killed = remote.now();
    cluster.lab.kill("s2");
    web::roll(&cluster.lab, 3);
    cluster.wait_pods("app=web", 7);
    cluster.wait_ready(&["h1", "h2", "h3", EDGE]);
    cluster.answers_everywhere(REMOTE, "/");
    let log = cluster.lab.kubectl(&["logs", "remote"]);
    assert!(log.is_empty(), "it has nothing to say: {log}");
    killed
}

/// Nodes restart what crashes, answer DNS and balance; a server that returns finds everything as it was.
fn none(cluster: &mut Cluster, load: Load) {
    let before = web::placements(&cluster.lab);
    let vip = ["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"];
    let vip = cluster.lab.kubectl(&vip);
    cluster.lab.kill("s1");
    cluster.lab.inside("hub", || {
        // The second time it is started again only after a while.
        for _ in 0..2 {
            let died = get(address(11, FRAGILE), "/grow");
            assert!(died.is_err(), "{died:?}");
            for (node, number) in NODES {
                wait_for(&format!("it to be back, through {node}"), || {
                    get(address(number, FRAGILE), "/").ok()
                });
            }
        }
    });
    for (node, _) in NODES {
        let found = cluster.lab.inside(node, || {
            wait_for(&format!("an answer of {node}'s DNS"), || {
                lookup("web.default.svc.cluster.local")
            })
        });
        assert_eq!(found.to_string(), vip);
    }
    let report = load.stop();
    println!("servers killed under {} requests", report.samples.len());
    report.assert_none_failed("servers that went away");

    cluster.start_server("s1", 21);
    cluster.talk_to("s1");
    let lab = &cluster.lab;
    lab.wait("both restarts in its status", &["pod", "fragile"], |pod| {
        let status = pod.pointer("/status/containerStatuses/0")?;
        let restarts = status["restartCount"].as_u64()?;
        assert!(restarts <= 2, "{status}");
        let last = status.pointer("/lastState/terminated/reason");
        let killed = last.and_then(Value::as_str) == Some("OOMKilled");
        (restarts == 2 && killed && status["ready"] == true).then_some(())
    });
    cluster.wait_ready(&["h1", "h2", "h3", EDGE]);
    assert_eq!(web::placements(lab), before, "every pod is where it was");
    lab.kubectl(&["scale", "deployment/web", "--replicas=8"]);
    cluster.wait_pods("app=web", 8);
    let after = web::placements(lab);
    for (pod, place) in &before {
        assert_eq!(after.get(pod), Some(place), "{pod} stays");
    }
    web::no_address_twice(lab);
}

/// Its process and its connections live, and nobody could tell but by what it answers.
#[test]
fn a_server_that_is_cut_off_from_its_database_loses_its_nodes_to_the_other_and_no_node_is_lost() {
    let setup = Setup {
        patient: true,
        ..Setup::default()
    };
    let Some(cluster) = Cluster::start_as(setup) else {
        return;
    };
    let lab = &cluster.lab;
    web::deploy(&cluster);
    cluster.talk_to("s2");
    let moved = |host: &str| lab.log(host).contains("is left for another");
    // All were given the same order, and sit on the first.
    assert!(!NODES.iter().any(|(host, _)| moved(host)));
    let renewed = |host: &str| -> Option<String> {
        let lease = lab.get(&["lease", "-n", "kube-node-lease", host])?;
        Some(lease["spec"]["renewTime"].as_str()?.to_owned())
    };
    lab.lose("s1", HUB, true);
    for (host, _) in NODES {
        wait_for(&format!("{host} to leave s1"), || moved(host).then_some(()));
        let then = renewed(host);
        wait_for(&format!("{host} to renew its lease through s2"), || {
            (renewed(host)? > then.clone()?).then_some(())
        });
    }
    // Watches have moved as well.
    let everywhere = |pods: &[(String, String)]| {
        NODES
            .iter()
            .all(|(host, _)| pods.iter().any(|(_, node)| node == host))
    };
    lab.kubectl(&["scale", "deployment", "web", "--replicas", "9"]);
    let pods = cluster.wait_pods("app=web", 9);
    assert!(everywhere(&pods), "{pods:?}");
    let reasons = "jsonpath={.items[*].reason}";
    let events = lab.kubectl(&["get", "events", "-A", "-o", reasons]);
    assert!(!events.contains("NodeNotReady"), "{events}");
    lab.lose("s1", HUB, false);
}

//! What breaks, under steady load: a rolling update, a drain, a node that is told to stop, a host that dies.

use crate::cluster::{Cluster, NODES, address};
use crate::lab::wait_for;
use crate::load::{AVOIDED, Load, get};
use crate::web::{self, on};

/// Nothing of this may cost a request: it is announced before it happens.
#[test]
fn rolls_and_drains_lose_no_request() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    web::deploy(&cluster);
    let lab = &cluster.lab;
    let load = Load::start(lab, &web::at(&["h1", "h2", "h3"]));
    web::roll(lab, 2);
    load.stop().assert_none_failed("a rolling update");

    let load = Load::start(lab, &web::at(&["h1", "h2"]));
    lab.kubectl(&["drain", "h3", "--ignore-daemonsets", "--timeout=80s"]);
    let pods = cluster.wait_pods("app=web", 6);
    load.stop().assert_none_failed("a drain");
    assert_eq!(on(&pods, "h3"), 0, "{pods:?}");
    lab.kubectl(&["uncordon", "h3"]);

    // A node that is told to stop hands its pods over; nobody waits until it counts as lost.
    let load = Load::start(lab, &web::at(&["h2", "h3"]));
    assert_eq!(cluster.lab.terminate("h1"), Some(0), "it ends well");
    let pods = wait_for("replacements of the pods that ended", || {
        let pods = cluster.pods("app=web");
        (pods.len() == 6 && on(&pods, "h1") == 0).then_some(pods)
    });
    load.stop()
        .assert_none_failed("a node that was told to stop");
    assert_eq!(on(&pods, "h1"), 0);
}

/// Three pods that say who they are; a client always meets the same.
const STICKY: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: sticky}
spec:
  replicas: 3
  selector: {matchLabels: {app: sticky}}
  template:
    metadata: {labels: {app: sticky}}
    spec:
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: sticky}}}
      containers:
      - name: main
        image: coracle.dev/guests/misbehave
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
";
/// Applied when all pods are ready: a client that comes while a host knows two of three endpoints keeps what it got there.
const STICKY_SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec: {type: NodePort, sessionAffinity: ClientIP, selector: {app: sticky}, ports: [{port: 80, targetPort: 8000, nodePort: 30090}]}
";
const STICKY_PORT: u16 = 30_090;

/// Which pod the hub meets at these hosts, several times: `None` unless always the same.
fn met(cluster: &Cluster, hosts: &[(&str, u8)]) -> Option<String> {
    let one = |number: u8| get(address(number, STICKY_PORT), "/env/POD_NAME").ok();
    cluster.lab.inside("hub", || {
        let first = one(hosts[0].1)?;
        let mut all = hosts.iter().cycle().take(hosts.len() * 5);
        all.all(|(_, number)| one(*number).as_ref() == Some(&first))
            .then_some(first)
    })
}

#[test]
fn a_dead_host_is_avoided_within_a_second_and_replaced() {
    let Some(mut cluster) = Cluster::start() else {
        return;
    };
    web::deploy(&cluster);
    cluster.lab.apply(STICKY);
    let sticky = cluster.wait_pods("app=sticky", 3);
    cluster.lab.apply(STICKY_SERVICE);
    let session = wait_for("one pod for one client", || met(&cluster, &NODES));
    let its_pod = sticky.iter().find(|(pod, _)| *pod == session);
    let (_, victim) = its_pod.unwrap_or_else(|| panic!("no {session} in {sticky:?}"));
    let victim = victim.as_str();
    let mut others = NODES.to_vec();
    others.retain(|(node, _)| *node != victim);
    let before = cluster.pods("app=web");
    assert!(on(&before, victim) > 0, "{before:?}");

    // Through the hosts that stay.
    let names: Vec<&str> = others.iter().map(|(node, _)| *node).collect();
    let load = Load::start(&cluster.lab, &web::at(&names));
    let killed = load.now();
    cluster.lab.kill(victim);
    let next = wait_for("another pod for the client", || met(&cluster, &others));
    assert_ne!(next, session);
    let took = load.now() - killed;
    println!("a session moved {took:?} after its host was killed, on all hosts to the same pod");
    cluster.wait_lost(victim);
    let pods = wait_for("replacements elsewhere", || {
        let pods = cluster.pods("app=web");
        (pods.len() == 6 && on(&pods, victim) == 0).then_some(pods)
    });
    assert_eq!(met(&cluster, &others), Some(next), "it stays where it is");
    let report = load.stop();
    report.print("a host killed", killed);
    if let Some(last) = report.last_failure_after(killed) {
        assert!(
            last < AVOIDED,
            "traffic avoids a dead host; last failure sent after {last:?}"
        );
    }
    assert_eq!(on(&pods, victim), 0);

    // It comes back, with the same name and addresses that nobody else has got.
    let number = NODES.iter().find(|(node, _)| *node == victim);
    let (victim, number) = number.expect("one of the hosts");
    cluster.start_node(victim, *number);
    cluster.wait_ready(&[victim]);
    wait_for("its old pods to be gone", || {
        (cluster.wait_pods("app=web", 6).len() == 6).then_some(())
    });
    web::no_address_twice(&cluster.lab);
}

//! A node that nobody can dial: its pods, its logs and its metrics, by the connection it keeps to the servers.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::cluster::{Cluster, EDGE, EDGE_ADDRESS, NODES, address};
use crate::guests::Dial;
use crate::lab::{Lab, wait_for};
use crate::load;

/// What is asked through every host.
const WEB: u16 = 30_101;
/// Lives at the edge and asks a pod of h2.
const CALLER: u16 = 30_102;

const WORKLOADS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: lines, namespace: edge, labels: {app: lines}}
spec:
  nodeName: e1
  containers:
  - {name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7000'}, {name: POD_NAME, value: edge-lines}]}
---
apiVersion: v1
kind: Service
metadata: {name: lines, namespace: edge}
spec: {selector: {app: lines}, ports: [{port: 7, targetPort: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: datagrams, namespace: edge, labels: {app: datagrams}}
spec:
  nodeName: e1
  containers:
  - {name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7001'}, {name: PROTOCOL, value: udp}]}
---
apiVersion: v1
kind: Service
metadata: {name: datagrams, namespace: edge}
spec: {selector: {app: datagrams}, ports: [{port: 9, targetPort: 7001, protocol: UDP}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: edge, labels: {app: web}}
spec: {nodeName: e1, containers: [{name: main, image: coracle.dev/guests/hello-http}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: edge}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8000, nodePort: 30101}]}
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: edge, labels: {app: far}}
spec:
  nodeName: h2
  containers:
  - {name: web, image: coracle.dev/guests/hello-http, ports: [{containerPort: 8000}]}
  - {name: lines, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7000'}, {name: POD_NAME, value: far-lines}]}
---
apiVersion: v1
kind: Service
metadata: {name: far, namespace: edge}
spec: {selector: {app: far}, ports: [{name: http, port: 80, targetPort: 8000}, {name: lines, port: 7, targetPort: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: caller, namespace: edge, labels: {app: caller}}
spec: {nodeName: e1, containers: [{name: main, image: coracle.dev/guests/caller, env: [{name: TARGET, value: 'far:80'}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: caller, namespace: edge}
spec: {type: NodePort, selector: {app: caller}, ports: [{port: 80, targetPort: 8000, nodePort: 30102}]}
";

pub(crate) fn works(cluster: &Cluster) {
    let lab = &cluster.lab;
    let dialled = lab.inside("hub", || {
        let endpoint = format!("{EDGE_ADDRESS}:10250").parse().expect("an address");
        load::ask(endpoint, "edge", "/healthz")
    });
    assert!(dialled.is_err(), "the lab's NAT lets nothing in");
    let node = lab.get(&["node", EDGE]).expect("it is there");
    let said = node.pointer("/metadata/annotations/coracle.dev~1tunnel");
    assert_eq!(said.and_then(|said| said.as_str()), Some("relay"));
    lab.make_namespace("edge", "");
    lab.apply(WORKLOADS);
    let ready = [
        "wait",
        "-n",
        "edge",
        "pod",
        "--all",
        "--for=condition=Ready",
    ];
    lab.kubectl(&[&ready[..], &["--timeout=80s"]].concat());

    // Its log, as it grows.
    let mut log = lab.follow(&["logs", "-n", "edge", "-f", "lines"]);
    log.says("echoing lines on");
    for (name, node, args, wanted) in [
        ("from-h1", "h1", "'lines:7', hello", "edge-lines"),
        ("from-edge", EDGE, "'far:7', hello", "far-lines"),
        ("inside-edge", EDGE, "'lines:7', hello", "edge-lines"),
    ] {
        let client = Dial {
            namespace: "edge",
            node,
            args,
            ..Dial::new(name)
        };
        client.start(lab);
        let (code, said) = client.ended(lab);
        assert_eq!(code, 0, "{name}: {said}");
        assert!(said.contains(wanted), "{name}: {said}");
    }
    log.says("served 1 lines");
    assert!(log.goes_on(), "the pod runs, so its log has no end");
    for (name, node) in [("datagram-in", "h3"), ("datagram-at-home", EDGE)] {
        let client = Dial {
            namespace: "edge",
            node,
            args: "'datagrams:9', ping",
            env: "{name: PROTOCOL, value: udp}",
            ..Dial::new(name)
        };
        client.hears(lab, "ping from");
    }

    ports_are_forwarded(lab);
    let command = ["--", "echo", "from", "afar"];
    let said = lab.kubectl(&[&["exec", "-n", "edge", "lines"], &command[..]].concat());
    assert_eq!(said, "from afar\n");
    cluster.answers_everywhere(WEB, "/");
    cluster.answers_everywhere(CALLER, "/");
    lab.inside("hub", || {
        for round in 0..20 {
            for (node, number) in NODES {
                for port in [WEB, CALLER] {
                    let answer = load::get(address(number, port), "/");
                    let said = format!("round {round}, port {port} of {node}: {answer:?}");
                    assert_eq!(answer.as_deref(), Ok("Hello World!\n"), "{said}");
                }
            }
        }
    });

    let path = format!("/api/v1/nodes/{EDGE}/proxy/metrics");
    let metrics = wait_for("metrics of the node", || {
        let output = lab.try_kubectl(&["get", "--raw", &path]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    });
    assert!(metrics.contains("kubelet_running_pods"), "{metrics}");
    assert!(metrics.contains("pod=\"lines\""), "{metrics}");
}

fn ports_are_forwarded(lab: &Lab) {
    let forward = lab.follow(&["port-forward", "-n", "edge", "pod/lines", ":7000"]);
    let address = wait_for("kubectl to name its port", || {
        let said = forward.said();
        let rest = said.strip_prefix("Forwarding from ")?;
        let (address, _) = rest.split_once(" -> ")?;
        address.parse::<std::net::SocketAddr>().ok()
    });
    lab.inside("hub", || {
        let mut stream = TcpStream::connect(address).expect("kubectl listens");
        let patience = Duration::from_secs(30);
        stream.set_read_timeout(Some(patience)).expect("set");
        stream.write_all(b"forwarded\n").expect("sent");
        let lines = BufReader::new(stream).lines().take(2);
        let lines: Vec<String> = lines.map(|line| line.expect("a line")).collect();
        assert_eq!(lines, ["edge-lines", "forwarded"]);
    });
}

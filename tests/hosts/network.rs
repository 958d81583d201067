//! The pod network between hosts: streams, datagrams, HTTP, names, and who is let in.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::cluster::{Cluster, NODES, address};
use crate::guests::Dial;
use crate::lab::wait_for;
use crate::load;

/// An echo pod on h2, and clients of it on h1; a web pod on every host, and a front on every host that asks the web.
const WORKLOADS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: lines, labels: {app: lines}}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7000'}, {name: POD_NAME, value: lines}]}
---
apiVersion: v1
kind: Service
metadata: {name: lines}
spec: {selector: {app: lines}, ports: [{name: lines, port: 7, targetPort: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: datagrams, labels: {app: datagrams}}
spec:
  nodeName: h2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7001'}, {name: PROTOCOL, value: udp}]}
---
apiVersion: v1
kind: Service
metadata: {name: datagrams}
spec: {type: NodePort, selector: {app: datagrams}, ports: [{port: 9, targetPort: 7001, protocol: UDP, nodePort: 30009}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
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
apiVersion: v1
kind: Service
metadata: {name: lines-headless}
spec: {clusterIP: None, selector: {app: lines}, ports: [{name: lines, port: 7000}]}
";

#[test]
fn three_hosts_are_one_network() {
    let Some(cluster) = Cluster::start() else {
        return;
    };
    let lab = &cluster.lab;
    let wide = lab.kubectl(&["get", "nodes", "-o", "wide"]);
    for (node, number) in NODES {
        let line = wide.lines().find(|line| line.starts_with(node));
        let line = line.unwrap_or_else(|| panic!("no {node} in\n{wide}"));
        assert!(
            line.contains(&address(number, 0).ip().to_string()),
            "{wide}"
        );
    }
    let cidrs = lab.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].spec.podCIDR}"]);
    let mut cidrs: Vec<&str> = cidrs.split_whitespace().collect();
    cidrs.sort_unstable();
    cidrs.dedup();
    assert_eq!(
        cidrs.len(),
        3,
        "every node has its own addresses: {cidrs:?}"
    );

    lab.apply(WORKLOADS);
    let mut nodes: Vec<String> = cluster
        .wait_pods("app=web", 3)
        .into_iter()
        .map(|(_, node)| node)
        .collect();
    nodes.sort();
    assert_eq!(nodes, ["h1", "h2", "h3"], "replicas spread over the nodes");

    // A stream, by the Service's name and by the headless one; the peer is another host's pod.
    for (name, target) in [("by-service", "lines:7"), ("by-pod", "lines-headless:7000")] {
        // The first line back is the server's name, the second what was said first.
        let client = Dial {
            node: "h1",
            args: &format!("'{target}', hello, last"),
            ..Dial::new(name)
        };
        let said = client.hears(lab, "hello");
        assert!(
            said.contains("lines"),
            "the server says its name first: {said}"
        );
    }
    // Datagrams, between hosts and from outside through any host.
    let client = Dial {
        node: "h3",
        args: "'datagrams:9', ping",
        env: "{name: PROTOCOL, value: udp}",
        ..Dial::new("datagram")
    };
    client.hears(lab, "ping from");
    for (node, number) in NODES {
        let answer = lab.inside("hub", || {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("a socket");
            socket
                .set_read_timeout(Some(Duration::from_secs(2)))
                .expect("set");
            wait_for(&format!("a datagram back through {node}"), || {
                socket.send_to(b"hello", address(number, 30009)).ok()?;
                let mut buffer = [0; 64];
                let (length, _) = socket.recv_from(&mut buffer).ok()?;
                Some(buffer[..length].to_vec())
            })
        });
        assert_eq!(answer, b"hello");
    }
    // HTTP: every host's NodePort reaches all replicas.
    for (node, number) in NODES {
        let body = lab.inside("hub", || {
            wait_for(&format!("an answer through {node}"), || {
                load::get(address(number, 30080), "/").ok()
            })
        });
        assert!(body.contains("Hello World!\n"), "{body}");
    }
    strangers_get_nothing(&cluster);
    natives_resolve(&cluster);
    the_graph_knows_who_calls_whom(&cluster);
}

/// Programs beside the pods ask the node's DNS server.
fn natives_resolve(cluster: &Cluster) {
    let vip = cluster
        .lab
        .kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    for (node, _) in NODES {
        let found = cluster.lab.inside(node, || {
            wait_for(&format!("an answer of {node}'s DNS"), || {
                lookup("web.default.svc.cluster.local")
            })
        });
        assert_eq!(found.to_string(), vip);
    }
}

/// The first address of a name, asked of this host's DNS server (RFC 1035, one question).
pub(crate) fn lookup(name: &str) -> Option<Ipv4Addr> {
    let mut query = vec![0x12, 0x34, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        query.push(u8::try_from(label.len()).expect("a label"));
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    let socket = UdpSocket::bind("127.0.0.1:0").ok()?;
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("set");
    socket.send_to(&query, "127.0.0.1:10053").ok()?;
    let mut answer = [0; 512];
    let (length, _) = socket.recv_from(&mut answer).ok()?;
    // The question, then one record whose data are its last four bytes.
    assert_eq!(answer[3] & 0x0f, 0, "no error");
    assert_eq!(answer[7], 1, "one address");
    let rest = &answer[query.len()..length];
    let address: [u8; 4] = rest.get(12..16)?.try_into().ok()?;
    Some(address.into())
}

fn the_graph_knows_who_calls_whom(cluster: &Cluster) {
    let graph = cluster.lab.kubectl(&["get", "--raw", "/coracle/v1/graph"]);
    let graph: serde_json::Value = serde_json::from_str(&graph).expect("JSON");
    assert_eq!(graph["nodes"].as_array().map(Vec::len), Some(3), "{graph}");
    let edges = graph["edges"].as_array().expect("edges");
    let edge = edges.iter().find(|edge| {
        edge["source"]["workload"] == "by-service" && edge["destination"]["workload"] == "lines"
    });
    let edge = edge.unwrap_or_else(|| panic!("no edge from by-service to lines in {graph}"));
    assert_eq!(edge["security"], "mutual_tls");
    assert!(edge["sentBytes"].as_u64() > Some(0), "{edge}");
}

/// The tunnel's port answers nobody without a node's certificate.
fn strangers_get_nothing(cluster: &Cluster) {
    cluster.lab.inside("hub", || {
        let mut stream = TcpStream::connect(address(11, 15008)).expect("it listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .expect("set");
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .expect("sent");
        let mut answer = Vec::new();
        // A TLS alert at most, and the end.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.len() < 64, "{} bytes for a stranger", answer.len());
    });
}

//! The pod network: names, sockets, services, listeners.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;

use serde_json::Value;

use crate::harness::{Cluster, have, http_get, wait_for};

const ECHO: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: coracle.dev/guests/echo
        env: [{name: PORT, value: '7000'}, {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports: [{name: lines, port: 7, targetPort: 7000}]
---
apiVersion: v1
kind: Service
metadata: {name: echo-headless}
spec:
  clusterIP: None
  selector: {app: echo}
  ports: [{port: 7000}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: datagrams}
spec:
  selector: {matchLabels: {app: datagrams}}
  template:
    metadata: {labels: {app: datagrams}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: coracle.dev/guests/echo, env: [{name: PORT, value: '7001'}, {name: PROTOCOL, value: udp}]}
---
apiVersion: v1
kind: Service
metadata: {name: datagrams}
spec:
  selector: {app: datagrams}
  ports: [{port: 9, targetPort: 7001, protocol: UDP}]
";

/// Where the node listens for a service's first port.
fn node_port(cluster: &Cluster, service: &str) -> String {
    let service = cluster.get(&["svc", service]).expect("it exists");
    let port = service
        .pointer("/spec/ports/0/nodePort")
        .and_then(Value::as_u64)
        .expect("a node port");
    format!("127.0.0.1:{port}")
}

fn dial(cluster: &Cluster, name: &str, args: &str, env: &str) -> String {
    cluster.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  \
         - {{name: main, image: coracle.dev/guests/dial, args: [{args}], env: [{env}]}}\n"
    ));
    cluster.wait(&format!("{name} to end"), &["pod", name], |pod| {
        pod.pointer("/status/containerStatuses/0/state/terminated")
            .map(|_| ())
    });
    cluster.kubectl(&["logs", name])
}

#[test]
fn guests_reach_each_other_by_name_over_tcp_and_udp() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(ECHO);
    cluster.kubectl(&["rollout", "status", "deploy/echo", "--timeout=60s"]);
    cluster.kubectl(&["rollout", "status", "deploy/datagrams", "--timeout=60s"]);

    let said = dial(&cluster, "by-name", "'echo:7', hello, again", "");
    assert!(
        said.contains("connected to 10.96.") && said.contains("hello"),
        "{said}"
    );
    let said = dial(
        &cluster,
        "by-long-name",
        "'echo.default.svc.cluster.local:7', hello",
        "",
    );
    assert!(
        said.contains("echo-"),
        "the pod says its name first: {said}"
    );
    let said = dial(
        &cluster,
        "datagram",
        "'datagrams:9', ping",
        "{name: PROTOCOL, value: udp}",
    );
    assert!(said.contains("ping from"), "{said}");

    let service = cluster.get(&["svc", "echo"]).expect("it exists");
    let vip = service
        .pointer("/spec/clusterIP")
        .and_then(Value::as_str)
        .expect("a cluster IP");
    assert_eq!(dial(&cluster, "lookup", "echo", "").trim(), vip);
    let addresses = dial(&cluster, "headless", "echo-headless", "");
    assert_eq!(
        addresses.lines().count(),
        2,
        "a headless name is its pods: {addresses}"
    );
    let missing = dial(&cluster, "missing", "'nobody:7', x", "");
    assert!(missing.contains("nobody:7"), "{missing}");
    let refused = dial(&cluster, "refused", "'echo:8', x", "");
    assert!(
        refused.contains("ConnectionRefused") || refused.contains("refused"),
        "{refused}"
    );
}

#[test]
fn a_node_port_carries_raw_tcp_to_a_guest() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.apply(ECHO);
    cluster.kubectl(&["rollout", "status", "deploy/echo", "--timeout=60s"]);
    let address = node_port(&cluster, "echo");
    let answer = wait_for("an answer at the node port", || {
        let mut stream = TcpStream::connect(&address).ok()?;
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(5)))
            .ok()?;
        writeln!(stream, "hello").ok()?;
        let mut lines = BufReader::new(stream).lines();
        Some((lines.next()?.ok()?, lines.next()?.ok()?))
    });
    assert!(
        answer.0.starts_with("echo-") && answer.1 == "hello",
        "{answer:?}"
    );
}

#[test]
fn a_rolling_update_loses_no_request() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    cluster.kubectl(&[
        "create",
        "deployment",
        "web",
        "--image=coracle.dev/guests/hello-http",
        "--replicas=3",
    ]);
    cluster.kubectl(&[
        "expose",
        "deployment",
        "web",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let address = node_port(&cluster, "web");
    wait_for("the first answer", || http_get(&address, "/"));
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let load = std::thread::spawn({
        let (address, stop) = (address.clone(), stop.clone());
        move || {
            let (mut good, mut bad) = (0_u32, Vec::new());
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                match http_get(&address, "/") {
                    Some((200, _)) => good += 1,
                    other => bad.push(other),
                }
            }
            (good, bad)
        }
    });
    cluster.kubectl(&["rollout", "restart", "deploy/web"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (good, bad) = load.join().expect("the load ends");
    assert!(good > 0 && bad.is_empty(), "{good} answered, lost: {bad:?}");
}

#[test]
fn a_caller_reaches_a_service_in_process() {
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::with(&["manifests/helloserver"]);
    cluster.kubectl(&[
        "create",
        "deployment",
        "front",
        "--image=coracle.dev/guests/caller",
    ]);
    cluster.kubectl(&[
        "create",
        "deployment",
        "modern",
        "--image=coracle.dev/guests/hello-http-p3",
    ]);
    cluster.kubectl(&[
        "expose",
        "deployment",
        "front",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ]);
    cluster.kubectl(&[
        "expose",
        "deployment",
        "modern",
        "--type=NodePort",
        "--port=80",
        "--target-port=8080",
    ]);
    for name in ["front", "modern"] {
        cluster.kubectl(&[
            "rollout",
            "status",
            &format!("deploy/{name}"),
            "--timeout=60s",
        ]);
        let service = cluster.get(&["svc", name]).expect("it exists");
        let port = service
            .pointer("/spec/ports/0/nodePort")
            .and_then(Value::as_u64)
            .expect("a node port");
        let (status, body) = wait_for(&format!("an answer of {name}"), || {
            http_get(&format!("127.0.0.1:{port}"), "/").filter(|(status, _)| *status == 200)
        });
        assert_eq!((status, body.trim()), (200, "Hello World!"));
    }
}

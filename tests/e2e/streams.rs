//! Streams through the API server to a pod's node: port-forward as kubectl and kube-rs ask for it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout};

use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::harness::{Cluster, have, http_get, wait_for};

const WORKLOADS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - {name: main, image: coracle.dev/guests/hello-http, ports: [{name: http, containerPort: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 8000, targetPort: http}]
---
apiVersion: v1
kind: Pod
metadata: {name: echo}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: coracle.dev/guests/echo
    env: [{name: PORT, value: '7000'}, {name: POD_NAME, value: echo}]
    readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}
";

/// `kubectl port-forward`, ended with the test.
struct Forward {
    process: Child,
    /// Read to the line that names the port; kept open, or kubectl would fail to write.
    output: BufReader<ChildStdout>,
    address: String,
}

impl Forward {
    fn start(cluster: &Cluster, target: &str, port: &str) -> Self {
        let port = format!(":{port}");
        let mut process = cluster.kubectl_spawn(&["port-forward", target, &port]);
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        // Forwarding from 127.0.0.1:40123 -> 80
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split_once(' '));
        let address = address.unwrap_or_else(|| panic!("kubectl said {line:?}")).0;
        Self {
            address: address.to_owned(),
            process,
            output,
        }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(self.output.read_to_string(&mut String::new()));
    }
}

fn cluster() -> Cluster {
    let cluster = Cluster::start();
    cluster.apply(WORKLOADS);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let ready = "--for=condition=Ready";
    cluster.kubectl(&["wait", "pod/echo", ready, "--timeout=60s"]);
    cluster
}

#[test]
fn kubectl_forwards_ports_of_pods_deployments_and_services() {
    if !have("kubectl") {
        return;
    }
    let cluster = cluster();
    for (target, port) in [("deploy/web", "80"), ("svc/web", "8000")] {
        let forward = Forward::start(&cluster, target, port);
        // Several connections one after the other, and several at once, through one stream.
        for _ in 0..3 {
            let (status, body) = http_get(&forward.address, "/x").expect("an answer");
            assert_eq!(status, 200, "{target}: {body}");
        }
        let answers = std::thread::scope(|scope| {
            let ask = || http_get(&forward.address, "/y").map(|(status, _)| status);
            let asking: Vec<_> = (0..20).map(|_| scope.spawn(ask)).collect();
            let answers = asking.into_iter().map(|one| one.join().expect("asked"));
            answers.collect::<Vec<_>>()
        });
        assert_eq!(answers, vec![Some(200); 20], "{target}");
    }
    // Bytes, of a guest that listens on a socket itself.
    let forward = Forward::start(&cluster, "pod/echo", "7000");
    let mut stream = TcpStream::connect(&forward.address).expect("connected");
    stream.write_all(b"hello\n").expect("written");
    let mut lines = BufReader::new(stream).lines();
    let mut line = || lines.next().expect("a line").expect("read");
    assert_eq!(line(), "echo");
    assert_eq!(line(), "hello");
}

#[test]
fn a_port_that_nobody_listens_on_is_told_by_kubectl() {
    if !have("kubectl") {
        return;
    }
    let cluster = cluster();
    let errors = cluster.path("errors");
    let mut process = cluster.kubectl_told(&["port-forward", "pod/echo", ":9"], &errors);
    let mut line = String::new();
    let mut output = BufReader::new(process.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("a line");
    let address = line.split(' ').nth(2).expect("an address").to_owned();
    let said = wait_for("kubectl to tell of the refusal", || {
        let nothing = http_get(&address, "/");
        assert!(nothing.is_none(), "{nothing:?}");
        let said = std::fs::read_to_string(&errors).unwrap_or_default();
        said.contains("error forwarding port 9").then_some(said)
    });
    drop(process.kill());
    drop(process.wait());
    assert!(said.contains("to pod echo"), "{said}");
    assert!(said.contains("connection refused"), "{said}");
    let gone = cluster.kubectl_fails(&["port-forward", "pod/nobody", ":9"]);
    assert!(gone.contains("pods \"nobody\" not found"), "{gone}");
}

#[test]
fn kube_rs_forwards_by_the_old_protocol() {
    if !have("kubectl") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = cluster();
    let work = async {
        let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).expect("a kubeconfig");
        let config =
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                .await
                .expect("valid");
        let client = kube::Client::try_from(config).expect("a client");
        let pods: Api<Pod> = Api::default_namespaced(client);
        let mut forwarder = pods
            .portforward("echo", &[7000, 9])
            .await
            .expect("forwarded");
        let mut stream = forwarder.take_stream(7000).expect("a stream");
        stream.write_all(b"hello\n").await.expect("written");
        let mut answer = [0; 11];
        stream.read_exact(&mut answer).await.expect("read");
        assert_eq!(&answer, b"echo\nhello\n");
        let refused = forwarder.take_error(9).expect("an error channel").await;
        let refused = refused.expect("a reason");
        assert!(refused.contains("connection refused"), "{refused}");
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let deadline = std::time::Duration::from_secs(30);
    runtime
        .block_on(async { tokio::time::timeout(deadline, work).await })
        .expect("in time");
}

//! Streams through the API server to a pod's node: port-forward, commands and proxies as kubectl, kube-rs and the Python client
//! ask for them.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdout, Command};

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
    fn start(cluster: &Cluster, target: &str, port: &str, env: &[(&str, &str)]) -> Self {
        let port = format!(":{port}");
        let errors = cluster.path("errors");
        let mut process = cluster.kubectl_told(&["port-forward", target, &port], &errors, env);
        let mut output = BufReader::new(process.stdout.take().expect("piped"));
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        // Forwarding from 127.0.0.1:40123 -> 80
        let address = line
            .strip_prefix("Forwarding from ")
            .and_then(|rest| rest.split_once(' '));
        let said = || std::fs::read_to_string(&errors).unwrap_or_default();
        let address = address.unwrap_or_else(|| panic!("kubectl said {line:?}: {}", said()));
        Self {
            address: address.0.to_owned(),
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
    // As it comes, in a WebSocket, and as older clients and proxies have it.
    let plain = &[("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")][..];
    for (target, port, env) in [
        ("deploy/web", "80", &[][..]),
        ("svc/web", "8000", &[]),
        ("deploy/web", "80", plain),
    ] {
        let forward = Forward::start(&cluster, target, port, env);
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
    let forward = Forward::start(&cluster, "pod/echo", "7000", &[]);
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
    let mut process = cluster.kubectl_told(&["port-forward", "pod/echo", ":9"], &errors, &[]);
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
fn pods_and_services_answer_through_the_api() {
    if !have("kubectl") {
        return;
    }
    let cluster = cluster();
    let pod = cluster.pod_of("app=web");
    let default = "/api/v1/namespaces/default";
    for path in [
        format!("{default}/services/web:8000/proxy/"),
        format!("{default}/services/http:web:http/proxy/a/b?c=d"),
        format!("{default}/pods/{pod}:80/proxy/"),
        format!("{default}/pods/{pod}/proxy/x"),
    ] {
        let answer = cluster.kubectl(&["get", "--raw", &path]);
        assert!(answer.contains("Hello"), "{path}: {answer}");
    }
    let nobody = format!("{default}/pods/echo:9/proxy/");
    let refused = cluster.kubectl_fails(&["get", "--raw", &nobody]);
    assert!(refused.contains("connection refused"), "{refused}");
    let mut proxy = cluster.kubectl_spawn(&["proxy", "--port=0"]);
    let mut line = String::new();
    let mut output = BufReader::new(proxy.stdout.take().expect("piped"));
    output.read_line(&mut line).expect("a line");
    let address = line.rsplit(' ').next().expect("an address").trim();
    let path = format!("{default}/services/web:8000/proxy/");
    let (status, body) = http_get(address, &path).expect("an answer");
    drop(proxy.kill());
    drop(proxy.wait());
    assert_eq!(status, 200, "{body}");
}

#[test]
fn a_command_runs_over_spdy_too() {
    if !have("kubectl") {
        return;
    }
    let cluster = cluster();
    let spdy = [("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")];
    let said = cluster.kubectl_in(&spdy, &["exec", "echo", "--", "echo", "over", "spdy"]);
    assert_eq!(said, "over spdy\n");
    // By WebSocket the same, with what the client has typed and an exit code.
    let typed = cluster.kubectl_with(&["exec", "-i", "echo", "--", "cat"], "typed\n");
    assert_eq!(typed, "typed\n");
    let failed = cluster.try_kubectl(&["exec", "echo", "--", "sh", "-c", "exit 3"]);
    assert_eq!(failed.status.code(), Some(3));
}

#[test]
fn the_python_client_forwards_and_runs_commands() {
    let python = std::env::var("CORACLE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let importable = Command::new(&python)
        .args(["-c", "import kubernetes"])
        .output()
        .is_ok_and(|output| output.status.success());
    if !importable {
        assert!(
            std::env::var_os("CORACLE_REQUIRE_TOOLS").is_none(),
            "the Python client is not installed, and tools are required"
        );
        println!("skipped: the Python package kubernetes is not installed");
        return;
    }
    if !have("kubectl") {
        return;
    }
    let cluster = cluster();
    let script = "
import sys
from kubernetes import client, config
from kubernetes.stream import portforward, stream
config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
forward = portforward(core.connect_get_namespaced_pod_portforward, 'echo', 'default', ports='7000')
socket = forward.socket(7000)
socket.settimeout(20)
socket.sendall(b'hello\\n')
said = b''
while said != b'echo\\nhello\\n':
    piece = socket.recv(1024)
    assert piece, (said, forward.error(7000))
    said += piece
socket.close()
core = client.CoreV1Api()
said = stream(core.connect_get_namespaced_pod_exec, 'echo', 'default', command=['echo', 'hi'], stdout=True, stderr=True)
assert said == 'hi\\n', said
";
    let output = Command::new(&python)
        .args(["-c", script])
        .arg(cluster.kubeconfig())
        .output()
        .expect("python runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
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

//! A hop between hosts, beside nginx doing the same hop: `cargo bench --bench hosts` (nginx on the path, else it is left out).
//!
//! One server and two nodes in processes of their own, on loopback addresses of their own. The same client asks in turn a
//! pod on the node it talks to (no hop), a pod on the other node (through the tunnel: mutual TLS, HTTP/2), and the same
//! pod through a pair of nginx that speak TLS to each other, and through a plain TCP relay. Prints medians and ratios, and
//! then what a node keeps in memory for many Services and endpoints.

#![expect(clippy::print_stdout, reason = "a bench prints")]

#[allow(dead_code, reason = "each bench uses its part of it")]
mod cluster;
#[path = "load/fresh.rs"]
mod fresh;
mod load;
#[path = "load/target.rs"]
mod target;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cluster::{Owned, PATIENCE, binary, ready};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, PostParams};
use target::Target;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

const ROUNDS: usize = 5;
const SERVICES: usize = 1_000;
const ENDPOINTS: usize = 10;
const SERVER: &str = "127.0.0.1:16443";
const NEAR: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 3);
const NGINX: Ipv4Addr = Ipv4Addr::new(127, 78, 0, 4);
const NEAR_PORT: u16 = 30_081;
const FAR_PORT: u16 = 30_082;

fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<()> {
    let dir = tempfile::Builder::new().prefix("coracle-bench").tempdir()?;
    let data = |name: &str| dir.path().join(name).display().to_string();
    let server_data = data("server");
    let _server = role("server", &server_data, &["--listen", SERVER])?;
    let client = client(Path::new(&server_data)).await?;
    let token = Command::new(binary())
        .args(["token", "create", "--data-dir", &server_data])
        .output()?;
    ensure!(token.status.success(), "no token: {token:?}");
    let token = String::from_utf8(token.stdout)?.trim().to_owned();
    let mut nodes = Vec::new();
    for (name, ip) in [("near", NEAR), ("far", FAR)] {
        let (url, ip) = (format!("https://{SERVER}"), ip.to_string());
        let args = [
            "--node-name",
            name,
            "--node-ip",
            &ip,
            "--address",
            &ip,
            "--dns-address",
            "off",
            "--service-address",
            &ip,
            "--server",
            &url,
            "--token",
            &token,
        ];
        nodes.push(role("node", &data(name), &args)?);
    }
    let (near, far) = (nodes[0].0.id(), nodes[1].0.id());
    for (name, port) in [("near", NEAR_PORT), ("far", FAR_PORT)] {
        node_ready(&client, name).await?;
        deploy(&client, name, port).await?;
        ready(&client, name, 1).await?;
    }
    let at = |ip: Ipv4Addr, port| SocketAddr::from((ip, port));
    let relay = relay(at(FAR, FAR_PORT)).await?;
    let mut targets = vec![
        Target::new("same node, no hop", at(NEAR, NEAR_PORT), &[near]),
        Target::new("other node, tunnel", at(NEAR, FAR_PORT), &[near, far]),
        Target::new("plain TCP relay", relay, &[std::process::id(), far]),
    ];
    let nginx = nginx(dir.path())?;
    if let Some((nginx, address)) = &nginx {
        let mut processes = children(nginx.0.0.id());
        processes.push(far);
        targets.push(Target::new("nginx, TLS, nginx", *address, &processes));
    } else {
        println!("nginx is not on the path: it is not measured beside");
    }
    for target in &targets {
        target.answers().await?;
    }
    for _ in 0..ROUNDS {
        for target in &mut targets {
            target.round().await?;
        }
    }
    print(&targets);
    let nodes = [("the other node", NEAR), ("its own node", FAR)];
    fresh::print(&client, "far", &nodes).await?;
    keep(&client, near).await
}

/// What a node's memory grows by for [`SERVICES`] Services with [`ENDPOINTS`] endpoints each.
async fn keep(client: &kube::Client, node: u32) -> Result<()> {
    let before = settled(node).await?;
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let slices: Api<EndpointSlice> = Api::default_namespaced(client.clone());
    for number in 0..SERVICES {
        let name = format!("many-{number}");
        let service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))?;
        services.create(&PostParams::default(), &service).await?;
        let endpoints: Vec<_> = (0..ENDPOINTS)
            .map(|endpoint| {
                let endpoint = number * ENDPOINTS + endpoint;
                let address = format!("100.100.{}.{}", endpoint / 250, endpoint % 250);
                serde_json::json!({"addresses": [address], "nodeName": "far", "conditions": {"ready": true}})
            })
            .collect();
        let slice = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}], "endpoints": endpoints,
        }))?;
        slices.create(&PostParams::default(), &slice).await?;
    }
    let after = settled(node).await?;
    println!(
        "a node's memory for {SERVICES} Services and {} endpoints: {} more, {} in all",
        SERVICES * ENDPOINTS,
        cluster::megabytes(after.saturating_sub(before)),
        cluster::megabytes(after)
    );
    Ok(())
}

/// A process's own memory, when it no longer changes.
async fn settled(process: u32) -> Result<u64> {
    let mut last = cluster::memory(process)?.anonymous;
    for _ in 0..30 {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = cluster::memory(process)?.anonymous;
        if now.abs_diff(last) < 256 << 10 {
            return Ok(now);
        }
        last = now;
    }
    Ok(last)
}

fn print(targets: &[Target]) {
    println!(
        "{:<24} {:>11} {:>10} {:>10} {:>13} {:>9}",
        "", "requests/s", "p50", "p99", "CPU/request", "to nginx"
    );
    let nginx = targets.iter().find(|t| t.name.starts_with("nginx"));
    for target in targets {
        let rate = target.median(|round| round.per_second);
        let beside = nginx.map_or_else(String::new, |nginx| {
            format!("{:.2} ×", rate / nginx.median(|round| round.per_second))
        });
        println!(
            "{:<24} {:>11.0} {:>7.2} ms {:>7.2} ms {:>10.1} µs {:>9}",
            target.name,
            rate,
            target.median(|round| round.p50),
            target.median(|round| round.p99),
            target.median(|round| round.cpu),
            beside
        );
    }
    println!("goal: the tunnel ≥ 0.8 × nginx");
}

/// One role of the binary in a process of its own; what it says is thrown away.
fn role(role: &str, data: &str, args: &[&str]) -> Result<Owned> {
    let process = Command::new(binary())
        .args([role, "--data-dir", data])
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("could not start {}", binary().display()))?;
    Ok(Owned(process))
}

/// A client of the API as soon as it serves.
async fn client(data: &Path) -> Result<kube::Client> {
    let deadline = Instant::now() + PATIENCE;
    let kubeconfig = data.join("kubeconfig");
    loop {
        let attempt = async {
            let file = kube::config::Kubeconfig::read_from(&kubeconfig)?;
            let options = kube::config::KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(file, &options).await?;
            let client = kube::Client::try_from(config)?;
            client.apiserver_version().await?;
            anyhow::Ok(client)
        };
        match attempt.await {
            Ok(client) => return Ok(client),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
        }
    }
}

async fn node_ready(client: &kube::Client, name: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let is_ready = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        types::condition::is_true(conditions, "Ready")
    };
    let waiting = kube::runtime::wait::await_condition(nodes, name, is_ready);
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .with_context(|| format!("node {name} was not ready after {PATIENCE:?}"))??;
    Ok(())
}

/// A web pod on the node of that name, and a NodePort for it; instances are reused, so that the hop is what is seen.
async fn deploy(client: &kube::Client, node: &str, port: u16) -> Result<()> {
    let deployment: Deployment = serde_json::from_value(serde_json::json!({
        "metadata": {"name": node},
        "spec": {
            "selector": {"matchLabels": {"app": node}},
            "template": {
                "metadata": {"labels": {"app": node}, "annotations": {types::well_known::ANNOTATION_REUSE: "1000"}},
                "spec": {
                    "nodeName": node,
                    "containers": [{"name": "main", "image": "coracle.dev/guests/hello-http"}],
                },
            },
        },
    }))?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments
        .create(&PostParams::default(), &deployment)
        .await?;
    let service: Service = serde_json::from_value(serde_json::json!({
        "metadata": {"name": node},
        "spec": {
            "type": "NodePort",
            "selector": {"app": node},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": port}],
        },
    }))?;
    let services: Api<Service> = Api::default_namespaced(client.clone());
    services.create(&PostParams::default(), &service).await?;
    Ok(())
}

/// Bytes back and forth, nothing else.
async fn relay(to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut far) = TcpStream::connect(to).await else {
                    return;
                };
                let _ = near.set_nodelay(true).and(far.set_nodelay(true));
                // An end that went away is the client's business.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    Ok(address)
}

/// nginx's master process: its workers end with it only if it is asked, not killed.
struct Master(Owned);

impl Drop for Master {
    fn drop(&mut self) {
        let id = nix::unistd::Pid::from_raw(self.0.0.id() as i32);
        // An error here means that it has ended already.
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM);
        let _ = self.0.0.wait();
    }
}

/// A pair in one process: the first speaks TLS to the second, which speaks HTTP to the pod's node.
fn nginx(dir: &Path) -> Result<Option<(Master, SocketAddr)>> {
    if Command::new("nginx")
        .arg("-v")
        .stderr(Stdio::null())
        .status()
        .is_err()
    {
        return Ok(None);
    }
    let certificate = rcgen::generate_simple_self_signed(vec!["far".to_owned()])?;
    std::fs::write(dir.join("cert.pem"), certificate.cert.pem())?;
    std::fs::write(dir.join("key.pem"), certificate.signing_key.serialize_pem())?;
    let d = dir.display();
    let config = format!(
        "daemon off; worker_processes 2; pid {d}/nginx.pid; error_log {d}/nginx.log;
        events {{ worker_connections 1024; }}
        http {{
          access_log off; client_body_temp_path {d}/b; proxy_temp_path {d}/p;
          fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
          keepalive_requests 1000000;
          upstream far {{ server {NGINX}:8443; keepalive 64; keepalive_requests 1000000; }}
          upstream pod {{ server {FAR}:{FAR_PORT}; keepalive 64; keepalive_requests 1000000; }}
          proxy_http_version 1.1; proxy_set_header Connection '';
          server {{ listen {NGINX}:8080;
            location / {{ proxy_pass https://far; proxy_ssl_certificate {d}/cert.pem; proxy_ssl_certificate_key {d}/key.pem;
              proxy_ssl_trusted_certificate {d}/cert.pem; proxy_ssl_verify on; proxy_ssl_name far;
              proxy_ssl_server_name on; proxy_ssl_protocols TLSv1.3; }} }}
          server {{ listen {NGINX}:8443 ssl; ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem;
            ssl_client_certificate {d}/cert.pem; ssl_verify_client on; ssl_protocols TLSv1.3;
            location / {{ proxy_pass http://pod; }} }}
        }}"
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, config)?;
    let process = Command::new("nginx")
        .arg("-c")
        .arg(&file)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(Some((
        Master(Owned(process)),
        SocketAddr::from((NGINX, 8080)),
    )))
}

/// The workers of an nginx, once they are there.
fn children(parent: u32) -> Vec<u32> {
    let path = format!("/proc/{parent}/task/{parent}/children");
    let read = || std::fs::read_to_string(&path).unwrap_or_default();
    let mut text = read();
    for _ in 0..100 {
        if !text.trim().is_empty() {
            break;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        text = read();
    }
    text.split_whitespace()
        .filter_map(|id| id.parse().ok())
        .collect()
}

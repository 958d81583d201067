//! HTTP through a Service's listener to a Wasm handler: `WASMTIME=/path/to/wasmtime cargo bench --bench http`.
//!
//! The same client runs in turn against plain hyper, the Service with a fresh instance per request, with reused instances,
//! with a component of WASI 0.3, and (where a binary is given) `wasmtime serve` with the same components. All on this
//! machine's loopback in one run, several rounds; prints medians and ratios. A processor is left to the client.

#![expect(clippy::print_stdout, reason = "a bench prints")]

#[allow(dead_code, reason = "each bench uses its part of it")]
mod cluster;
mod load;
#[path = "load/target.rs"]
mod target;

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cluster::{Cluster, Owned};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, PostParams};
use target::Target;

const ROUNDS: usize = 5;
const GUESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/guests/built");
/// With this argument the program is the plain hyper server.
const PLAIN: &str = "serve-plain-hyper";

fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    if std::env::args().any(|arg| arg == PLAIN) {
        return tokio::runtime::Runtime::new()?.block_on(serve_plain());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<()> {
    let mut targets = Vec::new();
    let (plain, address) = announced(Command::new(std::env::current_exe()?).arg(PLAIN))?;
    targets.push(Target::new("plain hyper", address, &[plain.0.id()]));

    let cluster = Cluster::start()?;
    let client = cluster.client().await?;
    let reuse = [(types::well_known::ANNOTATION_REUSE, "1000")];
    let pods: [(&str, &str, &str, &[_]); 3] = [
        ("Service, 0.2, fresh instances", "fresh", "hello-http", &[]),
        (
            "Service, 0.2, reused instances",
            "reused",
            "hello-http",
            &reuse,
        ),
        ("Service, 0.3", "p3", "hello-http-p3", &[]),
    ];
    for (what, name, image, annotations) in pods {
        let image = format!("coracle.dev/guests/{image}");
        cluster::deploy(&client, name, &image, 1, annotations).await?;
        cluster::ready(&client, name, 1).await?;
        let port = expose(&client, name).await?;
        let address = SocketAddr::from((cluster.service_address, port));
        targets.push(Target::new(what, address, &[cluster.process_id()]));
    }

    let mut references = Vec::new();
    if let Some(binary) = std::env::var_os("WASMTIME") {
        let rows: [(&str, &str, &[&str]); 2] = [
            ("wasmtime serve, 0.2", "hello-http.wasm", &["-Scli"]),
            (
                "wasmtime serve, 0.3",
                "hello-http-p3.wasm",
                &["-Scli", "-Sp3", "-Wcomponent-model-async"],
            ),
        ];
        for (what, guest, flags) in rows {
            let mut command = Command::new(&binary);
            command.arg("serve").args(flags);
            command.args(["--addr", "127.0.0.1:0"]);
            let (process, address) = announced(command.arg(format!("{GUESTS}/{guest}")))?;
            targets.push(Target::new(what, address, &[process.0.id()]));
            references.push(process);
        }
    } else {
        println!("WASMTIME is not set: `wasmtime serve` is not measured beside");
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
    Ok(())
}

fn print(targets: &[Target]) {
    println!(
        "{:<34} {:>11} {:>9} {:>9} {:>12} {:>9} {:>11}",
        "", "requests/s", "p50", "p99", "CPU/request", "to hyper", "to wasmtime"
    );
    let rate = |target: &Target| target.median(|round| round.per_second);
    let plain = rate(&targets[0]);
    for target in targets {
        // The reference of the same WASI version.
        let version = if target.name.contains("0.3") {
            "0.3"
        } else {
            "0.2"
        };
        let reference = targets
            .iter()
            .find(|other| other.name.starts_with("wasmtime") && other.name.contains(version));
        let beside = reference.map_or_else(String::new, |other| {
            format!("{:.2} ×", rate(target) / rate(other))
        });
        println!(
            "{:<34} {:>11.0} {:>6.2} ms {:>6.2} ms {:>9.1} µs {:>7.2} × {:>11}",
            target.name,
            rate(target),
            target.median(|round| round.p50),
            target.median(|round| round.p99),
            target.median(|round| round.cpu),
            rate(target) / plain,
            beside
        );
    }
    println!(
        "goals: fresh 0.2 ≥ 2.5 × and ≤ 30 µs; reused 0.2 ≤ 15 µs; 0.3 ≥ 1.5 × wasmtime serve"
    );
}

/// Makes a NodePort Service for the Deployment of that name; returns its port.
async fn expose(client: &kube::Client, name: &str) -> Result<u16> {
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service: Service = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name},
        "spec": {
            "type": "NodePort",
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": 8080}],
        },
    }))?;
    let made = services.create(&PostParams::default(), &service).await?;
    let port = made.spec.and_then(|spec| spec.ports?.first()?.node_port);
    Ok(u16::try_from(port.context("no node port was allocated")?)?)
}

/// Starts a server that prints a URL when it listens.
fn announced(command: &mut Command) -> Result<(Owned, SocketAddr)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    let errors = child.stderr.take();
    let process = Owned(child);
    let mut lines = BufReader::new(errors.context("its errors are piped")?);
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let url = first.trim().rsplit_once("http://");
    ensure!(url.is_some(), "no address in {first:?}");
    let address = url.map_or("", |(_, address)| address.trim_end_matches('/'));
    std::thread::spawn(move || lines.lines().map_while(Result::ok).for_each(drop));
    Ok((process, address.parse()?))
}

/// The reference: hyper with the answer in its hand.
#[expect(clippy::print_stderr, reason = "the parent reads the address there")]
async fn serve_plain() -> Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("Serving HTTP on http://{}/", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            let service = service_fn(|_: hyper::Request<Incoming>| async {
                let body = Full::new(Bytes::from_static(b"Hello World!\n"));
                Ok::<_, Infallible>(hyper::Response::new(body))
            });
            let mut builder = hyper::server::conn::http1::Builder::new();
            builder.pipeline_flush(true);
            // An error is the client's: it went away.
            let _ = builder
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
    }
}

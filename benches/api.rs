//! What the API costs through HTTPS on SQLite: `cargo bench --bench api`. Prints durable creates per second with 1 and 64
//! clients, GETs per second with 64, the time of a list of 10,000, and how long a write takes to reach a watcher.

#![expect(clippy::print_stdout, reason = "a bench prints")]

#[allow(dead_code, reason = "each bench uses its part of it")]
mod cluster;
mod load;

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cluster::{Cluster, PATIENCE, cpu, line, median, megabytes, millis};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use kube::client::ConfigExt as _;
use load::{Connection, Outcome};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

const RUN: Duration = Duration::from_secs(4);
const ROUNDS: usize = 3;
const CLIENTS: usize = 64;
const LISTED: usize = 10_000;
const LISTS: usize = 9;
const WRITES: usize = 300;

/// The API of one cluster, by its socket.
struct Server {
    cluster: Cluster,
    address: SocketAddr,
    tls: TlsConnector,
}

fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let cluster = Cluster::start()?;
        let config = cluster.config().await?;
        let port = config.cluster_url.port_u16().context("no port")?;
        let server = Server {
            cluster,
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            tls: TlsConnector::from(Arc::new(config.rustls_client_config()?)),
        };
        let flush = flush(&server.cluster.data_dir())?;
        line(
            "one flushed append of 4 KB on this disk",
            &millis(flush),
            "",
        );
        creates(&server, flush).await?;
        gets(&server).await?;
        lists(&server).await?;
        watch(&server).await
    })
}

/// What the disk needs to keep a page.
fn flush(directory: &std::path::Path) -> Result<Duration> {
    let mut file = tempfile::tempfile_in(directory)?;
    let mut times = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(median(&times))
}

/// A ConfigMap of about 1.4 kB.
fn body(name: &str) -> String {
    let text = "x".repeat(1_100);
    format!(
        r#"{{"apiVersion":"v1","kind":"ConfigMap","metadata":{{"name":"{name}"}},"data":{{"text":"{text}"}}}}"#
    )
}

fn create(namespace: &str, name: &str) -> Vec<u8> {
    let body = body(name);
    format!(
        "POST /api/v1/namespaces/{namespace}/configmaps HTTP/1.1\r\nHost: coracle\r\n\
         Content-Type: application/json\r\nAccept: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: coracle\r\nAccept: application/json\r\n\r\n").into_bytes()
}

// === impl Server ===

impl Server {
    /// Rounds of load; returns requests per second, the middle latency and the processor time of each, as medians.
    async fn load(
        &self,
        clients: usize,
        request: impl Fn(usize, usize, usize) -> Vec<u8> + Send + Sync + Clone + 'static,
    ) -> Result<(f64, Duration, f64)> {
        let mut rounds: Vec<(f64, Duration, f64)> = Vec::new();
        for round in 0..ROUNDS {
            let request = request.clone();
            let before = cpu(self.cluster.process_id())?;
            let request = move |client, number| request(round, client, number);
            let outcome: Outcome =
                load::run(self.address, Some(&self.tls), clients, RUN, request).await?;
            let used = cpu(self.cluster.process_id())?.saturating_sub(before);
            let each = used.as_secs_f64() * 1e6 / outcome.latencies.len() as f64;
            rounds.push((outcome.per_second(), outcome.quantile(0.5), each));
        }
        let of = |at: fn(&(f64, Duration, f64)) -> f64| {
            median(&rounds.iter().map(at).collect::<Vec<_>>())
        };
        let latency = Duration::from_secs_f64(of(|round| round.1.as_secs_f64()));
        Ok((of(|round| round.0), latency, of(|round| round.2)))
    }
}

async fn creates(server: &Server, flush: Duration) -> Result<()> {
    let one_by_one = 1.0 / flush.as_secs_f64();
    for clients in [1, CLIENTS] {
        let (rate, latency, cpu) = server
            .load(clients, move |round, client, number| {
                create(
                    "kube-public",
                    &format!("c{clients}-{round}-{client}-{number}"),
                )
            })
            .await?;
        let goal = if clients == 1 {
            "goal ≥ 835/s (1.5 × 557)"
        } else {
            "goal ≥ 5,448/s (8 × 681)"
        };
        line(
            &format!("durable creates/s, {clients} clients"),
            &format!("{rate:.0}/s"),
            goal,
        );
        println!(
            "    {:.2} × the flushes this disk does one by one; p50 {}; {cpu:.0} µs of processor time each",
            rate / one_by_one,
            millis(latency)
        );
    }
    Ok(())
}

async fn gets(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server.address, Some(&server.tls)).await?;
    let (status, _) = connection.call(&create("default", "one")).await?;
    ensure!(status == 201, "the object to get was not made: {status}");
    let (rate, latency, cpu) = server
        .load(CLIENTS, |_, _, _| {
            get("/api/v1/namespaces/default/configmaps/one")
        })
        .await?;
    line(
        &format!("GET/s, {CLIENTS} clients"),
        &format!("{rate:.0}/s"),
        "goal ≥ 13,432/s (8 × 1,679)",
    );
    println!(
        "    p50 {}; {cpu:.0} µs of processor time each",
        millis(latency)
    );
    Ok(())
}

async fn lists(server: &Server) -> Result<()> {
    let fill: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (address, tls) = (server.address, server.tls.clone());
            tokio::spawn(async move {
                let mut connection = Connection::open(address, Some(&tls)).await?;
                for number in (client..LISTED).step_by(CLIENTS) {
                    let request = create("kube-node-lease", &format!("l{number}"));
                    let (status, _) = connection.call(&request).await?;
                    ensure!(status == 201, "the answer was {status}");
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for task in fill {
        task.await??;
    }
    let mut connection = Connection::open(server.address, Some(&server.tls)).await?;
    let mut times = Vec::new();
    let mut length = 0;
    for _ in 0..LISTS {
        let begun = Instant::now();
        let request = get("/api/v1/namespaces/kube-node-lease/configmaps");
        let (status, bytes) = connection.call(&request).await?;
        ensure!(status == 200, "the answer was {status}");
        times.push(begun.elapsed());
        length = bytes;
    }
    line(
        &format!("list of {LISTED} ({})", megabytes(length as u64)),
        &millis(median(&times)),
        "goal ≤ 14 ms (1/10 of 142 ms)",
    );
    Ok(())
}

/// A client writes, another watches: from before the write is sent until the event is decoded.
async fn watch(server: &Server) -> Result<()> {
    let maps: Api<ConfigMap> = Api::default_namespaced(server.cluster.client().await?);
    let mut events = maps.watch(&WatchParams::default(), "0").await?.boxed();
    let writer: Api<ConfigMap> = Api::default_namespaced(server.cluster.client().await?);
    let mut seen = Vec::new();
    let mut answered = Vec::new();
    for number in 0..WRITES {
        let name = format!("w{number}");
        let map: ConfigMap = serde_json::from_str(&body(&name))?;
        let begun = Instant::now();
        let write = async {
            writer.create(&PostParams::default(), &map).await?;
            anyhow::Ok(begun.elapsed())
        };
        let event = async {
            while let Some(event) = events.next().await {
                if let WatchEvent::Added(map) = event?
                    && map.metadata.name.as_deref() == Some(name.as_str())
                {
                    return Ok(begun.elapsed());
                }
            }
            anyhow::bail!("the watch ended")
        };
        let both = async { tokio::try_join!(write, event) };
        let (write, event) = tokio::time::timeout(PATIENCE, both).await??;
        answered.push(write);
        seen.push(event);
    }
    line(
        "write → watch event",
        &format!(
            "{} (answer {})",
            millis(median(&seen)),
            millis(median(&answered))
        ),
        "goal ≤ 0.9 ms (1/4 of 3.5 ms)",
    );
    Ok(())
}

//! How long an empty cluster takes to start and what it weighs: `cargo bench --bench start`.
//!
//! Prints medians: exec → Ready node on an empty data directory and on one that was used, resident memory of the empty
//! cluster and with 1,000 idle HTTP pods, the size of the binary.

#![expect(clippy::print_stdout, reason = "a bench prints")]

#[allow(dead_code, reason = "each bench uses its part of it")]
mod cluster;

use std::time::Duration;

use anyhow::Result;
use cluster::{Cluster, Memory, line, median, megabytes, millis};

const STARTS: usize = 9;
const PODS: i32 = 1_000;
/// For what goes on after the node is ready: informers fill, events are written.
const SETTLE: Duration = Duration::from_secs(3);

fn main() -> Result<()> {
    // There is one provider of cryptography; somebody else has installed it if this fails.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(measure())
}

async fn measure() -> Result<()> {
    let size = std::fs::metadata(cluster::binary())?.len();
    line("size of the binary", &megabytes(size), "");
    let mut starts = Vec::new();
    let mut restarts = Vec::new();
    let mut empty = Vec::new();
    for _ in 0..STARTS {
        let cluster = Cluster::start()?;
        starts.push(cluster.ready);
        tokio::time::sleep(SETTLE / 3).await;
        empty.push(cluster.memory()?.resident);
        restarts.push(cluster.restart()?.ready);
    }
    line(
        "exec to Ready node, empty data directory",
        &millis(median(&starts)),
        "goal < 300 ms",
    );
    line(
        "exec to Ready node, after kill -9",
        &millis(median(&restarts)),
        "",
    );
    line(
        "resident memory of the empty cluster",
        &megabytes(median(&empty)),
        "goal ≤ 60 MB",
    );
    pods().await
}

async fn pods() -> Result<()> {
    let cluster = Cluster::start()?;
    let client = cluster.client().await?;
    cluster::deploy(&client, "one", "coracle.dev/guests/hello-http", 1, &[]).await?;
    cluster::ready(&client, "one", 1).await?;
    tokio::time::sleep(SETTLE).await;
    let before = cluster.memory()?;
    print("with one idle HTTP pod", before);
    cluster::deploy(&client, "web", "coracle.dev/guests/hello-http", PODS, &[]).await?;
    cluster::ready(&client, "web", PODS).await?;
    print("when 1,000 more are ready", cluster.memory()?);
    tokio::time::sleep(SETTLE * 2).await;
    let after = cluster.memory()?;
    print("when they have been idle for a while", after);
    let each = after.resident.saturating_sub(before.resident) / PODS as u64;
    line(
        "an idle HTTP pod, API objects and Events included",
        &format!("{:.1} kB", each as f64 / 1e3),
        "goal ≤ 50 kB",
    );
    Ok(())
}

fn print(when: &str, memory: Memory) {
    let text = format!(
        "{} ({} anonymous)",
        megabytes(memory.resident),
        megabytes(memory.anonymous)
    );
    line(&format!("resident memory {when}"), &text, "");
}

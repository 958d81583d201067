//! A Deployment scaled from 1 to 1,000 replicas: `cargo bench --bench scale [-- REPLICAS]`. Prints the median time until
//! all were ready as a watching client sees it, and the processor time the whole cluster used for it.

#![expect(clippy::print_stdout, reason = "a bench prints")]

#[allow(dead_code, reason = "each bench uses its part of it")]
mod cluster;

use std::time::Duration;

use anyhow::Result;
use cluster::{Cluster, cpu, line, median, millis};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ListParams, Patch, PatchParams};
use tokio::time::Instant;

const RUNS: usize = 5;

fn main() -> Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let given = std::env::args().skip(1).find_map(|arg| arg.parse().ok());
    let replicas: i32 = given.unwrap_or(1_000);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut times = Vec::new();
        let mut used = Vec::new();
        // Kept until the last run has ended: ext4 passes over inodes deleted in the last seconds when it makes a file, so
        // that every run would pay for the directories of the one before.
        let mut directories = Vec::new();
        for _ in 0..RUNS {
            let cluster = Cluster::start()?;
            let (time, cpu) = run(&cluster, replicas).await?;
            times.push(time);
            used.push(cpu);
            directories.push(cluster.end());
        }
        let times_text: Vec<_> = times.iter().map(|time| millis(*time)).collect();
        println!("runs: {}", times_text.join(", "));
        line(
            &format!("Deployment scaled 1 → {replicas}: all Ready"),
            &millis(median(&times)),
            "goal ≤ 1 s at 1,000",
        );
        line(
            "processor time of the process meanwhile, per pod",
            &format!(
                "{:.0} µs",
                median(&used).as_secs_f64() * 1e6 / f64::from(replicas)
            ),
            "",
        );
        Ok(())
    })
}

async fn run(cluster: &Cluster, replicas: i32) -> Result<(Duration, Duration)> {
    let client = cluster.client().await?;
    cluster::deploy(&client, "web", "coracle.dev/guests/hello-http", 1, &[]).await?;
    cluster::ready(&client, "web", 1).await?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let cpu_before = cpu(cluster.process_id())?;
    let begun = Instant::now();
    let patch = Patch::Merge(serde_json::json!({"spec": {"replicas": replicas}}));
    deployments
        .patch_scale("web", &PatchParams::default(), &patch)
        .await?;
    let ready = cluster::ready(&client, "web", replicas).await? - begun;
    let used = cpu(cluster.process_id())?.saturating_sub(cpu_before);
    // What the status says is what the pods say.
    let pods: Api<Pod> = Api::default_namespaced(client);
    let pods = pods.list(&ListParams::default()).await?;
    let running = pods
        .iter()
        .filter_map(|pod| pod.status.as_ref()?.conditions.as_ref())
        .filter(|conditions| {
            conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True")
        });
    anyhow::ensure!(
        running.count() == replicas as usize,
        "not all pods were ready"
    );
    Ok((ready, used))
}

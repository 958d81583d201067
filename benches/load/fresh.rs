//! How soon a pod that has become ready is reached by way of every node. Makes a Service and one pod at a time; needs a
//! cluster that runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Api, DeleteParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::cluster::{PATIENCE, median};
use crate::load::Connection;

const ROUNDS: u16 = 9;
const FIRST_PORT: u16 = 30_500;
/// Between two attempts at one node.
const PACE: Duration = Duration::from_millis(1);

/// Prints, for each of `nodes` (what it is, where its Services listen), how long after a pod of the node `home` was seen to
/// be ready the first request through that node was answered.
pub(crate) async fn print(
    client: &kube::Client,
    home: &str,
    nodes: &[(&str, Ipv4Addr)],
) -> Result<()> {
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        rounds.push(one(client, home, nodes, round).await?);
    }
    for (index, (what, _)) in nodes.iter().enumerate() {
        let times: Vec<f64> = rounds.iter().map(|round| round[index]).collect();
        let longest = times.iter().copied().fold(f64::MIN, f64::max);
        println!(
            "pod Ready → first answer through {what}: {:.1} ms (longest of {ROUNDS}: {longest:.1} ms; negative: before the watch told)",
            median(&times)
        );
    }
    Ok(())
}

/// Milliseconds, for each node.
async fn one(
    client: &kube::Client,
    home: &str,
    nodes: &[(&str, Ipv4Addr)],
    round: u16,
) -> Result<Vec<f64>> {
    let (name, port) = (format!("fresh-{round}"), FIRST_PORT + round);
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let service = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {
            "type": "NodePort",
            "selector": {"app": name},
            "ports": [{"port": 80, "targetPort": 8080, "nodePort": port}],
        },
    }))?;
    services.create(&PostParams::default(), &service).await?;
    let mut answers = Vec::new();
    for (_, ip) in nodes {
        let at = SocketAddr::from((*ip, port));
        until(&format!("{at} to listen"), || TcpStream::connect(at)).await?;
        let request = format!("GET / HTTP/1.1\r\nHost: {at}\r\n\r\n").into_bytes();
        answers.push(tokio::spawn(async move {
            until(&format!("an answer of {at}"), || answer(at, &request)).await
        }));
    }
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|pod| pod.status.as_ref()?.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        conditions.any(|one| one.type_ == "Ready" && one.status == "True")
    };
    let (watched, watched_name) = (pods.clone(), name.clone());
    let ready = tokio::spawn(async move {
        let waiting = await_condition(watched, &watched_name, ready);
        timeout(PATIENCE, waiting).await.map(|_| Instant::now())
    });
    let pod = serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "nodeName": home,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "coracle.dev/guests/hello-http"}],
        },
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let ready = ready.await?.context("the pod did not become ready")?;
    let mut times = Vec::new();
    for answer in answers {
        let at = answer.await??;
        let late = at.saturating_duration_since(ready).as_secs_f64();
        let early = ready.saturating_duration_since(at).as_secs_f64();
        times.push((late - early) * 1e3);
    }
    pods.delete(&name, &DeleteParams::default()).await?;
    services.delete(&name, &DeleteParams::default()).await?;
    Ok(times)
}

async fn answer(at: SocketAddr, request: &[u8]) -> Result<()> {
    let mut connection = Connection::open(at, None).await?;
    let (status, _) = connection.call(request).await?;
    anyhow::ensure!(status == 200, "{at} answered {status}");
    Ok(())
}

/// When `attempt` succeeded.
async fn until<T, E, F>(what: &str, attempt: impl Fn() -> F) -> Result<Instant>
where
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Ok(Ok(_)) = timeout(PATIENCE, attempt()).await {
            return Ok(Instant::now());
        }
        sleep(PACE).await;
    }
    anyhow::bail!("waited {PATIENCE:?} for {what}")
}

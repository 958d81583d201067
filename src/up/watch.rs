//! From applied manifests to "it runs here": applies, waits for readiness with progress, prints the table, stays.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use tokio::time::Instant;

use super::apply::{self, Applied};
use super::edge;
use super::manifests::Manifest;
use super::ready::{self, Verdict};
use super::report::{self, Row};
use super::{Args, Cluster};
use crate::progress::{self, Progress};

/// How long an interactive start waits before it shows the table as things stand.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// The API is in this process: asking often costs little and makes the start feel immediate.
const POLL: Duration = Duration::from_millis(20);

/// What is known of one applied object.
struct Watched {
    applied: Applied,
    verdict: Verdict,
    object: Value,
}

/// Applies the manifests and reports on them. Returns when `--exit-when-ready` is decided; otherwise never.
pub(super) async fn serve(
    cluster: &Cluster,
    args: &Args,
    manifests: &[Manifest],
    progress: &Progress,
) -> Result<ExitCode> {
    let (mut watched, refused) = apply(cluster, manifests, progress).await?;
    let patience = if args.exit_when_ready {
        args.timeout
    } else {
        FIRST_LOOK
    };
    let settled = settle(cluster, &mut watched, Instant::now() + patience, progress).await?;
    print(cluster, &watched);
    if args.exit_when_ready {
        return Ok(verdict(cluster, &watched, refused, progress).await);
    }
    progress::print(&format!(
        "export KUBECONFIG={}",
        cluster.kubeconfig.display()
    ));
    if refused > 0 {
        progress.say(&format!(
            "{refused} of {} objects were not applied, see above",
            manifests.len()
        ));
    }
    progress.say("running; Ctrl-C stops the cluster, and starting again brings everything back");
    if !settled {
        settle(
            cluster,
            &mut watched,
            Instant::now() + Duration::from_secs(3600),
            progress,
        )
        .await?;
        print(cluster, &watched);
    }
    std::future::pending().await
}

async fn apply(
    cluster: &Cluster,
    manifests: &[Manifest],
    progress: &Progress,
) -> Result<(Vec<Watched>, usize)> {
    let mut watched = Vec::new();
    let mut refused = 0;
    if manifests.is_empty() {
        return Ok((watched, refused));
    }
    for (manifest, outcome) in apply::apply(&cluster.client, manifests).await? {
        match outcome {
            Ok(applied) => {
                let verdict = Verdict::Waiting("applied".to_owned());
                watched.push(Watched {
                    applied,
                    verdict,
                    object: Value::Null,
                });
            }
            Err(error) => {
                refused += 1;
                progress.say(&format!(
                    "NOT applied: {} {:?} of {}: {error:#}",
                    manifest.kind, manifest.name, manifest.origin
                ));
            }
        }
    }
    let objects = if watched.len() == 1 {
        "object"
    } else {
        "objects"
    };
    progress.say(&format!("applied {} {objects}", watched.len()));
    Ok((watched, refused))
}

/// Looks again and again until everything is ready or has failed; says what changes. `false` at the deadline.
async fn settle(
    cluster: &Cluster,
    watched: &mut [Watched],
    deadline: Instant,
    progress: &Progress,
) -> Result<bool> {
    let mut said = BTreeMap::new();
    loop {
        let mut open = false;
        for entry in watched
            .iter_mut()
            .filter(|entry| !matches!(entry.verdict, Verdict::Ready(_)))
        {
            look(cluster, entry).await?;
            open |= matches!(entry.verdict, Verdict::Waiting(_));
            announce(&mut said, entry, progress);
        }
        if !open {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn look(cluster: &Cluster, entry: &mut Watched) -> Result<()> {
    let Some(object) = entry.applied.get(&cluster.client).await? else {
        entry.verdict = Verdict::Failed("was deleted".to_owned());
        return Ok(());
    };
    entry.verdict = ready::judge(&object);
    if let Verdict::Waiting(text) = &entry.verdict {
        // The pods behind it know better why.
        let pods = entry.applied.pods(&cluster.client, &object).await;
        if let Some(trouble) = pods.iter().find_map(ready::trouble) {
            entry.verdict = Verdict::Waiting(format!("{text}; {trouble}"));
        }
    }
    entry.object = object;
    Ok(())
}

fn announce(said: &mut BTreeMap<String, String>, entry: &Watched, progress: &Progress) {
    let name = entry.applied.readable();
    let text = match &entry.verdict {
        Verdict::Ready(text) | Verdict::Waiting(text) => text.clone(),
        Verdict::Failed(text) => format!("failed: {text}"),
    };
    let trivial = matches!(text.as_str(), "applied" | "active" | ready::UNSEEN);
    if !trivial && said.get(&name) != Some(&text) {
        progress.say(&format!("{name}: {text}"));
        said.insert(name, text);
    }
}

fn print(cluster: &Cluster, watched: &[Watched]) {
    let rows: Vec<Row> = watched.iter().map(|entry| row(cluster, entry)).collect();
    if !rows.is_empty() {
        progress::print(&report::table(&rows));
    }
}

fn row(cluster: &Cluster, entry: &Watched) -> Row {
    let (status, address) = match &entry.verdict {
        Verdict::Ready(text) => (text.clone(), addresses(cluster, entry)),
        Verdict::Waiting(text) => (format!("waiting: {text}"), String::new()),
        Verdict::Failed(text) => (format!("failed: {text}"), String::new()),
    };
    Row {
        namespace: entry.applied.namespace.clone(),
        kind: entry.applied.resource.kind.clone(),
        name: entry.applied.name.clone(),
        status,
        address,
    }
}

/// Where an Ingress or a Service answers: real addresses for NodePort and LoadBalancer, the cluster's name for the others.
fn addresses(cluster: &Cluster, entry: &Watched) -> String {
    let kind = entry.applied.resource.kind.as_str();
    if kind != "Service" {
        return edge::addresses(kind, &entry.object, &cluster.host.ingress_listeners());
    }
    let listeners = cluster.host.listeners();
    let own = listeners
        .iter()
        .filter(|l| l.namespace == entry.applied.namespace && l.service == entry.applied.name);
    let balanced =
        |l: &&host::network::Listening| l.origin == host::network::ListenerKind::LoadBalancer;
    let is_balancer =
        entry.object.pointer("/spec/type").and_then(Value::as_str) == Some("LoadBalancer");
    let shown: Vec<String> = own
        .filter(|l| !is_balancer || balanced(l))
        .filter_map(address)
        .collect();
    if shown.is_empty() {
        let port = entry
            .object
            .pointer("/spec/ports/0/port")
            .and_then(Value::as_i64)
            .unwrap_or(0);
        return format!(
            "{}.{}.svc.{}:{port} (in the cluster)",
            entry.applied.name,
            entry.applied.namespace,
            types::well_known::CLUSTER_DOMAIN
        );
    }
    shown.join(", ")
}

/// `http://127.0.0.1:41234/ (port 80 is not permitted)`. Nothing in a Service says for sure that a port speaks HTTP: its
/// name does by convention, and so do the usual port numbers.
fn address(listening: &host::network::Listening) -> Option<String> {
    let at = listening.address?;
    let is_http = listening.port_name.starts_with("http") || matches!(listening.port, 80 | 8080);
    let text = match listening.protocol {
        "UDP" => format!("udp://{at}"),
        _ if is_http => format!("http://{at}/"),
        _ => at.to_string(),
    };
    Some(match &listening.problem {
        Some(problem) => format!("{text} ({problem})"),
        None => text,
    })
}

/// Exit code of `--exit-when-ready`, after saying what was missing.
async fn verdict(
    cluster: &Cluster,
    watched: &[Watched],
    refused: usize,
    progress: &Progress,
) -> ExitCode {
    let mut missing = refused;
    for entry in watched {
        let text = match &entry.verdict {
            Verdict::Ready(_) => continue,
            Verdict::Waiting(text) | Verdict::Failed(text) => text,
        };
        missing += 1;
        progress.say(&format!("NOT ready: {}: {text}", entry.applied.readable()));
        for pod in entry.applied.pods(&cluster.client, &entry.object).await {
            if let Some(trouble) = ready::trouble(&pod) {
                let name = pod
                    .pointer("/metadata/name")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                progress.say(&format!("    pod/{name}: {trouble}"));
            }
        }
    }
    if missing == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

//! A cluster for a bench: the real binary in a process of its own, its figures from /proc, its end by id. Measures nothing.

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::time::Instant;

/// Another build to measure, to compare two; by default the one of this package.
const BINARY: &str = "CORACLE_BINARY";
/// How long a bench waits for anything before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `coracle up` on its own temporary data directory; killed when dropped.
pub(crate) struct Cluster {
    // Ended before its directory goes: fields are dropped in this order.
    process: Owned,
    dir: tempfile::TempDir,
    /// From just before exec until the process said that its node is ready.
    pub(crate) ready: Duration,
    /// Where its Services listen: an address of this cluster alone, so that several can run on one machine.
    pub(crate) service_address: Ipv4Addr,
}

/// A process that is ended with its owner.
pub(crate) struct Owned(pub(crate) Child);

/// What /proc knows of a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    pub(crate) resident: u64,
    pub(crate) anonymous: u64,
}

// === impl Cluster ===

impl Cluster {
    /// Starts on an empty data directory, and returns when the node is ready.
    pub(crate) fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("coracle-bench").tempdir()?;
        Self::on(dir)
    }

    /// Kills the process (no drain) and starts again on what it left.
    pub(crate) fn restart(self) -> Result<Self> {
        let Self { process, dir, .. } = self;
        drop(process);
        Self::on(dir)
    }

    /// Kills the process; its data directory stays for as long as the caller keeps it.
    pub(crate) fn end(self) -> tempfile::TempDir {
        self.dir
    }

    fn on(dir: tempfile::TempDir) -> Result<Self> {
        let id = std::process::id();
        let service_address = Ipv4Addr::new(127, 77, (id >> 8) as u8, (id as u8).clamp(1, 254));
        let begun = Instant::now();
        let process = Command::new(binary())
            .args(["up", "--listen", "127.0.0.1:0", "--node-name", "bench"])
            .arg("--service-address")
            .arg(service_address.to_string())
            .arg("--data-dir")
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {}", binary().display()))?;
        let mut process = Owned(process);
        let ready = said(&mut process.0, "node bench is ready")? - begun;
        Ok(Self {
            process,
            dir,
            ready,
            service_address,
        })
    }

    pub(crate) fn process_id(&self) -> u32 {
        self.process.0.id()
    }

    pub(crate) fn memory(&self) -> Result<Memory> {
        memory(self.process_id())
    }

    /// Where the database is, for whoever asks what that disk needs for a flush.
    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// How to reach the API, from the kubeconfig the cluster wrote.
    pub(crate) async fn config(&self) -> Result<kube::Config> {
        let file = kube::config::Kubeconfig::read_from(self.data_dir().join("kubeconfig"))?;
        let options = kube::config::KubeConfigOptions::default();
        Ok(kube::Config::from_custom_kubeconfig(file, &options).await?)
    }

    pub(crate) async fn client(&self) -> Result<kube::Client> {
        Ok(kube::Client::try_from(self.config().await?)?)
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // An error here means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a line on the process's standard error that ends with `text`, and returns when it came.
fn said(process: &mut Child, text: &'static str) -> Result<Instant> {
    let lines = BufReader::new(process.stderr.take().context("its errors are piped")?);
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut before = String::new();
        let mut found = false;
        for line in lines.lines().map_while(Result::ok) {
            if !found && line.ends_with(text) {
                found = true;
                // Nobody listens any more: the bench gave up.
                let _ = sender.send(Ok(Instant::now()));
            } else if !found {
                before.push_str(&line);
                before.push('\n');
            }
        }
        let _ = sender.send(Err(before));
    });
    match receiver.recv_timeout(PATIENCE) {
        Ok(Ok(at)) => Ok(at),
        Ok(Err(before)) => bail!("the cluster ended before its node was ready:\n{before}"),
        Err(_) => bail!("the node was not ready after {PATIENCE:?}"),
    }
}

/// A Deployment of pods of `image`, applied when this returns.
pub(crate) async fn deploy(
    client: &kube::Client,
    name: &str,
    image: &str,
    replicas: i32,
    annotations: &[(&str, &str)],
) -> Result<()> {
    let annotations: serde_json::Map<_, _> = annotations
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).into()))
        .collect();
    let deployment: Deployment = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{"name": "main", "image": image}]},
            },
        },
    }))?;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    deployments
        .create(&PostParams::default(), &deployment)
        .await?;
    Ok(())
}

/// Watches until the Deployment has `replicas` ready pods; returns when the event came.
pub(crate) async fn ready(client: &kube::Client, name: &str, replicas: i32) -> Result<Instant> {
    use futures::StreamExt as _;
    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(deployments, only).touched_objects());
    let wait = async {
        while let Some(event) = events.next().await {
            let ready = event?.status.and_then(|status| status.ready_replicas);
            if ready.unwrap_or(0) == replicas {
                return Ok(Instant::now());
            }
        }
        bail!("the watch of Deployment {name} ended")
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("{name} had not {replicas} ready pods after {PATIENCE:?}"))?
}

pub(crate) fn memory(process: u32) -> Result<Memory> {
    let path = format!("/proc/{process}/status");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kilobytes = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kilobytes
            .map(|kilobytes| kilobytes * 1024)
            .with_context(|| format!("{path} has no {name}"))
    };
    Ok(Memory {
        resident: field("VmRSS:")?,
        anonymous: field("RssAnon:")?,
    })
}

/// Processor time the process has used, all its threads together.
pub(crate) fn cpu(process: u32) -> Result<Duration> {
    let path = format!("/proc/{process}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    // The name in parentheses may contain anything; the numbers come after it.
    let (_, fields) = text.rsplit_once(") ").context("the name has no end")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let ticks = ticks(11).context("no user time")? + ticks(12).context("no system time")?;
    // `USER_HZ` is 100 on every architecture we run on.
    Ok(Duration::from_millis(ticks * 10))
}

pub(crate) fn median<T: Copy + PartialOrd>(values: &[T]) -> T {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted[sorted.len() / 2]
}

/// What was measured beside its goal, as one line.
pub(crate) fn line(what: &str, measured: &str, goal: &str) {
    println!("{what:<56} {measured:>24}   {goal}");
}

pub(crate) fn millis(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

pub(crate) fn binary() -> PathBuf {
    let default = || Path::new(env!("CARGO_BIN_EXE_coracle")).to_owned();
    std::env::var_os(BINARY).map_or_else(default, PathBuf::from)
}

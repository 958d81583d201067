//! `coracle up`: the API server, the scheduler, the controllers and one node in one process, and manifests applied to it.
//!
//! The components meet only in API objects: each gets a Kubernetes client of its own identity whose requests go through
//! the same router as everybody else's, only without sockets. This file starts and stops them in order and owns nothing else.

mod apply;
pub(crate) mod bundled;
mod edge;
mod manifests;
mod ready;
mod report;
mod watch;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use api::auth::User;
use host::link::Links;
use host::servers::{Address, Servers};
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use types::well_known::{GROUP_NODES, TUNNEL_PORT};

use crate::clients::{self, client};
use crate::data_dir;
use crate::data_dir::Claim;
use crate::progress::Progress;
use crate::signals::{cut_off, uninterrupted};

/// How long a drain may take before what is left is cut off.
const DRAIN: Duration = Duration::from_secs(30);
const NODE_READY: Duration = Duration::from_secs(30);

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// Manifests to apply at every start: files, directories, or `-` for standard input.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) api: api::Args,

    #[command(flatten)]
    host: host::Args,

    /// Port where nodes that join reach this one's pods [default: 15008, or any free one while the API listens on loopback]
    #[arg(long, value_name = "PORT")]
    tunnel_port: Option<u16>,

    /// Apply, wait until all that was applied is ready, print, drain, exit 0; or 1 with what was missing.
    #[arg(long)]
    exit_when_ready: bool,

    /// How long --exit-when-ready waits, such as 90s or 5m.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = types::duration::parse)]
    timeout: Duration,
}

/// Runs the cluster until Ctrl-C (or until ready), and says how it went.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let progress = Progress::new();
    // Everything that can be wrong with the arguments is found before anything is started.
    let manifests = manifests::read(&args.paths)?;
    let data_dir = match &args.api.data_dir {
        Some(dir) => dir.clone(),
        None => data_dir::default_path()?,
    };
    let data_dir = data_dir::make(&data_dir)?;
    let mirrors = args.host.mirrors(&bundled::mirrors())?;

    let starting = Box::pin(Cluster::start(&args, &data_dir, mirrors, &progress));
    let Some(cluster) = uninterrupted(starting).await else {
        return Ok(cut_off());
    };
    let cluster = cluster?;
    let serving = watch::serve(&cluster, &args, &manifests, &progress);
    let code = uninterrupted(serving).await.transpose()?;
    progress.say("stopping; Ctrl-C again stops at once");
    if uninterrupted(cluster.stop()).await.is_none() {
        return Ok(cut_off());
    }
    progress.say("stopped");
    Ok(code.unwrap_or(ExitCode::SUCCESS))
}

/// The running parts, in the order they were started.
struct Cluster {
    api: api::Handle,
    scheduler: scheduler::Handle,
    host: host::Handle,
    /// The administrator, in process.
    client: kube::Client,
    kubeconfig: PathBuf,
    /// Held until the node has stopped.
    _claim: Claim,
}

// === impl Cluster ===

impl Cluster {
    async fn start(
        args: &Args,
        data_dir: &Path,
        mirrors: Vec<(String, String)>,
        progress: &Progress,
    ) -> Result<Self> {
        let mut config = args.api.clone().into_config(data_dir.to_owned());
        if let Some(range) = args.host.pod_cidr {
            // It names its own node's addresses; there are no others.
            config.node_ranges = Some(api::NodeRanges {
                within: range,
                prefix: range.prefix_len(),
            });
        }
        let api = api::start(config).await?;
        progress.say(&format!("Kubernetes API at {}", api.url()));
        // Absolute: the line is pasted into shells that stand elsewhere.
        let kubeconfig =
            std::path::absolute(api.kubeconfig()).unwrap_or_else(|_| api.kubeconfig().to_owned());
        let client = client(&api, User::admin());

        let scheduler = scheduler::start(clients::scheduler(
            &api,
            None,
            scheduler::Args {
                cluster_cidr: args.host.cluster_cidr,
                ..scheduler::Args::default()
            },
        ));
        let (node_dir, claim) = data_dir::claim_node(data_dir)?;
        let host = Self::start_host(args, node_dir, mirrors, &api).await?;
        wait_until_ready(&client, host.node_name()).await?;
        progress.say(&format!("node {} is ready", host.node_name()));
        Ok(Self {
            api,
            scheduler,
            host,
            client,
            kubeconfig,
            _claim: claim,
        })
    }

    async fn start_host(
        args: &Args,
        node_dir: PathBuf,
        mirrors: Vec<(String, String)>,
        api: &api::Handle,
    ) -> Result<host::Handle> {
        let name = args.host.node_name();
        let user = User::authenticated(&format!("system:node:{name}"), &[GROUP_NODES]);
        // Where the API is reached, so is the node.
        let listen = api.local_addr().ip();
        let address = match listen.is_loopback() {
            true => listen,
            false => api.advertised().ip(),
        };
        let identity = api
            .pki()
            .node(&name, &[Ipv4Addr::LOCALHOST.into(), address])
            .context("could not make the node's certificate")?;
        let tls = host::Certificates::new(&host::NodeTls {
            ca_pem: api.pki().ca_pem().into(),
            cert_pem: identity.certificate_pem.into(),
            key_pem: identity.key_pem.into(),
        })
        .context("could not use the node's certificate")?;
        let config = host::Config {
            bundled: bundled::guests(),
            toolbox: Some(bundled::toolbox()),
            endpoint: SocketAddr::new(listen, 0),
            address: Some(address),
            tunnel: Some(tunnel(args, api, &tls, &name)?),
            ..host::Config::new(name, node_dir, client(api, user), tls)
        };
        host::start(args.host.apply(config, mirrors, args.api.service_cidr))
            .await
            .context("could not start the node")
    }

    /// Drains in the reverse order of the start: no new work, then the pods, then the API they report to.
    async fn stop(self) {
        self.scheduler.shutdown().await;
        self.host.shutdown(DRAIN).await;
        self.api.shutdown().await;
    }
}

/// How nodes that join reach this one, and this one them: as those of `coracle node` do.
fn tunnel(
    args: &Args,
    api: &api::Handle,
    tls: &Arc<host::Certificates>,
    name: &str,
) -> Result<host::network::TunnelConfig> {
    let listen = api.local_addr().ip();
    let port = args.tunnel_port;
    let port = port.unwrap_or(if listen.is_loopback() { 0 } else { TUNNEL_PORT });
    let server: Address = api.url().parse().context("could not dial the API server")?;
    let client = tls.client_config(&[b"h2", b"http/1.1"]);
    let client = client.context("could not use the node's certificate")?;
    let servers = Servers::new(vec![server], Vec::new(), Arc::new(client));
    let links = Links::new(servers, tls, name.to_owned());
    let links = links.context("could not prepare links to the API server")?;
    let mut tunnel = host::network::TunnelConfig::new(Arc::clone(tls));
    tunnel.listen = Some(SocketAddr::new(listen, port));
    tunnel.relay = Some(Arc::new(links));
    Ok(tunnel)
}

/// Waits until the node says it is ready.
async fn wait_until_ready(client: &kube::Client, node: &str) -> Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let ready = |node: Option<&Node>| {
        let conditions = node.and_then(|node| node.status.as_ref()?.conditions.as_ref());
        types::condition::is_true(conditions, "Ready")
    };
    let waiting = kube::runtime::wait::await_condition(nodes, node, ready);
    tokio::time::timeout(NODE_READY, waiting)
        .await
        .with_context(|| format!("node {node} was not ready after {NODE_READY:?}"))?
        .context("could not watch the node")?;
    Ok(())
}

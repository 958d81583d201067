//! `coracle node`: joins a cluster and runs one node of it. Starts and stops it and owns nothing else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use host::join::{self, Joined, Token};
use host::link::Links;
use host::servers::Address;
use host::{Labels, Taints};
use ipnet::Ipv4Net;
use types::well_known::TUNNEL_PORT;

use crate::data_dir;
use crate::progress::Progress;
use crate::signals::{cut_off, interrupted, uninterrupted};
use crate::up::bundled;

#[derive(clap::Args)]
#[group(skip)]
pub(crate) struct Args {
    /// An API server, https://HOST:PORT (repeatable); others of the cluster are learnt from it. Not needed when the data
    /// directory remembers them
    #[arg(long = "server", value_name = "URL")]
    servers: Vec<Address>,
    /// What `coracle token create` printed; not needed when the data directory holds a valid certificate
    #[arg(
        long,
        value_name = "TOKEN",
        env = "CORACLE_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<Token>,
    /// File with the token, so that it appears in no list of processes
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Where everything is kept: certificates, images, logs, volumes
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) host: host::Args,
    /// The node's address for others [default: the one on the way to the API server]
    #[arg(long, value_name = "IP")]
    node_ip: Option<IpAddr>,
    /// Where the node's endpoint listens, for the API server
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
    /// Port of the node's endpoint; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = 10250)]
    port: u16,
    /// Port where other nodes reach this node's pods; 0 picks a free one
    #[arg(long, value_name = "PORT", default_value_t = TUNNEL_PORT)]
    tunnel_port: u16,
    /// Nobody can dial this node (NAT, an edge): it keeps a connection to every API server and is reached through them
    #[arg(long)]
    relay: bool,
    /// Labels of the Node when it is registered: KEY=VALUE,…
    #[arg(
        long,
        value_name = "LABELS",
        default_value = "",
        hide_default_value = true
    )]
    node_labels: Labels,
    /// Taints of the Node when it is registered: KEY=VALUE:EFFECT,…
    #[arg(
        long,
        value_name = "TAINTS",
        default_value = "",
        hide_default_value = true
    )]
    register_with_taints: Taints,
    /// Range of Services' cluster IPs, as the servers have it
    #[arg(long, value_name = "CIDR", default_value = "10.96.0.0/16")]
    service_cidr: Ipv4Net,
    /// How long pods have to end when the node is told to stop. 0: they are not ended for good but go on when the node is
    /// started again
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = types::duration::parse)]
    shutdown_grace_period: Duration,
    /// How long to ask certificates for, at least 10 minutes
    #[arg(long, value_name = "TIME", value_parser = types::duration::parse, hide = true)]
    certificate_lifetime: Option<Duration>,
}

/// Runs the node until Ctrl-C or SIGTERM.
pub(crate) async fn run(args: Args) -> Result<ExitCode> {
    let progress = Progress::new();
    // Everything that can be wrong with the arguments is found before anything is started.
    let token = args.token()?;
    let mirrors = args.host.mirrors(&bundled::mirrors())?;
    let data_dir = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => data_dir::default_path()?,
    };
    let (data_dir, _claim) = data_dir::claim_node(&data_dir::make(&data_dir)?)?;
    let starting = Box::pin(start(&args, token, &data_dir, mirrors, &progress));
    let Some(started) = uninterrupted(starting).await else {
        return Ok(cut_off());
    };
    let (joined, host) = started?;
    progress.say("running; Ctrl-C or SIGTERM ends the pods and stops");
    interrupted().await;
    progress.say("shutting down; Ctrl-C again stops at once");
    let stopping = async {
        host.leave().await;
        joined.shutdown().await;
    };
    if uninterrupted(stopping).await.is_none() {
        return Ok(cut_off());
    }
    progress.say("stopped");
    Ok(ExitCode::SUCCESS)
}

async fn start(
    args: &Args,
    token: Option<Token>,
    data_dir: &Path,
    mirrors: Vec<(String, String)>,
    progress: &Progress,
) -> Result<(Joined, host::Handle)> {
    let name = args.host.node_name();
    progress.say(&format!("joining as node {name}"));
    let joined = join::join(join::Config {
        servers: args.servers.clone(),
        token,
        node_name: name.clone(),
        data_dir: data_dir.to_owned(),
        node_ip: args.node_ip,
        lifetime: args.certificate_lifetime,
    })
    .await
    .context("could not join the cluster")?;
    progress.say(&format!(
        "has its certificate; other hosts reach it at {}",
        joined.address
    ));
    let tls = Arc::clone(&joined.tls);
    let links = Links::new(joined.servers.clone(), &tls, name.clone());
    let links = Arc::new(links.context("could not prepare links to the API servers")?);
    let mut tunnel = host::network::TunnelConfig::new(Arc::clone(&tls));
    tunnel.listen = (!args.relay).then_some(SocketAddr::new(args.address, args.tunnel_port));
    tunnel.relay = Some(Arc::clone(&links) as _);
    let config = host::Config {
        bundled: bundled::guests(),
        toolbox: Some(bundled::toolbox()),
        // The cluster gives it one.
        pod_cidr: None,
        endpoint: SocketAddr::new(args.address, args.port),
        address: Some(joined.address),
        labels: args.node_labels.0.clone(),
        taints: args.register_with_taints.0.clone(),
        tunnel: Some(tunnel),
        links: args.relay.then_some(links),
        serving: Some(joined.serving.clone()),
        shutdown_grace: args.shutdown_grace_period,
        ..host::Config::new(name, data_dir.to_owned(), joined.client(), tls)
    };
    let host = host::start(args.host.apply(config, mirrors, args.service_cidr))
        .await
        .context("could not start the node")?;
    host.ready().await;
    progress.say(&format!(
        "node {} is registered; its pods have addresses of {}",
        host.node_name(),
        host.pod_cidr()
    ));
    Ok((joined, host))
}

// === impl Args ===

impl Args {
    fn token(&self) -> Result<Option<Token>> {
        let Some(file) = &self.token_file else {
            return Ok(self.token.clone());
        };
        let failed = || format!("could not use the token in {}", file.display());
        let text = std::fs::read_to_string(file).with_context(failed)?;
        Ok(Some(text.parse().with_context(failed)?))
    }
}

//! Starts a node: makes its parts, joins them, and ends them in order. Decides nothing about pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Service, Taint};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;
use types::well_known::{ANNOTATION_TUNNEL, TUNNEL_RELAY};

use crate::dns;
use crate::images::{Images, OpenError};
use crate::ingress::{self, Ingress};
use crate::link::{self, Links};
use crate::network::{self, Listening, Network};
use crate::node::annotations::Annotations;
use crate::node::status::Stage;
use crate::node::{self, Identity, Keeper};
use crate::pods::context::{Context, Parts};
use crate::pods::events;
use crate::pods::known::Known;
use crate::pods::logs::{Logs, WriterThread};
use crate::pods::toolbox::{Shelf, Toolbox};
use crate::pods::{self, Pods};
use crate::runtime::{self, Runtime};
use crate::serve;
use crate::tls::{self, Certificates};

/// What a node is made with.
pub struct Config {
    /// Name of the Node object, a DNS subdomain.
    pub node_name: String,
    /// Made when it is not there, with mode 0700.
    pub data_dir: PathBuf,
    pub client: Client,
    /// What the node shows to the API server, to other nodes and to whoever asks its endpoint.
    pub tls: Arc<Certificates>,
    /// Where NodePort and LoadBalancer Services listen.
    pub service_address: IpAddr,
    /// Where this node's endpoint listens; the port is picked when it is 0.
    pub endpoint: SocketAddr,
    /// The node's address for others (`InternalIP`); by default where the endpoint listens.
    pub address: Option<IpAddr>,
    /// Given to the Node when it is registered.
    pub labels: BTreeMap<String, String>,
    pub taints: Vec<Taint>,
    /// (from, to) as `images/mirror.rs` describes; the first entry for a name counts.
    pub mirrors: Vec<(String, String)>,
    /// Images that came with the program: (name, bytes); a name without tag means every tag.
    pub bundled: Vec<(String, &'static [u8])>,
    /// What `kubectl exec` runs; without it there is no exec.
    pub toolbox: Option<Toolbox>,
    pub max_pods: u32,
    /// Addresses of this node's pods; without them the node waits until a controller has given it some.
    pub pod_cidr: Option<Ipv4Net>,
    /// Addresses of all pods of the cluster.
    pub cluster_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    pub dns: network::DnsConfig,
    /// What is told of requests, beside metrics.
    pub observe: network::observe::Config,
    /// The node is not ready before this is true: `tls` has no certificate for the endpoint yet.
    pub serving: Option<watch::Receiver<bool>>,
    /// How pods of other nodes and of this one reach each other; `None` where there are no others.
    pub tunnel: Option<network::TunnelConfig>,
    /// Links to the API servers, when nobody can dial this node.
    pub links: Option<Arc<Links>>,
    /// How long pods have to end when the node leaves ([`Handle::leave`]).
    pub shutdown_grace: Duration,
    /// Where Ingresses and Gateways listen, and what they grant clients.
    pub ingress: ingress::Config,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("data directory {path} cannot be used")]
    DataDir {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the node endpoint cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error(transparent)]
    Tls(#[from] tls::Error),
    #[error("{0}")]
    Images(String),
    #[error("the WebAssembly runtime cannot start")]
    Runtime(#[source] runtime::RuntimeError),
    #[error(transparent)]
    PodCidr(#[from] node::registration::PodCidrError),
    #[error("the network cannot start")]
    Network(#[source] network::Error),
}

/// A running node. Dropping it without [`Handle::shutdown`] leaves its tasks to the end of the process.
pub struct Handle {
    network: Arc<Network>,
    ingress: Ingress,
    endpoint: SocketAddr,
    pod_cidr: Ipv4Net,
    node_name: String,
    registered: watch::Receiver<bool>,
    stage: watch::Sender<Stage>,
    told: watch::Receiver<Option<Stage>>,
    /// Ends pods for good.
    leaving: CancellationToken,
    leaving_grace: Duration,
    synced: watch::Receiver<bool>,
    /// Ends pods, registration and everything else, in two steps.
    stop_pods: CancellationToken,
    stop: CancellationToken,
    pods: TaskTracker,
    tasks: TaskTracker,
    runtime: Runtime,
    _logs: WriterThread,
}

/// For the API to hear that the node goes, and again for the last words about its pods.
const TELL: Duration = Duration::from_secs(3);
/// For what is in flight when the pods are gone.
const DRAIN: Duration = Duration::from_secs(5);
/// How long what was told to end may take to do so.
const END: Duration = Duration::from_secs(2);
/// Streams over links that wait to be taken.
const LINKED: usize = 64;
/// Longest that containers are given when the process ends; their own grace may be shorter.
const GRACE: Duration = Duration::from_secs(5);

impl Config {
    /// The defaults of `up`: everything on this machine, ports picked.
    pub fn new(
        node_name: String,
        data_dir: PathBuf,
        client: Client,
        tls: Arc<Certificates>,
    ) -> Config {
        let network = network::Config::default();
        Config {
            node_name,
            data_dir,
            client,
            tls,
            service_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            endpoint: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            address: None,
            labels: BTreeMap::new(),
            taints: Vec::new(),
            mirrors: Vec::new(),
            bundled: Vec::new(),
            toolbox: None,
            max_pods: 5_000,
            pod_cidr: Some(network.pod_cidr),
            cluster_cidr: network.cluster_cidr,
            service_cidr: network.service_cidr,
            dns: network.dns,
            observe: network.observe,
            serving: None,
            tunnel: None,
            links: None,
            shutdown_grace: Duration::from_secs(30),
            ingress: ingress::Config::default(),
        }
    }
}

/// Starts everything and returns at once (without a podCIDR of its own: once the API has given it one); [`Handle::ready`]
/// tells when the Node is registered. Call inside a tokio runtime.
pub async fn start(config: Config) -> Result<Handle, Error> {
    raise_descriptor_limit();
    let Opened {
        tls,
        listener,
        endpoint,
        images,
        logs,
        log_thread,
        runtime,
    } = open(&config).await?;
    let identity = identity(&config, endpoint);
    let (stop_pods, stop) = (CancellationToken::new(), CancellationToken::new());
    let (pod_tasks, tasks) = (TaskTracker::new(), TaskTracker::new());
    let annotations = Annotations::default();
    let (registered, registered_seen) = watch::channel(false);
    let (stage, stage_seen) = watch::channel(first_stage(&config));
    let (told, told_seen) = watch::channel(None);
    let keeper = Keeper {
        client: config.client.clone(),
        data_dir: config.data_dir.clone(),
        images: images.clone(),
        annotations: annotations.clone(),
        stage: stage_seen,
        registered,
        told,
        identity: identity.clone(),
    };
    // A start that fails, or is given up, leaves nobody behind who says that there is a node.
    let given_up = stop.clone().drop_guard();
    tasks.spawn(keeper.run(stop.clone()));
    let pod_cidr = match config.pod_cidr {
        Some(cidr) => cidr,
        None => node::registration::pod_cidr(&config.client, &config.node_name).await?,
    };
    let searches = dns::server::searches().await;
    let network = network(&config, pod_cidr, searches, annotations)?;
    if let Some(serving) = &config.serving {
        // A sender that is gone: nobody asks for the certificate any longer, because the process ends.
        let _ = serving.clone().wait_for(|serving| *serving).await;
    }
    let ingress = ingress::start(&network, config.ingress.clone(), config.client.clone())?;
    stage.send_replace(Stage::Running);
    let (recorder, writer) = events::channel(config.client.clone(), config.node_name.clone());
    tasks.spawn(writer.run(stop.clone()));
    let pods_directory = config.data_dir.join("pods");
    let shelf = config
        .toolbox
        .map(|toolbox| Shelf::new(toolbox, runtime.clone(), pods_directory.clone()));
    let known = Known::with(shelf);
    let running = runtime.clone();
    let linked = keep_links(&config, &network, &tasks, &stop);
    let own = Arc::clone(&network);
    let endpoint_task = serve::run(listener, tls, known.clone(), own, linked, stop.clone());
    tasks.spawn(endpoint_task);
    let context = Context::new(Parts {
        node_name: config.node_name.clone(),
        host_ip: identity.address.clone(),
        allocatable: node::allocatable(&identity.machine, config.max_pods),
        pods_directory,
        runtime,
        network: Arc::clone(&network),
        images,
        logs,
        recorder,
        known,
        services: services(&config.client, &tasks, stop.clone()),
        client: config.client,
    });
    let leaving = CancellationToken::new();
    let end = pods::End {
        leaving: leaving.clone(),
        leaving_grace: config.shutdown_grace,
        stop: stop_pods.clone(),
        grace: GRACE,
    };
    let pods = Pods::new(Arc::new(context), end);
    let synced = pods.synced();
    pod_tasks.spawn(pods.run());
    given_up.disarm();
    Ok(Handle {
        network,
        ingress,
        endpoint,
        pod_cidr,
        node_name: config.node_name,
        registered: registered_seen,
        stage,
        told: told_seen,
        leaving,
        leaving_grace: config.shutdown_grace,
        synced,
        stop_pods,
        stop,
        pods: pod_tasks,
        tasks,
        runtime: running,
        _logs: log_thread,
    })
}

/// What does not depend on the cluster.
struct Opened {
    tls: Arc<ServerConfig>,
    listener: TcpListener,
    endpoint: SocketAddr,
    images: Images,
    logs: Logs,
    log_thread: WriterThread,
    runtime: Runtime,
}

async fn open(config: &Config) -> Result<Opened, Error> {
    let unusable = |path: &std::path::Path, source| Error::DataDir {
        path: path.to_owned(),
        source,
    };
    let directory = |name: &str| config.data_dir.join(name);
    for path in [config.data_dir.clone(), directory("pods")] {
        make_directory(&path).map_err(|source| unusable(&path, source))?;
    }
    let tls = Arc::new(config.tls.server_config(&[b"h2", b"http/1.1"])?);
    let listener = TcpListener::bind(config.endpoint)
        .await
        .and_then(|listener| {
            let address = listener.local_addr()?;
            Ok((listener, address))
        });
    let (listener, endpoint) = listener.map_err(|source| Error::Listen {
        address: config.endpoint,
        source,
    })?;
    let images =
        Images::open(&directory("images"), &config.mirrors, &config.bundled).map_err(|error| {
            match error {
                OpenError::Directory { directory, source } => unusable(&directory, source),
                OpenError::Mirror(error) => Error::Images(error.to_string()),
            }
        })?;
    let (logs, log_thread) =
        Logs::start(directory("logs")).map_err(|source| unusable(&directory("logs"), source))?;
    let runtime = Runtime::new(runtime::Config {
        max_pods: config.max_pods as usize,
        cache_dir: directory("compiled"),
    })
    .map_err(Error::Runtime)?;
    Ok(Opened {
        tls,
        listener,
        endpoint,
        images,
        logs,
        log_thread,
        runtime,
    })
}

/// A node that lacks nothing is ready at once.
fn first_stage(config: &Config) -> Stage {
    if config.pod_cidr.is_some() && config.serving.is_none() {
        Stage::Running
    } else {
        Stage::Starting
    }
}

fn identity(config: &Config, endpoint: SocketAddr) -> Identity {
    Identity {
        name: config.node_name.clone(),
        address: config.address.unwrap_or(endpoint.ip()).to_string(),
        port: endpoint.port(),
        pod_cidr: config.pod_cidr.map(|cidr| cidr.to_string()),
        max_pods: config.max_pods,
        labels: config.labels.clone(),
        taints: config.taints.clone(),
        machine: node::machine::describe(&config.data_dir),
    }
}

/// Links to the API servers, if the node is to have them; returns the streams for its endpoint.
fn keep_links(
    config: &Config,
    network: &Arc<Network>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> mpsc::Receiver<Box<dyn network::Io>> {
    let (endpoint_door, linked) = mpsc::channel(LINKED);
    if let Some(links) = &config.links {
        let (tunnel_door, mut tunnelled) = mpsc::channel(LINKED);
        let doors = link::Doors {
            endpoint: endpoint_door,
            tunnel: tunnel_door,
        };
        let kept = Arc::clone(links).keep(doors);
        tasks.spawn(stop.clone().run_until_cancelled_owned(kept));
        let network = Arc::clone(network);
        let accept = async move {
            while let Some(io) = tunnelled.recv().await {
                network.accept_tunnel(io, "a link");
            }
        };
        tasks.spawn(stop.clone().run_until_cancelled_owned(accept));
    }
    linked
}

fn network(
    config: &Config,
    pod_cidr: Ipv4Net,
    searches: Vec<String>,
    annotations: Annotations,
) -> Result<Arc<Network>, Error> {
    let network = Network::new(network::Config {
        node_name: config.node_name.clone(),
        annotations: annotations.clone(),
        tunnel: config.tunnel.clone(),
        pod_cidr,
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        service_address: config.service_address,
        cluster_ca: config.tls.authority().to_vec(),
        dns: network::DnsConfig {
            searches,
            ..config.dns.clone()
        },
        observe: config.observe.clone(),
        ..network::Config::default()
    })
    .map_err(Error::Network)?;
    network
        .start(config.client.clone())
        .map_err(Error::Network)?;
    for address in network.serve_dns().map_err(Error::Network)? {
        tracing::info!(%address, "Answering DNS");
    }
    let tunnel = match network.tunnel_address() {
        _ if config.links.is_some() => Some(TUNNEL_RELAY.to_owned()),
        Some(listens) => {
            let address = config.address.unwrap_or(listens.ip());
            Some(SocketAddr::new(address, listens.port()).to_string())
        }
        None => None,
    };
    annotations.set(ANNOTATION_TUNNEL, tunnel);
    Ok(Arc::new(network))
}

/// Follows all Services, for the variables pods get of them.
fn services(
    client: &Client,
    tasks: &TaskTracker,
    stop: CancellationToken,
) -> reflector::Store<Service> {
    let (store, writer) = reflector::store();
    let watch = watcher(
        Api::<Service>::all(client.clone()),
        watcher::Config::default(),
    )
    .modify(|service| {
        service.metadata.managed_fields = None;
        service.metadata.annotations = None;
    })
    .default_backoff()
    .reflect(writer)
    .take_until(stop.cancelled_owned());
    tasks.spawn(Box::pin(watch.for_each(|event| async move {
        if let Err(error) = event {
            tracing::warn!(error = %chain(&error), "Failed to watch services");
        }
    })));
    store
}

fn make_directory(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

/// Each mount of a running process is a descriptor: take what the system allows.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < hard
        && let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
    {
        tracing::debug!(error = %chain(&error), "Could not raise the limit of open files");
    }
}

// === impl Handle ===

impl Handle {
    pub fn node_name(&self) -> &str {
        &self.node_name
    }

    /// Addresses of this node's pods.
    pub fn pod_cidr(&self) -> Ipv4Net {
        self.pod_cidr
    }

    /// Where the node endpoint listens.
    pub fn endpoint(&self) -> SocketAddr {
        self.endpoint
    }

    /// Returns when the Node is registered and the pods the API has for it are known. No deadline of its own.
    pub async fn ready(&self) {
        let (mut registered, mut synced) = (self.registered.clone(), self.synced.clone());
        // A sender that is gone means the node is being stopped.
        let _ = registered.wait_for(|registered| *registered).await;
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// The real addresses Services are reachable at.
    pub fn listeners(&self) -> Arc<Vec<Listening>> {
        self.network.listeners()
    }

    /// The real addresses of Ingresses and Gateways, by port.
    pub fn ingress_listeners(&self) -> Arc<Vec<ingress::Listening>> {
        self.ingress.listeners()
    }

    /// As [`Handle::listeners`], to wait for changes.
    pub fn watch_listeners(&self) -> watch::Receiver<Arc<Vec<Listening>>> {
        self.network.watch_listeners()
    }

    /// Graceful shutdown of a node that goes away: the API is told first, then the pods end within the configured grace and
    /// the API hears how; the network serves until they have. With a grace of zero it is [`Handle::shutdown`].
    pub async fn leave(self) {
        let grace = self.leaving_grace;
        if grace.is_zero() {
            return self.shutdown(DRAIN).await;
        }
        self.stage.send_replace(Stage::ShuttingDown);
        let mut told = self.told.clone();
        let told = told.wait_for(|told| *told == Some(Stage::ShuttingDown));
        // Without an API server the pods end all the same.
        if tokio::time::timeout(TELL, told).await.is_err() {
            tracing::warn!("No API server heard in time that this node is shutting down");
        }
        self.leaving.cancel();
        self.pods.close();
        if tokio::time::timeout(grace + TELL, self.pods.wait())
            .await
            .is_err()
        {
            tracing::warn!("Some pods did not end in time, or the API could not be told");
        }
        self.shutdown(DRAIN).await;
    }

    /// Stops listeners and containers within `grace`, then everything else. The API keeps saying that the pods run: the
    /// next process of this node goes on with them.
    pub async fn shutdown(self, grace: Duration) {
        self.stop_pods.cancel();
        self.pods.close();
        let pods = tokio::time::timeout(grace, self.pods.wait());
        let (pods, ()) = tokio::join!(pods, self.network.shutdown(grace));
        if pods.is_err() {
            tracing::warn!("Some containers did not end in time");
        }
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(END, self.tasks.wait()).await.is_err() {
            let left = self.tasks.len();
            tracing::warn!(left, "Some tasks of the node did not end in time");
        }
        self.runtime.shutdown(END).await;
    }
}

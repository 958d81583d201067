//! Starts a node: makes its parts, joins them, and ends them in order. Decides nothing about pods.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Service;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::images::{Images, OpenError};
use crate::network::{self, Listening, Network};
use crate::node::annotations::Annotations;
use crate::node::status::Stage;
use crate::node::{self, Identity, Keeper};
use crate::pods::Pods;
use crate::pods::context::{Context, Parts};
use crate::pods::events;
use crate::pods::known::Known;
use crate::pods::logs::{Logs, WriterThread};
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
    /// Where the API server reaches this node's endpoint; the port is picked when it is 0.
    pub endpoint: SocketAddr,
    /// (from, to) as `images/mirror.rs` describes; the first entry for a name counts.
    pub mirrors: Vec<(String, String)>,
    /// Images that came with the program: (name, bytes); a name without tag means every tag.
    pub bundled: Vec<(String, &'static [u8])>,
    pub max_pods: u32,
    /// Addresses of this node's pods; without them the node waits until a controller has given it some.
    pub pod_cidr: Option<Ipv4Net>,
    /// Addresses of all pods of the cluster.
    pub cluster_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    pub dns: network::DnsConfig,
    /// What is told of requests, beside metrics.
    pub observe: network::observe::Config,
}

/// Why a node cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("data directory {path} cannot be used: {source}")]
    DataDir {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the node endpoint cannot listen on {address}: {source}")]
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
    endpoint: SocketAddr,
    node_name: String,
    registered: watch::Receiver<bool>,
    stage: watch::Sender<Stage>,
    synced: watch::Receiver<bool>,
    /// Ends pods, registration and everything else, in two steps.
    stop_pods: CancellationToken,
    stop: CancellationToken,
    pods: TaskTracker,
    tasks: TaskTracker,
    _logs: WriterThread,
}

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
            mirrors: Vec::new(),
            bundled: Vec::new(),
            max_pods: 5_000,
            pod_cidr: Some(network.pod_cidr),
            cluster_cidr: network.cluster_cidr,
            service_cidr: network.service_cidr,
            dns: network.dns,
            observe: network.observe,
        }
    }
}

/// Starts everything and returns at once (without a podCIDR of its own: once the API has given it one); [`Handle::ready`]
/// tells when the Node is registered. Call inside a tokio runtime.
pub async fn start(config: Config) -> Result<Handle, Error> {
    raise_descriptor_limit();
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
    let machine = node::machine::describe(&config.data_dir);
    let identity = Identity {
        name: config.node_name.clone(),
        address: endpoint.ip().to_string(),
        port: endpoint.port(),
        pod_cidr: config.pod_cidr.map(|cidr| cidr.to_string()),
        max_pods: config.max_pods,
        labels: BTreeMap::new(),
        taints: Vec::new(),
        machine,
    };
    let (stop_pods, stop) = (CancellationToken::new(), CancellationToken::new());
    let (pod_tasks, tasks) = (TaskTracker::new(), TaskTracker::new());
    let annotations = Annotations::default();
    let (registered, registered_seen) = watch::channel(false);
    let (stage, stage_seen) = watch::channel(match config.pod_cidr {
        Some(_) => Stage::Running,
        None => Stage::Starting,
    });
    let keeper = Keeper {
        client: config.client.clone(),
        data_dir: config.data_dir.clone(),
        images: images.clone(),
        annotations: annotations.clone(),
        stage: stage_seen,
        registered,
        told: watch::Sender::new(None),
        identity: identity.clone(),
    };
    // A start that fails, or is given up, leaves nobody behind who says that there is a node.
    let given_up = stop.clone().drop_guard();
    tasks.spawn(keeper.run(stop.clone()));
    let pod_cidr = match config.pod_cidr {
        Some(cidr) => cidr,
        None => node::registration::pod_cidr(&config.client, &config.node_name).await?,
    };
    let network = network(&config, pod_cidr, annotations)?;
    stage.send_replace(Stage::Running);
    let (recorder, writer) = events::channel(config.client.clone(), config.node_name.clone());
    tasks.spawn(writer.run(stop.clone()));
    let known = Known::default();
    tasks.spawn(serve::run(
        listener,
        tls,
        known.clone(),
        Arc::clone(&network),
        stop.clone(),
    ));
    let context = Context::new(Parts {
        node_name: config.node_name.clone(),
        host_ip: identity.address.clone(),
        allocatable: node::allocatable(&identity.machine, config.max_pods),
        pods_directory: directory("pods"),
        runtime,
        network: Arc::clone(&network),
        images,
        logs,
        recorder,
        known,
        services: services(&config.client, &tasks, stop.clone()),
        client: config.client,
    });
    let pods = Pods::new(Arc::new(context), stop_pods.clone(), GRACE);
    let synced = pods.synced();
    pod_tasks.spawn(pods.run());
    given_up.disarm();
    Ok(Handle {
        network,
        endpoint,
        node_name: config.node_name,
        registered: registered_seen,
        stage,
        synced,
        stop_pods,
        stop,
        pods: pod_tasks,
        tasks,
        _logs: log_thread,
    })
}

fn network(
    config: &Config,
    pod_cidr: Ipv4Net,
    annotations: Annotations,
) -> Result<Arc<Network>, Error> {
    let network = Network::new(network::Config {
        node_name: config.node_name.clone(),
        annotations,
        pod_cidr,
        cluster_cidr: config.cluster_cidr,
        service_cidr: config.service_cidr,
        service_address: config.service_address,
        cluster_ca: config.tls.authority().to_vec(),
        dns: config.dns.clone(),
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
            tracing::warn!(%error, "Failed to watch services");
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
        tracing::debug!(%error, "Could not raise the limit of open files");
    }
}

// === impl Handle ===

impl Handle {
    pub fn node_name(&self) -> &str {
        &self.node_name
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

    /// As [`Handle::listeners`], to wait for changes.
    pub fn watch_listeners(&self) -> watch::Receiver<Arc<Vec<Listening>>> {
        self.network.watch_listeners()
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
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await;
    }
}

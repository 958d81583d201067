//! The pod network of one node: virtual and in process. Guests never touch the kernel's network.
//!
//! A pod's address is an entry in a table; a connection on one node is an in-memory pipe; an HTTP call between services
//! is a call of the target's handler. Real sockets exist only at the rim: NodePort and LoadBalancer listeners, egress.
//!
//! ```text
//!  guest ── connect / http ──► PodNetwork ──► Fabric ─┬─ pod on this node: vnet (pipe, or a call of its handler)
//!                                               ▲     ├─ Service: balancer picks an endpoint of the table, then as above
//!                                               │     ├─ pod of another node: tunnel (mutual TLS, HTTP/2)
//!  curl ─── listeners (real sockets) ───────────┘     └─ elsewhere: egress (real sockets, policy)
//!                                               ▲
//!            services (one task) ── watch<Table>┘   dns::zone answers names from the same table
//! ```
//! [`Network`] is the node's; [`PodNetwork`] is one pod's network namespace, which its containers share.

mod addresses;
mod balancer;
mod bodies;
mod client;
mod deliver;
mod dial;
mod egress;
mod forward;
pub(crate) mod gate;
mod http;
mod identity;
mod listeners;
pub(crate) mod namespaces;
mod nodes;
pub mod observe;
mod pipe;
mod places;
mod pod;
mod policy;
mod ports;
mod serve;
mod services;
mod stream;
pub(crate) mod table;
mod traffic;
mod tunnel;
mod udp;
pub(crate) mod vnet;

#[cfg(test)]
pub(crate) mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use ipnet::Ipv4Net;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;

pub(crate) use self::bodies::{begun, begun_within};
pub use self::dial::{HttpProbe, ProbeAnswer};
pub use self::egress::Policy;
pub use self::http::Hops;
pub(crate) use self::http::strip_hop_by_hop;
pub use self::listeners::{Listening, Origin as ListenerKind};
pub use self::pod::{DnsPolicy, PodIdentity, PodNetwork};
pub(crate) use self::policy::named_ports;
pub use self::policy::{Decisions, Direction, NamedPort};
pub(crate) use self::ports::SocketSlot;
pub use self::ports::{Bound, Listener, Ports, Serving};
pub(crate) use self::serve::{body as from_wire, empty as empty_body, full as full_body};
pub use self::stream::{Reader, Stream, Writer};
pub use self::traffic::{Flow, Security};
pub use self::tunnel::{Config as TunnelConfig, Dial, Io};
pub use self::udp::UdpSocket;
pub use crate::dns::server::{Config as DnsConfig, Counted as DnsCounted};
use types::error::chain;

use self::namespaces::Namespaces;
use self::table::Table;
use self::vnet::Fabric;
use crate::dns::server::{self as dns, rim};
use crate::node::annotations::Annotations;

/// How long tasks may take to end once they are told to.
const STOP: Duration = Duration::from_secs(2);
/// Requests per second are those of this long.
const RATES: Duration = Duration::from_secs(10);

/// The body of every HTTP message inside the node: wasmtime-wasi-http's own type, so nothing is copied at the border.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, wasmtime_wasi_http::Error>;

/// Answers HTTP for a pod port: an HTTP guest, through the runtime.
pub trait HttpHandler: Send + Sync {
    /// Cancel by dropping. An `Err` says the request did or did not reach the guest (only the latter is retried).
    fn handle(
        self: Arc<Self>,
        request: ::http::Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<::http::Response<Body>, HttpError>> + Send>>;
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody saw the request, but it is gone: it is not retried unless it came back as [`HttpError::Returned`].
    #[error("no endpoint took the request: {0}")]
    NotReached(String),
    /// Nobody saw the request, and here it is, untouched: it is sent to another endpoint if there is one.
    #[error("no endpoint took the request: {reason}")]
    Returned {
        reason: String,
        /// It is there, with more to do than it takes on: neither is it avoided, nor will waiting for its successor help.
        busy: bool,
        request: ReturnedRequest,
    },
    #[error("the guest failed: {0}")]
    Guest(String),
    #[error("timed out: {0}")]
    Timeout(String),
    #[error("connection failed: {0}")]
    Connect(String),
    /// The way to who had the request ended before there was an answer.
    #[error("connection lost: {0}")]
    Broken(String),
    #[error("TLS failed: {0}")]
    Tls(String),
    #[error("forbidden: {0}")]
    Forbidden(String),
    #[error("name not found: {0}")]
    NotFound(String),
    #[error("request refused: {0}")]
    Invalid(String),
    #[error("loop detected: {0}")]
    Loop(String),
}

impl HttpError {
    /// What a client on the wire is told.
    pub(crate) fn status(&self) -> ::http::StatusCode {
        use ::http::StatusCode;
        match self {
            Self::NotReached(_) | Self::Returned { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Guest(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken(_) | Self::Connect(_) | Self::Tls(_) | Self::NotFound(_) => {
                StatusCode::BAD_GATEWAY
            }
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Loop(_) => StatusCode::LOOP_DETECTED,
        }
    }
}

/// A request on its way back to who sent it. (A mutex only because errors are shared between threads and bodies are not.)
pub struct ReturnedRequest(Mutex<Box<::http::Request<Body>>>);

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocketError {
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
    #[error("socket is shut down for writing")]
    Closed,
    #[error("address in use")]
    InUse,
    #[error("address not available")]
    NotAvailable,
    #[error("host unreachable")]
    Unreachable,
    #[error("timed out")]
    TimedOut,
    #[error("access denied")]
    Denied,
    #[error("too many sockets")]
    TooMany,
    #[error("datagram or chunk too large")]
    TooLarge,
}

/// Names to addresses, as a guest asks.
pub type Resolved = Result<Vec<IpAddr>, ResolveError>;

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum ResolveError {
    #[error("name does not exist")]
    NotFound,
    #[error("temporary failure in name resolution")]
    Temporary,
}

/// The network could not be built, or a pod not attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no address left in pod CIDR {0}")]
    AddressesExhausted(Ipv4Net),
    #[error("pod {pod}: address {address} is taken")]
    AddressTaken { pod: String, address: Ipv4Addr },
    #[error("TLS for outgoing connections: {0}")]
    Tls(String),
    #[error(transparent)]
    Observe(#[from] observe::Error),
    #[error("the network has been started already")]
    Started,
    #[error("the DNS server cannot listen on {address}")]
    Dns {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the tunnel cannot listen on {address}")]
    Tunnel {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// What a node's network needs to know. `Default` suits a test.
#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// Where parts of the network leave what the Node object shall say.
    pub(crate) annotations: Annotations,
    /// Addresses of this node's pods; its first host address is the node's own.
    pub pod_cidr: Ipv4Net,
    /// Addresses of all pods of the cluster: what is in it and not on this node is on another node, never outside.
    pub cluster_cidr: Ipv4Net,
    pub service_cidr: Ipv4Net,
    /// `cluster.local`
    pub cluster_domain: String,
    /// Where NodePort and LoadBalancer listeners bind.
    pub service_address: IpAddr,
    pub dns: dns::Config,
    pub egress: Policy,
    pub limits: Limits,
    /// What is told of requests, beside metrics.
    pub observe: observe::Config,
    /// Trusted for TLS to addresses inside the cluster (the API server).
    pub cluster_ca: Vec<CertificateDer<'static>>,
    /// Trusted for TLS to the outside instead of the public roots; empty means those.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// How other nodes are reached and reach this one; `None` for a cluster of one.
    pub tunnel: Option<TunnelConfig>,
}

/// Bounds on what one guest or client can hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections, listeners and UDP sockets of one pod, together.
    pub sockets_per_pod: usize,
    /// Real connections to the outside of one pod, and at most a quarter of the file descriptors for all pods.
    pub outside_per_pod: usize,
    /// Bytes queued by one pod in all its connections before their buffers shrink.
    pub buffers_per_pod: usize,
    /// HTTP requests one pod answers at once; more are refused and go elsewhere.
    pub requests_per_pod: usize,
    /// Connections all NodePort and LoadBalancer listeners of this node hold together, at most a quarter of the file
    /// descriptors; more are closed at once. One client alone has at most three quarters of them.
    pub listener_connections: usize,
    pub connect_timeout: Duration,
    /// A client has this long to send a request's head, and to take what it is sent; a kept-alive connection is closed
    /// after being idle this long.
    pub header_timeout: Duration,
}

/// A node's network. Dropping it without `shutdown` leaves its tasks to end with their connections.
pub struct Network {
    fabric: Arc<Fabric>,
    tables: watch::Sender<Arc<Table>>,
    namespaces: watch::Sender<Arc<Namespaces>>,
    listening: watch::Sender<Arc<Vec<Listening>>>,
    /// Set by the listeners task when it has acted on a complete table once.
    synced: watch::Sender<bool>,
    started: Mutex<bool>,
    /// Where the tunnel listens.
    tunnel_address: OnceLock<SocketAddr>,
    /// Tasks that serve until the very end.
    followers: TaskTracker,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        let net = |a, b, c, d, length| {
            Ipv4Net::new(Ipv4Addr::new(a, b, c, d), length).expect("prefix length is at most 32")
        };
        Self {
            node_name: "node".to_owned(),
            annotations: Annotations::default(),
            pod_cidr: net(100, 64, 0, 0, 18),
            cluster_cidr: net(100, 64, 0, 0, 10),
            service_cidr: net(10, 96, 0, 0, 16),
            cluster_domain: types::well_known::CLUSTER_DOMAIN.to_owned(),
            service_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            dns: dns::Config::default(),
            egress: Policy::default(),
            limits: Limits::default(),
            observe: observe::Config::default(),
            cluster_ca: Vec::new(),
            extra_roots: Vec::new(),
            tunnel: None,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // A connection takes five handles; the runtime stops a process at 8,192.
            sockets_per_pod: 1_024,
            outside_per_pod: 512,
            buffers_per_pod: 16 << 20,
            requests_per_pod: 4096,
            listener_connections: 16_384,
            connect_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(30),
        }
    }
}

// === impl Network ===

impl Network {
    /// A network with no pods and an empty table of Services. Call inside a tokio runtime.
    pub fn new(config: Config) -> Result<Self, Error> {
        let (tables, table) = watch::channel(Arc::new(Table::of(config.service_cidr)));
        let (namespaces, known) = watch::channel(Arc::new(Namespaces::default()));
        Ok(Self {
            fabric: Fabric::new(config, table, known)?,
            tables,
            namespaces,
            listening: watch::Sender::new(Arc::new(Vec::new())),
            synced: watch::Sender::new(false),
            started: Mutex::new(false),
            tunnel_address: OnceLock::new(),
            followers: TaskTracker::new(),
        })
    }

    /// Gives a pod its address. Attaching twice is a second namespace: detach first.
    pub fn attach_pod(&self, identity: PodIdentity) -> Result<Arc<PodNetwork>, Error> {
        self.fabric.attach(identity)
    }

    /// Frees the pod's address; its listeners refuse from now on. Connections end when the guest's ends are dropped.
    pub fn detach_pod(&self, pod: &PodNetwork) {
        self.fabric.detach(pod);
    }

    /// Follows Services and EndpointSlices and opens real listeners for them, until `shutdown`.
    pub fn start(&self, client: kube::Client) -> Result<(), Error> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::replace(&mut *started, true) {
            return Err(Error::Started);
        }
        self.listen_tunnel()?;
        self.followers.spawn(services::run(
            client.clone(),
            self.tables.clone(),
            Arc::clone(&self.fabric.nodes),
            self.fabric.stop.clone(),
        ));
        // From now on there may be some: nothing passes before they have been listed.
        self.fabric.policy.expect_policies();
        for pod in self.fabric.pods() {
            self.fabric.policy.refresh(&pod);
        }
        self.followers
            .spawn(policy::run(client.clone(), Arc::clone(&self.fabric)));
        self.followers.spawn(namespaces::run(
            client.clone(),
            self.namespaces.clone(),
            self.fabric.stop.clone(),
        ));
        if let Some(tunnel) = &self.fabric.tunnel {
            self.followers.spawn(Arc::clone(tunnel).follow(
                client.clone(),
                self.fabric.config.node_name.clone(),
                Arc::clone(&self.fabric.nodes),
            ));
        }
        self.followers.spawn(rates(Arc::clone(&self.fabric)));
        self.followers.close();
        self.fabric.tasks.spawn(listeners::run(
            Arc::clone(&self.fabric),
            self.listening.clone(),
            self.synced.clone(),
        ));
        Ok(())
    }

    /// Answers DNS at every address of `Config::dns`, all or none, until `shutdown`. The real addresses: port 0 is any.
    pub fn serve_dns(&self) -> Result<Vec<SocketAddr>, Error> {
        let config = &self.fabric.config.dns;
        let mut sockets = Vec::new();
        for address in config.listen.iter().copied() {
            match rim::Sockets::bind(address) {
                Ok(bound) => sockets.push(bound),
                Err(error) if config.optional => {
                    tracing::warn!(%address, error = %chain(&error), "DNS is not answered at its usual address");
                }
                Err(source) => return Err(Error::Dns { address, source }),
            }
        }
        let bound: Vec<SocketAddr> = sockets.iter().map(|socket| socket.address).collect();
        self.fabric.dns.answers_at(&bound);
        for socket in sockets {
            socket.serve(&self.fabric.dns, &self.fabric.tasks, &self.fabric.draining);
        }
        Ok(bound)
    }

    /// What the DNS server has answered, since start.
    pub fn dns_counted(&self) -> dns::Counted {
        self.fabric.dns.counted()
    }

    /// Returns when the Services known to the API at start are in the table and their listeners are open.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives in `self`, so this cannot fail while we are here.
        drop(synced.wait_for(|synced| *synced).await);
    }

    /// The real addresses Services are reachable at, ordered by namespace, name and port.
    pub fn listeners(&self) -> Arc<Vec<Listening>> {
        Arc::clone(&self.listening.borrow())
    }

    /// As [`Network::listeners`], to wait for changes.
    pub fn watch_listeners(&self) -> watch::Receiver<Arc<Vec<Listening>>> {
        self.listening.subscribe()
    }

    /// What each NetworkPolicy has allowed and denied on this node, by namespace and name.
    pub fn policy_decisions(&self) -> Vec<Decisions> {
        self.fabric.policy.decisions()
    }

    /// Requests and connections by source and destination workload, since start.
    pub fn flows(&self) -> Vec<Flow> {
        self.fabric.traffic.flows()
    }

    /// The same, what policies decided, what DNS and Ingress answered and which datagrams were dropped, as text for
    /// Prometheus.
    pub fn metrics(&self) -> String {
        let mut text = traffic::prometheus(&self.flows(), self.fabric.traffic.left_out());
        text.push_str(&policy::prometheus(&self.policy_decisions()));
        text.push_str(&self.dns_counted().prometheus());
        text.push_str(&self.fabric.lost.prometheus());
        text.push_str(&self.fabric.answers.prometheus());
        text
    }

    /// The same as edges of the service graph.
    pub fn graph(&self) -> serde_json::Value {
        traffic::graph(&self.fabric.config.node_name, &self.flows())
    }

    /// Stops accepting, lets what is in flight finish within `grace`, then drops the rest.
    pub async fn shutdown(&self, grace: Duration) {
        self.fabric.draining.cancel();
        self.fabric.tasks.close();
        self.followers.close();
        let drained = tokio::time::timeout(grace, self.fabric.tasks.wait()).await;
        if drained.is_err() {
            tracing::debug!(?grace, "Dropped connections that were not done in time");
        }
        self.fabric.stop.cancel();
        let stopped = async {
            self.fabric.tasks.wait().await;
            self.followers.wait().await;
            if let Some(tunnel) = &self.fabric.tunnel {
                tunnel.tasks().close();
                tunnel.tasks().wait().await;
            }
        };
        // Every task watches `stop`; this only bounds a task stuck in a syscall.
        if tokio::time::timeout(STOP, stopped).await.is_err() {
            tracing::warn!("Network tasks did not stop in time");
        }
        self.fabric.clear();
        let fabric = Arc::clone(&self.fabric);
        let told = tokio::task::spawn_blocking(move || fabric.observer.shutdown());
        if let Err(error) = told.await {
            tracing::warn!(error = %chain(&error), "Could not send the last spans");
        }
    }
}

/// Keeps the rates of requests, until the network stops.
async fn rates(fabric: Arc<Fabric>) {
    let mut beat = tokio::time::interval(RATES);
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = tokio::time::Instant::now();
    loop {
        tokio::select! {
            biased;
            () = fabric.stop.cancelled() => return,
            now = beat.tick() => {
                fabric.traffic.tick(now.duration_since(last));
                last = now;
            }
        }
    }
}

// === impl HttpError ===

impl HttpError {
    /// Gives the request back with a [`HttpError::NotReached`], so that it can be sent elsewhere.
    pub fn returning(self, request: ::http::Request<Body>) -> Self {
        match self {
            Self::NotReached(reason) => Self::Returned {
                reason,
                busy: false,
                request: ReturnedRequest::new(request),
            },
            other => other,
        }
    }
}

// === impl ReturnedRequest ===

impl ReturnedRequest {
    pub fn new(request: ::http::Request<Body>) -> Self {
        Self(Mutex::new(Box::new(request)))
    }

    pub fn into_inner(self) -> ::http::Request<Body> {
        *self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ReturnedRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReturnedRequest")
    }
}

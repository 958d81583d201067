//! The pod network between nodes: one HTTP/2 connection over mutual TLS from each node to each other one it talks to, on
//! which every stream, request and datagram between their pods travels. Owns those connections and which addresses lead
//! to which node; chooses no endpoint.
//!
//! ```text
//!   vnet, http, udp ── outgoing, calls, datagrams ──► peer ──► connection ═══ mTLS, h2 ═══► server ──► incoming ──► vnet, http, udp
//!                          Node objects ──► routes ──┘ └── machine: when to dial, what callers may expect (pure)
//! ```
//! A node may speak only for the addresses its Node object gives it. A peer without a node's certificate gets nothing.
//!
//! A stream's window bounds what waits for a pod; the connection's own window is unlimited, so that one pod that does not
//! read cannot stop the others' streams.

mod answers;
mod body;
mod calls;
mod connection;
mod counts;
mod datagrams;
mod incoming;
mod keep_alive;
mod kinds;
mod liveness;
mod machine;
mod outgoing;
mod peer;
mod routes;
mod server;
mod streams;
mod wire;
mod words;

#[cfg(test)]
mod simulation;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::Network;
use super::nodes::Nodes;
use super::udp::Lost;
use crate::tls::{self, Certificates};

use self::connection::Dialler;
use self::counts::Counts;
use self::liveness::KeepAlive;
use self::machine::Timing;
use self::peer::Means;
use self::routes::Index;

pub(crate) use self::calls::send;
pub(crate) use self::incoming::Source;
pub(crate) use self::kinds::speaks_http;
pub(crate) use self::outgoing::connect;
pub(crate) use self::peer::Peer;
pub(crate) use self::server::{accept, bind, run as serve};

/// What one stream may have under way and unread, in each direction.
const WINDOW: u32 = 512 * 1024;
/// All streams of a connection together: no bound of its own.
const WINDOWS: u32 = (1 << 31) - 1;
/// Larger than the standard's 16 KiB: fewer frames for bulk, still short enough for others to get in between.
const MAX_FRAME: u32 = 64 * 1024;
/// What one stream may have queued here before it is on the wire.
const SEND_BUFFER: usize = 256 * 1024;
/// What TLS encrypts at once: a frame and its head, and what else has gathered.
const TLS_BUFFER: usize = 256 * 1024;
/// Streams of one connection.
const STREAMS: usize = 32_768;

/// A connection's bytes, whatever carries them.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Reaches nodes that cannot be dialled, through the connections they keep to the API servers. What it gives is carried
/// blindly: the tunnel's own TLS runs inside.
#[async_trait::async_trait]
pub trait Dial: Send + Sync {
    /// Cancel by dropping.
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Io>>;
}

/// What a node needs to reach others and to be reached.
#[derive(Clone)]
pub struct Config {
    /// Shown to other nodes, both ways.
    pub certificates: Arc<Certificates>,
    /// Where others reach this node; `None` when none can.
    pub listen: Option<SocketAddr>,
    pub relay: Option<Arc<dyn Dial>>,
    timing: Timing,
    keep_alive: KeepAlive,
}

/// The node's side of the pod network between nodes.
pub(crate) struct Tunnel {
    means: Means,
    acceptor: TlsAcceptor,
    listen: Option<SocketAddr>,
    routes: RwLock<Routes>,
    /// Handshakes under way: of those who dial, of each address among them, of those who come through a server.
    handshakes: Arc<Semaphore>,
    sources: Arc<Counts<IpAddr>>,
    relayed: Arc<Semaphore>,
    /// Connections from each node.
    incoming: Arc<Counts<String>>,
}

#[derive(Default)]
struct Routes {
    /// First and last address, in order, none overlapping another.
    ranges: Vec<(Ipv4Addr, Ipv4Addr, Arc<Peer>)>,
    peers: HashMap<String, Arc<Peer>>,
}

// === impl Config ===

impl Config {
    /// Listens nowhere, relays nowhere.
    pub fn new(certificates: Arc<Certificates>) -> Self {
        Self {
            certificates,
            listen: None,
            relay: None,
            timing: Timing::default(),
            keep_alive: KeepAlive::default(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("listen", &self.listen)
            .finish_non_exhaustive()
    }
}

// === impl Tunnel ===

impl Tunnel {
    /// Datagrams that are dropped are counted in `lost`.
    pub(crate) fn new(
        config: &Config,
        stop: CancellationToken,
        lost: Arc<Lost>,
    ) -> Result<Self, tls::Error> {
        let acceptor = config.certificates.server_config(&[b"h2"])?;
        let client = config.certificates.client_config(&[b"h2"])?;
        Ok(Self {
            means: Means {
                dialler: Arc::new(Dialler {
                    tls: TlsConnector::from(Arc::new(client)),
                    relay: config.relay.clone(),
                    keep_alive: config.keep_alive,
                }),
                timing: config.timing,
                tasks: TaskTracker::new(),
                stop,
                lost,
            },
            acceptor: TlsAcceptor::from(Arc::new(acceptor)),
            listen: config.listen,
            routes: RwLock::default(),
            handshakes: Arc::new(Semaphore::new(server::HANDSHAKES)),
            sources: Counts::new(server::PER_SOURCE),
            relayed: Arc::new(Semaphore::new(server::RELAYED)),
            incoming: Counts::new(server::PER_NODE),
        })
    }

    /// The other node that has `address`.
    pub(crate) fn peer(&self, address: Ipv4Addr) -> Option<Arc<Peer>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.find(address).map(Arc::clone)
    }

    /// Whether `node`'s Node object gives it `address`.
    pub(crate) fn speaks_for(&self, node: &str, address: Ipv4Addr) -> bool {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes
            .find(address)
            .is_some_and(|peer| &*peer.node.name == node)
    }

    /// Makes the routes what the Node objects say.
    fn update(&self, index: &Index, nodes: &Nodes) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        let mut before = std::mem::take(&mut routes.peers);
        for (name, known) in index.nodes() {
            let peer = match before.remove(name) {
                Some(peer) => {
                    peer.set_target(known.target);
                    peer
                }
                None => Peer::new(nodes.get(name), known.target, self.means.clone()),
            };
            routes.peers.insert(name.to_owned(), peer);
        }
        let Routes { ranges, peers } = &mut *routes;
        *ranges = index
            .ranges()
            .into_iter()
            .filter_map(|(cidr, name)| {
                let peer = Arc::clone(peers.get(name)?);
                Some((cidr.network(), cidr.broadcast(), peer))
            })
            .collect();
        for gone in before.into_values() {
            gone.close();
        }
    }

    /// Follows Node objects until `stop`. Watch errors are retried with backoff inside kube's watcher; the last routes
    /// stay meanwhile.
    pub(crate) async fn follow(self: Arc<Self>, client: Client, own: String, nodes: Arc<Nodes>) {
        let changes = watcher(Api::<NodeObject>::all(client), watcher::Config::default())
            .modify(|node| {
                node.metadata.managed_fields = None;
                node.status = None;
            })
            .default_backoff()
            .inspect_err(|error| {
                warn!(
                    error = error as &dyn std::error::Error,
                    "Watch of Nodes failed"
                );
            })
            .filter_map(|event| std::future::ready(event.ok()));
        let mut changes = std::pin::pin!(changes);
        let mut index = Index::new(&own);
        loop {
            let change = tokio::select! {
                biased;
                () = self.means.stop.cancelled() => return,
                change = changes.next() => change,
            };
            let Some(change) = change else { return };
            // Half a list would close the tunnels to the other half's nodes.
            let complete = index.is_listed();
            let changed = index.event(change) || !complete;
            if changed && index.is_listed() {
                self.update(&index, &nodes);
                nodes.prune();
            }
        }
    }

    /// Where to listen.
    pub(crate) fn listen(&self) -> Option<SocketAddr> {
        self.listen
    }

    /// Tasks that end with `stop`.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.means.tasks
    }
}

// === impl Network ===

impl Network {
    /// Accepts connections of other nodes, where the configuration says so.
    pub(super) fn listen_tunnel(&self) -> Result<(), super::Error> {
        let Some(tunnel) = &self.fabric.tunnel else {
            return Ok(());
        };
        let Some(address) = tunnel.listen() else {
            return Ok(());
        };
        let listening = bind(address).map_err(|source| super::Error::Tunnel { address, source })?;
        let (listener, address) = listening;
        self.tunnel_address.get_or_init(|| address);
        let run = serve(Arc::clone(&self.fabric), Arc::clone(tunnel), listener);
        self.fabric.tasks.spawn(run);
        Ok(())
    }

    /// Where other nodes reach this one, once started; `None` when they cannot dial it.
    pub fn tunnel_address(&self) -> Option<SocketAddr> {
        self.tunnel_address.get().copied()
    }

    /// Serves a connection of another node that came some other way than to [`Network::tunnel_address`]: as one that was
    /// accepted there. `from` is for the log.
    pub fn accept_tunnel(&self, io: Box<dyn Io>, from: &str) {
        if let Some(tunnel) = &self.fabric.tunnel {
            accept(
                &self.fabric,
                tunnel,
                io,
                server::Source::Relayed(from.to_owned()),
            );
        }
    }
}

// === impl Routes ===

impl Routes {
    fn find(&self, address: Ipv4Addr) -> Option<&Arc<Peer>> {
        let after = self.ranges.partition_point(|(first, ..)| *first <= address);
        let (_, last, peer) = self.ranges.get(after.checked_sub(1)?)?;
        (address <= *last).then_some(peer)
    }
}

//! The node's end that others dial: accepts, makes sure that it is a node that calls, hands each stream to `incoming`.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use h2::server;
use tokio::net::TcpListener;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};
use types::error::chain;

use super::connection::within;
use super::counts::Counted;
use super::incoming::Incoming;
use super::keep_alive::{Activity, Keeper};
use super::wire::{Gather, Wire};
use super::{Io, MAX_FRAME, SEND_BUFFER, STREAMS, TLS_BUFFER, Tunnel, WINDOW, WINDOWS};
use crate::network::vnet::Fabric;
use crate::tls::Peer;

/// Each part of a handshake has this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections one node may have here: one in use, those it replaced, and what a broken link has left.
pub(super) const PER_NODE: usize = 16;
/// Handshakes of others under way: of those who dial, of each address among them, and of those who come through a server.
pub(super) const HANDSHAKES: usize = 256;
pub(super) const PER_SOURCE: usize = 16;
pub(super) const RELAYED: usize = 256;
/// Pause after an accept failed, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How a connection came here.
pub(crate) enum Source {
    Dialled(SocketAddr),
    /// Through an API server: from whom, for the log.
    Relayed(String),
}

/// Who has not shown yet who it is; held for the time of a handshake.
struct Handshake {
    _permit: OwnedSemaphorePermit,
    _counted: Option<Counted<IpAddr>>,
}

/// A socket that listens, not yet accepting.
pub(crate) fn bind(address: SocketAddr) -> io::Result<(std::net::TcpListener, SocketAddr)> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Accepts until shutdown begins; connections drain on their own.
pub(crate) async fn run(fabric: Arc<Fabric>, tunnel: Arc<Tunnel>, listener: std::net::TcpListener) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(
                error = &error as &dyn std::error::Error,
                "The tunnel cannot accept"
            );
            return;
        }
    };
    loop {
        let accepted = tokio::select! {
            biased;
            () = fabric.draining.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((socket, from)) => {
                // Only latency depends on it.
                drop(socket.set_nodelay(true));
                accept(&fabric, &tunnel, Box::new(socket), Source::Dialled(from));
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "Accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves what may be another node, in a task of its own.
pub(crate) fn accept(fabric: &Arc<Fabric>, tunnel: &Arc<Tunnel>, io: Box<dyn Io>, from: Source) {
    let Some(permit) = from.begin(tunnel) else {
        debug!(%from, "Refused tunnel connection: too many handshakes");
        return;
    };
    let (fabric, tunnel) = (Arc::clone(fabric), Arc::clone(tunnel));
    let stop = fabric.stop.clone();
    let tasks = fabric.tasks.clone();
    tasks.spawn(async move {
        let activity = Arc::new(Activity::default());
        let wire = Wire::new(io, Arc::clone(&activity));
        let serving = async {
            let mut tls = within(HANDSHAKE, tunnel.acceptor.accept(wire)).await?;
            tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
            let node = caller(&tls)?;
            let counted = tunnel.incoming.take(node.clone());
            let counted = counted.ok_or_else(|| {
                io::Error::other(format!("{node} has {PER_NODE} connections already"))
            })?;
            let handshake = async { builder().handshake(tls).await.map_err(io::Error::other) };
            let connection = within(HANDSHAKE, handshake).await?;
            drop(permit);
            serve(&fabric, &tunnel, &node, connection, activity).await;
            drop(counted);
            Ok::<_, io::Error>(())
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            served = serving => {
                if let Err(error) = served {
                    debug!(%from, error = %chain(&error), "Refused tunnel connection");
                }
            }
        }
    });
}

/// The node at the other end.
fn caller(tls: &TlsStream<Wire>) -> io::Result<String> {
    let session = tls.get_ref().1;
    let peer = Peer::of(session).ok_or_else(|| io::Error::other("it shows no certificate"))?;
    let Some(node) = peer.node() else {
        let name = peer.common_name;
        return Err(io::Error::other(format!("{name} is no node")));
    };
    if session.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other(format!("{node} speaks no HTTP/2")));
    }
    Ok(node.to_owned())
}

fn builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(WINDOW)
        .initial_connection_window_size(WINDOWS)
        .max_frame_size(MAX_FRAME)
        .max_send_buffer_size(SEND_BUFFER)
        .max_concurrent_streams(u32::try_from(STREAMS).unwrap_or(u32::MAX))
        // A node is trusted not to flood; its guests may well cancel what they began.
        .max_concurrent_reset_streams(STREAMS)
        .max_pending_accept_reset_streams(STREAMS)
        .max_local_error_reset_streams(None);
    builder
}

async fn serve(
    fabric: &Arc<Fabric>,
    tunnel: &Arc<Tunnel>,
    node: &str,
    mut connection: server::Connection<TlsStream<Wire>, bytes::Bytes>,
    activity: Arc<Activity>,
) {
    debug!(node, "Node has opened its tunnel");
    let ping = connection.ping_pong();
    let mut keeper = Keeper::new(Arc::clone(&activity), ping, tunnel.means.dialler.keep_alive);
    let incoming = Arc::new(Incoming::new(Arc::clone(fabric), Arc::clone(tunnel), node));
    let mut dead = std::pin::pin!(keeper.dead());
    let mut leaving = std::pin::pin!(fabric.draining.cancelled());
    let (mut draining, mut gather) = (false, Gather::default());
    loop {
        let accepted = std::future::poll_fn(|cx| {
            gather.poll(cx, activity.is_busy(), |cx| connection.poll_accept(cx))
        });
        let next = tokio::select! {
            biased;
            () = &mut leaving, if !draining => {
                // New streams are refused from now on, those under way go on.
                connection.graceful_shutdown();
                draining = true;
                continue;
            }
            () = &mut dead => {
                debug!(node, "Node's tunnel is dead: nothing is heard");
                return;
            }
            next = accepted => next,
        };
        let (request, mut respond) = match next {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                debug!(node, error = %chain(&error), "Node's tunnel ended");
                return;
            }
            None => return,
        };
        let Some(in_use) = activity.begin(STREAMS) else {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        };
        let (incoming, stop) = (Arc::clone(&incoming), fabric.stop.clone());
        // Boxed: it is large, and a task is moved more than once on its way.
        fabric.tasks.spawn(Box::pin(async move {
            tokio::select! {
                biased;
                // First: what is done at once need not wait for the end.
                () = incoming.serve(request, respond) => {}
                () = stop.cancelled() => {}
            }
            drop(in_use);
        }));
    }
}

// === impl Source ===

impl Source {
    /// Its share of those that have not shown yet who they are: no address keeps the others out, and nobody who dials
    /// keeps out who comes through a server.
    fn begin(&self, tunnel: &Tunnel) -> Option<Handshake> {
        let (all, counted) = match self {
            Self::Dialled(address) => (
                &tunnel.handshakes,
                Some(tunnel.sources.take(network(address.ip()))?),
            ),
            Self::Relayed(_) => (&tunnel.relayed, None),
        };
        let permit = Arc::clone(all).try_acquire_owned().ok()?;
        Some(Handshake {
            _permit: permit,
            _counted: counted,
        })
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Dialled(address) => address.fmt(f),
            Self::Relayed(text) => text.fmt(f),
        }
    }
}

/// Who has one address of IPv6 has mostly a /64.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        ip => ip,
    }
}

//! The node's end that others dial: accepts, makes sure that it is a node that calls, hands each stream to `incoming`.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use h2::server;
use tokio::net::TcpListener;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::connection::within;
use super::incoming::Incoming;
use super::keep_alive::{Activity, Heard, Keeper};
use super::liveness::Sign;
use super::{Io, MAX_FRAME, SEND_BUFFER, STREAMS, Tunnel, WINDOW, WINDOWS};
use crate::network::vnet::Fabric;
use crate::tls::Peer;

/// Each part of a handshake has this long.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Connections one node may have here: one in use, those it replaced, and what a broken link has left.
const PER_NODE: usize = 16;
/// Pause after an accept failed, for want of file descriptors mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// One connection of a node, counted.
struct Admitted {
    tunnel: Arc<Tunnel>,
    node: String,
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
                accept(&fabric, &tunnel, Box::new(socket), from);
            }
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "Accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves what may be another node, in a task of its own.
pub(crate) fn accept(
    fabric: &Arc<Fabric>,
    tunnel: &Arc<Tunnel>,
    io: Box<dyn Io>,
    from: impl std::fmt::Display + Send + 'static,
) {
    let Ok(permit) = Arc::clone(&tunnel.handshakes).try_acquire_owned() else {
        debug!(%from, "Refused tunnel connection: too many handshakes");
        return;
    };
    let (fabric, tunnel) = (Arc::clone(fabric), Arc::clone(tunnel));
    let stop = fabric.stop.clone();
    let tasks = fabric.tasks.clone();
    tasks.spawn(async move {
        let activity = Arc::new(Activity::default());
        let heard = Heard::new(io, Arc::clone(&activity));
        let serving = async {
            let tls = within(HANDSHAKE, tunnel.acceptor.accept(heard)).await?;
            let node = caller(&tls)?;
            let admitted = tunnel.admit(&node)?;
            let handshake = async { builder().handshake(tls).await.map_err(io::Error::other) };
            let connection = within(HANDSHAKE, handshake).await?;
            drop(permit);
            serve(&fabric, &tunnel, &node, connection, activity).await;
            drop(admitted);
            Ok::<_, io::Error>(())
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            served = serving => {
                if let Err(error) = served {
                    debug!(%from, %error, "Refused tunnel connection");
                }
            }
        }
    });
}

/// The node at the other end.
fn caller(tls: &TlsStream<Heard>) -> io::Result<String> {
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
    mut connection: server::Connection<TlsStream<Heard>, bytes::Bytes>,
    activity: Arc<Activity>,
) {
    debug!(node, "Node has opened its tunnel");
    let ping = connection.ping_pong();
    let mut keeper = Keeper::new(Arc::clone(&activity), ping, tunnel.means.dialler.keep_alive);
    let incoming = Arc::new(Incoming::new(Arc::clone(fabric), Arc::clone(tunnel), node));
    let mut draining = false;
    loop {
        let next = tokio::select! {
            biased;
            () = fabric.draining.cancelled(), if !draining => {
                // New streams are refused from now on, those under way go on.
                connection.graceful_shutdown();
                draining = true;
                continue;
            }
            sign = keeper.next() => match sign {
                Sign::Dead => {
                    debug!(node, "Node's tunnel is dead: nothing is heard");
                    return;
                }
                _ => continue,
            },
            next = connection.accept() => next,
        };
        let (request, mut respond) = match next {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => {
                debug!(node, %error, "Node's tunnel ended");
                return;
            }
            None => return,
        };
        let Some(in_use) = activity.begin(STREAMS) else {
            respond.send_reset(h2::Reason::REFUSED_STREAM);
            continue;
        };
        let (incoming, stop) = (Arc::clone(&incoming), fabric.stop.clone());
        fabric.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = incoming.serve(request, respond) => {}
            }
            drop(in_use);
        });
    }
}

// === impl Tunnel ===

impl Tunnel {
    fn admit(self: &Arc<Self>, node: &str) -> io::Result<Admitted> {
        let mut incoming = self.incoming.lock().unwrap_or_else(PoisonError::into_inner);
        let count = incoming.entry(node.to_owned()).or_default();
        if *count >= PER_NODE {
            return Err(io::Error::other(format!(
                "{node} has {PER_NODE} connections already"
            )));
        }
        *count += 1;
        Ok(Admitted {
            tunnel: Arc::clone(self),
            node: node.to_owned(),
        })
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut incoming = self
            .tunnel
            .incoming
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = incoming.get_mut(&self.node) {
            *count -= 1;
            if *count == 0 {
                incoming.remove(&self.node);
            }
        }
    }
}

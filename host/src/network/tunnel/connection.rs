//! One connection to another node: dialled, secured, driven. Opens streams on it; never decides when to dial.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use http::Request;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::keep_alive::{Activity, InUse, Keeper};
use super::liveness::{KeepAlive, Sign};
use super::machine::{Event, Generation};
use super::routes::Target;
use super::wire::{Gather, Wire};
use super::{Dial, Io, MAX_FRAME, SEND_BUFFER, STREAMS, TLS_BUFFER, WINDOW, WINDOWS};

/// A handle to open streams with. Cheap to clone.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) generation: Generation,
    sender: SendRequest<Bytes>,
    activity: Arc<Activity>,
}

/// A connection somebody must drive.
pub(super) struct Driver {
    connection: h2::client::Connection<TlsStream<Wire>, Bytes>,
    activity: Arc<Activity>,
    keeper: Keeper,
}

/// A stream that was opened: nobody has answered yet.
pub(super) struct Opened {
    pub(super) response: ResponseFuture,
    pub(super) send: SendStream<Bytes>,
    pub(super) in_use: InUse,
}

/// No stream could be opened; nothing was sent.
pub(super) enum NotOpened {
    /// The connection takes no new streams: it is gone, or the other end goes away.
    Retired,
    TooMany,
    /// The head is not one HTTP/2 can carry.
    Invalid,
}

/// How to reach other nodes.
pub(super) struct Dialler {
    pub(super) tls: TlsConnector,
    pub(super) relay: Option<Arc<dyn Dial>>,
    pub(super) keep_alive: KeepAlive,
}

// === impl Dialler ===

impl Dialler {
    /// Connects and makes sure that it is `node` that answers. Has no deadline of its own; cancel by dropping.
    pub(super) async fn dial(
        &self,
        node: &str,
        target: Target,
        generation: Generation,
    ) -> io::Result<(Connection, Driver)> {
        let io: Box<dyn Io> = match (target, &self.relay) {
            (Target::Address(address), _) => {
                let socket = TcpStream::connect(address).await?;
                socket.set_nodelay(true)?;
                Box::new(socket)
            }
            (Target::Relay, Some(relay)) => relay.dial(node).await?,
            (Target::Relay, None) => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "it is reached through the API servers only, and this node keeps no connection to them",
                ));
            }
        };
        let name = ServerName::try_from(node.to_owned()).map_err(io::Error::other)?;
        let activity = Arc::new(Activity::default());
        let wire = Wire::new(io, Arc::clone(&activity));
        let mut tls = self.tls.connect(name, wire).await?;
        tls.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Err(io::Error::other("the other end speaks no HTTP/2"));
        }
        let (sender, mut connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOWS)
            .max_frame_size(MAX_FRAME)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_reset_streams(STREAMS)
            .max_local_error_reset_streams(None)
            .handshake(tls)
            .await
            .map_err(io::Error::other)?;
        let ping = connection.ping_pong();
        let connection = Driver {
            keeper: Keeper::new(Arc::clone(&activity), ping, self.keep_alive),
            activity: Arc::clone(&activity),
            connection,
        };
        let handle = Connection {
            generation,
            sender,
            activity,
        };
        Ok((handle, connection))
    }
}

// === impl Connection ===

impl Connection {
    /// Sends a stream's head.
    pub(super) async fn open(&self, request: Request<()>, end: bool) -> Result<Opened, NotOpened> {
        let Some(in_use) = self.activity.begin(STREAMS) else {
            return Err(NotOpened::TooMany);
        };
        let Ok(mut sender) = self.sender.clone().ready().await else {
            return Err(NotOpened::Retired);
        };
        match sender.send_request(request, end) {
            Ok((response, send)) => Ok(Opened {
                response,
                send,
                in_use,
            }),
            Err(error) if error.is_go_away() || error.is_io() => Err(NotOpened::Retired),
            Err(_) => Err(NotOpened::Invalid),
        }
    }
}

/// Whether an error says that nobody saw the stream.
pub(super) fn unseen(error: &h2::Error) -> bool {
    if error.reason() == Some(Reason::REFUSED_STREAM) {
        return true;
    }
    // Streams above the last one a GOAWAY names were not looked at; h2 tells only those.
    error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

// === impl Driver ===

impl Driver {
    /// Drives the connection until it ends, and says what becomes of it.
    pub(super) async fn run(
        self,
        node: &str,
        generation: Generation,
        events: mpsc::Sender<Event>,
        stop: CancellationToken,
    ) {
        let Self {
            mut connection,
            activity,
            mut keeper,
        } = self;
        let mut gather = Gather::default();
        loop {
            let driven = std::future::poll_fn(|cx| {
                let busy = activity.is_busy();
                gather.poll(cx, busy, |cx| Pin::new(&mut connection).poll(cx))
            });
            let sign = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                ended = driven => {
                    debug!(node, generation, error = ?ended.err(), "Tunnel connection ended");
                    break;
                }
                sign = keeper.next() => sign,
            };
            let event = match sign {
                Sign::Suspected => Event::Suspected(generation),
                Sign::Recovered => Event::Recovered(generation),
                Sign::Dead => {
                    debug!(
                        node,
                        generation, "Tunnel connection is dead: nothing is heard"
                    );
                    break;
                }
                Sign::Nothing | Sign::Ping => continue,
            };
            // Nobody listens: the node is gone.
            let _ = events.send(event).await;
        }
        // Dropped first: its streams learn of it before anybody opens others.
        drop(connection);
        let _ = events.send(Event::Ended(generation)).await;
    }
}

/// Bounds a part of a handshake.
pub(super) async fn within<T>(
    limit: Duration,
    what: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    tokio::time::timeout(limit, what)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

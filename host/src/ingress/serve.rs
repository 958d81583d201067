//! A connection from outside: TLS where the port has it, HTTP/2 or HTTP/1.1, one answer per request. Bounds what a client
//! can hold and for how long; never knows where a request goes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::error::chain;

use super::{Shared, proxy};
use crate::bind::{ACCEPT_PAUSE, is_http2};
use crate::idle::{Activity, Stalled};

/// A client of HTTP/2 that does not answer a ping for this long is gone.
const PING: Duration = Duration::from_secs(20);
/// Requests the client gave up that HTTP/2 keeps count of before it ends the connection.
const RESETS: usize = 64;

/// One port.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) port: u16,
    pub(super) tls: Option<TlsAcceptor>,
}

/// What is known of a connection, for each of its requests.
pub(super) struct Connection {
    pub(super) shared: Arc<Shared>,
    pub(super) port: u16,
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) tls: bool,
    /// The server name the client asked for.
    pub(super) name: Option<String>,
    pub(super) activity: Arc<Activity>,
    /// Upgraded connections end with it.
    pub(super) closing: CancellationToken,
}

/// Accepts until `closing`; connections finish on their own.
pub(super) async fn accept(
    shared: Arc<Shared>,
    listener: TcpListener,
    entry: Entry,
    closing: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(port = entry.port, error = %chain(&error), "Accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = shared.gate.place(peer.ip()) else {
            debug!(%peer, "Refused connection: too many from outside, or from there");
            // RST. A failure here changes nothing.
            drop(socket.set_zero_linger());
            continue;
        };
        // Only latency depends on it.
        drop(socket.set_nodelay(true));
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        let connection = connection(
            Arc::clone(&shared),
            socket,
            peer,
            entry.clone(),
            closing.clone(),
        );
        shared.gate.spawn(async move {
            connection.await;
            drop(place);
        });
    }
}

async fn connection(
    shared: Arc<Shared>,
    socket: TcpStream,
    peer: SocketAddr,
    entry: Entry,
    closing: CancellationToken,
) {
    let limits = shared.config.limits;
    let mut connection = Connection {
        port: entry.port,
        peer,
        local: socket.local_addr().unwrap_or(peer),
        tls: entry.tls.is_some(),
        name: None,
        activity: Arc::new(Activity::new()),
        closing,
        shared,
    };
    // Who has not asked for anything yet is not waited for.
    let closing = connection.closing.clone();
    let Some(acceptor) = entry.tls else {
        let first = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            first = tokio::time::timeout(limits.header, is_http2(&socket)) => first,
        };
        if let Ok(Some(http2)) = first {
            serve(connection, Stalled::new(socket, limits.send), http2).await;
        }
        return;
    };
    let handshake = acceptor.accept(Stalled::new(socket, limits.send));
    let handshake = tokio::select! {
        biased;
        () = closing.cancelled() => return,
        handshake = tokio::time::timeout(limits.header, handshake) => handshake,
    };
    match handshake {
        Ok(Ok(stream)) => {
            let session = stream.get_ref().1;
            let http2 = session.alpn_protocol() == Some(b"h2");
            connection.name = session.server_name().map(str::to_ascii_lowercase);
            serve(connection, stream, http2).await;
        }
        Ok(Err(error)) => debug!(%peer, error = %chain(&error), "TLS handshake failed"),
        Err(_) => debug!(%peer, "TLS handshake took too long"),
    }
}

async fn serve<S>(connection: Connection, io: S, http2: bool)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let limits = connection.shared.config.limits;
    let (activity, closing) = (Arc::clone(&connection.activity), connection.closing.clone());
    let connection = Arc::new(connection);
    let service = service_fn(move |request: Request<Incoming>| {
        let connection = Arc::clone(&connection);
        async move { Ok::<_, Infallible>(proxy::handle(&connection, request).await) }
    });
    let io = TokioIo::new(io);
    let quiet = async {
        tokio::select! {
            () = closing.cancelled() => {}
            () = activity.quiet(limits.idle) => {}
        }
    };
    // An error of a connection is the client's: it went away, was too slow, or spoke no HTTP.
    if http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING)
            .max_concurrent_streams(limits.streams)
            .max_pending_accept_reset_streams(RESETS)
            .max_local_error_reset_streams(RESETS)
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
        let mut served = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = served.as_mut() => return,
            () = quiet => served.as_mut().graceful_shutdown(),
        }
        drop(served.await);
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .max_buf_size(limits.header_bytes.max(8 << 10))
            .max_header_size(limits.header_bytes)
            .max_headers(limits.headers)
            .header_read_timeout(limits.header);
        let served = builder.serve_connection(io, service).with_upgrades();
        let mut served = std::pin::pin!(served);
        tokio::select! {
            _ = served.as_mut() => return,
            () = quiet => served.as_mut().graceful_shutdown(),
        }
        drop(served.await);
    }
}

//! One connection to one API server: TCP that notices a dead peer, TLS, HTTP/2. Chooses no server and repeats nothing.

use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use kube::client::Body;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use types::error::chain;

use super::Address;

/// Every API server's certificate has this name, whatever its address.
pub(crate) const SERVER_NAME: &str = "kubernetes.default.svc";
const CONNECT: Duration = Duration::from_secs(3);
const HANDSHAKE: Duration = Duration::from_secs(5);
/// A silent server is asked so often whether it is there, and has as long to say so.
const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// What the kernel keeps unacknowledged for longer ends the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(6);
/// One watch that nobody reads must not stop the others.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

#[derive(Clone)]
pub(super) struct Connection {
    pub(super) sender: SendRequest<Body>,
    pub(super) server: Address,
    /// Tells it from others of the same process.
    pub(super) number: u64,
    /// The same socket, to end it with everything that goes through it.
    socket: Arc<std::net::TcpStream>,
}

/// Why a server could not be connected to.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("cannot connect: {0}")]
    Connect(std::io::Error),
    #[error("TLS failed: {0}")]
    Tls(String),
    #[error("no answer within {0:?}")]
    Silence(Duration),
    #[error("it speaks no HTTP/2")]
    Protocol,
    #[error("HTTP/2 failed: {0}")]
    Http(String),
}

// === impl Connection ===

impl Connection {
    pub(super) fn is_open(&self) -> bool {
        !self.sender.is_closed()
    }

    /// Ends it for everybody at once: requests under way and watches fail. (To let go of it lets them finish.)
    pub(super) fn end(&self) {
        // It may have ended by itself.
        drop(self.socket.shutdown(std::net::Shutdown::Both));
    }
}

pub(super) async fn open(
    server: &Address,
    tls: &Arc<ClientConfig>,
    number: u64,
) -> Result<Connection, Error> {
    let stream = secure(server, tls).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(Error::Protocol);
    }
    let socket = stream.get_ref().0.as_fd().try_clone_to_owned();
    let socket = Arc::new(std::net::TcpStream::from(socket.map_err(Error::Connect)?));
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let shaking = tokio::time::timeout(HANDSHAKE, builder.handshake(TokioIo::new(stream)));
    let (sender, connection) = shaking
        .await
        .map_err(|_| Error::Silence(HANDSHAKE))?
        .map_err(|error| Error::Http(chain(&error)))?;
    let peer = server.clone();
    // Ends when the peer does, or when the last sender and the last answer are dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::info!(server = %peer, error = %chain(&error), "Lost the connection to an API server");
        }
    });
    Ok(Connection {
        sender,
        server: server.clone(),
        number,
        socket,
    })
}

/// TCP and TLS.
pub(crate) async fn secure(
    server: &Address,
    tls: &Arc<ClientConfig>,
) -> Result<TlsStream<TcpStream>, Error> {
    let stream = match tokio::time::timeout(CONNECT, TcpStream::connect(server.target())).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(Error::Connect(error)),
        Err(_) => return Err(Error::Silence(CONNECT)),
    };
    bound_silence(&stream).map_err(|error| Error::Connect(error.into()))?;
    let name = ServerName::try_from(SERVER_NAME).map_err(|error| Error::Tls(error.to_string()))?;
    let connector = TlsConnector::from(Arc::clone(tls));
    match tokio::time::timeout(HANDSHAKE, connector.connect(name, stream)).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(Error::Tls(error.to_string())),
        Err(_) => Err(Error::Silence(HANDSHAKE)),
    }
}

fn bound_silence(stream: &TcpStream) -> nix::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    stream
        .set_nodelay(true)
        .map_err(|_| nix::errno::Errno::EINVAL)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    #[cfg(target_os = "linux")]
    {
        let probe = u32::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u32::MAX);
        let most = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
        setsockopt(stream, sockopt::TcpKeepIdle, &probe)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &probe)?;
        setsockopt(stream, sockopt::TcpUserTimeout, &most)?;
    }
    Ok(())
}

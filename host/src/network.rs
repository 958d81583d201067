//! The pod network: virtual and in process. Guests never touch the kernel's network.
//!
//! A pod's address is an entry in a table; a connection on one node is an in-memory pipe; an HTTP call between services
//! is a call of the target's handler. Real sockets exist only at the rim: NodePort and LoadBalancer listeners, egress.

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;

/// The body of every HTTP message inside the node: wasmtime-wasi-http's own type, so nothing is copied at the border.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, wasmtime_wasi_http::Error>;

/// Answers HTTP for a pod port: an HTTP guest, through the runtime.
pub trait HttpHandler: Send + Sync {
    /// Cancel by dropping. An `Err` says the request did or did not reach the guest (only the latter is retried).
    fn handle(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<http::Response<Body>, HttpError>> + Send>>;
}

#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// Nobody saw the request: it may be sent elsewhere. The request comes back when its body was untouched.
    #[error("no endpoint took the request: {0}")]
    NotReached(String),
    #[error("the guest failed: {0}")]
    Guest(String),
    #[error("timed out: {0}")]
    Timeout(String),
    #[error("connection failed: {0}")]
    Connect(String),
    #[error("forbidden: {0}")]
    Forbidden(String),
    #[error("name not found: {0}")]
    NotFound(String),
}

/// One pod's network namespace: its address, its listeners, its way out. Containers of a pod share it.
/// (Sketch of the interface the runtime's sockets and HTTP hooks are written against; behaviour lives in `network/`.)
pub struct PodNetwork {
    _private: (),
}

impl PodNetwork {
    /// A guest's outgoing call.
    pub async fn http(
        &self,
        _request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        Err(HttpError::NotReached(
            "the pod network is not there yet".to_owned(),
        ))
    }
}

/// An established TCP connection, pod side.
pub struct Stream {
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub reader: Reader,
    pub writer: Writer,
}

/// Receives chunks; end of stream is `None`.
pub struct Reader {
    _private: (),
}

/// Sends chunks, bounded; dropping it is FIN.
pub struct Writer {
    _private: (),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum SocketError {
    #[error("connection refused")]
    Refused,
    #[error("connection reset")]
    Reset,
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
    #[error("datagram too large")]
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

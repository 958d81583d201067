//! HTTP towards endpoints that listen on sockets: a pooled hyper client over in-memory streams, one per pod so that the
//! other end sees the right source. Never chooses an endpoint. A request that nobody saw comes back.

mod lent;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Request, Response, Uri, Version};
use http_body_util::BodyExt;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls_pki_types::ServerName;

use super::stream::StreamIo;
use super::tunnel::Source;
use super::vnet::Fabric;
use super::{Body, HttpError, ReturnedRequest, SocketError, Stream, serve};

const IDLE: Duration = Duration::from_secs(10);
const IDLE_PER_ENDPOINT: usize = 16;

/// Speaks HTTP/1.1 to `ip:port` authorities.
pub(crate) struct Client(legacy::Client<Connector, Body>);

#[derive(Clone)]
struct Connector {
    fabric: Weak<Fabric>,
    whose: Whose,
}

/// Whom a client's connections come from.
#[derive(Clone)]
pub(crate) enum Whose {
    Node,
    Pod(Ipv4Addr),
    /// A pod of another node, for which this node asks its own.
    Remote(Weak<Source>),
}

// === impl Client ===

impl Client {
    pub(crate) fn new(fabric: Weak<Fabric>, whose: Whose) -> Self {
        Self(
            legacy::Client::builder(TokioExecutor::new())
                .pool_idle_timeout(IDLE)
                .pool_max_idle_per_host(IDLE_PER_ENDPOINT)
                .pool_timer(TokioTimer::new())
                .build(Connector { fabric, whose }),
        )
    }

    /// Sends to `endpoint`; the Host header stays what it is. `Returned` when no connection was made, or the one that was
    /// made has never been read from.
    pub(crate) async fn request(
        &self,
        endpoint: SocketAddr,
        request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let (mut parts, body) = request.into_parts();
        // Nobody asks for them on the wire.
        let extensions = std::mem::take(&mut parts.extensions);
        let mut kept = parts.clone();
        parts.uri = uri(endpoint, std::mem::take(&mut parts.uri))
            .map_err(|error| HttpError::Invalid(error.to_string()))?;
        parts.version = Version::HTTP_11;
        let (body, lender) = lent::lend(body);
        match self.0.request(Request::from_parts(parts, body)).await {
            Ok(response) => {
                lender.settled();
                Ok(response.map(serve::body))
            }
            Err(error) => {
                let cause = Cause::of(&error);
                if !cause.is_unseen(&error) {
                    return Err(cause.explain(endpoint));
                }
                let reason = format!("{endpoint}: {cause}");
                let Some(body) = lender.back() else {
                    return Err(HttpError::NotReached(reason));
                };
                kept.extensions = extensions;
                Err(HttpError::Returned {
                    reason,
                    busy: false,
                    request: ReturnedRequest::new(Request::from_parts(kept, body)),
                })
            }
        }
    }
}

/// The same at `endpoint`.
fn uri(endpoint: SocketAddr, uri: Uri) -> Result<Uri, http::Error> {
    let mut parts = uri.into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(Authority::try_from(endpoint.to_string())?);
    if parts.path_and_query.is_none() {
        parts.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    Ok(Uri::from_parts(parts)?)
}

/// Why the client got no answer.
enum Cause {
    Socket(SocketError),
    /// The connection ended before anything of the request was written.
    Unwritten,
    Other(String),
}

// === impl Cause ===

impl Cause {
    fn of(error: &legacy::Error) -> Self {
        let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
        let mut text = String::new();
        while let Some(cause) = source {
            if let Some(error) = cause.downcast_ref::<std::io::Error>() {
                return Self::Socket(error.into());
            }
            let hyper = cause.downcast_ref::<hyper::Error>();
            if hyper.is_some_and(hyper::Error::is_canceled) {
                return Self::Unwritten;
            }
            text = cause.to_string();
            source = cause.source();
        }
        Self::Other(text)
    }

    /// Nobody has seen the request, and it is not its sender who may not send it.
    fn is_unseen(&self, error: &legacy::Error) -> bool {
        match self {
            Self::Unwritten | Self::Socket(SocketError::Refused) => true,
            Self::Socket(SocketError::Denied | SocketError::TooMany) => false,
            Self::Socket(_) | Self::Other(_) => error.is_connect(),
        }
    }

    fn explain(self, endpoint: SocketAddr) -> HttpError {
        match self {
            Self::Socket(error) => from_socket(endpoint, error),
            other => HttpError::Connect(format!("{endpoint}: {other}")),
        }
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(error) => error.fmt(f),
            Self::Unwritten => f.write_str("connection closed"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

pub(crate) fn from_socket(endpoint: SocketAddr, error: SocketError) -> HttpError {
    match error {
        SocketError::Denied => HttpError::Forbidden(format!("{endpoint}: {error}")),
        SocketError::TimedOut => HttpError::Timeout(format!("connect to {endpoint}")),
        _ => HttpError::Connect(format!("{endpoint}: {error}")),
    }
}

/// One request over TLS on a stream inside the cluster, checked against the cluster's CA. Not pooled: workloads that
/// speak TLS themselves are rare here.
pub(crate) async fn request_tls(
    fabric: &Arc<Fabric>,
    stream: Stream,
    host: &str,
    mut request: Request<Body>,
) -> Result<Response<Body>, HttpError> {
    let peer = stream.peer;
    let failed =
        |error: &dyn std::error::Error| HttpError::Tls(format!("{host} ({peer}): {error}"));
    let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(&error))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(&fabric.egress.cluster_tls));
    let timeout = fabric.config.limits.connect_timeout;
    let tls = tokio::time::timeout(timeout, connector.connect(name, stream.into_io()))
        .await
        .map_err(|_| HttpError::Timeout(format!("TLS handshake with {host} ({peer})")))?
        .map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls))
        .await
        .map_err(|error| HttpError::Connect(format!("{host} ({peer}): {error}")))?;
    let stop = fabric.stop.clone();
    fabric.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            // What went wrong is told by the request or its body.
            _ = connection => {}
        }
    });
    let path = request.uri().path_and_query().cloned();
    *request.uri_mut() = path.map_or_else(|| Uri::from_static("/"), Uri::from);
    *request.version_mut() = Version::HTTP_11;
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| HttpError::Connect(format!("{host} ({peer}): {error}")))?;
    // The sender must outlive the body, or hyper closes the connection under it.
    Ok(response.map(|body| {
        let body = body.map_err(Into::into);
        Holding {
            body,
            _held: sender,
        }
        .boxed_unsync()
    }))
}

/// A body that keeps something alive.
struct Holding<B, T> {
    body: B,
    _held: T,
}

impl<B: http_body::Body + Unpin, T: Unpin> http_body::Body for Holding<B, T> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

// === impl Connector ===

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<StreamIo>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { fabric, whose } = self.clone();
        Box::pin(async move {
            let endpoint: SocketAddr = uri
                .authority()
                .and_then(|authority| authority.as_str().parse().ok())
                .ok_or(SocketError::NotAvailable)?;
            let fabric = fabric.upgrade().ok_or(SocketError::Unreachable)?;
            let (pod, remote) = match whose {
                Whose::Node => (None, None),
                // One that is gone does not go on as the node.
                Whose::Pod(address) => (
                    Some(fabric.pod(address).ok_or(SocketError::Unreachable)?),
                    None,
                ),
                Whose::Remote(source) => (
                    None,
                    Some(source.upgrade().ok_or(SocketError::Unreachable)?),
                ),
            };
            let caller = match (&pod, &remote) {
                (Some(pod), _) => pod.caller(),
                (None, Some(remote)) => remote.client_caller(&fabric),
                (None, None) => fabric.rim(),
            };
            let stream = fabric
                .connect_endpoint(&caller, endpoint, endpoint, None)
                .await?;
            Ok(TokioIo::new(stream.into_io()))
        })
    }
}

impl Connection for StreamIo {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

/// The address, when a URI's host is one: `10.0.0.1`, `[::1]`.
pub(crate) fn literal(host: &str) -> Option<IpAddr> {
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.parse().ok()
}

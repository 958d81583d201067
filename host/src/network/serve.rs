//! An HTTP server in front of a handler, for clients that come as bytes: over an in-memory stream, or a real socket.
//! Turns errors into answers; never chooses an endpoint.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Body as _, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio_util::sync::CancellationToken;

use super::bodies::{Guard, guarded};
use super::identity::Identity;
use super::observe::Ends;
use super::pod::Requests;
use super::traffic::{Security, Workload};
use super::vnet::Fabric;
use super::{Body, HttpError, HttpHandler, Stream, http as dispatch};

/// What answers on a connection, on whose account, and who asks.
pub(crate) struct Front {
    pub(crate) handler: Arc<dyn HttpHandler>,
    /// The pod answers no longer.
    pub(crate) ended: CancellationToken,
    pub(crate) requests: Arc<Requests>,
    pub(crate) source: Arc<Workload>,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) destination: Arc<Workload>,
    pub(crate) security: Security,
}

/// Serves one connection of a pod's port in a task of its own, until either end closes it. Once the pod has ended, what
/// is in flight is finished and the client told to go elsewhere (`connection: close`, GOAWAY).
pub(crate) fn spawn(fabric: &Arc<Fabric>, stream: Stream, front: Front) {
    let (stop, draining) = (fabric.stop.clone(), fabric.draining.clone());
    let header_timeout = fabric.config.limits.header_timeout;
    let (address, ended) = (stream.local, front.ended.clone());
    let authority = address.to_string();
    let (front, fabric) = (Arc::new(front), Arc::clone(fabric));
    let tasks = fabric.tasks.clone();
    tasks.spawn(async move {
        let service = service_fn(move |request: Request<Incoming>| {
            let (front, fabric) = (Arc::clone(&front), Arc::clone(&fabric));
            let request = incoming(request, &authority);
            async move {
                let answered = match request {
                    Ok(request) => front.handle(&fabric, address, request).await,
                    Err(error) => Err(error),
                };
                Ok::<_, Infallible>(answer(answered))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .http2()
            .timer(TokioTimer::new());
        let io = TokioIo::new(stream.into_io());
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        // An error here is the client's: it went away or spoke no HTTP.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = connection.as_mut() => return,
            () = draining.cancelled() => connection.as_mut().graceful_shutdown(),
            () = ended.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            _ = connection => {}
        }
    });
}

// === impl Front ===

impl Front {
    /// One request, as one that came without a connection: bounded with all others of the pod, and observed.
    async fn handle(
        &self,
        fabric: &Fabric,
        address: SocketAddr,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let ends = Ends {
            source: &self.source,
            identity: self.identity.as_deref(),
            destination: &self.destination,
            address,
            security: self.security,
        };
        let pair = fabric
            .traffic
            .pair(ends.source, ends.destination, self.security);
        // The bytes are counted by the connection.
        let observed = fabric.observer.begin(ends, pair, &mut request);
        let Some(slot) = self.requests.begin() else {
            let text = format!("{address}: the pod is too busy");
            let answer = Err(HttpError::NotReached(text));
            observed.answered(&answer);
            return answer;
        };
        let answer = Arc::clone(&self.handler).handle(request).await;
        observed.answered(&answer);
        let guard = Guard {
            request: Some(slot),
            ..Guard::default()
        };
        Ok(guarded(answer?, guard, None))
    }
}

/// Nobody here is a proxy; and between nodes CONNECT is a word of the tunnel's own, which no client may get to say.
pub(crate) fn refuse_connect<T>(request: &Request<T>) -> Result<(), HttpError> {
    if request.method() == Method::CONNECT {
        let text = format!("CONNECT {}: nobody is a proxy here", request.uri());
        return Err(HttpError::Invalid(text));
    }
    Ok(())
}

/// A request from the wire as a handler wants it: our body type, a Host, no hop-by-hop headers.
pub(crate) fn incoming(
    request: Request<Incoming>,
    authority: &str,
) -> Result<Request<Body>, HttpError> {
    refuse_connect(&request)?;
    let mut request = request.map(body);
    dispatch::strip_hop_by_hop(request.headers_mut());
    if !request.headers().contains_key(header::HOST) {
        let name = request.uri().authority().map_or(authority, |a| a.as_str());
        if let Ok(name) = HeaderValue::from_str(name) {
            request.headers_mut().insert(header::HOST, name);
        }
    }
    Ok(request)
}

/// A body from the wire. An empty one allocates nothing.
pub(crate) fn body(body: Incoming) -> Body {
    if body.is_end_stream() {
        return empty();
    }
    body.map_err(Into::into).boxed_unsync()
}

pub(crate) fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A handler's result as a client on the wire sees it.
pub(crate) fn answer(result: Result<Response<Body>, HttpError>) -> Response<Body> {
    match result {
        Ok(mut response) => {
            dispatch::strip_hop_by_hop(response.headers_mut());
            response
        }
        Err(error) => failure(&error),
    }
}

fn failure(error: &HttpError) -> Response<Body> {
    let mut response = Response::new(full(format!("{error}\n")));
    *response.status_mut() = error.status();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

//! What happens to a connection from outside: HTTP in front of a handler, with each request balanced, where the endpoint
//! is an HTTP guest; bytes both ways where it listens on a socket. Decided per connection by the endpoint it would get.
//!
//! This is the hot path: one task per connection, none per request, no table built per request.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};
use types::error::chain;

use super::wanted::Id;
use super::{Origin, health};
use crate::bind::{ACCEPT_PAUSE, is_http2};
use crate::idle::{Activity, Stalled};
use crate::network::balancer::Tried;
use crate::network::bodies::{Guard, guarded};
use crate::network::forward::forward;
use crate::network::http::Call;
use crate::network::places::{Place, Places};
use crate::network::ports::Target as PodTarget;
use crate::network::table::{self, Key, Port, Protocol, Scope, Table};
use crate::network::vnet::Fabric;
use crate::network::{HttpError, serve, tunnel};

/// The Service's port behind a listener, as the latest table has it.
#[derive(Clone)]
pub(super) struct Target {
    tables: watch::Receiver<Arc<Table>>,
    key: Arc<Key>,
    number: u16,
    protocol: Protocol,
    origin: Origin,
    /// Looked up again only when the table has changed, as what follows.
    port: Option<Arc<Port>>,
    /// `spec.loadBalancerSourceRanges`; none means everybody.
    sources: Arc<[IpNet]>,
}

/// What a listener is for.
#[derive(Clone)]
pub(super) enum Serves {
    Service(Target),
    /// Whether this node has endpoints of the Service.
    Health(Arc<Key>),
}

// === impl Target ===

impl Target {
    pub(super) fn new(fabric: &Fabric, id: &Id) -> Self {
        let mut tables = fabric.services.clone();
        tables.mark_changed();
        Self {
            tables,
            key: Arc::new(id.key.clone()),
            number: id.port,
            protocol: id.protocol,
            origin: id.origin,
            port: None,
            sources: Arc::new([]),
        }
    }

    fn port(&mut self) -> Option<&Arc<Port>> {
        if self.tables.has_changed().unwrap_or(false) {
            let table = self.tables.borrow_and_update();
            let service = table.get(&self.key.namespace, &self.key.name);
            self.port = service
                .and_then(|service| service.port_for(Scope::External, self.number, self.protocol))
                .cloned();
            self.sources = match (self.origin, service) {
                (Origin::LoadBalancer, Some(service)) => Arc::clone(&service.sources),
                _ => Arc::default(),
            };
        }
        self.port.as_ref()
    }

    /// The port, for a client that may come in here.
    pub(super) fn port_for(&mut self, client: IpAddr) -> Option<Arc<Port>> {
        let port = self.port().cloned()?;
        table::is_among(&self.sources, client).then_some(port)
    }
}

/// Accepts until `closing`; connections finish on their own.
pub(super) async fn tcp(
    fabric: Arc<Fabric>,
    listener: TcpListener,
    serves: Serves,
    closing: CancellationToken,
) {
    let places = Arc::clone(match &serves {
        Serves::Service(_) => &fabric.rim_connections,
        // A balancer that is refused here believes that the node is gone.
        Serves::Health(_) => &fabric.health_connections,
    });
    loop {
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = accept(&places, &listener) => accepted,
        };
        let Some((socket, peer, place)) = accepted else {
            continue;
        };
        let (fabric, serves) = (Arc::clone(&fabric), serves.clone());
        let (stop, closing) = (fabric.stop.clone(), closing.clone());
        let tasks = fabric.tasks.clone();
        tasks.spawn(async move {
            let connection = async {
                match serves {
                    Serves::Service(target) => {
                        connection(fabric, socket, peer, target, closing).await;
                    }
                    Serves::Health(key) => health::serve(&fabric, socket, &key, closing).await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = connection => {}
            }
            drop(place);
        });
    }
}

async fn accept(
    places: &Arc<Places<IpAddr>>,
    listener: &TcpListener,
) -> Option<(TcpStream, SocketAddr, Place<IpAddr>)> {
    match listener.accept().await {
        Ok((socket, peer)) => {
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            // Taken only now: a listener nobody connects to keeps no connection from the others.
            let Some(place) = places.take(peer.ip()) else {
                debug!(%peer, "Refused connection: too many from outside, or from there");
                // RST. A failure here changes nothing.
                drop(socket.set_zero_linger());
                return None;
            };
            // Only latency depends on it.
            drop(socket.set_nodelay(true));
            Some((socket, peer, place))
        }
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "Accept failed");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(
    fabric: Arc<Fabric>,
    socket: TcpStream,
    peer: SocketAddr,
    mut target: Target,
    closing: CancellationToken,
) {
    let port = target.port_for(peer.ip());
    let endpoint = port
        .as_deref()
        .and_then(|port| fabric.pick(port, Some(peer.ip()), &Tried::default()))
        .map(|endpoint| endpoint.address);
    let (Some(port), Some(endpoint)) = (port, endpoint) else {
        debug!(service = %target.key.name, %peer, "Refused connection: no endpoint for it");
        // RST, as from a Service without endpoints, or one this client may not use. A failure here changes nothing.
        drop(socket.set_zero_linger());
        return;
    };
    let is_http = match endpoint.ip() {
        IpAddr::V4(ip) => match (fabric.pod(ip), fabric.peer(ip)) {
            (Some(pod), _) => matches!(
                pod.ports().target(endpoint.port(), false),
                Some(PodTarget::Http(_))
            ),
            (None, Some(node)) => tunnel::speaks_http(&fabric, &node, endpoint).await,
            (None, None) => false,
        },
        IpAddr::V6(_) => false,
    };
    if is_http {
        serve_http(fabric, socket, peer, target, closing).await;
        return;
    }
    let seen = socket.local_addr().unwrap_or(peer);
    let connected = fabric
        .connect_service(&fabric.rim_from(peer), &port, seen)
        .await;
    match connected {
        Ok(stream) => forward(socket, stream).await,
        Err(error) => {
            debug!(service = %target.key.name, error = %chain(&error), "Refused connection");
            drop(socket.set_zero_linger());
        }
    }
}

async fn serve_http(
    fabric: Arc<Fabric>,
    socket: TcpStream,
    peer: SocketAddr,
    target: Target,
    closing: CancellationToken,
) {
    let limits = fabric.config.limits;
    let Ok(Some(prior_knowledge)) =
        tokio::time::timeout(limits.header_timeout, is_http2(&socket)).await
    else {
        return;
    };
    let authority = socket
        .local_addr()
        .map_or_else(|_| String::new(), |local| local.to_string());
    let target = RefCell::new(target);
    // Of HTTP/1.1 hyper knows itself when nothing is asked.
    let activity = prior_knowledge.then(|| Arc::new(Activity::new()));
    let noted = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let request = serve::incoming(request, &authority);
        let port = target.borrow_mut().port().cloned();
        let busy = noted.as_ref().map(Activity::begin);
        let fabric = Arc::clone(&fabric);
        async move {
            let request = match request {
                Ok(request) => request,
                Err(error) => return Ok::<_, Infallible>(serve::answer(Err(error))),
            };
            let Some(port) = port else {
                let gone = HttpError::NotReached("the Service is gone".to_owned());
                return Ok(serve::answer(Err(gone)));
            };
            let call = Call {
                fabric: &fabric,
                caller: fabric.rim_from(peer),
            };
            let answer = serve::answer(call.balanced(&port, request).await);
            if busy.is_none() {
                return Ok(answer);
            }
            let guard = Guard {
                busy,
                ..Guard::default()
            };
            Ok(guarded(answer, guard, None))
        }
    });
    let quiet = async {
        match &activity {
            Some(activity) => activity.quiet(limits.header_timeout).await,
            None => std::future::pending().await,
        }
    };
    let io = TokioIo::new(Stalled::new(socket, limits.header_timeout));
    // An error of a connection is the client's: it went away, was too slow, or spoke no HTTP.
    if prior_knowledge {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .keep_alive_interval(limits.header_timeout);
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = quiet => connection.as_mut().graceful_shutdown(),
            () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        drop(connection.await);
    } else {
        let mut builder = http1::Builder::new();
        builder
            .pipeline_flush(true)
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout);
        let mut connection = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            _ = connection.as_mut() => return,
            () = closing.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        drop(connection.await);
    }
}

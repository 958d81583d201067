//! Streams to pods of other nodes. Opens them on a peer's connection; never chooses the node.

use std::net::SocketAddr;
use std::sync::Arc;

use http::header::HeaderValue;
use http::{Method, Request, StatusCode, Uri};
use tokio::time::Instant;

use super::connection::{NotOpened, Opened};
use super::peer::Peer;
use super::{streams, words};
use crate::network::balancer::InFlight;
use crate::network::pipe::{self, Account};
use crate::network::policy::Way;
use crate::network::ports::Sockets;
use crate::network::vnet::{Caller, Fabric};
use crate::network::{SocketError, Stream};

/// A connection that retires while a stream is being opened is followed by another, this often.
const ATTEMPTS: usize = 3;

/// To a pod's port on another node. An error says that nobody there has seen a connection. Cancel by dropping.
pub(crate) async fn connect(
    fabric: &Arc<Fabric>,
    peer: &Peer,
    caller: &Caller<'_>,
    seen: SocketAddr,
    endpoint: SocketAddr,
    load: Option<InFlight>,
) -> Result<Stream, SocketError> {
    let admitted = fabric.admit(caller, None, seen, endpoint).await?;
    let deadline = Instant::now() + fabric.config.limits.connect_timeout;
    // Who has a choice does not wait for a node that is slow to answer.
    let patient = load.is_none();
    let client = Account {
        budget: Arc::clone(caller.budget),
        slot: caller.sockets.map(Sockets::take).transpose()?,
        load,
        // The other node counts what reaches its pods.
        counted: None,
    };
    let head = head(fabric, caller, endpoint)?;
    let connecting = async {
        let opened = open(fabric, peer, &head, false, patient).await?;
        let Opened {
            response,
            send,
            in_use,
        } = opened;
        // Lost with its connection: whoever connects again connects to something else.
        let response = response.await.map_err(|_| SocketError::Unreachable)?;
        if response.status() != StatusCode::OK {
            return Err(words::socket_error(response.status()));
        }
        Ok((response, send, in_use))
    };
    let (response, send, in_use) = tokio::time::timeout_at(deadline, connecting)
        .await
        .map_err(|_| SocketError::TimedOut)??;
    let recv = response.into_body();
    let server = Account {
        budget: Arc::clone(caller.budget),
        slot: None,
        load: None,
        counted: None,
    };
    let (client, server) = pipe::connection(client, server);
    let server = Stream {
        local: endpoint,
        peer: caller.from,
        reader: server.0,
        writer: server.1,
    };
    let (stop, budget) = (fabric.stop.clone(), Arc::clone(caller.budget));
    fabric.tasks.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = streams::carry(server, recv, send, budget) => {}
        }
        drop(in_use);
    });
    let way = Way::of(caller, None, seen, endpoint);
    fabric.opened(admitted, client.0.cut(), way);
    Ok(Stream {
        local: caller.from,
        peer: seen,
        reader: client.0,
        writer: client.1,
    })
}

/// Opens a stream, on another connection when the first turns out to be going away.
pub(super) async fn open(
    fabric: &Fabric,
    peer: &Peer,
    head: &Request<()>,
    end: bool,
    patient: bool,
) -> Result<Opened, SocketError> {
    for _ in 0..ATTEMPTS {
        let timeout = fabric.config.limits.connect_timeout;
        let connection = peer.ready(patient, timeout).await?;
        match connection.open(head.clone(), end).await {
            Ok(opened) => return Ok(opened),
            Err(NotOpened::TooMany) => return Err(SocketError::TooMany),
            Err(NotOpened::Invalid) => return Err(SocketError::NotAvailable),
            Err(NotOpened::Retired) => peer.retired(&connection).await,
        }
    }
    Err(SocketError::Unreachable)
}

fn head(
    fabric: &Fabric,
    caller: &Caller<'_>,
    endpoint: SocketAddr,
) -> Result<Request<()>, SocketError> {
    let invalid = |_| SocketError::NotAvailable;
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.uri_mut() =
        Uri::try_from(endpoint.to_string()).map_err(|_| SocketError::NotAvailable)?;
    let from = source(fabric, caller);
    let from = HeaderValue::try_from(from.to_string()).map_err(invalid)?;
    request.headers_mut().insert(words::FROM, from);
    words::identify(request.headers_mut(), caller.identity);
    Ok(request)
}

/// Whom a connection comes from, for the other node: a client outside goes by this node's own address, as through a
/// NodePort in Kubernetes.
pub(super) fn source(fabric: &Fabric, caller: &Caller<'_>) -> SocketAddr {
    if caller.pod.is_some() {
        caller.from
    } else {
        SocketAddr::from((fabric.node_address, caller.from.port()))
    }
}

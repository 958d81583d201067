//! Connections that nodes keep to this server because nobody can dial them (NAT, an edge): the server opens streams backwards
//! over them, to the node's endpoint for itself, to the node's tunnel for other nodes. Carries bytes; reads none.
//!
//! ```text
//! node ── GET /coracle/v1/nodes/NAME/link,    Upgrade ──► held here: HTTP/2, this server is the client
//! node ── GET /coracle/v1/nodes/OTHER/connect, Upgrade ──► a stream over OTHER's link, joined end to end
//! ```
//! Differs from Kubernetes: it has no such paths; there a konnectivity proxy does this. Who may is decided here, by name and
//! group: no role can give it away.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use types::well_known::{
    GROUP_MASTERS, GROUP_NODES, LINK_ENDPOINT, LINK_PATH, LINK_PROTOCOL, LINK_TUNNEL,
};

use crate::auth::User;
use crate::handlers::Api;
use crate::handlers::reply::Reply;
use crate::status::{Error, Reason};

/// Links of nodes that live. One per server.
pub struct Links {
    live: Mutex<HashMap<String, Link>>,
    /// Streams between two nodes.
    relayed: Arc<Semaphore>,
}

struct Link {
    sender: SendRequest<Empty<Bytes>>,
    /// Ends this link, and tells it from a later one of the same node.
    end: CancellationToken,
    number: u64,
}

/// What a path asks for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Ask<'a> {
    Link(&'a str),
    Connect(&'a str),
}

const MOST_LINKS: usize = 8_192;
const MOST_RELAYED: usize = 16_384;
/// For the node to take a stream.
const OPEN: Duration = Duration::from_secs(10);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A silent node is asked after this long, and has as long to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

// === impl Ask ===

impl<'a> Ask<'a> {
    /// `None` when the path is another's.
    pub(crate) fn parse(path: &'a str) -> Option<Self> {
        let (name, what) = path.strip_prefix(LINK_PATH)?.rsplit_once('/')?;
        if name.is_empty() || name.contains('/') {
            return None;
        }
        match what {
            "link" => Some(Self::Link(name)),
            "connect" => Some(Self::Connect(name)),
            _ => None,
        }
    }

    /// A node keeps its own link; any node may ask to be connected to another.
    fn allows(self, user: &User) -> bool {
        match self {
            Self::Link(name) => user.node() == Some(name),
            Self::Connect(_) => user.is_in(GROUP_NODES) || user.is_in(GROUP_MASTERS),
        }
    }
}

/// Answers a request for a link or over one.
pub(crate) async fn serve(
    api: &Arc<Api>,
    parts: &Parts,
    user: &User,
    ask: Ask<'_>,
) -> Result<Reply, Error> {
    if !ask.allows(user) {
        let why = format!(
            "User {:?} cannot get path {:?}",
            user.name,
            parts.uri.path()
        );
        return Err(Error::forbidden("", "", "", &why));
    }
    if parts.method != Method::GET {
        return Err(Error::method_not_allowed());
    }
    let wanted = parts.headers.get(header::UPGRADE);
    let upgrade = parts.extensions.get::<OnUpgrade>().cloned();
    let upgrade = upgrade.filter(|_| wanted.is_some_and(|wanted| wanted == LINK_PROTOCOL));
    let upgrade = upgrade.ok_or_else(|| {
        Error::bad_request(format!("wanted an HTTP/1.1 upgrade to {LINK_PROTOCOL}"))
    })?;
    match ask {
        Ask::Link(name) => {
            if api.links.count() >= MOST_LINKS {
                return Err(Error::too_many_requests(
                    "this server holds no more links",
                    30,
                ));
            }
            tokio::spawn(hold(Arc::clone(api), name.to_owned(), upgrade));
        }
        Ask::Connect(name) => {
            let permit = Arc::clone(&api.links.relayed).try_acquire_owned();
            let permit = permit
                .map_err(|_| Error::too_many_requests("this server relays no more streams", 5))?;
            let there = api.links.open(name, LINK_TUNNEL).await;
            let there = there.map_err(|why| Error::new(Reason::ServiceUnavailable, why))?;
            let stopping = api.stopping.clone();
            tokio::spawn(async move {
                join(upgrade, there, stopping).await;
                drop(permit);
            });
        }
    }
    let mut reply = Reply::text(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    reply.headers.clear();
    let headers = &mut reply.headers;
    headers.insert(header::UPGRADE, HeaderValue::from_static(LINK_PROTOCOL));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(reply)
}

/// Keeps a node's link until it breaks, is replaced, or the server stops.
async fn hold(api: Arc<Api>, node: String, upgrade: OnUpgrade) {
    let Ok(Ok(io)) = timeout(HANDSHAKE, upgrade).await else {
        return;
    };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let Ok(Ok((sender, connection))) = timeout(HANDSHAKE, builder.handshake(io)).await else {
        tracing::debug!(%node, "A node's link did not begin");
        return;
    };
    let (number, end) = api.links.insert(&node, sender);
    tracing::info!(%node, "A node keeps a link to this server");
    tokio::select! {
        biased;
        () = api.stopping.cancelled() => {}
        () = end.cancelled() => {}
        ended = connection => if let Err(error) = ended {
            tracing::info!(%node, %error, "A node's link broke");
        },
    }
    api.links.remove(&node, number);
}

/// Two streams, end to end, until one of them ends.
async fn join(upgrade: OnUpgrade, there: Upgraded, stopping: CancellationToken) {
    let Ok(Ok(here)) = timeout(HANDSHAKE, upgrade).await else {
        return;
    };
    let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
    tokio::select! {
        biased;
        () = stopping.cancelled() => {}
        // Whatever broke is for those at the ends to notice.
        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
    }
}

// === impl Links ===

impl Default for Links {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            relayed: Arc::new(Semaphore::new(MOST_RELAYED)),
        }
    }
}

impl Links {
    /// Does the node keep a link to this server?
    pub(crate) fn has(&self, node: &str) -> bool {
        self.sender(node).is_some()
    }

    /// A stream to the node's endpoint.
    pub(crate) async fn endpoint(&self, node: &str) -> Result<Upgraded, String> {
        self.open(node, LINK_ENDPOINT).await
    }

    async fn open(&self, node: &str, what: &str) -> Result<Upgraded, String> {
        let failed = |why: String| format!("node {node:?} cannot be reached over its link: {why}");
        let Some(mut sender) = self.sender(node) else {
            return Err(format!("node {node:?} keeps no link to this server"));
        };
        let target: Uri = format!("{what}:1")
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(error.to_string()))?;
        let request = Request::connect(target)
            .body(Empty::new())
            .map_err(|error| failed(error.to_string()))?;
        let opening = async {
            let response = sender.send_request(request).await;
            let response = response.map_err(|error| failed(error.to_string()))?;
            if response.status() != StatusCode::OK {
                return Err(failed(format!("it answered {}", response.status())));
            }
            let upgraded = hyper::upgrade::on(response).await;
            upgraded.map_err(|error| failed(error.to_string()))
        };
        match timeout(OPEN, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(failed(format!("no answer within {OPEN:?}"))),
        }
    }

    fn sender(&self, node: &str) -> Option<SendRequest<Empty<Bytes>>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let link = live.get(node).filter(|link| !link.sender.is_closed())?;
        Some(link.sender.clone())
    }

    fn count(&self) -> usize {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.len()
    }

    /// The newest link of a node is its only one.
    fn insert(&self, node: &str, sender: SendRequest<Empty<Bytes>>) -> (u64, CancellationToken) {
        let end = CancellationToken::new();
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let number = live.get(node).map_or(0, |link| link.number + 1);
        let link = Link {
            sender,
            end: end.clone(),
            number,
        };
        if let Some(old) = live.insert(node.to_owned(), link) {
            old.end.cancel();
        }
        (number, end)
    }

    fn remove(&self, node: &str, number: u64) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        if live.get(node).is_some_and(|link| link.number == number) {
            live.remove(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_keeps_its_own_link_and_reaches_others_and_nobody_else_does_either() {
        let node = User::authenticated("system:node:n1", &[GROUP_NODES]);
        let impostor = User::authenticated("system:node:n1", &[]);
        let pod = User::service_account("default", "default");
        assert_eq!(
            Ask::parse("/coracle/v1/nodes/n1/link"),
            Some(Ask::Link("n1"))
        );
        assert!(Ask::Link("n1").allows(&node));
        assert!(!Ask::Link("n2").allows(&node));
        assert!(Ask::Connect("n2").allows(&node));
        for user in [&impostor, &pod, &User::anonymous()] {
            assert!(!Ask::Link("n1").allows(user), "{}", user.name);
            assert!(!Ask::Connect("n2").allows(user), "{}", user.name);
        }
        assert!(
            !Ask::Link("n1").allows(&User::admin()),
            "an administrator is no node"
        );
        for path in [
            "/coracle/v1/nodes//link",
            "/coracle/v1/nodes/a/b/link",
            "/coracle/v1/nodes/a/x",
            "/api/v1",
        ] {
            assert_eq!(Ask::parse(path), None, "{path}");
        }
    }
}

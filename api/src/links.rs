//! Connections that nodes keep to this server because nobody can dial them (NAT, an edge): the server opens streams backwards
//! over them, to the node's endpoint for itself, to the node's tunnel for other nodes. Carries bytes; reads none.
//!
//! ```text
//! node ── GET /coracle/v1/nodes/NAME/link,    Upgrade ──► held here: HTTP/2, this server is the client
//! node ── GET /coracle/v1/nodes/OTHER/connect, Upgrade ──► a stream over OTHER's link, joined end to end
//! ```
//! Differs from Kubernetes: it has no such paths; there a konnectivity proxy does this. Who may is decided here, by name and
//! group: no role can give it away, but one that lets somebody impersonate nodes. Administrators may connect, and have no
//! link of their own.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper::client::conn::http2::{self, SendRequest};
use hyper::rt::Executor;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;
use types::well_known::{
    GROUP_MASTERS, GROUP_NODES, LINK_ENDPOINT, LINK_PATH, LINK_PROTOCOL, LINK_TUNNEL,
};

use crate::auth::User;
use crate::handlers::reply::Reply;
use crate::handlers::{self, Api};
use crate::status::{Error, Reason};

/// Links of nodes that live. One per server.
pub struct Links {
    live: Mutex<HashMap<String, Link>>,
    /// Streams between two nodes.
    relayed: Arc<Semaphore>,
    /// Those of each that asked for them.
    by_caller: Mutex<HashMap<String, usize>>,
    /// Of the last link, whoever's.
    last: AtomicU64,
}

/// One relayed stream, until dropped.
struct Relayed {
    links: Arc<Links>,
    caller: String,
    _room: OwnedSemaphorePermit,
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
/// Of one caller: a node needs few to each of the others, and must leave the rest to them.
const MOST_OF_ONE: usize = 2_048;
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
            let hold = hold(Arc::clone(api), name.to_owned(), upgrade, user.until);
            api.tasks.spawn(hold);
        }
        Ask::Connect(name) => {
            let relayed = Links::relay(&api.links, &user.name)?;
            let there = api.links.open(name, LINK_TUNNEL).await;
            let there = there.map_err(|why| Error::new(Reason::ServiceUnavailable, why))?;
            let stopping = api.stopping.clone();
            let work = async move {
                join(upgrade, there).await;
                drop(relayed);
            };
            api.tasks.spawn(stopping.run_until_cancelled_owned(work));
        }
    }
    let mut reply = Reply::text(StatusCode::SWITCHING_PROTOCOLS, Bytes::new());
    reply.headers.clear();
    let headers = &mut reply.headers;
    headers.insert(header::UPGRADE, HeaderValue::from_static(LINK_PROTOCOL));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    Ok(reply)
}

/// What drives one link: streams would keep it open though nobody here holds it any more.
#[derive(Clone)]
struct Tasks {
    end: CancellationToken,
    tasks: TaskTracker,
}

impl<F> Executor<F> for Tasks
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        self.tasks
            .spawn(self.end.clone().run_until_cancelled_owned(task));
    }
}

/// Keeps a node's link until it breaks, is replaced, the node's certificate ends, or the server stops.
async fn hold(api: Arc<Api>, node: String, upgrade: OnUpgrade, until: Option<Timestamp>) {
    let upgrade = api.stopping.run_until_cancelled(upgrade);
    let Ok(Some(Ok(io))) = timeout(HANDSHAKE, upgrade).await else {
        return;
    };
    let tasks = Tasks {
        end: api.cut_off.child_token(),
        tasks: api.tasks.clone(),
    };
    let mut builder = http2::Builder::new(tasks.clone());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    let shake = api.stopping.run_until_cancelled(builder.handshake(io));
    let Ok(Some(Ok((sender, connection)))) = timeout(HANDSHAKE, shake).await else {
        tracing::debug!(%node, "A node's link did not begin");
        return;
    };
    let (number, end) = api.links.insert(&node, sender);
    tracing::info!(%node, "A node keeps a link to this server");
    tokio::select! {
        biased;
        () = api.stopping.cancelled() => {}
        () = end.cancelled() => {}
        () = handlers::passed(until) => {
            tracing::info!(%node, "The certificate that a node's link began with has ended");
            tasks.end.cancel();
        }
        ended = connection => if let Err(error) = ended {
            tracing::info!(%node, error = %chain(&error), "A node's link broke");
        },
    }
    api.links.remove(&node, number);
}

/// Two streams, end to end, until one of them ends.
async fn join(upgrade: OnUpgrade, there: Upgraded) {
    let Ok(Ok(here)) = timeout(HANDSHAKE, upgrade).await else {
        return;
    };
    let (mut here, mut there) = (TokioIo::new(here), TokioIo::new(there));
    // Whatever broke is for those at the ends to notice.
    let _ = tokio::io::copy_bidirectional(&mut here, &mut there).await;
}

// === impl Links ===

impl Default for Links {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
            relayed: Arc::new(Semaphore::new(MOST_RELAYED)),
            by_caller: Mutex::default(),
            last: AtomicU64::new(0),
        }
    }
}

impl Links {
    /// Room for one more stream that `caller` asked for.
    fn relay(links: &Arc<Self>, caller: &str) -> Result<Relayed, Error> {
        let refuse = |why| Err(Error::too_many_requests(why, 5));
        let Ok(room) = Arc::clone(&links.relayed).try_acquire_owned() else {
            return refuse("this server relays no more streams");
        };
        let mut callers = links.callers();
        let count = callers.entry(caller.to_owned()).or_default();
        if *count >= MOST_OF_ONE {
            return refuse("this server relays no more streams for this caller");
        }
        *count += 1;
        Ok(Relayed {
            links: Arc::clone(links),
            caller: caller.to_owned(),
            _room: room,
        })
    }

    fn callers(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        let callers = self.by_caller.lock();
        callers.unwrap_or_else(PoisonError::into_inner)
    }

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
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
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

impl Drop for Relayed {
    fn drop(&mut self) {
        let mut callers = self.links.callers();
        if let Some(count) = callers.get_mut(&self.caller) {
            *count -= 1;
            if *count == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_room_for_the_others() {
        let links = Arc::new(Links::default());
        let take = |caller: &str| Links::relay(&links, caller).ok();
        let mut held: Vec<_> = (0..MOST_OF_ONE).map(|_| take("greedy")).collect();
        assert!(held.iter().all(Option::is_some));
        assert!(take("greedy").is_none(), "its share is used up");
        let other = take("modest");
        assert!(other.is_some());
        held.pop();
        assert!(take("greedy").is_some());
        drop((held, other));
        assert!(links.callers().is_empty(), "nothing is left");
        assert_eq!(links.relayed.available_permits(), MOST_RELAYED);
    }

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

//! The API servers of the cluster, and a client that speaks to whichever of them answers. Knows no kinds but where servers
//! are listed ([`learn`]).
//!
//! One HTTP/2 connection to one server carries everything, and stays with it as long as it lives. A peer that is silent is
//! asked every few seconds whether it is there; when it is not, its connection ends, and with it every watch: the next
//! request dials, the others first. A request that surely reached nobody is sent again, and so is a read.
//!
//! A server may be there and yet be of no use: cut off from its database it answers no write, and its watches stand still.
//! One that does not answer a request, or says 503, is asked for `/readyz`; when it is not ready and another one is, its
//! connection is ended for that one's ([`doubt`]). While nobody is ready we stay.

mod address;
mod connection;
mod doubt;
pub(crate) mod learn;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError, RwLock};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use kube::client::Body;
use rustls::ClientConfig;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep};
use types::error::chain;
use types::well_known::NAMESPACE_DEFAULT;

pub use address::{Address, AddressError};
use connection::Connection;
pub(crate) use connection::{SERVER_NAME, secure};
use doubt::{Doubt, SLOW, WORD};

/// A request is tried on so many connections.
const ATTEMPTS: usize = 4;
/// After nobody answered, for so long nobody is asked again: whoever waited for the same answer gets it.
const PAUSE: Duration = Duration::from_millis(300);

/// Cheap to clone: all clones share the list and the connection.
#[derive(Clone)]
pub struct Servers(Arc<Shared>);

struct Shared {
    /// What was given, in that order.
    given: Vec<Address>,
    /// Given and learnt, without doubles.
    all: watch::Sender<Arc<Vec<Address>>>,
    tls: Arc<ClientConfig>,
    authorization: Option<HeaderValue>,
    live: Mutex<Live>,
    /// Held while servers are asked whether they are ready, which one request at a time does.
    doubt: Mutex<Doubt>,
    /// The server of the present connection, or of the last one.
    current: RwLock<Option<Address>>,
}

#[derive(Default)]
struct Live {
    connection: Option<Connection>,
    /// Counts connections.
    number: u64,
    refused: Option<(Instant, Arc<str>)>,
}

/// A request that nobody answered.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("no API server can be reached: {0}")]
    Unreachable(Arc<str>),
    #[error("the connection to API server {server} broke: {reason}")]
    Broken { server: Address, reason: String },
    #[error("{0}")]
    Request(String),
}

// === impl Servers ===

impl Servers {
    /// `tls` verifies servers as `kubernetes.default.svc`, whatever address they are dialled at, and offers h2 first.
    pub fn new(given: Vec<Address>, learnt: Vec<Address>, tls: Arc<ClientConfig>) -> Self {
        Self::make(given, learnt, tls, None)
    }

    /// As a user who is known by a token.
    pub(crate) fn with_token(given: Vec<Address>, tls: Arc<ClientConfig>, token: &str) -> Self {
        let bearer = HeaderValue::from_str(&format!("Bearer {token}")).ok();
        let bearer = bearer.map(|mut bearer| {
            bearer.set_sensitive(true);
            bearer
        });
        Self::make(given, Vec::new(), tls, bearer)
    }

    fn make(
        given: Vec<Address>,
        learnt: Vec<Address>,
        tls: Arc<ClientConfig>,
        authorization: Option<HeaderValue>,
    ) -> Self {
        let all = union(&given, &learnt);
        Self(Arc::new(Shared {
            given,
            all: watch::Sender::new(Arc::new(all)),
            tls,
            authorization,
            live: Mutex::default(),
            doubt: Mutex::default(),
            current: RwLock::new(None),
        }))
    }

    /// A Kubernetes client whose requests go to whichever server answers.
    pub fn client(&self) -> kube::Client {
        kube::Client::new(self.clone(), NAMESPACE_DEFAULT)
    }

    /// All servers that are known, and whenever that changes.
    pub(crate) fn addresses(&self) -> watch::Receiver<Arc<Vec<Address>>> {
        self.0.all.subscribe()
    }

    pub(crate) fn given(&self) -> &[Address] {
        &self.0.given
    }

    /// Servers the API lists beside those that were given.
    pub(crate) fn learn(&self, learnt: &[Address]) {
        let all = union(&self.0.given, learnt);
        self.0.all.send_if_modified(|known| {
            let changed = **known != all;
            if changed {
                *known = Arc::new(all);
            }
            changed
        });
    }

    /// New requests make a new connection, with the certificate of that moment; what is under way is finished on the old one.
    pub(crate) async fn reconnect(&self) {
        self.0.live.lock().await.connection = None;
    }

    /// The server of the last connection.
    pub(crate) fn current(&self) -> Option<Address> {
        let current = self.0.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The present connection, or a new one; never the one with the number `broken`.
    async fn connection(&self, broken: Option<u64>) -> Result<Connection, Error> {
        let mut live = self.0.live.lock().await;
        if let Some(connection) = &live.connection
            && connection.is_open()
            && Some(connection.number) != broken
        {
            return Ok(connection.clone());
        }
        if let Some((at, why)) = &live.refused
            && at.elapsed() < PAUSE
        {
            return Err(Error::Unreachable(Arc::clone(why)));
        }
        let lost = live.connection.take().map(|connection| connection.server);
        live.number += 1;
        let number = live.number;
        let mut refusals = Vec::new();
        for server in self.order(lost.as_ref()) {
            match connection::open(&server, &self.0.tls, number).await {
                Ok(connection) => {
                    self.note(&server);
                    live.refused = None;
                    live.connection = Some(connection.clone());
                    return Ok(connection);
                }
                Err(error) => refusals.push(format!("{server}: {error}")),
            }
        }
        let why: Arc<str> = refusals.join("; ").into();
        live.refused = Some((Instant::now(), Arc::clone(&why)));
        Err(Error::Unreachable(why))
    }

    /// Who is dialled in which order: the last one that answered stays first, unless it was lost a moment ago.
    pub(crate) fn order(&self, lost: Option<&Address>) -> Vec<Address> {
        order(&self.0.all.borrow(), self.current().as_ref(), lost)
    }

    fn note(&self, server: &Address) {
        let mut current = self
            .0
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        if current.as_ref() != Some(server) {
            tracing::info!(%server, before = ?current.as_ref().map(Address::to_string), "Connected to an API server");
            *current = Some(server.clone());
        }
    }

    async fn send(&self, request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let (mut parts, body) = request.into_parts();
        parts.uri = absolute(&parts.uri)?;
        parts.headers.remove(header::HOST);
        if let Some(bearer) = &self.0.authorization {
            let bearer = bearer.clone();
            parts.headers.insert(header::AUTHORIZATION, bearer);
        }
        parts
            .headers
            .entry(header::USER_AGENT)
            .or_insert_with(|| HeaderValue::from_static(USER_AGENT));
        let is_read = matches!(parts.method, Method::GET | Method::HEAD);
        let mut body = body;
        let mut broken = None;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut connection = self.connection(broken).await?;
            let request = Request::from_parts(parts.clone(), body);
            let sending = connection.sender.try_send_request(request);
            let mut error = match self.impatiently(connection.number, sending).await {
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    let moved = self.reconsider(connection.number).await;
                    if moved && is_read && attempt < ATTEMPTS {
                        body = Body::empty();
                        continue;
                    }
                    return Ok(response);
                }
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let returned = error.take_message();
            let error = error.into_error();
            // A stream that was reset says nothing about the connection.
            let reset = is_reset(&error);
            if !reset {
                broken = Some(connection.number);
            }
            let lost = || Error::Broken {
                server: connection.server.clone(),
                reason: chain(&error),
            };
            body = match returned {
                Some(request) if attempt < ATTEMPTS => request.into_body(),
                None if is_read && !reset && attempt < ATTEMPTS => Body::empty(),
                _ => return Err(lost()),
            };
            tracing::debug!(server = %connection.server, error = %chain(&error), "Sending a request again");
        }
    }
}

// === impl Servers, when the present one is in doubt ===

impl Servers {
    /// What comes of `sending`, through the connection of that number. While it does not come, its server is in doubt.
    async fn impatiently<T>(&self, number: u64, sending: impl Future<Output = T>) -> T {
        let mut sending = pin!(sending);
        loop {
            tokio::select! {
                biased;
                answer = &mut sending => return answer,
                () = sleep(SLOW) => {}
            }
            tokio::select! {
                biased;
                answer = &mut sending => return answer,
                _ = self.reconsider(number) => {}
            }
        }
    }

    /// Leaves the server of that connection if it is not ready and another one is. Says whether it did.
    async fn reconsider(&self, number: u64) -> bool {
        let Ok(mut doubt) = self.0.doubt.try_lock() else {
            return false;
        };
        if !doubt.may_ask(Instant::now()) {
            return false;
        }
        let present = self.0.live.lock().await.connection.clone();
        let Some(present) = present.filter(|present| present.number == number) else {
            return false;
        };
        if self.is_ready(&present).await {
            doubt.settle(Instant::now());
            return false;
        }
        for server in self.order(Some(&present.server)) {
            if server == present.server {
                continue;
            }
            let asking = tokio::time::timeout(WORD, self.ready(&server));
            if let Ok(Some(next)) = asking.await {
                doubt.settle(Instant::now());
                return self.leave(&present, next).await;
            }
        }
        doubt.give_up(Instant::now());
        false
    }

    /// A connection to `server`, if that is ready.
    async fn ready(&self, server: &Address) -> Option<Connection> {
        let number = {
            let mut live = self.0.live.lock().await;
            live.number += 1;
            live.number
        };
        let opened = connection::open(server, &self.0.tls, number).await;
        let connection = opened
            .inspect_err(|error| tracing::debug!(%server, error = %chain(error), "Asked whether it is ready"))
            .ok()?;
        self.is_ready(&connection).await.then_some(connection)
    }

    async fn is_ready(&self, connection: &Connection) -> bool {
        let Ok(uri) = absolute(&Uri::from_static("/readyz")) else {
            return false;
        };
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = uri;
        if let Some(bearer) = &self.0.authorization {
            let bearer = bearer.clone();
            request.headers_mut().insert(header::AUTHORIZATION, bearer);
        }
        let mut sender = connection.sender.clone();
        let asking = tokio::time::timeout(WORD, sender.send_request(request));
        matches!(asking.await, Ok(Ok(said)) if said.status().is_success())
    }

    /// What is under way through `present` ends: watches go on through `next`, and nobody waits for an answer that will
    /// not come.
    async fn leave(&self, present: &Connection, next: Connection) -> bool {
        let mut live = self.0.live.lock().await;
        let still = live.connection.as_ref().map(|live| live.number);
        if still != Some(present.number) {
            return false;
        }
        tracing::warn!(server = %present.server, next = %next.server, "The API server is not ready, and is left for another");
        self.note(&next.server);
        live.connection = Some(next);
        live.refused = None;
        present.end();
        true
    }
}

const USER_AGENT: &str = concat!("kubelet/v1.36 coracle/", env!("CARGO_PKG_VERSION"));

impl tower::Service<Request<Body>> for Servers {
    type Response = Response<Incoming>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let servers = self.clone();
        Box::pin(async move { servers.send(request).await })
    }
}

fn union(given: &[Address], learnt: &[Address]) -> Vec<Address> {
    let mut all: Vec<Address> = Vec::new();
    for address in given.iter().chain(learnt) {
        if !all.contains(address) {
            all.push(address.clone());
        }
    }
    all
}

fn order(all: &[Address], current: Option<&Address>, lost: Option<&Address>) -> Vec<Address> {
    let mut order = all.to_vec();
    // Learnt once and not listed any longer: still better than nobody.
    for known in current.into_iter().chain(lost) {
        if !order.contains(known) {
            order.push(known.clone());
        }
    }
    order.sort_by_key(|address| match address {
        address if Some(address) == lost => 2,
        address if Some(address) == current => 0,
        _ => 1,
    });
    order
}

/// kube gives paths only; HTTP/2 wants to know the host. It is the same whichever server is meant.
fn absolute(uri: &Uri) -> Result<Uri, Error> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let absolute = Uri::builder()
        .scheme("https")
        .authority(connection::SERVER_NAME)
        .path_and_query(path)
        .build();
    absolute.map_err(|error| Error::Request(format!("path {path:?}: {error}")))
}

fn is_reset(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let stream = source.and_then(|source| source.downcast_ref::<h2::Error>());
    stream.is_some_and(h2::Error::is_reset)
}

//! Reaching what cannot be dialled, through the API servers: a node behind NAT keeps a link to each server, and every node
//! may ask a server to be connected to such a node. Carries bytes; what runs inside has its own TLS.
//!
//! ```text
//! keep   this node ══ Upgrade to coracle-link ══► each API server, which opens HTTP/2 streams backwards:
//!                     "endpoint" ─► serve (as if accepted there)     "tunnel" ─► the tunnel's server
//! dial   this node ══ Upgrade …/nodes/OTHER/connect ══► a server that holds OTHER's link
//! ```

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::RngExt as _;
use rustls::ClientConfig;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use types::error::chain;
use types::well_known::{LINK_ENDPOINT, LINK_PATH, LINK_PROTOCOL, LINK_TUNNEL};

use crate::network::{Dial, Io};
use crate::servers::{Address, SERVER_NAME, Servers, secure};
use crate::tls::{self, Certificates};

/// Links to servers, and streams through them.
pub struct Links {
    servers: Servers,
    tls: Arc<ClientConfig>,
    node_name: String,
    /// Links that live now.
    live: watch::Sender<usize>,
    /// Changes when there is another certificate.
    renewed: watch::Receiver<()>,
}

/// Where streams go that servers open backwards.
#[derive(Clone)]
pub(crate) struct Doors {
    pub(crate) endpoint: mpsc::Sender<Box<dyn Io>>,
    pub(crate) tunnel: mpsc::Sender<Box<dyn Io>>,
}

/// For a server to answer an upgrade; for a stream to be taken by its door.
const ANSWER: Duration = Duration::from_secs(15);
/// After so long without an answer the next server is asked beside.
const SILENT: Duration = Duration::from_millis(300);
const KEEP_ALIVE: Duration = Duration::from_secs(5);
const STREAMS: u32 = 1_024;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Between attempts to link, at first and at most; and how long a link must have lived to begin anew.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_AT_MOST: Duration = Duration::from_secs(15);
const LIVED: Duration = Duration::from_secs(30);
/// The same while there is no link at all: nobody reaches this node then.
const ALONE_AT_MOST: Duration = Duration::from_secs(2);
const ALONE: Duration = Duration::from_millis(100);
/// As much of a server's refusal as is read.
const MAX_ERROR: usize = 16 * 1024;

// === impl Links ===

impl Links {
    pub fn new(
        servers: Servers,
        certificates: &Certificates,
        node_name: String,
    ) -> Result<Self, tls::Error> {
        let tls = certificates.client_config(&[b"http/1.1"])?;
        Ok(Self {
            servers,
            tls: Arc::new(tls),
            node_name,
            live: watch::Sender::new(0),
            renewed: certificates.renewed(),
        })
    }

    /// One link to every server that is known, for as long as it is polled.
    pub(crate) async fn keep(self: Arc<Self>, doors: Doors) {
        let mut addresses = self.servers.addresses();
        let mut tasks = JoinSet::new();
        let mut kept: HashMap<Address, AbortHandle> = HashMap::new();
        loop {
            let all = Arc::clone(&addresses.borrow_and_update());
            kept.retain(|address, task| {
                let stays = all.contains(address);
                if !stays {
                    task.abort();
                }
                stays
            });
            for address in all.iter() {
                if !kept.contains_key(address) {
                    let (links, doors) = (Arc::clone(&self), doors.clone());
                    let at = address.clone();
                    let task = tasks.spawn(async move { links.keep_one(&at, &doors).await });
                    kept.insert(address.clone(), task);
                }
            }
            tokio::select! {
                changed = addresses.changed() => if changed.is_err() {
                    return;
                },
                // Tasks end only when they are aborted.
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn keep_one(&self, server: &Address, doors: &Doors) {
        let path = format!("{LINK_PATH}{}/link", self.node_name);
        let mut again = AGAIN;
        let mut renewed = self.renewed.clone();
        // Links that were replaced: what goes over them may end in its time.
        let mut replaced = JoinSet::new();
        loop {
            while replaced.try_join_next().is_some() {}
            renewed.mark_unchanged();
            match self.upgrade(server, &path).await {
                Ok(io) => {
                    tracing::info!(%server, "Keeps a link to an API server");
                    let begun = Instant::now();
                    let _living = Living::new(&self.live);
                    let mut link = Box::pin(answer(io, doors.clone()));
                    tokio::select! {
                        ended = &mut link => if let Err(error) = ended {
                            tracing::info!(%server, error = %chain(&error), "The link to an API server broke");
                        },
                        // The server ends a link with its certificate: the next one is there before that.
                        Ok(()) = renewed.changed() => {
                            replaced.spawn(link);
                            again = AGAIN;
                            continue;
                        }
                    }
                    if begun.elapsed() > LIVED {
                        again = AGAIN;
                    }
                }
                Err(error) => {
                    tracing::warn!(%server, error = %chain(&error), "Failed to link to an API server")
                }
            }
            again = pause(&self.live, again).await;
        }
    }

    /// An HTTP/1.1 connection of its own that becomes a stream of bytes.
    async fn upgrade(&self, server: &Address, path: &str) -> io::Result<Upgraded> {
        let stream = secure(server, &self.tls).await.map_err(io::Error::other)?;
        let asking = async {
            let io = TokioIo::new(stream);
            let (mut sender, connection) = http1::handshake(io).await.map_err(io::Error::other)?;
            // Ends with the stream it became.
            tokio::spawn(connection.with_upgrades());
            let request = Request::get(path)
                .header(header::HOST, SERVER_NAME)
                .header(header::CONNECTION, "Upgrade")
                .header(header::UPGRADE, LINK_PROTOCOL)
                .body(Empty::<Bytes>::new())
                .map_err(io::Error::other)?;
            let response = sender.send_request(request).await;
            let response = response.map_err(io::Error::other)?;
            if response.status() != StatusCode::SWITCHING_PROTOCOLS {
                return Err(refusal(response).await);
            }
            let upgraded = hyper::upgrade::on(response).await;
            upgraded.map_err(io::Error::other)
        };
        match timeout(ANSWER, asking).await {
            Ok(upgraded) => upgraded,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

/// Waits before the next attempt; returns how long to wait after that one. The loss of the last link cuts it short: a
/// server that was away may be back for long.
async fn pause(live: &watch::Sender<usize>, again: Duration) -> Duration {
    let mut live = live.subscribe();
    let most = match *live.borrow_and_update() {
        0 => ALONE_AT_MOST,
        _ => AGAIN_AT_MOST,
    };
    let jitter = rand::rng().random_range(0.5..1.0);
    let alone = async {
        loop {
            // Its sender is ours.
            if live.changed().await.is_ok() && *live.borrow_and_update() == 0 {
                return;
            }
        }
    };
    tokio::select! {
        () = sleep(again.min(most).mul_f64(jitter)) => (again * 2).min(most),
        () = alone => {
            sleep(ALONE.mul_f64(jitter)).await;
            AGAIN
        }
    }
}

/// Counts as a link until it is dropped.
struct Living<'a>(&'a watch::Sender<usize>);

impl<'a> Living<'a> {
    fn new(live: &'a watch::Sender<usize>) -> Self {
        live.send_modify(|live| *live += 1);
        Self(live)
    }
}

impl Drop for Living<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|live| *live -= 1);
    }
}

#[async_trait]
impl Dial for Links {
    /// The first server that holds a link of `node` connects to it.
    async fn dial(&self, node: &str) -> io::Result<Box<dyn Io>> {
        let path = format!("{LINK_PATH}{node}/connect");
        let path = &path;
        let upgraded = first(self.servers.order(None), |server: Address| async move {
            let upgraded = self.upgrade(&server, path).await;
            upgraded.map_err(|error| format!("{server}: {error}"))
        });
        Ok(Box::new(TokioIo::new(upgraded.await?)))
    }
}

/// Asks one server after the other, without waiting long for one that is silent; the first good answer counts.
async fn first<T, F>(servers: Vec<Address>, ask: impl Fn(Address) -> F) -> io::Result<T>
where
    F: Future<Output = Result<T, String>>,
{
    let mut refusals = Vec::new();
    let mut asked = FuturesUnordered::new();
    let mut servers = servers.into_iter();
    loop {
        if let Some(server) = servers.next() {
            asked.push(ask(server));
        }
        tokio::select! {
            answer = asked.next() => match answer {
                Some(Ok(answer)) => return Ok(answer),
                Some(Err(refusal)) => refusals.push(refusal),
                None => return Err(io::Error::other(refusals.join("; "))),
            },
            () = sleep(SILENT), if !servers.as_slice().is_empty() => {}
        }
    }
}

async fn refusal(response: Response<Incoming>) -> io::Error {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ERROR)
        .collect()
        .await;
    let bytes = body.map(|body| body.to_bytes()).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let message = value["message"].as_str().unwrap_or_default();
    io::Error::other(format!("it answered {status}: {message}"))
}

/// Serves the streams a server opens over a link, until the link ends.
async fn answer(io: Upgraded, doors: Doors) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let doors = doors.clone();
        async move { Ok::<_, std::convert::Infallible>(open(request, &doors)) }
    });
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW);
    builder.serve_connection(io, service).await
}

fn open(request: Request<Incoming>, doors: &Doors) -> Response<Empty<Bytes>> {
    let status = |status: StatusCode| {
        let mut response = Response::new(Empty::new());
        *response.status_mut() = status;
        response
    };
    let door = match request.uri().host() {
        Some(LINK_ENDPOINT) => &doors.endpoint,
        Some(LINK_TUNNEL) => &doors.tunnel,
        _ => return status(StatusCode::NOT_FOUND),
    };
    if request.method() != Method::CONNECT {
        return status(StatusCode::METHOD_NOT_ALLOWED);
    }
    let Ok(place) = door.clone().try_reserve_owned() else {
        return status(StatusCode::SERVICE_UNAVAILABLE);
    };
    // The stream is there once this answer has been sent.
    tokio::spawn(async move {
        match timeout(ANSWER, hyper::upgrade::on(request)).await {
            Ok(Ok(io)) => {
                place.send(Box::new(TokioIo::new(io)));
            }
            Ok(Err(error)) => {
                tracing::debug!(error = %chain(&error), "A stream over a link did not begin")
            }
            Err(_) => tracing::debug!("A stream over a link did not begin in time"),
        }
    });
    status(StatusCode::OK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_dead_server_hides_no_other() {
        let servers = |names: [&str; 3]| names.map(|name| name.parse().unwrap()).to_vec();
        let ask = |server: Address| async move {
            match server.to_string() {
                name if name.contains("dead") => std::future::pending().await,
                name if name.contains("good") => Ok(name),
                name => Err(format!("{name}: it has no link")),
            }
        };
        let asked = timeout(2 * SILENT, first(servers(["dead", "without", "good"]), ask));
        assert!(asked.await.unwrap().unwrap().contains("good"));
        let none = first(servers(["one", "two", "three"]), ask)
            .await
            .unwrap_err();
        let text = none.to_string();
        assert!(
            text.contains("two") && text.contains("it has no link"),
            "{text}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_loss_of_the_last_link_cuts_the_wait_for_another_short() {
        let live = watch::Sender::new(0);
        let (first, second) = (Living::new(&live), Living::new(&live));
        let begun = Instant::now();
        let waiting = pause(&live, AGAIN_AT_MOST);
        let losing = async {
            sleep(Duration::from_secs(1)).await;
            drop(first);
            sleep(Duration::from_secs(1)).await;
            drop(second);
        };
        let (next, ()) = tokio::join!(waiting, losing);
        assert!(begun.elapsed() <= Duration::from_secs(2) + ALONE);
        assert_eq!(next, AGAIN);
        let begun = Instant::now();
        assert_eq!(pause(&live, AGAIN_AT_MOST).await, ALONE_AT_MOST);
        assert!(begun.elapsed() <= ALONE_AT_MOST, "there is no other");
        let one = Living::new(&live);
        let begun = Instant::now();
        assert_eq!(pause(&live, AGAIN_AT_MOST).await, AGAIN_AT_MOST);
        assert!(begun.elapsed() >= AGAIN_AT_MOST / 2, "there is another");
        drop(one);
    }
}

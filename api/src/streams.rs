//! Connections of clients that become streams to a node's endpoint: the same upgrade is asked of the node, and when it agrees
//! both connections are joined, byte by byte. Speaks neither WebSocket nor SPDY: whatever the two ends agree on passes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use types::error::chain;
use types::well_known::{HEADER_ACCEPTED_PROTOCOLS, HEADER_STREAM_PROTOCOL};

use crate::handlers::Api;
use crate::handlers::reply::Reply;
use crate::status::Error;

/// Streams that are open through this server.
pub struct Streams {
    room: Arc<Semaphore>,
}

/// What a client wants its connection to become.
pub(crate) struct Wanted {
    client: OnUpgrade,
    /// Of its request, what the node must know.
    headers: HeaderMap,
}

const MOST: usize = 4_096;
/// For both connections to become streams.
const BEGIN: Duration = Duration::from_secs(10);
/// For one direction to end after the other has.
const LINGER: Duration = Duration::from_secs(30);
/// Bytes on their way, per direction.
const CHUNK: usize = 32 * 1024;

/// What belongs to an upgrade in a request and in its answer.
const PASSED: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_ACCEPT,
    HeaderName::from_static(HEADER_STREAM_PROTOCOL),
    HeaderName::from_static(HEADER_ACCEPTED_PROTOCOLS),
];

// === impl Wanted ===

impl Wanted {
    /// `None`: the request is not for an upgrade, or came a way that has none (HTTP/2, in process).
    pub(crate) fn of(parts: &Parts) -> Option<Self> {
        let names = parts.headers.get_all(header::CONNECTION).iter();
        let mut names = names
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','));
        let asks = names.any(|name| name.trim().eq_ignore_ascii_case("upgrade"));
        if !asks || !parts.headers.contains_key(header::UPGRADE) {
            return None;
        }
        Some(Self {
            client: parts.extensions.get::<OnUpgrade>()?.clone(),
            headers: passed(&parts.headers),
        })
    }

    /// Puts the wish into a request for a node.
    pub(crate) fn put(&self, headers: &mut HeaderMap) {
        headers.extend(self.headers.clone());
        // Whatever else the client's said is between it and us.
        headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MOST)),
        }
    }
}

/// A place for one more stream.
pub(crate) fn place(api: &Api) -> Result<OwnedSemaphorePermit, Error> {
    let place = Arc::clone(&api.streams.room).try_acquire_owned();
    place.map_err(|_| Error::too_many_requests("this server passes on no more streams", 5))
}

/// Asks the node for the stream at `target`, a path with a query. The node's answer, when it is not 101, is the caller's to
/// read.
pub(crate) async fn open(
    api: &Arc<Api>,
    node: &str,
    target: &str,
    wanted: Wanted,
) -> Result<Result<Reply, Response<Incoming>>, Error> {
    let place = place(api)?;
    let mut request = Request::new(Body::empty());
    *request.method_mut() = Method::GET;
    *request.uri_mut() = target
        .parse()
        .map_err(|error: http::uri::InvalidUri| Error::bad_request(error.to_string()))?;
    wanted.put(request.headers_mut());
    let response = api.nodes.request(api, node, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(Err(response));
    }
    Ok(Ok(join(api, response, wanted, place)))
}

/// The node's 101 for the client; behind it the two connections become one, in a task of their own.
pub(crate) fn join(
    api: &Arc<Api>,
    mut response: Response<Incoming>,
    wanted: Wanted,
    place: OwnedSemaphorePermit,
) -> Reply {
    let mut reply = Reply::text(StatusCode::SWITCHING_PROTOCOLS, bytes::Bytes::new());
    reply.headers = passed(response.headers());
    let there = hyper::upgrade::on(&mut response);
    let work = async move {
        let _place = place;
        let both = timeout(BEGIN, async { tokio::try_join!(wanted.client, there) });
        let (here, there) = match both.await {
            Ok(Ok(both)) => both,
            Ok(Err(error)) => {
                return tracing::debug!(error = %chain(&error), "A stream did not begin");
            }
            Err(_) => return tracing::debug!("A stream did not begin in time"),
        };
        carry(here, there).await;
    };
    let stopping = api.stopping.clone();
    api.tasks.spawn(stopping.run_until_cancelled_owned(work));
    reply
}

fn passed(headers: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in &PASSED {
        for value in headers.get_all(name) {
            out.append(name, value.clone());
        }
    }
    out
}

/// Both directions, each until its end. What the node said last reaches the client also when the client's own words no
/// longer reach the node. A stream that is silent is the node's to end: only it knows whether anything is said in it.
async fn carry(here: Upgraded, there: Upgraded) {
    let (from_client, to_client) = tokio::io::split(TokioIo::new(here));
    let (from_node, to_node) = tokio::io::split(TokioIo::new(there));
    let up = copy(from_client, to_node);
    let down = copy(from_node, to_client);
    tokio::pin!(up, down);
    tokio::select! {
        _ = &mut up => drop(timeout(LINGER, down).await),
        _ = &mut down => drop(timeout(LINGER, up).await),
    }
}

async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

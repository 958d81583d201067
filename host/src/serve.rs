//! The node's own endpoint, for the API server: health, metrics, container logs and streams over mutual TLS. Changes nothing.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use futures::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use rustls::ServerConfig;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;

use self::streaming::Streaming;
use crate::network::{Io, Network};
use crate::pods::known::{Error, Known, LogFile};
use crate::pods::logs::{Options, Progress, Reader};
use crate::tls::Peer;

mod metrics;
mod streaming;

/// Connections at the same time; more wait in the kernel. An API server has one per answer that is still coming, so all that
/// may be endless is bounded below this (streams, proxied answers, logs): what is short always finds a place.
const CONNECTIONS: usize = 4_096;
/// Logs being read at the same time; more are refused.
const READERS: usize = 1_024;
const _: () = assert!(READERS + streaming::MOST + streaming::PROXIED <= CONNECTIONS - 1_024);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// A follower looks again after this long even if nobody told it to.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Accepts connections, and takes those that come over `linked`, until `stop`; then lets answers that are not endless finish.
pub(crate) async fn run(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    known: Known,
    network: Arc<Network>,
    mut linked: mpsc::Receiver<Box<dyn Io>>,
    stop: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let tasks = TaskTracker::new();
    let streaming = Streaming::new(
        known.clone(),
        Arc::clone(&network),
        tasks.clone(),
        stop.clone(),
    );
    let app = router(known, network, streaming);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let slot = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot,
        };
        let accepted: std::io::Result<(Box<dyn Io>, String)> = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(io) = linked.recv() => Ok((io, "a link".to_owned())),
            accepted = listener.accept() => {
                accepted.map(|(stream, peer)| (Box::new(stream) as _, peer.to_string()))
            }
        };
        match accepted {
            Ok((stream, peer)) => {
                let (acceptor, app, stop) = (acceptor.clone(), app.clone(), stop.clone());
                tasks.spawn(async move {
                    let _slot = slot;
                    serve(stream, peer, acceptor, app, stop).await;
                });
            }
            // Out of descriptors: give others the time to close some.
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Failed to accept on the node endpoint");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    tasks.close();
    let _ = tokio::time::timeout(Duration::from_secs(1), tasks.wait()).await;
}

async fn serve(
    stream: Box<dyn Io>,
    peer: String,
    acceptor: TlsAcceptor,
    app: Router,
    stop: CancellationToken,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%peer, error = %chain(&error), "Refused a connection to the node endpoint");
            return;
        }
        Err(_) => return,
    };
    let app = if Peer::of(stream.get_ref().1).is_some_and(|peer| peer.is_api_server()) {
        app
    } else {
        Router::new().fallback(|| async {
            (
                StatusCode::FORBIDDEN,
                "only the API server may ask this node\n",
            )
        })
    };
    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let connection =
        server.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(app));
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        result = connection => if let Err(error) = result {
            tracing::debug!(%peer, error = %chain(&*error), "A connection to the node endpoint ended badly");
        }
    }
}

/// What this node's workloads say to whom, for the API server to join with the other nodes'.
async fn graph(State(network): State<Arc<Network>>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, network.graph().to_string()).into_response()
}

fn router(known: Known, network: Arc<Network>, streaming: Streaming) -> Router {
    let not_yet = |what: &'static str| any(move || async move { not_yet(what) });
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/metrics", get(metrics::metrics))
        .with_state((known.clone(), Arc::clone(&network)))
        .route("/graph", get(graph))
        .with_state(network)
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs),
        )
        .with_state((known.clone(), Arc::new(Semaphore::new(READERS))))
        .route("/run/{*rest}", not_yet("run"))
        .with_state(known)
        .merge(streaming.routes())
}

fn not_yet(what: &str) -> Response {
    (
        StatusCode::NOT_IMPLEMENTED,
        format!("{what} is not supported by this node yet\n"),
    )
        .into_response()
}

/// `PodLogOptions` as they come in the URL.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LogQuery {
    follow: Option<String>,
    previous: Option<String>,
    timestamps: Option<String>,
    tail_lines: Option<i64>,
    since_seconds: Option<i64>,
    since_time: Option<String>,
    limit_bytes: Option<i64>,
    stream: Option<String>,
}

impl LogQuery {
    fn options(&self, now: Timestamp) -> Result<Options, String> {
        let positive = |name: &str, value: Option<i64>, least: i64| match value {
            Some(value) if value < least => {
                Err(format!("{name}: must be greater than or equal to {least}"))
            }
            value => Ok(value.and_then(|value| u64::try_from(value).ok())),
        };
        let since_seconds = positive("sinceSeconds", self.since_seconds, 1)?;
        let since = match (&self.since_time, since_seconds) {
            (Some(_), Some(_)) => {
                return Err(
                    "at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned(),
                );
            }
            (Some(time), None) => Some(
                time.parse()
                    .map_err(|error| format!("sinceTime: {error}"))?,
            ),
            (None, Some(seconds)) => now.saturating_sub(Duration::from_secs(seconds)).ok(),
            (None, None) => None,
        };
        Ok(Options {
            follow: is_true(self.follow.as_deref()),
            tail: positive("tailLines", self.tail_lines, 0)?,
            since,
            timestamps: is_true(self.timestamps.as_deref()),
            limit_bytes: positive("limitBytes", self.limit_bytes, 1)?,
            only: match self.stream.as_deref() {
                None | Some("" | "All") => None,
                Some("Stdout") => Some("stdout"),
                Some("Stderr") => Some("stderr"),
                Some(other) => return Err(format!("stream: unsupported value {other:?}")),
            },
        })
    }
}

/// Go's booleans in URLs; a bare `?follow` is true.
fn is_true(value: Option<&str>) -> bool {
    value.is_some_and(|value| matches!(value, "" | "1" | "t" | "T" | "true" | "True" | "TRUE"))
}

async fn container_logs(
    State((known, readers)): State<(Known, Arc<Semaphore>)>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Query<LogQuery>,
) -> Response {
    let Ok(place) = readers.try_acquire_owned() else {
        let why = format!("{READERS} logs of this node are being read already");
        return (StatusCode::TOO_MANY_REQUESTS, why).into_response();
    };
    let options = match query.options(now()) {
        Ok(options) => options,
        Err(message) => return (StatusCode::BAD_REQUEST, message).into_response(),
    };
    let file = match known.log(
        &namespace,
        &pod,
        &container,
        is_true(query.previous.as_deref()),
    ) {
        Ok(file) => file,
        Err(error) => {
            let code = match error {
                Error::NoPod { .. } => StatusCode::NOT_FOUND,
                Error::NoContainer { .. } | Error::Waiting { .. } | Error::NoPrevious { .. } => {
                    StatusCode::BAD_REQUEST
                }
            };
            return (code, error.to_string()).into_response();
        }
    };
    match Following::open(file, options, place).await {
        Ok(following) => {
            let body = Body::from_stream(stream::unfold(following, Following::next));
            ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
        }
        Err(error) => {
            let message =
                format!("failed to read the log of {namespace}/{pod}/{container}: {error}");
            (StatusCode::INTERNAL_SERVER_ERROR, message).into_response()
        }
    }
}

/// A log being read, perhaps as it grows.
struct Following {
    /// Away while a step is read on another thread.
    reader: Option<Reader>,
    progress: Option<watch::Receiver<Progress>>,
    follow: bool,
    _place: OwnedSemaphorePermit,
}

impl Following {
    async fn open(
        file: LogFile,
        options: Options,
        place: OwnedSemaphorePermit,
    ) -> std::io::Result<Following> {
        // Before the file is looked at, so that nothing written in between is missed.
        let progress = file.log.as_ref().map(|log| log.progress());
        let path = file.path;
        let reader = tokio::task::spawn_blocking(move || Reader::open(&path, &options)).await??;
        Ok(Following {
            reader: Some(reader),
            progress,
            follow: options.follow,
            _place: place,
        })
    }

    /// The next piece; ends with the log, or with the instance when following.
    async fn next(mut self) -> Option<(Result<Bytes, Infallible>, Following)> {
        loop {
            let closed = self
                .progress
                .as_mut()
                .is_none_or(|progress| progress.borrow_and_update().closed);
            let mut reader = self.reader.take()?;
            let read = tokio::task::spawn_blocking(move || {
                let piece = reader.step();
                (reader, piece)
            });
            let (reader, piece) = read.await.ok()?;
            let exhausted = reader.is_exhausted();
            self.reader = Some(reader);
            let piece = piece.ok()?;
            if !piece.is_empty() {
                if exhausted {
                    self.reader = None;
                }
                return Some((Ok(Bytes::from(piece)), self));
            }
            if !self.follow || closed || exhausted {
                return None;
            }
            if let Some(progress) = &mut self.progress {
                let changed = tokio::time::timeout(LOOK_AGAIN, progress.changed()).await;
                // A sender that is gone shows at the next look: there is no more to come.
                if matches!(changed, Ok(Err(_))) {
                    self.progress = None;
                }
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "`--since` counts from when it was asked"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests;

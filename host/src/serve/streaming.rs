//! Streams on the node's endpoint: exec, attach and port-forward, over WebSocket or SPDY/3.1, and requests that are sent on
//! into the pod network. Each upgrade becomes one connection with a task of its own, which ends with the client, with the
//! work, or with the node.
//!
//! ```text
//! upgrade (what was agreed) ─┬─ WebSocket ─┬─ channels ─┬─► remote  (exec, attach)
//!                            │             │            └─► forward (the old protocol)
//!                            │             └─ tunnel ─┐
//!                            └─ SPDY ─────────────────┴─ spdy ─► remote, forward
//! ```

mod channels;
mod forward;
mod outlet;
mod proxy;
mod remote;
mod spdy;
mod tunnel;
mod upgrade;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::duplex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;

use self::channels::{Encoding, Inlets};
use self::forward::Destination;
use self::outlet::{Outlet, queue};
use self::remote::{Ask, Ends, Options, Verdict, What};
use self::tunnel::Tunnel;
use self::upgrade::{Agreed, Offered, Wire, agree};
use crate::idle::Activity;
use crate::network::Network;
use crate::pods::exec::{ExecError, Target};
use crate::pods::known::Known;

/// Streaming connections at once.
pub(super) const MOST: usize = 256;
/// Answers of pods on their way at once.
pub(super) const PROXIED: usize = 1_024;
/// Without a byte of anybody's for so long, a connection ends: the kubelet's streamingConnectionIdleTimeout.
const IDLE: Duration = Duration::from_secs(4 * 60 * 60);
/// For the connection to become what was agreed.
const BEGIN: Duration = Duration::from_secs(10);
/// For a client to close what is over.
const LINGER: Duration = Duration::from_secs(5);
/// One message of a WebSocket.
const MAX_MESSAGE: usize = 4 << 20;
/// Bytes of a channel that wait for who reads them.
const INLET: usize = 64 * 1024;

const V5: &str = "v5.channel.k8s.io";
const V4: &str = "v4.channel.k8s.io";
const V4_BASE64: &str = "v4.base64.channel.k8s.io";
const V3: &str = "v3.channel.k8s.io";
const V2: &str = "v2.channel.k8s.io";
const V1: &str = "channel.k8s.io";
const V1_BASE64: &str = "base64.channel.k8s.io";
const FORWARD: &str = "portforward.k8s.io";
const FORWARD_TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

const REMOTE: Offered = Offered {
    websocket: &[V5, V4, V4_BASE64, V1_BASE64, V1],
    spdy: &[V4, V3, V2, V1],
};
const PORT_FORWARD: Offered = Offered {
    websocket: &[FORWARD_TUNNEL, V4_BASE64, V4],
    spdy: &[FORWARD],
};

/// What streams need of the node.
#[derive(Clone)]
pub(super) struct Streaming {
    known: Known,
    network: Arc<Network>,
    slots: Arc<Semaphore>,
    proxied: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

type Pairs = Query<Vec<(String, String)>>;

/// A connection that has become what was agreed.
struct Connection {
    wire: Wire,
    protocol: &'static str,
    io: TokioIo<Upgraded>,
    activity: Arc<Activity>,
}

// === impl Streaming ===

impl Streaming {
    pub(super) fn new(
        known: Known,
        network: Arc<Network>,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        Self {
            known,
            network,
            slots: Arc::new(Semaphore::new(MOST)),
            proxied: Arc::new(Semaphore::new(PROXIED)),
            tasks,
            stop,
        }
    }

    pub(super) fn routes(self) -> Router {
        Router::new()
            .route("/exec/{namespace}/{pod}/{container}", get(exec).post(exec))
            .route(
                "/attach/{namespace}/{pod}/{container}",
                get(attach).post(attach),
            )
            .route(
                "/portForward/{namespace}/{pod}",
                get(port_forward).post(port_forward),
            )
            .route("/podProxy/{*rest}", any(proxy::proxy))
            .with_state(self)
    }

    /// Answers with what was agreed, and then does `work`.
    fn begin<W>(
        &self,
        agreed: Agreed,
        work: impl FnOnce(Connection) -> W + Send + 'static,
    ) -> Response
    where
        W: Future<Output = ()> + Send + 'static,
    {
        let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
            let why = format!("this node serves {MOST} streams already");
            return (StatusCode::TOO_MANY_REQUESTS, why).into_response();
        };
        let Agreed {
            wire,
            protocol,
            answer,
            upgrade,
        } = agreed;
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _slot: OwnedSemaphorePermit = slot;
            let io = match tokio::time::timeout(BEGIN, upgrade).await {
                Ok(Ok(io)) => TokioIo::new(io),
                Ok(Err(error)) => {
                    return tracing::debug!(error = %chain(&error), "A stream did not begin");
                }
                Err(_) => return tracing::debug!("A stream did not begin in time"),
            };
            let activity = Arc::new(Activity::new());
            let work = work(Connection {
                wire,
                protocol,
                io,
                activity: Arc::clone(&activity),
            });
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = activity.quiet(IDLE) => tracing::debug!("A stream was idle for too long"),
                () = work => {}
            }
        });
        answer
    }

    fn remote(&self, request: Request, ask: Ask) -> Response {
        if let Err(error) = self.known.check(&ask.target) {
            let status = match error {
                ExecError::NoPod | ExecError::NoContainer { .. } => StatusCode::NOT_FOUND,
                ExecError::NotRunning { .. } => StatusCode::BAD_REQUEST,
                _ => StatusCode::INTERNAL_SERVER_ERROR,
            };
            return (status, error.to_string()).into_response();
        }
        let known = self.known.clone();
        match agree(request, &REMOTE) {
            Ok(agreed) => self.begin(agreed, move |connection| {
                Box::pin(connection.remote(known, ask))
            }),
            Err(refusal) => refusal.into_response(),
        }
    }
}

async fn exec(
    State(streaming): State<Streaming>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Pairs,
    request: Request,
) -> Response {
    let asked = Options::read(&query).and_then(|options| Ok((options, remote::command(&query)?)));
    let (options, command) = match asked {
        Ok(asked) => asked,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let ask = Ask {
        target: target(namespace, pod, container),
        what: What::Exec(command),
        options,
    };
    streaming.remote(request, ask)
}

async fn attach(
    State(streaming): State<Streaming>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(query): Pairs,
    request: Request,
) -> Response {
    let options = match Options::read(&query) {
        Ok(options) => options,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let ask = Ask {
        target: target(namespace, pod, container),
        what: What::Attach,
        options,
    };
    streaming.remote(request, ask)
}

fn target(namespace: String, pod: String, container: String) -> Target {
    Target {
        namespace,
        pod,
        uid: None,
        container,
    }
}

async fn port_forward(
    State(streaming): State<Streaming>,
    Path((namespace, name)): Path<(String, String)>,
    Query(query): Pairs,
    request: Request,
) -> Response {
    if streaming.known.find(&namespace, &name).is_none() {
        return (StatusCode::NOT_FOUND, ExecError::NoPod.to_string()).into_response();
    }
    // Known, but not on the network: not started yet, or over.
    let Some(pod) = streaming.network.pod(&namespace, &name) else {
        let why = format!("pod not found (\"{name}_{namespace}\")");
        return (StatusCode::NOT_FOUND, why).into_response();
    };
    let agreed = match agree(request, &PORT_FORWARD) {
        Ok(agreed) => agreed,
        Err(refusal) => return refusal.into_response(),
    };
    // The old protocol names its ports beforehand, the others with each connection.
    let ports = match agreed.protocol {
        V4 | V4_BASE64 => forward::ports(&query),
        _ => Ok(Vec::new()),
    };
    let ports = match ports {
        Ok(ports) => ports,
        Err(why) => return (StatusCode::BAD_REQUEST, why).into_response(),
    };
    let to = Arc::new(Destination { pod });
    streaming.begin(agreed, move |connection| {
        Box::pin(connection.forward(ports, to))
    })
}

// === impl Connection ===

impl Connection {
    async fn remote(self, known: Known, ask: Ask) {
        let verdict = match self.protocol {
            V5 | V4 | V4_BASE64 => Verdict::Status,
            _ => Verdict::Text,
        };
        let (queue, queued) = queue();
        if self.wire == Wire::Spdy {
            let resizes = matches!(self.protocol, V4 | V3);
            let work = |opened| remote::over_spdy(opened, &known, ask, verdict, resizes);
            let served = spdy::run(self.io, (queue, queued), &self.activity, work).await;
            return ended(served);
        }
        let mut inlets: Inlets = (0..5).map(|_| None).collect();
        let mut inlet = |channel: usize, wanted: bool| {
            wanted.then(|| {
                let (here, there) = duplex(INLET);
                inlets[channel] = Some(here);
                there
            })
        };
        let outlet = |channel: u32, wanted: bool| wanted.then(|| Outlet::new(channel, &queue));
        let options = ask.options;
        let ends = Ends {
            stdin: inlet(0, options.stdin),
            resize: inlet(4, options.tty),
            stdout: outlet(1, options.stdout),
            stderr: outlet(2, options.stderr),
            error: Outlet::new(3, &queue),
        };
        // An empty message on the lowest channel says that the connection stands.
        let lowest = match options {
            Options { stdout: true, .. } => 1,
            Options { stderr: true, .. } => 2,
            _ => 3,
        };
        let stands = outlet::Out::Data {
            stream: lowest,
            bytes: bytes::Bytes::new(),
            fin: false,
        };
        let first = queue.clone();
        let work = async move {
            drop(first.send(stands).await);
            drop(first);
            remote::run(&known, ask, ends, verdict).await;
        };
        let (encoding, activity) = (encoding(self.protocol), Arc::clone(&self.activity));
        let socket = self.socket().await;
        channels::run(socket, encoding, inlets, (queue, queued), &activity, work).await;
    }

    async fn forward(self, ports: Vec<u16>, to: Arc<Destination>) {
        let (queue, queued) = queue();
        let activity = Arc::clone(&self.activity);
        if self.wire == Wire::Spdy {
            let work = |opened| forward::over_spdy(opened, to);
            return ended(spdy::run(self.io, (queue, queued), &activity, work).await);
        }
        if self.protocol == FORWARD_TUNNEL {
            let work = |opened| forward::over_spdy(opened, to);
            let io = Tunnel::new(self.socket().await);
            return ended(spdy::run(io, (queue, queued), &activity, work).await);
        }
        let encoding = encoding(self.protocol);
        let mut inlets = Inlets::new();
        let mut work = tokio::task::JoinSet::new();
        for (at, port) in (0_u32..).zip(ports) {
            let (here, there) = duplex(INLET);
            inlets.extend([Some(here), None]);
            let (data, error) = (Outlet::new(2 * at, &queue), Outlet::new(2 * at + 1, &queue));
            let to = Arc::clone(&to);
            work.spawn(forward::over_channels(port, there, data, error, to));
        }
        let work = async move { while work.join_next().await.is_some() {} };
        let socket = self.socket().await;
        channels::run(socket, encoding, inlets, (queue, queued), &activity, work).await;
    }

    async fn socket(self) -> WebSocketStream<TokioIo<Upgraded>> {
        let config = WebSocketConfig::default()
            .max_message_size(Some(MAX_MESSAGE))
            .max_frame_size(Some(MAX_MESSAGE));
        WebSocketStream::from_raw_socket(self.io, Role::Server, Some(config)).await
    }
}

fn encoding(protocol: &str) -> Encoding {
    match protocol {
        V4_BASE64 | V1_BASE64 => Encoding::Base64,
        _ => Encoding::Binary,
    }
}

fn ended(served: Result<(), spdy::SpdyError>) {
    if let Err(error) = served {
        tracing::debug!(error = %chain(&error), "A SPDY connection ended badly");
    }
}

//! What another node sends: who it says it comes from, whether that may be, and where it goes on this node.
//! Everything that comes in passes [`Incoming::admit`].

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::header::{HeaderMap, HeaderValue};
use http::{Method, Request, Response};
use tracing::debug;

use super::{Tunnel, streams, words};
use crate::network::SocketError;
use crate::network::client::{Client, Whose};
use crate::network::identity::Identity;
use crate::network::pipe::Budget;
use crate::network::pod::PodNetwork;
use crate::network::traffic::Workload;
use crate::network::vnet::{Caller, Fabric};

/// Sources one connection remembers; when there are more it starts anew.
const SOURCES: usize = 4_096;

/// What comes in on one connection.
pub(super) struct Incoming {
    pub(super) fabric: Arc<Fabric>,
    tunnel: Arc<Tunnel>,
    /// The node at the other end, from its certificate.
    node: Box<str>,
    /// Held for a few instructions, never over an await.
    /// Datagrams show no identity, and throw nothing away that was shown with others.
    sources: Mutex<HashMap<(Ipv4Addr, bool), Believed>>,
}

/// A source, and the identity it was shown with.
type Believed = (Option<HeaderValue>, Arc<Source>);

/// A pod of another node, or that node itself: believed, as its Node object gives it the address.
pub(crate) struct Source {
    pub(crate) address: Ipv4Addr,
    pub(crate) identity: Option<Arc<Identity>>,
    pub(crate) workload: Arc<Workload>,
    /// Its HTTP to endpoints that listen on sockets.
    client: OnceLock<Client>,
}

// === impl Source ===

impl Source {
    /// As the source of a connection to `pod`, which pays for what it does not read.
    pub(super) fn caller<'a>(self: &'a Arc<Self>, port: u16, pod: &'a PodNetwork) -> Caller<'a> {
        self.paid_by(port, pod.budget())
    }

    fn paid_by<'a>(self: &'a Arc<Self>, port: u16, budget: &'a Arc<Budget>) -> Caller<'a> {
        Caller {
            pod: None,
            remote: Some(self),
            from: SocketAddr::from((self.address, port)),
            budget,
            sockets: None,
            workload: &self.workload,
            identity: self.identity.as_ref(),
        }
    }

    /// The source of a connection of its HTTP client here.
    pub(crate) fn client_caller<'a>(self: &'a Arc<Self>, fabric: &'a Fabric) -> Caller<'a> {
        self.paid_by(fabric.node_ports.outgoing(), &fabric.rim_budget)
    }

    pub(crate) fn client(self: &Arc<Self>, fabric: &Arc<Fabric>) -> &Client {
        self.client.get_or_init(|| {
            Client::new(Arc::downgrade(fabric), Whose::Remote(Arc::downgrade(self)))
        })
    }
}

// === impl Incoming ===

impl Incoming {
    pub(super) fn new(fabric: Arc<Fabric>, tunnel: Arc<Tunnel>, node: &str) -> Self {
        Self {
            fabric,
            tunnel,
            node: node.into(),
            sources: Mutex::default(),
        }
    }

    /// One stream, until it ends.
    pub(super) async fn serve(&self, request: Request<RecvStream>, respond: SendResponse<Bytes>) {
        if request.method() != Method::CONNECT {
            self.call(request, respond).await;
        } else if request
            .uri()
            .authority()
            .is_some_and(|to| to == words::DATAGRAMS)
        {
            Box::pin(self.datagrams(request.into_body(), respond)).await;
        } else if request
            .uri()
            .authority()
            .is_some_and(|to| to == words::KIND)
        {
            self.kind(request.headers(), respond);
        } else {
            Box::pin(self.connect(request, respond)).await;
        }
    }

    /// The one place where what comes from other nodes is let in or not: `to` must be a pod of this node, and the pod must
    /// want it. What policies say, whoever delivers asks.
    pub(super) fn admit(&self, to: SocketAddr) -> Result<Arc<PodNetwork>, SocketError> {
        let IpAddr::V4(address) = to.ip() else {
            return Err(SocketError::Refused);
        };
        // A pod that has ended or moved refuses at once.
        self.fabric.pod(address).ok_or(SocketError::Refused)
    }

    /// Who sends, with the port it sends from.
    pub(super) fn source(&self, headers: &HeaderMap) -> Result<(Arc<Source>, u16), SocketError> {
        let from = headers
            .get(words::FROM)
            .and_then(|value| value.to_str().ok());
        let (address, port) = from.and_then(address).ok_or(SocketError::Denied)?;
        let identity = headers.get(words::IDENTITY);
        Ok((self.believe(address, identity)?, port))
    }

    /// `Denied` when the other node has no right to `address`.
    pub(super) fn believe(
        &self,
        address: Ipv4Addr,
        identity: Option<&HeaderValue>,
    ) -> Result<Arc<Source>, SocketError> {
        if !self.tunnel.speaks_for(&self.node, address) {
            debug!(node = %self.node, %address, "Refused what another node sent for an address that is not its own");
            return Err(SocketError::Denied);
        }
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (address, identity.is_some());
        if let Some((shown, source)) = sources.get(&key)
            && shown.as_ref() == identity
        {
            return Ok(Arc::clone(source));
        }
        if sources.len() >= SOURCES {
            sources.clear();
        }
        let known = identity.and_then(words::identity);
        let workload = match &known {
            Some(known) if known.is_ingress() => Arc::clone(&self.fabric.outside),
            Some(known) => self
                .fabric
                .traffic
                .workload(&format!("{}/{}", known.namespace, known.workload)),
            None => Arc::clone(&self.fabric.outside),
        };
        let source = Arc::new(Source {
            address,
            identity: known,
            workload,
            client: OnceLock::new(),
        });
        sources.insert(key, (identity.cloned(), Arc::clone(&source)));
        Ok(source)
    }

    /// A stream of bytes.
    async fn connect(&self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let accepted = async {
            let to = request.uri().authority().map(|to| to.as_str());
            let to: SocketAddr = to
                .and_then(|to| to.parse().ok())
                .ok_or(SocketError::Refused)?;
            let (source, port) = self.source(request.headers())?;
            let pod = self.admit(to)?;
            let caller = source.caller(port, &pod);
            let stream = self.fabric.deliver(&pod, &caller, to, to, None).await?;
            Ok((pod, stream))
        };
        let (pod, stream) = match accepted.await {
            Ok(accepted) => accepted,
            Err(error) => {
                let mut refusal = Response::new(());
                *refusal.status_mut() = words::status(error);
                // Who does not wait for the answer does not need it.
                drop(respond.send_response(refusal, true));
                return;
            }
        };
        let budget = Arc::clone(pod.budget());
        drop(pod);
        match respond.send_response(Response::new(()), false) {
            Ok(send) => streams::carry(stream, request.into_body(), send, budget).await,
            Err(_) => stream.reset(),
        }
    }
}

/// `100.64.0.5:40000`, or without a port.
fn address(text: &str) -> Option<(Ipv4Addr, u16)> {
    let (address, port) = match text.split_once(':') {
        Some((address, port)) => (address, port.parse().ok()?),
        None => (text, 0),
    };
    Some((address.parse().ok()?, port))
}

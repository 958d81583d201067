//! One pod's network namespace: its address, its listeners, its way out. Containers of a pod share it.
//! Everything here is a thin door: where a connection goes is decided in `vnet`, where a request goes in `http`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use http::{Request, Response};
use tokio::sync::Semaphore;

use super::client::{Client, Whose};
use super::egress::Restricted;
use super::identity::Identity;
use super::pipe::Budget;
use super::policy::{Isolation, NamedPort, Way};
use super::ports::{Bound, Listener, PortTable, Ports, Serving, Sockets};
use super::traffic::Workload;
use super::vnet::{Caller, Fabric};
use super::{Body, HttpError, HttpHandler, Resolved, SocketError, Stream, UdpSocket};
use crate::dns;

/// Lookups of outside names one pod may have going on; further ones wait.
const LOOKUPS: usize = 16;
/// Questions to the node's DNS server one pod may have open; further datagrams are lost, streams wait.
const QUESTIONS: usize = 128;

/// Who a pod is, for its address, its names and the metrics.
#[derive(Clone, Debug, Default)]
pub struct PodIdentity {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// For metrics: the Deployment's (or other owner's) name; the pod's own where it has none.
    pub workload: String,
    pub service_account: String,
    /// The address the pod had before a restart of the node; it gets another when that is taken.
    pub address: Option<Ipv4Addr>,
    /// `spec.hostname`, or the pod's name: resolves to its own address.
    pub hostname: String,
    /// `spec.subdomain`.
    pub subdomain: Option<String>,
    /// `spec.hostAliases`.
    pub host_aliases: Vec<(IpAddr, Vec<String>)>,
    pub dns_policy: DnsPolicy,
    /// `spec.dnsConfig.searches`, after those of the policy.
    pub searches: Vec<String>,
    /// `metadata.labels` and the named ports of the containers, for policies.
    pub labels: BTreeMap<String, String>,
    pub ports: Vec<NamedPort>,
    /// `spec.dnsConfig.options` `ndots`; 5 with `ClusterFirst`, 1 otherwise.
    pub ndots: Option<u8>,
}

/// `spec.dnsPolicy`; `ClusterFirstWithHostNet` is `ClusterFirst` here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DnsPolicy {
    #[default]
    ClusterFirst,
    /// As the node resolves: no cluster names, no search domains.
    Default,
    /// Only what `searches` and `ndots` say.
    None,
}

/// A pod's network namespace. `Arc`; every method may be called from any task.
pub struct PodNetwork {
    fabric: Arc<Fabric>,
    address: Ipv4Addr,
    identity: PodIdentity,
    /// Of it, what others get to know.
    shown: Arc<Identity>,
    ports: Arc<PortTable>,
    sockets: Arc<Sockets>,
    budget: Arc<Budget>,
    workload: Arc<Workload>,
    /// HTTP requests the pod is answering.
    requests: Arc<Requests>,
    /// Outgoing HTTP to endpoints that listen on sockets.
    client: OnceLock<Client>,
    /// Outgoing HTTP to the outside while policies restrict it, and the decisions it was made under.
    /// Held for a few instructions, never over an await.
    restricted: Mutex<Option<(u64, Restricted)>>,
    isolation: Isolation,
    lookups: Arc<Semaphore>,
    /// Questions to the DNS server the pod may have open.
    questions: Arc<Semaphore>,
    /// Real connections the pod may have.
    outside: Arc<Semaphore>,
}

/// HTTP requests a pod is answering, and how many it may.
pub(crate) struct Requests {
    open: AtomicUsize,
    limit: usize,
}

/// One HTTP request a pod is answering.
pub(crate) struct RequestSlot(Arc<Requests>);

// === impl PodNetwork ===

impl PodNetwork {
    pub(crate) fn new(fabric: Arc<Fabric>, address: Ipv4Addr, identity: PodIdentity) -> Self {
        let limits = &fabric.config.limits;
        let workload = if identity.workload.is_empty() {
            &identity.name
        } else {
            &identity.workload
        };
        let shown = Arc::new(Identity {
            namespace: identity.namespace.clone(),
            pod: identity.name.clone(),
            service_account: identity.service_account.clone(),
            workload: workload.clone(),
        });
        let workload = fabric
            .traffic
            .workload(&format!("{}/{workload}", identity.namespace));
        Self {
            address,
            shown,
            ports: Arc::default(),
            sockets: Arc::new(Sockets::new(limits.sockets_per_pod)),
            budget: Arc::new(Budget::new(limits.buffers_per_pod)),
            workload,
            requests: Arc::new(Requests {
                open: AtomicUsize::new(0),
                limit: limits.requests_per_pod,
            }),
            client: OnceLock::new(),
            restricted: Mutex::default(),
            isolation: Isolation::default(),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            questions: Arc::new(Semaphore::new(QUESTIONS)),
            outside: Arc::new(Semaphore::new(limits.outside_per_pod)),
            identity,
            fabric,
        }
    }

    /// The pod IP.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    pub fn identity(&self) -> &PodIdentity {
        &self.identity
    }

    /// Connects to a pod, a Service, this pod (127.0.0.1) or the outside. `Refused` when nothing listens, `Unreachable`
    /// when the address is nobody's, `TimedOut` when a backlog stays full, `Denied` by policy, `TooMany` sockets.
    /// Cancel by dropping.
    pub async fn connect(&self, to: SocketAddr) -> Result<Stream, SocketError> {
        self.fabric.connect(&self.caller(), to).await
    }

    /// Listens on every address of the pod; port 0 picks a free one.
    pub fn listen(&self, port: u16, backlog: usize) -> Result<Listener, SocketError> {
        self.bind_tcp(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?
            .listen(backlog)
    }

    /// Takes a port. The address is unspecified (v4 or v6), the pod's own, or loopback: then only the pod itself may connect.
    pub fn bind_tcp(&self, at: SocketAddr) -> Result<Bound, SocketError> {
        let slot = self.sockets.take()?;
        self.ports.bind_tcp(self.address, at, slot)
    }

    /// As [`PodNetwork::bind_udp_at`] on every address of the pod.
    pub fn bind_udp(&self, port: u16) -> Result<UdpSocket, SocketError> {
        self.bind_udp_at(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))
    }

    /// A UDP socket; the address as for [`PodNetwork::bind_tcp`].
    pub fn bind_udp_at(&self, at: SocketAddr) -> Result<UdpSocket, SocketError> {
        UdpSocket::bind(
            Arc::clone(&self.fabric),
            Arc::clone(&self.ports),
            self.address,
            at,
            self.sockets.take()?,
        )
    }

    /// A name as the pod's resolver sees it: literals, localhost, its own hostname and aliases, cluster names with search
    /// domains, the outside from the node's name servers. Cancel by dropping.
    pub async fn resolve(&self, name: &str) -> Resolved {
        dns::resolve(self, name).await
    }

    /// A guest's outgoing HTTP call. The authority is a Service's name or address, a pod's, localhost or outside.
    /// [`super::Hops`] are read from the request's extensions. Timeouts are the caller's: cancel by dropping.
    pub async fn http(&self, request: Request<Body>) -> Result<Response<Body>, HttpError> {
        super::http::send(self, request).await
    }

    /// Answers HTTP on `ports` until the guard is dropped. `InUse` when another container of the pod has one of them.
    pub fn serve_http(
        &self,
        ports: Ports,
        handler: Arc<dyn HttpHandler>,
    ) -> Result<Serving, SocketError> {
        self.ports.serve_http(ports, &handler)
    }

    /// Open connections, listeners and UDP sockets.
    pub fn open_sockets(&self) -> usize {
        self.sockets.open()
    }

    /// Bytes the pod has sent that nobody has read yet.
    pub fn queued_bytes(&self) -> usize {
        self.budget.used()
    }

    pub(crate) fn fabric(&self) -> &Arc<Fabric> {
        &self.fabric
    }

    pub(crate) fn ports(&self) -> &Arc<PortTable> {
        &self.ports
    }

    pub(crate) fn sockets(&self) -> &Arc<Sockets> {
        &self.sockets
    }

    pub(crate) fn budget(&self) -> &Arc<Budget> {
        &self.budget
    }

    pub(crate) fn workload(&self) -> &Arc<Workload> {
        &self.workload
    }

    pub(crate) fn lookups(&self) -> &Arc<Semaphore> {
        &self.lookups
    }

    pub(crate) fn questions(&self) -> &Arc<Semaphore> {
        &self.questions
    }

    pub(crate) fn outside(&self) -> &Arc<Semaphore> {
        &self.outside
    }

    pub(crate) fn client(&self) -> &Client {
        self.client
            .get_or_init(|| Client::new(Arc::downgrade(&self.fabric), Whose::Pod(self.address)))
    }

    pub(crate) fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// A client for the outside that connects only where policies let this pod. Another one when they have changed: the
    /// connections of the last are of the past.
    pub(crate) fn restricted(&self) -> Restricted {
        let epoch = self.fabric.policy.epoch();
        let mut known = self
            .restricted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match &*known {
            Some((at, client)) if *at == epoch => client.clone(),
            _ => {
                let (fabric, address) = (Arc::downgrade(&self.fabric), self.address);
                let check = move |to: SocketAddr| {
                    fabric.upgrade().is_some_and(|fabric| {
                        let pod = fabric.pod(address);
                        pod.is_some_and(|pod| {
                            let way = Way::of(&pod.caller(), None, to, to);
                            fabric.admit_now(&way).is_ok()
                        })
                    })
                };
                let client = self.fabric.egress.restricted(Arc::new(check));
                *known = Some((epoch, client.clone()));
                client
            }
        }
    }

    pub(crate) fn requests(&self) -> &Arc<Requests> {
        &self.requests
    }

    /// This pod as the source of a connection.
    pub(crate) fn caller(&self) -> Caller<'_> {
        Caller {
            pod: Some(self),
            remote: None,
            from: SocketAddr::from((self.address, self.ports.outgoing())),
            budget: &self.budget,
            sockets: Some(&self.sockets),
            workload: &self.workload,
            identity: Some(&self.shown),
        }
    }
}

// === impl Requests ===

impl Requests {
    /// Counts a request, or `None` when the pod answers as many as it may.
    pub(crate) fn begin(self: &Arc<Self>) -> Option<RequestSlot> {
        let before = self.open.fetch_add(1, Ordering::Relaxed);
        let slot = RequestSlot(Arc::clone(self));
        (before < self.limit).then_some(slot)
    }
}

impl Drop for RequestSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

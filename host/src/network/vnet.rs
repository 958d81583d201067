//! The table of pods, and where a connection goes: own pod, another pod, a Service, outside. Owns addresses and pods;
//! reads the table of Services, never writes it.
//!
//! An address of the cluster that is not on this node leads through the tunnel.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use rand::RngExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::addresses::Addresses;
use super::balancer::{self, Endpoint, InFlight, Millis, Tried};
use super::client::{Client, Whose};
use super::egress::Egress;
use super::identity::Identity;
use super::namespaces::Namespaces;
use super::nodes::{Node, Nodes};
use super::observe::Observer;
use super::pipe::Budget;
use super::places::Places;
use super::pod::{PodIdentity, PodNetwork};
use super::policy::Gate;
use super::ports::{PortTable, Sockets};
use super::table::{Port, Protocol, Table};
use super::traffic::{Answers, OUTSIDE, Traffic, Workload};
use super::tunnel::{self, Peer, Source, Tunnel};
use super::udp::{Lost, Outsiders};
use super::{Config, Error, SocketError, Stream};
use crate::dns::server::Dns;
use crate::dns::upstream::Upstream;

/// Bytes all listeners together may have queued towards pods before their buffers shrink.
const RIM_BUDGET: usize = 64 << 20;
/// Connections of balancers that ask for a node's health.
const HEALTH_CONNECTIONS: usize = 256;

/// How long a connection or request waits for other endpoints when all it knew have refused, and how often.
const RENEWAL: Duration = Duration::from_secs(1);
pub(crate) const RENEWALS: usize = 2;

/// What every part of the network shares.
pub(crate) struct Fabric {
    pub(crate) config: Config,
    pub(crate) services: watch::Receiver<Arc<Table>>,
    pub(crate) namespaces: watch::Receiver<Arc<Namespaces>>,
    pub(crate) dns: Arc<Dns>,
    pub(crate) policy: Gate,
    pub(crate) nodes: Arc<Nodes>,
    /// The way to other nodes' pods; `None` where there are no other nodes.
    pub(crate) tunnel: Option<Arc<Tunnel>>,
    pub(crate) egress: Egress,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) traffic: Traffic,
    /// What clients of Ingress and Gateway were answered.
    pub(crate) answers: Answers,
    pub(crate) observer: Observer,
    pub(crate) outside: Arc<Workload>,
    /// As which Ingress and Gateway are judged, beside their clients.
    ingress: Arc<Identity>,
    /// Every task of the network.
    pub(crate) tasks: TaskTracker,
    /// Shutdown has begun: accept nothing new, finish what is in flight.
    pub(crate) draining: CancellationToken,
    /// Stop at once.
    pub(crate) stop: CancellationToken,
    pub(crate) rim_budget: Arc<Budget>,
    /// Connections from outside, by the address they come from.
    pub(crate) rim_connections: Arc<Places<IpAddr>>,
    /// The same to the ports that only say whether a Service has endpoints here.
    pub(crate) health_connections: Arc<Places<IpAddr>>,
    /// Real connections of all pods together: one guest must not take every file descriptor.
    outside_connections: Arc<Semaphore>,
    /// Where UDP clients outside seem to be, for pods.
    pub(crate) node_address: Ipv4Addr,
    pub(crate) node_ports: Arc<PortTable>,
    pub(crate) outsiders: Outsiders,
    /// Datagrams that were dropped.
    pub(crate) lost: Arc<Lost>,
    rim_client: OnceLock<Client>,
    pods: RwLock<HashMap<Ipv4Addr, Arc<PodNetwork>>>,
    addresses: Mutex<Addresses>,
    epoch: Instant,
}

/// Who opens a connection.
pub(crate) struct Caller<'a> {
    /// `None` for the node itself and for clients outside.
    pub(crate) pod: Option<&'a PodNetwork>,
    /// A pod of another node, which this node asks for.
    pub(crate) remote: Option<&'a Arc<Source>>,
    /// As the other end sees it.
    pub(crate) from: SocketAddr,
    pub(crate) budget: &'a Arc<Budget>,
    pub(crate) sockets: Option<&'a Arc<Sockets>>,
    pub(crate) workload: &'a Arc<Workload>,
    /// `None` for the node itself, for clients outside, and for what another node is not believed to speak for.
    pub(crate) identity: Option<&'a Arc<Identity>>,
}

/// One real connection of a pod.
pub(crate) struct OutsideSlot {
    _pod: Option<OwnedSemaphorePermit>,
    _node: OwnedSemaphorePermit,
}

/// Where an address leads.
pub(crate) enum Route {
    Own,
    Pod(Arc<PodNetwork>),
    Service(Arc<Port>),
    /// The node's DNS server, at its address inside the cluster.
    Dns,
    /// A pod of another node.
    Node(Arc<Peer>),
    Outside,
    Nowhere(SocketError),
}

// === impl Fabric ===

impl Fabric {
    pub(crate) fn new(
        config: Config,
        services: watch::Receiver<Arc<Table>>,
        namespaces: watch::Receiver<Arc<Namespaces>>,
    ) -> Result<Arc<Self>, Error> {
        let traffic = Traffic::default();
        let dns = Arc::new(Dns::new(
            &config.dns,
            &config.cluster_domain,
            vec![config.cluster_cidr, config.service_cidr],
            services.clone(),
            namespaces.clone(),
        ));
        let upstream = Arc::new(Upstream::new(dns.forward()));
        let quarter = descriptors() / 4;
        let stop = CancellationToken::new();
        let lost = Arc::new(Lost::default());
        let tunnel = config
            .tunnel
            .as_ref()
            .map(|config| Tunnel::new(config, stop.clone(), Arc::clone(&lost)).map(Arc::new))
            .transpose()
            .map_err(|error| Error::Tls(error.to_string()))?;
        Ok(Arc::new(Self {
            tunnel,
            egress: Egress::new(&config, Arc::clone(&upstream))?,
            upstream,
            outside: traffic.workload(OUTSIDE),
            traffic,
            answers: Answers::default(),
            ingress: Arc::new(Identity::ingress()),
            dns,
            observer: Observer::new(&config.observe, &config.node_name)?,
            services,
            namespaces,
            policy: Gate::default(),
            nodes: Arc::new(Nodes::new(&config.node_name)),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            stop,
            rim_budget: Arc::new(Budget::new(RIM_BUDGET)),
            rim_connections: Places::new(config.limits.listener_connections.min(quarter)),
            health_connections: Places::new(HEALTH_CONNECTIONS.min(quarter)),
            outside_connections: Arc::new(Semaphore::new(quarter)),
            node_address: Addresses::node(config.pod_cidr),
            node_ports: Arc::default(),
            outsiders: Outsiders::new(quarter / 2),
            lost,
            rim_client: OnceLock::new(),
            pods: RwLock::default(),
            addresses: Mutex::new(Addresses::new(config.pod_cidr)),
            epoch: Instant::now(),
            config,
        }))
    }

    pub(crate) fn attach(
        self: &Arc<Self>,
        identity: PodIdentity,
    ) -> Result<Arc<PodNetwork>, Error> {
        let address = {
            let mut addresses = self
                .addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            match identity.address {
                Some(wanted) if addresses.claim(wanted) => wanted,
                _ => addresses
                    .allocate()
                    .ok_or(Error::AddressesExhausted(self.config.pod_cidr))?,
            }
        };
        let pod = Arc::new(PodNetwork::new(Arc::clone(self), address, identity));
        self.pods
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(address, Arc::clone(&pod));
        // After it can be found: the next table finds it too.
        self.policy.refresh(&pod);
        Ok(pod)
    }

    /// Twice is the same as once.
    pub(crate) fn detach(&self, pod: &PodNetwork) {
        let removed = {
            let mut pods = self.pods.write().unwrap_or_else(PoisonError::into_inner);
            match pods.get(&pod.address()) {
                Some(known) if std::ptr::eq(Arc::as_ptr(known), pod) => pods.remove(&pod.address()),
                _ => None,
            }
        };
        if removed.is_some() {
            pod.ports().close();
            self.addresses
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .free(pod.address());
        }
    }

    pub(crate) fn clear(&self) {
        let pods = std::mem::take(&mut *self.pods.write().unwrap_or_else(PoisonError::into_inner));
        for pod in pods.into_values() {
            pod.ports().close();
        }
    }

    pub(crate) fn pod(&self, address: Ipv4Addr) -> Option<Arc<PodNetwork>> {
        self.pods
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&address)
            .cloned()
    }

    /// A pod's address, on whatever node.
    pub(crate) fn is_of_cluster(&self, ip: IpAddr) -> bool {
        matches!(ip, IpAddr::V4(ip) if self.config.cluster_cidr.contains(&ip))
    }

    /// The other node that has `address`.
    pub(crate) fn peer(&self, address: Ipv4Addr) -> Option<Arc<Peer>> {
        self.tunnel.as_ref()?.peer(address)
    }

    pub(crate) fn pods(&self) -> Vec<Arc<PodNetwork>> {
        let pods = self.pods.read().unwrap_or_else(PoisonError::into_inner);
        pods.values().cloned().collect()
    }

    /// Milliseconds since the network was made.
    pub(crate) fn now(&self) -> Millis {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// The node itself as a source.
    pub(crate) fn rim(&self) -> Caller<'_> {
        self.rim_from(SocketAddr::from((self.node_address, 0)))
    }

    /// A client outside as a source.
    pub(crate) fn rim_from(&self, from: SocketAddr) -> Caller<'_> {
        Caller {
            pod: None,
            remote: None,
            from,
            budget: &self.rim_budget,
            sockets: None,
            workload: &self.outside,
            identity: None,
        }
    }

    /// A client outside whose request Ingress or Gateway passes on.
    pub(crate) fn ingress_from(&self, from: SocketAddr) -> Caller<'_> {
        Caller {
            identity: Some(&self.ingress),
            ..self.rim_from(from)
        }
    }

    pub(crate) fn rim_client(self: &Arc<Self>) -> &Client {
        self.rim_client
            .get_or_init(|| Client::new(Arc::downgrade(self), Whose::Node))
    }

    /// An endpoint of `port` that was not tried, by affinity or by load.
    pub(crate) fn pick<'a>(
        &self,
        port: &'a Port,
        client: Option<IpAddr>,
        tried: &Tried,
    ) -> Option<&'a Arc<Endpoint>> {
        self.pick_at(port, client, tried, self.now())
    }

    pub(crate) fn pick_at<'a>(
        &self,
        port: &'a Port,
        client: Option<IpAddr>,
        tried: &Tried,
        now: Millis,
    ) -> Option<&'a Arc<Endpoint>> {
        let mut rng = rand::rng();
        let draw = |n: usize| rng.random_range(0..n);
        let (Some(affinity), Some(client)) = (&port.affinity, client) else {
            return balancer::pick(&port.endpoints, tried, now, draw);
        };
        let mut clients = affinity
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let known = clients.recall(client, &port.endpoints, tried, now, affinity.timeout);
        known.or_else(|| {
            let picked = balancer::assign(&port.endpoints, tried, now, client)?;
            clients.remember(client, picked.address, now);
            Some(picked)
        })
    }

    /// The same port with other endpoints, as soon as the table has them: what refused is mostly a pod that has just ended,
    /// and its successor is about to be known. The same ones, when one is on a node that could not be reached and now can.
    /// `None` after [`RENEWAL`].
    pub(crate) async fn renewed(&self, port: &Port) -> Option<Arc<Port>> {
        let mut tables = self.services.clone();
        let mut returned = self.nodes.returned();
        let nodes = port.endpoints.iter().filter_map(|e| e.node.as_deref());
        let away: Vec<&Node> = nodes.filter(|node| !node.is_reachable()).collect();
        let find = async {
            loop {
                {
                    let table = tables.borrow_and_update();
                    let found = table
                        .get(&port.service.namespace, &port.service.name)?
                        .port_for(port.scope, port.number, port.protocol)?;
                    let back = away.iter().any(|node| node.is_reachable());
                    if !found.endpoints.is_empty() && (back || !found.same_endpoints(port)) {
                        return Some(Arc::clone(found));
                    }
                }
                tokio::select! {
                    changed = tables.changed() => changed.ok()?,
                    Ok(()) = returned.changed() => {}
                }
            }
        };
        tokio::time::timeout(RENEWAL, find).await.ok().flatten()
    }

    pub(crate) fn route_udp(&self, pod: Ipv4Addr, to: SocketAddr) -> Route {
        self.route(Some(pod), to, Protocol::Udp)
    }

    /// `to` is canonical: no IPv4 address in IPv6 clothes.
    pub(crate) fn route(&self, own: Option<Ipv4Addr>, to: SocketAddr, protocol: Protocol) -> Route {
        let ip = to.ip();
        if own.is_some_and(|own| ip.is_loopback() || ip == IpAddr::V4(own)) {
            return Route::Own;
        }
        let dns = self.dns.address() == Some(to) && protocol != Protocol::Sctp;
        let table = self.services.borrow();
        if let Some(mut services) = table.at(ip) {
            let found = services.find_map(|service| {
                let port = service.port_at(ip, to.port(), protocol)?;
                Some((port, own.is_none_or(|own| service.admits(ip, own.into()))))
            });
            return match found {
                // As who comes from outside to an address of the pool.
                Some((_, false)) => Route::Nowhere(SocketError::Refused),
                // A Service of that address may stand for it; one that leads somewhere takes its place.
                Some((port, true)) if !dns || !port.endpoints.is_empty() => {
                    Route::Service(Arc::clone(port))
                }
                _ if dns => Route::Dns,
                Some((port, true)) => Route::Service(Arc::clone(port)),
                None => Route::Nowhere(SocketError::Refused),
            };
        }
        drop(table);
        if dns {
            return Route::Dns;
        }
        if let IpAddr::V4(ip) = ip {
            if let Some(pod) = self.pod(ip) {
                return Route::Pod(pod);
            }
            if let Some(peer) = self.peer(ip) {
                return Route::Node(peer);
            }
            if self.config.cluster_cidr.contains(&ip) || self.config.service_cidr.contains(&ip) {
                return Route::Nowhere(SocketError::Unreachable);
            }
        }
        match self.config.egress.check(ip) {
            Ok(()) => Route::Outside,
            Err(error) => Route::Nowhere(error),
        }
    }

    /// Opens a connection for `caller`. Cancel by dropping.
    pub(crate) async fn connect(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        to: SocketAddr,
    ) -> Result<Stream, SocketError> {
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let own = caller.pod.map(PodNetwork::address);
        match self.route(own, to, Protocol::Tcp) {
            Route::Own => match caller.pod {
                Some(pod) => self.deliver(pod, caller, to, to, None).await,
                None => Err(SocketError::Unreachable),
            },
            Route::Pod(pod) => self.deliver(&pod, caller, to, to, None).await,
            Route::Service(port) => self.connect_service(caller, &port, to).await,
            Route::Node(peer) => tunnel::connect(self, &peer, caller, to, to, None).await,
            Route::Dns => self.connect_dns(caller, to).await,
            Route::Outside => self.connect_outside(caller, to, to, None).await,
            Route::Nowhere(error) => Err(error),
        }
    }

    /// To some endpoint of a Service: those that refuse are passed over. When all did, others may come.
    pub(crate) async fn connect_service(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        port: &Port,
        to: SocketAddr,
    ) -> Result<Stream, SocketError> {
        let mut result = self.connect_some(caller, port, to).await;
        let mut renewed: Option<Arc<Port>> = None;
        for _ in 0..RENEWALS {
            let port = renewed.as_deref().unwrap_or(port);
            let stale = matches!(result, Err(SocketError::Refused | SocketError::Unreachable));
            if !stale || port.endpoints.is_empty() {
                break;
            }
            let Some(next) = self.renewed(port).await else {
                break;
            };
            result = self.connect_some(caller, &next, to).await;
            renewed = Some(next);
        }
        result
    }

    async fn connect_some(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        port: &Port,
        to: SocketAddr,
    ) -> Result<Stream, SocketError> {
        let mut tried = Tried::default();
        let mut last = SocketError::Refused;
        while let Some(endpoint) = self.pick(port, Some(caller.from.ip()), &tried) {
            let load = endpoint.load.begin();
            let connected = if port.trusted {
                self.connect_outside(caller, to, endpoint.address, Some(load))
                    .await
            } else {
                self.connect_endpoint(caller, to, endpoint.address, Some(load))
                    .await
            };
            match connected {
                Ok(stream) => {
                    endpoint.load.succeeded();
                    return Ok(stream);
                }
                Err(error @ (SocketError::TooMany | SocketError::Denied)) => return Err(error),
                Err(error) => {
                    endpoint.load.refused(self.now());
                    last = error;
                }
            }
            if !tried.add(endpoint.address) {
                break;
            }
        }
        Err(last)
    }

    /// A permit for one more real connection.
    pub(crate) fn outside_slot(
        &self,
        pod: Option<&PodNetwork>,
    ) -> Result<OutsideSlot, SocketError> {
        let take = |permits: &Arc<Semaphore>| {
            Arc::clone(permits)
                .try_acquire_owned()
                .map_err(|_| SocketError::TooMany)
        };
        let own = pod.map(|pod| take(pod.outside())).transpose()?;
        Ok(OutsideSlot {
            _pod: own,
            _node: take(&self.outside_connections)?,
        })
    }

    /// To one endpoint of a Service. `seen` is what the caller believes to be connected to.
    pub(crate) async fn connect_endpoint(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        seen: SocketAddr,
        endpoint: SocketAddr,
        load: Option<InFlight>,
    ) -> Result<Stream, SocketError> {
        if let IpAddr::V4(ip) = endpoint.ip() {
            if let Some(pod) = self.pod(ip) {
                return self.deliver(&pod, caller, seen, endpoint, load).await;
            }
            if let Some(peer) = self.peer(ip) {
                return tunnel::connect(self, &peer, caller, seen, endpoint, load).await;
            }
            if self.config.cluster_cidr.contains(&ip) {
                // No longer anywhere.
                return Err(SocketError::Unreachable);
            }
        }
        self.config.egress.check(endpoint.ip())?;
        self.connect_outside(caller, seen, endpoint, load).await
    }
}

/// File descriptors this process may have.
fn descriptors() -> usize {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let (soft, _) = limit.unwrap_or((1024, 1024));
    usize::try_from(soft).map_or(1 << 20, |soft| soft.clamp(64, 1 << 20))
}

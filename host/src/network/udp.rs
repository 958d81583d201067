//! Datagrams: between pods through bounded queues, through Services with the reply's source put back to the Service's
//! address, and to the outside through one real socket per guest socket. Full queues drop, as UDP may.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

mod partners;

pub(crate) use self::partners::{Partners, Sends, pass};

use super::SocketError;
use super::balancer::{Millis, Tried};
use super::pod::PodNetwork;
use super::policy::Way;
use super::ports::{PortTable, SocketSlot};
use super::table::{Port, Protocol};
use super::tunnel::Peer;
use super::vnet::{Fabric, OutsideSlot, Route};
use crate::dns::server::Transport;

/// The largest payload of a datagram.
pub(crate) const LARGEST: usize = 65_507;
/// What a socket may hold unread.
const QUEUE_DATAGRAMS: usize = 256;
const QUEUE_BYTES: usize = 256 * 1024;
/// Service addresses one socket talks to at once; each keeps its endpoint while it is in use.
const FLOWS: usize = 256;
const FLOW_IDLE: Duration = Duration::from_secs(60);

/// Datagrams waiting to be read.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) partners: Partners,
    /// Held for a few instructions, never over an await.
    state: Mutex<QueueState>,
}

#[derive(Default)]
struct QueueState {
    datagrams: VecDeque<(Bytes, SocketAddr)>,
    bytes: usize,
    reading: Option<Waker>,
    senders: Senders,
}

/// Whose datagrams a queue takes.
#[derive(Default)]
enum Senders {
    #[default]
    Everyone,
    /// The endpoint the socket talks to: what the node's own sockets receive goes on to clients outside.
    Only(Option<SocketAddr>),
}

/// A bound UDP socket of a pod.
pub struct UdpSocket {
    fabric: Arc<Fabric>,
    ports: Arc<PortTable>,
    pod: Ipv4Addr,
    local: SocketAddr,
    queue: Arc<Queue>,
    /// Made at the first datagram to the outside.
    real: OnceLock<(tokio::net::UdpSocket, OutsideSlot)>,
    flows: Mutex<HashMap<SocketAddr, (SocketAddr, Millis)>>,
    _slot: SocketSlot,
}

// === impl Queue ===

impl Queue {
    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the datagram when the queue is full, or not for this sender.
    pub(crate) fn push(&self, datagram: Bytes, from: SocketAddr) {
        let waker = {
            let mut state = self.lock();
            if let Senders::Only(sender) = state.senders
                && sender != Some(from)
            {
                return;
            }
            if state.datagrams.len() >= QUEUE_DATAGRAMS
                || state.bytes + datagram.len() > QUEUE_BYTES
            {
                return;
            }
            state.bytes += datagram.len();
            state.datagrams.push_back((datagram, from));
            state.reading.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<(Bytes, SocketAddr)> {
        let mut state = self.lock();
        match state.datagrams.pop_front() {
            Some((datagram, from)) => {
                state.bytes -= datagram.len();
                Poll::Ready((datagram, from))
            }
            None => {
                state.reading = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }
}

// === impl UdpSocket ===

impl UdpSocket {
    pub(crate) fn bind(
        fabric: Arc<Fabric>,
        ports: Arc<PortTable>,
        pod: Ipv4Addr,
        at: SocketAddr,
        slot: SocketSlot,
    ) -> Result<Self, SocketError> {
        Self::bind_queue(fabric, ports, pod, at, slot, Queue::default())
    }

    fn bind_queue(
        fabric: Arc<Fabric>,
        ports: Arc<PortTable>,
        pod: Ipv4Addr,
        at: SocketAddr,
        slot: SocketSlot,
        queue: Queue,
    ) -> Result<Self, SocketError> {
        let queue = Arc::new(queue);
        let local = ports.bind_udp(pod, at, Arc::clone(&queue))?;
        Ok(Self {
            fabric,
            ports,
            pod,
            local,
            queue,
            real: OnceLock::new(),
            flows: Mutex::default(),
            _slot: slot,
        })
    }

    /// A socket of the node itself, for one client outside. Hears only the endpoint it sends to.
    pub(crate) fn of_node(fabric: Arc<Fabric>, slot: SocketSlot) -> Result<Self, SocketError> {
        let (ports, node) = (Arc::clone(&fabric.node_ports), fabric.node_address);
        let queue = Queue::default();
        queue.lock().senders = Senders::Only(None);
        Self::bind_queue(
            fabric,
            ports,
            node,
            SocketAddr::from((node, 0)),
            slot,
            queue,
        )
    }

    /// To an endpoint of `port`, the same one while this socket lives and the endpoint is ready. Lost when there is none.
    pub(crate) fn send_to_service(&self, datagram: Bytes, port: &Port, client: SocketAddr) {
        let service = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port.number));
        let now = self.fabric.now();
        let known = self
            .flow(service, now)
            .filter(|endpoint| self.goes_on(port, *endpoint));
        let Some(endpoint) = known.or_else(|| {
            let picked = self
                .fabric
                .pick(port, Some(client.ip()), &Tried::default())?;
            Some(picked.address)
        }) else {
            return;
        };
        self.keep_flow(service, endpoint, now);
        self.queue.lock().senders = Senders::Only(Some(endpoint));
        let IpAddr::V4(ip) = endpoint.ip() else {
            return;
        };
        let way = Way {
            source: None,
            from: client,
            destination: Some(ip),
            ..self.way(endpoint)
        };
        let Some(pod) = self.fabric.pod(ip) else {
            // The other node knows the client by this node's address.
            if let Some(peer) = self.fabric.peer(ip) {
                peer.send_datagram(self.source(false), endpoint, datagram);
            }
            return;
        };
        if let Some(queue) = pod.ports().udp(endpoint.port(), false) {
            let free = self.fabric.policy.is_free(None, Some(&pod));
            if free || self.fabric.admit_now(&way).is_ok() {
                queue.push(datagram, self.source(false));
            }
        }
    }

    /// Whether a flow may go on there.
    fn goes_on(&self, port: &Port, endpoint: SocketAddr) -> bool {
        let IpAddr::V4(ip) = endpoint.ip() else {
            return port.has(endpoint);
        };
        let answers = self.fabric.peer(ip).is_none_or(|peer| peer.is_reachable());
        answers && port.has(endpoint)
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The next datagram and who sent it; an answer through a Service comes from the Service's address.
    /// One task at a time may wait.
    pub fn poll_recv(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, SocketAddr), SocketError>> {
        if let Poll::Ready((datagram, from)) = self.queue.poll_pop(cx) {
            return Poll::Ready(Ok((datagram, self.as_service(from))));
        }
        let Some((real, _)) = self.real.get() else {
            return Poll::Pending;
        };
        let mut buffer = BytesMut::zeroed(LARGEST);
        loop {
            let mut read = ReadBuf::new(&mut buffer);
            match real.poll_recv_from(cx, &mut read) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(from)) => {
                    let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                    if self.admit_real(from) {
                        let datagram = Bytes::copy_from_slice(read.filled());
                        return Poll::Ready(Ok((datagram, self.as_service(from))));
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(SocketError::from(&error))),
            }
        }
    }

    pub async fn recv(&self) -> Result<(Bytes, SocketAddr), SocketError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Sends at once or not at all; pending only while a real socket's buffer is full. A datagram nobody takes is lost
    /// silently, as UDP may lose it.
    pub fn poll_send(
        &self,
        cx: &mut Context<'_>,
        datagram: &Bytes,
        to: SocketAddr,
    ) -> Poll<Result<(), SocketError>> {
        if datagram.len() > LARGEST {
            return Poll::Ready(Err(SocketError::TooLarge));
        }
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        if to.ip() == self.fabric.node_address {
            // An answer to a client of a NodePort.
            if let Some(queue) = self.fabric.node_ports.udp(to.port(), false) {
                queue.push(datagram.clone(), self.source(false));
            }
            return Poll::Ready(Ok(()));
        }
        match self.fabric.route_udp(self.pod, to) {
            Route::Own => {
                if let Some(queue) = self.ports.udp(to.port(), true) {
                    queue.push(datagram.clone(), self.source(to.ip().is_loopback()));
                }
                Poll::Ready(Ok(()))
            }
            Route::Pod(pod) => Poll::Ready(self.send_to_pod(&pod, to, datagram)),
            Route::Service(port) => {
                let now = self.fabric.now();
                let known = self
                    .flow(to, now)
                    .filter(|endpoint| self.goes_on(&port, *endpoint));
                let Some(endpoint) = known.or_else(|| {
                    self.fabric
                        .pick(&port, Some(IpAddr::V4(self.pod)), &Tried::default())
                        .map(|e| e.address)
                }) else {
                    return Poll::Ready(Err(SocketError::Refused));
                };
                self.keep_flow(to, endpoint, now);
                let IpAddr::V4(ip) = endpoint.ip() else {
                    return Poll::Ready(Err(SocketError::Unreachable));
                };
                if let Some(pod) = self.fabric.pod(ip) {
                    return Poll::Ready(self.send_to_pod(&pod, endpoint, datagram));
                }
                if let Some(peer) = self.fabric.peer(ip) {
                    return Poll::Ready(self.send_to_node(&peer, endpoint, datagram));
                }
                if let Err(error) = self.fabric.config.egress.check(endpoint.ip()) {
                    return Poll::Ready(Err(error));
                }
                self.poll_send_outside(cx, datagram, endpoint)
            }
            Route::Dns => {
                let admitted = self.admit(None, None, to);
                if admitted.is_ok() {
                    self.ask_dns(datagram.clone(), to);
                }
                Poll::Ready(admitted)
            }
            Route::Outside => self.poll_send_outside(cx, datagram, to),
            Route::Node(peer) => Poll::Ready(self.send_to_node(&peer, to, datagram)),
            Route::Nowhere(error) => Poll::Ready(Err(error)),
        }
    }

    pub async fn send(&self, datagram: Bytes, to: SocketAddr) -> Result<(), SocketError> {
        std::future::poll_fn(|cx| self.poll_send(cx, &datagram, to)).await
    }

    fn send_to_pod(
        &self,
        pod: &PodNetwork,
        to: SocketAddr,
        datagram: &Bytes,
    ) -> Result<(), SocketError> {
        let own = pod.address() == self.pod;
        let Some(queue) = pod.ports().udp(to.port(), own) else {
            // Whether anybody listens is not for everybody to know.
            return if own {
                Ok(())
            } else {
                self.admit(Some(pod), None, to)
            };
        };
        if !own {
            self.admit(Some(pod), Some(&queue), to)?;
        }
        queue.push(datagram.clone(), self.source(false));
        Ok(())
    }

    fn send_to_node(
        &self,
        peer: &Peer,
        to: SocketAddr,
        datagram: &Bytes,
    ) -> Result<(), SocketError> {
        self.admit(None, None, to)?;
        peer.send_datagram(self.source(false), to, datagram.clone());
        Ok(())
    }

    fn way(&self, to: SocketAddr) -> Way {
        Way {
            source: Some(self.pod),
            from: self.source(false),
            identity: None,
            destination: None,
            seen: to,
            to,
            protocol: Protocol::Udp,
        }
    }

    /// Whether policies let a datagram go to `to`: what answers an allowed one, or goes on after it, may.
    fn admit(
        &self,
        pod: Option<&PodNetwork>,
        theirs: Option<&Queue>,
        to: SocketAddr,
    ) -> Result<(), SocketError> {
        let policy = &self.fabric.policy;
        if policy.is_open() {
            return Ok(());
        }
        let own = self.fabric.pod(self.pod);
        if policy.is_free_both_ways(own.as_deref(), pod) {
            return Ok(());
        }
        let way = Way {
            destination: pod.map(PodNetwork::address),
            ..self.way(to)
        };
        let mine = &self.queue.partners;
        let partner = pass(&self.fabric, mine, to, &way, Sends::We)?;
        if let Some(theirs) = theirs {
            let who = self.source(false);
            theirs.partners.remember(who, partner.seen_from_there());
        }
        Ok(())
    }

    /// Whether policies let what came from outside in.
    fn admit_real(&self, from: SocketAddr) -> bool {
        let policy = &self.fabric.policy;
        if policy.is_open() {
            return true;
        }
        let own = self.fabric.pod(self.pod);
        if policy.is_free(None, own.as_deref()) {
            return true;
        }
        if self.queue.partners.get(from, self.fabric.now()).is_some() {
            return true;
        }
        self.fabric.admit_now(&self.way(from).reversed()).is_ok()
    }

    /// The answer comes like any other datagram, when it comes.
    fn ask_dns(&self, question: Bytes, server: SocketAddr) {
        let Some(pod) = self.fabric.pod(self.pod) else {
            return;
        };
        let Ok(permit) = Arc::clone(pod.questions()).try_acquire_owned() else {
            return;
        };
        let (dns, stop) = (Arc::clone(&self.fabric.dns), self.fabric.stop.clone());
        let queue = Arc::clone(&self.queue);
        self.fabric.tasks.spawn(async move {
            let answer = tokio::select! {
                biased;
                () = stop.cancelled() => None,
                answer = dns.answer(&question, Transport::Datagram) => answer,
            };
            if let Some(answer) = answer {
                queue.push(answer.into(), server);
            }
            drop(permit);
        });
    }

    fn poll_send_outside(
        &self,
        cx: &mut Context<'_>,
        datagram: &Bytes,
        to: SocketAddr,
    ) -> Poll<Result<(), SocketError>> {
        if let Err(error) = self.admit(None, None, to) {
            return Poll::Ready(Err(error));
        }
        let real = match self.real() {
            Ok(real) => real,
            Err(error) => return Poll::Ready(Err(error)),
        };
        let dual_stack = real.local_addr().is_ok_and(|local| local.is_ipv6());
        real.poll_send_to(cx, datagram, if dual_stack { mapped(to) } else { to })
            .map(|sent| sent.map(drop).map_err(|error| SocketError::from(&error)))
    }

    fn real(&self) -> Result<&tokio::net::UdpSocket, SocketError> {
        if let Some((real, _)) = self.real.get() {
            return Ok(real);
        }
        let pod = self.fabric.pod(self.pod);
        let slot = self.fabric.outside_slot(pod.as_deref())?;
        let socket = outside().map_err(|error| SocketError::from(&error))?;
        let (real, _) = self.real.get_or_init(|| (socket, slot));
        // A reader that waits on the queue alone must look at the real socket too.
        let waker = self.queue.lock().reading.take();
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(real)
    }

    fn source(&self, loopback: bool) -> SocketAddr {
        let ip = if loopback {
            Ipv4Addr::LOCALHOST
        } else {
            self.pod
        };
        SocketAddr::from((ip, self.local.port()))
    }

    fn flows(&self) -> MutexGuard<'_, HashMap<SocketAddr, (SocketAddr, Millis)>> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flow(&self, service: SocketAddr, now: Millis) -> Option<SocketAddr> {
        let idle = u64::try_from(FLOW_IDLE.as_millis()).unwrap_or(u64::MAX);
        let (endpoint, seen) = *self.flows().get(&service)?;
        (now.saturating_sub(seen) < idle).then_some(endpoint)
    }

    fn keep_flow(&self, service: SocketAddr, endpoint: SocketAddr, now: Millis) {
        let mut flows = self.flows();
        if flows.len() >= FLOWS && !flows.contains_key(&service) {
            let oldest = flows.iter().min_by_key(|(_, (_, seen))| *seen);
            if let Some(oldest) = oldest.map(|(service, _)| *service) {
                flows.remove(&oldest);
            }
        }
        flows.insert(service, (endpoint, now));
    }

    /// The Service through which we talk to `from`, or `from`.
    fn as_service(&self, from: SocketAddr) -> SocketAddr {
        self.flows()
            .iter()
            .find(|(_, (endpoint, _))| *endpoint == from)
            .map_or(from, |(service, _)| *service)
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        self.ports.free_udp(self.local.port());
    }
}

/// Dual stack where the machine has IPv6, else IPv4.
fn outside() -> io::Result<tokio::net::UdpSocket> {
    let socket =
        std::net::UdpSocket::bind("[::]:0").or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    socket.set_nonblocking(true)?;
    tokio::net::UdpSocket::from_std(socket)
}

/// As a dual-stack socket wants it.
fn mapped(to: SocketAddr) -> SocketAddr {
    match to.ip() {
        IpAddr::V4(ip) => SocketAddr::new(IpAddr::V6(ip.to_ipv6_mapped()), to.port()),
        IpAddr::V6(_) => to,
    }
}

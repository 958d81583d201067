//! Datagrams: between pods through bounded queues, through Services with the reply's source put back to the Service's
//! address, and to the outside through one real socket per guest socket. Full queues drop, as UDP may.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use tokio::io::ReadBuf;

mod flows;
mod lost;
mod outsiders;
mod partners;
mod queue;

use self::flows::Flows;
pub(crate) use self::lost::{Lost, Why};
pub(crate) use self::outsiders::{Client, Outsiders};
pub(crate) use self::partners::{Sends, pass};
pub(crate) use self::queue::Queue;

use super::SocketError;
use super::balancer::Tried;
use super::pod::PodNetwork;
use super::policy::Way;
use super::ports::{PortTable, SocketSlot};
use super::table::{Port, Protocol};
use super::tunnel::Peer;
use super::vnet::{Fabric, OutsideSlot, Route};
use crate::dns::server::Transport;

/// The largest payload of a datagram.
pub(crate) const LARGEST: usize = 65_507;

/// Where an endpoint of a Service is.
enum Place {
    Pod(Arc<PodNetwork>),
    Node(Arc<Peer>),
    Outside,
    /// A pod's address that is no pod's any more.
    Nowhere,
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
    /// Held for a few instructions, never over an await.
    flows: Mutex<Flows>,
    _slot: SocketSlot,
}

// === impl Place ===

impl Place {
    fn of(fabric: &Fabric, ip: IpAddr) -> Self {
        if let IpAddr::V4(ip) = ip {
            if let Some(pod) = fabric.pod(ip) {
                return Self::Pod(pod);
            }
            if let Some(peer) = fabric.peer(ip) {
                return Self::Node(peer);
            }
        }
        if fabric.is_of_cluster(ip) {
            Self::Nowhere
        } else {
            Self::Outside
        }
    }
}

/// Whether what went to `endpoint` may go on there.
fn goes_on(fabric: &Fabric, port: &Port, endpoint: SocketAddr) -> bool {
    let answers = match endpoint.ip() {
        IpAddr::V4(ip) => fabric.peer(ip).is_none_or(|peer| peer.is_reachable()),
        IpAddr::V6(_) => true,
    };
    answers && port.has(endpoint)
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
        let queue = Arc::new(Queue::new(Arc::clone(&fabric.lost)));
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
            let (from, now) = (self.source(false), self.fabric.now());
            let outsiders = &self.fabric.outsiders;
            outsiders.answer(to.port(), datagram, from, now);
            return Poll::Ready(Ok(()));
        }
        let route = self.fabric.route_udp(self.pod, to);
        if !matches!(route, Route::Service(_)) {
            self.flows().direct(to);
        }
        match route {
            Route::Own => {
                if let Some(queue) = self.ports.udp(to.port(), true) {
                    queue.push(datagram.clone(), self.source(to.ip().is_loopback()));
                }
                Poll::Ready(Ok(()))
            }
            Route::Pod(pod) => Poll::Ready(self.send_to_pod(&pod, to, datagram)),
            Route::Service(port) => self.poll_send_to_service(cx, &port, datagram, to),
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

    fn poll_send_to_service(
        &self,
        cx: &mut Context<'_>,
        port: &Port,
        datagram: &Bytes,
        service: SocketAddr,
    ) -> Poll<Result<(), SocketError>> {
        let (fabric, now) = (&self.fabric, self.fabric.now());
        let known = self.flows().endpoint(service, now);
        let known = known.filter(|endpoint| goes_on(fabric, port, *endpoint));
        let Some(endpoint) = known.or_else(|| {
            let client = Some(IpAddr::V4(self.pod));
            fabric
                .pick(port, client, &Tried::default())
                .map(|endpoint| endpoint.address)
        }) else {
            return Poll::Ready(Err(SocketError::Refused));
        };
        // Before it is sent: the answer may be faster than we are.
        self.flows().keep(service, endpoint, now);
        let sent = match Place::of(fabric, endpoint.ip()) {
            Place::Pod(pod) => Poll::Ready(self.send_to_pod(&pod, endpoint, datagram)),
            Place::Node(peer) => Poll::Ready(self.send_to_node(&peer, endpoint, datagram)),
            Place::Outside => match fabric.config.egress.check(endpoint.ip()) {
                Ok(()) => self.poll_send_outside(cx, datagram, endpoint),
                Err(error) => Poll::Ready(Err(error)),
            },
            Place::Nowhere => Poll::Ready(Err(SocketError::Unreachable)),
        };
        if matches!(sent, Poll::Ready(Err(_))) {
            self.flows().forget(service);
        }
        sent
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
        self.queue.wake();
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

    fn flows(&self) -> MutexGuard<'_, Flows> {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The Service through which we talk to `from`, or `from`.
    fn as_service(&self, from: SocketAddr) -> SocketAddr {
        self.flows().heard(from, self.fabric.now())
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

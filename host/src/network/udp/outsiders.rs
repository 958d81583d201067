//! Clients outside that send datagrams to this node's listeners. For pods each is a port of the node's own address; what
//! its endpoint sends there goes to the client from the listener's socket. Owns those ports; listeners own the clients.
//!
//! An endpoint outside the cluster is spoken to from a real socket for each client, as TCP would.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::lost::{Lost, Why};
use super::{LARGEST, Place, goes_on};
use crate::network::balancer::{Millis, Tried};
use crate::network::places::{self, Places};
use crate::network::policy::Way;
use crate::network::table::{Port, Protocol};
use crate::network::vnet::Fabric;

/// Ports of the node's address that clients may be.
const PORTS: std::ops::RangeInclusive<u16> = 1_024..=65_535;
/// What may wait for the real socket of one client.
const OUTSIDE_QUEUE: usize = 64;

/// All clients of one node.
pub(crate) struct Outsiders {
    /// Held for a few instructions, never over an await.
    ports: RwLock<Ports>,
    /// Real sockets to endpoints outside, by listener.
    sockets: Arc<Places<SocketAddr>>,
}

#[derive(Default)]
struct Ports {
    taken: HashMap<u16, Arc<Outsider>>,
    last: u16,
}

/// One client outside, as long as its listener remembers it.
pub(crate) struct Client {
    fabric: Arc<Fabric>,
    outsider: Arc<Outsider>,
}

struct Outsider {
    port: u16,
    client: SocketAddr,
    lost: Arc<Lost>,
    /// Held for a system call at most, never over an await.
    state: Mutex<State>,
    /// When the client was sent an answer last, plus one; 0 is never.
    answered: AtomicU64,
}

struct State {
    /// The listener's; gone when the client is.
    socket: Option<Arc<UdpSocket>>,
    /// Whom the client talks to, and hears.
    endpoint: Option<SocketAddr>,
    /// The way to an endpoint outside the cluster.
    outside: Option<Outside>,
}

/// Dropping it ends the task that has the socket.
struct Outside {
    datagrams: mpsc::Sender<Bytes>,
    _place: places::Place<SocketAddr>,
}

// === impl Outsiders ===

impl Outsiders {
    /// With at most so many real `sockets` to endpoints outside the cluster.
    pub(crate) fn new(sockets: usize) -> Self {
        Self {
            ports: RwLock::default(),
            sockets: Places::new(sockets),
        }
    }

    /// `from`, a pod, sends to a port of the node's address.
    pub(crate) fn answer(&self, port: u16, datagram: &[u8], from: SocketAddr, now: Millis) {
        let outsider = {
            let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
            ports.taken.get(&port).map(Arc::clone)
        };
        if let Some(outsider) = outsider {
            outsider.answer(datagram, from, now);
        }
    }

    /// `None` when every port is somebody's.
    fn add(&self, make: impl FnOnce(u16) -> Outsider) -> Option<Arc<Outsider>> {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        if ports.taken.len() >= PORTS.len() {
            return None;
        }
        let mut port = ports.last;
        loop {
            port = match port.checked_add(1) {
                Some(next) if PORTS.contains(&next) => next,
                _ => *PORTS.start(),
            };
            if !ports.taken.contains_key(&port) {
                break;
            }
        }
        let outsider = Arc::new(make(port));
        ports.last = port;
        ports.taken.insert(port, Arc::clone(&outsider));
        Some(outsider)
    }

    fn remove(&self, port: u16) {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        ports.taken.remove(&port);
    }
}

// === impl Client ===

impl Client {
    /// A client of the listener that has `socket`. `None` when the node has no port left for it.
    pub(crate) fn new(
        fabric: &Arc<Fabric>,
        socket: &Arc<UdpSocket>,
        client: SocketAddr,
    ) -> Option<Self> {
        let outsider = fabric.outsiders.add(|port| Outsider {
            port,
            client,
            lost: Arc::clone(&fabric.lost),
            state: Mutex::new(State {
                socket: Some(Arc::clone(socket)),
                endpoint: None,
                outside: None,
            }),
            answered: AtomicU64::new(0),
        })?;
        Some(Self {
            fabric: Arc::clone(fabric),
            outsider,
        })
    }

    /// When it was sent an answer last.
    pub(crate) fn answered(&self) -> Option<Millis> {
        self.outsider
            .answered
            .load(Ordering::Relaxed)
            .checked_sub(1)
    }

    /// To an endpoint of `port`, the same one while the client is remembered and the endpoint is ready. Why it is lost,
    /// where nobody else counts that.
    pub(crate) fn send(&self, datagram: Bytes, port: &Port) -> Result<(), Why> {
        let sent = self.try_send(datagram, port);
        if let Err(Why::NoEndpoint | Why::Denied) = sent {
            // The next datagram may go elsewhere.
            self.outsider.lock().endpoint = None;
        }
        sent
    }

    fn try_send(&self, datagram: Bytes, port: &Port) -> Result<(), Why> {
        let fabric = &self.fabric;
        let client = self.outsider.client;
        let known = self.outsider.lock().endpoint;
        let endpoint = match known.filter(|endpoint| goes_on(fabric, port, *endpoint)) {
            Some(endpoint) => endpoint,
            None => {
                let picked = fabric.pick(port, Some(client.ip()), &Tried::default());
                let endpoint = picked.ok_or(Why::NoEndpoint)?.address;
                let mut state = self.outsider.lock();
                (state.endpoint, state.outside) = (Some(endpoint), None);
                endpoint
            }
        };
        let source = SocketAddr::from((fabric.node_address, self.outsider.port));
        match Place::of(fabric, endpoint.ip()) {
            Place::Pod(pod) => {
                // Nobody listens: nobody is told, as without a Service.
                let Some(queue) = pod.ports().udp(endpoint.port(), false) else {
                    return Ok(());
                };
                let way = Way {
                    source: None,
                    from: client,
                    identity: None,
                    destination: Some(pod.address()),
                    seen: endpoint,
                    to: endpoint,
                    protocol: Protocol::Udp,
                };
                let free = fabric.policy.is_free(None, Some(&pod));
                if !free && fabric.admit_now(&way).is_err() {
                    return Err(Why::Denied);
                }
                queue.push(datagram, source);
                Ok(())
            }
            Place::Node(peer) => {
                // The other node knows the client by this node's address.
                peer.send_datagram(source, endpoint, datagram);
                Ok(())
            }
            Place::Outside => self.send_outside(datagram, endpoint),
            Place::Nowhere => Err(Why::NoEndpoint),
        }
    }

    /// As far as pods get.
    fn send_outside(&self, datagram: Bytes, endpoint: SocketAddr) -> Result<(), Why> {
        let fabric = &self.fabric;
        let allowed = fabric.config.egress.check(endpoint.ip());
        allowed.map_err(|_| Why::Denied)?;
        let mut state = self.outsider.lock();
        let open = state.outside.take();
        let outside = match open.filter(|outside| !outside.datagrams.is_closed()) {
            Some(open) => open,
            None => {
                let listener = state.socket.as_ref().and_then(|s| s.local_addr().ok());
                let place = listener.and_then(|listener| fabric.outsiders.sockets.take(listener));
                let place = place.ok_or(Why::NoRoom)?;
                let (sender, datagrams) = mpsc::channel(OUTSIDE_QUEUE);
                let outsider = Arc::downgrade(&self.outsider);
                let carry = carry(Arc::clone(fabric), outsider, endpoint, datagrams);
                let stop = fabric.stop.clone();
                fabric.tasks.spawn(async move {
                    stop.run_until_cancelled_owned(carry).await;
                });
                Outside {
                    datagrams: sender,
                    _place: place,
                }
            }
        };
        let sent = outside.datagrams.try_send(datagram);
        state.outside = Some(outside);
        sent.map_err(|_| Why::Socket)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.fabric.outsiders.remove(self.outsider.port);
        // Who found it a moment ago must not keep the listener's socket open.
        let mut state = self.outsider.lock();
        (state.socket, state.outside) = (None, None);
    }
}

// === impl Outsider ===

impl Outsider {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, datagram: &[u8], from: SocketAddr, now: Millis) {
        let state = self.lock();
        let Some(socket) = state
            .socket
            .as_ref()
            .filter(|_| state.endpoint == Some(from))
        else {
            return;
        };
        self.answered.store(now + 1, Ordering::Relaxed);
        if socket.try_send_to(datagram, self.client).is_err() {
            self.lost.count(Why::Socket);
        }
    }
}

/// Datagrams to `endpoint` outside the cluster and its answers, until the client is gone or talks to somebody else.
async fn carry(
    fabric: Arc<Fabric>,
    outsider: Weak<Outsider>,
    endpoint: SocketAddr,
    mut datagrams: mpsc::Receiver<Bytes>,
) {
    let Ok(socket) = connected(endpoint).await else {
        // Those that wait are lost with the queue.
        if let Some(outsider) = outsider.upgrade() {
            outsider.lost.add(Why::Socket, datagrams.len());
        }
        return;
    };
    loop {
        tokio::select! {
            datagram = datagrams.recv() => {
                let Some(datagram) = datagram else { break };
                // Mostly the ICMP answer to an earlier one.
                if socket.send(&datagram).await.is_err()
                    && let Some(outsider) = outsider.upgrade()
                {
                    outsider.lost.count(Why::Socket);
                }
            }
            ready = socket.readable() => {
                let (Ok(()), Some(outsider)) = (ready, outsider.upgrade()) else { break };
                let mut answer = Vec::with_capacity(LARGEST);
                if socket.try_recv_buf(&mut answer).is_ok() {
                    outsider.answer(&answer, endpoint, fabric.now());
                }
            }
        }
    }
}

async fn connected(endpoint: SocketAddr) -> std::io::Result<UdpSocket> {
    let any = match endpoint.ip() {
        IpAddr::V4(_) => "0.0.0.0:0",
        IpAddr::V6(_) => "[::]:0",
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(endpoint).await?;
    Ok(socket)
}

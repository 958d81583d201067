//! What listens in one pod: TCP listeners, HTTP handlers and UDP sockets by port. Owns who has which port;
//! never opens a connection.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::udp::Queue;
use super::{HttpHandler, SocketError, Stream};

/// Where a port is picked when none is asked for, and where outgoing connections come from.
const EPHEMERAL: std::ops::RangeInclusive<u16> = 32_768..=60_999;
/// A listener's backlog is at most this.
const BACKLOG: usize = 128;

/// The ports an HTTP guest answers on.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ports {
    /// Every port nothing else in the pod listens on: a guest that declares no container port.
    All,
    Only(Vec<u16>),
}

/// Who may connect to a bound port.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Scope {
    Everyone,
    /// Bound to 127.0.0.1: only the pod itself.
    Loopback,
}

/// Counts a pod's sockets.
pub(crate) struct Sockets {
    open: AtomicUsize,
    limit: usize,
}

/// One open socket of a pod; dropping it gives it back.
pub(crate) struct SocketSlot(Arc<Sockets>);

#[derive(Default)]
pub(crate) struct PortTable {
    /// Held for a few instructions, never over an await.
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tcp: HashMap<u16, Tcp>,
    udp: HashMap<u16, (Scope, Arc<Queue>)>,
    /// `Ports::All`.
    http: Option<Arc<dyn HttpHandler>>,
    /// Cancelled when HTTP is answered no longer: kept-alive connections are told to go elsewhere.
    ended: CancellationToken,
    next: u16,
    closed: bool,
}

enum Tcp {
    /// Bound, not listening.
    Bound,
    Listening(Scope, mpsc::Sender<Box<Stream>>),
    Http(Arc<dyn HttpHandler>),
}

/// What answers at a TCP port.
pub(crate) enum Target {
    Socket(mpsc::Sender<Box<Stream>>),
    Http(Arc<dyn HttpHandler>),
}

/// A TCP port that is taken but does not listen yet. Dropping it frees the port.
pub struct Bound {
    table: Arc<PortTable>,
    scope: Scope,
    local: SocketAddr,
    slot: Option<SocketSlot>,
    armed: bool,
}

/// Takes connections. Dropping it frees the port and resets those not yet accepted.
pub struct Listener {
    table: Arc<PortTable>,
    local: SocketAddr,
    streams: mpsc::Receiver<Box<Stream>>,
    _slot: SocketSlot,
}

/// An HTTP guest answers while this lives.
pub struct Serving {
    table: Arc<PortTable>,
    ports: Ports,
}

// === impl Sockets ===

impl Sockets {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            open: AtomicUsize::new(0),
            limit,
        }
    }

    pub(crate) fn take(self: &Arc<Self>) -> Result<SocketSlot, SocketError> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.limit {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(SocketError::TooMany);
        }
        Ok(SocketSlot(Arc::clone(self)))
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

impl Drop for SocketSlot {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl PortTable ===

impl PortTable {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who answers at `port`; `loopback` says that the pod itself asks.
    pub(crate) fn target(&self, port: u16, loopback: bool) -> Option<Target> {
        let inner = self.lock();
        match inner.tcp.get(&port) {
            Some(Tcp::Listening(Scope::Loopback, _)) if !loopback => None,
            Some(Tcp::Listening(_, sender)) => Some(Target::Socket(sender.clone())),
            Some(Tcp::Http(handler)) => Some(Target::Http(Arc::clone(handler))),
            Some(Tcp::Bound) => None,
            None => inner.http.clone().map(Target::Http),
        }
    }

    /// Cancelled when the HTTP handlers of now answer no longer.
    pub(crate) fn ended(&self) -> CancellationToken {
        self.lock().ended.clone()
    }

    /// The UDP socket bound to `port`.
    pub(crate) fn udp(&self, port: u16, loopback: bool) -> Option<Arc<Queue>> {
        match self.lock().udp.get(&port) {
            Some((Scope::Loopback, _)) if !loopback => None,
            Some((_, queue)) => Some(Arc::clone(queue)),
            None => None,
        }
    }

    /// A port for the local end of an outgoing connection. Not reserved: the pair of ends is what tells connections apart.
    pub(crate) fn outgoing(&self) -> u16 {
        self.lock().advance()
    }

    pub(crate) fn bind_tcp(
        self: &Arc<Self>,
        pod: Ipv4Addr,
        at: SocketAddr,
        slot: SocketSlot,
    ) -> Result<Bound, SocketError> {
        let (scope, ip) = scope(pod, at.ip())?;
        let mut inner = self.lock();
        let port = inner.choose(at.port(), |inner, port| inner.tcp.contains_key(&port))?;
        inner.tcp.insert(port, Tcp::Bound);
        Ok(Bound {
            table: Arc::clone(self),
            scope,
            local: SocketAddr::from((ip, port)),
            slot: Some(slot),
            armed: true,
        })
    }

    /// Registers a UDP queue; `UdpSocket` frees it by [`PortTable::free_udp`].
    pub(crate) fn bind_udp(
        &self,
        pod: Ipv4Addr,
        at: SocketAddr,
        queue: Arc<Queue>,
    ) -> Result<SocketAddr, SocketError> {
        let (scope, ip) = scope(pod, at.ip())?;
        let mut inner = self.lock();
        let port = inner.choose(at.port(), |inner, port| inner.udp.contains_key(&port))?;
        inner.udp.insert(port, (scope, queue));
        Ok(SocketAddr::from((ip, port)))
    }

    pub(crate) fn free_udp(&self, port: u16) {
        self.lock().udp.remove(&port);
    }

    pub(crate) fn serve_http(
        self: &Arc<Self>,
        ports: Ports,
        handler: &Arc<dyn HttpHandler>,
    ) -> Result<Serving, SocketError> {
        let mut inner = self.lock();
        if inner.closed {
            return Err(SocketError::NotAvailable);
        }
        match &ports {
            Ports::All => {
                if inner.http.is_some() {
                    return Err(SocketError::InUse);
                }
                inner.http = Some(Arc::clone(handler));
            }
            Ports::Only(list) => {
                if list.iter().any(|port| inner.tcp.contains_key(port)) {
                    return Err(SocketError::InUse);
                }
                for port in list {
                    inner.tcp.insert(*port, Tcp::Http(Arc::clone(handler)));
                }
            }
        }
        if inner.ended.is_cancelled() {
            inner.ended = CancellationToken::new();
        }
        drop(inner);
        Ok(Serving {
            table: Arc::clone(self),
            ports,
        })
    }

    /// Nothing answers any more and nothing can be bound: the pod is gone.
    pub(crate) fn close(&self) {
        let emptied = {
            let mut inner = self.lock();
            inner.closed = true;
            (
                std::mem::take(&mut inner.tcp),
                std::mem::take(&mut inner.udp),
                inner.http.take(),
            )
        };
        // Dropped outside the lock: a handler's drop may be anything.
        drop(emptied);
    }
}

// === impl Inner ===

impl Inner {
    fn advance(&mut self) -> u16 {
        self.next = if EPHEMERAL.contains(&self.next) && self.next < *EPHEMERAL.end() {
            self.next + 1
        } else {
            *EPHEMERAL.start()
        };
        self.next
    }

    fn choose(
        &mut self,
        wanted: u16,
        taken: impl Fn(&Self, u16) -> bool,
    ) -> Result<u16, SocketError> {
        if self.closed {
            return Err(SocketError::NotAvailable);
        }
        if wanted != 0 {
            return if taken(self, wanted) {
                Err(SocketError::InUse)
            } else {
                Ok(wanted)
            };
        }
        for _ in EPHEMERAL {
            let port = self.advance();
            if !taken(self, port) {
                return Ok(port);
            }
        }
        Err(SocketError::InUse)
    }
}

/// Whom a bind address serves, and the address the socket then has.
fn scope(pod: Ipv4Addr, bind: IpAddr) -> Result<(Scope, Ipv4Addr), SocketError> {
    match bind.to_canonical() {
        ip if ip.is_unspecified() => Ok((Scope::Everyone, Ipv4Addr::UNSPECIFIED)),
        ip if ip.is_loopback() => Ok((Scope::Loopback, Ipv4Addr::LOCALHOST)),
        IpAddr::V4(ip) if ip == pod => Ok((Scope::Everyone, pod)),
        _ => Err(SocketError::NotAvailable),
    }
}

// === impl Bound ===

impl Bound {
    /// The address asked for, with the port that was picked.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// At most `backlog` connections (1 to 128) wait to be accepted; further ones wait until the connect times out.
    pub fn listen(mut self, backlog: usize) -> Result<Listener, SocketError> {
        let slot = self.slot.take().ok_or(SocketError::Closed)?;
        let (sender, streams) = mpsc::channel(backlog.clamp(1, BACKLOG));
        match self.table.lock().tcp.entry(self.local.port()) {
            Entry::Occupied(mut entry) if matches!(entry.get(), Tcp::Bound) => {
                entry.insert(Tcp::Listening(self.scope, sender));
            }
            // The pod was closed meanwhile.
            _ => return Err(SocketError::NotAvailable),
        }
        self.armed = false;
        Ok(Listener {
            table: Arc::clone(&self.table),
            local: self.local,
            streams,
            _slot: slot,
        })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if self.armed {
            self.table.lock().tcp.remove(&self.local.port());
        }
    }
}

// === impl Listener ===

impl Listener {
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The next connection. `Err` only when the pod is being torn down.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<Stream, SocketError>> {
        self.streams
            .poll_recv(cx)
            .map(|stream| stream.map(|stream| *stream).ok_or(SocketError::Closed))
    }

    /// As [`Listener::poll_accept`]. Cancel by dropping: no connection is lost.
    pub async fn accept(&mut self) -> Result<Stream, SocketError> {
        std::future::poll_fn(|cx| self.poll_accept(cx)).await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let freed = {
            let mut inner = self.table.lock();
            // After `close` somebody else cannot have the port: nothing can be bound then.
            inner.tcp.remove(&self.local.port())
        };
        drop(freed);
        self.streams.close();
        while let Ok(stream) = self.streams.try_recv() {
            stream.reset();
        }
    }
}

// === impl Serving ===

impl Drop for Serving {
    fn drop(&mut self) {
        let freed: (Option<Arc<dyn HttpHandler>>, Vec<Tcp>) = {
            let mut inner = self.table.lock();
            inner.ended.cancel();
            match &self.ports {
                Ports::All => (inner.http.take(), Vec::new()),
                Ports::Only(list) => {
                    let freed = list.iter().filter_map(|p| inner.tcp.remove(p)).collect();
                    (None, freed)
                }
            }
        };
        drop(freed);
    }
}

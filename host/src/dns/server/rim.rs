//! DNS on sockets: real ones of the node, and streams of the virtual network. Reads questions, writes answers, bounds both.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;

use super::Dns;
use super::wire::Transport;

/// TCP connections of clients outside; more are closed at once.
const CONNECTIONS: usize = 256;
/// A connection that asks nothing for so long is closed (RFC 7766).
const IDLE: Duration = Duration::from_secs(10);
/// What a client has to take an answer.
const WRITE: Duration = Duration::from_secs(5);
/// A pause after the system refused a connection: mostly it has no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);
/// No question is longer.
const LONGEST: usize = 4_096;
/// Ports tried until one is free for both UDP and TCP.
const TRIES: usize = 16;

/// Both sockets of one address.
pub(crate) struct Sockets {
    pub(crate) address: SocketAddr,
    datagrams: UdpSocket,
    listener: TcpListener,
}

// === impl Sockets ===

impl Sockets {
    /// Call inside a tokio runtime. Port 0 is any that is free for both.
    pub(crate) fn bind(address: SocketAddr) -> io::Result<Self> {
        let mut result = Self::bind_once(address);
        for _ in 0..TRIES {
            match &result {
                Err(error) if address.port() == 0 && error.kind() == io::ErrorKind::AddrInUse => {
                    result = Self::bind_once(address);
                }
                _ => break,
            }
        }
        result
    }

    fn bind_once(address: SocketAddr) -> io::Result<Self> {
        let datagrams = std::net::UdpSocket::bind(address)?;
        let address = datagrams.local_addr()?;
        let listener = std::net::TcpListener::bind(address)?;
        datagrams.set_nonblocking(true)?;
        listener.set_nonblocking(true)?;
        Ok(Self {
            address,
            datagrams: UdpSocket::from_std(datagrams)?,
            listener: TcpListener::from_std(listener)?,
        })
    }

    /// Answers until `stop`.
    pub(crate) fn serve(self, dns: &Arc<Dns>, tasks: &TaskTracker, stop: &CancellationToken) {
        let socket = Arc::new(self.datagrams);
        let (answering, spawning) = (Arc::clone(dns), tasks.clone());
        let serve = datagrams(answering, socket, spawning, stop.clone());
        tasks.spawn(until(stop.clone(), serve));
        let serve = connections(Arc::clone(dns), self.listener, tasks.clone(), stop.clone());
        tasks.spawn(until(stop.clone(), serve));
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        () = work => {}
    }
}

async fn datagrams(
    dns: Arc<Dns>,
    socket: Arc<UdpSocket>,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let mut buffer = vec![0; LONGEST];
    loop {
        let (length, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An ICMP error of an answer sent earlier: the next question may be waiting.
            Err(error) => {
                tracing::trace!(error = %chain(&error), "Failed to receive a DNS query");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let question = buffer[..length].to_vec();
        let (dns, socket) = (Arc::clone(&dns), Arc::clone(&socket));
        tasks.spawn(until(stop.clone(), async move {
            if let Some(answer) = dns.answer(&question, Transport::Datagram).await
                && let Err(error) = socket.send_to(&answer, from).await
            {
                tracing::trace!(%from, error = %chain(&error), "Failed to send a DNS answer");
            }
        }));
    }
}

async fn connections(
    dns: Arc<Dns>,
    listener: TcpListener,
    tasks: TaskTracker,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::debug!(error = %chain(&error), "Failed to accept a DNS connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            dns.counts.dropped.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let dns = Arc::clone(&dns);
        tasks.spawn(until(stop.clone(), async move {
            stream(&dns, socket, None).await;
            drop(permit);
        }));
    }
}

/// One question after the other, each with its length before it, until the client has no more. `permits` are the client's.
pub(crate) async fn stream(
    dns: &Dns,
    mut io: impl AsyncRead + AsyncWrite + Unpin,
    permits: Option<&Semaphore>,
) {
    let mut question = Vec::new();
    loop {
        let read = async {
            let length = usize::from(io.read_u16().await?);
            if length > LONGEST {
                return Err(io::Error::other("the query is too long"));
            }
            question.resize(length, 0);
            io.read_exact(&mut question).await.map(drop)
        };
        let Ok(Ok(())) = tokio::time::timeout(IDLE, read).await else {
            break;
        };
        let permit = match permits {
            Some(permits) => permits.acquire().await.ok(),
            None => None,
        };
        let Some(answer) = dns.answer(&question, Transport::Stream).await else {
            break;
        };
        drop(permit);
        let Ok(length) = u16::try_from(answer.len()) else {
            break;
        };
        let mut framed = length.to_be_bytes().to_vec();
        framed.extend_from_slice(&answer);
        let Ok(Ok(())) = tokio::time::timeout(WRITE, io.write_all(&framed)).await else {
            break;
        };
    }
    // The client may be gone already.
    drop(tokio::time::timeout(WRITE, io.shutdown()).await);
}

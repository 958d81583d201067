//! Real sockets at the rim: the wanted port, or another with the reason why; when its port is free again; what a client begins with. Knows neither Services nor Ingresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Connections the kernel keeps before we accept them.
const BACKLOG: u32 = 1024;
/// Pause after an accept failed, for want of file descriptors mostly.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long a task that accepts may take to end.
const END: Duration = Duration::from_secs(1);
/// Addresses come and go (keepalived and its like), and so do programs that have a port: how often we look again.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// A task that owns a socket and accepts on it. Dropped it accepts no longer; what it accepted goes on.
pub(crate) struct Accepting {
    closing: CancellationToken,
    task: Option<JoinHandle<()>>,
}

// === impl Accepting ===

impl Accepting {
    /// `task` ends soon once `closing` is cancelled. `None`: nothing could be opened.
    pub(crate) fn new(closing: CancellationToken, task: Option<JoinHandle<()>>) -> Self {
        Self { closing, task }
    }

    /// When this returns the port can be bound again.
    pub(crate) async fn close(mut self) {
        self.closing.cancel();
        if let Some(task) = self.task.take() {
            drop(tokio::time::timeout(END, task).await);
        }
    }
}

impl Drop for Accepting {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Addresses on the machine's interfaces; none when the system does not say.
pub(crate) fn interfaces() -> BTreeSet<IpAddr> {
    let listed = match nix::ifaddrs::getifaddrs() {
        Ok(listed) => listed,
        Err(error) => {
            warn!(
                error = &error as &dyn std::error::Error,
                "Could not list the machine's addresses"
            );
            return BTreeSet::new();
        }
    };
    listed
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect()
}

/// The wanted port; else, if it may be replaced, the one of last time; else any. With it why it is not the wanted one.
pub(crate) fn bind<T>(
    wanted: SocketAddr,
    previous: Option<u16>,
    replaceable: bool,
    open: impl Fn(SocketAddr) -> io::Result<T>,
) -> Result<(T, Option<String>), String> {
    let error = match open(wanted) {
        Ok(socket) => return Ok((socket, None)),
        Err(error) => error,
    };
    let (ip, port) = (wanted.ip(), wanted.port());
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => format!("port {port} is taken on {ip}"),
        io::ErrorKind::PermissionDenied => format!("port {port} is not permitted on {ip}"),
        _ => return Err(format!("cannot listen on {wanted}: {error}")),
    };
    if !replaceable {
        return Err(why);
    }
    let again = previous.and_then(|port| open(SocketAddr::new(ip, port)).ok());
    match again.map_or_else(|| open(SocketAddr::new(ip, 0)), Ok) {
        Ok(socket) => Ok((socket, Some(why))),
        Err(error) => Err(format!("{why}, and no free port was found: {error}")),
    }
}

pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Only past connections of ours in TIME_WAIT may be bound over; two listeners still exclude each other.
    socket.set_reuseaddr(true)?;
    socket.set_nodelay(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Does the client begin with HTTP/2's preface (`PRI * HTTP/2.0`)? `None` when it closed without a byte.
pub(crate) async fn is_http2(socket: &TcpStream) -> Option<bool> {
    let mut start = [0; 3];
    let read = socket.peek(&mut start).await.ok()?;
    (read > 0).then(|| &start == b"PRI")
}

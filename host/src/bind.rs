//! Real sockets at the rim: the wanted port, or another with the reason why. Knows neither Services nor Ingresses.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections the kernel keeps before we accept them.
const BACKLOG: u32 = 1024;

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

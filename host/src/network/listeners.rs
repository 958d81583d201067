//! Real sockets for NodePort and LoadBalancer Services on the node's service address. One task owns them: it opens what
//! the table asks for, closes what it no longer asks for, and says what became of each.
//!
//! A port that is taken or not permitted is replaced by a free one; `publish` tells status, annotation and an Event.

mod accept;
mod publish;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use kube::Client;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::table::{Key, Protocol, Service, Table};
use super::vnet::Fabric;

/// Connections the kernel keeps before we accept them.
const BACKLOG: u32 = 1024;

/// Why a Service has a listener.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    LoadBalancer,
    NodePort,
}

/// One listener, for people and for status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Listening {
    pub namespace: String,
    pub service: String,
    pub port_name: String,
    /// The Service's port.
    pub port: u16,
    /// `TCP` or `UDP`
    pub protocol: &'static str,
    pub origin: Origin,
    /// The port that was asked for: the Service's, or its nodePort.
    pub wanted: u16,
    /// Where it really listens; `None` when it does not.
    pub address: Option<SocketAddr>,
    /// Why it is not the wanted port, or does not listen: `port 80 is not permitted (permission denied)`.
    pub problem: Option<String>,
}

/// Which listener.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct Id {
    key: Key,
    port: u16,
    protocol: Protocol,
    origin: Origin,
}

struct Wanted {
    port: u16,
    /// What it had to listen on before a restart.
    previous: Option<u16>,
    name: String,
}

struct Open {
    listening: Listening,
    /// Cancelled: stop accepting, let connections finish.
    closing: CancellationToken,
}

// === impl Open ===

impl Drop for Open {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

/// Runs until the network drains; then every listener is closed.
pub(crate) async fn run(
    client: Client,
    fabric: Arc<Fabric>,
    listening: watch::Sender<Arc<Vec<Listening>>>,
    synced: watch::Sender<bool>,
) {
    fabric.tasks.spawn(publish::run(
        client,
        Arc::clone(&fabric),
        listening.subscribe(),
    ));
    let mut tables = fabric.services.clone();
    let mut open = BTreeMap::new();
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        if table.complete {
            reconcile(&fabric, &table, &mut open).await;
            let now: Vec<Listening> = open.values().map(|o| o.listening.clone()).collect();
            listening.send_if_modified(|old| {
                let changed = **old != now;
                if changed {
                    *old = Arc::new(now);
                }
                changed
            });
            synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
        tokio::select! {
            biased;
            () = fabric.draining.cancelled() => return,
            () = fabric.stop.cancelled() => return,
            changed = tables.changed() => if changed.is_err() { return },
        }
    }
}

async fn reconcile(fabric: &Arc<Fabric>, table: &Table, open: &mut BTreeMap<Id, Open>) {
    let wanted = wanted(table);
    let before = open.len();
    open.retain(|id, open| {
        wanted
            .iter()
            .any(|(other, w)| other == id && w.port == open.listening.wanted)
    });
    if open.len() < before {
        // A port may have become free for one that had to do without.
        open.retain(|_, open| open.listening.problem.is_none());
    }
    let known: HashSet<Id> = open.keys().cloned().collect();
    for (id, wanted) in wanted.into_iter().filter(|(id, _)| !known.contains(id)) {
        let opened = self::open(fabric, &id, &wanted).await;
        open.insert(id, opened);
    }
}

/// Listeners the table asks for, older Services first: they keep their ports.
fn wanted(table: &Table) -> Vec<(Id, Wanted)> {
    let mut services: Vec<&Arc<Service>> = table.services().collect();
    services.sort_by(|a, b| {
        let age = |s: &Service| s.object.metadata.creation_timestamp.clone().map(|t| t.0);
        (age(a), &a.key).cmp(&(age(b), &b.key))
    });
    services.into_iter().flat_map(|s| of_service(s)).collect()
}

fn of_service(service: &Service) -> Vec<(Id, Wanted)> {
    let Some(spec) = &service.object.spec else {
        return Vec::new();
    };
    if service.object.metadata.deletion_timestamp.is_some() {
        return Vec::new();
    }
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    // A class is somebody else's load balancer; its node ports are still ours.
    let balanced = kind == "LoadBalancer" && spec.load_balancer_class.is_none();
    let exposed = matches!(kind, "NodePort" | "LoadBalancer");
    let previous = publish::replaced_ports(&service.object);
    let mut all = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Ok(number) = u16::try_from(port.port) else {
            continue;
        };
        let mut want = |origin, wanted: u16| {
            let id = Id {
                key: service.key.clone(),
                port: number,
                protocol: Protocol::parse(port.protocol.as_deref()),
                origin,
            };
            let wanted = Wanted {
                port: wanted,
                previous: previous.get(&wanted).copied(),
                name: port.name.clone().unwrap_or_default(),
            };
            all.push((id, wanted));
        };
        if balanced {
            want(Origin::LoadBalancer, number);
        }
        let node_port = port.node_port.and_then(|p| u16::try_from(p).ok());
        if let Some(node_port) = node_port.filter(|p| exposed && *p != 0) {
            want(Origin::NodePort, node_port);
        }
    }
    all
}

async fn open(fabric: &Arc<Fabric>, id: &Id, wanted: &Wanted) -> Open {
    let closing = fabric.draining.child_token();
    let target = accept::Target::new(fabric, &id.key, id.port, id.protocol);
    let ip = fabric.config.service_address;
    let (address, problem) = match id.protocol {
        Protocol::Tcp => match bind(ip, wanted, listen) {
            Ok((listener, problem)) => {
                let address = listener.local_addr().ok();
                let run = accept::tcp(Arc::clone(fabric), listener, target, closing.clone());
                fabric.tasks.spawn(run);
                (address, problem)
            }
            Err(problem) => (None, Some(problem)),
        },
        Protocol::Udp => match bind(ip, wanted, udp) {
            Ok((socket, problem)) => {
                let address = socket.local_addr().ok();
                let run = accept::udp(Arc::clone(fabric), socket, target, closing.clone());
                fabric.tasks.spawn(run);
                (address, problem)
            }
            Err(problem) => (None, Some(problem)),
        },
        Protocol::Sctp => (None, Some("SCTP is not supported".to_owned())),
    };
    let (namespace, service) = (&id.key.namespace, &id.key.name);
    match (&address, &problem) {
        (Some(address), None) => info!(%namespace, %service, %address, "Opened listener"),
        (Some(address), Some(problem)) => {
            warn!(%namespace, %service, %address, %problem, "Opened listener on another port");
        }
        (None, problem) => warn!(%namespace, %service, ?problem, "Opened no listener"),
    }
    Open {
        listening: Listening {
            namespace: namespace.clone(),
            service: service.clone(),
            port_name: wanted.name.clone(),
            port: id.port,
            protocol: id.protocol.as_str(),
            origin: id.origin,
            wanted: wanted.port,
            address,
            problem,
        },
        closing,
    }
}

/// The wanted port; else the one of last time; else any.
fn bind<T>(
    ip: IpAddr,
    wanted: &Wanted,
    open: impl Fn(SocketAddr) -> io::Result<T>,
) -> Result<(T, Option<String>), String> {
    let error = match open(SocketAddr::new(ip, wanted.port)) {
        Ok(socket) => return Ok((socket, None)),
        Err(error) => error,
    };
    let port = wanted.port;
    let why = match error.kind() {
        io::ErrorKind::AddrInUse => format!("port {port} is taken on {ip}"),
        io::ErrorKind::PermissionDenied => format!("port {port} is not permitted on {ip}"),
        _ => {
            return Err(format!(
                "cannot listen on {}: {error}",
                SocketAddr::new(ip, port)
            ));
        }
    };
    let previous = wanted.previous.map(|port| SocketAddr::new(ip, port));
    let socket = previous
        .and_then(|address| open(address).ok())
        .map_or_else(|| open(SocketAddr::new(ip, 0)), Ok);
    match socket {
        Ok(socket) => Ok((socket, Some(why))),
        Err(error) => Err(format!("{why}, and no free port was found: {error}")),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
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

fn udp(address: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    tokio::net::UdpSocket::from_std(socket)
}

//! Real sockets for Services on this machine: node ports and load-balanced ports on the node's service address, addresses
//! of the pool and external addresses where the machine has them, and health checks for load balancers. One task owns them:
//! it opens what the table asks for, closes what it no longer asks for, and says in the Node's annotation what became of it.
//!
//! A port of the service address that is taken or not permitted is replaced by a free one; on other addresses it stays
//! closed until it is free. Never writes to Services: a controller composes their status from what all nodes say.

mod accept;
mod clients;
mod datagrams;
mod health;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};
use types::well_known::ANNOTATION_LISTENERS;

use self::wanted::{Id, Place, Wanted};
use super::table::{Protocol, Table};
use super::vnet::Fabric;
use crate::bind::{Accepting, LOOK_AGAIN, bind, interfaces, listen};

/// Why a Service has a listener.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    LoadBalancer,
    NodePort,
    /// One of `spec.externalIPs`.
    ExternalIp,
    /// `spec.healthCheckNodePort`
    HealthCheck,
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

struct Open {
    listening: Listening,
    accepting: Accepting,
}

// === impl Origin ===

impl Origin {
    /// As reports have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::LoadBalancer => "LoadBalancer",
            Self::NodePort => "NodePort",
            Self::ExternalIp => "ExternalIP",
            Self::HealthCheck => "HealthCheck",
        }
    }
}

// === impl Open ===

impl Open {
    /// Whether it could have now what it had to do without.
    fn is_free(&self, id: &Id) -> bool {
        let at = SocketAddr::new(id.ip, self.listening.wanted);
        self.listening.problem.is_some()
            && match id.protocol {
                Protocol::Tcp => listen(at).is_ok(),
                Protocol::Udp => udp(at).is_ok(),
                Protocol::Sctp => false,
            }
    }
}

/// Runs until the network drains; then every listener is closed.
pub(crate) async fn run(
    fabric: Arc<Fabric>,
    listening: watch::Sender<Arc<Vec<Listening>>>,
    synced: watch::Sender<bool>,
) {
    let mut tables = fabric.services.clone();
    let mut open = BTreeMap::new();
    let mut own = interfaces();
    // Which Services the listeners were last made for; endpoints come and go more often.
    let mut done = None;
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let table = Arc::clone(&tables.borrow_and_update());
        if table.complete && done != Some(table.objects) {
            done = Some(table.objects);
            reconcile(&fabric, &table, &own, &mut open).await;
            publish(&fabric, &table, &open, &listening);
            synced.send_if_modified(|synced| !std::mem::replace(synced, true));
        }
        let waiting = open.values().any(|open| open.listening.problem.is_some())
            || wanted::asks_for_addresses(&table);
        tokio::select! {
            biased;
            () = fabric.draining.cancelled() => return,
            () = fabric.stop.cancelled() => return,
            changed = tables.changed() => if changed.is_err() { return },
            _ = look_again.tick(), if waiting => {
                let now = interfaces();
                let closed = close(&mut open, |id, open| open.is_free(id)).await;
                if now != own || closed > 0 {
                    own = now;
                    done = None;
                }
            }
        }
    }
}

fn publish(
    fabric: &Fabric,
    table: &Table,
    open: &BTreeMap<Id, Open>,
    listening: &watch::Sender<Arc<Vec<Listening>>>,
) {
    let all = open
        .iter()
        .map(|(id, open)| (id.ip, open.listening.clone()));
    let all: Vec<(IpAddr, Listening)> = all.collect();
    let report = wanted::report(table, &all, fabric.config.service_address);
    fabric
        .config
        .annotations
        .set(ANNOTATION_LISTENERS, report.print());
    let now: Vec<Listening> = all.into_iter().map(|(_, listening)| listening).collect();
    listening.send_if_modified(|old| {
        let changed = **old != now;
        if changed {
            *old = Arc::new(now);
        }
        changed
    });
}

/// Closes those that are chosen; when this returns their ports can be bound again. How many there were.
async fn close(open: &mut BTreeMap<Id, Open>, mut choose: impl FnMut(&Id, &Open) -> bool) -> usize {
    let closed = open.extract_if(.., |id, open| choose(id, open));
    let closing: Vec<_> = closed.map(|(_, open)| open.accepting.close()).collect();
    join_all(closing).await.len()
}

async fn reconcile(
    fabric: &Arc<Fabric>,
    table: &Table,
    own: &BTreeSet<IpAddr>,
    open: &mut BTreeMap<Id, Open>,
) {
    let place = Place {
        node: &fabric.config.node_name,
        service_address: fabric.config.service_address,
        own,
    };
    let wanted = wanted::wanted(table, &place);
    let ports: BTreeMap<&Id, u16> = wanted.iter().map(|(id, w)| (id, w.port)).collect();
    let left = |id: &Id, open: &Open| ports.get(id) != Some(&open.listening.wanted);
    if close(open, left).await > 0 {
        // A port may have become free for one that had to do without.
        close(open, |_, open| open.listening.problem.is_some()).await;
    }
    for (id, wanted) in wanted {
        open.entry(id)
            .or_insert_with_key(|id| self::open(fabric, id, &wanted));
    }
}

fn open(fabric: &Arc<Fabric>, id: &Id, wanted: &Wanted) -> Open {
    let closing = fabric.draining.child_token();
    let target = || accept::Target::new(fabric, id);
    let at = SocketAddr::new(id.ip, wanted.port);
    let (previous, replaceable) = (wanted.previous, wanted.replaceable);
    let mut task = None;
    let (address, problem) = match id.protocol {
        Protocol::Tcp => match bind(at, previous, replaceable, listen) {
            Ok((listener, problem)) => {
                let address = listener.local_addr().ok();
                let serves = match id.origin {
                    Origin::HealthCheck => accept::Serves::Health(Arc::new(id.key.clone())),
                    _ => accept::Serves::Service(target()),
                };
                let run = accept::tcp(Arc::clone(fabric), listener, serves, closing.clone());
                task = Some(fabric.tasks.spawn(run));
                (address, problem)
            }
            Err(problem) => (None, Some(problem)),
        },
        Protocol::Udp => match bind(at, previous, replaceable, udp) {
            Ok((socket, problem)) => {
                let address = socket.local_addr().ok();
                let run = datagrams::serve(Arc::clone(fabric), socket, target(), closing.clone());
                task = Some(fabric.tasks.spawn(run));
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
        accepting: Accepting::new(closing, task),
    }
}

fn udp(address: SocketAddr) -> io::Result<tokio::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    tokio::net::UdpSocket::from_std(socket)
}

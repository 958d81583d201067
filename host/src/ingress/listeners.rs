//! The real sockets: opens those the table asks for, closes those it no longer asks for, and says in the Node object where
//! they are. A port that is taken or not permitted is replaced by a free one, the same as last time where possible.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::time::MissedTickBehavior;
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};
use types::routing::report::{Listening, Report};
use types::routing::table::Table;
use types::routing::{HTTP, HTTPS};
use types::well_known::ANNOTATION_INGRESS;

use super::serve::{Entry, accept};
use super::{Shared, certificates};
use crate::bind::{Accepting, LOOK_AGAIN, bind, listen};

const LOOK_BACK: Duration = Duration::from_secs(5);

struct Open {
    listening: Listening,
    accepting: Accepting,
}

/// Runs until the network drains; then every listener is closed. Without a client nobody is asked about last time.
pub(super) async fn run(shared: Arc<Shared>, client: Option<Client>) {
    let mut live = shared.live.clone();
    let mut open: BTreeMap<u16, Open> = BTreeMap::new();
    let mut before: Option<Report> = None;
    let mut look_again = tokio::time::interval(LOOK_AGAIN);
    look_again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = Arc::clone(&live.borrow_and_update());
        if before.is_none() && !now.table.doors.is_empty() {
            before = Some(last_time(client.as_ref(), &shared).await);
        }
        reconcile(&shared, &now.table, &mut open, before.as_ref()).await;
        tell(&shared, &open);
        loop {
            let waiting = open.values().any(|open| open.listening.problem.is_some());
            tokio::select! {
                biased;
                () = shared.gate.draining().cancelled() => return,
                changed = live.changed() => match changed {
                    Ok(()) => break,
                    Err(_) => return,
                },
                _ = look_again.tick(), if waiting => {
                    let is_free = |port, open: &Open| {
                        let at = wanted(&shared, port, open.listening.tls);
                        open.listening.problem.is_some() && listen(at).is_ok()
                    };
                    if close(&mut open, is_free).await > 0 {
                        break;
                    }
                }
            }
        }
    }
}

/// Closes those that are chosen; when this returns their ports can be bound again. How many there were.
async fn close(
    open: &mut BTreeMap<u16, Open>,
    mut choose: impl FnMut(u16, &Open) -> bool,
) -> usize {
    let closed = open.extract_if(.., |port, open| choose(*port, open));
    let closing: Vec<_> = closed.map(|(_, open)| open.accepting.close()).collect();
    join_all(closing).await.len()
}

/// What this node's object says from an earlier life.
async fn last_time(client: Option<&Client>, shared: &Shared) -> Report {
    let Some(client) = client else {
        return Report::default();
    };
    let nodes: Api<Node> = Api::all(client.clone());
    let get = nodes.get_opt(&shared.gate.config().node_name);
    let Ok(Ok(Some(node))) = tokio::time::timeout(LOOK_BACK, get).await else {
        return Report::default();
    };
    let annotations = node.metadata.annotations.unwrap_or_default();
    let said = annotations.get(ANNOTATION_INGRESS);
    said.and_then(|text| Report::parse(text))
        .unwrap_or_default()
}

async fn reconcile(
    shared: &Arc<Shared>,
    table: &Table,
    open: &mut BTreeMap<u16, Open>,
    before: Option<&Report>,
) {
    let left = |port, open: &Open| {
        let door = table.doors.get(&port);
        door.is_none_or(|door| door.tls != open.listening.tls)
    };
    close(open, left).await;
    for (port, door) in &table.doors {
        if !open.contains_key(port) {
            let previous = before.and_then(|report| report.port(*port)?.address);
            let opened = self::open(shared, *port, door.tls, previous.map(|a| a.port()));
            open.insert(*port, opened);
        }
    }
}

/// Where a listener's port is served.
fn wanted(shared: &Shared, port: u16, tls: bool) -> SocketAddr {
    match (port, tls) {
        (HTTP, false) => shared.config.http,
        (HTTPS, true) => shared.config.https,
        _ => SocketAddr::new(shared.gate.config().service_address, port),
    }
}

fn open(shared: &Arc<Shared>, port: u16, tls: bool, previous: Option<u16>) -> Open {
    let wanted = wanted(shared, port, tls);
    let closing = shared.gate.draining().child_token();
    let acceptor = tls
        .then(|| certificates::server_config(shared, port))
        .transpose();
    let bound = match acceptor {
        Ok(acceptor) => bind(wanted, previous, true, listen).map(|bound| (bound, acceptor)),
        Err(error) => Err(error.to_string()),
    };
    let mut task = None;
    let (address, problem) = match bound {
        Ok(((listener, problem), acceptor)) => {
            let address = listener.local_addr().ok();
            let entry = Entry {
                port,
                tls: acceptor.map(|config| TlsAcceptor::from(Arc::new(config))),
            };
            let run = accept(Arc::clone(shared), listener, entry, closing.clone());
            task = Some(shared.gate.spawn(run));
            (address, problem)
        }
        Err(problem) => (None, Some(problem)),
    };
    match (&address, &problem) {
        (Some(address), None) => info!(port, %address, "Opened Ingress listener"),
        (Some(address), Some(problem)) => {
            warn!(port, %address, problem, "Opened Ingress listener on another port");
        }
        (None, problem) => warn!(port, ?problem, "Opened no Ingress listener"),
    }
    Open {
        listening: Listening {
            port,
            tls,
            address: address.map(|at| SocketAddr::new(reachable(at.ip()), at.port())),
            problem,
        },
        accepting: Accepting::new(closing, task),
    }
}

fn tell(shared: &Shared, open: &BTreeMap<u16, Open>) {
    let listeners: Vec<Listening> = open.values().map(|open| open.listening.clone()).collect();
    let report = Report {
        listeners: listeners.clone(),
    };
    shared.listening.send_replace(Arc::new(listeners));
    let said = (!report.listeners.is_empty()).then(|| report.to_string());
    let annotations = &shared.gate.config().annotations;
    annotations.set(ANNOTATION_INGRESS, said);
}

/// An address clients can use: for "all addresses", the one this machine would talk to others from.
fn reachable(ip: IpAddr) -> IpAddr {
    if !ip.is_unspecified() {
        return ip;
    }
    // Connecting a UDP socket sends nothing; it only asks the routing table.
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    routed.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |local| local.ip())
}

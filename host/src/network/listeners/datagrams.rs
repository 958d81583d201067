//! Datagrams from outside: each client is remembered for a while, so that it keeps its endpoint and gets its answers. Owns
//! the clients of one listener; decides neither who is forgotten nor where a datagram goes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::trace;
use types::error::chain;

use super::accept::Target;
use super::clients::{Clients, Flow};
use crate::network::balancer::Millis;
use crate::network::table::Port;
use crate::network::udp::{Client, LARGEST, Why};
use crate::network::vnet::Fabric;

/// Clients one listener remembers. One takes about a kilobyte.
const CLIENTS: usize = 16_384;
/// How often those are forgotten that are silent.
const SWEEP: Duration = Duration::from_secs(1);
/// A pause after an error, which mostly is an ICMP answer to something we sent: one that lasts must not take a core.
const PAUSE: Duration = Duration::from_millis(1);

impl Flow for Client {
    fn answered(&self) -> Option<Millis> {
        self.answered()
    }
}

/// Until `closing`. When this returns the socket is closed.
pub(super) async fn serve(
    fabric: Arc<Fabric>,
    socket: UdpSocket,
    mut target: Target,
    closing: CancellationToken,
) {
    let socket = Arc::new(socket);
    let mut clients = Clients::new(CLIENTS);
    let mut buffer = vec![0; LARGEST];
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let received = tokio::select! {
            biased;
            () = closing.cancelled() => break,
            _ = sweep.tick(), if !clients.is_empty() => {
                clients.expire(fabric.now());
                continue;
            }
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, client) = match received {
            Ok(received) => received,
            Err(error) => {
                trace!(error = %chain(&error), "Failed to receive a datagram");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(port) = target.port_for(client.ip().to_canonical()) else {
            fabric.lost.count(Why::Denied);
            continue;
        };
        let datagram = Bytes::copy_from_slice(&buffer[..length]);
        if let Err(why) = pass(&fabric, &socket, &mut clients, client, &port, datagram) {
            fabric.lost.count(why);
        }
    }
}

/// From a client to an endpoint of `port`. When there is no room, another client makes some.
fn pass(
    fabric: &Arc<Fabric>,
    socket: &Arc<UdpSocket>,
    clients: &mut Clients<Client>,
    client: SocketAddr,
    port: &Port,
    datagram: Bytes,
) -> Result<(), Why> {
    let now = fabric.now();
    let make_room = |clients: &mut Clients<Client>| {
        if clients.evict().is_some() {
            fabric.lost.client();
        }
    };
    if clients.heard(client, now).is_none() {
        let new = || Client::new(fabric, socket, client);
        let new = new().or_else(|| {
            make_room(clients);
            new()
        });
        let new = new.ok_or(Why::NoRoom)?;
        if clients.insert(client, new, now).is_some() {
            fabric.lost.client();
        }
    }
    let send = |clients: &mut Clients<Client>| match clients.heard(client, now) {
        Some(client) => client.send(datagram.clone(), port),
        None => Err(Why::NoRoom),
    };
    match send(clients) {
        Err(Why::NoRoom) => {
            make_room(clients);
            send(clients)
        }
        sent => sent,
    }
}

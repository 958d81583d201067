//! Ingress and Gateway: HTTP from the outside, on real sockets, to Services by host and path.
//!
//! ```text
//!  watches ── follow ──► types::routing::compile ──► watch<Live> ──► listeners (which sockets)
//!                             ▲                          └─────────► proxy     (where each request goes)
//!  Secrets ── secrets ────────┘                          └─────────► certificates (what TLS shows)
//! ```
//! Every node listens. A node says in its Node object where; a controller makes status and Events of that.

mod args;
mod bodies;
mod certificates;
mod filters;
mod follow;
mod forwarded;
mod listeners;
mod proxy;
mod secrets;
mod serve;
#[cfg(test)]
mod tests;
mod upgrade;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

pub use self::args::Args;
use ipnet::IpNet;
use rustls::sign::CertifiedKey;
use tokio::sync::{Semaphore, watch};
use types::routing::Key;
pub use types::routing::report::Listening;
use types::routing::table::Table;

use crate::network::Network;
use crate::network::gate::Gate;

/// Copies of requests under way; requests beyond are not copied.
const MIRRORS: usize = 256;

/// What an administrator may choose.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where port 80 is served.
    pub http: SocketAddr,
    /// Where port 443 is served.
    pub https: SocketAddr,
    /// Proxies in front of us whose `X-Forwarded-…` is believed.
    pub trusted: Vec<IpNet>,
    pub limits: Limits,
}

/// Bounds on clients, where a route says nothing else.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest request body; 0 is without bound.
    pub body: u64,
    /// A client has this long for the TLS handshake, and for a request's head.
    pub header: Duration,
    pub header_bytes: usize,
    pub headers: usize,
    /// A connection without requests is closed after this long.
    pub idle: Duration,
    /// Between two pieces of a request's body; and how long a client may leave what it is sent.
    pub send: Duration,
    /// Until an answer begins, and between two pieces of it.
    pub read: Duration,
    /// An upgraded connection on which nothing moves is closed after this long.
    pub upgraded: Duration,
    /// Requests one HTTP/2 connection has open.
    pub streams: u32,
}

/// Everything requests are answered from. Replaced as a whole.
pub(crate) struct Live {
    pub(crate) table: Table,
    pub(crate) certificates: HashMap<Key, Arc<CertifiedKey>>,
}

/// What all connections share.
pub(crate) struct Shared {
    pub(crate) gate: Gate,
    pub(crate) config: Config,
    pub(crate) live: watch::Receiver<Arc<Live>>,
    pub(crate) listening: watch::Sender<Arc<Vec<Listening>>>,
    /// Copies of requests under way to mirrors.
    pub(crate) mirrors: Arc<Semaphore>,
    /// For clients that ask for a name nobody has a certificate for.
    pub(crate) fallback: Arc<CertifiedKey>,
}

/// The running engine.
#[derive(Clone)]
pub struct Ingress {
    shared: Arc<Shared>,
}

/// Follows the API and listens, until the network drains.
pub fn start(
    network: &Network,
    config: Config,
    client: kube::Client,
) -> Result<Ingress, crate::tls::Error> {
    let gate = network.gate();
    let (sender, live) = watch::channel(Arc::new(Live {
        table: Table::default(),
        certificates: HashMap::new(),
    }));
    let shared = Arc::new(Shared {
        mirrors: Arc::new(Semaphore::new(MIRRORS)),
        fallback: certificates::self_signed()?,
        listening: watch::Sender::new(Arc::default()),
        live,
        config,
        gate: gate.clone(),
    });
    let (draining, follow) = (gate.draining().clone(), follow::run(client.clone(), sender));
    gate.spawn(async move {
        tokio::select! {
            biased;
            // What is in flight is finished by the last table.
            () = draining.cancelled() => {}
            () = follow => {}
        }
    });
    gate.spawn(listeners::run(Arc::clone(&shared), Some(client)));
    Ok(Ingress { shared })
}

// === impl Ingress ===

impl Ingress {
    /// Where it really listens, by port.
    pub fn listeners(&self) -> Arc<Vec<Listening>> {
        Arc::clone(&self.shared.listening.borrow())
    }
}

// === impl Config ===

impl Config {
    /// The usual ports of an address.
    pub fn at(address: IpAddr) -> Self {
        Self {
            http: SocketAddr::new(address, types::routing::HTTP),
            https: SocketAddr::new(address, types::routing::HTTPS),
            trusted: Vec::new(),
            limits: Limits::default(),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::at(IpAddr::V4(Ipv4Addr::LOCALHOST))
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body: 100 << 20,
            header: Duration::from_secs(15),
            header_bytes: 64 << 10,
            headers: 128,
            idle: Duration::from_secs(75),
            send: Duration::from_secs(60),
            read: Duration::from_secs(60),
            upgraded: Duration::from_secs(3600),
            streams: 128,
        }
    }
}

//! `wasi:sockets` over the pod network, 0.2 and 0.3. No socket here is one of the kernel's.
//!
//! [`tcp`] and [`udp`] know what a socket may do in which state; [`p2`] and [`p3`] say the same in the words of the two
//! versions. How many sockets a pod may have is the network's business.

mod address;
mod p2;
mod p3;
mod tcp;
mod udp;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use wasmtime::component::{HasData, Linker, ResourceTable};

use super::guest::Guest;
use crate::network::{PodNetwork, SocketError};

/// As good as forever, and still a time the clock can tell.
const LONGEST_GRACE: Duration = Duration::from_hours(24 * 365);
/// A workload is quiet when nothing was said on its accepted connections for this long.
const QUIET: Duration = Duration::from_secs(1);

/// A workload's part of the pod network.
#[derive(Clone)]
pub(super) struct Sockets {
    network: Arc<PodNetwork>,
    traffic: Arc<Traffic>,
}

/// What goes on on the connections others opened.
#[derive(Default)]
struct Traffic {
    open: AtomicUsize,
    chunks: AtomicU64,
}

/// Counts an accepted connection until it is dropped.
struct Accepted(Arc<Traffic>);

/// What the host functions of one call see.
pub(super) struct View<'a> {
    sockets: &'a Sockets,
    table: &'a mut ResourceTable,
}

struct HasSockets;

/// Why a socket refuses, in the words both versions share.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
enum Fault {
    #[error("invalid argument")]
    InvalidArgument,
    #[error("invalid state")]
    InvalidState,
    #[error("not supported")]
    NotSupported,
    #[error(transparent)]
    Network(#[from] SocketError),
}

// === impl Sockets ===

impl Sockets {
    pub(super) fn new(network: Arc<PodNetwork>) -> Self {
        Self {
            network,
            traffic: Arc::default(),
        }
    }

    /// Waits until nothing is said on the connections others opened, at most `grace`.
    pub(super) async fn quiet(&self, grace: Duration) {
        let deadline = tokio::time::Instant::now() + grace.min(LONGEST_GRACE);
        let traffic = &self.traffic;
        while traffic.open.load(Ordering::Relaxed) > 0 && tokio::time::Instant::now() < deadline {
            let before = traffic.chunks.load(Ordering::Relaxed);
            let wait = deadline.min(tokio::time::Instant::now() + QUIET);
            tokio::time::sleep_until(wait).await;
            if traffic.chunks.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

impl Accepted {
    fn new(traffic: &Arc<Traffic>) -> Self {
        traffic.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(traffic))
    }

    fn moved(&self) {
        self.0.chunks.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Accepted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl View ===

impl HasData for HasSockets {
    type Data<'a> = View<'a>;
}

impl Guest {
    fn socket_view(&mut self) -> View<'_> {
        View {
            sockets: &self.sockets,
            table: &mut self.table,
        }
    }
}

pub(super) fn add_p2(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    p2::add_to_linker(linker)
}

pub(super) fn add_p3(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    p3::add_to_linker(linker)
}

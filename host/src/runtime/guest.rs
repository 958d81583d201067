//! What a store holds for its guest, and how stores are made. Opens a workload's mounts once, not per instance.

use std::sync::Arc;

use wasmtime::Store;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::filesystem::WasiFilesystemCtx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use super::engine::Lane;
use super::limits::{Limiter, Meter};
use super::logs::Pipe;
use super::outgoing::Outgoing;
use super::sockets::Sockets;
use super::{LogStream, StartError, Workload};
use crate::network::Body;

/// Handles (streams, descriptors, sockets, headers …) a process may hold on the host.
pub(super) const PROCESS_HANDLES: usize = 8_192;
/// The same for one instance of an HTTP guest, of which a workload has many.
pub(super) const HTTP_HANDLES: usize = 1_024;
/// Names and values of one set of headers a guest makes.
const FIELDS_BYTES: usize = 16 * 1_024;

/// The data of one instance.
pub(super) struct Guest {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    pub(super) table: ResourceTable,
    pub(super) sockets: Sockets,
    limiter: Limiter,
}

/// Makes the stores of one workload.
pub(super) struct Template {
    pub(super) workload: Workload,
    pub(super) meter: Arc<Meter>,
    pub(super) sockets: Sockets,
    files: WasiFilesystemCtx,
}

// === impl Template ===

impl Template {
    /// Opens the mounts.
    pub(super) fn new(workload: Workload, meter: Arc<Meter>) -> Result<Self, StartError> {
        let mut builder = WasiCtx::builder();
        for mount in &workload.mounts {
            let permissions = if mount.read_only {
                FsPerms::ReadOnly
            } else {
                FsPerms::ReadWrite
            };
            builder
                .preopened_dir(&mount.host, &mount.guest, permissions)
                .map_err(|error| StartError::Mount {
                    host: mount.host.clone(),
                    guest: mount.guest.clone(),
                    source: std::io::Error::other(error.to_string()),
                })?;
        }
        let files = builder.build().filesystem().clone();
        Ok(Self {
            sockets: Sockets::new(Arc::clone(&workload.network)),
            workload,
            meter,
            files,
        })
    }

    /// A store for one instance: its own memory, table and clock, the workload's environment, files and limits.
    /// It may hold so many `handles`.
    pub(super) fn store(&self, lane: &Lane, handles: usize) -> Store<Guest> {
        let workload = &self.workload;
        let output = |stream| Pipe::new(Arc::clone(&workload.logs), stream, workload.terminal);
        let mut builder = WasiCtx::builder();
        builder
            .args(&workload.args)
            .envs(&workload.env)
            .stdout(output(LogStream::Stdout))
            .stderr(output(LogStream::Stderr));
        if let Some(stdin) = &workload.stdin {
            builder.stdin(stdin.stream());
        }
        if let Some(dir) = &workload.working_dir {
            builder.initial_cwd(dir);
        }
        let mut wasi = builder.build();
        wasi.filesystem().clone_from(&self.files);
        let mut table = ResourceTable::new();
        table.set_max_capacity(handles);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(FIELDS_BYTES);
        let guest = Guest {
            wasi,
            http,
            outgoing: Outgoing::new(Arc::clone(&workload.network)),
            table,
            sockets: self.sockets.clone(),
            limiter: Limiter::new(Arc::clone(&self.meter)),
        };
        let mut store = Store::new(&lane.engine, guest);
        store.limiter(|guest| &mut guest.limiter);
        // At every tick the guest gives its thread back; it is polled again when its turn and its quota come.
        store.set_epoch_deadline(1);
        store.epoch_deadline_async_yield_and_update(1);
        store
    }
}

// === impl Guest ===

impl Guest {
    /// The guest's own calls are one further than the one it answers. An instance that answers several at once cannot
    /// tell whose call it is: then the last one's count is used for all.
    pub(super) fn set_hops(&mut self, request: &http::Request<Body>) {
        self.outgoing.hops = request.extensions().get().copied().unwrap_or_default();
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView {
            ctx: &mut self.wasi,
            table: &mut self.table,
        }
    }
}

impl WasiHttpView for Guest {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView {
            hooks: &mut self.outgoing,
            table: &mut self.table,
            ctx: &mut self.http,
        }
    }
}

//! Guests in wasmtime. Takes its own small [`Workload`]; has never heard of a Pod, of Kubernetes, or of a Service.
//!
//! A component is compiled once ([`Runtime::load`]) and started many times ([`Runtime::start`]).

use std::path::PathBuf;
use std::sync::Arc;

use crate::network::PodNetwork;

/// What a component exports decides how it runs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum World {
    /// `wasi:http/incoming-handler@0.2`: the host calls it per request.
    Http02,
    /// `wasi:http/handler@0.3`.
    Http03,
    /// `wasi:cli/run@0.2`: a process.
    Command02,
    /// `wasi:cli/run@0.3`.
    Command03,
}

/// How instances of an HTTP component are reused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reuse {
    /// Requests one instance may answer in its life; 1 is a fresh instance per request.
    pub requests: u32,
    /// Requests at once in one instance (0.3 only).
    pub concurrent: u32,
}

/// A host directory the guest sees.
#[derive(Clone, Debug)]
pub struct Mount {
    pub host: PathBuf,
    /// Absolute guest path, `/etc/config`.
    pub guest: String,
    pub read_only: bool,
}

/// 0 means unlimited for both.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Sum over all linear memories and tables of the workload.
    pub memory_bytes: u64,
    /// Thousandths of a core.
    pub cpu_millis: u64,
}

/// Where a guest's stdout and stderr go. Never blocks: bytes over the bound are refused and the guest sees backpressure.
pub trait LogSink: Send + Sync {
    /// Bytes that may be written now; 0 means wait for `writable`.
    fn capacity(&self) -> usize;
    fn write(&self, stream: LogStream, bytes: &[u8]);
    fn writable(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

/// One container, as the runtime sees it.
pub struct Workload {
    /// For messages and metrics: `default/web-0/app`.
    pub name: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub working_dir: Option<String>,
    pub mounts: Vec<Mount>,
    pub limits: Limits,
    pub reuse: Option<Reuse>,
    pub logs: Arc<dyn LogSink>,
    pub network: Arc<PodNetwork>,
}

/// How a workload ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Exit {
    /// As `kubectl` shows it: 0, the guest's own code, 137 (killed, out of memory), 134 (abort or other trap), 139 (memory fault).
    pub code: i32,
    pub cause: ExitCause,
    /// For people: the trap with its wasm backtrace, or empty.
    pub message: String,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ExitCause {
    /// Returned or called exit.
    Exited,
    Trapped,
    OutOfMemory,
    /// We stopped it.
    Killed,
}

/// Resources used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub cpu_nanos: u64,
    pub memory_bytes: u64,
    /// Times the workload had to wait for its CPU quota, and for how long in all.
    pub throttled: u64,
    pub throttled_nanos: u64,
}

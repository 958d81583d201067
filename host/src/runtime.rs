//! Guests in wasmtime. Takes its own small [`Workload`]; has never heard of a Pod, of Kubernetes, or of a Service.
//!
//! A component is compiled once ([`Runtime::load`]) and started many times ([`Runtime::start`]). What it exports decides how:
//!
//! ```text
//! wasm ─ adapt ─ compiled ─ linker ─┬─ http      0.2: an instance per request, polled in the caller's task
//!        what    machine    what a  ├─ service   0.3: few instances, many requests each
//!        is it?  code       guest   └─ command   one instance, one task, one Exit
//!                           may do     all: guest (store data), limits, logs, outgoing + calls, sockets
//! ```

mod adapt;
mod calls;
mod command;
mod compiled;
mod engine;
mod guest;
mod http;
mod limits;
mod linker;
mod logs;
mod outgoing;
mod service;
mod sockets;
mod stdio;
#[cfg(test)]
mod tests;
mod workload;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p3::bindings::ServicePre;

use crate::network::{HttpHandler, PodNetwork};
use engine::{Engines, Flavor, Lane};
use guest::{Guest, Template};
use limits::Meter;
pub use stdio::Input;
use workload::State;

/// How long a request may go without an answer, unless [`Runtime::request_timeout`] says otherwise.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
/// Components compiled at the same time; each already uses every core.
const COMPILING: usize = 2;

/// What the runtime is made with.
pub struct Config {
    /// Processes that may run at once: the pools are made for this many (at most 9,000).
    pub max_pods: usize,
    /// For compiled components; made with mode 0700. Nobody else may write there.
    pub cache_dir: PathBuf,
}

/// Compiles and runs components. Cheap to clone; costs nothing until the first component is loaded.
#[derive(Clone)]
pub struct Runtime {
    shared: Arc<Shared>,
    timeout: Duration,
}

/// A component ready to start; share it between workloads.
pub struct Component {
    world: World,
    loaded: Arc<Loaded>,
}

/// A started workload. Dropping it kills it.
pub struct Running {
    state: Arc<State>,
    handler: Option<Arc<dyn HttpHandler>>,
    /// Keeps it findable: the next pod of this image takes the same one instead of mapping the code again.
    _component: Arc<Component>,
    tasks: TaskTracker,
}

#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("cache directory {dir}")]
    Cache { dir: PathBuf, source: io::Error },
    #[error("epoch thread")]
    Thread(#[source] io::Error),
}

/// Why a file cannot run here. The text is for the person who wrote the manifest.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum LoadError {
    #[error("not a WebAssembly component: it is {found}")]
    NotWasm { found: String },
    #[error("not a WebAssembly component but {found}: Linux containers do not run here")]
    LinuxContainer { found: &'static str },
    #[error("invalid WebAssembly: {0}")]
    Invalid(String),
    #[error("imports {interface}, which this node does not offer: {detail}")]
    MissingImport { interface: String, detail: String },
    #[error(
        "exports none of wasi:http/incoming-handler@0.2, wasi:http/handler@0.3, wasi:cli/run@0.2, wasi:cli/run@0.3; it exports: {exports}"
    )]
    UnknownWorld { exports: String },
    #[error("the WebAssembly engine failed: {0}")]
    Engine(String),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("mount {host} at {guest}", host = .host.display())]
    Mount {
        host: PathBuf,
        guest: String,
        source: io::Error,
    },
    #[error("{0} processes run already, more do not fit into this node")]
    Full(usize),
    #[error("the WebAssembly engine failed: {0}")]
    Engine(String),
}

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
    /// Of a `host` that names it by its descriptor.
    pub held: Option<Arc<OwnedFd>>,
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
    /// Without it the guest reads the end at once.
    pub stdin: Option<Arc<Input>>,
    /// Whether stdout and stderr are a terminal.
    pub terminal: bool,
    pub logs: Arc<dyn LogSink>,
    pub network: Arc<PodNetwork>,
}

/// A process beside a workload: in its network, with its mounts, on its account. See [`Runtime::exec`].
pub struct Process {
    pub name: String,
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    /// Beside the workload's own.
    pub mounts: Vec<Mount>,
    pub stdin: Option<Arc<Input>>,
    pub terminal: bool,
    pub output: Arc<dyn LogSink>,
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
    /// HTTP requests taken, and those of them in which the guest trapped, answered with an error, or not in time.
    pub requests: u64,
    pub failed_requests: u64,
}

/// What every workload needs.
struct Shared {
    engines: Engines,
    cache: compiled::Cache,
    compiling: Semaphore,
    // Locked to find an entry; the entry's own lock makes concurrent loads of one digest wait for the first.
    components: Mutex<HashMap<String, Slot>>,
    /// Every task that runs a guest, or ends one.
    tasks: TaskTracker,
}

type Slot = Arc<tokio::sync::Mutex<Weak<Component>>>;

/// A linked component by its world.
enum Loaded {
    Http02(ProxyPre<Guest>, Flavor),
    Http03(ServicePre<Guest>),
    Command02(wasmtime_wasi::p2::bindings::CommandPre<Guest>, Flavor),
    Command03(wasmtime_wasi::p3::bindings::CommandPre<Guest>),
}

// === impl Runtime ===

impl Runtime {
    /// Makes the cache directory and the (sleeping) epoch thread; the engines come with the first component.
    pub fn new(config: Config) -> Result<Self, RuntimeError> {
        let dir = config.cache_dir;
        let cache = compiled::Cache::open(dir.clone())
            .map_err(|source| RuntimeError::Cache { dir, source })?;
        Ok(Self {
            shared: Arc::new(Shared {
                engines: Engines::new(config.max_pods).map_err(RuntimeError::Thread)?,
                cache,
                compiling: Semaphore::new(COMPILING),
                components: Mutex::new(HashMap::new()),
                tasks: TaskTracker::new(),
            }),
            timeout: REQUEST_TIMEOUT,
        })
    }

    /// How long a request may go without an answer, for workloads started from here on (default 600 s).
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// A component somebody still uses.
    pub async fn loaded(&self, digest: &str) -> Option<Arc<Component>> {
        self.slot(digest).lock().await.upgrade()
    }

    /// Compiles `bytes` (milliseconds to many seconds, on other threads) or maps what was compiled before. `digest`
    /// identifies the bytes: the caller has verified it. Loads of one digest at the same time do the work once.
    pub async fn load(&self, bytes: Bytes, digest: &str) -> Result<Arc<Component>, LoadError> {
        let slot = self.slot(digest);
        let mut slot = slot.lock().await;
        if let Some(component) = slot.upgrade() {
            return Ok(component);
        }
        let _turn = self.shared.compiling.acquire().await;
        let shared = Arc::clone(&self.shared);
        let name = digest.to_owned();
        let component = tokio::task::spawn_blocking(move || shared.load(&bytes, &name))
            .await
            .map_err(|error| LoadError::Engine(error.to_string()))??;
        let component = Arc::new(component);
        *slot = Arc::downgrade(&component);
        Ok(component)
    }

    fn slot(&self, digest: &str) -> Slot {
        let mut components = self
            .shared
            .components
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = components.get(digest) {
            return Arc::clone(slot);
        }
        // Entries nobody holds and whose component is gone go with the next newcomer.
        components.retain(|_, slot| {
            Arc::strong_count(slot) > 1 || slot.try_lock().is_ok_and(|slot| slot.strong_count() > 0)
        });
        let slot = Slot::default();
        components.insert(digest.to_owned(), Arc::clone(&slot));
        slot
    }

    /// Starts a workload; must be called inside a tokio runtime. A process runs from here on; an HTTP component is
    /// instantiated once as a trial, and then only when requests come.
    pub fn start(
        &self,
        component: &Arc<Component>,
        workload: Workload,
    ) -> Result<Running, StartError> {
        let reuse = workload.reuse;
        let meter = Meter::new(workload.limits, Arc::clone(self.shared.engines.tick()));
        let template = Template::new(workload, Arc::new(meter))?;
        let state = State::new(template, self.timeout, CancellationToken::new());
        let (loaded, shared) = (Arc::clone(&component.loaded), Arc::clone(&self.shared));
        let handler: Option<Arc<dyn HttpHandler>> = match component.world {
            World::Http02 => {
                let tasks = shared.tasks.clone();
                let handler = http::Handler::new(Arc::clone(&state), loaded, shared, reuse);
                tasks.spawn(Arc::clone(&handler).rehearse());
                Some(handler)
            }
            World::Http03 => {
                let tasks = shared.tasks.clone();
                let handler = service::Handler::new(Arc::clone(&state), loaded, shared, reuse);
                tasks.spawn(Arc::clone(&handler).rehearse());
                Some(handler)
            }
            World::Command02 | World::Command03 => {
                let lane = shared.lane(loaded.flavor()).map_err(engine_failed)?;
                let place = Arc::clone(&lane.processes)
                    .try_acquire_owned()
                    .map_err(|_| StartError::Full(self.shared.engines.max_pods()))?;
                command::spawn(Arc::clone(&state), loaded, shared, place);
                None
            }
        };
        Ok(Running {
            state,
            handler,
            _component: Arc::clone(component),
            tasks: self.shared.tasks.clone(),
        })
    }

    /// Waits, at most `deadline`, until no guest runs any more: their workloads have been stopped.
    pub async fn shutdown(&self, deadline: Duration) {
        self.shared.tasks.close();
        if tokio::time::timeout(deadline, self.shared.tasks.wait())
            .await
            .is_err()
        {
            let left = self.shared.tasks.len();
            tracing::warn!(left, "Guests did not end in time");
        }
    }

    /// Starts a process beside a workload: it sees the same network and the same mounts (and its own), and what it uses
    /// counts for the same limits. It ends with the workload (137), never the other way round: memory it is denied ends it
    /// alone. It takes no place of a workload.
    pub fn exec(
        &self,
        beside: &Running,
        component: &Arc<Component>,
        process: Process,
    ) -> Result<Running, StartError> {
        let of = &beside.state.template;
        let workload = Workload {
            name: process.name,
            args: process.args,
            env: process.env,
            working_dir: of.workload.working_dir.clone(),
            mounts: [&of.workload.mounts[..], &process.mounts[..]].concat(),
            limits: of.workload.limits,
            reuse: None,
            stdin: process.stdin,
            terminal: process.terminal,
            logs: process.output,
            network: Arc::clone(&of.workload.network),
        };
        let template = Template::new(workload, Arc::new(of.meter.beside()))?;
        let killed = beside.state.killed.child_token();
        let state = State::new(template, self.timeout, killed);
        let (loaded, shared) = (Arc::clone(&component.loaded), Arc::clone(&self.shared));
        let lane = shared.lane(loaded.flavor()).map_err(engine_failed)?;
        let place = Arc::clone(&lane.slots)
            .try_acquire_owned()
            .map_err(|_| StartError::Full(engine::HTTP_INSTANCES as usize))?;
        command::spawn(Arc::clone(&state), loaded, shared, place);
        Ok(Running {
            state,
            handler: None,
            _component: Arc::clone(component),
            tasks: self.shared.tasks.clone(),
        })
    }
}

// === impl Component ===

impl Component {
    pub fn world(&self) -> World {
        self.world
    }
}

// === impl Running ===

impl Running {
    /// Resolves when the workload is over; at once if it is. An HTTP workload is over when it is stopped, when it needs
    /// more memory than it may have, or when it cannot be instantiated.
    pub async fn wait(&self) -> Exit {
        self.state.wait().await
    }

    /// Asks it to end within `grace`; [`Running::wait`] tells when. HTTP: no new request is taken, those inside are
    /// answered. A process cannot be told (WASI has no signals), so the default action of SIGTERM happens: it ends, once
    /// its connections are quiet or the grace is over, with 143.
    pub fn stop(&self, grace: Duration) {
        let state = Arc::clone(&self.state);
        let serves = self.handler.is_some();
        self.tasks.spawn(async move {
            let exit = if serves {
                workload::killed(if state.drain(grace).await { 0 } else { 137 })
            } else {
                state.template.sockets.quiet(grace).await;
                workload::killed(143)
            };
            state.end(exit);
        });
    }

    /// Ends it now: within a tick of 10 ms nothing of the guest runs any more.
    pub fn kill(&self) {
        self.state.end(workload::killed(137));
    }

    /// Ends it now, with this code: what a signal would have done.
    pub fn end(&self, code: i32) {
        self.state.end(workload::killed(code));
    }

    /// As it was started.
    pub fn args(&self) -> &[String] {
        &self.state.template.workload.args
    }

    pub fn environment(&self) -> &[(String, String)] {
        &self.state.template.workload.env
    }

    pub fn mounts(&self) -> &[Mount] {
        &self.state.template.workload.mounts
    }

    pub fn network(&self) -> &Arc<PodNetwork> {
        &self.state.template.workload.network
    }

    pub fn usage(&self) -> Usage {
        self.state.usage()
    }

    /// Answers HTTP, if that is what the component does.
    pub fn http(&self) -> Option<Arc<dyn HttpHandler>> {
        self.handler.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn engine_failed(error: wasmtime::Error) -> StartError {
    StartError::Engine(format!("{error:#}"))
}

// === impl Shared ===

impl Shared {
    fn lane(&self, flavor: Flavor) -> wasmtime::Result<&Lane> {
        self.engines
            .lane(flavor)
            .map_err(|error| wasmtime::Error::msg(error.to_owned()))
    }

    /// Blocks.
    fn load(&self, bytes: &[u8], digest: &str) -> Result<Component, LoadError> {
        let adapted = adapt::adapt(bytes)?;
        let engine = |error: wasmtime::Error| LoadError::Engine(format!("{error:#}"));
        let lane = self.lane(adapted.flavor).map_err(engine)?;
        let component = self
            .cache
            .load(lane, digest, &adapted.wasm)
            .map_err(|error| LoadError::Invalid(format!("{error:#}")))?;
        let pre = lane
            .linker
            .instantiate_pre(&component)
            .map_err(|error| linker::missing(&error))?;
        let loaded = match adapted.world {
            World::Http02 => ProxyPre::new(pre).map(|pre| Loaded::Http02(pre, adapted.flavor)),
            World::Http03 => ServicePre::new(pre).map(Loaded::Http03),
            World::Command02 => wasmtime_wasi::p2::bindings::CommandPre::new(pre)
                .map(|pre| Loaded::Command02(pre, adapted.flavor)),
            World::Command03 => {
                wasmtime_wasi::p3::bindings::CommandPre::new(pre).map(Loaded::Command03)
            }
        };
        Ok(Component {
            world: adapted.world,
            loaded: Arc::new(loaded.map_err(|error| LoadError::Invalid(format!("{error:#}")))?),
        })
    }
}

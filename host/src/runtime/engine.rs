//! The two wasmtime engines and the clock that preempts guests. Knows nothing of workloads.
//!
//! One engine runs WASI 0.2 without component-model concurrency (which costs ~10 µs per request), the other 0.3 with it.
//! Both come to life when the first component needs them, so an empty node pays for neither. Their pools are fixed at
//! creation: an exhausted pool is an error, so whoever instantiates holds a permit of [`Lane::slots`].

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle, Thread};
use std::time::Duration;

use tokio::sync::Semaphore;
use wasmtime::component::Linker;
use wasmtime::{
    Config, Enabled, Engine, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig,
};

use super::guest::Guest;
use super::linker;

/// How long a guest may hold a thread before it goes back to the queue.
const TICK: Duration = Duration::from_millis(10);
/// Ticks without a running guest after which the ticker sleeps until the next guest wakes it.
const IDLE_TICKS: u32 = 100;
/// Instances that may answer HTTP at the same time on this node, beside the processes.
pub(super) const HTTP_INSTANCES: u32 = 2_048;
/// More processes than this do not fit the kernel's default `vm.max_map_count` (about six mappings each).
const MOST_PODS: usize = 9_000;

/// Which engine a component needs, told from the versions it imports and exports.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Flavor {
    /// WASI 0.2 only.
    P2,
    /// Anything of WASI 0.3.
    P3,
}

/// An engine with what belongs to it.
pub(super) struct Lane {
    pub(super) engine: Engine,
    pub(super) linker: Linker<Guest>,
    /// Permits for instances that answer HTTP.
    pub(super) slots: Arc<Semaphore>,
    /// Permits for instances that are processes.
    pub(super) processes: Arc<Semaphore>,
    /// Of everything that must match before compiled code may be loaded.
    pub(super) compatibility: u64,
}

/// Both lanes, made on first use.
pub(super) struct Engines {
    max_pods: usize,
    p2: OnceLock<Result<Lane, String>>,
    p3: OnceLock<Result<Lane, String>>,
    ticker: Ticker,
}

/// The thread that moves the engines' epochs; stops and is joined on drop.
struct Ticker {
    tick: Arc<Tick>,
    thread: Option<JoinHandle<()>>,
}

/// What guests and the ticker share.
#[derive(Default)]
pub(super) struct Tick {
    running: AtomicUsize,
    parked: AtomicBool,
    stopped: AtomicBool,
    engines: [OnceLock<EngineWeak>; 2],
    thread: OnceLock<Thread>,
}

/// While it lives the ticker ticks.
pub(super) struct Ticking<'a>(&'a Tick);

// === impl Engines ===

impl Engines {
    pub(super) fn new(max_pods: usize) -> std::io::Result<Self> {
        Ok(Self {
            max_pods: max_pods.clamp(1, MOST_PODS),
            p2: OnceLock::new(),
            p3: OnceLock::new(),
            ticker: Ticker::start()?,
        })
    }

    pub(super) fn max_pods(&self) -> usize {
        self.max_pods
    }

    pub(super) fn tick(&self) -> &Arc<Tick> {
        &self.ticker.tick
    }

    /// The lane for `flavor`; the first call takes some ten milliseconds, so make it where blocking is allowed.
    pub(super) fn lane(&self, flavor: Flavor) -> Result<&Lane, &str> {
        let cell = match flavor {
            Flavor::P2 => &self.p2,
            Flavor::P3 => &self.p3,
        };
        cell.get_or_init(|| self.make(flavor).map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(String::as_str)
    }

    fn make(&self, flavor: Flavor) -> wasmtime::Result<Lane> {
        let engine = Engine::new(&config(flavor, self.max_pods))?;
        let linker = match flavor {
            Flavor::P2 => linker::p2(&engine)?,
            Flavor::P3 => linker::p3(&engine)?,
        };
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        // Filled once: `get_or_init` runs this function once per flavor.
        let _ = self.ticker.tick.engines[flavor as usize].set(engine.weak());
        Ok(Lane {
            linker,
            slots: Arc::new(Semaphore::new(HTTP_INSTANCES as usize)),
            processes: Arc::new(Semaphore::new(self.max_pods)),
            compatibility: hasher.finish(),
            engine,
        })
    }
}

/// A component is one to four core instances, one memory, one to three tables and one stack; some composed ones have two
/// memories. Address space: a memory slot reserves 4 GiB, 24,000 of them did not fit in one process.
fn config(flavor: Flavor, max_pods: usize) -> Config {
    let instances = max_pods as u32 + HTTP_INSTANCES;
    let mut pool = PoolingAllocationConfig::default();
    pool.total_component_instances(instances)
        .total_core_instances(instances.saturating_mul(5))
        .total_memories((instances + instances / 8).min(11_000))
        .total_tables(instances.saturating_mul(4))
        .total_stacks(instances)
        .table_elements(64 * 1024)
        .max_component_instance_size(4 << 20)
        .max_core_instance_size(4 << 20)
        .max_memories_per_module(4)
        .max_tables_per_module(8)
        .linear_memory_keep_resident(256 * 1024)
        .table_keep_resident(16 * 1024)
        .pagemap_scan(Enabled::Auto);
    let mut config = Config::new();
    config
        .allocation_strategy(InstanceAllocationStrategy::Pooling(pool))
        .epoch_interruption(true)
        .concurrency_support(flavor == Flavor::P3)
        .wasm_component_model_async(flavor == Flavor::P3);
    config
}

// === impl Ticker ===

impl Ticker {
    fn start() -> std::io::Result<Self> {
        let tick = Arc::new(Tick::default());
        let shared = Arc::clone(&tick);
        let thread = thread::Builder::new()
            .name("epochs".to_owned())
            .stack_size(64 * 1024)
            .spawn(move || shared.run())?;
        // Set before anybody can see the ticker.
        let _ = tick.thread.set(thread.thread().clone());
        Ok(Self {
            tick,
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.tick.stopped.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread runs nothing that panics; there is nobody to tell if it did.
            let _ = thread.join();
        }
    }
}

// === impl Tick ===

impl Tick {
    /// Says that a guest is about to run on this thread.
    pub(super) fn enter(&self) -> Ticking<'_> {
        self.running.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
        Ticking(self)
    }

    fn run(&self) {
        let mut idle = IDLE_TICKS;
        while !self.stopped.load(Ordering::SeqCst) {
            if self.running.load(Ordering::SeqCst) == 0 {
                idle += 1;
            } else {
                idle = 0;
            }
            if idle < IDLE_TICKS {
                thread::park_timeout(TICK);
            } else {
                // Sequential consistency makes one of the two see the other: a guest that enters now sees `parked`,
                // or we see `running`.
                self.parked.store(true, Ordering::SeqCst);
                if self.running.load(Ordering::SeqCst) == 0 && !self.stopped.load(Ordering::SeqCst)
                {
                    thread::park();
                }
                self.parked.store(false, Ordering::SeqCst);
                idle = 0;
            }
            for engine in self.engines.iter().filter_map(OnceLock::get) {
                if let Some(engine) = engine.upgrade() {
                    engine.increment_epoch();
                }
            }
        }
    }
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

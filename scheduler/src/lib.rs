//! Scheduling and the controllers: ordinary Kubernetes clients. Observe → decide → act.
//!
//! 1. [`informers`] keep one list-and-watch per kind; every change puts keys into queues.
//! 2. [`reconcile`] takes keys out of a queue, a few at once, and comes back to those that failed.
//! 3. A pass reads the stores, and a pure `plan(observed, now)` decides; [`write`] carries out what it says.
//! 4. [`scheduling`] does the same for pods without a node: queue → snapshot → filter → score → assume → bind.
//! 5. [`events`] tell users what happened, at leisure.
//!
//! Nothing here knows how the API server or a node works: everything meets in objects.
//!
//! Where there are several control planes on one store, each runs this crate; [`election`] lets one of them schedule and
//! one control at a time. The others keep their stores filled.

pub mod clock;
pub mod controllers;
pub mod discovery;
pub mod election;
pub mod events;
pub mod informers;
pub mod objects;
pub mod reconcile;
pub mod scheduling;
pub mod taints;
pub mod write;

mod args;
mod pool;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use types::well_known::DEFAULT_SCHEDULER;

pub use args::Args;

use controllers::{Informers, Shared};
use discovery::Catalog;
use election::lock::{self, Lock, Term};
use events::Recorder;
use write::{CONTROLLER_MANAGER, SCHEDULER, Writer};

/// Tasks that have not ended by then are left to the process's end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);

/// What scheduling and the controllers need.
pub struct Config {
    /// `system:kube-controller-manager`: every watch, and its own lock.
    pub client: Client,
    /// `system:kube-scheduler`: bindings, pods' conditions, and its own lock.
    pub scheduler_client: Client,
    /// The client of a ServiceAccount in `kube-system`, by its name (`deployment-controller`): each controller writes as
    /// its own.
    pub controller_client: controllers::Accounts,
    /// Who we are to other control planes on the same store, as nobody else was or will be: the host's name and a UUID.
    /// `None` where there are no others: then nobody is elected.
    pub identity: Option<String>,
    pub args: Args,
}

/// Running controllers. Dropping it stops them.
pub struct Handle {
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

/// Starts everything and returns at once; work begins when all stores have been filled and, where there are others, when
/// we have been elected: scheduling and the controllers each by a Lease of their own.
///
/// Cancellation: the tasks live until [`Handle::shutdown`] or the handle is dropped.
pub fn start(config: Config) -> Handle {
    let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
    let (recorder, inbox) = events::channel();
    let authors = authors(&config);
    tracker.spawn(events::run(inbox, authors, shutdown.clone()));
    let parts = Parts {
        informers: Informers::new(),
        recorder,
        catalog: Arc::default(),
        config,
    };
    let informers = &parts.informers;
    informers.start(&parts.config.client, &tracker, &shutdown);
    let (spawner, stop) = (tracker.clone(), shutdown.clone());
    tracker.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = parts.informers.synced() => {}
        }
        info!("Stores are filled");
        let Some(identity) = parts.config.identity.clone() else {
            let term = lock::forever(&stop, &spawner);
            parts.schedule(&term);
            parts.control(&term);
            return;
        };
        let parts = Arc::new(parts);
        let lock = parts.lock(
            SCHEDULER,
            DEFAULT_SCHEDULER,
            &parts.config.scheduler_client,
            &identity,
        );
        let led = Arc::clone(&parts);
        spawner.spawn(lock::run(lock, stop.clone(), move |term| {
            led.schedule(term)
        }));
        let lock = parts.lock(
            CONTROLLER_MANAGER,
            CONTROLLER_MANAGER,
            &parts.config.client,
            &identity,
        );
        spawner.spawn(lock::run(lock, stop, move |term| parts.control(term)));
    });
    Handle { shutdown, tracker }
}

/// What outlives terms.
struct Parts {
    informers: Informers,
    recorder: Recorder,
    catalog: Arc<Catalog>,
    config: Config,
}

// === impl Parts ===

impl Parts {
    fn lock(
        &self,
        name: &'static str,
        component: &'static str,
        client: &Client,
        identity: &str,
    ) -> Lock {
        Lock {
            name,
            identity: identity.to_owned(),
            writer: Writer::new(client.clone(), name),
            recorder: self.recorder.named(component),
            leases: Arc::clone(&self.informers.leases),
        }
    }

    /// What the work of one term shares. Nothing of it is left for the next: what a controller remembers is of its term.
    fn shared(&self, term: &Term) -> Arc<Shared> {
        Arc::new(Shared {
            informers: self.informers.during(&term.over),
            accounts: Arc::clone(&self.config.controller_client),
            fence: term.fence.clone(),
            recorder: self.recorder.clone(),
            catalog: Arc::clone(&self.catalog),
            args: self.config.args.clone(),
        })
    }

    fn schedule(&self, term: &Term) {
        let writer = Writer::new(self.config.scheduler_client.clone(), SCHEDULER);
        let writer = writer.fenced(term.fence.clone());
        let seed = self.config.args.seed;
        let scheduling = scheduling::Scheduling::new(&self.shared(term), writer, seed);
        term.tasks.spawn(scheduling.run(term.over.clone()));
    }

    fn control(&self, term: &Term) {
        let start = controllers::prepare(&self.shared(term));
        start(&term.tasks, &term.over);
    }
}

/// Who writes the Events of a component.
fn authors(config: &Config) -> impl Fn(&'static str) -> Writer + Send + 'static {
    let (scheduler, manager) = (config.scheduler_client.clone(), config.client.clone());
    let accounts = Arc::clone(&config.controller_client);
    move |component| match component {
        DEFAULT_SCHEDULER => Writer::new(scheduler.clone(), SCHEDULER),
        "" | CONTROLLER_MANAGER => Writer::new(manager.clone(), CONTROLLER_MANAGER),
        "taint-eviction-controller" | "cidrAllocator" => {
            Writer::new(accounts("node-controller"), CONTROLLER_MANAGER)
        }
        "controllermanager" => Writer::new(accounts("disruption-controller"), CONTROLLER_MANAGER),
        "garbage-collector-controller" => {
            Writer::new(accounts("generic-garbage-collector"), CONTROLLER_MANAGER)
        }
        account => Writer::new(accounts(account), CONTROLLER_MANAGER),
    }
}

// === impl Handle ===

impl Handle {
    /// Stops all work and waits for it, at most a few seconds. Requests under way may or may not have happened.
    pub async fn shutdown(self) {
        self.shutdown.cancel();
        self.tracker.close();
        if timeout(SHUTDOWN_DEADLINE, self.tracker.wait())
            .await
            .is_err()
        {
            warn!("Some controllers did not stop in time");
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

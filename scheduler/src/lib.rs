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
//! There is one such process for now. When there are several API servers, each runs this crate and only the holder of a
//! Lease may write: [`Config::identity`] and [`start`] are where that goes.

pub mod clock;
pub mod controllers;
pub mod discovery;
pub mod events;
pub mod informers;
pub mod objects;
pub mod reconcile;
pub mod scheduling;
pub mod taints;
pub mod write;

mod args;

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
use write::{CONTROLLER_MANAGER, Fence, SCHEDULER, Writer};

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
    /// Who we are to other replicas, such as the host's name; `None` where there are no others: then nobody is elected.
    pub identity: Option<String>,
    pub args: Args,
}

/// Running controllers. Dropping it stops them.
pub struct Handle {
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

/// Starts everything and returns at once; work begins when all stores have been filled.
///
/// Cancellation: the tasks live until [`Handle::shutdown`] or the handle is dropped.
pub fn start(config: Config) -> Handle {
    let (shutdown, tracker) = (CancellationToken::new(), TaskTracker::new());
    let (recorder, inbox) = events::channel();
    let shared = Arc::new(Shared {
        informers: Informers::new(),
        accounts: Arc::clone(&config.controller_client),
        fence: Fence::default(),
        recorder,
        catalog: Arc::new(Catalog::default()),
        args: config.args.clone(),
    });
    let start_controllers = controllers::prepare(&shared);
    let scheduling = scheduling::Scheduling::new(
        &shared,
        Writer::new(config.scheduler_client.clone(), SCHEDULER),
        config.args.seed,
    );
    let authors = authors(&config);
    tracker.spawn(events::run(inbox, authors, shutdown.clone()));
    shared.informers.start(&config.client, &tracker, &shutdown);
    let (spawner, stop) = (tracker.clone(), shutdown.clone());
    tracker.spawn(async move {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = shared.informers.synced() => {}
        }
        info!("Stores are filled, controllers start");
        spawner.spawn(scheduling.run(stop.clone()));
        start_controllers(&spawner, &stop);
    });
    Handle { shutdown, tracker }
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

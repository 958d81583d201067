//! The table of controllers: what each watches, what each writes. They know nothing of one another and meet in objects.
//!
//! | controller | wakes on | writes |
//! | --- | --- | --- |
//! | deployment | Deployments, their ReplicaSets, last pods | ReplicaSets, Deployment status |
//! | replica_set | ReplicaSets, their Pods | Pods, ReplicaSet status |
//! | endpoint_slice, endpoints | Services, Pods | EndpointSlices; Endpoints |
//! | service_account | Namespaces, ServiceAccounts | ServiceAccount `default` |
//! | namespace | terminating Namespaces | deletes content, finalizes |
//! | node_lifecycle | Nodes, Leases, the clock | Node conditions and taints, evictions |
//! | pod_gc | Nodes, the clock | deletes pods of nodes that are gone |
//! | garbage_collector | metadata of every kind | deletes or unlinks dependents |

pub mod deployment;
pub mod endpoint_slice;
pub mod endpoints;
pub mod garbage_collector;
pub mod namespace;
pub mod node_lifecycle;
pub mod ownership;
pub mod pod_gc;
pub mod replica_set;
pub mod service_account;
pub mod service_ports;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::discovery::Catalog;
use crate::events::Recorder;
use crate::informers::Store;
use crate::objects::{
    DEPLOYMENTS, Deployment, ENDPOINT_SLICES, ENDPOINTS, EndpointSlice, Endpoints, LEASES, Lease,
    Metadata, NAMESPACES, NODES, Namespace, Node, PODS, Pod, REPLICA_SETS, ReplicaSet,
    SERVICE_ACCOUNTS, SERVICES, Service, Watched,
};
use crate::reconcile;
use crate::write::{Error, Writer};

/// What all controllers and the scheduler read from: one watch per kind.
pub struct Informers {
    pub pods: Arc<Store<Pod>>,
    pub nodes: Arc<Store<Node>>,
    pub deployments: Arc<Store<Deployment>>,
    pub replica_sets: Arc<Store<ReplicaSet>>,
    pub services: Arc<Store<Service>>,
    pub endpoint_slices: Arc<Store<EndpointSlice>>,
    pub endpoints: Arc<Store<Endpoints>>,
    pub service_accounts: Arc<Store<Metadata>>,
    pub namespaces: Arc<Store<Namespace>>,
    pub leases: Arc<Store<Lease>>,
}

/// What every controller is given.
pub struct Shared {
    pub informers: Informers,
    pub writer: Writer,
    pub recorder: Recorder,
    pub catalog: Arc<Catalog>,
}

/// The index value of objects nobody controls.
pub fn orphans_of(namespace: &str) -> String {
    format!("~{namespace}")
}

/// Index: the controller's uid, or [`orphans_of`] the namespace.
fn by_controller<T: Watched>(object: &T) -> Option<String> {
    let meta = object.meta();
    Some(match meta.controller() {
        Some(owner) => owner.uid.clone(),
        None => orphans_of(&meta.namespace),
    })
}

/// Index: the Service an EndpointSlice belongs to, as `namespace/name`.
fn by_service(slice: &EndpointSlice) -> Option<String> {
    let meta = &slice.metadata;
    let service = meta.labels.get(types::well_known::LABEL_SERVICE_NAME)?;
    Some(format!("{}/{service}", meta.namespace))
}

/// Registers every controller's handlers, and returns what starts their tasks once the stores are filled.
pub fn prepare(shared: &Arc<Shared>) -> impl FnOnce(&TaskTracker, &CancellationToken) + use<> {
    let deployment = deployment::Controller::new(shared);
    let replica_set = replica_set::Controller::new(shared);
    let endpoint_slice = endpoint_slice::Controller::new(shared);
    let endpoints = endpoints::Controller::new(shared);
    let service_account = service_account::Controller::new(shared);
    let namespace = namespace::Controller::new(shared);
    let node_lifecycle = node_lifecycle::Controller::new(shared);
    let pod_gc = pod_gc::Controller::new(shared);
    let garbage_collector = garbage_collector::Controller::new(shared);
    move |tracker, shutdown| {
        macro_rules! start {
            ($($controller:ident: $width:literal),* $(,)?) => {$(
                let queue = Arc::clone(&$controller.queue);
                tracker.spawn(reconcile::run(queue, $width, shutdown.clone(), move |key| {
                    let controller = Arc::clone(&$controller);
                    async move { controller.pass(key).await }
                }));
            )*};
        }
        let collector = Arc::clone(&garbage_collector);
        tracker.spawn(collector.watch_everything(tracker.clone(), shutdown.clone()));
        tracker.spawn(Arc::clone(&node_lifecycle).tick(shutdown.clone()));
        start! {
            deployment: 8,
            replica_set: 8,
            endpoint_slice: 8,
            endpoints: 4,
            service_account: 4,
            namespace: 4,
            node_lifecycle: 8,
            pod_gc: 1,
            garbage_collector: 32,
        }
    }
}

// === impl Informers ===

impl Informers {
    pub fn new() -> Self {
        Self {
            pods: Arc::new(Store::indexed(PODS.url(""), by_controller)),
            nodes: Arc::new(Store::new(NODES.url(""))),
            deployments: Arc::new(Store::new(DEPLOYMENTS.url(""))),
            replica_sets: Arc::new(Store::indexed(REPLICA_SETS.url(""), by_controller)),
            services: Arc::new(Store::new(SERVICES.url(""))),
            endpoint_slices: Arc::new(Store::indexed(ENDPOINT_SLICES.url(""), by_service)),
            endpoints: Arc::new(Store::new(ENDPOINTS.url(""))),
            service_accounts: Arc::new(Store::new(SERVICE_ACCOUNTS.url("")).metadata_only()),
            namespaces: Arc::new(Store::new(NAMESPACES.url(""))),
            leases: Arc::new(Store::new(LEASES.url(""))),
        }
    }

    /// Starts one watch per kind.
    pub fn start(
        &self,
        client: &kube::Client,
        tracker: &TaskTracker,
        shutdown: &CancellationToken,
    ) {
        macro_rules! run {
            ($($store:ident),*) => {$({
                let (store, client, shutdown) =
                    (Arc::clone(&self.$store), client.clone(), shutdown.clone());
                tracker.spawn(async move { store.run(client, shutdown).await });
            })*};
        }
        run!(
            pods,
            nodes,
            deployments,
            replica_sets,
            services,
            endpoint_slices,
            endpoints,
            service_accounts,
            namespaces,
            leases
        );
    }

    /// Waits until every store has its first list.
    pub async fn synced(&self) {
        tokio::join!(
            self.pods.synced(),
            self.nodes.synced(),
            self.deployments.synced(),
            self.replica_sets.synced(),
            self.services.synced(),
            self.endpoint_slices.synced(),
            self.endpoints.synced(),
            self.service_accounts.synced(),
            self.namespaces.synced(),
            self.leases.synced(),
        );
    }
}

impl Default for Informers {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Shared ===

impl Shared {
    /// Waits until our own writes to ReplicaSets are visible. Revision 0 is always reached.
    pub async fn caught_up_sets(&self, revision: u64, deadline: Duration) -> Result<(), Error> {
        caught_up(
            &self.informers.replica_sets,
            "replicasets",
            revision,
            deadline,
        )
        .await
    }

    pub async fn caught_up_pods(&self, revision: u64, deadline: Duration) -> Result<(), Error> {
        caught_up(&self.informers.pods, "pods", revision, deadline).await
    }

    pub async fn caught_up_deployments(
        &self,
        revision: u64,
        deadline: Duration,
    ) -> Result<(), Error> {
        caught_up(
            &self.informers.deployments,
            "deployments",
            revision,
            deadline,
        )
        .await
    }
}

/// Waits until the store shows what was written at `revision`; after the deadline the key is to be tried again, because
/// deciding on an old picture could do the same thing twice.
pub async fn caught_up<T: Watched>(
    store: &Store<T>,
    what: &'static str,
    revision: u64,
    deadline: Duration,
) -> Result<(), Error> {
    if revision == 0 || store.reached(revision, deadline).await {
        return Ok(());
    }
    Err(Error::Behind { what, revision })
}

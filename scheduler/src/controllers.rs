//! The table of controllers: what each watches, what each writes. They know nothing of one another and meet in objects.
//!
//! Each writes as the ServiceAccount in `kube-system` that its upstream counterpart uses.
//!
//! | controller | wakes on | writes | as |
//! | --- | --- | --- | --- |
//! | deployment | Deployments, their ReplicaSets, last pods | ReplicaSets, Deployment status | deployment-controller |
//! | replica_set | ReplicaSets, their Pods | Pods, ReplicaSet status | replicaset-controller |
//! | endpoint_slice | Services, Pods | EndpointSlices | endpointslice-controller |
//! | endpoint_slice_mirroring | Endpoints without selector | EndpointSlices | endpointslicemirroring-controller |
//! | endpoints | Services, Pods | Endpoints | endpoint-controller |
//! | service_load_balancer | Services, Nodes' reports, EndpointSlices | Service status and annotation | service-controller |
//! | service_account | Namespaces, ServiceAccounts | ServiceAccount `default` | service-account-controller |
//! | namespace | terminating Namespaces | deletes content, finalizes | namespace-controller |
//! | cleaner | bootstrap tokens, certificate requests, the clock | deletes those that are over | token-cleaner, certificate-controller |
//! | disruption | PodDisruptionBudgets, their pods | their status | disruption-controller |
//! | ingress_status | Ingresses, Gateways, HTTPRoutes, what nodes report | their status, Events | ingress-status-controller |
//! | node_ipam | Nodes | Nodes' podCIDR | node-controller |
//! | node_lifecycle | Nodes, Leases, the clock | Node conditions and taints, evictions | node-controller |
//! | pod_gc | Nodes, the clock | deletes pods of nodes that are gone | pod-garbage-collector |
//! | garbage_collector | metadata of every kind | deletes or unlinks dependents | generic-garbage-collector |

pub mod amount;
pub mod cleaner;
pub mod deployment;
pub mod disruption;
pub mod endpoint_slice;
pub mod endpoint_slice_mirroring;
pub mod endpoints;
pub mod garbage_collector;
pub mod ingress_status;
pub mod namespace;
pub mod node_ipam;
pub mod node_lifecycle;
pub mod ownership;
pub mod pod_gc;
pub mod replica_set;
pub mod service_account;
pub mod service_load_balancer;
mod service_pods;
pub mod service_ports;

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use types::well_known::NAMESPACE_SYSTEM;

use self::cleaner::Token;
use crate::args::Args;
use crate::discovery::Catalog;
use crate::events::Recorder;
use crate::informers::Store;
use crate::objects::{
    BUDGETS, Budget, DEPLOYMENTS, Deployment, ENDPOINT_SLICES, ENDPOINTS, EndpointSlice, Endpoints,
    LEASES, Lease, Metadata, NAMESPACES, NODES, Namespace, Node, PODS, Pod, REPLICA_SETS, REQUESTS,
    ReplicaSet, Request, SECRETS, SERVICE_ACCOUNTS, SERVICES, Service, Watched,
};
use crate::objects::{
    GATEWAY_CLASSES, GATEWAYS, Gateway, GatewayClass, HTTP_ROUTES, HttpRoute, INGRESS_CLASSES,
    INGRESSES, Ingress, IngressClass, REFERENCE_GRANTS, ReferenceGrant,
};
use crate::reconcile;
use crate::write::{CONTROLLER_MANAGER, Error, Fence, Writer};

const OF_TYPE_TOKEN: &str = "fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken";

/// One line per kind that is watched: its name, what is read of it, and how it is kept.
macro_rules! informers {
    ($($name:ident: $object:ty = $store:expr),* $(,)?) => {
        /// What all controllers and the scheduler read from: one watch per kind.
        pub struct Informers {
            $(pub $name: Arc<Store<$object>>,)*
        }

        impl Informers {
            pub fn new() -> Self {
                Self { $($name: Arc::new($store),)* }
            }

            /// The same stores for somebody whose handlers end with `term`.
            #[must_use]
            pub fn during(&self, term: &CancellationToken) -> Self {
                Self { $($name: Arc::new(self.$name.during(term)),)* }
            }

            /// Starts one watch per kind.
            pub fn start(&self, client: &Client, tracker: &TaskTracker, shutdown: &CancellationToken) {
                $({
                    let (store, client, shutdown) =
                        (Arc::clone(&self.$name), client.clone(), shutdown.clone());
                    tracker.spawn(async move { store.run(client, shutdown).await });
                })*
            }

            /// Every kind that is watched: where, and how what is read of one object is decoded.
            #[cfg(test)]
            pub(crate) fn decoders(&self) -> Vec<(String, fn(&str) -> Result<(), serde_json::Error>)> {
                fn decode<T: Watched>(_: &Store<T>) -> fn(&str) -> Result<(), serde_json::Error> {
                    |text| serde_json::from_str::<T>(text).map(drop)
                }
                vec![$((self.$name.url().to_owned(), decode(&self.$name))),*]
            }

            /// Waits until every store has its first list.
            pub async fn synced(&self) {
                tokio::join!($(self.$name.synced()),*);
            }
        }
    };
}

informers! {
    pods: Pod = Store::indexed(PODS.url(""), by_controller),
    nodes: Node = Store::new(NODES.url("")),
    deployments: Deployment = Store::new(DEPLOYMENTS.url("")),
    replica_sets: ReplicaSet = Store::indexed(REPLICA_SETS.url(""), by_controller),
    services: Service = Store::new(SERVICES.url("")),
    endpoint_slices: EndpointSlice = Store::indexed(ENDPOINT_SLICES.url(""), by_service),
    endpoints: Endpoints = Store::new(ENDPOINTS.url("")),
    service_accounts: Metadata = Store::metadata_only(SERVICE_ACCOUNTS.url("")),
    namespaces: Namespace = Store::new(NAMESPACES.url("")),
    budgets: Budget = Store::new(BUDGETS.url("")),
    requests: Request = Store::new(REQUESTS.url("")),
    bootstrap_tokens: Token = Store::selected(SECRETS.url(NAMESPACE_SYSTEM), OF_TYPE_TOKEN),
    leases: Lease = Store::new(LEASES.url("")),
    ingress_classes: IngressClass = Store::new(INGRESS_CLASSES.url("")),
    ingresses: Ingress = Store::new(INGRESSES.url("")),
    gateway_classes: GatewayClass = Store::new(GATEWAY_CLASSES.url("")),
    gateways: Gateway = Store::new(GATEWAYS.url("")),
    http_routes: HttpRoute = Store::new(HTTP_ROUTES.url("")),
    reference_grants: ReferenceGrant = Store::new(REFERENCE_GRANTS.url("")),
}

/// What every controller is given.
pub struct Shared {
    pub informers: Informers,
    pub accounts: Accounts,
    /// How long what is written may be written.
    pub fence: Fence,
    pub recorder: Recorder,
    pub catalog: Arc<Catalog>,
    pub args: Args,
}

/// Makes the client of a ServiceAccount in `kube-system`, by its name.
pub type Accounts = Arc<dyn Fn(&'static str) -> Client + Send + Sync>;

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
    let endpoint_slice_mirroring = endpoint_slice_mirroring::Controller::new(shared);
    let endpoints = endpoints::Controller::new(shared);
    let service_account = service_account::Controller::new(shared);
    let service_load_balancer = service_load_balancer::Controller::new(shared);
    let namespace = namespace::Controller::new(shared);
    let token_cleaner = cleaner::tokens(shared);
    let request_cleaner = cleaner::requests(shared);
    let disruption = disruption::Controller::new(shared);
    let ingress_status = ingress_status::Controller::new(shared);
    let node_ipam = node_ipam::Controller::new(shared);
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
            endpoint_slice_mirroring: 2,
            endpoints: 4,
            service_account: 4,
            service_load_balancer: 1,
            namespace: 4,
            token_cleaner: 1,
            request_cleaner: 1,
            disruption: 4,
            ingress_status: 1,
            node_ipam: 1,
            node_lifecycle: 8,
            pod_gc: 1,
            garbage_collector: 32,
        }
    }
}

// === impl Informers ===

impl Default for Informers {
    fn default() -> Self {
        Self::new()
    }
}

// === impl Shared ===

impl Shared {
    /// Writes as the ServiceAccount `kube-system/account`, as upstream's controllers do with credentials of their own.
    pub fn writer(&self, account: &'static str) -> Writer {
        Writer::new((self.accounts)(account), CONTROLLER_MANAGER).fenced(self.fence.clone())
    }

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

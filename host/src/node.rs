//! This machine as a Node object: registers it, keeps its Lease, its status and its annotations true. Never looks at pods.
//!
//! Three loops in one task, so that a slow status write delays no renewal of the Lease:
//!
//! ```text
//! register ─┬─ lease        every 10 s
//!           ├─ status       every 10 s a look at machine and object, written when it changed, or after 5 minutes
//!           └─ annotations  what parts of the node want said, gathered and paced
//! ```
//! As a kubelet it registers once per process: a Node that somebody deletes stays deleted until the process starts again (or
//! somebody makes the object again).

use std::collections::BTreeMap;
use std::future::Future;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node, Taint};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use types::quantity::Quantity;

pub(crate) mod annotations;
mod cgroup;
pub(crate) mod given;
mod lease;
pub(crate) mod machine;
pub(crate) mod registration;
pub(crate) mod status;
use types::error::chain;

use crate::images::Images;
use annotations::Annotations;
use machine::Machine;
use status::Stage;

/// What the Node object says that does not change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    /// `InternalIP`.
    pub(crate) address: String,
    /// Port of the node endpoint.
    pub(crate) port: u16,
    /// Asked for at registration; without one a controller gives one.
    pub(crate) pod_cidr: Option<String>,
    pub(crate) max_pods: u32,
    /// Given at registration only, as upstream does.
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) taints: Vec<Taint>,
    pub(crate) machine: Machine,
}

/// Between looks at the machine, and between renewals of the Lease.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A status that did not change is written again after this long.
const REPORT: Duration = Duration::from_secs(300);
/// Between attempts to register or to renew, at first and at most.
const AGAIN: Duration = Duration::from_millis(500);
const AGAIN_AT_MOST: Duration = Duration::from_secs(8);
/// For one request about the Node.
const ANSWER: Duration = Duration::from_secs(10);
/// Changes of annotations that come together are written together, …
const GATHER: Duration = Duration::from_millis(20);
/// … and writes keep this distance.
const PACE: Duration = Duration::from_millis(100);
/// The largest images are listed in the Node's status.
const IMAGES: usize = 50;

/// Keeps the Node object true. Owned by one task.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) identity: Identity,
    pub(crate) data_dir: PathBuf,
    pub(crate) images: Images,
    pub(crate) annotations: Annotations,
    /// What the node is doing, for its condition Ready.
    pub(crate) stage: watch::Receiver<Stage>,
    pub(crate) registered: watch::Sender<bool>,
    /// The last stage that the API has heard of.
    pub(crate) told: watch::Sender<Option<Stage>>,
}

/// The Node as last seen; `None` once it is gone.
type Seen = Mutex<Option<Arc<Node>>>;

impl Keeper {
    /// Until `stop`. What cannot be written is tried again.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let (node, stage) = self.register().await;
        let seen = Mutex::new(Some(Arc::new(node)));
        self.registered.send_replace(true);
        self.told.send_replace(Some(stage));
        tokio::join!(
            self.keep_lease(&seen),
            self.keep_status(&seen),
            self.keep_annotations(&seen)
        );
    }

    async fn register(&self) -> (Node, Stage) {
        let mut again = AGAIN;
        loop {
            let stage = *self.stage.borrow();
            let status = self.status(None, stage);
            let registering = registration::register(&self.client, &self.identity, status);
            match in_time(registering).await {
                Ok(node) => {
                    tracing::info!(node = %self.identity.name, "Registered the node");
                    return (node, stage);
                }
                Err(error) => {
                    tracing::warn!(node = %self.identity.name, error = %chain(&error), "Failed to register the node")
                }
            }
            sleep(again).await;
            again = (again * 2).min(AGAIN_AT_MOST);
        }
    }

    async fn keep_lease(&self, seen: &Seen) {
        loop {
            let mut again = AGAIN;
            let begun = Instant::now();
            // Without the object there is nothing to be alive.
            while let Some(node) = current(seen) {
                match in_time(lease::renew(&self.client, &node, now())).await {
                    Ok(()) => break,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "Failed to renew the node's lease")
                    }
                }
                sleep(again).await;
                again = (again * 2).min(AGAIN_AT_MOST);
            }
            sleep_until(begun + HEARTBEAT).await;
        }
    }

    async fn keep_status(&self, seen: &Seen) {
        let mut stage = self.stage.clone();
        let mut reported = now();
        let mut beat = interval(HEARTBEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick is at once, and registration was a moment ago.
        beat.tick().await;
        loop {
            let urgent = *stage.borrow_and_update() != self.told.borrow().unwrap_or_default();
            if !urgent {
                tokio::select! {
                    _ = beat.tick() => {}
                    changed = stage.changed() => if changed.is_err() {
                        beat.tick().await;
                    },
                }
            }
            let now_in = *stage.borrow_and_update();
            self.look(seen).await;
            let Some(node) = current(seen) else {
                sleep(AGAIN).await;
                continue;
            };
            let status = self.status(node.status.as_ref(), now_in);
            let stale = now().duration_since(reported).unsigned_abs() >= REPORT;
            let same = |old| status::same(old, &status);
            if !stale && node.status.as_ref().is_some_and(same) {
                self.told.send_replace(Some(now_in));
                continue;
            }
            let writing = registration::write_status(&self.client, &self.identity.name, &status);
            match in_time(writing).await {
                Ok(written) => {
                    remember(seen, Some(written));
                    self.told.send_replace(Some(now_in));
                    reported = now();
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "Failed to write the node's status");
                    sleep(AGAIN).await;
                }
            }
        }
    }

    /// The object as the API has it: others write it too, or take it away.
    async fn look(&self, seen: &Seen) {
        let api: Api<Node> = Api::all(self.client.clone());
        match in_time(api.get_opt(&self.identity.name)).await {
            Ok(Some(node)) => remember(seen, Some(node)),
            Ok(None) => {
                if current(seen).is_some() {
                    tracing::error!(
                        node = %self.identity.name,
                        "Somebody deleted this node's object; start the process again to register it again"
                    );
                }
                remember(seen, None);
            }
            Err(error) => {
                tracing::warn!(error = %chain(&error), "Failed to read the node's own object")
            }
        }
    }

    async fn keep_annotations(&self, seen: &Seen) {
        let mut wanted = self.annotations.subscribe();
        let api: Api<Node> = Api::all(self.client.clone());
        loop {
            let all = wanted.borrow_and_update().clone();
            let node = current(seen);
            let there = node.as_ref().map(|node| node.metadata.annotations.as_ref());
            let patch = there.and_then(|there| annotations::patch(&all, there));
            if let Some(patch) = patch {
                let params = kube::api::PatchParams::default();
                let patch = kube::api::Patch::Merge(patch);
                match in_time(api.patch(&self.identity.name, &params, &patch)).await {
                    Ok(written) => remember(seen, Some(written)),
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "Failed to annotate the node")
                    }
                }
                sleep(PACE).await;
                continue;
            }
            tokio::select! {
                changed = wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    sleep(GATHER).await;
                }
                // The object was looked at again: perhaps somebody took an annotation away.
                () = sleep(HEARTBEAT) => {}
            }
        }
    }

    fn status(
        &self,
        old: Option<&k8s_openapi::api::core::v1::NodeStatus>,
        stage: Stage,
    ) -> k8s_openapi::api::core::v1::NodeStatus {
        let images = self.images.listed().into_iter().take(IMAGES);
        let images = images
            .map(|(names, size)| ContainerImage {
                names: Some(names),
                size_bytes: i64::try_from(size).ok(),
            })
            .collect();
        let readings = machine::read(&self.data_dir);
        status::status(&self.identity, stage, &readings, images, old, now())
    }
}

fn current(seen: &Seen) -> Option<Arc<Node>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// The newest counts: answers of two loops may cross.
fn remember(seen: &Seen, node: Option<Node>) {
    let revision = |node: &Node| {
        let version = node.metadata.resource_version.as_deref()?;
        version.parse::<u64>().ok()
    };
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    let older = match (&*seen, &node) {
        (Some(old), Some(new)) => revision(new) < revision(old),
        _ => false,
    };
    if !older {
        *seen = node.map(Arc::new);
    }
}

/// A request that is not answered is a failure like any other.
async fn in_time<T>(
    request: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, RequestError> {
    match timeout(ANSWER, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(RequestError::Api(error)),
        Err(_) => Err(RequestError::Silence),
    }
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(transparent)]
    Api(kube::Error),
    #[error("the API server did not answer within {ANSWER:?}")]
    Silence,
}

/// What pods may have of the machine.
pub(crate) fn allocatable(machine: &Machine, max_pods: u32) -> BTreeMap<String, Quantity> {
    status::allocatable(&status::capacity(machine, max_pods))
}

#[expect(
    clippy::disallowed_methods,
    reason = "heartbeats carry the time they were sent"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

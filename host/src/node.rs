//! This machine as a Node object: registers it, keeps its Lease and its status fresh. Never looks at pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerImage, Node};
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use types::quantity::Quantity;

pub(crate) mod annotations;
mod lease;
pub(crate) mod machine;
mod registration;
pub(crate) mod status;

use crate::images::Images;
use machine::Machine;

/// What the Node object says that does not change while the process runs.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub(crate) name: String,
    /// `InternalIP`.
    pub(crate) address: String,
    /// Port of the node endpoint.
    pub(crate) port: u16,
    pub(crate) pod_cidr: String,
    pub(crate) max_pods: u32,
    pub(crate) machine: Machine,
}

/// Between looks at the machine, and between renewals of the Lease.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// A status that did not change is written again after this long.
const REPORT: Duration = Duration::from_secs(300);
/// Between attempts to register.
const AGAIN: Duration = Duration::from_millis(500);
/// The largest images are listed in the Node's status.
const IMAGES: usize = 50;

/// Keeps the Node object true. Owned by one task.
pub(crate) struct Keeper {
    pub(crate) client: Client,
    pub(crate) identity: Identity,
    pub(crate) data_dir: PathBuf,
    pub(crate) images: Images,
    pub(crate) registered: watch::Sender<bool>,
}

impl Keeper {
    /// Until `stop`. What cannot be written is tried again at the next beat.
    pub(crate) async fn run(self, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.keep() => {}
        }
    }

    async fn keep(&self) {
        let mut node = self.register().await;
        self.registered.send_replace(true);
        let mut reported = now();
        let mut beat = tokio::time::interval(HEARTBEAT);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            if let Err(error) = lease::renew(&self.client, &node, now()).await {
                tracing::warn!(%error, "Failed to renew the node's lease");
            }
            let status = self.status(node.status.as_ref());
            let stale = now().duration_since(reported).unsigned_abs() >= REPORT;
            if !stale
                && node
                    .status
                    .as_ref()
                    .is_some_and(|old| status::same(old, &status))
            {
                continue;
            }
            match registration::write_status(&self.client, &self.identity.name, &status).await {
                Ok(written) => {
                    node = written;
                    reported = now();
                }
                Err(kube::Error::Api(error)) if error.code == 404 => {
                    tracing::warn!("The node object is gone; registering again");
                    node = self.register().await;
                }
                Err(error) => tracing::warn!(%error, "Failed to write the node's status"),
            }
        }
    }

    async fn register(&self) -> Node {
        loop {
            let status = self.status(None);
            match registration::register(&self.client, &self.identity, status).await {
                Ok(node) => {
                    if let Err(error) = lease::renew(&self.client, &node, now()).await {
                        tracing::warn!(%error, "Failed to take the node's lease");
                    }
                    tracing::info!(node = %self.identity.name, "Registered the node");
                    return node;
                }
                Err(error) => tracing::warn!(%error, "Failed to register the node"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn status(
        &self,
        old: Option<&k8s_openapi::api::core::v1::NodeStatus>,
    ) -> k8s_openapi::api::core::v1::NodeStatus {
        let images = self.images.listed().into_iter().take(IMAGES);
        let images = images
            .map(|(names, size)| ContainerImage {
                names: Some(names),
                size_bytes: i64::try_from(size).ok(),
            })
            .collect();
        let readings = machine::read(&self.data_dir);
        status::status(&self.identity, &readings, images, old, now())
    }
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

//! What every pod's worker shares: the node's parts and its settings. Only read after start.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::Client;
use kube::runtime::reflector::Store;
use tokio::sync::Semaphore;
use types::quantity::Quantity;

use super::backoff::Backoff;
use super::downward::Surroundings;
use super::events::Recorder;
use super::known::Known;
use super::logs::Logs;
use crate::images::Images;
use crate::network::Network;
use crate::runtime::Runtime;

pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) node_name: String,
    pub(crate) host_ip: String,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    /// `pods/<uid>/volumes/<volume>` lie below.
    pub(crate) pods_directory: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) network: Arc<Network>,
    pub(crate) images: Images,
    pub(crate) logs: Logs,
    pub(crate) recorder: Recorder,
    pub(crate) known: Known,
    /// All Services, for the variables pods get of them.
    pub(crate) services: Store<Service>,
    /// Status writes at the same time.
    pub(crate) publishing: Semaphore,
    /// How long a container that is being stopped is still offered to those who have not heard of it.
    pub(crate) drain: Duration,
    // Locked to look up one owner.
    refused: Mutex<HashMap<String, Backoff>>,
}

/// The parts of a [`Context`] that others made.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) node_name: String,
    pub(crate) host_ip: String,
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    pub(crate) pods_directory: PathBuf,
    pub(crate) runtime: Runtime,
    pub(crate) network: Arc<Network>,
    pub(crate) images: Images,
    pub(crate) logs: Logs,
    pub(crate) recorder: Recorder,
    pub(crate) known: Known,
    pub(crate) services: Store<Service>,
}

/// Status writes under way at the same time: enough to keep a far API busy, few enough not to flood it.
const PUBLISHING: usize = 64;
const DRAIN: Duration = Duration::from_millis(250);
/// Owners remembered for having their pods refused.
const REFUSED: usize = 1_024;

impl Context {
    pub(crate) fn new(parts: Parts) -> Context {
        Context {
            client: parts.client,
            node_name: parts.node_name,
            host_ip: parts.host_ip,
            allocatable: parts.allocatable,
            pods_directory: parts.pods_directory,
            runtime: parts.runtime,
            network: parts.network,
            images: parts.images,
            logs: parts.logs,
            recorder: parts.recorder,
            known: parts.known,
            services: parts.services,
            publishing: Semaphore::new(PUBLISHING),
            drain: DRAIN,
            refused: Mutex::default(),
        }
    }

    pub(crate) fn pod_directory(&self, uid: &str) -> PathBuf {
        self.pods_directory.join(uid)
    }

    pub(crate) fn volumes_directory(&self, uid: &str) -> PathBuf {
        self.pod_directory(uid).join("volumes")
    }

    pub(crate) fn surroundings(&self, pod_ip: Option<String>) -> Surroundings {
        Surroundings {
            pod_ip: pod_ip.unwrap_or_default(),
            host_ip: self.host_ip.clone(),
            allocatable: self.allocatable.clone(),
        }
    }

    /// How long to wait before failing a refused pod: its owner will make another at once, so each takes longer than the last.
    pub(crate) fn refusal_delay(&self, pod: &Pod, now: Timestamp) -> Duration {
        let owners = pod.metadata.owner_references.iter().flatten();
        let Some(owner) = owners
            .into_iter()
            .find(|owner| owner.controller == Some(true))
        else {
            return Duration::ZERO;
        };
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= REFUSED {
            refused.clear();
        }
        refused
            .entry(owner.uid.clone())
            .or_insert_with(Backoff::slow)
            .exited(now)
    }
}

/// The rim's clock: everything that decides takes the time from here.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where pods read the clock"
)]
pub(crate) fn now() -> Timestamp {
    Timestamp::now()
}

//! Carries out the plan for PodDisruptionBudgets, and asks the pods' controllers how many pods they want.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::core::SelectorExt;
use serde::Deserialize;

use super::{Action, Observed, Stale, needs_scale, plan, stale};
use crate::clock;
use crate::controllers::{Shared, caught_up, ownership};
use crate::discovery::group;
use crate::events::{self, Recorder};
use crate::objects::{BUDGETS, Budget, DEPLOYMENTS, Key, PODS, Pod, REPLICA_SETS};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Error, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// A rollout changes many pods at once.
const REST: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Work {
    Budget(Key),
    /// A pod whose `DisruptionTarget` may have come to nothing.
    Pod(Key),
}

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    pub queue: Arc<Queue<Work>>,
}

/// An `autoscaling/v1` Scale.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Scale {
    spec: ScaleSpec,
    metadata: crate::objects::Meta,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ScaleSpec {
    replicas: i32,
}

// === impl Work ===

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Budget(key) => write!(f, "{key}"),
            Self::Pod(key) => write!(f, "pod {key}"),
        }
    }
}

/// Does the budget cover a pod with these labels? An empty selector covers all, none covers nothing.
fn covers(budget: &Budget, labels: &BTreeMap<String, String>) -> bool {
    let selector = budget.spec.selector.as_ref();
    selector
        .and_then(ownership::selector)
        .is_some_and(|selector| selector.matches(labels))
}

/// Did anything change that a budget counts?
fn differs(old: &Pod, new: &Pod) -> bool {
    let counted = |p: &Pod| {
        (
            p.is_ready(),
            p.metadata.is_deleting(),
            p.metadata.uid.clone(),
        )
    };
    counted(old) != counted(new)
        || old.metadata.labels != new.metadata.labels
        || old.metadata.owner_references != new.metadata.owner_references
}

// === impl Controller ===

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue: Arc<Queue<Work>> = Queue::new("disruption", REST);
        let waker = Arc::clone(&queue);
        shared.informers.budgets.on_change(move |change| {
            if let Some(budget) = change.new {
                waker.add(Work::Budget(budget.metadata.key()));
            }
        });
        let waker = Arc::clone(&queue);
        let budgets = Arc::downgrade(&shared.informers.budgets);
        shared.informers.pods.on_change(move |change| {
            if let Some(pod) = change.new
                && stale(pod, clock::now()) != Stale::No
            {
                waker.add(Work::Pod(pod.metadata.key()));
            }
            if let (Some(old), Some(new)) = (change.old, change.new)
                && !differs(old, new)
            {
                return;
            }
            let (Some(budgets), Some(pod)) = (budgets.upgrade(), change.latest()) else {
                return;
            };
            let concerned = budgets.in_namespace(&pod.metadata.namespace, |budget| {
                change.both().any(|p| covers(budget, &p.metadata.labels))
            });
            for budget in concerned {
                waker.add(Work::Budget(budget.metadata.key()));
            }
        });
        Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("controllermanager"),
            writer: shared.writer("disruption-controller"),
            queue,
        })
    }

    pub async fn pass(&self, work: Work) -> Result<Outcome, Error> {
        match work {
            Work::Budget(key) => self.budget(&key).await,
            Work::Pod(key) => self.pod(&key).await,
        }
    }

    async fn pod(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(pod) = self.shared.informers.pods.get(key) else {
            return Ok(Outcome::Done);
        };
        match stale(&pod, clock::now()) {
            Stale::No => Ok(Outcome::Done),
            Stale::In(delay) => Ok(Outcome::Again(delay)),
            Stale::Now(patch) => {
                let target = Target::of(PODS, &pod.metadata);
                gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
                Ok(Outcome::Done)
            }
        }
    }

    async fn budget(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(budget) = self.shared.informers.budgets.get(key) else {
            return Ok(Outcome::Done);
        };
        let pods = self
            .shared
            .informers
            .pods
            .in_namespace(&key.namespace, |p| covers(&budget, &p.metadata.labels));
        let scale = if needs_scale(&budget) {
            self.scale(&pods).await?
        } else {
            Ok(0)
        };
        let about = events::reference(BUDGETS, &budget.metadata);
        let target = Target::of(BUDGETS, &budget.metadata);
        let observed = Observed {
            budget,
            pods,
            scale,
        };
        let mut outcome = Outcome::Done;
        for action in plan(&observed, clock::now()) {
            match action {
                Action::PatchStatus(patch) => {
                    let written = self.writer.patch_status(&target, &patch).await;
                    let revision = gone_is_fine(written)?.metadata.revision();
                    let store = &self.shared.informers.budgets;
                    caught_up(store, "poddisruptionbudgets", revision, CATCH_UP).await?;
                }
                Action::TellNoPods => {
                    let message = "No matching pods found".to_owned();
                    self.recorder.normal(about.clone(), "NoPods", message);
                }
                Action::TellFailed(why) => {
                    let message = format!("Failed to calculate the number of expected pods: {why}");
                    let reason = "CalculateExpectedPodCountFailed";
                    self.recorder.warning(about.clone(), reason, message);
                }
                Action::TellNotDeleted(pod) => {
                    let message =
                        format!("Pod was expected by PDB {key} to be deleted but it wasn't");
                    let about = events::reference(PODS, &pod.metadata);
                    self.recorder.warning(about, "NotDeleted", message);
                }
                Action::LookAgain(delay) => outcome = Outcome::Again(delay),
            }
        }
        Ok(outcome)
    }

    /// How many pods the controllers of these pods want in all; pods without a controller do not count. The inner error is
    /// the user's to read.
    async fn scale(&self, pods: &[Arc<Pod>]) -> Result<Result<i32, String>, Error> {
        let mut known: BTreeMap<String, i32> = BTreeMap::new();
        for pod in pods {
            let Some(owner) = pod.metadata.controller() else {
                continue;
            };
            if known.contains_key(&owner.uid) {
                continue;
            }
            match self.scale_of(&pod.metadata.namespace, owner).await? {
                Ok(Some((uid, replicas))) => {
                    known.insert(uid, replicas);
                }
                Ok(None) => {
                    return Ok(Err(format!(
                        "found no controllers for pod {:?}",
                        pod.metadata.name
                    )));
                }
                Err(why) => return Ok(Err(why)),
            }
        }
        Ok(Ok(known.values().fold(0, |sum, n| sum.saturating_add(*n))))
    }

    /// The replicas a controller wants, under the uid of the topmost one: a ReplicaSet of a Deployment counts as that.
    async fn scale_of(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Result<Option<(String, i32)>, String>, Error> {
        let informers = &self.shared.informers;
        let key = Key::new(namespace, &owner.name);
        if owner.kind == REPLICA_SETS.kind && group(&owner.api_version) == "apps" {
            let set = informers.replica_sets.get(&key);
            let Some(set) = set.filter(|s| s.metadata.uid == owner.uid) else {
                return Ok(Ok(None));
            };
            let Some(above) = set.metadata.controller() else {
                return Ok(Ok(Some((
                    owner.uid.clone(),
                    set.spec.replicas.unwrap_or(1),
                ))));
            };
            if above.kind == DEPLOYMENTS.kind && group(&above.api_version) == "apps" {
                let deployment = informers.deployments.get(&Key::new(namespace, &above.name));
                let same = deployment.filter(|d| d.metadata.uid == above.uid);
                return Ok(Ok(
                    same.map(|d| (d.metadata.uid.clone(), d.spec.replicas.unwrap_or(1)))
                ));
            }
        }
        self.ask_scale(namespace, owner).await
    }

    /// StatefulSets, ReplicationControllers and whatever else has the subresource `scale`.
    async fn ask_scale(
        &self,
        namespace: &str,
        owner: &OwnerReference,
    ) -> Result<Result<Option<(String, i32)>, String>, Error> {
        let catalog = &self.shared.catalog;
        let mut served = catalog.find(&owner.api_version, &owner.kind);
        if served.is_none() {
            catalog.refresh(&self.writer).await?;
            served = catalog.find(&owner.api_version, &owner.kind);
        }
        let Some(served) = served else {
            let (version, kind) = (&owner.api_version, &owner.kind);
            return Ok(Err(format!("no matches for kind {kind:?} in {version:?}")));
        };
        if !served.scalable {
            return Ok(Err(format!(
                "{} does not implement the scale subresource",
                served.dotted().trim_end_matches('.')
            )));
        }
        let target = Target {
            api_version: served.api_version,
            plural: served.plural,
            namespace: namespace.to_owned(),
            name: owner.name.clone(),
        };
        match self
            .writer
            .get::<Scale>(format!("{}/scale", target.url()))
            .await
        {
            Ok(scale) if scale.metadata.uid == owner.uid => {
                Ok(Ok(Some((owner.uid.clone(), scale.spec.replicas))))
            }
            Ok(_) => Ok(Ok(None)),
            Err(error) if error.is_not_found() => Ok(Ok(None)),
            Err(error) => Err(error),
        }
    }
}

//! Carries out a Deployment's plan.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1 as apps;
use serde_json::{Value, json};

use super::{Action, Observed, Running, plan, revision, status};
use crate::clock;
use crate::controllers::ownership::{self, Claim};
use crate::controllers::{Shared, orphans_of};
use crate::events::{self, Recorder, Type};
use crate::objects::{DEPLOYMENTS, Deployment, Key, REPLICA_SETS, ReplicaSet};
use crate::reconcile::{Outcome, Queue};
use crate::write::{Delete, Error, Propagation, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two passes over one Deployment.
const REST: Duration = Duration::from_millis(20);

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
}

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let queue = Queue::new("deployment", REST);
        let this = Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("deployment-controller"),
            writer: shared.writer("deployment-controller"),
            queue,
        });
        this.listen();
        this
    }

    fn listen(&self) {
        let queue = Arc::clone(&self.queue);
        self.shared.informers.deployments.on_change(move |change| {
            if let Some(deployment) = change.latest() {
                queue.add(deployment.metadata.key());
            }
        });
        let queue = Arc::clone(&self.queue);
        let shared = Arc::downgrade(&self.shared);
        self.shared.informers.replica_sets.on_change(move |change| {
            let Some(shared) = shared.upgrade() else {
                return;
            };
            for set in change.both() {
                match set.metadata.controller() {
                    Some(owner) if owner.kind == DEPLOYMENTS.kind => {
                        queue.add(Key::new(&set.metadata.namespace, &owner.name));
                    }
                    Some(_) => {}
                    // An orphan may be one that some Deployment wants.
                    None => {
                        let matching = shared
                            .informers
                            .deployments
                            .in_namespace(&set.metadata.namespace, |d| matches(d, set));
                        for deployment in matching {
                            queue.add(deployment.metadata.key());
                        }
                    }
                }
            }
        });
        // Recreate waits for the last old pod.
        let queue = Arc::clone(&self.queue);
        let shared = Arc::downgrade(&self.shared);
        self.shared.informers.pods.on_change(move |change| {
            let (Some(pod), None, Some(shared)) = (change.old, change.new, shared.upgrade()) else {
                return;
            };
            let Some(owner) = pod.metadata.controller() else {
                return;
            };
            let key = Key::new(&pod.metadata.namespace, &owner.name);
            let Some(set) = shared.informers.replica_sets.get(&key) else {
                return;
            };
            let Some(owner) = set.metadata.controller() else {
                return;
            };
            let key = Key::new(&pod.metadata.namespace, &owner.name);
            let recreates = |d: Arc<Deployment>| super::rolling::is_recreate(&d.spec);
            if shared
                .informers
                .deployments
                .get(&key)
                .is_some_and(recreates)
            {
                queue.add(key);
            }
        });
    }

    /// One pass over one Deployment.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(deployment) = self.shared.informers.deployments.get(&key) else {
            return Ok(Outcome::Done);
        };
        if selects_everything(&deployment) {
            return self.refuse_selector(&deployment).await;
        }
        let sets = self.claim(&deployment).await?;
        let running = self.running(&sets);
        let observed = Observed {
            deployment,
            sets,
            running,
        };
        let actions = plan(&observed, clock::now());
        self.apply(&observed.deployment, actions).await
    }

    async fn claim(&self, deployment: &Arc<Deployment>) -> Result<Vec<Arc<ReplicaSet>>, Error> {
        let meta = &deployment.metadata;
        let Some(selector) = ownership::selector(&deployment.spec.selector) else {
            return Ok(Vec::new());
        };
        let informer = &self.shared.informers.replica_sets;
        let mut sets = informer.by_index(&meta.uid);
        sets.extend(informer.by_index(&orphans_of(&meta.namespace)));
        let mut owned = Vec::with_capacity(sets.len());
        for set in sets {
            let target = Target::of(REPLICA_SETS, &set.metadata);
            let patch = match ownership::claim(meta, &selector, &set.metadata) {
                Claim::Owned => {
                    owned.push(set);
                    continue;
                }
                Claim::Foreign => continue,
                Claim::Adopt => ownership::adoption(DEPLOYMENTS, meta, &set.metadata),
                Claim::Release => ownership::release(meta, &set.metadata),
            };
            let written = gone_is_fine(self.writer.patch(&target, &patch).await)?;
            self.shared
                .caught_up_sets(written.metadata.revision(), CATCH_UP)
                .await?;
            owned.extend(
                informer
                    .get(&set.metadata.key())
                    .filter(|s| s.metadata.controller().is_some_and(|c| c.uid == meta.uid)),
            );
        }
        Ok(owned)
    }

    fn running(&self, sets: &[Arc<ReplicaSet>]) -> Running {
        sets.iter()
            .map(|set| {
                let pods = self.shared.informers.pods.by_index(&set.metadata.uid);
                let running = pods.iter().filter(|p| !p.is_terminal()).count();
                (set.metadata.uid.clone(), running)
            })
            .collect()
    }

    async fn apply(
        &self,
        deployment: &Arc<Deployment>,
        actions: Vec<Action>,
    ) -> Result<Outcome, Error> {
        let target = Target::of(DEPLOYMENTS, &deployment.metadata);
        let about = || events::reference(DEPLOYMENTS, &deployment.metadata);
        let (mut sets, mut own) = (0, 0);
        let mut outcome = Outcome::Done;
        for action in actions {
            match action {
                Action::CreateSet(set) => match self.create(deployment, &set).await? {
                    Some(revision) => sets = sets.max(revision),
                    None => return Ok(Outcome::Done),
                },
                Action::PatchSet { name, patch } => {
                    let set = Target::new(REPLICA_SETS, &target.namespace, &name);
                    let written = self.writer.patch(&set, &patch).await?;
                    sets = sets.max(written.metadata.revision());
                }
                Action::DeleteSet { name, uid } => {
                    let set = Target::new(REPLICA_SETS, &target.namespace, &name);
                    let options = Delete::of(&uid).propagated(Propagation::Background);
                    gone_is_fine(self.writer.delete(&set, options).await)?;
                }
                Action::Annotate(patch) => {
                    let written = gone_is_fine(self.writer.patch(&target, &patch).await)?;
                    own = own.max(written.metadata.revision());
                }
                Action::PatchStatus(patch) => {
                    let written = gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
                    own = own.max(written.metadata.revision());
                }
                Action::Event {
                    type_,
                    reason,
                    message,
                } => self.recorder.note(about(), type_, reason, message, None),
                Action::LookAgain(delay) => outcome = Outcome::Again(delay),
            }
        }
        self.shared.caught_up_sets(sets, CATCH_UP).await?;
        self.shared.caught_up_deployments(own, CATCH_UP).await?;
        Ok(outcome)
    }

    /// The revision of the new set; `None` when there is no point in going on.
    async fn create(
        &self,
        deployment: &Arc<Deployment>,
        set: &apps::ReplicaSet,
    ) -> Result<Option<u64>, Error> {
        let namespace = &deployment.metadata.namespace;
        let error = match self.writer.create(REPLICA_SETS, namespace, set).await {
            Ok(written) => return Ok(Some(written.metadata.revision())),
            Err(error) => error,
        };
        if error.is_namespace_terminating() {
            return Ok(None);
        }
        let target = Target::of(DEPLOYMENTS, &deployment.metadata);
        if error.is_already_exists() {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            let taken = Target::new(REPLICA_SETS, namespace, name);
            let existing: ReplicaSet = self.writer.get(taken.url()).await?;
            let owned = existing
                .metadata
                .controller()
                .is_some_and(|c| c.uid == deployment.metadata.uid);
            let same = existing
                .spec
                .template
                .as_ref()
                .is_some_and(|t| revision::same_template(t, &deployment.spec.template));
            if owned && same {
                // It is ours; the watch has not shown it yet.
                return Err(Error::Behind {
                    what: "replicasets",
                    revision: existing.metadata.revision(),
                });
            }
            let collisions = deployment.status.collision_count.unwrap_or(0) + 1;
            let patch = json!({"status": {"collisionCount": collisions}});
            let written = self.writer.patch_status(&target, &patch).await?;
            self.shared
                .caught_up_deployments(written.metadata.revision(), CATCH_UP)
                .await?;
            return Err(error);
        }
        let message = format!(
            "Failed to create new replica set \"{}\": {}",
            set.metadata.name.as_deref().unwrap_or_default(),
            error.user_message()
        );
        if status::deadline(deployment).is_some() {
            let patch = failed_create(deployment, message.clone());
            self.writer.patch_status(&target, &patch).await?;
        }
        let about = events::reference(DEPLOYMENTS, &deployment.metadata);
        self.recorder
            .warning(about, status::reasons::FAILED_CREATE, message);
        Err(error)
    }

    /// An empty selector would take every pod of the namespace.
    async fn refuse_selector(&self, deployment: &Arc<Deployment>) -> Result<Outcome, Error> {
        self.recorder.note(
            events::reference(DEPLOYMENTS, &deployment.metadata),
            Type::Warning,
            "SelectingAll",
            "This deployment is selecting all pods. A non-empty selector is required.".to_owned(),
            None,
        );
        let generation = deployment.metadata.generation;
        if deployment.status.observed_generation.unwrap_or(0) < generation {
            let target = Target::of(DEPLOYMENTS, &deployment.metadata);
            let patch = json!({"status": {"observedGeneration": generation}});
            gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
        }
        Ok(Outcome::Done)
    }
}

fn failed_create(deployment: &Deployment, message: String) -> Value {
    let mut conditions = deployment.status.conditions.clone().unwrap_or_default();
    let failed = status::condition(
        status::conditions::PROGRESSING,
        "False",
        status::reasons::FAILED_CREATE,
        message,
        clock::now(),
    );
    status::set(&mut conditions, failed);
    json!({"status": {"conditions": conditions}})
}

fn selects_everything(deployment: &Deployment) -> bool {
    let selector = &deployment.spec.selector;
    selector.match_labels.as_ref().is_none_or(|m| m.is_empty())
        && selector
            .match_expressions
            .as_ref()
            .is_none_or(Vec::is_empty)
}

fn matches(deployment: &Deployment, set: &ReplicaSet) -> bool {
    use kube::core::SelectorExt as _;
    ownership::selector(&deployment.spec.selector).is_some_and(|s| s.matches(&set.metadata.labels))
}

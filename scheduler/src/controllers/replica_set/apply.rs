//! Carries out a ReplicaSet's plan.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::{Action, Failure, Observed, batches, plan, pod, status, status_patch};
use crate::clock;
use crate::controllers::ownership::{self, Claim};
use crate::controllers::{Shared, orphans_of};
use crate::events::{self, Recorder};
use crate::objects::{Key, PODS, Pod, REPLICA_SETS, ReplicaSet};
use crate::reconcile::{Outcome, Queue};
use crate::write::{self, Delete, Error, Target, Writer, gone_is_fine};

const CATCH_UP: Duration = Duration::from_secs(5);
/// Between two passes over one set: a thousand pods becoming ready are a few dozen status writes.
const REST: Duration = Duration::from_millis(40);

pub struct Controller {
    shared: Arc<Shared>,
    recorder: Recorder,
    writer: Writer,
    pub queue: Arc<Queue<Key>>,
    /// Pods we deleted that the watch still shows alive, by uid. Short sections only.
    doomed: Mutex<HashMap<String, Key>>,
}

impl Controller {
    pub fn new(shared: &Arc<Shared>) -> Arc<Self> {
        let this = Arc::new(Self {
            shared: Arc::clone(shared),
            recorder: shared.recorder.named("replicaset-controller"),
            writer: shared.writer("replicaset-controller"),
            queue: Queue::new("replicaset", REST),
            doomed: Mutex::new(HashMap::new()),
        });
        this.listen();
        this
    }

    fn listen(self: &Arc<Self>) {
        let queue = Arc::clone(&self.queue);
        self.shared.informers.replica_sets.on_change(move |change| {
            if let Some(set) = change.latest() {
                queue.add(set.metadata.key());
            }
        });
        let this = Arc::downgrade(self);
        self.shared.informers.pods.on_change(move |change| {
            let Some(this) = this.upgrade() else { return };
            for pod in change.both() {
                match pod.metadata.controller() {
                    Some(owner) if owner.kind == REPLICA_SETS.kind => this
                        .queue
                        .add(Key::new(&pod.metadata.namespace, &owner.name)),
                    Some(_) => {}
                    None => this.offer_orphan(pod),
                }
            }
            if let (Some(pod), None) = (change.old, change.new) {
                this.doomed().remove(&pod.metadata.uid);
            }
        });
    }

    /// A pod nobody controls may be one that some set wants.
    fn offer_orphan(&self, pod: &Pod) {
        use kube::core::SelectorExt as _;
        if pod.metadata.labels.is_empty() {
            return;
        }
        let sets =
            self.shared
                .informers
                .replica_sets
                .in_namespace(&pod.metadata.namespace, |set| {
                    ownership::selector(&set.spec.selector)
                        .is_some_and(|s| s.matches(&pod.metadata.labels))
                });
        for set in sets {
            self.queue.add(set.metadata.key());
        }
    }

    /// One pass over one set.
    pub async fn pass(&self, key: Key) -> Result<Outcome, Error> {
        let Some(set) = self.shared.informers.replica_sets.get(&key) else {
            return Ok(Outcome::Done);
        };
        let pods = self.claim(&set).await?;
        let crowding = self.crowding(&set, &pods);
        let observed = Observed {
            set,
            pods,
            crowding,
        };
        let actions = plan(&observed, clock::now());
        let (result, reached) = self.apply(&observed, actions).await;
        let failure = result.as_ref().err().map(|(failure, _)| failure);
        let (wanted, again) = status(&observed, failure, clock::now());
        let mut revision = 0;
        if let Some(patch) = status_patch(&observed.set, &wanted) {
            let target = Target::of(REPLICA_SETS, &observed.set.metadata);
            let written = gone_is_fine(self.writer.patch_status(&target, &patch).await)?;
            revision = written.metadata.revision();
        }
        self.shared.caught_up_pods(reached, CATCH_UP).await?;
        self.shared.caught_up_sets(revision, CATCH_UP).await?;
        match result {
            Err((_, error)) => Err(error),
            Ok(()) => Ok(again.map_or(Outcome::Done, Outcome::Again)),
        }
    }

    async fn claim(&self, set: &Arc<ReplicaSet>) -> Result<Vec<Arc<Pod>>, Error> {
        let meta = &set.metadata;
        let Some(selector) = ownership::selector(&set.spec.selector) else {
            return Ok(Vec::new());
        };
        let informer = &self.shared.informers.pods;
        let mut pods = informer.by_index(&meta.uid);
        if !selector.selects_all() {
            pods.extend(informer.by_index(&orphans_of(&meta.namespace)));
        }
        let mut owned = Vec::with_capacity(pods.len());
        let mut revision = 0;
        let mut adopted = Vec::new();
        for pod in pods {
            let target = Target::of(PODS, &pod.metadata);
            let patch = match ownership::claim(meta, &selector, &pod.metadata) {
                Claim::Owned => {
                    owned.push(pod);
                    continue;
                }
                Claim::Foreign => continue,
                Claim::Adopt if !pod.is_active() => continue,
                Claim::Adopt => {
                    adopted.push(pod.metadata.key());
                    ownership::adoption(REPLICA_SETS, meta, &pod.metadata)
                }
                Claim::Release => ownership::release(meta, &pod.metadata),
            };
            let written = gone_is_fine(self.writer.patch(&target, &patch).await)?;
            revision = revision.max(written.metadata.revision());
        }
        self.shared.caught_up_pods(revision, CATCH_UP).await?;
        owned.extend(adopted.iter().filter_map(|key| informer.get(key)));
        let doomed = self.doomed();
        if !doomed.is_empty() {
            owned.retain(|p| p.metadata.is_deleting() || !doomed.contains_key(&p.metadata.uid));
        }
        Ok(owned)
    }

    /// Only computed when pods must go.
    fn crowding(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> HashMap<String, usize> {
        let mut crowding = HashMap::new();
        let wanted = usize::try_from(set.spec.replicas.unwrap_or(1)).unwrap_or(0);
        if pods.iter().filter(|p| p.is_active()).count() <= wanted || wanted == 0 {
            return crowding;
        }
        let siblings = match set.metadata.controller() {
            Some(owner) => self.shared.informers.replica_sets.by_index(&owner.uid),
            None => Vec::new(),
        };
        let mut count = |pods: &[Arc<Pod>]| {
            for pod in pods.iter().filter(|p| p.is_active()) {
                *crowding.entry(pod.spec.node_name.clone()).or_default() += 1;
            }
        };
        count(pods);
        for sibling in siblings
            .iter()
            .filter(|s| s.metadata.uid != set.metadata.uid)
        {
            count(&self.shared.informers.pods.by_index(&sibling.metadata.uid));
        }
        crowding
    }

    /// Carries out the actions; also the revision the watch has to reach before the next plan.
    async fn apply(
        &self,
        observed: &Observed,
        actions: Vec<Action>,
    ) -> (Result<(), (Failure, Error)>, u64) {
        let mut reached = 0;
        for action in actions {
            let result = match action {
                Action::CreatePods(count) => self.create(&observed.set, count, &mut reached).await,
                Action::DeletePods(pods) => self.delete(&observed.set, pods, &mut reached).await,
            };
            if result.is_err() {
                return (result, reached);
            }
        }
        (Ok(()), reached)
    }

    async fn create(
        &self,
        set: &Arc<ReplicaSet>,
        count: usize,
        reached: &mut u64,
    ) -> Result<(), (Failure, Error)> {
        let about = events::reference(REPLICA_SETS, &set.metadata);
        let url = PODS.url(&set.metadata.namespace);
        let body = match serde_json::to_vec(&pod(set)) {
            Ok(body) => body,
            Err(source) => {
                let error = Error::Encode { url, source };
                return Err((self.failed(set, "FailedCreate", "creating", &error), error));
            }
        };
        for batch in batches(count) {
            let writes = (0..batch).map(|_| {
                let (writer, url, body) = (self.writer.clone(), url.clone(), body.clone());
                async move { writer.create_encoded(url, body).await }
            });
            let mut failed = None;
            for result in write::all(writes).await {
                match result {
                    Ok(written) => {
                        *reached = (*reached).max(written.metadata.revision());
                        let message = format!("Created pod: {}", written.metadata.name);
                        self.recorder
                            .normal(about.clone(), "SuccessfulCreate", message);
                    }
                    // Everything in the namespace is going away: no more pods, and no reason to complain.
                    Err(error) if error.is_namespace_terminating() => return Ok(()),
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                return Err((self.failed(set, "FailedCreate", "creating", &error), error));
            }
        }
        Ok(())
    }

    async fn delete(
        &self,
        set: &Arc<ReplicaSet>,
        pods: Vec<(Key, String)>,
        reached: &mut u64,
    ) -> Result<(), (Failure, Error)> {
        let about = events::reference(REPLICA_SETS, &set.metadata);
        let writes = pods.into_iter().map(|(key, uid)| {
            let writer = self.writer.clone();
            async move {
                let target = Target::new(PODS, &key.namespace, &key.name);
                let result = writer.delete(&target, Delete::of(&uid)).await;
                (key, uid, result)
            }
        });
        let mut failed = None;
        for (key, uid, result) in write::all(writes).await {
            match result {
                Ok(written) => {
                    *reached = (*reached).max(written.metadata.revision());
                    let message = format!("Deleted pod: {}", key.name);
                    self.recorder
                        .normal(about.clone(), "SuccessfulDelete", message);
                }
                // Somebody else was quicker; with a conflict, even a new pod has the name.
                Err(error) if error.is_not_found() || error.is_conflict() => {}
                Err(error) => {
                    failed = Some(error);
                    continue;
                }
            }
            let alive = |p: Arc<Pod>| p.metadata.uid == uid && !p.metadata.is_deleting();
            let mut doomed = self.doomed();
            if self.shared.informers.pods.get(&key).is_some_and(alive) {
                doomed.insert(uid, key);
            }
        }
        match failed {
            Some(error) => Err((self.failed(set, "FailedDelete", "deleting", &error), error)),
            None => Ok(()),
        }
    }

    fn failed(&self, set: &ReplicaSet, reason: &'static str, verb: &str, error: &Error) -> Failure {
        let message = error.user_message();
        let about = events::reference(REPLICA_SETS, &set.metadata);
        self.recorder
            .warning(about, reason, format!("Error {verb}: {message}"));
        Failure { reason, message }
    }

    fn doomed(&self) -> std::sync::MutexGuard<'_, HashMap<String, Key>> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

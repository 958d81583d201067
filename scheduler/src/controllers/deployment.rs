//! Deployments: one ReplicaSet per version of the template, and the way from one version to the next.
//!
//! Owns the sizes and revision annotations of its ReplicaSets and the Deployment's status. Never touches pods: they are
//! the ReplicaSet controller's.
//!
//! ```text
//! claim sets ─► find or create the new set ─► paused or scaled? ─ yes ─► proportional ─► counts
//!                                                   │ no
//!                                     recreate or one rolling step ─► history ─► rollout status
//! ```

mod apply;
mod proportional;
mod recreate;
mod revision;
mod rolling;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1 as apps;
use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSetCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use types::well_known::LABEL_POD_TEMPLATE_HASH;

pub use apply::Controller;
use rolling::Bounds;

use crate::events::Type;
use crate::objects::{DEPLOYMENTS, Deployment, ReplicaSet};
use crate::write::merge_patch_of;

/// ReplicaSet uid → pods of it that still run, terminating ones included.
pub type Running = HashMap<String, usize>;

/// The world as one pass sees it.
pub struct Observed {
    pub deployment: Arc<Deployment>,
    /// The sets this Deployment controls.
    pub sets: Vec<Arc<ReplicaSet>>,
    pub running: Running,
}

#[derive(Debug)]
pub enum Action {
    CreateSet(Box<apps::ReplicaSet>),
    PatchSet {
        name: String,
        patch: Value,
    },
    DeleteSet {
        name: String,
        uid: String,
    },
    /// Metadata of the Deployment itself.
    Annotate(Value),
    PatchStatus(Value),
    Event {
        type_: Type,
        reason: &'static str,
        message: String,
    },
    /// Time alone will bring something to do.
    LookAgain(Duration),
}

/// One ReplicaSet while a plan is made: what it is, and what it shall be.
#[derive(Clone, Debug, Default)]
struct Set {
    /// `None` for the set that this plan creates.
    from: Option<Arc<ReplicaSet>>,
    name: String,
    uid: String,
    created: i64,
    annotations: BTreeMap<String, String>,
    min_ready_seconds: Option<i32>,
    /// `spec.replicas`, as planned so far.
    replicas: i32,
    /// `status.replicas`
    actual: i32,
    ready: i32,
    available: i32,
    terminating: Option<i32>,
    failure: Option<ReplicaSetCondition>,
}

/// A plan in the making.
struct Round<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    bounds: Bounds,
    sets: Vec<Set>,
    new: Option<usize>,
    /// The conditions as planned so far.
    conditions: Vec<DeploymentCondition>,
    actions: Vec<Action>,
}

/// What to do for one Deployment. Planning again without the actions being applied gives the same actions.
pub fn plan(observed: &Observed, now: Timestamp) -> Vec<Action> {
    let deployment = &*observed.deployment;
    let mut round = Round::new(observed, now);
    if deployment.metadata.is_deleting() {
        let status = status::calculate(&round);
        return round.finish(status);
    }
    status::note_pause(&mut round);
    if deployment.spec.paused == Some(true) || round.was_scaled() {
        round.settle_revision(false);
        proportional::scale(&mut round);
        if deployment.spec.paused == Some(true) {
            round.cut_history();
        }
        let status = status::calculate(&round);
        return round.finish(status);
    }
    let complete = status::is_complete(deployment, &deployment.status);
    if rolling::is_recreate(&deployment.spec) {
        round.settle_revision(false);
        let waits =
            recreate::shrink_old(&mut round) || recreate::old_pods_run(&round, &observed.running);
        if !waits {
            if round.new.is_none() {
                round.settle_revision(true);
            }
            if let Some(new) = round.new {
                round.scale(new, round.bounds.replicas);
            }
            if complete {
                round.cut_history();
            }
        }
    } else {
        round.settle_revision(true);
        rolling::step(&mut round);
        if complete {
            round.cut_history();
        }
    }
    let status = status::of_rollout(&round);
    round.finish(status)
}

// === impl Round ===

impl<'a> Round<'a> {
    fn new(observed: &'a Observed, now: Timestamp) -> Self {
        let deployment = &*observed.deployment;
        Self {
            deployment,
            now,
            bounds: Bounds::of(&deployment.spec),
            sets: observed.sets.iter().map(Set::of).collect(),
            new: revision::find_new(deployment, &observed.sets),
            conditions: deployment.status.conditions.clone().unwrap_or_default(),
            actions: Vec::new(),
        }
    }

    /// What all sets want together.
    fn total(&self) -> i32 {
        self.sets.iter().map(|s| s.replicas).sum()
    }

    /// The old sets, oldest first.
    fn old_by_age(&self) -> Vec<usize> {
        let mut old: Vec<usize> = (0..self.sets.len())
            .filter(|i| Some(*i) != self.new)
            .collect();
        old.sort_by(|a, b| {
            let (a, b) = (&self.sets[*a], &self.sets[*b]);
            (a.created, &a.name).cmp(&(b.created, &b.name))
        });
        old
    }

    /// Was `spec.replicas` changed since an active set was last sized?
    fn was_scaled(&self) -> bool {
        self.sets
            .iter()
            .filter(|s| s.replicas > 0)
            .filter_map(Set::desired_annotation)
            .any(|desired| desired != self.bounds.replicas)
    }

    /// Gives the new set its revision and annotations; creates it when asked to.
    fn settle_revision(&mut self, create: bool) {
        let newest_old = self
            .sets
            .iter()
            .enumerate()
            .filter(|(i, _)| Some(*i) != self.new)
            .map(|(_, s)| revision::revision(&s.annotations))
            .max()
            .unwrap_or(0);
        let wanted = newest_old + 1;
        let has_deadline = status::deadline(self.deployment).is_some();
        if let Some(new) = self.new {
            let set = &mut self.sets[new];
            revision::annotate(&mut set.annotations, self.deployment, wanted, true);
            set.min_ready_seconds = self.deployment.spec.min_ready_seconds.filter(|s| *s > 0);
            let unknown = status::find(&self.conditions, status::conditions::PROGRESSING).is_none();
            if has_deadline && unknown {
                let message = format!("Found new replica set \"{}\"", self.sets[new].name);
                self.progress(status::reasons::FOUND_NEW, message);
            }
            return;
        }
        if !create {
            return;
        }
        let set = self.new_set(wanted);
        if has_deadline {
            let message = format!("Created new replica set \"{}\"", set.name);
            self.progress(status::reasons::NEW_REPLICA_SET, message);
        }
        if set.replicas > 0 {
            self.event_scaled("up", &set.name.clone(), 0, set.replicas);
        }
        self.new = Some(self.sets.len());
        self.sets.push(set);
    }

    fn new_set(&self, wanted: i64) -> Set {
        let collisions = self.deployment.status.collision_count;
        let hash = revision::template_hash(&self.deployment.spec.template, collisions);
        let mut annotations = BTreeMap::new();
        revision::annotate(&mut annotations, self.deployment, wanted, false);
        revision::annotate_size(&mut annotations, self.bounds.replicas, self.bounds.most());
        let replicas = if rolling::is_recreate(&self.deployment.spec) {
            self.bounds.replicas
        } else {
            rolling::new_size(self.bounds, 0, self.total())
        };
        Set {
            name: format!("{}-{hash}", self.deployment.metadata.name),
            annotations,
            min_ready_seconds: self.deployment.spec.min_ready_seconds.filter(|s| *s > 0),
            replicas,
            terminating: Some(0),
            created: i64::MAX,
            ..Set::default()
        }
    }

    fn progress(&mut self, reason: &'static str, message: String) {
        let new = status::condition(
            status::conditions::PROGRESSING,
            "True",
            reason,
            message,
            self.now,
        );
        status::set(&mut self.conditions, new);
    }

    /// Resizes one set and notes on it what it was sized for.
    fn scale(&mut self, index: usize, size: i32) {
        let bounds = self.bounds;
        let set = &mut self.sets[index];
        let before = set.replicas;
        set.replicas = size;
        revision::annotate_size(&mut set.annotations, bounds.replicas, bounds.most());
        if before != size {
            let direction = if size > before { "up" } else { "down" };
            let name = set.name.clone();
            self.event_scaled(direction, &name, before, size);
        }
    }

    fn event_scaled(&mut self, direction: &str, name: &str, from: i32, to: i32) {
        self.actions.push(Action::Event {
            type_: Type::Normal,
            reason: "ScalingReplicaSet",
            message: format!("Scaled {direction} replica set {name} from {from} to {to}"),
        });
    }

    fn cut_history(&mut self) {
        let old: Vec<usize> = self.old_by_age();
        let known: Vec<&ReplicaSet> = old
            .iter()
            .filter_map(|i| self.sets[*i].from.as_deref())
            .collect();
        let limit = self.deployment.spec.revision_history_limit;
        for index in revision::beyond_history(limit, &known) {
            let meta = &known[index].metadata;
            self.actions.push(Action::DeleteSet {
                name: meta.name.clone(),
                uid: meta.uid.clone(),
            });
        }
    }

    /// Turns the planned sets and status into writes: first the new set, then the others, then what is said about them.
    fn finish(mut self, status: DeploymentStatus) -> Vec<Action> {
        let mut writes = Vec::new();
        for set in &self.sets {
            match &set.from {
                None => writes.insert(
                    0,
                    Action::CreateSet(Box::new(replica_set(self.deployment, set))),
                ),
                Some(from) => writes.extend(set.patch(from)),
            }
        }
        if let Some(new) = self.new
            && let Some(revision) = self.sets[new].annotations.get(revision::REVISION)
            && self.deployment.metadata.annotations.get(revision::REVISION) != Some(revision)
        {
            writes.push(Action::Annotate(
                json!({"metadata": {"annotations": {(revision::REVISION): revision}}}),
            ));
        }
        let again = status::look_again(&self, &status);
        if let Some(patch) = merge_patch_of(&self.deployment.status, &status) {
            writes.push(Action::PatchStatus(json!({"status": patch})));
        }
        writes.append(&mut self.actions);
        writes.extend(again.map(Action::LookAgain));
        writes
    }
}

// === impl Set ===

impl Set {
    fn of(set: &Arc<ReplicaSet>) -> Self {
        let status = &set.status;
        let failure = status
            .conditions
            .iter()
            .flatten()
            .find(|c| c.type_ == status::conditions::REPLICA_FAILURE && c.status == "True");
        Self {
            from: Some(Arc::clone(set)),
            name: set.metadata.name.clone(),
            uid: set.metadata.uid.clone(),
            created: set.metadata.created_at(),
            annotations: set.metadata.annotations.clone(),
            min_ready_seconds: set.spec.min_ready_seconds.filter(|s| *s > 0),
            replicas: set.spec.replicas.unwrap_or(1),
            actual: status.replicas,
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            terminating: status.terminating_replicas,
            failure: failure.cloned(),
        }
    }

    fn number(&self, annotation: &str) -> Option<i32> {
        self.annotations.get(annotation)?.parse().ok()
    }

    fn desired_annotation(&self) -> Option<i32> {
        self.number(revision::DESIRED_REPLICAS)
    }

    fn most_annotation(&self) -> Option<i32> {
        self.number(revision::MAX_REPLICAS)
    }

    /// Do the annotations say what the set is sized for now?
    fn sized(&self, bounds: Bounds) -> bool {
        self.desired_annotation() == Some(bounds.replicas)
            && self.most_annotation() == Some(bounds.most())
    }

    /// The write that makes the set what was planned.
    fn patch(&self, from: &ReplicaSet) -> Option<Action> {
        let mut patch = json!({});
        let mut changed = false;
        if from.spec.replicas.unwrap_or(1) != self.replicas {
            patch["spec"]["replicas"] = self.replicas.into();
            changed = true;
        }
        if from.spec.min_ready_seconds.filter(|s| *s > 0) != self.min_ready_seconds {
            patch["spec"]["minReadySeconds"] = self.min_ready_seconds.into();
            changed = true;
        }
        if let Some(annotations) = merge_patch_of(&from.metadata.annotations, &self.annotations) {
            patch["metadata"]["annotations"] = annotations;
            changed = true;
        }
        if !changed {
            return None;
        }
        // Sized by what was read: if somebody wrote in between, read again.
        patch["metadata"]["resourceVersion"] = from.metadata.resource_version.as_str().into();
        Some(Action::PatchSet {
            name: self.name.clone(),
            patch,
        })
    }
}

/// The ReplicaSet for the Deployment's template.
fn replica_set(deployment: &Deployment, set: &Set) -> apps::ReplicaSet {
    let hash = set.name.rsplit('-').next().unwrap_or_default().to_owned();
    let mut template = deployment.spec.template.clone();
    let labels = template
        .metadata
        .get_or_insert_default()
        .labels
        .get_or_insert_default();
    labels.insert(LABEL_POD_TEMPLATE_HASH.to_owned(), hash.clone());
    let labels = labels.clone();
    let mut selector = deployment.spec.selector.clone();
    selector
        .match_labels
        .get_or_insert_default()
        .insert(LABEL_POD_TEMPLATE_HASH.to_owned(), hash);
    apps::ReplicaSet {
        metadata: ObjectMeta {
            name: Some(set.name.clone()),
            namespace: Some(deployment.metadata.namespace.clone()),
            labels: Some(labels),
            annotations: Some(set.annotations.clone()),
            owner_references: Some(vec![DEPLOYMENTS.controller_reference(&deployment.metadata)]),
            ..ObjectMeta::default()
        },
        spec: Some(apps::ReplicaSetSpec {
            replicas: Some(set.replicas),
            min_ready_seconds: set.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

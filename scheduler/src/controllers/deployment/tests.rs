//! What Deployment plans promise, step by step against a small model of the ReplicaSet controller.

use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::objects::Meta;

/// A Deployment and its sets, as the server would hold them.
struct World {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    second: i64,
    events: Vec<String>,
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                if value.is_null() {
                    into.remove(key);
                } else {
                    merge(into.entry(key.clone()).or_insert(json!({})), value);
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn deployment(replicas: i32, strategy: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "d", "generation": 1},
        "spec": {"replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 600,
                 "revisionHistoryLimit": 10,
                 "selector": {"matchLabels": {"app": "web"}},
                 "template": {"metadata": {"labels": {"app": "web"}},
                              "spec": {"containers": [{"name": "c", "image": "v1"}]}}}
    }))
    .expect("a deployment")
}

impl World {
    fn new(replicas: i32, strategy: Value) -> Self {
        Self {
            deployment: deployment(replicas, strategy),
            sets: Vec::new(),
            second: 1000,
            events: Vec::new(),
        }
    }

    fn set_image(&mut self, image: &str) {
        let spec = self.deployment.spec.template.spec.as_mut().expect("a spec");
        spec.containers[0].image = Some(image.to_owned());
        self.deployment.metadata.generation += 1;
    }

    fn scale(&mut self, replicas: i32) {
        self.deployment.spec.replicas = Some(replicas);
        self.deployment.metadata.generation += 1;
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(self.second).expect("a time")
    }

    fn running(&self) -> Running {
        let count = |s: &ReplicaSet| usize::try_from(s.status.replicas).unwrap_or(0);
        self.sets
            .iter()
            .map(|s| (s.metadata.uid.clone(), count(s)))
            .collect()
    }

    fn plan(&self) -> Vec<Action> {
        let observed = Observed {
            deployment: Arc::new(self.deployment.clone()),
            sets: self.sets.iter().cloned().map(Arc::new).collect(),
            running: self.running(),
        };
        plan(&observed, self.now())
    }

    /// One pass of the controller; how many writes it made.
    fn pass(&mut self) -> usize {
        self.second += 1;
        let actions = self.plan();
        let mut writes = 0;
        for action in actions {
            writes += 1;
            match action {
                Action::CreateSet(set) => {
                    let mut set: ReplicaSet = serde_json::from_value(json!(set)).expect("a set");
                    set.metadata.uid = set.metadata.name.clone();
                    set.metadata.generation = 1;
                    set.metadata.creation_timestamp = Some(
                        k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(self.now()),
                    );
                    self.sets.push(set);
                }
                Action::PatchSet { name, patch } => {
                    let set = self
                        .sets
                        .iter_mut()
                        .find(|s| s.metadata.name == name)
                        .expect("a set");
                    if let Some(replicas) = patch.pointer("/spec/replicas") {
                        set.spec.replicas =
                            serde_json::from_value(replicas.clone()).expect("a number");
                        set.metadata.generation += 1;
                    }
                    if let Some(annotations) = patch.pointer("/metadata/annotations") {
                        let mut known = json!(set.metadata.annotations);
                        merge(&mut known, annotations);
                        set.metadata.annotations =
                            serde_json::from_value(known).expect("annotations");
                    }
                }
                Action::DeleteSet { name, .. } => self.sets.retain(|s| s.metadata.name != name),
                Action::Annotate(patch) => {
                    let mut known = json!(self.deployment.metadata.annotations);
                    merge(&mut known, &patch["metadata"]["annotations"]);
                    self.deployment.metadata.annotations =
                        serde_json::from_value(known).expect("annotations");
                }
                Action::PatchStatus(patch) => {
                    let mut known = json!(self.deployment.status);
                    merge(&mut known, &patch["status"]);
                    self.deployment.status = serde_json::from_value(known).expect("a status");
                }
                Action::Event { message, .. } => {
                    writes -= 1;
                    self.events.push(message);
                }
                Action::LookAgain(_) => writes -= 1,
            }
        }
        writes
    }

    /// The ReplicaSet controller and the nodes: pods appear, become available, and go.
    fn pods(&mut self, moves: &[u8]) {
        for (set, what) in self.sets.iter_mut().zip(moves.iter().cycle()) {
            let wanted = set.spec.replicas.unwrap_or(1);
            let status = &mut set.status;
            status.observed_generation = Some(set.metadata.generation);
            let (mut actual, mut available) =
                (status.replicas, status.available_replicas.unwrap_or(0));
            if actual > wanted {
                // Pods that are not available go first.
                available = available.min(wanted);
                actual = wanted;
            } else if what & 1 != 0 {
                actual = wanted;
            }
            if what & 2 != 0 {
                available = (available + i32::from(what >> 2)).min(actual);
            }
            status.replicas = actual;
            status.ready_replicas = Some(available);
            status.available_replicas = Some(available);
            status.terminating_replicas = Some(0);
        }
    }

    /// Until nothing moves any more.
    fn settle(&mut self) {
        for _ in 0..500 {
            self.pods(&[0xff]);
            if self.pass() == 0 {
                return;
            }
        }
        panic!("does not settle: {:?}", self.deployment.status);
    }

    fn condition(&self, type_: &str) -> (String, String, String) {
        let list = self
            .deployment
            .status
            .conditions
            .as_deref()
            .unwrap_or_default();
        let found = status::find(list, type_).expect("the condition is there");
        let text = |t: &Option<String>| t.clone().unwrap_or_default();
        (
            found.status.clone(),
            text(&found.reason),
            text(&found.message),
        )
    }

    fn sizes(&self) -> Vec<i32> {
        self.sets
            .iter()
            .map(|s| s.spec.replicas.unwrap_or(1))
            .collect()
    }

    fn revisions(&self) -> Vec<i64> {
        self.sets
            .iter()
            .map(|s| revision::revision(&s.metadata.annotations))
            .collect()
    }
}

fn rolling(surge: impl Into<Value>, unavailable: impl Into<Value>) -> Value {
    json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge.into(), "maxUnavailable": unavailable.into()}})
}

#[test]
fn a_new_deployment_gets_a_set_with_everything_kubectl_reads() {
    let mut world = World::new(3, rolling("25%", "25%"));
    world
        .deployment
        .metadata
        .annotations
        .insert("kubernetes.io/change-cause".to_owned(), "first".to_owned());
    world.pass();
    let set = &world.sets[0].clone();
    let hash = &set.metadata.labels["pod-template-hash"];
    assert_eq!(set.metadata.name, format!("web-{hash}"));
    assert_eq!(set.spec.replicas, Some(3));
    assert_eq!(
        set.metadata.annotations["deployment.kubernetes.io/revision"],
        "1"
    );
    assert_eq!(
        set.metadata.annotations["deployment.kubernetes.io/desired-replicas"],
        "3"
    );
    assert_eq!(
        set.metadata.annotations["deployment.kubernetes.io/max-replicas"],
        "4"
    );
    assert_eq!(
        set.metadata.annotations["kubernetes.io/change-cause"],
        "first"
    );
    let selector = set.spec.selector.match_labels.as_ref().expect("labels");
    assert_eq!(&selector["pod-template-hash"], hash);
    assert_eq!(set.metadata.controller().expect("an owner").uid, "d");
    assert_eq!(
        world.events,
        [format!("Scaled up replica set web-{hash} from 0 to 3")]
    );
    assert_eq!(
        world.deployment.metadata.annotations["deployment.kubernetes.io/revision"],
        "1"
    );
    assert_eq!(world.condition("Available").1, "MinimumReplicasUnavailable");
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetCreated");
    world.settle();
    assert_eq!(
        world.condition("Progressing"),
        (
            "True".to_owned(),
            "NewReplicaSetAvailable".to_owned(),
            format!("ReplicaSet \"web-{hash}\" has successfully progressed.")
        )
    );
    assert_eq!(
        world.condition("Available"),
        (
            "True".to_owned(),
            "MinimumReplicasAvailable".to_owned(),
            "Deployment has minimum availability.".to_owned()
        )
    );
    assert_eq!(world.deployment.status.observed_generation, Some(1));
}

#[test]
fn a_rollback_takes_the_old_set_back_under_a_new_revision() {
    let mut world = World::new(4, rolling(1, 1));
    world.settle();
    world.set_image("v2");
    world.settle();
    assert_eq!((world.sizes(), world.revisions()), (vec![0, 4], vec![1, 2]));
    world.set_image("v1");
    world.settle();
    assert_eq!((world.sizes(), world.revisions()), (vec![4, 0], vec![3, 2]));
    assert_eq!(
        world.sets[0].metadata.annotations["deployment.kubernetes.io/revision-history"],
        "1"
    );
    assert_eq!(
        world.deployment.metadata.annotations["deployment.kubernetes.io/revision"],
        "3"
    );
}

#[test]
fn recreate_empties_the_old_set_first() {
    let mut world = World::new(3, json!({"type": "Recreate"}));
    world.settle();
    world.set_image("v2");
    world.pass();
    assert_eq!(world.sizes(), [0], "the new set waits for the last old pod");
    world.pass();
    assert_eq!(world.sets.len(), 1);
    world.settle();
    assert_eq!(world.sizes(), [0, 3]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut world = World::new(2, rolling(1, 0));
    world.settle();
    world.deployment.spec.paused = Some(true);
    world.set_image("v2");
    world.settle();
    assert_eq!(world.sizes(), [2]);
    assert_eq!(world.condition("Progressing").1, "DeploymentPaused");
    world.scale(5);
    world.settle();
    assert_eq!(world.sizes(), [5]);
    world.deployment.spec.paused = None;
    world.pass();
    world.settle();
    assert_eq!(world.sizes(), [0, 5]);
}

#[test]
fn scaling_in_mid_rollout_is_shared() {
    let mut world = World::new(10, rolling(3, 2));
    world.settle();
    world.set_image("v2");
    world.pass();
    assert_eq!(world.sizes(), [8, 3]);
    world.pods(&[1]);
    world.pass();
    assert_eq!(world.sizes(), [8, 5]);
    world.scale(20);
    world.pass();
    assert_eq!(world.sizes(), [14, 9], "as in the worked example");
}

#[test]
fn history_is_limited() {
    let mut world = World::new(1, rolling(1, 0));
    world.deployment.spec.revision_history_limit = Some(2);
    for image in ["v1", "v2", "v3", "v4", "v5"] {
        world.set_image(image);
        world.settle();
    }
    assert_eq!(world.revisions(), [3, 4, 5]);
}

#[test]
fn no_progress_is_told_after_the_deadline() {
    let mut world = World::new(2, rolling(1, 0));
    world.pass();
    world.pods(&[1]);
    world.pass();
    world.second += 700;
    world.pass();
    let (status, reason, message) = world.condition("Progressing");
    assert_eq!(
        (status.as_str(), reason.as_str()),
        ("False", "ProgressDeadlineExceeded")
    );
    assert!(message.ends_with("has timed out progressing."), "{message}");
    world.settle();
    assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
}

#[test]
fn the_deadline_is_looked_at_even_if_nothing_happens() {
    let mut world = World::new(2, rolling(1, 0));
    world.pass();
    let again = world.plan().into_iter().find_map(|a| match a {
        Action::LookAgain(delay) => Some(delay.as_secs()),
        _ => None,
    });
    assert!(again.is_some_and(|s| (590..=602).contains(&s)), "{again:?}");
}

#[test]
fn a_deployment_that_is_deleted_is_left_alone() {
    let mut world = World::new(2, rolling(1, 0));
    world.deployment.metadata = Meta {
        deletion_timestamp: serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok(),
        ..world.deployment.metadata
    };
    world.pass();
    assert!(world.sets.is_empty());
}

proptest! {
    /// At every moment of any rollout: not more pods than replicas + maxSurge are asked for, and not fewer are available
    /// than replicas − maxUnavailable, unless fewer were available before. And it ends.
    #[test]
    fn rollouts_stay_within_their_bounds(
        replicas in 1i32..30,
        surge in 0i32..12,
        unavailable in 0i32..12,
        moves in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..4), 1..60),
        changes in prop::collection::vec(0u8..12, 1..60),
    ) {
        let mut world = World::new(replicas, rolling(surge, unavailable));
        world.settle();
        let bounds = Bounds::of(&world.deployment.spec);
        let mut image = 1;
        for (moves, change) in moves.iter().zip(changes) {
            if change == 0 {
                image += 1;
                world.set_image(&format!("v{}", image % 4 + 1));
            }
            let available = |w: &World| w.sets.iter().map(|s| s.status.available_replicas.unwrap_or(0)).sum::<i32>();
            let before = available(&world);
            world.pass();
            let asked: i32 = world.sizes().iter().sum();
            prop_assert!(asked <= bounds.most(), "asked for {} of at most {}", asked, bounds.most());
            world.pods(moves);
            let after = available(&world);
            prop_assert!(after >= bounds.least_available().min(before), "{} available of at least {}", after, bounds.least_available());
        }
        world.settle();
        let live: Vec<i32> = world.sizes().into_iter().filter(|s| *s > 0).collect();
        prop_assert_eq!(live, vec![replicas]);
        prop_assert_eq!(world.condition("Progressing").1, "NewReplicaSetAvailable");
    }
}

//! Thousands of histories of a cluster in virtual time: nodes die, are cut off and come back, the API pauses, watches
//! stall, leaders change. One seed, one history; the real plan and the real brake decide.

use std::collections::{BTreeMap, HashMap};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};

use super::zones::{Brake, Change, State};
use super::*;

const GRACE: i64 = 40;
const TICK: i64 = 5;
/// An optimised build has time for more.
const HISTORIES: u64 = if cfg!(debug_assertions) { 300 } else { 5_000 };
const LENGTH: i64 = 1_200;
/// What any history may need beyond grace and toleration: polls, permits of a zone, watches that lag.
const SLACK: i64 = 60;

struct Machine {
    alive: bool,
    linked: bool,
    /// Its last successful sign of life, as the API has it.
    contact: i64,
    lease: u64,
    /// When it says again what it is.
    speaks: i64,
    object: Node,
    /// Since when nothing changed that would put off its end or its return.
    steady: i64,
}

/// What the leader knows of a node, and what it saw last.
#[derive(Clone, Default)]
struct View {
    node: Option<Node>,
    lease: u64,
    heard: i64,
}

struct Workload {
    app: usize,
    node: usize,
    pod: Pod,
    toleration: i64,
}

struct World {
    now: i64,
    seed: u64,
    dice: StdRng,
    machines: Vec<Machine>,
    views: Vec<View>,
    pods: BTreeMap<usize, Workload>,
    names: usize,
    apps: Vec<(usize, i64)>,
    brake: Brake,
    api: bool,
    stalled: bool,
    /// When `NoExecute` taints were added, by zone, in this term.
    told: HashMap<String, Vec<i64>>,
    evictions: usize,
    returns: usize,
}

fn run(seed: u64) -> World {
    let mut dice = StdRng::seed_from_u64(seed);
    let size = *[3, 5, 8, 20].choose(&mut dice).expect("sizes");
    let zones = dice.random_range(1..=3);
    let machines = (0..size)
        .map(|i| {
            let node = json!({
                "metadata": {"name": format!("n{i}"), "resourceVersion": "1",
                    "labels": {"topology.kubernetes.io/zone": format!("z{}", i % zones)}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]}
            });
            Machine {
                alive: true,
                linked: true,
                contact: 0,
                lease: 1,
                speaks: 0,
                object: serde_json::from_value(node).expect("a node"),
                steady: 0,
            }
        })
        .collect();
    let apps = (0..3)
        .map(|_| {
            (
                dice.random_range(1..6),
                *[0, 30, 300].choose(&mut dice).expect("times"),
            )
        })
        .collect();
    let mut world = World {
        now: 0,
        seed,
        dice,
        views: vec![View::default(); size],
        machines,
        pods: BTreeMap::new(),
        names: 0,
        apps,
        brake: Brake::default(),
        api: true,
        stalled: false,
        told: HashMap::new(),
        evictions: 0,
        returns: 0,
    };
    while world.now < LENGTH {
        world.now += TICK;
        world.weather();
        if world.api {
            world.nodes();
            world.deploy();
            world.watch();
            world.control();
            world.check();
        }
    }
    world
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("a time")
}

impl World {
    fn weather(&mut self) {
        if !self.dice.random_bool(0.1) {
            return;
        }
        let index = self.dice.random_range(0..self.machines.len());
        let many = self.dice.random_bool(0.1);
        let (now, kind) = (self.now, self.dice.random_range(0..9));
        let chosen: Vec<usize> = match many {
            true => (0..self.machines.len()).collect(),
            false => vec![index],
        };
        for index in chosen {
            let machine = &mut self.machines[index];
            match kind {
                0 => machine.alive = false,
                1 | 2 => machine.alive = true,
                3 => machine.linked = false,
                4 | 5 => machine.linked = true,
                _ => continue,
            }
            machine.steady = now;
        }
        match kind {
            6 => {
                // The API cannot be written to: nor can the leader renew. Whoever leads next begins afresh.
                self.api = !self.api;
                if self.api {
                    self.begin_term();
                }
                self.unsteady();
            }
            7 => {
                self.stalled = !self.stalled;
                self.unsteady();
            }
            8 if self.api => {
                self.begin_term();
                self.unsteady();
            }
            _ => {}
        }
    }

    fn begin_term(&mut self) {
        self.brake = Brake::default();
        self.told.clear();
        for view in &mut self.views {
            view.heard = self.now;
        }
    }

    fn unsteady(&mut self) {
        for machine in &mut self.machines {
            machine.steady = self.now;
        }
    }

    /// What the machines do by themselves.
    fn nodes(&mut self) {
        for index in 0..self.machines.len() {
            let machine = &mut self.machines[index];
            if !machine.alive || !machine.linked {
                continue;
            }
            if self.now - machine.contact >= 10 {
                let away = self.now - machine.contact > 15;
                machine.contact = self.now;
                machine.lease += 1;
                // The status comes a moment after the lease.
                machine.speaks = self.now
                    + if away {
                        self.dice.random_range(0..8)
                    } else {
                        0
                    };
            }
            if self.now < machine.speaks {
                continue;
            }
            let said = ready(
                machine
                    .object
                    .status
                    .conditions
                    .as_deref()
                    .unwrap_or_default(),
            );
            if said != "True" {
                self.returns += 1;
                let conditions = json!([{"type": "Ready", "status": "True"}]);
                machine.object.status.conditions =
                    serde_json::from_value(conditions).expect("conditions");
                bump(&mut machine.object);
            }
            // Pods that were told to go go; the others are ready.
            self.pods
                .retain(|_, w| w.node != index || !w.pod.metadata.is_deleting());
            for workload in self.pods.values_mut().filter(|w| w.node == index) {
                set_ready(&mut workload.pod, "True");
            }
        }
    }

    /// Replacements for pods that go, where the scheduler would put them.
    fn deploy(&mut self) {
        for app in 0..self.apps.len() {
            let (replicas, toleration) = self.apps[app];
            let active = self.pods.values();
            let active = active.filter(|w| w.app == app && w.pod.is_active()).count();
            assert!(active <= replicas, "seed {}: one too many", self.seed);
            for _ in active..replicas {
                let open: Vec<usize> = (0..self.machines.len())
                    .filter(|&i| {
                        self.machines[i]
                            .object
                            .spec
                            .taints
                            .iter()
                            .flatten()
                            .next()
                            .is_none()
                    })
                    .collect();
                let Some(&node) = open.choose(&mut self.dice) else {
                    return;
                };
                self.names += 1;
                self.machines[node].steady = self.machines[node].steady.max(self.now);
                let pod = json!({
                    "metadata": {"name": format!("p{}", self.names), "uid": self.names.to_string()},
                    "spec": {"nodeName": format!("n{node}"), "tolerations": [
                        {"key": TAINT_UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": toleration},
                        {"key": TAINT_NOT_READY, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": toleration}]},
                    "status": {"phase": "Running"}
                });
                let mut pod: Pod = serde_json::from_value(pod).expect("a pod");
                set_ready(&mut pod, "True");
                let workload = Workload {
                    app,
                    node,
                    pod,
                    toleration,
                };
                self.pods.insert(self.names, workload);
            }
        }
    }

    /// What the watches bring.
    fn watch(&mut self) {
        for (view, machine) in self.views.iter_mut().zip(&self.machines) {
            if view.node.is_none() || !self.stalled && self.dice.random_bool(0.8) {
                see(view, machine, self.now);
            }
        }
    }

    fn control(&mut self) {
        let zones = self.views.iter().filter_map(|v| v.node.as_ref());
        let zones: Vec<(String, bool)> = zones
            .map(|n| {
                let conditions = n.status.conditions.as_deref().unwrap_or_default();
                (zones::zone_of(n), ready(conditions) == "True")
            })
            .collect();
        let stopped = self.brake.is_stopped();
        if self.brake.observe(zones.clone(), self.now) == Change::Resumed {
            for view in &mut self.views {
                view.heard = self.now;
            }
        }
        if stopped || self.brake.is_stopped() {
            self.unsteady();
        }
        for (zone, _) in &zones {
            let count = |r: bool| {
                zones
                    .iter()
                    .filter(|(z, ready)| z == zone && *ready == r)
                    .count()
            };
            if zones::state(count(true), count(false)) == State::Partial {
                self.unsteady();
            }
        }
        for index in 0..self.machines.len() {
            self.pass(index);
        }
    }

    fn observe(&self, index: usize) -> Option<Observed> {
        let view = &self.views[index];
        let pods = self.pods.values().filter(|w| w.node == index);
        Some(Observed {
            node: Arc::new(view.node.clone()?),
            heard: view.heard,
            grace: GRACE,
            tainted_since: self.now,
            pods: pods.map(|w| Arc::new(w.pod.clone())).collect(),
        })
    }

    fn pass(&mut self, index: usize) {
        let now = time(self.now);
        let Some(mut observed) = self.observe(index) else {
            return;
        };
        let zone = zones::zone_of(&observed.node);
        let mut permit = |told: bool, take: bool| match (told, take) {
            (true, _) if self.brake.is_stopped() => Permit::Stopped,
            (true, _) => Permit::Granted,
            (false, true) => self.brake.take(&zone, self.now),
            (false, false) => self.brake.ask(&zone, self.now),
        };
        let harms = plan(&observed, now, |told| permit(told, false))
            .iter()
            .any(Action::harms);
        let mut granted = false;
        let mut decide = |observed: &Observed| {
            plan(observed, now, |told| {
                let permit = permit(told, true);
                granted = !told && permit == Permit::Granted;
                permit
            })
        };
        let actions = if harms {
            see(&mut self.views[index], &self.machines[index], self.now);
            observed.node = Arc::new(self.machines[index].object.clone());
            observed.heard = self.views[index].heard;
            decide(&observed)
        } else {
            decide(&observed)
        };
        if granted {
            self.told.entry(zone.clone()).or_default().push(self.now);
            self.check_rate(&zone);
        }
        for action in actions {
            self.carry_out(index, action);
        }
    }

    fn carry_out(&mut self, index: usize, action: Action) {
        let machine = &mut self.machines[index];
        match action {
            Action::PatchStatus { patch, .. } => {
                machine.object.status.conditions =
                    serde_json::from_value(patch["status"]["conditions"].clone())
                        .expect("conditions");
                bump(&mut machine.object);
            }
            Action::PatchTaints(patch) => {
                machine.object.spec.taints =
                    serde_json::from_value(patch["spec"]["taints"].clone()).expect("taints");
                bump(&mut machine.object);
            }
            Action::MarkUnready { pod, .. } => {
                assert!(
                    self.now - machine.contact >= GRACE,
                    "seed {}: it spoke",
                    self.seed
                );
                let marked = self
                    .pods
                    .values_mut()
                    .find(|w| w.pod.metadata.name == pod.name);
                set_ready(&mut marked.expect("it is there").pod, "False");
            }
            Action::Evict { pod } => self.evict(index, &pod),
            Action::LookAgain(_) => {}
        }
    }

    fn evict(&mut self, index: usize, pod: &Pod) {
        let machine = &self.machines[index];
        let (now, seed) = (self.now, self.seed);
        let taints = machine.object.spec.taints.iter().flatten();
        let added = taints
            .filter(|t| t.effect == NO_EXECUTE)
            .filter_map(|t| t.time_added.as_ref())
            .map(|t| t.0.as_second())
            .min()
            .expect("only tainted nodes lose pods");
        let workload = self
            .pods
            .values_mut()
            .find(|w| w.pod.metadata.uid == pod.metadata.uid);
        let workload = workload.expect("it is there");
        assert!(
            now >= added + workload.toleration,
            "seed {seed}: too early at {now}"
        );
        let silent = now - machine.contact;
        assert!(
            silent >= GRACE,
            "seed {seed}: node {index} spoke {silent} s before {now}, and lost a pod"
        );
        assert!(!self.brake.is_stopped(), "seed {seed}: everything is lost");
        workload.pod.metadata.deletion_timestamp = Some(Time(time(now)));
        self.evictions += 1;
    }

    /// In any stretch of time there are at most one permit and one for every ten seconds.
    fn check_rate(&self, zone: &str) {
        let told = &self.told[zone];
        for (first, since) in told.iter().enumerate() {
            let most = 1 + (self.now - since) / 10;
            let count = told.len() - first;
            assert!(
                i64::try_from(count).is_ok_and(|count| count <= most),
                "seed {}: {count} nodes of {zone} within {} s",
                self.seed,
                self.now - since
            );
        }
    }

    fn check(&self) {
        let permits = 10 * i64::try_from(self.machines.len()).expect("few");
        for (index, machine) in self.machines.iter().enumerate() {
            let steady = self.now - machine.steady;
            let here = || self.pods.values().filter(|w| w.node == index);
            if self.stalled {
                continue;
            }
            if machine.alive && machine.linked && steady > SLACK {
                assert!(
                    machine.object.spec.taints.iter().flatten().next().is_none(),
                    "seed {}: node {index} is back and tainted at {}",
                    self.seed,
                    self.now
                );
                assert!(
                    here().all(|w| w.pod.is_ready() && w.pod.is_active()),
                    "seed {}: node {index} is back, its pods are not",
                    self.seed
                );
            }
            if !machine.alive || !machine.linked {
                for workload in here().filter(|w| w.pod.is_active()) {
                    assert!(
                        steady <= GRACE + workload.toleration + permits + SLACK,
                        "seed {}: {} is still on lost node {index} at {}",
                        self.seed,
                        workload.pod.metadata.name,
                        self.now
                    );
                }
            }
        }
    }
}

fn see(view: &mut View, machine: &Machine, now: i64) {
    if view.lease != machine.lease {
        view.lease = machine.lease;
        view.heard = now;
    }
    view.node = Some(machine.object.clone());
}

fn bump(node: &mut Node) {
    let next = node.metadata.revision() + 1;
    node.metadata.resource_version = next.to_string();
}

fn set_ready(pod: &mut Pod, status: &str) {
    pod.status.conditions = vec![PodCondition {
        type_: "Ready".to_owned(),
        status: status.to_owned(),
        ..PodCondition::default()
    }];
}

#[test]
fn pods_leave_lost_nodes_and_no_others() {
    let (mut evictions, mut returns) = (0, 0);
    for seed in 0..HISTORIES {
        let world = run(seed);
        evictions += world.evictions;
        returns += world.returns;
    }
    assert!(evictions > 300, "histories with evictions: {evictions}");
    assert!(returns > 300, "histories with returns: {returns}");
}

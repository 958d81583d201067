//! Lifecycle state → PodStatus, in Kubernetes' words; and back, for pods of an earlier process. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container as ContainerSpec, ContainerState, ContainerStateRunning, ContainerStateTerminated,
    ContainerStateWaiting, ContainerStatus, HostIP, Pod, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use types::condition;

use super::ephemeral;
use super::lifecycle::{
    Container, Deletion, Exit, Failure, Memory, Phase, Role, Stage, State, Trouble,
};

mod qos;

pub(crate) use qos::qos_class;

/// What the status says beside the lifecycle's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Facts {
    pub(crate) host_ip: String,
    pub(crate) pod_ip: Option<String>,
    /// Per container, in the order of the rules: `docker.io/library/web@sha256:…`, empty until pulled.
    pub(crate) image_ids: Vec<String>,
    /// Why the pod is refused by this node: it will fail in a while.
    pub(crate) refusal: Option<String>,
}

/// The failure of a pod whose node shuts down, and the condition that goes with it.
pub(crate) const TERMINATED: &str = "Terminated";
pub(crate) const DISRUPTION: &str = "DisruptionTarget";
pub(crate) const BY_KUBELET: &str = "TerminationByKubelet";

/// An image that failed to pull shows why for this long; then that it is being waited for.
pub(crate) const SHOW_PULL_ERROR: jiff::SignedDuration = jiff::SignedDuration::from_secs(3);

/// The whole status this node vouches for. `previous` gives transition times and the conditions of others.
pub(crate) fn status(
    pod: &Pod,
    state: &State,
    facts: &Facts,
    previous: &PodStatus,
    now: Timestamp,
) -> PodStatus {
    let Some(spec) = pod.spec.as_ref() else {
        return PodStatus::default();
    };
    let init_count = spec.init_containers.as_ref().map_or(0, Vec::len);
    let statuses: Vec<ContainerStatus> = specs(spec)
        .zip(&state.containers)
        .enumerate()
        .map(|(index, (spec, container))| {
            View {
                pod,
                state,
                index,
                now,
            }
            .container(spec, container, facts)
        })
        .collect();
    let (init, main) = statuses.split_at(init_count.min(statuses.len()));
    let own = ephemeral::split(spec).0.len();
    let (main, debugging) = main.split_at(own.min(main.len()));
    let mut conditions = previous.conditions.clone().unwrap_or_default();
    for condition in own_conditions(pod, state, init, main, facts, &conditions, now) {
        condition::set(&mut conditions, condition);
    }
    if let Some(failure) = &state.failure
        && failure.reason == TERMINATED
    {
        condition::set(&mut conditions, disrupted(failure, now));
    }
    let phase = phase(state);
    PodStatus {
        conditions: Some(conditions),
        container_statuses: Some(main.to_vec()),
        init_container_statuses: (init_count > 0).then(|| init.to_vec()),
        ephemeral_container_statuses: (!debugging.is_empty()).then(|| debugging.to_vec()),
        host_ip: Some(facts.host_ip.clone()),
        host_ips: Some(vec![HostIP {
            ip: facts.host_ip.clone(),
        }]),
        pod_ip: facts.pod_ip.clone(),
        pod_ips: facts.pod_ip.clone().map(|ip| vec![PodIP { ip }]),
        phase: Some(phase.to_owned()),
        reason: state.failure.as_ref().map(|failure| failure.reason.clone()),
        message: state
            .failure
            .as_ref()
            .map(|failure| failure.message.clone()),
        qos_class: Some(qos_class(spec).to_owned()),
        start_time: Some(Time(whole_second(state.started_at))),
        observed_generation: pod.metadata.generation,
        ..PodStatus::default()
    }
}

/// The node goes away, and with it the pod.
fn disrupted(failure: &Failure, now: Timestamp) -> PodCondition {
    PodCondition {
        type_: DISRUPTION.to_owned(),
        status: "True".to_owned(),
        reason: Some(BY_KUBELET.to_owned()),
        message: Some(failure.message.clone()),
        last_transition_time: Some(Time(whole_second(now))),
        ..PodCondition::default()
    }
}

fn specs(spec: &PodSpec) -> impl Iterator<Item = &ContainerSpec> {
    spec.init_containers
        .iter()
        .flatten()
        .chain(&spec.containers)
}

/// Derived last, from the state: nothing branches on it.
pub(crate) fn phase(state: &State) -> &'static str {
    let ended = state.is_ended();
    if ended && state.failure.is_some() {
        return "Failed";
    }
    let main = || {
        let pairs = state.rules.containers.iter().zip(&state.containers);
        pairs
            .filter(|(rules, _)| rules.role == Role::Main)
            .map(|(_, container)| container)
    };
    if ended {
        let well = main()
            .all(|container| matches!(&container.phase, Phase::Exited(exit) if exit.code == 0));
        return if well { "Succeeded" } else { "Failed" };
    }
    let begun = main().any(|container| container.instances > 0);
    if state.initialized && begun {
        "Running"
    } else {
        "Pending"
    }
}

struct View<'a> {
    pod: &'a Pod,
    state: &'a State,
    index: usize,
    now: Timestamp,
}

impl View<'_> {
    fn container(
        &self,
        spec: &ContainerSpec,
        container: &Container,
        facts: &Facts,
    ) -> ContainerStatus {
        let ending = !matches!(self.state.stage, Stage::Preparing { .. } | Stage::Active);
        let deleting = self.state.deletion != Deletion::No;
        let (started, ready) = match &container.phase {
            Phase::Running { started, ready, .. } => (*started, *ready && !(ending && deleting)),
            Phase::Exited(exit) => {
                let init = self.state.rules.containers[self.index].role == Role::Init;
                (false, init && exit.code == 0)
            }
            _ => (false, false),
        };
        // Nobody waits for one that is added to look around.
        let ephemeral = self.state.rules.containers[self.index].role == Role::Ephemeral;
        let restarts = container.instances.saturating_sub(1);
        let uid = self.pod.metadata.uid.as_deref().unwrap_or_default();
        let id = |instance: u32| format!("wasmtime://{uid}.{}.{instance}", spec.name);
        let terminated = |exit: &Exit| ContainerState {
            terminated: Some(ContainerStateTerminated {
                container_id: Some(id(exit.instance)),
                exit_code: exit.code,
                reason: Some(exit.reason.to_owned()),
                message: Some(exit.message.clone()).filter(|message| !message.is_empty()),
                started_at: Some(Time(whole_second(exit.started_at))),
                finished_at: Some(Time(whole_second(exit.finished_at))),
                signal: None,
            }),
            ..ContainerState::default()
        };
        ContainerStatus {
            name: spec.name.clone(),
            image: spec.image.clone().unwrap_or_default(),
            image_id: facts.image_ids.get(self.index).cloned().unwrap_or_default(),
            container_id: (container.instances > 0).then(|| id(restarts)),
            started: (!ephemeral).then_some(started),
            ready: ready && !ephemeral,
            restart_count: i32::try_from(restarts).unwrap_or(i32::MAX),
            state: Some(match &container.phase {
                Phase::Running { since, .. } | Phase::Stopping { since, .. } => ContainerState {
                    running: Some(ContainerStateRunning {
                        started_at: Some(Time(whole_second(*since))),
                    }),
                    ..ContainerState::default()
                },
                Phase::Exited(exit) => terminated(exit),
                waiting => self.waiting(spec, waiting, facts),
            }),
            last_state: Some(container.last.as_ref().map(terminated).unwrap_or_default()),
            resources: spec
                .resources
                .clone()
                .filter(|resources| *resources != Default::default()),
            allocated_resources: spec
                .resources
                .as_ref()
                .and_then(|resources| resources.requests.clone()),
            ..ContainerStatus::default()
        }
    }

    fn waiting(&self, spec: &ContainerSpec, phase: &Phase, facts: &Facts) -> ContainerState {
        let (reason, message) = match phase {
            Phase::Waiting if facts.refusal.is_some() => (
                "CreateContainerConfigError",
                facts.refusal.clone().unwrap_or_default(),
            ),
            Phase::Failed { trouble, at, .. } => self.failed(spec, trouble, *at),
            Phase::BackingOff { delay, .. } => (
                "CrashLoopBackOff",
                format!(
                    "back-off {} restarting failed container={} pod={}",
                    duration(*delay),
                    spec.name,
                    full_name(self.pod)
                ),
            ),
            // The worker's first step may still be the volumes.
            _ if self
                .state
                .rules
                .containers
                .iter()
                .any(|rules| matches!(rules.role, Role::Init | Role::Sidecar))
                && !(self.state.initialized || self.is_turn(phase)) =>
            {
                ("PodInitializing", String::new())
            }
            _ => ("ContainerCreating", String::new()),
        };
        ContainerState {
            waiting: Some(ContainerStateWaiting {
                reason: Some(reason.to_owned()),
                message: Some(message).filter(|message| !message.is_empty()),
            }),
            ..ContainerState::default()
        }
    }

    fn is_turn(&self, phase: &Phase) -> bool {
        self.state.rules.containers[self.index].role != Role::Main && *phase != Phase::Waiting
    }

    fn failed(
        &self,
        spec: &ContainerSpec,
        trouble: &Trouble,
        at: Timestamp,
    ) -> (&'static str, String) {
        if trouble.reason == "ErrImagePull" && self.now.duration_since(at) >= SHOW_PULL_ERROR {
            let image = spec.image.as_deref().unwrap_or_default();
            let message = format!(
                "Back-off pulling image \"{image}\": ErrImagePull: {}",
                trouble.message
            );
            return ("ImagePullBackOff", message);
        }
        (trouble.reason, trouble.message.clone())
    }
}

fn own_conditions(
    pod: &Pod,
    state: &State,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
    facts: &Facts,
    others: &[PodCondition],
    now: Timestamp,
) -> Vec<PodCondition> {
    let generation = pod.metadata.generation;
    let condition = |type_: &str, unmet: Option<(&str, String)>| PodCondition {
        type_: type_.to_owned(),
        status: if unmet.is_none() { "True" } else { "False" }.to_owned(),
        reason: unmet.as_ref().map(|(reason, _)| (*reason).to_owned()),
        message: unmet
            .map(|(_, message)| message)
            .filter(|message| !message.is_empty()),
        last_transition_time: Some(Time(whole_second(now))),
        observed_generation: generation,
        ..PodCondition::default()
    };
    let phase = phase(state);
    let completed = (phase == "Succeeded").then(|| ("PodCompleted", String::new()));
    let unready = completed.or_else(|| match phase {
        "Failed" => Some(("PodFailed", String::new())),
        _ => unready_containers(state, init, main),
    });
    let gates = unready.clone().or_else(|| unmet_gates(pod, others));
    let initialized = if state.initialized {
        None
    } else {
        incomplete(state, init)
    };
    let sandbox = facts.pod_ip.is_some()
        && !state.is_over()
        && !matches!(state.stage, Stage::Preparing { .. });
    vec![
        condition(
            "PodReadyToStartContainers",
            (!sandbox).then(|| ("", String::new())),
        ),
        condition("Initialized", initialized),
        condition("Ready", gates),
        condition("ContainersReady", unready),
        condition("PodScheduled", None),
    ]
    .into_iter()
    .map(|mut condition| {
        condition.reason = condition.reason.filter(|reason| !reason.is_empty());
        condition
    })
    .collect()
}

fn unready_containers(
    state: &State,
    init: &[ContainerStatus],
    main: &[ContainerStatus],
) -> Option<(&'static str, String)> {
    let sidecars = state
        .rules
        .containers
        .iter()
        .zip(init)
        .filter(|(rules, _)| rules.role == Role::Sidecar)
        .map(|(_, status)| status);
    let unready: Vec<&str> = sidecars
        .chain(main)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    (!unready.is_empty()).then(|| {
        (
            "ContainersNotReady",
            format!("containers with unready status: [{}]", unready.join(" ")),
        )
    })
}

fn incomplete(state: &State, init: &[ContainerStatus]) -> Option<(&'static str, String)> {
    let names: Vec<&str> = state
        .rules
        .containers
        .iter()
        .zip(init)
        .filter(|(rules, status)| match rules.role {
            Role::Sidecar => status.started != Some(true),
            _ => !status.ready,
        })
        .map(|(_, status)| status.name.as_str())
        .collect();
    (!names.is_empty()).then(|| {
        (
            "ContainersNotInitialized",
            format!("containers with incomplete status: [{}]", names.join(" ")),
        )
    })
}

fn unmet_gates(pod: &Pod, conditions: &[PodCondition]) -> Option<(&'static str, String)> {
    let gates = pod.spec.as_ref()?.readiness_gates.as_ref()?;
    let unmet: Vec<String> = gates
        .iter()
        .filter_map(|gate| {
            let type_ = &gate.condition_type;
            match conditions
                .iter()
                .find(|condition| condition.type_ == *type_)
            {
                Some(condition) if condition.status == "True" => None,
                Some(_) => Some(format!(
                    "the status of pod readiness gate \"{type_}\" is not \"True\", but False"
                )),
                None => Some(format!(
                    "corresponding condition of pod readiness gate \"{type_}\" does not exist."
                )),
            }
        })
        .collect();
    (!unmet.is_empty()).then(|| ("ReadinessGatesNotReady", unmet.join(", ")))
}

/// What the API remembers of this pod's containers, in the order of the rules.
pub(crate) fn recall(pod: &Pod) -> Vec<Memory> {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let Some(spec) = pod.spec.as_ref() else {
        return Vec::new();
    };
    specs(spec)
        .map(|container| {
            let known = status
                .init_container_statuses
                .iter()
                .flatten()
                .chain(status.container_statuses.iter().flatten())
                .chain(status.ephemeral_container_statuses.iter().flatten());
            let mut known = known.filter(|status| status.name == container.name);
            known.next().map(recall_container).unwrap_or_default()
        })
        .collect()
}

/// The image ids the API remembers, in the order of the rules.
pub(crate) fn recalled_images(pod: &Pod) -> Vec<String> {
    let empty = PodStatus::default();
    let status = pod.status.as_ref().unwrap_or(&empty);
    let Some(spec) = pod.spec.as_ref() else {
        return Vec::new();
    };
    specs(spec)
        .map(|container| {
            let known = status
                .init_container_statuses
                .iter()
                .flatten()
                .chain(status.container_statuses.iter().flatten())
                .chain(status.ephemeral_container_statuses.iter().flatten());
            let mut known = known.filter(|status| status.name == container.name);
            known
                .next()
                .map(|status| status.image_id.clone())
                .unwrap_or_default()
        })
        .collect()
}

/// Do both say the same? The order of conditions, and what only the API fills in, does not matter.
pub(crate) fn same(status: &PodStatus, published: &PodStatus) -> bool {
    let plain = |status: &PodStatus| {
        let mut status = status.clone();
        if let Some(conditions) = &mut status.conditions {
            conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
        }
        status
    };
    plain(status) == plain(published)
}

fn recall_container(status: &ContainerStatus) -> Memory {
    let state = status.state.clone().unwrap_or_default();
    let restarts = u32::try_from(status.restart_count).unwrap_or(0);
    let exit = |terminated: &ContainerStateTerminated| Exit {
        code: terminated.exit_code,
        reason: match terminated.reason.as_deref() {
            Some("Completed") => "Completed",
            Some("OOMKilled") => "OOMKilled",
            _ => "Error",
        },
        message: terminated.message.clone().unwrap_or_default(),
        started_at: terminated
            .started_at
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        finished_at: terminated
            .finished_at
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0),
        instance: restarts,
    };
    let last = status
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    if let Some(running) = &state.running {
        let since = running
            .started_at
            .as_ref()
            .map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        return Memory {
            instances: restarts + 1,
            last: Some(Exit {
                code: 137,
                reason: "Error",
                message: String::new(),
                started_at: since,
                finished_at: since,
                instance: restarts,
            }),
            was_running: true,
        };
    }
    let ran = status.container_id.is_some() || state.terminated.is_some() || last.is_some();
    Memory {
        instances: if ran { restarts + 1 } else { 0 },
        last: state.terminated.as_ref().or(last).map(exit),
        was_running: false,
    }
}

/// Kubernetes' times have whole seconds; comparing statuses must not see more.
fn whole_second(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// As Kubernetes names a pod in messages: `web_default(uid)`.
pub(crate) fn full_name(pod: &Pod) -> String {
    let metadata = &pod.metadata;
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!(
        "{}_{}({})",
        part(&metadata.name),
        part(&metadata.namespace),
        part(&metadata.uid)
    )
}

/// When the status will read differently though nothing happens: a pull error turns into the wait for the next try.
pub(crate) fn changes_at(state: &State, now: Timestamp) -> Option<Timestamp> {
    state
        .containers
        .iter()
        .filter_map(|container| match &container.phase {
            Phase::Failed { trouble, at, .. } if trouble.reason == "ErrImagePull" => at
                .saturating_add(SHOW_PULL_ERROR)
                .ok()
                .filter(|at| *at > now),
            _ => None,
        })
        .min()
}

/// Go's way to print: `10s`, `1m20s`, `5m0s`.
pub(crate) fn duration(duration: std::time::Duration) -> String {
    match duration.as_secs() {
        seconds if seconds < 60 => format!("{seconds}s"),
        seconds => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests;

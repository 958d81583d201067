//! What of a pod's spec its lifecycle depends on. Pure; read once when the pod arrives.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod};

use crate::pods::ephemeral;

#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// Init containers in order, then the main ones, then the ephemeral ones.
    pub(crate) containers: Vec<ContainerRules>,
    pub(crate) grace: Duration,
    pub(crate) active_deadline: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct ContainerRules {
    pub(crate) role: Role,
    pub(crate) restart: RestartPolicy,
    pub(crate) startup_probe: bool,
    pub(crate) readiness_probe: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Runs to its end before the next one.
    Init,
    /// A restartable init container: runs beside all later ones.
    Sidecar,
    Main,
    /// Added while the pod lives; started at once and once, nothing waits for it.
    Ephemeral,
}

/// A year.
const LONGEST_GRACE: Duration = Duration::from_secs(365 * 24 * 60 * 60);

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

impl Rules {
    pub(crate) fn of(pod: &Pod) -> Rules {
        let spec = pod.spec.as_ref();
        let policy = RestartPolicy::named(spec.and_then(|spec| spec.restart_policy.as_deref()))
            .unwrap_or(RestartPolicy::Always);
        let init = spec
            .and_then(|spec| spec.init_containers.as_deref())
            .unwrap_or_default();
        let (main, ephemeral) = spec.map(ephemeral::split).unwrap_or_default();
        let containers = init
            .iter()
            .map(|container| ContainerRules::init(container, policy))
            .chain(
                main.iter()
                    .map(|container| ContainerRules::main(container, policy)),
            )
            .chain(ephemeral.iter().map(|container| {
                ContainerRules::of(container, Role::Ephemeral, RestartPolicy::Never)
            }))
            .collect();
        Rules {
            containers,
            grace: grace(
                spec.and_then(|spec| spec.termination_grace_period_seconds)
                    .unwrap_or(30),
            ),
            active_deadline: seconds(spec.and_then(|spec| spec.active_deadline_seconds)),
        }
    }
}

impl ContainerRules {
    fn init(container: &Container, policy: RestartPolicy) -> ContainerRules {
        let role = match container.restart_policy.as_deref() {
            Some("Always") => Role::Sidecar,
            _ => Role::Init,
        };
        let restart = match (role, policy) {
            (Role::Sidecar, _) => RestartPolicy::Always,
            // A pod that always restarts still runs an init container to its end once.
            (_, RestartPolicy::Always) => RestartPolicy::OnFailure,
            (_, policy) => policy,
        };
        ContainerRules::of(container, role, restart)
    }

    fn main(container: &Container, policy: RestartPolicy) -> ContainerRules {
        let own = RestartPolicy::named(container.restart_policy.as_deref());
        ContainerRules::of(container, Role::Main, own.unwrap_or(policy))
    }

    fn of(container: &Container, role: Role, restart: RestartPolicy) -> ContainerRules {
        ContainerRules {
            role,
            restart,
            startup_probe: container.startup_probe.is_some(),
            readiness_probe: container.readiness_probe.is_some(),
        }
    }
}

impl RestartPolicy {
    fn named(name: Option<&str>) -> Option<RestartPolicy> {
        match name? {
            "Always" => Some(RestartPolicy::Always),
            "OnFailure" => Some(RestartPolicy::OnFailure),
            "Never" => Some(RestartPolicy::Never),
            _ => None,
        }
    }

    pub(crate) fn restarts_after(self, code: i32) -> bool {
        match self {
            RestartPolicy::Always => true,
            RestartPolicy::OnFailure => code != 0,
            RestartPolicy::Never => false,
        }
    }
}

/// A grace period of so many seconds. The API takes any number; a clock does not.
pub(crate) fn grace(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(LONGEST_GRACE)
}

fn seconds(value: Option<i64>) -> Option<Duration> {
    value.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_can_be_added_to_a_clock() {
        assert_eq!(grace(i64::MIN), Duration::ZERO);
        assert_eq!(grace(7), Duration::from_secs(7));
        assert_eq!(grace(i64::MAX), LONGEST_GRACE);
    }
}

//! Questions about a pod that are asked in several places. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceRequirements};

use crate::condition;
use crate::quantity::Quantity;

/// Resource name → amount.
pub type Resources = BTreeMap<String, Quantity>;

/// Phase `Succeeded` or `Failed`: it will never run again.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|s| s.phase.as_deref())
        .unwrap_or("Pending")
}

/// Condition `Ready` is `True`.
pub fn is_ready(pod: &Pod) -> bool {
    condition::is_true(
        pod.status.as_ref().and_then(|s| s.conditions.as_ref()),
        "Ready",
    )
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// What the scheduler reserves for the pod: the larger of the sum over its containers and what its init containers need
/// at any moment, plus overhead. Restartable (sidecar) init containers stay and count with everything after them.
///
/// Worked example: init containers A (sidecar, 100m), B (300m); containers C (200m): while B runs A+B = 400m; later
/// A+C = 300m; so 400m.
pub fn requests(pod: &Pod) -> Resources {
    let Some(spec) = pod.spec.as_ref() else {
        return Resources::new();
    };
    let mut sidecars = Resources::new();
    let mut peak = Resources::new();
    for container in spec.init_containers.iter().flatten() {
        let own = container_requests(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            raise(&mut peak, &sidecars);
        } else {
            let mut now = sidecars.clone();
            add(&mut now, &own);
            raise(&mut peak, &now);
        }
    }
    let mut total = sidecars;
    for container in &spec.containers {
        add(&mut total, &container_requests(container));
    }
    raise(&mut total, &peak);
    if let Some(overhead) = &spec.overhead {
        add(&mut total, &parse(overhead));
    }
    total
}

/// Requests of one container; a limit without a request is its request.
pub fn container_requests(container: &Container) -> Resources {
    let Some(ResourceRequirements {
        requests, limits, ..
    }) = &container.resources
    else {
        return Resources::new();
    };
    let mut own = limits.as_ref().map(parse).unwrap_or_default();
    own.extend(requests.as_ref().map(parse).unwrap_or_default());
    own
}

fn parse<Q>(map: &BTreeMap<String, Q>) -> Resources
where
    for<'a> Quantity: TryFrom<&'a Q>,
{
    map.iter()
        .filter_map(|(name, amount)| Some((name.clone(), Quantity::try_from(amount).ok()?)))
        .collect()
}

fn add(to: &mut Resources, from: &Resources) {
    for (name, amount) in from {
        *to.entry(name.clone()).or_default() += *amount;
    }
}

fn raise(to: &mut Resources, least: &Resources) {
    for (name, amount) in least {
        let entry = to.entry(name.clone()).or_default();
        *entry = (*entry).max(*amount);
    }
}

/// `(host IP, protocol, port)` of every host port the pod wants; host IP empty means all.
pub fn host_ports(pod: &Pod) -> impl Iterator<Item = (&str, &str, i32)> {
    let spec = pod.spec.as_ref();
    let containers = spec
        .into_iter()
        .flat_map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    containers
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|port| {
            let host = port.host_port.filter(|p| *p > 0)?;
            Some((
                port.host_ip.as_deref().unwrap_or(""),
                port.protocol.as_deref().unwrap_or("TCP"),
                host,
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(json).expect("the test's pod is well formed")
    }

    #[test]
    fn sidecars_count_with_what_follows_them() {
        let pod = pod(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "a", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "300m"}}}],
            "containers": [{"name": "c", "resources": {"limits": {"cpu": "200m", "memory": "1Gi"}}}]}}));
        let requests = requests(&pod);
        assert_eq!(requests["cpu"].millis(), 400);
        assert_eq!(requests["memory"].to_string(), "1Gi");
    }

    #[test]
    fn a_pod_without_status_is_pending() {
        let pod = pod(serde_json::json!({"spec": {"containers": []}}));
        assert_eq!(phase(&pod), "Pending");
        assert!(!is_terminal(&pod) && !is_ready(&pod));
    }
}

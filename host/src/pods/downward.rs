//! The downward API: fields of a pod and resources of a container as strings. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use types::quantity::Quantity;

/// What a guest may be told about where it runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) pod_ip: String,
    pub(crate) host_ip: String,
    /// Stands in for limits a container does not set.
    pub(crate) allocatable: BTreeMap<String, Quantity>,
}

/// The value at `path` (`metadata.name`, `metadata.labels['app']`, `status.podIP`), or `None` for a path that does not exist.
pub(crate) fn field(pod: &Pod, around: &Surroundings, path: &str) -> Option<String> {
    let metadata = &pod.metadata;
    if let Some(key) = key_of(path, "metadata.labels") {
        return Some(
            metadata
                .labels
                .as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default(),
        );
    }
    if let Some(key) = key_of(path, "metadata.annotations") {
        return Some(
            metadata
                .annotations
                .as_ref()
                .and_then(|map| map.get(key))
                .cloned()
                .unwrap_or_default(),
        );
    }
    let text = |value: &Option<String>| Some(value.clone().unwrap_or_default());
    let spec = pod.spec.as_ref()?;
    match path {
        "metadata.name" => text(&metadata.name),
        "metadata.namespace" => text(&metadata.namespace),
        "metadata.uid" => text(&metadata.uid),
        "metadata.labels" => Some(lines(metadata.labels.as_ref())),
        "metadata.annotations" => Some(lines(metadata.annotations.as_ref())),
        "spec.nodeName" => text(&spec.node_name),
        "spec.serviceAccountName" => text(&spec.service_account_name),
        "status.hostIP" | "status.hostIPs" => Some(around.host_ip.clone()),
        "status.podIP" | "status.podIPs" => Some(around.pod_ip.clone()),
        _ => None,
    }
}

/// `limits.cpu` and its like, divided and rounded up as Kubernetes does. `own` is the container that asks.
pub(crate) fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    around: &Surroundings,
) -> Result<String, String> {
    let spec = pod.spec.as_ref();
    let containers = || {
        spec.into_iter().flat_map(|spec| {
            spec.init_containers
                .iter()
                .flatten()
                .chain(&spec.containers)
        })
    };
    let container = match selector
        .container_name
        .as_deref()
        .filter(|name| !name.is_empty())
    {
        Some(name) => containers()
            .find(|container| container.name == name)
            .ok_or_else(|| format!("container {name} not found"))?,
        None => own.ok_or("resourceFieldRef.containerName is required")?,
    };
    let (kind, name) = selector
        .resource
        .split_once('.')
        .filter(|(kind, _)| matches!(*kind, "limits" | "requests"))
        .ok_or_else(|| format!("unsupported container resource : {}", selector.resource))?;
    let resources = container.resources.as_ref();
    let limits = resources.and_then(|resources| resources.limits.as_ref());
    let requests = resources.and_then(|resources| resources.requests.as_ref());
    let declared = match kind {
        "limits" => limits.and_then(|map| map.get(name)),
        _ => requests
            .and_then(|map| map.get(name))
            .or(limits.and_then(|map| map.get(name))),
    };
    let amount = declared.and_then(|quantity| Quantity::try_from(quantity).ok());
    let amount = match (amount, kind) {
        (Some(amount), _) => amount,
        (None, "limits") => around.allocatable.get(name).copied().unwrap_or_default(),
        (None, _) => Quantity::default(),
    };
    let divisor = selector
        .divisor
        .as_ref()
        .and_then(|quantity| Quantity::try_from(quantity).ok())
        .filter(|quantity| !quantity.is_zero())
        .unwrap_or_else(|| Quantity::from_units(1));
    Ok(divided(name, amount, divisor).to_string())
}

/// CPU counts in thousandths, everything else in units; the quotient is rounded up.
fn divided(name: &str, amount: Quantity, divisor: Quantity) -> i64 {
    let (amount, divisor) = match name {
        "cpu" => (amount.millis(), divisor.millis()),
        _ => (amount.units(), divisor.units()),
    };
    let divisor = divisor.max(1);
    amount / divisor + i64::from(amount % divisor > 0)
}

fn key_of<'a>(path: &'a str, map: &str) -> Option<&'a str> {
    path.strip_prefix(map)?
        .strip_prefix("['")?
        .strip_suffix("']")
}

/// One `key="value"` per line, sorted, the value quoted as Go quotes.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", serde_json::Value::String(value.clone())))
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "web", "namespace": "default", "labels": {"app": "a\"b", "tier": "x"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "app", "resources":
                {"limits": {"cpu": "1500m", "memory": "64Mi"}, "requests": {"cpu": "250m"}}}]}}))
        .expect("the test's pod is well formed")
    }

    #[test]
    fn fields_by_path() {
        let around = Surroundings {
            pod_ip: "100.64.0.2".to_owned(),
            ..Surroundings::default()
        };
        let at = |path| field(&pod(), &around, path);
        assert_eq!(at("metadata.name").as_deref(), Some("web"));
        assert_eq!(at("metadata.labels['tier']").as_deref(), Some("x"));
        assert_eq!(
            at("metadata.labels").as_deref(),
            Some("app=\"a\\\"b\"\ntier=\"x\"")
        );
        assert_eq!(at("status.podIP").as_deref(), Some("100.64.0.2"));
        assert_eq!(at("spec.nonsense"), None);
    }

    #[test]
    fn resources_are_divided_and_rounded_up() {
        let around = Surroundings {
            allocatable: BTreeMap::from([("memory".to_owned(), Quantity::from_bytes(1 << 30))]),
            ..Surroundings::default()
        };
        let pod = pod();
        let own = pod.spec.as_ref().and_then(|spec| spec.containers.first());
        let at = |resource_name: &str, divisor: &str| {
            let selector = serde_json::json!({"resource": resource_name, "divisor": divisor});
            resource(
                &pod,
                own,
                &serde_json::from_value(selector).expect("well formed"),
                &around,
            )
        };
        assert_eq!(at("limits.cpu", "1"), Ok("2".to_owned()));
        assert_eq!(at("limits.cpu", "1m"), Ok("1500".to_owned()));
        assert_eq!(at("requests.cpu", "1m"), Ok("250".to_owned()));
        assert_eq!(at("limits.memory", "1Mi"), Ok("64".to_owned()));
        assert!(at("speed", "1").is_err());
    }
}

//! Ephemeral containers: taken on as the last of a pod's containers, so that everything that goes by a container's place
//! works for them, too. PURE.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// Once for every version of a pod that arrives: its `spec.containers` end with its ephemeral ones from here on.
/// `targetContainerName` says nothing here: the containers of a pod share no processes.
pub(super) fn adopt(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    for ephemeral in spec.ephemeral_containers.iter().flatten() {
        // The same fields by the same names, and one more.
        let container = serde_json::to_value(ephemeral).and_then(serde_json::from_value);
        let container = container.unwrap_or_else(|_| Container {
            name: ephemeral.name.clone(),
            ..Container::default()
        });
        spec.containers.push(container);
    }
}

/// Of an adopted spec: its own containers, and its ephemeral ones.
pub(super) fn split(spec: &PodSpec) -> (&[Container], &[Container]) {
    let ephemeral = spec.ephemeral_containers.as_ref().map_or(0, Vec::len);
    let own = spec.containers.len().saturating_sub(ephemeral);
    spec.containers.split_at(own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ephemeral_containers_come_last_and_are_told_apart() {
        let mut pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"name": "app"}],
            "ephemeralContainers": [{"name": "debug", "image": "busybox", "stdin": true,
                "command": ["sh"], "targetContainerName": "app"}]}}))
        .expect("the test's pod is well formed");
        adopt(&mut pod);
        let spec = pod.spec.expect("a spec");
        let (own, ephemeral) = split(&spec);
        assert_eq!(own[0].name, "app");
        assert_eq!((own.len(), ephemeral.len()), (1, 1));
        assert_eq!(ephemeral[0].image.as_deref(), Some("busybox"));
        assert_eq!(ephemeral[0].stdin, Some(true));
        assert_eq!(
            ephemeral[0].command.as_deref(),
            Some(&["sh".to_owned()][..])
        );
    }
}

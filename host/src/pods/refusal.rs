//! What a pod may ask that this node does not have: each field is named, nothing is silently left out. Pure.

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod, PodSpec, Probe, Volume};

use super::ephemeral;

/// Reason of a pod that was refused: `status.reason` and the Event.
pub(crate) const REASON: &str = "Unsupported";

/// Every field of the spec this node cannot honour; empty when the pod can run. Ephemeral containers have no say: they come
/// to a pod that runs, and one that cannot start fails alone ([`of_container`]).
pub(crate) fn refusals(pod: &Pod) -> Vec<String> {
    let mut refusals = Refusals::default();
    if let Some(spec) = &pod.spec {
        refusals.pod(spec);
        for (index, container) in spec.init_containers.iter().flatten().enumerate() {
            refusals.container(&format!("spec.initContainers[{index}]"), container);
        }
        let (own, _) = ephemeral::split(spec);
        for (index, container) in own.iter().enumerate() {
            refusals.container(&format!("spec.containers[{index}]"), container);
        }
        for (index, volume) in spec.volumes.iter().flatten().enumerate() {
            refusals.volume(&format!("spec.volumes[{index}]"), volume);
        }
    }
    refusals.found
}

/// The same of one container that was added to a pod that runs.
pub(crate) fn of_container(container: &Container) -> Vec<String> {
    let mut refusals = Refusals::default();
    refusals.container(&format!("container {}", container.name), container);
    refusals.found
}

/// Reason of the Event that tells of what is honoured only in part.
pub(crate) const PARTLY: &str = "PartlySupported";

/// What the pod gets otherwise than it asks, though it can run: told in an Event, field by field.
pub(crate) fn remarks(pod: &Pod) -> Vec<String> {
    let mut remarks = Refusals::default();
    let Some(spec) = &pod.spec else {
        return remarks.found;
    };
    let dns = spec
        .dns_config
        .as_ref()
        .and_then(|dns| dns.nameservers.as_ref());
    remarks.when(
        dns.is_some_and(|servers| !servers.is_empty()),
        "spec.dnsConfig.nameservers",
        "names are resolved by the node",
    );
    for (index, volume) in spec.volumes.iter().flatten().enumerate() {
        let empty_dir = volume.empty_dir.as_ref();
        let medium = empty_dir.and_then(|source| source.medium.as_deref());
        remarks.when(
            medium.is_some_and(|medium| !medium.is_empty()),
            &format!("spec.volumes[{index}].emptyDir.medium"),
            "the volume is kept on the node's disk",
        );
    }
    let all = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    for container in all {
        let path = container.termination_message_path.as_deref();
        remarks.when(
            path.is_some_and(|path| path != "/dev/termination-log"),
            &format!("terminationMessagePath of container {}", container.name),
            "the message of a trap or the end of the log is taken instead",
        );
    }
    remarks.found
}

#[derive(Default)]
struct Refusals {
    found: Vec<String>,
}

impl Refusals {
    fn when(&mut self, asked: bool, field: &str, why: &str) {
        if asked {
            self.found.push(format!("{field}: {why}"));
        }
    }

    fn pod(&mut self, spec: &PodSpec) {
        const SANDBOX: &str = "a Wasm pod has no kernel namespace to share";
        self.when(
            spec.host_network == Some(true),
            "spec.hostNetwork",
            "pods of this node have the virtual network only",
        );
        self.when(spec.host_pid == Some(true), "spec.hostPID", SANDBOX);
        self.when(spec.host_ipc == Some(true), "spec.hostIPC", SANDBOX);
        self.when(
            spec.share_process_namespace == Some(true),
            "spec.shareProcessNamespace",
            SANDBOX,
        );
        let claims = spec
            .resource_claims
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        self.when(claims, "spec.resourceClaims", NOT_YET);
        let class = spec
            .runtime_class_name
            .as_deref()
            .is_some_and(|name| !name.is_empty());
        self.when(class, "spec.runtimeClassName", NOT_YET);
        let windows = spec.os.as_ref().is_some_and(|os| os.name != "linux");
        self.when(windows, "spec.os.name", "only linux pods run here");
    }

    fn container(&mut self, at: &str, container: &Container) {
        let field = |name: &str| format!("{at}.{name}");
        let privileged = container
            .security_context
            .as_ref()
            .is_some_and(|context| context.privileged == Some(true));
        self.when(
            privileged,
            &field("securityContext.privileged"),
            "a Wasm guest cannot have the machine's privileges",
        );
        let devices = container
            .volume_devices
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        self.when(devices, &field("volumeDevices"), NOT_YET);
        let rules = container
            .restart_policy_rules
            .as_ref()
            .is_some_and(|list| !list.is_empty());
        self.when(rules, &field("restartPolicyRules"), NOT_YET);
        for (name, probe) in [
            ("startupProbe", &container.startup_probe),
            ("readinessProbe", &container.readiness_probe),
            ("livenessProbe", &container.liveness_probe),
        ] {
            if let Some(probe) = probe {
                self.probe(&field(name), probe);
            }
        }
        if let Some(lifecycle) = &container.lifecycle {
            self.hook(&field("lifecycle.postStart"), lifecycle.post_start.as_ref());
            self.hook(&field("lifecycle.preStop"), lifecycle.pre_stop.as_ref());
            self.when(
                lifecycle.stop_signal.is_some(),
                &field("lifecycle.stopSignal"),
                "Wasm guests know no signals",
            );
        }
        for (index, port) in container.ports.iter().flatten().enumerate() {
            let host = port.host_port.is_some_and(|port| port > 0);
            self.when(host, &field(&format!("ports[{index}].hostPort")), NOT_YET);
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            self.when(
                protocol == "SCTP",
                &field(&format!("ports[{index}].protocol")),
                "SCTP is not offered",
            );
        }
        let resources = container.resources.as_ref();
        let claims = resources
            .and_then(|resources| resources.claims.as_ref())
            .is_some_and(|list| !list.is_empty());
        self.when(claims, &field("resources.claims"), NOT_YET);
        let limits = resources.and_then(|resources| resources.limits.as_ref());
        for name in limits.into_iter().flat_map(|limits| limits.keys()) {
            let known = matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage");
            self.when(
                !known,
                &field(&format!("resources.limits[{name}]")),
                "this node has no such resource",
            );
        }
        for (index, source) in container.env.iter().flatten().enumerate() {
            let file = source
                .value_from
                .as_ref()
                .is_some_and(|from| from.file_key_ref.is_some());
            self.when(
                file,
                &field(&format!("env[{index}].valueFrom.fileKeyRef")),
                NOT_YET,
            );
        }
    }

    fn probe(&mut self, at: &str, probe: &Probe) {
        self.when(probe.grpc.is_some(), &format!("{at}.grpc"), NOT_YET);
        let https = probe
            .http_get
            .as_ref()
            .is_some_and(|get| get.scheme.as_deref() == Some("HTTPS"));
        self.when(
            https,
            &format!("{at}.httpGet.scheme"),
            "guests serve plain HTTP",
        );
    }

    fn hook(&mut self, at: &str, hook: Option<&LifecycleHandler>) {
        let Some(hook) = hook else { return };
        let https = hook
            .http_get
            .as_ref()
            .is_some_and(|get| get.scheme.as_deref() == Some("HTTPS"));
        self.when(
            https,
            &format!("{at}.httpGet.scheme"),
            "guests serve plain HTTP",
        );
    }

    fn volume(&mut self, at: &str, volume: &Volume) {
        let json = serde_json::to_value(volume).unwrap_or_default();
        let kinds = json
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys())
            .filter(|key| *key != "name");
        for kind in kinds {
            let known = matches!(
                kind.as_str(),
                "configMap" | "secret" | "emptyDir" | "downwardAPI" | "projected" | "hostPath"
            );
            self.when(!known, &format!("{at}.{kind}"), NOT_YET);
        }
        let sources = volume
            .projected
            .iter()
            .flat_map(|projected| projected.sources.iter().flatten());
        for (index, source) in sources.enumerate() {
            let field = |name: &str| format!("{at}.projected.sources[{index}].{name}");
            self.when(
                source.cluster_trust_bundle.is_some(),
                &field("clusterTrustBundle"),
                NOT_YET,
            );
            self.when(
                source.pod_certificate.is_some(),
                &field("podCertificate"),
                NOT_YET,
            );
        }
        let host = volume
            .host_path
            .as_ref()
            .and_then(|host| host.type_.as_deref())
            .unwrap_or_default();
        let directory = matches!(host, "" | "Directory" | "DirectoryOrCreate");
        self.when(
            !directory,
            &format!("{at}.hostPath.type"),
            "guests see directories only",
        );
    }
}

const NOT_YET: &str = "not supported by this node yet";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value) -> Vec<String> {
        let pod = serde_json::json!({"metadata": {"name": "web"}, "spec": spec});
        let found = refusals(&serde_json::from_value(pod).expect("the test's pod is well formed"));
        found
            .iter()
            .map(|refusal| refusal.split(": ").next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn an_ordinary_pod_is_not_refused() {
        let refused = check(serde_json::json!({
            "securityContext": {"runAsNonRoot": true},
            "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "configMap": {"name": "c"}}],
            "containers": [{"name": "app", "readinessProbe": {"httpGet": {"port": 80}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                "stdin": true, "tty": true,
                "livenessProbe": {"exec": {"command": ["true"]}},
                "lifecycle": {"preStop": {"sleep": {"seconds": 1}}, "postStart": {"exec": {"command": ["true"]}}},
                "resources": {"limits": {"cpu": "1", "memory": "1Mi"}}}]}));
        assert!(refused.is_empty(), "{refused:?}");
    }

    #[test]
    fn a_debug_container_that_cannot_run_does_not_take_its_pod_with_it() {
        let privileged =
            serde_json::json!({"name": "debug", "securityContext": {"privileged": true}});
        let mut pod: Pod = serde_json::from_value(serde_json::json!({"spec": {
            "containers": [{"name": "app"}], "ephemeralContainers": [privileged]}}))
        .expect("the test's pod is well formed");
        // As a node that starts finds it.
        ephemeral::adopt(&mut pod);
        assert!(refusals(&pod).is_empty());
        let last = pod.spec.as_ref().and_then(|spec| spec.containers.last());
        assert_eq!(of_container(last.expect("adopted")).len(), 1);
    }

    #[test]
    fn what_is_honoured_in_part_is_remarked() {
        let pod = serde_json::json!({"spec": {
            "volumes": [{"name": "a", "emptyDir": {"medium": "Memory"}}],
            "containers": [{"name": "app"}]}});
        let remarks = remarks(&serde_json::from_value(pod).expect("the test's pod is well formed"));
        assert_eq!(
            remarks,
            ["spec.volumes[0].emptyDir.medium: the volume is kept on the node's disk"]
        );
    }

    #[test]
    fn every_unsupported_field_is_named() {
        let refused = check(serde_json::json!({
            "hostNetwork": true,
            "volumes": [{"name": "a", "persistentVolumeClaim": {"claimName": "x"}}],
            "containers": [{"name": "app",
                "livenessProbe": {"grpc": {"port": 80}},
                "lifecycle": {"stopSignal": "SIGHUP"},
                "resources": {"limits": {"nvidia.com/gpu": "1"}}}]}));
        assert_eq!(
            refused,
            [
                "spec.hostNetwork",
                "spec.containers[0].livenessProbe.grpc",
                "spec.containers[0].lifecycle.stopSignal",
                "spec.containers[0].resources.limits[nvidia.com/gpu]",
                "spec.volumes[0].persistentVolumeClaim"
            ]
        );
    }
}

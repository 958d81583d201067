//! The defaults of a pod's spec, shared by pods and everything that has a pod template. Pure and idempotent.

use serde_json::{Map, Value};

use super::path::{put, walk_mut};
use super::quantities;
use super::rules::Literal::{Bool, EmptyObject, Number, Text};
use super::rules::{Defaults, apply_defaults};
use crate::object::Object;

/// The three lists of containers in a pod's spec.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

const SPEC: Defaults = &[
    ("restartPolicy", Text("Always")),
    ("terminationGracePeriodSeconds", Number(30)),
    ("dnsPolicy", Text("ClusterFirst")),
    ("securityContext", EmptyObject),
    ("schedulerName", Text("default-scheduler")),
];

const CONTAINER: Defaults = &[
    ("resources", EmptyObject),
    ("terminationMessagePath", Text("/dev/termination-log")),
    ("terminationMessagePolicy", Text("File")),
    ("ports[].protocol", Text("TCP")),
    ("env[].valueFrom?.fieldRef?.apiVersion", Text("v1")),
    ("env[].valueFrom?.resourceFieldRef?.divisor", Text("0")),
];

const PROBE: Defaults = &[
    ("timeoutSeconds", Number(1)),
    ("periodSeconds", Number(10)),
    ("successThreshold", Number(1)),
    ("failureThreshold", Number(3)),
    ("httpGet?.path", Text("/")),
    ("httpGet?.scheme", Text("HTTP")),
    ("grpc?.service", Text("")),
];

const HANDLER: Defaults = &[
    ("httpGet?.path", Text("/")),
    ("httpGet?.scheme", Text("HTTP")),
];

const VOLUME: Defaults = &[
    ("secret?.defaultMode", Number(0o644)),
    ("configMap?.defaultMode", Number(0o644)),
    ("downwardAPI?.defaultMode", Number(0o644)),
    ("downwardAPI?.items[].fieldRef?.apiVersion", Text("v1")),
    ("downwardAPI?.items[].resourceFieldRef?.divisor", Text("0")),
    ("projected?.defaultMode", Number(0o644)),
    (
        "projected?.sources[].downwardAPI?.items[].fieldRef?.apiVersion",
        Text("v1"),
    ),
    (
        "projected?.sources[].downwardAPI?.items[].resourceFieldRef?.divisor",
        Text("0"),
    ),
    (
        "projected?.sources[].serviceAccountToken?.expirationSeconds",
        Number(3600),
    ),
    ("hostPath?.type", Text("")),
    (
        "ephemeral?.volumeClaimTemplate?.spec?.volumeMode",
        Text("Filesystem"),
    ),
    ("iscsi?.iscsiInterface", Text("default")),
    ("rbd?.pool", Text("rbd")),
    ("rbd?.user", Text("admin")),
    ("rbd?.keyring", Text("/etc/ceph/keyring")),
    ("azureDisk?.cachingMode", Text("ReadWrite")),
    ("azureDisk?.kind", Text("Shared")),
    ("azureDisk?.fsType", Text("ext4")),
    ("azureDisk?.readOnly", Bool(false)),
    ("scaleIO?.storageMode", Text("ThinProvisioned")),
    ("scaleIO?.fsType", Text("xfs")),
];

/// The defaults of the template at `path` (`["spec", "template"]`), if it is there.
pub fn default_template(object: &mut Object, path: &[&str]) {
    if let Some(template) = object.at_mut(path).and_then(Value::as_object_mut) {
        let spec = template
            .entry("spec")
            .or_insert_with(|| Value::Object(Map::new()));
        default_spec(spec);
    }
}

/// The defaults that pods and templates share.
pub fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    apply_defaults(spec, SPEC);
    mirror_service_account(spec);
    for list in CONTAINER_LISTS {
        walk_mut(spec, &format!("{list}[]"), &mut default_container);
    }
    walk_mut(spec, "volumes[]", &mut default_volume);
}

/// The defaults of a pod alone, templates do without: links to services, requests from limits, host ports.
pub fn default_pod_spec(spec: &mut Value) {
    default_spec(spec);
    apply_defaults(spec, &[("enableServiceLinks", Bool(true))]);
    let on_host = spec["hostNetwork"] == true;
    for list in CONTAINER_LISTS {
        walk_mut(spec, &format!("{list}[].resources"), &mut |resources| {
            if let Value::Object(resources) = resources {
                quantities::default_requests(resources);
            }
        });
        if on_host {
            walk_mut(spec, &format!("{list}[].ports[]"), &mut default_host_port);
        }
    }
}

fn default_host_port(port: &mut Value) {
    let Value::Object(port) = port else { return };
    let unset = port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0;
    if let (true, Some(number)) = (unset, port.get("containerPort").cloned()) {
        port.insert("hostPort".to_owned(), number);
    }
}

/// `serviceAccount` is the old name of `serviceAccountName`: both are always shown, the new one wins.
fn mirror_service_account(spec: &mut Value) {
    let text = |key: &str| spec[key].as_str().filter(|name| !name.is_empty());
    let name = text("serviceAccountName").or(text("serviceAccount"));
    if let Some(name) = name.map(Value::from) {
        put(spec, "serviceAccountName", name.clone());
        put(spec, "serviceAccount", name);
    }
}

fn default_container(container: &mut Value) {
    if !container.is_object() {
        return;
    }
    apply_defaults(container, CONTAINER);
    let policy = pull_policy(container["image"].as_str().unwrap_or_default());
    apply_defaults(container, &[("imagePullPolicy", Text(policy))]);
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        walk_mut(container, probe, &mut |probe| apply_defaults(probe, PROBE));
    }
    for handler in ["lifecycle.postStart", "lifecycle.preStop"] {
        walk_mut(container, handler, &mut |handler| {
            apply_defaults(handler, HANDLER);
        });
    }
}

/// `Always` for the tag `latest` and for no tag at all, else `IfNotPresent`; a digest pins.
fn pull_policy(image: &str) -> &'static str {
    if image.contains('@') {
        return "IfNotPresent";
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    match last.split_once(':') {
        None | Some((_, "latest")) => "Always",
        Some(_) => "IfNotPresent",
    }
}

fn default_volume(volume: &mut Value) {
    let Value::Object(map) = volume else { return };
    let has_source = map
        .iter()
        .any(|(key, value)| key != "name" && !value.is_null());
    if !has_source {
        map.insert("emptyDir".to_owned(), Value::Object(Map::new()));
    }
    if let Some(Value::Object(image)) = map.get_mut("image") {
        let policy = pull_policy(
            image
                .get("reference")
                .and_then(Value::as_str)
                .unwrap_or_default(),
        );
        image.entry("pullPolicy").or_insert_with(|| policy.into());
    }
    apply_defaults(volume, VOLUME);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        let cases = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
        ];
        for (image, policy) in cases {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn a_template_gets_the_observed_defaults_and_no_more() {
        let mut spec = json!({"containers": [{"name": "c", "image": "x"}]});
        default_spec(&mut spec);
        assert_eq!(
            spec,
            json!({
                "containers": [{
                    "name": "c", "image": "x", "resources": {}, "terminationMessagePath": "/dev/termination-log",
                    "terminationMessagePolicy": "File", "imagePullPolicy": "Always",
                }],
                "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
                "securityContext": {}, "schedulerName": "default-scheduler",
            })
        );
    }

    #[test]
    fn probes_volumes_and_ports_get_theirs() {
        let mut spec = json!({
            "serviceAccount": "a", "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "x:1", "ports": [{"containerPort": 80}],
                "readinessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"cpu": "1"}},
            }],
            "volumes": [{"name": "a"}, {"name": "b", "configMap": {"name": "m"}}, {"name": "h", "hostPath": {"path": "/x"}}],
        });
        default_pod_spec(&mut spec);
        assert_eq!(spec["serviceAccountName"], "a");
        assert_eq!(spec["enableServiceLinks"], true);
        let container = &spec["containers"][0];
        assert_eq!(
            container["ports"][0],
            json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"})
        );
        assert_eq!(
            container["readinessProbe"],
            json!({
                "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
            })
        );
        assert_eq!(container["resources"]["requests"], json!({"cpu": "1"}));
        assert_eq!(spec["volumes"][0], json!({"name": "a", "emptyDir": {}}));
        assert_eq!(spec["volumes"][1]["configMap"]["defaultMode"], 420);
        assert_eq!(spec["volumes"][2]["hostPath"]["type"], "");
    }
}

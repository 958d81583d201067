//! The containers of a pod's spec: names, images, ports, environment, mounts, probes, resources. Pure.

use serde_json::Value;

use super::volumes::field_path;
use crate::kinds::path::{Path, walk};
use crate::kinds::rules::Check::{
    Between, Name, NotNegative, OneOf, Port, Required, RequiredPort, Unique, With,
};
use crate::kinds::rules::{Checks, check};
use crate::kinds::{names, quantities};
use crate::status::Cause;

/// Of every container, after its name and image.
const CONTAINER: Checks = &[
    ("ports[].name", Name(names::port_name)),
    ("ports", Unique("name")),
    ("ports[].containerPort", RequiredPort),
    ("ports[].hostPort", Between(0, 65535)),
    ("ports[].protocol", Required),
    ("ports[].protocol", OneOf(&["SCTP", "TCP", "UDP"])),
    ("env[].name", Required),
    ("env[].name", Name(names::env_name)),
    ("env[]", With(environment)),
    ("envFrom[]", With(environment_source)),
    ("imagePullPolicy", Required),
    (
        "imagePullPolicy",
        OneOf(&["Always", "IfNotPresent", "Never"]),
    ),
    (
        "terminationMessagePolicy",
        OneOf(&["FallbackToLogsOnError", "File"]),
    ),
    ("restartPolicy", OneOf(&["Always", "Never", "OnFailure"])),
    ("resources", With(quantities::check_requirements)),
    ("readinessProbe", With(probe)),
    ("livenessProbe", With(probe)),
    ("livenessProbe.successThreshold", With(only_one)),
    ("startupProbe", With(probe)),
    ("startupProbe.successThreshold", With(only_one)),
    ("lifecycle.postStart", With(handler)),
    ("lifecycle.preStop", With(handler)),
    ("securityContext.runAsUser", NotNegative),
    ("securityContext.runAsGroup", NotNegative),
];

const PROBE: Checks = &[
    ("initialDelaySeconds", NotNegative),
    ("timeoutSeconds", NotNegative),
    ("periodSeconds", NotNegative),
    ("successThreshold", NotNegative),
    ("failureThreshold", NotNegative),
    ("terminationGracePeriodSeconds", With(at_least_a_second)),
];

const HANDLER: Checks = &[
    ("exec.command", Required),
    ("httpGet.path", Required),
    ("httpGet.port", With(port_or_name)),
    ("httpGet.scheme", OneOf(&["HTTP", "HTTPS"])),
    ("httpGet.httpHeaders[].name", Name(header_name)),
    ("tcpSocket.port", With(port_or_name)),
    ("grpc.port", Port),
    ("sleep.seconds", NotNegative),
];
const HANDLERS: [&str; 5] = ["exec", "httpGet", "tcpSocket", "grpc", "sleep"];

/// What an environment variable may say of its pod.
const FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];
const RESOURCES: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

pub(super) fn validate(path: &Path<'_>, spec: &Value, volumes: &[&str], causes: &mut Vec<Cause>) {
    let mut seen: Vec<&str> = Vec::new();
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required(path.key("containers"), ""));
    }
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        let list_path = path.key(list);
        for (i, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let path = list_path.index(i);
            identity(&path, container, &mut seen, causes);
            check(CONTAINER, &path, container, causes);
            mounts(&path, container, volumes, causes);
            if list == "initContainers" {
                init(&path, container, causes);
            }
        }
    }
    host_ports(path, spec, causes);
}

fn identity<'v>(
    path: &Path<'_>,
    container: &'v Value,
    seen: &mut Vec<&'v str>,
    causes: &mut Vec<Cause>,
) {
    let name = container["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        causes.push(Cause::required(path.key("name"), ""));
    } else {
        for why in names::dns_label(name) {
            causes.push(Cause::invalid(path.key("name"), &name.into(), &why));
        }
        if seen.contains(&name) {
            causes.push(Cause::duplicate(path.key("name"), &name.into()));
        }
        seen.push(name);
    }
    image(path, container, causes);
}

/// An image is named, without blanks around it.
pub(in crate::kinds) fn image(path: &Path<'_>, container: &Value, causes: &mut Vec<Cause>) {
    let image = container["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        causes.push(Cause::required(path.key("image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(path.key("image"), &image.into(), why));
    }
}

/// Init containers end before the others begin, so probes and hooks make no sense, except for sidecars.
fn init(path: &Path<'_>, container: &Value, causes: &mut Vec<Cause>) {
    if container["restartPolicy"] == "Always" {
        return;
    }
    for key in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        if !container[key].is_null() {
            let why = "may not be set for init containers without restartPolicy=Always";
            causes.push(Cause::forbidden(path.key(key), why));
        }
    }
}

fn mounts(path: &Path<'_>, container: &Value, volumes: &[&str], causes: &mut Vec<Cause>) {
    let list_path = path.key("volumeMounts");
    let mut points: Vec<&str> = Vec::new();
    for (i, mount) in container["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = list_path.index(i);
        let text = |key: &str| mount[key].as_str().unwrap_or_default();
        if text("name").is_empty() {
            causes.push(Cause::required(path.key("name"), ""));
        } else if !volumes.contains(&text("name")) {
            causes.push(Cause::not_found(path.key("name"), &mount["name"]));
        }
        if text("mountPath").is_empty() {
            causes.push(Cause::required(path.key("mountPath"), ""));
        } else if points.contains(&text("mountPath")) {
            let why = "must be unique";
            causes.push(Cause::invalid(
                path.key("mountPath"),
                &mount["mountPath"],
                why,
            ));
        }
        points.push(text("mountPath"));
        for key in ["subPath", "subPathExpr"] {
            for why in names::relative_path(text(key)) {
                causes.push(Cause::invalid(path.key(key), &mount[key], &why));
            }
        }
        if !text("subPath").is_empty() && !text("subPathExpr").is_empty() {
            let why = "subPathExpr and subPath are mutually exclusive";
            causes.push(Cause::invalid(
                path.key("subPathExpr"),
                &mount["subPathExpr"],
                why,
            ));
        }
    }
}

fn environment(path: &Path<'_>, variable: &Value, causes: &mut Vec<Cause>) {
    let source = &variable["valueFrom"];
    if source.is_null() {
        return;
    }
    let path = path.key("valueFrom");
    let empty = Value::from("");
    let count = source
        .as_object()
        .map_or(0, |map| map.values().filter(|v| !v.is_null()).count());
    if count == 0 {
        let why = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
        causes.push(Cause::invalid(path, &empty, why));
    } else if variable["value"]
        .as_str()
        .is_some_and(|value| !value.is_empty())
    {
        let why = "may not be specified when `value` is not empty";
        causes.push(Cause::invalid(path, &empty, why));
    } else if count > 1 {
        let why = "may not have more than one field specified at a time";
        causes.push(Cause::invalid(path, &empty, why));
    }
    const SOURCE: Checks = &[
        ("configMapKeyRef.name", Required),
        ("configMapKeyRef.key", Required),
        ("configMapKeyRef.key", Name(names::config_key)),
        ("secretKeyRef.name", Required),
        ("secretKeyRef.key", Required),
        ("secretKeyRef.key", Name(names::config_key)),
        ("resourceFieldRef.resource", Required),
        ("resourceFieldRef.resource", With(resource)),
    ];
    check(SOURCE, &path, source, causes);
    if !source["fieldRef"].is_null() {
        field_path(&path.key("fieldRef"), &source["fieldRef"], FIELDS, causes);
    }
}

fn resource(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let name = value.as_str().unwrap_or_default();
    let huge = name.starts_with("limits.hugepages-") || name.starts_with("requests.hugepages-");
    if !huge && !RESOURCES.contains(&name) {
        causes.push(Cause::not_supported(path, value, RESOURCES));
    }
}

fn environment_source(path: &Path<'_>, source: &Value, causes: &mut Vec<Cause>) {
    let empty = Value::from("");
    match (&source["configMapRef"], &source["secretRef"]) {
        (Value::Null, Value::Null) => {
            let why = "must specify one of: `configMapRef` or `secretRef`";
            causes.push(Cause::invalid(path, &empty, why));
        }
        (Value::Null, _) | (_, Value::Null) => {}
        _ => {
            let why = "may not have more than one field specified at a time";
            causes.push(Cause::invalid(path, &empty, why));
        }
    }
    const SOURCE: Checks = &[
        ("prefix", Name(prefix)),
        ("configMapRef.name", Required),
        ("secretRef.name", Required),
    ];
    check(SOURCE, path, source, causes);
}

fn prefix(text: &str) -> Vec<String> {
    if text.is_empty() {
        Vec::new()
    } else {
        names::env_name(text)
    }
}

fn probe(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    handler(path, value, causes);
    check(PROBE, path, value, causes);
}

fn handler(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let present: Vec<&str> = HANDLERS
        .into_iter()
        .filter(|key| !value[*key].is_null())
        .collect();
    if present.is_empty() {
        causes.push(Cause::required(path, "must specify a handler type"));
    }
    for key in present.iter().skip(1) {
        let why = "may not specify more than 1 handler type";
        causes.push(Cause::forbidden(path.key(key), why));
    }
    check(HANDLER, path, value, causes);
}

fn only_one(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    if value != 1 {
        causes.push(Cause::invalid(path, value, "must be 1"));
    }
}

fn at_least_a_second(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|seconds| seconds <= 0) {
        causes.push(Cause::invalid(path, value, "must be greater than 0"));
    }
}

/// A port by number or by a container port's name.
pub(in crate::kinds) fn port_or_name(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let number = value.as_i64().unwrap_or(0);
    match value {
        Value::String(name) => {
            for why in names::port_name(name) {
                causes.push(Cause::invalid(path, value, &why));
            }
        }
        _ if !(1..=65535).contains(&number) => {
            let why = "must be between 1 and 65535, inclusive";
            causes.push(Cause::invalid(path, value, why));
        }
        _ => {}
    }
}

fn header_name(text: &str) -> Vec<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !text.is_empty() && text.chars().all(fine) {
        return Vec::new();
    }
    vec![
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
         validation is '[-A-Za-z0-9]+')"
            .to_owned(),
    ]
}

/// No host port twice in one pod; on the host's network a container port is its host port.
fn host_ports(path: &Path<'_>, spec: &Value, causes: &mut Vec<Cause>) {
    let on_host = spec["hostNetwork"] == true;
    let mut seen: Vec<String> = Vec::new();
    walk(path, spec, "containers[].ports[]", &mut |path, port| {
        let Some(port) = port else { return };
        let number = port["hostPort"].as_i64().unwrap_or(0);
        if on_host && number != port["containerPort"].as_i64().unwrap_or(0) {
            let why = "must match `hostPort` when `hostNetwork` is true";
            causes.push(Cause::invalid(
                path.key("containerPort"),
                &port["containerPort"],
                why,
            ));
        }
        if number == 0 {
            return;
        }
        let text = |key: &str| port[key].as_str().unwrap_or_default();
        let taken = format!("{}/{}/{number}", text("protocol"), text("hostIP"));
        if seen.contains(&taken) {
            let value = Value::from(taken.as_str());
            causes.push(Cause::duplicate(path.key("hostPort"), &value));
        }
        seen.push(taken);
    });
}

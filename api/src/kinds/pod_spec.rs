//! Validation of a pod's spec, shared by pods and templates. Pure; the words are upstream's.

mod containers;
mod scheduling;
mod volumes;

use serde_json::Value;

pub(super) use containers::{image as validate_image, port_or_name};

use super::path::Path;
use super::rules::Check::{Between, Labels, Name, NotNegative, OneOf, Required, Selector};
use super::rules::{Checks, check};
use super::{label_selector, names};
use crate::status::Cause;

const SPEC: Checks = &[
    ("restartPolicy", Required),
    ("restartPolicy", OneOf(&["Always", "OnFailure", "Never"])),
    ("dnsPolicy", Required),
    (
        "dnsPolicy",
        OneOf(&["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"]),
    ),
    ("nodeSelector", Labels),
    ("nodeName", Name(names::dns_subdomain)),
    ("serviceAccountName", Name(names::dns_subdomain)),
    ("activeDeadlineSeconds", Between(1, 2_147_483_647)),
    ("hostname", Name(names::dns_label)),
    ("subdomain", Name(names::dns_label)),
    ("hostAliases[].ip", Name(names::ip)),
    ("hostAliases[].hostnames[]", Name(names::dns_subdomain)),
    ("imagePullSecrets[].name", Required),
    (
        "readinessGates[].conditionType",
        Name(names::qualified_name),
    ),
    ("priorityClassName", Name(names::dns_subdomain)),
    ("runtimeClassName", Name(names::dns_subdomain)),
    ("schedulerName", Name(names::qualified_name)),
    (
        "preemptionPolicy",
        OneOf(&["Never", "PreemptLowerPriority"]),
    ),
    ("os.name", OneOf(&["linux", "windows"])),
    ("securityContext.runAsUser", NotNegative),
    ("securityContext.runAsGroup", NotNegative),
    ("securityContext.fsGroup", NotNegative),
    ("topologySpreadConstraints[].labelSelector", Selector),
];

/// Everything wrong with the pod spec at `path`.
pub fn validate(path: &Path<'_>, spec: &Value, causes: &mut Vec<Cause>) {
    let volumes = volumes::validate(&path.key("volumes"), &spec["volumes"], causes);
    containers::validate(path, spec, &volumes, causes);
    check(SPEC, path, spec, causes);
    dns_config(path, spec, causes);
    scheduling::validate(path, spec, causes);
}

/// Everything wrong with the pod template at `path`; its pods run for ever unless `runs_once`.
pub fn validate_template(
    path: &Path<'_>,
    template: &Value,
    runs_once: bool,
    causes: &mut Vec<Cause>,
) {
    let metadata = path.key("metadata");
    label_selector::check_labels(
        &metadata.key("labels"),
        &template["metadata"]["labels"],
        causes,
    );
    for key in template["metadata"]["annotations"]
        .as_object()
        .into_iter()
        .flat_map(|map| map.keys())
    {
        for why in names::qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid(
                metadata.key("annotations"),
                &key.as_str().into(),
                &why,
            ));
        }
    }
    let path = path.key("spec");
    let spec = &template["spec"];
    validate(&path, spec, causes);
    let policy = &spec["restartPolicy"];
    let known = matches!(policy.as_str(), Some("Always" | "OnFailure" | "Never"));
    if !runs_once && known && policy != "Always" {
        causes.push(Cause::not_supported(
            path.key("restartPolicy"),
            policy,
            &["Always"],
        ));
    }
    if runs_once && policy == "Always" {
        let why = "valid values: \"OnFailure\", \"Never\"";
        causes.push(Cause::required(path.key("restartPolicy"), why));
    }
    if !runs_once && !spec["activeDeadlineSeconds"].is_null() {
        let why = "activeDeadlineSeconds in ReplicaSet is not Supported";
        causes.push(Cause::forbidden(path.key("activeDeadlineSeconds"), why));
    }
    let debug = spec["ephemeralContainers"].as_array();
    if debug.is_some_and(|list| !list.is_empty()) {
        let why = "ephemeral containers not allowed in pod template";
        causes.push(Cause::forbidden(path.key("ephemeralContainers"), why));
    }
}

fn dns_config(path: &Path<'_>, spec: &Value, causes: &mut Vec<Cause>) {
    let path = path.key("dnsConfig");
    let config = &spec["dnsConfig"];
    let servers = config["nameservers"].as_array().map_or(0, Vec::len);
    if spec["dnsPolicy"] == "None" && servers == 0 {
        let why = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        let field = if config.is_null() {
            path.to_string()
        } else {
            path.key("nameservers").to_string()
        };
        causes.push(Cause::required(field, why));
    }
    if servers > 3 {
        let why = "must not have more than 3 nameservers";
        causes.push(Cause::invalid(
            path.key("nameservers"),
            &config["nameservers"],
            why,
        ));
    }
    check(
        &[
            ("nameservers[]", Name(names::ip)),
            ("options[].name", Required),
        ],
        &path,
        config,
        causes,
    );
}

#[cfg(test)]
mod tests;

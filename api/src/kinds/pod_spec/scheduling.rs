//! Tolerations, affinities and topology spread of a pod's spec. Pure.

use serde_json::Value;

use crate::kinds::names;
use crate::kinds::path::Path;
use crate::kinds::rules::Check::{Name, OneOf, Positive, RequiredWith, Selector};
use crate::kinds::rules::{Checks, check};
use crate::status::Cause;

const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";

const SPREAD: Checks = &[
    ("topologySpreadConstraints[].maxSkew", Positive),
    ("topologySpreadConstraints[].minDomains", Positive),
    (
        "topologySpreadConstraints[].topologyKey",
        RequiredWith("can not be empty"),
    ),
    (
        "topologySpreadConstraints[].whenUnsatisfiable",
        OneOf(&["DoNotSchedule", "ScheduleAnyway"]),
    ),
    (
        "topologySpreadConstraints[].nodeAffinityPolicy",
        OneOf(&["Honor", "Ignore"]),
    ),
    (
        "topologySpreadConstraints[].nodeTaintsPolicy",
        OneOf(&["Honor", "Ignore"]),
    ),
];

/// Of one pod affinity term.
const TERM: Checks = &[
    ("labelSelector", Selector),
    ("namespaceSelector", Selector),
    ("namespaces[]", Name(names::dns_label)),
    ("topologyKey", RequiredWith("can not be empty")),
    ("topologyKey", Name(names::qualified_name)),
];

pub(super) fn validate(path: &Path<'_>, spec: &Value, causes: &mut Vec<Cause>) {
    let tolerations = path.key("tolerations");
    for (i, toleration) in list(&spec["tolerations"]).enumerate() {
        validate_toleration(&tolerations.index(i), toleration, causes);
    }
    check(SPREAD, path, spec, causes);
    let affinity = &spec["affinity"];
    let path = path.key("affinity");
    validate_node_affinity(&path.key("nodeAffinity"), &affinity["nodeAffinity"], causes);
    for kind in ["podAffinity", "podAntiAffinity"] {
        validate_pod_affinity(&path.key(kind), &affinity[kind], causes);
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn validate_toleration(path: &Path<'_>, toleration: &Value, causes: &mut Vec<Cause>) {
    let text = |key: &str| toleration[key].as_str().unwrap_or_default();
    let key = text("key");
    if !key.is_empty() {
        for why in names::qualified_name(key) {
            causes.push(Cause::invalid(path.key("key"), &toleration["key"], &why));
        }
    } else if text("operator") != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(
            path.key("operator"),
            &text("operator").into(),
            why,
        ));
    }
    if !toleration["tolerationSeconds"].is_null() && text("effect") != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(Cause::invalid(
            path.key("effect"),
            &text("effect").into(),
            why,
        ));
    }
    match text("operator") {
        "" | "Equal" => {
            for why in names::label_value(text("value")) {
                causes.push(Cause::invalid(
                    path.key("operator"),
                    &toleration["value"],
                    &why,
                ));
            }
        }
        "Exists" if !text("value").is_empty() => {
            let why = "value must be empty when `operator` is 'Exists'";
            causes.push(Cause::invalid(path.key("operator"), toleration, why));
        }
        "Exists" => {}
        _ => causes.push(Cause::not_supported(
            path.key("operator"),
            &toleration["operator"],
            &["Equal", "Exists"],
        )),
    }
    if !matches!(
        text("effect"),
        "" | "NoSchedule" | "PreferNoSchedule" | "NoExecute"
    ) {
        let allowed = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        causes.push(Cause::not_supported(
            path.key("effect"),
            &toleration["effect"],
            &allowed,
        ));
    }
}

fn validate_node_affinity(path: &Path<'_>, affinity: &Value, causes: &mut Vec<Cause>) {
    let required = &affinity[REQUIRED];
    if !required.is_null() {
        validate_node_selector(&path.key(REQUIRED), required, causes);
    }
    let preferred = path.key(PREFERRED);
    for (i, term) in list(&affinity[PREFERRED]).enumerate() {
        let path = preferred.index(i);
        weight(&path, term, causes);
        validate_node_term(&path.key("preference"), &term["preference"], causes);
    }
}

/// A `core/v1.NodeSelector`, which must have a term.
pub(in crate::kinds) fn validate_node_selector(
    path: &Path<'_>,
    selector: &Value,
    causes: &mut Vec<Cause>,
) {
    let path = path.key("nodeSelectorTerms");
    if list(&selector["nodeSelectorTerms"]).next().is_none() {
        let why = "must have at least one node selector term";
        causes.push(Cause::required(path, why));
    }
    for (i, term) in list(&selector["nodeSelectorTerms"]).enumerate() {
        validate_node_term(&path.index(i), term, causes);
    }
}

fn validate_node_term(path: &Path<'_>, term: &Value, causes: &mut Vec<Cause>) {
    let expressions = path.key("matchExpressions");
    for (i, rule) in list(&term["matchExpressions"]).enumerate() {
        let path = expressions.index(i);
        validate_node_requirement(&path, rule, causes);
        for why in names::qualified_name(rule["key"].as_str().unwrap_or_default()) {
            causes.push(Cause::invalid(path.key("key"), &rule["key"], &why));
        }
    }
    let fields = path.key("matchFields");
    for (i, rule) in list(&term["matchFields"]).enumerate() {
        let path = fields.index(i);
        if rule["key"] != "metadata.name" {
            let why = "not a valid field selector key";
            causes.push(Cause::invalid(path.key("key"), &rule["key"], why));
        }
    }
}

fn validate_node_requirement(path: &Path<'_>, rule: &Value, causes: &mut Vec<Cause>) {
    let count = list(&rule["values"]).count();
    let values = path.key("values");
    match rule["operator"].as_str().unwrap_or_default() {
        "In" | "NotIn" if count == 0 => {
            let why = "must be specified when `operator` is 'In' or 'NotIn'";
            causes.push(Cause::required(values, why));
        }
        "Exists" | "DoesNotExist" if count > 0 => {
            let why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            causes.push(Cause::forbidden(values, why));
        }
        "Gt" | "Lt" if count != 1 => {
            let why = "must be specified single value when `operator` is 'Lt' or 'Gt'";
            causes.push(Cause::required(values, why));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => causes.push(Cause::invalid(
            path.key("operator"),
            &other.into(),
            "not a valid selector operator",
        )),
    }
}

fn validate_pod_affinity(path: &Path<'_>, affinity: &Value, causes: &mut Vec<Cause>) {
    let required = path.key(REQUIRED);
    for (i, term) in list(&affinity[REQUIRED]).enumerate() {
        check(TERM, &required.index(i), term, causes);
    }
    let preferred = path.key(PREFERRED);
    for (i, term) in list(&affinity[PREFERRED]).enumerate() {
        let path = preferred.index(i);
        weight(&path, term, causes);
        check(
            TERM,
            &path.key("podAffinityTerm"),
            &term["podAffinityTerm"],
            causes,
        );
    }
}

fn weight(path: &Path<'_>, term: &Value, causes: &mut Vec<Cause>) {
    let weight = term["weight"].as_i64().unwrap_or(0);
    if !(1..=100).contains(&weight) {
        let why = "must be in the range 1-100";
        causes.push(Cause::invalid(path.key("weight"), &weight.into(), why));
    }
}

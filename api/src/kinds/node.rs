//! Nodes: they register with their status; taints are well formed; what the network was promised does not change.

use serde_json::Value;

use super::names;
use super::rules::Check::{Labels, Name, NameOrEmpty, OneOf, Required};
use super::rules::Rules;
use crate::object::Object;
use crate::status::Cause;

pub static NODE: Rules = Rules {
    default: |new| {
        if let Some(capacity) = new.at(&["status", "capacity"]).cloned() {
            new.set_default(&["status", "allocatable"], capacity);
        }
    },
    keeps_status: true,
    checks: &[
        ("spec.taints[].key", Required),
        ("spec.taints[].key", Name(names::qualified_name)),
        ("spec.taints[].value", NameOrEmpty(names::label_value)),
        ("spec.taints[].effect", Required),
        (
            "spec.taints[].effect",
            OneOf(&["NoSchedule", "PreferNoSchedule", "NoExecute"]),
        ),
        ("spec.podCIDR", NameOrEmpty(names::cidr)),
        ("metadata.labels", Labels),
    ],
    validate: |new, old, _, causes| {
        unique_taints(new, causes);
        if let Some(old) = old {
            kept(
                new,
                old,
                "podCIDR",
                "node updates may not change podCIDR except from \"\" to valid",
                causes,
            );
            kept(
                new,
                old,
                "providerID",
                "node updates may not change providerID except from \"\" to valid",
                causes,
            );
        }
    },
    fields: &["spec.unschedulable"],
    field: |node, name| {
        (name == "spec.unschedulable").then(|| node.bool_at(&["spec", "unschedulable"]).to_string())
    },
    ..Rules::NEW
};

fn unique_taints(new: &Object, causes: &mut Vec<Cause>) {
    let mut seen: Vec<(&Value, &Value)> = Vec::new();
    for (i, taint) in new.list_at(&["spec", "taints"]).iter().enumerate() {
        let identity = (&taint["key"], &taint["effect"]);
        if seen.contains(&identity) {
            causes.push(Cause::duplicate(format!("spec.taints[{i}]"), taint));
        }
        seen.push(identity);
    }
}

/// A text that may be set once.
fn kept(new: &Object, old: &Object, key: &str, why: &str, causes: &mut Vec<Cause>) {
    let of = |object: &Object| object.str_at(&["spec", key]).unwrap_or_default().to_owned();
    let (before, after) = (of(old), of(new));
    if !before.is_empty() && before != after {
        causes.push(Cause::forbidden(format!("spec.{key}"), why));
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, check_update};

    #[test]
    fn taints_are_well_formed_and_differ() {
        check(
            "nodes",
            "{metadata: {name: n}, spec: {taints: [{key: a, effect: NoSchedule}, {key: a, effect: NoSchedule}, {key: b, effect: Never}]}}",
            &[
                "spec.taints[2].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \"NoExecute\"",
                "spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}",
            ],
        );
    }

    #[test]
    fn a_pod_range_is_given_once() {
        check_update(
            "nodes",
            "{metadata: {name: n}, spec: {podCIDR: 10.0.0.0/24}}",
            "{metadata: {name: n}, spec: {podCIDR: 10.0.1.0/24}}",
            &[
                "spec.podCIDR: Forbidden: node updates may not change podCIDR except from \"\" to valid",
            ],
        );
    }
}

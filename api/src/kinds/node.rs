//! Nodes: they register with their status; taints are well formed; what the network was promised does not change, and is
//! said twice in the same words (`podCIDR`, `podCIDRs[0]`).

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

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
        one_range(new);
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
        ("spec.podCIDRs[]", Name(names::cidr)),
        ("metadata.labels", Labels),
    ],
    validate: |new, old, _, causes| {
        unique_taints(new, causes);
        one_per_family(new, causes);
        if let Some(old) = old {
            kept_ranges(new, old, causes);
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

/// Where the two differ the single one counts, for those who know no other.
fn one_range(node: &mut Object) {
    let of = |node: &Object| {
        node.str_at(&["spec", "podCIDR"])
            .unwrap_or_default()
            .to_owned()
    };
    let single = of(node);
    let many = node.list_at(&["spec", "podCIDRs"]);
    let first = many.first().and_then(Value::as_str).map(str::to_owned);
    match first {
        Some(first) if single.is_empty() => node.set(&["spec", "podCIDR"], json!(first)),
        Some(first) if first == single => {}
        _ if single.is_empty() => {}
        _ => node.set(&["spec", "podCIDRs"], json!([single])),
    }
}

fn one_per_family(node: &Object, causes: &mut Vec<Cause>) {
    let ranges = node.list_at(&["spec", "podCIDRs"]);
    let mut families: Vec<bool> = ranges
        .iter()
        .filter_map(|range| range.as_str()?.parse::<IpNet>().ok())
        .map(|range| matches!(range.addr(), IpAddr::V6(_)))
        .collect();
    let count = families.len();
    families.sort_unstable();
    families.dedup();
    if families.len() != count {
        causes.push(Cause::invalid(
            "spec.podCIDRs",
            &Value::from(ranges),
            "may specify no more than one CIDR for each IP family",
        ));
    }
}

/// Given once: others send there what is for this node's pods.
fn kept_ranges(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let (before, after) = (
        old.list_at(&["spec", "podCIDRs"]),
        new.list_at(&["spec", "podCIDRs"]),
    );
    // Written before both were kept alike.
    let single = old.str_at(&["spec", "podCIDR"]).unwrap_or_default();
    let same = match before {
        [] if single.is_empty() => true,
        [] => after.len() == 1 && after[0] == single,
        _ => before == after,
    };
    if !same {
        causes.push(Cause::forbidden(
            "spec.podCIDRs",
            "node updates may not change podCIDR except from \"\" to valid",
        ));
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
    use serde_json::json;

    use crate::kinds::testing::{check, check_update, defaulted};

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
    fn a_pod_range_is_given_once_whichever_field_says_it() {
        let refused = [
            "spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid",
        ];
        let old = "{metadata: {name: n}, spec: {podCIDR: 10.0.0.0/24}}";
        let both = "{metadata: {name: n}, spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.0.0/24]}}";
        check_update("nodes", old, both, &[]);
        check_update("nodes", both, old, &[]);
        for other in [
            "{podCIDR: 10.0.1.0/24}",
            "{podCIDRs: [10.0.1.0/24]}",
            "{podCIDR: 10.0.0.0/24, podCIDRs: [10.0.0.0/24, 'fd00::/64']}",
            "{}",
        ] {
            let new = format!("{{metadata: {{name: n}}, spec: {other}}}");
            check_update("nodes", both, &new, &refused);
        }
        // The single one is what counts, so this changes nothing.
        let split = "{metadata: {name: n}, spec: {podCIDR: 10.0.0.0/24, podCIDRs: [10.0.1.0/24]}}";
        check_update("nodes", both, split, &[]);
    }

    #[test]
    fn both_fields_of_pod_ranges_say_the_same() {
        for (spec, expect) in [
            ("{podCIDR: 10.0.0.0/24}", json!(["10.0.0.0/24"])),
            (
                "{podCIDRs: [10.0.0.0/24, 'fd00::/64']}",
                json!(["10.0.0.0/24", "fd00::/64"]),
            ),
            (
                "{podCIDR: 10.0.0.0/24, podCIDRs: [10.0.1.0/24]}",
                json!(["10.0.0.0/24"]),
            ),
        ] {
            let node = defaulted("nodes", &format!("{{metadata: {{name: n}}, spec: {spec}}}"));
            assert_eq!(node["spec"]["podCIDRs"], expect, "{spec}");
            assert_eq!(node["spec"]["podCIDR"], "10.0.0.0/24", "{spec}");
        }
        check(
            "nodes",
            "{metadata: {name: n}, spec: {podCIDRs: [10.0.0.0/24, 10.0.1.0/24]}}",
            &[
                "spec.podCIDRs: Invalid value: [\"10.0.0.0/24\",\"10.0.1.0/24\"]: may specify no more than one CIDR for each IP family",
            ],
        );
    }
}

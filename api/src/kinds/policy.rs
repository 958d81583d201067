//! Rules about other objects: disruption budgets, quotas, limits, roles, priority and runtime classes.

use serde_json::Value;

use super::path::{Path, put};
use super::rules::Check::{
    Amount, Immutable, Keys, Name, OneOf, Quantity, Required, RequiredWith, Selector, With,
};
use super::rules::Literal::Text;
use super::rules::{Checks, Rules, check, unchanged};
use super::strategy::{Door, NameRule};
use super::{names, quantities};
use crate::object::Object;
use crate::status::Cause;

pub static POD_DISRUPTION_BUDGET: Rules = Rules {
    status: r#"{"disruptionsAllowed":0,"currentHealthy":0,"desiredHealthy":0,"expectedPods":0}"#,
    checks: &[
        ("spec.minAvailable", Amount),
        ("spec.maxUnavailable", Amount),
        ("spec.selector", Selector),
        (
            "spec.unhealthyPodEvictionPolicy",
            OneOf(&["AlwaysAllow", "IfHealthyBudget"]),
        ),
    ],
    validate: |new, _, _, causes| {
        let given = |key: &str| {
            new.at(&["spec", key])
                .is_some_and(|amount| !amount.is_null())
        };
        if given("minAvailable") && given("maxUnavailable") {
            let spec = new.at(&["spec"]).cloned().unwrap_or_default();
            let why = "minAvailable and maxUnavailable cannot be both set";
            causes.push(Cause::invalid("spec", &spec, why));
        }
    },
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

pub static RESOURCE_QUOTA: Rules = Rules {
    status: "{}",
    checks: &[
        ("spec.hard", Keys(names::qualified_name)),
        ("spec.hard{}", Quantity),
        (
            "spec.scopes[]",
            OneOf(&[
                "BestEffort",
                "CrossNamespacePodAffinity",
                "NotBestEffort",
                "NotTerminating",
                "PriorityClass",
                "Terminating",
                "VolumeAttributesClass",
            ]),
        ),
        ("spec.scopes", Immutable),
        ("spec.scopeSelector", Immutable),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        let scopes: Vec<&str> = new
            .list_at(&["spec", "scopes"])
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for (one, other) in [
            ("BestEffort", "NotBestEffort"),
            ("Terminating", "NotTerminating"),
        ] {
            if scopes.contains(&one) && scopes.contains(&other) {
                let value = new.at(&["spec", "scopes"]).cloned().unwrap_or_default();
                causes.push(Cause::invalid("spec.scopes", &value, "conflicting scopes"));
            }
        }
    },
    returns_deleted: true,
    ..Rules::NEW
};

pub static LIMIT_RANGE: Rules = Rules {
    default: |new| {
        super::path::walk_mut(
            new.at_mut(&["spec"]).unwrap_or(&mut Value::Null),
            "limits[]",
            &mut default_limits,
        );
    },
    checks: &[
        ("spec.limits[].type", Required),
        ("spec.limits[].min{}", Quantity),
        ("spec.limits[].max{}", Quantity),
        ("spec.limits[].default{}", Quantity),
        ("spec.limits[].defaultRequest{}", Quantity),
        ("spec.limits[]", With(ordered_limits)),
    ],
    create_on_update: true,
    ..Rules::NEW
};

pub static ROLE: Rules = Rules {
    checks: ROLE_CHECKS,
    name: NameRule::PathSegment,
    create_on_update: true,
    ..Rules::NEW
};

/// As a role, and it may name URLs.
pub static CLUSTER_ROLE: Rules = Rules {
    checks: &[
        (
            "rules[].verbs",
            RequiredWith("verbs must contain at least one value"),
        ),
        ("rules[]", With(cluster_rule)),
        ("aggregationRule.clusterRoleSelectors[]", Selector),
    ],
    name: NameRule::PathSegment,
    create_on_update: true,
    ..Rules::NEW
};

const ROLE_CHECKS: Checks = &[
    (
        "rules[].verbs",
        RequiredWith("verbs must contain at least one value"),
    ),
    ("rules[]", With(rule)),
];

pub static ROLE_BINDING: Rules = Rules {
    default: |new| default_binding(new),
    checks: &[
        ("roleRef.kind", OneOf(&["ClusterRole", "Role"])),
        ("roleRef.name", Required),
        ("roleRef.apiGroup", OneOf(&["rbac.authorization.k8s.io"])),
        ("subjects[]", With(subject)),
    ],
    validate: cannot_change_role,
    name: NameRule::PathSegment,
    create_on_update: true,
    ..Rules::NEW
};

pub static CLUSTER_ROLE_BINDING: Rules = Rules {
    default: |new| default_binding(new),
    checks: &[
        ("roleRef.kind", OneOf(&["ClusterRole"])),
        ("roleRef.name", Required),
        ("roleRef.apiGroup", OneOf(&["rbac.authorization.k8s.io"])),
        ("subjects[]", With(subject)),
    ],
    validate: cannot_change_role,
    name: NameRule::PathSegment,
    create_on_update: true,
    ..Rules::NEW
};

pub static PRIORITY_CLASS: Rules = Rules {
    defaults: &[("preemptionPolicy", Text("PreemptLowerPriority"))],
    checks: &[(
        "preemptionPolicy",
        OneOf(&["Never", "PreemptLowerPriority"]),
    )],
    validate: |new, old, _, causes| {
        let value = new.i64_at(&["value"]).unwrap_or(0);
        if let Some(old) = old {
            let why = "may not be changed in an update.";
            if value != old.i64_at(&["value"]).unwrap_or(0) {
                causes.push(Cause::forbidden("value", why));
            }
            unchanged(
                "preemptionPolicy",
                new.at(&["preemptionPolicy"]),
                old.at(&["preemptionPolicy"]),
                causes,
            );
            return;
        }
        let system = new.name().starts_with("system-");
        if system && !SYSTEM_CLASSES.contains(&(new.name(), value)) {
            let why = "priority class names with 'system-' prefix are reserved for system use only";
            causes.push(Cause::forbidden("metadata.name", why));
        } else if !system && value > HIGHEST_USER_PRIORITY {
            let why = format!(
                "maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"
            );
            causes.push(Cause::forbidden("value", &why));
        }
    },
    has_generation: true,
    ..Rules::NEW
};

const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-node-critical", 2_000_001_000),
    ("system-cluster-critical", 2_000_000_000),
];

pub static RUNTIME_CLASS: Rules = Rules {
    checks: &[
        ("handler", Required),
        ("handler", Name(names::dns_label)),
        ("overhead.podFixed{}", Quantity),
        ("handler", Immutable),
    ],
    unconditional_update: false,
    create_on_update: true,
    ..Rules::NEW
};

/// For containers: the default limit is the greatest, the default request the default limit or the least.
fn default_limits(item: &mut Value) {
    if item["type"] != "Container" {
        return;
    }
    for (to, from) in [
        ("default", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "min"),
    ] {
        let amounts = item[from].as_object().cloned().unwrap_or_default();
        for (name, amount) in amounts {
            let list = item
                .as_object_mut()
                .map(|item| item.entry(to).or_insert(Value::Null));
            let Some(list) = list else { return };
            if list.is_null() {
                *list = Value::Object(serde_json::Map::new());
            }
            if list.get(&name).is_none() {
                put(list, &name, amount);
            }
        }
    }
}

/// min ≤ defaultRequest ≤ default ≤ max, resource by resource.
fn ordered_limits(path: &Path<'_>, item: &Value, causes: &mut Vec<Cause>) {
    const ORDER: [(&str, &str); 4] = [
        ("min", "max"),
        ("defaultRequest", "default"),
        ("defaultRequest", "max"),
        ("default", "max"),
    ];
    for (low, high) in ORDER {
        for (name, amount) in item[low].as_object().into_iter().flatten() {
            let limit = &item[high][name];
            let (Some(a), Some(b)) = (quantities::parse(amount), quantities::parse(limit)) else {
                continue;
            };
            if a > b {
                let text = |value: &Value| {
                    value
                        .as_str()
                        .map_or_else(|| value.to_string(), str::to_owned)
                };
                let noun = match low {
                    "min" => "min",
                    "default" => "default",
                    _ => "default request",
                };
                let why = format!(
                    "{noun} value {} is greater than {high} value {}",
                    text(amount),
                    text(limit)
                );
                let list = path.key(low);
                causes.push(Cause::invalid(list.entry(name), amount, &why));
            }
        }
    }
}

fn is_none(rule: &Value, key: &str) -> bool {
    rule[key].as_array().is_none_or(Vec::is_empty)
}

fn rule(path: &Path<'_>, rule: &Value, causes: &mut Vec<Cause>) {
    if !is_none(rule, "nonResourceURLs") {
        let why = "namespaced rules cannot apply to non-resource URLs";
        causes.push(Cause::invalid(
            path.key("nonResourceURLs"),
            &rule["nonResourceURLs"],
            why,
        ));
        return;
    }
    resource_rule(path, rule, causes);
}

fn cluster_rule(path: &Path<'_>, rule: &Value, causes: &mut Vec<Cause>) {
    if is_none(rule, "nonResourceURLs") {
        resource_rule(path, rule, causes);
        return;
    }
    let resources = ["apiGroups", "resources", "resourceNames"];
    if resources.iter().any(|key| !is_none(rule, key)) {
        let why = "rules cannot apply to both regular resources and non-resource URLs";
        causes.push(Cause::invalid(
            path.key("nonResourceURLs"),
            &rule["nonResourceURLs"],
            why,
        ));
    }
}

fn resource_rule(path: &Path<'_>, rule: &Value, causes: &mut Vec<Cause>) {
    if is_none(rule, "apiGroups") {
        let why = "resource rules must supply at least one api group";
        causes.push(Cause::required(path.key("apiGroups"), why));
    }
    if is_none(rule, "resources") {
        let why = "resource rules must supply at least one resource";
        causes.push(Cause::required(path.key("resources"), why));
    }
}

/// Groups that go without saying.
fn default_binding(new: &mut Object) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if new.at(&["roleRef"]).is_some()
        && new
            .str_at(&["roleRef", "apiGroup"])
            .is_none_or(str::is_empty)
    {
        new.set(&["roleRef", "apiGroup"], GROUP.into());
    }
    let subjects = new.at_mut(&["subjects"]).and_then(Value::as_array_mut);
    for subject in subjects.into_iter().flatten() {
        let user = subject["kind"] == "User" || subject["kind"] == "Group";
        if user && subject["apiGroup"].as_str().is_none_or(str::is_empty) {
            put(subject, "apiGroup", GROUP);
        }
    }
}

fn subject(path: &Path<'_>, subject: &Value, causes: &mut Vec<Cause>) {
    const SUBJECT: Checks = &[
        ("name", Required),
        ("kind", OneOf(&["Group", "ServiceAccount", "User"])),
    ];
    check(SUBJECT, path, subject, causes);
    if subject["kind"] == "ServiceAccount"
        && subject["namespace"].as_str().is_none_or(str::is_empty)
    {
        causes.push(Cause::required(path.key("namespace"), ""));
    }
}

fn cannot_change_role(new: &Object, old: Option<&Object>, _: Door<'_>, causes: &mut Vec<Cause>) {
    if let Some(old) = old
        && new.at(&["roleRef"]) != old.at(&["roleRef"])
    {
        let value = new.at(&["roleRef"]).cloned().unwrap_or_default();
        causes.push(Cause::invalid("roleRef", &value, "cannot change roleRef"));
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, check_update, defaulted};
    use serde_json::json;

    #[test]
    fn a_budget_says_one_thing() {
        check(
            "poddisruptionbudgets",
            "{metadata: {name: p}, spec: {minAvailable: 1, maxUnavailable: 10%}}",
            &[
                "spec: Invalid value: {\"maxUnavailable\":\"10%\",\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
            ],
        );
    }

    #[test]
    fn limits_default_downwards_and_are_ordered() {
        let made = defaulted(
            "limitranges",
            "{metadata: {name: l}, spec: {limits: [{type: Container, max: {cpu: '1'}, min: {memory: 1Mi}}]}}",
        );
        let item = &made["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"cpu": "1"}));
        assert_eq!(item["defaultRequest"], json!({"cpu": "1", "memory": "1Mi"}));
        check(
            "limitranges",
            "{metadata: {name: l}, spec: {limits: [{type: Pod, min: {cpu: '2'}, max: {cpu: '1'}}]}}",
            &[
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
            ],
        );
    }

    #[test]
    fn roles_and_bindings() {
        check(
            "roles",
            "{metadata: {name: 'a:b'}, rules: [{resources: [pods]}, {verbs: [get], nonResourceURLs: [/x]}]}",
            &[
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ],
        );
        check_update(
            "rolebindings",
            "{metadata: {name: b}, roleRef: {kind: Role, name: a}, subjects: [{kind: User, name: u}]}",
            "{metadata: {name: b}, roleRef: {kind: Role, name: b}, subjects: [{kind: ServiceAccount, name: u}]}",
            &[
                "subjects[0].namespace: Required value",
                "roleRef: Invalid value: {\"apiGroup\":\"rbac.authorization.k8s.io\",\"kind\":\"Role\",\"name\":\"b\"}: cannot change roleRef",
            ],
        );
    }

    #[test]
    fn priorities_are_bounded_and_stay() {
        check(
            "priorityclasses",
            "{metadata: {name: system-node-critical}, value: 2000001000}",
            &[],
        );
        check(
            "priorityclasses",
            "{metadata: {name: p}, value: 2000000000}",
            &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
        );
        check_update(
            "priorityclasses",
            "{metadata: {name: p}, value: 1}",
            "{metadata: {name: p}, value: 2}",
            &["value: Forbidden: may not be changed in an update."],
        );
    }
}

//! Kinds that extend or guard the API itself: webhooks, admission policies, CRDs, API services, flow control.

use serde_json::Value;

use super::names;
use super::path::{Path, put};
use super::rules::Check::{
    Between, Immutable, Name, OneOf, Positive, Required, Selector, Unique, With,
};
use super::rules::Literal::{EmptyObject, Number, Text};
use super::rules::{Checks, Defaults, Rules, check};
use super::strategy::{Door, NameRule};
use crate::object::Object;
use crate::status::Cause;

pub static MUTATING_WEBHOOKS: Rules = Rules {
    defaults: WEBHOOK_DEFAULTS,
    default: |new| {
        let webhooks = new.at_mut(&["webhooks"]).and_then(Value::as_array_mut);
        for webhook in webhooks.into_iter().flatten() {
            if webhook["reinvocationPolicy"].is_null() {
                put(webhook, "reinvocationPolicy", "Never");
            }
        }
    },
    checks: WEBHOOK_CHECKS,
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

pub static VALIDATING_WEBHOOKS: Rules = Rules {
    defaults: WEBHOOK_DEFAULTS,
    checks: WEBHOOK_CHECKS,
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

const WEBHOOK_DEFAULTS: Defaults = &[
    ("webhooks[].failurePolicy", Text("Fail")),
    ("webhooks[].matchPolicy", Text("Equivalent")),
    ("webhooks[].namespaceSelector", EmptyObject),
    ("webhooks[].objectSelector", EmptyObject),
    ("webhooks[].timeoutSeconds", Number(10)),
    ("webhooks[].clientConfig.service?.port", Number(443)),
    ("webhooks[].rules[].scope", Text("*")),
];

const WEBHOOK_CHECKS: Checks = &[
    ("webhooks[].name", Required),
    ("webhooks", Unique("name")),
    ("webhooks[].admissionReviewVersions", Required),
    ("webhooks[].sideEffects", Required),
    ("webhooks[].sideEffects", OneOf(&["None", "NoneOnDryRun"])),
    ("webhooks[].failurePolicy", OneOf(&["Fail", "Ignore"])),
    ("webhooks[].matchPolicy", OneOf(&["Equivalent", "Exact"])),
    ("webhooks[].timeoutSeconds", Between(1, 30)),
    ("webhooks[].namespaceSelector", Selector),
    ("webhooks[].objectSelector", Selector),
    ("webhooks[].rules[]", With(operations)),
    ("webhooks[].clientConfig", With(client)),
];

pub static POLICY: Rules = Rules {
    defaults: &[
        ("spec.failurePolicy", Text("Fail")),
        ("spec.matchConstraints?.matchPolicy", Text("Equivalent")),
        ("spec.matchConstraints?.namespaceSelector", EmptyObject),
        ("spec.matchConstraints?.objectSelector", EmptyObject),
        ("spec.matchConstraints?.resourceRules[].scope", Text("*")),
    ],
    status: "{}",
    checks: &[
        ("spec.matchConstraints", Required),
        ("spec.matchConstraints.resourceRules", Required),
        ("spec.failurePolicy", OneOf(&["Fail", "Ignore"])),
        ("spec.validations[].expression", Required),
    ],
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

/// As `POLICY`, without a status of its own.
pub static MUTATING_POLICY: Rules = Rules {
    status: "",
    defaults: POLICY.defaults,
    checks: &[
        ("spec.matchConstraints", Required),
        ("spec.mutations", Required),
        ("spec.failurePolicy", OneOf(&["Fail", "Ignore"])),
        ("spec.reinvocationPolicy", Required),
    ],
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

pub static POLICY_BINDING: Rules = Rules {
    defaults: &[
        ("spec.matchResources?.matchPolicy", Text("Equivalent")),
        ("spec.matchResources?.namespaceSelector", EmptyObject),
        ("spec.matchResources?.objectSelector", EmptyObject),
    ],
    checks: &[("spec.policyName", Required)],
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

pub static CUSTOM_RESOURCE_DEFINITION: Rules = Rules {
    defaults: &[
        ("spec.conversion.strategy", Text("None")),
        ("spec.scope", Text("Namespaced")),
    ],
    default: |new| {
        let Some(kind) = new.str_at(&["spec", "names", "kind"]).map(str::to_owned) else {
            return;
        };
        if new
            .str_at(&["spec", "names", "singular"])
            .is_none_or(str::is_empty)
        {
            new.set(&["spec", "names", "singular"], kind.to_lowercase().into());
        }
        if new
            .str_at(&["spec", "names", "listKind"])
            .is_none_or(str::is_empty)
        {
            new.set(&["spec", "names", "listKind"], format!("{kind}List").into());
        }
    },
    status: r#"{"conditions":[],"acceptedNames":{"plural":"","kind":""},"storedVersions":[]}"#,
    checks: &[
        ("spec.group", Required),
        ("spec.names.plural", Required),
        ("spec.names.plural", Name(names::dns_1035_label)),
        ("spec.names.kind", Required),
        ("spec.scope", OneOf(&["Cluster", "Namespaced"])),
        ("spec.versions", Required),
        ("spec.versions[].name", Required),
        ("spec.versions", Unique("name")),
        ("spec.group", Immutable),
        ("spec.scope", Immutable),
    ],
    validate: |new, _, door, causes| {
        if door != Door::Subresource("status") {
            definition(new, causes);
        }
    },
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

pub static API_SERVICE: Rules = Rules {
    defaults: &[("spec.service?.port", Number(443))],
    status: "{}",
    checks: &[
        ("spec.version", Required),
        ("spec.groupPriorityMinimum", Between(1, 20000)),
        ("spec.versionPriority", Between(1, 1000)),
    ],
    name: NameRule::PathSegment,
    unconditional_update: false,
    has_generation: true,
    ..Rules::NEW
};

pub static FLOW_SCHEMA: Rules = Rules {
    defaults: &[("spec.matchingPrecedence", Number(1000))],
    status: "{}",
    checks: &[
        ("spec.matchingPrecedence", Between(1, 10000)),
        ("spec.priorityLevelConfiguration.name", Required),
        (
            "spec.distinguisherMethod.type",
            OneOf(&["ByNamespace", "ByUser"]),
        ),
        ("spec.rules[].subjects", Required),
    ],
    has_generation: true,
    ..Rules::NEW
};

pub static PRIORITY_LEVEL: Rules = Rules {
    defaults: &[
        ("spec.limited?.nominalConcurrencyShares", Number(30)),
        ("spec.limited?.lendablePercent", Number(0)),
        ("spec.limited?.limitResponse?.queuing?.queues", Number(64)),
        ("spec.limited?.limitResponse?.queuing?.handSize", Number(8)),
        (
            "spec.limited?.limitResponse?.queuing?.queueLengthLimit",
            Number(50),
        ),
        ("spec.exempt?.nominalConcurrencyShares", Number(0)),
        ("spec.exempt?.lendablePercent", Number(0)),
    ],
    status: "{}",
    checks: &[
        ("spec.type", Required),
        ("spec.type", OneOf(&["Exempt", "Limited"])),
        ("spec.limited.lendablePercent", Between(0, 100)),
        (
            "spec.limited.limitResponse.type",
            OneOf(&["Queue", "Reject"]),
        ),
        ("spec.limited.limitResponse.queuing.queues", Positive),
        ("spec.limited.limitResponse.queuing.handSize", Positive),
    ],
    has_generation: true,
    ..Rules::NEW
};

pub static RESOURCE_CLAIM: Rules = Rules {
    status: "{}",
    checks: &[("spec", Immutable)],
    returns_deleted: true,
    ..Rules::NEW
};

pub static RESOURCE_CLAIM_TEMPLATE: Rules = Rules {
    checks: &[("spec", Immutable)],
    returns_deleted: true,
    ..Rules::NEW
};

pub static DEVICE_CLASS: Rules = Rules {
    returns_deleted: true,
    has_generation: true,
    ..Rules::NEW
};

pub static RESOURCE_SLICE: Rules = Rules {
    checks: &[
        ("spec.driver", Required),
        ("spec.pool.name", Required),
        ("spec.driver", Immutable),
    ],
    fields: &["spec.nodeName", "spec.driver"],
    returns_deleted: true,
    has_generation: true,
    ..Rules::NEW
};

fn operations(path: &Path<'_>, rule: &Value, causes: &mut Vec<Cause>) {
    const RULE: Checks = &[
        ("operations", Required),
        (
            "operations[]",
            OneOf(&["*", "CONNECT", "CREATE", "DELETE", "UPDATE"]),
        ),
        ("apiGroups", Required),
        ("apiVersions", Required),
        ("resources", Required),
        ("scope", OneOf(&["*", "Cluster", "Namespaced"])),
    ];
    check(RULE, path, rule, causes);
}

fn client(path: &Path<'_>, client: &Value, causes: &mut Vec<Cause>) {
    let url = client["url"].as_str().unwrap_or_default();
    match (url.is_empty(), client["service"].is_null()) {
        (true, true) | (false, false) => {
            let why = "exactly one of url or service is required";
            causes.push(Cause::required(path, why));
        }
        (false, true) if !url.starts_with("https://") => {
            let why = format!("'https' is the only allowed URL scheme, {url:?} has another");
            causes.push(Cause::invalid(path.key("url"), &url.into(), &why));
        }
        (true, false) => {
            const SERVICE: Checks = &[("name", Required), ("namespace", Required)];
            check(SERVICE, &path.key("service"), &client["service"], causes);
        }
        _ => {}
    }
}

fn definition(new: &Object, causes: &mut Vec<Cause>) {
    let text = |path: &[&str]| new.str_at(path).unwrap_or_default().to_owned();
    let expected = format!(
        "{}.{}",
        text(&["spec", "names", "plural"]),
        text(&["spec", "group"])
    );
    if new.name() != expected {
        let why = "must be spec.names.plural+\".\"+spec.group";
        causes.push(Cause::invalid("metadata.name", &new.name().into(), why));
    }
    let versions = new.list_at(&["spec", "versions"]);
    let stored = versions
        .iter()
        .filter(|version| version["storage"] == true)
        .count();
    if !versions.is_empty() && stored != 1 {
        let value = Value::Array(versions.to_vec());
        let why = "must have exactly one version marked as storage version";
        causes.push(Cause::invalid("spec.versions", &value, why));
    }
    for (i, version) in versions.iter().enumerate() {
        if version["schema"]["openAPIV3Schema"].is_null() {
            let field = format!("spec.versions[{i}].schema.openAPIV3Schema");
            causes.push(Cause::required(field, "schemas are required"));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, defaulted};

    #[test]
    fn webhooks_get_the_observed_defaults() {
        let made = defaulted(
            "mutatingwebhookconfigurations",
            "{metadata: {name: w}, webhooks: [{name: a.b.c, clientConfig: {service: {name: s, namespace: n}}, rules: [{operations: [CREATE]}]}]}",
        );
        let webhook = &made["webhooks"][0];
        assert_eq!(webhook["failurePolicy"], "Fail");
        assert_eq!(webhook["matchPolicy"], "Equivalent");
        assert_eq!(webhook["timeoutSeconds"], 10);
        assert_eq!(webhook["reinvocationPolicy"], "Never");
        assert_eq!(webhook["clientConfig"]["service"]["port"], 443);
        assert_eq!(webhook["rules"][0]["scope"], "*");
    }

    #[test]
    fn a_definition_is_named_after_what_it_defines() {
        check(
            "customresourcedefinitions",
            "{metadata: {name: foos}, spec: {group: ex.io, names: {plural: foos, kind: Foo}, versions: [{name: v1, schema: {openAPIV3Schema: {}}}]}}",
            &[
                "metadata.name: Invalid value: \"foos\": must be spec.names.plural+\".\"+spec.group",
                "spec.versions: Invalid value: [{\"name\":\"v1\",\"schema\":{\"openAPIV3Schema\":{}}}]: must have exactly one version marked as storage version",
            ],
        );
    }
}

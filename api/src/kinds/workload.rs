//! Kinds that keep pods running: Deployment, ReplicaSet, StatefulSet, DaemonSet, ReplicationController and their history.

use serde_json::{Value, json};

use super::path::Path;
use super::pod::template_warnings;
use super::pod_spec::validate_template;
use super::pod_template::default_template;
use super::rules::Check::{Amount, Immutable, NotNegative, OneOf, Required};
use super::rules::Literal::{Number, Text};
use super::rules::{Check, Literal, Rules, apply_defaults};
use super::strategy::{Door, ScalePaths};
use super::{label_selector, names};
use crate::object::Object;
use crate::status::Cause;

const TEMPLATE: [&str; 2] = ["spec", "template"];
const SCALE: Option<ScalePaths> = Some(ScalePaths {
    spec_replicas: &["spec", "replicas"],
    status_replicas: &["status", "replicas"],
    selector: &["spec", "selector"],
});

pub static DEPLOYMENT: Rules = Rules {
    defaults: &[
        ("spec.replicas", Number(1)),
        ("spec.strategy.type", Text("RollingUpdate")),
        ("spec.revisionHistoryLimit", Number(10)),
        ("spec.progressDeadlineSeconds", Number(600)),
    ],
    default: |new| {
        default_template(new, &TEMPLATE);
        default_rolling(
            new,
            "strategy",
            &[
                ("rollingUpdate.maxUnavailable", Text("25%")),
                ("rollingUpdate.maxSurge", Text("25%")),
            ],
        );
    },
    status: "{}",
    checks: &[
        ("spec.replicas", NotNegative),
        ("spec.selector", Check::With(selector)),
        ("spec.minReadySeconds", NotNegative),
        ("spec.revisionHistoryLimit", NotNegative),
        ("spec.progressDeadlineSeconds", NotNegative),
        ("spec.strategy.type", OneOf(&["Recreate", "RollingUpdate"])),
        ("spec.strategy.rollingUpdate.maxUnavailable", Amount),
        (
            "spec.strategy.rollingUpdate.maxUnavailable",
            Check::With(at_most_all),
        ),
        ("spec.strategy.rollingUpdate.maxSurge", Amount),
        ("spec.selector", Immutable),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        validate_pods(new, "deployment", causes);
        validate_deployment_strategy(new, causes);
        let seconds = |key: &str| new.i64_at(&["spec", key]);
        if let Some(deadline) = seconds("progressDeadlineSeconds")
            && deadline <= seconds("minReadySeconds").unwrap_or(0)
        {
            let why = "must be greater than minReadySeconds";
            causes.push(Cause::invalid(
                "spec.progressDeadlineSeconds",
                &deadline.into(),
                why,
            ));
        }
    },
    warnings,
    has_generation: true,
    scale: SCALE,
    ..Rules::NEW
};

pub static REPLICA_SET: Rules = Rules {
    defaults: &[("spec.replicas", Number(1))],
    default: |new| default_template(new, &TEMPLATE),
    status: r#"{"replicas":0}"#,
    checks: &[
        ("spec.replicas", NotNegative),
        ("spec.minReadySeconds", NotNegative),
        ("spec.selector", Check::With(selector)),
        ("spec.selector", Immutable),
    ],
    validate: |new, _, door, causes| {
        if door != Door::Subresource("status") {
            validate_pods(new, "deployment", causes);
        }
    },
    warnings,
    fields: &["status.replicas"],
    field: replicas_field,
    has_generation: true,
    scale: SCALE,
    ..Rules::NEW
};

pub static STATEFUL_SET: Rules = Rules {
    defaults: &[
        ("spec.podManagementPolicy", Text("OrderedReady")),
        ("spec.updateStrategy.type", Text("RollingUpdate")),
        (
            "spec.persistentVolumeClaimRetentionPolicy.whenDeleted",
            Text("Retain"),
        ),
        (
            "spec.persistentVolumeClaimRetentionPolicy.whenScaled",
            Text("Retain"),
        ),
        ("spec.replicas", Number(1)),
        ("spec.revisionHistoryLimit", Number(10)),
        (
            "spec.volumeClaimTemplates[].kind",
            Text("PersistentVolumeClaim"),
        ),
        ("spec.volumeClaimTemplates[].apiVersion", Text("v1")),
        (
            "spec.volumeClaimTemplates[].spec.volumeMode",
            Text("Filesystem"),
        ),
        ("spec.volumeClaimTemplates[].status.phase", Text("Pending")),
    ],
    default: |new| {
        default_template(new, &TEMPLATE);
        default_rolling(
            new,
            "updateStrategy",
            &[("rollingUpdate.partition", Number(0))],
        );
    },
    status: r#"{"replicas":0,"availableReplicas":0}"#,
    checks: &[
        ("spec.replicas", NotNegative),
        ("spec.minReadySeconds", NotNegative),
        ("spec.revisionHistoryLimit", NotNegative),
        ("spec.selector", Check::With(selector)),
        (
            "spec.podManagementPolicy",
            OneOf(&["OrderedReady", "Parallel"]),
        ),
        (
            "spec.updateStrategy.type",
            OneOf(&["OnDelete", "RollingUpdate"]),
        ),
        ("spec.updateStrategy.rollingUpdate.partition", NotNegative),
        ("spec.ordinals.start", NotNegative),
        ("spec.serviceName", Check::NameOrEmpty(names::dns_subdomain)),
    ],
    validate: |new, old, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        validate_pods(new, "statefulset", causes);
        forgive_claimed_volumes(new, causes);
        if let Some(old) = old {
            validate_stateful_set_update(new, old, causes);
        }
    },
    warnings,
    has_generation: true,
    scale: SCALE,
    ..Rules::NEW
};

pub static DAEMON_SET: Rules = Rules {
    defaults: &[
        ("spec.updateStrategy.type", Text("RollingUpdate")),
        ("spec.revisionHistoryLimit", Number(10)),
    ],
    default: |new| {
        default_template(new, &TEMPLATE);
        default_rolling(
            new,
            "updateStrategy",
            &[
                ("rollingUpdate.maxUnavailable", Number(1)),
                ("rollingUpdate.maxSurge", Number(0)),
            ],
        );
    },
    status: r#"{"currentNumberScheduled":0,"numberMisscheduled":0,"desiredNumberScheduled":0,"numberReady":0}"#,
    checks: &[
        ("spec.minReadySeconds", NotNegative),
        ("spec.revisionHistoryLimit", NotNegative),
        ("spec.selector", Check::With(selector)),
        (
            "spec.updateStrategy.type",
            OneOf(&["OnDelete", "RollingUpdate"]),
        ),
        ("spec.updateStrategy.rollingUpdate.maxUnavailable", Amount),
        ("spec.updateStrategy.rollingUpdate.maxSurge", Amount),
        ("spec.selector", Immutable),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        validate_pods(new, "daemonset", causes);
        let rolling = |key: &str| new.at(&["spec", "updateStrategy", "rollingUpdate", key]);
        if is_zero(rolling("maxUnavailable")) && is_zero(rolling("maxSurge")) {
            let field = "spec.updateStrategy.rollingUpdate.maxUnavailable";
            causes.push(Cause::required(field, "cannot be 0 when maxSurge is 0"));
        }
    },
    warnings,
    has_generation: true,
    ..Rules::NEW
};

pub static REPLICATION_CONTROLLER: Rules = Rules {
    defaults: &[("spec.replicas", Number(1))],
    default: |new| {
        default_template(new, &TEMPLATE);
        let labels = new.at(&["spec", "template", "metadata", "labels"]).cloned();
        if let Some(labels) = labels {
            new.set_default(&["spec", "selector"], labels.clone());
            new.set_default(&["metadata", "labels"], labels);
        }
    },
    status: r#"{"replicas":0}"#,
    checks: &[
        ("spec.replicas", NotNegative),
        ("spec.minReadySeconds", NotNegative),
        ("spec.selector", Required),
        ("spec.template", Required),
    ],
    validate: |new, _, door, causes| {
        if door == Door::Subresource("status") {
            return;
        }
        let selector = json!({"matchLabels": new.at(&["spec", "selector"])});
        validate_template_at(new, &selector, causes);
    },
    warnings,
    fields: &["status.replicas"],
    field: replicas_field,
    has_generation: true,
    orphans_by_default: true,
    scale: SCALE,
    ..Rules::NEW
};

pub static CONTROLLER_REVISION: Rules = Rules {
    checks: &[("revision", NotNegative), ("data", Immutable)],
    ..Rules::NEW
};

pub static POD_TEMPLATE: Rules = Rules {
    default: |new| default_template(new, &["template"]),
    validate: |new, _, _, causes| {
        let template = new.at(&["template"]).unwrap_or(&Value::Null);
        let path = Path::ROOT.key("template");
        super::pod_spec::validate(&path.key("spec"), &template["spec"], causes);
    },
    returns_deleted: true,
    has_generation: true,
    ..Rules::NEW
};

fn replicas_field(object: &Object, name: &str) -> Option<String> {
    let replicas = object.i64_at(&["status", "replicas"]).unwrap_or(0);
    (name == "status.replicas").then(|| replicas.to_string())
}

/// Defaults that only a rolling update has, below `spec.{strategy}`.
fn default_rolling(new: &mut Object, strategy: &str, defaults: &[(&str, Literal)]) {
    if new.str_at(&["spec", strategy, "type"]) != Some("RollingUpdate") {
        return;
    }
    if let Some(strategy) = new.at_mut(&["spec", strategy]) {
        apply_defaults(strategy, defaults);
    }
}

fn selector(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    label_selector::check(path, value, causes);
}

/// Selector and template, and that they fit. `noun` is upstream's word for the kind in one of its messages.
fn validate_pods(new: &Object, noun: &str, causes: &mut Vec<Cause>) {
    match new
        .at(&["spec", "selector"])
        .filter(|selector| !selector.is_null())
    {
        None => causes.push(Cause::required("spec.selector", "")),
        Some(selector) if label_selector::is_empty(selector) => {
            let why = format!("empty selector is invalid for {noun}");
            causes.push(Cause::invalid("spec.selector", selector, &why));
        }
        Some(_) => {}
    }
    let selector = new.at(&["spec", "selector"]).cloned().unwrap_or_default();
    validate_template_at(new, &selector, causes);
}

fn validate_template_at(new: &Object, selector: &Value, causes: &mut Vec<Cause>) {
    let template = new.at(&TEMPLATE).unwrap_or(&Value::Null);
    let labels = &template["metadata"]["labels"];
    if !label_selector::is_empty(selector) && !label_selector::matches(selector, labels) {
        let why = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
    }
    let spec = Path::ROOT.key("spec");
    validate_template(&spec.key("template"), template, false, causes);
}

fn is_zero(amount: Option<&Value>) -> bool {
    match amount {
        Some(Value::String(text)) => matches!(text.as_str(), "0" | "0%"),
        Some(value) => value == 0,
        None => true,
    }
}

fn at_most_all(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let percent = value
        .as_str()
        .and_then(|text| text.strip_suffix('%')?.parse::<u64>().ok());
    if percent.is_some_and(|percent| percent > 100) {
        causes.push(Cause::invalid(path, value, "must not be greater than 100%"));
    }
}

fn validate_deployment_strategy(new: &Object, causes: &mut Vec<Cause>) {
    let rolling = new
        .at(&["spec", "strategy", "rollingUpdate"])
        .filter(|rolling| !rolling.is_null());
    let field = "spec.strategy.rollingUpdate";
    match (new.str_at(&["spec", "strategy", "type"]), rolling) {
        (Some("Recreate"), Some(_)) => {
            let why = "may not be specified when strategy `type` is 'Recreate'";
            causes.push(Cause::forbidden(field, why));
        }
        (Some("RollingUpdate"), Some(rolling)) => {
            let unavailable = rolling.get("maxUnavailable");
            if is_zero(unavailable) && is_zero(rolling.get("maxSurge")) {
                let why = "may not be 0 when `maxSurge` is 0";
                let value = unavailable.unwrap_or(&Value::Null);
                causes.push(Cause::invalid(
                    format!("{field}.maxUnavailable"),
                    value,
                    why,
                ));
            }
        }
        _ => {}
    }
}

/// A volume that a `volumeClaimTemplates` entry makes is not among the template's own volumes.
fn forgive_claimed_volumes(new: &Object, causes: &mut Vec<Cause>) {
    let claims = new.list_at(&["spec", "volumeClaimTemplates"]);
    let claimed: Vec<String> = claims
        .iter()
        .map(|claim| Cause::not_found("", &claim["metadata"]["name"]).message)
        .collect();
    causes.retain(|cause| {
        !(cause.field.contains(".volumeMounts[") && claimed.contains(&cause.message))
    });
}

fn validate_stateful_set_update(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    const FREE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let frozen = |object: &Object| {
        let mut spec = object.at(&["spec"]).cloned().unwrap_or_default();
        if let Value::Object(spec) = &mut spec {
            spec.retain(|key, value| !FREE.contains(&key.as_str()) && !value.is_null());
        }
        spec
    };
    if frozen(new) != frozen(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        causes.push(Cause::forbidden("spec", why));
    }
}

fn warnings(new: &Object, _old: Option<&Object>) -> Vec<String> {
    let spec = new
        .at(&["spec", "template", "spec"])
        .unwrap_or(&Value::Null);
    template_warnings(&Path::ROOT.key("spec.template.spec"), spec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check, check_update, defaulted};

    /// A workload whose spec has these extra fields.
    fn workload(extra: &str) -> String {
        format!(
            "metadata: {{name: d}}\nspec: {{selector: {{matchLabels: {{a: b}}}}, template: {{metadata: {{labels: {{a: b}}}}, spec: {{containers: [{{name: c, image: x}}]}}}}, {extra}}}"
        )
    }

    #[test]
    fn a_deployment_gets_the_observed_defaults() {
        let deployment = defaulted("deployments", &workload(""));
        let spec = &deployment["spec"];
        assert_eq!(spec["replicas"], 1);
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!(spec["revisionHistoryLimit"], 10);
        assert_eq!(spec["progressDeadlineSeconds"], 600);
        assert_eq!(spec["template"]["spec"]["dnsPolicy"], "ClusterFirst");
        assert_eq!(spec["template"]["spec"].get("enableServiceLinks"), None);
        assert_eq!(deployment["status"], json!({}));
        let recreate = defaulted("deployments", &workload("strategy: {type: Recreate}"));
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn the_others_get_theirs() {
        let set = defaulted(
            "statefulsets",
            &workload("volumeClaimTemplates: [{metadata: {name: v}}]"),
        );
        assert_eq!(
            set["spec"]["updateStrategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}})
        );
        assert_eq!(
            set["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"],
            "Filesystem"
        );
        let set = defaulted("daemonsets", &workload(""));
        assert_eq!(
            set["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"],
            1
        );
        assert_eq!(
            defaulted("replicasets", &workload(""))["status"],
            json!({"replicas": 0})
        );
        let text = "{metadata: {name: r}, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: x}]}}}}";
        let controller = defaulted("replicationcontrollers", text);
        assert_eq!(controller["spec"]["selector"], json!({"a": "b"}));
        assert_eq!(controller["metadata"]["labels"], json!({"a": "b"}));
    }

    #[test]
    fn a_bad_deployment_is_told_every_field() {
        check("deployments", &workload(""), &[]);
        check(
            "deployments",
            "{metadata: {name: d}, spec: {replicas: -1, minReadySeconds: 700, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: X}}, spec: {restartPolicy: Never, containers: [{name: c}]}}}}",
            &[
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"a\":\"X\"}: `selector` does not match template `labels`",
                "spec.template.spec.containers[0].image: Required value",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
            ],
        );
        check(
            "deployments",
            &workload("strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}"),
            &[
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        );
        check(
            "deployments",
            &workload("strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}"),
            &[
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ],
        );
        check(
            "deployments",
            "{metadata: {name: d}, spec: {template: {spec: {containers: [{name: c, image: x}]}}}}",
            &["spec.selector: Required value"],
        );
    }

    #[test]
    fn a_claimed_volume_may_be_mounted() {
        let text = "
spec:
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec: {containers: [{name: a, image: b, volumeMounts: [{name: data, mountPath: /d}, {name: lost, mountPath: /l}]}]}
  volumeClaimTemplates:
  - {metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}
";
        check(
            "statefulsets",
            text,
            &["spec.template.spec.containers[0].volumeMounts[1].name: Not found: \"lost\""],
        );
    }

    #[test]
    fn selectors_and_stateful_specs_do_not_change() {
        let other = workload("")
            .replace("matchLabels: {a: b}", "matchLabels: {a: b, c: d}")
            .replace("labels: {a: b}", "labels: {a: b, c: d}");
        check_update(
            "deployments",
            &workload(""),
            &other,
            &[
                "spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\",\"c\":\"d\"}}: field is immutable",
            ],
        );
        check_update(
            "statefulsets",
            &workload(""),
            &workload("serviceName: x"),
            &[
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
            ],
        );
        check_update("statefulsets", &workload(""), &workload("replicas: 3"), &[]);
    }
}

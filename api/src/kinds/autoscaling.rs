//! HorizontalPodAutoscalers: autoscaling/v2 is the stored form; v1 is served from it, keeping in annotations what v1
//! has no field for. Never scales anything.

use serde_json::{Value, json};

use super::rules::Check::{NotNegative, OneOf, Positive, Required, With};
use super::rules::Literal::{EmptyList, Number, Text};
use super::rules::{Checks, Defaults, Rules, apply_defaults};
use super::{Conversion, path::Path, path::walk_mut};
use crate::object::Object;
use crate::status::Cause;

pub static HORIZONTAL_POD_AUTOSCALER: Rules = Rules {
    defaults: &[("spec.minReplicas", Number(1))],
    default: |new| {
        let has_spec = new.at(&["spec"]).is_some_and(|spec| spec.is_object());
        if has_spec && new.list_at(&["spec", "metrics"]).is_empty() {
            let cpu = cpu_metric("target", "Utilization", &json!(80));
            new.set(&["spec", "metrics"], json!([cpu]));
        }
        if let Some(behavior) = new
            .at_mut(&["spec", "behavior"])
            .filter(|behavior| !behavior.is_null())
        {
            default_behavior(behavior);
        }
    },
    status: r#"{"desiredReplicas":0,"currentMetrics":null}"#,
    checks: CHECKS,
    validate: |new, _, door, causes| {
        if door == super::strategy::Door::Main {
            validate_bounds(new, causes);
        }
    },
    ..Rules::NEW
};

pub static HORIZONTAL_POD_AUTOSCALER_V1: Rules = Rules {
    defaults: &[
        ("spec.minReplicas", Number(1)),
        ("spec.targetCPUUtilizationPercentage", Number(80)),
    ],
    status: r#"{"currentReplicas":0,"desiredReplicas":0}"#,
    checks: &[
        ("spec.scaleTargetRef.kind", Required),
        ("spec.scaleTargetRef.name", Required),
        ("spec.targetCPUUtilizationPercentage", Positive),
    ],
    validate: |new, _, door, causes| {
        if door == super::strategy::Door::Main {
            validate_bounds(new, causes);
        }
    },
    ..Rules::NEW
};

const CHECKS: Checks = &[
    ("spec.scaleTargetRef.kind", Required),
    ("spec.scaleTargetRef.name", Required),
    (
        "spec.metrics[].type",
        OneOf(&[
            "ContainerResource",
            "External",
            "Object",
            "Pods",
            "Resource",
        ]),
    ),
    ("spec.metrics[].resource.name", Required),
    ("spec.metrics[].resource.target", With(target)),
    ("spec.metrics[].containerResource.name", Required),
    ("spec.metrics[].containerResource.container", Required),
    ("spec.metrics[].containerResource.target", With(target)),
    ("spec.metrics[].pods.metric.name", Required),
    ("spec.metrics[].object.metric.name", Required),
    ("spec.metrics[].external.metric.name", Required),
    (
        "spec.behavior.scaleUp.stabilizationWindowSeconds",
        NotNegative,
    ),
    (
        "spec.behavior.scaleDown.stabilizationWindowSeconds",
        NotNegative,
    ),
    (
        "spec.behavior.scaleUp.selectPolicy",
        OneOf(&["Disabled", "Max", "Min"]),
    ),
    (
        "spec.behavior.scaleDown.selectPolicy",
        OneOf(&["Disabled", "Max", "Min"]),
    ),
];

const UP: Defaults = &[
    ("scaleUp.stabilizationWindowSeconds", Number(0)),
    ("scaleUp.selectPolicy", Text("Max")),
    ("scaleUp.policies", EmptyList),
];
const DOWN: Defaults = &[
    ("scaleDown.selectPolicy", Text("Max")),
    ("scaleDown.policies", EmptyList),
];

/// Up at once by 4 pods or to the double, down all at once after the window.
fn default_behavior(behavior: &mut Value) {
    apply_defaults(behavior, UP);
    apply_defaults(behavior, DOWN);
    let up = json!([
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ]);
    let down = json!([{"type": "Percent", "value": 100, "periodSeconds": 15}]);
    for (side, policies) in [("scaleUp.policies", up), ("scaleDown.policies", down)] {
        walk_mut(behavior, side, &mut |list| {
            if list.as_array().is_some_and(Vec::is_empty) {
                *list = policies.clone();
            }
        });
    }
}

fn validate_bounds(new: &Object, causes: &mut Vec<Cause>) {
    let number = |key: &str| new.i64_at(&["spec", key]).unwrap_or(0);
    let (least, most) = (number("minReplicas"), number("maxReplicas"));
    if least < 1 {
        let why = "must be greater than or equal to 1";
        causes.push(Cause::invalid("spec.minReplicas", &least.into(), why));
    }
    if most < 1 {
        causes.push(Cause::invalid(
            "spec.maxReplicas",
            &most.into(),
            "must be greater than 0",
        ));
    } else if most < least {
        let why = "must be greater than or equal to `minReplicas`";
        causes.push(Cause::invalid("spec.maxReplicas", &most.into(), why));
    }
}

fn target(path: &Path<'_>, target: &Value, causes: &mut Vec<Cause>) {
    match target["type"].as_str() {
        None | Some("") => causes.push(Cause::required(
            path.key("type"),
            "must specify a metric target type",
        )),
        Some("Utilization" | "Value" | "AverageValue") => {}
        Some(_) => {
            let why = "must be either Utilization, Value, or AverageValue";
            causes.push(Cause::invalid(path.key("type"), &target["type"], why));
        }
    }
    let given = |key: &str| !target[key].is_null();
    if !given("averageUtilization") && !given("averageValue") && !given("value") {
        let why = "must set either a target raw value or a target utilization";
        causes.push(Cause::required(path.key("averageUtilization"), why));
    }
    if target["averageUtilization"]
        .as_i64()
        .is_some_and(|percent| percent < 1)
    {
        let why = "must be greater than 0";
        causes.push(Cause::invalid(
            path.key("averageUtilization"),
            &target["averageUtilization"],
            why,
        ));
    }
}

/// `autoscaling/v1` in terms of the stored `autoscaling/v2` form.
pub struct Version1;

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

// === impl Version1 ===

impl Conversion for Version1 {
    fn store(&self, mut object: Object) -> Object {
        object.set(&["apiVersion"], "autoscaling/v2".into());
        let mut metrics = Vec::new();
        if let Some(percent) = object.remove(&["spec", "targetCPUUtilizationPercentage"]) {
            metrics.push(cpu_metric("target", "Utilization", &percent));
        }
        metrics.extend(take_list(&mut object, METRICS));
        if !metrics.is_empty() {
            object.set(&["spec", "metrics"], metrics.into());
        }
        if let Some(behavior) = take(&mut object, BEHAVIOR) {
            object.set(&["spec", "behavior"], behavior);
        }
        let mut current = Vec::new();
        if let Some(percent) = object.remove(&["status", "currentCPUUtilizationPercentage"]) {
            current.push(json!({
                "type": "Resource",
                "resource": {"name": "cpu", "current": {"averageUtilization": percent}},
            }));
        }
        current.extend(take_list(&mut object, CURRENT_METRICS));
        if !current.is_empty() {
            object.set(&["status", "currentMetrics"], current.into());
        }
        if let Some(conditions) = take(&mut object, CONDITIONS) {
            object.set(&["status", "conditions"], conditions);
        }
        object
    }

    fn serve(&self, mut object: Object) -> Object {
        object.set(&["apiVersion"], "autoscaling/v1".into());
        let (percent, others) = split_cpu(object.remove(&["spec", "metrics"]), &["target"]);
        if let Some(percent) = percent {
            object.set(&["spec", "targetCPUUtilizationPercentage"], percent);
        }
        keep(&mut object, METRICS, others);
        let behavior = object.remove(&["spec", "behavior"]);
        keep(&mut object, BEHAVIOR, behavior);
        let (percent, others) =
            split_cpu(object.remove(&["status", "currentMetrics"]), &["current"]);
        if let Some(percent) = percent {
            object.set(&["status", "currentCPUUtilizationPercentage"], percent);
        }
        keep(&mut object, CURRENT_METRICS, others);
        let conditions = object.remove(&["status", "conditions"]);
        keep(&mut object, CONDITIONS, conditions);
        object
    }
}

fn cpu_metric(side: &str, kind: &str, percent: &Value) -> Value {
    json!({
        "type": "Resource",
        "resource": {"name": "cpu", side: {"type": kind, "averageUtilization": percent}},
    })
}

/// The first CPU utilisation among `metrics`, which v1 has a field for, and a list of all others.
fn split_cpu(metrics: Option<Value>, side: &[&str; 1]) -> (Option<Value>, Option<Value>) {
    let Some(Value::Array(mut metrics)) = metrics else {
        return (None, None);
    };
    let percent = |metric: &Value| -> Option<Value> {
        let resource = metric.get("resource")?;
        if metric["type"] != "Resource" || resource["name"] != "cpu" {
            return None;
        }
        resource
            .get(side[0])?
            .get("averageUtilization")
            .filter(|percent| !percent.is_null())
            .cloned()
    };
    let found = metrics.iter().position(|metric| percent(metric).is_some());
    let cpu = found.and_then(|at| percent(&metrics.remove(at)));
    let others = (!metrics.is_empty()).then_some(Value::Array(metrics));
    (cpu, others)
}

/// The JSON of an annotation, which is removed; text that is not JSON stays where it is.
fn take(object: &mut Object, key: &str) -> Option<Value> {
    let value = serde_json::from_str(object.annotation(key)?).ok()?;
    object.remove(&["metadata", "annotations", key]);
    if object
        .at(&["metadata", "annotations"])
        .and_then(Value::as_object)
        .is_some_and(serde_json::Map::is_empty)
    {
        object.remove(&["metadata", "annotations"]);
    }
    Some(value)
}

fn take_list(object: &mut Object, key: &str) -> Vec<Value> {
    match take(object, key) {
        Some(Value::Array(list)) => list,
        _ => Vec::new(),
    }
}

fn keep(object: &mut Object, key: &str, value: Option<Value>) {
    if let Some(value) = value {
        object.set(&["metadata", "annotations", key], value.to_string().into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check, defaulted};

    #[test]
    fn an_autoscaler_survives_the_way_to_version_1_and_back() {
        let stored = json!({
            "kind": "HorizontalPodAutoscaler", "apiVersion": "autoscaling/v2", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 5, "metrics": [
                cpu_metric("target", "Utilization", &json!(70)),
                {"type": "Pods", "pods": {"metric": {"name": "m"}}},
            ], "behavior": {"scaleDown": {"selectPolicy": "Max"}}},
            "status": {"conditions": [{"type": "AbleToScale"}]},
        });
        let stored = Object::new(stored).expect("an object");
        let old = Version1.serve(stored.clone());
        assert_eq!(
            old.i64_at(&["spec", "targetCPUUtilizationPercentage"]),
            Some(70)
        );
        assert!(old.at(&["spec", "metrics"]).is_none());
        assert!(old.annotation(METRICS).is_some());
        assert_eq!(Version1.store(old), stored);
    }

    #[test]
    fn an_autoscaler_aims_at_80_percent_between_its_bounds() {
        let made = defaulted(
            "horizontalpodautoscalers",
            "{metadata: {name: h}, spec: {maxReplicas: 3, scaleTargetRef: {kind: D, name: d}, behavior: {scaleDown: {selectPolicy: Min}}}}",
        );
        assert_eq!(made["spec"]["minReplicas"], 1);
        let target = &made["spec"]["metrics"][0]["resource"]["target"];
        assert_eq!(target["averageUtilization"], 80);
        let down = &made["spec"]["behavior"]["scaleDown"];
        assert_eq!(down["policies"][0]["type"], "Percent");
        check(
            "horizontalpodautoscalers",
            "{metadata: {name: h}, spec: {minReplicas: 5, maxReplicas: 3, scaleTargetRef: {kind: D}}}",
            &[
                "spec.scaleTargetRef.name: Required value",
                "spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`",
            ],
        );
    }
}

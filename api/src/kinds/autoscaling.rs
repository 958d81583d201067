//! HorizontalPodAutoscalers: autoscaling/v2 is the stored form; v1 is served from it, keeping in annotations what v1
//! has no field for. Never scales anything.

use serde_json::{Value, json};

use super::Conversion;
use crate::object::Object;

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
}

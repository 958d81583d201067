//! When is an applied object ready? By its kind's own meaning. Pure: objects in, a verdict out.

use serde_json::Value;

/// What is said of an object whose controller has not looked at it yet.
pub(crate) const UNSEEN: &str = "not seen by its controller yet";

/// What can be said of one object.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Verdict {
    /// Ready; the text is for the table: `2/2 ready`.
    Ready(String),
    /// Not yet, and what it waits for.
    Waiting(String),
    /// It never will be without somebody's help.
    Failed(String),
}

/// Judges an object as the API server returned it.
pub(crate) fn judge(object: &Value) -> Verdict {
    match object
        .get("kind")
        .and_then(Value::as_str)
        .unwrap_or_default()
    {
        "Deployment" => deployment(object),
        "ReplicaSet" | "ReplicationController" | "StatefulSet" => {
            replicas(object, "/status/readyReplicas")
        }
        "DaemonSet" => daemon_set(object),
        "Pod" => pod(object),
        "Job" => job(object),
        "Service" => service(object),
        "Ingress" => ingress(object),
        "Gateway" => match condition(object, "Programmed") {
            Some(("True", _)) => Verdict::Ready("programmed".to_owned()),
            found => Verdict::Waiting(format!("not programmed: {}", found.map_or(UNSEEN, |f| f.1))),
        },
        "HTTPRoute" => http_route(object),
        "PersistentVolumeClaim" => phase(object, "Bound"),
        "PersistentVolume" => Verdict::Ready(text(object, "/status/phase").to_owned()),
        "Namespace" => phase(object, "Active"),
        "CustomResourceDefinition" => match condition(object, "Established") {
            Some(("True", _)) => Verdict::Ready("established".to_owned()),
            _ => Verdict::Waiting("not established".to_owned()),
        },
        _ => Verdict::Ready("applied".to_owned()),
    }
}

fn number(object: &Value, path: &str) -> i64 {
    object.pointer(path).and_then(Value::as_i64).unwrap_or(0)
}

fn text<'o>(object: &'o Value, path: &str) -> &'o str {
    object
        .pointer(path)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// Status and message of a condition.
fn condition<'o>(object: &'o Value, kind: &str) -> Option<(&'o str, &'o str)> {
    condition_of(object.get("status")?, kind)
}

/// As [`condition`], of what holds the list.
fn condition_of<'o>(holder: &'o Value, kind: &str) -> Option<(&'o str, &'o str)> {
    let conditions = holder.get("conditions")?.as_array()?;
    let found = conditions
        .iter()
        .find(|condition| text(condition, "/type") == kind)?;
    Some((text(found, "/status"), text(found, "/message")))
}

fn observed(object: &Value) -> bool {
    number(object, "/status/observedGeneration") >= number(object, "/metadata/generation")
}

/// As `kubectl rollout status` sees it.
fn deployment(object: &Value) -> Verdict {
    let wanted = object
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(1);
    let (updated, total) = (
        number(object, "/status/updatedReplicas"),
        number(object, "/status/replicas"),
    );
    let available = number(object, "/status/availableReplicas");
    let progressing = condition(object, "Progressing");
    if !observed(object) {
        Verdict::Waiting(UNSEEN.to_owned())
    } else if let Some(("False", message)) = progressing {
        Verdict::Failed(message.to_owned())
    } else if updated < wanted {
        Verdict::Waiting(format!("{updated}/{wanted} updated"))
    } else if total > updated {
        Verdict::Waiting(format!("{} old pods are still there", total - updated))
    } else if available < wanted || total > wanted {
        Verdict::Waiting(format!("{available}/{wanted} ready"))
    } else {
        Verdict::Ready(format!("{available}/{wanted} ready"))
    }
}

fn replicas(object: &Value, ready: &str) -> Verdict {
    let wanted = object
        .pointer("/spec/replicas")
        .and_then(Value::as_i64)
        .unwrap_or(1);
    counted(object, number(object, ready), wanted)
}

fn daemon_set(object: &Value) -> Verdict {
    let wanted = number(object, "/status/desiredNumberScheduled");
    counted(object, number(object, "/status/numberReady"), wanted)
}

fn counted(object: &Value, ready: i64, wanted: i64) -> Verdict {
    let text = format!("{ready}/{wanted} ready");
    if observed(object) && ready >= wanted && object.get("status").is_some() {
        Verdict::Ready(text)
    } else {
        Verdict::Waiting(text)
    }
}

/// Only our own class is surely served here.
fn ingress(object: &Value) -> Verdict {
    let address = object.pointer("/status/loadBalancer/ingress/0");
    if address.is_some() {
        Verdict::Ready("listening".to_owned())
    } else if text(object, "/spec/ingressClassName") == types::well_known::CLASS_CORACLE {
        Verdict::Waiting("no node listens yet".to_owned())
    } else {
        Verdict::Ready("applied".to_owned())
    }
}

fn http_route(object: &Value) -> Verdict {
    let parents = object.pointer("/status/parents").and_then(Value::as_array);
    let Some(parents) = parents.filter(|parents| !parents.is_empty()) else {
        return Verdict::Waiting(UNSEEN.to_owned());
    };
    for parent in parents {
        for kind in ["Accepted", "ResolvedRefs"] {
            if let Some(("False", message)) = condition_of(parent, kind) {
                return Verdict::Waiting(format!("not {kind}: {message}"));
            }
        }
    }
    Verdict::Ready("accepted".to_owned())
}

fn pod(object: &Value) -> Verdict {
    match text(object, "/status/phase") {
        "Succeeded" => Verdict::Ready("completed".to_owned()),
        "Failed" => Verdict::Failed(first(&[
            text(object, "/status/message"),
            text(object, "/status/reason"),
            "failed",
        ])),
        _ if condition(object, "Ready").is_some_and(|(status, _)| status == "True") => {
            Verdict::Ready("ready".to_owned())
        }
        _ => Verdict::Waiting(trouble(object).unwrap_or_else(|| "not ready".to_owned())),
    }
}

fn job(object: &Value) -> Verdict {
    if condition(object, "Complete").is_some_and(|(status, _)| status == "True") {
        Verdict::Ready("complete".to_owned())
    } else if let Some(("True", message)) = condition(object, "Failed") {
        Verdict::Failed(message.to_owned())
    } else {
        Verdict::Waiting("not complete".to_owned())
    }
}

fn service(object: &Value) -> Verdict {
    let balanced = object
        .pointer("/status/loadBalancer/ingress")
        .and_then(Value::as_array);
    match text(object, "/spec/type") {
        "LoadBalancer" if balanced.is_none_or(Vec::is_empty) => {
            Verdict::Waiting("has no address yet".to_owned())
        }
        "LoadBalancer" => Verdict::Ready("listening".to_owned()),
        _ => Verdict::Ready(first(&[text(object, "/spec/clusterIP"), "applied"])),
    }
}

fn phase(object: &Value, wanted: &str) -> Verdict {
    match text(object, "/status/phase") {
        phase if phase == wanted => Verdict::Ready(wanted.to_lowercase()),
        "" => Verdict::Waiting(format!("not {}", wanted.to_lowercase())),
        other => Verdict::Waiting(other.to_lowercase()),
    }
}

fn first(texts: &[&str]) -> String {
    texts
        .iter()
        .find(|text| !text.is_empty())
        .map(|text| (*text).to_owned())
        .unwrap_or_default()
}

/// Why a pod is not running, in its own words: `ImagePullBackOff: …`; `None` when nothing is known.
pub(crate) fn trouble(pod: &Value) -> Option<String> {
    let statuses = ["/status/initContainerStatuses", "/status/containerStatuses"];
    for status in statuses
        .iter()
        .filter_map(|path| pod.pointer(path)?.as_array())
        .flatten()
    {
        let reason = text(status, "/state/waiting/reason");
        if !reason.is_empty() && !matches!(reason, "ContainerCreating" | "PodInitializing") {
            let message = first(&[
                text(status, "/state/waiting/message"),
                text(status, "/lastState/terminated/message"),
            ]);
            return Some(if message.is_empty() {
                reason.to_owned()
            } else {
                format!("{reason}: {message}")
            });
        }
    }
    match condition(pod, "PodScheduled") {
        Some(("False", message)) => Some(format!("not scheduled: {message}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_is_ready_when_its_rollout_is_done() {
        let mut object = json!({"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2},
            "status": {"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}});
        assert!(
            matches!(judge(&object), Verdict::Waiting(_)),
            "an old status says nothing"
        );
        object["status"]["observedGeneration"] = json!(2);
        assert_eq!(judge(&object), Verdict::Ready("2/2 ready".to_owned()));
        object["status"]["replicas"] = json!(3);
        assert_eq!(
            judge(&object),
            Verdict::Waiting("1 old pods are still there".to_owned())
        );
        object["status"]["conditions"] =
            json!([{"type": "Progressing", "status": "False", "message": "too late"}]);
        assert_eq!(judge(&object), Verdict::Failed("too late".to_owned()));
    }

    #[test]
    fn a_pod_says_what_keeps_it() {
        let pod = json!({"kind": "Pod", "status": {"phase": "Pending", "containerStatuses": [
            {"state": {"waiting": {"reason": "ErrImagePull", "message": "no such image"}}}]}});
        assert_eq!(
            judge(&pod),
            Verdict::Waiting("ErrImagePull: no such image".to_owned())
        );
    }

    #[test]
    fn a_load_balancer_needs_an_address_and_a_config_map_nothing() {
        let service = json!({"kind": "Service", "spec": {"type": "LoadBalancer"}});
        assert!(matches!(judge(&service), Verdict::Waiting(_)));
        assert_eq!(
            judge(&json!({"kind": "ConfigMap"})),
            Verdict::Ready("applied".to_owned())
        );
    }

    #[test]
    fn a_kind_without_a_controller_is_never_taken_for_ready() {
        for kind in ["StatefulSet", "DaemonSet", "Job"] {
            let object =
                json!({"kind": kind, "metadata": {"generation": 1}, "spec": {"replicas": 1}});
            assert!(matches!(judge(&object), Verdict::Waiting(_)), "{kind}");
        }
    }
}

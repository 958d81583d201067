//! Pods: phase and quality of service of a new one, what an update may change, how long a deletion waits.

use serde_json::{Map, Value, json};
use types::quantity::Quantity;

use super::path::{Path, walk};
use super::pod_spec;
use super::pod_template::default_pod_spec;
use super::quantities;
use super::rules::Rules;
use super::strategy::Door;
use crate::object::Object;
use crate::status::Cause;

pub static POD: Rules = Rules {
    default: |new| {
        if let Some(spec) = new.at_mut(&["spec"]) {
            default_pod_spec(spec);
        }
    },
    prepare,
    validate,
    warnings,
    fields: &[
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ],
    field: |pod, name| match name {
        "spec.hostNetwork" => Some(pod.bool_at(&["spec", "hostNetwork"]).to_string()),
        "status.podIPs" => pod.at(&["status", "podIPs"]).map(|ips| {
            let ips = ips.as_array().into_iter().flatten();
            let texts: Vec<&str> = ips.filter_map(|ip| ip["ip"].as_str()).collect();
            texts.join(",")
        }),
        _ => None,
    },
    grace_seconds,
    returns_deleted: true,
    has_generation: true,
    ..Rules::NEW
};

const CHANGEABLE: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,\
     `spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn prepare(new: &mut Object, old: Option<&Object>, door: Door<'_>) {
    let Some(old) = old else {
        let class = quality_of_service(new);
        new.set(&["status"], json!({"phase": "Pending", "qosClass": class}));
        if !new.list_at(&["spec", "schedulingGates"]).is_empty() {
            let gated = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
            new.set(&["status", "conditions"], gated);
        }
        return;
    };
    match door {
        Door::Subresource("ephemeralcontainers") => {
            keep_all_but(new, old, &["ephemeralContainers"]);
            in_the_old_order(new, old);
        }
        Door::Subresource("resize") => keep_all_but(new, old, &["containers", "initContainers"]),
        _ => {}
    }
}

/// The old object, with these keys of the new spec.
fn keep_all_but(new: &mut Object, old: &Object, keys: &[&str]) {
    let mut kept = old.clone();
    for key in keys {
        if let Some(value) = new.at(&["spec", key]) {
            kept.set(&["spec", key], value.clone());
        }
    }
    for key in ["resourceVersion", "managedFields"] {
        if let Some(value) = new.at(&["metadata", key]) {
            kept.set(&["metadata", key], value.clone());
        }
    }
    *new = kept;
}

/// `Guaranteed` when every container's cpu and memory limits are its requests, `BestEffort` when nobody asks for anything.
fn quality_of_service(pod: &Object) -> &'static str {
    let (mut asked, mut guaranteed) = (false, true);
    for list in ["containers", "initContainers"] {
        for container in pod.list_at(&["spec", list]) {
            for resource in ["cpu", "memory"] {
                let of = |side: &str| {
                    quantities::parse(&container["resources"][side][resource])
                        .filter(|amount| !amount.is_zero())
                };
                let (request, limit): (Option<Quantity>, Option<Quantity>) =
                    (of("requests"), of("limits"));
                asked |= request.is_some() || limit.is_some();
                guaranteed &= limit.is_some() && request == limit;
            }
        }
    }
    match (asked, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn validate(new: &Object, old: Option<&Object>, door: Door<'_>, causes: &mut Vec<Cause>) {
    let spec_path = Path::ROOT.key("spec");
    let spec = new.at(&["spec"]).unwrap_or(&Value::Null);
    match (old, door) {
        (None, _) => {
            pod_spec::validate(&spec_path, spec, causes);
            if !new.list_at(&["spec", "ephemeralContainers"]).is_empty() {
                let why = "cannot be set on create";
                causes.push(Cause::forbidden("spec.ephemeralContainers", why));
            }
        }
        (Some(old), Door::Main) => validate_update(new, old, causes),
        (Some(old), Door::Subresource("ephemeralcontainers")) => {
            pod_spec::validate(&spec_path, spec, causes);
            validate_debug_containers(new, old, causes);
        }
        (Some(_), Door::Subresource("resize")) => pod_spec::validate(&spec_path, spec, causes),
        (Some(_), Door::Subresource(_)) => {}
    }
}

fn validate_update(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    for list in ["containers", "initContainers"] {
        let before = old.list_at(&["spec", list]).len();
        if new.list_at(&["spec", list]).len() != before {
            let why = match list {
                "containers" => "pod updates may not add or remove containers",
                _ => "pod updates may not add or remove init containers",
            };
            causes.push(Cause::forbidden(format!("spec.{list}"), why));
            return;
        }
    }
    let spec = new.at(&["spec"]).unwrap_or(&Value::Null);
    let path = Path::ROOT.key("spec");
    for pattern in ["containers[]", "initContainers[]"] {
        walk(&path, spec, pattern, &mut |path, container| {
            if let Some(container) = container {
                pod_spec::validate_image(path, container, causes);
            }
        });
    }
    validate_deadline(new, old, causes);
    validate_added_tolerations(new, old, causes);
    let (before, after) = (frozen(old), frozen(&with_allowed_grace(new, old)));
    if before != after {
        let why = format!("{CHANGEABLE}\n{}", difference(&before, &after));
        causes.push(Cause::forbidden("spec", &why));
    }
}

/// A deadline may be set or come nearer, not go.
fn validate_deadline(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    const PATH: [&str; 2] = ["spec", "activeDeadlineSeconds"];
    let field = "spec.activeDeadlineSeconds";
    match (new.i64_at(&PATH), old.i64_at(&PATH)) {
        (Some(after), _) if !(1..=2_147_483_647).contains(&after) => {
            let why = "must be between 1 and 2147483647, inclusive";
            causes.push(Cause::invalid(field, &after.into(), why));
        }
        (Some(after), Some(before)) if after > before => {
            let why = "must be less than or equal to previous value";
            causes.push(Cause::invalid(field, &after.into(), why));
        }
        (None, Some(_)) => {
            let why = "must not update from a positive integer to nil value";
            causes.push(Cause::invalid(field, &Value::Null, why));
        }
        _ => {}
    }
}

fn validate_added_tolerations(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    const PATH: [&str; 2] = ["spec", "tolerations"];
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Value::Object(map) = &mut toleration {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let after: Vec<Value> = new.list_at(&PATH).iter().map(without_seconds).collect();
    let gone = old
        .list_at(&PATH)
        .iter()
        .any(|toleration| !after.contains(&without_seconds(toleration)));
    if gone {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        causes.push(Cause::forbidden("spec.tolerations", why));
    }
}

/// A negative grace period may become 1.
fn with_allowed_grace(new: &Object, old: &Object) -> Object {
    const PATH: [&str; 2] = ["spec", "terminationGracePeriodSeconds"];
    let mut new = new.clone();
    if let (Some(before), Some(1)) = (old.i64_at(&PATH), new.i64_at(&PATH))
        && before < 0
    {
        new.set(&PATH, before.into());
    }
    new
}

/// The spec without what an update may change.
fn frozen(pod: &Object) -> Value {
    let mut spec = pod.at(&["spec"]).cloned().unwrap_or_default();
    if let Value::Object(spec) = &mut spec {
        spec.remove("tolerations");
        spec.remove("activeDeadlineSeconds");
        spec.remove("schedulingGates");
    }
    // Ephemeral containers are added at a door of their own, and stay what they are.
    for list in ["initContainers", "containers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            if let Value::Object(container) = container {
                container.remove("image");
            }
        }
    }
    spec
}

/// The keys of two specs that differ, one `-` and one `+` line each.
fn difference(before: &Value, after: &Value) -> String {
    let none = Map::new();
    let (before, after) = (
        before.as_object().unwrap_or(&none),
        after.as_object().unwrap_or(&none),
    );
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    let lines: Vec<String> = keys
        .into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .map(|key| {
            let show =
                |spec: &Map<String, Value>| spec.get(key).unwrap_or(&Value::Null).to_string();
            format!("- {key:?}: {}\n+ {key:?}: {}\n", show(before), show(after))
        })
        .collect();
    lines.concat()
}

/// Nodes go by a container's place: what is new comes last, wherever a client put it.
fn in_the_old_order(new: &mut Object, old: &Object) {
    const PATH: [&str; 2] = ["spec", "ephemeralContainers"];
    let known = old.list_at(&PATH).to_vec();
    let mut list = new.list_at(&PATH).to_vec();
    let place = |container: &Value| {
        let same = |other: &Value| other["name"] == container["name"];
        known.iter().position(same).unwrap_or(usize::MAX)
    };
    if !list.is_sorted_by_key(place) {
        list.sort_by_key(place);
        new.set(&PATH, list.into());
    }
}

/// Debug containers are only ever added.
fn validate_debug_containers(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    const PATH: [&str; 2] = ["spec", "ephemeralContainers"];
    for container in old.list_at(&PATH) {
        let name = &container["name"];
        let why = match new
            .list_at(&PATH)
            .iter()
            .find(|other| other["name"] == *name)
        {
            None => format!("existing ephemeral containers {name} may not be removed\n"),
            Some(other) if other != container => {
                format!("existing ephemeral containers {name} may not be changed\n")
            }
            Some(_) => continue,
        };
        causes.push(Cause::forbidden("spec.ephemeralContainers", &why));
    }
}

/// Seconds a deletion waits: what was asked, else what the pod says; nothing for a pod no node has or that has ended.
fn grace_seconds(pod: &Object, requested: Option<i64>) -> Option<i64> {
    let said = pod
        .i64_at(&["spec", "terminationGracePeriodSeconds"])
        .unwrap_or(30);
    let seconds = requested.unwrap_or(said);
    let unscheduled = pod.str_at(&["spec", "nodeName"]).is_none_or(str::is_empty);
    let ended = matches!(
        pod.str_at(&["status", "phase"]),
        Some("Succeeded" | "Failed")
    );
    Some(match seconds {
        _ if unscheduled || ended => 0,
        negative if negative < 0 => 1,
        seconds => seconds,
    })
}

fn warnings(new: &Object, _old: Option<&Object>) -> Vec<String> {
    let spec = new.at(&["spec"]).unwrap_or(&Value::Null);
    template_warnings(&Path::ROOT.key("spec"), spec)
}

/// What a pod spec says that is accepted but surely not meant.
pub fn template_warnings(path: &Path<'_>, spec: &Value) -> Vec<String> {
    let mut warnings = Vec::new();
    if spec["terminationGracePeriodSeconds"]
        .as_i64()
        .is_some_and(|seconds| seconds < 0)
    {
        warnings.push(format!(
            "{}: must be >= 0; negative values are invalid and will be treated as 1",
            path.key("terminationGracePeriodSeconds")
        ));
    }
    for (old, new) in [
        ("beta.kubernetes.io/arch", "kubernetes.io/arch"),
        ("beta.kubernetes.io/os", "kubernetes.io/os"),
    ] {
        if !spec["nodeSelector"][old].is_null() {
            let field = path.key("nodeSelector");
            warnings.push(format!(
                "{}: deprecated since v1.14; use {new:?} instead",
                field.entry(old)
            ));
        }
    }
    walk(path, spec, "containers[]", &mut |path, container| {
        let env = path.key("env");
        let mut seen: Vec<&Value> = Vec::new();
        let list = container.and_then(|container| container["env"].as_array());
        for (i, variable) in list.into_iter().flatten().enumerate() {
            let name = &variable["name"];
            if seen.contains(&name) {
                warnings.push(format!(
                    "{}: hides previous definition of {name}, which may be dropped when using apply",
                    env.index(i)
                ));
            }
            seen.push(name);
        }
    });
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds::testing::{check_update, defaulted, yaml};

    const OLD: &str = "{metadata: {name: p}, spec: {containers: [{name: c, image: x}], nodeName: n, tolerations: [{key: a, operator: Exists}]}}";

    #[test]
    fn a_new_pod_is_pending_and_knows_its_quality_of_service() {
        let cases = [
            ("{}", "BestEffort"),
            ("{limits: {cpu: 500m, memory: 512Mi}}", "Guaranteed"),
            ("{limits: {cpu: 500m}}", "Burstable"),
            (
                "{requests: {memory: 1Gi}, limits: {cpu: '1', memory: 2Gi}}",
                "Burstable",
            ),
        ];
        for (resources, class) in cases {
            let text = format!(
                "{{metadata: {{name: p}}, spec: {{containers: [{{name: c, image: x, resources: {resources}}}]}}, status: {{phase: Running}}}}"
            );
            let pod = defaulted("pods", &text);
            assert_eq!(
                pod["status"],
                json!({"phase": "Pending", "qosClass": class})
            );
        }
    }

    #[test]
    fn an_update_may_change_images_deadlines_and_add_tolerations() {
        check_update(
            "pods",
            OLD,
            "{metadata: {name: p}, spec: {containers: [{name: c, image: y}], nodeName: n, activeDeadlineSeconds: 5, tolerations: [{key: b, operator: Exists}, {key: a, operator: Exists, tolerationSeconds: 3}]}}",
            &[],
        );
    }

    #[test]
    fn an_update_may_change_nothing_else() {
        let why = format!(
            "spec: Forbidden: {CHANGEABLE}\n- \"nodeName\": \"n\"\n+ \"nodeName\": \"m\"\n"
        );
        check_update(
            "pods",
            OLD,
            "{metadata: {name: p}, spec: {containers: [{name: c, image: ''}], nodeName: m}}",
            &[
                "spec.containers[0].image: Required value",
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
                &why,
            ],
        );
        check_update(
            "pods",
            OLD,
            "{metadata: {name: p}, spec: {containers: []}}",
            &["spec.containers: Forbidden: pod updates may not add or remove containers"],
        );
    }

    #[test]
    fn ephemeral_containers_keep_their_places_and_what_they_are() {
        let spec = |list: &str| {
            yaml(&format!(
                "{{metadata: {{name: p}}, spec: {{containers: [{{name: c, image: x}}], ephemeralContainers: [{list}]}}}}"
            ))
        };
        let old = spec("{name: a, image: x}, {name: b, image: x}");
        let door = Door::Subresource("ephemeralcontainers");
        let mut new = spec("{name: d, image: x}, {name: b, image: x}, {name: a, image: x}");
        prepare(&mut new, Some(&old), door);
        let names = new.list_at(&["spec", "ephemeralContainers"]).iter();
        let names: Vec<_> = names.map(|container| &container["name"]).collect();
        assert_eq!(names, ["a", "b", "d"]);
        let mut causes = Vec::new();
        validate_debug_containers(&new, &old, &mut causes);
        assert!(causes.is_empty(), "{causes:?}");
        let changed = spec("{name: a, image: y}, {name: b, image: x}");
        assert_ne!(frozen(&changed), frozen(&old));
    }

    #[test]
    fn a_deletion_waits_only_where_something_runs() {
        let pod = |text: &str| yaml(text);
        let running = pod(
            "{spec: {nodeName: n, terminationGracePeriodSeconds: 7}, status: {phase: Running}}",
        );
        assert_eq!(grace_seconds(&running, None), Some(7));
        assert_eq!(grace_seconds(&running, Some(0)), Some(0));
        assert_eq!(grace_seconds(&running, Some(-3)), Some(1));
        assert_eq!(
            grace_seconds(&pod("{spec: {terminationGracePeriodSeconds: 7}}"), None),
            Some(0)
        );
        assert_eq!(
            grace_seconds(&pod("{spec: {nodeName: n}, status: {phase: Failed}}"), None),
            Some(0)
        );
    }

    #[test]
    fn a_hidden_variable_is_worth_a_warning() {
        let pod = yaml("{spec: {containers: [{name: c, env: [{name: A}, {name: A}]}]}}");
        assert_eq!(
            warnings(&pod, None),
            [
                "spec.containers[0].env[1]: hides previous definition of \"A\", which may be dropped when using apply"
            ]
        );
    }
}

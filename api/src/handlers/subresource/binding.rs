//! `binding`: the scheduler's one write, a node name for a pod that has none.

use serde_json::{Value, json};

use crate::handlers::Call;
use crate::handlers::reply::Reply;
use crate::kinds::Kind;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::registry::{Change, Registry};
use crate::request::query::WriteOptions;
use crate::schema::GroupVersionKind;
use crate::status::{Cause, Error};

const BINDING: &str = "io.k8s.api.core.v1.Binding";

pub(super) async fn bind(call: &Call<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = call.query.write_options("CreateOptions")?;
    let gvk = GroupVersionKind {
        group: String::new(),
        version: "v1".to_owned(),
        kind: "Binding".to_owned(),
    };
    let mut warnings = Vec::new();
    let binding = call.decode(body, BINDING, &gvk, options.validation, &mut warnings)?;
    if binding.name() != call.path.name {
        return Err(Error::bad_request(
            "name in URL does not match name in Binding object",
        ));
    }
    bind_object(call, call.path.name.clone(), &binding, &options).await
}

/// Binds pod `name` as `binding` says.
pub(super) async fn bind_object(
    call: &Call<'_>,
    name: String,
    binding: &Object,
    options: &WriteOptions,
) -> Result<Reply, Error> {
    let target = check(binding)?;
    let pods: &'static Kind = call
        .api
        .kinds
        .find("", "v1", "pods")
        .ok_or_else(|| Error::internal("there are no pods to bind"))?;
    let mut registry = Registry {
        kind: pods,
        ..call.registry(Door::Subresource("binding"), "", options.dry_run)
    };
    let now = call.now;
    registry
        .update(&name, "create", false, &mut |old| {
            let Some(pod) = old else {
                return Err(Error::internal("there is no pod to bind"));
            };
            assign(pod, binding, &target, &name, now).map(|new| Change { new, owned: true })
        })
        .await?;
    call.created()
}

/// The node a binding names.
fn check(binding: &Object) -> Result<String, Error> {
    let kind = binding.str_at(&["target", "kind"]).unwrap_or_default();
    let mut causes = Vec::new();
    if !kind.is_empty() && kind != "Node" {
        let allowed = ["Node", "<empty>"];
        causes.push(Cause::not_supported("target.kind", &json!(kind), &allowed));
    }
    let target = binding.str_at(&["target", "name"]).unwrap_or_default();
    if target.is_empty() {
        causes.push(Cause::required("target.name", ""));
    }
    if causes.is_empty() {
        return Ok(target.to_owned());
    }
    Err(Error::invalid("", "Binding", binding.name(), causes))
}

fn assign(
    pod: &Object,
    binding: &Object,
    target: &str,
    name: &str,
    now: jiff::Timestamp,
) -> Result<Object, Error> {
    let conflict = |why: &str| Err(Error::conflict("", "pods/binding", name, why));
    let uid = binding.uid();
    if !uid.is_empty() && uid != pod.uid() {
        return conflict(&format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            pod.uid()
        ));
    }
    if pod.is_deleting() {
        return conflict(&format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let current = pod.str_at(&["spec", "nodeName"]).unwrap_or_default();
    if !current.is_empty() {
        return conflict(&format!(
            "pod {name} is already assigned to node {current:?}"
        ));
    }
    if !pod.list_at(&["spec", "schedulingGates"]).is_empty() {
        return conflict(&format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    let mut new = pod.clone();
    new.set(&["spec", "nodeName"], json!(target));
    for (key, value) in binding.annotations() {
        new.set(&["metadata", "annotations", key], json!(value));
    }
    for (key, value) in binding.labels() {
        new.set(&["metadata", "labels", key], json!(value));
    }
    scheduled(&mut new, now);
    Ok(new)
}

/// The condition `PodScheduled`.
fn scheduled(pod: &mut Object, now: jiff::Timestamp) {
    let mut conditions = pod.list_at(&["status", "conditions"]).to_vec();
    let at = crate::registry::time(now);
    let condition = json!({
        "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": at,
    });
    match conditions
        .iter_mut()
        .find(|condition| condition["type"] == "PodScheduled")
    {
        Some(existing) if existing["status"] == "True" => {}
        Some(existing) => *existing = condition,
        None => conditions.push(condition),
    }
    pod.set(&["status", "conditions"], Value::Array(conditions));
}

//! `scale`: one integer of an object, seen through the shape `autoscaling/v1.Scale`.

use http::StatusCode;
use serde_json::{Value, json};

use crate::codec;
use crate::handlers::patch::Patch;
use crate::handlers::reply::Reply;
use crate::handlers::{Call, strictness};
use crate::kinds::label_selector;
use crate::kinds::strategy::{Door, ScalePaths};
use crate::object::Object;
use crate::registry::{Change, encode};
use crate::schema::GroupVersionKind;
use crate::status::{Cause, Error};

const SCALE: &str = "io.k8s.api.autoscaling.v1.Scale";

pub(super) async fn scale(call: &Call<'_>, verb: &str, body: &[u8]) -> Result<Reply, Error> {
    let paths = call
        .kind
        .strategy
        .scale()
        .ok_or_else(Error::no_such_resource)?;
    if verb == "get" {
        let registry = call.registry(Door::Main, "", false);
        let stored = registry.find(&call.path.name)?;
        let shown = shape(&registry.read(&stored)?, &paths);
        return call.format(StatusCode::OK, encode::finished(&shown), SCALE);
    }
    let options_kind = match verb {
        "update" => "UpdateOptions",
        _ => "PatchOptions",
    };
    let options = call.query.write_options(options_kind)?;
    let manager = call.manager(&options).to_owned();
    let gvk = GroupVersionKind {
        group: "autoscaling".to_owned(),
        version: "v1".to_owned(),
        kind: "Scale".to_owned(),
    };
    let schema = call.api.schema;
    let ty = call.type_of(SCALE)?;
    let mut warnings = Vec::new();
    let wanted = match verb {
        "update" => {
            Wanted::Whole(call.decode(body, SCALE, &gvk, options.validation, &mut warnings)?)
        }
        _ if crate::handlers::patch::is_apply(call) => {
            let decoded = codec::decode_apply(body, schema, ty, &gvk)?;
            strictness(&gvk, decoded.strict, options.validation, &mut warnings)?;
            Wanted::Apply(decoded.object.into_value())
        }
        _ => Wanted::Patched(Patch::read(call, body)?),
    };
    let mut registry = call.registry(Door::Subresource("scale"), &manager, options.dry_run);
    let outcome = registry
        .update(&call.path.name, verb, false, &mut |old| {
            let Some(old) = old else {
                return Err(Error::internal("there is nothing to scale"));
            };
            let current = shape(old, &paths);
            let scale = match &wanted {
                Wanted::Whole(scale) => scale.clone(),
                // An applied Scale is one field: the replicas it names are set.
                Wanted::Apply(config) => object(crate::patch::merge(current.value(), config))?,
                Wanted::Patched(patch) => {
                    let patched = patch.apply(schema, ty, current.value())?;
                    let conformed =
                        codec::conform(schema, ty, patched).map_err(Error::bad_request)?;
                    object(conformed.value)?
                }
            };
            apply(old, &scale, &paths, call).map(|new| Change { new, owned: false })
        })
        .await?;
    warnings.append(&mut registry.warnings);
    let shown = shape(&parse(call, &outcome.bytes)?, &paths);
    let mut reply = call.format(StatusCode::OK, encode::finished(&shown), SCALE)?;
    reply.warn(&warnings);
    Ok(reply)
}

enum Wanted {
    Whole(Object),
    Apply(Value),
    Patched(Patch),
}

/// The object as a Scale.
fn shape(object: &Object, paths: &ScalePaths) -> Object {
    let metadata = |key: &str| object.at(&["metadata", key]).cloned();
    let mut shown = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {},
        "spec": {},
        "status": { "replicas": object.i64_at(paths.status_replicas).unwrap_or(0) },
    });
    for key in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = metadata(key) {
            shown["metadata"][key] = value;
        }
    }
    if let Some(replicas) = object.i64_at(paths.spec_replicas).filter(|n| *n != 0) {
        shown["spec"]["replicas"] = json!(replicas);
    }
    if let Some(selector) = object.at(paths.selector) {
        let text = selector_text(selector);
        if !text.is_empty() {
            shown["status"]["selector"] = json!(text);
        }
    }
    Object::new(shown).expect("the literal above is an object")
}

/// A label selector (or a plain map of labels) as text: `app=web,tier in (a,b)`; empty when it selects nothing.
fn selector_text(selector: &Value) -> String {
    let structured =
        selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let plain = json!({ "matchLabels": selector });
    let selector = if structured { selector } else { &plain };
    if label_selector::is_empty(selector) {
        return String::new();
    }
    label_selector::format(selector)
}

/// The object with the Scale's replicas. The Scale's revision is the object's.
fn apply(
    old: &Object,
    scale: &Object,
    paths: &ScalePaths,
    call: &Call<'_>,
) -> Result<Object, Error> {
    let replicas = scale.i64_at(&["spec", "replicas"]).unwrap_or(0);
    if replicas < 0 {
        let cause = Cause::invalid(
            "spec.replicas",
            &json!(replicas),
            "must be greater than or equal to 0",
        );
        return Err(Error::invalid(
            "autoscaling",
            "Scale",
            &call.path.name,
            vec![cause],
        ));
    }
    for key in ["uid", "resourceVersion"] {
        let given = scale.str_at(&["metadata", key]).unwrap_or_default();
        if !given.is_empty() && Some(given) != old.str_at(&["metadata", key]) {
            let (group, plural) = (&call.kind.group, &call.kind.plural);
            return Err(Error::modified(group, plural, &call.path.name));
        }
    }
    let mut new = old.clone();
    new.set(paths.spec_replicas, json!(replicas));
    Ok(new)
}

fn parse(call: &Call<'_>, bytes: &[u8]) -> Result<Object, Error> {
    let value = serde_json::from_slice(bytes).map_err(|error| {
        Error::internal(format!("a stored {} is broken: {error}", call.kind.kind))
    })?;
    object(value)
}

fn object(value: Value) -> Result<Object, Error> {
    Object::new(value).map_err(|_| Error::bad_request("a Scale must be an object"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_is_written_as_clients_type_it() {
        for (selector, expect) in [
            (json!({"matchLabels": {"a": "b", "c": "d"}}), "a=b,c=d"),
            (json!({"a": "b"}), "a=b"),
            (
                json!({"matchExpressions": [{"key": "a", "operator": "In", "values": ["x", "y"]},
                    {"key": "b", "operator": "DoesNotExist"}]}),
                "a in (x,y),!b",
            ),
        ] {
            assert_eq!(selector_text(&selector), expect);
        }
    }
}

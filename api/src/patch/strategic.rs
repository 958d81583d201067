//! Strategic merge patch: lists merge by key, and directives say what JSON cannot.
//!
//! `$patch: replace | delete | merge` · `$retainKeys: […]` · `$deleteFromPrimitiveList/<field>` ·
//! `$setElementOrder/<field>`. Source of the rules: upstream's `apimachinery/pkg/util/strategicpatch` and its design page.
//! Where the type graph knows nothing (any JSON), maps merge and lists are replaced.

use serde_json::{Map, Value};

use crate::schema::{PatchStrategy, Schema, Type, TypeId};
use crate::status::Error;

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies a strategic merge patch to an object of type `ty`.
///
/// Errors: 400 naming the directive or list that makes no sense.
pub fn strategic(
    schema: &Schema,
    ty: TypeId,
    original: &Value,
    patch: &Value,
) -> Result<Value, Error> {
    let (Value::Object(original), Value::Object(patch)) = (original, patch) else {
        return Err(Error::bad_request(
            "a strategic merge patch must be a JSON object",
        ));
    };
    let merged = merge_map(schema, Some(ty), original.clone(), patch)?;
    Ok(Value::Object(merged))
}

/// Type and patch strategy of what stands under `key`.
fn field<'s>(
    schema: &'s Schema,
    ty: Option<TypeId>,
    key: &str,
) -> (Option<TypeId>, Option<&'s PatchStrategy>) {
    match ty.map(|ty| schema.get(ty)) {
        Some(Type::Struct(s)) => s
            .fields
            .get(key)
            .map_or((None, None), |f| (Some(f.ty), Some(&f.patch))),
        Some(Type::Map { value, .. }) => (Some(*value), None),
        _ => (None, None),
    }
}

fn item(schema: &Schema, ty: Option<TypeId>) -> Option<TypeId> {
    match schema.get(ty?) {
        Type::List { item, .. } => Some(*item),
        _ => None,
    }
}

fn merge_map(
    schema: &Schema,
    ty: Option<TypeId>,
    mut original: Map<String, Value>,
    patch: &Map<String, Value>,
) -> Result<Map<String, Value>, Error> {
    match patch.get(DIRECTIVE).map(directive).transpose()? {
        Some("replace") => return Ok(clean(patch)),
        Some("delete") => return Ok(Map::new()),
        _ => {}
    }
    if let Some(keep) = patch.get(RETAIN_KEYS) {
        retain_keys(&mut original, keep, patch)?;
    }
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix(DELETE_FROM) {
            delete_primitives(&mut original, name, value)?;
        } else if !key.starts_with('$') {
            let (ty, strategy) = field(schema, ty, key);
            merge_value(schema, ty, strategy, &mut original, key, value)?;
        }
    }
    for (key, order) in patch {
        if let Some(name) = key.strip_prefix(ELEMENT_ORDER) {
            let (_, strategy) = field(schema, ty, name);
            let merge_key = strategy.and_then(|s| s.merge_key.as_deref());
            reorder(&mut original, name, order, merge_key)?;
        }
    }
    Ok(original)
}

fn merge_value(
    schema: &Schema,
    ty: Option<TypeId>,
    strategy: Option<&PatchStrategy>,
    original: &mut Map<String, Value>,
    key: &str,
    patch: &Value,
) -> Result<(), Error> {
    let merged = match (original.remove(key), patch) {
        (_, Value::Null) => return Ok(()),
        (Some(Value::Object(old)), Value::Object(new)) => {
            Value::Object(merge_map(schema, ty, old, new)?)
        }
        (None, Value::Object(new)) => Value::Object(merge_map(schema, ty, Map::new(), new)?),
        (old, Value::Array(new)) if strategy.is_some_and(|s| s.merge) => {
            let old = match old {
                Some(Value::Array(old)) => old,
                _ => Vec::new(),
            };
            let merge_key = strategy.and_then(|s| s.merge_key.as_deref());
            Value::Array(merge_list(
                schema,
                item(schema, ty),
                merge_key,
                key,
                old,
                new,
            )?)
        }
        (_, new) => clean_value(new),
    };
    original.insert(key.to_owned(), merged);
    Ok(())
}

fn merge_list(
    schema: &Schema,
    item: Option<TypeId>,
    merge_key: Option<&str>,
    field: &str,
    mut old: Vec<Value>,
    patch: &[Value],
) -> Result<Vec<Value>, Error> {
    let Some(merge_key) = merge_key else {
        // A set of primitives: the union, first come first.
        for value in patch {
            if !old.contains(value) {
                old.push(value.clone());
            }
        }
        return Ok(old);
    };
    let mut replace = false;
    for entry in patch {
        let map = entry.as_object().ok_or_else(|| not_an_object(field))?;
        match map.get(DIRECTIVE).map(directive).transpose()? {
            Some("replace") => replace = true,
            Some("delete") => {
                let id = map
                    .get(merge_key)
                    .ok_or_else(|| no_key(field, merge_key, "delete patch"))?;
                old.retain(|item| item.get(merge_key) != Some(id));
            }
            _ => {}
        }
    }
    let ordinary = patch
        .iter()
        .filter_map(Value::as_object)
        .filter(|map| !is_special(map));
    if replace {
        return Ok(ordinary.map(|map| Value::Object(clean(map))).collect());
    }
    for map in ordinary {
        let id = map
            .get(merge_key)
            .ok_or_else(|| no_key(field, merge_key, "map"))?;
        match old.iter_mut().find(|item| item.get(merge_key) == Some(id)) {
            Some(slot) => {
                let Value::Object(before) = slot.take() else {
                    return Err(not_an_object(field));
                };
                *slot = Value::Object(merge_map(schema, item, before, map)?);
            }
            None => old.push(Value::Object(merge_map(schema, item, Map::new(), map)?)),
        }
    }
    Ok(old)
}

/// `$patch: delete` entries and the bare `$patch: replace` marker; `$patch: merge` is an ordinary entry.
fn is_special(map: &Map<String, Value>) -> bool {
    matches!(
        map.get(DIRECTIVE).and_then(Value::as_str),
        Some("delete" | "replace")
    )
}

fn directive(value: &Value) -> Result<&str, Error> {
    match value.as_str() {
        Some(name @ ("replace" | "delete" | "merge")) => Ok(name),
        _ => Err(Error::bad_request(format!(
            "unknown patch type: {value} found in $patch directive"
        ))),
    }
}

fn retain_keys(
    original: &mut Map<String, Value>,
    keep: &Value,
    patch: &Map<String, Value>,
) -> Result<(), Error> {
    let keep: Vec<&str> = keep
        .as_array()
        .and_then(|keys| keys.iter().map(Value::as_str).collect())
        .ok_or_else(|| {
            Error::bad_request(
                "invalid patch format of retainKeys: a list of field names is wanted",
            )
        })?;
    let stranger = patch.iter().find(|(key, value)| {
        !key.starts_with('$') && !value.is_null() && !keep.contains(&key.as_str())
    });
    if let Some((key, _)) = stranger {
        return Err(Error::bad_request(format!(
            "invalid patch: {key:?} is patched but not in $retainKeys"
        )));
    }
    original.retain(|key, _| keep.contains(&key.as_str()));
    Ok(())
}

fn delete_primitives(
    original: &mut Map<String, Value>,
    field: &str,
    gone: &Value,
) -> Result<(), Error> {
    let gone = gone.as_array().ok_or_else(|| {
        Error::bad_request(format!(
            "invalid patch: {DELETE_FROM}{field} must be a list"
        ))
    })?;
    if let Some(Value::Array(list)) = original.get_mut(field) {
        list.retain(|value| !gone.contains(value));
    }
    Ok(())
}

/// Puts the elements named by `$setElementOrder` into that order; the others keep theirs, and where both have a place in
/// the merged list, that decides between them.
fn reorder(
    original: &mut Map<String, Value>,
    field: &str,
    order: &Value,
    merge_key: Option<&str>,
) -> Result<(), Error> {
    let order = order.as_array().ok_or_else(|| {
        Error::bad_request(format!(
            "invalid patch: {ELEMENT_ORDER}{field} must be a list"
        ))
    })?;
    let Some(Value::Array(list)) = original.get_mut(field) else {
        return Ok(());
    };
    let same = |a: &Value, b: &Value| match merge_key {
        Some(key) => a.get(key).is_some() && a.get(key) == b.get(key),
        None => a == b,
    };
    let place = |value: &Value| order.iter().position(|wanted| same(wanted, value));
    let mut named: Vec<(usize, usize, Value)> = Vec::new();
    let mut others: Vec<(usize, Value)> = Vec::new();
    for (at, value) in std::mem::take(list).into_iter().enumerate() {
        match place(&value) {
            Some(wanted) => named.push((wanted, at, value)),
            None => others.push((at, value)),
        }
    }
    named.sort_by_key(|(wanted, ..)| *wanted);
    let mut named = named.into_iter().peekable();
    for (at, other) in others {
        while let Some((_, _, value)) = named.next_if(|(_, before, _)| *before < at) {
            list.push(value);
        }
        list.push(other);
    }
    list.extend(named.map(|(_, _, value)| value));
    Ok(())
}

/// A copy without nulls and directives: what a patch says about something that was not there.
fn clean(map: &Map<String, Value>) -> Map<String, Value> {
    let kept = map
        .iter()
        .filter(|(key, value)| !key.starts_with('$') && !value.is_null());
    kept.map(|(key, value)| (key.clone(), clean_value(value)))
        .collect()
}

fn clean_value(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(clean(map)),
        other => other.clone(),
    }
}

fn not_an_object(field: &str) -> Error {
    Error::bad_request(format!(
        "invalid patch: the items of {field} must be objects"
    ))
}

fn no_key(field: &str, merge_key: &str, what: &str) -> Error {
    Error::bad_request(format!(
        "{what} of {field} does not contain declared merge key: {merge_key}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;
    use serde_json::json;

    fn patched(definition: &str, original: Value, patch: Value) -> Value {
        let schema = schema::builtin();
        let ty = schema
            .named(definition)
            .expect("the definition is a served one");
        strategic(schema, ty, &original, &patch).unwrap_or_else(|error| json!(error.message))
    }

    fn pod(original: Value, patch: Value) -> Value {
        patched("io.k8s.api.core.v1.PodSpec", original, patch)
    }

    #[test]
    fn containers_merge_by_name() {
        let got = pod(
            json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3"}]}),
        );
        let want = json!({"containers": [
            {"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]});
        assert_eq!(got, want);
    }

    #[test]
    fn delete_and_replace_directives() {
        let original = json!({"containers": [{"name": "a"}, {"name": "b"}]});
        let got = pod(
            original.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        );
        assert_eq!(got, json!({"containers": [{"name": "b"}]}));
        let got = pod(
            original.clone(),
            json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
        );
        assert_eq!(got, json!({"containers": [{"name": "z"}]}));
        let got = pod(
            original,
            json!({"containers": [{"name": "a", "$patch": "destroy"}]}),
        );
        assert_eq!(
            got,
            json!("unknown patch type: \"destroy\" found in $patch directive")
        );
    }

    #[test]
    fn a_null_removes_and_a_missing_key_is_refused() {
        let got = pod(
            json!({"nodeName": "n", "hostname": "h"}),
            json!({"nodeName": null}),
        );
        assert_eq!(got, json!({"hostname": "h"}));
        let got = pod(json!({}), json!({"containers": [{"image": "x"}]}));
        assert_eq!(
            got,
            json!("map of containers does not contain declared merge key: name")
        );
    }

    #[test]
    fn element_order_is_kept_for_named_and_unnamed_items() {
        let got = pod(
            json!({"containers": [{"name": "a"}, {"name": "server"}, {"name": "b"}]}),
            json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}],
                   "containers": [{"name": "c"}]}),
        );
        let names: Vec<_> = got["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| c["name"].clone())
            .collect();
        assert_eq!(names, [json!("server"), json!("c"), json!("b"), json!("a")]);
    }

    #[test]
    fn retained_keys_drop_the_others() {
        let got = patched(
            "io.k8s.api.apps.v1.DeploymentSpec",
            json!({"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        );
        assert_eq!(got, json!({"strategy": {"type": "Recreate"}}));
    }

    #[test]
    fn primitive_sets_unite_and_shrink() {
        let meta = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
        let got = patched(
            meta,
            json!({"finalizers": ["a", "b"]}),
            json!({"finalizers": ["b", "c"]}),
        );
        assert_eq!(got, json!({"finalizers": ["a", "b", "c"]}));
        let got = patched(
            meta,
            json!({"finalizers": ["a", "b"]}),
            json!({"$deleteFromPrimitiveList/finalizers": ["a"]}),
        );
        assert_eq!(got, json!({"finalizers": ["b"]}));
    }

    #[test]
    fn an_atomic_list_is_replaced() {
        let got = patched(
            "io.k8s.api.core.v1.Container",
            json!({"args": ["a", "b"]}),
            json!({"args": ["c"]}),
        );
        assert_eq!(got, json!({"args": ["c"]}));
    }
}

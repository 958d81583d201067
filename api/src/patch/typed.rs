//! What ownership needs of a typed tree: which paths it has, how two differ, how to merge one into another, how to take
//! paths out. Follows structured-merge-diff's walkers; knows no managers.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::fields::{Fields, Step};
use crate::schema::{Field, ListMerge, Schema, Type, TypeId};

/// How two trees differ.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// Added or modified.
    pub(super) changed: Fields,
    pub(super) removed: Fields,
}

/// A place in the type graph; `None` inside arbitrary JSON.
type Place = Option<TypeId>;

/// What a value is to ownership.
enum Shape<'s> {
    /// Owned as a whole.
    Leaf,
    Struct(&'s BTreeMap<Box<str>, Field>),
    Map(TypeId),
    Set,
    Keyed(TypeId, &'s [Box<str>]),
}

fn shape(schema: &Schema, place: Place) -> Shape<'_> {
    match place.map(|ty| schema.get(ty)) {
        Some(Type::Struct(s)) if !s.atomic => Shape::Struct(&s.fields),
        Some(Type::Map {
            value,
            atomic: false,
        }) => Shape::Map(*value),
        Some(Type::List {
            merge: ListMerge::Set,
            ..
        }) => Shape::Set,
        Some(Type::List {
            item,
            merge: ListMerge::Map { keys },
        }) => Shape::Keyed(*item, keys),
        _ => Shape::Leaf,
    }
}

/// The step to a keyed item; a missing key field counts with its default (`protocol: TCP`).
fn key_step(schema: &Schema, item: TypeId, keys: &[Box<str>], value: &Value) -> Step {
    let default = |key: &str| {
        schema
            .field(item, key)
            .and_then(|field| field.default.as_ref())
    };
    let keys = keys
        .iter()
        .filter_map(|key| Some((&**key, value.get(&**key).or_else(|| default(key))?)));
    Step::key(&keys.collect())
}

fn step_of(schema: &Schema, shape: &Shape<'_>, value: &Value) -> Step {
    match shape {
        Shape::Keyed(item, keys) => key_step(schema, *item, keys, value),
        _ => Step::value(value),
    }
}

/// Items of a list by step, in order; of duplicates the first counts.
fn items<'v>(
    schema: &Schema,
    shape: &Shape<'_>,
    list: Option<&'v Value>,
) -> Vec<(Step, &'v Value)> {
    let mut found: Vec<(Step, &Value)> = Vec::new();
    let mut seen = BTreeSet::new();
    for value in list.and_then(Value::as_array).into_iter().flatten() {
        let step = step_of(schema, shape, value);
        if seen.insert(step.clone()) {
            found.push((step, value));
        }
    }
    found
}

fn item_place(shape: &Shape<'_>) -> Place {
    match shape {
        Shape::Keyed(item, _) => Some(*item),
        _ => None,
    }
}

/// Is this empty (or absent) as a map or list? Such a thing is owned like a leaf, so that `{}` is not lost.
fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(list)) => list.is_empty(),
        Some(_) => false,
    }
}

// === paths of one tree ===

/// Every path that `value` states: leaves, list items, map entries, empty maps.
pub(super) fn paths(schema: &Schema, ty: TypeId, value: &Value) -> Fields {
    let mut fields = Fields::default();
    add_paths(schema, Some(ty), value, &mut Vec::new(), &mut fields);
    fields
}

fn add_paths(
    schema: &Schema,
    place: Place,
    value: &Value,
    path: &mut Vec<Step>,
    fields: &mut Fields,
) {
    let shape = shape(schema, place);
    match (&shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => {
            for (key, child) in map {
                let below = child_place(&shape, key);
                path.push(Step::Field(key.clone()));
                add_paths(schema, below, child, path, fields);
                let known =
                    matches!(&shape, Shape::Struct(known) if known.contains_key(key.as_str()));
                if !known || (!child.is_array() && is_empty(Some(child))) {
                    fields.insert(path);
                }
                path.pop();
            }
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(_)) => {
            for (step, child) in items(schema, &shape, Some(value)) {
                path.push(step);
                add_paths(schema, item_place(&shape), child, path, fields);
                fields.insert(path);
                path.pop();
            }
        }
        _ => fields.insert(path),
    }
}

fn child_place(shape: &Shape<'_>, key: &str) -> Place {
    match shape {
        Shape::Struct(fields) => fields.get(key).map(|field| field.ty),
        Shape::Map(value) => Some(*value),
        _ => None,
    }
}

// === difference of two trees ===

/// Where `new` differs from `old`.
pub(super) fn difference(schema: &Schema, ty: TypeId, old: &Value, new: &Value) -> Difference {
    let mut difference = Difference::default();
    compare(
        schema,
        Some(ty),
        Some(old),
        Some(new),
        true,
        &mut Vec::new(),
        &mut difference,
    );
    difference
}

/// `implied`: Go writes this field even where nothing was said about it (a struct by value, `containers: null`).
fn compare(
    schema: &Schema,
    place: Place,
    old: Option<&Value>,
    new: Option<&Value>,
    implied: bool,
    path: &mut Vec<Step>,
    out: &mut Difference,
) {
    let shape = shape(schema, place);
    let mixed = [old, new].into_iter().flatten().any(|value| match shape {
        Shape::Leaf => true,
        Shape::Struct(_) | Shape::Map(_) => !value.is_object() && !value.is_null(),
        Shape::Set | Shape::Keyed(..) => !value.is_array() && !value.is_null(),
    });
    if mixed || (is_empty(old) && is_empty(new)) {
        match (old, new) {
            (Some(_), None) => out.removed.insert(path),
            (old, Some(new)) if old != Some(new) => out.changed.insert(path),
            _ => {}
        }
        return;
    }
    match shape {
        Shape::Struct(_) | Shape::Map(_) => compare_maps(schema, &shape, old, new, path, out),
        _ => compare_lists(schema, &shape, old, new, path, out),
    }
    if !path.is_empty() && !implied {
        match (old, new) {
            (None, Some(_)) => out.changed.insert(path),
            (Some(_), None) => out.removed.insert(path),
            _ => {}
        }
    }
}

fn compare_maps(
    schema: &Schema,
    shape: &Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<Step>,
    out: &mut Difference,
) {
    let none = Map::new();
    let old = old.and_then(Value::as_object).unwrap_or(&none);
    let new = new.and_then(Value::as_object).unwrap_or(&none);
    for key in old
        .keys()
        .chain(new.keys().filter(|key| !old.contains_key(*key)))
    {
        let implied = match shape {
            Shape::Struct(fields) => fields.get(key.as_str()).is_some_and(|field| {
                let by_value = matches!(schema.get(field.ty), Type::Struct(_)) && field.drop_zero;
                field.required || field.always || by_value
            }),
            _ => false,
        };
        path.push(Step::Field(key.clone()));
        compare(
            schema,
            child_place(shape, key),
            old.get(key),
            new.get(key),
            implied,
            path,
            out,
        );
        path.pop();
    }
}

fn compare_lists(
    schema: &Schema,
    shape: &Shape<'_>,
    old: Option<&Value>,
    new: Option<&Value>,
    path: &mut Vec<Step>,
    out: &mut Difference,
) {
    let old = items(schema, shape, old);
    let new: BTreeMap<Step, &Value> = items(schema, shape, new).into_iter().collect();
    let place = item_place(shape);
    for (step, before) in &old {
        path.push(step.clone());
        compare(
            schema,
            place,
            Some(before),
            new.get(step).copied(),
            false,
            path,
            out,
        );
        path.pop();
    }
    let known: BTreeSet<&Step> = old.iter().map(|(step, _)| step).collect();
    for (step, after) in new.iter().filter(|(step, _)| !known.contains(step)) {
        path.push(step.clone());
        compare(schema, place, None, Some(after), false, path, out);
        path.pop();
    }
}

// === merging ===

/// `live` with everything `config` states put into it. Lists keep live's order; new items stand where config has them.
pub(super) fn merged(schema: &Schema, ty: TypeId, live: &Value, config: &Value) -> Value {
    merge(schema, Some(ty), live, config)
}

fn merge(schema: &Schema, place: Place, live: &Value, config: &Value) -> Value {
    let shape = shape(schema, place);
    match (&shape, live, config) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(live), Value::Object(config)) => {
            let mut merged = live.clone();
            for (key, new) in config {
                let child = match live.get(key) {
                    Some(old) => merge(schema, child_place(&shape, key), old, new),
                    None => new.clone(),
                };
                merged.insert(key.clone(), child);
            }
            Value::Object(merged)
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(live), Value::Array(_)) => {
            let config = items(schema, &shape, Some(config));
            let places: BTreeMap<&Step, usize> = config
                .iter()
                .enumerate()
                .map(|(at, (step, _))| (step, at))
                .collect();
            let steps: Vec<Step> = live
                .iter()
                .map(|old| step_of(schema, &shape, old))
                .collect();
            let there: BTreeSet<&Step> = steps.iter().collect();
            let fresh = |range: &[(Step, &Value)]| -> Vec<Value> {
                let new = range.iter().filter(|(step, _)| !there.contains(step));
                new.map(|(_, new)| (*new).clone()).collect()
            };
            let mut next = 0;
            let mut list = Vec::new();
            for (step, old) in steps.iter().zip(live) {
                match places.get(step) {
                    None => list.push(old.clone()),
                    Some(&at) => {
                        list.extend(fresh(&config[next.min(at)..at]));
                        next = next.max(at + 1);
                        list.push(merge(schema, item_place(&shape), old, config[at].1));
                    }
                }
            }
            list.extend(fresh(&config[next..]));
            Value::Array(list)
        }
        _ => config.clone(),
    }
}

// === taking out ===

/// `value` without the members of `gone` (and all that lies below them). What becomes empty by that goes too.
pub(super) fn without(schema: &Schema, ty: TypeId, value: &Value, gone: &Fields) -> Value {
    remove(schema, Some(ty), value, gone).unwrap_or_else(|| Value::Object(Map::new()))
}

fn remove(schema: &Schema, place: Place, value: &Value, gone: &Fields) -> Option<Value> {
    let shape = shape(schema, place);
    match (&shape, value) {
        (Shape::Struct(_) | Shape::Map(_), Value::Object(map)) => {
            let mut kept = Map::new();
            for (key, child) in map {
                let step = Step::Field(key.clone());
                let child = keep(schema, child_place(&shape, key), &step, child, gone);
                kept.extend(child.map(|child| (key.clone(), child)));
            }
            (!kept.is_empty() || map.is_empty()).then_some(Value::Object(kept))
        }
        (Shape::Set | Shape::Keyed(..), Value::Array(list)) => {
            let place = item_place(&shape);
            let kept: Vec<_> = list
                .iter()
                .filter_map(|child| {
                    keep(schema, place, &step_of(schema, &shape, child), child, gone)
                })
                .collect();
            (!kept.is_empty() || list.is_empty()).then_some(Value::Array(kept))
        }
        _ => Some(value.clone()),
    }
}

fn keep(schema: &Schema, place: Place, step: &Step, child: &Value, gone: &Fields) -> Option<Value> {
    if gone.has(step) {
        return None;
    }
    match gone.below(step) {
        Some(below) => remove(schema, place, child, below),
        None => Some(child.clone()),
    }
}

/// Is the last step of `path` a field that the type names (not a map key, not a list item)?
pub(super) fn is_named(schema: &Schema, ty: TypeId, path: &[Step]) -> bool {
    let mut place = Some(ty);
    let mut named = false;
    for step in path {
        let shape = shape(schema, place);
        (place, named) = match (&shape, step) {
            (Shape::Struct(fields), Step::Field(name)) => match fields.get(name.as_str()) {
                Some(field) => (Some(field.ty), true),
                None => (None, false),
            },
            (Shape::Map(value), Step::Field(_)) => (Some(*value), false),
            (Shape::Keyed(item, _), Step::Key(_)) => (Some(*item), false),
            _ => (None, false),
        };
    }
    named
}

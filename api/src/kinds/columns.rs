//! What `kubectl get` shows of each kind: column definitions and the cells of one object. Pure: `now` is passed in.
//!
//! Names, order and texts are those of Kubernetes 1.36; columns of `-o wide` have priority 1.

pub mod cluster;
pub mod duration;
pub mod gateway;
pub mod network;
pub mod pod;
pub mod policy;
pub mod storage;
pub mod workload;

use jiff::Timestamp;
use serde_json::{Map, Value};

use super::{Column, Columns};
use duration::human;

const NONE: &str = "<none>";
const UNSET: &str = "<unset>";
const UNKNOWN: &str = "<unknown>";

/// A column of text that is always shown.
const fn text(name: &'static str) -> Column {
    column(name, "string", 0)
}

/// A column of numbers that is always shown.
const fn number(name: &'static str) -> Column {
    column(name, "integer", 0)
}

/// A column of text of `-o wide`.
const fn wide(name: &'static str) -> Column {
    column(name, "string", 1)
}

const fn column(name: &'static str, kind: &'static str, priority: u8) -> Column {
    Column {
        name,
        kind,
        format: "",
        priority,
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
};
const AGE: Column = text("Age");

/// For kinds with no columns of their own.
pub static GENERIC: Columns = Columns {
    definitions: &[NAME, column("Created At", "date", 0)],
    cells: |object, _| {
        vec![
            name(object),
            object["metadata"]["creationTimestamp"].clone(),
        ]
    },
};

/// For kinds that show their name and age.
pub static NAME_AND_AGE: Columns = Columns {
    definitions: &[NAME, AGE],
    cells: |object, now| vec![name(object), age(object, now)],
};

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

/// How long ago the object was made: `5m`.
fn age(object: &Value, now: Timestamp) -> Value {
    since(&object["metadata"]["creationTimestamp"], now).into()
}

/// How long ago an RFC 3339 time was; `<unknown>` without one.
fn since(time: &Value, now: Timestamp) -> String {
    match parse(time) {
        Some(then) => human(now.duration_since(then)),
        None => UNKNOWN.to_owned(),
    }
}

fn parse(time: &Value) -> Option<Timestamp> {
    time.as_str()?.parse().ok()
}

/// The text at a dotted path; empty where none stands.
fn at<'v>(object: &'v Value, dotted: &str) -> &'v str {
    find(object, dotted).as_str().unwrap_or_default()
}

/// The text at a dotted path, or what to show instead.
fn at_or<'v>(object: &'v Value, dotted: &str, instead: &'v str) -> Value {
    match at(object, dotted) {
        "" => instead.into(),
        found => found.into(),
    }
}

/// The number at a dotted path; 0 where none stands.
fn count(object: &Value, dotted: &str) -> i64 {
    find(object, dotted).as_i64().unwrap_or(0)
}

fn find<'v>(object: &'v Value, dotted: &str) -> &'v Value {
    dotted.split('.').fold(object, |value, key| &value[key])
}

fn list<'v>(object: &'v Value, dotted: &str) -> &'v [Value] {
    find(object, dotted).as_array().map_or(&[], Vec::as_slice)
}

fn map<'v>(object: &'v Value, dotted: &str) -> Option<&'v Map<String, Value>> {
    find(object, dotted).as_object()
}

/// A number or a text, as printed; empty for nothing.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// `a=b,c=d`, sorted; `<none>` when there is none.
fn labels(map: Option<&Map<String, Value>>) -> String {
    let mut parts: Vec<String> = map
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if parts.is_empty() {
        return NONE.to_owned();
    }
    parts.sort();
    parts.join(",")
}

/// Names and images of the containers of the pod template at a dotted path.
fn containers(object: &Value, template: &str) -> [Value; 2] {
    let containers = list(find(object, template), "spec.containers");
    let join = |key: &str| {
        let texts: Vec<&str> = containers.iter().filter_map(|c| c[key].as_str()).collect();
        texts.join(",").into()
    };
    [join("name"), join("image")]
}

/// The first three, then ` + N more...`; `empty` for none.
fn first_three(texts: &[String], empty: &str) -> String {
    if texts.is_empty() {
        return empty.to_owned();
    }
    let first = texts[..texts.len().min(3)].join(",");
    match texts.len().saturating_sub(3) {
        0 => first,
        more => format!("{first} + {more} more..."),
    }
}

/// `True`, `False`, or `<unset>`.
fn boolean(value: &Value) -> &'static str {
    match value {
        Value::Bool(true) => "True",
        Value::Bool(false) => "False",
        _ => UNSET,
    }
}

/// Whether a condition of this type is `True`.
fn has_condition(object: &Value, kind: &str) -> bool {
    list(object, "status.conditions")
        .iter()
        .any(|condition| condition["type"] == kind && condition["status"] == "True")
}

fn is_deleting(object: &Value) -> bool {
    !object["metadata"]["deletionTimestamp"].is_null()
}

#[cfg(test)]
mod tests;

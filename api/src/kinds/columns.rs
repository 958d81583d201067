//! What `kubectl get` shows of each kind: column definitions and the cells of one object. Pure: `now` is passed in.

use serde_json::Value;

use super::{Column, Columns};

/// A column that is always shown.
const fn column(name: &'static str, kind: &'static str) -> Column {
    Column {
        name,
        kind,
        format: "",
        priority: 0,
    }
}

/// A column of `-o wide`.
const fn wide(name: &'static str, kind: &'static str) -> Column {
    Column {
        name,
        kind,
        format: "",
        priority: 1,
    }
}

const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
};
const AGE: Column = column("Age", "string");

/// For kinds with no columns of their own.
pub static GENERIC: Columns = Columns {
    definitions: &[NAME, AGE],
    cells: |object, now| vec![name(object), age(object, now)],
};

fn name(object: &Value) -> Value {
    object["metadata"]["name"].clone()
}

fn age(object: &Value, now: jiff::Timestamp) -> Value {
    let _ = now;
    object["metadata"]["creationTimestamp"].clone()
}

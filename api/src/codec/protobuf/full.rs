//! Objects with a value in every field, made from the table of messages: what tests put through the codec and the kinds' rules.

use serde_json::{Map, Value, json};

use super::table::{Element, MessageId, Row, Shape, Table};
use crate::kinds::Kind;

/// An object of `kind`; `None`: it has no protobuf form.
pub(crate) fn object(kind: &Kind) -> Option<Value> {
    let mut object = of(&kind.definition)?;
    let api_version = match &*kind.group {
        "" => kind.version.to_string(),
        group => format!("{group}/{}", kind.version),
    };
    object["apiVersion"] = api_version.into();
    object["kind"] = kind.kind.as_ref().into();
    Some(object)
}

/// By definition name: `io.k8s.api.core.v1.PodSpec`.
pub(crate) fn of(definition: &str) -> Option<Value> {
    let table = Table::builtin();
    let message = table.find(definition)?;
    Some(Value::Object(fields(table, message, &mut Vec::new())))
}

/// `above`: the messages this one is in. What is in itself is left away.
fn fields(table: &Table, message: MessageId, above: &mut Vec<MessageId>) -> Map<String, Value> {
    let mut out = Map::new();
    above.push(message);
    for row in table.rows(message) {
        let Some(value) = value(table, row, above) else {
            continue;
        };
        if let (true, Value::Object(inner)) = (row.inline, &value) {
            out.extend(inner.clone());
            continue;
        }
        let value = match row.shape {
            Shape::One => value,
            Shape::List => json!([value]),
            Shape::Map => json!({"key": value}),
        };
        out.insert(row.name.to_owned(), value);
    }
    above.pop();
    out
}

fn value(table: &Table, row: &Row, above: &mut Vec<MessageId>) -> Option<Value> {
    Some(match row.element {
        Element::String => format!("{}-value", row.name).into(),
        Element::Integer => row.tag.into(),
        Element::Boolean => true.into(),
        Element::Double => 1.5.into(),
        Element::Bytes => "AQID".into(),
        Element::Quantity => "1500m".into(),
        Element::IntOrString if row.tag.is_multiple_of(2) => "http".into(),
        Element::IntOrString => 80.into(),
        Element::Time => "2026-11-23T09:00:00Z".into(),
        Element::MicroTime => "2026-11-23T09:00:00.000123Z".into(),
        Element::StringList => json!(["one", "two"]),
        Element::RawJson => json!({"f:one": {"two": [1, "three"]}}),
        Element::SchemaOrBool => true.into(),
        Element::SchemaOrStrings => json!(["one", "two"]),
        Element::SchemaOrArray => json!({"type": "string"}),
        Element::Message(message) if above.contains(&message) => return None,
        Element::Message(message) => Value::Object(fields(table, message, above)),
    })
}

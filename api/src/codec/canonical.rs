//! The form upstream gives an object by reading it into Go structs and writing it again. Pure; idempotent.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::{conform, time};
use crate::schema::{Field, Schema, Struct, Type, TypeId};

/// Brings a checked tree into canonical form, before defaulting: quantities (`0.5` → `500m`), times in UTC, nulls and
/// zero values of non-pointer fields dropped, a null inside a map or list made the zero value of its type.
pub fn canonicalize(schema: &Schema, ty: TypeId, value: &mut Value) {
    form(schema, ty, value, false);
}

/// Canonical form without the empty structs that Go cannot tell from absent ones: defaulting meets only one form of
/// `strategy: {}`, and [`complete`] puts them back.
pub(super) fn settle(schema: &Schema, ty: TypeId, value: &mut Value) {
    form(schema, ty, value, true);
}

fn form(schema: &Schema, ty: TypeId, value: &mut Value, strip: bool) {
    match schema.get(ty) {
        Type::Struct(body) => {
            if let Value::Object(map) = value {
                map.retain(|name, value| match body.fields.get(name.as_str()) {
                    Some(field) => keep(schema, field, value, strip),
                    None => !value.is_null(),
                });
            }
        }
        Type::Map { value: inner, .. } => {
            if let Value::Object(map) = value {
                map.values_mut()
                    .for_each(|v| element(schema, *inner, v, strip));
            }
        }
        Type::List { item, .. } => {
            if let Value::Array(list) = value {
                list.iter_mut()
                    .for_each(|v| element(schema, *item, v, strip));
            }
        }
        Type::Quantity => quantity(value),
        Type::Time => rewrite(value, |text| time::canonical(text, time::SECONDS)),
        Type::MicroTime => rewrite(value, |text| time::canonical(text, time::MICROS)),
        Type::Bytes => rewrite(value, base64_text),
        Type::String
        | Type::Integer { .. }
        | Type::Number
        | Type::Boolean
        | Type::IntOrString
        | Type::Any => {}
    }
}

/// Writes, after defaulting, what Go always writes: empty structs (`resources: {}`, `status: {}`) and the zeros of fields
/// that are neither pointers nor `omitempty` (`restartCount: 0`, `divisor: "0"`).
pub fn complete(schema: &Schema, ty: TypeId, value: &mut Value) {
    match (schema.get(ty), value) {
        (Type::Struct(body), Value::Object(map)) => complete_struct(schema, body, map),
        (Type::Map { value: inner, .. }, Value::Object(map)) => {
            map.values_mut().for_each(|v| complete(schema, *inner, v));
        }
        (Type::List { item, .. }, Value::Array(list)) => {
            list.iter_mut().for_each(|v| complete(schema, *item, v));
        }
        _ => {}
    }
}

fn complete_struct(schema: &Schema, body: &Struct, map: &mut Map<String, Value>) {
    for (name, field) in &body.fields {
        match map.get_mut(&**name) {
            Some(value) => complete(schema, field.ty, value),
            None if field.always => {
                let mut value = zero(schema, field.ty);
                complete(schema, field.ty, &mut value);
                map.insert(name.to_string(), value);
            }
            None => {}
        }
    }
}

fn keep(schema: &Schema, field: &Field, value: &mut Value, strip: bool) -> bool {
    if value.is_null() {
        return false;
    }
    form(schema, field.ty, value, strip);
    let empty = value.as_object().is_some_and(Map::is_empty);
    !(field.drop_zero && is_zero(value) || strip && field.always && empty)
}

fn element(schema: &Schema, ty: TypeId, value: &mut Value, strip: bool) {
    if value.is_null() {
        *value = zero(schema, ty);
    } else {
        form(schema, ty, value, strip);
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

fn zero(schema: &Schema, ty: TypeId) -> Value {
    match schema.get(ty) {
        Type::Struct(_) => Value::Object(Map::new()),
        Type::String | Type::Bytes => Value::String(String::new()),
        Type::Integer { .. } | Type::Number | Type::IntOrString => Value::from(0),
        Type::Boolean => Value::Bool(false),
        Type::Quantity => Value::from("0"),
        Type::Map { .. } | Type::List { .. } | Type::Time | Type::MicroTime | Type::Any => {
            Value::Null
        }
    }
}

fn quantity(value: &mut Value) {
    let text = match value {
        Value::String(text) => std::mem::take(text),
        Value::Number(number) => number.to_string(),
        _ => return,
    };
    *value = match text.parse::<types::quantity::Quantity>() {
        Ok(quantity) => Value::String(quantity.to_string()),
        Err(_) => Value::String(text),
    };
}

fn rewrite(value: &mut Value, new: impl Fn(&str) -> Option<String>) {
    if let Value::String(text) = value
        && let Some(new) = new(text)
    {
        *text = new;
    }
}

fn base64_text(text: &str) -> Option<String> {
    if !text.contains(['\n', '\r']) {
        return None;
    }
    let bytes = conform::decode_base64(text).ok()?;
    Some(base64::engine::general_purpose::STANDARD.encode(bytes))
}

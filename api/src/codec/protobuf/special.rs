//! Messages whose JSON is not an object of their fields: times, quantities, raw JSON, the `…Or…` types of CRD schemas. Pure.

use serde_json::{Map, Value};

use super::decode::Decoder;
use super::encode::Encoder;
use super::table::{Element, MessageId, Table};
use super::wire::{Reader, Writer};
use super::{Envelope, MAGIC};
use crate::schema::{GroupVersionKind, builtin};

const SCHEMA: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

// ---- decode --------------------------------------------------------------------------------------------------------

pub(super) fn decode(
    decoder: Decoder<'_>,
    element: Element,
    bytes: &[u8],
) -> Result<Value, String> {
    match element {
        Element::Quantity => decode_quantity(bytes),
        Element::IntOrString => decode_int_or_string(bytes),
        Element::Time => decode_time(bytes, "%Y-%m-%dT%H:%M:%SZ"),
        Element::MicroTime => decode_time(bytes, "%Y-%m-%dT%H:%M:%S.%6fZ"),
        Element::StringList => decode_strings(bytes),
        Element::RawJson => decode_raw(decoder, bytes),
        Element::SchemaOrArray | Element::SchemaOrBool | Element::SchemaOrStrings => {
            decode_schema_or(decoder, element, bytes)
        }
        _ => Err("proto: not a special message".to_owned()),
    }
}

fn decode_quantity(bytes: &[u8]) -> Result<Value, String> {
    let mut text = "";
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        if tag == 1 {
            text = wire.text("String")?;
        }
    }
    // Upstream's reader gives a quantity that nobody set as zero.
    Ok(if text.is_empty() { "0" } else { text }.into())
}

fn decode_int_or_string(bytes: &[u8]) -> Result<Value, String> {
    let (mut is_text, mut number, mut text) = (false, 0, "");
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        match tag {
            1 => is_text = wire.varint("Type")? == 1,
            2 => number = wire.varint("IntVal")?.cast_signed(),
            3 => text = wire.text("StrVal")?,
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// `Timestamp`; no bytes at all are the zero time, which is no time.
fn decode_time(bytes: &[u8], form: &str) -> Result<Value, String> {
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    let (mut seconds, mut nanos) = (0, 0);
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        match tag {
            1 => seconds = wire.varint("Seconds")?.cast_signed(),
            2 => nanos = wire.varint("Nanos")?.cast_signed(),
            _ => {}
        }
    }
    let nanos = i32::try_from(nanos).map_err(|_| "proto: nanoseconds out of range".to_owned())?;
    let at = jiff::Timestamp::new(seconds, nanos).map_err(|e| format!("proto: {e}"))?;
    Ok(at.strftime(form).to_string().into())
}

fn decode_strings(bytes: &[u8]) -> Result<Value, String> {
    let mut list = Vec::new();
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        if tag == 1 {
            list.push(wire.text("Items")?.into());
        }
    }
    Ok(Value::Array(list))
}

/// JSON, or (in a `RawExtension`) another wrapped object.
fn decode_raw(decoder: Decoder<'_>, bytes: &[u8]) -> Result<Value, String> {
    let mut raw: &[u8] = b"";
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        if tag == 1 {
            raw = wire.bytes("Raw")?;
        }
    }
    if raw.is_empty() {
        return Ok(Value::Null);
    }
    if !raw.starts_with(MAGIC) {
        return crate::codec::json::parse(raw);
    }
    let envelope = Envelope::parse(raw)?;
    let gvk = GroupVersionKind::parse(&envelope.api_version, &envelope.kind);
    let ty = builtin().kind(&gvk).map(|ty| builtin().name(ty));
    let message = ty
        .and_then(|name| decoder.table.find(name))
        .ok_or_else(|| {
            format!(
                "no kind {:?} is registered for version {:?}",
                gvk.kind, envelope.api_version
            )
        })?;
    let mut object = decoder.message(message, envelope.raw)?;
    object.insert("apiVersion".to_owned(), envelope.api_version.into());
    object.insert("kind".to_owned(), envelope.kind.into());
    Ok(Value::Object(object))
}

fn decode_schema_or(decoder: Decoder<'_>, element: Element, bytes: &[u8]) -> Result<Value, String> {
    let message = schema_message(decoder.table)?;
    let (mut allows, mut schema, mut list) = (false, None, Vec::new());
    let mut reader = Reader::new(bytes);
    while let Some((tag, wire)) = reader.field()? {
        match (element, tag) {
            (Element::SchemaOrBool, 1) => allows = wire.varint("Allows")? != 0,
            (Element::SchemaOrBool, 2) | (_, 1) => {
                let inner = decoder.message(message, wire.bytes("Schema")?)?;
                schema = Some(Value::Object(inner));
            }
            (Element::SchemaOrStrings, 2) => list.push(wire.text("Property")?.into()),
            (_, 2) => {
                let inner = decoder.message(message, wire.bytes("JSONSchemas")?)?;
                list.push(Value::Object(inner));
            }
            _ => {}
        }
    }
    Ok(match (element, schema) {
        // As upstream writes them: a list wins over a schema, a schema over a boolean.
        (_, _) if !list.is_empty() => Value::Array(list),
        (_, Some(schema)) => schema,
        (Element::SchemaOrBool, None) => allows.into(),
        _ => Value::Null,
    })
}

fn schema_message(table: &Table) -> Result<MessageId, String> {
    table
        .find(SCHEMA)
        .ok_or_else(|| format!("{SCHEMA} has no protobuf form"))
}

// ---- encode --------------------------------------------------------------------------------------------------------

pub(super) fn encode(
    encoder: Encoder<'_>,
    element: Element,
    value: &Value,
    name: &str,
) -> Result<Vec<u8>, String> {
    let mut writer = Writer::default();
    match element {
        Element::Quantity => {
            let text = match value {
                Value::Number(number) => number.to_string(),
                _ => text(value, name)?.to_owned(),
            };
            writer.bytes(1, text.as_bytes());
        }
        Element::IntOrString => {
            let (kind, number, text) = match value {
                Value::String(text) => (1, 0, text.as_str()),
                _ => (0, integer(value, name)?, ""),
            };
            writer.varint(1, kind);
            writer.varint(2, number.cast_unsigned());
            writer.bytes(3, text.as_bytes());
        }
        Element::Time | Element::MicroTime => {
            let at: jiff::Timestamp = text(value, name)?
                .parse()
                .map_err(|e| format!("{name}: {e}"))?;
            let nanos = match element {
                Element::Time => 0,
                _ => at.subsec_nanosecond() / 1000 * 1000,
            };
            writer.varint(1, at.as_second().cast_unsigned());
            writer.varint(2, i64::from(nanos).cast_unsigned());
        }
        Element::StringList => {
            for item in value.as_array().map(Vec::as_slice).unwrap_or_default() {
                writer.bytes(1, text(item, name)?.as_bytes());
            }
        }
        Element::RawJson => {
            if !value.is_null() {
                writer.bytes(1, value.to_string().as_bytes());
            }
        }
        Element::SchemaOrArray | Element::SchemaOrBool | Element::SchemaOrStrings => {
            encode_schema_or(encoder, element, value, &mut writer)?;
        }
        _ => return Err(format!("{name}: not a special message")),
    }
    Ok(writer.finish())
}

fn encode_schema_or(
    encoder: Encoder<'_>,
    element: Element,
    value: &Value,
    writer: &mut Writer,
) -> Result<(), String> {
    let message = schema_message(encoder.table)?;
    let schema_tag = match element {
        Element::SchemaOrBool => {
            let allows = value.as_bool().unwrap_or(value.is_object());
            writer.varint(1, allows.into());
            2
        }
        _ => 1,
    };
    match value {
        Value::Object(schema) => writer.bytes(schema_tag, &encoder.message(message, schema)?),
        Value::Array(list) => {
            for item in list {
                match item {
                    Value::String(text) => writer.bytes(2, text.as_bytes()),
                    Value::Object(schema) => writer.bytes(2, &encoder.message(message, schema)?),
                    _ => return Err("a schema must be an object".to_owned()),
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// The zero of a special message as Go writes it.
pub(super) fn zero(element: Element) -> Vec<u8> {
    let mut writer = Writer::default();
    match element {
        Element::Quantity => writer.bytes(1, b"0"),
        Element::IntOrString => {
            writer.varint(1, 0);
            writer.varint(2, 0);
            writer.bytes(3, b"");
        }
        Element::SchemaOrBool => writer.varint(1, 0),
        _ => {}
    }
    writer.finish()
}

pub(super) fn text<'v>(value: &'v Value, name: &str) -> Result<&'v str, String> {
    value
        .as_str()
        .ok_or_else(|| format!("field {name} must be a string"))
}

pub(super) fn integer(value: &Value, name: &str) -> Result<i64, String> {
    value
        .as_i64()
        .ok_or_else(|| format!("field {name} must be an integer"))
}

pub(super) fn object<'v>(value: &'v Value, name: &str) -> Result<&'v Map<String, Value>, String> {
    value
        .as_object()
        .ok_or_else(|| format!("field {name} must be an object"))
}

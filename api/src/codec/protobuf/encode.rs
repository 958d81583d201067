//! A JSON tree to bytes, byte for byte as Go's generated code writes them: fields by tag, map keys sorted, every
//! non-pointer field written even when it is zero. Pure.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::special::{self, integer, object, text};
use super::table::{Element, MessageId, Row, Shape, Table};
use super::wire::Writer;

pub(super) fn encode_message(
    table: &Table,
    message: MessageId,
    value: &Value,
) -> Result<Vec<u8>, String> {
    Encoder { table }.message(message, object(value, "(root)")?)
}

#[derive(Clone, Copy)]
pub(super) struct Encoder<'t> {
    pub(super) table: &'t Table,
}

// === impl Encoder ===

impl Encoder<'_> {
    pub(super) fn message(
        self,
        message: MessageId,
        map: &Map<String, Value>,
    ) -> Result<Vec<u8>, String> {
        let mut writer = Writer::default();
        for row in self.table.rows(message) {
            if row.inline {
                let Element::Message(inner) = row.element else {
                    return Err(format!("proto: field {} cannot be inlined", row.name));
                };
                writer.bytes(row.tag, &self.message(inner, map)?);
                continue;
            }
            let value = map.get(row.name).filter(|value| !value.is_null());
            match (row.shape, value) {
                (Shape::One, Some(value)) => self.element(row, row.tag, value, &mut writer)?,
                (Shape::One, None) if !row.pointer => self.zero(row, row.tag, &mut writer)?,
                (Shape::List, Some(Value::Array(list))) => {
                    for item in list {
                        self.element(row, row.tag, item, &mut writer)?;
                    }
                }
                (Shape::Map, Some(Value::Object(entries))) => {
                    self.entries(row, entries, &mut writer)?;
                }
                (Shape::List, Some(_)) => return Err(format!("field {} must be a list", row.name)),
                (Shape::Map, Some(_)) => return Err(format!("field {} must be a map", row.name)),
                (_, None) => {}
            }
        }
        Ok(writer.finish())
    }

    /// A tree's maps are sorted by key already.
    fn entries(
        self,
        row: &Row,
        entries: &Map<String, Value>,
        writer: &mut Writer,
    ) -> Result<(), String> {
        for (key, value) in entries {
            let mut entry = Writer::default();
            entry.bytes(1, key.as_bytes());
            if value.is_null() {
                self.zero(row, 2, &mut entry)?;
            } else {
                self.element(row, 2, value, &mut entry)?;
            }
            writer.bytes(row.tag, &entry.finish());
        }
        Ok(())
    }

    fn element(
        self,
        row: &Row,
        tag: u32,
        value: &Value,
        writer: &mut Writer,
    ) -> Result<(), String> {
        let name = row.name;
        match row.element {
            Element::String => writer.bytes(tag, text(value, name)?.as_bytes()),
            Element::Integer => writer.varint(tag, integer(value, name)?.cast_unsigned()),
            Element::Boolean => {
                let on = value
                    .as_bool()
                    .ok_or_else(|| format!("field {name} must be a boolean"))?;
                writer.varint(tag, on.into());
            }
            Element::Double => {
                let number = value
                    .as_f64()
                    .ok_or_else(|| format!("field {name} must be a number"))?;
                writer.double(tag, number);
            }
            Element::Bytes => {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(text(value, name)?)
                    .map_err(|e| format!("field {name}: {e}"))?;
                writer.bytes(tag, &bytes);
            }
            Element::Message(message) => {
                let inner = self.message(message, object(value, name)?)?;
                writer.bytes(tag, &inner);
            }
            special => {
                let inner = special::encode(self, special, value, name)?;
                writer.bytes(tag, &inner);
            }
        }
        Ok(())
    }

    fn zero(self, row: &Row, tag: u32, writer: &mut Writer) -> Result<(), String> {
        match row.element {
            Element::String => writer.bytes(tag, b""),
            Element::Integer | Element::Boolean => writer.varint(tag, 0),
            Element::Double => writer.double(tag, 0.0),
            // A nil slice is not written.
            Element::Bytes => {}
            Element::Message(message) => {
                writer.bytes(tag, &self.message(message, &Map::new())?);
            }
            special => writer.bytes(tag, &special::zero(special)),
        }
        Ok(())
    }
}

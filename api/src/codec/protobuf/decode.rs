//! Bytes to a JSON tree, led by the table. Pure.

use serde_json::{Map, Value};

use super::special;
use super::table::{Element, MessageId, Row, Shape, Table};
use super::wire::{Reader, Wire};
use base64::Engine as _;

/// Deeper messages are refused: the same bound as for JSON.
const DEEPEST: usize = 128;

pub(super) fn decode_message(
    table: &Table,
    message: MessageId,
    bytes: &[u8],
) -> Result<Value, String> {
    let decoder = Decoder { table, depth: 0 };
    decoder.message(message, bytes).map(Value::Object)
}

#[derive(Clone, Copy)]
pub(super) struct Decoder<'t> {
    pub(super) table: &'t Table,
    depth: usize,
}

// === impl Decoder ===

impl Decoder<'_> {
    pub(super) fn message(
        self,
        message: MessageId,
        bytes: &[u8],
    ) -> Result<Map<String, Value>, String> {
        let mut map = Map::new();
        self.deeper()?.fields(message, bytes, &mut map)?;
        Ok(map)
    }

    fn deeper(self) -> Result<Self, String> {
        if self.depth == DEEPEST {
            return Err("proto: exceeded maximum recursion depth".to_owned());
        }
        let depth = self.depth + 1;
        Ok(Self { depth, ..self })
    }

    fn fields(
        self,
        message: MessageId,
        bytes: &[u8],
        map: &mut Map<String, Value>,
    ) -> Result<(), String> {
        let rows = self.table.rows(message);
        let mut reader = Reader::new(bytes);
        while let Some((tag, wire)) = reader.field()? {
            // Unknown tags are skipped, as everywhere in protobuf.
            if let Ok(at) = rows.binary_search_by_key(&tag, |row| row.tag) {
                self.field(&rows[at], wire, map)?;
            }
        }
        Ok(())
    }

    fn field(self, row: &Row, wire: Wire<'_>, map: &mut Map<String, Value>) -> Result<(), String> {
        match row.shape {
            Shape::One if row.inline => {
                let Element::Message(inner) = row.element else {
                    return Err(format!("proto: field {} cannot be inlined", row.name));
                };
                self.deeper()?.fields(inner, wire.bytes(row.name)?, map)
            }
            Shape::One => {
                let value = self.element(row, wire)?;
                if says_nothing(row, &value) {
                    map.remove(row.name);
                } else {
                    map.insert(row.name.to_owned(), value);
                }
                Ok(())
            }
            Shape::List => self.list(row, wire, map),
            Shape::Map => self.entry(row, wire, map),
        }
    }

    fn list(self, row: &Row, wire: Wire<'_>, map: &mut Map<String, Value>) -> Result<(), String> {
        let slot = map
            .entry(row.name)
            .or_insert_with(|| Value::Array(Vec::new()));
        let Value::Array(list) = slot else {
            return Err(format!("proto: field {} is no list", row.name));
        };
        // Numbers may come packed.
        if let (Element::Integer | Element::Boolean, Wire::Bytes(packed)) = (row.element, wire) {
            let mut reader = Reader::new(packed);
            while !reader.is_empty() {
                list.push(self.element(row, Wire::Varint(reader.varint()?))?);
            }
        } else {
            list.push(self.element(row, wire)?);
        }
        Ok(())
    }

    fn entry(self, row: &Row, wire: Wire<'_>, map: &mut Map<String, Value>) -> Result<(), String> {
        let mut key = "";
        let mut value = None;
        let mut reader = Reader::new(wire.bytes(row.name)?);
        while let Some((tag, wire)) = reader.field()? {
            match tag {
                1 => key = wire.text(row.name)?,
                2 => value = Some(self.element(row, wire)?),
                _ => {}
            }
        }
        let value = match value {
            Some(value) => value,
            None => self.element(row, absent(row.element))?,
        };
        let slot = map
            .entry(row.name)
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(entries) = slot else {
            return Err(format!("proto: field {} is no map", row.name));
        };
        entries.insert(key.to_owned(), value);
        Ok(())
    }

    fn element(self, row: &Row, wire: Wire<'_>) -> Result<Value, String> {
        let name = row.name;
        Ok(match row.element {
            Element::String => wire.text(name)?.into(),
            // int32 and int64 are both written as 64 bits of two's complement.
            Element::Integer => wire.varint(name)?.cast_signed().into(),
            Element::Boolean => (wire.varint(name)? != 0).into(),
            Element::Double => wire.double(name)?.into(),
            Element::Bytes => base64::engine::general_purpose::STANDARD
                .encode(wire.bytes(name)?)
                .into(),
            Element::Message(message) => Value::Object(self.message(message, wire.bytes(name)?)?),
            special => special::decode(self, special, wire.bytes(name)?)?,
        })
    }
}

/// What stands for an element that was not written.
fn absent(element: Element) -> Wire<'static> {
    match element {
        Element::Integer | Element::Boolean => Wire::Varint(0),
        Element::Double => Wire::Fixed64(0),
        _ => Wire::Bytes(b""),
    }
}

/// Go writes every non-pointer field, also when nobody set it: the zero of one that JSON would omit, a null, and a struct
/// that is empty (see `codec::complete`) say nothing.
fn says_nothing(row: &Row, value: &Value) -> bool {
    if value.is_null() {
        return true;
    }
    if row.pointer {
        return false;
    }
    match value {
        Value::Bool(b) => row.omitempty && !b,
        Value::Number(n) => {
            let omitted = match row.element {
                Element::Integer | Element::Double => row.omitempty,
                // A struct to Go, so written always; its zero means that nobody set it.
                element => element == Element::IntOrString,
            };
            omitted && n.as_f64() == Some(0.0)
        }
        Value::String(s) => row.omitempty && s.is_empty(),
        Value::Object(map) => map.is_empty() && matches!(row.element, Element::Message(_)),
        Value::Null | Value::Array(_) => false,
    }
}

//! Kubernetes protobuf by table: one generic reader and writer for every message, no generated structs.
//!
//! The table (`facts/protobuf.txt`) says per field: tag, JSON name, shape, element, and whether Go has a pointer, `omitempty`
//! or an inlined struct there. What has JSON of its own (times, quantities, raw JSON …) is in [`special`]. Pure.

mod decode;
mod encode;
#[cfg(test)]
pub(crate) mod full;
mod special;
mod table;
pub(crate) mod wire;

use serde_json::Value;

use crate::schema::{GroupVersionKind, builtin};
use decode::decode_message;
use encode::encode_message;
use table::Table;
use wire::{Reader, Writer};

const MAGIC: &[u8] = b"k8s\0";

/// `runtime.Unknown`: what every protobuf body is wrapped in.
#[derive(Clone, Debug, Default)]
pub struct Envelope<'a> {
    pub api_version: String,
    pub kind: String,
    pub raw: &'a [u8],
    pub content_encoding: String,
    pub content_type: String,
}

/// Reads a whole body: its envelope's kind and the tree. For bodies of a known type see `codec::decode`.
pub fn decode(body: &[u8]) -> Result<(GroupVersionKind, Value), String> {
    let envelope = Envelope::parse(body)?;
    let gvk = GroupVersionKind::parse(&envelope.api_version, &envelope.kind);
    let Some(ty) = builtin().kind(&gvk) else {
        return Err(format!(
            "no kind {:?} is registered for version {:?}",
            gvk.kind, envelope.api_version
        ));
    };
    let value = envelope.decode(builtin().name(ty))?;
    Ok((gvk, value))
}

/// Writes `object` as the message of `definition` (`io.k8s.api.core.v1.Pod`), wrapped. apiVersion and kind go into the
/// envelope. An error means that the definition has no protobuf form or the object does not fit it.
pub fn encode(definition: &str, object: &Value) -> Result<Vec<u8>, String> {
    encode_with(Table::builtin(), definition, object)
}

/// One frame of a watch stream: four bytes of length, then a `WatchEvent` around the wrapped object.
pub fn encode_watch_event(
    event: &str,
    definition: &str,
    object: &Value,
) -> Result<Vec<u8>, String> {
    let mut raw = Writer::default();
    raw.bytes(1, &encode(definition, object)?);
    let mut message = Writer::default();
    message.bytes(1, event.as_bytes());
    message.bytes(2, &raw.finish());
    let message = message.finish();
    let length = u32::try_from(message.len()).map_err(|_| "the object is too large".to_owned())?;
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&message);
    Ok(frame)
}

/// Does `definition` have a protobuf form?
pub fn knows(definition: &str) -> bool {
    Table::builtin().find(definition).is_some()
}

// === impl Envelope ===

impl<'a> Envelope<'a> {
    pub fn parse(body: &'a [u8]) -> Result<Self, String> {
        let Some(unknown) = body.strip_prefix(MAGIC) else {
            return Err(
                "provided data does not appear to be a protobuf message, expected prefix 6b387300"
                    .to_owned(),
            );
        };
        let mut envelope = Self::default();
        let mut reader = Reader::new(unknown);
        while let Some((tag, value)) = reader.field()? {
            match tag {
                1 => {
                    let mut meta = Reader::new(value.bytes("TypeMeta")?);
                    while let Some((tag, value)) = meta.field()? {
                        match tag {
                            1 => envelope.api_version = value.text("APIVersion")?.to_owned(),
                            2 => envelope.kind = value.text("Kind")?.to_owned(),
                            _ => {}
                        }
                    }
                }
                2 => envelope.raw = value.bytes("Raw")?,
                3 => envelope.content_encoding = value.text("ContentEncoding")?.to_owned(),
                4 => envelope.content_type = value.text("ContentType")?.to_owned(),
                _ => {}
            }
        }
        Ok(envelope)
    }

    /// The object inside, read as `definition`, without apiVersion and kind.
    pub fn decode(&self, definition: &str) -> Result<Value, String> {
        self.decode_with(Table::builtin(), definition)
    }

    fn decode_with(&self, table: &Table, definition: &str) -> Result<Value, String> {
        if !self.content_encoding.is_empty() {
            return Err(format!(
                "unknown content encoding {:?}",
                self.content_encoding
            ));
        }
        match self.content_type.as_str() {
            "" | super::PROTOBUF => {}
            super::JSON => return super::json::parse(self.raw),
            other => return Err(format!("unknown content type {other:?}")),
        }
        let message = table
            .find(definition)
            .ok_or_else(|| format!("{definition} has no protobuf form"))?;
        decode_message(table, message, self.raw)
    }
}

fn encode_with(table: &Table, definition: &str, object: &Value) -> Result<Vec<u8>, String> {
    let message = table
        .find(definition)
        .ok_or_else(|| format!("{definition} has no protobuf form"))?;
    let raw = encode_message(table, message, object)?;
    let text = |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default();
    let mut meta = Writer::default();
    meta.bytes(1, text("apiVersion").as_bytes());
    meta.bytes(2, text("kind").as_bytes());
    let mut unknown = Writer::with_prefix(MAGIC);
    unknown.bytes(1, &meta.finish());
    unknown.bytes(2, &raw);
    unknown.bytes(3, b"");
    unknown.bytes(4, b"");
    Ok(unknown.finish())
}

#[cfg(test)]
mod tests;

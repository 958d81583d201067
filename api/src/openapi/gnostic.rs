//! A v2 document as protobuf (`openapi.v2.Document`), which kubectl reads as its fallback. Led by the tags of gnostic's
//! messages; writes only what our documents contain. Pure.

use serde_json::{Map, Value};

use crate::codec::protobuf::wire::Writer;

/// Encodes a v2 document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    text(&mut out, 1, document, "swagger");
    let mut info = Writer::default();
    text(&mut info, 1, &document["info"], "title");
    text(&mut info, 2, &document["info"], "version");
    out.bytes(2, &info.finish());
    out.bytes(8, &named(2, &document["paths"], path_item));
    out.bytes(9, &named(1, &document["definitions"], schema));
    for requirement in list(&document["security"]) {
        out.bytes(12, &named(1, requirement, |_| Vec::new()));
    }
    let definitions = &document["securityDefinitions"];
    out.bytes(13, &named(1, definitions, security_definition));
    out.finish()
}

/// A message whose field `tag` is a list of (1: name, 2: value).
fn named(tag: u32, entries: &Value, value: impl Fn(&Value) -> Vec<u8>) -> Vec<u8> {
    let mut out = Writer::default();
    for (name, inner) in object(entries) {
        let mut pair = Writer::default();
        pair.bytes(1, name.as_bytes());
        pair.bytes(2, &value(inner));
        out.bytes(tag, &pair.finish());
    }
    out.finish()
}

fn security_definition(value: &Value) -> Vec<u8> {
    let mut key = Writer::default();
    text(&mut key, 1, value, "type");
    text(&mut key, 2, value, "name");
    text(&mut key, 3, value, "in");
    text(&mut key, 4, value, "description");
    wrap(2, &key.finish())
}

fn path_item(value: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    for (tag, method) in [
        (2, "get"),
        (3, "put"),
        (4, "post"),
        (5, "delete"),
        (8, "patch"),
    ] {
        if let Some(found) = value.get(method) {
            out.bytes(tag, &operation(found));
        }
    }
    for item in list(&value["parameters"]) {
        out.bytes(9, &parameter(item));
    }
    out.finish()
}

fn operation(value: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    texts(&mut out, 1, &value["tags"]);
    text(&mut out, 3, value, "description");
    text(&mut out, 5, value, "operationId");
    texts(&mut out, 6, &value["produces"]);
    texts(&mut out, 7, &value["consumes"]);
    for item in list(&value["parameters"]) {
        out.bytes(8, &parameter(item));
    }
    out.bytes(9, &named(1, &value["responses"], response));
    texts(&mut out, 10, &value["schemes"]);
    extensions(&mut out, 13, value);
    out.finish()
}

/// `ParametersItem { Parameter { BodyParameter | NonBodyParameter { … } } }`
fn parameter(value: &Value) -> Vec<u8> {
    let place = value["in"].as_str().unwrap_or_default();
    let mut out = Writer::default();
    if place == "body" {
        text(&mut out, 1, value, "description");
        text(&mut out, 2, value, "name");
        text(&mut out, 3, value, "in");
        flag(&mut out, 4, value, "required");
        out.bytes(5, &schema(&value["schema"]));
        return wrap(1, &wrap(1, &out.finish()));
    }
    let query = place == "query";
    flag(&mut out, 1, value, "required");
    text(&mut out, 2, value, "in");
    text(&mut out, 3, value, "description");
    text(&mut out, 4, value, "name");
    text(&mut out, if query { 6 } else { 5 }, value, "type");
    flag(&mut out, if query { 20 } else { 19 }, value, "uniqueItems");
    let sub_schema = wrap(if query { 3 } else { 4 }, &out.finish());
    wrap(1, &wrap(2, &sub_schema))
}

/// `ResponseValue { Response }`
fn response(value: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    text(&mut out, 1, value, "description");
    if let Some(found) = value.get("schema") {
        out.bytes(2, &wrap(1, &schema(found)));
    }
    wrap(1, &out.finish())
}

fn schema(value: &Value) -> Vec<u8> {
    let mut out = Writer::default();
    text(&mut out, 1, value, "$ref");
    text(&mut out, 2, value, "format");
    text(&mut out, 4, value, "description");
    texts(&mut out, 19, &value["required"]);
    if let Some(found) = value.get("additionalProperties") {
        out.bytes(21, &wrap(1, &schema(found)));
    }
    if let Some(kind) = value["type"].as_str() {
        out.bytes(22, &wrap(1, kind.as_bytes()));
    }
    if let Some(found) = value.get("items") {
        out.bytes(23, &wrap(1, &schema(found)));
    }
    if value.get("properties").is_some() {
        out.bytes(25, &named(1, &value["properties"], schema));
    }
    extensions(&mut out, 31, value);
    out.finish()
}

/// `x-…` entries, as `NamedAny { name, Any { yaml } }`; JSON is YAML.
fn extensions(out: &mut Writer, tag: u32, value: &Value) {
    for (name, inner) in object(value) {
        if name.starts_with("x-") {
            let mut pair = Writer::default();
            pair.bytes(1, name.as_bytes());
            pair.bytes(2, &wrap(2, format!("{inner}\n").as_bytes()));
            out.bytes(tag, &pair.finish());
        }
    }
}

fn wrap(tag: u32, inner: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(tag, inner);
    out.finish()
}

fn text(out: &mut Writer, tag: u32, value: &Value, key: &str) {
    if let Some(text) = value.get(key).and_then(Value::as_str)
        && !text.is_empty()
    {
        out.bytes(tag, text.as_bytes());
    }
}

fn texts(out: &mut Writer, tag: u32, values: &Value) {
    for text in list(values).iter().filter_map(Value::as_str) {
        out.bytes(tag, text.as_bytes());
    }
}

fn flag(out: &mut Writer, tag: u32, value: &Value, key: &str) {
    if value.get(key).and_then(Value::as_bool) == Some(true) {
        out.varint(tag, 1);
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn object(value: &Value) -> &Map<String, Value> {
    static EMPTY: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    value.as_object().unwrap_or(&EMPTY)
}

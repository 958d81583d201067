//! An object tree as the bytes that are stored and served. Pure.
//!
//! The order is fixed: `kind`, `apiVersion`, `metadata` (name … uid, resourceVersion, …), then the rest by name. Readers
//! rely on it: a list leaves the constant header out, metadata is cut out without parsing, and the revision is written
//! by the store between the two halves of a draft.

use bytes::{Bytes, BytesMut};
use serde_json::{Map, Value};

use crate::kinds::Kind;
use crate::object::Object;
use crate::store::{Draft, Index};

/// Metadata in upstream's order; what is not named here follows by name.
const BEFORE_REVISION: [&str; 4] = ["name", "generateName", "namespace", "uid"];
const AFTER_REVISION: [&str; 8] = [
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
];
const REVISION: &str = "resourceVersion";

/// What every stored object of `kind` begins with: `{"kind":"Pod","apiVersion":"v1",`.
pub fn header(kind: &Kind) -> String {
    format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",",
        kind.kind,
        kind.api_version()
    )
}

/// The two halves round the revision, for the store.
pub fn draft(object: &Object, index: Index) -> Draft {
    let mut head = Vec::with_capacity(512);
    open(object, &mut head);
    string_key(REVISION, &mut head);
    head.push(b'"');
    let mut tail = Vec::with_capacity(1024);
    tail.push(b'"');
    close(object, false, &mut tail);
    Draft {
        head: head.into(),
        tail: tail.into(),
        index,
    }
}

/// The whole object; its own resourceVersion is written where it has one.
pub fn finished(object: &Object) -> Bytes {
    let mut out = Vec::with_capacity(1536);
    open(object, &mut out);
    let revision = object.resource_version();
    let written = !revision.is_empty();
    if written {
        pair(REVISION, &Value::from(revision), &mut out);
    } else if out.last() == Some(&b',') {
        out.pop();
    }
    let comma = out.last() != Some(&b'{');
    close(object, !comma, &mut out);
    out.into()
}

/// Up to the revision; ends with `{` or `,`.
fn open(object: &Object, out: &mut Vec<u8>) {
    out.push(b'{');
    pair("kind", &Value::from(object.kind()), out);
    out.push(b',');
    pair("apiVersion", &Value::from(object.api_version()), out);
    out.extend_from_slice(b",\"metadata\":{");
    if let Some(metadata) = metadata(object) {
        for key in BEFORE_REVISION {
            if let Some(value) = metadata.get(key) {
                pair(key, value, out);
                out.push(b',');
            }
        }
    }
}

/// From behind the revision to the end. `bare`: nothing has been written into metadata yet.
fn close(object: &Object, mut bare: bool, out: &mut Vec<u8>) {
    if let Some(metadata) = metadata(object) {
        let mut write = |key: &str, value: &Value| {
            if !std::mem::take(&mut bare) {
                out.push(b',');
            }
            pair(key, value, out);
        };
        for key in AFTER_REVISION {
            if let Some(value) = metadata.get(key) {
                write(key, value);
            }
        }
        for (key, value) in metadata {
            let known = BEFORE_REVISION.contains(&key.as_str())
                || AFTER_REVISION.contains(&key.as_str())
                || key == REVISION;
            if !known {
                write(key, value);
            }
        }
    }
    out.push(b'}');
    for (key, value) in object.map() {
        if !matches!(key.as_str(), "kind" | "apiVersion" | "metadata") {
            out.push(b',');
            pair(key, value, out);
        }
    }
    out.push(b'}');
}

fn metadata(object: &Object) -> Option<&Map<String, Value>> {
    object.at(&["metadata"])?.as_object()
}

fn string_key(key: &str, out: &mut Vec<u8>) {
    json(&key, out);
    out.push(b':');
}

fn pair(key: &str, value: &Value, out: &mut Vec<u8>) {
    string_key(key, out);
    json(value, out);
}

fn json<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    serde_json::to_writer(out, value).expect("a JSON tree is written to memory without errors");
}

/// The bytes of `metadata` of a stored object, braces included; `None` when the bytes are not of our making.
pub fn metadata_of(bytes: &[u8]) -> Option<&[u8]> {
    const KEY: &[u8] = b",\"metadata\":{";
    // The header has no user text in it, so the first occurrence is the one.
    let at = bytes
        .windows(KEY.len())
        .take(512)
        .position(|window| window == KEY)?;
    let start = at + KEY.len() - 1;
    let end = object_end(&bytes[start..])?;
    Some(&bytes[start..start + end])
}

/// Length of the JSON object that `bytes` begins with.
fn object_end(bytes: &[u8]) -> Option<usize> {
    let (mut depth, mut quoted, mut escaped) = (0usize, false, false);
    for (at, byte) in bytes.iter().enumerate() {
        if quoted {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => quoted = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => quoted = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

/// A stored object under another revision: what a watcher sees of an object that left its selector.
pub fn with_revision(bytes: &Bytes, old: u64, new: u64) -> Bytes {
    let needle = format!("\"{REVISION}\":\"{old}\"");
    let found = bytes
        .windows(needle.len())
        .position(|window| window == needle.as_bytes());
    let Some(at) = found else {
        return bytes.clone();
    };
    let mut out = BytesMut::with_capacity(bytes.len() + 20);
    out.extend_from_slice(&bytes[..at]);
    out.extend_from_slice(format!("\"{REVISION}\":\"{new}\"").as_bytes());
    out.extend_from_slice(&bytes[at + needle.len()..]);
    out.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Object {
        Object::new(json!({
            "apiVersion": "v1", "kind": "Pod", "spec": {"x": 1}, "status": {},
            "metadata": {"name": "a", "namespace": "d", "uid": "u", "labels": {"k": "}\"{"},
                "generation": 1, "resourceVersion": "3", "managedFields": []},
        }))
        .expect("an object")
    }

    #[test]
    fn the_order_is_fixed_and_the_revision_stands_between_the_halves() {
        let expect = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"d","uid":"u","resourceVersion":"3","generation":1,"labels":{"k":"}\"{"},"managedFields":[]},"spec":{"x":1},"status":{}}"#;
        assert_eq!(finished(&pod()), expect.as_bytes());
        assert_eq!(draft(&pod(), Index::default()).finish(3), expect.as_bytes());
    }

    #[test]
    fn an_object_without_a_revision_is_well_formed_too() {
        for metadata in [
            json!({}),
            json!({"name": "a"}),
            json!({"labels": {}}),
            json!({"name": "a", "labels": {}}),
        ] {
            let object =
                Object::new(json!({"kind": "K", "apiVersion": "v1", "metadata": metadata}));
            let object = object.expect("an object");
            let parsed: Value = serde_json::from_slice(&finished(&object)).expect("well formed");
            assert_eq!(&parsed, object.value());
        }
    }

    #[test]
    fn metadata_is_cut_out_without_parsing() {
        let bytes = finished(&pod());
        let metadata: Value =
            serde_json::from_slice(metadata_of(&bytes).expect("found")).expect("well formed");
        assert_eq!(&metadata, pod().at(&["metadata"]).expect("there"));
    }

    #[test]
    fn the_revision_can_be_exchanged() {
        let bytes = with_revision(&finished(&pod()), 3, 1234);
        assert!(
            std::str::from_utf8(&bytes)
                .expect("text")
                .contains("\"resourceVersion\":\"1234\"")
        );
    }
}

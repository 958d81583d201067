//! Tables and bare metadata: the shapes `kubectl get` and metadata clients ask for, derived from a kind's columns. Pure.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::handlers::negotiate::Include;
use crate::kinds::Kind;
use crate::registry::encode;

/// `metadata` of a list or table.
#[derive(Clone, Debug, Default)]
pub(crate) struct ListMeta {
    pub revision: String,
    pub continue_token: String,
    pub remaining: Option<usize>,
}

// === impl ListMeta ===

impl ListMeta {
    pub(crate) fn at(revision: u64) -> Self {
        Self {
            revision: revision.to_string(),
            ..Self::default()
        }
    }

    /// `{"resourceVersion":"7",…}`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut metadata = json!({});
        if !self.revision.is_empty() {
            metadata["resourceVersion"] = json!(self.revision);
        }
        if !self.continue_token.is_empty() {
            metadata["continue"] = json!(self.continue_token);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        out.extend_from_slice(metadata.to_string().as_bytes());
    }
}

/// A Table of `objects`, which are finished bytes. `columns`: with their definitions (a watch sends them once).
pub(crate) fn render<'a>(
    kind: &Kind,
    objects: impl Iterator<Item = &'a [u8]>,
    meta: &ListMeta,
    include: Include,
    columns: bool,
    now: Timestamp,
) -> Vec<u8> {
    let mut out = Vec::with_capacity(4096);
    out.extend_from_slice(b"{\"kind\":\"Table\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":");
    meta.write(&mut out);
    out.extend_from_slice(b",\"columnDefinitions\":");
    if columns {
        out.extend_from_slice(definitions(kind).to_string().as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
    out.extend_from_slice(b",\"rows\":[");
    for (at, object) in objects.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        row(kind, object, include, now, &mut out);
    }
    out.extend_from_slice(b"]}");
    out
}

fn definitions(kind: &Kind) -> Value {
    let columns = kind.columns.definitions.iter();
    columns
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": "",
                "priority": column.priority,
            })
        })
        .collect()
}

fn row(kind: &Kind, object: &[u8], include: Include, now: Timestamp, out: &mut Vec<u8>) {
    let tree: Value = serde_json::from_slice(object).unwrap_or_default();
    let cells = Value::Array((kind.columns.cells)(&tree, now));
    out.extend_from_slice(b"{\"cells\":");
    out.extend_from_slice(cells.to_string().as_bytes());
    out.extend_from_slice(b",\"object\":");
    match include {
        Include::None => out.extend_from_slice(b"null"),
        Include::Object => out.extend_from_slice(object),
        Include::Metadata => partial(object, out),
    }
    out.push(b'}');
}

/// `PartialObjectMetadata` of a finished object, appended to `out`.
pub(crate) fn partial(object: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(
        b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":",
    );
    out.extend_from_slice(encode::metadata_of(object).unwrap_or(b"{}"));
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn a_table_has_columns_cells_and_metadata() {
        let kind = kinds::table().find("", "v1", "configmaps").expect("a kind");
        let object = br#"{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":"a","resourceVersion":"7"},"data":{"x":"y"}}"#;
        let render = |columns, include| {
            let table = render(
                kind,
                [object.as_slice()].into_iter(),
                &ListMeta::at(9),
                include,
                columns,
                Timestamp::UNIX_EPOCH,
            );
            serde_json::from_slice::<Value>(&table).expect("well formed")
        };
        let table = render(true, Include::Metadata);
        assert_eq!(table["metadata"], json!({"resourceVersion": "9"}));
        assert_eq!(table["columnDefinitions"][0]["name"], "Name");
        assert_eq!(table["rows"][0]["cells"][0], "a");
        assert_eq!(
            table["rows"][0]["object"],
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": {"name": "a", "resourceVersion": "7"}})
        );
        assert_eq!(
            render(false, Include::Object)["columnDefinitions"],
            Value::Null
        );
        assert_eq!(
            render(false, Include::Object)["rows"][0]["object"]["data"]["x"],
            "y"
        );
    }
}

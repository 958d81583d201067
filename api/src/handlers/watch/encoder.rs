//! One change as what this watcher reads: the type as its selector sees it, the object in its shape and format.

use bytes::Bytes;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::codec;
use crate::handlers::negotiate::{Accept, Format, Include, Shape};
use crate::kinds::Kind;
use crate::registry::{self, encode};
use crate::selector::Selector;
use crate::status::Error;
use crate::store::line::wrap;
use crate::store::{Event, Stored};
use crate::table::{self, ListMeta};

pub(super) struct Encoder {
    kind: &'static Kind,
    accept: Accept,
    include: Include,
    now: Timestamp,
    /// A Table says its columns once.
    first: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Type {
    Added,
    Modified,
    Deleted,
}

// === impl Type ===

impl Type {
    fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }

    /// What somebody without a selector sees.
    fn natural(event: &Event) -> Self {
        match (&event.previous, event.deleted) {
            (_, true) => Self::Deleted,
            (None, false) => Self::Added,
            (Some(_), false) => Self::Modified,
        }
    }

    /// What somebody with `selector` sees; `None`: nothing.
    fn selected(event: &Event, selector: &Selector) -> Option<Self> {
        if selector.is_everything() {
            return Some(Self::natural(event));
        }
        let before = event
            .previous
            .as_deref()
            .is_some_and(|o| selector.matches(o));
        let after = !event.deleted && selector.matches(&event.object);
        match (before, after) {
            (false, false) => None,
            (false, true) => Some(Self::Added),
            (true, true) => Some(Self::Modified),
            (true, false) => Some(Self::Deleted),
        }
    }
}

// === impl Encoder ===

impl Encoder {
    pub(super) fn new(
        kind: &'static Kind,
        accept: Accept,
        include: Include,
        now: Timestamp,
    ) -> Self {
        Self {
            kind,
            accept,
            include,
            now,
            first: true,
        }
    }

    /// An object that was there when the watch began.
    pub(super) fn added(&mut self, stored: &Stored) -> Result<Bytes, Error> {
        let bytes = registry::serve(self.kind, stored)?;
        self.line(Type::Added, &bytes)
    }

    pub(super) fn event(
        &mut self,
        event: &Event,
        selector: &Selector,
    ) -> Result<Option<Bytes>, Error> {
        let Some(ty) = Type::selected(event, selector) else {
            return Ok(None);
        };
        if self.is_plain() && ty == Type::natural(event) {
            return Ok(Some(event.line()));
        }
        // What left the selector is shown as it was, under the revision at which it left.
        let bytes = match &event.previous {
            Some(previous) if ty == Type::Deleted && !event.deleted => {
                let bytes = registry::serve(self.kind, previous)?;
                encode::with_revision(&bytes, previous.revision, event.revision)
            }
            _ => registry::serve(self.kind, &event.object)?,
        };
        self.line(ty, &bytes).map(Some)
    }

    /// The revision this watcher has come to, without an object.
    pub(super) fn bookmark(&self, revision: u64, initial_events_end: bool) -> Bytes {
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_events_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let (kind, api_version) = match self.accept.shape {
            Shape::Object => (self.kind.kind.as_ref(), self.kind.api_version()),
            Shape::Table => ("Table", "meta.k8s.io/v1".to_owned()),
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        };
        let mut object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        if self.accept.shape == Shape::Table {
            object["columnDefinitions"] = Value::Null;
            object["rows"] = json!([]);
        }
        self.frame("BOOKMARK", &object)
    }

    /// The end of a watch that failed.
    pub(super) fn error(&self, error: &Error) -> Bytes {
        let status = error.to_status();
        if self.accept.format == Format::Protobuf {
            let definition = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
            return protobuf("ERROR", definition, &status).unwrap_or_default();
        }
        wrap("ERROR", status.to_string().as_bytes())
    }

    fn is_plain(&self) -> bool {
        self.accept.shape == Shape::Object
            && self.accept.format != Format::Protobuf
            && self.kind.convert.is_none()
    }

    fn line(&mut self, ty: Type, bytes: &[u8]) -> Result<Bytes, Error> {
        match self.accept.shape {
            Shape::Object if self.accept.format == Format::Protobuf => {
                let tree: Value = serde_json::from_slice(bytes)
                    .map_err(|error| Error::internal(error.to_string()))?;
                protobuf(ty.as_str(), &self.kind.definition, &tree)
                    .ok_or_else(|| Error::not_acceptable(&[codec::JSON]))
            }
            Shape::Object => Ok(wrap(ty.as_str(), bytes)),
            Shape::Metadata => {
                let mut out = Vec::with_capacity(512);
                table::partial(bytes, &mut out);
                Ok(wrap(ty.as_str(), &out))
            }
            Shape::Table => {
                let revision = crate::handlers::call::revision_of(bytes);
                let meta = ListMeta {
                    revision,
                    ..ListMeta::default()
                };
                let columns = std::mem::take(&mut self.first);
                let objects = [bytes].into_iter();
                let table =
                    table::render(self.kind, objects, &meta, self.include, columns, self.now);
                Ok(wrap(ty.as_str(), &table))
            }
        }
    }

    fn frame(&self, ty: &str, object: &Value) -> Bytes {
        if self.accept.format == Format::Protobuf {
            return protobuf(ty, &self.kind.definition, object).unwrap_or_default();
        }
        wrap(ty, object.to_string().as_bytes())
    }
}

fn protobuf(ty: &str, definition: &str, object: &Value) -> Option<Bytes> {
    codec::protobuf::encode_watch_event(ty, definition, object)
        .ok()
        .map(Bytes::from)
}

//! One request for a resource and what every verb does with it: its kind's types and selectors, decoding its body, the shape
//! and format of the answer.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::Api;
use super::negotiate::{self, Accept, Format, Shape};
use super::reply::Reply;
use crate::auth::User;
use crate::codec::{self, Decoded};
use crate::kinds::Kind;
use crate::kinds::strategy::Door;
use crate::registry::{Outcome, Registry};
use crate::request::query::{FieldValidation, ListOptions, WriteOptions};
use crate::request::{Query, ResourcePath};
use crate::schema::{GroupVersionKind, TypeId};
use crate::selector::Selector;
use crate::status::Error;
use crate::table;

/// One request for a resource, on its way through a verb.
pub(crate) struct Call<'a> {
    pub(crate) api: &'a Arc<Api>,
    pub(crate) kind: &'static Kind,
    pub(crate) path: &'a ResourcePath,
    pub(crate) query: &'a Query,
    /// The request as it came.
    pub(crate) parts: &'a Parts,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) user: &'a User,
    pub(crate) accept: Accept,
    pub(crate) now: Timestamp,
}

// === impl Call ===

impl<'a> Call<'a> {
    /// The namespace objects of this request are stored under.
    pub(crate) fn namespace(&self) -> &'a str {
        if self.kind.is_namespaced() {
            &self.path.namespace
        } else {
            ""
        }
    }

    pub(crate) fn registry(&self, door: Door<'a>, manager: &'a str, dry_run: bool) -> Registry<'a> {
        Registry {
            api: self.api,
            kind: self.kind,
            door,
            namespace: self.namespace(),
            user: self.user,
            manager,
            dry_run,
            trusted: false,
            now: self.now,
            warnings: Vec::new(),
        }
    }

    pub(crate) fn gvk(&self) -> GroupVersionKind {
        self.kind.gvk()
    }

    pub(crate) fn type_of(&self, definition: &str) -> Result<TypeId, Error> {
        let ty = self.api.schema.named(definition);
        ty.ok_or_else(|| Error::internal(format!("the type {definition} is not known")))
    }

    /// Decodes a body as this call's kind, or as `gvk` of `definition`; strict findings go where the client wants them.
    pub(crate) fn decode(
        &self,
        body: &[u8],
        definition: &str,
        gvk: &GroupVersionKind,
        validation: FieldValidation,
        warnings: &mut Vec<String>,
    ) -> Result<crate::object::Object, Error> {
        let ty = self.type_of(definition)?;
        let media_type = negotiate::content_type(self.headers);
        let Decoded { object, strict } = codec::decode(media_type, body, self.api.schema, ty, gvk)?;
        strictness(gvk, strict, validation, warnings)?;
        Ok(object)
    }

    pub(crate) fn selector(&self, options: &ListOptions) -> Result<Selector, Error> {
        let stored = self.api.kinds.stored(&self.kind.storage);
        let names = stored.unwrap_or(self.kind).strategy.field_names();
        Selector::parse(&options.label_selector, &options.field_selector, |label| {
            let label = self
                .kind
                .convert
                .map_or(label, |convert| convert.field(label));
            let namespaced = self.kind.is_namespaced();
            let known = label == "metadata.name"
                || (label == "metadata.namespace" && (namespaced || names.is_empty()))
                || names.contains(&label);
            known.then(|| label.to_owned())
        })
    }

    /// An object in the shape and format the client asked for; `bytes` are finished.
    pub(crate) fn object(
        &self,
        status: http::StatusCode,
        bytes: Bytes,
        definition: &str,
    ) -> Result<Reply, Error> {
        let bytes = match self.accept.shape {
            Shape::Object => bytes,
            Shape::Metadata => {
                let mut out = Vec::with_capacity(512);
                table::partial(&bytes, &mut out);
                out.into()
            }
            Shape::Table => {
                let include = negotiate::include(self.query)?;
                let revision = revision_of(&bytes);
                let meta = table::ListMeta {
                    revision,
                    ..table::ListMeta::default()
                };
                let objects = [bytes.as_ref()].into_iter();
                table::render(self.kind, objects, &meta, include, true, self.now).into()
            }
        };
        self.format(status, bytes, definition)
    }

    /// What is answered where something was done and nothing is there to show.
    pub(crate) fn created(&self) -> Result<Reply, Error> {
        let status = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Success",
            "code": 201,
        });
        self.format(
            http::StatusCode::CREATED,
            status.to_string().into(),
            "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        )
    }

    /// Finished JSON in the format the client asked for.
    pub(crate) fn format(
        &self,
        status: http::StatusCode,
        bytes: Bytes,
        definition: &str,
    ) -> Result<Reply, Error> {
        let tree = || -> Result<Value, Error> {
            serde_json::from_slice(&bytes).map_err(|error| Error::internal(error.to_string()))
        };
        let bytes = match self.accept.format {
            Format::Json if self.accept.pretty => serde_json::to_vec_pretty(&tree()?)
                .map_err(|error| Error::internal(error.to_string()))?
                .into(),
            Format::Json => bytes,
            Format::Yaml => codec::to_yaml(&tree()?)?.into(),
            Format::Protobuf if self.accept.shape == Shape::Object => {
                let encoded = codec::protobuf::encode(definition, &tree()?);
                encoded
                    .map_err(|_| Error::not_acceptable(&[codec::JSON, codec::YAML]))?
                    .into()
            }
            Format::Protobuf => return Err(Error::not_acceptable(&[codec::JSON, codec::YAML])),
        };
        Ok(Reply::new(status, self.accept.format.content_type(), bytes))
    }

    /// The answer to a create, update or patch.
    pub(crate) fn written(&self, outcome: Outcome, warnings: &[String]) -> Result<Reply, Error> {
        let status = if outcome.created {
            http::StatusCode::CREATED
        } else {
            http::StatusCode::OK
        };
        let mut reply = self.object(status, outcome.bytes, &self.kind.definition)?;
        reply.warn(warnings);
        Ok(reply)
    }

    /// The manager's name for this write.
    pub(crate) fn manager(&'a self, options: &'a WriteOptions) -> &'a str {
        negotiate::manager(&options.field_manager, self.headers)
    }
}

/// What `fieldValidation` does with unknown and duplicate fields.
pub(crate) fn strictness(
    gvk: &GroupVersionKind,
    strict: Vec<String>,
    validation: FieldValidation,
    warnings: &mut Vec<String>,
) -> Result<(), Error> {
    match validation {
        FieldValidation::Ignore => Ok(()),
        FieldValidation::Warn => {
            warnings.extend(strict);
            Ok(())
        }
        FieldValidation::Strict => codec::strict_error(gvk, &strict).map_or(Ok(()), Err),
    }
}

/// The resourceVersion within finished bytes.
pub(super) fn revision_of(bytes: &[u8]) -> String {
    let metadata = crate::registry::encode::metadata_of(bytes).unwrap_or(b"{}");
    let metadata: Value = serde_json::from_slice(metadata).unwrap_or_default();
    metadata["resourceVersion"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

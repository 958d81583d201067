//! PATCH: the current object and a patch become an ordinary update. Apply creates what is missing.

use serde_json::Value;

use super::reply::Reply;
use super::{Call, negotiate, strictness};
use crate::codec;
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::patch;
use crate::registry::{Change, Registry};
use crate::request::query::WriteOptions;
use crate::schema::{Schema, TypeId};
use crate::status::{Cause, Error};

const JSON_PATCH: &str = "application/json-patch+json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";

/// A patch that could be read.
pub(super) enum Patch {
    Json(Vec<u8>),
    Merge(Value),
    Strategic(Value),
}

pub(super) async fn patch(call: &Call<'_>, door: Door<'_>, body: &[u8]) -> Result<Reply, Error> {
    let options = call.query.write_options("PatchOptions")?;
    if is_apply(call) {
        return apply(call, door, body, &options).await;
    }
    if options.force {
        let cause = Cause::forbidden("force", "may not be specified for non-apply patch");
        return Err(invalid_options(cause));
    }
    let patch = Patch::read(call, body)?;
    let schema = call.api.schema;
    let ty = call.type_of(&call.kind.definition)?;
    let manager = call.manager(&options).to_owned();
    let mut registry = call.registry(Door::Main, &manager, options.dry_run);
    registry.door = door;
    let mut warnings = Vec::new();
    let outcome = registry
        .update(&call.path.name, "patch", false, &mut |old| {
            let Some(old) = old else {
                return Err(Error::internal("a patch has nothing to patch"));
            };
            let conformed = conform(schema, ty, || patch.apply(schema, ty, old.value()))?;
            warnings.clear();
            strictness(
                &call.gvk(),
                conformed.strict,
                options.validation,
                &mut warnings,
            )?;
            let new = Object::new(conformed.value)
                .map_err(|_| Error::bad_request("a patch must leave an object"))?;
            Ok(Change { new, owned: false })
        })
        .await?;
    warnings.append(&mut registry.warnings);
    call.written(outcome, &warnings)
}

pub(super) fn is_apply(call: &Call<'_>) -> bool {
    codec::essence(negotiate::content_type(call.headers)) == codec::APPLY
}

async fn apply(
    call: &Call<'_>,
    door: Door<'_>,
    body: &[u8],
    options: &WriteOptions,
) -> Result<Reply, Error> {
    if options.field_manager.is_empty() {
        let cause = Cause::required("fieldManager", "is required for apply patch");
        return Err(invalid_options(cause));
    }
    let schema = call.api.schema;
    let ty = call.type_of(&call.kind.definition)?;
    let gvk = call.gvk();
    let decoded = codec::decode_apply(body, schema, ty, &gvk)?;
    let mut warnings = Vec::new();
    strictness(&gvk, decoded.strict, options.validation, &mut warnings)?;
    let mut config = decoded.object;
    if config.name().is_empty() {
        config.set(&["metadata", "name"], call.path.name.clone().into());
    }
    let mut registry = call.registry(Door::Main, &options.field_manager, options.dry_run);
    registry.door = door;
    let reset = registry.reset();
    let manager = patch::apply::Manager {
        name: &options.field_manager,
        subresource: match door {
            Door::Main => "",
            Door::Subresource(name) => name,
        },
        force: options.force,
        now: call.now,
    };
    check_names(&config, &call.path.name, &registry)?;
    let create = door == Door::Main;
    let outcome = registry
        .update(&call.path.name, "patch", create, &mut |old| {
            let wanted = config.resource_version();
            if let Some(old) = old
                && !wanted.is_empty()
                && wanted != old.resource_version()
            {
                let (group, plural) = (&call.kind.group, &call.kind.plural);
                return Err(Error::modified(group, plural, &call.path.name));
            }
            if old.is_none() && !config.uid().is_empty() {
                let (group, plural) = (&call.kind.group, &call.kind.plural);
                let why = "uid mismatch: the provided object specified uid, and no existing object was found";
                return Err(Error::conflict(group, plural, &call.path.name, why));
            }
            let make = || {
                let new = patch::apply::apply(schema, ty, old, &config, manager, reset)?;
                Ok(new.into_value())
            };
            let conformed = conform(schema, ty, make)?;
            let new = Object::new(conformed.value)
                .map_err(|_| Error::bad_request("an apply configuration must be an object"))?;
            Ok(Change { new, owned: true })
        })
        .await?;
    warnings.append(&mut registry.warnings);
    call.written(outcome, &warnings)
}

/// The URL is authoritative.
fn check_names(config: &Object, name: &str, registry: &Registry<'_>) -> Result<(), Error> {
    if config.name() != name {
        return Err(Error::bad_request(format!(
            "the name of the object ({}) does not match the name on the URL ({name})",
            config.name()
        )));
    }
    let namespace = config.namespace();
    if namespace.is_empty() || namespace == registry.namespace {
        return Ok(());
    }
    Err(Error::bad_request(
        "the namespace of the provided object does not match the namespace sent on the request",
    ))
}

// === impl Patch ===

impl Patch {
    /// Reads the body by its content type.
    pub(super) fn read(call: &Call<'_>, body: &[u8]) -> Result<Self, Error> {
        let parsed = || -> Result<Value, Error> {
            let value: Value = match codec::json::syntax_error(body) {
                Some(why) => {
                    return Err(Error::bad_request(format!("error decoding patch: {why}")));
                }
                None => serde_json::from_slice(body).map_err(|error| {
                    Error::bad_request(format!("error decoding patch: {error}"))
                })?,
            };
            if value.is_object() {
                Ok(value)
            } else {
                Err(Error::bad_request(
                    "error decoding patch: a patch must be an object",
                ))
            }
        };
        match codec::essence(negotiate::content_type(call.headers)) {
            JSON_PATCH => Ok(Self::Json(body.to_vec())),
            MERGE_PATCH => Ok(Self::Merge(parsed()?)),
            STRATEGIC_PATCH => Ok(Self::Strategic(parsed()?)),
            _ => Err(Error::unsupported_media_type(&[
                JSON_PATCH,
                MERGE_PATCH,
                STRATEGIC_PATCH,
                codec::APPLY,
            ])),
        }
    }

    pub(super) fn apply(
        &self,
        schema: &Schema,
        ty: TypeId,
        original: &Value,
    ) -> Result<Value, Error> {
        match self {
            Self::Json(body) => patch::json(original, body),
            Self::Merge(merge) => Ok(patch::merge(original, merge)),
            Self::Strategic(strategic) => patch::strategic(schema, ty, original, strategic),
        }
    }
}

/// Checks and canonicalises what `make` made; it is made once more for the message when it does not fit.
fn conform(
    schema: &Schema,
    ty: TypeId,
    make: impl Fn() -> Result<Value, Error>,
) -> Result<codec::Conformed, Error> {
    match codec::conform(schema, ty, make()?) {
        Ok(conformed) => Ok(conformed),
        Err(why) => Err(unfit(&make()?.to_string(), &why)),
    }
}

/// A patch whose result is no object of this kind. Upstream names no kind and no object here.
fn unfit(patched: &str, why: &str) -> Error {
    let cause = Cause::invalid("patch", &Value::from(patched), why);
    Error::invalid("", "", "", vec![cause])
}

fn invalid_options(cause: Cause) -> Error {
    Error::invalid("meta.k8s.io", "PatchOptions", "", vec![cause])
}

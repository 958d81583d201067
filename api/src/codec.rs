//! Bodies in, objects out: JSON, YAML and Kubernetes protobuf, checked against the type graph.
//!
//! Differs from Kubernetes: YAML is read as 1.2, so `yes`, `on` and `y` are text; kubectl, which reads 1.1, sends us JSON.
//!
//! Decoding says what Kubernetes says: the same words for a wrong type, an unknown field, a duplicate key, a wrong kind.
//! Never touches the store, never defaults, never knows a kind by name.
//!
//! A write passes [`decode`] (types, unknown fields, canonical form), then defaulting, then [`complete`] (what Go always
//! writes, such as `resources: {}`; `decode` takes it away, so that defaulting meets one form, and only `complete` puts it
//! back). The result of a patch passes [`conform`] instead of `decode`; an apply configuration passes [`decode_apply`],
//! which keeps exactly what the client wrote.

mod canonical;
mod conform;
pub mod json;
pub mod protobuf;
mod time;

use serde::Deserializer as _;
use serde_json::Value;

use crate::object::Object;
use crate::schema::{GroupVersionKind, Schema, TypeId};
use crate::status::{Error, Reason};

pub use canonical::{canonicalize, complete};

pub const JSON: &str = "application/json";
pub const YAML: &str = "application/yaml";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
pub const APPLY: &str = "application/apply-patch+yaml";

/// An object as a client sent it, checked and pruned.
#[derive(Clone, Debug)]
pub struct Decoded {
    pub object: Object,
    /// Complete messages, in document order: `unknown field "spec.x"`, `duplicate field "data.a"`. At most 100.
    pub strict: Vec<String>,
}

/// A tree that passed [`conform`].
#[derive(Clone, Debug)]
pub struct Conformed {
    pub value: Value,
    pub strict: Vec<String>,
}

/// Decodes the body of a write into the canonical form of `ty`; `default` fills a missing apiVersion or kind.
///
/// `media_type` is the whole `Content-Type`; empty means JSON. `DeleteOptions` and its like are taken under any apiVersion.
pub fn decode(
    media_type: &str,
    body: &[u8],
    schema: &Schema,
    ty: TypeId,
    default: &GroupVersionKind,
) -> Result<Decoded, Error> {
    let mut decoded = match essence(media_type) {
        "" | JSON => decode_text(Json(body), body, schema, ty, default),
        YAML => decode_text(Yaml::checked(body)?, body, schema, ty, default),
        PROTOBUF => decode_protobuf(body, schema, ty, default),
        _ => Err(unsupported(&[JSON, YAML, PROTOBUF])),
    }?;
    let mut value = decoded.object.into_value();
    canonical::settle(schema, ty, &mut value);
    decoded.object = as_object(value)?;
    Ok(decoded)
}

/// Decodes an apply configuration (YAML or JSON): checked and pruned, but otherwise as written, nulls and zeros included.
pub fn decode_apply(
    body: &[u8],
    schema: &Schema,
    ty: TypeId,
    default: &GroupVersionKind,
) -> Result<Decoded, Error> {
    if body.trim_ascii_start().starts_with(b"{") {
        decode_text(Json(body), body, schema, ty, default)
    } else {
        decode_text(Yaml::checked(body)?, body, schema, ty, default)
    }
}

/// Does to a tree what `decode` does to a body: for the result of a patch. The error is upstream's bare text
/// (`json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32`).
pub fn conform(schema: &Schema, ty: TypeId, value: Value) -> Result<Conformed, String> {
    let (mut value, findings) = conform::walk(schema, ty, value).map_err(|e| e.to_string())?;
    if let Some(error) = findings.error {
        return Err(error);
    }
    canonical::settle(schema, ty, &mut value);
    Ok(Conformed {
        value,
        strict: findings.strict,
    })
}

/// The 400 for `fieldValidation=Strict`; `None` when there is nothing to complain about.
pub fn strict_error(gvk: &GroupVersionKind, strict: &[String]) -> Option<Error> {
    if strict.is_empty() {
        return None;
    }
    let text = format!("strict decoding error: {}", strict.join(", "));
    Some(unhandled(gvk, &gvk.kind, &text))
}

/// The 415 that lists what is accepted.
pub fn unsupported(accepted: &[&str]) -> Error {
    let accepted = accepted.join(", ");
    let message = format!(
        "the body of the request was in an unknown format - accepted media types include: {accepted}"
    );
    Error::new(Reason::UnsupportedMediaType, message)
}

/// A media type without its parameters.
pub fn essence(media_type: &str) -> &str {
    media_type.split(';').next().unwrap_or_default().trim()
}

/// An object as YAML.
pub fn to_yaml(value: &Value) -> Result<String, Error> {
    serde_norway::to_string(value)
        .map_err(|e| Error::internal(format!("cannot write the object as YAML: {e}")))
}

// ---- text ----------------------------------------------------------------------------------------------------------

/// A text format that can be read twice: once for the kind, once for the object.
trait Source: Copy {
    fn kind(self) -> Result<conform::TypeMeta, String>;
    fn object(self, schema: &Schema, ty: TypeId) -> Result<(Value, conform::Findings), String>;
}

#[derive(Clone, Copy)]
struct Json<'a>(&'a [u8]);

#[derive(Clone, Copy)]
struct Yaml<'a>(&'a [u8]);

impl Source for Json<'_> {
    fn kind(self) -> Result<conform::TypeMeta, String> {
        let mut deserializer = serde_json::Deserializer::from_slice(self.0);
        let found = deserializer.deserialize_any(conform::TypeMetaVisitor);
        let found = found.and_then(|meta| deserializer.end().map(|()| meta));
        found.map_err(|e| json::error_text(self.0, &e))
    }

    fn object(self, schema: &Schema, ty: TypeId) -> Result<(Value, conform::Findings), String> {
        let mut deserializer = serde_json::Deserializer::from_slice(self.0);
        conform::walk(schema, ty, &mut deserializer).map_err(|e| json::error_text(self.0, &e))
    }
}

/// Most bytes that the aliases of a YAML body may stand for, at the worst.
const MOST_ALIASED: usize = 32 << 20;
/// Most brackets that may be open at once in a YAML body; its scanner looks at all of them for every token.
const MOST_BRACKETS: usize = 1_000;

impl<'a> Yaml<'a> {
    /// Refuses bombs by a look at the bytes: `*x` many times over a large anchor, brackets without end. A text that only
    /// looks like one is refused too, with what to do about it; no ordinary manifest comes near.
    fn checked(body: &'a [u8]) -> Result<Self, Error> {
        let (mut open, mut aliases, mut before) = (0_usize, 0_usize, b' ');
        for pair in body.windows(2) {
            match pair[0] {
                b'{' | b'[' => open += 1,
                b'}' | b']' => open = open.saturating_sub(1),
                b'*' if b" \n\t[{,:-".contains(&before) && pair[1].is_ascii_alphanumeric() => {
                    aliases += 1
                }
                _ => {}
            }
            before = pair[0];
            if open > MOST_BRACKETS || aliases.saturating_mul(body.len()) > MOST_ALIASED {
                return Err(Error::bad_request(
                    "error converting YAML to JSON: yaml: too many aliases or open brackets; send JSON",
                ));
            }
        }
        Ok(Self(body))
    }
}

impl Source for Yaml<'_> {
    fn kind(self) -> Result<conform::TypeMeta, String> {
        serde_norway::Deserializer::from_slice(self.0)
            .deserialize_any(conform::TypeMetaVisitor)
            .map_err(|e| yaml_error(&e))
    }

    fn object(self, schema: &Schema, ty: TypeId) -> Result<(Value, conform::Findings), String> {
        let deserializer = serde_norway::Deserializer::from_slice(self.0);
        conform::walk(schema, ty, deserializer).map_err(|e| yaml_error(&e))
    }
}

fn yaml_error(error: &serde_norway::Error) -> String {
    format!("error converting YAML to JSON: yaml: {error}")
}

fn decode_text(
    source: impl Source,
    body: &[u8],
    schema: &Schema,
    ty: TypeId,
    default: &GroupVersionKind,
) -> Result<Decoded, Error> {
    let meta = source
        .kind()
        .and_then(conform::TypeMeta::checked)
        .map_err(|text| unrecognized(body, default, &text))?;
    let gvk = meta.or_default(default);
    check_kind(schema, ty, &gvk, default)?;
    let (value, findings) = source
        .object(schema, ty)
        .map_err(|text| unhandled(&gvk, &default.kind, &text))?;
    finish(value, findings, &gvk, default)
}

fn finish(
    value: Value,
    findings: conform::Findings,
    gvk: &GroupVersionKind,
    default: &GroupVersionKind,
) -> Result<Decoded, Error> {
    if let Some(text) = findings.error {
        return Err(unhandled(gvk, &default.kind, &text));
    }
    let mut object = as_object(value)?;
    object.set(&["apiVersion"], Value::String(default.api_version()));
    object.set(&["kind"], Value::String(default.kind.clone()));
    Ok(Decoded {
        object,
        strict: findings.strict,
    })
}

// ---- protobuf ------------------------------------------------------------------------------------------------------

fn decode_protobuf(
    body: &[u8],
    schema: &Schema,
    ty: TypeId,
    default: &GroupVersionKind,
) -> Result<Decoded, Error> {
    let envelope =
        protobuf::Envelope::parse(body).map_err(|text| unrecognized(body, default, &text))?;
    let gvk = conform::TypeMeta::new(&envelope.api_version, &envelope.kind).or_default(default);
    check_kind(schema, ty, &gvk, default)?;
    let value = envelope
        .decode(schema.name(ty))
        .map_err(|text| unhandled(&gvk, &default.kind, &text))?;
    let (value, findings) = conform::walk(schema, ty, value)
        .map_err(|e| unhandled(&gvk, &default.kind, &e.to_string()))?;
    finish(value, findings, &gvk, default)
}

// ---- errors --------------------------------------------------------------------------------------------------------

/// Refuses a body of another kind or version than the one this path takes.
fn check_kind(
    schema: &Schema,
    ty: TypeId,
    gvk: &GroupVersionKind,
    default: &GroupVersionKind,
) -> Result<(), Error> {
    let any_version = schema.name(ty).starts_with("io.k8s.apimachinery.");
    if gvk.kind == default.kind && any_version || gvk == default {
        return Ok(());
    }
    if gvk.kind == default.kind && gvk.group == default.group {
        return Err(Error::bad_request(format!(
            "the API version in the data ({}) does not match the expected API version ({})",
            gvk.api_version(),
            default.api_version()
        )));
    }
    let text = if schema.kind(gvk).is_some() {
        let internal = default.group.split('.').next().unwrap_or_default();
        let internal = if internal.is_empty() {
            "core"
        } else {
            internal
        };
        format!(
            "converting ({}.{}) to ({internal}.{}): unknown conversion",
            gvk.version, gvk.kind, default.kind
        )
    } else {
        format!(
            "no kind {:?} is registered for version {:?} in scheme \"pkg/api/legacyscheme/scheme.go:30\"",
            gvk.kind,
            gvk.api_version()
        )
    };
    Err(unhandled(gvk, &default.kind, &text))
}

/// `ConfigMap in version "v1" cannot be handled as a ConfigMap: …`
fn unhandled(gvk: &GroupVersionKind, wanted: &str, text: &str) -> Error {
    Error::bad_request(format!(
        "{} in version {:?} cannot be handled as a {wanted}: {text}",
        gvk.kind, gvk.version
    ))
}

fn unrecognized(body: &[u8], default: &GroupVersionKind, text: &str) -> Error {
    Error::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {text} ({})",
        default.kind,
        summary(body)
    ))
}

/// The first 30 bytes: as text when they look like an object, else in hexadecimal.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(head)),
        Some(_) => {
            let hex: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("{hex}{more}")
        }
    }
}

fn as_object(value: Value) -> Result<Object, Error> {
    Object::new(value).map_err(|_| Error::bad_request("the body of the request is not an object"))
}

#[cfg(test)]
mod tests;

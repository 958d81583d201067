//! One walk over any serde source, led by the type graph: checks types, prunes unknown fields, finds duplicate keys.
//!
//! Findings are collected, not thrown, so that all unknown fields are reported and the first type error in document
//! order wins, with the words of Go's JSON decoder. Pure.

use std::fmt;

use base64::Engine as _;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::time;
use crate::schema::{GroupVersionKind, Schema, Struct, Type, TypeId};

/// Upstream stops counting there too.
const MOST_FINDINGS: usize = 100;

/// What a walk found beside the value.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// The first type error.
    pub(super) error: Option<String>,
    pub(super) strict: Vec<String>,
}

/// Reads `deserializer` as a `ty`. Nulls stay in; canonicalisation drops them.
pub(super) fn walk<'de, D: Deserializer<'de>>(
    schema: &Schema,
    ty: TypeId,
    deserializer: D,
) -> Result<(Value, Findings), D::Error> {
    let mut walk = Walk {
        schema,
        findings: Findings::default(),
        path: Vec::new(),
        go_fields: Vec::new(),
        go_struct: "",
    };
    let seed = Seed {
        walk: &mut walk,
        ty,
    };
    let value = seed.deserialize(deserializer)?;
    Ok((value, walk.findings))
}

struct Walk<'s> {
    schema: &'s Schema,
    findings: Findings,
    /// For strict messages: `spec.containers[0].image`.
    path: Vec<Segment>,
    /// For type errors, which name neither indexes nor map keys: `spec.containers.image`.
    go_fields: Vec<&'s str>,
    /// Definition name of the innermost struct.
    go_struct: &'s str,
}

enum Segment {
    Key(String),
    Index(usize),
}

// === impl Walk ===

impl<'s> Walk<'s> {
    fn at(&mut self, ty: TypeId) -> Seed<'_, 's> {
        Seed { walk: self, ty }
    }

    fn path_to(&self, key: &str) -> String {
        let mut text = String::new();
        for segment in &self.path {
            match segment {
                Segment::Key(key) => {
                    if !text.is_empty() {
                        text.push('.');
                    }
                    text.push_str(key);
                }
                Segment::Index(index) => text.push_str(&format!("[{index}]")),
            }
        }
        if !text.is_empty() {
            text.push('.');
        }
        text + key
    }

    fn strict(&mut self, what: &str, key: &str) {
        let message = format!("{what} field \"{}\"", self.path_to(key));
        let strict = &mut self.findings.strict;
        if strict.len() < MOST_FINDINGS && !strict.contains(&message) {
            strict.push(message);
        }
    }

    fn error(&mut self, text: String) -> Value {
        self.findings.error.get_or_insert(text);
        Value::Null
    }

    /// `json: cannot unmarshal number into Go struct field ConfigMap.data of type string`
    fn mismatch(&mut self, found: &str, ty: TypeId) -> Value {
        // Types with a decoder of their own do not know where they stand.
        let (place, go_type) = match self.schema.get(ty) {
            Type::Time | Type::MicroTime => ("value".to_owned(), "string".to_owned()),
            Type::IntOrString => ("value".to_owned(), "int32".to_owned()),
            Type::Quantity => return self.error(types::quantity::ParseError.to_string()),
            _ if self.go_struct.is_empty() => ("value".to_owned(), go_type(self.schema, ty)),
            _ => {
                let name = last_segment(self.go_struct);
                let place = format!("struct field {name}.{}", self.go_fields.join("."));
                (place, go_type(self.schema, ty))
            }
        };
        self.error(format!(
            "json: cannot unmarshal {found} into Go {place} of type {go_type}"
        ))
    }
}

/// `io.k8s.api.core.v1.Pod` → `Pod`
fn last_segment(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// The Go type as its decoder prints it.
/// Differs from Kubernetes: a named string type (`v1.PullPolicy`) is printed as `string`, the facts do not tell them apart.
fn go_type(schema: &Schema, ty: TypeId) -> String {
    match schema.get(ty) {
        Type::Struct(s) => {
            let mut words = s.name.rsplit('.');
            let name = words.next().unwrap_or_default();
            let package = words.next().unwrap_or_default();
            format!("{package}.{name}")
        }
        Type::Map { value, .. } => match schema.get(*value) {
            Type::Quantity => "v1.ResourceList".to_owned(),
            _ => format!("map[string]{}", go_type(schema, *value)),
        },
        Type::List { item, .. } => format!("[]{}", go_type(schema, *item)),
        Type::String => "string".to_owned(),
        Type::Integer { bits } => format!("int{bits}"),
        Type::Number => "float64".to_owned(),
        Type::Boolean => "bool".to_owned(),
        Type::Bytes => "[]uint8".to_owned(),
        Type::Quantity => "resource.Quantity".to_owned(),
        Type::IntOrString => "intstr.IntOrString".to_owned(),
        Type::Time => "v1.Time".to_owned(),
        Type::MicroTime => "v1.MicroTime".to_owned(),
        Type::Any => "interface {}".to_owned(),
    }
}

/// Reads one value of type `ty`.
struct Seed<'w, 's> {
    walk: &'w mut Walk<'s>,
    ty: TypeId,
}

// === impl Seed ===

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if matches!(self.walk.schema.get(self.ty), Type::Any) {
            return serde::Deserialize::deserialize(deserializer);
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(match self.walk.schema.get(self.ty) {
            Type::Boolean => Value::Bool(value),
            _ => self.walk.mismatch("bool", self.ty),
        })
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(self.number(value.into(), Some(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(self.number(value.into(), i64::try_from(value).ok()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        match Number::from_f64(value) {
            Some(number) => Ok(self.number(number, None)),
            // Only YAML has these.
            None => Ok(self.walk.mismatch(&format!("number {value}"), self.ty)),
        }
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(self.text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(self.text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let &Type::List { item, .. } = self.walk.schema.get(self.ty) else {
            self.walk.mismatch("array", self.ty);
            while items.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Value::Null);
        };
        let mut list = Vec::new();
        loop {
            self.walk.path.push(Segment::Index(list.len()));
            let next = items.next_element_seed(self.walk.at(item))?;
            self.walk.path.pop();
            match next {
                Some(value) => list.push(value),
                None => return Ok(Value::Array(list)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        match self.walk.schema.get(self.ty) {
            Type::Struct(body) => self.walk.structure(body, entries),
            Type::Map { value, .. } => self.walk.map(*value, entries),
            _ => {
                self.walk.mismatch("object", self.ty);
                while entries.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Null)
            }
        }
    }
}

impl Seed<'_, '_> {
    fn number(self, number: Number, integer: Option<i64>) -> Value {
        let fits = |bits: u8| integer.is_some_and(|n| bits == 64 || i32::try_from(n).is_ok());
        match self.walk.schema.get(self.ty) {
            Type::Integer { bits } if fits(*bits) => Value::Number(number),
            Type::IntOrString if fits(32) => Value::Number(number),
            Type::Number => Value::Number(number),
            Type::Quantity => self.quantity(&number.to_string(), Value::Number(number.clone())),
            Type::Integer { .. } | Type::IntOrString => {
                self.walk.mismatch(&format!("number {number}"), self.ty)
            }
            _ => self.walk.mismatch("number", self.ty),
        }
    }

    fn text(self, text: String) -> Value {
        match self.walk.schema.get(self.ty) {
            Type::String | Type::IntOrString => Value::String(text),
            Type::Bytes => match decode_base64(&text) {
                Ok(_) => Value::String(text),
                Err(at) => self
                    .walk
                    .error(format!("illegal base64 data at input byte {at}")),
            },
            Type::Quantity => self.quantity(&text, Value::String(text.clone())),
            Type::Time => match time::check(&text, time::SECONDS) {
                Ok(()) => Value::String(text),
                Err(error) => self.walk.error(error),
            },
            Type::MicroTime => match time::check(&text, time::MICROS) {
                Ok(()) => Value::String(text),
                Err(error) => self.walk.error(error),
            },
            _ => self.walk.mismatch("string", self.ty),
        }
    }

    fn quantity(self, text: &str, value: Value) -> Value {
        match text.parse::<types::quantity::Quantity>() {
            Ok(_) => value,
            Err(error) => self.walk.error(error.to_string()),
        }
    }
}

/// Standard base64 as Go reads it: line breaks are skipped. The error is the offset of the offending byte.
pub(super) fn decode_base64(text: &str) -> Result<Vec<u8>, usize> {
    let broken = text.contains(['\n', '\r']);
    let clean: std::borrow::Cow<'_, str> = if broken {
        text.replace(['\n', '\r'], "").into()
    } else {
        text.into()
    };
    base64::engine::general_purpose::STANDARD
        .decode(clean.as_bytes())
        .map_err(|error| match error {
            base64::DecodeError::InvalidByte(at, _)
            | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            // Go names the start of the incomplete quantum.
            _ => clean.len() / 4 * 4,
        })
}

impl<'s> Walk<'s> {
    fn structure<'de, A: MapAccess<'de>>(
        &mut self,
        body: &'s Struct,
        mut entries: A,
    ) -> Result<Value, A::Error> {
        let outer = self.go_struct;
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(KeySeed)? {
            let Some((name, field)) = body.fields.get_key_value(key.as_str()) else {
                self.strict("unknown", &key);
                entries.next_value::<IgnoredAny>()?;
                continue;
            };
            if map.contains_key(&key) {
                self.strict("duplicate", &key);
            }
            self.go_struct = &body.name;
            self.go_fields.push(name);
            self.path.push(Segment::Key(key));
            let value = entries.next_value_seed(self.at(field.ty))?;
            self.go_fields.pop();
            self.go_struct = outer;
            if let Some(Segment::Key(key)) = self.path.pop() {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }

    fn map<'de, A: MapAccess<'de>>(
        &mut self,
        ty: TypeId,
        mut entries: A,
    ) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key_seed(KeySeed)? {
            if map.contains_key(&key) {
                self.strict("duplicate", &key);
            }
            self.path.push(Segment::Key(key));
            let value = entries.next_value_seed(self.at(ty))?;
            if let Some(Segment::Key(key)) = self.path.pop() {
                map.insert(key, value);
            }
        }
        Ok(Value::Object(map))
    }
}

/// A key; YAML's numbers and booleans become text.
struct KeySeed;

impl<'de> DeserializeSeed<'de> for KeySeed {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Visitor<'_> for KeySeed {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<String, E> {
        Ok(key.to_owned())
    }

    fn visit_string<E>(self, key: String) -> Result<String, E> {
        Ok(key)
    }

    fn visit_bool<E>(self, key: bool) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_i64<E>(self, key: i64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_u64<E>(self, key: u64) -> Result<String, E> {
        Ok(key.to_string())
    }

    fn visit_f64<E>(self, key: f64) -> Result<String, E> {
        Ok(key.to_string())
    }
}

// ---- apiVersion and kind -------------------------------------------------------------------------------------------

/// apiVersion and kind of a body, before its type is known; whatever else it holds is skipped.
#[derive(Debug, Default)]
pub(super) struct TypeMeta {
    api_version: Value,
    kind: Value,
    /// What the root is when it is no object.
    root: Option<&'static str>,
}

pub(super) struct TypeMetaVisitor;

// === impl TypeMeta ===

impl TypeMeta {
    pub(super) fn new(api_version: &str, kind: &str) -> Self {
        Self {
            api_version: api_version.into(),
            kind: kind.into(),
            root: None,
        }
    }

    /// Refuses a root that is no object and an apiVersion or kind that is no text.
    pub(super) fn checked(self) -> Result<Self, String> {
        const HEAD: &str = "couldn't get version/kind; json parse error: json: cannot unmarshal";
        if let Some(found) = self.root {
            return Err(format!(
                "{HEAD} {found} into Go value of type struct {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}"
            ));
        }
        for (name, value) in [("apiVersion", &self.api_version), ("kind", &self.kind)] {
            let found = match value {
                Value::Null | Value::String(_) => continue,
                Value::Bool(_) => "bool",
                Value::Number(_) => "number",
                Value::Array(_) => "array",
                Value::Object(_) => "object",
            };
            return Err(format!(
                "{HEAD} {found} into Go struct field .{name} of type string"
            ));
        }
        Ok(self)
    }

    /// What is missing is taken from `default`.
    pub(super) fn or_default(&self, default: &GroupVersionKind) -> GroupVersionKind {
        let api_version = self.api_version.as_str().unwrap_or_default();
        let kind = self.kind.as_str().unwrap_or_default();
        let mut gvk = GroupVersionKind::parse(api_version, kind);
        if gvk.kind.is_empty() {
            gvk.kind.clone_from(&default.kind);
        }
        if gvk.version.is_empty() && (gvk.group.is_empty() || gvk.group == default.group) {
            gvk.group.clone_from(&default.group);
            gvk.version.clone_from(&default.version);
        }
        gvk
    }
}

impl<'de> Visitor<'de> for TypeMetaVisitor {
    type Value = TypeMeta;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<TypeMeta, A::Error> {
        let mut meta = TypeMeta::default();
        while let Some(key) = entries.next_key_seed(KeySeed)? {
            match key.as_str() {
                "apiVersion" => meta.api_version = entries.next_value()?,
                "kind" => meta.kind = entries.next_value()?,
                _ => {
                    entries.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(meta)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<TypeMeta, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(not_an_object("array"))
    }

    fn visit_unit<E>(self) -> Result<TypeMeta, E> {
        Ok(TypeMeta::default())
    }

    fn visit_bool<E>(self, _: bool) -> Result<TypeMeta, E> {
        Ok(not_an_object("bool"))
    }

    fn visit_i64<E>(self, _: i64) -> Result<TypeMeta, E> {
        Ok(not_an_object("number"))
    }

    fn visit_u64<E>(self, _: u64) -> Result<TypeMeta, E> {
        Ok(not_an_object("number"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<TypeMeta, E> {
        Ok(not_an_object("number"))
    }

    fn visit_str<E>(self, _: &str) -> Result<TypeMeta, E> {
        Ok(not_an_object("string"))
    }
}

fn not_an_object(found: &'static str) -> TypeMeta {
    TypeMeta {
        root: Some(found),
        ..TypeMeta::default()
    }
}

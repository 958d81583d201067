//! Definitions: what a type of the graph looks like in OpenAPI, with Kubernetes' extensions. Pure.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value, json};

use super::Dialect;
use super::descriptions::Descriptions;
use crate::schema::{Field, GroupVersionKind, ListMerge, Schema, Struct, Type, TypeId};

const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Time";
const MICRO_TIME: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime";
/// The body of every PATCH.
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";

/// The definitions named in `roots` and all they refer to, by name.
pub(super) fn closure(
    schema: &Schema,
    dialect: Dialect,
    roots: &BTreeSet<String>,
    texts: &Descriptions,
) -> Map<String, Value> {
    let mut kinds: HashMap<TypeId, Vec<&GroupVersionKind>> = HashMap::new();
    for (gvk, ty) in schema.kinds() {
        kinds.entry(ty).or_default().push(gvk);
    }
    let mut writer = Writer {
        schema,
        dialect,
        texts,
        todo: roots.iter().cloned().collect(),
        done: Map::new(),
    };
    while let Some(name) = writer.todo.pop() {
        if writer.done.contains_key(&name) {
            continue;
        }
        let definition = match schema.named(&name) {
            Some(ty) => writer.definition(ty, kinds.get(&ty).map(Vec::as_slice)),
            None => leaf(&name, dialect, texts),
        };
        writer.done.insert(name, definition);
    }
    writer.done
}

struct Writer<'a> {
    schema: &'a Schema,
    dialect: Dialect,
    texts: &'a Descriptions,
    /// Names that were referred to.
    todo: Vec<String>,
    done: Map<String, Value>,
}

// === impl Writer ===

impl Writer<'_> {
    fn definition(&mut self, ty: TypeId, kinds: Option<&[&GroupVersionKind]>) -> Value {
        let Type::Struct(body) = self.schema.get(ty) else {
            return self.value(ty);
        };
        let mut definition = Map::new();
        definition.insert("type".to_owned(), "object".into());
        let text = self.texts.definition(&body.name).map(str::to_owned);
        if let Some(text) = text.or_else(|| list_text(body)) {
            definition.insert("description".to_owned(), text.into());
        }
        let mut properties = Map::new();
        let mut required = Vec::new();
        for (name, field) in &body.fields {
            let property = self.property(body, name, field);
            properties.insert(name.to_string(), property);
            if field.required {
                required.push(Value::from(&**name));
            }
        }
        if !properties.is_empty() {
            definition.insert("properties".to_owned(), properties.into());
        }
        if !required.is_empty() {
            definition.insert("required".to_owned(), required.into());
        }
        if body.atomic {
            definition.insert("x-kubernetes-map-type".to_owned(), "atomic".into());
        }
        if let Some(kinds) = kinds {
            let kinds: Vec<Value> = kinds.iter().map(|gvk| kind_value(gvk)).collect();
            definition.insert("x-kubernetes-group-version-kind".to_owned(), kinds.into());
        }
        definition.into()
    }

    fn property(&mut self, owner: &Struct, name: &str, field: &Field) -> Value {
        let mut property = self.value(field.ty);
        if self.dialect == Dialect::V3 {
            allow(&mut property, field);
            if let Some(default) = &field.default {
                property["default"] = default.clone();
            } else if field.always && matches!(self.schema.get(field.ty), Type::Struct(_)) {
                property["default"] = json!({});
            }
        }
        if let Some(text) = self.texts.field(&owner.name, name) {
            property["description"] = text.into();
        }
        let mut strategies = Vec::new();
        if field.patch.merge {
            strategies.push("merge");
        }
        if field.patch.retain_keys {
            strategies.push("retainKeys");
        }
        if !strategies.is_empty() {
            property["x-kubernetes-patch-strategy"] = strategies.join(",").into();
        }
        if let Some(key) = &field.patch.merge_key {
            property["x-kubernetes-patch-merge-key"] = (&**key).into();
        }
        self.beside_reference(property)
    }

    /// v3 ignores what stands beside a `$ref`: then it goes into an `allOf`.
    fn beside_reference(&self, mut property: Value) -> Value {
        if self.dialect == Dialect::V3
            && let Some(map) = property.as_object_mut()
            && map.len() > 1
            && let Some(reference) = map.remove("$ref")
        {
            map.insert("allOf".to_owned(), json!([{"$ref": reference}]));
        }
        property
    }

    fn value(&mut self, ty: TypeId) -> Value {
        match self.schema.get(ty) {
            Type::Struct(body) => self.reference_to(ty, body),
            Type::Map { value, atomic } => {
                let inner = self.value(*value);
                let mut map = json!({"type": "object", "additionalProperties": inner});
                if *atomic {
                    map["x-kubernetes-map-type"] = "atomic".into();
                }
                map
            }
            Type::List { item, merge } => {
                let inner = self.value(*item);
                let mut list = json!({"type": "array", "items": inner});
                match merge {
                    ListMerge::Atomic => list["x-kubernetes-list-type"] = "atomic".into(),
                    ListMerge::Set => list["x-kubernetes-list-type"] = "set".into(),
                    ListMerge::Map { keys } => {
                        list["x-kubernetes-list-type"] = "map".into();
                        let keys: Vec<&str> = keys.iter().map(|key| &**key).collect();
                        list["x-kubernetes-list-map-keys"] = keys.into();
                    }
                }
                list
            }
            Type::String => json!({"type": "string"}),
            Type::Integer { bits } => json!({"type": "integer", "format": format!("int{bits}")}),
            Type::Number => json!({"type": "number", "format": "double"}),
            Type::Boolean => json!({"type": "boolean"}),
            Type::Bytes => json!({"type": "string", "format": "byte"}),
            Type::Quantity => self.reference(QUANTITY),
            Type::IntOrString => self.reference(INT_OR_STRING),
            Type::Time => self.reference(TIME),
            Type::MicroTime => self.reference(MICRO_TIME),
            Type::Any => json!({}),
        }
    }

    fn reference(&mut self, name: &str) -> Value {
        if !self.done.contains_key(name) {
            self.todo.push(name.to_owned());
        }
        json!({"$ref": format!("{}{name}", self.dialect.definitions())})
    }

    fn reference_to(&mut self, ty: TypeId, body: &Struct) -> Value {
        let mut reference = self.reference(&body.name);
        // A field may make a shared struct atomic or granular for itself.
        if self.schema.named(&body.name) != Some(ty) {
            let kind = if body.atomic { "atomic" } else { "granular" };
            reference["x-kubernetes-map-type"] = kind.into();
        }
        reference
    }
}

/// Allowed values go to the items of a list or map.
fn allow(property: &mut Value, field: &Field) {
    if field.allowed.is_empty() {
        return;
    }
    let mut at = property;
    for key in ["items", "additionalProperties"] {
        if at.get(key).is_some() {
            at = &mut at[key];
        }
    }
    let allowed: Vec<&str> = field.allowed.iter().map(|value| &**value).collect();
    at["enum"] = allowed.into();
}

pub(super) fn kind_value(gvk: &GroupVersionKind) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

/// Lists are generic in Rust, so they have no description of their own there.
fn list_text(body: &Struct) -> Option<String> {
    let name = body.name.rsplit('.').next()?;
    let item = name.strip_suffix("List")?;
    body.fields
        .contains_key("items")
        .then(|| format!("{name} is a list of {item}."))
}

/// Types that are no structs.
fn leaf(name: &str, dialect: Dialect, texts: &Descriptions) -> Value {
    let mut definition = match (name, dialect) {
        (QUANTITY, Dialect::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (QUANTITY, Dialect::V2) => json!({"type": "string"}),
        (INT_OR_STRING, Dialect::V3) => {
            json!({"format": "int-or-string", "oneOf": [{"type": "integer"}, {"type": "string"}]})
        }
        (INT_OR_STRING, Dialect::V2) => json!({"type": "string", "format": "int-or-string"}),
        (TIME | MICRO_TIME, _) => json!({"type": "string", "format": "date-time"}),
        _ => json!({"type": "object"}),
    };
    if name == PATCH {
        definition["description"] = "The body of a PATCH: its format is the content type's.".into();
    } else if let Some(text) = texts.definition(name) {
        definition["description"] = text.into();
    }
    definition
}

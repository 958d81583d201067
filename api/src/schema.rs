//! The compiled graph of types: what every field is, how lists merge, what zero means.
//!
//! Compiled once from the facts in `facts/` (and later from CRD schemas). Strict decoding, pruning, canonical form,
//! strategic merge, apply and OpenAPI read this graph and nothing else. Pure; never knows a kind by name.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

/// A node of the graph.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct TypeId(pub u32);

/// What stands at one place of an object.
#[derive(Clone, Debug)]
pub enum Type {
    Struct(Struct),
    /// `additionalProperties`: a string-keyed map. `atomic`: owned and replaced as a whole.
    Map {
        value: TypeId,
        atomic: bool,
    },
    List {
        item: TypeId,
        merge: ListMerge,
    },
    String,
    Integer {
        bits: u8,
    },
    Number,
    Boolean,
    /// base64 text of bytes.
    Bytes,
    /// `resource.Quantity`: text or number in, canonical text out.
    Quantity,
    IntOrString,
    /// RFC 3339, seconds.
    Time,
    /// RFC 3339, microseconds.
    MicroTime,
    /// Any JSON (RawExtension, JSON, FieldsV1, preserve-unknown-fields); atomic.
    Any,
}

#[derive(Clone, Debug)]
pub struct Struct {
    /// Definition name, `io.k8s.api.core.v1.Container`; empty for inline schemas.
    pub name: Box<str>,
    pub fields: BTreeMap<Box<str>, Field>,
    /// `x-kubernetes-map-type: atomic`.
    pub atomic: bool,
}

#[derive(Clone, Debug)]
pub struct Field {
    pub ty: TypeId,
    pub required: bool,
    /// Default from the facts (22 real ones, such as `protocol: TCP`); `""` and 0 are not kept here.
    pub default: Option<Value>,
    /// Allowed values of an enum; empty for none.
    pub allowed: Vec<Box<str>>,
    /// Go writes this field as a non-pointer with `omitempty`: a zero value means absent and is dropped.
    pub drop_zero: bool,
    pub patch: PatchStrategy,
}

/// `x-kubernetes-patch-strategy` and `-merge-key`, for strategic merge patches only.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PatchStrategy {
    pub merge: bool,
    pub retain_keys: bool,
    pub merge_key: Option<Box<str>>,
}

/// `x-kubernetes-list-type`, for ownership and apply. A list without one but with patch strategy `merge` is `Map` (with
/// a merge key) or `Set`, as kube-openapi's converter has it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ListMerge {
    Atomic,
    Set,
    Map { keys: Vec<Box<str>> },
}

/// Group, version and kind of a type.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct GroupVersionKind {
    pub group: String,
    pub version: String,
    pub kind: String,
}

/// The graph.
#[derive(Debug, Default)]
pub struct Schema {
    types: Vec<Type>,
    by_name: HashMap<Box<str>, TypeId>,
    by_kind: HashMap<GroupVersionKind, TypeId>,
}

// === impl Schema ===

impl Schema {
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    /// By definition name, `io.k8s.api.apps.v1.Deployment`.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.by_name.get(name).copied()
    }

    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<TypeId> {
        self.by_kind.get(gvk).copied()
    }

    /// The field `name` of `id`, if that is a struct that has it.
    pub fn field(&self, id: TypeId, name: &str) -> Option<&Field> {
        match self.get(id) {
            Type::Struct(s) => s.fields.get(name),
            _ => None,
        }
    }
}

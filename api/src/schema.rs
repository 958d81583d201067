//! The compiled graph of types: what every field is, how lists merge, what zero means.
//!
//! Compiled once from the facts in `facts/` (and later from CRD schemas). Strict decoding, pruning, canonical form,
//! strategic merge, apply and OpenAPI read this graph and nothing else. Pure; never knows a kind by name.
//!
//! The built-in graph never changes; types that come at run time live in a layer [`Schema::over`] it, which shares its ids.

mod facts;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use serde_json::Value;

/// The facts that [`builtin`] is compiled from.
pub(crate) const FACTS: &str = facts::TYPES;

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

#[derive(Clone, Debug, Default)]
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
    /// Allowed values of an enum (for a list or map: of its items); empty for none.
    pub allowed: Vec<Box<str>>,
    /// Go writes this field as a non-pointer with `omitempty`: a zero value means absent and is dropped.
    pub drop_zero: bool,
    /// Go writes this field even when it is zero (`resources: {}`, `restartCount: 0`): see `codec::complete`.
    pub always: bool,
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

/// The graph, or a layer of more types over another one.
#[derive(Debug, Default)]
pub struct Schema {
    base: Option<&'static Schema>,
    types: Vec<Type>,
    by_name: HashMap<Box<str>, TypeId>,
    by_kind: HashMap<GroupVersionKind, TypeId>,
}

/// The types of Kubernetes' own kinds. The first call compiles the facts (a few milliseconds).
pub fn builtin() -> &'static Schema {
    static BUILTIN: LazyLock<Schema> =
        LazyLock::new(|| facts::compile(facts::TYPES).expect("a test compiles these very facts"));
    &BUILTIN
}

// === impl GroupVersionKind ===

impl GroupVersionKind {
    pub fn new(
        group: impl Into<String>,
        version: impl Into<String>,
        kind: impl Into<String>,
    ) -> Self {
        Self {
            group: group.into(),
            version: version.into(),
            kind: kind.into(),
        }
    }

    /// From an object's `apiVersion` (`apps/v1`, or `v1` for the core group) and `kind`.
    pub fn parse(api_version: &str, kind: &str) -> Self {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        Self::new(group, version, kind)
    }

    /// `apps/v1`; `v1` for the core group.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.clone()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

// === impl Schema ===

impl Schema {
    /// An empty layer: everything in `base` is visible through it under the same ids.
    pub fn over(base: &'static Schema) -> Self {
        Self {
            base: Some(base),
            ..Self::default()
        }
    }

    pub fn get(&self, id: TypeId) -> &Type {
        let first = self.first();
        match self.base {
            Some(base) if id.0 < first => base.get(id),
            _ => &self.types[(id.0 - first) as usize],
        }
    }

    /// By definition name, `io.k8s.api.apps.v1.Deployment`.
    pub fn named(&self, name: &str) -> Option<TypeId> {
        let here = self.by_name.get(name).copied();
        here.or_else(|| self.base.and_then(|base| base.named(name)))
    }

    pub fn kind(&self, gvk: &GroupVersionKind) -> Option<TypeId> {
        let here = self.by_kind.get(gvk).copied();
        here.or_else(|| self.base.and_then(|base| base.kind(gvk)))
    }

    /// The field `name` of `id`, if that is a struct that has it.
    pub fn field(&self, id: TypeId, name: &str) -> Option<&Field> {
        match self.get(id) {
            Type::Struct(s) => s.fields.get(name),
            _ => None,
        }
    }

    /// Definition name of `id`; empty for what has none.
    pub fn name(&self, id: TypeId) -> &str {
        match self.get(id) {
            Type::Struct(s) => &s.name,
            _ => "",
        }
    }

    /// Adds a type and returns its id.
    pub fn insert(&mut self, ty: Type) -> TypeId {
        let id = self.first() + u32::try_from(self.types.len()).expect("fewer than 2^32 types");
        self.types.push(ty);
        TypeId(id)
    }

    /// Replaces a type of this layer: recursive types are inserted as `Any` first and set once their parts are known.
    pub fn set(&mut self, id: TypeId, ty: Type) {
        let at = (id.0 - self.first()) as usize;
        self.types[at] = ty;
    }

    /// Gives `id` a definition name.
    pub fn define(&mut self, name: impl Into<Box<str>>, id: TypeId) {
        self.by_name.insert(name.into(), id);
    }

    /// Makes `id` the type of a kind.
    pub fn serve(&mut self, gvk: GroupVersionKind, id: TypeId) {
        self.by_kind.insert(gvk, id);
    }

    /// Every definition of this layer with its name, in no order.
    pub fn definitions(&self) -> impl Iterator<Item = (&str, TypeId)> {
        self.by_name.iter().map(|(name, id)| (&**name, *id))
    }

    /// Every kind of this layer with its type, in no order.
    pub fn kinds(&self) -> impl Iterator<Item = (&GroupVersionKind, TypeId)> {
        self.by_kind.iter().map(|(gvk, id)| (gvk, *id))
    }

    /// First id of this layer.
    fn first(&self) -> u32 {
        self.base.map_or(0, |base| {
            base.first() + u32::try_from(base.types.len()).expect("fewer than 2^32 types")
        })
    }
}

// === impl Field ===

impl Field {
    /// An optional field of type `ty` about which nothing is special.
    pub fn plain(ty: TypeId) -> Self {
        Self {
            ty,
            required: false,
            default: None,
            allowed: Vec::new(),
            drop_zero: false,
            always: false,
            patch: PatchStrategy::default(),
        }
    }
}

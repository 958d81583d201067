//! What may be special about a kind. Every method has a do-nothing default.
//!
//! Order in one write: `default` → (ownership, mutating admission, `default` again) → `prepare` → name, uid, times →
//! `validate` → `allocate` → commit. `default` is idempotent; `validate` never mutates; none of them does I/O or reads a clock.

use crate::object::Object;
use crate::status::{Cause, Error};
use crate::store::{Key, Operation, Stored};
use ipnet::Ipv4Net;
use std::sync::Arc;

/// Which door a write came through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Door<'a> {
    /// The object itself.
    Main,
    /// `status`, `scale`, `binding`, `finalize`, `approval`, `ephemeralcontainers`, `resize` …
    Subresource(&'a str),
}

/// The pod ranges that a node may choose from when it registers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NodeRanges {
    pub within: Ipv4Net,
    /// Of the largest one.
    pub prefix: u8,
}

// === impl NodeRanges ===

impl NodeRanges {
    pub fn has(&self, range: Ipv4Net) -> bool {
        range.prefix_len() >= self.prefix && self.within.contains(&range)
    }
}

/// What a strategy may look at beside the object: other objects (from the cache) and the cluster's configuration.
pub trait Lookup {
    fn get(&self, key: &Key) -> Option<Arc<Stored>>;
    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Stored>>;
    fn now(&self) -> jiff::Timestamp;
    fn service_cidr(&self) -> ipnet::Ipv4Net;
    /// Inclusive.
    fn node_ports(&self) -> std::ops::RangeInclusive<u16>;
    /// What nodes may have without being given it; `None`: nothing.
    fn node_ranges(&self) -> Option<NodeRanges>;
    /// Random u64 for spreading allocations.
    fn random(&self) -> u64;
}

pub trait Strategy: Send + Sync {
    /// Fills absent fields. Idempotent.
    fn default(&self, _new: &mut Object) {}

    /// Undoes what this caller may not set through this door. `old` is `None` on create. The generic part (status kept on
    /// main-door updates, everything but status kept on status-door ones, generation) is not repeated here.
    fn prepare(&self, _new: &mut Object, _old: Option<&Object>, _door: Door<'_>) {}

    /// A create keeps the status the client sent (nodes register with theirs); otherwise the generic path clears it
    /// before `prepare`, which may then set the status a new object begins with.
    fn keeps_status(&self) -> bool {
        false
    }

    /// Every cause, with field paths. Object metadata is checked by the generic path (`kinds::metadata`).
    fn validate(&self, _new: &Object, _old: Option<&Object>, _door: Door<'_>) -> Vec<Cause> {
        Vec::new()
    }

    /// Texts for `Warning:` headers (deprecated or unsupported fields that are stored but not acted on).
    fn warnings(&self, _new: &Object, _old: Option<&Object>) -> Vec<String> {
        Vec::new()
    }

    /// Does `allocate` do anything? It is not called otherwise.
    fn allocates(&self) -> bool {
        false
    }

    /// Fills what only the cluster can choose (cluster IPs, node ports) and returns what must be committed in the same
    /// transaction (the allocation's own records). A conflict on one of these makes the caller try again.
    fn allocate(
        &self,
        _new: &mut Object,
        _old: Option<&Object>,
        _lookup: &dyn Lookup,
    ) -> Result<Vec<Operation>, Error> {
        Ok(Vec::new())
    }

    /// What must be committed together with the deletion of `old` (frees what `allocate` took).
    fn release(&self, _old: &Object, _lookup: &dyn Lookup) -> Vec<Operation> {
        Vec::new()
    }

    /// Selectable fields beside metadata.name and metadata.namespace.
    fn fields(&self, _object: &Object) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Names of those fields, so that an unknown one is refused: `field label not supported: x`.
    fn field_names(&self) -> &'static [&'static str] {
        &[]
    }

    /// Seconds of grace a deletion gets, or `None` for immediate deletion (everything but pods).
    fn grace_seconds(&self, _object: &Object, _requested: Option<i64>) -> Option<i64> {
        None
    }

    /// The object is going away. Marks it as it likes (a namespace becomes Terminating); `true`: something of its own,
    /// beside `metadata.finalizers`, still holds it.
    fn hold(&self, _object: &mut Object) -> bool {
        false
    }

    fn name_rule(&self) -> NameRule {
        NameRule::Subdomain
    }

    /// May an update leave resourceVersion empty?
    fn unconditional_update(&self) -> bool {
        true
    }

    /// May a PUT create?
    fn create_on_update(&self) -> bool {
        false
    }

    /// DELETE answers with the object instead of a Status.
    fn returns_deleted(&self) -> bool {
        false
    }

    /// Spec changes move metadata.generation (all kinds that have one).
    fn has_generation(&self) -> bool {
        false
    }

    /// Default propagation when the client says nothing is Orphan instead of Background.
    fn orphans_by_default(&self) -> bool {
        false
    }

    /// JSON paths of (spec.replicas, status.replicas, label selector) for the scale subresource.
    fn scale(&self) -> Option<ScalePaths> {
        None
    }
}

#[derive(Clone, Copy, Debug)]
pub struct ScalePaths {
    pub spec_replicas: &'static [&'static str],
    pub status_replicas: &'static [&'static str],
    pub selector: &'static [&'static str],
}

/// Which names are valid.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NameRule {
    /// DNS-1123 subdomain, 253 characters.
    Subdomain,
    /// DNS-1123 label, 63 characters.
    Label,
    /// DNS-1035 label, 63 characters (Services).
    Label1035,
    /// Anything without `/`, `%`, and not `.` or `..` (RBAC).
    PathSegment,
}

/// A kind about which nothing is special.
pub struct Plain;

impl Strategy for Plain {}

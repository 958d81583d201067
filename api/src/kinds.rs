//! The table of kinds: one row per resource. Only what is special about a kind is code (its `Strategy`).

pub mod strategy;

use std::borrow::Cow;

use serde_json::Value;

pub use strategy::Strategy;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// One row. Owned strings are for kinds made at run time (CRDs).
pub struct Kind {
    pub group: Cow<'static, str>,
    pub version: Cow<'static, str>,
    /// `Deployment`.
    pub kind: Cow<'static, str>,
    /// `deployments`.
    pub plural: Cow<'static, str>,
    pub singular: Cow<'static, str>,
    pub short_names: &'static [&'static str],
    pub categories: &'static [&'static str],
    pub scope: Scope,
    /// `create delete deletecollection get list patch update watch`, in discovery's order.
    pub verbs: &'static [&'static str],
    pub subresources: &'static [Subresource],
    /// Definition name in the schema: `io.k8s.api.apps.v1.Deployment`.
    pub definition: Cow<'static, str>,
    /// Storage name: usually `group/plural` (`plural` for core); two rows may share one (Events, HPAs).
    pub storage: Cow<'static, str>,
    pub columns: &'static Columns,
    pub strategy: &'static dyn Strategy,
    /// A `Warning:` header for every write: the kind is stored but nothing acts on it yet.
    pub warning: Option<&'static str>,
}

/// A subresource as discovery shows it.
pub struct Subresource {
    /// `status`, `scale`, `log`, `binding` …
    pub name: &'static str,
    /// Group, version and kind of its body (`autoscaling`, `v1`, `Scale`); empty group and version inherit the row's.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// How a kind prints in a Table (`kubectl get`). `cells` returns one value per column.
pub struct Columns {
    pub definitions: &'static [Column],
    pub cells: fn(&Value, now: jiff::Timestamp) -> Vec<Value>,
}

pub struct Column {
    pub name: &'static str,
    /// `string`, `integer`, `date` …
    pub kind: &'static str,
    /// `name` for the name column, else empty.
    pub format: &'static str,
    /// 0 always shown, 1 with `-o wide`.
    pub priority: u8,
}

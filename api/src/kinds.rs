//! The table of kinds: one row per resource. Only what is special about a kind is code (its `Strategy`).
//!
//! `rows` has the rows exactly as a stock Kubernetes 1.36 serves them (GA versions only); discovery, OpenAPI, Table
//! output and selectors are derived from them. Never does I/O and never stores anything.

pub mod autoscaling;
pub mod batch;
pub mod certificate;
pub mod columns;
pub mod config;
pub mod cron;
pub mod endpoints;
pub mod events;
pub mod extension;
pub mod gateway;
pub mod label_selector;
pub mod lease;
pub mod metadata;
pub mod names;
pub mod namespace;
pub mod networking;
pub mod node;
pub mod path;
pub mod pod;
pub mod pod_spec;
pub mod pod_template;
pub mod policy;
pub mod quantities;
#[cfg(test)]
pub(crate) mod recorded;
pub mod rows;
pub mod rules;
pub mod service;
pub mod storage;
pub mod strategy;
#[cfg(test)]
pub(crate) mod testing;
pub mod workload;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::Value;

use crate::object::Object;
use crate::schema::GroupVersionKind;
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
    /// Set on the row whose version is not the stored one: how its objects become the stored form and back.
    pub convert: Option<&'static dyn Conversion>,
    pub columns: &'static Columns,
    pub strategy: &'static dyn Strategy,
    /// A `Warning:` header for every write: the kind is stored but nothing acts on it yet.
    pub warning: Option<&'static str>,
}

/// A subresource as discovery shows it.
#[derive(Clone, Copy, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`, `binding` …
    pub name: &'static str,
    /// Group, version and kind of its body (`autoscaling`, `v1`, `Scale`); empty group and version inherit the row's.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub verbs: &'static [&'static str],
}

/// Two served versions, one stored: both directions keep everything the other version can say. Pure.
pub trait Conversion: Send + Sync {
    /// From this row's form to the stored row's form, `apiVersion` and `kind` included.
    fn store(&self, object: Object) -> Object;
    /// From the stored form to this row's form.
    fn serve(&self, object: Object) -> Object;
    /// This row's name of a selectable field to the stored row's name (`regarding.name` → `involvedObject.name`).
    fn field<'a>(&self, label: &'a str) -> &'a str {
        label
    }
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

/// All rows, in discovery's order (which is also the order of groups and of versions: the preferred one first).
pub struct Kinds {
    rows: Vec<Kind>,
    /// (group, version, plural) → row.
    by_resource: HashMap<(String, String, String), usize>,
    by_kind: HashMap<GroupVersionKind, usize>,
}

/// The built-in kinds.
pub fn table() -> &'static Kinds {
    static TABLE: LazyLock<Kinds> = LazyLock::new(|| Kinds::new(rows::all()));
    &TABLE
}

// === impl Kinds ===

impl Kinds {
    pub fn new(rows: Vec<Kind>) -> Self {
        let resource = |kind: &Kind| {
            (
                kind.group.to_string(),
                kind.version.to_string(),
                kind.plural.to_string(),
            )
        };
        let by_resource = rows
            .iter()
            .enumerate()
            .map(|(i, kind)| (resource(kind), i))
            .collect();
        let by_kind = rows
            .iter()
            .enumerate()
            .map(|(i, kind)| (kind.gvk(), i))
            .collect();
        Self {
            rows,
            by_resource,
            by_kind,
        }
    }

    pub fn all(&self) -> &[Kind] {
        &self.rows
    }

    /// `find("apps", "v1", "deployments")`; the core group is `""`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Kind> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.by_resource.get(&key).map(|i| &self.rows[*i])
    }

    pub fn by_kind(&self, gvk: &GroupVersionKind) -> Option<&Kind> {
        self.by_kind.get(gvk).map(|i| &self.rows[*i])
    }

    /// Groups in discovery's order, the core group (`""`) first, each once.
    pub fn groups(&self) -> Vec<&str> {
        let mut groups: Vec<&str> = Vec::new();
        for row in &self.rows {
            if !groups.contains(&&*row.group) {
                groups.push(&row.group);
            }
        }
        groups
    }

    /// Versions of `group`, the preferred one first.
    pub fn versions(&self, group: &str) -> Vec<&str> {
        let mut versions: Vec<&str> = Vec::new();
        for row in self.rows.iter().filter(|row| row.group == group) {
            if !versions.contains(&&*row.version) {
                versions.push(&row.version);
            }
        }
        versions
    }

    /// Rows of one group and version, in discovery's order.
    pub fn in_version(&self, group: &str, version: &str) -> impl Iterator<Item = &Kind> {
        self.rows
            .iter()
            .filter(move |row| row.group == group && row.version == version)
    }

    /// The row whose form is stored under `storage`: `stored("events")` is core's.
    pub fn stored(&self, storage: &str) -> Option<&Kind> {
        self.rows
            .iter()
            .find(|row| row.storage == storage && row.convert.is_none() && row.is_stored())
    }
}

// === impl Kind ===

impl Kind {
    pub fn gvk(&self) -> GroupVersionKind {
        GroupVersionKind {
            group: self.group.to_string(),
            version: self.version.to_string(),
            kind: self.kind.to_string(),
        }
    }

    /// `apps/v1`, `v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// As error messages name a resource: `deployments.apps`, `pods`.
    pub fn resource(&self) -> String {
        qualified(&self.plural, &self.group)
    }

    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// False for what is only asked (reviews, bindings) or computed (ComponentStatus).
    pub fn is_stored(&self) -> bool {
        self.has_verb("update")
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|sub| sub.name == name)
    }

    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

//! The rows: every resource and version a stock Kubernetes 1.36 serves, as discovery has them, and the Gateway API. Never code per kind.
//!
//! A row says what discovery says, and names the statics that hold what is special: its rules and its columns.

mod core;
mod gateway;
mod named;

use std::borrow::Cow;

use super::{Columns, Conversion, Kind, Scope, Strategy, Subresource, columns, strategy};

const ALL: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
const CREATE: &[&str] = &["create"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];
const READ_WRITE: &[&str] = &["get", "patch", "update"];
const STREAM: &[&str] = &["create", "get"];

/// All rows in discovery's order.
pub(super) fn all() -> Vec<Kind> {
    let groups: &[fn() -> Vec<Kind>] = &[
        core::core,
        named::apiregistration,
        named::apps,
        named::events,
        named::authentication,
        named::authorization,
        named::autoscaling,
        named::batch,
        named::certificates,
        named::networking,
        named::policy,
        named::rbac,
        named::storage,
        named::admissionregistration,
        named::apiextensions,
        named::scheduling,
        named::coordination,
        named::node,
        named::discovery,
        named::resource,
        named::flow_control,
        gateway::gateway,
    ];
    groups.iter().flat_map(|rows| rows()).collect()
}

/// A row with every verb, no subresource, nothing special.
fn row(
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
    scope: Scope,
) -> Kind {
    Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        plural: plural.into(),
        singular: kind.to_lowercase().into(),
        short_names: &[],
        categories: &[],
        scope,
        verbs: ALL,
        subresources: &[],
        definition: definition(group, version, kind).into(),
        storage: if group.is_empty() {
            Cow::Borrowed(plural)
        } else {
            Cow::Owned(format!("{group}/{plural}"))
        },
        convert: None,
        columns: &columns::GENERIC,
        strategy: &strategy::Plain,
        warning: None,
    }
}

/// The schema's name of a kind; three groups live outside `io.k8s.api`.
fn definition(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "io.k8s.api.core",
        "apiregistration.k8s.io" => "io.k8s.kube-aggregator.pkg.apis.apiregistration",
        "gateway.networking.k8s.io" => "io.k8s.networking.gateway",
        "apiextensions.k8s.io" => "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
        other => {
            let short = other.split('.').next().unwrap_or_default();
            return format!("io.k8s.api.{short}.{version}.{kind}");
        }
    };
    format!("{package}.{version}.{kind}")
}

const fn sub(
    name: &'static str,
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    verbs: &'static [&'static str],
) -> Subresource {
    Subresource {
        name,
        group,
        version,
        kind,
        verbs,
    }
}

// === impl Kind (building a row) ===

impl Kind {
    fn verbs(self, verbs: &'static [&'static str]) -> Self {
        Self { verbs, ..self }
    }

    fn short(self, short_names: &'static [&'static str]) -> Self {
        Self {
            short_names,
            ..self
        }
    }

    fn categories(self, categories: &'static [&'static str]) -> Self {
        Self { categories, ..self }
    }

    fn subresources(self, subresources: &'static [Subresource]) -> Self {
        Self {
            subresources,
            ..self
        }
    }

    fn columns(self, columns: &'static Columns) -> Self {
        Self { columns, ..self }
    }

    fn strategy(self, strategy: &'static dyn Strategy) -> Self {
        Self { strategy, ..self }
    }

    /// This version is served; what is stored is another row's form, under `storage`.
    fn stored_as(self, storage: &'static str, convert: &'static dyn Conversion) -> Self {
        Self {
            storage: storage.into(),
            convert: Some(convert),
            ..self
        }
    }

    fn unattended(self, warning: &'static str) -> Self {
        Self {
            warning: Some(warning),
            ..self
        }
    }
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;

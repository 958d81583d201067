//! Built-in admission: what the cluster adds to an object, or refuses, that the kind's own rules cannot know.
//!
//! Order is upstream's: the plugins of [`PLUGINS`] from first to last; mutating before, validating after the kind's own
//! validation. Pure: plugins see other objects through `Lookup`, which reads the cache.

mod certificates;
mod default_class;
mod default_tolerations;
mod escalation;
mod namespace_lifecycle;
mod node_restriction;
mod priority;
mod runtime_class;
mod service_account;
mod taint_nodes;

use serde_json::Value;

pub use default_tolerations::TolerationSeconds;

use crate::auth::{Access, User};
use crate::kinds::Kind;
use crate::kinds::strategy::{Door, Lookup};
use crate::object::Object;
use crate::status::{Cause, Error};
use crate::store::Stored;

/// What is asked: who, which object, through which door.
pub struct Attributes<'a> {
    pub kind: &'a Kind,
    pub door: Door<'a>,
    /// `create`, `update`, `patch`, `delete`.
    pub verb: &'a str,
    pub namespace: &'a str,
    /// May be empty on create: the name may still be generated.
    pub name: &'a str,
    pub user: &'a User,
    /// What the user may do beside this.
    pub access: &'a Access,
    /// `None` on create.
    pub old: Option<&'a Object>,
    pub dry_run: bool,
    pub tolerations: TolerationSeconds,
}

/// One plugin: it changes a new object, judges it, or judges a deletion.
trait Plugin: Sync {
    fn mutate(
        &self,
        _attributes: &Attributes<'_>,
        _new: &mut Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        Ok(())
    }

    fn validate(
        &self,
        _attributes: &Attributes<'_>,
        _new: &Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        Ok(())
    }

    fn delete(&self, _attributes: &Attributes<'_>) -> Result<(), Error> {
        Ok(())
    }
}

const PLUGINS: &[&dyn Plugin] = &[
    &namespace_lifecycle::NamespaceLifecycle,
    &service_account::ServiceAccount,
    &node_restriction::NodeRestriction,
    &taint_nodes::TaintNodesByCondition,
    &priority::Priority,
    &default_tolerations::DefaultTolerationSeconds,
    &default_class::STORAGE,
    &default_class::INGRESS,
    &runtime_class::RuntimeClass,
    &certificates::Requester,
    &certificates::Approval,
    &certificates::Signing,
    &certificates::SubjectRestriction,
    &escalation::Escalation,
];

/// Lets every plugin change `new`.
pub fn mutate(
    attributes: &Attributes<'_>,
    new: &mut Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    PLUGINS
        .iter()
        .try_for_each(|plugin| plugin.mutate(attributes, new, lookup))
}

/// Asks every plugin whether the finished object may be stored.
pub fn validate(
    attributes: &Attributes<'_>,
    new: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    PLUGINS
        .iter()
        .try_for_each(|plugin| plugin.validate(attributes, new, lookup))
}

/// Asks every plugin whether `attributes.name` may be deleted.
pub fn delete(attributes: &Attributes<'_>) -> Result<(), Error> {
    PLUGINS
        .iter()
        .try_for_each(|plugin| plugin.delete(attributes))
}

// === impl Attributes ===

impl Attributes<'_> {
    /// A write of the object itself (not through a subresource) of this resource.
    fn concerns(&self, group: &str, plural: &str) -> bool {
        self.door == Door::Main && self.kind.group == group && self.kind.plural == plural
    }

    fn is_create(&self) -> bool {
        self.old.is_none()
    }

    /// `pods "p" is forbidden: why`.
    fn forbidden(&self, why: &str) -> Error {
        Error::forbidden(&self.kind.group, &self.kind.plural, self.name, why)
    }

    fn forbidden_because(&self, why: &str, cause: Cause) -> Error {
        let mut error = self.forbidden(why);
        error.details.causes.push(cause);
        error
    }
}

/// The tree of a stored object; null if its bytes were not JSON, which the store never holds.
fn tree(stored: &Stored) -> Value {
    serde_json::from_slice(&stored.bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests;

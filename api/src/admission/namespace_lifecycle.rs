//! NamespaceLifecycle: nothing is made in a namespace that is missing or being deleted; three namespaces stay for ever.

use types::well_known::{NAMESPACE_DEFAULT, NAMESPACE_PUBLIC, NAMESPACE_SYSTEM};

use super::{Attributes, Plugin};
use crate::kinds::strategy::{Door, Lookup};
use crate::object::Object;
use crate::status::{Cause, CauseReason, Error};
use crate::store::Key;

pub(super) struct NamespaceLifecycle;

const IMMORTAL: [&str; 3] = [NAMESPACE_DEFAULT, NAMESPACE_SYSTEM, NAMESPACE_PUBLIC];

impl Plugin for NamespaceLifecycle {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        _new: &mut Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !attributes.kind.is_namespaced() || attributes.namespace.is_empty() {
            return Ok(());
        }
        let key = Key::new("namespaces", "", attributes.namespace);
        let Some(namespace) = lookup.get(&key) else {
            return Err(Error::not_found("", "namespaces", attributes.namespace));
        };
        let creates = attributes.is_create() && attributes.door == Door::Main;
        if !creates || namespace.index.field("status.phase") != Some("Terminating") {
            return Ok(());
        }
        let name = attributes.namespace;
        let why = format!(
            "unable to create new content in namespace {name} because it is being terminated"
        );
        let cause = Cause::other(
            CauseReason::NamespaceTerminating,
            "metadata.namespace",
            format!("namespace {name} is being terminated"),
        );
        Err(attributes.forbidden_because(&why, cause))
    }

    fn delete(&self, attributes: &Attributes<'_>) -> Result<(), Error> {
        if attributes.concerns("", "namespaces") && IMMORTAL.contains(&attributes.name) {
            return Err(attributes.forbidden("this namespace may not be deleted"));
        }
        Ok(())
    }
}

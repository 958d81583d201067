//! RuntimeClass: a pod that names a class which is not there is refused.
//!
//! Differs from Kubernetes: a class's overhead and scheduling are not merged into the pod yet.

use super::{Attributes, Plugin};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;
use crate::store::Key;

pub(super) struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !attributes.concerns("", "pods") || !attributes.is_create() {
            return Ok(());
        }
        let Some(name) = new.str_at(&["spec", "runtimeClassName"]) else {
            return Ok(());
        };
        let key = Key::new("node.k8s.io/runtimeclasses", "", name);
        if lookup.get(&key).is_some() {
            return Ok(());
        }
        Err(attributes.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")))
    }
}

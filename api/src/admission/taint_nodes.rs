//! TaintNodesByCondition: a new node takes no pods until the node lifecycle controller has seen it ready.

use serde_json::{Value, json};
use types::well_known::TAINT_NOT_READY;

use super::{Attributes, Plugin};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;

pub(super) struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        _lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !attributes.concerns("", "nodes") || !attributes.is_create() {
            return Ok(());
        }
        let mut taints = new.list_at(&["spec", "taints"]).to_vec();
        let known =
            |taint: &Value| taint["key"] == TAINT_NOT_READY && taint["effect"] == "NoSchedule";
        if !taints.iter().any(known) {
            taints.push(json!({"key": TAINT_NOT_READY, "effect": "NoSchedule"}));
            new.set(&["spec", "taints"], taints.into());
        }
        Ok(())
    }
}

//! ServiceAccount: a pod runs as an account of its namespace, `default` unless it says otherwise, and uses its pull secrets.
//!
//! Differs from Kubernetes: no token volume is added yet.

use serde_json::Value;

use super::{Attributes, Plugin, tree};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;
use crate::store::Key;

pub(super) struct ServiceAccount;

const DEFAULT: &str = "default";

impl Plugin for ServiceAccount {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !attributes.concerns("", "pods") || !attributes.is_create() {
            return Ok(());
        }
        if new
            .str_at(&["spec", "serviceAccountName"])
            .is_none_or(str::is_empty)
        {
            new.set(&["spec", "serviceAccountName"], DEFAULT.into());
        }
        let name = new
            .str_at(&["spec", "serviceAccountName"])
            .unwrap_or(DEFAULT)
            .to_owned();
        let namespace = attributes.namespace;
        let Some(account) = lookup.get(&Key::new("serviceaccounts", namespace, &name)) else {
            return Err(attributes.forbidden(&format!(
                "error looking up service account {namespace}/{name}: serviceaccount {name:?} not found"
            )));
        };
        if new.list_at(&["spec", "imagePullSecrets"]).is_empty()
            && let Some(Value::Array(secrets)) = tree(&account).get_mut("imagePullSecrets")
            && !secrets.is_empty()
        {
            let secrets = std::mem::take(secrets);
            new.set(&["spec", "imagePullSecrets"], Value::Array(secrets));
        }
        new.set(&["spec", "serviceAccount"], name.into());
        Ok(())
    }
}

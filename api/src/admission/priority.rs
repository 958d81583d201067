//! Priority: a pod's priority class becomes a number and a preemption policy; at most one class is the default.

use serde_json::Value;

use super::{Attributes, Plugin, tree};
use crate::kinds::strategy::Lookup;
use crate::object::Object;
use crate::status::Error;
use crate::store::Key;

pub(super) struct Priority;

const CLASSES: &str = "scheduling.k8s.io/priorityclasses";
const PREEMPT: &str = "PreemptLowerPriority";

impl Plugin for Priority {
    fn mutate(
        &self,
        attributes: &Attributes<'_>,
        new: &mut Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        if !attributes.concerns("", "pods") {
            return Ok(());
        }
        if let Some(old) = attributes.old {
            for key in ["priority", "preemptionPolicy"] {
                if let (None, Some(value)) = (new.at(&["spec", key]), old.at(&["spec", key])) {
                    new.set(&["spec", key], value.clone());
                }
            }
            return Ok(());
        }
        let wanted = new
            .str_at(&["spec", "priorityClassName"])
            .unwrap_or_default()
            .to_owned();
        let (value, policy) = if wanted.is_empty() {
            match default_class(lookup) {
                Some(class) => {
                    new.set(
                        &["spec", "priorityClassName"],
                        class["metadata"]["name"].clone(),
                    );
                    read(&class)
                }
                None => (0, PREEMPT.to_owned()),
            }
        } else {
            let class = lookup.get(&Key::new(CLASSES, "", &wanted)).ok_or_else(|| {
                attributes.forbidden(&format!("no PriorityClass with name {wanted} was found"))
            })?;
            read(&tree(&class))
        };
        if let Some(given) = new.i64_at(&["spec", "priority"])
            && given != value
        {
            return Err(attributes.forbidden(&format!(
                "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
                 computed {value} from the given PriorityClass name"
            )));
        }
        if let Some(given) = new.str_at(&["spec", "preemptionPolicy"])
            && given != policy
        {
            return Err(attributes.forbidden(&format!(
                "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
                 controller computed {policy} from the given PriorityClass name"
            )));
        }
        new.set(&["spec", "priority"], value.into());
        new.set(&["spec", "preemptionPolicy"], policy.into());
        Ok(())
    }

    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        let concerned = attributes.concerns("scheduling.k8s.io", "priorityclasses");
        if !concerned || !new.bool_at(&["globalDefault"]) {
            return Ok(());
        }
        let Some(class) = default_class(lookup) else {
            return Ok(());
        };
        let name = class["metadata"]["name"].as_str().unwrap_or_default();
        if name == new.name() {
            return Ok(());
        }
        Err(attributes.forbidden(&format!(
            "PriorityClass {name} is already marked as default. Only one default can exist"
        )))
    }
}

/// The class marked as default; the lowest of several.
fn default_class(lookup: &dyn Lookup) -> Option<Value> {
    let classes = lookup.list(CLASSES, None);
    // Every pod asks this: only what may be the default is parsed.
    let maybe = |bytes: &[u8]| {
        let key = b"\"globalDefault\":true";
        bytes.windows(key.len()).any(|window| window == key)
    };
    classes
        .iter()
        .filter(|class| maybe(&class.bytes))
        .map(|class| tree(class))
        .filter(|class| class["globalDefault"] == true)
        .min_by_key(|class| class["value"].as_i64())
}

fn read(class: &Value) -> (i64, String) {
    let policy = class["preemptionPolicy"].as_str().unwrap_or(PREEMPT);
    (class["value"].as_i64().unwrap_or(0), policy.to_owned())
}

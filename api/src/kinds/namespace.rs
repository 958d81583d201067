//! Namespaces: the label with their name, the finalizer that waits until they are empty.

use types::well_known::LABEL_NAMESPACE_NAME;

use super::rules::Rules;
use super::strategy::{Door, NameRule};
use crate::object::Object;

pub static NAMESPACE: Rules = Rules {
    default: |new| {
        if !new.name().is_empty() {
            let name = new.name().to_owned();
            new.set(&["metadata", "labels", LABEL_NAMESPACE_NAME], name.into());
        }
    },
    status: r#"{"phase":"Active"}"#,
    prepare,
    fields: &["status.phase"],
    hold: |namespace| {
        namespace.set(&["status", "phase"], "Terminating".into());
        !namespace.list_at(&["spec", "finalizers"]).is_empty()
    },
    name: NameRule::Label,
    ..Rules::NEW
};

/// `spec.finalizers` change only through `finalize`; a new namespace has `kubernetes`.
fn prepare(new: &mut Object, old: Option<&Object>, door: Door<'_>) {
    match old {
        None => {
            let mut finalizers = new.list_at(&["spec", "finalizers"]).to_vec();
            if !finalizers.iter().any(|name| name == "kubernetes") {
                finalizers.push("kubernetes".into());
            }
            new.set(&["spec", "finalizers"], finalizers.into());
        }
        Some(old) if door != Door::Subresource("finalize") => {
            if let Some(finalizers) = old.at(&["spec", "finalizers"]) {
                new.set(&["spec", "finalizers"], finalizers.clone());
            } else {
                new.remove(&["spec", "finalizers"]);
            }
        }
        Some(_) => {}
    }
}

//! Conditions: when `lastTransitionTime` moves and when it does not. Works on any typed condition list.

use k8s_openapi::api::apps::v1::{DeploymentCondition, ReplicaSetCondition};
use k8s_openapi::api::core::v1::{NamespaceCondition, NodeCondition, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// What all condition types share.
pub trait Condition {
    fn type_(&self) -> &str;
    fn status(&self) -> &str;
    fn last_transition_time(&self) -> Option<&Time>;
    fn set_last_transition_time(&mut self, time: Option<Time>);
}

macro_rules! conditions {
    ($($type:ty),*) => {$(
        impl Condition for $type {
            fn type_(&self) -> &str {
                &self.type_
            }
            fn status(&self) -> &str {
                &self.status
            }
            fn last_transition_time(&self) -> Option<&Time> {
                self.last_transition_time.as_ref()
            }
            fn set_last_transition_time(&mut self, time: Option<Time>) {
                self.last_transition_time = time;
            }
        }
    )*};
}

conditions!(
    DeploymentCondition,
    NamespaceCondition,
    NodeCondition,
    PodCondition,
    ReplicaSetCondition
);

/// Puts `new` into the list, replacing the one of its type. The transition time of `new` is used only when the status
/// changed (or the condition is new); otherwise the old one stays.
pub fn set<C: Condition>(conditions: &mut Vec<C>, mut new: C) {
    match conditions.iter_mut().find(|c| c.type_() == new.type_()) {
        Some(old) => {
            if old.status() == new.status() && old.last_transition_time().is_some() {
                new.set_last_transition_time(old.last_transition_time().cloned());
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// Is the condition of that type there with status `True`?
pub fn is_true<C: Condition>(conditions: Option<&Vec<C>>, type_: &str) -> bool {
    conditions
        .into_iter()
        .flatten()
        .any(|c| c.type_() == type_ && c.status() == "True")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready(status: &str, reason: &str) -> PodCondition {
        PodCondition {
            type_: "Ready".to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            ..PodCondition::default()
        }
    }

    #[test]
    fn one_condition_per_type() {
        let mut conditions = vec![ready("False", "a")];
        set(&mut conditions, ready("True", "b"));
        assert_eq!(conditions.len(), 1);
        assert!(is_true(Some(&conditions), "Ready"));
        assert!(!is_true(Some(&conditions), "Initialized"));
        assert_eq!(conditions[0].reason.as_deref(), Some("b"));
    }
}

//! Which objects a controller owns: adopting orphans that match its selector and releasing what no longer does. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Selector, SelectorExt};
use serde_json::{Value, json};

use crate::objects::{Meta, Resource};

/// What one object is to one owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Owned,
    /// Matches, has no controller: becomes ours.
    Adopt,
    /// Ours, but matches no longer: let go.
    Release,
    Foreign,
}

/// A compiled label selector. An invalid one matches nothing.
pub fn selector(selector: &LabelSelector) -> Option<Selector> {
    Selector::try_from(selector.clone()).ok()
}

pub fn claim(owner: &Meta, selector: &Selector, object: &Meta) -> Claim {
    let matches = selector.matches(&object.labels);
    match object.controller() {
        Some(controller) if controller.uid == owner.uid => {
            if matches || owner.is_deleting() || object.is_deleting() {
                Claim::Owned
            } else {
                Claim::Release
            }
        }
        Some(_) => Claim::Foreign,
        None if matches && !owner.is_deleting() && !object.is_deleting() => Claim::Adopt,
        None => Claim::Foreign,
    }
}

/// The patch that makes `owner` the controller of `object`, refused when either changed meanwhile.
pub fn adoption(kind: Resource, owner: &Meta, object: &Meta) -> Value {
    let mut owners = object.owner_references.clone();
    owners.retain(|o| o.uid != owner.uid);
    owners.push(kind.controller_reference(owner));
    precise(object, &json!(owners))
}

/// The patch that takes `owner` out of the owners of `object`.
pub fn release(owner: &Meta, object: &Meta) -> Value {
    let mut owners = object.owner_references.clone();
    owners.retain(|o| o.uid != owner.uid);
    precise(object, &json!(owners))
}

fn precise(object: &Meta, owners: &Value) -> Value {
    json!({"metadata": {
        "ownerReferences": owners,
        "uid": object.uid,
        "resourceVersion": object.resource_version,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::REPLICA_SETS;

    fn meta(uid: &str, labels: &[(&str, &str)]) -> Meta {
        Meta {
            uid: uid.to_owned(),
            labels: labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
            ..Meta::default()
        }
    }

    #[test]
    fn orphans_are_adopted_and_strangers_left_alone() {
        let owner = meta("o", &[]);
        let selector = Selector::from_iter([("app", "a")]);
        let mut object = meta("p", &[("app", "a")]);
        assert_eq!(claim(&owner, &selector, &object), Claim::Adopt);
        object.owner_references = vec![REPLICA_SETS.controller_reference(&owner)];
        assert_eq!(claim(&owner, &selector, &object), Claim::Owned);
        object.labels.clear();
        assert_eq!(claim(&owner, &selector, &object), Claim::Release);
        object.owner_references = vec![REPLICA_SETS.controller_reference(&meta("q", &[]))];
        assert_eq!(claim(&owner, &selector, &object), Claim::Foreign);
    }
}

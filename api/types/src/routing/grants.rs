//! Who may refer to what in another namespace: ReferenceGrants, and the routes that a listener allows.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::gateway_api::AllowedRoutes;
use super::{Key, World};
use crate::well_known::GATEWAY_GROUP;

/// May an object of `from` refer to one in another namespace? `from` and `to` are kinds; Gateways and HTTPRoutes refer to
/// Secrets and Services only, which are of the core group.
pub(super) fn is_granted(world: &World, from: (&str, &str), to: (&str, &Key)) -> bool {
    let ((from_kind, from_namespace), (to_kind, target)) = (from, to);
    if from_namespace == target.namespace {
        return true;
    }
    let grants = world
        .grants
        .iter()
        .filter(|grant| grant.metadata.namespace == target.namespace);
    grants.into_iter().any(|grant| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == GATEWAY_GROUP
                && from.kind == from_kind
                && from.namespace == from_namespace
        });
        let to = grant.spec.to.iter().any(|to| {
            to.group.is_empty()
                && to.kind == to_kind
                && to
                    .name
                    .as_deref()
                    .is_none_or(|n| n.is_empty() || n == target.name)
        });
        from && to
    })
}

/// May routes of `namespace` attach to a listener of a Gateway in `own`?
pub(super) fn allows(
    world: &World,
    allowed: Option<&AllowedRoutes>,
    own: &str,
    namespace: &str,
) -> bool {
    let namespaces = allowed.and_then(|allowed| allowed.namespaces.as_ref());
    let from = namespaces.and_then(|n| n.from.as_deref()).unwrap_or("Same");
    match from {
        "All" => true,
        "Same" => own == namespace,
        "Selector" => {
            let selector = namespaces.and_then(|n| n.selector.as_ref());
            match (selector, world.namespaces.get(namespace)) {
                (Some(selector), Some(labels)) => selects(selector, labels),
                _ => false,
            }
        }
        _ => false,
    }
}

fn selects(selector: &LabelSelector, labels: &BTreeMap<String, String>) -> bool {
    let exact = selector.match_labels.iter().flatten();
    let mut expressions = selector.match_expressions.iter().flatten();
    exact
        .into_iter()
        .all(|(key, value)| labels.get(key) == Some(value))
        && expressions.all(|expression| {
            let value = labels.get(&expression.key);
            let listed = || {
                let values = expression.values.as_deref().unwrap_or_default();
                value.is_some_and(|value| values.contains(value))
            };
            match expression.operator.as_str() {
                "In" => listed(),
                "NotIn" => !listed(),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

//! Who may refer to what in another namespace: ReferenceGrants, and the routes that a listener allows.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::gateway_api::{AllowedRoutes, ReferenceGrantSpec};
use super::{Key, World};
use crate::well_known::GATEWAY_GROUP;

/// May an object of `from` refer to one in another namespace? `from` and `to` are kinds; Gateways and HTTPRoutes refer to
/// Secrets and Services only, which are of the core group.
pub(super) fn is_granted(world: &World, from: (&str, &str), to: (&str, &Key)) -> bool {
    let (to_kind, target) = to;
    if from.1 == target.namespace {
        return true;
    }
    let grants = world
        .grants
        .iter()
        .filter(|grant| grant.metadata.namespace == target.namespace);
    grants
        .into_iter()
        .any(|grant| lets(&grant.spec, from, (to_kind, &target.name)))
}

/// Does a grant let objects of a kind and namespace refer to that kind and name in its own namespace? An empty name, which
/// upstream refuses, is none.
pub fn lets(grant: &ReferenceGrantSpec, from: (&str, &str), to: (&str, &str)) -> bool {
    let ((from_kind, from_namespace), (to_kind, to_name)) = (from, to);
    let from = grant.from.iter().any(|from| {
        from.group == GATEWAY_GROUP && from.kind == from_kind && from.namespace == from_namespace
    });
    let is_named = |name: &str| name.is_empty() || name == to_name;
    let mut to = grant
        .to
        .iter()
        .filter(|to| to.group.is_empty() && to.kind == to_kind);
    from && to.any(|to| to.name.as_deref().is_none_or(is_named))
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

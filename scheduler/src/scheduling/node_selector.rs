//! Does a node have the labels a pod asks for? Pure; used by node affinity and by spreading.

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm};

use super::snapshot::NodeInfo;
use crate::objects::Pod;

/// The pod's node selector and required node affinity together.
pub fn matches_required(pod: &Pod, node: &NodeInfo) -> bool {
    let labels_match = pod
        .spec
        .node_selector
        .iter()
        .all(|(key, value)| node.label(key) == Some(value));
    let required = pod
        .spec
        .affinity
        .as_ref()
        .and_then(|a| a.node_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    labels_match
        && required.is_none_or(|r| {
            r.node_selector_terms
                .iter()
                .any(|t| matches_any(t) && matches_term(t, node))
        })
}

/// An empty term matches nothing.
pub fn matches_any(term: &NodeSelectorTerm) -> bool {
    term.match_expressions
        .as_ref()
        .is_some_and(|e| !e.is_empty())
        || term.match_fields.as_ref().is_some_and(|f| !f.is_empty())
}

pub fn matches_term(term: &NodeSelectorTerm, node: &NodeInfo) -> bool {
    let expressions = term.match_expressions.iter().flatten();
    let fields = term.match_fields.iter().flatten();
    expressions
        .into_iter()
        .all(|e| matches(e, node.label(&e.key)))
        && fields.into_iter().all(|f| {
            let value = (f.key == "metadata.name").then_some(node.name.as_str());
            matches(f, value)
        })
}

fn matches(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|v| values.iter().any(|w| w == v));
    let numbers =
        || -> Option<(i64, i64)> { Some((value?.parse().ok()?, values.first()?.parse().ok()?)) };
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(has, bound)| has > bound),
        "Lt" => numbers().is_some_and(|(has, bound)| has < bound),
        _ => false,
    }
}

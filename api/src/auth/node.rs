//! The node authoriser: what a node may do because it is that node. Pure; NodeRestriction (admission) looks at what it
//! writes.
//!
//! Differs from Kubernetes: a node may read every Pod and every Node, as the policies of the network and the tunnels between
//! nodes are enforced by the nodes themselves.

use types::well_known::NAMESPACE_NODE_LEASE;

use super::graph::{Graph, What};
use super::rbac::RoleRef;
use super::{Attributes, Decision};
use crate::request::ResourcePath;

/// The rules every node has where nothing below says otherwise.
pub(super) fn role() -> RoleRef {
    RoleRef {
        namespace: String::new(),
        name: "system:node".to_owned(),
    }
}

/// What there is to say of a request by a node.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Decided(Decision),
    /// The rules of [`role`] decide.
    ByRules,
}

pub(super) fn decide(
    node: &str,
    asked: &Attributes<'_>,
    graph: &Graph,
    claim_of: impl Fn(&str) -> Option<(String, String)>,
) -> Verdict {
    let Attributes::Resource { verb, path } = asked else {
        return Verdict::ByRules;
    };
    let has = |what| graph.has(node, what, &path.namespace, path.object());
    match (&*path.group, &*path.resource) {
        ("", "secrets") => read(verb, path, node, || has(What::Secret)),
        ("", "configmaps") => read(verb, path, node, || has(What::ConfigMap)),
        ("", "persistentvolumeclaims") if path.subresource == "status" => {
            let writes = matches!(*verb, "get" | "update" | "patch");
            related(
                writes,
                "can only get/update/patch status of this type",
                node,
                || has(What::Claim),
            )
        }
        ("", "persistentvolumeclaims") => get(verb, path, node, || has(What::Claim)),
        ("", "persistentvolumes") => get(verb, path, node, || {
            let claim = claim_of(path.object());
            claim.is_some_and(|(namespace, name)| graph.has(node, What::Claim, &namespace, &name))
        }),
        ("", "serviceaccounts") if path.subresource == "token" => related(
            *verb == "create",
            "can only create tokens for individual service accounts",
            node,
            || has(What::Account),
        ),
        ("", "serviceaccounts") => get(verb, path, node, || has(What::Account)),
        ("storage.k8s.io", "volumeattachments") | ("resource.k8s.io", "resourceclaims") => {
            // Nothing on a node uses them.
            related(
                false,
                "can only get individual resources of this type",
                node,
                || false,
            )
        }
        ("coordination.k8s.io", "leases") => lease(verb, path, node),
        ("storage.k8s.io", "csinodes") => {
            let own = path.object() == node || *verb == "create" && path.object().is_empty();
            own_only(
                own,
                "can only access CSINode with the same name as the requesting node",
            )
        }
        ("", "nodes") if !matches!(*verb, "get" | "list" | "watch") => {
            // A name that is only in the body is NodeRestriction's to look at.
            let own = path.object() == node || path.object().is_empty() && *verb == "create";
            own_only(
                own,
                &format!(
                    "node '{node}' cannot change '{}', only its own Node object",
                    path.object()
                ),
            )
        }
        _ => Verdict::ByRules,
    }
}

/// `get`, `list` and `watch` of one object by its name.
fn read(verb: &str, path: &ResourcePath, node: &str, has: impl Fn() -> bool) -> Verdict {
    let one = matches!(verb, "get" | "list" | "watch")
        && path.subresource.is_empty()
        && !path.namespace.is_empty();
    let why = "can only read namespaced object of this type";
    related(
        one && !path.object().is_empty(),
        if one { "No Object name found" } else { why },
        node,
        has,
    )
}

fn get(verb: &str, path: &ResourcePath, node: &str, has: impl Fn() -> bool) -> Verdict {
    let one = verb == "get" && path.subresource.is_empty();
    related(
        one,
        "can only get individual resources of this type",
        node,
        has,
    )
}

fn related(fits: bool, why: &str, node: &str, has: impl Fn() -> bool) -> Verdict {
    Verdict::Decided(if !fits {
        Decision::denied(why.to_owned())
    } else if has() {
        Decision::allowed(String::new())
    } else {
        Decision::denied(format!(
            "no relationship found between node '{node}' and this object"
        ))
    })
}

fn lease(verb: &str, path: &ResourcePath, node: &str) -> Verdict {
    if !matches!(verb, "get" | "create" | "update" | "patch" | "delete") {
        return own_only(
            false,
            "can only get, create, update, patch, or delete a node lease",
        );
    }
    if path.namespace != NAMESPACE_NODE_LEASE {
        let why =
            format!("can only access leases in the {NAMESPACE_NODE_LEASE:?} system namespace");
        return own_only(false, &why);
    }
    let own = path.object() == node || verb == "create" && path.object().is_empty();
    own_only(
        own,
        "can only access node lease with the same name as the requesting node",
    )
}

/// What is the node's own is decided by its rules.
fn own_only(own: bool, why: &str) -> Verdict {
    if own {
        Verdict::ByRules
    } else {
        Verdict::Decided(Decision::denied(why.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::live::Derived as _;
    use crate::store::{Index, Key, Stored};

    /// Pod `p` of node `n1` uses Secret `s`, ConfigMap `c`, claim `d` and account `robot`.
    fn graph() -> Graph {
        let mut graph = Graph::default();
        let key = Key::new("pods", "ns", "p");
        let pod = json!({"spec": {"nodeName": "n1", "serviceAccountName": "robot",
            "volumes": [{"secret": {"secretName": "s"}}, {"configMap": {"name": "c"}},
                {"persistentVolumeClaim": {"claimName": "d"}}]}});
        let stored = Stored {
            key: key.clone(),
            revision: 1,
            created: 1,
            bytes: pod.to_string().into(),
            index: Index {
                fields: [("spec.nodeName", "n1".into())].into(),
                ..Index::default()
            },
        };
        graph.apply(&key, None, Some(&stored));
        graph
    }

    /// `y` allowed, `n` refused, `r` as its rules say.
    fn ask(graph: &Graph, node: &str, question: &str) -> char {
        let words: Vec<&str> = question
            .split(' ')
            .map(|word| if word == "-" { "" } else { word })
            .collect();
        let (resource, subresource) = words[2].split_once('/').unwrap_or((words[2], ""));
        let path = ResourcePath {
            group: words[1].to_owned(),
            resource: resource.to_owned(),
            subresource: subresource.to_owned(),
            namespace: words[3].to_owned(),
            name: words[4].to_owned(),
            ..ResourcePath::default()
        };
        let asked = Attributes::Resource {
            verb: words[0],
            path: &path,
        };
        let claim = |volume: &str| (volume == "v").then(|| ("ns".to_owned(), "d".to_owned()));
        match decide(node, &asked, graph, claim) {
            Verdict::Decided(decision) if decision.allowed => 'y',
            Verdict::Decided(_) => 'n',
            Verdict::ByRules => 'r',
        }
    }

    #[test]
    fn a_node_may_what_its_pods_need_and_what_is_its_own() {
        let graph = graph();
        // question, for n1, for n2
        for (question, n1, n2) in [
            ("get - secrets ns s", 'y', 'n'),
            ("watch - secrets ns s", 'y', 'n'),
            ("list - secrets ns -", 'n', 'n'),
            ("list - secrets - -", 'n', 'n'),
            ("get - secrets ns t", 'n', 'n'),
            ("get - secrets other s", 'n', 'n'),
            ("update - secrets ns s", 'n', 'n'),
            ("get - configmaps ns c", 'y', 'n'),
            ("get - configmaps ns s", 'n', 'n'),
            ("get - persistentvolumeclaims ns d", 'y', 'n'),
            ("list - persistentvolumeclaims ns d", 'n', 'n'),
            ("patch - persistentvolumeclaims/status ns d", 'y', 'n'),
            ("get - persistentvolumes - v", 'y', 'n'),
            ("get - persistentvolumes - w", 'n', 'n'),
            ("create - serviceaccounts/token ns robot", 'y', 'n'),
            ("create - serviceaccounts/token ns default", 'n', 'n'),
            ("get - serviceaccounts ns robot", 'y', 'n'),
            (
                "update coordination.k8s.io leases kube-node-lease n1",
                'r',
                'n',
            ),
            (
                "create coordination.k8s.io leases kube-node-lease -",
                'r',
                'r',
            ),
            (
                "list coordination.k8s.io leases kube-node-lease -",
                'n',
                'n',
            ),
            ("update coordination.k8s.io leases kube-system n1", 'n', 'n'),
            ("list - nodes - -", 'r', 'r'),
            ("patch - nodes/status - n1", 'r', 'n'),
            ("delete - nodes - n1", 'r', 'n'),
            ("list - pods - -", 'r', 'r'),
            ("create - pods/eviction ns p", 'r', 'r'),
        ] {
            assert_eq!(ask(&graph, "n1", question), n1, "n1: {question}");
            assert_eq!(ask(&graph, "n2", question), n2, "n2: {question}");
        }
    }
}

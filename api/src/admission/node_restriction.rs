//! NodeRestriction: what a node writes is about itself and its own pods. Which requests a node may make at all is the node
//! authoriser's to say.

use serde_json::Value;
use types::well_known::NAMESPACE_NODE_LEASE;

use super::{Attributes, Plugin, tree};
use crate::certificates::request::Request;
use crate::certificates::{GROUP as CERTIFICATES, NODE_CLIENT, NODE_SERVING};
use crate::kinds::strategy::{Door, Lookup};
use crate::object::Object;
use crate::status::Error;
use crate::store::Key;

pub(super) struct NodeRestriction;

const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels in Kubernetes' namespaces that a node may put on itself…
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "kubernetes.io/arch",
    "kubernetes.io/os",
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// …and the namespaces in which it may put any.
const OWN_LABEL_NAMESPACES: &[&str] = &["node.kubernetes.io", "kubelet.kubernetes.io"];
const RESTRICTED: &str = "node-restriction.kubernetes.io";

impl Plugin for NodeRestriction {
    fn validate(
        &self,
        attributes: &Attributes<'_>,
        new: &Object,
        lookup: &dyn Lookup,
    ) -> Result<(), Error> {
        let Some(node) = attributes.user.node() else {
            return Ok(());
        };
        match (&*attributes.kind.group, &*attributes.kind.plural) {
            ("", "pods") => pod(attributes, node, new),
            ("", "nodes") => own_node(attributes, node, new),
            ("", "persistentvolumeclaims") => claim(attributes, new),
            ("", "serviceaccounts") if attributes.door == Door::Subresource("token") => {
                token(attributes, node, new, lookup)
            }
            ("coordination.k8s.io", "leases") => lease(attributes, node, new),
            ("storage.k8s.io", "csinodes") if new.name() != node => Err(attributes
                .forbidden("can only access CSINode with the same name as the requesting node")),
            (CERTIFICATES, _) => certificate(attributes, node, new),
            _ => Ok(()),
        }
    }

    fn delete(&self, attributes: &Attributes<'_>) -> Result<(), Error> {
        let Some(node) = attributes.user.node() else {
            return Ok(());
        };
        match (&*attributes.kind.group, &*attributes.kind.plural) {
            ("", "pods") => {
                let runs_on = attributes
                    .old
                    .and_then(|pod| pod.str_at(&["spec", "nodeName"]));
                if runs_on == Some(node) {
                    return Ok(());
                }
                Err(attributes.forbidden(&format!(
                    "node {node:?} can only delete pods with spec.nodeName set to itself"
                )))
            }
            ("", "nodes") if attributes.name != node => Err(attributes.forbidden(&format!(
                "node {node:?} is not allowed to modify node {:?}",
                attributes.name
            ))),
            ("coordination.k8s.io", "leases") if attributes.name != node => Err(attributes
                .forbidden("can only access node lease with the same name as the requesting node")),
            _ => Ok(()),
        }
    }
}

fn pod(attributes: &Attributes<'_>, node: &str, new: &Object) -> Result<(), Error> {
    let refuse = |why: String| Err(attributes.forbidden(&why));
    let Some(old) = attributes.old else {
        return mirror_pod(attributes, node, new);
    };
    match attributes.door {
        Door::Subresource("status") => {
            if old.str_at(&["spec", "nodeName"]) != Some(node) {
                return refuse(format!(
                    "node {node:?} can only update pod status for pods with spec.nodeName set to itself"
                ));
            }
            if new.at(&["metadata", "labels"]) != old.at(&["metadata", "labels"]) {
                return refuse(format!(
                    "node {node:?} cannot update labels through pod status"
                ));
            }
            Ok(())
        }
        _ => refuse(format!(
            "unexpected operation {:?}, node {node:?} can only create and delete mirror pods",
            attributes.verb
        )),
    }
}

/// A node makes no pods but copies of those it has by itself, which use nothing of the cluster's.
fn mirror_pod(attributes: &Attributes<'_>, node: &str, new: &Object) -> Result<(), Error> {
    let refuse = |why: &str| {
        Err(attributes.forbidden(&format!("{why}, node {node:?} can only create mirror pods")))
    };
    if new.annotation(MIRROR).is_none() {
        return refuse(&format!("pod does not have {MIRROR:?} annotation"));
    }
    if new.str_at(&["spec", "nodeName"]) != Some(node) {
        return Err(attributes.forbidden(&format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        )));
    }
    let owners = new.list_at(&["metadata", "ownerReferences"]);
    let own = |owner: &Value| {
        owner["apiVersion"] == "v1" && owner["kind"] == "Node" && owner["name"] == node
    };
    if owners.len() > 1 || !owners.iter().all(own) {
        return refuse("pod must be owned by its node and nothing else");
    }
    let account = new
        .str_at(&["spec", "serviceAccountName"])
        .unwrap_or_default();
    if !account.is_empty() {
        return Err(attributes.forbidden(&format!(
            "node {node:?} can not create pods that reference a service account"
        )));
    }
    let text = new.at(&["spec"]).map(Value::to_string).unwrap_or_default();
    for (word, what) in [
        ("\"secretName\"", "secrets"),
        ("\"secretKeyRef\"", "secrets"),
        ("\"secretRef\"", "secrets"),
        ("\"imagePullSecrets\"", "secrets"),
        ("\"configMap\"", "configmaps"),
        ("\"configMapKeyRef\"", "configmaps"),
        ("\"configMapRef\"", "configmaps"),
        ("\"persistentVolumeClaim\"", "persistentvolumeclaims"),
        ("\"serviceAccountToken\"", "serviceaccounts"),
        ("\"secret\":{", "secrets"),
    ] {
        if text.contains(word) {
            return Err(attributes.forbidden(&format!(
                "node {node:?} can not create pods that reference {what}"
            )));
        }
    }
    Ok(())
}

fn own_node(attributes: &Attributes<'_>, node: &str, new: &Object) -> Result<(), Error> {
    if new.name() != node {
        return Err(attributes.forbidden(&format!(
            "node {node:?} is not allowed to modify node {:?}",
            new.name()
        )));
    }
    let mut changed: Vec<&str> = match attributes.old {
        None => new.labels().map(|(key, _)| key).collect(),
        Some(old) => {
            let all = new.labels().chain(old.labels()).map(|(key, _)| key);
            let differs = |key: &&str| {
                let path = ["metadata", "labels", key];
                new.at(&path) != old.at(&path)
            };
            all.filter(differs).collect()
        }
    };
    changed.sort_unstable();
    changed.dedup();
    changed.retain(|label| !may_set(label));
    if !changed.is_empty() {
        return Err(attributes.forbidden(&format!(
            "is not allowed to modify labels: {}",
            changed.join(", ")
        )));
    }
    let Some(old) = attributes.old else {
        return Ok(());
    };
    if new.at(&["spec", "taints"]) != old.at(&["spec", "taints"]) {
        return Err(attributes.forbidden(&format!("node {node:?} is not allowed to modify taints")));
    }
    if new.at(&["metadata", "ownerReferences"]) != old.at(&["metadata", "ownerReferences"]) {
        return Err(attributes.forbidden(&format!(
            "node {node:?} is not allowed to modify ownerReferences"
        )));
    }
    Ok(())
}

/// Kubernetes' own label namespaces are closed but for what describes the machine; everybody else's are open.
fn may_set(label: &str) -> bool {
    let Some((namespace, _)) = label.split_once('/') else {
        return true;
    };
    let within = |domain: &str| namespace == domain || namespace.ends_with(&format!(".{domain}"));
    if within(RESTRICTED) {
        return false;
    }
    if !within("kubernetes.io") && !within("k8s.io") {
        return true;
    }
    OWN_LABELS.contains(&label) || OWN_LABEL_NAMESPACES.iter().any(|own| within(own))
}

fn claim(attributes: &Attributes<'_>, new: &Object) -> Result<(), Error> {
    let Some(old) = attributes.old else {
        return Ok(());
    };
    let apart = |object: &Object| {
        let mut object = object.clone();
        object.remove(&["status"]);
        for key in ["managedFields", "resourceVersion"] {
            object.remove(&["metadata", key]);
        }
        object
    };
    if attributes.door == Door::Subresource("status") && apart(new) == apart(old) {
        return Ok(());
    }
    Err(attributes
        .forbidden("is not allowed to update fields other than status of a persistentvolumeclaim"))
}

/// A token a node asks for is a pod's of its own, and ends with it.
fn token(
    attributes: &Attributes<'_>,
    node: &str,
    request: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    let reference = |key: &str| {
        request
            .str_at(&["spec", "boundObjectRef", key])
            .unwrap_or_default()
    };
    if reference("apiVersion") != "v1" || reference("kind") != "Pod" || reference("name").is_empty()
    {
        return Err(attributes.forbidden("node requested token not bound to a pod"));
    }
    let uid = reference("uid");
    if uid.is_empty() {
        return Err(attributes.forbidden("node requested token with a pod binding without a uid"));
    }
    let name = reference("name");
    let Some(stored) = lookup.get(&Key::new("pods", attributes.namespace, name)) else {
        return Err(Error::not_found("", "pods", name));
    };
    if *stored.index.uid != *uid {
        return Err(attributes.forbidden(&format!(
            "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
        )));
    }
    if stored.index.field("spec.nodeName") != Some(node) {
        return Err(attributes
            .forbidden("node requested token bound to a pod scheduled on a different node"));
    }
    // The default audience is the API's; any other must be one that the pod itself mounts.
    let pod = tree(&stored);
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    let sources = volumes.flat_map(|volume| {
        volume["projected"]["sources"]
            .as_array()
            .into_iter()
            .flatten()
    });
    let mounted: Vec<&str> = sources
        .filter_map(|source| source["serviceAccountToken"]["audience"].as_str())
        .collect();
    for audience in request.list_at(&["spec", "audiences"]) {
        let audience = audience.as_str().unwrap_or_default();
        if audience != crate::auth::tokens::ISSUER && !mounted.contains(&audience) {
            return Err(attributes.forbidden(&format!(
                "audience {audience:?} not found in pod spec volume, {} is not authorized to request tokens for this audience",
                attributes.user.name
            )));
        }
    }
    Ok(())
}

fn lease(attributes: &Attributes<'_>, node: &str, new: &Object) -> Result<(), Error> {
    if attributes.namespace != NAMESPACE_NODE_LEASE {
        return Err(attributes.forbidden(&format!(
            "can only access leases in the {NAMESPACE_NODE_LEASE:?} system namespace"
        )));
    }
    if new.name() != node {
        return Err(attributes
            .forbidden("can only access node lease with the same name as the requesting node"));
    }
    Ok(())
}

/// A node asks for certificates in its own name.
fn certificate(attributes: &Attributes<'_>, node: &str, new: &Object) -> Result<(), Error> {
    let signer = new.str_at(&["spec", "signerName"]).unwrap_or_default();
    if !attributes.is_create() || !matches!(signer, NODE_CLIENT | NODE_SERVING) {
        return Ok(());
    }
    let request = Request::parse(new.str_at(&["spec", "request"]).unwrap_or_default());
    let own = request.is_ok_and(|request| request.node() == Some(node));
    if own {
        return Ok(());
    }
    Err(attributes.forbidden(&format!(
        "can only create a node CSR with CN={}",
        attributes.user.name
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_describes_the_machine_and_leaves_other_labels_alone() {
        for (label, may) in [
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/anything", true),
            ("x.kubelet.kubernetes.io/anything", true),
            ("coracle.dev/runtime", true),
            ("plain", true),
            ("node-restriction.kubernetes.io/secure", false),
            ("x.node-restriction.kubernetes.io/secure", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("kubernetes.io/other", false),
            ("app.k8s.io/other", false),
        ] {
            assert_eq!(may_set(label), may, "{label}");
        }
    }
}

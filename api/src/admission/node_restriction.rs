//! NodeRestriction: what a node writes is about itself and its own pods. Which requests a node may make at all is the node
//! authoriser's to say.

use ipnet::Ipv4Net;
use serde_json::Value;
use types::node_labels::may_set;
use types::well_known::{ANNOTATION_MIRROR, NAMESPACE_NODE_LEASE};

use super::{Attributes, Plugin, tree};
use crate::auth::graph::{self, What};
use crate::certificates::request::Request;
use crate::certificates::{GROUP as CERTIFICATES, NODE_CLIENT, NODE_SERVING};
use crate::kinds::strategy::{Door, Lookup};
use crate::object::Object;
use crate::status::Error;
use crate::store::Key;

pub(super) struct NodeRestriction;

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
            ("", "pods") => pod(attributes, node, new, lookup),
            ("", "nodes") => own_node(attributes, node, new, lookup),
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

fn pod(
    attributes: &Attributes<'_>,
    node: &str,
    new: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    let refuse = |why: String| Err(attributes.forbidden(&why));
    let Some(old) = attributes.old else {
        return mirror_pod(attributes, node, new, lookup);
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

/// A node makes no pods but copies of those it has by itself, which use nothing of the cluster's: whatever a pod refers to
/// its node may read.
fn mirror_pod(
    attributes: &Attributes<'_>,
    node: &str,
    new: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    let refuse = |why: String| Err(attributes.forbidden(&why));
    if new.annotation(ANNOTATION_MIRROR).is_none() {
        return refuse(format!(
            "pod does not have {ANNOTATION_MIRROR:?} annotation, node {node:?} can only create mirror pods"
        ));
    }
    if new.str_at(&["spec", "nodeName"]) != Some(node) {
        return refuse(format!(
            "node {node:?} can only create pods with spec.nodeName set to itself"
        ));
    }
    owned_by_its_node(attributes, node, new, lookup)?;
    if let Some(what) = refers_to(attributes.namespace, new) {
        return refuse(format!(
            "node {node:?} can not create pods that reference {what}"
        ));
    }
    Ok(())
}

fn owned_by_its_node(
    attributes: &Attributes<'_>,
    node: &str,
    pod: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    let refuse = |why: String| Err(attributes.forbidden(&why));
    let [owner] = pod.list_at(&["metadata", "ownerReferences"]) else {
        return refuse(format!(
            "node {node:?} can only create pods with a single owner reference set to itself"
        ));
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node {
        return refuse(format!(
            "node {node:?} can only create pods with an owner reference set to itself"
        ));
    }
    if owner["controller"] != true {
        return refuse(format!(
            "node {node:?} can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse(format!(
            "node {node:?} must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let known = lookup.get(&Key::new("nodes", "", node));
    let uid = known.as_ref().map_or("", |known| &*known.index.uid);
    let said = owner["uid"].as_str().unwrap_or_default();
    if uid.is_empty() || said != uid {
        return refuse(format!(
            "node {node:?} UID mismatch: expected {uid:?} got {said:?}"
        ));
    }
    Ok(())
}

/// What a pod uses of the cluster, if it uses anything.
fn refers_to(namespace: &str, pod: &Object) -> Option<&'static str> {
    if let Some(first) = graph::references(&namespace.into(), pod.value()).first() {
        return Some(match first.what {
            What::Account => "a service account",
            What::Secret => "secrets",
            What::ConfigMap => "configmaps",
            What::Claim => "persistentvolumeclaims",
        });
    }
    if !pod.list_at(&["spec", "resourceClaims"]).is_empty() {
        return Some("resourceclaims");
    }
    let volumes = pod.list_at(&["spec", "volumes"]).iter();
    let mut sources = volumes.flat_map(|volume| {
        let sources = volume["projected"]["sources"].as_array();
        sources.into_iter().flatten()
    });
    // Of its own, a pod has only what it is.
    let foreign = |source: &Value| {
        let keys = source.as_object().into_iter().flatten();
        keys.into_iter().any(|(key, _)| key != "downwardAPI")
    };
    sources.any(foreign).then_some("a projected volume")
}

fn own_node(
    attributes: &Attributes<'_>,
    node: &str,
    new: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
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
        return own_range(attributes, node, new, lookup);
    };
    if ranges(new) != ranges(old) {
        return Err(
            attributes.forbidden(&format!("node {node:?} is not allowed to modify podCIDR"))
        );
    }
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

/// Differs from Kubernetes: there a node may give itself any pod addresses, for the network is somebody else's. Here who
/// has a range gets what is sent to it. A node registers without one, or with one that it could have been given: part of
/// what nodes may have, no larger than a node's part, and nobody else's.
fn own_range(
    attributes: &Attributes<'_>,
    node: &str,
    new: &Object,
    lookup: &dyn Lookup,
) -> Result<(), Error> {
    let asked = ranges(new);
    let [asked] = &*asked else {
        if asked.is_empty() {
            return Ok(());
        }
        return Err(attributes.forbidden(&format!(
            "node {node:?} is not allowed to register with several pod ranges"
        )));
    };
    let refuse = |why: &str| {
        Err(attributes.forbidden(&format!(
            "node {node:?} is not allowed to register with podCIDR {asked:?}: {why}"
        )))
    };
    let Ok(asked) = asked.parse::<Ipv4Net>() else {
        return refuse("it is no IPv4 range");
    };
    let all = lookup.node_ranges();
    if !all.is_some_and(|all| all.has(asked)) {
        return refuse("it is no part of what this server lets nodes choose from");
    }
    let nodes = lookup.list("nodes", None);
    let others = nodes.iter().filter(|other| &*other.key.name != node);
    for other in others {
        let known = Object::new(tree(other)).map(|other| ranges(&other));
        let known = known.unwrap_or_default();
        let mut theirs = known.iter().filter_map(|r| r.parse::<Ipv4Net>().ok());
        if theirs.any(|their| their.contains(&asked.network()) || asked.contains(&their.network()))
        {
            return refuse(&format!("node {:?} has addresses of it", &*other.key.name));
        }
    }
    Ok(())
}

/// Every range of pod addresses a Node has.
fn ranges(node: &Object) -> Vec<String> {
    let many = node.list_at(&["spec", "podCIDRs"]).iter();
    let one = node.str_at(&["spec", "podCIDR"]);
    let mut ranges: Vec<String> = many
        .filter_map(Value::as_str)
        .chain(one)
        .filter(|range| !range.is_empty())
        .map(str::to_owned)
        .collect();
    ranges.dedup();
    ranges
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
mod tests;

//! What a node may write, over a handful of objects.

use serde_json::json;

use super::*;
use crate::auth::{Access, User};
use crate::kinds::table;
use crate::kinds::testing::World;
use crate::store::Store as _;
use crate::store::memory::Memory;

fn world() -> World {
    World::new()
        .with("nodes", json!({"metadata": {"name": "n1", "uid": "u1"}}))
        .with(
            "nodes",
            json!({"metadata": {"name": "n2", "uid": "u2"}, "spec": {"podCIDR": "100.64.64.0/18"}}),
        )
}

/// What `n1` is told when it writes this; empty: it may.
fn told(plural: &str, old: Option<Value>, new: Value) -> String {
    let kind = table().find("", "v1", plural).expect("served");
    let namespace = if plural == "pods" { "default" } else { "" };
    let user = User::authenticated("system:node:n1", &["system:nodes"]);
    let access = Access::new(Memory::new().cache(), crate::auth::tokens::tests::tokens());
    let new = Object::new(new).expect("an object");
    let old = old.map(|old| Object::new(old).expect("an object"));
    let attributes = Attributes {
        kind,
        door: Door::Main,
        verb: if old.is_some() { "update" } else { "create" },
        namespace,
        name: new.name(),
        user: &user,
        access: &access,
        old: old.as_ref(),
        dry_run: false,
        tolerations: crate::admission::TolerationSeconds::default(),
    };
    let answer = NodeRestriction.validate(&attributes, &new, &world());
    answer.map_or_else(|error| error.message, |()| String::new())
}

fn mirror(spec: Value) -> Value {
    let mut pod = json!({"metadata": {"name": "p", "namespace": "default",
        "annotations": {"kubernetes.io/config.mirror": "x"},
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}]},
        "spec": spec});
    pod["spec"]["nodeName"] = json!("n1");
    pod
}

#[test]
fn a_mirror_pod_refers_to_nothing_whatever_the_field_is_called() {
    let volumes = |volume: Value| json!({"volumes": [volume]});
    let container = |container: Value| json!({"containers": [container]});
    for (spec, what) in [
        (json!({"serviceAccountName": "a"}), "a service account"),
        (json!({"imagePullSecrets": [{"name": "s"}]}), "secrets"),
        (volumes(json!({"secret": {"secretName": "s"}})), "secrets"),
        (
            volumes(json!({"csi": {"nodePublishSecretRef": {"name": "s"}}})),
            "secrets",
        ),
        (
            volumes(json!({"rbd": {"secretRef": {"name": "s"}}})),
            "secrets",
        ),
        (
            volumes(json!({"azureFile": {"secretName": "s"}})),
            "secrets",
        ),
        (
            volumes(json!({"projected": {"sources": [{"secret": {"name": "s"}}]}})),
            "secrets",
        ),
        (
            volumes(json!({"name": "v", "ephemeral": {"volumeClaimTemplate": {}}})),
            "persistentvolumeclaims",
        ),
        (
            volumes(json!({"persistentVolumeClaim": {"claimName": "c"}})),
            "persistentvolumeclaims",
        ),
        (volumes(json!({"configMap": {"name": "c"}})), "configmaps"),
        (
            volumes(json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}})),
            "a projected volume",
        ),
        (
            container(json!({"envFrom": [{"secretRef": {"name": "s"}}]})),
            "secrets",
        ),
        (
            container(json!({"env": [{"valueFrom": {"configMapKeyRef": {"name": "c"}}}]})),
            "configmaps",
        ),
        (
            json!({"initContainers": [{"envFrom": [{"secretRef": {"name": "s"}}]}]}),
            "secrets",
        ),
        (json!({"resourceClaims": [{"name": "r"}]}), "resourceclaims"),
    ] {
        assert_eq!(
            told("pods", None, mirror(spec.clone())),
            format!(
                "pods \"p\" is forbidden: node \"n1\" can not create pods that reference {what}"
            ),
            "{spec}"
        );
    }
    let own = json!({"volumes": [{"hostPath": {"path": "/v"}}, {"emptyDir": {}},
        {"projected": {"sources": [{"downwardAPI": {"items": []}}]}}],
        "containers": [{"env": [{"name": "A", "value": "secretName"}]}]});
    assert_eq!(told("pods", None, mirror(own)), "");
}

#[test]
fn a_mirror_pod_is_owned_by_its_node_and_no_other_of_that_name() {
    let with = |owners: Value| {
        let mut pod = mirror(json!({}));
        pod["metadata"]["ownerReferences"] = owners;
        told("pods", None, pod)
    };
    let owner = |key: &str, value: Value| {
        let mut owner = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true});
        owner[key] = value;
        owner
    };
    let good = owner("kind", json!("Node"));
    assert_eq!(with(json!([good])), "");
    for (owners, why) in [
        (json!([]), "a single owner reference"),
        (json!([good, good]), "a single owner reference"),
        (
            json!([owner("name", json!("n2"))]),
            "an owner reference set to itself",
        ),
        (
            json!([owner("kind", json!("Pod"))]),
            "an owner reference set to itself",
        ),
        (
            json!([owner("controller", Value::Null)]),
            "a controller owner reference",
        ),
        (
            json!([owner("blockOwnerDeletion", json!(true))]),
            "blockOwnerDeletion",
        ),
        (json!([owner("uid", json!("u0"))]), "UID mismatch"),
    ] {
        let told = with(owners.clone());
        assert!(told.contains(why), "{owners}: {told:?}");
    }
}

#[test]
fn a_node_takes_nobodys_pod_addresses() {
    let node = |spec: Value| json!({"metadata": {"name": "n1"}, "spec": spec});
    for (spec, why) in [
        (json!({}), ""),
        (
            json!({"podCIDR": "100.64.0.0/18", "podCIDRs": ["100.64.0.0/18"]}),
            "",
        ),
        (
            json!({"podCIDRs": ["100.64.64.0/18"]}),
            "\"n2\" has addresses of it",
        ),
        (
            json!({"podCIDRs": ["100.64.64.0/24"]}),
            "\"n2\" has addresses of it",
        ),
        (json!({"podCIDR": "0.0.0.0/0"}), "no part"),
        (json!({"podCIDR": "100.64.0.0/16"}), "no part"),
        (json!({"podCIDR": "10.0.0.0/24"}), "no part"),
        (json!({"podCIDR": "fd00::/64"}), "no IPv4 range"),
        (
            json!({"podCIDRs": ["100.64.0.0/18", "100.64.128.0/18"]}),
            "several",
        ),
    ] {
        let told = told("nodes", None, node(spec.clone()));
        let fits = if why.is_empty() {
            told.is_empty()
        } else {
            told.contains(why)
        };
        assert!(fits, "{spec}: {told:?}");
    }
    let update = |old: Value, new: Value| told("nodes", Some(node(old)), node(new));
    let own = json!({"podCIDR": "100.64.0.0/18"});
    let both = json!({"podCIDR": "100.64.0.0/18", "podCIDRs": ["100.64.0.0/18"]});
    assert_eq!(update(own.clone(), both.clone()), "");
    for (old, new) in [
        (json!({}), own.clone()),
        (
            own,
            json!({"podCIDR": "100.64.0.0/18", "podCIDRs": ["100.64.64.0/18"]}),
        ),
        (both, json!({})),
    ] {
        let told = update(old, new.clone());
        assert!(
            told.contains("not allowed to modify podCIDR"),
            "{new}: {told:?}"
        );
    }
}

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

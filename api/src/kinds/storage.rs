//! Volumes, claims, classes and CSI objects.

use serde_json::Value;

use super::names;
use super::path::Path;
use super::rules::Check::{Immutable, Name, OneOf, Quantity, Required, Selector, With};
use super::rules::Literal::{Bool, Text};
use super::rules::{Checks, Rules};
use super::strategy::Door;
use crate::object::Object;
use crate::status::Cause;

const MODES: &[&str] = &[
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
];
const VOLUME_MODES: &[&str] = &["Block", "Filesystem"];

pub static PERSISTENT_VOLUME: Rules = Rules {
    defaults: &[
        ("spec.persistentVolumeReclaimPolicy", Text("Retain")),
        ("spec.volumeMode", Text("Filesystem")),
        ("spec.hostPath?.type", Text("")),
    ],
    status: r#"{"phase":"Pending"}"#,
    checks: &[
        ("spec.accessModes", Required),
        ("spec.accessModes[]", OneOf(MODES)),
        ("spec.capacity", Required),
        ("spec.capacity{}", Quantity),
        (
            "spec.persistentVolumeReclaimPolicy",
            OneOf(&["Delete", "Recycle", "Retain"]),
        ),
        ("spec.volumeMode", OneOf(VOLUME_MODES)),
        ("spec.hostPath.path", Required),
        ("spec.hostPath.path", Name(names::no_backsteps)),
        ("spec.volumeMode", Immutable),
    ],
    validate: |new, _, door, causes| {
        if door != Door::Subresource("status") {
            volume_source(new, causes);
        }
    },
    returns_deleted: true,
    ..Rules::NEW
};

pub static PERSISTENT_VOLUME_CLAIM: Rules = Rules {
    defaults: &[("spec.volumeMode", Text("Filesystem"))],
    status: r#"{"phase":"Pending"}"#,
    checks: &[
        ("spec.accessModes", Required),
        ("spec.accessModes[]", OneOf(MODES)),
        ("spec.selector", Selector),
        ("spec.resources.requests.storage", Required),
        ("spec.resources.requests.storage", Quantity),
        ("spec.volumeMode", OneOf(VOLUME_MODES)),
    ],
    validate: |new, old, door, causes| {
        if let Some(old) = old.filter(|_| door == Door::Main) {
            claim_update(new, old, causes);
        }
    },
    returns_deleted: true,
    ..Rules::NEW
};

pub static STORAGE_CLASS: Rules = Rules {
    defaults: &[
        ("reclaimPolicy", Text("Delete")),
        ("volumeBindingMode", Text("Immediate")),
    ],
    checks: &[
        ("provisioner", Required),
        ("provisioner", With(lower_qualified)),
        ("reclaimPolicy", OneOf(&["Delete", "Retain"])),
        (
            "volumeBindingMode",
            OneOf(&["Immediate", "WaitForFirstConsumer"]),
        ),
    ],
    validate: |new, old, _, causes| {
        let Some(old) = old else { return };
        for key in ["parameters", "provisioner", "reclaimPolicy"] {
            if new.at(&[key]) != old.at(&[key]) {
                let why = format!("updates to {key} are forbidden.");
                causes.push(Cause::forbidden(key, &why));
            }
        }
        super::rules::unchanged(
            "volumeBindingMode",
            new.at(&["volumeBindingMode"]),
            old.at(&["volumeBindingMode"]),
            causes,
        );
    },
    returns_deleted: true,
    ..Rules::NEW
};

pub static VOLUME_ATTRIBUTES_CLASS: Rules = Rules {
    checks: &[
        ("driverName", Required),
        ("driverName", Immutable),
        ("parameters", Required),
        ("parameters", Immutable),
    ],
    returns_deleted: true,
    ..Rules::NEW
};

pub static VOLUME_ATTACHMENT: Rules = Rules {
    status: r#"{"attached":false}"#,
    checks: &[
        ("spec.attacher", Required),
        ("spec.nodeName", Required),
        ("spec.source", Required),
        ("spec", Immutable),
    ],
    unconditional_update: false,
    returns_deleted: true,
    ..Rules::NEW
};

pub static CSI_DRIVER: Rules = Rules {
    defaults: &[
        ("spec.attachRequired", Bool(true)),
        ("spec.podInfoOnMount", Bool(false)),
        ("spec.storageCapacity", Bool(false)),
        ("spec.requiresRepublish", Bool(false)),
        ("spec.seLinuxMount", Bool(false)),
        ("spec.fsGroupPolicy", Text("ReadWriteOnceWithFSType")),
    ],
    default: |new| {
        if new.list_at(&["spec", "volumeLifecycleModes"]).is_empty() && new.at(&["spec"]).is_some()
        {
            new.set(&["spec", "volumeLifecycleModes"], vec!["Persistent"].into());
        }
    },
    checks: CSI_DRIVER_CHECKS,
    unconditional_update: false,
    returns_deleted: true,
    has_generation: true,
    ..Rules::NEW
};

const CSI_DRIVER_CHECKS: Checks = &[
    (
        "spec.fsGroupPolicy",
        OneOf(&["File", "None", "ReadWriteOnceWithFSType"]),
    ),
    (
        "spec.volumeLifecycleModes[]",
        OneOf(&["Ephemeral", "Persistent"]),
    ),
    ("spec.attachRequired", Immutable),
];

pub static CSI_NODE: Rules = Rules {
    checks: &[
        ("spec.drivers[].name", Required),
        ("spec.drivers[].nodeID", Required),
        ("spec.drivers", super::rules::Check::Unique("name")),
    ],
    unconditional_update: false,
    returns_deleted: true,
    ..Rules::NEW
};

pub static CSI_STORAGE_CAPACITY: Rules = Rules {
    checks: &[
        ("storageClassName", Required),
        ("nodeTopology", Selector),
        ("capacity", Quantity),
        ("maximumVolumeSize", Quantity),
        ("storageClassName", Immutable),
        ("nodeTopology", Immutable),
    ],
    unconditional_update: false,
    returns_deleted: true,
    ..Rules::NEW
};

/// Keys of a volume's spec that say where its bytes are.
const SOURCES: [&str; 12] = [
    "hostPath",
    "local",
    "nfs",
    "csi",
    "iscsi",
    "fc",
    "rbd",
    "cephfs",
    "cinder",
    "glusterfs",
    "azureFile",
    "azureDisk",
];

fn volume_source(new: &Object, causes: &mut Vec<Cause>) {
    let given = |key: &&str| {
        new.at(&["spec", key])
            .is_some_and(|source| !source.is_null())
    };
    let sources: Vec<&str> = SOURCES.into_iter().filter(given).collect();
    let others = new
        .at(&["spec"])
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .any(|(key, value)| {
            value.is_object() && !matches!(key.as_str(), "capacity" | "claimRef" | "nodeAffinity")
        });
    if !others {
        causes.push(Cause::required("spec", "must specify a volume type"));
    }
    for key in sources.iter().skip(1) {
        let why = "may not specify more than 1 volume type";
        causes.push(Cause::forbidden(format!("spec.{key}"), why));
    }
}

/// Of a claim only the size may grow, the volume be named once, and the attributes class change.
fn claim_update(new: &Object, old: &Object, causes: &mut Vec<Cause>) {
    let frozen = |claim: &Object| {
        let mut claim = claim.clone();
        claim.remove(&["spec", "resources", "requests", "storage"]);
        claim.remove(&["spec", "volumeAttributesClassName"]);
        if old
            .str_at(&["spec", "volumeName"])
            .is_none_or(str::is_empty)
        {
            claim.remove(&["spec", "volumeName"]);
        }
        claim.at(&["spec"]).cloned().unwrap_or_default()
    };
    if frozen(new) != frozen(old) {
        let why = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
        causes.push(Cause::forbidden("spec", why));
    }
    let size = |claim: &Object| {
        claim
            .at(&["spec", "resources", "requests", "storage"])
            .and_then(super::quantities::parse)
    };
    if let (Some(now), Some(before)) = (size(new), size(old))
        && now < before
    {
        let why = "field can not be less than status.capacity";
        causes.push(Cause::forbidden("spec.resources.requests.storage", why));
    }
}

fn lower_qualified(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let text = value.as_str().unwrap_or_default();
    if text.is_empty() {
        return;
    }
    for why in names::qualified_name(&text.to_lowercase()) {
        causes.push(Cause::invalid(path, value, &why));
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, check_update, defaulted};

    const CLAIM: &str = "{metadata: {name: c}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}";

    #[test]
    fn claims_and_volumes_get_their_defaults() {
        let claim = defaulted("persistentvolumeclaims", CLAIM);
        assert_eq!(claim["spec"]["volumeMode"], "Filesystem");
        assert_eq!(claim["status"]["phase"], "Pending");
        let class = defaulted(
            "storageclasses",
            "{metadata: {name: s}, provisioner: x.io/y}",
        );
        assert_eq!(class["reclaimPolicy"], "Delete");
        assert_eq!(class["volumeBindingMode"], "Immediate");
    }

    #[test]
    fn a_volume_is_somewhere() {
        check(
            "persistentvolumes",
            "{metadata: {name: v}, spec: {capacity: {storage: 1Gi}, accessModes: [Sometimes]}}",
            &[
                "spec.accessModes[0]: Unsupported value: \"Sometimes\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
                "spec: Required value: must specify a volume type",
            ],
        );
    }

    #[test]
    fn a_claim_only_grows() {
        check_update(
            "persistentvolumeclaims",
            CLAIM,
            &CLAIM.replace("1Gi", "2Gi"),
            &[],
        );
        check_update(
            "persistentvolumeclaims",
            CLAIM,
            &CLAIM
                .replace("1Gi", "1Mi")
                .replace("ReadWriteOnce", "ReadWriteMany"),
            &[
                "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
                "spec.resources.requests.storage: Forbidden: field can not be less than status.capacity",
            ],
        );
    }
}

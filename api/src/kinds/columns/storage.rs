//! Volumes, claims, classes and CSI objects in one line.

use serde_json::Value;

use super::{
    AGE, NAME, UNSET, age, at, at_or, column, find, is_deleting, list, map, name, number, shown,
    text, wide,
};
use crate::kinds::Columns;

pub static PERSISTENT_VOLUME: Columns = Columns {
    definitions: &[
        NAME,
        text("Capacity"),
        text("Access Modes"),
        text("Reclaim Policy"),
        text("Status"),
        text("Claim"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        text("Reason"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |object, now| {
        let claim = find(object, "spec.claimRef");
        let claim = match at(claim, "name") {
            "" => String::new(),
            name => format!("{}/{name}", at(claim, "namespace")),
        };
        vec![
            name(object),
            shown(find(object, "spec.capacity.storage")).into(),
            access_modes(list(object, "spec.accessModes")).into(),
            at(object, "spec.persistentVolumeReclaimPolicy").into(),
            phase(object).into(),
            claim.into(),
            class(object).into(),
            at_or(object, "spec.volumeAttributesClassName", UNSET),
            at(object, "status.reason").into(),
            age(object, now),
            at_or(object, "spec.volumeMode", UNSET),
        ]
    },
};

pub static PERSISTENT_VOLUME_CLAIM: Columns = Columns {
    definitions: &[
        NAME,
        text("Status"),
        text("Volume"),
        text("Capacity"),
        text("Access Modes"),
        text("StorageClass"),
        text("VolumeAttributesClass"),
        AGE,
        wide("VolumeMode"),
    ],
    cells: |object, now| {
        let volume = at(object, "spec.volumeName");
        let (capacity, modes) = if volume.is_empty() {
            (String::new(), String::new())
        } else {
            (
                shown(find(object, "status.capacity.storage")),
                access_modes(list(object, "status.accessModes")),
            )
        };
        vec![
            name(object),
            phase(object).into(),
            volume.into(),
            capacity.into(),
            modes.into(),
            class(object).into(),
            at_or(object, "spec.volumeAttributesClassName", UNSET),
            age(object, now),
            at_or(object, "spec.volumeMode", UNSET),
        ]
    },
};

pub static STORAGE_CLASS: Columns = Columns {
    definitions: &[
        NAME,
        text("Provisioner"),
        text("ReclaimPolicy"),
        text("VolumeBindingMode"),
        column("AllowVolumeExpansion", "boolean", 0),
        AGE,
    ],
    cells: |object, now| {
        let annotation = "storageclass.kubernetes.io/is-default-class";
        let default = object["metadata"]["annotations"][annotation] == "true";
        let name = at(object, "metadata.name");
        let name = if default {
            format!("{name} (default)")
        } else {
            name.to_owned()
        };
        vec![
            name.into(),
            at(object, "provisioner").into(),
            at_or(object, "reclaimPolicy", "Delete"),
            at_or(object, "volumeBindingMode", "Immediate"),
            (object["allowVolumeExpansion"] == true).into(),
            age(object, now),
        ]
    },
};

pub static VOLUME_ATTRIBUTES_CLASS: Columns = Columns {
    definitions: &[NAME, text("DriverName"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            at(object, "driverName").into(),
            age(object, now),
        ]
    },
};

pub static VOLUME_ATTACHMENT: Columns = Columns {
    definitions: &[
        NAME,
        text("Attacher"),
        text("PV"),
        text("Node"),
        column("Attached", "boolean", 0),
        AGE,
    ],
    cells: |object, now| {
        vec![
            name(object),
            at(object, "spec.attacher").into(),
            at(object, "spec.source.persistentVolumeName").into(),
            at(object, "spec.nodeName").into(),
            (find(object, "status.attached") == true).into(),
            age(object, now),
        ]
    },
};

pub static CSI_NODE: Columns = Columns {
    definitions: &[NAME, number("Drivers"), AGE],
    cells: |object, now| {
        vec![
            name(object),
            list(object, "spec.drivers").len().into(),
            age(object, now),
        ]
    },
};

pub static CSI_DRIVER: Columns = Columns {
    definitions: &[
        NAME,
        column("AttachRequired", "boolean", 0),
        column("PodInfoOnMount", "boolean", 0),
        column("StorageCapacity", "boolean", 0),
        text("TokenRequests"),
        column("RequiresRepublish", "boolean", 0),
        text("Modes"),
        AGE,
    ],
    cells: |object, now| {
        let joined = |path: &str, key: &str| {
            let texts: Vec<&str> = list(object, path)
                .iter()
                .filter_map(|item| {
                    if key.is_empty() {
                        item.as_str()
                    } else {
                        item[key].as_str()
                    }
                })
                .collect();
            if texts.is_empty() {
                UNSET.to_owned()
            } else {
                texts.join(",")
            }
        };
        let modes = match joined("spec.volumeLifecycleModes", "").as_str() {
            UNSET => "<none>".to_owned(),
            modes => modes.to_owned(),
        };
        vec![
            name(object),
            (find(object, "spec.attachRequired") != false).into(),
            (find(object, "spec.podInfoOnMount") == true).into(),
            (find(object, "spec.storageCapacity") == true).into(),
            joined("spec.tokenRequests", "audience").into(),
            (find(object, "spec.requiresRepublish") == true).into(),
            modes.into(),
            age(object, now),
        ]
    },
};

pub static CSI_STORAGE_CAPACITY: Columns = Columns {
    definitions: &[NAME, text("StorageClassName"), text("Capacity")],
    cells: |object, _| {
        let capacity = match shown(&object["capacity"]) {
            none if none.is_empty() => UNSET.to_owned(),
            capacity => capacity,
        };
        vec![
            name(object),
            at(object, "storageClassName").into(),
            capacity.into(),
        ]
    },
};

fn phase(object: &Value) -> &str {
    if is_deleting(object) {
        "Terminating"
    } else {
        at(object, "status.phase")
    }
}

/// The class by its field, or by the annotation it once was.
fn class(object: &Value) -> String {
    let annotation = "volume.beta.kubernetes.io/storage-class";
    let old = map(object, "metadata.annotations").and_then(|map| map.get(annotation));
    old.and_then(Value::as_str)
        .unwrap_or(at(object, "spec.storageClassName"))
        .to_owned()
}

/// `RWO,ROX`, in upstream's order.
fn access_modes(modes: &[Value]) -> String {
    const SHORT: [(&str, &str); 4] = [
        ("ReadWriteOnce", "RWO"),
        ("ReadOnlyMany", "ROX"),
        ("ReadWriteMany", "RWX"),
        ("ReadWriteOncePod", "RWOP"),
    ];
    let found = SHORT
        .iter()
        .filter(|(mode, _)| modes.iter().any(|given| given == mode));
    let texts: Vec<&str> = found.map(|(_, short)| *short).collect();
    texts.join(",")
}

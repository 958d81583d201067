//! The volumes of a pod's spec. Pure.

use serde_json::Value;

use crate::kinds::names;
use crate::kinds::path::Path;
use crate::kinds::rules::Check::{Keys, Name, OneOf, Quantity, Required, With};
use crate::kinds::rules::{Checks, check};
use crate::status::Cause;

/// What each source must say; a volume has exactly one.
const VOLUME: Checks = &[
    ("secret.secretName", Required),
    ("secret.defaultMode", With(mode)),
    ("secret.items[]", With(key_to_path)),
    ("configMap.name", Required),
    ("configMap.defaultMode", With(mode)),
    ("configMap.items[]", With(key_to_path)),
    ("downwardAPI.defaultMode", With(mode)),
    ("downwardAPI.items[]", With(downward_file)),
    ("projected.defaultMode", With(mode)),
    ("projected.sources[].secret.name", Required),
    ("projected.sources[].secret.items[]", With(key_to_path)),
    ("projected.sources[].configMap.name", Required),
    ("projected.sources[].configMap.items[]", With(key_to_path)),
    (
        "projected.sources[].downwardAPI.items[]",
        With(downward_file),
    ),
    ("projected.sources[].serviceAccountToken.path", Required),
    (
        "projected.sources[].serviceAccountToken.path",
        Name(names::relative_path),
    ),
    (
        "projected.sources[].serviceAccountToken.expirationSeconds",
        With(token_lifetime),
    ),
    ("hostPath.path", Required),
    ("hostPath.path", Name(names::no_backsteps)),
    (
        "hostPath.type",
        OneOf(&[
            "",
            "BlockDevice",
            "CharDevice",
            "Directory",
            "DirectoryOrCreate",
            "File",
            "FileOrCreate",
            "Socket",
        ]),
    ),
    ("emptyDir.sizeLimit", Quantity),
    ("persistentVolumeClaim.claimName", Required),
    ("nfs.server", Required),
    ("nfs.path", Required),
    ("csi.driver", Required),
    ("image.reference", Required),
    ("ephemeral.volumeClaimTemplate", Required),
    (
        "ephemeral.volumeClaimTemplate.metadata.labels",
        Keys(names::qualified_name),
    ),
];

/// Fields of a pod that a downward volume may show.
const FIELDS: &[&str] = &[
    "metadata.annotations",
    "metadata.labels",
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
];

/// Checks the volumes at `path` and answers with their names.
pub(super) fn validate<'v>(
    path: &Path<'_>,
    volumes: &'v Value,
    causes: &mut Vec<Cause>,
) -> Vec<&'v str> {
    let mut seen = Vec::new();
    for (i, volume) in volumes.as_array().into_iter().flatten().enumerate() {
        let path = path.index(i);
        let name = volume["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            causes.push(Cause::required(path.key("name"), ""));
        } else {
            for why in names::dns_label(name) {
                causes.push(Cause::invalid(path.key("name"), &name.into(), &why));
            }
            if seen.contains(&name) {
                causes.push(Cause::duplicate(path.key("name"), &name.into()));
            }
            seen.push(name);
        }
        source(&path, volume, causes);
        check(VOLUME, &path, volume, causes);
    }
    seen
}

fn source(path: &Path<'_>, volume: &Value, causes: &mut Vec<Cause>) {
    let map = volume.as_object();
    let sources = map
        .into_iter()
        .flatten()
        .filter(|(key, value)| *key != "name" && !value.is_null());
    for (key, _) in sources.skip(1) {
        let why = "may not specify more than 1 volume type";
        causes.push(Cause::forbidden(path.key(key), why));
    }
}

pub(super) fn mode(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    if value
        .as_i64()
        .is_some_and(|mode| !(0..=0o777).contains(&mode))
    {
        let why = "must be a number between 0 and 0777 (octal), both inclusive";
        causes.push(Cause::invalid(path, value, why));
    }
}

fn key_to_path(path: &Path<'_>, item: &Value, causes: &mut Vec<Cause>) {
    const ITEM: Checks = &[
        ("key", Required),
        ("path", Required),
        ("path", Name(names::relative_path)),
        ("mode", With(mode)),
    ];
    check(ITEM, path, item, causes);
}

fn downward_file(path: &Path<'_>, item: &Value, causes: &mut Vec<Cause>) {
    const ITEM: Checks = &[
        ("path", Required),
        ("path", Name(names::relative_path)),
        ("mode", With(mode)),
    ];
    check(ITEM, path, item, causes);
    match (&item["fieldRef"], &item["resourceFieldRef"]) {
        (Value::Null, Value::Null) => {
            let why = "one of fieldRef and resourceFieldRef is required";
            causes.push(Cause::required(path, why));
        }
        (Value::Null, resource) => {
            if resource["containerName"].as_str().is_none_or(str::is_empty) {
                let at = path.key("resourceFieldRef");
                causes.push(Cause::required(at.key("containerName"), ""));
            }
        }
        (field, Value::Null) => field_path(&path.key("fieldRef"), field, FIELDS, causes),
        _ => {
            let why = "fieldRef and resourceFieldRef can not be specified simultaneously";
            let field = path.key("resource");
            causes.push(Cause::invalid(field, &item["resourceFieldRef"], why));
        }
    }
}

/// `fieldRef.fieldPath` names a field that may be shown: one of `allowed`, or one entry of labels or annotations.
pub(super) fn field_path(
    path: &Path<'_>,
    field: &Value,
    allowed: &[&str],
    causes: &mut Vec<Cause>,
) {
    let path = path.key("fieldPath");
    let text = field["fieldPath"].as_str().unwrap_or_default();
    if text.is_empty() {
        causes.push(Cause::required(path, ""));
        return;
    }
    if let Some((map, rest)) = text.split_once("['")
        && let Some(key) = rest.strip_suffix("']")
    {
        if !matches!(map, "metadata.labels" | "metadata.annotations") {
            let why = "does not support subscript";
            causes.push(Cause::invalid(path, &text.into(), why));
            return;
        }
        for why in names::qualified_name(&key.to_lowercase()) {
            causes.push(Cause::invalid(path, &key.into(), &why));
        }
    } else if !allowed.contains(&text) {
        causes.push(Cause::not_supported(path, &text.into(), allowed));
    }
}

fn token_lifetime(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let seconds = value.as_i64().unwrap_or(0);
    if seconds < 600 {
        let why = "may not specify a duration less than 10 minutes";
        causes.push(Cause::invalid(path, value, why));
    } else if seconds > 1 << 32 {
        let why = "may not specify a duration larger than 2^32 seconds";
        causes.push(Cause::invalid(path, value, why));
    }
}

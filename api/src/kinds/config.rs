//! ConfigMaps, Secrets and ServiceAccounts: keys, sizes, types, immutability.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::names;
use super::rules::Check::{Immutable, Keys};
use super::rules::Literal::Text;
use super::rules::Rules;
use crate::object::Object;
use crate::status::Cause;

/// Bytes of all values of a ConfigMap or Secret.
const SIZE_MAX: usize = 1024 * 1024;
const REDACTED: &str = "<secret contents redacted>";

pub static CONFIG_MAP: Rules = Rules {
    checks: &[
        ("data", Keys(names::config_key)),
        ("binaryData", Keys(names::config_key)),
    ],
    validate: |new, old, _, causes| {
        let size = size_of(new.at(&["data"]), false) + size_of(new.at(&["binaryData"]), true);
        if size > SIZE_MAX {
            causes.push(Cause::too_long("[]", SIZE_MAX));
        }
        let none = Map::new();
        let map = |key: &str| new.at(&[key]).and_then(Value::as_object).unwrap_or(&none);
        for key in map("binaryData")
            .keys()
            .filter(|key| map("data").contains_key(*key))
        {
            let why = "duplicate of key present in binaryData";
            causes.push(Cause::invalid(
                format!("data[{key}]"),
                &key.as_str().into(),
                why,
            ));
        }
        if let Some(old) = old {
            validate_immutable(new, old, &["data", "binaryData"], causes);
        }
    },
    ..Rules::NEW
};

pub static SECRET: Rules = Rules {
    defaults: &[("type", Text("Opaque"))],
    default: fold_string_data,
    checks: &[("data", Keys(names::config_key)), ("type", Immutable)],
    validate: |new, old, _, causes| {
        if size_of(new.at(&["data"]), true) > SIZE_MAX {
            causes.push(Cause::too_long("data", SIZE_MAX));
        }
        validate_type(new, causes);
        if let Some(old) = old {
            validate_immutable(new, old, &["data"], causes);
        }
    },
    warnings: |new, _| {
        let of_account = new.str_at(&["type"]) == Some("kubernetes.io/service-account-token");
        let empty = new.at(&["data", "token"]).is_none();
        let text = "no token is put into a Secret of type kubernetes.io/service-account-token: ask for one that expires, as kubectl create token does";
        (of_account && empty)
            .then(|| text.to_owned())
            .into_iter()
            .collect()
    },
    fields: &["type"],
    ..Rules::NEW
};

pub static SERVICE_ACCOUNT: Rules = Rules {
    returns_deleted: true,
    ..Rules::NEW
};

/// `stringData` is only for writing: its texts become `data`, over what is there.
fn fold_string_data(new: &mut Object) {
    let Some(Value::Object(texts)) = new.map_mut().remove("stringData") else {
        return;
    };
    for (key, text) in texts {
        let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
        new.set(&["data", &key], encoded.into());
    }
}

fn size_of(map: Option<&Value>, encoded: bool) -> usize {
    let values = map.and_then(Value::as_object).into_iter().flatten();
    values
        .filter_map(|(_, value)| value.as_str())
        .map(|text| {
            if encoded {
                text.len() / 4 * 3
            } else {
                text.len()
            }
        })
        .sum()
}

/// Once `immutable` is set, neither it nor the data change any more.
fn validate_immutable(new: &Object, old: &Object, keys: &[&str], causes: &mut Vec<Cause>) {
    if !old.bool_at(&["immutable"]) {
        return;
    }
    let why = "field is immutable when `immutable` is set";
    if !new.bool_at(&["immutable"]) {
        causes.push(Cause::forbidden("immutable", why));
    }
    for key in keys {
        if new.at(&[key]) != old.at(&[key]) {
            causes.push(Cause::forbidden(*key, why));
        }
    }
}

/// What a secret of a well-known type must hold.
fn validate_type(new: &Object, causes: &mut Vec<Cause>) {
    let data = |key: &str| new.str_at(&["data", key]);
    let field = |key: &str| format!("data[{key}]");
    let required: &[&str] = match new.str_at(&["type"]).unwrap_or_default() {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if new.annotation(key).is_none_or(str::is_empty) {
                let field = format!("metadata.annotations[{key}]");
                causes.push(Cause::required(field, ""));
            }
            &[]
        }
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/basic-auth" => {
            if data("username").is_none() && data("password").is_none() {
                causes.push(Cause::required("data[%username]", ""));
                causes.push(Cause::required("data[%password]", ""));
            }
            &[]
        }
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        _ => &[],
    };
    for key in required {
        let Some(text) = data(key) else {
            causes.push(Cause::required(field(key), ""));
            continue;
        };
        let is_json = || {
            let bytes = STANDARD.decode(text).unwrap_or_default();
            serde_json::from_slice::<Map<String, Value>>(&bytes).is_ok()
        };
        if key.starts_with(".docker") && !is_json() {
            let why = "invalid character in the JSON of a docker configuration";
            causes.push(Cause::invalid(field(key), &REDACTED.into(), why));
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::kinds::testing::{check, check_update, defaulted};
    use serde_json::json;

    #[test]
    fn string_data_becomes_data() {
        let secret = defaulted(
            "secrets",
            "{metadata: {name: s}, data: {b: eA==}, stringData: {a: hello}}",
        );
        assert_eq!(secret["data"], json!({"a": "aGVsbG8=", "b": "eA=="}));
        assert_eq!(secret["type"], "Opaque");
        assert_eq!(secret.get("stringData"), None);
    }

    #[test]
    fn keys_are_file_names() {
        check(
            "configmaps",
            "{metadata: {name: c}, data: {'a/b': x, ok: y}, binaryData: {ok: eA==}}",
            &[
                "data: Invalid value: \"a/b\": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
                "data[ok]: Invalid value: \"ok\": duplicate of key present in binaryData",
            ],
        );
    }

    #[test]
    fn immutable_ones_stay_and_types_too() {
        check_update(
            "configmaps",
            "{metadata: {name: c}, immutable: true, data: {a: x}}",
            "{metadata: {name: c}, data: {a: y}}",
            &[
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ],
        );
        check_update(
            "secrets",
            "{metadata: {name: s}}",
            "{metadata: {name: s}, type: x}",
            &["type: Invalid value: \"x\": field is immutable"],
        );
    }

    #[test]
    fn well_known_types_hold_what_they_must() {
        check(
            "secrets",
            "{metadata: {name: s}, type: kubernetes.io/tls, data: {tls.crt: eA==}}",
            &["data[tls.key]: Required value"],
        );
    }
}

//! CertificateSigningRequest: what was asked never changes, and each door changes its own part of the status.

use serde_json::Value;

use super::path::Path;
use super::rules::Check::{Required, With};
use super::rules::Rules;
use super::strategy::Door;
use crate::certificates::request::Request;
use crate::object::Object;
use crate::status::Cause;

pub static SIGNING_REQUEST: Rules = Rules {
    status: "{}",
    checks: &[
        ("spec.request", Required),
        ("spec.signerName", Required),
        ("spec.signerName", With(signer)),
        ("spec.usages", Required),
        ("spec.expirationSeconds", With(lifetime)),
    ],
    prepare,
    validate,
    fields: &["spec.signerName"],
    ..Rules::NEW
};

/// Conditions by which somebody decided; the others are the signer's.
const DECISIONS: &[&str] = &["Approved", "Denied"];

fn prepare(new: &mut Object, old: Option<&Object>, door: Door<'_>) {
    let Some(old) = old else { return };
    if let Some(spec) = old.at(&["spec"]) {
        new.set(&["spec"], spec.clone());
    }
    let decided = |condition: &&Value| {
        let kind = condition["type"].as_str().unwrap_or_default();
        DECISIONS.contains(&kind)
    };
    let path = ["status", "conditions"];
    let (before, after) = (old.list_at(&path), new.list_at(&path).to_vec());
    match door {
        Door::Subresource("approval") => {
            let conditions = new.remove(&path);
            let status = old.at(&["status"]).cloned().unwrap_or_default();
            new.set(&["status"], status);
            match conditions {
                Some(conditions) => new.set(&path, conditions),
                None => {
                    new.remove(&path);
                }
            }
        }
        Door::Subresource("status") => {
            let kept = before.iter().filter(decided).cloned();
            let own = after
                .iter()
                .filter(|condition| !decided(condition))
                .cloned();
            let all: Vec<Value> = kept.chain(own).collect();
            if !all.is_empty() {
                new.set(&path, all.into());
            }
        }
        _ => {}
    }
}

fn validate(new: &Object, old: Option<&Object>, door: Door<'_>, causes: &mut Vec<Cause>) {
    let Some(old) = old else {
        let text = new.str_at(&["spec", "request"]).unwrap_or_default();
        if !text.is_empty()
            && let Err(error) = Request::parse(text)
        {
            causes.push(Cause::invalid("spec.request", &text.into(), &error));
        }
        return;
    };
    let path = ["status", "conditions"];
    let (before, after) = (old.list_at(&path), new.list_at(&path));
    let has = |conditions: &[Value], kind: &str| {
        conditions.iter().any(|condition| condition["type"] == kind)
    };
    for (i, condition) in after.iter().enumerate() {
        let field = format!("status.conditions[{i}]");
        let kind = condition["type"].as_str().unwrap_or_default();
        if kind.is_empty() {
            causes.push(Cause::required(format!("{field}.type"), ""));
        }
        if after[..i].iter().any(|other| other["type"] == kind) {
            causes.push(Cause::duplicate(
                format!("{field}.type"),
                &condition["type"],
            ));
        }
        let status = condition["status"].as_str().unwrap_or_default();
        if [DECISIONS, &["Failed"]].concat().contains(&kind) && status != "True" {
            let field = format!("{field}.status");
            causes.push(Cause::not_supported(field, &condition["status"], &["True"]));
        }
    }
    if has(after, "Approved") && has(after, "Denied") {
        let why = "Approved and Denied conditions are mutually exclusive";
        causes.push(Cause::invalid("status.conditions", &"Denied".into(), why));
    }
    for kind in [DECISIONS, &["Failed"]].concat() {
        if door != Door::Main && has(before, kind) && !has(after, kind) {
            let why = format!("updates may not remove a condition of type {kind:?}");
            causes.push(Cause::forbidden("status.conditions", &why));
        }
    }
    let certificate = ["status", "certificate"];
    if let Some(signed) = old.str_at(&certificate).filter(|signed| !signed.is_empty())
        && new.str_at(&certificate) != Some(signed)
    {
        let value = new.at(&certificate).cloned().unwrap_or_default();
        let why = "may not be modified once set";
        causes.push(Cause::invalid("status.certificate", &value, why));
    }
}

fn signer(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    let name = value.as_str().unwrap_or_default();
    let parts = name.split_once('/');
    let whole = parts.is_some_and(|(domain, rest)| domain.contains('.') && !rest.is_empty());
    if !name.is_empty() && !whole {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        causes.push(Cause::invalid(path, value, why));
    }
}

fn lifetime(path: &Path<'_>, value: &Value, causes: &mut Vec<Cause>) {
    if value.as_i64().is_some_and(|seconds| seconds < 600) {
        let why = "may not specify a duration less than 600 seconds (10 minutes)";
        causes.push(Cause::invalid(path, value, why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(status: Value) -> Object {
        let value =
            json!({"metadata": {"name": "c"}, "spec": {"signerName": "a.b/c"}, "status": status});
        Object::new(value).expect("an object")
    }

    fn condition(kind: &str) -> Value {
        json!({"type": kind, "status": "True"})
    }

    #[test]
    fn each_door_changes_its_own_part() {
        let old = object(json!({"certificate": "eA==", "conditions": [condition("Approved")]}));
        let wanted = json!({"certificate": "eQ==", "conditions": [condition("Denied"), condition("Failed")]});
        let mut approval = object(wanted.clone());
        prepare(&mut approval, Some(&old), Door::Subresource("approval"));
        assert_eq!(
            approval.at(&["status"]),
            Some(
                &json!({"certificate": "eA==", "conditions": [condition("Denied"), condition("Failed")]})
            )
        );
        let mut status = object(wanted);
        prepare(&mut status, Some(&old), Door::Subresource("status"));
        assert_eq!(
            status.at(&["status"]),
            Some(
                &json!({"certificate": "eQ==", "conditions": [condition("Approved"), condition("Failed")]})
            )
        );
    }

    #[test]
    fn a_decision_is_final_and_so_is_a_certificate() {
        let check = |old: Value, new: Value| {
            let mut causes = Vec::new();
            validate(
                &object(new),
                Some(&object(old)),
                Door::Subresource("status"),
                &mut causes,
            );
            causes.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        let approved = json!({"conditions": [condition("Approved")]});
        assert_eq!(
            check(
                approved.clone(),
                json!({"conditions": [condition("Approved"), condition("Denied")]})
            ),
            [
                "status.conditions: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
            ]
        );
        assert_eq!(
            check(approved, json!({})),
            [
                "status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""
            ]
        );
        assert_eq!(
            check(
                json!({"certificate": "eA=="}),
                json!({"certificate": "eQ=="})
            ),
            ["status.certificate: Invalid value: \"eQ==\": may not be modified once set"]
        );
    }
}

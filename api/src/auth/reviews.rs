//! The questions a client may ask about itself and others: access, rules and identity reviews. They are answered from
//! [`Access`], never stored.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::rbac::aggregate;
use super::rules::Rule;
use super::{Access, Attributes, User};
use crate::object::Object;
use crate::request::ResourcePath;
use crate::status::{Cause, Error};

/// Is this a kind whose objects are questions?
pub fn is_review(group: &str, resource: &str) -> bool {
    matches!(
        (group, resource),
        (
            "authorization.k8s.io",
            "selfsubjectaccessreviews"
                | "subjectaccessreviews"
                | "localsubjectaccessreviews"
                | "selfsubjectrulesreviews"
        ) | (
            "authentication.k8s.io",
            "selfsubjectreviews" | "tokenreviews"
        )
    )
}

/// Fills `status`. `namespace` is that of the path.
pub fn answer(
    review: &mut Object,
    resource: &str,
    namespace: &str,
    user: &User,
    access: &Access,
    now: Timestamp,
) -> Result<(), Error> {
    let status = match resource {
        "selfsubjectaccessreviews" => may(review, user, access)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            if resource == "localsubjectaccessreviews" {
                check_namespace(review, namespace)?;
            }
            let subject = subject(review)?;
            may(review, &subject, access)?
        }
        "selfsubjectrulesreviews" => rules(review, user, access)?,
        "selfsubjectreviews" => json!({ "userInfo": user_info(user) }),
        _ => token(review, access, now)?,
    };
    review.set(&["status"], status);
    Ok(())
}

fn may(review: &Object, user: &User, access: &Access) -> Result<Value, Error> {
    let text = |path: &[&str]| review.str_at(path).unwrap_or_default().to_owned();
    let resource = review.at(&["spec", "resourceAttributes"]).is_some();
    let other = review.at(&["spec", "nonResourceAttributes"]).is_some();
    if resource == other {
        let cause = Cause::invalid(
            "spec.resourceAttributes",
            review
                .at(&["spec", "resourceAttributes"])
                .unwrap_or(&Value::Null),
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
        return Err(invalid(review, cause));
    }
    let decision = if resource {
        let part = |name| text(&["spec", "resourceAttributes", name]);
        let path = ResourcePath {
            group: part("group"),
            version: part("version"),
            resource: part("resource"),
            namespace: part("namespace"),
            name: part("name"),
            subresource: part("subresource"),
            ..ResourcePath::default()
        };
        let verb = part("verb");
        let asked = Attributes::Resource {
            verb: &verb,
            path: &path,
        };
        access.decide(user, &asked, true)
    } else {
        let verb = text(&["spec", "nonResourceAttributes", "verb"]);
        let path = text(&["spec", "nonResourceAttributes", "path"]);
        let asked = Attributes::NonResource {
            verb: &verb,
            path: &path,
        };
        access.decide(user, &asked, true)
    };
    let mut status = json!({ "allowed": decision.allowed });
    if !decision.reason.is_empty() {
        status["reason"] = json!(decision.reason);
    }
    Ok(status)
}

/// The user a SubjectAccessReview asks about.
fn subject(review: &Object) -> Result<User, Error> {
    let name = review.str_at(&["spec", "user"]).unwrap_or_default();
    let groups: Vec<&str> = review
        .list_at(&["spec", "groups"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    if name.is_empty() && groups.is_empty() {
        let cause = Cause::invalid(
            "spec.user",
            &json!(""),
            "at least one of user or group must be specified",
        );
        return Err(invalid(review, cause));
    }
    let mut user = User {
        name: name.to_owned(),
        uid: review
            .str_at(&["spec", "uid"])
            .unwrap_or_default()
            .to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
        ..User::default()
    };
    let extra = review.at(&["spec", "extra"]).and_then(Value::as_object);
    for (key, values) in extra.into_iter().flatten() {
        let values = values.as_array().into_iter().flatten();
        let values = values.filter_map(Value::as_str).map(str::to_owned);
        user.extra.insert(key.clone(), values.collect());
    }
    Ok(user)
}

fn check_namespace(review: &Object, namespace: &str) -> Result<(), Error> {
    let asked = review
        .str_at(&["spec", "resourceAttributes", "namespace"])
        .unwrap_or_default();
    if asked == namespace {
        return Ok(());
    }
    let cause = Cause::invalid(
        "spec.resourceAttributes.namespace",
        &json!(asked),
        "must match metadata.namespace",
    );
    Err(invalid(review, cause))
}

fn invalid(review: &Object, cause: Cause) -> Error {
    let (group, _) = review
        .api_version()
        .split_once('/')
        .unwrap_or(("", review.api_version()));
    Error::invalid(group, review.kind(), "", vec![cause])
}

/// What `kubectl auth can-i --list` prints.
fn rules(review: &Object, user: &User, access: &Access) -> Result<Value, Error> {
    let namespace = review.str_at(&["spec", "namespace"]).unwrap_or_default();
    if namespace.is_empty() {
        return Err(Error::bad_request("no namespace on request"));
    }
    let (rules, errors) = access.rbac().rules_of(user, namespace);
    let words = |rule: &Rule, of_resources: bool| {
        let mut words = vec![("verbs", rule.verbs.clone())];
        if of_resources {
            words.push(("apiGroups", rule.groups.clone()));
            words.push(("resources", rule.resources.clone()));
            words.push(("resourceNames", rule.names.clone()));
        } else {
            words.push(("nonResourceURLs", rule.urls.clone()));
        }
        let words = words.into_iter().filter(|(_, words)| !words.is_empty());
        let words = words.map(|(key, words)| (key.to_owned(), json!(words)));
        Value::Object(words.collect())
    };
    let of_resources = rules.iter().filter(|rule| !rule.resources.is_empty());
    let of_urls = rules.iter().filter(|rule| !rule.urls.is_empty());
    let mut status = json!({
        "resourceRules": of_resources.map(|rule| words(rule, true)).collect::<Vec<_>>(),
        "nonResourceRules": of_urls.map(|rule| words(rule, false)).collect::<Vec<_>>(),
        // What the node authoriser would say depends on pods, not on rules.
        "incomplete": user.node().is_some() || !errors.is_empty(),
    });
    if user.node().is_some() {
        status["evaluationError"] = json!("node authorizer does not support user rule resolution");
    } else if let Some(errors) = aggregate(&errors) {
        status["evaluationError"] = json!(errors);
    }
    Ok(status)
}

/// Whose token `spec.token` is.
fn token(review: &Object, access: &Access, now: Timestamp) -> Result<Value, Error> {
    let token = review.str_at(&["spec", "token"]).unwrap_or_default();
    if token.is_empty() {
        return Err(Error::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<&str> = review
        .list_at(&["spec", "audiences"])
        .iter()
        .filter_map(Value::as_str)
        .collect();
    Ok(match access.review(token, &audiences, now) {
        Some((user, audiences)) => {
            let mut status = json!({ "authenticated": true, "user": user_info(&user) });
            if !audiences.is_empty() {
                status["audiences"] = json!(audiences);
            }
            status
        }
        None => json!({ "authenticated": false, "user": {}, "error": "invalid bearer token" }),
    })
}

fn user_info(user: &User) -> Value {
    let mut info = json!({ "username": user.name, "groups": user.groups });
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(resource: &str, spec: &Value, user: &User) -> Value {
        let review = json!({"kind": "R", "apiVersion": "authorization.k8s.io/v1", "spec": spec});
        let mut review = Object::new(review).expect("an object");
        let store = crate::store::memory::Memory::new();
        let access = Access::new(
            crate::store::Store::cache(&store),
            crate::auth::tokens::tests::tokens(),
        );
        let now = Timestamp::UNIX_EPOCH;
        answer(&mut review, resource, "default", user, &access, now).expect("answered");
        review.into_value()["status"].clone()
    }

    #[test]
    fn can_i_is_answered_for_oneself_and_for_others() {
        let spec = json!({"resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "default"}});
        assert_eq!(
            ask("selfsubjectaccessreviews", &spec, &User::admin()),
            json!({"allowed": true})
        );
        let bob = json!({"user": "bob", "resourceAttributes": spec["resourceAttributes"]});
        assert_eq!(
            ask("subjectaccessreviews", &bob, &User::admin()),
            json!({"allowed": false})
        );
    }

    #[test]
    fn masters_have_every_rule_and_unknown_tokens_are_nobodys() {
        let status = ask(
            "selfsubjectrulesreviews",
            &json!({"namespace": "default"}),
            &User::admin(),
        );
        assert_eq!(
            status,
            json!({
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
                "incomplete": false,
            })
        );
        let status = ask("tokenreviews", &json!({"token": "x"}), &User::admin());
        assert_eq!(
            status,
            json!({"authenticated": false, "user": {}, "error": "invalid bearer token"})
        );
    }

    #[test]
    fn whoami_names_user_and_groups() {
        let status = ask("selfsubjectreviews", &json!({}), &User::admin());
        assert_eq!(status["userInfo"]["username"], "kubernetes-admin");
        assert_eq!(
            status["userInfo"]["groups"],
            json!(["system:masters", "system:authenticated"])
        );
    }
}

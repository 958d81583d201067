//! The questions a client may ask about itself and others: access, rules and identity reviews. They are answered from
//! [`super::allowed`], never stored. Pure.

use serde_json::{Value, json};

use super::{Attributes, User, allowed};
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
) -> Result<(), Error> {
    let status = match resource {
        "selfsubjectaccessreviews" => access(review, user)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            if resource == "localsubjectaccessreviews" {
                check_namespace(review, namespace)?;
            }
            let subject = subject(review)?;
            access(review, &subject)?
        }
        "selfsubjectrulesreviews" => rules(user),
        "selfsubjectreviews" => json!({ "userInfo": user_info(user) }),
        _ => json!({
            "authenticated": false,
            "user": {},
            "error": "this server does not accept bearer tokens yet",
        }),
    };
    review.set(&["status"], status);
    Ok(())
}

fn access(review: &Object, user: &User) -> Result<Value, Error> {
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
    let allowed = if resource {
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
        allowed(user, &asked)
    } else {
        let verb = text(&["spec", "nonResourceAttributes", "verb"]);
        let path = text(&["spec", "nonResourceAttributes", "path"]);
        let asked = Attributes::NonResource {
            verb: &verb,
            path: &path,
        };
        allowed(user, &asked)
    };
    Ok(json!({ "allowed": allowed }))
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
    Ok(User {
        name: name.to_owned(),
        uid: review
            .str_at(&["spec", "uid"])
            .unwrap_or_default()
            .to_owned(),
        groups: groups.iter().map(|&group| group.to_owned()).collect(),
        ..User::default()
    })
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
fn rules(user: &User) -> Value {
    let everything = allowed(
        user,
        &Attributes::NonResource {
            verb: "*",
            path: "*",
        },
    );
    if everything {
        return json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        });
    }
    json!({
        "resourceRules": [
            { "verbs": ["create"], "apiGroups": ["authorization.k8s.io"],
              "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"] },
            { "verbs": ["create"], "apiGroups": ["authentication.k8s.io"],
              "resources": ["selfsubjectreviews"] },
        ],
        "nonResourceRules": [{
            "verbs": ["get"],
            "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez",
                "/openapi", "/openapi/*", "/readyz", "/version", "/version/"],
        }],
        "incomplete": false,
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
        answer(&mut review, resource, "default", user).expect("answered");
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
    fn whoami_names_user_and_groups() {
        let status = ask("selfsubjectreviews", &json!({}), &User::admin());
        assert_eq!(status["userInfo"]["username"], "kubernetes-admin");
        assert_eq!(
            status["userInfo"]["groups"],
            json!(["system:masters", "system:authenticated"])
        );
    }
}

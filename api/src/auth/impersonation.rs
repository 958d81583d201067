//! Impersonation: the headers by which a user asks to be treated as another, each part of it permitted by name. Pure.

use http::{HeaderMap, HeaderValue};
use types::well_known::{GROUP_AUTHENTICATED, GROUP_UNAUTHENTICATED, USER_ANONYMOUS};

use super::User;
use crate::request::{ResourcePath, query};
use crate::status::Error;

const AUTHENTICATION: &str = "authentication.k8s.io";
const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";

/// The user the request is to be answered for. `permit` refuses what `user` may not impersonate.
///
/// Differs from Kubernetes: an empty `Impersonate-User` is an error, not a request of the caller's own.
pub(super) fn apply(
    user: User,
    headers: &HeaderMap,
    permit: impl Fn(&User, &ResourcePath) -> Result<(), Error>,
) -> Result<User, Error> {
    // Whoever sends such a header must not be answered as who they are.
    let asks = headers.keys().any(|key| {
        let key = key.as_str();
        matches!(key, USER | GROUP | UID) || key.starts_with(EXTRA)
    });
    if !asks {
        return Ok(user);
    }
    let one = |key: &str| match headers.get(key) {
        Some(value) => text(key, value),
        None => Ok(String::new()),
    };
    let name = one(USER)?;
    let groups = headers.get_all(GROUP).iter();
    let groups: Vec<String> = groups
        .map(|value| text(GROUP, value))
        .collect::<Result<_, _>>()?;
    let uid = one(UID)?;
    let extras = headers.iter().filter_map(|(key, value)| {
        let name = key.as_str().strip_prefix(EXTRA)?;
        let name = query::percent_decode(name, false);
        Some(text(key.as_str(), value).map(|value| (name, value)))
    });
    let extras: Vec<(String, String)> = extras.collect::<Result<_, _>>()?;
    if name.is_empty() {
        return Err(Error::internal(
            "requested impersonation without impersonating a user",
        ));
    }
    let account = User::as_service_account(&name);
    let asked = match account {
        Some((namespace, name)) => ResourcePath {
            namespace: namespace.to_owned(),
            ..resource("", "serviceaccounts", name)
        },
        None => resource("", "users", &name),
    };
    permit(&user, &asked)?;
    for group in &groups {
        permit(&user, &resource("", "groups", group))?;
    }
    if !uid.is_empty() {
        permit(&user, &resource(AUTHENTICATION, "uids", &uid))?;
    }
    for (key, value) in &extras {
        let asked = ResourcePath {
            subresource: key.clone(),
            ..resource(AUTHENTICATION, "userextras", value)
        };
        permit(&user, &asked)?;
    }
    let mut other = User {
        groups: groups_of(&name, groups),
        name,
        uid,
        ..User::default()
    };
    for (key, value) in extras {
        other.extra.entry(key).or_default().push(value);
    }
    Ok(other)
}

/// Names may be in any script; what is not UTF-8 names nobody.
fn text(key: &str, value: &HeaderValue) -> Result<String, Error> {
    let text = std::str::from_utf8(value.as_bytes());
    let text = text.map_err(|_| Error::bad_request(format!("the header {key} is not UTF-8")))?;
    Ok(text.to_owned())
}

/// A service account has its own groups unless some are named; everybody is authenticated, or not.
fn groups_of(name: &str, named: Vec<String>) -> Vec<String> {
    let mut groups = named;
    if let (true, Some((namespace, account))) = (groups.is_empty(), User::as_service_account(name))
    {
        return User::service_account(namespace, account).groups;
    }
    let said = groups
        .iter()
        .any(|group| group == GROUP_AUTHENTICATED || group == GROUP_UNAUTHENTICATED);
    if !said {
        let group = if name == USER_ANONYMOUS {
            GROUP_UNAUTHENTICATED
        } else {
            GROUP_AUTHENTICATED
        };
        groups.push(group.to_owned());
    }
    groups
}

fn resource(group: &str, resource: &str, name: &str) -> ResourcePath {
    ResourcePath {
        group: group.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..ResourcePath::default()
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (key, value) in pairs {
            headers.append(*key, value.parse().expect("a header value"));
        }
        headers
    }

    #[test]
    fn every_part_of_another_is_asked_for_by_name() {
        let asked = RefCell::new(Vec::new());
        let headers = headers(&[
            ("impersonate-user", "system:serviceaccount:ci:robot"),
            ("impersonate-group", "g"),
            ("impersonate-uid", "u"),
            ("impersonate-extra-scopes", "view"),
        ]);
        let permit = |_: &User, path: &ResourcePath| {
            asked.borrow_mut().push(format!(
                "{}|{}|{}|{}|{}",
                path.group, path.namespace, path.resource, path.subresource, path.name
            ));
            Ok(())
        };
        let other = apply(User::admin(), &headers, permit).expect("permitted");
        assert_eq!(
            *asked.borrow(),
            [
                "|ci|serviceaccounts||robot",
                "||groups||g",
                "authentication.k8s.io||uids||u",
                "authentication.k8s.io||userextras|scopes|view",
            ]
        );
        assert_eq!(other.groups, ["g", "system:authenticated"]);
        assert_eq!(other.extra["scopes"], ["view"]);
    }

    #[test]
    fn groups_follow_from_the_name_unless_they_are_named() {
        let of = |name: &str, groups: &[&str]| {
            groups_of(name, groups.iter().map(|&group| group.to_owned()).collect())
        };
        assert_eq!(of("bob", &[]), ["system:authenticated"]);
        assert_eq!(of("system:anonymous", &[]), ["system:unauthenticated"]);
        assert_eq!(
            of("bob", &["system:authenticated"]),
            ["system:authenticated"]
        );
        assert_eq!(
            of("system:serviceaccount:a:b", &[]),
            [
                "system:serviceaccounts",
                "system:serviceaccounts:a",
                "system:authenticated"
            ]
        );
    }

    #[test]
    fn who_cannot_be_read_is_not_the_caller() {
        let of = |key: &'static str, value: &[u8]| {
            let mut headers = HeaderMap::new();
            if key != USER {
                headers.insert(USER, HeaderValue::from_static("bob"));
            }
            let value = HeaderValue::from_bytes(value).expect("a header value");
            headers.append(key, value);
            apply(User::admin(), &headers, |_, _| Ok(()))
        };
        for key in [USER, GROUP, UID, "impersonate-extra-scopes"] {
            let error = of(key, b"J\xfcrgen").expect_err("not UTF-8");
            assert!(error.message.contains(key), "{}", error.message);
        }
        let user = of(USER, "Jürgen".as_bytes()).expect("a name");
        assert_eq!(user.name, "Jürgen");
        let user = of(GROUP, "größe".as_bytes()).expect("a group");
        assert_eq!(user.groups[0], "größe");
        assert!(of(USER, b"").is_err(), "nobody is not the caller");
    }

    #[test]
    fn a_group_without_a_user_is_an_error() {
        let error = apply(
            User::admin(),
            &headers(&[("impersonate-group", "g")]),
            |_, _| Ok(()),
        );
        assert_eq!(
            error.expect_err("nobody").message,
            "Internal error occurred: requested impersonation without impersonating a user"
        );
    }
}

//! Who is calling, and may they.
//!
//! A [`User`] comes from the verified client certificate of the connection (CN is the name, O the groups), or was put
//! into the request's extensions by an in-process caller; everyone else is `system:anonymous`. Authorisation is one
//! function, all-or-nothing for now; RBAC takes its place without the pipeline noticing.

pub mod reviews;

use std::collections::BTreeMap;

use http::HeaderMap;
use sha2::{Digest, Sha256};
use types::well_known::{
    GROUP_AUTHENTICATED as AUTHENTICATED, GROUP_MASTERS as MASTERS,
    GROUP_UNAUTHENTICATED as UNAUTHENTICATED, USER_ANONYMOUS as ANONYMOUS,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::request::{RequestInfo, ResourcePath, Target, query};
use crate::status::Error;

/// Whoever sends a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

/// What is asked of authorisation.
#[derive(Clone, Debug)]
pub enum Attributes<'a> {
    Resource {
        verb: &'a str,
        path: &'a ResourcePath,
    },
    NonResource {
        verb: &'a str,
        path: &'a str,
    },
}

// === impl User ===

impl User {
    pub fn anonymous() -> Self {
        Self {
            name: ANONYMOUS.to_owned(),
            groups: vec![UNAUTHENTICATED.to_owned()],
            ..Self::default()
        }
    }

    /// A component of the control plane: `User::component("system:kube-scheduler")`.
    pub fn component(name: &str) -> Self {
        Self::authenticated(name, &[])
    }

    /// `system:serviceaccount:NAMESPACE:NAME`, with the groups every ServiceAccount has.
    pub fn service_account(namespace: &str, name: &str) -> Self {
        let of_namespace = format!("system:serviceaccounts:{namespace}");
        Self::authenticated(
            &format!("system:serviceaccount:{namespace}:{name}"),
            &["system:serviceaccounts", &of_namespace],
        )
    }

    /// What the admin kubeconfig's certificate says.
    pub fn admin() -> Self {
        Self::authenticated("kubernetes-admin", &[MASTERS])
    }

    pub fn authenticated(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|&group| group.to_owned()).collect();
        groups.push(AUTHENTICATED.to_owned());
        Self {
            name: name.to_owned(),
            groups,
            ..Self::default()
        }
    }

    /// From a certificate that the TLS layer has already verified; `None` when it names nobody.
    pub fn from_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?;
        let groups: Vec<&str> = subject
            .iter_organization()
            .filter_map(|organization| organization.as_str().ok())
            .collect();
        let mut user = Self::authenticated(name, &groups);
        let fingerprint = Sha256::digest(der);
        let mut credential = String::from("X509SHA256=");
        for byte in fingerprint {
            credential.push_str(&format!("{byte:02x}"));
        }
        user.extra.insert(
            "authentication.kubernetes.io/credential-id".to_owned(),
            vec![credential],
        );
        Some(user)
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// The user of a request: what the connection said, then impersonation. Unknown credentials are refused, not ignored.
pub fn authenticate(connection: Option<&User>, headers: &HeaderMap) -> Result<User, Error> {
    if connection.is_none()
        && headers
            .get(http::header::AUTHORIZATION)
            .is_some_and(|value| !value.is_empty())
    {
        return Err(Error::unauthorized());
    }
    let user = connection.cloned().unwrap_or_else(User::anonymous);
    match impersonated(headers)? {
        None => Ok(user),
        Some(other) if user.is_in(MASTERS) => Ok(other),
        Some(other) => Err(Error::forbidden(
            "",
            "users",
            &other.name,
            &format!(
                "User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
                user.name
            ),
        )),
    }
}

fn impersonated(headers: &HeaderMap) -> Result<Option<User>, Error> {
    let text = |key: &str| {
        let value = headers.get(key).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let name = text("impersonate-user");
    let groups: Vec<String> = headers
        .get_all("impersonate-group")
        .iter()
        .filter_map(|value| Some(value.to_str().ok()?.to_owned()))
        .collect();
    if name.is_empty() {
        let asked = !groups.is_empty() || headers.contains_key("impersonate-uid");
        return if asked {
            Err(Error::internal(
                "requested impersonation without impersonating a user",
            ))
        } else {
            Ok(None)
        };
    }
    let names: Vec<&str> = groups.iter().map(String::as_str).collect();
    let mut user = if name == ANONYMOUS {
        User::anonymous()
    } else {
        User::authenticated(&name, &names)
    };
    user.uid = text("impersonate-uid");
    for (key, value) in headers {
        if let Some(extra) = key.as_str().strip_prefix("impersonate-extra-")
            && let Ok(value) = value.to_str()
        {
            let extra = query::percent_decode(extra, false);
            user.extra.entry(extra).or_default().push(value.to_owned());
        }
    }
    Ok(Some(user))
}

/// May `user` do this? The one place that decides.
///
/// Differs from Kubernetes: no RBAC yet; `system:masters` and the control plane's own identities may do everything,
/// other authenticated users may look at discovery and ask about themselves, anonymous ones see health and version.
pub fn allowed(user: &User, attributes: &Attributes<'_>) -> bool {
    if user.is_in(MASTERS) || is_component(user) {
        return true;
    }
    let authenticated = user.is_in(AUTHENTICATED);
    match attributes {
        Attributes::NonResource { verb, path } => {
            let first = path.trim_start_matches('/').split('/').next();
            let first = first.unwrap_or_default();
            *verb == "get"
                && (matches!(first, "healthz" | "livez" | "readyz" | "version")
                    || authenticated && matches!(first, "" | "api" | "apis" | "openapi"))
        }
        Attributes::Resource { verb, path } => {
            authenticated
                && *verb == "create"
                && matches!(
                    &*path.resource,
                    "selfsubjectaccessreviews" | "selfsubjectrulesreviews" | "selfsubjectreviews"
                )
        }
    }
}

/// `system:kube-scheduler`, `system:node:n1`, service accounts of kube-system; not those of anybody's pods.
fn is_component(user: &User) -> bool {
    if !user.is_in(AUTHENTICATED) {
        return false;
    }
    match user.name.strip_prefix("system:serviceaccount:") {
        Some(account) => account.starts_with("kube-system:"),
        None => user.name.starts_with("system:") && user.name != ANONYMOUS,
    }
}

/// Refuses with upstream's sentence.
pub fn authorise(user: &User, info: &RequestInfo) -> Result<(), Error> {
    let attributes = match &info.target {
        Target::Resource(path) => Attributes::Resource {
            verb: info.verb,
            path,
        },
        Target::Other => Attributes::NonResource {
            verb: if info.verb == "head" {
                "get"
            } else {
                info.verb
            },
            path: &info.path,
        },
    };
    if allowed(user, &attributes) {
        return Ok(());
    }
    Err(refusal(user, &attributes))
}

fn refusal(user: &User, attributes: &Attributes<'_>) -> Error {
    match attributes {
        Attributes::NonResource { verb, path } => {
            let why = format!("User {:?} cannot {verb} path {path:?}", user.name);
            Error::forbidden("", "", "", &why)
        }
        Attributes::Resource { verb, path } => {
            let resource = match &*path.subresource {
                "" => path.resource.clone(),
                subresource => format!("{}/{subresource}", path.resource),
            };
            let place = if path.namespace.is_empty() {
                "at the cluster scope".to_owned()
            } else {
                format!("in the namespace {:?}", path.namespace)
            };
            let why = format!(
                "User {:?} cannot {verb} resource {resource:?} in API group {:?} {place}",
                user.name, path.group
            );
            let name = if path.name.is_empty() {
                &path.selected_name
            } else {
                &path.name
            };
            Error::forbidden(&path.group, &path.resource, name, &why)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Query;
    use http::Method;

    fn ask(user: &User, method: &Method, path: &str) -> Result<(), String> {
        let info = RequestInfo::parse(method, path, &Query::default());
        authorise(user, &info).map_err(|error| error.message)
    }

    #[test]
    fn anonymous_sees_health_and_version_only() {
        let nobody = User::anonymous();
        for path in ["/healthz", "/livez/ping", "/readyz", "/version"] {
            assert_eq!(ask(&nobody, &Method::GET, path), Ok(()), "{path}");
        }
        assert_eq!(
            ask(&nobody, &Method::GET, "/api/v1/namespaces"),
            Err(r#"namespaces is forbidden: User "system:anonymous" cannot list resource "namespaces" in API group "" at the cluster scope"#.to_owned())
        );
        assert_eq!(
            ask(&nobody, &Method::GET, "/metrics"),
            Err(r#"forbidden: User "system:anonymous" cannot get path "/metrics""#.to_owned())
        );
    }

    #[test]
    fn masters_and_components_do_all_and_pods_accounts_nothing() {
        let path = "/api/v1/namespaces/default/pods";
        for user in [User::admin(), User::component("system:kube-scheduler")] {
            assert_eq!(ask(&user, &Method::DELETE, path), Ok(()), "{}", user.name);
        }
        let pod = User::component("system:serviceaccount:default:default");
        assert_eq!(
            ask(&pod, &Method::GET, path),
            Err(r#"pods is forbidden: User "system:serviceaccount:default:default" cannot list resource "pods" in API group "" in the namespace "default""#.to_owned())
        );
    }

    #[test]
    fn only_masters_impersonate_and_unknown_tokens_are_refused() {
        let mut headers = HeaderMap::new();
        headers.insert("impersonate-user", "bob".parse().expect("a header value"));
        let bob = authenticate(Some(&User::admin()), &headers).expect("masters may");
        assert_eq!(bob.name, "bob");
        assert!(authenticate(Some(&bob), &headers).is_err());
        let mut headers = HeaderMap::new();
        headers.insert("authorization", "Bearer x".parse().expect("a header value"));
        let error = authenticate(None, &headers).expect_err("no such token");
        assert_eq!(error.message, "Unauthorized");
    }
}

//! Who is calling, and may they.
//!
//! A [`User`] comes from the verified client certificate of the connection (CN is the name, O the groups), from a bearer
//! token (a ServiceAccount's, or a bootstrap token), or was put into the request's extensions by an in-process caller;
//! everyone else is `system:anonymous`. [`Access`] holds what decides: `system:masters` may do all, then the node
//! authoriser and RBAC are asked, each an index of the cache that is kept as objects change.

mod access;
mod accounts;
pub mod bootstrap;
mod bootstrap_tokens;
pub(crate) mod graph;
mod impersonation;
mod live;
mod node;
pub mod rbac;
pub mod reviews;
pub mod rules;
pub mod tokens;

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use sha2::{Digest, Sha256};
use types::well_known::{
    GROUP_AUTHENTICATED as AUTHENTICATED, GROUP_MASTERS as MASTERS, GROUP_NODES,
    GROUP_UNAUTHENTICATED as UNAUTHENTICATED, USER_ANONYMOUS as ANONYMOUS,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::request::ResourcePath;

pub use access::Access;
pub(crate) use access::keep;

/// Whoever sends a request.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
    /// Where the connection came from that showed the user's certificate…
    pub address: Option<IpAddr>,
    /// …and when that certificate ends: a handshake is over in a second, a connection may stay for ever.
    pub until: Option<Timestamp>,
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

/// May they, and why.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Decision {
    pub allowed: bool,
    /// Of an allowance only where it was asked for; of a refusal what somebody should know.
    pub reason: String,
}

/// Key of `extra` with the credential's own name.
pub const CREDENTIAL_ID: &str = "authentication.kubernetes.io/credential-id";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

// === impl Attributes ===

impl Attributes<'_> {
    /// Empty: the cluster's scope.
    fn namespace(&self) -> &str {
        match self {
            Self::Resource { path, .. } => &path.namespace,
            Self::NonResource { .. } => "",
        }
    }
}

// === impl Decision ===

impl Decision {
    fn allowed(reason: String) -> Self {
        Self {
            allowed: true,
            reason,
        }
    }

    fn denied(reason: String) -> Self {
        Self {
            allowed: false,
            reason,
        }
    }
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
        let until = certificate.validity().not_after.timestamp();
        user.until = Timestamp::from_second(until).ok();
        let fingerprint = Sha256::digest(der);
        let mut credential = String::from("X509SHA256=");
        for byte in fingerprint {
            credential.push_str(&format!("{byte:02x}"));
        }
        user.extra
            .insert(CREDENTIAL_ID.to_owned(), vec![credential]);
        Some(user)
    }

    /// The namespace and name of a service account: `("default", "robot")`.
    pub fn as_service_account(name: &str) -> Option<(&str, &str)> {
        name.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')
    }

    /// The node this user is: `system:node:n1` in group `system:nodes`.
    pub fn node(&self) -> Option<&str> {
        let name = self.name.strip_prefix("system:node:")?;
        (!name.is_empty() && self.is_in(GROUP_NODES)).then_some(name)
    }

    /// Its certificate is good no longer.
    pub fn has_expired(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until < now)
    }

    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

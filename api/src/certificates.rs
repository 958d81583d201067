//! CertificateSigningRequests of the built-in signers: who is approved without asking, what is signed, what cannot be.
//!
//! [`decide`] is pure; `act` carries it out and owns the task. Several servers may do so at once: every write is at the
//! revision the decision was made on, and all decide the same.
//!
//! | signer | signed when approved and | approved by itself for |
//! | --- | --- | --- |
//! | `kubernetes.io/kube-apiserver-client` | for client auth | nobody |
//! | `kubernetes.io/kube-apiserver-client-kubelet` | a node's name, no alternative names | whoever RBAC lets create `nodeclient` (with a bootstrap token: when no such node is alive), and a node renewing its own |
//! | `kubernetes.io/kubelet-serving` | a node's name, some alternative names | that node, for its name and the addresses in its Node object |
//! | `kubernetes.io/legacy-unknown` | always | nobody |

mod act;
pub mod request;

use std::net::IpAddr;
use std::time::Duration;

use serde_json::Value;
use types::well_known::{GROUP_NODES, NAMESPACE_DEFAULT};

use crate::auth::User;
use crate::kinds::names;
use crate::object::Object;
use request::Request;

pub(crate) use act::run;

pub const GROUP: &str = "certificates.k8s.io";
pub const PLURAL: &str = "certificatesigningrequests";
pub const STORAGE: &str = "certificates.k8s.io/certificatesigningrequests";
pub const API_CLIENT: &str = "kubernetes.io/kube-apiserver-client";
pub const NODE_CLIENT: &str = types::well_known::SIGNER_NODE_CLIENT;
pub const NODE_SERVING: &str = types::well_known::SIGNER_NODE_SERVING;
pub const LEGACY: &str = "kubernetes.io/legacy-unknown";

/// Key of `spec.extra`, written by admission: where the request came from.
pub const REMOTE_ADDRESS: &str = "coracle.dev/remote-address";

/// Users who come with a bootstrap token.
const TOKEN_USER: &str = "system:bootstrap:";

/// Certificates live a year, unless the cluster is told otherwise or a shorter life is asked for, of ten minutes at least.
pub(crate) const LIFETIME: Duration = Duration::from_secs(365 * 86_400);
const SHORTEST: Duration = Duration::from_secs(600);

/// What the decision may know beside the request.
pub trait Facts {
    /// May `user` create this pretended subresource of CertificateSigningRequests?
    fn may(&self, user: &User, subresource: &str) -> bool;
    /// Addresses of type InternalIP and ExternalIP.
    fn addresses(&self, node: &str) -> Vec<IpAddr>;
    /// Is there a node of that name that is ready and was heard of lately?
    fn is_alive(&self, name: &str) -> bool;
    /// Does another node, or the cluster itself, have this address?
    fn is_taken(&self, address: IpAddr, node: &str) -> bool;
    /// Is an API server found at this address?
    fn is_server(&self, address: IpAddr) -> bool;
    /// The longest that a certificate may live here.
    fn longest(&self) -> Duration;
    /// Do clients find an API server by this name?
    fn is_server_name(&self, name: &str) -> bool;
}

/// What is to be done with one request now.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Action {
    /// It is finished, refused, or not ours.
    Leave,
    /// It may be approved once the facts change; somebody may also approve it by hand.
    Wait,
    Approve(&'static str),
    Sign {
        der: Vec<u8>,
        usages: Vec<String>,
        lifetime: Duration,
    },
    /// Condition `Failed`.
    Fail(String),
}

pub fn decide(csr: &Object, facts: &dyn Facts) -> Action {
    let signer = csr.str_at(&["spec", "signerName"]).unwrap_or_default();
    let ours = matches!(signer, API_CLIENT | NODE_CLIENT | NODE_SERVING | LEGACY);
    let signed = csr
        .str_at(&["status", "certificate"])
        .is_some_and(|certificate| !certificate.is_empty());
    let has = |kind: &str| {
        let conditions = csr.list_at(&["status", "conditions"]);
        conditions.iter().any(|condition| condition["type"] == kind)
    };
    if !ours || signed || has("Denied") || has("Failed") || csr.is_deleting() {
        return Action::Leave;
    }
    let request = match Request::parse(csr.str_at(&["spec", "request"]).unwrap_or_default()) {
        Ok(request) => request,
        Err(error) => return Action::Fail(format!("the request cannot be read: {error}")),
    };
    let usages: Vec<String> = csr
        .list_at(&["spec", "usages"])
        .iter()
        .filter_map(|usage| Some(usage.as_str()?.to_owned()))
        .collect();
    let fits = fits(signer, &request, &usages);
    if has("Approved") {
        return match fits {
            Err(why) => Action::Fail(why.to_owned()),
            Ok(()) => Action::Sign {
                lifetime: lifetime(csr.i64_at(&["spec", "expirationSeconds"]), facts.longest()),
                der: request.der,
                usages,
            },
        };
    }
    if fits.is_err() {
        return Action::Leave;
    }
    match signer {
        NODE_CLIENT => approve_client(&request, &requester(csr), facts),
        NODE_SERVING => approve_serving(&request, &requester(csr), came_from(csr), facts),
        _ => Action::Leave,
    }
}

fn lifetime(asked: Option<i64>, longest: Duration) -> Duration {
    let asked = asked.and_then(|seconds| u64::try_from(seconds).ok());
    asked.map_or(longest, |seconds| {
        Duration::from_secs(seconds).max(SHORTEST).min(longest)
    })
}

/// Whoever created the request, as admission wrote it down.
fn requester(csr: &Object) -> User {
    let words = |list: &[Value]| -> Vec<String> {
        let words = list.iter().filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    };
    User {
        name: csr
            .str_at(&["spec", "username"])
            .unwrap_or_default()
            .to_owned(),
        uid: csr.str_at(&["spec", "uid"]).unwrap_or_default().to_owned(),
        groups: words(csr.list_at(&["spec", "groups"])),
        ..User::default()
    }
}

/// Where the connection came from by which it was created.
fn came_from(csr: &Object) -> Option<IpAddr> {
    let [address] = csr.list_at(&["spec", "extra", REMOTE_ADDRESS]) else {
        return None;
    };
    address.as_str()?.parse().ok()
}

/// Is this what the signer signs? The words are upstream's.
fn fits(signer: &str, request: &Request, usages: &[String]) -> Result<(), &'static str> {
    let within = |all: &[&str]| usages.iter().all(|usage| all.contains(&&**usage));
    let has = |usage: &str| usages.iter().any(|own| own == usage);
    let of_a_node = || {
        if request.organizations != [GROUP_NODES] {
            return Err("subject organization is not system:nodes");
        }
        match request.node() {
            Some(_) => Ok(()),
            None => Err("subject common name does not begin with system:node:"),
        }
    };
    match signer {
        API_CLIENT => {
            if has("client auth")
                && within(&["digital signature", "key encipherment", "client auth"])
            {
                Ok(())
            } else {
                Err("usages did not match [digital signature, key encipherment, client auth]")
            }
        }
        NODE_CLIENT => {
            of_a_node()?;
            if !request.dns.is_empty() {
                return Err("DNS subjectAltNames are not allowed");
            }
            if !request.addresses.is_empty() {
                return Err("IP subjectAltNames are not allowed");
            }
            no_other_names(request)?;
            if has("client auth")
                && has("digital signature")
                && within(&["digital signature", "key encipherment", "client auth"])
            {
                Ok(())
            } else {
                Err("usages did not match [key encipherment, digital signature, client auth]")
            }
        }
        NODE_SERVING => {
            of_a_node()?;
            if request.dns.is_empty() && request.addresses.is_empty() {
                return Err("DNS or IP subjectAltName is required");
            }
            no_other_names(request)?;
            if has("server auth")
                && has("digital signature")
                && within(&["digital signature", "key encipherment", "server auth"])
            {
                Ok(())
            } else {
                Err("usages did not match [key encipherment, digital signature, server auth]")
            }
        }
        _ => Ok(()),
    }
}

fn no_other_names(request: &Request) -> Result<(), &'static str> {
    if request.other_names {
        Err("email and URI subjectAltNames are not allowed")
    } else {
        Ok(())
    }
}

/// Differs from Kubernetes: a bootstrap token gets no certificate in the name of a node that is alive, or whoever has one
/// could speak for any node. The request waits: a machine that lost its data is let in again once its old node is not
/// ready, forty seconds at the latest, and a person may approve it at any time.
fn approve_client(request: &Request, by: &User, facts: &dyn Facts) -> Action {
    let Some(node) = request.node().filter(|node| may_be_a_node(node, facts)) else {
        return Action::Leave;
    };
    let own = by.node() == Some(node);
    if own && facts.may(by, "selfnodeclient") {
        return Action::Approve(
            "Auto approving self kubelet client certificate after SubjectAccessReview.",
        );
    }
    // A node renews its own certificate and gets nobody else's, whatever its groups may.
    if by.node().is_none() && facts.may(by, "nodeclient") {
        if by.name.starts_with(TOKEN_USER) && facts.is_alive(node) {
            return Action::Wait;
        }
        return Action::Approve(
            "Auto approving kubelet client certificate after SubjectAccessReview.",
        );
    }
    Action::Wait
}

/// Differs from Kubernetes: upstream leaves every serving certificate to somebody else's judgement. Here a node gets one
/// for its own name, and for the addresses its Node object has if no other node and no part of the cluster has them. Other
/// names in its Node object are its own word, and are somebody else's to approve.
/// Before there is a Node object it gets one for its name alone.
/// An address where an API server is found is only given to whoever asked from there: that is the same machine.
fn approve_serving(
    request: &Request,
    by: &User,
    from: Option<IpAddr>,
    facts: &dyn Facts,
) -> Action {
    let Some(node) = request.node().filter(|node| may_be_a_node(node, facts)) else {
        return Action::Leave;
    };
    if by.node() != Some(node) {
        return Action::Leave;
    }
    let addresses = facts.addresses(node);
    let names_fit = request.dns.iter().all(|name| name == node);
    let addresses_fit = request.addresses.iter().all(|address| {
        let elsewhere = facts.is_server(*address) && from != Some(*address);
        addresses.contains(address) && !elsewhere && !facts.is_taken(*address, node)
    });
    if names_fit && addresses_fit {
        Action::Approve(
            "Auto approving kubelet serving certificate for the node's own name and addresses.",
        )
    } else {
        Action::Wait
    }
}

fn may_be_a_node(name: &str, facts: &dyn Facts) -> bool {
    let taken = is_reserved(name) || facts.is_server_name(name);
    names::dns_subdomain(name).is_empty() && !taken
}

/// Names under which something else than a node is trusted: the API servers, and everything inside the cluster.
fn is_reserved(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    let kubernetes = [
        "kubernetes".to_owned(),
        format!("kubernetes.{NAMESPACE_DEFAULT}"),
    ];
    name == "localhost"
        || name.contains('*')
        || kubernetes.contains(&name)
        || name.ends_with(".svc")
        || name == types::well_known::CLUSTER_DOMAIN
        || name.ends_with(&format!(".{}", types::well_known::CLUSTER_DOMAIN))
}

#[cfg(test)]
mod tests;

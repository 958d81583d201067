//! Carries out what [`super::decide`] says: one task per server that follows requests, and nodes because a request may wait
//! for its Node object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use types::error::chain;
use types::well_known::{NAMESPACE_DEFAULT, NAMESPACE_NODE_LEASE, NAMESPACE_SYSTEM};

use super::request::Request;
use super::{Action, Facts, GROUP, PLURAL, STORAGE, decide};
use crate::auth::{Attributes, User};
use crate::furniture::names_of_servers;
use crate::handlers::{self, Api};
use crate::kinds::strategy::Door;
use crate::object::Object;
use crate::pki::Pki;
use crate::registry::{Change, Registry};
use crate::request::ResourcePath;
use crate::status::{Error, Reason};

const MANAGER: &str = "kube-controller-manager";
/// How often requests that wait are looked at though nothing is known to have changed: RBAC may have.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
const LEASES: &str = "coordination.k8s.io/leases";
/// A node whose lease was written no longer ago than this is alive.
const SILENT: Duration = Duration::from_secs(40);
const RETRY: Duration = Duration::from_secs(5);

/// Requests that may be approved later, by name, and the node each is about.
type Waiting = BTreeMap<String, Option<String>>;

/// Approves and signs until the server stops.
pub(crate) async fn run(api: Arc<Api>, pki: Pki) {
    loop {
        let round = follow(&api, &pki);
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            result = round => if let Err(error) = result {
                tracing::warn!(error = %chain(&error), "Could not work on CertificateSigningRequests");
            }
        }
        // A slow or broken watch: everything is looked at again.
        tokio::select! {
            biased;
            () = api.stopping.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Works until a watch ends.
async fn follow(api: &Api, pki: &Pki) -> Result<(), Error> {
    let snapshot = api.cache.snapshot(STORAGE);
    let mut requests = api.cache.watch(STORAGE, snapshot.revision)?;
    let mut nodes = api.cache.watch("nodes", snapshot.revision)?;
    let mut waiting = Waiting::new();
    for stored in snapshot.iter() {
        look(api, pki, &stored.key.name, &mut waiting).await;
    }
    let mut all_again = Instant::now() + LOOK_AGAIN;
    loop {
        tokio::select! {
            event = requests.next() => {
                let Some(event) = event else { return Ok(()) };
                look(api, pki, &event.object.key.name, &mut waiting).await;
            }
            event = nodes.next() => {
                let Some(event) = event else { return Ok(()) };
                let mut changed = BTreeSet::from([event.object.key.name.to_string()]);
                while let Some(event) = nodes.try_next() {
                    changed.insert(event.object.key.name.to_string());
                }
                for name in of_nodes(&waiting, &changed) {
                    look(api, pki, &name, &mut waiting).await;
                }
            }
            () = tokio::time::sleep_until(all_again) => {
                let names: Vec<String> = waiting.keys().cloned().collect();
                for name in names {
                    look(api, pki, &name, &mut waiting).await;
                }
                all_again = Instant::now() + LOOK_AGAIN;
            }
        }
    }
}

/// Does what is to be done with one request; what fails for now is tried again.
async fn look(api: &Api, pki: &Pki, name: &str, waiting: &mut Waiting) {
    waiting.remove(name);
    // Approving is one write and signing the next; each is decided on the newest state.
    for _ in 0..3 {
        match step(api, pki, name).await {
            Ok(Step::Done) => return,
            Ok(Step::Wait(node)) => {
                waiting.insert(name.to_owned(), node);
                return;
            }
            Ok(Step::Again) => {}
            Err(error) => {
                tracing::warn!(request = name, error = %chain(&error), "Could not work on a CertificateSigningRequest");
                waiting.insert(name.to_owned(), None);
                return;
            }
        }
    }
    waiting.insert(name.to_owned(), None);
}

/// Requests that wait for one of these nodes.
fn of_nodes(waiting: &Waiting, nodes: &BTreeSet<String>) -> Vec<String> {
    let of = waiting
        .iter()
        .filter(|(_, node)| node.as_ref().is_some_and(|node| nodes.contains(node)));
    of.map(|(name, _)| name.clone()).collect()
}

enum Step {
    Done,
    /// For this node, if it is one that names a node.
    Wait(Option<String>),
    Again,
}

async fn step(api: &Api, pki: &Pki, name: &str) -> Result<Step, Error> {
    let kind = api.kinds.find(GROUP, "v1", PLURAL);
    let kind = kind.ok_or_else(|| Error::internal("there are no requests to sign"))?;
    let user = User::service_account(NAMESPACE_SYSTEM, "certificate-controller");
    let mut registry = Registry {
        api,
        kind,
        door: Door::Main,
        namespace: "",
        user: &user,
        manager: MANAGER,
        dry_run: false,
        trusted: false,
        now: handlers::now(),
        warnings: Vec::new(),
    };
    let Ok(stored) = registry.find(name) else {
        return Ok(Step::Done);
    };
    let csr = registry.read(&stored)?;
    let mut new = csr.clone();
    match decide(&csr, &Cluster { api }) {
        Action::Leave => return Ok(Step::Done),
        Action::Wait => {
            let request = Request::parse(csr.str_at(&["spec", "request"]).unwrap_or_default());
            let request = request.ok();
            let node = request.as_ref().and_then(|request| request.node());
            return Ok(Step::Wait(node.map(str::to_owned)));
        }
        Action::Approve(message) => {
            registry.door = Door::Subresource("approval");
            condition(&mut new, "Approved", "AutoApproved", message);
        }
        Action::Sign {
            der,
            usages,
            lifetime,
        } => {
            registry.door = Door::Subresource("status");
            let words: Vec<&str> = usages.iter().map(String::as_str).collect();
            let signed = pki.sign(&der, &words, lifetime, registry.now);
            let signed = signed.map_err(|error| error.to_string());
            match signed.and_then(|pem| says_what_was_asked(&pem, &csr).map(|()| pem)) {
                Ok(pem) => new.set(&["status", "certificate"], STANDARD.encode(pem).into()),
                Err(why) => condition(&mut new, "Failed", "SigningError", &why),
            }
        }
        Action::Fail(why) => {
            registry.door = Door::Subresource("status");
            condition(&mut new, "Failed", "SignerValidationFailure", &why);
        }
    }
    let mut write = |_: Option<&Object>| {
        Ok(Change {
            new: new.clone(),
            owned: false,
        })
    };
    match registry.update(name, "update", false, &mut write).await {
        Ok(_) => Ok(Step::Again),
        // Somebody else decided; look at what it is now.
        Err(error) if error.reason == Reason::Conflict => Ok(Step::Again),
        Err(error) if error.reason == Reason::NotFound => Ok(Step::Done),
        Err(error) => Err(error),
    }
}

fn condition(csr: &mut Object, kind: &str, reason: &str, message: &str) {
    let mut conditions = csr.list_at(&["status", "conditions"]).to_vec();
    conditions.push(json!({
        "type": kind, "status": "True", "reason": reason, "message": message,
    }));
    csr.set(&["status", "conditions"], conditions.into());
}

/// The certificate must name exactly whom the request names: what encoding loses must not go out.
fn says_what_was_asked(pem: &str, csr: &Object) -> Result<(), String> {
    let asked = Request::parse(csr.str_at(&["spec", "request"]).unwrap_or_default())?;
    let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| error.to_string())?;
    let made = User::from_certificate(&der);
    let (name, organizations) = match &made {
        // The last group is everybody's.
        Some(user) => (
            &*user.name,
            user.groups.split_last().map_or(&[][..], |(_, own)| own),
        ),
        None => ("", &[][..]),
    };
    if name != asked.common_name {
        return Err(format!(
            "the certificate would name {name:?} instead of {:?}",
            asked.common_name
        ));
    }
    if organizations != asked.organizations {
        return Err(
            "a subject with more than one organization is not supported by this server yet"
                .to_owned(),
        );
    }
    Ok(())
}

/// The cluster as it is now.
struct Cluster<'a> {
    api: &'a Api,
}

impl Cluster<'_> {
    fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let stored = self.api.cache.find(resource, namespace, name)?;
        serde_json::from_slice(&stored.bytes).ok()
    }
}

/// Addresses in a Node's status.
fn addresses(node: &Value) -> Vec<IpAddr> {
    let entries = node["status"]["addresses"].as_array().into_iter().flatten();
    let addresses =
        entries.filter(|entry| matches!(entry["type"].as_str(), Some("InternalIP" | "ExternalIP")));
    addresses
        .filter_map(|entry| entry["address"].as_str()?.parse().ok())
        .collect()
}

impl Facts for Cluster<'_> {
    fn may(&self, user: &User, subresource: &str) -> bool {
        let path = ResourcePath {
            group: GROUP.to_owned(),
            version: "v1".to_owned(),
            resource: PLURAL.to_owned(),
            subresource: subresource.to_owned(),
            ..ResourcePath::default()
        };
        let asked = Attributes::Resource {
            verb: "create",
            path: &path,
        };
        self.api.access.allows(user, &asked)
    }

    fn addresses(&self, node: &str) -> Vec<IpAddr> {
        let node = self.object("nodes", "", node);
        node.map(|node| addresses(&node)).unwrap_or_default()
    }

    fn is_alive(&self, name: &str) -> bool {
        let node = self.object("nodes", "", name).unwrap_or_default();
        let conditions = node["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let ready =
            |condition: &Value| condition["type"] == "Ready" && condition["status"] == "True";
        if !conditions.any(ready) {
            return false;
        }
        // What the lease says of itself is by the node's clock, which may be slow.
        let lease = self.api.cache.find(LEASES, NAMESPACE_NODE_LEASE, name);
        lease.is_some_and(|lease| lease.revision > self.api.cache.reached_before(SILENT))
    }

    fn longest(&self) -> Duration {
        self.api.settings.cluster_signing_duration
    }

    fn is_server(&self, address: IpAddr) -> bool {
        if address.is_loopback() {
            return false;
        }
        let mut found = vec![self.api.settings.advertised.ip()];
        let endpoints = self.object("endpoints", NAMESPACE_DEFAULT, "kubernetes");
        let endpoints = endpoints.unwrap_or_default();
        for subset in endpoints["subsets"].as_array().into_iter().flatten() {
            let addresses = subset["addresses"].as_array().into_iter().flatten();
            found
                .extend(addresses.filter_map(|entry| entry["ip"].as_str()?.parse::<IpAddr>().ok()));
        }
        found.contains(&address)
    }

    fn is_server_name(&self, name: &str) -> bool {
        let same = |own: &str| own.trim_end_matches('.').eq_ignore_ascii_case(name);
        let mut own = self.api.settings.names.iter();
        own.any(|own| same(own))
            || names_of_servers(&self.api.cache)
                .iter()
                .any(|own| same(own))
    }

    /// Loopback is everybody's: whoever calls it reaches itself. Other nodes' and Services' addresses are theirs. Pods'
    /// addresses are not looked at: they lead through the pod network, where certificates are the tunnel's.
    fn is_taken(&self, address: IpAddr, node: &str) -> bool {
        if address.is_loopback() {
            return false;
        }
        if let IpAddr::V4(v4) = address
            && self.api.settings.service_cidr.contains(&v4)
        {
            return true;
        }
        let nodes = self.api.cache.snapshot("nodes");
        nodes
            .iter()
            .filter(|other| &*other.key.name != node)
            .any(|other| {
                let other: Value = serde_json::from_slice(&other.bytes).unwrap_or_default();
                addresses(&other).contains(&address)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_changes_wakes_only_what_is_about_it() {
        let about = |name: &str, node: Option<&str>| (name.to_owned(), node.map(str::to_owned));
        let waiting = Waiting::from([
            about("a", Some("n1")),
            about("b", Some("n2")),
            about("c", None),
            about("d", Some("n1")),
        ]);
        let changed = BTreeSet::from(["n1".to_owned(), "n3".to_owned()]);
        assert_eq!(of_nodes(&waiting, &changed), ["a", "d"]);
    }
}

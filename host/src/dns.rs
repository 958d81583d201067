//! Names, as pods see them: their own, the cluster's from the network's table, the outside's from other name servers.
//! No packet is sent for a name of the cluster. [`server`] answers everybody else from the same table.
//!
//! [`find`] says where a name leads as far as nobody has to be asked, [`settle`] asks. What is outside is always asked of
//! [`upstream`], by whoever: guests' lookups, their HTTP, Ingress; the DNS server has the same servers and the same memory.
//! What the machine's own hosts file says counts for what the node does in its own name (an Ingress that leads to a name),
//! not for pods: as in Kubernetes they know the cluster, their own hosts file, and DNS.

pub(crate) mod args;
pub(crate) mod files;
mod hosts;
pub(crate) mod search;
pub(crate) mod server;
pub(crate) mod upstream;
pub(crate) mod zone;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom;

use crate::network::table::{Kind, Service};
use crate::network::vnet::Fabric;
use crate::network::{DnsPolicy, PodNetwork, ResolveError, Resolved, SocketError};

use self::zone::{Answer, Zone};

/// An ExternalName may lead to another, this often.
pub(crate) const ALIASES: usize = 8;
/// A name longer than this is nobody's (RFC 1035).
const LONGEST: usize = 253;
/// What a search may take, all questions together.
const DEADLINE: Duration = Duration::from_secs(15);

/// What a name leads to, before anything is asked outside.
#[derive(Debug)]
pub(crate) enum Found {
    /// A Service with endpoints or a ClusterIP: whoever asks for HTTP balances itself.
    Service(Arc<Service>),
    Addresses(Vec<IpAddr>),
    /// Not the cluster's: whether this full name is there is asked outside. When it is not, the search goes on.
    Outside(String, Search),
    Nothing,
}

/// Full names that are left to try, in order.
#[derive(Debug, Default)]
pub(crate) struct Search(VecDeque<String>);

/// Where a search has ended.
#[derive(Debug)]
pub(crate) enum Led {
    Service(Arc<Service>),
    Addresses(Vec<IpAddr>),
    /// This name is outside, and has these addresses.
    Outside(String, Vec<IpAddr>),
}

/// The name as the pod's resolver sees it. Cancel by dropping.
pub(crate) async fn resolve(pod: &PodNetwork, name: &str) -> Resolved {
    // As if nobody answered.
    admit(pod, name)
        .await
        .map_err(|_| ResolveError::Temporary)?;
    match settle(pod, find(pod, name)).await? {
        Led::Addresses(ips) | Led::Outside(_, ips) => Ok(ips),
        Led::Service(service) => {
            let mut ips = zone::addresses(&service);
            // Most programs take the first: not all the same.
            ips.shuffle(&mut rand::rng());
            Some(ips)
                .filter(|ips| !ips.is_empty())
                .ok_or(ResolveError::NotFound)
        }
    }
}

/// Goes on until a name is there. Cancel by dropping.
pub(crate) async fn settle(pod: &PodNetwork, found: Found) -> Result<Led, ResolveError> {
    let search = async {
        let mut found = found;
        loop {
            match found {
                Found::Service(service) => return Ok(Led::Service(service)),
                Found::Addresses(ips) => return Ok(Led::Addresses(ips)),
                Found::Nothing => return Err(ResolveError::NotFound),
                Found::Outside(name, rest) => {
                    let upstream = &pod.fabric().upstream;
                    match upstream.lookup_for(Some(pod.lookups()), &name).await {
                        Ok(ips) => return Ok(Led::Outside(name, ips)),
                        Err(ResolveError::NotFound) => found = look(pod, rest),
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, search)
        .await
        .unwrap_or(Err(ResolveError::Temporary))
}

/// Whether policies let the pod ask for `name`: what its hosts file says it knows in any case.
pub(crate) async fn admit(pod: &PodNetwork, name: &str) -> Result<(), SocketError> {
    if pod.fabric().policy.is_free(Some(pod), None) {
        return Ok(());
    }
    let name = name.to_ascii_lowercase();
    if own_name(pod, name.trim_end_matches('.')).is_some() {
        return Ok(());
    }
    pod.fabric().admit_dns(pod).await
}

/// As [`resolve`], without asking anybody; for a caller that wants the Service rather than its address.
/// Follows ExternalNames.
pub(crate) fn find(pod: &PodNetwork, name: &str) -> Found {
    let name = name.to_ascii_lowercase();
    if is_none(&name) {
        return Found::Nothing;
    }
    if let Some(ip) = own_name(pod, name.trim_end_matches('.')) {
        return Found::Addresses(vec![ip]);
    }
    let config = &pod.fabric().config;
    let (domain, machine) = (&config.cluster_domain, &config.dns.searches);
    let names = search::candidates(pod.identity(), domain, machine, &name);
    look(pod, Search(names.collect()))
}

fn is_none(name: &str) -> bool {
    name.is_empty() || name.len() > LONGEST
}

/// Where a full name leads, for the node itself. Follows ExternalNames; asks nobody.
pub(crate) fn lead(fabric: &Fabric, name: &str) -> Found {
    let table = Arc::clone(&fabric.services.borrow());
    let namespaces = Arc::clone(&fabric.namespaces.borrow());
    let zone = Zone {
        table: &table,
        namespaces: &namespaces,
        domain: &fabric.config.cluster_domain,
    };
    let mut name = name.trim_end_matches('.').to_ascii_lowercase();
    for _ in 0..ALIASES {
        // An address is no name to lead to.
        if is_none(&name) || name.parse::<IpAddr>().is_ok() {
            break;
        }
        return match zone.answer(&name) {
            Answer::Service(service) => match &service.kind {
                Kind::ExternalName(target) => {
                    name = target.trim_end_matches('.').to_ascii_lowercase();
                    continue;
                }
                _ => Found::Service(Arc::clone(service)),
            },
            Answer::Hosts(_, hosts) => {
                Found::Addresses(hosts.iter().map(|host| host.address).collect())
            }
            Answer::Pod(ip) => Found::Addresses(vec![ip]),
            Answer::NotOurs => Found::Outside(name, Search::default()),
            _ => Found::Nothing,
        };
    }
    Found::Nothing
}

/// The first of the names that is the cluster's and there, or that only others can tell about. An ExternalName ends the
/// search: its target is one name, whatever the pod's search list and hosts file say.
fn look(pod: &PodNetwork, mut search: Search) -> Found {
    let fabric = pod.fabric();
    let table = Arc::clone(&fabric.services.borrow());
    let namespaces = Arc::clone(&fabric.namespaces.borrow());
    let zone = Zone {
        table: &table,
        namespaces: &namespaces,
        domain: &fabric.config.cluster_domain,
    };
    let mut aliases = 0;
    while let Some(name) = search.0.pop_front() {
        if pod.identity().dns_policy == DnsPolicy::Default {
            // The node's servers know nothing of the cluster's zone.
            return Found::Outside(name, search);
        }
        match zone.answer(&name) {
            Answer::Service(service) => match &service.kind {
                // An address is no name to lead to.
                Kind::ExternalName(target) if target.parse::<IpAddr>().is_ok() => {}
                Kind::ExternalName(target) => {
                    let target = target.trim_end_matches('.').to_ascii_lowercase();
                    aliases += 1;
                    if aliases > ALIASES || is_none(&target) {
                        return Found::Nothing;
                    }
                    if upstream::is_loopback(&target) {
                        // The pod's, not the node's.
                        return Found::Addresses(vec![Ipv4Addr::LOCALHOST.into()]);
                    }
                    search = Search(VecDeque::from([target]));
                }
                // A headless Service without endpoints has no records: the search goes on, as at any resolver.
                Kind::Headless if service.hosts.is_empty() => {}
                _ => return Found::Service(Arc::clone(service)),
            },
            Answer::Hosts(_, hosts) => {
                let mut ips: Vec<IpAddr> = hosts.iter().map(|host| host.address).collect();
                ips.dedup();
                return Found::Addresses(ips);
            }
            Answer::Pod(ip) => return Found::Addresses(vec![ip]),
            Answer::NameServer => {
                if let Some(server) = fabric.dns.address() {
                    return Found::Addresses(vec![server.ip()]);
                }
            }
            Answer::NotOurs => return Found::Outside(name, search),
            Answer::Port(_)
            | Answer::Apex
            | Answer::Version
            | Answer::NoData
            | Answer::NxDomain => {}
        }
    }
    Found::Nothing
}

/// What the pod's hosts file would say, and literals.
fn own_name(pod: &PodNetwork, name: &str) -> Option<IpAddr> {
    if let Ok(ip) = name.parse() {
        return Some(ip);
    }
    if upstream::is_loopback(name) {
        return Some(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    let identity = pod.identity();
    let hostname = if identity.hostname.is_empty() {
        &identity.name
    } else {
        &identity.hostname
    };
    if name.eq_ignore_ascii_case(hostname) || own_fqdn(pod, hostname, name) {
        return Some(IpAddr::V4(pod.address()));
    }
    identity
        .host_aliases
        .iter()
        .find(|(_, names)| names.iter().any(|alias| name.eq_ignore_ascii_case(alias)))
        .map(|(ip, _)| *ip)
}

/// `hostname.subdomain.ns.svc.domain`: a pod knows itself by it before it is ready and DNS does.
fn own_fqdn(pod: &PodNetwork, hostname: &str, name: &str) -> bool {
    let identity = pod.identity();
    let Some(subdomain) = &identity.subdomain else {
        return false;
    };
    let domain = &pod.fabric().config.cluster_domain;
    name == format!("{hostname}.{subdomain}.{}.svc.{domain}", identity.namespace)
}

// === impl Found ===

impl Found {
    /// What is outside decides whether this is it, or another name.
    pub(crate) fn goes_on(&self) -> bool {
        matches!(self, Self::Outside(_, rest) if !rest.0.is_empty())
    }
}

// === impl Led ===

impl Led {
    /// For a caller to whom the name says enough.
    pub(crate) fn found(self) -> Found {
        match self {
            Self::Service(service) => Found::Service(service),
            Self::Addresses(ips) => Found::Addresses(ips),
            Self::Outside(name, _) => Found::Outside(name, Search::default()),
        }
    }
}

//! Names, as pods see them: their own, the cluster's from the network's table, the outside's from the system.
//! No packet is sent for a name of the cluster. [`server`] answers everybody else from the same table.

pub(crate) mod args;
pub(crate) mod files;
pub(crate) mod search;
pub(crate) mod server;
pub(crate) mod upstream;
pub(crate) mod zone;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use rand::seq::SliceRandom;

use crate::network::table::{Kind, Service};
use crate::network::vnet::Fabric;
use crate::network::{DnsPolicy, PodNetwork, ResolveError, Resolved, SocketError};

use self::zone::{Answer, Zone};

/// An ExternalName may lead to another, this often.
pub(crate) const ALIASES: usize = 8;
/// A name longer than this is nobody's (RFC 1035).
const LONGEST: usize = 253;

/// What a name leads to, before anything is asked outside.
#[derive(Debug)]
pub(crate) enum Found {
    /// A Service with endpoints or a ClusterIP: whoever asks for HTTP balances itself.
    Service(Arc<Service>),
    Addresses(Vec<IpAddr>),
    /// Not the cluster's: full names to ask the system for, in order.
    Outside(Vec<String>),
    Nothing,
}

/// The name as the pod's resolver sees it. Cancel by dropping.
pub(crate) async fn resolve(pod: &PodNetwork, name: &str) -> Resolved {
    // As if nobody answered.
    admit(pod, name)
        .await
        .map_err(|_| ResolveError::Temporary)?;
    match find(pod, name) {
        Found::Addresses(ips) => Ok(ips),
        Found::Service(service) => {
            let mut ips = zone::addresses(&service);
            // Most programs take the first: not all the same.
            ips.shuffle(&mut rand::rng());
            Some(ips)
                .filter(|ips| !ips.is_empty())
                .ok_or(ResolveError::NotFound)
        }
        Found::Outside(names) => outside(pod, &names).await.map(|(_, ips)| ips),
        Found::Nothing => Err(ResolveError::NotFound),
    }
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

/// The first of `names` the system knows, with its addresses.
pub(crate) async fn outside<'a>(
    pod: &PodNetwork,
    names: &'a [String],
) -> Result<(&'a str, Vec<IpAddr>), ResolveError> {
    let Ok(_permit) = pod.lookups().acquire().await else {
        return Err(ResolveError::Temporary);
    };
    for name in names {
        match pod.fabric().upstream.lookup(name).await {
            Ok(ips) => return Ok((name, ips)),
            Err(ResolveError::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Err(ResolveError::NotFound)
}

/// As [`resolve`], without asking anybody; for a caller that wants the Service rather than its address.
/// Follows ExternalNames.
pub(crate) fn find(pod: &PodNetwork, name: &str) -> Found {
    let fabric = pod.fabric();
    let table = Arc::clone(&fabric.services.borrow());
    let namespaces = Arc::clone(&fabric.namespaces.borrow());
    let zone = Zone {
        table: &table,
        namespaces: &namespaces,
        domain: &fabric.config.cluster_domain,
    };
    let mut name = name.to_ascii_lowercase();
    for _ in 0..ALIASES {
        if name.is_empty() || name.len() > LONGEST {
            break;
        }
        if let Some(ip) = own_name(pod, name.trim_end_matches('.')) {
            return Found::Addresses(vec![ip]);
        }
        match look(zone, pod, &name) {
            Ok(found) => return found,
            Err(target) => name = target,
        }
    }
    Found::Nothing
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
        if name.is_empty() || name.len() > LONGEST || name.parse::<IpAddr>().is_ok() {
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
            Answer::NotOurs => Found::Outside(vec![name]),
            _ => Found::Nothing,
        };
    }
    Found::Nothing
}

/// `Err` is the name an ExternalName leads to.
fn look(zone: Zone<'_>, pod: &PodNetwork, name: &str) -> Result<Found, String> {
    let identity = pod.identity();
    let mut outside = Vec::new();
    for candidate in search::candidates(identity, zone.domain, name) {
        if identity.dns_policy == DnsPolicy::Default {
            // The node's servers know nothing of the cluster's zone.
            outside.push(candidate);
            continue;
        }
        match zone.answer(&candidate) {
            Answer::Service(service) => match &service.kind {
                // An address is no name to lead to.
                Kind::ExternalName(target) if target.parse::<IpAddr>().is_ok() => {}
                Kind::ExternalName(target) => return Err(target.to_ascii_lowercase()),
                // A headless Service without endpoints has no records: the search goes on, as at any resolver.
                Kind::Headless if service.hosts.is_empty() => {}
                _ => return Ok(Found::Service(Arc::clone(service))),
            },
            Answer::Hosts(_, hosts) => {
                let mut ips: Vec<IpAddr> = hosts.iter().map(|host| host.address).collect();
                ips.dedup();
                return Ok(Found::Addresses(ips));
            }
            Answer::Pod(ip) => return Ok(Found::Addresses(vec![ip])),
            Answer::NameServer => {
                if let Some(server) = pod.fabric().dns.address() {
                    return Ok(Found::Addresses(vec![server.ip()]));
                }
            }
            Answer::NotOurs => outside.push(candidate),
            Answer::Port(_)
            | Answer::Apex
            | Answer::Version
            | Answer::NoData
            | Answer::NxDomain => {}
        }
    }
    Ok(if outside.is_empty() {
        Found::Nothing
    } else {
        Found::Outside(outside)
    })
}

/// What the pod's hosts file would say, and literals.
fn own_name(pod: &PodNetwork, name: &str) -> Option<IpAddr> {
    if let Ok(ip) = name.parse() {
        return Some(ip);
    }
    if name == "localhost" || name.ends_with(".localhost") {
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

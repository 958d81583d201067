//! Names outside the cluster, for pods' programs and for the node itself: asked of the servers that the DNS server asks, with
//! its memory. A lookup takes no thread, and what a caller gives up leaves nothing behind. Never looks at the cluster's zone.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::sync::Semaphore;

use super::hosts::Hosts;
use super::server::{Forward, Reply};
use crate::network::{ResolveError, Resolved};

/// Lookups of all callers, of two questions each; more of them wait.
const AT_ONCE: usize = 256;
const DEADLINE: Duration = Duration::from_secs(10);
/// A name may lead to another, this often, in one answer.
const ALIASES: usize = 16;

tokio::task_local! {
    /// The places for lookups of the pod that is being served.
    static PLACES: Arc<Semaphore>;
}

pub(crate) struct Upstream {
    forward: Arc<Forward>,
    hosts: Hosts,
    permits: Semaphore,
}

/// Lookups that begin inside `work` take one of these places besides: for libraries that look names up by themselves.
pub(crate) async fn counted<F: Future>(places: &Arc<Semaphore>, work: F) -> F::Output {
    PLACES.scope(Arc::clone(places), work).await
}

/// Who pays for a lookup that begins here.
pub(crate) fn places() -> Option<Arc<Semaphore>> {
    PLACES.try_with(Arc::clone).ok()
}

// === impl Upstream ===

impl Upstream {
    pub(crate) fn new(forward: Arc<Forward>) -> Self {
        Self {
            forward,
            hosts: Hosts::default(),
            permits: Semaphore::new(AT_ONCE),
        }
    }

    /// Addresses of a full name, IPv4 first: pods have no IPv6 address of their own. Cancel by dropping.
    pub(crate) async fn lookup(&self, name: &str) -> Resolved {
        tokio::time::timeout(DEADLINE, self.ask(name))
            .await
            .unwrap_or(Err(ResolveError::Temporary))
    }

    /// As [`Upstream::lookup`], taking one of `places` first.
    pub(crate) async fn lookup_for(&self, places: Option<&Semaphore>, name: &str) -> Resolved {
        let lookup = async {
            let _place = match places {
                Some(places) => Some(places.acquire().await),
                None => None,
            };
            self.ask(name).await
        };
        tokio::time::timeout(DEADLINE, lookup)
            .await
            .unwrap_or(Err(ResolveError::Temporary))
    }

    /// What the machine's own hosts file says, for what the node does in its own name. Pods do not see it.
    pub(crate) async fn of_machine(&self, name: &str) -> Option<Vec<IpAddr>> {
        self.hosts.get(name).await
    }

    async fn ask(&self, name: &str) -> Resolved {
        let name = name.trim_end_matches('.');
        if let Ok(ip) = name.parse() {
            return Ok(vec![ip]);
        }
        if is_loopback(name) {
            return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
        }
        let Some(name) = Name::from_ascii(name).ok().filter(|name| !name.is_root()) else {
            return Err(ResolveError::NotFound);
        };
        let name = {
            let mut name = name.to_lowercase();
            name.set_fqdn(true);
            name
        };
        let Ok(_permit) = self.permits.acquire().await else {
            return Err(ResolveError::Temporary);
        };
        let (four, six) = tokio::join!(
            self.addresses(&name, RecordType::A),
            self.addresses(&name, RecordType::AAAA)
        );
        match (four, six) {
            (Ok(four), Ok(six)) => Some([four, six].concat()),
            // Half an answer is one, when it says something.
            (Ok(some), Err(())) | (Err(()), Ok(some)) => Some(some).filter(|ips| !ips.is_empty()),
            (Err(()), Err(())) => None,
        }
        .ok_or(ResolveError::Temporary)
        .and_then(|ips| match ips.is_empty() {
            true => Err(ResolveError::NotFound),
            false => Ok(ips),
        })
    }

    /// None, when there are none; `Err`, when nobody knows.
    async fn addresses(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, ()> {
        let reply = self
            .forward
            .ask_plainly(&Query::query(name.clone(), kind))
            .await;
        match reply.code {
            ResponseCode::NoError => Ok(addresses(&reply, name)),
            ResponseCode::NXDomain => Ok(Vec::new()),
            _ => Err(()),
        }
    }
}

/// The addresses an answer has for `name`, or for what it says `name` is.
fn addresses(reply: &Reply, name: &Name) -> Vec<IpAddr> {
    let mut name = name;
    for _ in 0..ALIASES {
        let alias = reply.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name == *name => Some(&target.0),
            _ => None,
        });
        match alias {
            Some(target) => name = target,
            None => break,
        }
    }
    let own = reply.answers.iter().filter(|record| record.name == *name);
    let mut ips: Vec<IpAddr> = own
        .filter_map(|record| match &record.data {
            RData::A(ip) => Some(IpAddr::V4(ip.0)),
            RData::AAAA(ip) => Some(IpAddr::V6(ip.0)),
            _ => None,
        })
        .collect();
    ips.dedup();
    ips
}

/// Nobody needs to be asked (RFC 6761).
pub(crate) fn is_loopback(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    last.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::Record;
    use hickory_proto::rr::rdata::{A, CNAME};

    use super::*;

    #[test]
    fn an_answer_is_followed_from_name_to_name() {
        let name = |text: &str| Name::from_ascii(text).unwrap();
        let address = |owner: &str, last| {
            Record::from_rdata(name(owner), 5, RData::A(A(Ipv4Addr::new(9, 9, 9, last))))
        };
        let alias = |owner: &str, to: &str| {
            Record::from_rdata(name(owner), 5, RData::CNAME(CNAME(name(to))))
        };
        let reply = |answers| Reply {
            answers,
            ..Reply::default()
        };
        let told = reply(vec![
            address("c.example.", 1),
            alias("b.example.", "c.example."),
            alias("a.example.", "B.example."),
            address("other.example.", 2),
        ]);
        let first = |last| vec![IpAddr::from([9, 9, 9, last])];
        assert_eq!(addresses(&told, &name("A.example.")), first(1));
        assert_eq!(addresses(&told, &name("other.example.")), first(2));
        assert!(addresses(&told, &name("none.example.")).is_empty());
        let circle = reply(vec![alias("a.", "b."), alias("b.", "a.")]);
        assert!(addresses(&circle, &name("a.")).is_empty());
    }

    #[test]
    fn names_of_the_loopback_are_not_asked_for() {
        for (name, expected) in [
            ("localhost", true),
            ("LocalHost", true),
            ("a.localhost", true),
            ("localhost.example", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(name), expected, "{name}");
        }
    }
}

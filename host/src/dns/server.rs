//! The node's DNS server: a question's bytes in, an answer's bytes out. Reads the table that guests resolve from; what is
//! not the cluster's is asked of the node's own name servers. Needs no API server while it works.
//!
//! ```text
//!  rim (UDP, TCP) ──┐                          ┌─ records ◄─ zone ◄─ watch<Table>, watch<Namespaces>
//!  vnet (streams) ──┼─► wire::read ─► Dns ─────┤
//!  udp (datagrams) ─┘       wire::write ◄──────┴─ forward ◄─ cache
//! ```
//! Its address inside the cluster is [`Config::cluster_address`]: pods reach it there on port 53, no Service is needed.

mod cache;
mod forward;
mod records;
pub(crate) mod rim;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use hickory_proto::op::{Query, ResponseCode};
use ipnet::Ipv4Net;
use tokio::sync::{Semaphore, watch};

pub(crate) use self::forward::{Forward, searches};
use self::records::{Lookup, Outcome, Settings};
pub(crate) use self::wire::Reply;
pub(crate) use self::wire::Transport;
use self::wire::{Question, Rejected};
use super::zone::{Reverse, Zone};
use crate::network::namespaces::Namespaces;
use crate::network::table::Table;

/// Questions answered at once, by all ways; more are dropped, and clients ask again.
const AT_ONCE: usize = 1_024;
pub(crate) const PORT: u16 = 53;

/// What the server needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where pods find it: `10.96.0.10`. `None`: nowhere.
    pub cluster_address: Option<Ipv4Addr>,
    /// Real addresses it answers at, UDP and TCP.
    pub listen: Vec<SocketAddr>,
    /// It goes without those that are taken.
    pub optional: bool,
    /// Servers for names that are not the cluster's, whoever asks; empty means those of the node's `resolv.conf`.
    pub upstream: Vec<SocketAddr>,
    /// The node's own search list: that of pods goes on with it.
    pub searches: Vec<String>,
    /// Seconds an answer about the cluster may be kept, and that there is none.
    pub ttl: u32,
}

/// What the server has done, since it was made.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counted {
    /// Answers by response code: `NOERROR`, `NXDOMAIN`, …
    pub answers: BTreeMap<&'static str, u64>,
    /// Questions sent to other servers, and those answered from what they had said before.
    pub forwarded: u64,
    pub cached: u64,
    /// Answers that were cut short for UDP.
    pub truncated: u64,
    /// Questions that got no answer: too many at once.
    pub dropped: u64,
}

#[derive(Default)]
pub(crate) struct Counts {
    answers: [AtomicU64; CODES.len()],
    truncated: AtomicU64,
    pub(crate) dropped: AtomicU64,
}

/// Response codes that are given here; the last one stands for all others.
const CODES: [(ResponseCode, &str); 8] = [
    (ResponseCode::NoError, "NOERROR"),
    (ResponseCode::NXDomain, "NXDOMAIN"),
    (ResponseCode::ServFail, "SERVFAIL"),
    (ResponseCode::FormErr, "FORMERR"),
    (ResponseCode::NotImp, "NOTIMP"),
    (ResponseCode::Refused, "REFUSED"),
    (ResponseCode::BADVERS, "BADVERS"),
    (ResponseCode::Unknown(0xffff), "OTHER"),
];

pub(crate) struct Dns {
    domain: String,
    settings: Settings,
    tables: watch::Receiver<Arc<Table>>,
    namespaces: watch::Receiver<Arc<Namespaces>>,
    /// Made when an address's name is asked for first, for as long as the table is the same.
    /// Held for as long as that takes, never over an await.
    reverse: Mutex<(Weak<Table>, Arc<Reverse>)>,
    forward: Arc<Forward>,
    permits: Semaphore,
    pub(crate) counts: Counts,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster_address: Some(Ipv4Addr::new(10, 96, 0, 10)),
            listen: Vec::new(),
            optional: false,
            upstream: Vec::new(),
            searches: Vec::new(),
            ttl: 5,
        }
    }
}

// === impl Counted ===

impl Counted {
    /// Prometheus' text format 0.0.4.
    pub(crate) fn prometheus(&self) -> String {
        let mut out = String::new();
        let name = "coracle_dns_responses_total";
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "# HELP {name} Answers of the node's DNS server\n# TYPE {name} counter"
        );
        for (code, count) in &self.answers {
            let _ = writeln!(out, "{name}{{rcode=\"{code}\"}} {count}");
        }
        for (name, help, count) in [
            (
                "coracle_dns_forwarded_total",
                "Questions sent to other servers",
                self.forwarded,
            ),
            (
                "coracle_dns_cached_total",
                "Questions answered from what other servers had said",
                self.cached,
            ),
            (
                "coracle_dns_truncated_total",
                "Answers cut short for UDP",
                self.truncated,
            ),
            (
                "coracle_dns_dropped_total",
                "Questions without an answer: too many at once",
                self.dropped,
            ),
        ] {
            let _ = writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} counter\n{name} {count}"
            );
        }
        out
    }
}

// === impl Dns ===

impl Dns {
    pub(crate) fn new(
        config: &Config,
        domain: &str,
        ranges: Vec<Ipv4Net>,
        tables: watch::Receiver<Arc<Table>>,
        namespaces: watch::Receiver<Arc<Namespaces>>,
    ) -> Self {
        let forward = Arc::new(Forward::new(config.upstream.clone()));
        forward.answers_at(
            config
                .cluster_address
                .map(|ip| SocketAddr::from((ip, PORT))),
        );
        Self {
            domain: domain.to_ascii_lowercase(),
            settings: Settings {
                ttl: config.ttl,
                ranges,
                server: config.cluster_address.map(IpAddr::V4),
            },
            tables,
            namespaces,
            reverse: Mutex::default(),
            forward,
            permits: Semaphore::new(AT_ONCE),
            counts: Counts::default(),
        }
    }

    /// It answers at these real addresses from now on.
    pub(crate) fn answers_at(&self, addresses: &[SocketAddr]) {
        self.forward.answers_at(addresses.iter().copied());
    }

    /// Who asks for it outside.
    pub(crate) fn forward(&self) -> Arc<Forward> {
        Arc::clone(&self.forward)
    }

    /// Where pods find it.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.settings.server.map(|ip| SocketAddr::new(ip, PORT))
    }

    /// `None` when there is nothing to say: it was no question, or there are too many. Cancel by dropping.
    pub(crate) async fn answer(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(_permit) = self.permits.try_acquire() else {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let question = match wire::read(message, transport) {
            Ok(question) => question,
            Err(Rejected(answer)) => {
                let (code, bytes) = answer?;
                self.counts.answered(code);
                return Some(bytes);
            }
        };
        let reply = self.reply(&question).await;
        self.counts.answered(reply.code);
        let written = question.write(reply);
        if written.truncated {
            self.counts.truncated.fetch_add(1, Ordering::Relaxed);
        }
        Some(written.bytes)
    }

    async fn reply(&self, question: &Question) -> Reply {
        let ask = async |query: &Query| {
            let (dnssec_ok, disabled) = (question.dnssec_ok(), question.checking_disabled());
            self.forward.ask(query, dnssec_ok, disabled).await
        };
        match self.look(question) {
            Outcome::Reply(reply) => reply,
            Outcome::NotOurs => ask(question.query()).await,
            Outcome::Follow(mut reply, target) => {
                let mut outside = ask(&Query::query(target, question.kind())).await;
                reply.code = outside.code;
                reply.answers.append(&mut outside.answers);
                reply.authorities = outside.authorities;
                reply
            }
        }
    }

    /// What the cluster says.
    fn look(&self, question: &Question) -> Outcome {
        let table = Arc::clone(&self.tables.borrow());
        let namespaces = Arc::clone(&self.namespaces.borrow());
        let zone = Zone {
            table: &table,
            namespaces: &namespaces,
            domain: &self.domain,
        };
        let lookup = Lookup {
            zone,
            settings: &self.settings,
            kind: question.kind(),
            rng: rand::rng(),
        };
        let outcome = lookup.answer(question.name(), || self.reverse(&table, zone));
        match outcome {
            // Nothing is known yet: that a name is not there would be a guess.
            Outcome::Reply(_) | Outcome::Follow(..) if !table.complete => {
                Outcome::Reply(Reply::of(ResponseCode::ServFail))
            }
            outcome => outcome,
        }
    }

    fn reverse(&self, table: &Arc<Table>, zone: Zone<'_>) -> Arc<Reverse> {
        let mut known = self.reverse.lock().unwrap_or_else(PoisonError::into_inner);
        // A table that is known weakly is not freed, so no other can be where it was.
        if !std::ptr::eq(known.0.as_ptr(), Arc::as_ptr(table)) {
            *known = (Arc::downgrade(table), Arc::new(zone.reverse()));
        }
        Arc::clone(&known.1)
    }

    pub(crate) fn counted(&self) -> Counted {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let codes = CODES.iter().zip(&self.counts.answers);
        Counted {
            answers: codes
                .map(|((_, name), count)| (*name, read(count)))
                .collect(),
            forwarded: read(&self.forward.asked),
            cached: read(&self.forward.cached),
            truncated: read(&self.counts.truncated),
            dropped: read(&self.counts.dropped),
        }
    }
}

// === impl Counts ===

impl Counts {
    fn answered(&self, code: ResponseCode) {
        let known = CODES.iter().position(|(known, _)| *known == code);
        let index = known.unwrap_or(CODES.len() - 1);
        self.answers[index].fetch_add(1, Ordering::Relaxed);
    }
}

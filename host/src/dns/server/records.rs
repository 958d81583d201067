//! Resource records of the cluster's zone: what it says of a name, as an answer to a question. PURE.

use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, HINFO, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::Ipv4Net;
use rand::Rng;
use rand::seq::SliceRandom;

use super::wire::{Reply, plain};
use crate::dns::ALIASES;
use crate::dns::zone::{self, Answer, Pointer, Reverse, Srv, Zone};
use crate::network::table::Kind;

/// The version of "Kubernetes DNS-Based Service Discovery" that is followed here.
const VERSION: &str = "1.1.0";
/// Records of one answer; a message has not room for more.
const MOST: usize = 4_000;

/// What the zone's own records say.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Seconds an answer may be kept, whether there is one or not.
    pub(crate) ttl: u32,
    /// Pod and Service addresses: their names are asked for here.
    pub(crate) ranges: Vec<Ipv4Net>,
    /// Where `ns.dns` is.
    pub(crate) server: Option<IpAddr>,
}

#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Reply),
    /// Ours is how it begins; what the outside says of this name completes it.
    Follow(Reply, Name),
    NotOurs,
}

/// One question about one zone.
pub(crate) struct Lookup<'a, R> {
    pub(crate) zone: Zone<'a>,
    pub(crate) settings: &'a Settings,
    pub(crate) kind: RecordType,
    pub(crate) rng: R,
}

// === impl Lookup ===

impl<R: Rng> Lookup<'_, R> {
    /// `reverse` is asked for only when an address's name is.
    pub(crate) fn answer(mut self, name: &Name, reverse: impl FnOnce() -> Arc<Reverse>) -> Outcome {
        let text = plain(name);
        if text.ends_with(".in-addr.arpa") {
            let ranges = &self.settings.ranges;
            let pointer = self.zone.pointer(&reverse(), ranges, &text);
            return self.pointer(name, &text, pointer);
        }
        let mut reply = Reply {
            authoritative: true,
            ..Reply::default()
        };
        let (mut name, mut text) = (name.clone(), text);
        for _ in 0..ALIASES {
            let found = self.zone.answer(&text);
            let target = match &found {
                Answer::NotOurs if reply.answers.is_empty() => return Outcome::NotOurs,
                Answer::NotOurs => return Outcome::Follow(reply, name),
                Answer::Service(service) => match &service.kind {
                    // An address is no name to lead to.
                    Kind::ExternalName(target) if target.parse::<IpAddr>().is_err() => Some(target),
                    _ => None,
                },
                _ => None,
            };
            let target = target.and_then(|target| absolute(&target.to_ascii_lowercase()));
            let Some(target) = target else {
                self.complete(&mut reply, &name, &found);
                return Outcome::Reply(reply);
            };
            reply
                .answers
                .push(self.record(&name, RData::CNAME(CNAME(target.clone()))));
            if self.kind == RecordType::CNAME {
                return Outcome::Reply(reply);
            }
            text = plain(&target);
            name = target;
        }
        Outcome::Reply(Reply::of(ResponseCode::ServFail))
    }

    /// The records of `name` that were asked for; why there are none.
    fn complete(&mut self, reply: &mut Reply, name: &Name, found: &Answer<'_>) {
        let (data, services) = self.data(found);
        let mut records: Vec<Record> = data
            .into_iter()
            .take(MOST)
            .map(|data| self.record(name, data))
            .collect();
        records.shuffle(&mut self.rng);
        let nothing = records.is_empty() && services.is_empty();
        reply.answers.append(&mut records);
        self.put_srv(reply, name, services);
        if nothing {
            if matches!(found, Answer::NxDomain) {
                reply.code = ResponseCode::NXDomain;
            }
            reply.authorities.extend(self.soa(self.zone.domain));
        }
    }

    fn data(&self, found: &Answer<'_>) -> (Vec<RData>, Vec<Srv>) {
        let all = |_: &str, _| true;
        let mut services = Vec::new();
        let mut data = Vec::new();
        match (found, self.kind) {
            (Answer::NxDomain | Answer::NotOurs, _) => {}
            // Nobody needs all there is (RFC 8482).
            (_, RecordType::ANY) => data.push(RData::HINFO(HINFO::new(
                "RFC8482".to_owned(),
                String::new(),
            ))),
            (Answer::Service(service), RecordType::SRV) => services = self.zone.srv(service, all),
            (Answer::Hosts(service, hosts), RecordType::SRV) => {
                let hosts = hosts.iter();
                services = hosts
                    .flat_map(|host| self.zone.srv_of(service, host, all))
                    .collect();
            }
            (Answer::Port(ports), RecordType::SRV) => services.clone_from(ports),
            (Answer::Service(service), _) => data = self.of_kind(&zone::addresses(service)),
            (Answer::Hosts(_, hosts), _) => {
                let mut ips: Vec<IpAddr> = hosts.iter().map(|host| host.address).collect();
                ips.dedup();
                data = self.of_kind(&ips);
            }
            (Answer::Pod(ip), _) => data = self.of_kind(&[*ip]),
            (Answer::NameServer, _) => data = self.of_kind(self.settings.server.as_slice()),
            (Answer::Version, RecordType::TXT) => {
                data.push(RData::TXT(TXT::new(vec![VERSION.to_owned()])));
            }
            (Answer::Apex, RecordType::SOA) => {
                data.extend(self.soa(self.zone.domain).map(|soa| soa.data));
            }
            (Answer::Apex, RecordType::NS) => {
                data.extend(self.name_server().map(|name| RData::NS(NS(name))));
            }
            (Answer::Port(_) | Answer::Version | Answer::Apex | Answer::NoData, _) => {}
        }
        (data, services)
    }

    /// Addresses as records of the kind that was asked for.
    fn of_kind(&self, ips: &[IpAddr]) -> Vec<RData> {
        let data = |ip: &IpAddr| match (ip, self.kind) {
            (IpAddr::V4(ip), RecordType::A) => Some(RData::A(A(*ip))),
            (IpAddr::V6(ip), RecordType::AAAA) => Some(RData::AAAA(AAAA(*ip))),
            _ => None,
        };
        ips.iter().filter_map(data).collect()
    }

    /// All of the same priority and weight, as a Service's endpoints are; their addresses come along.
    fn put_srv(&mut self, reply: &mut Reply, name: &Name, mut services: Vec<Srv>) {
        services.shuffle(&mut self.rng);
        services.truncate(MOST);
        let weight = u16::try_from(100 / services.len().max(1))
            .unwrap_or(1)
            .max(1);
        let mut told = std::collections::HashSet::new();
        for service in services {
            let Some(target) = absolute(&service.target) else {
                continue;
            };
            let data = SRV::new(0, weight, service.port, target.clone());
            reply.answers.push(self.record(name, RData::SRV(data)));
            for ip in service.addresses {
                if told.insert((service.target.clone(), ip)) {
                    let data = match ip {
                        IpAddr::V4(ip) => RData::A(A(ip)),
                        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
                    };
                    reply.additionals.push(self.record(&target, data));
                }
            }
        }
    }

    fn pointer(&mut self, name: &Name, text: &str, pointer: Pointer) -> Outcome {
        let mut reply = Reply {
            authoritative: true,
            ..Reply::default()
        };
        match pointer {
            Pointer::NotOurs => return Outcome::NotOurs,
            Pointer::NxDomain => reply.code = ResponseCode::NXDomain,
            Pointer::Names(names) if self.kind == RecordType::PTR => {
                let targets = names.iter().filter_map(|name| absolute(name));
                let records = targets.map(|target| self.record(name, RData::PTR(PTR(target))));
                reply.answers = records.collect();
            }
            Pointer::Names(_) | Pointer::NoData => {}
        }
        if reply.answers.is_empty() {
            let apex = zone::reverse_apex(&self.settings.ranges, text);
            reply.authorities.extend(self.soa(&apex));
        }
        Outcome::Reply(reply)
    }

    /// Its serial number never changes: nobody may transfer the zone, so nobody compares it.
    fn soa(&self, apex: &str) -> Option<Record> {
        let ttl = self.settings.ttl;
        let owner = absolute(apex)?;
        let contact = absolute(&format!("hostmaster.{}", self.zone.domain))?;
        let data = SOA::new(self.name_server()?, contact, 1, 7_200, 1_800, 86_400, ttl);
        Some(Record::from_rdata(owner, ttl, RData::SOA(data)))
    }

    fn name_server(&self) -> Option<Name> {
        absolute(&format!("ns.dns.{}", self.zone.domain))
    }

    fn record(&self, name: &Name, data: RData) -> Record {
        Record::from_rdata(name.clone(), self.settings.ttl, data)
    }
}

/// `None` when it is too long to be asked for.
fn absolute(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

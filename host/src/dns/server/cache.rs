//! Answers from outside, for as long as they say and at most [`LONGEST`]. Bounded; the oldest make room. PURE.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

use super::wire::Reply;

/// An answer may be of use to many, but must not outlive what it tells of for long.
const LONGEST: Duration = Duration::from_secs(30);
const ENTRIES: usize = 4_096;
/// Answers with more records are not kept.
const RECORDS: usize = 64;

/// What was asked, as far as the answer depends on it.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(crate) struct Key {
    /// Lower case.
    pub(crate) name: Name,
    pub(crate) kind: RecordType,
    pub(crate) dnssec_ok: bool,
    pub(crate) checking_disabled: bool,
}

#[derive(Default)]
pub(crate) struct Cache {
    entries: HashMap<Key, Entry>,
    /// In the order they came; a key that came again is here twice, with the number of each time.
    order: VecDeque<(Key, u64)>,
    next: u64,
}

struct Entry {
    reply: Reply,
    stored: Instant,
    expires: Instant,
    number: u64,
}

// === impl Cache ===

impl Cache {
    /// With the time that is left in every record.
    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Option<Reply> {
        let entry = self.entries.get(key)?;
        if entry.expires <= now {
            self.entries.remove(key);
            return None;
        }
        let age = u32::try_from((now - entry.stored).as_secs()).unwrap_or(u32::MAX);
        let mut reply = entry.reply.clone();
        for record in records(&mut reply) {
            record.decrement_ttl(age);
        }
        Some(reply)
    }

    pub(crate) fn put(&mut self, key: Key, reply: &Reply, now: Instant) {
        let Some(ttl) = lifetime(reply) else { return };
        let number = self.next;
        self.next += 1;
        self.order.push_back((key.clone(), number));
        let entry = Entry {
            reply: reply.clone(),
            stored: now,
            expires: now + ttl,
            number,
        };
        self.entries.insert(key, entry);
        while self.order.len() > ENTRIES {
            let Some((key, number)) = self.order.pop_front() else {
                break;
            };
            if self.entries.get(&key).is_some_and(|e| e.number == number) {
                self.entries.remove(&key);
            }
        }
    }
}

fn records(reply: &mut Reply) -> impl Iterator<Item = &mut Record> {
    let rest = reply.authorities.iter_mut().chain(&mut reply.additionals);
    reply.answers.iter_mut().chain(rest)
}

/// `None`: not to be kept. What is not there is kept as long as the zone's SOA says (RFC 2308).
fn lifetime(reply: &Reply) -> Option<Duration> {
    let sections = [&reply.answers, &reply.authorities, &reply.additionals];
    if sections.iter().map(|section| section.len()).sum::<usize>() > RECORDS {
        return None;
    }
    let positive = match reply.code {
        ResponseCode::NoError => !reply.answers.is_empty(),
        ResponseCode::NXDomain => false,
        _ => return None,
    };
    let shortest = sections
        .iter()
        .flat_map(|s| s.iter())
        .map(|record| record.ttl)
        .min();
    let seconds = if positive {
        shortest?
    } else {
        let minimum = reply
            .authorities
            .iter()
            .find_map(|record| match &record.data {
                RData::SOA(soa) => Some(soa.minimum),
                _ => None,
            })?;
        shortest?.min(minimum)
    };
    (seconds > 0).then(|| LONGEST.min(Duration::from_secs(seconds.into())))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::rdata::{A, SOA};

    use super::*;

    fn key(name: &str) -> Key {
        Key {
            name: Name::from_ascii(name).unwrap(),
            kind: RecordType::A,
            dnssec_ok: false,
            checking_disabled: false,
        }
    }

    fn reply(ttl: u32) -> Reply {
        let data = RData::A(A(Ipv4Addr::LOCALHOST));
        Reply {
            answers: vec![Record::from_rdata(Name::root(), ttl, data)],
            ..Reply::default()
        }
    }

    fn nothing(ttl: u32, minimum: u32) -> Reply {
        let soa = SOA::new(Name::root(), Name::root(), 1, 1, 1, 1, minimum);
        Reply {
            code: ResponseCode::NXDomain,
            authorities: vec![Record::from_rdata(Name::root(), ttl, RData::SOA(soa))],
            ..Reply::default()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_grows_old_and_is_gone() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key("a."), &reply(10), now);
        let later = |seconds| now + Duration::from_secs(seconds);
        assert_eq!(cache.get(&key("a."), later(4)).unwrap().answers[0].ttl, 6);
        assert!(cache.get(&key("a."), later(10)).is_none());
        cache.put(key("b."), &reply(86_400), now);
        assert!(cache.get(&key("b."), later(29)).is_some());
        assert!(
            cache.get(&key("b."), later(30)).is_none(),
            "no answer is kept for a day"
        );
        cache.put(key("c."), &nothing(20, 7), now);
        assert!(cache.get(&key("c."), later(6)).is_some());
        assert!(cache.get(&key("c."), later(7)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_says_nothing_about_its_age_is_not_kept() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        cache.put(key("a."), &reply(0), now);
        cache.put(key("b."), &Reply::of(ResponseCode::ServFail), now);
        cache.put(key("c."), &Reply::of(ResponseCode::NXDomain), now);
        assert!(cache.entries.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_make_room() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        for n in 0..ENTRIES {
            cache.put(key(&format!("n{n}.")), &reply(30), now);
        }
        cache.put(key("n0."), &reply(30), now);
        cache.put(key("new."), &reply(30), now);
        assert!(cache.entries.len() <= ENTRIES && cache.order.len() <= ENTRIES);
        assert!(cache.get(&key("n0."), now).is_some(), "it came again");
        assert!(cache.get(&key("n1."), now).is_none());
        assert!(cache.get(&key("new."), now).is_some());
    }
}

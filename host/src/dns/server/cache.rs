//! Answers from outside, for as long as they say and at most [`LONGEST`]. Bounded in number and in bytes; the oldest make
//! room. PURE.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::time::Instant;

use super::wire::Reply;

/// An answer may be of use to many, but must not outlive what it tells of for long.
const LONGEST: Duration = Duration::from_secs(30);
const ENTRIES: usize = 4_096;
/// Answers with more records are not kept.
const RECORDS: usize = 64;
/// Nor are those that are larger: who asks for such things may ask again.
const LARGEST: usize = 4 << 10;
/// Of all that is kept.
const BYTES: usize = 4 << 20;
/// What an entry takes beside its name and its answer, about.
const OVERHEAD: usize = 256;

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
    bytes: usize,
}

struct Entry {
    /// As a message: parsed, an answer takes many times what it says it does.
    message: Box<[u8]>,
    stored: Instant,
    expires: Instant,
    number: u64,
}

// === impl Key ===

impl Key {
    /// Bytes of an entry of this key: the order has it too.
    fn size(&self, message: &[u8]) -> usize {
        OVERHEAD + 2 * self.name.len() + message.len()
    }
}

// === impl Cache ===

impl Cache {
    /// With the time that is left in every record.
    pub(crate) fn get(&mut self, key: &Key, now: Instant) -> Option<Reply> {
        let entry = self.entries.get(key)?;
        if entry.expires <= now {
            self.remove(key);
            return None;
        }
        let age = u32::try_from((now - entry.stored).as_secs()).unwrap_or(u32::MAX);
        let message = Message::from_vec(&entry.message).ok()?;
        let mut reply = Reply {
            code: message.metadata.response_code,
            authoritative: false,
            answers: message.answers,
            authorities: message.authorities,
            additionals: message.additionals,
        };
        for record in records(&mut reply) {
            record.decrement_ttl(age);
        }
        Some(reply)
    }

    pub(crate) fn put(&mut self, key: Key, reply: &Reply, now: Instant) {
        let Some(ttl) = lifetime(reply) else { return };
        let Some(message) = message(reply).filter(|message| message.len() <= LARGEST) else {
            return;
        };
        self.remove(&key);
        let number = self.next;
        self.next += 1;
        self.order.push_back((key.clone(), number));
        self.bytes += key.size(&message);
        let entry = Entry {
            message,
            stored: now,
            expires: now + ttl,
            number,
        };
        self.entries.insert(key, entry);
        while self.order.len() > ENTRIES || self.bytes > BYTES {
            let Some((key, number)) = self.order.pop_front() else {
                break;
            };
            if self.entries.get(&key).is_some_and(|e| e.number == number) {
                self.remove(&key);
            }
        }
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.bytes = self.bytes.saturating_sub(key.size(&entry.message));
        }
    }
}

fn message(reply: &Reply) -> Option<Box<[u8]>> {
    let mut message = Message::new(0, MessageType::Response, OpCode::Query);
    message.metadata.response_code = reply.code;
    message.answers.clone_from(&reply.answers);
    message.authorities.clone_from(&reply.authorities);
    message.additionals.clone_from(&reply.additionals);
    Some(message.to_vec().ok()?.into_boxed_slice())
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

    use hickory_proto::rr::rdata::{A, SOA, TXT};

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

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_in_bytes() {
        let (mut cache, now) = (Cache::default(), Instant::now());
        let text = |length: usize| {
            let lines = vec!["x".repeat(200); length / 200];
            Reply {
                answers: vec![Record::from_rdata(
                    Name::root(),
                    30,
                    RData::TXT(TXT::new(lines)),
                )],
                ..Reply::default()
            }
        };
        for n in 0..ENTRIES {
            cache.put(key(&format!("huge{n}.")), &text(60_000), now);
        }
        assert_eq!(
            (cache.entries.len(), cache.bytes),
            (0, 0),
            "too large to be kept"
        );
        for n in 0..ENTRIES {
            cache.put(key(&format!("large{n}.")), &text(3_000), now);
        }
        let held: usize = cache
            .entries
            .iter()
            .map(|(key, e)| key.size(&e.message))
            .sum();
        assert_eq!(held, cache.bytes);
        assert!(held <= BYTES && cache.entries.len() > 1_000, "{held}");
        let last = key(&format!("large{}.", ENTRIES - 1));
        assert!(cache.get(&last, now).is_some() && cache.get(&key("large0."), now).is_none());
        assert!(cache.get(&last, now + LONGEST).is_none());
        assert!(cache.bytes < held, "what has expired counts no longer");
    }
}

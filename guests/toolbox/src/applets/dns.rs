//! DNS messages: one question out, its answer in.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

pub const A: u16 = 1;
pub const AAAA: u16 = 28;
const NS: u16 = 2;
const CNAME: u16 = 5;
const PTR: u16 = 12;
const MX: u16 = 15;
const TXT: u16 = 16;
const SRV: u16 = 33;

/// Pointers followed in one name.
const POINTERS: u32 = 32;

pub fn kind(name: &str) -> Option<u16> {
    Some(match name.to_ascii_lowercase().as_str() {
        "a" => A,
        "aaaa" => AAAA,
        "ns" => NS,
        "cname" => CNAME,
        "ptr" => PTR,
        "mx" => MX,
        "txt" => TXT,
        "srv" => SRV,
        _ => return None,
    })
}

pub fn failure(code: u8) -> String {
    match code {
        1 => "FORMERR".to_owned(),
        2 => "SERVFAIL".to_owned(),
        3 => "NXDOMAIN".to_owned(),
        4 => "NOTIMP".to_owned(),
        5 => "REFUSED".to_owned(),
        code => format!("error {code}"),
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: u8,
    pub records: Vec<Record>,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    name: String,
    data: Data,
}

#[derive(Debug, PartialEq, Eq)]
enum Data {
    V4(Ipv4Addr),
    V6(Ipv6Addr),
    Name {
        what: &'static str,
        name: String,
    },
    Exchange {
        preference: u16,
        name: String,
    },
    Text(String),
    Service {
        priority: u16,
        weight: u16,
        port: u16,
        name: String,
    },
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.data {
            Data::V4(address) => write!(f, "Name:\t{name}\nAddress: {address}"),
            Data::V6(address) => write!(f, "Name:\t{name}\nAddress: {address}"),
            Data::Name { what, name: target } => write!(f, "{name}\t{what} = {target}"),
            Data::Exchange {
                preference,
                name: target,
            } => write!(f, "{name}\tmail exchanger = {preference} {target}"),
            Data::Text(text) => write!(f, "{name}\ttext = \"{text}\""),
            Data::Service {
                priority,
                weight,
                port,
                name: target,
            } => {
                write!(f, "{name}\tservice = {priority} {weight} {port} {target}")
            }
        }
    }
}

pub fn question(id: u16, name: &str, kind: u16) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    out.extend(id.to_be_bytes());
    // Recursion is wanted; one question.
    out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.trim_end_matches('.').split('.') {
        match u8::try_from(label.len()) {
            Ok(length @ 1..=63) => out.push(length),
            _ => return Err(format!("bad name '{name}'")),
        }
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend(kind.to_be_bytes());
    out.extend([0, 1]);
    Ok(out)
}

/// The answer to the question with this id; nothing if it is none.
pub fn answer(id: u16, bytes: &[u8]) -> Option<Answer> {
    let number = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    if number(0)? != id || bytes.get(2)? & 0x80 == 0 {
        return None;
    }
    let code = bytes.get(3)? & 0x0f;
    let mut at = 12;
    for _ in 0..number(4)? {
        at = name(bytes, at)?.1 + 4;
    }
    let mut records = Vec::new();
    for _ in 0..number(6)? {
        let (owner, after) = name(bytes, at)?;
        let kind = number(after)?;
        let length = usize::from(number(after + 8)?);
        let start = after + 10;
        let data = bytes.get(start..start + length)?;
        at = start + length;
        let named = |at: usize| name(bytes, at).map(|(name, _)| name);
        let data = match kind {
            A => Data::V4(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?)),
            AAAA => Data::V6(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?)),
            NS => Data::Name {
                what: "nameserver",
                name: named(start)?,
            },
            CNAME => Data::Name {
                what: "canonical name",
                name: named(start)?,
            },
            PTR => Data::Name {
                what: "name",
                name: named(start)?,
            },
            MX => Data::Exchange {
                preference: number(start)?,
                name: named(start + 2)?,
            },
            TXT => Data::Text(String::from_utf8_lossy(data.get(1..)?).into_owned()),
            SRV => Data::Service {
                priority: number(start)?,
                weight: number(start + 2)?,
                port: number(start + 4)?,
                name: named(start + 6)?,
            },
            _ => continue,
        };
        records.push(Record { name: owner, data });
    }
    Some(Answer { code, records })
}

/// A name, and where it ends in the message.
fn name(bytes: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut end = None;
    let mut pointers = 0;
    loop {
        match *bytes.get(at)? {
            0 => return Some((labels.join("."), end.unwrap_or(at + 1))),
            high if high & 0xc0 == 0xc0 => {
                pointers += 1;
                if pointers > POINTERS {
                    return None;
                }
                end.get_or_insert(at + 2);
                at = usize::from(high & 0x3f) << 8 | usize::from(*bytes.get(at + 1)?);
            }
            length => {
                let label = bytes.get(at + 1..at + 1 + usize::from(length))?;
                labels.push(String::from_utf8_lossy(label).into_owned());
                at += 1 + usize::from(length);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_with_its_pointers() {
        let mut message = question(7, "a.b.", A).unwrap();
        message[2] |= 0x80;
        message[7] = 2;
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 0, 0, 1]);
        message.extend([
            0xc0, 12, 0, 33, 0, 1, 0, 0, 0, 5, 0, 8, 0, 1, 0, 2, 0, 80, 0xc0, 12,
        ]);
        let answer = answer(7, &message).unwrap();
        let text: Vec<String> = answer.records.iter().map(Record::to_string).collect();
        assert_eq!(
            text,
            ["Name:\ta.b\nAddress: 10.0.0.1", "a.b\tservice = 1 2 80 a.b"]
        );
    }

    #[test]
    fn what_is_no_answer_is_not_believed() {
        let mut message = question(7, "a", A).unwrap();
        assert_eq!(answer(7, &message), None);
        message[2] |= 0x80;
        assert_eq!(answer(8, &message), None);
        message[7] = 1;
        assert_eq!(answer(7, &message), None);
        // A name that points to itself.
        let at = message.len() as u8;
        message.extend([0xc0, at, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(answer(7, &message), None);
        assert!(question(1, "a..b", A).is_err() && question(1, &"x".repeat(64), A).is_err());
    }
}

//! An address pool for load balancers, as a flag gives it. PURE.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use ipnet::Ipv4Net;

/// Most addresses in a pool: it is searched one by one.
const MOST: u64 = 65_536;

/// `192.0.2.10-192.0.2.20,192.0.2.64/28`: IPv4 ranges and networks, all of their addresses.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pool {
    text: String,
    /// First and last, in order, without overlap.
    ranges: Vec<(u32, u32)>,
}

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub enum PoolError {
    #[error(
        "{0:?} is neither an IPv4 address, nor a range such as 192.0.2.10-192.0.2.20, nor a network such as 192.0.2.64/28"
    )]
    Part(String),
    #[error("{0:?} ends before it begins")]
    Backwards(String),
    #[error("a pool has at most {MOST} addresses")]
    TooLarge,
}

// === impl Pool ===

impl Pool {
    pub fn contains(&self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let ip = u32::from(ip);
        self.ranges
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&ip))
    }

    /// In order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ranges = self.ranges.iter();
        ranges.flat_map(|(first, last)| (*first..=*last).map(|ip| IpAddr::V4(Ipv4Addr::from(ip))))
    }
}

impl FromStr for Pool {
    type Err = PoolError;

    fn from_str(text: &str) -> Result<Self, PoolError> {
        let mut ranges = Vec::new();
        for part in text.split(',').map(str::trim) {
            ranges.push(range(part)?);
        }
        ranges.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (first, last) in ranges {
            match merged.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        let size: u64 = merged
            .iter()
            .map(|(first, last)| u64::from(last - first) + 1)
            .sum();
        if size > MOST {
            return Err(PoolError::TooLarge);
        }
        Ok(Self {
            text: text.to_owned(),
            ranges: merged,
        })
    }
}

fn range(part: &str) -> Result<(u32, u32), PoolError> {
    let address = |text: &str| text.trim().parse::<Ipv4Addr>().map(u32::from);
    let unreadable = |_| PoolError::Part(part.to_owned());
    if let Some((first, last)) = part.split_once('-') {
        let (first, last) = (
            address(first).map_err(unreadable)?,
            address(last).map_err(unreadable)?,
        );
        if last < first {
            return Err(PoolError::Backwards(part.to_owned()));
        }
        return Ok((first, last));
    }
    if part.contains('/') {
        let net: Ipv4Net = part.parse().map_err(|_| PoolError::Part(part.to_owned()))?;
        return Ok((u32::from(net.network()), u32::from(net.broadcast())));
    }
    let only = address(part).map_err(unreadable)?;
    Ok((only, only))
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_networks_are_read_and_merged() {
        let pool: Pool = "192.0.2.10-192.0.2.12, 192.0.2.64/30,192.0.2.11"
            .parse()
            .expect("a pool");
        let all: Vec<String> = pool.addresses().map(|ip| ip.to_string()).collect();
        assert_eq!(
            all,
            [
                "192.0.2.10",
                "192.0.2.11",
                "192.0.2.12",
                "192.0.2.64",
                "192.0.2.65",
                "192.0.2.66",
                "192.0.2.67"
            ]
        );
        assert!(pool.contains(IpAddr::from([192, 0, 2, 67])));
        assert!(!pool.contains(IpAddr::from([192, 0, 2, 68])));
    }

    #[test]
    fn what_is_no_pool_is_refused_with_the_reason() {
        let refused = |text: &str| text.parse::<Pool>().expect_err("refused");
        assert_eq!(refused("x"), PoolError::Part("x".to_owned()));
        assert_eq!(refused(""), PoolError::Part(String::new()));
        assert_eq!(
            refused("192.0.2.9-192.0.2.1"),
            PoolError::Backwards("192.0.2.9-192.0.2.1".to_owned())
        );
        assert_eq!(
            refused("2001:db8::/64"),
            PoolError::Part("2001:db8::/64".to_owned())
        );
        assert_eq!(refused("10.0.0.0/8"), PoolError::TooLarge);
    }
}

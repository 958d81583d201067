//! Which pod addresses of the node's CIDR are free. Pure; owned by the fabric behind its lock.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// Hands out host addresses of a CIDR, except the network's own, the first (the node's) and the broadcast address.
/// A freed address is the last to come again, so that a late packet rarely meets a stranger.
pub(crate) struct Addresses {
    cidr: Ipv4Net,
    taken: HashSet<u32>,
    /// Offset from the network address where the search starts.
    next: u32,
}

const FIRST: u32 = 2;

impl Addresses {
    pub(crate) fn new(cidr: Ipv4Net) -> Self {
        Self {
            cidr,
            taken: HashSet::new(),
            next: FIRST,
        }
    }

    /// The node's own address: what pods see as the peer of a probe.
    pub(crate) fn node(cidr: Ipv4Net) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(cidr.network()) + 1)
    }

    /// `None` when all are taken.
    pub(crate) fn allocate(&mut self) -> Option<Ipv4Addr> {
        let base = u32::from(self.cidr.network());
        let end = u32::from(self.cidr.broadcast()) - base;
        let count = end.checked_sub(FIRST)?;
        for step in 0..count {
            let offset = FIRST + (self.next - FIRST + step) % count;
            if self.taken.insert(base + offset) {
                self.next = if offset + 1 >= end { FIRST } else { offset + 1 };
                return Some(Ipv4Addr::from(base + offset));
            }
        }
        None
    }

    /// False when it is taken or not one this node may give.
    pub(crate) fn claim(&mut self, address: Ipv4Addr) -> bool {
        let (base, number) = (u32::from(self.cidr.network()), u32::from(address));
        let last = u32::from(self.cidr.broadcast());
        number >= base + FIRST && number < last && self.taken.insert(number)
    }

    pub(crate) fn free(&mut self, address: Ipv4Addr) {
        self.taken.remove(&u32::from(address));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_address_once_then_none_then_the_freed_one() {
        let mut addresses = Addresses::new("100.64.0.0/29".parse().unwrap());
        let all: Vec<_> = std::iter::from_fn(|| addresses.allocate()).collect();
        assert_eq!(all.len(), 5, "{all:?}");
        assert_eq!(all[0], Ipv4Addr::new(100, 64, 0, 2));
        assert_eq!(all[4], Ipv4Addr::new(100, 64, 0, 6));
        addresses.free(all[1]);
        assert_eq!(addresses.allocate(), Some(all[1]));
        assert_eq!(addresses.allocate(), None);
    }

    #[test]
    fn a_freed_address_comes_back_last() {
        let mut addresses = Addresses::new("100.64.0.0/29".parse().unwrap());
        let first = addresses.allocate().unwrap();
        addresses.free(first);
        assert_ne!(addresses.allocate(), Some(first));
    }

    #[test]
    fn only_own_addresses_can_be_claimed() {
        let mut addresses = Addresses::new("100.64.0.0/29".parse().unwrap());
        assert!(addresses.claim(Ipv4Addr::new(100, 64, 0, 4)));
        assert!(!addresses.claim(Ipv4Addr::new(100, 64, 0, 4)), "taken");
        assert!(!addresses.claim(Ipv4Addr::new(100, 64, 0, 1)), "the node's");
        assert!(!addresses.claim(Ipv4Addr::new(100, 64, 0, 7)), "broadcast");
        assert!(!addresses.claim(Ipv4Addr::new(10, 0, 0, 1)), "foreign");
    }
}

//! `sessionAffinity: ClientIP`: which endpoint a client has. PURE: takes the time.
//!
//! A client seen before keeps its endpoint. One not seen before gets the endpoint that every node would give it: a hash of
//! both addresses decides, so a client that comes in by another node, or after a restart, finds its session again.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::{Endpoint, Endpoints, Millis, Tried};

/// Clients one Service port remembers; beyond, the longest unseen is forgotten.
const CLIENTS: usize = 10_000;

/// Clients' endpoints.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    clients: HashMap<IpAddr, (SocketAddr, Millis)>,
}

/// The endpoint a client nobody knows yet gets, or `None` when all were tried or there is none.
pub(crate) fn assign<'a>(
    endpoints: &'a Endpoints,
    tried: &Tried,
    now: Millis,
    client: IpAddr,
) -> Option<&'a Arc<Endpoint>> {
    let best = |candidates: &'a [Arc<Endpoint>], usable: &dyn Fn(&Endpoint) -> bool| {
        let usable = candidates.iter().filter(|e| usable(e));
        usable.max_by_key(|e| (weight(client, e.address), e.address))
    };
    let well = endpoints
        .tiers()
        .into_iter()
        .find_map(|tier| best(tier, &|e| e.is_usable(tried, now)));
    if well.is_some() || tried.is_long() {
        return well;
    }
    best(endpoints, &|e| {
        !tried.contains(e.address) && e.is_reachable()
    })
    .or_else(|| best(endpoints, &|e| !tried.contains(e.address)))
}

/// Rendezvous hashing: an endpoint that goes moves only its own clients. The same on every node and in every version.
fn weight(client: IpAddr, endpoint: SocketAddr) -> u64 {
    let number = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    };
    let words = [
        number(client),
        number(endpoint.ip()),
        u128::from(endpoint.port()),
    ];
    words
        .into_iter()
        .fold(0x9e37_79b9_7f4a_7c15, |state, word| {
            #[expect(clippy::cast_possible_truncation, reason = "both halves are mixed in")]
            let (low, high) = (word as u64, (word >> 64) as u64);
            mix(mix(state ^ low) ^ high)
        })
}

/// The finalizer of splitmix64.
fn mix(mut word: u64) -> u64 {
    word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

// === impl Affinity ===

impl Affinity {
    /// The endpoint this client had within `timeout`, if it is still one that takes new clients and was not tried. Seeing
    /// the client renews its time.
    pub(crate) fn recall<'a>(
        &mut self,
        client: IpAddr,
        endpoints: &'a Endpoints,
        tried: &Tried,
        now: Millis,
        timeout: Duration,
    ) -> Option<&'a Arc<Endpoint>> {
        let (address, seen) = self.clients.get_mut(&client)?;
        if Duration::from_millis(now.saturating_sub(*seen)) >= timeout || tried.contains(*address) {
            return None;
        }
        let endpoint = endpoints
            .current()
            .iter()
            .find(|e| e.address == *address && e.is_reachable())?;
        *seen = now;
        Some(endpoint)
    }

    pub(crate) fn remember(&mut self, client: IpAddr, address: SocketAddr, now: Millis) {
        if self.clients.len() >= CLIENTS && !self.clients.contains_key(&client) {
            // A tenth at once, so that the scan is rare.
            let mut seen: Vec<Millis> = self.clients.values().map(|(_, seen)| *seen).collect();
            let (_, oldest, _) = seen.select_nth_unstable(CLIENTS / 10);
            let oldest = *oldest;
            self.clients.retain(|_, (_, seen)| *seen > oldest);
        }
        self.clients.insert(client, (address, now));
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{endpoint, endpoints, remote};
    use super::*;

    fn client(n: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + n).to_be_bytes())
    }

    #[test]
    fn a_client_keeps_its_endpoint_until_the_timeout() {
        let all = endpoints(3);
        let mut affinity = Affinity::default();
        let timeout = Duration::from_secs(10);
        let none = Tried::default();
        affinity.remember(client(1), all[2].address, 0);
        let recalled = affinity.recall(client(1), &all, &none, 9_000, timeout);
        assert_eq!(recalled.unwrap().address, all[2].address);
        assert!(
            affinity
                .recall(client(1), &all, &none, 18_000, timeout)
                .is_some()
        );
        assert!(
            affinity
                .recall(client(1), &all, &none, 28_000, timeout)
                .is_none()
        );
        let fewer = Endpoints::new(all[..2].to_vec(), 0, 2);
        assert!(
            affinity
                .recall(client(1), &fewer, &none, 18_001, timeout)
                .is_none(),
            "an endpoint that is gone is not recalled"
        );
        let leaving = Endpoints::new(all.to_vec(), 0, 2);
        assert!(
            affinity
                .recall(client(1), &leaving, &none, 18_001, timeout)
                .is_none(),
            "nor one that is leaving while others are ready"
        );
    }

    #[test]
    fn a_client_loses_an_endpoint_whose_node_does_not_answer() {
        let (all, nodes) = remote(3);
        let mut affinity = Affinity::default();
        affinity.remember(client(1), all[1].address, 0);
        nodes[1].set_reachable(false);
        let none = Tried::default();
        let timeout = Duration::from_secs(10);
        assert!(
            affinity
                .recall(client(1), &all, &none, 1, timeout)
                .is_none()
        );
        assert_ne!(
            assign(&all, &none, 1, client(1)).unwrap().address,
            all[1].address
        );
    }

    #[test]
    fn every_node_gives_a_client_the_same_endpoint_and_few_move_when_one_goes() {
        let all = endpoints(5);
        let mut reversed = all.to_vec();
        reversed.reverse();
        let elsewhere = Endpoints::new(reversed, 0, 5);
        let fewer = Endpoints::new(all[..4].to_vec(), 0, 4);
        let none = Tried::default();
        let mut given = HashMap::new();
        for n in 0..1_000 {
            let here = assign(&all, &none, 0, client(n)).unwrap().address;
            assert_eq!(
                here,
                assign(&elsewhere, &none, 0, client(n)).unwrap().address
            );
            if here != all[4].address {
                assert_eq!(here, assign(&fewer, &none, 0, client(n)).unwrap().address);
            }
            *given.entry(here).or_insert(0) += 1;
        }
        assert!(given.values().all(|n| (120..=280).contains(n)), "{given:?}");
    }

    #[test]
    fn affinity_is_bounded() {
        let mut affinity = Affinity::default();
        let address = endpoint(1).address;
        for n in 0..30_000_u32 {
            affinity.remember(client(n), address, u64::from(n));
        }
        assert!(affinity.clients.len() <= CLIENTS);
        assert!(affinity.clients.contains_key(&client(29_999)));
    }
}

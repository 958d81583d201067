//! Which endpoint gets a connection or a request. PURE: takes the time and the dice, does no I/O, reads no clock.
//!
//! Power of two choices: of two endpoints drawn at random the one with less in flight. With equal load that is a uniform
//! draw; with a slow endpoint it drains to the others. Endpoints that refused lately, and those this request has tried,
//! are passed over while there is another.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// How long an endpoint that refused is passed over: 500 ms, doubling with each refusal in a row up to 8 s.
const EJECTION: Duration = Duration::from_millis(500);
const EJECTION_DOUBLINGS: u32 = 4;
/// Clients one Service port remembers for `sessionAffinity: ClientIP`; beyond, the longest unseen is forgotten.
const AFFINITY_CLIENTS: usize = 10_000;
/// Endpoints tried for one request, at most.
pub(crate) const ATTEMPTS: usize = 4;

/// Milliseconds on a monotonic clock.
pub(crate) type Millis = u64;

/// How busy one endpoint address is; shared by every Service that has it, and kept when tables are rebuilt.
#[derive(Debug, Default)]
pub(crate) struct Load {
    in_flight: AtomicU32,
    refusals: AtomicU32,
    ejected_until: AtomicU64,
}

/// One thing in flight to an endpoint; dropping it ends it.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Load>);

/// Where a Service sends.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) load: Arc<Load>,
}

/// Endpoints one request has been refused by. At most [`ATTEMPTS`], no allocation.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    addresses: [Option<SocketAddr>; ATTEMPTS],
    count: usize,
}

/// Clients' endpoints for `sessionAffinity: ClientIP`.
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    clients: HashMap<IpAddr, (SocketAddr, Millis)>,
}

/// Picks one of `endpoints`, or `None` when all were tried or there is none. `below(n)` draws from `0..n`.
pub(crate) fn pick<'a>(
    endpoints: &'a [Arc<Endpoint>],
    tried: &Tried,
    now: Millis,
    mut below: impl FnMut(usize) -> usize,
) -> Option<&'a Arc<Endpoint>> {
    let usable = |e: &Endpoint| !tried.contains(e.address) && !e.load.is_ejected(now);
    match endpoints {
        [] => return None,
        [only] => return (!tried.contains(only.address)).then_some(only),
        _ => {}
    }
    let first = below(endpoints.len());
    let mut second = below(endpoints.len() - 1);
    if second >= first {
        second += 1;
    }
    let (first, second) = (&endpoints[first], &endpoints[second]);
    match (usable(first), usable(second)) {
        (true, true) => Some(if second.load.get() < first.load.get() {
            second
        } else {
            first
        }),
        (true, false) => Some(first),
        (false, true) => Some(second),
        // Unlucky: walk from a random place. Ejected ones only if nothing else is left.
        (false, false) => {
            let start = below(endpoints.len());
            let walk = || endpoints[start..].iter().chain(&endpoints[..start]);
            walk()
                .find(|e| usable(e))
                .or_else(|| walk().find(|e| !tried.contains(e.address)))
        }
    }
}

// === impl Load ===

impl Load {
    pub(crate) fn get(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight(Arc::clone(self))
    }

    fn is_ejected(&self, now: Millis) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    /// The endpoint refused a connection.
    pub(crate) fn refused(&self, now: Millis) {
        let times = self.refusals.fetch_add(1, Ordering::Relaxed);
        let pause = EJECTION * 2_u32.pow(times.min(EJECTION_DOUBLINGS));
        let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        self.ejected_until
            .store(now.saturating_add(pause), Ordering::Relaxed);
    }

    /// The endpoint answered.
    pub(crate) fn succeeded(&self) {
        if self.refusals.load(Ordering::Relaxed) != 0 {
            self.refusals.store(0, Ordering::Relaxed);
            self.ejected_until.store(0, Ordering::Relaxed);
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

// === impl Tried ===

impl Tried {
    /// False when no further attempt is allowed.
    pub(crate) fn add(&mut self, address: SocketAddr) -> bool {
        if let Some(slot) = self.addresses.get_mut(self.count) {
            *slot = Some(address);
            self.count += 1;
        }
        self.count < ATTEMPTS
    }

    fn contains(&self, address: SocketAddr) -> bool {
        self.addresses[..self.count].contains(&Some(address))
    }
}

// === impl Affinity ===

impl Affinity {
    /// The endpoint this client had within `timeout`, if it is still among `endpoints` and was not tried. Seeing the
    /// client renews its time.
    pub(crate) fn recall<'a>(
        &mut self,
        client: IpAddr,
        endpoints: &'a [Arc<Endpoint>],
        tried: &Tried,
        now: Millis,
        timeout: Duration,
    ) -> Option<&'a Arc<Endpoint>> {
        let (address, seen) = self.clients.get_mut(&client)?;
        if Duration::from_millis(now.saturating_sub(*seen)) >= timeout || tried.contains(*address) {
            return None;
        }
        let endpoint = endpoints.iter().find(|e| e.address == *address)?;
        *seen = now;
        Some(endpoint)
    }

    pub(crate) fn remember(&mut self, client: IpAddr, address: SocketAddr, now: Millis) {
        if self.clients.len() >= AFFINITY_CLIENTS && !self.clients.contains_key(&client) {
            // A tenth at once, so that the scan is rare.
            let mut seen: Vec<Millis> = self.clients.values().map(|(_, seen)| *seen).collect();
            let (_, oldest, _) = seen.select_nth_unstable(AFFINITY_CLIENTS / 10);
            let oldest = *oldest;
            self.clients.retain(|_, (_, seen)| *seen > oldest);
        }
        self.clients.insert(client, (address, now));
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;

    fn endpoint(n: u8) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            address: SocketAddr::from((Ipv4Addr::new(100, 64, 0, n), 8080)),
            load: Arc::default(),
        })
    }

    fn endpoints(n: u8) -> Vec<Arc<Endpoint>> {
        (0..n).map(endpoint).collect()
    }

    /// Dice from a list, over and over.
    fn dice(throws: Vec<usize>) -> impl FnMut(usize) -> usize {
        let mut throws = throws.into_iter().cycle();
        move |n| throws.next().unwrap_or(0) % n
    }

    #[test]
    fn of_two_the_less_busy_is_taken() {
        let all = endpoints(2);
        let busy = all[0].load.begin();
        for throw in [0, 1] {
            let picked = pick(&all, &Tried::default(), 0, dice(vec![throw, 0])).unwrap();
            assert_eq!(picked.address, all[1].address);
        }
        drop(busy);
        assert_eq!(all[0].load.get(), 0);
    }

    #[test]
    fn an_endpoint_that_refused_is_passed_over_for_a_while() {
        let all = endpoints(3);
        all[1].load.refused(1_000);
        let mut seen = [0; 3];
        for a in 0..3 {
            for b in 0..2 {
                for c in 0..3 {
                    let picked = pick(&all, &Tried::default(), 1_400, dice(vec![a, b, c])).unwrap();
                    seen[all
                        .iter()
                        .position(|e| e.address == picked.address)
                        .unwrap()] += 1;
                }
            }
        }
        assert_eq!(seen[1], 0);
        assert!(!all[1].load.is_ejected(1_500), "it gets another chance");
        all[1].load.refused(2_000);
        assert!(all[1].load.is_ejected(2_999), "the second pause is longer");
        all[1].load.succeeded();
        assert!(!all[1].load.is_ejected(2_999));
    }

    #[test]
    fn when_all_refused_they_are_tried_all_the_same() {
        let all = endpoints(2);
        all.iter().for_each(|e| e.load.refused(0));
        assert!(pick(&all, &Tried::default(), 1, dice(vec![0])).is_some());
    }

    #[test]
    fn a_client_keeps_its_endpoint_until_the_timeout() {
        let all = endpoints(3);
        let mut affinity = Affinity::default();
        let client = IpAddr::from([10, 0, 0, 1]);
        let timeout = Duration::from_secs(10);
        let none = Tried::default();
        affinity.remember(client, all[2].address, 0);
        let recalled = affinity
            .recall(client, &all, &none, 9_000, timeout)
            .unwrap();
        assert_eq!(recalled.address, all[2].address);
        assert!(
            affinity
                .recall(client, &all, &none, 18_000, timeout)
                .is_some()
        );
        assert!(
            affinity
                .recall(client, &all, &none, 28_000, timeout)
                .is_none()
        );
        assert!(
            affinity
                .recall(client, &all[..2], &none, 18_001, timeout)
                .is_none(),
            "an endpoint that is gone is not recalled"
        );
    }

    #[test]
    fn affinity_is_bounded() {
        let mut affinity = Affinity::default();
        let address = endpoint(1).address;
        for n in 0..30_000_u32 {
            affinity.remember(IpAddr::from(n.to_be_bytes()), address, u64::from(n));
        }
        assert!(affinity.clients.len() <= AFFINITY_CLIENTS);
        assert!(
            affinity
                .clients
                .contains_key(&IpAddr::from(29_999_u32.to_be_bytes()))
        );
    }

    proptest! {
        #[test]
        fn never_a_tried_one_and_always_one_when_there_is_one(
            count in 0_u8..8,
            tried_bits in proptest::collection::vec(any::<bool>(), 8),
            ejected in proptest::collection::vec(any::<bool>(), 8),
            throws in proptest::collection::vec(any::<usize>(), 1..8),
        ) {
            let all = endpoints(count);
            let mut tried = Tried::default();
            for (e, _) in all.iter().zip(&tried_bits).filter(|(_, t)| **t).take(ATTEMPTS) {
                tried.add(e.address);
            }
            for (e, _) in all.iter().zip(&ejected).filter(|(_, t)| **t) {
                e.load.refused(0);
            }
            let left: Vec<_> = all.iter().filter(|e| !tried.contains(e.address)).collect();
            match pick(&all, &tried, 1, dice(throws)) {
                Some(picked) => {
                    prop_assert!(!tried.contains(picked.address));
                    if left.iter().any(|e| !e.load.is_ejected(1)) {
                        prop_assert!(!picked.load.is_ejected(1), "a healthy one was left");
                    }
                }
                None => prop_assert!(left.is_empty()),
            }
        }

        #[test]
        fn load_spreads_evenly(count in 1_u8..10, seed in any::<u64>()) {
            let all = endpoints(count);
            let mut state = seed | 1;
            let mut held = Vec::new();
            for _ in 0..usize::from(count) * 50 {
                let picked = pick(&all, &Tried::default(), 0, |n| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    usize::try_from(state % n as u64).unwrap()
                }).unwrap();
                held.push(picked.load.begin());
            }
            for e in &all {
                prop_assert!((40..=60).contains(&e.load.get()), "{} of 50 in flight", e.load.get());
            }
        }
    }
}

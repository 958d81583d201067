//! Which endpoint gets a connection or a request. PURE: takes the time and the dice, does no I/O, reads no clock.
//!
//! Endpoints come in tiers: those the Service's topology prefers here, the other ready ones, and those that are terminating
//! but still serve. A tier is used while one in it is usable: not tried for this request, not ejected, on a node that
//! answers. Within a tier it is power of two choices: of two endpoints drawn at random the one with less in flight; one on
//! this very node wins against one elsewhere unless it is clearly busier. With equal load that is a uniform draw; a slow
//! endpoint drains to the others.

mod affinity;
mod load;
#[cfg(test)]
mod simulation;

use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;

pub(crate) use affinity::{Affinity, assign};
pub(crate) use load::{InFlight, Load};

use super::nodes::Node;

/// Endpoints tried for one request before only those that are well are; and addresses tried, where there are no endpoints.
pub(crate) const ATTEMPTS: usize = 4;
/// Endpoints tried for one request, at most.
const MOST: usize = 32;
/// An endpoint on this node wins while it has at most twice as much in flight as the other, and this much more.
const LOCAL_SLACK: u32 = 2;
/// One draw in so many goes elsewhere all the same: an endpoint nobody asks is an endpoint nobody knows.
const EXPLORE: usize = 8;
/// At most one endpoint in so many is ejected for bad answers, but one always may be, if it is not the only one.
const EJECTED_SHARE: usize = 3;

/// Milliseconds on a monotonic clock.
pub(crate) type Millis = u64;

/// Where a Service sends.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) address: SocketAddr,
    pub(crate) load: Arc<Load>,
    /// `None` when nobody said where it is: outside the cluster, mostly.
    pub(crate) node: Option<Arc<Node>>,
}

/// Where a Service's port leads: all of it as a slice, best first.
#[derive(Debug, Default)]
pub(crate) struct Endpoints {
    all: Box<[Arc<Endpoint>]>,
    /// The first so many are what topology prefers here; none when it prefers nothing.
    near: usize,
    /// The first so many are ready; the others still serve while they terminate.
    ready: usize,
}

/// Endpoints one request has been refused by: the last [`ATTEMPTS`], no allocation. Who refused before them is ejected, and
/// after so many nobody is asked who is.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    addresses: [Option<SocketAddr>; ATTEMPTS],
    /// Of all.
    count: usize,
}

/// Picks one of `endpoints`, or `None` when all were tried or there is none. `below(n)` draws from `0..n`.
pub(crate) fn pick<'a>(
    endpoints: &'a Endpoints,
    tried: &Tried,
    now: Millis,
    mut below: impl FnMut(usize) -> usize,
) -> Option<&'a Arc<Endpoint>> {
    if let [only] = &*endpoints.all {
        return (!tried.contains(only.address)).then_some(only);
    }
    for tier in endpoints.tiers() {
        if let Some(picked) = pick_usable(tier, tried, now, &mut below) {
            return Some(picked);
        }
    }
    if endpoints.is_empty() || tried.is_long() {
        return None;
    }
    // None is known to be well. Rather one that refused lately than one on a node that does not answer, than none.
    let start = below(endpoints.len());
    let walk = || endpoints[start..].iter().chain(&endpoints[..start]);
    walk()
        .find(|e| !tried.contains(e.address) && e.is_reachable())
        .or_else(|| walk().find(|e| !tried.contains(e.address)))
}

fn pick_usable<'a>(
    tier: &'a [Arc<Endpoint>],
    tried: &Tried,
    now: Millis,
    below: &mut impl FnMut(usize) -> usize,
) -> Option<&'a Arc<Endpoint>> {
    match tier {
        [] => return None,
        [only] => return only.is_usable(tried, now).then_some(only),
        _ => {}
    }
    let first = below(tier.len());
    let mut second = below(tier.len() - 1);
    if second >= first {
        second += 1;
    }
    let (first, second) = (&tier[first], &tier[second]);
    match (first.is_usable(tried, now), second.is_usable(tried, now)) {
        (true, true) => Some(better(first, second, below)),
        (true, false) => Some(first),
        (false, true) => Some(second),
        // Unlucky: walk from a random place.
        (false, false) => {
            let start = below(tier.len());
            let mut walk = tier[start..].iter().chain(&tier[..start]);
            walk.find(|e| e.is_usable(tried, now))
        }
    }
}

fn better<'a>(
    first: &'a Arc<Endpoint>,
    second: &'a Arc<Endpoint>,
    below: &mut impl FnMut(usize) -> usize,
) -> &'a Arc<Endpoint> {
    let (here, there) = match (first.is_local(), second.is_local()) {
        (true, false) => (first, second),
        (false, true) => (second, first),
        _ if second.load.get() < first.load.get() => return second,
        _ => return first,
    };
    let (busy_here, busy_there) = (here.load.get(), there.load.get());
    let clearly_busier = busy_here > busy_there.saturating_mul(2).saturating_add(LOCAL_SLACK);
    if clearly_busier || (busy_there <= busy_here && below(EXPLORE) == 0) {
        there
    } else {
        here
    }
}

// === impl Endpoint ===

impl Endpoint {
    pub(crate) fn is_local(&self) -> bool {
        self.node.as_ref().is_some_and(|node| node.local)
    }

    fn is_reachable(&self) -> bool {
        self.node.as_ref().is_none_or(|node| node.is_reachable())
    }

    fn is_usable(&self, tried: &Tried, now: Millis) -> bool {
        if let Some(node) = &self.node {
            self.load.node_returned(node.returns());
        }
        !tried.contains(self.address) && self.is_reachable() && !self.load.is_ejected(now)
    }
}

// === impl Endpoints ===

impl Endpoints {
    /// `all` in order: the first `near` are preferred here, the first `ready` are ready.
    pub(crate) fn new(all: Vec<Arc<Endpoint>>, near: usize, ready: usize) -> Self {
        let ready = ready.min(all.len());
        Self {
            near: near.min(ready),
            ready,
            all: all.into(),
        }
    }

    /// Preferred here, otherwise ready, terminating. Any of them may be empty.
    fn tiers(&self) -> [&[Arc<Endpoint>]; 3] {
        let (near, rest) = self.all.split_at(self.near);
        let (ready, leaving) = rest.split_at(self.ready - self.near);
        [near, ready, leaving]
    }

    /// Those that take new clients: the ready ones, or the terminating ones when none is.
    pub(crate) fn current(&self) -> &[Arc<Endpoint>] {
        match self.ready {
            0 => &self.all,
            ready => &self.all[..ready],
        }
    }

    pub(crate) fn ready(&self) -> &[Arc<Endpoint>] {
        &self.all[..self.ready]
    }

    /// `endpoint` answered with an error of its own, or not at all. Ejects it when that happened often and enough others
    /// are left.
    pub(crate) fn failed(&self, endpoint: &Endpoint, now: Millis) {
        if !endpoint.load.failed() {
            return;
        }
        let current = self.current();
        let others = current.iter().filter(|e| e.address != endpoint.address);
        let ejected = others.filter(|e| e.load.is_ejected(now)).count();
        let most = (current.len() / EJECTED_SHARE).max(1);
        if current.len() > 1 && ejected < most {
            endpoint.load.eject_failing(now);
        }
    }
}

impl Deref for Endpoints {
    type Target = [Arc<Endpoint>];

    fn deref(&self) -> &Self::Target {
        &self.all
    }
}

// === impl Tried ===

impl Tried {
    /// False when no further attempt is allowed.
    pub(crate) fn add(&mut self, address: SocketAddr) -> bool {
        self.addresses[self.count % ATTEMPTS] = Some(address);
        self.count += 1;
        self.count < MOST
    }

    /// So many have refused that only those that are well are asked.
    fn is_long(&self) -> bool {
        self.count >= ATTEMPTS
    }

    fn contains(&self, address: SocketAddr) -> bool {
        self.addresses[..self.count.min(ATTEMPTS)].contains(&Some(address))
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::super::nodes::Nodes;
    use super::*;

    pub(super) fn endpoint(n: u8) -> Arc<Endpoint> {
        on(n, None)
    }

    fn on(n: u8, node: Option<Arc<Node>>) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            address: SocketAddr::from((Ipv4Addr::new(100, 64, 0, n), 8080)),
            load: Arc::default(),
            node,
        })
    }

    pub(super) fn endpoints(n: u8) -> Endpoints {
        Endpoints::new((0..n).map(endpoint).collect(), 0, usize::from(n))
    }

    /// Each on a node of its own; the first of them is here.
    pub(super) fn remote(n: u8) -> (Endpoints, Vec<Arc<Node>>) {
        let known = Nodes::new("node-0");
        let nodes: Vec<_> = (0..n).map(|i| known.get(&format!("node-{i}"))).collect();
        let all = (0..n).map(|i| on(i, Some(Arc::clone(&nodes[usize::from(i)]))));
        (Endpoints::new(all.collect(), 0, usize::from(n)), nodes)
    }

    /// Dice from a list, over and over.
    fn dice(throws: Vec<usize>) -> impl FnMut(usize) -> usize {
        let mut throws = throws.into_iter().cycle();
        move |n| throws.next().unwrap_or(0) % n
    }

    /// Dice as good as any.
    fn random(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed | 1;
        move |n| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % n as u64).unwrap()
        }
    }

    /// How often each is picked in 1,000 draws.
    fn shares(all: &Endpoints, now: Millis) -> Vec<usize> {
        let mut dice = random(7);
        let mut counts = vec![0; all.len()];
        for _ in 0..1_000 {
            let picked = pick(all, &Tried::default(), now, &mut dice).unwrap();
            counts[all
                .iter()
                .position(|e| e.address == picked.address)
                .unwrap()] += 1;
        }
        counts
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
        assert_eq!(shares(&all, 1_400)[1], 0);
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
    fn after_four_refusals_those_that_are_well_are_asked_and_no_others() {
        let all = endpoints(12);
        let mut tried = Tried::default();
        let mut dice = random(3);
        let well = all[7].address;
        let mut asked = 0;
        loop {
            let picked = pick(&all, &tried, 0, &mut dice).expect("the one that is well");
            asked += 1;
            if picked.address == well {
                break;
            }
            picked.load.refused(0);
            assert!(tried.add(picked.address));
        }
        assert!(asked <= 12, "each once: {asked}");
        all.iter().for_each(|e| e.load.refused(0));
        for _ in 0..ATTEMPTS {
            tried.add(well);
        }
        assert!(pick(&all, &tried, 0, &mut dice).is_none());
        assert!(assign(&all, &tried, 0, [10, 0, 0, 1].into()).is_none());
        assert!(pick(&all, &Tried::default(), 0, &mut dice).is_some());
    }

    #[test]
    fn the_local_one_wins_unless_it_is_clearly_busier() {
        let (all, _) = remote(2);
        let shares_idle = shares(&all, 0);
        assert!(
            shares_idle[0] > 800 && shares_idle[1] > 50,
            "{shares_idle:?}"
        );
        let busy: Vec<_> = (0..3).map(|_| all[0].load.begin()).collect();
        assert_eq!(shares(&all, 0)[0], 0, "three here, none there");
        let there = all[1].load.begin();
        assert!(shares(&all, 0)[0] > 800, "three here, one there");
        drop((busy, there));
    }

    #[test]
    fn an_endpoint_on_a_node_that_does_not_answer_is_passed_over() {
        let (all, nodes) = remote(3);
        nodes[1].set_reachable(false);
        assert_eq!(shares(&all, 0)[1], 0);
        all[0].load.refused(0);
        all[2].load.refused(0);
        let shares_left = shares(&all, 1);
        assert_eq!(shares_left[1], 0, "rather one that refused lately");
        nodes[1].set_reachable(true);
        assert_eq!(shares(&all, 1)[1], 1_000);
    }

    #[test]
    fn what_a_node_refused_before_it_came_back_is_forgotten() {
        let (all, nodes) = remote(2);
        for _ in 0..6 {
            all[1].load.refused(0);
        }
        assert_eq!(shares(&all, 4_000)[1], 0, "for seconds");
        nodes[1].set_reachable(false);
        nodes[1].set_reachable(true);
        // It is the less busy one, so that it would be taken.
        let busy: Vec<_> = (0..10).map(|_| all[0].load.begin()).collect();
        assert_eq!(shares(&all, 4_000)[1], 1_000, "at once");
        drop(busy);
        all[1].load.refused(4_000);
        assert_eq!(shares(&all, 4_499)[1], 0, "and begins anew");
        assert!(shares(&all, 4_500)[1] > 0);
    }

    #[test]
    fn tiers_are_used_in_order() {
        let all = Endpoints::new((0..6).map(endpoint).collect(), 2, 4);
        let counts = shares(&all, 0);
        assert!(counts[0] > 400 && counts[1] > 400, "{counts:?}");
        all[0].load.refused(0);
        all[1].load.refused(0);
        let counts = shares(&all, 1);
        assert!(
            counts[2] > 400 && counts[3] > 400,
            "what is ready elsewhere: {counts:?}"
        );
        all[2].load.refused(0);
        all[3].load.refused(0);
        let counts = shares(&all, 1);
        assert!(
            counts[4] > 400 && counts[5] > 400,
            "what still serves: {counts:?}"
        );
    }

    #[test]
    fn bad_answers_eject_a_bounded_share_and_never_the_only_one() {
        let fail = |all: &Endpoints, which: usize, now| {
            for _ in 0..5 {
                all.failed(&all[which], now);
            }
        };
        let one = endpoints(1);
        fail(&one, 0, 0);
        assert!(!one[0].load.is_ejected(0));
        let all = endpoints(6);
        (0..6).for_each(|i| fail(&all, i, 0));
        let ejected = all.iter().filter(|e| e.load.is_ejected(1)).count();
        assert_eq!(ejected, 2, "a third");
        assert!(
            all.iter().all(|e| !e.load.is_ejected(5_000)),
            "all come back"
        );
        fail(&all, 0, 10_000);
        assert!(all[0].load.is_ejected(19_999), "for longer the second time");
        all[1].load.succeeded();
        (0..4).for_each(|_| all.failed(&all[1], 20_000));
        all[1].load.succeeded();
        all.failed(&all[1], 20_000);
        assert!(!all[1].load.is_ejected(20_000), "not five in a row");
    }

    proptest! {
        #[test]
        fn never_a_tried_one_and_always_one_when_there_is_one(
            count in 0_u8..8,
            near in 0_usize..8,
            ready in 0_usize..8,
            tried_bits in proptest::collection::vec(any::<bool>(), 8),
            ejected in proptest::collection::vec(any::<bool>(), 8),
            away in proptest::collection::vec(any::<bool>(), 8),
            throws in proptest::collection::vec(any::<usize>(), 1..8),
        ) {
            let (all, nodes) = remote(count);
            let all = Endpoints::new(all.to_vec(), near, ready);
            let mut tried = Tried::default();
            for (e, _) in all.iter().zip(&tried_bits).filter(|(_, t)| **t).take(ATTEMPTS) {
                tried.add(e.address);
            }
            all.iter().zip(&ejected).filter(|(_, t)| **t).for_each(|(e, _)| e.load.refused(0));
            nodes.iter().zip(&away).for_each(|(node, away)| node.set_reachable(!away));
            let left: Vec<_> = all.iter().filter(|e| !tried.contains(e.address)).collect();
            let steady = assign(&all, &tried, 1, [10, 0, 0, 1].into());
            for picked in [pick(&all, &tried, 1, dice(throws)), steady] {
                let Some(picked) = picked else {
                    let none_well = !left.iter().any(|e| e.is_usable(&tried, 1));
                    prop_assert!(left.is_empty() || tried.is_long() && none_well);
                    continue;
                };
                prop_assert!(!tried.contains(picked.address));
                if left.len() > 1 && left.iter().any(|e| e.is_usable(&tried, 1)) && all.len() > 1 {
                    prop_assert!(picked.is_usable(&tried, 1), "a healthy one was left");
                }
            }
        }

        #[test]
        fn load_spreads_evenly(count in 1_u8..10, seed in any::<u64>()) {
            let all = endpoints(count);
            let mut dice = random(seed);
            let mut held = Vec::new();
            for _ in 0..usize::from(count) * 50 {
                let picked = pick(&all, &Tried::default(), 0, &mut dice).unwrap();
                held.push(picked.load.begin());
            }
            for e in all.iter() {
                prop_assert!((40..=60).contains(&e.load.get()), "{} of 50 in flight", e.load.get());
            }
        }
    }
}

//! Thousands of histories of a Service across nodes, in virtual time, each from a seed: nodes die, links are cut and heal,
//! endpoints turn slow or bad, deployments roll. What the balancer promises is checked at every pick.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::super::nodes::{Node, Nodes};
use super::{Affinity, Endpoint, Endpoints, InFlight, Load, Millis, Tried, assign, pick};

const HISTORIES: u64 = 3_000;
const STEPS: usize = 300;
/// Longer than the longest ejection.
const QUIET: Millis = 100_000;

/// Dice from a seed.
struct Dice(u64);

/// An endpoint as it really is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Truth {
    Well,
    Slow,
    /// Answers every request with an error.
    Bad,
    /// The process has ended: connections are refused.
    Gone,
}

struct World {
    dice: Dice,
    now: Millis,
    nodes: Vec<Arc<Node>>,
    /// Whether the machine runs and the link to it works.
    up: Vec<bool>,
    /// Address → which node, and how it does.
    truth: BTreeMap<SocketAddr, (usize, Truth)>,
    loads: HashMap<SocketAddr, Arc<Load>>,
    endpoints: Endpoints,
    /// What is under way, by when it ends.
    open: BinaryHeap<Reverse<(Millis, u64)>>,
    held: HashMap<u64, InFlight>,
    requests: u64,
    failed: u64,
    affinity: Affinity,
    next_address: u32,
}

// === impl Dice ===

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from((self.next() >> 11) % n as u64).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

// === impl World ===

impl World {
    fn new(seed: u64) -> Self {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let known = Nodes::new("node-0");
        let count = 1 + dice.below(5);
        let mut world = Self {
            nodes: (0..count)
                .map(|i| known.get(&format!("node-{i}")))
                .collect(),
            up: vec![true; count],
            dice,
            now: 0,
            truth: BTreeMap::new(),
            loads: HashMap::new(),
            endpoints: Endpoints::default(),
            open: BinaryHeap::new(),
            held: HashMap::new(),
            requests: 0,
            failed: 0,
            affinity: Affinity::default(),
            next_address: 2,
        };
        for _ in 0..=world.dice.below(9) {
            world.start_pod();
        }
        world.publish();
        world
    }

    fn start_pod(&mut self) {
        let up: Vec<usize> = (0..self.up.len()).filter(|i| self.up[*i]).collect();
        let node = up[self.dice.below(up.len())];
        let address = SocketAddr::from((Ipv4Addr::from(0x6440_0000 + self.next_address), 8080));
        self.next_address += 1;
        self.truth.insert(address, (node, Truth::Well));
    }

    /// The table is rebuilt: loads stay.
    fn publish(&mut self) {
        let all: Vec<Arc<Endpoint>> = self
            .truth
            .iter()
            .map(|(address, (node, _))| {
                Arc::new(Endpoint {
                    address: *address,
                    load: Arc::clone(self.loads.entry(*address).or_default()),
                    node: Some(Arc::clone(&self.nodes[*node])),
                })
            })
            .collect();
        let ready = all.len();
        self.endpoints = Endpoints::new(all, 0, ready);
    }

    /// One thing goes wrong, or right again.
    fn fate(&mut self) {
        let node = self.dice.below(self.nodes.len());
        match self.dice.below(8) {
            // A machine dies or a link is cut; the tunnel notices at once in half the cases, else at the first failure.
            0 if node != 0 => {
                self.up[node] = false;
                if self.dice.one_in(2) {
                    self.nodes[node].set_reachable(false);
                }
            }
            1 => {
                self.up[node] = true;
                self.nodes[node].set_reachable(true);
            }
            2..=4 => {
                let which = self.dice.below(self.truth.len().max(1));
                let truth = [Truth::Slow, Truth::Bad, Truth::Gone][self.dice.below(3)];
                if let Some((_, state)) = self.truth.values_mut().nth(which) {
                    *state = truth;
                }
            }
            5 => self.truth.values_mut().for_each(|(_, state)| {
                if *state != Truth::Gone {
                    *state = Truth::Well;
                }
            }),
            // A step of a rolling update: one more, then the oldest goes. Or an endpoint is found dead and listed no more.
            6 => {
                self.start_pod();
                if self.truth.len() > 2 {
                    self.truth.pop_first();
                }
                self.publish();
            }
            _ => {
                self.truth.retain(|_, (_, state)| *state != Truth::Gone);
                if self.truth.is_empty() {
                    self.start_pod();
                }
                self.publish();
            }
        }
    }

    /// One request, with its attempts; checks every pick.
    fn request(&mut self) {
        let client = IpAddr::from([10, 0, 0, u8::try_from(self.dice.below(20)).unwrap()]);
        let sticky = self.dice.one_in(4);
        let mut tried = Tried::default();
        self.requests += 1;
        loop {
            let Some(endpoint) = self.choose(sticky.then_some(client), &tried) else {
                self.failed += 1;
                return;
            };
            self.check(&endpoint, &tried, sticky);
            let (node, truth) = self
                .truth
                .get(&endpoint.address)
                .copied()
                .unwrap_or((0, Truth::Gone));
            if !self.up[node] {
                // The dial fails, and the tunnel says so.
                self.nodes[node].set_reachable(false);
            }
            let reached = self.up[node] && truth != Truth::Gone;
            if !reached {
                endpoint.load.refused(self.now);
                if !tried.add(endpoint.address) {
                    self.failed += 1;
                    return;
                }
                continue;
            }
            let lasts = match truth {
                Truth::Slow => 2_000,
                _ => 1 + self.dice.next() % 20,
            };
            self.held.insert(self.requests, endpoint.load.begin());
            self.open.push(Reverse((self.now + lasts, self.requests)));
            if truth == Truth::Bad {
                self.bad_answer(&endpoint);
            } else {
                endpoint.load.succeeded();
            }
            return;
        }
    }

    fn choose(&mut self, client: Option<IpAddr>, tried: &Tried) -> Option<Arc<Endpoint>> {
        let Self {
            dice,
            endpoints,
            affinity,
            now,
            ..
        } = self;
        let Some(client) = client else {
            return pick(endpoints, tried, *now, |n| dice.below(n)).cloned();
        };
        let timeout = std::time::Duration::from_secs(10);
        let known = affinity
            .recall(client, endpoints, tried, *now, timeout)
            .cloned();
        known.or_else(|| {
            let given = assign(endpoints, tried, *now, client).cloned()?;
            affinity.remember(client, given.address, *now);
            Some(given)
        })
    }

    /// Nothing goes to an endpoint known to be dead while another is usable. A sticky client may meet one that refused
    /// somebody else lately, never one on a node that does not answer.
    fn check(&self, picked: &Endpoint, tried: &Tried, sticky: bool) {
        assert!(!tried.contains(picked.address), "asked twice");
        let usable = self.endpoints.iter().any(|e| e.is_usable(tried, self.now));
        if usable && self.endpoints.len() > 1 {
            assert!(
                picked.is_reachable(),
                "a node that does not answer was picked"
            );
            assert!(
                sticky || picked.is_usable(tried, self.now),
                "an ejected one was picked"
            );
        }
    }

    /// Bad answers eject only while few are ejected, and never the only one.
    fn bad_answer(&self, endpoint: &Endpoint) {
        let before = endpoint.load.is_ejected(self.now);
        self.endpoints.failed(endpoint, self.now);
        if before || !endpoint.load.is_ejected(self.now) {
            return;
        }
        let all = self.endpoints.len();
        let ejected = self
            .endpoints
            .iter()
            .filter(|e| e.load.is_ejected(self.now));
        assert!(
            all > 1 && ejected.count() <= (all / 3).max(1),
            "too many of {all} are ejected"
        );
    }

    fn advance(&mut self, by: Millis) {
        self.now += by;
        while let Some(Reverse((end, request))) = self.open.peek().copied()
            && end <= self.now
        {
            self.open.pop();
            self.held.remove(&request);
        }
    }

    /// Everything is well again: nobody fails, everybody is asked, and nobody carries much more than another.
    fn recover(&mut self) {
        self.up.fill(true);
        self.nodes.iter().for_each(|node| node.set_reachable(true));
        self.truth
            .values_mut()
            .for_each(|(_, state)| *state = Truth::Well);
        self.publish();
        self.advance(QUIET);
        assert!(self.held.is_empty(), "loads are let go");
        assert!(self.endpoints.iter().all(|e| e.load.get() == 0));
        assert!(
            self.endpoints.iter().all(|e| !e.load.is_ejected(self.now)),
            "all are back"
        );
        let failed = self.failed;
        let mut asked: HashMap<SocketAddr, u32> = HashMap::new();
        let mut most = 0;
        for _ in 0..60 * self.endpoints.len() {
            let picked = self.choose(None, &Tried::default()).unwrap();
            *asked.entry(picked.address).or_default() += 1;
            self.requests += 1;
            self.held.insert(self.requests, picked.load.begin());
            // About two in flight for each endpoint.
            let lasts = 2 * self.endpoints.len() as u64;
            self.open.push(Reverse((self.now + lasts, self.requests)));
            self.advance(1);
            most = most.max(
                self.endpoints
                    .iter()
                    .map(|e| e.load.get())
                    .max()
                    .unwrap_or(0),
            );
        }
        assert_eq!(
            asked.len(),
            self.endpoints.len(),
            "everybody is asked again: {asked:?}"
        );
        assert!(
            most <= 8,
            "{most} in flight at one endpoint, where 2 would be its share"
        );
        assert_eq!(self.failed, failed);
    }
}

#[test]
fn the_balancer_keeps_its_promises_in_thousands_of_histories() {
    let (mut requests, mut failed) = (0, 0);
    for seed in 0..HISTORIES {
        let mut world = World::new(seed);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..STEPS {
                if world.dice.one_in(12) {
                    world.fate();
                }
                world.request();
                let pause = world.dice.next() % 15;
                world.advance(pause);
            }
            requests += world.requests;
            failed += world.failed;
            world.recover();
        }));
        assert!(run.is_ok(), "history {seed} broke a promise");
    }
    // Only when all that is known is dead: nobody has told the balancer of others.
    assert!(failed * 20 < requests, "{failed} of {requests} failed");
}

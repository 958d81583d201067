//! Thousands of histories of one node's link to another, in virtual time, from seeds: the other process dies and comes
//! back, the link is cut and mended, this process sleeps. What callers and the balancer are told must be right soon after.

use std::collections::BTreeMap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::liveness::{KeepAlive, Liveness, Seen, Sign};
use super::machine::{Action, Event, Generation, Link, Machine, Timing};
use crate::network::balancer::Millis;

const STEP: Millis = 20;
const END: Millis = 45_000;
const HISTORIES: u64 = 2_000;
/// A peer that is gone is known to be within this.
const NOTICED: Millis = 1_000;
/// One that is back is connected to within this: the longest pause, a dial that hung, a handshake.
const MENDED: Millis = 5_000 + 3_000 + 1_000;

/// The world outside this process.
struct World {
    up: bool,
    link: bool,
    /// Counts deaths: a connection to an earlier life is worth nothing.
    life: u32,
    rtt: Millis,
    /// Since both have been well; since one has not.
    good_since: Option<Millis>,
    bad_since: Option<Millis>,
    changes: u64,
}

struct Connection {
    liveness: Liveness,
    life: u32,
    next_tick: Millis,
    /// When the ping on its way was sent.
    ping: Option<Millis>,
    heard: bool,
    /// The world was never bad since it was made.
    untouched: bool,
}

struct History {
    rng: StdRng,
    now: Millis,
    world: World,
    machine: Machine,
    dial: Option<(Generation, Millis)>,
    connections: BTreeMap<Generation, Connection>,
    dials: u64,
    wanted: Option<Millis>,
    asleep_until: Millis,
}

// === impl World ===

impl World {
    fn is_well(&self) -> bool {
        self.up && self.link
    }

    fn turn(&mut self, rng: &mut StdRng, now: Millis) {
        match rng.random_range(0..1_000) {
            0 if self.up => {
                self.up = false;
                self.life += 1;
            }
            1..4 if !self.up => self.up = true,
            4 if self.link => self.link = false,
            5..=8 if !self.link => self.link = true,
            11 => self.rtt = rng.random_range(1..120),
            _ => return,
        }
        self.changes += 1;
        if self.is_well() {
            self.bad_since = None;
            self.good_since.get_or_insert(now);
        } else {
            self.good_since = None;
            self.bad_since.get_or_insert(now);
        }
    }
}

// === impl History ===

impl History {
    fn new(seed: u64) -> Self {
        Self {
            rng: StdRng::seed_from_u64(seed),
            now: 0,
            world: World {
                up: true,
                link: true,
                life: 0,
                rtt: 1,
                good_since: Some(0),
                bad_since: None,
                changes: 0,
            },
            machine: Machine::new(Timing::default()),
            dial: None,
            connections: BTreeMap::new(),
            dials: 0,
            wanted: None,
            asleep_until: 0,
        }
    }

    fn run(mut self) {
        self.event(Event::Addressed);
        while self.now < END {
            self.now += STEP;
            // The last quarter is quiet, so that every history ends well.
            if self.now < END * 3 / 4 {
                self.world.turn(&mut self.rng, self.now);
            } else if !self.world.is_well() {
                (self.world.up, self.world.link) = (true, true);
                self.world.bad_since = None;
                self.world.good_since = Some(self.now);
            }
            if !self.world.is_well() {
                self.connections
                    .values_mut()
                    .for_each(|c| c.untouched = false);
            }
            if self.rng.random_range(0..5_000) == 0 {
                self.asleep_until = self.now + self.rng.random_range(500..3_000);
            }
            if self.now < self.asleep_until {
                continue;
            }
            if self.rng.random_range(0..50) == 0 {
                self.wanted.get_or_insert(self.now);
                self.event(Event::Wanted);
            }
            self.dialling();
            self.listening();
            if self.machine.deadline().is_some_and(|at| at <= self.now) {
                self.event(Event::Time);
            }
            self.check();
        }
        assert!(matches!(self.machine.link(), Link::Up(_)) || self.wanted.is_none());
        let allowed = 12 * (self.world.changes + 4) + END / 3_300;
        assert!(
            self.dials <= allowed,
            "{} dials, {} changes",
            self.dials,
            self.world.changes
        );
    }

    fn event(&mut self, event: Event) {
        let rng = &mut self.rng;
        match self.machine.on(event, self.now, |n| rng.random_range(0..n)) {
            Some(Action::Dial(generation)) => {
                self.dial = Some((generation, self.now));
                self.dials += 1;
            }
            Some(Action::Abandon) => self.dial = None,
            None => {}
        }
    }

    /// A dial is refused by a dead process, hangs on a cut link, and takes some round trips otherwise.
    fn dialling(&mut self) {
        let Some((generation, since)) = self.dial else {
            return;
        };
        let took = self.now - since;
        if !self.world.link {
            return;
        }
        if !self.world.up {
            if took >= self.world.rtt {
                self.dial = None;
                self.event(Event::Failed);
            }
            return;
        }
        let well_for = self.now - self.world.good_since.unwrap_or(self.now);
        if took.min(well_for) >= 3 * self.world.rtt {
            self.dial = None;
            let connection = Connection {
                liveness: Liveness::new(KeepAlive::default(), self.now),
                life: self.world.life,
                next_tick: self.now + 100,
                ping: None,
                heard: false,
                untouched: true,
            };
            self.connections.insert(generation, connection);
            self.event(Event::Dialled);
        }
    }

    fn listening(&mut self) {
        let mut events = Vec::new();
        let (now, world) = (self.now, &self.world);
        self.connections.retain(|generation, connection| {
            // A process that died says so, if the link lets it.
            if world.link && (!world.up || connection.life != world.life) {
                events.push(Event::Ended(*generation));
                return false;
            }
            if let Some(sent) = connection.ping
                && world.is_well()
                && now >= sent.max(world.good_since.unwrap_or(0)) + world.rtt
            {
                connection.ping = None;
                connection.heard = true;
            }
            if now < connection.next_tick {
                return true;
            }
            let heard = std::mem::take(&mut connection.heard);
            let sign = connection.liveness.tick(now, Seen { heard, used: true });
            let pause = connection.liveness.pause().as_millis();
            connection.next_tick = now + Millis::try_from(pause).unwrap();
            match sign {
                Sign::Nothing => {}
                Sign::Ping => connection.ping = Some(now),
                Sign::Suspected => {
                    assert!(!connection.untouched, "suspected for nothing");
                    events.push(Event::Suspected(*generation));
                }
                Sign::Recovered => events.push(Event::Recovered(*generation)),
                Sign::Dead => {
                    events.push(Event::Ended(*generation));
                    return false;
                }
            }
            true
        });
        events.into_iter().for_each(|event| self.event(event));
    }

    fn check(&self) {
        if let Link::Up(generation) = self.machine.link() {
            assert!(
                self.connections.contains_key(&generation),
                "up without a connection"
            );
            assert!(self.machine.is_reachable());
        }
        // Time in which this process slept is nobody's.
        let Some(wanted) = self.wanted else { return };
        let counted = self.now - self.asleep_until.min(self.now).max(wanted);
        let since = |since: Option<Millis>| since.map(|since| (self.now - since).min(counted));
        if since(self.world.bad_since).is_some_and(|bad| bad > NOTICED) {
            assert!(!self.machine.is_reachable(), "not noticed");
        }
        if since(self.world.good_since).is_some_and(|good| good > MENDED) {
            assert!(matches!(self.machine.link(), Link::Up(_)), "not mended");
        }
    }
}

#[test]
fn in_every_history_a_lost_peer_is_noticed_and_one_that_is_back_is_found() {
    for seed in 0..HISTORIES {
        if std::panic::catch_unwind(|| History::new(seed).run()).is_err() {
            panic!("history {seed} went wrong");
        }
    }
}

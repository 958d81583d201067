//! Thousands of histories of several candidates in virtual time: clocks that differ and drift, requests that are slow or
//! lost on either way, links that break, processes that end with and without a word. One seed, one history.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// An optimised build has time for more.
const HISTORIES: u64 = if cfg!(debug_assertions) { 500 } else { 10_000 };
const CANDIDATES: usize = 3;
/// Microseconds of one history.
const LENGTH: u64 = 300_000_000;
const SECOND: u64 = 1_000_000;
/// Clocks run at most this much faster or slower than time.
const DRIFT: f64 = 0.05;
/// How long the network may still carry a write its sender has given up: the lease less the renewal deadline, less drift.
const CARRIED: u64 = 3 * SECOND;
/// With one candidate that was healthy for so long there is a leader: a lease, the polls before and after it, and some
/// lost requests, twice, because another's write may be lost on its way back.
const BOUND: u64 = 60 * SECOND;

struct Process {
    candidate: Candidate,
    /// Counts restarts: what belongs to an earlier life is void.
    life: u32,
    alive: bool,
    linked: bool,
    offset: u64,
    rate: f64,
    /// Its last time of leading; terms are counted over all.
    term: usize,
    /// The request under way: its number, what and when.
    open: Option<(u64, Request, Moment)>,
}

enum Event {
    Wake(usize, u32),
    /// A request arrives at the server.
    Arrives(usize, u32, u64, Request),
    Answered(usize, u32, u64, Answer),
    GivenUp(usize, u32, u64),
    /// A write of a term's work arrives.
    Work(usize),
    Weather,
    Restart(usize),
}

struct World {
    now: u64,
    sequence: u64,
    events: BTreeMap<(u64, u64), Event>,
    dice: StdRng,
    processes: Vec<Process>,
    lease: Option<Record>,
    version: u64,
    slow: bool,
    /// The term of the last write; no earlier one may write any more.
    worked: usize,
    leaderless: u64,
    /// Per candidate: since when nothing was in its way.
    healthy: [Option<u64>; CANDIDATES],
    terms: usize,
}

fn run(seed: u64) -> World {
    let mut dice = StdRng::seed_from_u64(seed);
    let processes = (0..CANDIDATES)
        .map(|index| Process {
            candidate: Candidate::new(format!("c{index}-0")),
            life: 0,
            alive: true,
            linked: true,
            offset: dice.random_range(0..1_000 * SECOND),
            rate: dice.random_range(1.0 - DRIFT..1.0 + DRIFT),
            term: 0,
            open: None,
        })
        .collect();
    let mut world = World {
        now: 0,
        sequence: 0,
        events: BTreeMap::new(),
        dice,
        processes,
        lease: None,
        version: 0,
        slow: false,
        worked: 0,
        leaderless: 0,
        healthy: [Some(0); CANDIDATES],
        terms: 0,
    };
    for index in 0..CANDIDATES {
        world.after(0, Event::Wake(index, 0));
    }
    world.after(SECOND, Event::Weather);
    while let Some(((at, _), event)) = world.events.pop_first() {
        if at > LENGTH {
            break;
        }
        world.watch(at, seed);
        world.now = at;
        world.handle(event);
    }
    world
}

impl World {
    fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.events.insert((self.now + delay, self.sequence), event);
    }

    fn local(&self, index: usize) -> Moment {
        self.local_at(index, self.now)
    }

    fn local_at(&self, index: usize, real: u64) -> Moment {
        let process = &self.processes[index];
        Duration::from_micros(process.offset + (real as f64 * process.rate) as u64)
    }

    /// How long the server or the network takes for one way.
    fn delay(&mut self) -> u64 {
        let most = if self.slow { 4 * SECOND } else { SECOND / 20 };
        self.dice.random_range(100..most)
    }

    fn lost(&mut self) -> bool {
        self.dice.random_bool(0.02)
    }

    /// Nothing happens between two events but time: judges the stretch up to `until`.
    fn watch(&mut self, until: u64, seed: u64) {
        let acting: Vec<usize> = (0..CANDIDATES)
            .filter(|&i| {
                let process = &self.processes[i];
                process.alive && process.candidate.acts_until(self.local(i)).is_some()
            })
            .collect();
        assert!(
            acting.len() <= 1,
            "seed {seed}: {acting:?} act at {}",
            self.now
        );
        if !acting.is_empty() {
            self.leaderless = until;
        }
        for (process, since) in self.processes.iter().zip(&mut self.healthy) {
            let healthy = !self.slow && process.alive && process.linked;
            *since = if healthy {
                since.or(Some(self.now))
            } else {
                None
            };
        }
        let Some(since) = self.healthy.iter().flatten().min().copied() else {
            return;
        };
        let waited = until.saturating_sub(since.max(self.leaderless));
        assert!(
            waited <= BOUND,
            "seed {seed}: no leader for {waited} µs at {until}"
        );
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Wake(index, life) if self.is(index, life) => self.wake(index),
            Event::Arrives(index, life, number, request) => {
                let answer = self.serve(&request);
                let lost = self.lost() || !self.processes[index].linked;
                if !lost {
                    let delay = self.delay();
                    self.after(delay, Event::Answered(index, life, number, answer));
                }
            }
            Event::Answered(index, life, number, answer) if self.is(index, life) => {
                self.answered(index, number, answer);
            }
            Event::GivenUp(index, life, number) if self.is(index, life) => {
                self.answered(index, number, Answer::Failed);
            }
            Event::Work(term) => {
                assert!(
                    self.worked <= term,
                    "a write of term {term} arrived after one of term {} at {}",
                    self.worked,
                    self.now
                );
                self.worked = term;
            }
            Event::Weather => {
                self.weather();
                let delay = self.dice.random_range(SECOND..20 * SECOND);
                self.after(delay, Event::Weather);
            }
            Event::Restart(index) => {
                let process = &mut self.processes[index];
                process.alive = true;
                process.life += 1;
                process.candidate = Candidate::new(format!("c{index}-{}", process.life));
                process.open = None;
                process.term = 0;
                let life = process.life;
                self.after(0, Event::Wake(index, life));
            }
            Event::Wake(..) | Event::Answered(..) | Event::GivenUp(..) => {}
        }
    }

    fn is(&self, index: usize, life: u32) -> bool {
        self.processes[index].alive && self.processes[index].life == life
    }

    fn wake(&mut self, index: usize) {
        let now = self.local(index);
        let life = self.processes[index].life;
        if self.processes[index].candidate.acts_until(now).is_some() {
            // A leader works: what it sends now may be under way for a while.
            let delay = self.dice.random_range(100..CARRIED);
            let term = self.processes[index].term;
            if self.processes[index].linked {
                self.after(delay, Event::Work(term));
            }
        }
        if self.processes[index].open.is_some() {
            return;
        }
        let wall = Timestamp::UNIX_EPOCH;
        match self.processes[index].candidate.next(now, wall) {
            Ok(request) => {
                self.sequence += 1;
                let number = self.sequence;
                self.processes[index].open = Some((number, request.clone(), now));
                if self.processes[index].linked && !self.lost() {
                    let delay = self.delay();
                    self.after(delay, Event::Arrives(index, life, number, request));
                }
                let patience = self.real(index, REQUEST_DEADLINE);
                self.after(patience, Event::GivenUp(index, life, number));
                // And works on meanwhile.
                self.after(SECOND / 2, Event::Wake(index, life));
            }
            Err(at) => {
                let delay = self.real(index, at.saturating_sub(now)) + 1;
                self.after(delay, Event::Wake(index, life));
            }
        }
    }

    fn real(&self, index: usize, local: Duration) -> u64 {
        (local.as_micros() as f64 / self.processes[index].rate) as u64
    }

    fn answered(&mut self, index: usize, number: u64, answer: Answer) {
        let now = self.local(index);
        let dice = self.dice.random_range(0.0..1.0);
        let process = &mut self.processes[index];
        let Some((_, request, asked)) = process.open.take_if(|open| open.0 == number) else {
            return;
        };
        let before = process.candidate.acts_until(now).is_some();
        process
            .candidate
            .answered(&request, asked, answer, now, dice);
        // Who leads again with nobody in between need not fear himself.
        let again = process.term != 0 && process.term == self.terms;
        if !before && !again && process.candidate.acts_until(now).is_some() {
            self.terms += 1;
            process.term = self.terms;
        }
        let life = process.life;
        self.after(0, Event::Wake(index, life));
    }

    fn serve(&mut self, request: &Request) -> Answer {
        let lease = self.lease.clone();
        match (request, lease) {
            (Request::Read, Some(lease)) => Answer::Is(lease),
            (Request::Read | Request::Update(_), None) => Answer::Absent,
            (Request::Create(record), None) => self.write(record),
            (Request::Update(record), Some(lease)) if record.version == lease.version => {
                self.write(record)
            }
            (Request::Create(_) | Request::Update(_), Some(_)) => Answer::Refused,
        }
    }

    fn write(&mut self, record: &Record) -> Answer {
        self.version += 1;
        let record = Record {
            version: self.version.to_string(),
            ..record.clone()
        };
        self.lease = Some(record.clone());
        Answer::Is(record)
    }

    fn weather(&mut self) {
        let index = self.dice.random_range(0..CANDIDATES);
        match self.dice.random_range(0..8) {
            0 | 1 => self.processes[index].linked = false,
            2 | 3 => self.processes[index].linked = true,
            4 => self.slow = true,
            5 => self.slow = false,
            6 if self.processes[index].alive => {
                // Killed, or ended in good order.
                if self.dice.random_bool(0.5) && self.processes[index].linked {
                    let release = self.processes[index].candidate.release();
                    // Work under way is waited for before the Lease is given back.
                    let delay = CARRIED + self.delay();
                    let life = self.processes[index].life;
                    if let Some(request) = release {
                        self.after(delay, Event::Arrives(index, life, 0, request));
                    }
                }
                self.processes[index].alive = false;
                let delay = self.dice.random_range(SECOND..40 * SECOND);
                self.after(delay, Event::Restart(index));
            }
            _ => {}
        }
    }
}

#[test]
fn never_two_lead_and_soon_one_does() {
    let terms: usize = (0..HISTORIES).map(|seed| run(seed).terms).sum();
    assert!(
        terms > 1_000,
        "histories with changes of the leader: {terms} terms"
    );
}

#[test]
fn a_seed_is_a_history() {
    let (a, b) = (run(7), run(7));
    assert_eq!((a.terms, a.version), (b.terms, b.version));
}

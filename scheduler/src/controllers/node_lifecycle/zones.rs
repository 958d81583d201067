//! The brake: how fast nodes may lose their pods when many nodes of a zone are lost at once. Pure; takes the time.
//!
//! Many lost nodes are more likely one broken network than many broken machines, and what runs there still runs. As
//! upstream: one node in ten seconds per zone; when more than half of a zone is lost, one in a hundred seconds if the zone
//! is large, none if it is small; when every zone is lost, none at all, and what was tainted is let be.

use std::collections::HashMap;
use std::time::Duration;

use types::well_known::{LABEL_REGION, LABEL_ZONE};

use crate::objects::Node;

/// Nodes per second that may be tainted `NoExecute`.
const RATE: f64 = 0.1;
const SECONDARY_RATE: f64 = 0.01;
const LARGE: usize = 50;
/// A zone is partly disrupted when this share of its nodes is not ready, and more than two are.
const UNHEALTHY: f64 = 0.55;
/// A zone without a rate is asked about again after this long.
const RECHECK: Duration = Duration::from_secs(5);

/// May a node's pods be told to go?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    Granted,
    Later(Duration),
    /// Every zone is lost: nothing may, and nothing that was told to go need.
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Normal,
    Partial,
    Full,
}

/// What an observation changed for all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    None,
    /// Every zone is lost now.
    Stopped,
    /// No longer: everybody is given time to say something.
    Resumed,
}

#[derive(Debug, Default)]
pub struct Brake {
    zones: HashMap<String, Zone>,
    stopped: bool,
}

#[derive(Debug)]
struct Zone {
    rate: f64,
    /// At most one.
    tokens: f64,
    filled: i64,
}

/// Region and zone of a node; both may be empty.
pub fn zone_of(node: &Node) -> String {
    let label = |name: &str| node.metadata.labels.get(name).map_or("", String::as_str);
    format!("{}/{}", label(LABEL_REGION), label(LABEL_ZONE))
}

pub fn state(ready: usize, lost: usize) -> State {
    let share = lost as f64 / (ready + lost).max(1) as f64;
    match (ready, lost) {
        (0, 1..) => State::Full,
        (_, 3..) if share >= UNHEALTHY => State::Partial,
        _ => State::Normal,
    }
}

fn rate(state: State, size: usize) -> f64 {
    match state {
        State::Normal | State::Full => RATE,
        State::Partial if size > LARGE => SECONDARY_RATE,
        State::Partial => 0.0,
    }
}

// === impl Brake ===

impl Brake {
    /// Takes which nodes are ready, each with its zone.
    pub fn observe(&mut self, nodes: impl IntoIterator<Item = (String, bool)>, now: i64) -> Change {
        let mut counts: HashMap<String, (usize, usize)> = HashMap::new();
        for (zone, ready) in nodes {
            let count = counts.entry(zone).or_default();
            if ready {
                count.0 += 1;
            } else {
                count.1 += 1;
            }
        }
        self.zones.retain(|zone, _| counts.contains_key(zone));
        let mut all_lost = !counts.is_empty();
        for (name, (ready, lost)) in counts {
            let state = state(ready, lost);
            all_lost &= state == State::Full;
            let rate = rate(state, ready + lost);
            let zone = self.zones.entry(name).or_insert(Zone {
                rate,
                tokens: 1.0,
                filled: now,
            });
            zone.fill(now);
            zone.rate = rate;
        }
        match (std::mem::replace(&mut self.stopped, all_lost), all_lost) {
            (false, true) => Change::Stopped,
            (true, false) => Change::Resumed,
            _ => Change::None,
        }
    }

    pub fn is_stopped(&self) -> bool {
        self.stopped
    }

    /// What [`Brake::take`] would answer.
    pub fn ask(&mut self, zone: &str, now: i64) -> Permit {
        let answer = self.take(zone, now);
        if answer == Permit::Granted {
            self.give_back(zone);
        }
        answer
    }

    /// A permit that was taken was of no use.
    pub fn give_back(&mut self, zone: &str) {
        if let Some(zone) = self.zones.get_mut(zone) {
            zone.tokens = (zone.tokens + 1.0).min(1.0);
        }
    }

    /// Takes a permit for one more node of the zone.
    pub fn take(&mut self, zone: &str, now: i64) -> Permit {
        if self.stopped {
            return Permit::Stopped;
        }
        // A zone that has not been counted yet will be soon.
        let Some(zone) = self.zones.get_mut(zone) else {
            return Permit::Later(RECHECK);
        };
        zone.fill(now);
        if zone.rate <= 0.0 {
            return Permit::Later(RECHECK);
        }
        if zone.tokens >= 1.0 {
            zone.tokens -= 1.0;
            return Permit::Granted;
        }
        let wait = ((1.0 - zone.tokens) / zone.rate).ceil();
        Permit::Later(Duration::from_secs_f64(wait.clamp(1.0, 100.0)))
    }
}

// === impl Zone ===

impl Zone {
    fn fill(&mut self, now: i64) {
        let elapsed = (now - self.filled).max(0) as f64;
        self.tokens = (self.tokens + elapsed * self.rate).min(1.0);
        self.filled = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_judged_as_upstream_does() {
        let cases = [
            ((3, 0), State::Normal),
            ((1, 1), State::Normal),
            ((1, 2), State::Normal),
            ((1, 3), State::Partial),
            ((3, 3), State::Normal),
            ((0, 1), State::Full),
            ((0, 0), State::Normal),
            ((45, 55), State::Partial),
        ];
        for ((ready, lost), expected) in cases {
            assert_eq!(state(ready, lost), expected, "{ready} ready, {lost} lost");
        }
        assert!(rate(State::Partial, 4) == 0.0);
        assert!(rate(State::Partial, 51) == SECONDARY_RATE);
    }

    fn zone(ready: usize, lost: usize) -> Vec<(String, bool)> {
        let node = |i| ("z".to_owned(), i < ready);
        (0..ready + lost).map(node).collect()
    }

    #[test]
    fn one_node_in_ten_seconds() {
        let mut brake = Brake::default();
        brake.observe(zone(7, 3), 0);
        assert_eq!(brake.take("z", 0), Permit::Granted);
        assert_eq!(brake.take("z", 0), Permit::Later(Duration::from_secs(10)));
        assert_eq!(brake.take("z", 4), Permit::Later(Duration::from_secs(6)));
        assert_eq!(brake.take("z", 10), Permit::Granted);
    }

    #[test]
    fn nothing_goes_when_everything_is_lost() {
        let mut brake = Brake::default();
        assert_eq!(brake.observe(zone(3, 0), 0), Change::None);
        assert_eq!(brake.observe(zone(0, 3), 1), Change::Stopped);
        assert_eq!(brake.take("z", 1), Permit::Stopped);
        assert_eq!(brake.observe(zone(0, 3), 2), Change::None);
        assert_eq!(brake.observe(zone(1, 2), 3), Change::Resumed);
        assert_eq!(brake.take("z", 3), Permit::Granted);
    }
}

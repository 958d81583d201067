//! Who leads, by a Lease, as client-go's clients do it: one holder at a time, kept by renewing, taken over after silence.
//!
//! Owns the decision ([`step`]) and the candidate that asks and remembers; [`lock`] sends the requests and starts and stops
//! what a leader does. Reads no clock: every moment is the candidate's own monotonic one, so clocks that differ do no
//! harm, and clocks that run differently do none while they differ by less than a fifth.
//!
//! # Why never two
//! A leader acts for [`RENEW_DEADLINE`] after it *sent* a renewal that succeeded. Everybody else waits [`LEASE_DURATION`]
//! after he *saw* that renewal, which is later. What the leader still has under way when its time is over is given up; the
//! five seconds between are for what the network still carries.

pub mod lock;
#[cfg(test)]
mod simulation;

use std::time::Duration;

use k8s_openapi::api::coordination::v1::LeaseSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;

/// A holder that was silent for so long has lost.
pub const LEASE_DURATION: Duration = Duration::from_secs(15);
/// A leader that could not renew for so long stops.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// Between two attempts.
pub const RETRY_PERIOD: Duration = Duration::from_secs(2);
/// A follower waits up to this many times longer, by chance.
const JITTER: f64 = 1.2;
/// A request without an answer for so long has failed, or may have.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(5);

/// Time on the candidate's monotonic clock, since it began.
pub type Moment = Duration;

/// A Lease, as far as election reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub holder: String,
    /// What the holder asked for.
    pub duration: Duration,
    pub transitions: i32,
    pub acquired: Option<Timestamp>,
    /// The object's `resourceVersion`.
    pub version: String,
}

/// A record and when this version of it was first seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub record: Record,
    pub since: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nobody holds it, or its holder was silent too long: make it ours.
    Take,
    /// It is ours.
    Renew,
    /// It is another's, who may act until then.
    Wait(Moment),
}

/// What to do, by what was seen last. A Lease that is gone is still its holder's for as long as it would have been.
pub fn step(identity: &str, seen: Option<&Seen>, now: Moment) -> Action {
    let Some(seen) = seen else {
        return Action::Take;
    };
    if seen.record.holder == identity {
        return Action::Renew;
    }
    let until = seen.since.saturating_add(seen.record.duration);
    if seen.record.holder.is_empty() || until <= now {
        return Action::Take;
    }
    Action::Wait(until)
}

/// One request to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    Read,
    Create(Record),
    /// Only if the Lease is still of the version the record names.
    Update(Record),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What was read, or what was written.
    Is(Record),
    Absent,
    /// The Lease is not as we believed; nothing was written.
    Refused,
    /// No answer, or none that says what happened.
    Failed,
}

/// One who would lead. Alternates between [`Candidate::next`] and [`Candidate::answered`].
#[derive(Clone, Debug)]
pub struct Candidate {
    identity: String,
    seen: Option<Seen>,
    /// The Lease was not there when we looked.
    absent: bool,
    /// What we believe of the Lease may be old: look before writing.
    doubtful: bool,
    /// Leading, for sure, until then.
    until: Option<Moment>,
    attempt_at: Moment,
}

// === impl Candidate ===

impl Candidate {
    pub fn new(identity: String) -> Self {
        Self {
            identity,
            seen: None,
            absent: false,
            doubtful: true,
            until: None,
            attempt_at: Moment::ZERO,
        }
    }

    /// Until when it may act as the leader; `None` when it may not.
    pub fn acts_until(&self, now: Moment) -> Option<Moment> {
        self.until.filter(|until| now < *until)
    }

    pub fn holder(&self) -> Option<&str> {
        self.seen.as_ref().map(|seen| seen.record.holder.as_str())
    }

    /// What to ask now, or when to come back.
    pub fn next(&self, now: Moment, wall: Timestamp) -> Result<Request, Moment> {
        if now < self.attempt_at {
            return Err(self.attempt_at);
        }
        if self.doubtful {
            return Ok(Request::Read);
        }
        let old = self.seen.as_ref().map(|seen| &seen.record);
        let mut record = Record {
            holder: self.identity.clone(),
            duration: LEASE_DURATION,
            ..old.cloned().unwrap_or_default()
        };
        match step(&self.identity, self.seen.as_ref(), now) {
            // `answered` sets the next attempt.
            Action::Wait(_) => return Ok(Request::Read),
            Action::Renew => {}
            Action::Take => {
                record.acquired = Some(wall);
                // Who makes the Lease changes no leader.
                record.transitions = old.map_or(0, |old| old.transitions.saturating_add(1));
            }
        }
        if self.absent {
            record.version.clear();
            return Ok(Request::Create(record));
        }
        Ok(Request::Update(record))
    }

    /// Takes the answer to what was asked at `asked`. `dice` is between 0 and 1.
    pub fn answered(
        &mut self,
        request: &Request,
        asked: Moment,
        answer: Answer,
        now: Moment,
        dice: f64,
    ) {
        self.attempt_at = now;
        match (request, answer) {
            (Request::Read, Answer::Is(record)) => {
                self.absent = false;
                self.see(record, now);
                if self.holder() != Some(self.identity.as_str()) {
                    self.until = None;
                }
                self.doubtful = matches!(
                    step(&self.identity, self.seen.as_ref(), now),
                    Action::Wait(_)
                );
                if self.doubtful {
                    self.attempt_at = now + RETRY_PERIOD.mul_f64(1.0 + JITTER * dice);
                }
            }
            (Request::Read, Answer::Absent) => {
                self.absent = true;
                self.doubtful = false;
                if let Action::Wait(until) = step(&self.identity, self.seen.as_ref(), now) {
                    self.doubtful = true;
                    self.attempt_at = until.min(now + RETRY_PERIOD);
                }
            }
            (_, Answer::Is(record)) => {
                self.absent = false;
                self.doubtful = false;
                self.see(record, now);
                self.until = Some(asked + RENEW_DEADLINE);
                self.attempt_at = now + RETRY_PERIOD;
            }
            (_, Answer::Refused | Answer::Absent) => {
                self.doubtful = true;
                if self.until.is_none() {
                    // Several want it: not all at once again.
                    self.attempt_at = now + RETRY_PERIOD.mul_f64(dice * 0.5);
                }
            }
            (_, Answer::Failed) => {
                self.doubtful = true;
                self.attempt_at = now + RETRY_PERIOD.mul_f64(0.5 + 0.5 * dice);
            }
        }
    }

    /// Somebody says that the Lease is free: look at once.
    pub fn hurry(&mut self, now: Moment) {
        self.attempt_at = self.attempt_at.min(now);
    }

    /// The request that gives the Lease back, to be sent when nothing acts any more; `None` when it is not ours.
    pub fn release(&mut self) -> Option<Request> {
        self.until = None;
        let seen = self.seen.as_ref()?;
        if self.absent || seen.record.holder != self.identity {
            return None;
        }
        Some(Request::Update(Record {
            holder: String::new(),
            duration: Duration::from_secs(1),
            ..seen.record.clone()
        }))
    }

    fn see(&mut self, record: Record, now: Moment) {
        let known = self.seen.as_ref().map(|seen| &seen.record.version);
        if known != Some(&record.version) {
            self.seen = Some(Seen { record, since: now });
        }
    }
}

// === impl Record ===

impl Record {
    pub fn of(spec: &LeaseSpec, version: &str) -> Self {
        let seconds = spec.lease_duration_seconds.unwrap_or_default().max(0);
        Self {
            holder: spec.holder_identity.clone().unwrap_or_default(),
            duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
            transitions: spec.lease_transitions.unwrap_or_default(),
            acquired: spec.acquire_time.as_ref().map(|t| t.0),
            version: version.to_owned(),
        }
    }

    pub fn spec(&self, renewed: Timestamp) -> LeaseSpec {
        let seconds = i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX);
        LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(self.transitions),
            acquire_time: self.acquired.map(MicroTime),
            renew_time: Some(MicroTime(renewed)),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, seconds: u64, since: u64) -> Seen {
        Seen {
            record: Record {
                holder: holder.to_owned(),
                duration: Duration::from_secs(seconds),
                ..Record::default()
            },
            since: Duration::from_secs(since),
        }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_nobodys_and_not_before() {
        let at = Duration::from_secs;
        let cases = [
            (None, Action::Take),
            (Some(seen("us", 15, 0)), Action::Renew),
            (Some(seen("", 1, 99)), Action::Take),
            (Some(seen("them", 15, 90)), Action::Wait(at(105))),
            (Some(seen("them", 15, 85)), Action::Take),
            (Some(seen("them", 0, 100)), Action::Take),
        ];
        for (seen, action) in cases {
            assert_eq!(step("us", seen.as_ref(), at(100)), action, "{seen:?}");
        }
    }

    #[test]
    fn a_lease_that_is_gone_is_still_its_holders_for_a_while() {
        let wall = Timestamp::from_second(1).expect("a time");
        let at = Duration::from_secs;
        let mut candidate = Candidate::new("us".to_owned());
        let theirs = seen("them", 15, 0).record;
        candidate.answered(&Request::Read, at(0), Answer::Is(theirs), at(0), 0.0);
        candidate.answered(&Request::Read, at(3), Answer::Absent, at(3), 0.0);
        assert_eq!(candidate.next(at(5), wall), Ok(Request::Read));
        candidate.answered(&Request::Read, at(15), Answer::Absent, at(15), 0.0);
        assert!(matches!(
            candidate.next(at(15), wall),
            Ok(Request::Create(_))
        ));
    }

    #[test]
    fn acting_is_counted_from_when_the_renewal_was_sent() {
        let at = Duration::from_secs;
        let mut candidate = Candidate::new("us".to_owned());
        let ours = seen("us", 15, 0).record;
        let request = Request::Create(ours.clone());
        candidate.answered(&request, at(0), Answer::Is(ours), at(4), 0.0);
        assert_eq!(candidate.acts_until(at(4)), Some(at(10)));
        assert_eq!(candidate.acts_until(at(10)), None);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let mut record = seen("us", 15, 0).record;
        record.acquired = Timestamp::from_second(5).ok();
        let spec = record.spec(Timestamp::from_second(6).expect("a time"));
        assert_eq!(Record::of(&spec, ""), record);
    }
}

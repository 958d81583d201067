//! Who talks to whom, how much, how well and how safely: counters by source, destination and security of the way. Counted
//! where the destination lives (its node answers for it), or at the source for what leaves the cluster. Never blocks a
//! request for more than a map lookup.

mod answers;
mod report;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub(crate) use self::answers::Answers;
pub(crate) use self::report::{graph, prometheus};

/// Workload names remembered; those beyond are counted together as `other`.
const WORKLOADS: usize = 10_000;
/// A pair takes some 400 bytes.
const PAIRS: usize = 20_000;
/// Once half of either is taken, pairs between which nothing has passed for this long are forgotten.
const QUIET: Duration = Duration::from_secs(3_600);

/// The destination of egress, the source of listeners.
pub(crate) const OUTSIDE: &str = "outside";
const OTHER: &str = "other";
/// The destination of what was sent to an address that nothing is known of.
pub(crate) const NOBODY: &str = "unknown";

/// Upper bounds of the histogram's buckets, in microseconds; the last bucket has none.
pub(crate) const BOUNDS: [u64; 16] = [
    250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    5_000_000, 10_000_000, 30_000_000, 60_000_000,
];

/// How the bytes came, or went.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Security {
    /// Within this process: no wire.
    InProcess,
    /// Over the tunnel: encrypted, both nodes authenticated.
    MutualTls,
    /// As the client outside sent it, or as the guest sends it there.
    Outside,
}

/// A name with a number, shared by all pods of a workload.
#[derive(Debug)]
pub(crate) struct Workload {
    number: u32,
    name: String,
}

/// Counters of one direction between two workloads.
#[derive(Debug)]
pub(crate) struct Pair {
    source: String,
    destination: String,
    security: Security,
    connections: AtomicU64,
    open: AtomicI64,
    /// By class of status: 1xx … 5xx; and those that got no answer.
    answers: [AtomicU64; 6],
    nanos: AtomicU64,
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sent: AtomicU64,
    received: AtomicU64,
    /// Requests at the last tick, and how many there were per second in the time before it (as the bits of an f64).
    ticked: AtomicU64,
    rate: AtomicU64,
    /// All counters together at the last tick, and the milliseconds since the last tick at which they had changed.
    stirred: AtomicU64,
    quiet: AtomicU64,
}

/// A connection that is open; dropping it says that it was closed.
#[derive(Debug)]
pub(crate) struct Connected(Arc<Pair>);

/// A copy of one pair's counters.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// `default/web`, or `outside`.
    pub source: String,
    pub destination: String,
    pub security: Security,
    pub connections: u64,
    pub open_connections: u64,
    pub requests: u64,
    /// Requests that got no answer, or one of 500 and above.
    pub errors: u64,
    /// By class of status, 1xx to 5xx; the sixth is no answer at all.
    pub answers: [u64; 6],
    /// Time to the response's head, summed.
    pub duration: Duration,
    /// Requests that took at most as long as the bound of that place, and longer than the one before.
    pub buckets: [u64; BOUNDS.len() + 1],
    /// From source to destination, in bodies and streams.
    pub bytes_sent: u64,
    pub bytes_received: u64,
    /// Requests per second, lately.
    pub rate: f64,
}

#[derive(Default)]
pub(crate) struct Traffic {
    workloads: RwLock<Workloads>,
    pairs: RwLock<HashMap<(u32, u32, Security), Arc<Pair>>>,
    /// Times that something was not counted, because there was no room for its pair.
    left_out: AtomicU64,
}

#[derive(Default)]
struct Workloads {
    by_name: HashMap<String, Arc<Workload>>,
    /// Numbers are given once.
    given: u32,
}

// === impl Security ===

impl Security {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InProcess => "in_process",
            Self::MutualTls => "mutual_tls",
            Self::Outside => "outside",
        }
    }
}

// === impl Traffic ===

impl Traffic {
    /// The one `Workload` of that name.
    pub(crate) fn workload(&self, name: &str) -> Arc<Workload> {
        {
            let all = self
                .workloads
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            if let Some(workload) = all.by_name.get(name) {
                return Arc::clone(workload);
            }
        }
        let mut all = self
            .workloads
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        let full = all.by_name.len() >= WORKLOADS;
        let name = if full { OTHER } else { name };
        if let Some(workload) = all.by_name.get(name) {
            return Arc::clone(workload);
        }
        let workload = Arc::new(Workload {
            number: all.given,
            name: name.to_owned(),
        });
        all.given = all.given.wrapping_add(1);
        all.by_name.insert(name.to_owned(), Arc::clone(&workload));
        workload
    }

    pub(crate) fn pair(
        &self,
        source: &Workload,
        destination: &Workload,
        security: Security,
    ) -> Option<Arc<Pair>> {
        let key = (source.number, destination.number, security);
        let known = self
            .pairs
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
            .cloned();
        if known.is_some() {
            return known;
        }
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        if pairs.len() >= PAIRS && !pairs.contains_key(&key) {
            self.left_out.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let pair = pairs
            .entry(key)
            .or_insert_with(|| Arc::new(Pair::new(&source.name, &destination.name, security)));
        Some(Arc::clone(pair))
    }

    pub(crate) fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    pub(crate) fn flows(&self) -> Vec<Flow> {
        let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
        let mut flows: Vec<Flow> = pairs.values().map(|pair| pair.read()).collect();
        drop(pairs);
        flows.sort_by(|a, b| {
            (&a.source, &a.destination, a.security).cmp(&(&b.source, &b.destination, b.security))
        });
        flows
    }

    /// Works out rates and makes room; `passed` is the time since the last call.
    pub(crate) fn tick(&self, passed: Duration) {
        let crowded = {
            let pairs = self.pairs.read().unwrap_or_else(PoisonError::into_inner);
            for pair in pairs.values() {
                pair.tick(passed);
            }
            pairs.len() >= PAIRS / 2
        };
        let workloads = self
            .workloads
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let crowded = crowded || workloads.by_name.len() >= WORKLOADS / 2;
        drop(workloads);
        if crowded {
            self.forget();
        }
    }

    /// Pairs that are quiet, then workloads that nobody has and no pair is left of: a name that comes back gets another
    /// number, and must not find a pair of its old one.
    fn forget(&self) {
        let mut pairs = self.pairs.write().unwrap_or_else(PoisonError::into_inner);
        pairs.retain(|_, pair| !pair.is_quiet() || Arc::strong_count(pair) > 1);
        let used: HashSet<u32> = pairs
            .keys()
            .flat_map(|(from, to, _)| [*from, *to])
            .collect();
        let mut workloads = self
            .workloads
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        workloads
            .by_name
            .retain(|_, known| Arc::strong_count(known) > 1 || used.contains(&known.number));
    }
}

// === impl Workload ===

impl Workload {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

// === impl Pair ===

impl Pair {
    fn new(source: &str, destination: &str, security: Security) -> Self {
        Self {
            source: source.to_owned(),
            destination: destination.to_owned(),
            security,
            connections: AtomicU64::default(),
            open: AtomicI64::default(),
            answers: Default::default(),
            nanos: AtomicU64::default(),
            buckets: Default::default(),
            sent: AtomicU64::default(),
            received: AtomicU64::default(),
            ticked: AtomicU64::default(),
            rate: AtomicU64::default(),
            stirred: AtomicU64::default(),
            quiet: AtomicU64::default(),
        }
    }

    pub(crate) fn connected(self: &Arc<Self>) -> Connected {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        Connected(Arc::clone(self))
    }

    /// `status` is `None` when no answer came.
    pub(crate) fn answered(&self, status: Option<u16>, took: Duration) {
        let class = status.map_or(5, |status| usize::from(status / 100).clamp(1, 5) - 1);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        let micros = nanos.div_ceil(1_000);
        let bucket = BOUNDS.partition_point(|bound| *bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes from the source to the destination.
    pub(crate) fn sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Bytes from the destination back to the source.
    pub(crate) fn received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn requests(&self) -> u64 {
        let answers = self.answers.iter();
        answers.map(|count| count.load(Ordering::Relaxed)).sum()
    }

    #[expect(clippy::cast_precision_loss, reason = "a rate is an estimate")]
    fn tick(&self, passed: Duration) {
        let requests = self.requests();
        let before = self.ticked.swap(requests, Ordering::Relaxed);
        let rate = requests.saturating_sub(before) as f64 / passed.as_secs_f64().max(0.001);
        self.rate.store(rate.to_bits(), Ordering::Relaxed);
        let more = [&self.connections, &self.sent, &self.received];
        let stirred = more.iter().fold(requests, |sum, counter| {
            sum.wrapping_add(counter.load(Ordering::Relaxed))
        });
        let open = self.open.load(Ordering::Relaxed) > 0;
        if self.stirred.swap(stirred, Ordering::Relaxed) != stirred || open {
            self.quiet.store(0, Ordering::Relaxed);
        } else {
            let passed = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
            self.quiet.fetch_add(passed, Ordering::Relaxed);
        }
    }

    /// Nothing has passed for long, and nothing can without a new connection or request.
    fn is_quiet(&self) -> bool {
        Duration::from_millis(self.quiet.load(Ordering::Relaxed)) >= QUIET
    }

    fn read(&self) -> Flow {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let answers: [u64; 6] = std::array::from_fn(|at| load(&self.answers[at]));
        Flow {
            source: self.source.clone(),
            destination: self.destination.clone(),
            security: self.security,
            connections: load(&self.connections),
            open_connections: u64::try_from(self.open.load(Ordering::Relaxed)).unwrap_or(0),
            requests: answers.iter().sum(),
            errors: answers[4] + answers[5],
            answers,
            duration: Duration::from_nanos(load(&self.nanos)),
            buckets: std::array::from_fn(|at| load(&self.buckets[at])),
            bytes_sent: load(&self.sent),
            bytes_received: load(&self.received),
            rate: f64::from_bits(load(&self.rate)),
        }
    }
}

// === impl Connected ===

impl Connected {
    pub(crate) fn pair(&self) -> &Pair {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_counts_answers_time_bytes_and_open_connections() {
        let traffic = Traffic::default();
        let (a, b) = (traffic.workload("default/a"), traffic.workload("default/b"));
        let pair = traffic.pair(&a, &b, Security::MutualTls).unwrap();
        let open = pair.connected();
        drop(pair.connected());
        pair.answered(Some(204), Duration::from_micros(250));
        pair.answered(Some(503), Duration::from_millis(30));
        pair.answered(None, Duration::from_secs(90));
        open.pair().sent(3);
        pair.received(5);
        traffic.tick(Duration::from_secs(2));
        let flow = traffic.flows().remove(0);
        assert_eq!((flow.connections, flow.open_connections), (2, 1));
        assert_eq!((flow.requests, flow.errors), (3, 2));
        assert_eq!(flow.answers, [0, 1, 0, 0, 1, 1]);
        assert_eq!((flow.bytes_sent, flow.bytes_received), (3, 5));
        assert_eq!(flow.buckets[0], 1, "a bound belongs to its bucket");
        assert_eq!(flow.buckets[BOUNDS.len()], 1, "beyond the last bound");
        assert!((flow.rate - 1.5).abs() < 0.001);
    }

    #[test]
    fn more_workloads_than_are_remembered_count_together() {
        let traffic = Traffic::default();
        for number in 0..WORKLOADS + 10 {
            traffic.workload(&format!("default/{number}"));
        }
        assert_eq!(traffic.workload("default/new").name(), OTHER);
        assert_eq!(traffic.workload("default/1").name(), "default/1");
    }

    #[test]
    fn quiet_pairs_make_room_for_new_ones_and_what_finds_none_is_counted() {
        let traffic = Traffic::default();
        let web = traffic.workload("default/web");
        let security = Security::InProcess;
        let kept = traffic.workload("default/kept");
        let open = traffic.pair(&kept, &web, security).unwrap().connected();
        let named = |number: usize| traffic.workload(&format!("default/bare-{number}"));
        for number in 0..WORKLOADS - 3 {
            let pair = traffic.pair(&named(number), &web, security).unwrap();
            pair.answered(Some(200), Duration::ZERO);
            traffic.pair(&web, &named(number), security).unwrap();
        }
        for number in 0..10 {
            traffic.pair(&web, &named(number), Security::Outside);
        }
        assert!(traffic.left_out() > 0, "there is an end to it");
        traffic.workload("default/last");
        assert_eq!(traffic.workload("default/new").name(), OTHER);
        traffic.tick(Duration::from_secs(10));
        traffic.tick(QUIET / 2);
        let talks = named(7);
        let pair = traffic.pair(&talks, &web, security).unwrap();
        pair.answered(Some(200), Duration::ZERO);
        drop(pair);
        traffic.tick(QUIET / 2);
        traffic.tick(QUIET / 2);
        let flows = traffic.flows();
        let sources: Vec<&str> = flows.iter().map(|flow| flow.source.as_str()).collect();
        assert_eq!(sources, ["default/bare-7", "default/kept"]);
        assert_eq!(flows[0].requests, 2);
        let new = traffic.workload("default/new");
        assert_eq!(new.name(), "default/new");
        assert!(traffic.pair(&new, &web, security).is_some());
        drop(open);
    }
}

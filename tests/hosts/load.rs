//! A steady stream of HTTP requests from the hub, each on a connection of its own, and what became of every one.

use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{Lab, enter};
use crate::shared;

/// A client that waits longer than this for an answer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);
const CLIENTS: usize = 4;
/// Requests that one thing that breaks may cost: what clients had under way, twice.
const COST: usize = 2 * CLIENTS;
/// A request that is sent this long after something broke must not fail any more: a second, and a busy machine.
pub(crate) const AVOIDED: Duration = Duration::from_millis(1_500);
/// Between two requests of one client.
const PACE: Duration = Duration::from_millis(15);

pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    begun: Instant,
    clients: Vec<JoinHandle<Vec<Sample>>>,
}

/// One request.
pub(crate) struct Sample {
    /// When it was sent, since the load began.
    pub(crate) sent: Duration,
    pub(crate) took: Duration,
    pub(crate) outcome: Result<String, String>,
}

pub(crate) struct Report {
    /// In the order of sending.
    pub(crate) samples: Vec<Sample>,
}

/// One GET for that host name; the status and the body of any answer.
pub(crate) fn ask(address: SocketAddr, host: &str, path: &str) -> Result<(u16, String), String> {
    let asking = || {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        shared::http_get(stream, host, path)
    };
    asking().map_err(|error| error.to_string())
}

/// One GET; the body of a 200, or what went wrong.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    match ask(address, &address.to_string(), path)? {
        (200, body) => Ok(body),
        (status, body) => Err(format!("{status}: {}", body.trim())),
    }
}

// === impl Load ===

impl Load {
    /// Requests to `targets` in turn until [`Load::stop`].
    pub(crate) fn start(lab: &Lab, targets: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let namespace = lab.namespace_file("hub");
        let clients = (0..CLIENTS)
            .map(|client| {
                let (stop, namespace) = (Arc::clone(&stop), namespace.clone());
                let targets = targets.to_vec();
                std::thread::spawn(move || run(&namespace, &targets, client, begun, &stop))
            })
            .collect();
        Self {
            stop,
            begun,
            clients,
        }
    }

    /// Since the load began; what samples' times are comparable to.
    pub(crate) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn stop(self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let mut samples: Vec<Sample> = self
            .clients
            .into_iter()
            .flat_map(|client| client.join().expect("a client does not panic"))
            .collect();
        samples.sort_by_key(|sample| sample.sent);
        Report { samples }
    }
}

fn run(
    namespace: &Path,
    targets: &[SocketAddr],
    client: usize,
    begun: Instant,
    stop: &AtomicBool,
) -> Vec<Sample> {
    enter(namespace);
    let mut samples = Vec::new();
    let mut turn = client;
    while !stop.load(Ordering::Relaxed) {
        let sent = begun.elapsed();
        let outcome = get(targets[turn % targets.len()], "/");
        turn += 1;
        let took = begun.elapsed() - sent;
        samples.push(Sample {
            sent,
            took,
            outcome,
        });
        std::thread::park_timeout(PACE.saturating_sub(took));
    }
    samples
}

// === impl Report ===

impl Report {
    pub(crate) fn failures(&self) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(|sample| sample.outcome.is_err())
    }

    /// Panics unless every request was answered; there must have been some.
    pub(crate) fn assert_none_failed(&self, what: &str) {
        assert!(
            self.samples.len() > 20,
            "{what}: hardly any request was sent"
        );
        let failed: Vec<String> = self
            .failures()
            .map(|s| format!("{:?} (took {:?}): {:?}", s.sent, s.took, s.outcome))
            .collect();
        assert!(
            failed.is_empty(),
            "{what}: {} of {} requests failed: {:#?}",
            failed.len(),
            self.samples.len(),
            &failed[..failed.len().min(10)]
        );
    }

    /// Panics unless what failed was sent about when one of these things happened, and was little each time.
    pub(crate) fn assert_bounded(&self, what: &str, happened: &[Duration]) {
        let (failed, requests) = (self.failures().count(), self.samples.len());
        println!(
            "{what}, {} times: {failed} of {requests} requests failed",
            happened.len()
        );
        for sample in self.failures() {
            println!(
                "  sent {:?}, took {:?}: {:?}",
                sample.sent, sample.took, sample.outcome
            );
        }
        assert!(requests > 20, "{what}: hardly any request was sent");
        assert!(failed <= COST * happened.len(), "{what}: {failed} failed");
        for sample in self.failures() {
            // Those under way count from when they were sent.
            let (sent, ended) = (sample.sent, sample.sent + sample.took);
            let mut about = happened
                .iter()
                .map(|at| sent < *at + AVOIDED && ended > *at);
            let outcome = &sample.outcome;
            assert!(
                about.any(|explained| explained),
                "{what} at {happened:?}, sent {sent:?}: {outcome:?}"
            );
        }
    }

    pub(crate) fn print(&self, what: &str, since: Duration) {
        println!(
            "{what}: {} of {} requests failed, the last of them sent {:?} after",
            self.failures().count(),
            self.samples.len(),
            self.last_failure_after(since)
        );
    }

    /// How long after `since` the last of the requests that failed was sent.
    pub(crate) fn last_failure_after(&self, since: Duration) -> Option<Duration> {
        let last = self.failures().map(|s| s.sent).max()?;
        Some(last.saturating_sub(since))
    }
}

//! A steady stream of HTTP requests from the hub, each on a connection of its own, and what became of every one.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lab::{Lab, enter};

/// A client that waits longer than this for an answer counts as failed.
const PATIENCE: Duration = Duration::from_secs(5);
const CLIENTS: usize = 4;
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

/// One GET; the body of a 200, or what went wrong.
pub(crate) fn get(address: SocketAddr, path: &str) -> Result<String, String> {
    let text = |error: std::io::Error| error.to_string();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(text)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(text)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(text)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).map_err(text)?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("no answer")?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(format!(
            "{}: {}",
            head.lines().next().unwrap_or_default(),
            body.trim()
        )),
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

    /// How long after `since` the last of the requests that failed was sent.
    pub(crate) fn last_failure_after(&self, since: Duration) -> Option<Duration> {
        let last = self.failures().map(|s| s.sent).max()?;
        Some(last.saturating_sub(since))
    }
}

//! One line of JSON per request, when asked for. A bounded queue to one thread: a slow disk costs lines, never requests.

use std::fs::OpenOptions;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use types::error::chain;

/// Lines that may wait for the disk.
const QUEUE: usize = 8_192;
/// What is written is on its way to the file after this long.
const FLUSH: Duration = Duration::from_millis(200);

/// One request. The query is left out: secrets are found in them.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    pub(crate) time: Timestamp,
    pub(crate) node: String,
    pub(crate) source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_identity: Option<String>,
    pub(crate) destination: String,
    pub(crate) address: String,
    pub(crate) security: &'static str,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<String>,
    pub(crate) duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) trace_id: Option<String>,
}

pub(crate) struct AccessLog {
    lines: SyncSender<Line>,
    dropped: AtomicU64,
}

// === impl AccessLog ===

impl AccessLog {
    /// Appends to the file, made with mode 0600; `-` is standard output.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = OpenOptions::new()
                .create(true)
                .append(true)
                .mode(0o600)
                .open(path)?;
            Box::new(file)
        };
        let (lines, queue) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(&queue, out))?;
        Ok(Self {
            lines,
            dropped: AtomicU64::new(0),
        })
    }

    /// Never waits.
    pub(crate) fn add(&self, line: Line) {
        if let Err(TrySendError::Full(_)) = self.lines.try_send(line) {
            let before = self.dropped.fetch_add(1, Ordering::Relaxed);
            if before.is_power_of_two() || before == 0 {
                tracing::warn!(dropped = before + 1, "The access log cannot keep up");
            }
        }
    }
}

/// Until the log is dropped.
fn write(queue: &Receiver<Line>, out: Box<dyn Write + Send>) {
    let mut out = BufWriter::new(out);
    loop {
        let line = match queue.recv_timeout(FLUSH) {
            Ok(line) => line,
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                if let Err(error) = out.flush() {
                    tracing::warn!(error = %chain(&error), "The access log cannot be written");
                }
                continue;
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        };
        let written = serde_json::to_writer(&mut out, &line)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"));
        if let Err(error) = written {
            tracing::warn!(error = %chain(&error), "The access log cannot be written");
        }
    }
    // The end: what cannot be written now is lost, and said.
    if let Err(error) = out.flush() {
        tracing::warn!(error = %chain(&error), "The access log cannot be written");
    }
}

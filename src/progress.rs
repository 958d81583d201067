//! What a person who runs a role sees: progress on standard error, results on standard output. Knows how to print, nothing else.

use std::io::Write as _;

use tokio::time::Instant;

/// Progress lines, each with the time since the start: ` 0.213s  node ready`.
pub(crate) struct Progress {
    start: Instant,
}

// === impl Progress ===

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub(crate) fn say(&self, text: &str) {
        let elapsed = self.start.elapsed().as_secs_f64();
        let _ = writeln!(std::io::stderr(), "{elapsed:7.3}s  {text}");
    }
}

/// Prints lines on standard output; a closed pipe is nobody's failure.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

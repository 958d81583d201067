//! What std does not offer: one face for the component and, so that the rest can be tested natively, for Linux.

use std::io;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

/// The byte a terminal in line mode sends for ^C.
pub const INTERRUPT: u8 = 3;

/// Whether a terminal is attached: the host says so by `TERM`.
pub fn terminal() -> bool {
    static TERMINAL: OnceLock<bool> = OnceLock::new();
    *TERMINAL.get_or_init(|| {
        cfg!(target_os = "wasi") && std::env::var_os("TERM").is_some_and(|term| !term.is_empty())
    })
}

/// Time since some moment that does not change.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where this component reads the clock"
)]
pub fn since_start() -> Duration {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// Now, since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the one place where this component reads the clock"
)]
pub fn now() -> Duration {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default()
}

pub use imp::*;

#[cfg(target_os = "wasi")]
mod imp {
    use std::cell::{Cell, OnceCell, RefCell};

    use wasip2::cli::{environment, exit, stdin};
    use wasip2::clocks::monotonic_clock;
    use wasip2::filesystem::preopens;
    use wasip2::filesystem::types::Descriptor;
    use wasip2::io::poll::{self, Pollable};
    use wasip2::io::streams::{InputStream, StreamError};

    use super::*;

    thread_local! {
        static STDIN: OnceCell<InputStream> = const { OnceCell::new() };
        /// Read while looking for ^C, not yet asked for.
        static AHEAD: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
        /// Then stdin is ready for ever, and not waited for.
        static ENDED: Cell<bool> = const { Cell::new(false) };
        static PREOPENS: OnceCell<Vec<(Descriptor, String)>> = const { OnceCell::new() };
    }

    pub fn exit(code: i32) -> ! {
        exit::exit_with_code((code & 0xff) as u8);
        unreachable!("exit does not return")
    }

    pub fn initial_cwd() -> Option<String> {
        environment::initial_cwd()
    }

    /// The names of the directories this component was given.
    pub fn preopens() -> Vec<String> {
        with_preopens(|all| all.iter().map(|(_, name)| name.clone()).collect())
    }

    fn with_preopens<T>(f: impl FnOnce(&[(Descriptor, String)]) -> T) -> T {
        PREOPENS.with(|all| f(all.get_or_init(preopens::get_directories)))
    }

    pub fn symlink(target: &str, link: &str) -> io::Result<()> {
        with_preopens(|all| {
            let within = |name: &str| {
                let name = name.trim_end_matches('/');
                link.strip_prefix(name)
                    .filter(|rest| rest.starts_with('/'))
                    .map(|rest| (name.len(), rest[1..].to_owned()))
            };
            let (descriptor, _, rest) = all
                .iter()
                .filter_map(|(descriptor, name)| {
                    within(name).map(|(length, rest)| (descriptor, length, rest))
                })
                .max_by_key(|(_, length, _)| *length)
                .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            descriptor
                .symlink_at(target, &rest)
                .map_err(|code| io::Error::other(code.message().to_owned()))
        })
    }

    /// Waits for bytes; none at the end.
    pub fn read_stdin(into: &mut [u8]) -> io::Result<usize> {
        let ahead = AHEAD.take();
        if !ahead.is_empty() {
            let count = ahead.len().min(into.len());
            into[..count].copy_from_slice(&ahead[..count]);
            AHEAD.set(ahead[count..].to_vec());
            return Ok(count);
        }
        with_stdin(|stream| match stream.blocking_read(into.len() as u64) {
            Ok(bytes) => {
                into[..bytes.len()].copy_from_slice(&bytes);
                Ok(bytes.len())
            }
            Err(StreamError::Closed) => Ok(0),
            Err(StreamError::LastOperationFailed(error)) => {
                Err(io::Error::other(error.to_debug_string()))
            }
        })
    }

    fn with_stdin<T>(f: impl FnOnce(&InputStream) -> T) -> T {
        STDIN.with(|stream| f(stream.get_or_init(stdin::get_stdin)))
    }

    pub fn interrupted() -> bool {
        INTERRUPTED.get()
    }

    /// Forgets a ^C that has done its work.
    pub fn clear_interrupt() -> bool {
        INTERRUPTED.replace(false)
    }

    /// On a terminal, looks whether ^C was typed; other bytes are kept for who reads next.
    pub fn look_for_interrupt() {
        if !terminal() || ENDED.get() {
            return;
        }
        loop {
            let Ok(bytes) = with_stdin(|stream| stream.read(4096)) else {
                ENDED.set(true);
                return;
            };
            if bytes.is_empty() {
                return;
            }
            AHEAD.with_borrow_mut(|ahead| {
                ahead.extend_from_slice(&bytes);
                if let Some(at) = ahead.iter().rposition(|b| *b == INTERRUPT) {
                    ahead.drain(..=at);
                    INTERRUPTED.set(true);
                }
            });
        }
    }

    /// What was typed, or sent, so far; `None` at the end.
    pub fn poll_stdin() -> io::Result<Option<Vec<u8>>> {
        let ahead = AHEAD.take();
        if !ahead.is_empty() {
            return Ok(Some(ahead));
        }
        match with_stdin(|stream| stream.read(4096)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(StreamError::Closed) => Ok(None),
            Err(StreamError::LastOperationFailed(error)) => {
                Err(io::Error::other(error.to_debug_string()))
            }
        }
    }

    /// Why a wait ended.
    pub enum Waited {
        Ready,
        TimedOut,
        Interrupted,
    }

    /// Waits until it is ready or a moment (by `since_start`) has come; on a terminal ^C ends it early.
    pub fn wait(pollable: &Pollable, deadline: Option<Duration>) -> Waited {
        crate::io::flush();
        loop {
            look_for_interrupt();
            if interrupted() {
                return Waited::Interrupted;
            }
            if pollable.ready() {
                return Waited::Ready;
            }
            let left = deadline.map(|deadline| deadline.saturating_sub(since_start()));
            if left.is_some_and(|left| left.is_zero()) {
                return Waited::TimedOut;
            }
            let nanos = left.map(|left| u64::try_from(left.as_nanos()).unwrap_or(u64::MAX));
            let clock = nanos.map(monotonic_clock::subscribe_duration);
            let typed = (terminal() && !ENDED.get()).then(|| with_stdin(InputStream::subscribe));
            let all: Vec<&Pollable> = [Some(pollable), clock.as_ref(), typed.as_ref()]
                .into_iter()
                .flatten()
                .collect();
            poll::poll(&all);
        }
    }

    /// Sleeps; on a terminal ^C ends it early. Whether it lasted.
    pub fn pause(time: Duration) -> bool {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        !matches!(
            wait(&monotonic_clock::subscribe_duration(nanos), None),
            Waited::Interrupted
        )
    }
}

#[cfg(not(target_os = "wasi"))]
mod imp {
    use std::io::Read;

    use super::*;

    pub fn exit(code: i32) -> ! {
        std::process::exit(code & 0xff)
    }

    pub fn initial_cwd() -> Option<String> {
        std::env::current_dir()
            .ok()
            .map(|dir| dir.to_string_lossy().into_owned())
    }

    pub fn preopens() -> Vec<String> {
        vec!["/".to_owned()]
    }

    pub fn symlink(target: &str, link: &str) -> io::Result<()> {
        std::os::unix::fs::symlink(target, link)
    }

    pub fn read_stdin(into: &mut [u8]) -> io::Result<usize> {
        io::stdin().read(into)
    }

    /// Natively this waits.
    pub fn poll_stdin() -> io::Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 4096];
        let count = io::stdin().read(&mut buffer)?;
        buffer.truncate(count);
        Ok((count > 0).then_some(buffer))
    }

    pub fn interrupted() -> bool {
        false
    }

    pub fn clear_interrupt() -> bool {
        false
    }

    pub fn look_for_interrupt() {}

    #[expect(clippy::disallowed_methods, reason = "sleeping is what was asked for")]
    pub fn pause(time: Duration) -> bool {
        crate::io::flush();
        std::thread::sleep(time);
        true
    }
}

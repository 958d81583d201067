//! What std does not offer: one face for the component and, so that the rest can be tested natively, for Linux.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

static WAITS: AtomicU64 = AtomicU64::new(0);

/// How often this has waited for something outside.
pub fn waits() -> u64 {
    WAITS.load(Ordering::Relaxed)
}

fn waited() {
    WAITS.fetch_add(1, Ordering::Relaxed);
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
    use std::collections::VecDeque;

    use wasip2::cli::{environment, exit, stdin, terminal_stdin, terminal_stdout};
    use wasip2::clocks::monotonic_clock;
    use wasip2::filesystem::preopens;
    use wasip2::filesystem::types::Descriptor;
    use wasip2::io::poll::{self, Pollable};
    use wasip2::io::streams::{InputStream, StreamError};

    use super::*;

    /// The byte a terminal in line mode sends for ^C.
    const INTERRUPT: u8 = 3;
    /// What is read ahead while looking for ^C; beyond that it is not looked for.
    const MOST: usize = 64 << 10;

    /// Read, not yet asked for.
    enum Ahead {
        Bytes(Vec<u8>),
        /// ^D at a terminal, after which there may be more; or the end.
        End,
    }

    thread_local! {
        static STDIN: OnceCell<InputStream> = const { OnceCell::new() };
        static AHEAD: RefCell<VecDeque<Ahead>> = const { RefCell::new(VecDeque::new()) };
        static INTERRUPTED: Cell<bool> = const { Cell::new(false) };
        static PREOPENS: OnceCell<Vec<(Descriptor, String)>> = const { OnceCell::new() };
    }

    /// Whether somebody may type: the host knows, not the environment.
    pub fn terminal() -> bool {
        static TERMINAL: OnceLock<bool> = OnceLock::new();
        *TERMINAL.get_or_init(|| terminal_stdin::get_terminal_stdin().is_some())
    }

    /// Whether somebody sees what is written.
    pub fn screen() -> bool {
        static SCREEN: OnceLock<bool> = OnceLock::new();
        *SCREEN.get_or_init(|| terminal_stdout::get_terminal_stdout().is_some())
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

    /// Waits for bytes; none at the end. ^C on a terminal is an error, see [`interrupted`].
    pub fn read_stdin(into: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(next) = next(into.len())? {
                into[..next.len()].copy_from_slice(&next);
                return Ok(next.len());
            }
            waited();
            take_in(with_stdin(|stream| stream.blocking_read(into.len() as u64)))?;
        }
    }

    /// What has been read already, at most so much: nothing is the end.
    fn next(most: usize) -> io::Result<Option<Vec<u8>>> {
        if terminal() && interrupted() {
            return Err(io::Error::other("interrupted"));
        }
        AHEAD.with_borrow_mut(|ahead| {
            Ok(match ahead.pop_front() {
                None => None,
                Some(Ahead::End) => Some(Vec::new()),
                Some(Ahead::Bytes(mut bytes)) => {
                    if bytes.len() > most {
                        ahead.push_front(Ahead::Bytes(bytes.split_off(most)));
                    }
                    Some(bytes)
                }
            })
        })
    }

    /// Puts what stdin gave to what was read ahead. A ^C takes away all that stands before it.
    fn take_in(read: Result<Vec<u8>, StreamError>) -> io::Result<()> {
        let mut bytes = match read {
            Ok(bytes) => bytes,
            Err(StreamError::Closed) => {
                AHEAD.with_borrow_mut(|ahead| ahead.push_back(Ahead::End));
                return Ok(());
            }
            Err(StreamError::LastOperationFailed(error)) => {
                return Err(io::Error::other(error.to_debug_string()));
            }
        };
        AHEAD.with_borrow_mut(|ahead| {
            if terminal()
                && let Some(at) = bytes.iter().rposition(|b| *b == INTERRUPT)
            {
                ahead.clear();
                bytes.drain(..=at);
                INTERRUPTED.set(true);
            }
            if !bytes.is_empty() {
                ahead.push_back(Ahead::Bytes(bytes));
            }
        });
        Ok(())
    }

    /// Whether to look for ^C: not beyond a second end that nobody has read, which is a stdin that is closed for good and
    /// would be ready for ever.
    fn looks() -> bool {
        terminal()
            && AHEAD.with_borrow(|ahead| {
                let (mut ends, mut bytes) = (0, 0);
                for one in ahead {
                    match one {
                        Ahead::End => ends += 1,
                        Ahead::Bytes(some) => bytes += some.len(),
                    }
                }
                ends < 2 && bytes < MOST
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
        while looks() {
            let read = with_stdin(|stream| stream.read(4096));
            let nothing = matches!(&read, Ok(bytes) if bytes.is_empty());
            if take_in(read).is_err() || nothing {
                return;
            }
        }
    }

    /// What was typed, or sent, so far; `None` at the end.
    pub fn poll_stdin() -> io::Result<Option<Vec<u8>>> {
        for _ in 0..2 {
            if let Some(next) = next(4096)? {
                return Ok((!next.is_empty()).then_some(next));
            }
            take_in(with_stdin(|stream| stream.read(4096)))?;
        }
        Ok(Some(next(4096)?.unwrap_or_default()))
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
            let typed = looks().then(|| with_stdin(InputStream::subscribe));
            let all: Vec<&Pollable> = [Some(pollable), clock.as_ref(), typed.as_ref()]
                .into_iter()
                .flatten()
                .collect();
            waited();
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

    pub fn terminal() -> bool {
        false
    }

    pub fn screen() -> bool {
        false
    }

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
        waited();
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
        waited();
        std::thread::sleep(time);
        true
    }
}

//! What a client types on its way into a process: as it comes, or through a terminal's line discipline. Knows no protocol.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncReadExt};

use super::discipline::{Act, Discipline, printed};
use crate::runtime::{Input, LogSink, LogStream};

/// A guest that listens for it reads this byte, and nothing typed before, where a process would get SIGINT.
const INTERRUPT: u8 = 0x03;
/// What a process that SIGINT or SIGQUIT ends is seen to return.
const INTERRUPTED: i32 = 130;
const QUIT: i32 = 131;
/// What is read from the client at once.
const CHUNK: usize = 8 * 1024;
const BELL: &[u8] = b"\x07";

/// A process' stdin: an exec session's, or a container's for as long as its instance lives.
pub(in crate::pods) struct Stdin {
    input: Arc<Input>,
    // Locked while one chunk of keys is taken in.
    terminal: Option<Mutex<Discipline>>,
    interrupts: Interrupts,
    /// Its first client's end is its end.
    once: bool,
}

/// Closes a stdin of one client when that one has left.
pub(super) struct Once<'a>(&'a Stdin);

/// What ^C means to the process.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(in crate::pods) enum Interrupts {
    /// Its end: what SIGINT does by default.
    End,
    /// It reads [`INTERRUPT`] and does what it sees fit; a second ^C before it has read the first one ends it.
    AreRead,
}

/// Why nothing more is read from the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fed {
    /// The client has no more to say.
    End,
    /// A key ends the process with this code.
    Ended(i32),
}

/// What a terminal shows: its process' output with carriage returns, all on stdout.
pub(in crate::pods) struct Screen(pub(in crate::pods) Arc<dyn LogSink>);

impl Stdin {
    pub(in crate::pods) fn new(tty: bool, interrupts: Interrupts, once: bool) -> Stdin {
        Stdin {
            input: Input::new(tty),
            terminal: tty.then(Mutex::default),
            interrupts,
            once,
        }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal.is_some()
    }

    pub(super) fn once(&self) -> Once<'_> {
        Once(self)
    }

    /// For the guest.
    pub(in crate::pods) fn input(&self) -> Arc<Input> {
        Arc::clone(&self.input)
    }

    /// Passes on what the client sends, until it ends or ends the process. A terminal's echo goes to `screen`.
    pub(super) async fn feed(
        &self,
        mut client: impl AsyncRead + Unpin,
        screen: &dyn LogSink,
    ) -> Fed {
        let mut chunk = vec![0; CHUNK];
        loop {
            let read = match client.read(&mut chunk).await {
                // A client whose connection breaks says no more either.
                Ok(0) | Err(_) => return Fed::End,
                Ok(read) => &chunk[..read],
            };
            match &self.terminal {
                None => self.input.write(read).await,
                Some(discipline) => {
                    if let Some(code) = self.typed(discipline, read, screen) {
                        return Fed::Ended(code);
                    }
                }
            }
        }
    }

    /// The process finds the end.
    pub(super) fn close(&self) {
        self.input.close();
    }

    /// Never waits: a key like ^C must get through to a process that reads nothing. What has no room rings the bell.
    fn typed(
        &self,
        discipline: &Mutex<Discipline>,
        keys: &[u8],
        screen: &dyn LogSink,
    ) -> Option<i32> {
        let heard = discipline
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .hear(keys);
        show(screen, &heard.echo);
        for act in heard.acts {
            match act {
                Act::Line(line) => {
                    if self.input.try_write(&line) < line.len() {
                        show(screen, BELL);
                    }
                }
                Act::End => self.input.end_once(),
                Act::Interrupt => {
                    let read = self.interrupts == Interrupts::AreRead;
                    if !read || !self.input.interrupt(INTERRUPT) {
                        return Some(INTERRUPTED);
                    }
                }
                Act::Quit => return Some(QUIT),
            }
        }
        None
    }
}

impl Drop for Once<'_> {
    fn drop(&mut self) {
        if self.0.once {
            self.0.close();
        }
    }
}

/// An echo for which there is no room is not shown: the client does not read.
fn show(screen: &dyn LogSink, echo: &[u8]) {
    if !echo.is_empty() && screen.capacity() >= echo.len() {
        screen.write(LogStream::Stdout, echo);
    }
}

impl LogSink for Screen {
    fn capacity(&self) -> usize {
        // Each byte may become two; the last one may be one too many.
        self.0.capacity().div_ceil(2)
    }

    fn write(&self, _: LogStream, bytes: &[u8]) {
        self.0.write(LogStream::Stdout, &printed(bytes));
    }

    fn writable(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.0.writable()
    }
}

#[cfg(test)]
mod tests {
    use super::super::outlet::{EXEC, Outlet};
    use super::*;

    async fn fed(stdin: &Stdin, keys: &[u8]) -> Fed {
        stdin.feed(keys, &*Outlet::new(EXEC)).await
    }

    #[tokio::test]
    async fn an_interrupt_ends_what_does_not_listen() {
        let sleep = Stdin::new(true, Interrupts::End, true);
        assert_eq!(fed(&sleep, b"ab\x03").await, Fed::Ended(130));
        let shell = Stdin::new(true, Interrupts::AreRead, true);
        assert_eq!(fed(&shell, b"ab\x03").await, Fed::End);
        assert_eq!(fed(&shell, b"\x03").await, Fed::Ended(130), "unread");
        assert_eq!(fed(&shell, b"\x1c").await, Fed::Ended(131));
        let pipe = Stdin::new(false, Interrupts::End, true);
        assert_eq!(fed(&pipe, b"\x03").await, Fed::End, "not a terminal");
    }
}

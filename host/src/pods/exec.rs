//! `exec` and `attach`: which container is meant, a process beside it, the container's own streams. What carries them
//! (WebSocket, SPDY) is none of this module's business; it sees readers and writers.
//!
//! ```text
//!  client ─ stdin ─▶ Stdin [discipline, with a tty] ─▶ Input ─▶ guest
//!  client ◀ stdout, stderr ─ Outlet ◀─ [Screen, with a tty] ◀─ guest (exec), or the container's log (attach)
//! ```
//!
//! A guest cannot fork, so `exec` runs the toolbox (`toolbox.rs`) as another instance in the container's sandbox: its
//! environment, mounts, working directory and network, and on its account: memory and CPU count for the container's limits. A
//! process that asks for more memory than is left ends alone, with 137; the container is not touched. When the container
//! ends, its processes do, too (137). A client that goes away ends its process.
//!
//! Differs from Kubernetes: there are no signals. In a terminal, ^C ends the process (130), as SIGINT would, unless it is a
//! shell: that one, and what it runs, finds the byte 0x03 where it reads its input, in front of anything typed before, and
//! ends what runs, or itself. A shell that does not come to look is ended by a second ^C, and by ^\ (131) in any case.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::known::{Entry, Known, Record};
use super::toolbox::{self, Place, Shelf, Shown};
use crate::runtime::{Exit, ExitCause, LogSink, LogStream, Process, Running, StartError};

mod discipline;
mod outlet;
mod stdin;

pub(super) use outlet::Outlet;
use outlet::{ATTACH, EXEC, End};
use stdin::Fed;
pub(super) use stdin::{Interrupts, Screen, Stdin};

/// After the process ended, a client may take so long for its last words.
const LAST_WORDS: Duration = Duration::from_secs(30);
/// The toolbox is compiled at its first use; probes and hooks wait so long for it.
const COMPILING: Duration = Duration::from_secs(120);
/// A client that has a terminal says at once how large it is.
const FIRST_SIZE: Duration = Duration::from_millis(100);
/// Most of a probe's or a hook's output that is kept, as upstream.
const CAPTURED: usize = 10 * 1024;

/// Which container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// `None`: whichever pod has the name.
    pub(crate) uid: Option<String>,
    pub(crate) container: String,
}

/// The client's terminal, in characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// The client's end. What it did not ask for is absent; a writer that fails says that the client is gone.
pub(crate) struct Session {
    pub(crate) stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Absent with a terminal: everything is on `stdout` there.
    pub(crate) stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Closed when the client sends no sizes.
    pub(crate) resize: mpsc::Receiver<Size>,
    pub(crate) tty: bool,
}

/// In the kubelet's words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("pod does not exist")]
    NoPod,
    #[error("container not found (\"{container}\")")]
    NoContainer { container: String },
    #[error("container {container} is not running")]
    NotRunning { container: String },
    #[error("{what} is not supported by this node: it came without a toolbox")]
    NoToolbox { what: &'static str },
    #[error("you must specify at least one command for the container")]
    Nothing,
    #[error("exec: \"{command}\": {}", if *path { "stat ".to_owned() + command + ": no such file or directory" } else { "executable file not found in $PATH".to_owned() })]
    NoCommand {
        command: String,
        /// It was looked for at one place only.
        path: bool,
    },
    #[error("{most} sessions run on this {of} already")]
    TooMany { most: usize, of: &'static str },
    #[error("failed to start exec: {why}")]
    Start { why: String },
    #[error("command timed out: {command:?} timed out after {}s", limit.as_secs())]
    TimedOut { command: String, limit: Duration },
    #[error("the client did not keep up with the container's output, {ATTACH} bytes of it waited")]
    FellBehind,
    #[error("the client is gone")]
    Gone,
}

/// A container that runs, to start something beside it.
#[derive(Clone)]
pub(super) struct Beside {
    pub(super) record: Arc<Record>,
    pub(super) container: String,
    pub(super) running: Arc<Running>,
}

/// A process that runs. Dropping it kills it.
struct Begun {
    running: Running,
    _place: Place,
    _entry: Entry,
}

// === impl Known ===

impl Known {
    /// What can be said before any stream is open.
    pub(crate) fn check(&self, target: &Target) -> Result<(), ExecError> {
        self.beside(target).map(drop)
    }

    fn beside(&self, target: &Target) -> Result<Beside, ExecError> {
        let record = self
            .find(&target.namespace, &target.pod)
            .filter(|record| target.uid.as_ref().is_none_or(|uid| *uid == record.uid))
            .ok_or(ExecError::NoPod)?;
        let container =
            record
                .container(&target.container)
                .ok_or_else(|| ExecError::NoContainer {
                    container: target.container.clone(),
                })?;
        let running = container.running.ok_or_else(|| ExecError::NotRunning {
            container: target.container.clone(),
        })?;
        Ok(Beside {
            record,
            container: container.name,
            running,
        })
    }

    /// Runs `command` beside the container until it ends; its exit code. Cancel by dropping: the guest ends.
    pub(crate) async fn exec(
        &self,
        target: Target,
        command: Vec<String>,
        session: Session,
    ) -> Result<i32, ExecError> {
        let beside = self.beside(&target)?;
        let shelf = self.shelf().ok_or(ExecError::NoToolbox { what: "exec" })?;
        shelf.converse(&beside, &command, session).await
    }

    /// Joins the container's own streams until it ends. Cancel by dropping: the container goes on.
    pub(crate) async fn attach(&self, target: Target, session: Session) -> Result<i32, ExecError> {
        let beside = self.beside(&target)?;
        let container = beside.record.container(&beside.container);
        let not_running = || ExecError::NotRunning {
            container: target.container.clone(),
        };
        let (log, own) = container
            .and_then(|container| Some((container.log?, container.stdin)))
            .ok_or_else(not_running)?;
        let outlet = Outlet::new(ATTACH);
        log.listen(&outlet);
        // Its first client's leaving is the end of a `stdinOnce`.
        let types = session.stdin.is_some();
        let once = own.as_deref().filter(|_| types).map(Stdin::once);
        let keys = async {
            if let (Some(client), Some(own)) = (session.stdin, &own)
                && let Fed::Ended(code) = own.feed(client, &log).await
            {
                beside.running.end(code);
            }
            drop(once);
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            delivered = deliver(&outlet, session.stdout, session.stderr) => match delivered? {
                End::Closed => Ok(0),
                End::FellBehind => Err(ExecError::FellBehind),
            },
            never = keys => match never {},
            never = ignore(session.resize) => match never {},
        }
    }
}

// === impl Shelf ===

impl Shelf {
    /// A client's session.
    async fn converse(
        &self,
        beside: &Beside,
        command: &[String],
        mut session: Session,
    ) -> Result<i32, ExecError> {
        let tty = session.tty;
        let size = match tty {
            true => tokio::time::timeout(FIRST_SIZE, session.resize.recv()).await,
            false => Ok(None),
        };
        let stdin =
            (session.stdin.is_some() || tty).then(|| Stdin::new(tty, interrupts(command), true));
        let outlet = Outlet::new(EXEC);
        let output: Arc<dyn LogSink> = match tty {
            true => Arc::new(Screen(Arc::clone(&outlet) as _)),
            false => Arc::clone(&outlet) as _,
        };
        let begun = self
            .begin(
                self.place()?,
                beside,
                command,
                stdin.as_ref(),
                Arc::clone(&output),
                size.ok().flatten(),
            )
            .await?;
        let process = &begun.running;
        let keys = async {
            if let Some(stdin) = &stdin {
                if let Some(client) = session.stdin
                    && let Fed::Ended(code) = stdin.feed(client, &*outlet).await
                {
                    process.end(code);
                }
                stdin.close();
            }
            std::future::pending::<Infallible>().await
        };
        let deliver = deliver(&outlet, session.stdout, session.stderr);
        tokio::pin!(deliver);
        let exit = tokio::select! {
            biased;
            // Before the queue is closed this ends only when the client does.
            delivered = &mut deliver => return delivered.and(Err(ExecError::Gone)),
            exit = process.wait() => exit,
            never = keys => match never {},
            never = ignore(session.resize) => match never {},
        };
        explain(&exit, &*output);
        outlet.close();
        // A client that does not take them in time still learns the code.
        let _ = tokio::time::timeout(LAST_WORDS, deliver).await;
        Ok(exit.code)
    }

    /// Runs `command` beside the container, within `limit`: its exit code and the beginning of what it said.
    pub(super) async fn run(
        &self,
        beside: &Beside,
        command: &[String],
        limit: Duration,
    ) -> Result<(i32, String), ExecError> {
        // A probe's time is its command's: the first one of a node must not fail because the toolbox is being compiled.
        tokio::time::timeout(COMPILING, self.component())
            .await
            .unwrap_or_else(|_| {
                Err(ExecError::Start {
                    why: "the toolbox is still being compiled".to_owned(),
                })
            })?;
        // Neither must it fail because others are asked at the moment.
        let place = self.own_place(limit.min(COMPILING)).await?;
        let outlet = Outlet::new(EXEC);
        let output: Arc<dyn LogSink> = Arc::clone(&outlet) as _;
        let run = async {
            let begun = self
                .begin(place, beside, command, None, Arc::clone(&output), None)
                .await?;
            let mut said = Vec::new();
            let listen = async {
                while let Ok((_, bytes)) = outlet.next().await {
                    let room = CAPTURED.saturating_sub(said.len()).min(bytes.len());
                    said.extend_from_slice(&bytes[..room]);
                }
            };
            let end = async {
                let exit = begun.running.wait().await;
                explain(&exit, &*output);
                outlet.close();
                exit
            };
            let ((), exit) = tokio::join!(listen, end);
            Ok((exit.code, String::from_utf8_lossy(&said).into_owned()))
        };
        tokio::time::timeout(limit, run).await.unwrap_or_else(|_| {
            Err(ExecError::TimedOut {
                command: command.join(" "),
                limit,
            })
        })
    }

    async fn begin(
        &self,
        place: Place,
        beside: &Beside,
        command: &[String],
        stdin: Option<&Stdin>,
        output: Arc<dyn LogSink>,
        size: Option<Size>,
    ) -> Result<Begun, ExecError> {
        let (name, rest) = command.split_first().ok_or(ExecError::Nothing)?;
        let applet = self.applet(name)?;
        let Beside {
            record,
            container,
            running,
        } = beside;
        let entry = record.enter(place.whose, command.join(" "))?;
        let component = self.component().await?;
        let failed = |why: String| ExecError::Start { why };
        let etc = self
            .etc(&record.uid, running)
            .await
            .map_err(|error| failed(format!("cannot write the pod's /etc: {error}")))?;
        let mut shown = vec![Shown {
            pid: 1,
            seconds: running.usage().cpu_nanos / 1_000_000_000,
            command: running.args().join(" "),
        }];
        // `ps` shows itself.
        let others = record.sessions().into_iter();
        let others = others.filter(|(pid, _)| applet != "ps" || *pid != entry.pid());
        shown.extend(others.map(|(pid, command)| Shown {
            pid,
            seconds: 0,
            command,
        }));
        let tty = stdin.is_some_and(Stdin::is_terminal);
        let hostname = &running.network().identity().hostname;
        let process = Process {
            name: format!(
                "{}/{}/{container} exec {applet}",
                record.namespace, record.name
            ),
            args: std::iter::once(applet.to_owned())
                .chain(rest.iter().cloned())
                .collect(),
            env: toolbox::environment(running.environment(), hostname, size, tty, &shown),
            mounts: etc.into_iter().collect(),
            stdin: stdin.map(Stdin::input),
            terminal: tty,
            output,
        };
        let process = self.runtime().exec(running, &component, process);
        let running = process.map_err(|error| match error {
            StartError::Mount { ref source, .. } => failed(format!("{error}: {source}")),
            error => failed(error.to_string()),
        })?;
        Ok(Begun {
            running,
            _place: place,
            _entry: entry,
        })
    }
}

/// A shell reads ^C itself, and ends with 130 if nobody types into it (`sh -c` may become one that somebody does); anything
/// else is ended by it.
pub(super) fn interrupts(command: &[String]) -> Interrupts {
    let called = |command: &[String]| {
        let name = command.first().map(String::as_str).unwrap_or_default();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    };
    // As an image, the toolbox is told by its first argument what to be, and is a shell without one.
    let command = match command {
        [_] if called(command) == toolbox::PROGRAM => return Interrupts::AreRead,
        [_, rest @ ..] if called(command) == toolbox::PROGRAM => rest,
        command => command,
    };
    match called(command).as_str() {
        "sh" | "ash" => Interrupts::AreRead,
        _ => Interrupts::End,
    }
}

/// A trap is told where the command's output goes.
fn explain(exit: &Exit, output: &dyn LogSink) {
    if matches!(exit.cause, ExitCause::Trapped | ExitCause::OutOfMemory) && !exit.message.is_empty()
    {
        let message = format!("coracle: {}\n", exit.message);
        output.write(LogStream::Stderr, message.as_bytes());
    }
}

/// Until there is no more, or the client is gone.
async fn deliver(
    outlet: &Outlet,
    mut stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    mut stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
) -> Result<End, ExecError> {
    loop {
        let (stream, bytes) = match outlet.next().await {
            Ok(next) => next,
            Err(end) => return Ok(end),
        };
        let writer = match stream {
            LogStream::Stdout => &mut stdout,
            LogStream::Stderr => &mut stderr,
        };
        // What the client did not ask for is not for it.
        if let Some(writer) = writer {
            let written = async {
                writer.write_all(&bytes).await?;
                writer.flush().await
            };
            written.await.map_err(|_| ExecError::Gone)?;
        }
    }
}

/// A guest cannot be told of a new size; it has the first one in its environment.
async fn ignore(mut resize: mpsc::Receiver<Size>) -> Infallible {
    while resize.recv().await.is_some() {}
    std::future::pending().await
}

#[cfg(test)]
pub(crate) mod sessions;
#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::known::Record;
    use super::*;

    #[test]
    fn only_a_shell_reads_interrupts() {
        let check = |command: &[&str], expected| {
            let words: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(interrupts(&words), expected, "{command:?}");
        };
        check(&["sh"], Interrupts::AreRead);
        check(&["/bin/sh", "-i"], Interrupts::AreRead);
        check(&["toolbox"], Interrupts::AreRead);
        check(&["toolbox", "sh"], Interrupts::AreRead);
        check(&["sh", "-c", "exec bash || exec sh"], Interrupts::AreRead);
        check(&["toolbox", "ash", "script"], Interrupts::AreRead);
        check(&["toolbox", "sleep", "9"], Interrupts::End);
        check(&["cat"], Interrupts::End);
    }

    #[test]
    fn what_cannot_be_asked_is_said_before_any_stream_is_open() {
        let known = Known::default();
        let record = Record::new(
            "default",
            "web",
            "u1",
            PathBuf::new(),
            std::iter::once("app".to_owned()),
        );
        known.insert(Arc::new(record));
        let target = |pod: &str, uid: Option<&str>, container: &str| Target {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            uid: uid.map(str::to_owned),
            container: container.to_owned(),
        };
        let said = |target| known.check(&target).expect_err("refused").to_string();
        assert_eq!(said(target("db", None, "app")), "pod does not exist");
        assert_eq!(said(target("web", Some("u0"), "app")), "pod does not exist");
        assert_eq!(
            said(target("web", Some("u1"), "x")),
            "container not found (\"x\")"
        );
        assert_eq!(
            said(target("web", None, "app")),
            "container app is not running"
        );
    }
}

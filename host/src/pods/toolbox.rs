//! The shell where there is none: which commands there are, the component that runs them, and what a process of it finds
//! around itself in a container. Compiles on first use; starts nothing by itself.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use super::exec::{ExecError, Size};
use super::known::Whose;
use crate::images::digest;
use crate::runtime::{Component, Mount, Running, Runtime};

/// Clients' sessions on this node at the same time; `Record` bounds those of one pod.
const SESSIONS: usize = 256;
/// Commands of probes and hooks on this node at the same time: more wait. No client can take these places.
const ASKED: usize = 256;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a terminal is taken for, as upstream's runtimes do.
pub(super) const TERM: &str = "xterm";
/// What it is called when it is a container's image: then its first argument says which tool it is.
pub(super) const PROGRAM: &str = "toolbox";
/// Where the generated files are seen.
const ETC: &str = "/etc";

/// What comes with the program: a component of `wasi:cli/command` that looks at `argv[0]`, and the names it knows.
#[derive(Clone, Copy, Debug)]
pub struct Toolbox {
    pub component: &'static [u8],
    /// One name a line; `#` begins a comment.
    pub applets: &'static str,
}

/// The toolbox of a node.
pub(crate) struct Shelf {
    runtime: Runtime,
    bytes: &'static [u8],
    applets: HashSet<&'static str>,
    digest: std::sync::OnceLock<String>,
    component: OnceCell<Arc<Component>>,
    sessions: Arc<Semaphore>,
    asked: Arc<Semaphore>,
    pods_directory: PathBuf,
    /// Held while generated files are written, so that two sessions do not write the same.
    writing: tokio::sync::Mutex<()>,
}

/// One of a node's places for processes, until dropped.
pub(super) struct Place {
    pub(super) whose: Whose,
    _permit: OwnedSemaphorePermit,
}

/// What `ps` is to show: process id, what the process used, its command.
pub(super) struct Shown {
    pub(super) pid: u32,
    pub(super) seconds: u64,
    pub(super) command: String,
}

impl Shelf {
    pub(crate) fn new(toolbox: Toolbox, runtime: Runtime, pods_directory: PathBuf) -> Shelf {
        let applets = toolbox.applets.lines().map(str::trim);
        Shelf {
            runtime,
            bytes: toolbox.component,
            applets: applets
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .collect(),
            digest: std::sync::OnceLock::new(),
            component: OnceCell::new(),
            sessions: Arc::new(Semaphore::new(SESSIONS)),
            asked: Arc::new(Semaphore::new(ASKED)),
            pods_directory,
            writing: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The command's name, whatever directory it is looked for in.
    pub(super) fn applet(&self, command: &str) -> Result<&'static str, ExecError> {
        let name = command.rsplit('/').next().unwrap_or_default();
        self.applets
            .get(name)
            .copied()
            .ok_or_else(|| ExecError::NoCommand {
                command: command.to_owned(),
                path: command.contains('/'),
            })
    }

    /// Whether an image is the toolbox itself: its shell reads interrupts.
    pub(super) fn is(&self, image: &str) -> bool {
        *self.digest.get_or_init(|| digest(self.bytes)) == image
    }

    /// Compiled once; kept from then on, since probes come again and again.
    pub(super) async fn component(&self) -> Result<Arc<Component>, ExecError> {
        let load = async {
            let bytes = Bytes::from_static(self.bytes);
            let digest = self.digest.get_or_init(|| digest(self.bytes));
            self.runtime
                .load(bytes, digest)
                .await
                .map_err(|error| ExecError::Start {
                    why: format!("the toolbox cannot run here: {error}"),
                })
        };
        self.component.get_or_try_init(|| load).await.cloned()
    }

    /// For a client.
    pub(super) fn place(&self) -> Result<Place, ExecError> {
        let permit = Arc::clone(&self.sessions).try_acquire_owned();
        let _permit = permit.map_err(|_| ExecError::TooMany {
            most: SESSIONS,
            of: "node",
        })?;
        Ok(Place {
            whose: Whose::Client,
            _permit,
        })
    }

    /// For a probe or a hook, which waits so long for it.
    pub(super) async fn own_place(&self, patience: Duration) -> Result<Place, ExecError> {
        let permit = Arc::clone(&self.asked).acquire_owned();
        let permit = tokio::time::timeout(patience, permit).await;
        let permit = permit.ok().and_then(Result::ok);
        let _permit = permit.ok_or(ExecError::TooMany {
            most: ASKED,
            of: "node",
        })?;
        Ok(Place {
            whose: Whose::Node,
            _permit,
        })
    }

    /// Generated files where a container would have them from its image. `None`: the container has an `/etc` of its own.
    pub(super) async fn etc(&self, uid: &str, running: &Running) -> io::Result<Option<Mount>> {
        let own = |mount: &Mount| matches!(mount.guest.trim_end_matches('/'), ETC | "");
        if running.mounts().iter().any(own) {
            return Ok(None);
        }
        let _writing = self.writing.lock().await;
        let directory = self.pods_directory.join(uid).join("etc");
        let files = crate::dns::files::etc(running.network());
        let host = directory.clone();
        let write = move || files.iter().try_for_each(|file| write(&directory, file));
        tokio::task::spawn_blocking(write).await??;
        Ok(Some(Mount {
            host,
            guest: ETC.to_owned(),
            read_only: true,
            held: None,
        }))
    }
}

/// Left alone when it says this already: another session may be reading it.
fn write(directory: &Path, (name, text): &(&'static str, String)) -> io::Result<()> {
    let path = directory.join(name);
    if std::fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
        return Ok(());
    }
    std::fs::create_dir_all(directory)?;
    let new = directory.join(format!(".{name}"));
    std::fs::write(&new, text)?;
    std::fs::rename(&new, &path)
}

/// The container's environment, and what a shell needs beside it. PURE.
pub(super) fn environment(
    container: &[(String, String)],
    hostname: &str,
    size: Option<Size>,
    tty: bool,
    processes: &[Shown],
) -> Vec<(String, String)> {
    let mut environment = container.to_vec();
    let mut unless_set = |name: &str, value: String| {
        if !environment.iter().any(|(known, _)| known == name) {
            environment.push((name.to_owned(), value));
        }
    };
    unless_set("PATH", PATH.to_owned());
    unless_set("HOSTNAME", hostname.to_owned());
    unless_set("HOME", "/".to_owned());
    if tty {
        unless_set("TERM", TERM.to_owned());
    }
    if let Some(size) = size {
        unless_set("COLUMNS", size.width.to_string());
        unless_set("LINES", size.height.to_string());
    }
    // What a container has because it has a terminal is not for a session without one.
    environment
        .retain(|(name, value)| name != "CORACLE_PS" && (tty || name != "TERM" || value != TERM));
    environment.push(("CORACLE_PS".to_owned(), table(processes)));
    environment
}

/// Lines of `PID USER TIME COMMAND`.
fn table(processes: &[Shown]) -> String {
    let line = |shown: &Shown| {
        let (minutes, seconds) = (shown.seconds / 60, shown.seconds % 60);
        // One process, one line.
        let command = shown.command.replace(['\n', '\0'], " ");
        format!("{} root {minutes}:{seconds:02} {command}", shown.pid)
    };
    processes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_has_the_containers_environment_and_what_a_shell_needs() {
        let container = [("PATH", "/app"), ("CORACLE_PS", "x"), ("COLUMNS", "1")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let shown = [Shown {
            pid: 1,
            seconds: 61,
            command: "serve\nit".to_owned(),
        }];
        let size = Size {
            width: 80,
            height: 24,
        };
        let environment = environment(&container, "web-0", Some(size), true, &shown);
        let lines: Vec<String> = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        assert_eq!(
            lines,
            [
                "PATH=/app",
                "COLUMNS=1",
                "HOSTNAME=web-0",
                "HOME=/",
                "TERM=xterm",
                "LINES=24",
                "CORACLE_PS=1 root 1:01 serve it",
            ]
        );
    }
}

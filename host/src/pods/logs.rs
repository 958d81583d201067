//! Container logs: CRI lines in files with rotation. One [`Log`] per instance takes what the guest writes (bounded, never
//! blocking); one thread per node puts it into files. A container that says nothing costs no file.
//!
//! ```text
//! logs/<namespace>_<pod>_<uid>/<container>/<instance>.log     2026-11-23T16:00:00.123456789Z stdout F hello
//!                                         <instance>.log.1 …  rotated, the newest first
//! ```

use std::collections::VecDeque;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use types::error::chain;

use super::exec::Outlet;
use crate::runtime::{LogSink, LogStream};

mod read;

pub(crate) use read::{Options, Reader};

/// Most bytes that wait for the writer, per container.
const PENDING: usize = 64 * 1024;
/// Most bytes taken in one write: short lines grow by their timestamps.
const CHUNK: usize = 16 * 1024;
/// A longer line is cut into partial ones.
const LINE: usize = 16 * 1024;
const FILE: u64 = 10 * 1024 * 1024;
/// Files per instance, the one being written included.
const FILES: u32 = 5;

/// Where a container's logs lie. Cheap to make.
#[derive(Clone, Debug)]
pub(crate) struct Logs {
    root: PathBuf,
    writer: Arc<Writer>,
}

/// What one instance writes. Dropping it does not lose what was written.
pub(crate) struct Log {
    path: PathBuf,
    // Locked for as long as copying one chunk takes, by the guest's thread and the writer.
    buffer: Mutex<Buffer>,
    writable: Notify,
    progress: watch::Sender<Progress>,
    writer: Arc<Writer>,
}

/// For followers: grows with every batch that reached the file.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(crate) struct Progress {
    pub(crate) batches: u64,
    /// The instance ended and everything is written.
    pub(crate) closed: bool,
}

#[derive(Default)]
struct Buffer {
    /// Finished lines, not yet in the file.
    pending: Vec<u8>,
    /// Unfinished lines of stdout and stderr.
    partial: [Vec<u8>; 2],
    queued: bool,
    closed: bool,
    /// Clients that see what is written from now on. They never hold up who writes.
    listeners: Vec<Weak<Outlet>>,
}

/// The node's log thread: takes logs with something to write, one after the other, so that a flood waits its turn.
#[derive(Debug, Default)]
struct Writer {
    // Held to push or pop one entry.
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    logs: VecDeque<Arc<Log>>,
    stopping: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue")
            .field("logs", &self.logs.len())
            .finish()
    }
}

/// Joins the log thread: what was written before is in the files afterwards.
pub(crate) struct WriterThread {
    writer: Arc<Writer>,
    thread: Option<std::thread::JoinHandle<()>>,
}

// === impl Logs ===

impl Logs {
    /// Starts the log thread; it ends, after the last byte, when the thread handle is dropped.
    pub(crate) fn start(root: PathBuf) -> io::Result<(Logs, WriterThread)> {
        fs::create_dir_all(&root)?;
        let writer = Arc::new(Writer::default());
        let own = Arc::clone(&writer);
        let thread = std::thread::Builder::new()
            .name("logs".to_owned())
            .spawn(move || own.run())?;
        let handle = WriterThread {
            writer: Arc::clone(&writer),
            thread: Some(thread),
        };
        Ok((Logs { root, writer }, handle))
    }

    /// A pod's directory, below which each container has its own.
    pub(crate) fn pod_directory(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.root.join(format!("{namespace}_{name}_{uid}"))
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A log for one instance of a container; logs of instances before the previous one are removed.
    pub(crate) fn open(&self, pod_directory: &Path, container: &str, instance: u32) -> Arc<Log> {
        Arc::new(Log {
            path: file(pod_directory, container, instance),
            buffer: Mutex::default(),
            writable: Notify::new(),
            progress: watch::Sender::new(Progress::default()),
            writer: Arc::clone(&self.writer),
        })
    }
}

/// The file of one instance.
pub(crate) fn file(pod_directory: &Path, container: &str, instance: u32) -> PathBuf {
    pod_directory
        .join(container)
        .join(format!("{instance}.log"))
}

/// Removes the files of an instance, rotated ones too; none there is fine.
pub(crate) fn forget(pod_directory: &Path, container: &str, instance: u32) {
    let path = file(pod_directory, container, instance);
    for number in 0..FILES {
        let _ = fs::remove_file(rotated(&path, number));
    }
}

/// `0` is the file being written.
fn rotated(path: &Path, number: u32) -> PathBuf {
    match number {
        0 => path.to_owned(),
        number => path.with_extension(format!("log.{number}")),
    }
}

// === impl Log ===

impl Log {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// The instance ended: its unfinished lines become lines, followers are told once all is written.
    pub(crate) fn close(self: &Arc<Self>) {
        let mut buffer = self.lock();
        buffer.finish(now());
        buffer.closed = true;
        for outlet in buffer.listeners.drain(..).filter_map(|weak| weak.upgrade()) {
            outlet.close();
        }
        self.schedule(buffer);
    }

    /// Sees what the instance writes from now on, as it writes it, for as long as somebody holds the outlet.
    pub(super) fn listen(&self, outlet: &Arc<Outlet>) {
        let mut buffer = self.lock();
        if buffer.closed {
            outlet.close();
        } else {
            buffer.listeners.push(Arc::downgrade(outlet));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn schedule(self: &Arc<Self>, mut buffer: MutexGuard<'_, Buffer>) {
        if buffer.queued || (buffer.pending.is_empty() && !buffer.closed) {
            return;
        }
        buffer.queued = true;
        drop(buffer);
        self.writer.push(Arc::clone(self));
    }

    /// One batch into the file. A full disk loses lines, never stops the guest or the node.
    fn flush(&self) {
        let (bytes, closed) = {
            let mut buffer = self.lock();
            buffer.queued = false;
            (std::mem::take(&mut buffer.pending), buffer.closed)
        };
        if !bytes.is_empty()
            && let Err(error) = append(&self.path, &bytes)
        {
            tracing::warn!(path = %self.path.display(), error = %chain(&error), "Failed to write container log");
        }
        self.writable.notify_waiters();
        self.progress.send_modify(|progress| {
            progress.batches += 1;
            progress.closed = closed;
        });
    }
}

impl LogSink for Arc<Log> {
    fn capacity(&self) -> usize {
        PENDING.saturating_sub(self.lock().pending.len()).min(CHUNK)
    }

    fn write(&self, stream: LogStream, bytes: &[u8]) {
        let now = now();
        let mut buffer = self.lock();
        buffer.write(stream, bytes, now);
        buffer
            .listeners
            .retain(|listener| match listener.upgrade() {
                Some(outlet) => {
                    outlet.offer(stream, bytes);
                    true
                }
                None => false,
            });
        self.schedule(buffer);
    }

    fn writable(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            let notified = self.writable.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.capacity() == 0 {
                notified.await;
            }
        })
    }
}

// === impl Buffer ===

impl Buffer {
    fn write(&mut self, stream: LogStream, bytes: &[u8], now: Timestamp) {
        let which = stream as usize;
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let mut text = text;
            while self.partial[which].len() + text.len() > LINE {
                let (head, tail) = text.split_at(LINE - self.partial[which].len());
                self.line(stream, head, "P", now);
                text = tail;
            }
            if ends {
                self.line(stream, text, "F", now);
            } else {
                self.partial[which].extend_from_slice(text);
            }
        }
    }

    /// Whatever was unfinished before `text`, and `text`.
    fn line(&mut self, stream: LogStream, text: &[u8], tag: &str, now: Timestamp) {
        let partial = std::mem::take(&mut self.partial[stream as usize]);
        let name = match stream {
            LogStream::Stdout => "stdout",
            LogStream::Stderr => "stderr",
        };
        // Writing into a Vec cannot fail.
        let _ = write!(self.pending, "{now:.9} {name} {tag} ");
        self.pending.extend_from_slice(&partial);
        self.pending.extend_from_slice(text);
        self.pending.push(b'\n');
    }

    fn finish(&mut self, now: Timestamp) {
        for stream in [LogStream::Stdout, LogStream::Stderr] {
            if !self.partial[stream as usize].is_empty() {
                self.line(stream, b"", "F", now);
            }
        }
    }
}

// === impl Writer ===

impl Writer {
    fn push(&self, log: Arc<Log>) {
        self.lock().logs.push_back(log);
        self.wake.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut queue = self.lock();
        loop {
            if let Some(log) = queue.logs.pop_front() {
                drop(queue);
                log.flush();
                queue = self.lock();
            } else if queue.stopping {
                return;
            } else {
                queue = self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Drop for WriterThread {
    fn drop(&mut self) {
        self.writer.lock().stopping = true;
        self.writer.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Appends, rotating first when the file would grow over its bound. Opened per batch: no descriptor is held per container.
fn append(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let open = || fs::OpenOptions::new().append(true).create(true).open(path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            open()?
        }
        opened => opened?,
    };
    let size = file.metadata()?.len();
    if size > 0 && size + bytes.len() as u64 > FILE {
        for number in (0..FILES - 1).rev() {
            match fs::rename(rotated(path, number), rotated(path, number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        file = open()?;
    }
    file.write_all(bytes)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a log line's time is the time it was written"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

#[cfg(test)]
mod tests;

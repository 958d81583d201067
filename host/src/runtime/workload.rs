//! The common state of a started workload: is it up, draining or over, who may enter, what went wrong. Runs nothing itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use super::guest::Template;
use super::{Exit, ExitCause, LogStream, Usage};
use crate::network::{Body, HttpError, ReturnedRequest};

/// Requests one workload answers at once; more wait.
const CONCURRENT: u32 = 128;
/// Requests that may wait; more are sent back as not reached, so that another replica can take them.
const WAITING: usize = 1_024;

/// One workload, shared by its handler, its instances and its owner.
pub(super) struct State {
    pub(super) template: Template,
    /// Cancelled when the workload is to end now.
    pub(super) killed: CancellationToken,
    /// How long a request may go without an answer.
    pub(super) timeout: Duration,
    exit: watch::Sender<Option<Exit>>,
    draining: AtomicBool,
    requests: Arc<Semaphore>,
    waiting: AtomicUsize,
    answered: AtomicU64,
    failed: AtomicU64,
}

/// Why nobody will work on it.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub(super) struct Refused {
    reason: String,
    busy: bool,
}

/// A request's right to be worked on.
pub(super) type Permit = OwnedSemaphorePermit;

// === impl State ===

impl State {
    pub(super) fn new(
        template: Template,
        timeout: Duration,
        killed: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            template,
            killed,
            timeout,
            exit: watch::Sender::new(None),
            draining: AtomicBool::new(false),
            requests: Arc::new(Semaphore::new(CONCURRENT as usize)),
            waiting: AtomicUsize::new(0),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    pub(super) fn name(&self) -> &str {
        &self.template.workload.name
    }

    pub(super) fn usage(&self) -> Usage {
        Usage {
            requests: self.answered.load(Ordering::Relaxed),
            failed_requests: self.failed.load(Ordering::Relaxed),
            ..self.template.meter.usage()
        }
    }

    /// The first end counts; whatever still runs is told to stop.
    pub(super) fn end(&self, exit: Exit) {
        self.exit.send_if_modified(|current| {
            let first = current.is_none();
            if first {
                *current = Some(exit);
            }
            first
        });
        self.killed.cancel();
    }

    pub(super) async fn wait(&self) -> Exit {
        match self.exit.subscribe().wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().unwrap_or_else(|| killed(137)),
            // Cannot be: the sender is in `self`.
            Err(_) => killed(137),
        }
    }

    /// A permit for `request`, at once if there is one, else after a wait in a bounded queue. Refused requests come back:
    /// another replica may take them.
    pub(super) async fn enter(
        &self,
        request: http::Request<Body>,
    ) -> Result<(http::Request<Body>, Permit), HttpError> {
        match self.permit().await {
            Ok(permit) => Ok((request, permit)),
            Err(Refused { reason, busy }) => Err(HttpError::Returned {
                reason,
                busy,
                request: ReturnedRequest::new(request),
            }),
        }
    }

    async fn permit(&self) -> Result<Permit, Refused> {
        if self.draining.load(Ordering::Relaxed) || self.killed.is_cancelled() {
            return Err(Refused {
                reason: format!("{} is stopping", self.name()),
                busy: false,
            });
        }
        self.answered.fetch_add(1, Ordering::Relaxed);
        if let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() {
            return Ok(permit);
        }
        self.queue(Arc::clone(&self.requests)).await
    }

    /// A permit of `semaphore`, or the reason why not; cancel by dropping.
    pub(super) async fn queue(&self, semaphore: Arc<Semaphore>) -> Result<Permit, Refused> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let waiting = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        let refused = |why: &str, busy| Refused {
            reason: format!("{} {why}", self.name()),
            busy,
        };
        if waiting >= WAITING {
            return Err(refused("has too many requests waiting", true));
        }
        tokio::select! {
            biased;
            () = self.killed.cancelled() => Err(refused("is stopping", false)),
            permit = semaphore.acquire_owned() => permit.map_err(|_| refused("is stopping", false)),
            () = tokio::time::sleep(self.timeout) => Err(refused("is too busy", true)),
        }
    }

    /// Lets no new request in, waits for those inside at most `grace`.
    pub(super) async fn drain(&self, grace: Duration) -> bool {
        self.draining.store(true, Ordering::Relaxed);
        tokio::time::timeout(grace, self.requests.acquire_many(CONCURRENT))
            .await
            .is_ok()
    }

    /// A request failed in the guest: told in the workload's own log, where its people look. Out of memory is the end of
    /// the whole workload, as it would be for a process.
    pub(super) fn report(&self, error: wasmtime::Error) -> HttpError {
        let text = super::command::message(&error);
        let exit = super::command::exit(Err(error), &self.template.meter);
        self.failed.fetch_add(1, Ordering::Relaxed);
        let logs = &self.template.workload.logs;
        let line = format!("coracle: request failed: {text}\n");
        // A full log drops the line rather than make the host wait for the guest's reader.
        if logs.capacity() >= line.len() {
            logs.write(LogStream::Stderr, line.as_bytes());
        }
        tracing::debug!(workload = self.name(), error = %text, "Guest failed a request");
        if exit.cause == ExitCause::OutOfMemory {
            self.end(exit);
        }
        HttpError::Guest(text)
    }
}

/// 143 is SIGTERM, 137 SIGKILL.
pub(super) fn killed(code: i32) -> Exit {
    Exit {
        code,
        cause: ExitCause::Killed,
        message: String::new(),
    }
}

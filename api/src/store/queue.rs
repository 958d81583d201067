//! Commits on their way to the one task that writes: bounded in number and bytes, each with a deadline for its place and
//! for its answer. Decides nothing.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::{Change, Error, Operation, Stored};

/// How long an accepted commit waits for the medium before its caller is told that nobody knows.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);
/// The queue's permits are of this many bytes.
const PERMIT_BYTES: usize = 1 << 10;

pub(super) type Answer = Result<Vec<Arc<Stored>>, Error>;

/// How much may wait, and how long for a place.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Commits waiting at most…
    pub commits: usize,
    /// …and the bytes of their drafts.
    pub bytes: usize,
    /// How long a commit waits for a place in the queue before it is `Error::Busy`.
    pub deadline: Duration,
}

/// A commit in the queue.
pub(super) struct Request {
    pub(super) operations: Vec<Operation>,
    pub(super) reply: oneshot::Sender<Answer>,
    pub(super) asked: Instant,
    /// Its share of the queue's bytes.
    pub(super) room: OwnedSemaphorePermit,
}

/// The end that commits are put into.
pub(super) struct Queue {
    sender: mpsc::Sender<Request>,
    room: Arc<Semaphore>,
    limits: Limits,
}

/// The last attempt's error, while it is the medium's.
#[derive(Default)]
pub(super) struct Health(Mutex<Option<Error>>);

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            commits: 1_024,
            bytes: 64 << 20,
            deadline: Duration::from_secs(5),
        }
    }
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(limits: Limits) -> (Self, mpsc::Receiver<Request>) {
        let (sender, receiver) = mpsc::channel(limits.commits);
        let room = Arc::new(Semaphore::new(limits.bytes / PERMIT_BYTES));
        let queue = Self {
            sender,
            room,
            limits,
        };
        (queue, receiver)
    }

    /// Waits for a place, and then for the answer. `closed` says why there is nobody to answer.
    pub(super) async fn commit(
        &self,
        operations: Vec<Operation>,
        closed: impl Fn() -> Error,
    ) -> Answer {
        let bytes: usize = operations.iter().map(size).sum();
        // A single commit larger than the whole queue gets all of it.
        let permits = (bytes / PERMIT_BYTES + 1).min(self.limits.bytes / PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let asked = Instant::now();
        let waited = timeout(self.limits.deadline, async {
            let room = Arc::clone(&self.room).acquire_many_owned(permits).await;
            let slot = self.sender.reserve().await;
            room.ok().zip(slot.ok())
        });
        let place = waited.await.map_err(|_| Error::Busy)?;
        let (room, slot) = place.ok_or_else(&closed)?;
        let (reply, answer) = oneshot::channel();
        slot.send(Request {
            operations,
            reply,
            asked,
            room,
        });
        match timeout(ANSWER_DEADLINE, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(closed()),
            Err(_) => {
                let why = format!("no answer from the medium in {ANSWER_DEADLINE:?}");
                Err(Error::Unavailable(why))
            }
        }
    }

    /// Nobody takes commits any more.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

fn size(operation: &Operation) -> usize {
    let (Change::Put(draft) | Change::Delete(draft)) = &operation.change;
    draft.head.len() + draft.tail.len()
}

// === impl Health ===

impl Health {
    pub(super) fn set(&self, error: Option<Error>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    pub(super) fn get(&self) -> Option<Error> {
        let error = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        error.clone()
    }
}

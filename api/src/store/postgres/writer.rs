//! The one task of this server that writes: it takes what has queued up while the database was busy, decides all of it
//! on the newest state, and makes it durable with one transaction.
//!
//! ```text
//! quickly:  decide at the cache's revision ─► one statement, if the database is still there ─► publish
//!                                                  └─► it is not: other servers write
//! locked:   lock the row ─► read the log into the cache ─► (was that commit of ours there?) ─► decide ─► write ─► commit
//! ```

use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{Connection, Executor, Row};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use types::error::chain;

use super::connect::{Failure, Server, judge};
use super::load::{self, Tail};
use super::publisher::Publisher;
use super::statements::{self, Stamp};
use crate::cache::Cache;
use crate::store::batch::Batch;
use crate::store::load::{signed, unsigned};
use crate::store::queue::{Answer, Health, Request};
use crate::store::seal::Sealer;
use crate::store::{Error, Event, Revision};

/// Commits of one transaction…
const MOST_REQUESTS: usize = 256;
/// …and operations, beyond which no further commit is added.
const MOST_OPERATIONS: usize = 512;
/// For one attempt, connecting included. Statements are bounded by the server; this is for a network that swallows.
const ATTEMPT: Duration = Duration::from_secs(20);
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    server: Arc<Server>,
    /// `None` after it broke.
    connection: Option<PgConnection>,
    publisher: Arc<Publisher>,
    queue: mpsc::Receiver<Request>,
    health: Arc<Health>,
    sealer: Arc<Sealer>,
    patience: Duration,
    /// Other servers have been writing: the quick way is likely to be in vain.
    contended: bool,
}

/// A batch that was sent, and whose answer has not come.
#[derive(Clone)]
struct Doubt {
    commit: i64,
    /// Of its first change.
    revision: Revision,
    answers: Vec<Answer>,
    events: Vec<Arc<Event>>,
}

/// How an attempt went that did not fail.
enum Done {
    Answers(Vec<Answer>),
    /// Others wrote meanwhile.
    Moved,
}

// === impl Writer ===

impl Writer {
    pub(super) fn new(
        server: Arc<Server>,
        connection: PgConnection,
        publisher: Arc<Publisher>,
        queue: mpsc::Receiver<Request>,
        health: Arc<Health>,
        sealer: Arc<Sealer>,
        patience: Duration,
    ) -> Self {
        Self {
            server,
            connection: Some(connection),
            publisher,
            queue,
            health,
            sealer,
            patience,
            contended: false,
        }
    }

    /// Runs until `closing`, and then until the queue is empty.
    pub(super) async fn run(mut self, closing: CancellationToken) {
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled(), if !self.queue.is_closed() => self.queue.close(),
                request = self.queue.recv() => match request {
                    Some(request) => self.serve(request).await,
                    None => break,
                },
            }
        }
        if let Some(connection) = self.connection.take()
            && let Err(error) = connection.close().await
        {
            tracing::debug!(error = %chain(&error), "Could not close the connection to the database");
        }
    }

    /// Commits `first` and whatever else is waiting.
    async fn serve(&mut self, first: Request) {
        // Those just answered may be about to ask again: let them join this transaction.
        tokio::task::yield_now().await;
        let give_up = first.asked + self.patience;
        let mut operations = first.operations.len();
        let mut requests = vec![first];
        while requests.len() < MOST_REQUESTS && operations < MOST_OPERATIONS {
            let Ok(request) = self.queue.try_recv() else {
                break;
            };
            operations += request.operations.len();
            requests.push(request);
        }
        let settled = self.settle(&requests, give_up).await;
        if settled.is_ok() && self.health.get().is_some() {
            tracing::info!("The database takes writes again");
        }
        self.health.set(settled.as_ref().err().cloned());
        let answers = match settled {
            Ok(answers) => answers,
            Err(error) => vec![Err(error); requests.len()],
        };
        for (request, answer) in requests.into_iter().zip(answers) {
            // Whoever asked may have gone; the change stands.
            drop(request.reply.send(answer));
            drop(request.room);
        }
    }

    /// Tries until it is known what became of `requests`, or until `give_up`.
    async fn settle(
        &mut self,
        requests: &[Request],
        give_up: Instant,
    ) -> Result<Vec<Answer>, Error> {
        let mut doubts = Vec::new();
        let mut pause = SHORTEST_PAUSE;
        loop {
            let tried = timeout(ATTEMPT, self.attempt(requests, &mut doubts)).await;
            let error = match tried {
                Ok(Ok(answers)) => return Ok(answers),
                Ok(Err(Failure::Refused(error))) => {
                    self.connection = None;
                    return Err(error);
                }
                Ok(Err(Failure::Again(error) | Failure::Lost(error))) => error,
                Err(_) => Error::Unavailable(format!("no answer in {ATTEMPT:?}")),
            };
            self.connection = None;
            match self.health.get() {
                None => tracing::warn!(error = %chain(&error), "Could not write to the database"),
                Some(_) => {
                    tracing::debug!(error = %chain(&error), "Could not write to the database again")
                }
            }
            self.health.set(Some(error.clone()));
            if Instant::now() + pause > give_up {
                if doubts.is_empty() {
                    return Err(error);
                }
                return Err(Error::Unavailable(format!(
                    "the connection broke while committing, and whether it happened is not known: {error}"
                )));
            }
            sleep_until(Instant::now() + pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// One of what is in `doubts` afterwards may have happened, or may yet happen.
    async fn attempt(
        &mut self,
        requests: &[Request],
        doubts: &mut Vec<Doubt>,
    ) -> Result<Vec<Answer>, Failure> {
        // Found by whoever looked last: here or in the follower.
        self.publisher.is_not_lost().map_err(Failure::Refused)?;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection = self.server.connect().await;
                let mut connection = connection.map_err(Failure::Again)?;
                let same = load::is_same(&mut connection, &self.publisher).await;
                same.map_err(Failure::Again)?;
                connection
            }
        };
        if doubts.is_empty() && !self.contended {
            match self.quickly(&mut connection, requests, doubts).await? {
                Done::Answers(answers) => {
                    self.connection = Some(connection);
                    return Ok(answers);
                }
                Done::Moved => self.contended = true,
            }
        }
        let answers = self.locked(&mut connection, requests, doubts).await?;
        self.connection = Some(connection);
        Ok(answers)
    }

    /// In one round trip, when nobody else has written.
    async fn quickly(
        &self,
        connection: &mut PgConnection,
        requests: &[Request],
        doubts: &mut Vec<Doubt>,
    ) -> Result<Done, Failure> {
        let cache = Arc::clone(self.publisher.cache());
        let (batch, answers) = decide(&cache, requests);
        if batch.events().is_empty() {
            // Conflicts alone: are they with the newest state?
            let newest = "SELECT revision FROM coracle.meta";
            let row = connection.fetch_one(newest).await.map_err(judge)?;
            let same = unsigned(row.get(0)) == batch.base() && cache.revision() == batch.base();
            return Ok(if same {
                Done::Answers(answers)
            } else {
                Done::Moved
            });
        }
        let commit = rand::random::<i64>();
        doubts.push(Doubt::new(commit, &batch, answers));
        let written = self.write(connection, &batch, commit).await;
        if matches!(written, Err(Failure::Lost(_))) {
            return written.map(|_| Done::Moved);
        }
        let doubt = doubts.pop();
        match (written?, doubt) {
            (true, Some(done)) => Ok(Done::Answers(self.succeed(done))),
            _ => Ok(Done::Moved),
        }
    }

    /// With the row locked, so that the newest state stays the newest.
    async fn locked(
        &mut self,
        connection: &mut PgConnection,
        requests: &[Request],
        doubts: &mut Vec<Doubt>,
    ) -> Result<Vec<Answer>, Failure> {
        connection.execute("BEGIN").await.map_err(judge)?;
        let lock = "SELECT revision FROM coracle.meta FOR UPDATE";
        let row = connection.fetch_one(lock).await.map_err(judge)?;
        let newest = unsigned(row.get(0));
        let cache = Arc::clone(self.publisher.cache());
        self.contended = newest != cache.revision();
        if self.contended {
            match load::follow(connection, &self.publisher).await? {
                Tail::Reached => {}
                Tail::Forgotten => {
                    connection.execute("ROLLBACK").await.map_err(judge)?;
                    load::start_over(connection, &self.publisher).await?;
                    let why = "it was loaded anew".to_owned();
                    return Err(Failure::Again(Error::Unavailable(why)));
                }
            }
        }
        if let Some(known) = resolve(connection, doubts, newest).await? {
            connection.execute("ROLLBACK").await.map_err(judge)?;
            return Ok(self.succeed(known));
        }
        let (batch, answers) = decide(&cache, requests);
        if batch.events().is_empty() {
            connection.execute("ROLLBACK").await.map_err(judge)?;
            return Ok(answers);
        }
        let commit = rand::random::<i64>();
        if !self.write(connection, &batch, commit).await? {
            // The lock is held and the cache was where the row is.
            let why = format!("the database is not at revision {}", batch.base());
            return Err(Failure::Again(Error::Unavailable(why)));
        }
        let done = Doubt::new(commit, &batch, answers);
        doubts.push(done.clone());
        connection.execute("COMMIT").await.map_err(|error| {
            // Here even an error that the server sent may come after the fact.
            Failure::Lost(judge(error).into_error())
        })?;
        Ok(self.succeed(done))
    }

    async fn write(
        &self,
        connection: &mut PgConnection,
        batch: &Batch<'_>,
        commit: i64,
    ) -> Result<bool, Failure> {
        let at = self.publisher.cache().now();
        let stamp = Stamp {
            commit,
            server: &self.server.id,
            at,
            mark: self.publisher.cache().due_mark(at),
        };
        let written = statements::write(connection, batch, &stamp, &self.sealer).await;
        written.map_err(judge)
    }

    /// The batch is durable: readers see it, then its callers hear of it.
    fn succeed(&self, done: Doubt) -> Vec<Answer> {
        self.publisher.committed(done.events, done.commit);
        done.answers
    }
}

/// Finds out which batch in doubt was committed, if one was. The lock is held. What would begin after `newest` has not
/// happened, and stays in doubt: its statement may still wait for the lock, until the row has moved.
async fn resolve(
    connection: &mut PgConnection,
    doubts: &mut Vec<Doubt>,
    newest: Revision,
) -> Result<Option<Doubt>, Failure> {
    while let Some(at) = doubts.iter().position(|doubt| doubt.revision <= newest) {
        let row = sqlx::query("SELECT commit_id FROM coracle.history WHERE revision = $1")
            .bind(signed(doubts[at].revision))
            .fetch_optional(&mut *connection)
            .await
            .map_err(judge)?;
        let Some(row) = row else {
            let why = "the connection broke while committing, and the log that could tell whether it \
                       happened has been compacted";
            return Err(Failure::Refused(Error::Unavailable(why.to_owned())));
        };
        let doubt = doubts.swap_remove(at);
        if doubt.commit == row.get::<i64, _>(0) {
            return Ok(Some(doubt));
        }
    }
    Ok(None)
}

/// Decides all of `requests`, in their order.
fn decide<'c>(cache: &'c Cache, requests: &[Request]) -> (Batch<'c>, Vec<Answer>) {
    let mut batch = Batch::new(cache);
    let answers = requests
        .iter()
        .map(|request| batch.apply(request.operations.clone()))
        .collect();
    (batch, answers)
}

// === impl Doubt ===

impl Doubt {
    fn new(commit: i64, batch: &Batch<'_>, answers: Vec<Answer>) -> Self {
        Self {
            commit,
            revision: batch.base() + 1,
            answers,
            events: batch.events().to_vec(),
        }
    }
}

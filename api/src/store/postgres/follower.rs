//! Keeps the cache up with what other servers write: woken by notifications, by readers who want the newest state, and
//! every second by itself. Writes nothing.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::{PgConnection, PgListener};
use tokio::sync::{Notify, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use types::error::chain;

use super::connect::{Failure, Server};
use super::load::{self, Tail};
use super::publisher::Publisher;
use crate::store::Error;
use crate::store::queue::Health;

/// For one look at the log; a look that has far to go takes many statements, which have deadlines of their own, or
/// loads everything anew.
const LOOK: Duration = Duration::from_secs(400);
/// A look that takes longer is worth a word.
const SLOW: Duration = Duration::from_secs(3);
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Follower {
    server: Arc<Server>,
    /// `None` after it broke.
    connection: Option<PgConnection>,
    publisher: Arc<Publisher>,
    asking: Arc<Asking>,
    health: Arc<Health>,
}

/// Those who want a look at the log. One look serves everybody who asked before it began.
pub(super) struct Asking {
    last: AtomicU64,
    served: watch::Sender<u64>,
    wake: Notify,
}

// === impl Asking ===

impl Asking {
    pub(super) fn new() -> Self {
        Self {
            last: AtomicU64::new(0),
            served: watch::Sender::new(0),
            wake: Notify::new(),
        }
    }

    /// Returns after a look that began after this call.
    pub(super) async fn ask(&self) {
        let ticket = self.last.fetch_add(1, Ordering::SeqCst) + 1;
        let mut served = self.served.subscribe();
        self.wake.notify_one();
        // The sender is ours and lives as long as we do.
        drop(served.wait_for(|served| *served >= ticket).await);
    }

    /// Says that there may be something in the log.
    fn wake(&self) {
        self.wake.notify_one();
    }
}

// === impl Follower ===

impl Follower {
    pub(super) fn new(
        server: Arc<Server>,
        publisher: Arc<Publisher>,
        asking: Arc<Asking>,
        health: Arc<Health>,
    ) -> Self {
        Self {
            server,
            connection: None,
            publisher,
            asking,
            health,
        }
    }

    pub(super) async fn run(mut self, poll: Duration, end: CancellationToken) {
        let mut tick = interval(poll);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut pause = SHORTEST_PAUSE;
        let health = Arc::clone(&self.health);
        loop {
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = self.asking.wake.notified() => {}
                _ = tick.tick() => {}
            }
            let asked = self.asking.last.load(Ordering::SeqCst);
            let looked = tokio::select! {
                biased;
                () = end.cancelled() => break,
                looked = timeout(LOOK, told_when_slow(self.look(), &health)) => looked,
            };
            let error = match looked {
                Ok(Ok(())) => {
                    self.health.set(None);
                    self.asking.served.send_replace(asked);
                    pause = SHORTEST_PAUSE;
                    continue;
                }
                Ok(Err(error)) => error,
                Err(_) => Error::Unavailable(format!("the log was not read in {LOOK:?}")),
            };
            self.connection = None;
            if self.health.get().is_none() {
                tracing::warn!(error = %chain(&error), "Could not read what other servers wrote");
            }
            self.health.set(Some(error));
            // Whoever asked waits on, for the next look.
            self.asking.wake();
            tokio::select! {
                biased;
                () = end.cancelled() => break,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        if let Some(connection) = self.connection.take() {
            drop(connection.close().await);
        }
    }

    async fn look(&mut self) -> Result<(), Error> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = self.server.connect().await?;
                load::is_same(&mut connection, &self.publisher).await?;
                connection
            }
        };
        match load::follow(&mut connection, &self.publisher).await {
            Ok(Tail::Reached) => {}
            Ok(Tail::Forgotten) => {
                let again = load::start_over(&mut connection, &self.publisher).await;
                again.map_err(Failure::into_error)?;
            }
            Err(failure) => return Err(failure.into_error()),
        }
        self.connection = Some(connection);
        Ok(())
    }
}

/// A look that takes long is told before it has failed: whoever asks whether this server is ready does not wait for a network
/// that swallows.
async fn told_when_slow<T>(look: impl Future<Output = T>, health: &Health) -> T {
    let mut look = pin!(look);
    tokio::select! {
        biased;
        done = &mut look => return done,
        () = sleep(SLOW) => {}
    }
    if health.get().is_none() {
        let error = Error::Unavailable(format!("no answer from the database for {SLOW:?}"));
        tracing::warn!(error = %chain(&error), "Could not read what other servers wrote");
        health.set(Some(error));
    }
    look.await
}

/// Wakes the follower when another server has committed. When the connection breaks nothing is lost but time: the
/// follower looks by itself.
pub(super) async fn listen(
    server: Arc<Server>,
    listener: PgListener,
    asking: Arc<Asking>,
    end: CancellationToken,
) {
    let mut listener = Some(listener);
    let listening = async {
        loop {
            match listener.as_mut() {
                Some(open) => match open.try_recv().await {
                    Ok(Some(notification)) if notification.payload() == server.id => {}
                    // `None`: connected anew, and some may have been missed.
                    Ok(_) => asking.wake(),
                    Err(error) => {
                        tracing::debug!(error = %chain(&error), "Lost the notifications of the database");
                        listener = None;
                    }
                },
                None => {
                    sleep(LONGEST_PAUSE).await;
                    listener = server.listen().await.ok();
                    asking.wake();
                }
            }
        }
    };
    tokio::select! {
        () = end.cancelled() => {}
        () = listening => {}
    }
    drop(listener);
    // It says goodbye in a task of its own; a network that swallows that must not hold us.
    drop(timeout(LONGEST_PAUSE, server.close()).await);
}

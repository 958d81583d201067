//! Whether a connection is used: it is while this server works on an answer, not while it waits for the client to ask
//! for something or to take what is there. A watch without events is used; one whose client does not read is not.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

/// Of one connection.
pub(super) struct Activity(Mutex<State>);

struct State {
    /// Requests that wait for this server.
    working: usize,
    /// When that last changed.
    since: Instant,
}

/// One request this server works on, until dropped.
pub(super) struct Working(Arc<Activity>);

struct Followed {
    body: Body,
    activity: Arc<Activity>,
    /// There while the body has nothing to give.
    working: Option<Working>,
}

/// The response, counted as work while its body makes the client wait.
pub(super) fn follow(response: Response, activity: Arc<Activity>) -> Response {
    response.map(|body| {
        Body::new(Followed {
            body,
            activity,
            working: None,
        })
    })
}

// === impl Activity ===

impl Default for Activity {
    fn default() -> Self {
        Self(Mutex::new(State {
            working: 0,
            since: Instant::now(),
        }))
    }
}

impl Activity {
    pub(super) fn begin(self: &Arc<Self>) -> Working {
        let mut state = self.lock();
        state.working += 1;
        state.since = Instant::now();
        Working(Arc::clone(self))
    }

    /// Returns once nothing was worked on for `limit` from now on.
    pub(super) async fn idle(&self, limit: Duration) {
        let called = Instant::now();
        loop {
            let until = {
                let state = self.lock();
                if state.working > 0 {
                    Instant::now() + limit
                } else {
                    state.since.max(called) + limit
                }
            };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    fn touch(&self) {
        self.lock().since = Instant::now();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.working -= 1;
        state.since = Instant::now();
    }
}

// === impl Followed ===

impl http_body::Body for Followed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if polled.is_pending() {
            if self.working.is_none() {
                self.working = Some(self.activity.begin());
            }
        } else {
            self.working = None;
            self.activity.touch();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;

    const LIMIT: Duration = Duration::from_secs(90);

    async fn idles(activity: &Activity, within: Duration) -> bool {
        tokio::time::timeout(within, activity.idle(LIMIT))
            .await
            .is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_idle_and_a_quiet_watch_is_not() {
        let activity = Arc::new(Activity::default());
        assert!(idles(&activity, LIMIT * 2).await, "nothing was ever asked");
        let silent = futures::stream::iter([Ok::<_, std::io::Error>("event")]);
        let silent = futures::StreamExt::chain(silent, futures::stream::pending());
        let response = Response::new(Body::from_stream(silent));
        let mut body = follow(response, Arc::clone(&activity)).into_body();
        body.frame().await.expect("there").expect("an event");
        assert!(
            idles(&activity, LIMIT * 2).await,
            "the client does not read"
        );
        assert!(body.frame().now_or_never().is_none());
        assert!(!idles(&activity, LIMIT * 9).await, "the client waits");
        drop(body);
        assert!(idles(&activity, LIMIT * 2).await, "it has gone");
    }
}

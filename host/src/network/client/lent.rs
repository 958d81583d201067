//! A request's body that its sender gets back when nobody has seen the request: what was taken of it is kept until somebody
//! has, up to a bound. Never changes what passes, never decides who has seen it.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;

use crate::network::bodies::again;
use crate::network::{Body, serve};

/// How much may have been taken of a body that still comes back.
const KEPT: usize = 64 * 1024;

/// Who may ask for the body. `None`: it was empty, and so is what comes back.
pub(super) struct Lender(Option<Arc<Mutex<State>>>);

#[derive(Default)]
enum State {
    #[default]
    Out,
    /// Somebody has seen the request: nothing is kept for its sender any more.
    Settled,
    Back(Body),
}

struct Lent {
    body: Body,
    /// All that was taken, while it is not too much.
    taken: Option<Vec<Bytes>>,
    size: usize,
    state: Arc<Mutex<State>>,
}

pub(super) fn lend(body: Body) -> (Body, Lender) {
    if body.is_end_stream() {
        return (body, Lender(None));
    }
    let state = Arc::new(Mutex::default());
    let lent = Lent {
        body,
        taken: Some(Vec::new()),
        size: 0,
        state: Arc::clone(&state),
    };
    (lent.boxed_unsync(), Lender(Some(state)))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Lender ===

impl Lender {
    pub(super) fn settled(&self) {
        if let Some(state) = &self.0 {
            *lock(state) = State::Settled;
        }
    }

    /// The body as it was, once whoever had it has dropped it; `None` when too much of it had been taken.
    pub(super) fn back(self) -> Option<Body> {
        let Some(state) = self.0 else {
            return Some(serve::empty());
        };
        match std::mem::take(&mut *lock(&state)) {
            State::Back(body) => Some(body),
            State::Out | State::Settled => None,
        }
    }
}

// === impl Lent ===

impl Lent {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(taken) = &mut self.taken else {
            return;
        };
        let data = frame.data_ref();
        self.size += data.map_or(0, Bytes::len);
        match data {
            Some(data) if self.size <= KEPT && !matches!(*lock(&self.state), State::Settled) => {
                taken.push(data.clone());
            }
            // Trailers are the end: who has them has had everything.
            _ => self.taken = None,
        }
    }
}

impl http_body::Body for Lent {
    type Data = Bytes;
    type Error = wasmtime_wasi_http::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &polled {
            Some(Ok(frame)) => self.keep(frame),
            Some(Err(_)) => self.taken = None,
            None => {}
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(taken) = self.taken.take() else {
            return;
        };
        let mut state = lock(&self.state);
        if matches!(*state, State::Out) {
            let rest = std::mem::replace(&mut self.body, serve::empty());
            *state = State::Back(again(taken, rest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn some_of(body: &mut Body) -> usize {
        let frame = body.frame().await.unwrap().unwrap();
        frame.into_data().unwrap().len()
    }

    #[tokio::test]
    async fn what_was_taken_of_it_comes_back_with_the_rest() {
        let (mut body, lender) = lend(serve::full("order"));
        assert_eq!(some_of(&mut body).await, 5);
        drop(body);
        let back = lender.back().expect("it was short");
        assert_eq!(back.size_hint().exact(), Some(5));
        assert_eq!(back.collect().await.unwrap().to_bytes(), "order");
        let (untouched, lender) = lend(serve::full("order"));
        drop(untouched);
        let back = lender.back().expect("nobody read it");
        assert_eq!(back.collect().await.unwrap().to_bytes(), "order");
        let (empty, lender) = lend(serve::empty());
        drop(empty);
        assert!(lender.back().unwrap().is_end_stream());
    }

    #[tokio::test]
    async fn a_long_one_and_one_that_was_seen_do_not_come_back() {
        let (mut body, lender) = lend(serve::full(vec![0; KEPT + 1]));
        some_of(&mut body).await;
        drop(body);
        assert!(lender.back().is_none());
        let (mut body, lender) = lend(serve::full("order"));
        lender.settled();
        some_of(&mut body).await;
        drop(body);
        assert!(lender.back().is_none());
    }
}

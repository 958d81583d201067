//! Datagrams that wait for a pod's socket: bounded, the newest is dropped when there are too many.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::lost::{Lost, Why};
use super::partners::Partners;

/// What a socket may hold unread.
const DATAGRAMS: usize = 256;
const BYTES: usize = 256 * 1024;

/// Of one socket.
pub(crate) struct Queue {
    pub(crate) partners: Partners,
    /// Held for a few instructions, never over an await.
    state: Mutex<State>,
    lost: Arc<Lost>,
}

#[derive(Default)]
struct State {
    datagrams: VecDeque<(Bytes, SocketAddr)>,
    bytes: usize,
    reading: Option<Waker>,
}

// === impl Queue ===

impl Queue {
    pub(super) fn new(lost: Arc<Lost>) -> Self {
        Self {
            partners: Partners::default(),
            state: Mutex::default(),
            lost,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the datagram, and counts it, when the queue is full.
    pub(crate) fn push(&self, datagram: Bytes, from: SocketAddr) {
        let waker = {
            let mut state = self.lock();
            if state.datagrams.len() >= DATAGRAMS || state.bytes + datagram.len() > BYTES {
                self.lost.count(Why::Unread);
                return;
            }
            state.bytes += datagram.len();
            state.datagrams.push_back((datagram, from));
            state.reading.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn poll_pop(&self, cx: &mut Context<'_>) -> Poll<(Bytes, SocketAddr)> {
        let mut state = self.lock();
        match state.datagrams.pop_front() {
            Some((datagram, from)) => {
                state.bytes -= datagram.len();
                Poll::Ready((datagram, from))
            }
            None => {
                state.reading = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Who waits to read looks again.
    pub(super) fn wake(&self) {
        let waker = self.lock().reading.take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

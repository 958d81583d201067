//! One direction of an in-memory TCP connection: a bounded queue of chunks with backpressure, FIN and reset.
//! Never copies bytes, never spawns, never holds its lock over an await.
//!
//! ```text
//!   Writer ── send(Bytes) ──► [ chunks, at most capacity() ] ──► poll_read ── Reader
//!      drop or shutdown = FIN                         both halves of the reading side dropped = reset
//! ```
//! What a pod has in flight is charged to its [`Budget`]; over it every pipe shrinks to [`SMALL`], so a pod with
//! thousands of sockets and readers that never read stays within a few megabytes of the host's memory.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;

use super::balancer::InFlight;
use super::traffic::Connected;
use super::{SocketError, SocketSlot};

/// Bytes one direction may hold while its pod is within its budget.
pub(crate) const LARGE: usize = 64 * 1024;
/// The same when it is not.
pub(crate) const SMALL: usize = 4 * 1024;
/// How far beyond its budget a pod may be before streams from other nodes that it does not read are reset.
const OVERDRAFT: usize = 4;
/// A chunk is charged at least this much, so that one-byte writes cannot queue without bound.
const CHUNK_COST: usize = 64;

/// Bytes a pod may have queued in all its pipes before they shrink.
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            used: AtomicUsize::new(0),
            limit,
        }
    }

    fn capacity(&self) -> usize {
        if self.used.load(Ordering::Relaxed) < self.limit {
            LARGE
        } else {
            SMALL
        }
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Counts bytes that wait for the pod outside its pipes: what another node has sent.
    pub(crate) fn charge(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn refund(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// More waits than shrinking pipes can make up for.
    pub(crate) fn is_overdrawn(&self) -> bool {
        self.used() >= self.limit.saturating_mul(OVERDRAFT)
    }
}

struct Shared {
    budget: Arc<Budget>,
    /// Held for a few instructions, never over an await.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: VecDeque<Bytes>,
    /// Cost of `chunks`.
    used: usize,
    /// FIN: no more will come.
    finished: bool,
    /// The connection was reset, by either side.
    reset: bool,
    /// Something of it was read.
    read: bool,
    /// The reader is gone but its side still writes: what comes is thrown away, as after `shutdown(SHUT_RD)`.
    discarding: bool,
    reading: Option<Waker>,
    writing: Option<Waker>,
}

/// One end of a connection. When both of its halves are gone, whoever still writes to it learns of it by a reset.
pub(crate) struct Side {
    incoming: Arc<Shared>,
    outgoing: Arc<Shared>,
    /// Counts the socket against its pod.
    _slot: Option<SocketSlot>,
    /// Counts the connection as load of the endpoint it was balanced to.
    _load: Option<InFlight>,
    /// Counts the connection and its bytes, as this side sees them.
    counted: Option<Connected>,
}

/// Receives chunks; end of stream is `None`. Dropping it throws away what still comes.
pub struct Reader {
    side: Arc<Side>,
}

/// Sends chunks, bounded; dropping it is FIN.
pub struct Writer {
    side: Arc<Side>,
    /// What `poll_ready` promised and `send` has not used.
    granted: usize,
    closed: bool,
}

/// Ends a connection from beside it, while the side it was taken from is in use.
#[derive(Clone)]
pub(crate) struct Cut(Weak<Side>);

/// What a side of a new connection is charged to.
pub(crate) struct Account {
    pub(crate) budget: Arc<Budget>,
    pub(crate) slot: Option<SocketSlot>,
    pub(crate) load: Option<InFlight>,
    /// Of the side that opened the connection.
    pub(crate) counted: Option<Connected>,
}

/// Both ends of a new connection.
pub(crate) fn connection(client: Account, server: Account) -> ((Reader, Writer), (Reader, Writer)) {
    let to_server = Arc::new(Shared::new(client.budget));
    let to_client = Arc::new(Shared::new(server.budget));
    let client = Arc::new(Side {
        incoming: Arc::clone(&to_client),
        outgoing: Arc::clone(&to_server),
        _slot: client.slot,
        _load: client.load,
        counted: client.counted,
    });
    let server = Arc::new(Side {
        incoming: to_server,
        outgoing: to_client,
        _slot: server.slot,
        _load: server.load,
        counted: server.counted,
    });
    (halves(client), halves(server))
}

fn halves(side: Arc<Side>) -> (Reader, Writer) {
    let reader = Reader {
        side: Arc::clone(&side),
    };
    let writer = Writer {
        side,
        granted: 0,
        closed: false,
    };
    (reader, writer)
}

// === impl Shared ===

impl Shared {
    fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            state: Mutex::new(State::default()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Empties the queue and gives its cost back.
    fn clear(&self, state: &mut State) {
        state.chunks = VecDeque::new();
        self.budget.used.fetch_sub(state.used, Ordering::Relaxed);
        state.used = 0;
    }

    fn reset(&self) {
        let wakers = {
            let mut state = self.lock();
            if state.reset {
                return;
            }
            state.reset = true;
            self.clear(&mut state);
            [state.reading.take(), state.writing.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let used = self.lock().used;
        self.budget.used.fetch_sub(used, Ordering::Relaxed);
    }
}

// === impl Cut ===

impl Cut {
    pub(crate) fn is_open(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Both sides see a reset.
    pub(crate) fn cut(&self) {
        if let Some(side) = self.0.upgrade() {
            side.reset();
        }
    }
}

// === impl Side ===

impl Side {
    fn reset(&self) {
        self.incoming.reset();
        self.outgoing.reset();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Nobody will read what comes from now on: the peer's next write fails. What we sent before stays readable.
        let waker = {
            let mut state = self.incoming.lock();
            state.reset = true;
            self.incoming.clear(&mut state);
            state.writing.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// === impl Reader ===

impl Reader {
    /// The next chunk, `None` after FIN, `Err(Reset)` once after a reset.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, SocketError>>> {
        let pipe = &self.side.incoming;
        let mut state = pipe.lock();
        if let Some(chunk) = state.chunks.pop_front() {
            state.read = true;
            let cost = chunk.len().max(CHUNK_COST);
            state.used -= cost;
            pipe.budget.used.fetch_sub(cost, Ordering::Relaxed);
            // Half empty before the writer wakes: otherwise the two would take turns chunk by chunk.
            let waker = if state.used <= pipe.budget.capacity() / 2 {
                state.writing.take()
            } else {
                None
            };
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
            if let Some(counted) = &self.side.counted {
                counted.pair().received(chunk.len());
            }
            return Poll::Ready(Some(Ok(chunk)));
        }
        if state.reset {
            return Poll::Ready(Some(Err(SocketError::Reset)));
        }
        if state.finished {
            return Poll::Ready(None);
        }
        remember(&mut state.reading, cx);
        Poll::Pending
    }

    /// As [`Reader::poll_read`]. Cancel by dropping: nothing is lost.
    pub async fn read(&mut self) -> Option<Result<Bytes, SocketError>> {
        std::future::poll_fn(|cx| self.poll_read(cx)).await
    }

    pub(crate) fn reset(&self) {
        self.side.reset();
    }

    pub(crate) fn cut(&self) -> Cut {
        Cut(Arc::downgrade(&self.side))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.side.incoming.lock();
            state.discarding = true;
            self.side.incoming.clear(&mut state);
            state.writing.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

// === impl Writer ===

impl Writer {
    /// The other end has never read a byte, and never will: nobody accepted the connection, most likely.
    pub(crate) fn was_refused(&self) -> bool {
        let state = self.side.outgoing.lock();
        state.reset && !state.read
    }

    /// How many bytes may be sent now, at least 1. `Err(Reset)` when the peer is gone, `Err(Closed)` after `shutdown`.
    pub fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, SocketError>> {
        if self.closed {
            return Poll::Ready(Err(SocketError::Closed));
        }
        let pipe = &self.side.outgoing;
        let mut state = pipe.lock();
        if state.reset {
            return Poll::Ready(Err(SocketError::Reset));
        }
        let capacity = pipe.budget.capacity();
        if state.used >= capacity {
            remember(&mut state.writing, cx);
            return Poll::Pending;
        }
        self.granted = capacity - state.used;
        Poll::Ready(Ok(self.granted))
    }

    pub async fn ready(&mut self) -> Result<usize, SocketError> {
        std::future::poll_fn(|cx| self.poll_ready(cx)).await
    }

    /// Queues `bytes`, at most what the last `poll_ready` granted (`TooLarge` otherwise). Never waits.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), SocketError> {
        if self.closed {
            return Err(SocketError::Closed);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() > self.granted {
            return Err(SocketError::TooLarge);
        }
        self.granted -= bytes.len();
        if let Some(counted) = &self.side.counted {
            counted.pair().sent(bytes.len());
        }
        let pipe = &self.side.outgoing;
        let waker = {
            let mut state = pipe.lock();
            if state.reset {
                return Err(SocketError::Reset);
            }
            if state.discarding {
                return Ok(());
            }
            let cost = bytes.len().max(CHUNK_COST);
            state.used += cost;
            pipe.budget.used.fetch_add(cost, Ordering::Relaxed);
            state.chunks.push_back(bytes);
            state.reading.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// Sends all of `bytes`, waiting for room as needed. Cancelled, a part may have been sent.
    pub async fn write_all(&mut self, mut bytes: Bytes) -> Result<(), SocketError> {
        while !bytes.is_empty() {
            let room = self.ready().await?.min(bytes.len());
            self.send(bytes.split_to(room))?;
        }
        Ok(())
    }

    /// FIN: the peer reads what was sent, then end of stream. Twice is the same as once.
    pub fn shutdown(&mut self) {
        if self.closed {
            return;
        }
        self.closed = true;
        let waker = {
            let mut state = self.side.outgoing.lock();
            state.finished = true;
            state.reading.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The peer will read nothing any more.
    pub fn is_reset(&self) -> bool {
        self.side.outgoing.lock().reset
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shutdown();
    }
}

fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> ((Reader, Writer), (Reader, Writer), Arc<Budget>) {
        pair_with(Arc::new(Budget::new(1 << 20)))
    }

    fn pair_with(budget: Arc<Budget>) -> ((Reader, Writer), (Reader, Writer), Arc<Budget>) {
        let account = || Account {
            budget: Arc::clone(&budget),
            slot: None,
            load: None,
            counted: None,
        };
        let (client, server) = connection(account(), account());
        (client, server, budget)
    }

    #[tokio::test]
    async fn bytes_arrive_in_order_and_fin_ends_them() {
        let ((mut from_server, mut to_server), (mut from_client, mut to_client), _) = pair();
        to_server
            .write_all(Bytes::from_static(b"ping"))
            .await
            .unwrap();
        to_server.shutdown();
        assert_eq!(from_client.read().await.unwrap().unwrap(), "ping");
        assert!(from_client.read().await.is_none(), "FIN ends the stream");
        // Half closed: the other direction still works.
        to_client
            .write_all(Bytes::from_static(b"pong"))
            .await
            .unwrap();
        assert_eq!(from_server.read().await.unwrap().unwrap(), "pong");
        assert_eq!(
            to_server.send(Bytes::from_static(b"x")),
            Err(SocketError::Closed)
        );
    }

    #[tokio::test]
    async fn a_slow_reader_stops_the_writer() {
        let ((_r, mut writer), (mut reader, _w), budget) = pair();
        let room = writer.ready().await.unwrap();
        assert_eq!(room, LARGE);
        writer.send(Bytes::from(vec![0; room])).unwrap();
        assert!(futures::poll!(std::pin::pin!(writer.ready())).is_pending());
        assert_eq!(
            writer.send(Bytes::from_static(b"x")),
            Err(SocketError::TooLarge)
        );
        assert_eq!(reader.read().await.unwrap().unwrap().len(), LARGE);
        assert_eq!(writer.ready().await, Ok(LARGE));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn tiny_writes_are_bounded_too() {
        let ((_r, mut writer), (_reader, _w), budget) = pair();
        let mut sent = 0;
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(room) = writer.poll_ready(&mut cx) {
            room.unwrap();
            writer.send(Bytes::from_static(b"x")).unwrap();
            sent += 1;
        }
        assert_eq!(sent, LARGE / CHUNK_COST);
        assert_eq!(budget.used(), LARGE);
    }

    #[tokio::test]
    async fn over_budget_every_pipe_shrinks() {
        let budget = Arc::new(Budget::new(LARGE));
        let ((_r1, mut first), (_s1, _w1), _) = pair_with(Arc::clone(&budget));
        let ((_r2, mut second), (_s2, _w2), _) = pair_with(Arc::clone(&budget));
        first.ready().await.unwrap();
        first.send(Bytes::from(vec![0; LARGE])).unwrap();
        assert_eq!(second.ready().await, Ok(SMALL));
    }

    #[tokio::test]
    async fn dropping_both_halves_resets_who_still_writes() {
        let ((mut from_server, mut to_server), server, budget) = pair();
        let (from_client, mut to_client) = server;
        to_client
            .write_all(Bytes::from_static(b"last words"))
            .await
            .unwrap();
        to_server
            .write_all(Bytes::from_static(b"unread"))
            .await
            .unwrap();
        drop((from_client, to_client));
        assert_eq!(to_server.ready().await, Err(SocketError::Reset));
        assert_eq!(from_server.read().await.unwrap().unwrap(), "last words");
        assert!(from_server.read().await.is_none());
        assert_eq!(budget.used(), 0, "what nobody will read is not charged");
    }

    #[tokio::test]
    async fn dropping_only_the_reader_discards() {
        let ((_r, mut to_server), (from_client, _to_client), budget) = pair();
        drop(from_client);
        for _ in 0..100 {
            to_server
                .write_all(Bytes::from(vec![0; 4096]))
                .await
                .unwrap();
        }
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn a_reset_reaches_both_ends_and_wakes_them() {
        let ((from_server, mut to_server), (mut from_client, mut to_client), _) = pair();
        let waiting = tokio::spawn(async move { from_client.read().await });
        tokio::task::yield_now().await;
        from_server.reset();
        assert_eq!(waiting.await.unwrap(), Some(Err(SocketError::Reset)));
        assert_eq!(to_client.ready().await, Err(SocketError::Reset));
        assert_eq!(to_server.ready().await, Err(SocketError::Reset));
    }
}

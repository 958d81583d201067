//! Datagrams between pods of two nodes: framed, one after the other, in one stream each way. Bounded queues drop, as UDP
//! may; nobody waits.
//!
//! ```text
//!   length of the payload: 2 │ source: address 4, port 2 │ destination: address 4, port 2 │ payload
//! ```
//! The stream is opened when there is something to send and closed when there was nothing for a while.

use std::collections::{HashMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Method, Request, Response, Uri};
use tokio::sync::{Notify, watch};

use super::connection::Opened;
use super::incoming::Incoming;
use super::machine::Link;
use super::peer::Status;
use super::{streams, words};
use crate::network::places;
use crate::network::policy::Way;
use crate::network::table::Protocol;
use crate::network::udp::{self, LARGEST, Lost, Sends, Why};

/// What may wait for one node, in bytes; a datagram takes some beside its payload.
const QUEUE: usize = 1 << 20;
const OVERHEAD: usize = 128;
/// What is sent in one go.
const BATCH: usize = 64 * 1024;
const HEADER: usize = 14;
/// An unused stream is closed after this.
const IDLE: Duration = Duration::from_secs(10);
/// What waits for a connection is lost after this.
const PATIENCE: Duration = Duration::from_secs(3);

/// One datagram, from pod to pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Datagram {
    pub(super) from: SocketAddrV4,
    pub(super) to: SocketAddrV4,
    pub(super) payload: Bytes,
}

/// What waits to be sent to one node. Each source has its share of the room and its turn, so that none who floods takes
/// the others' datagrams with it.
pub(super) struct Outbox {
    /// Held for a few instructions, never over an await.
    waiting: Mutex<Waiting>,
    filled: Notify,
    lost: Arc<Lost>,
}

#[derive(Default)]
struct Waiting {
    /// Of each source that has any.
    sources: HashMap<Ipv4Addr, Source>,
    /// Whose datagram is next.
    turns: VecDeque<Ipv4Addr>,
    taken: usize,
}

/// What is sent in one go.
struct Batch {
    bytes: Bytes,
    datagrams: usize,
}

#[derive(Default)]
struct Source {
    datagrams: VecDeque<Datagram>,
    taken: usize,
}

// === impl Datagram ===

impl Datagram {
    /// `None` for addresses that no pod has, and for what is too long.
    pub(super) fn new(from: SocketAddr, to: SocketAddr, payload: Bytes) -> Option<Self> {
        match (from, to) {
            (SocketAddr::V4(from), SocketAddr::V4(to)) if payload.len() <= LARGEST => {
                Some(Self { from, to, payload })
            }
            _ => None,
        }
    }

    fn put(&self, buffer: &mut BytesMut) {
        buffer.reserve(HEADER + self.payload.len());
        // At most 65,507.
        buffer.put_u16(self.payload.len() as u16);
        for address in [self.from, self.to] {
            buffer.put_slice(&address.ip().octets());
            buffer.put_u16(address.port());
        }
        buffer.put_slice(&self.payload);
    }

    /// What it takes of a queue's room.
    fn cost(&self) -> usize {
        self.payload.len() + OVERHEAD
    }

    /// The first one, if all of it is there.
    fn take(buffer: &mut BytesMut) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes(*buffer.first_chunk()?));
        if buffer.len() < HEADER + length {
            return None;
        }
        buffer.advance(2);
        let mut address = || {
            let ip = Ipv4Addr::from(buffer.get_u32());
            SocketAddrV4::new(ip, buffer.get_u16())
        };
        let (from, to) = (address(), address());
        // Copied: one that waits long must not hold the others' memory.
        let payload = Bytes::copy_from_slice(&buffer[..length]);
        buffer.advance(length);
        Some(Self { from, to, payload })
    }
}

// === impl Waiting ===

impl Waiting {
    /// False when there is no room for more of this source.
    fn push(&mut self, datagram: Datagram) -> bool {
        let (from, cost) = (*datagram.from.ip(), datagram.cost());
        let held = self.sources.get(&from).map_or(0, |source| source.taken);
        if !places::admits(held, cost, QUEUE - self.taken) {
            return false;
        }
        let source = self.sources.entry(from).or_default();
        if source.datagrams.is_empty() {
            self.turns.push_back(from);
        }
        source.datagrams.push_back(datagram);
        source.taken += cost;
        self.taken += cost;
        true
    }

    fn pop(&mut self) -> Option<Datagram> {
        let from = self.turns.pop_front()?;
        let source = self.sources.get_mut(&from)?;
        let datagram = source.datagrams.pop_front()?;
        source.taken -= datagram.cost();
        self.taken -= datagram.cost();
        if source.datagrams.is_empty() {
            self.sources.remove(&from);
        } else {
            self.turns.push_back(from);
        }
        Some(datagram)
    }

    fn len(&self) -> usize {
        let sources = self.sources.values();
        sources.map(|source| source.datagrams.len()).sum()
    }
}

// === impl Outbox ===

impl Outbox {
    pub(super) fn new(lost: Arc<Lost>) -> Self {
        Self {
            waiting: Mutex::default(),
            filled: Notify::new(),
            lost,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the datagram, and counts it, when too much waits.
    pub(super) fn push(&self, datagram: Datagram) {
        let first = {
            let mut waiting = self.lock();
            let first = waiting.turns.is_empty();
            if !waiting.push(datagram) {
                self.lost.count(Why::Node);
                return;
            }
            first
        };
        if first {
            self.filled.notify_one();
        }
    }

    fn clear(&self) {
        let waiting = std::mem::take(&mut *self.lock());
        self.lost.add(Why::Node, waiting.len());
    }

    fn batch(&self) -> Option<Batch> {
        let mut waiting = self.lock();
        let (mut buffer, mut datagrams) = (BytesMut::new(), 0);
        while buffer.len() < BATCH
            && let Some(datagram) = waiting.pop()
        {
            datagram.put(&mut buffer);
            datagrams += 1;
        }
        (datagrams > 0).then(|| Batch {
            bytes: buffer.freeze(),
            datagrams,
        })
    }

    /// Waits until there is something. Cancel by dropping: nothing is lost.
    async fn next(&self) -> Batch {
        loop {
            if let Some(batch) = self.batch() {
                return batch;
            }
            self.filled.notified().await;
        }
    }

    /// Sends what is pushed, as long as anybody can push.
    pub(super) async fn run(
        self: Arc<Self>,
        mut status: watch::Receiver<Status>,
        wanted: Arc<Notify>,
    ) {
        loop {
            let first = self.next().await;
            wanted.notify_one();
            let up = status.wait_for(|status| !matches!(status.link, Link::Idle | Link::Dialling));
            let connection = match tokio::time::timeout(PATIENCE, up).await {
                Ok(Ok(status)) => status.connection.clone(),
                Ok(Err(_)) => return,
                Err(_) => None,
            };
            let mut head = Request::new(());
            *head.method_mut() = Method::CONNECT;
            *head.uri_mut() = Uri::from_static(words::DATAGRAMS);
            let opened = match connection {
                Some(connection) => connection.open(head, false).await.ok(),
                None => None,
            };
            match opened {
                Some(opened) => self.send(opened, first).await,
                // Nobody there: lost, as datagrams may be.
                None => {
                    self.lost.add(Why::Node, first.datagrams);
                    self.clear();
                }
            }
        }
    }

    async fn send(&self, opened: Opened, first: Batch) {
        let Opened {
            response,
            mut send,
            in_use,
        } = opened;
        let mut batch = first;
        loop {
            if streams::write(&mut send, batch.bytes).await.is_err() {
                self.lost.add(Why::Node, batch.datagrams);
                break;
            }
            let next = tokio::select! {
                biased;
                _ = std::future::poll_fn(|cx| send.poll_reset(cx)) => break,
                next = tokio::time::timeout(IDLE, self.next()) => next,
            };
            let Ok(next) = next else {
                // The stream is done, or gone: either way it ends here.
                drop(send.send_data(Bytes::new(), true));
                break;
            };
            batch = next;
        }
        // Held until now: dropped earlier, it would have reset the stream.
        drop((response, in_use));
    }
}

// === impl Incoming ===

impl Incoming {
    /// Datagrams, until the other node has no more or this one shuts down.
    pub(super) async fn datagrams(&self, recv: RecvStream, mut respond: SendResponse<Bytes>) {
        let Ok(_answer) = respond.send_response(Response::new(()), false) else {
            return;
        };
        tokio::select! {
            biased;
            () = self.fabric.draining.cancelled() => {}
            () = self.take_datagrams(recv) => {}
        }
    }

    async fn take_datagrams(&self, mut recv: RecvStream) {
        let mut buffer = BytesMut::new();
        while let Some(Ok(chunk)) = std::future::poll_fn(|cx| recv.poll_data(cx)).await {
            // A stream that has ended meanwhile needs no window.
            drop(recv.flow_control().release_capacity(chunk.len()));
            buffer.extend_from_slice(&chunk);
            while let Some(datagram) = Datagram::take(&mut buffer) {
                self.datagram(datagram);
            }
        }
    }

    /// Lost when it may not come in or nobody listens.
    fn datagram(&self, datagram: Datagram) {
        let Datagram { from, to, payload } = datagram;
        let Ok(source) = self.believe(*from.ip(), None) else {
            return;
        };
        let (from, to) = (SocketAddr::V4(from), SocketAddr::V4(to));
        if to.ip() == self.fabric.node_address {
            // An answer to a client of a NodePort here.
            let (outsiders, now) = (&self.fabric.outsiders, self.fabric.now());
            outsiders.answer(to.port(), &payload, from, now);
            return;
        }
        let Ok(pod) = self.admit(to) else { return };
        let Some(queue) = pod.ports().udp(to.port(), false) else {
            return;
        };
        if !self.fabric.policy.is_free_both_ways(None, Some(&pod)) {
            let mut way = Way::of(&source.caller(from.port(), &pod), Some(&pod), to, to);
            way.protocol = Protocol::Udp;
            let passed = udp::pass(&self.fabric, &queue.partners, from, &way, Sends::They);
            if passed.is_err() {
                self.fabric.lost.count(Why::Denied);
                return;
            }
        }
        queue.push(payload, from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(length: usize) -> Datagram {
        let from = "100.64.0.5:40000".parse().unwrap();
        let to = "100.64.64.9:53".parse().unwrap();
        Datagram::new(from, to, Bytes::from(vec![7; length])).unwrap()
    }

    #[test]
    fn datagrams_are_the_same_however_the_stream_is_cut() {
        let sent: Vec<Datagram> = [0, 1, 1200, LARGEST].map(datagram).to_vec();
        let mut stream = BytesMut::new();
        sent.iter().for_each(|datagram| datagram.put(&mut stream));
        for cut in [1, 13, 14, 15, 70_000] {
            let mut buffer = BytesMut::new();
            let mut received = Vec::new();
            for part in stream.chunks(cut) {
                buffer.extend_from_slice(part);
                received.extend(std::iter::from_fn(|| Datagram::take(&mut buffer)));
            }
            assert_eq!(received, sent);
            assert!(buffer.is_empty());
        }
        assert!(
            Datagram::new(
                sent[0].from.into(),
                sent[0].to.into(),
                vec![0; 65_508].into()
            )
            .is_none()
        );
    }

    fn of(source: u8, length: usize) -> Datagram {
        Datagram {
            from: SocketAddrV4::new([100, 64, 0, source].into(), 40_000),
            ..datagram(length)
        }
    }

    #[test]
    fn an_outbox_is_bounded_and_says_what_it_dropped() {
        let lost = Arc::new(Lost::default());
        let outbox = Outbox::new(Arc::clone(&lost));
        for length in [0, 10, 60_000] {
            for source in 0..10 {
                for _ in 0..5_000 {
                    outbox.push(of(source, length));
                }
            }
            assert!(outbox.lock().taken <= QUEUE);
            assert!(outbox.batch().unwrap().bytes.len() < 2 * BATCH);
            outbox.clear();
            assert_eq!(outbox.lock().taken, 0);
        }
        let sent = 150_000 - lost.of(Why::Node);
        assert!((1..20_000).contains(&sent), "{sent} were in a batch");
    }

    #[test]
    fn one_pod_that_floods_takes_no_other_pods_datagrams_with_it() {
        let outbox = Outbox::new(Arc::default());
        for _ in 0..10_000 {
            outbox.push(of(1, 1_200));
        }
        let quiet = [of(2, 300), of(2, 400), of(3, 500)];
        quiet
            .iter()
            .cloned()
            .for_each(|datagram| outbox.push(datagram));
        for _ in 0..10_000 {
            outbox.push(of(1, 1_200));
        }
        let mut next = outbox.lock();
        let next: Vec<Datagram> = std::iter::from_fn(|| next.pop()).take(6).collect();
        let [a, b, c] = quiet;
        let flood = of(1, 1_200);
        assert_eq!(next, [flood.clone(), a, c, flood.clone(), b, flood]);
    }
}

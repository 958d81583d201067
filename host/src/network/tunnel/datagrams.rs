//! Datagrams between pods of two nodes: framed, one after the other, in one stream each way. Bounded queues drop, as UDP
//! may; nobody waits.
//!
//! ```text
//!   length of the payload: 2 │ source: address 4, port 2 │ destination: address 4, port 2 │ payload
//! ```
//! The stream is opened when there is something to send and closed when there was nothing for a while.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
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
use crate::network::policy::Way;
use crate::network::table::Protocol;
use crate::network::udp::LARGEST;
use crate::network::udp::{self, Sends};

/// What may wait for one node.
const QUEUE_DATAGRAMS: usize = 1_024;
const QUEUE_BYTES: usize = 1 << 20;
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

/// What waits to be sent to one node.
#[derive(Default)]
pub(super) struct Outbox {
    /// Held for a few instructions, never over an await.
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    datagrams: VecDeque<Datagram>,
    bytes: usize,
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

// === impl Outbox ===

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the datagram when too much waits.
    pub(super) fn push(&self, datagram: Datagram) {
        let first = {
            let mut waiting = self.lock();
            let bytes = waiting.bytes + datagram.payload.len();
            if waiting.datagrams.len() >= QUEUE_DATAGRAMS || bytes > QUEUE_BYTES {
                return;
            }
            waiting.bytes = bytes;
            waiting.datagrams.push_back(datagram);
            waiting.datagrams.len() == 1
        };
        if first {
            self.filled.notify_one();
        }
    }

    fn clear(&self) {
        *self.lock() = Waiting::default();
    }

    fn batch(&self) -> Option<Bytes> {
        let mut waiting = self.lock();
        let mut buffer = BytesMut::new();
        while buffer.len() < BATCH
            && let Some(datagram) = waiting.datagrams.pop_front()
        {
            waiting.bytes -= datagram.payload.len();
            datagram.put(&mut buffer);
        }
        (!buffer.is_empty()).then(|| buffer.freeze())
    }

    /// Waits until there is something. Cancel by dropping: nothing is lost.
    async fn next(&self) -> Bytes {
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
                None => self.clear(),
            }
        }
    }

    async fn send(&self, opened: Opened, first: Bytes) {
        let Opened {
            response,
            mut send,
            in_use,
        } = opened;
        let mut batch = first;
        loop {
            if streams::write(&mut send, batch).await.is_err() {
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
        let queue = if IpAddr::V4(*to.ip()) == self.fabric.node_address {
            // An answer to a client of a NodePort here.
            self.fabric.node_ports.udp(to.port(), false)
        } else {
            let pod = self.admit(SocketAddr::V4(to));
            pod.ok().and_then(|pod| {
                let queue = pod.ports().udp(to.port(), false)?;
                let policy = &self.fabric.policy;
                if policy.is_free_both_ways(None, Some(&pod)) {
                    return Some(queue);
                }
                let (from, to) = (SocketAddr::V4(from), SocketAddr::V4(to));
                let mut way = Way::of(&source.caller(from.port(), &pod), Some(&pod), to, to);
                way.protocol = Protocol::Udp;
                let passed = udp::pass(&self.fabric, &queue.partners, from, &way, Sends::They);
                passed.is_ok().then_some(queue)
            })
        };
        if let Some(queue) = queue {
            queue.push(payload, SocketAddr::V4(from));
        }
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

    #[test]
    fn an_outbox_is_bounded() {
        let outbox = Outbox::default();
        for _ in 0..10_000 {
            outbox.push(datagram(10));
        }
        assert_eq!(outbox.lock().datagrams.len(), QUEUE_DATAGRAMS);
        outbox.clear();
        for _ in 0..100 {
            outbox.push(datagram(60_000));
        }
        assert!(outbox.lock().bytes <= QUEUE_BYTES);
        assert!(outbox.batch().unwrap().len() < 2 * BATCH);
    }
}

//! Bytes between a pod's stream and a stream of the tunnel, each direction on its own: half-close passes through, a reset
//! resets, a slow reader stops the sender.
//!
//! What the other node has sent and the pod has not read is at most the stream's window, and is charged to the pod's
//! budget. A pod that lets many streams pile up far beyond it loses those it does not read.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Poll;

use bytes::{Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};

use crate::network::pipe::Budget;
use crate::network::{Reader, SocketError, Stream, Writer};

/// Small chunks are joined up to this.
const JOINED: usize = 16 * 1024;
const SMALL: usize = 2 * 1024;

/// What came from the other node and is not yet the pod's.
struct Held {
    budget: Arc<Budget>,
    chunks: VecDeque<Bytes>,
    /// Small chunks after those, joined: a byte of a guest must not cost a hundred here.
    tail: BytesMut,
    charged: usize,
}

/// Ends when both directions have ended, or one failed.
pub(super) async fn carry(
    mut stream: Stream,
    recv: RecvStream,
    mut send: SendStream<Bytes>,
    budget: Arc<Budget>,
) {
    let both = tokio::try_join!(
        inward(recv, &mut stream.writer, budget),
        outward(&mut stream.reader, &mut send)
    );
    if both.is_err() {
        send.send_reset(Reason::CANCEL);
        stream.reset();
    }
}

/// From the other node to the pod.
async fn inward(
    mut recv: RecvStream,
    writer: &mut Writer,
    budget: Arc<Budget>,
) -> Result<(), SocketError> {
    let mut held = Held::new(budget);
    let mut ended = false;
    std::future::poll_fn(|cx| {
        loop {
            let mut progress = false;
            while !ended {
                match recv.poll_data(cx) {
                    Poll::Ready(Some(Ok(chunk))) => {
                        held.push(chunk)?;
                        progress = true;
                    }
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(SocketError::Reset)),
                    Poll::Ready(None) => ended = true,
                    Poll::Pending => break,
                }
            }
            while !held.is_empty() {
                let Poll::Ready(room) = writer.poll_ready(cx) else {
                    break;
                };
                let chunk = held.take(room?);
                let length = chunk.len();
                writer.send(chunk)?;
                // A stream that has ended meanwhile needs no window.
                drop(recv.flow_control().release_capacity(length));
                progress = true;
            }
            if ended && held.is_empty() {
                writer.shutdown();
                return Poll::Ready(Ok(()));
            }
            if !progress {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// From the pod to the other node.
async fn outward(reader: &mut Reader, send: &mut SendStream<Bytes>) -> Result<(), SocketError> {
    loop {
        let next = std::future::poll_fn(|cx| {
            if send.poll_reset(cx).is_ready() {
                return Poll::Ready(Err(SocketError::Reset));
            }
            reader.poll_read(cx).map(Option::transpose)
        });
        let Some(mut chunk) = next.await? else {
            return send
                .send_data(Bytes::new(), true)
                .map_err(|_| SocketError::Reset);
        };
        if chunk.len() < SMALL {
            chunk = join(chunk, reader).await;
        }
        write(send, chunk).await?;
    }
}

/// Sends `chunk` as the window allows.
pub(super) async fn write(
    send: &mut SendStream<Bytes>,
    mut chunk: Bytes,
) -> Result<(), SocketError> {
    while !chunk.is_empty() {
        send.reserve_capacity(chunk.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx)).await;
        let Some(Ok(room)) = room else {
            return Err(SocketError::Reset);
        };
        let part = chunk.split_to(room.min(chunk.len()));
        send.send_data(part, false)
            .map_err(|_| SocketError::Reset)?;
    }
    Ok(())
}

/// `first` and what is there already, as one chunk: each frame costs.
async fn join(first: Bytes, reader: &mut Reader) -> Bytes {
    let mut joined = BytesMut::new();
    std::future::poll_fn(|cx| {
        while joined.len() + first.len() < JOINED {
            // An end or a reset comes again when it is read next.
            let Poll::Ready(Some(Ok(chunk))) = reader.poll_read(cx) else {
                break;
            };
            if joined.is_empty() {
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&chunk);
        }
        Poll::Ready(())
    })
    .await;
    if joined.is_empty() {
        first
    } else {
        joined.freeze()
    }
}

// === impl Held ===

impl Held {
    fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            chunks: VecDeque::new(),
            tail: BytesMut::new(),
            charged: 0,
        }
    }

    fn is_empty(&self) -> bool {
        self.charged == 0
    }

    /// An error when the pod has far more waiting than it may.
    fn push(&mut self, chunk: Bytes) -> Result<(), SocketError> {
        if chunk.is_empty() {
            return Ok(());
        }
        if self.budget.is_overdrawn() {
            return Err(SocketError::Reset);
        }
        self.budget.charge(chunk.len());
        self.charged += chunk.len();
        if chunk.len() < SMALL {
            self.tail.extend_from_slice(&chunk);
            if self.tail.len() >= JOINED {
                self.chunks.push_back(self.tail.split().freeze());
            }
            return Ok(());
        }
        if !self.tail.is_empty() {
            self.chunks.push_back(self.tail.split().freeze());
        }
        self.chunks.push_back(chunk);
        Ok(())
    }

    /// At most `room` bytes.
    fn take(&mut self, room: usize) -> Bytes {
        let mut chunk = match self.chunks.pop_front() {
            Some(chunk) => chunk,
            None => self.tail.split().freeze(),
        };
        if chunk.len() > room {
            let rest = chunk.split_off(room);
            self.chunks.push_front(rest);
        }
        self.charged -= chunk.len();
        self.budget.refund(chunk.len());
        chunk
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.refund(self.charged);
    }
}

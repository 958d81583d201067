//! A SPDY/3.1 connection on which the client opens streams: frames in, frames out, and who opened what. Speaks of streams
//! and their headers; what they are for is for others to know.
//!
//! Clients (moby/spdystream) heed no windows, so none bounds them: a stream that is not read stops its connection, as upstream.

pub(super) mod frame;
pub(super) mod headers;

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, duplex,
};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use self::frame::{Decoder, Frame, FrameError, REFUSED};
pub(super) use self::headers::Headers;
use self::headers::{HeaderError, Packer, Unpacker};
use super::LINGER;
use super::outlet::{Out, Outlet, Queue};
use crate::idle::Activity;
use crate::network::Io;

/// Streams open at once on one connection; a forwarded connection takes two.
const MOST_STREAMS: usize = 2_048;
/// Streams that were opened and are not looked at yet.
const OPENED: usize = 16;
/// Bytes of one stream that wait for who reads it.
const INLET: usize = 64 * 1024;
/// Bytes read from the connection in one go, and gathered for it.
const CHUNK: usize = 64 * 1024;
/// So much must have been read before it is told to the client.
const WINDOW: u32 = 32 * 1024;
/// An idle connection says something after this long: whoever is gone shows as an error.
const BEAT: Duration = Duration::from_secs(30);

/// A stream that the client has opened and nobody has answered.
pub(super) struct Opened {
    pub(super) headers: Headers,
    pub(super) id: u32,
    inlet: DuplexStream,
    gone: CancellationToken,
    queue: Queue,
}

/// A stream that was taken.
pub(super) struct Stream {
    pub(super) inlet: DuplexStream,
    pub(super) outlet: Outlet,
    /// Cancelled when the client resets the stream.
    pub(super) gone: CancellationToken,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum SpdyError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Headers(#[from] HeaderError),
    #[error("stream {0} is opened twice, or by the wrong side")]
    Order(u32),
}

/// What both halves of a connection know: streams whose last piece has been sent.
type Finished = Arc<Mutex<Vec<u32>>>;

// === impl Opened ===

impl Opened {
    pub(super) async fn accept(self) -> Stream {
        // A queue that is closed shows at the first write.
        drop(self.queue.send(Out::Accept(self.id)).await);
        Stream {
            outlet: Outlet::new(self.id, &self.queue),
            inlet: self.inlet,
            gone: self.gone,
        }
    }

    pub(super) async fn refuse(self) {
        drop(self.queue.send(Out::Refuse(self.id)).await);
    }
}

/// Runs `work` on the streams that the client opens: until it is done and everything is sent, or until the client is gone,
/// which drops it.
pub(super) async fn run<S, W>(
    io: S,
    (queue, queued): (Queue, mpsc::Receiver<Out>),
    activity: &Arc<Activity>,
    work: impl FnOnce(mpsc::Receiver<Opened>) -> W,
) -> Result<(), SpdyError>
where
    S: Io,
    W: Future<Output = ()>,
{
    let (from, to) = tokio::io::split(io);
    let (announce, opened) = mpsc::channel(OPENED);
    let finished = Finished::default();
    let mut reading = Reading {
        entries: HashMap::new(),
        finished: Arc::clone(&finished),
        announce,
        queue: queue.clone(),
        highest: 0,
        unread: 0,
        unpacker: Unpacker::default(),
    };
    let mut from = from;
    let work = work(opened);
    let closing = async {
        work.await;
        drop(queue.send(Out::Close).await);
        std::future::pending::<()>().await;
    };
    tokio::select! {
        read = reading.run(&mut from, activity) => return read,
        () = closing => {}
        written = write(to, queued, &finished, activity) => written?,
    }
    // A client that still sends would never see the end if the connection were just dropped.
    let rest = async { while matches!(from.read(&mut [0; 4096]).await, Ok(1..)) {} };
    drop(timeout(LINGER, rest).await);
    Ok(())
}

/// The client's side of the connection.
struct Reading {
    entries: HashMap<u32, Entry>,
    finished: Finished,
    announce: mpsc::Sender<Opened>,
    queue: Queue,
    /// Streams are numbered upwards.
    highest: u32,
    /// Bytes read on all streams that the client has not been told of.
    unread: u32,
    unpacker: Unpacker,
}

struct Entry {
    /// `None`: the client has sent its last, or nobody reads it.
    inlet: Option<DuplexStream>,
    gone: CancellationToken,
    /// The client sends no more.
    ended: bool,
    untold: u32,
}

// === impl Reading ===

impl Reading {
    async fn run(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        activity: &Arc<Activity>,
    ) -> Result<(), SpdyError> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            if from.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
            while let Some(frame) = decoder.decode(&mut buffer)? {
                if matches!(frame, Frame::Data { .. } | Frame::Open { .. }) {
                    activity.touch();
                }
                self.take(frame).await?;
            }
        }
    }

    async fn take(&mut self, frame: Frame) -> Result<(), SpdyError> {
        match frame {
            Frame::Open { stream, fin, block } => self.open(stream, fin, &block).await?,
            Frame::Data { stream, bytes, fin } => self.data(stream, bytes, fin).await,
            Frame::Reset { stream, .. } => {
                if let Some(entry) = self.entries.remove(&stream) {
                    entry.gone.cancel();
                }
            }
            // Odd numbers are the client's questions; even ones are answers to ours. A client that asks faster than it
            // listens gets fewer answers.
            Frame::Ping(number) if number % 2 == 1 => {
                drop(self.queue.try_send(Out::Ping(number)));
            }
            // We open no streams; but every block moves the state of the compression.
            Frame::Reply { block, .. } | Frame::Headers { block, .. } => {
                self.unpacker.unpack(&block)?;
            }
            Frame::Ping(_) | Frame::GoAway { .. } | Frame::Window { .. } | Frame::Ignored => {}
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: bool, block: &[u8]) -> Result<(), SpdyError> {
        let headers = self.unpacker.unpack(block)?;
        if stream.is_multiple_of(2) || stream <= self.highest {
            return Err(SpdyError::Order(stream));
        }
        self.highest = stream;
        self.forget_finished();
        if self.entries.len() >= MOST_STREAMS {
            drop(self.queue.send(Out::Refuse(stream)).await);
            return Ok(());
        }
        let (here, there) = duplex(INLET);
        let gone = CancellationToken::new();
        self.entries.insert(
            stream,
            Entry {
                inlet: (!fin).then_some(here),
                gone: gone.clone(),
                ended: fin,
                untold: 0,
            },
        );
        let opened = Opened {
            headers,
            id: stream,
            inlet: there,
            gone,
            queue: self.queue.clone(),
        };
        if self.announce.send(opened).await.is_err() {
            self.entries.remove(&stream);
            drop(self.queue.send(Out::Refuse(stream)).await);
        }
        Ok(())
    }

    async fn data(&mut self, stream: u32, bytes: Bytes, fin: bool) {
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.unread = self.unread.saturating_add(length);
        if self.unread >= WINDOW {
            self.unread = self.tell(0, self.unread);
        }
        // What comes for a stream that has ended was on its way.
        let Some(entry) = self.entries.get_mut(&stream) else {
            return;
        };
        if let Some(inlet) = &mut entry.inlet {
            let written = inlet.write_all(&bytes).await;
            if fin || written.is_err() {
                entry.inlet = None;
            }
        }
        entry.ended |= fin;
        entry.untold = entry.untold.saturating_add(length);
        if entry.untold >= WINDOW && !entry.ended {
            let untold = entry.untold;
            let left = self.tell(stream, untold);
            if let Some(entry) = self.entries.get_mut(&stream) {
                entry.untold = left;
            }
        }
    }

    /// What of `delta` could not be told: the next time, then.
    fn tell(&self, stream: u32, delta: u32) -> u32 {
        match self.queue.try_send(Out::Window { stream, delta }) {
            Ok(()) => 0,
            Err(_) => delta,
        }
    }

    /// Streams whose both ends have said their last.
    fn forget_finished(&mut self) {
        let mut finished = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        finished.retain(|stream| {
            let half = self.entries.get(stream).is_some_and(|entry| !entry.ended);
            if !half {
                self.entries.remove(stream);
            }
            half
        });
    }
}

async fn write(
    mut to: impl AsyncWrite + Unpin,
    mut queued: mpsc::Receiver<Out>,
    finished: &Finished,
    activity: &Arc<Activity>,
) -> Result<(), SpdyError> {
    let mut packer = Packer::new()?;
    let mut buffer = BytesMut::new();
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    let mut question = 0_u32;
    loop {
        let mut next = tokio::select! {
            out = queued.recv() => out,
            _ = beat.tick() => {
                question = question.wrapping_add(2);
                Some(Out::Ping(question))
            }
        };
        let mut last = next.is_none();
        while let Some(out) = next.take() {
            if let Out::Data { stream, fin, .. } = &out {
                activity.touch();
                if *fin {
                    let mut finished = finished.lock().unwrap_or_else(PoisonError::into_inner);
                    finished.push(*stream);
                }
            }
            last |= matches!(out, Out::Close);
            encode(out, &mut packer, &mut buffer)?;
            if buffer.len() < CHUNK && !last {
                next = queued.try_recv().ok();
            }
        }
        to.write_all_buf(&mut buffer).await?;
        to.flush().await?;
        if last {
            to.shutdown().await?;
            return Ok(());
        }
    }
}

fn encode(out: Out, packer: &mut Packer, buffer: &mut BytesMut) -> Result<(), SpdyError> {
    let frame = match out {
        Out::Data { stream, bytes, fin } => Frame::Data { stream, bytes, fin },
        Out::Accept(stream) => Frame::Reply {
            stream,
            fin: false,
            block: packer.pack(&[])?,
        },
        Out::Refuse(stream) => Frame::Reset {
            stream,
            status: REFUSED,
        },
        Out::Ping(number) => Frame::Ping(number),
        Out::Window { stream, delta } => Frame::Window { stream, delta },
        Out::Close => Frame::GoAway { last: 0 },
    };
    frame.encode(buffer);
    Ok(())
}

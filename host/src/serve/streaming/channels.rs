//! Numbered channels in the messages of a WebSocket, as `*.channel.k8s.io` has them: the first byte says which (a digit, and
//! base64 behind it, in the old text form). Moves bytes between messages and pipes; what a channel means is not known here.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, protocol::CloseFrame};

use super::LINGER;
use super::outlet::{Out, Queue};
use crate::idle::Activity;
use crate::network::Io;

/// An idle connection says something after this long: whoever is gone shows as an error.
const BEAT: Duration = Duration::from_secs(30);
/// `[255, CHANNEL]`: the client sends no more on that channel (v5).
const CLOSE: u8 = 255;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Encoding {
    Binary,
    Base64,
}

/// Where the client's bytes go, by channel; `None`: nowhere.
pub(super) type Inlets = Vec<Option<DuplexStream>>;

/// Runs `work` beside the connection: until it is done and everything is sent, or until the client is gone, which drops it.
pub(super) async fn run<S: Io>(
    socket: WebSocketStream<S>,
    encoding: Encoding,
    mut inlets: Inlets,
    (queue, queued): (Queue, mpsc::Receiver<Out>),
    activity: &Arc<Activity>,
    work: impl Future<Output = ()>,
) {
    let (sink, mut stream) = socket.split();
    let sending = async {
        work.await;
        drop(queue.send(Out::Close).await);
        // Nobody but us has the queue any longer; writing ends by what was sent last.
        std::future::pending::<()>().await
    };
    {
        let reading = read(&mut stream, encoding, &mut inlets, activity);
        tokio::select! {
            () = reading => return,
            () = sending => return,
            sent = write(sink, encoding, queued, activity) => if sent.is_err() {
                return;
            },
        }
    }
    // A client that still sends would never see the end if the connection were just dropped.
    inlets.clear();
    let rest = read(&mut stream, encoding, &mut inlets, activity);
    drop(timeout(LINGER, rest).await);
}

async fn read<S: Io>(
    stream: &mut SplitStream<WebSocketStream<S>>,
    encoding: Encoding,
    inlets: &mut Inlets,
    activity: &Arc<Activity>,
) {
    while let Some(Ok(message)) = stream.next().await {
        let message: Bytes = match message {
            Message::Binary(bytes) => bytes,
            Message::Text(text) => text.into(),
            Message::Close(_) => return,
            _ => continue,
        };
        activity.touch();
        let Some((&channel, rest)) = message.split_first() else {
            continue;
        };
        let (channel, bytes) = match encoding {
            Encoding::Binary => (channel, message.slice(1..)),
            Encoding::Base64 => match STANDARD.decode(rest) {
                Ok(bytes) => (channel.wrapping_sub(b'0'), bytes.into()),
                // As upstream: what is not base64 ends the connection.
                Err(_) => return,
            },
        };
        if channel == CLOSE && encoding == Encoding::Binary {
            let closed = bytes.first().copied().unwrap_or(CLOSE);
            if let Some(inlet) = inlets.get_mut(usize::from(closed)) {
                *inlet = None;
            }
            continue;
        }
        let Some(place) = inlets.get_mut(usize::from(channel)) else {
            continue;
        };
        if let Some(inlet) = place
            && inlet.write_all(&bytes).await.is_err()
        {
            // Nobody reads it any longer.
            *place = None;
        }
    }
}

async fn write<S: Io>(
    mut sink: SplitSink<WebSocketStream<S>, Message>,
    encoding: Encoding,
    mut queued: mpsc::Receiver<Out>,
    activity: &Arc<Activity>,
) -> Result<(), tokio_tungstenite::tungstenite::Error> {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    beat.reset();
    loop {
        let out = tokio::select! {
            out = queued.recv() => out,
            _ = beat.tick() => {
                sink.send(Message::Ping(Bytes::new())).await?;
                continue;
            }
        };
        match out {
            Some(Out::Data { stream, bytes, fin }) => {
                // These protocols have no end of a server's channel.
                if fin && bytes.is_empty() {
                    continue;
                }
                activity.touch();
                sink.send(message(encoding, stream, &bytes)).await?;
            }
            Some(Out::Close) | None => {
                let normal = CloseFrame {
                    code: CloseCode::Normal,
                    reason: String::new().into(),
                };
                return sink.send(Message::Close(Some(normal))).await;
            }
            Some(_) => {}
        }
    }
}

fn message(encoding: Encoding, channel: u32, bytes: &[u8]) -> Message {
    let channel = u8::try_from(channel).unwrap_or(CLOSE);
    match encoding {
        Encoding::Binary => {
            let mut message = BytesMut::with_capacity(1 + bytes.len());
            message.put_u8(channel);
            message.put_slice(bytes);
            Message::Binary(message.freeze())
        }
        Encoding::Base64 => {
            let digit = char::from(b'0'.wrapping_add(channel));
            Message::Text(format!("{digit}{}", STANDARD.encode(bytes)).into())
        }
    }
}

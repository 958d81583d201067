//! SPDY/3.1 frames from and to bytes. Pure: no connection, no clock. Header blocks pass through as they are, compressed;
//! data is handed on as it comes, so that no frame is ever held as a whole.

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// A control frame may not be longer: nothing that is said here needs more.
pub(super) const MAX_CONTROL: usize = 64 * 1024;
const HEAD: usize = 8;
const VERSION: u16 = 3;
const CONTROL: u32 = 1 << 31;
const FIN: u8 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const SETTINGS: u16 = 4;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;
const WINDOW_UPDATE: u16 = 9;

/// REFUSED_STREAM
pub(super) const REFUSED: u32 = 3;

#[derive(Clone, Debug, Eq, PartialEq)]
pub(in crate::serve::streaming) enum Frame {
    /// SYN_STREAM
    Open {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    /// SYN_REPLY
    Reply {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    /// HEADERS
    Headers {
        stream: u32,
        fin: bool,
        block: Bytes,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last: u32,
    },
    Window {
        stream: u32,
        delta: u32,
    },
    /// A piece of a data frame; `fin` with the last piece.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// SETTINGS, and what we do not know.
    Ignored,
}

#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(in crate::serve::streaming) enum FrameError {
    #[error("a frame of SPDY version {0}, not 3")]
    Version(u16),
    #[error("a control frame of {0} bytes, more than {MAX_CONTROL}")]
    TooLong(usize),
    #[error("a control frame of type {kind} with {length} bytes is malformed")]
    Malformed { kind: u16, length: usize },
    #[error("a frame for stream 0")]
    NoStream,
}

/// Takes frames out of bytes as they come.
#[derive(Default)]
pub(in crate::serve::streaming) struct Decoder {
    data: Option<Rest>,
}

/// What is still to come of a data frame.
struct Rest {
    stream: u32,
    left: usize,
    fin: bool,
}

// === impl Decoder ===

impl Decoder {
    /// The next frame, or `None` until there are more bytes.
    pub(in crate::serve::streaming) fn decode(
        &mut self,
        buffer: &mut BytesMut,
    ) -> Result<Option<Frame>, FrameError> {
        if self.data.is_some() {
            return Ok(self.piece(buffer));
        }
        let Some(mut head) = buffer.get(..HEAD) else {
            return Ok(None);
        };
        let (first, second) = (head.get_u32(), head.get_u32());
        let flags = second.to_be_bytes()[0];
        let length = (second & 0x00ff_ffff) as usize;
        if first & CONTROL == 0 {
            if first == 0 {
                return Err(FrameError::NoStream);
            }
            buffer.advance(HEAD);
            self.data = Some(Rest {
                stream: first,
                left: length,
                fin: flags & FIN != 0,
            });
            return Ok(self.piece(buffer));
        }
        let version = ((first >> 16) & 0x7fff) as u16;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > MAX_CONTROL {
            return Err(FrameError::TooLong(length));
        }
        if buffer.len() < HEAD + length {
            return Ok(None);
        }
        buffer.advance(HEAD);
        let payload = buffer.split_to(length).freeze();
        let kind = (first & 0xffff) as u16;
        control(kind, flags & FIN != 0, payload).map(Some)
    }

    fn piece(&mut self, buffer: &mut BytesMut) -> Option<Frame> {
        let rest = self.data.as_mut()?;
        if buffer.is_empty() && rest.left > 0 {
            return None;
        }
        let bytes = buffer.split_to(rest.left.min(buffer.len())).freeze();
        rest.left -= bytes.len();
        let (stream, last) = (rest.stream, rest.left == 0);
        let fin = last && rest.fin;
        if last {
            self.data = None;
        }
        Some(Frame::Data { stream, bytes, fin })
    }
}

fn control(kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, FrameError> {
    let length = payload.len();
    let least = match kind {
        SYN_STREAM => 10,
        RST_STREAM | GOAWAY | WINDOW_UPDATE => 8,
        SYN_REPLY | PING | HEADERS => 4,
        _ => return Ok(Frame::Ignored),
    };
    let exact = matches!(kind, RST_STREAM | PING | WINDOW_UPDATE);
    if length < least || (exact && length != least) {
        return Err(FrameError::Malformed { kind, length });
    }
    let number = payload.get_u32();
    let stream = number & !CONTROL;
    let concerns_one = !matches!(kind, PING | GOAWAY | WINDOW_UPDATE);
    if concerns_one && stream == 0 {
        return Err(FrameError::NoStream);
    }
    Ok(match kind {
        SYN_STREAM => {
            // The stream it belongs to, its priority and its slot: nobody uses them.
            payload.advance(6);
            Frame::Open {
                stream,
                fin,
                block: payload,
            }
        }
        SYN_REPLY => Frame::Reply {
            stream,
            fin,
            block: payload,
        },
        HEADERS => Frame::Headers {
            stream,
            fin,
            block: payload,
        },
        RST_STREAM => Frame::Reset {
            stream,
            status: payload.get_u32(),
        },
        PING => Frame::Ping(number),
        GOAWAY => Frame::GoAway { last: stream },
        _ => Frame::Window {
            stream,
            delta: payload.get_u32() & !CONTROL,
        },
    })
}

// === impl Frame ===

impl Frame {
    /// Data longer than a frame can be is not ours to write: pieces are small.
    pub(in crate::serve::streaming) fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Data { stream, bytes, fin } => {
                head(out, *stream, *fin, bytes.len());
                out.put_slice(bytes);
            }
            Self::Open { stream, fin, block } => {
                head(out, control_word(SYN_STREAM), *fin, 10 + block.len());
                out.put_u32(*stream);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(block);
            }
            Self::Reply { stream, fin, block } => named(out, SYN_REPLY, *stream, *fin, block),
            Self::Headers { stream, fin, block } => named(out, HEADERS, *stream, *fin, block),
            Self::Reset { stream, status } => two(out, RST_STREAM, *stream, *status),
            Self::GoAway { last } => two(out, GOAWAY, *last, 0),
            Self::Window { stream, delta } => two(out, WINDOW_UPDATE, *stream, *delta),
            Self::Ping(number) => {
                head(out, control_word(PING), false, 4);
                out.put_u32(*number);
            }
            Self::Ignored => {
                head(out, control_word(SETTINGS), false, 4);
                out.put_u32(0);
            }
        }
    }
}

fn control_word(kind: u16) -> u32 {
    CONTROL | (u32::from(VERSION) << 16) | u32::from(kind)
}

fn head(out: &mut BytesMut, first: u32, fin: bool, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).min(0x00ff_ffff);
    out.put_u32(first);
    out.put_u32(u32::from(fin) << 24 | length);
}

fn named(out: &mut BytesMut, kind: u16, stream: u32, fin: bool, block: &Bytes) {
    head(out, control_word(kind), fin, 4 + block.len());
    out.put_u32(stream);
    out.put_slice(block);
}

fn two(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    head(out, control_word(kind), false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let stream = || 1..CONTROL;
        let block = || prop::collection::vec(any::<u8>(), 0..200).prop_map(Bytes::from);
        let with_block = (stream(), any::<bool>(), block());
        prop_oneof![
            with_block
                .clone()
                .prop_map(|(stream, fin, block)| Frame::Open { stream, fin, block }),
            with_block
                .clone()
                .prop_map(|(stream, fin, block)| Frame::Reply { stream, fin, block }),
            with_block
                .clone()
                .prop_map(|(stream, fin, block)| Frame::Headers { stream, fin, block }),
            with_block.prop_map(|(stream, fin, bytes)| Frame::Data { stream, fin, bytes }),
            (stream(), any::<u32>()).prop_map(|(stream, status)| Frame::Reset { stream, status }),
            any::<u32>().prop_map(Frame::Ping),
            (0..CONTROL).prop_map(|last| Frame::GoAway { last }),
            (0..CONTROL, 0..CONTROL).prop_map(|(stream, delta)| Frame::Window { stream, delta }),
            Just(Frame::Ignored),
        ]
    }

    /// Pieces of one data frame are one again.
    fn joined(frames: Vec<Frame>) -> Vec<Frame> {
        let mut out: Vec<Frame> = Vec::new();
        let mut open = false;
        for frame in frames {
            if let Frame::Data { stream, bytes, fin } = &frame
                && open
                && let Some(Frame::Data {
                    stream: s,
                    bytes: b,
                    fin: f,
                }) = out.last_mut()
                && s == stream
            {
                *b = [&b[..], &bytes[..]].concat().into();
                *f = *fin;
                continue;
            }
            open = matches!(frame, Frame::Data { .. });
            out.push(frame);
        }
        out
    }

    proptest! {
        #[test]
        fn frames_survive_being_cut_anywhere(frames in prop::collection::vec(any_frame(), 0..12), cuts in prop::collection::vec(1_usize..40, 1..40)) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut wire);
            }
            let (mut decoder, mut buffer, mut seen) = (Decoder::default(), BytesMut::new(), Vec::new());
            let mut cuts = cuts.into_iter().cycle();
            while wire.has_remaining() {
                let at = cuts.next().unwrap_or(1).min(wire.len());
                buffer.put(wire.split_to(at));
                while let Some(frame) = decoder.decode(&mut buffer).expect("a frame") {
                    seen.push(frame);
                }
            }
            prop_assert!(buffer.is_empty());
            prop_assert_eq!(joined(seen), joined(frames));
        }

        #[test]
        fn hostile_bytes_are_frames_or_an_error_and_never_held(bytes in prop::collection::vec(any::<u8>(), 0..4_000)) {
            let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
            for chunk in bytes.chunks(97) {
                buffer.put_slice(chunk);
                loop {
                    match decoder.decode(&mut buffer) {
                        Ok(Some(_)) => {}
                        Ok(None) => break,
                        Err(_) => return Ok(()),
                    }
                }
                prop_assert!(buffer.len() <= HEAD + MAX_CONTROL);
            }
        }
    }

    #[test]
    fn what_is_too_long_or_no_frame_is_refused_by_its_head() {
        let refused = |bytes: &[u8]| {
            let mut buffer = BytesMut::from(bytes);
            Decoder::default().decode(&mut buffer).expect_err("refused")
        };
        assert_eq!(
            refused(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
            FrameError::TooLong(0x00ff_ffff)
        );
        assert_eq!(
            refused(&[0x80, 2, 0, 1, 0, 0, 0, 10]),
            FrameError::Version(2)
        );
        assert_eq!(refused(b"\0\0\0\0\0\0\0\x01x"), FrameError::NoStream);
        assert_eq!(
            refused(&[0x80, 3, 0, 6, 0, 0, 0, 1, 0]),
            FrameError::Malformed {
                kind: PING,
                length: 1
            }
        );
    }

    #[test]
    fn sixteen_megabytes_of_data_are_handed_on_as_they_come() {
        let mut buffer = BytesMut::from(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff][..]);
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(&mut buffer), Ok(None));
        buffer.put_slice(b"abc");
        let piece = decoder.decode(&mut buffer).expect("a frame");
        let expected = Frame::Data {
            stream: 1,
            bytes: Bytes::from_static(b"abc"),
            fin: false,
        };
        assert_eq!(piece, Some(expected));
        assert!(buffer.is_empty());
    }
}

//! SPDY/3 header blocks: names and values, compressed by one zlib stream per direction and connection, which starts from the
//! protocol's own dictionary. Pure but for that stream's state. What a block may unpack to is bounded.

use std::sync::LazyLock;

use bytes::{Buf, Bytes};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// What one block may unpack to; the names we are told are four.
const MAX_UNPACKED: usize = 32 * 1024;
const MAX_PAIRS: usize = 64;
const STEP: usize = 4 * 1024;

/// Names in lower case, with their values.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(in crate::serve::streaming) struct Headers(Vec<(String, String)>);

#[derive(Debug, Eq, PartialEq, thiserror::Error)]
pub(in crate::serve::streaming) enum HeaderError {
    #[error("a header block is not compressed as SPDY/3 has it")]
    Packing,
    #[error("a header block of more than {MAX_UNPACKED} bytes or {MAX_PAIRS} headers")]
    TooLarge,
    #[error("a header block is malformed")]
    Malformed,
}

pub(super) struct Unpacker(Decompress);

pub(in crate::serve::streaming) struct Packer(Compress);

/// Words with their lengths before them, then text, as the protocol's draft 3 lists them.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
    accept-ranges age allow authorization cache-control connection content-base content-encoding content-language \
    content-length content-location content-md5 content-range content-type date etag expect expires from host if-match \
    if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma \
    proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie \
    keep-alive origin";
const TEXT: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 \
    Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not \
    Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov \
    Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,\
    application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=\
    iso-8859-1,utf-,*,enq=0.";

static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::with_capacity(1_423);
    for word in WORDS.split_ascii_whitespace() {
        let length = u32::try_from(word.len()).unwrap_or_default();
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(word.replace('_', " ").as_bytes());
    }
    bytes.extend_from_slice(TEXT.as_bytes());
    bytes
});

// === impl Headers ===

impl Headers {
    pub(in crate::serve::streaming) fn get(&self, name: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        let found = pairs.find(|(known, _)| known == name)?;
        Some(&found.1)
    }

    fn parse(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = block.try_get_u32().map_err(|_| HeaderError::Malformed)? as usize;
        if count > MAX_PAIRS {
            return Err(HeaderError::TooLarge);
        }
        let mut pairs = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut block)?;
            if name.is_empty() {
                return Err(HeaderError::Malformed);
            }
            let value = text(&mut block)?;
            pairs.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        match block {
            [] => Ok(Self(pairs)),
            _ => Err(HeaderError::Malformed),
        }
    }
}

fn text<'a>(block: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let length = block.try_get_u32().map_err(|_| HeaderError::Malformed)? as usize;
    let (text, rest) = block
        .split_at_checked(length)
        .ok_or(HeaderError::Malformed)?;
    *block = rest;
    std::str::from_utf8(text).map_err(|_| HeaderError::Malformed)
}

// === impl Unpacker ===

impl Default for Unpacker {
    fn default() -> Self {
        Self(Decompress::new(true))
    }
}

impl Unpacker {
    /// The next block of this connection. After an error there is no next one.
    pub(super) fn unpack(&mut self, mut block: &[u8]) -> Result<Headers, HeaderError> {
        let mut out: Vec<u8> = Vec::with_capacity(STEP);
        let mut step = [0; STEP];
        loop {
            let (read, written) = (self.0.total_in(), self.0.total_out());
            let result = self.0.decompress(block, &mut step, FlushDecompress::Sync);
            let read = usize::try_from(self.0.total_in() - read).unwrap_or(block.len());
            let written = usize::try_from(self.0.total_out() - written).unwrap_or(STEP);
            block.advance(read.min(block.len()));
            match result {
                Ok(Status::StreamEnd) => return Err(HeaderError::Packing),
                Ok(_) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    let given = self.0.set_dictionary(&DICTIONARY);
                    given.map_err(|_| HeaderError::Packing)?;
                    continue;
                }
                Err(_) => return Err(HeaderError::Packing),
            }
            if out.len() + written > MAX_UNPACKED {
                return Err(HeaderError::TooLarge);
            }
            out.extend_from_slice(step.get(..written).unwrap_or_default());
            // Room was left, so there is no more; or nothing moves.
            if written < STEP && (block.is_empty() || (read == 0 && written == 0)) {
                break;
            }
        }
        match block {
            [] => Headers::parse(&out),
            _ => Err(HeaderError::Packing),
        }
    }
}

// === impl Packer ===

impl Packer {
    pub(in crate::serve::streaming) fn new() -> Result<Self, HeaderError> {
        let mut zlib = Compress::new(Compression::fast(), true);
        zlib.set_dictionary(&DICTIONARY)
            .map_err(|_| HeaderError::Packing)?;
        Ok(Self(zlib))
    }

    pub(in crate::serve::streaming) fn pack(
        &mut self,
        headers: &[(&str, &str)],
    ) -> Result<Bytes, HeaderError> {
        let length = |text: &str| u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes();
        let count = u32::try_from(headers.len()).unwrap_or(u32::MAX);
        let mut plain = count.to_be_bytes().to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend_from_slice(&length(text));
                plain.extend_from_slice(text.as_bytes());
            }
        }
        // Incompressible input grows by a few bytes; a sync flush adds four.
        let mut out = Vec::with_capacity(plain.len() + plain.len() / 8 + 64);
        let packed = self.0.compress_vec(&plain, &mut out, FlushCompress::Sync);
        match packed {
            Ok(Status::Ok) if out.len() < out.capacity() => Ok(out.into()),
            _ => Err(HeaderError::Packing),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        assert_eq!(DICTIONARY.len(), 1_423);
        let mut zlib = Compress::new(Compression::fast(), true);
        // Its Adler-32, as every SPDY/3 peer has it.
        assert_eq!(
            zlib.set_dictionary(&DICTIONARY).expect("taken"),
            0xe3c6_a7c2
        );
    }

    #[test]
    fn blocks_of_one_connection_share_a_compression_state() {
        let (mut packer, mut unpacker) = (Packer::new().expect("a packer"), Unpacker::default());
        for port in ["80", "443"] {
            let block = packer
                .pack(&[("streamtype", "data"), ("port", port), ("requestid", "0")])
                .expect("packed");
            let headers = unpacker.unpack(&block).expect("headers");
            assert_eq!(headers.get("streamtype"), Some("data"));
            assert_eq!(headers.get("port"), Some(port));
            assert_eq!(headers.get("host"), None);
        }
        let empty = packer.pack(&[]).expect("packed");
        assert_eq!(unpacker.unpack(&empty), Ok(Headers::default()));
    }

    #[test]
    fn a_bomb_is_refused_before_it_unfolds() {
        let mut packer = Packer::new().expect("a packer");
        let large = "x".repeat(20_000_000);
        // More than its own buffer takes in one go: only the beginning is sent.
        let mut out = Vec::with_capacity(60_000);
        let plain = [&1_u32.to_be_bytes()[..], large.as_bytes()].concat();
        packer
            .0
            .compress_vec(&plain, &mut out, FlushCompress::Sync)
            .expect("packed");
        assert!(out.len() <= 60_000);
        assert_eq!(Unpacker::default().unpack(&out), Err(HeaderError::TooLarge));
    }

    #[test]
    fn what_is_not_a_block_is_refused() {
        let refused = |plain: &[u8]| Headers::parse(plain).expect_err("refused");
        assert_eq!(refused(&[0, 0]), HeaderError::Malformed);
        assert_eq!(refused(&[0xff; 4]), HeaderError::TooLarge);
        assert_eq!(
            refused(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]),
            HeaderError::Malformed
        );
        assert_eq!(refused(&[0, 0, 0, 0, 1]), HeaderError::Malformed);
        assert_eq!(
            Unpacker::default().unpack(b"GET / HTTP/1.1"),
            Err(HeaderError::Packing)
        );
    }

    proptest! {
        #[test]
        fn headers_survive(pairs in prop::collection::vec(("[a-z]{1,20}", "\\PC{0,80}"), 0..20)) {
            let borrowed: Vec<_> = pairs.iter().map(|(name, value)| (&**name, &**value)).collect();
            let block = Packer::new().and_then(|mut packer| packer.pack(&borrowed)).expect("packed");
            let headers = Unpacker::default().unpack(&block).expect("headers");
            prop_assert_eq!(headers, Headers(pairs));
        }

        #[test]
        fn hostile_blocks_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..500), good in any::<bool>()) {
            let mut unpacker = Unpacker::default();
            // With a proper beginning the rest gets further.
            let block = Packer::new().and_then(|mut packer| packer.pack(&[])).expect("packed");
            if good {
                unpacker.unpack(&block).expect("headers");
            }
            let _ = unpacker.unpack(&bytes);
            let _ = Headers::parse(&bytes);
        }
    }
}

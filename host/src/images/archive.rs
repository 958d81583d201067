//! Reads one file out of an image layer: tar, perhaps gzipped. Pure over bytes; only what container tools write is understood.

use std::io::{self, Read};

/// No .wasm file of an image may be larger.
const LARGEST: u64 = 512 * 1024 * 1024;
/// A layer may hold other files too, but not without end: a few bytes decompress to many.
const LARGEST_LAYER: u64 = 2 * 1024 * 1024 * 1024;
/// Long names.
const LARGEST_HEADER: u64 = 1024 * 1024;
const BLOCK: usize = 512;

/// The first `most` files of a layer for which `wanted` says yes: name without leading `./` and `/`, and bytes.
/// Blocks: a layer may take seconds to decompress.
pub(crate) fn files(
    layer: &[u8],
    most: usize,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    if layer.starts_with(&[0x1f, 0x8b]) {
        let mut tar = flate2::read::GzDecoder::new(layer).take(LARGEST_LAYER);
        let found = read(&mut tar, most, wanted)?;
        if found.len() < most && tar.limit() == 0 {
            return Err(invalid("the layer is larger than 2 GiB".to_owned()));
        }
        Ok(found)
    } else {
        read(layer, most, wanted)
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn read(
    mut tar: impl Read,
    most: usize,
    wanted: impl Fn(&str) -> bool,
) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let mut long_name: Option<String> = None;
    let mut header = [0; BLOCK];
    loop {
        match tar.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(found),
            result => result?,
        }
        if header.iter().all(|byte| *byte == 0) {
            return Ok(found);
        }
        let size = number(&header[124..136])?;
        let padded = size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64);
        let kind = header[156];
        let special = matches!(kind, b'L' | b'x');
        let name = match (special, long_name.take()) {
            (false, Some(long)) => long,
            _ => name(&header),
        };
        let name = name
            .trim_start_matches("./")
            .trim_start_matches('/')
            .to_owned();
        let regular = matches!(kind, b'0' | 0);
        if special || (regular && wanted(&name)) {
            let largest = if special { LARGEST_HEADER } else { LARGEST };
            if size > largest {
                return Err(invalid(format!(
                    "{name} is larger than {} MiB",
                    largest >> 20
                )));
            }
            let mut bytes = Vec::new();
            tar.by_ref().take(padded).read_to_end(&mut bytes)?;
            if (bytes.len() as u64) < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            bytes.truncate(usize::try_from(size).unwrap_or(usize::MAX));
            match kind {
                b'L' => long_name = Some(text(&bytes)),
                b'x' => long_name = pax_path(&bytes),
                _ => found.push((name, bytes)),
            }
            if found.len() >= most {
                return Ok(found);
            }
        } else {
            let skipped = io::copy(&mut tar.by_ref().take(padded), &mut io::sink())?;
            if skipped < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

fn name(header: &[u8; BLOCK]) -> String {
    let name = text(&header[..100]);
    let prefix = text(&header[345..500]);
    let posix = &header[257..262] == b"ustar";
    if posix && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Octal digits, or base 256 when the first bit is set.
fn number(field: &[u8]) -> io::Result<u64> {
    if field[0] & 0x80 != 0 {
        return Ok(field[4..]
            .iter()
            .fold(0, |sum, byte| (sum << 8) | u64::from(*byte)));
    }
    let digits = text(field);
    u64::from_str_radix(digits.trim(), 8)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a tar header has no size"))
}

/// Records `LENGTH path=NAME\n`.
fn pax_path(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut path = None;
    for line in text.lines() {
        if let Some(value) = line
            .split_once(' ')
            .and_then(|(_, entry)| entry.strip_prefix("path="))
        {
            path = Some(value.to_owned());
        }
    }
    path
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::Write;

    /// A tar of these files, as small as can be.
    pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, bytes) in files {
            let mut header = [0; BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
            header[156] = b'0';
            out.extend_from_slice(&header);
            out.extend_from_slice(bytes);
            out.resize(out.len().next_multiple_of(BLOCK), 0);
        }
        out.resize(out.len() + 2 * BLOCK, 0);
        out
    }

    #[test]
    fn the_wanted_file_is_found_plain_and_gzipped() {
        let plain = tar(&[
            ("./etc/motd", b"hi"),
            ("./app.wasm", b"\0asm1234"),
            ("x", &[1; 600]),
        ]);
        let wasm = |name: &str| name.ends_with(".wasm");
        let expected = vec![("app.wasm".to_owned(), b"\0asm1234".to_vec())];
        assert_eq!(files(&plain, 2, wasm).expect("read"), expected);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).expect("compressed");
        assert_eq!(
            files(&gzip.finish().expect("compressed"), 2, wasm).expect("read"),
            expected
        );
    }

    #[test]
    fn a_cut_off_layer_is_an_error_and_not_a_short_file() {
        let plain = tar(&[("app.wasm", &[7; 2000])]);
        assert!(files(&plain[..1024], 1, |_| true).is_err());
        assert!(files(&[0xff; 700], 1, |_| true).is_err());
    }

    #[test]
    fn no_more_is_read_than_was_asked_for_and_no_endless_name() {
        let many = tar(&[("a", b"1"), ("b", b"2"), ("c", b"3")]);
        let found = files(&many[..4 * BLOCK], 2, |_| true).expect("read");
        assert_eq!(found.len(), 2);
        let mut long = tar(&[("a", b"1")]);
        long[124..136].copy_from_slice(format!("{:011o}\0", 2 << 20).as_bytes());
        long[156] = b'x';
        let error = files(&long, 1, |_| true).expect_err("refused");
        assert!(error.to_string().contains("1 MiB"), "{error}");
    }
}

//! Bytes shown otherwise: `base64`, `od`, `hexdump`, checksums, `cmp`.

use sha2::Digest;

use super::text::{ByLine, chomp, lined};
use super::{Answer, done};
use crate::context::Context;
use crate::files;
use crate::io::{Filter, Output, Started, Written, print};
use crate::options::{Spec, parse};

// === base64 ===

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub fn base64(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "dDiw:",
        long: &[("decode", 'd'), ("wrap", 'w')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let base64 = Base64 {
        context: context.clone(),
        decode: options.has('d') || options.has('D'),
        wrap: options.number('w')?.unwrap_or(76) as usize,
        waiting: Vec::new(),
        column: 0,
        invalid: false,
    };
    Ok(Started::Reads(options.operands, Box::new(base64)))
}

struct Base64 {
    context: Context,
    decode: bool,
    wrap: usize,
    /// Less than a group.
    waiting: Vec<u8>,
    column: usize,
    invalid: bool,
}

/// Three bytes, or the last one or two, as four characters.
fn encoded(bytes: &[u8], out: &mut Vec<u8>) {
    for group in bytes.chunks(3) {
        let byte = |at: usize| u32::from(group.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= group.len() { letter } else { b'=' });
        }
    }
}

/// For headers: all at once.
pub fn base64_of(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    encoded(bytes, &mut out);
    String::from_utf8_lossy(&out).into_owned()
}

/// Four characters, or the last two or three; nothing if they are none of base64's.
fn decoded(letters: &[u8], out: &mut Vec<u8>) -> Option<()> {
    for group in letters.chunks(4) {
        if group.len() == 1 {
            return None;
        }
        let mut bits = 0;
        for letter in group {
            bits = bits << 6 | ALPHABET.iter().position(|known| known == letter)? as u32;
        }
        bits <<= 6 * (4 - group.len());
        let bytes = bits.to_be_bytes();
        out.extend_from_slice(&bytes[1..group.len().max(1)]);
    }
    Some(())
}

impl Base64 {
    fn put(&mut self, text: &[u8]) -> Written {
        if self.decode || self.wrap == 0 {
            return self.context.stdout.write(text);
        }
        let mut out = Vec::with_capacity(text.len() + text.len() / self.wrap + 1);
        for letter in text {
            out.push(*letter);
            self.column += 1;
            if self.column == self.wrap {
                out.push(b'\n');
                self.column = 0;
            }
        }
        self.context.stdout.write(&out)
    }

    fn flush(&mut self, count: usize) -> Written {
        let rest = self.waiting.split_off(count);
        let bytes = std::mem::replace(&mut self.waiting, rest);
        let mut out = Vec::new();
        match self.decode {
            true => self.invalid |= decoded(&bytes, &mut out).is_none(),
            false => encoded(&bytes, &mut out),
        }
        self.put(&out)
    }
}

impl Filter for Base64 {
    fn push(&mut self, bytes: &[u8]) -> Written {
        match self.decode {
            true => self.waiting.extend(
                bytes
                    .iter()
                    .filter(|b| !b.is_ascii_whitespace() && **b != b'='),
            ),
            false => self.waiting.extend_from_slice(bytes),
        }
        let group = if self.decode { 4 } else { 3 };
        self.flush(self.waiting.len() / group * group)
    }

    fn end(&mut self) -> i32 {
        let _ = self.flush(self.waiting.len());
        if self.column > 0 {
            let _ = self.context.stdout.write(b"\n");
        }
        if self.invalid {
            return self.context.fail("invalid input");
        }
        0
    }
}

// === hexdump, od ===

pub fn hexdump(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "Cvn:s:",
        long: &[],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let style = if options.has('C') {
        Style::Canonical
    } else {
        Style::Words
    };
    dump(context, options.operands, style, 16)
}

pub fn od(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "A:t:cxvN:",
        long: &[],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let style = match (options.value('t'), options.last_of("cx")) {
        (Some("x1"), _) => Style::Bytes,
        (Some("c"), _) | (None, Some('c')) => Style::Chars,
        (Some("x2"), _) | (None, Some(_)) => Style::Words,
        (None, None) => Style::Octal,
        (Some(other), _) => return Err(format!("-t {other}: only c, x1 and x2 are known here")),
    };
    let base = match options.value('A') {
        None | Some("o") => 8,
        Some("x") => 16,
        Some("d") => 10,
        Some("n") => 0,
        Some(other) => return Err(format!("-A {other}: invalid")),
    };
    dump(context, options.operands, style, base)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Canonical,
    Bytes,
    Words,
    Octal,
    Chars,
}

fn dump(context: &Context, files: Vec<String>, style: Style, base: u32) -> Answer {
    let dump = Dump {
        out: context.stdout.clone(),
        style,
        base,
        offset: 0,
        waiting: Vec::new(),
    };
    Ok(Started::Reads(files, Box::new(dump)))
}

struct Dump {
    out: Output,
    style: Style,
    base: u32,
    offset: u64,
    waiting: Vec<u8>,
}

impl Dump {
    fn address(&self) -> String {
        match (self.style, self.base) {
            (Style::Canonical, _) => format!("{:08x}", self.offset),
            (_, 16) => format!("{:07x}", self.offset),
            (_, 10) => format!("{:07}", self.offset),
            (_, 8) => format!("{:07o}", self.offset),
            _ => String::new(),
        }
    }

    fn row(&mut self, bytes: &[u8]) -> Written {
        let mut text = self.address();
        let words = bytes
            .chunks(2)
            .map(|pair| u16::from_le_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        match self.style {
            Style::Canonical => {
                for at in 0..16 {
                    text.push_str(if at % 8 == 0 { "  " } else { " " });
                    text.push_str(
                        &bytes
                            .get(at)
                            .map_or("  ".to_owned(), |byte| format!("{byte:02x}")),
                    );
                }
                let shown = bytes.iter().map(|b| {
                    if (32..127).contains(b) {
                        char::from(*b)
                    } else {
                        '.'
                    }
                });
                text.push_str(&format!("  |{}|", shown.collect::<String>()));
            }
            Style::Bytes => text.extend(bytes.iter().map(|byte| format!(" {byte:02x}"))),
            Style::Words => text.extend(words.map(|word| format!(" {word:04x}"))),
            Style::Octal => text.extend(words.map(|word| format!(" {word:06o}"))),
            Style::Chars => text.extend(bytes.iter().map(|byte| match byte {
                b'\n' => "  \\n".to_owned(),
                b'\t' => "  \\t".to_owned(),
                b'\r' => "  \\r".to_owned(),
                0 => "  \\0".to_owned(),
                32..127 => format!("   {}", char::from(*byte)),
                byte => format!(" {byte:03o}"),
            })),
        }
        text.push('\n');
        self.offset += bytes.len() as u64;
        self.out.write(text.as_bytes())
    }
}

impl Filter for Dump {
    fn push(&mut self, bytes: &[u8]) -> Written {
        self.waiting.extend_from_slice(bytes);
        let whole = self.waiting.len() / 16 * 16;
        let rest = self.waiting.split_off(whole);
        let rows = std::mem::replace(&mut self.waiting, rest);
        rows.chunks(16).try_for_each(|row| self.row(row))
    }

    fn end(&mut self) -> i32 {
        let rest = std::mem::take(&mut self.waiting);
        if !rest.is_empty() {
            let _ = self.row(&rest);
        }
        let address = self.address();
        if !address.is_empty() && self.offset > 0 {
            print(&self.out, &format!("{address}\n"));
        }
        0
    }
}

// === checksums ===

/// The sum so far of one of the four kinds.
enum Sum {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Sum {
    fn new(applet: &str) -> Self {
        match applet {
            "md5sum" => Self::Md5(md5::Md5::new()),
            "sha1sum" => Self::Sha1(sha1::Sha1::new()),
            "sha512sum" => Self::Sha512(sha2::Sha512::new()),
            _ => Self::Sha256(sha2::Sha256::new()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(sum) => sum.update(bytes),
            Self::Sha1(sum) => sum.update(bytes),
            Self::Sha256(sum) => sum.update(bytes),
            Self::Sha512(sum) => sum.update(bytes),
        }
    }

    fn hex(self) -> String {
        let bytes = match self {
            Self::Md5(sum) => sum.finalize().to_vec(),
            Self::Sha1(sum) => sum.finalize().to_vec(),
            Self::Sha256(sum) => sum.finalize().to_vec(),
            Self::Sha512(sum) => sum.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

pub fn checksum(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "cbts",
        long: &[("check", 'c'), ("status", 's')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    if options.has('c') {
        let check = Check {
            context: context.clone(),
            quiet: options.has('s'),
            failed: 0,
        };
        return lined(options.operands, check);
    }
    let checksum = Checksum {
        out: context.stdout.clone(),
        sum: Sum::new(&context.name),
        applet: context.name.clone(),
        name: String::new(),
    };
    Ok(Started::Reads(options.operands, Box::new(checksum)))
}

struct Checksum {
    out: Output,
    applet: String,
    sum: Sum,
    name: String,
}

impl Filter for Checksum {
    fn begin(&mut self, name: &str) {
        self.name = name.to_owned();
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        self.sum.update(bytes);
        Ok(())
    }

    fn finish(&mut self) {
        let sum = std::mem::replace(&mut self.sum, Sum::new(&self.applet));
        print(&self.out, &format!("{}  {}\n", sum.hex(), self.name));
    }

    fn end(&mut self) -> i32 {
        0
    }
}

struct Check {
    context: Context,
    quiet: bool,
    failed: u32,
}

impl ByLine for Check {
    fn line(&mut self, line: &[u8]) -> Written {
        let text = String::from_utf8_lossy(chomp(line)).into_owned();
        let Some((wanted, name)) = text.split_once("  ").or_else(|| text.split_once(" *")) else {
            return Ok(());
        };
        let mut sum = Sum::new(&self.context.name);
        let mut read = || -> std::io::Result<()> {
            let input = files::open(&self.context.path(name))?;
            loop {
                let bytes = input.chunk()?;
                if bytes.is_empty() {
                    return Ok(());
                }
                sum.update(&bytes);
            }
        };
        let result = match read() {
            Err(error) => {
                self.context.fail_on(name, &error);
                "FAILED"
            }
            Ok(()) if sum.hex().eq_ignore_ascii_case(wanted) => "OK",
            Ok(()) => "FAILED",
        };
        self.failed += u32::from(result != "OK");
        if !self.quiet {
            print(&self.context.stdout, &format!("{name}: {result}\n"));
        }
        Ok(())
    }

    fn end(&mut self) -> i32 {
        if self.failed > 0 && !self.quiet {
            return self.context.fail(format_args!(
                "WARNING: {} of the checksums did NOT match",
                self.failed
            ));
        }
        i32::from(self.failed > 0)
    }
}

// === cmp ===

pub fn cmp(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "s",
        long: &[("silent", 's'), ("quiet", 's')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let [a, b] = options.operands.as_slice() else {
        return Err("two files are needed".to_owned());
    };
    let open = |name: &String| match name.as_str() {
        "-" => Ok(context.stdin.clone()),
        name => files::open(&context.path(name)),
    };
    let compare = || {
        let one = open(a).map_err(|error| (a, error))?;
        let other = open(b).map_err(|error| (b, error))?;
        let (mut at, mut line) = (0_u64, 1_u64);
        let (mut left, mut right) = (Vec::new(), Vec::new());
        loop {
            if left.is_empty() {
                left = one.chunk().map_err(|error| (a, error))?;
            }
            if right.is_empty() {
                right = other.chunk().map_err(|error| (b, error))?;
            }
            match (left.is_empty(), right.is_empty()) {
                (true, true) => return Ok(None),
                (true, false) => return Ok(Some(format!("cmp: EOF on {a}\n"))),
                (false, true) => return Ok(Some(format!("cmp: EOF on {b}\n"))),
                (false, false) => {}
            }
            for (one, other) in left.iter().zip(&right) {
                at += 1;
                if one != other {
                    return Ok(Some(format!("{a} {b} differ: byte {at}, line {line}\n")));
                }
                line += u64::from(*one == b'\n');
            }
            let same = left.len().min(right.len());
            left.drain(..same);
            right.drain(..same);
        }
    };
    let text = match compare() {
        Ok(None) => return done(0),
        Ok(Some(text)) => text,
        Err((name, error)) => {
            context.fail_on(name, &error);
            return done(2);
        }
    };
    if !options.has('s') {
        print(&context.stdout, &text);
    }
    done(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_both_ways() {
        for text in ["", "a", "ab", "abc", "hello world"] {
            let (mut there, mut back) = (Vec::new(), Vec::new());
            encoded(text.as_bytes(), &mut there);
            let letters: Vec<u8> = there.iter().copied().filter(|b| *b != b'=').collect();
            assert_eq!(decoded(&letters, &mut back), Some(()));
            assert_eq!(back, text.as_bytes());
        }
        let mut out = Vec::new();
        encoded(b"hello", &mut out);
        assert_eq!(out, b"aGVsbG8=");
        assert_eq!(decoded(b"a*", &mut out), None);
    }

    #[test]
    fn sums_are_the_known_ones() {
        let hex = |applet| {
            let mut sum = Sum::new(applet);
            sum.update(b"abc");
            sum.hex()
        };
        assert_eq!(hex("md5sum"), "900150983cd24fb0d6963f7d28e17f72");
        assert_eq!(hex("sha1sum"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(
            hex("sha256sum"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}

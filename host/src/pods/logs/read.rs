//! Reads a container's log back: tail, since, timestamps, a byte limit, and following while it grows. Blocking, in small steps.

use std::collections::VecDeque;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::{FILES, rotated};

/// `kubectl logs`' options.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    pub(crate) follow: bool,
    /// Only the last so many lines.
    pub(crate) tail: Option<u64>,
    /// Only lines from then on.
    pub(crate) since: Option<Timestamp>,
    /// Each line with its time in front.
    pub(crate) timestamps: bool,
    /// Not one byte more.
    pub(crate) limit_bytes: Option<u64>,
    /// `stdout` or `stderr`; both otherwise.
    pub(crate) only: Option<&'static str>,
}

/// A position in the log of one instance.
pub(crate) struct Reader {
    path: PathBuf,
    /// Rotated files still to be read before the present one, oldest first.
    earlier: VecDeque<PathBuf>,
    current: Option<Open>,
    since: Option<Timestamp>,
    timestamps: bool,
    only: Option<&'static str>,
    left: u64,
    /// The line being read, when its end is not written yet.
    line: Vec<u8>,
}

struct Open {
    reader: BufReader<fs::File>,
    inode: u64,
    /// The file that is still written to, as far as known.
    present: bool,
}

/// Bytes handed over at once.
const STEP: usize = 64 * 1024;

impl Reader {
    /// `path` need not exist yet: a container may not have said anything.
    pub(crate) fn open(path: &Path, options: &Options) -> io::Result<Reader> {
        let mut files: VecDeque<PathBuf> = (1..FILES)
            .rev()
            .map(|number| rotated(path, number))
            .filter(|file| file.exists())
            .collect();
        let mut start = 0;
        if let Some(tail) = options.tail {
            start = skip_to_tail(path, &mut files, tail)?;
        }
        let mut reader = Reader {
            path: path.to_owned(),
            earlier: files,
            current: None,
            since: options.since,
            timestamps: options.timestamps,
            only: options.only,
            left: options.limit_bytes.unwrap_or(u64::MAX),
            line: Vec::new(),
        };
        reader.advance()?;
        if start > 0
            && let Some(open) = &mut reader.current
        {
            open.reader.seek(SeekFrom::Start(start))?;
        }
        Ok(reader)
    }

    /// The byte limit is used up.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.left == 0
    }

    /// What is there now, at most some 64 KiB; empty means nothing more at present.
    pub(crate) fn step(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < STEP && self.left > 0 {
            let Some(open) = &mut self.current else {
                if !self.advance()? {
                    break;
                }
                continue;
            };
            let read = open
                .reader
                .by_ref()
                .take(2 * STEP as u64)
                .read_until(b'\n', &mut self.line)?;
            if self.line.ends_with(b"\n") {
                let line = std::mem::take(&mut self.line);
                self.put(&line, &mut out);
            } else if read == 0 && !self.advance()? {
                break;
            }
        }
        Ok(out)
    }

    /// To the next file, if there is one: an earlier one, the present one, or the one that took its place.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some(path) = self.earlier.pop_front() {
            self.current = open(&path, false)?;
            return Ok(self.current.is_some() || self.advance()?);
        }
        let known = self
            .current
            .as_ref()
            .filter(|open| open.present)
            .map(|open| open.inode);
        let Some(next) = open(&self.path, true)? else {
            return Ok(false);
        };
        if known == Some(next.inode) {
            return Ok(false);
        }
        self.current = Some(next);
        Ok(true)
    }

    /// `2026-11-23T16:00:00.123456789Z stdout F hello` → `hello`.
    fn put(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (Some(time), Some(stream), Some(tag), Some(text)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return;
        };
        if self.only.is_some_and(|only| only.as_bytes() != stream) {
            return;
        }
        if let Some(since) = self.since {
            let time = std::str::from_utf8(time)
                .ok()
                .and_then(|time| time.parse::<Timestamp>().ok());
            if time.is_some_and(|time| time < since) {
                return;
            }
        }
        let start = out.len();
        if self.timestamps {
            out.extend_from_slice(time);
            out.push(b' ');
        }
        out.extend_from_slice(if tag == b"P" {
            text.strip_suffix(b"\n").unwrap_or(text)
        } else {
            text
        });
        let added = (out.len() - start) as u64;
        if added > self.left {
            out.truncate(start + usize::try_from(self.left).unwrap_or(usize::MAX));
            self.left = 0;
        } else {
            self.left -= added;
        }
    }
}

fn open(path: &Path, present: bool) -> io::Result<Option<Open>> {
    match fs::File::open(path) {
        Ok(file) => {
            let inode = file.metadata()?.ino();
            Ok(Some(Open {
                reader: BufReader::with_capacity(STEP, file),
                inode,
                present,
            }))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Drops the rotated files that are not needed for the last `tail` lines; returns where to begin in the first that is.
fn skip_to_tail(path: &Path, files: &mut VecDeque<PathBuf>, tail: u64) -> io::Result<u64> {
    let mut wanted = tail;
    let all: Vec<PathBuf> = files.iter().cloned().chain([path.to_owned()]).collect();
    for (index, file) in all.iter().enumerate().rev() {
        match start_of_last_lines(file, &mut wanted)? {
            Some(start) => {
                files.drain(..index);
                return Ok(start);
            }
            None => continue,
        }
    }
    Ok(0)
}

/// The offset at which the last `wanted` lines begin, or `None` when there are fewer: then `wanted` is what is missing.
fn start_of_last_lines(path: &Path, wanted: &mut u64) -> io::Result<Option<u64>> {
    let mut file = match fs::File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let mut end = file.metadata()?.len();
    if *wanted == 0 {
        return Ok(Some(end));
    }
    let last = end.saturating_sub(1);
    let mut block = vec![0; STEP];
    let mut seen = 0;
    while end > 0 {
        let size = end.min(STEP as u64);
        let start = end - size;
        let block = &mut block[..usize::try_from(size).unwrap_or(STEP)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(block)?;
        for (at, _) in block
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, byte)| **byte == b'\n')
        {
            let offset = start + at as u64;
            if offset == last {
                continue;
            }
            seen += 1;
            if seen == *wanted {
                return Ok(Some(offset + 1));
            }
        }
        end = start;
    }
    // The first line has no newline before it.
    let lines = seen + u64::from(last > 0);
    if lines == *wanted {
        return Ok(Some(0));
    }
    *wanted -= lines;
    Ok(None)
}

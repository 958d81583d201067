//! `tail`, also of files that grow.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use super::text::{numbers, titles};
use super::{Answer, done};
use crate::context::Context;
use crate::files;
use crate::io::{Closed, Filter, Output, Started, Written, print, why};
use crate::options::{Spec, parse};
use crate::os;

/// How often a followed file is looked at.
const LOOK: Duration = Duration::from_millis(500);

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "n:c:fFqvs:",
        long: &[
            ("lines", 'n'),
            ("bytes", 'c'),
            ("follow", 'f'),
            ("quiet", 'q'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, &numbers(args))?;
    let (text, lines) = match options.value('c') {
        Some(bytes) => (bytes, false),
        None => (options.value('n').unwrap_or("10"), true),
    };
    let number = text.trim_start_matches(['+', '-']);
    let number = number
        .parse()
        .map_err(|_| format!("invalid number '{text}'"))?;
    let tail = Tail {
        out: context.stdout.clone(),
        from_start: text.starts_with('+'),
        number,
        lines,
        titles: titles(&options),
        first: true,
        skipped: 0,
        last: Last::default(),
    };
    let follow = options.has('f') || options.has('F');
    if follow && options.operands.iter().any(|name| name != "-") {
        return done(follow_files(context, &options.operands, tail));
    }
    Ok(Started::Reads(options.operands, Box::new(tail)))
}

struct Tail {
    out: Output,
    /// `+N`: from the N-th on, instead of the last N.
    from_start: bool,
    number: usize,
    lines: bool,
    titles: bool,
    first: bool,
    skipped: usize,
    last: Last,
}

/// The end of what was seen: whole lines or bytes, no more than wanted.
#[derive(Default)]
struct Last {
    bytes: VecDeque<u8>,
    newlines: usize,
}

impl Last {
    fn push(&mut self, bytes: &[u8], number: usize, lines: bool) {
        self.bytes.extend(bytes);
        if !lines {
            let over = self.bytes.len().saturating_sub(number);
            self.bytes.drain(..over);
            return;
        }
        self.newlines += bytes.iter().filter(|b| **b == b'\n').count();
        // A line whose end has not come counts, too.
        let open = usize::from(self.bytes.back().is_some_and(|b| *b != b'\n'));
        while self.newlines + open > number {
            let end = self.bytes.iter().position(|b| *b == b'\n');
            let Some(end) = end else {
                self.bytes.clear();
                break;
            };
            self.bytes.drain(..=end);
            self.newlines -= 1;
        }
    }
}

impl Filter for Tail {
    fn begin(&mut self, name: &str) {
        if self.titles {
            let gap = if self.first { "" } else { "\n" };
            print(&self.out, &format!("{gap}==> {name} <==\n"));
        }
        self.first = false;
        self.skipped = 0;
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        if !self.from_start {
            self.last.push(bytes, self.number, self.lines);
            return Ok(());
        }
        let mut start = bytes.len();
        for (at, byte) in bytes.iter().enumerate() {
            if self.skipped + 1 >= self.number {
                start = at;
                break;
            }
            self.skipped += usize::from(!self.lines || *byte == b'\n');
        }
        self.out.write(&bytes[start..])
    }

    fn finish(&mut self) {
        let last = std::mem::take(&mut self.last);
        let _ = self.out.write(&Vec::from(last.bytes));
    }

    fn end(&mut self) -> i32 {
        0
    }
}

/// A file that is followed: where reading goes on.
struct Followed {
    name: String,
    path: PathBuf,
    position: u64,
}

fn follow_files(context: &Context, names: &[String], mut tail: Tail) -> i32 {
    let mut followed = Vec::new();
    for name in names {
        let path = context.path(name);
        let input = match files::open(&path) {
            Ok(input) => input,
            Err(error) => {
                context.fail(format_args!("can't open '{name}': {}", why(&error)));
                // It may still appear.
                let name = name.clone();
                followed.push(Followed {
                    name,
                    path,
                    position: 0,
                });
                continue;
            }
        };
        tail.begin(name);
        let mut position = 0;
        while let Ok(bytes) = input.chunk()
            && !bytes.is_empty()
        {
            position += bytes.len() as u64;
            let _ = tail.push(&bytes);
        }
        tail.finish();
        let name = name.clone();
        followed.push(Followed {
            name,
            path,
            position,
        });
    }
    let mut shown = followed
        .last()
        .map(|file| file.name.clone())
        .unwrap_or_default();
    loop {
        for file in &mut followed {
            if grow(file, &tail, &mut shown).is_err() {
                return 0;
            }
        }
        if !os::pause(LOOK) {
            return 130;
        }
    }
}

/// Writes what has been added; a file that has become shorter is read from its beginning.
fn grow(file: &mut Followed, tail: &Tail, shown: &mut String) -> Written {
    let Ok(about) = files::stat(&file.path) else {
        return Ok(());
    };
    if about.size < file.position {
        file.position = 0;
    }
    if about.size == file.position {
        return Ok(());
    }
    let Ok(mut reader) = File::open(&file.path) else {
        return Ok(());
    };
    if reader.seek(SeekFrom::Start(file.position)).is_err() {
        return Ok(());
    }
    if tail.titles && *shown != file.name {
        print(&tail.out, &format!("\n==> {} <==\n", file.name));
        shown.clone_from(&file.name);
    }
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count) = reader.read(&mut buffer)
        && count > 0
    {
        file.position += count as u64;
        tail.out.write(&buffer[..count]).map_err(|_| Closed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(chunks: &[&str], number: usize, lines: bool) -> String {
        let mut last = Last::default();
        for chunk in chunks {
            last.push(chunk.as_bytes(), number, lines);
        }
        String::from_utf8(last.bytes.into()).unwrap()
    }

    #[test]
    fn the_last_lines_or_bytes_are_kept() {
        assert_eq!(last(&["a\nb\n", "c\nd\n"], 2, true), "c\nd\n");
        assert_eq!(last(&["a\nb\n", "c"], 2, true), "b\nc");
        assert_eq!(last(&["a\nb\n", "c", "d\n"], 2, true), "b\ncd\n");
        assert_eq!(last(&["abc", "def"], 4, false), "cdef");
        assert_eq!(last(&["a\nb"], 0, true), "");
    }
}

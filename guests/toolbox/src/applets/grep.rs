//! `grep`, `egrep`, `fgrep`.

use super::Answer;
use super::text::{ByLine, chomp, lined};
use crate::context::Context;
use crate::files;
use crate::io::{Closed, Output, Written};
use crate::options::{Options, Spec, parse};
use crate::regex::{Flavor, Regex};

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "EFGHLchilnoqrRsvwxe:f:m:A:B:C:",
        long: &[
            ("extended-regexp", 'E'),
            ("fixed-strings", 'F'),
            ("ignore-case", 'i'),
            ("invert-match", 'v'),
            ("line-number", 'n'),
            ("count", 'c'),
            ("files-with-matches", 'l'),
            ("recursive", 'r'),
            ("quiet", 'q'),
            ("only-matching", 'o'),
            ("word-regexp", 'w'),
            ("line-regexp", 'x'),
            ("regexp", 'e'),
            ("max-count", 'm'),
            ("after-context", 'A'),
            ("before-context", 'B'),
            ("context", 'C'),
            ("no-filename", 'h'),
        ],
        stop: false,
    };
    let mut options = parse(&SPEC, args)?;
    let mut patterns: Vec<String> = Vec::new();
    for text in options.values('e') {
        patterns.extend(text.split('\n').map(str::to_owned));
    }
    for file in options.values('f') {
        let text = files::open(&context.path(file)).and_then(|file| file.rest());
        let text = text.map_err(|error| format!("{file}: {}", crate::io::why(&error)))?;
        patterns.extend(String::from_utf8_lossy(&text).lines().map(str::to_owned));
    }
    if !options.has('e') && !options.has('f') {
        if options.operands.is_empty() {
            return Err("a pattern is needed".to_owned());
        }
        patterns.extend(options.operands.remove(0).split('\n').map(str::to_owned));
    }
    let flavor = match (context.name.as_str(), options.last_of("EFG")) {
        (_, Some('F')) => Flavor::Fixed,
        (_, Some('E')) | ("egrep", None) => Flavor::Extended,
        ("fgrep", None) => Flavor::Fixed,
        _ => Flavor::Basic,
    };
    let (before, after) = match (options.has('x'), options.has('w')) {
        (true, _) => ("^(?:", ")$"),
        (_, true) => (r"\b(?:", r")\b"),
        _ => ("", ""),
    };
    let compile =
        |pattern: &String| Regex::surrounded(before, pattern, after, flavor, options.has('i'));
    let regexes = patterns
        .iter()
        .map(compile)
        .collect::<Result<Vec<_>, _>>()?;
    let recursive = options.has('r') || options.has('R');
    let mut inputs = options.operands.clone();
    if recursive {
        inputs = tree(
            context,
            if inputs.is_empty() {
                vec![".".to_owned()]
            } else {
                inputs
            },
        );
        if inputs.is_empty() {
            // Not stdin instead.
            inputs.push("/dev/null".to_owned());
        }
    }
    let titles = (inputs.len() > 1 || recursive || options.has('H')) && !options.has('h');
    let around = options.number('C')?.unwrap_or(0);
    let grep = Grep {
        out: context.stdout.clone(),
        regexes,
        titles,
        limit: options.number('m')?.unwrap_or(u64::MAX),
        before: options.number('B')?.unwrap_or(around) as usize,
        after: options.number('A')?.unwrap_or(around),
        options,
        name: String::new(),
        number: 0,
        count: 0,
        earlier: Vec::new(),
        after_left: 0,
        shown_to: 0,
        found: false,
    };
    lined(inputs, grep)
}

/// The files below these names.
fn tree(context: &Context, names: Vec<String>) -> Vec<String> {
    let mut found = Vec::new();
    // What was named is followed where it leads; links that are only found are not.
    let mut open: Vec<(String, bool)> = names.into_iter().rev().map(|name| (name, true)).collect();
    while let Some((name, named)) = open.pop() {
        let path = context.path(&name);
        let about = match named {
            true => files::stat(&path),
            false => files::lstat(&path),
        };
        match about {
            Ok(about) if about.is_dir() => {
                let below = files::list(&path).unwrap_or_default().into_iter().rev();
                let within = |entry| format!("{}/{entry}", name.trim_end_matches('/'));
                open.extend(below.map(|entry| (within(entry), false)));
            }
            Ok(about) if about.kind == files::Kind::Link => {}
            // What does not exist is complained about when it is opened.
            _ => found.push(name),
        }
    }
    found
}

struct Grep {
    out: Output,
    regexes: Vec<Regex>,
    options: Options,
    titles: bool,
    limit: u64,
    before: usize,
    after: u64,
    name: String,
    number: u64,
    count: u64,
    earlier: Vec<(u64, Vec<u8>)>,
    after_left: u64,
    /// The last line that was shown, to mark gaps.
    shown_to: u64,
    found: bool,
}

impl Grep {
    fn title(&self, mark: char) -> String {
        let name = if self.name == "-" {
            "(standard input)"
        } else {
            &self.name
        };
        if self.titles {
            format!("{name}{mark}")
        } else {
            String::new()
        }
    }

    fn show(&mut self, number: u64, line: &[u8], mark: char) -> Written {
        if (self.before > 0 || self.after > 0) && self.shown_to > 0 && number > self.shown_to + 1 {
            self.out.write(b"--\n")?;
        }
        self.shown_to = number;
        let mut text = self.title(mark);
        if self.options.has('n') {
            text.push_str(&format!("{number}{mark}"));
        }
        self.out.write(text.as_bytes())?;
        self.out.write(line)?;
        self.out.write(b"\n")
    }

    /// `-o`: every piece that matches.
    fn pieces(&self, line: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(line);
        let mut found: Vec<(usize, usize)> = Vec::new();
        for regex in &self.regexes {
            found.extend(
                regex
                    .inner()
                    .find_iter(&text)
                    .map(|piece| (piece.start(), piece.end())),
            );
        }
        found.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        let mut pieces = Vec::new();
        let mut last = 0;
        for (start, end) in found {
            if start >= last && end > start {
                pieces.push(text[start..end].to_owned());
                last = end;
            }
        }
        pieces
    }
}

impl ByLine for Grep {
    fn begin(&mut self, name: &str) {
        self.name = name.to_owned();
        self.number = 0;
        self.count = 0;
        self.earlier.clear();
        self.after_left = 0;
        self.shown_to = 0;
    }

    fn line(&mut self, line: &[u8]) -> Written {
        self.number += 1;
        if self.count >= self.limit && self.after_left == 0 {
            return Err(Closed);
        }
        let line = chomp(line);
        let matches = self.count < self.limit
            && self.regexes.iter().any(|regex| regex.is_match(line)) != self.options.has('v');
        let quiet = self.options.last_of("qlLc").is_some();
        if !matches {
            if self.after_left > 0 && !quiet {
                self.after_left -= 1;
                return self.show(self.number, line, '-');
            }
            if self.before > 0 && !quiet {
                self.earlier.push((self.number, line.to_vec()));
                if self.earlier.len() > self.before {
                    self.earlier.remove(0);
                }
            }
            return Ok(());
        }
        self.found = true;
        self.count += 1;
        if self.options.has('q') || self.options.has('l') || self.options.has('L') {
            return Err(Closed);
        }
        if quiet {
            return Ok(());
        }
        for (number, line) in std::mem::take(&mut self.earlier) {
            self.show(number, &line, '-')?;
        }
        if self.options.has('o') && !self.options.has('v') {
            for piece in self.pieces(line) {
                self.show(self.number, piece.as_bytes(), ':')?;
            }
            return Ok(());
        }
        self.after_left = self.after;
        self.show(self.number, line, ':')
    }

    fn finish(&mut self) {
        let name = if self.name == "-" {
            "(standard input)"
        } else {
            &self.name
        };
        let text = if self.options.has('q') {
            String::new()
        } else if self.options.has('l') || self.options.has('L') {
            match (self.count > 0) == self.options.has('l') {
                true => format!("{name}\n"),
                false => String::new(),
            }
        } else if self.options.has('c') {
            format!("{}{}\n", self.title(':'), self.count)
        } else {
            String::new()
        };
        let _ = self.out.write(text.as_bytes());
    }

    fn end(&mut self) -> i32 {
        i32::from(!self.found)
    }
}

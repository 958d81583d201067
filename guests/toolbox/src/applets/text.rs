//! Applets that let lines through: `cat`, `tac`, `rev`, `nl`, `head`, `wc`, `tee`, `yes`, `less`.

use super::{Answer, done};
use crate::context::Context;
use crate::io::{Closed, Filter, Lines, Output, Started, Written, print};
use crate::options::{Options, Spec, parse};

/// A filter that is given whole lines, their end included.
pub trait ByLine {
    fn line(&mut self, line: &[u8]) -> Written;
    fn begin(&mut self, _name: &str) {}
    fn finish(&mut self) {}
    fn end(&mut self) -> i32 {
        0
    }
}

/// Makes a filter of it. The last line may lack its end.
pub struct Lined<T> {
    inner: T,
    lines: Lines,
}

pub fn lined<T: ByLine + 'static>(files: Vec<String>, inner: T) -> Answer {
    let lines = Lines::default();
    Ok(Started::Reads(files, Box::new(Lined { inner, lines })))
}

impl<T: ByLine> Filter for Lined<T> {
    fn begin(&mut self, name: &str) {
        self.inner.begin(name);
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        let inner = &mut self.inner;
        self.lines.push(bytes, |line| inner.line(line))
    }

    fn finish(&mut self) {
        let rest = self.lines.rest();
        if !rest.is_empty() {
            let _ = self.inner.line(&rest);
        }
        self.inner.finish();
    }

    fn end(&mut self) -> i32 {
        self.inner.end()
    }
}

/// A line without its end.
pub fn chomp(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\n").unwrap_or(line)
}

/// `-3` is `-n 3`, as people still write.
pub fn numbers(args: &[String]) -> Vec<String> {
    let digits = |arg: &String| {
        let rest = arg.strip_prefix('-').filter(|rest| !rest.is_empty())?;
        rest.bytes()
            .all(|b| b.is_ascii_digit())
            .then(|| format!("-n{rest}"))
    };
    let mut args = args.to_vec();
    if let Some(first) = args.first_mut()
        && let Some(number) = digits(first)
    {
        *first = number;
    }
    args
}

// === cat, nl, tac, rev ===

pub fn cat(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "nbu",
        long: &[("number", 'n'), ("number-nonblank", 'b')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let out = context.stdout.clone();
    if options.has('n') || options.has('b') {
        let skip_blank = options.has('b');
        let last = 0;
        return lined(
            options.operands,
            Numbered {
                out,
                last,
                skip_blank,
            },
        );
    }
    Ok(Started::Reads(options.operands, Box::new(Through(out))))
}

pub fn nl(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "b:",
        long: &[],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let numbered = Numbered {
        out: context.stdout.clone(),
        last: 0,
        skip_blank: options.value('b') != Some("a"),
    };
    lined(options.operands, numbered)
}

/// A person reads with their terminal's own scrolling.
pub fn less(context: &mut Context, args: &[String]) -> Answer {
    let files = args
        .iter()
        .filter(|arg| !arg.starts_with('-') || *arg == "-");
    Ok(Started::Reads(
        files.cloned().collect(),
        Box::new(Through(context.stdout.clone())),
    ))
}

struct Through(Output);

impl Filter for Through {
    fn push(&mut self, bytes: &[u8]) -> Written {
        self.0.write(bytes)
    }

    fn end(&mut self) -> i32 {
        0
    }
}

struct Numbered {
    out: Output,
    last: u64,
    skip_blank: bool,
}

impl ByLine for Numbered {
    fn line(&mut self, line: &[u8]) -> Written {
        if self.skip_blank && chomp(line).is_empty() {
            return self.out.write(line);
        }
        self.last += 1;
        self.out.write(format!("{:>6}\t", self.last).as_bytes())?;
        self.out.write(line)
    }
}

pub fn tac(context: &mut Context, args: &[String]) -> Answer {
    let lines = Vec::new();
    let out = context.stdout.clone();
    lined(args.to_vec(), Tac { out, lines })
}

struct Tac {
    out: Output,
    lines: Vec<Vec<u8>>,
}

impl ByLine for Tac {
    fn line(&mut self, line: &[u8]) -> Written {
        self.lines.push(line.to_vec());
        Ok(())
    }

    fn finish(&mut self) {
        for line in self.lines.drain(..).rev() {
            let _ = self.out.write(&line);
        }
    }
}

pub fn rev(context: &mut Context, args: &[String]) -> Answer {
    lined(args.to_vec(), Rev(context.stdout.clone()))
}

struct Rev(Output);

impl ByLine for Rev {
    fn line(&mut self, line: &[u8]) -> Written {
        let text: String = String::from_utf8_lossy(chomp(line)).chars().rev().collect();
        self.0.write(format!("{text}\n").as_bytes())
    }
}

// === head ===

pub fn head(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "n:c:qv",
        long: &[("lines", 'n'), ("bytes", 'c'), ("quiet", 'q')],
        stop: false,
    };
    let options = parse(&SPEC, &numbers(args))?;
    let limit = match options.number('c')? {
        Some(bytes) => Limit::Bytes(bytes),
        None => Limit::Lines(options.number('n')?.unwrap_or(10)),
    };
    let head = Head {
        out: context.stdout.clone(),
        limit,
        left: 0,
        titles: titles(&options),
        first: true,
    };
    Ok(Started::Reads(options.operands, Box::new(head)))
}

/// Whether every file gets a title.
pub fn titles(options: &Options) -> bool {
    (options.operands.len() > 1 && !options.has('q')) || options.has('v')
}

#[derive(Clone, Copy)]
enum Limit {
    Lines(u64),
    Bytes(u64),
}

struct Head {
    out: Output,
    limit: Limit,
    left: u64,
    titles: bool,
    first: bool,
}

impl Filter for Head {
    fn begin(&mut self, name: &str) {
        let (Limit::Lines(limit) | Limit::Bytes(limit)) = self.limit;
        self.left = limit;
        if self.titles {
            let gap = if self.first { "" } else { "\n" };
            print(&self.out, &format!("{gap}==> {name} <==\n"));
        }
        self.first = false;
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        if self.left == 0 {
            return Err(Closed);
        }
        let count = match self.limit {
            Limit::Bytes(_) => {
                let count = bytes
                    .len()
                    .min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= count as u64;
                count
            }
            Limit::Lines(_) => {
                let mut count = bytes.len();
                for (at, _) in bytes.iter().enumerate().filter(|(_, b)| **b == b'\n') {
                    self.left -= 1;
                    if self.left == 0 {
                        count = at + 1;
                        break;
                    }
                }
                count
            }
        };
        self.out.write(&bytes[..count])?;
        if self.left == 0 { Err(Closed) } else { Ok(()) }
    }

    fn end(&mut self) -> i32 {
        0
    }
}

// === wc ===

pub fn wc(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "clwmL",
        long: &[
            ("bytes", 'c'),
            ("lines", 'l'),
            ("words", 'w'),
            ("chars", 'm'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let letters = "lwmc"
        .chars()
        .filter(|letter| options.has(*letter))
        .collect();
    let wc = Wc {
        out: context.stdout.clone(),
        letters: match options.last_of("lwmc") {
            None => "lwc".to_owned(),
            Some(_) => letters,
        },
        several: options.operands.len() > 1,
        name: String::new(),
        in_word: false,
        count: Count::default(),
        total: Count::default(),
    };
    Ok(Started::Reads(options.operands, Box::new(wc)))
}

#[derive(Clone, Copy, Default)]
struct Count {
    lines: u64,
    words: u64,
    chars: u64,
    bytes: u64,
}

struct Wc {
    out: Output,
    letters: String,
    several: bool,
    name: String,
    in_word: bool,
    count: Count,
    total: Count,
}

impl Wc {
    fn show(&self, count: &Count, name: &str) {
        let numbers = self.letters.chars().map(|letter| match letter {
            'l' => count.lines,
            'w' => count.words,
            'm' => count.chars,
            _ => count.bytes,
        });
        // One number from a pipe is what scripts want to have bare.
        let bare = self.letters.len() == 1 && (name == "-" || !self.several);
        let numbers: Vec<String> = numbers
            .map(|n| {
                if bare {
                    n.to_string()
                } else {
                    format!("{n:>9}")
                }
            })
            .collect();
        let name = if name == "-" {
            String::new()
        } else {
            format!(" {name}")
        };
        print(&self.out, &format!("{}{name}\n", numbers.join(" ")));
    }
}

impl Filter for Wc {
    fn begin(&mut self, name: &str) {
        self.name = name.to_owned();
        self.count = Count::default();
        self.in_word = false;
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        self.count.bytes += bytes.len() as u64;
        for byte in bytes {
            let space = byte.is_ascii_whitespace();
            self.count.lines += u64::from(*byte == b'\n');
            self.count.words += u64::from(!space && !self.in_word);
            // Bytes that go on with a character do not begin one.
            self.count.chars += u64::from(byte & 0xc0 != 0x80);
            self.in_word = !space;
        }
        Ok(())
    }

    fn finish(&mut self) {
        self.show(&self.count, &self.name);
        self.total.lines += self.count.lines;
        self.total.words += self.count.words;
        self.total.chars += self.count.chars;
        self.total.bytes += self.count.bytes;
    }

    fn end(&mut self) -> i32 {
        if self.several {
            self.show(&self.total, "total");
        }
        0
    }
}

// === tee, yes ===

pub fn tee(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "ai",
        long: &[("append", 'a')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut outs = vec![context.stdout.clone()];
    let mut code = 0;
    for name in &options.operands {
        match crate::files::create(&context.path(name), options.has('a')) {
            Ok(out) => outs.push(out),
            Err(error) => code = context.fail_on(name, &error),
        }
    }
    Ok(Started::Reads(Vec::new(), Box::new(Tee { outs, code })))
}

struct Tee {
    outs: Vec<Output>,
    code: i32,
}

impl Filter for Tee {
    fn push(&mut self, bytes: &[u8]) -> Written {
        // Who does not want more does not keep the others from it.
        self.outs.retain(|out| out.write(bytes).is_ok());
        if self.outs.is_empty() {
            Err(Closed)
        } else {
            Ok(())
        }
    }

    fn end(&mut self) -> i32 {
        self.code
    }
}

pub fn yes(context: &mut Context, args: &[String]) -> Answer {
    let line = match args {
        [] => "y\n".to_owned(),
        args => format!("{}\n", args.join(" ")),
    };
    let many = line.repeat(1_024 / line.len() + 1);
    while context.stdout.write(many.as_bytes()).is_ok() {}
    done(1)
}

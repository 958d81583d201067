//! `gzip`, `gunzip`, `zcat`: streams in and out of gzip, also for `tar`.

use std::collections::VecDeque;
use std::io::Write;

use super::{Answer, done};
use crate::context::Context;
use crate::files;
use crate::io::{Closed, Filter, Output, Started, Written, why};
use crate::options::{Spec, parse};

/// Where bytes go, compressed or not.
pub enum Sink {
    Plain(Output),
    Gzip(flate2::write::GzEncoder<Vec<u8>>, Output),
}

impl Sink {
    pub fn new(out: Output, gzip: bool) -> Self {
        match gzip {
            false => Self::Plain(out),
            true => Self::Gzip(
                flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default()),
                out,
            ),
        }
    }

    pub fn write(&mut self, bytes: &[u8]) -> Written {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(encoder, out) => {
                encoder.write_all(bytes).map_err(|_| Closed)?;
                out.write(&std::mem::take(encoder.get_mut()))
            }
        }
    }

    /// The end of the compressed stream.
    pub fn end(&mut self) -> Written {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Gzip(encoder, out) => {
                encoder.try_finish().map_err(|_| Closed)?;
                out.write(&std::mem::take(encoder.get_mut()))
            }
        }
    }
}

/// Passes on what is compressed with gzip as what it was, and anything else as it is.
pub struct MaybeGzip {
    context: Context,
    next: Box<dyn Filter>,
    state: Compression,
    /// The next one wants no more: what follows is not looked at.
    closed: bool,
    broken: bool,
}

enum Compression {
    /// Not two bytes yet.
    Unknown(Vec<u8>),
    Plain,
    Gzip(Box<flate2::write::MultiGzDecoder<Vec<u8>>>),
}

impl MaybeGzip {
    pub fn new(context: Context, next: Box<dyn Filter>) -> Self {
        Self {
            context,
            next,
            state: Compression::Unknown(Vec::new()),
            closed: false,
            broken: false,
        }
    }
}

impl Filter for MaybeGzip {
    fn begin(&mut self, name: &str) {
        self.state = Compression::Unknown(Vec::new());
        self.next.begin(name);
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        match &mut self.state {
            Compression::Plain => self.next.push(bytes),
            Compression::Unknown(first) => {
                first.extend_from_slice(bytes);
                if first.len() < 2 {
                    return Ok(());
                }
                let first = std::mem::take(first);
                self.state = match first.starts_with(&[0x1f, 0x8b]) {
                    true => {
                        Compression::Gzip(Box::new(flate2::write::MultiGzDecoder::new(Vec::new())))
                    }
                    false => Compression::Plain,
                };
                self.push(&first)
            }
            Compression::Gzip(decoder) => {
                // In pieces: a bomb unpacks through here, not into memory.
                for piece in bytes.chunks(4 << 10) {
                    if decoder.write_all(piece).is_err() {
                        self.broken = true;
                        return Err(Closed);
                    }
                    if self.next.push(&std::mem::take(decoder.get_mut())).is_err() {
                        self.closed = true;
                        return Err(Closed);
                    }
                }
                Ok(())
            }
        }
    }

    fn finish(&mut self) {
        match &mut self.state {
            Compression::Gzip(decoder) => {
                self.broken |= !self.closed && decoder.try_finish().is_err();
                if !self.broken {
                    let _ = self.next.push(&std::mem::take(decoder.get_mut()));
                }
            }
            Compression::Unknown(first) => {
                let _ = self.next.push(&std::mem::take(first));
            }
            Compression::Plain => {}
        }
        self.next.finish();
    }

    fn end(&mut self) -> i32 {
        let code = self.next.end();
        match self.broken {
            true => self.context.fail("invalid or incomplete gzip data"),
            false => code,
        }
    }
}

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "cdkfq123456789",
        long: &[
            ("stdout", 'c'),
            ("decompress", 'd'),
            ("keep", 'k'),
            ("force", 'f'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let unpack = options.has('d') || context.name != "gzip";
    let to_stdout = options.has('c') || context.name == "zcat" || options.operands.is_empty();
    let filter = |out: Output| -> Box<dyn Filter> {
        let context = context.clone();
        match unpack {
            true => Box::new(Gunzip {
                context,
                out,
                decoder: None,
                broken: false,
            }),
            false => Box::new(Gzip(Sink::new(out, true))),
        }
    };
    if to_stdout {
        return Ok(Started::Reads(
            options.operands.clone(),
            filter(context.stdout.clone()),
        ));
    }
    let mut code = 0;
    for name in &options.operands {
        let target = match (
            unpack,
            name.strip_suffix(".gz")
                .or_else(|| name.strip_suffix(".tgz")),
        ) {
            (false, _) => format!("{name}.gz"),
            (true, Some(base)) if name.ends_with(".tgz") => format!("{base}.tar"),
            (true, Some(base)) => base.to_owned(),
            (true, None) => {
                code = context.fail(format_args!("{name}: unknown suffix"));
                continue;
            }
        };
        if files::lstat(&context.path(&target)).is_ok() && !options.has('f') {
            code = context.fail(format_args!("{target}: File exists"));
            continue;
        }
        let out = match files::create(&context.path(&target), false) {
            Ok(out) => out,
            Err(error) => {
                code = context.fail(format_args!("{target}: {}", why(&error)));
                continue;
            }
        };
        let ended = crate::io::complete(context, Started::Reads(vec![name.clone()], filter(out)));
        code |= ended;
        if ended == 0 && !options.has('k') {
            let _ = std::fs::remove_file(context.path(name));
        }
    }
    done(code)
}

struct Gzip(Sink);

impl Filter for Gzip {
    fn push(&mut self, bytes: &[u8]) -> Written {
        self.0.write(bytes)
    }

    fn end(&mut self) -> i32 {
        i32::from(self.0.end().is_err())
    }
}

struct Gunzip {
    context: Context,
    out: Output,
    decoder: Option<flate2::write::MultiGzDecoder<Vec<u8>>>,
    broken: bool,
}

impl Gunzip {
    fn broken(&mut self) -> Closed {
        if !self.broken {
            self.context.fail("invalid or incomplete gzip data");
        }
        self.broken = true;
        Closed
    }
}

impl Filter for Gunzip {
    fn begin(&mut self, _: &str) {
        self.decoder = Some(flate2::write::MultiGzDecoder::new(Vec::new()));
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        let mut pieces: VecDeque<&[u8]> = bytes.chunks(4 << 10).collect();
        while let Some(piece) = pieces.pop_front() {
            let Some(decoder) = &mut self.decoder else {
                return Err(Closed);
            };
            if decoder.write_all(piece).is_err() {
                return Err(self.broken());
            }
            self.out.write(&std::mem::take(decoder.get_mut()))?;
        }
        Ok(())
    }

    fn finish(&mut self) {
        if let Some(mut decoder) = self.decoder.take() {
            let finished = decoder.try_finish();
            let _ = self.out.write(decoder.get_ref());
            if finished.is_err() {
                self.broken();
            }
        }
    }

    fn end(&mut self) -> i32 {
        i32::from(self.broken)
    }
}

//! Streams without processes: what applets read from and write to, and how a pipeline pushes bytes through them.
//!
//! A pipe is a call: writing to it hands the bytes to the next applet's [`Filter`], which may answer [`Closed`] when it has
//! enough. Then the pipe breaks as a kernel's does: not for what still fits into it, but for a writer that goes on. So
//! `yes | head -3` ends, nothing waits in memory, and `echo a | grep -q a` succeeds on both sides.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::{self, BufRead, Read, Write};
use std::rc::Rc;

use crate::context::Context;
use crate::os;

/// What may wait in memory for a reader that has to pull: `$(…)`, `while read` at the end of a pipe, here-documents.
pub const GATHER: usize = 8 << 20;
/// What fits into a pipe that nobody reads.
const PIPE: usize = 64 << 10;
const CHUNK: usize = 64 << 10;

/// Nobody reads any further.
#[derive(Debug)]
pub struct Closed;

pub type Written = Result<(), Closed>;

/// An applet that is given its input bit by bit.
pub trait Filter {
    /// The next input begins; `-` is stdin.
    fn begin(&mut self, _name: &str) {}
    /// `Closed`: no more of this input is wanted.
    fn push(&mut self, bytes: &[u8]) -> Written;
    /// The input is over; others may follow.
    fn finish(&mut self) {}
    /// All inputs are over: the exit code.
    fn end(&mut self) -> i32;
}

/// How far an applet came by itself.
pub enum Started {
    /// It has ended.
    Done(i32),
    /// It wants the bytes of these files, or of stdin if there are none, pushed.
    Reads(Vec<String>, Box<dyn Filter>),
    /// It reads stdin itself, when it wants.
    Pulls(Box<dyn FnOnce(Input) -> i32>),
}

#[derive(Clone)]
pub enum Output {
    Stdout,
    Stderr,
    Null,
    Closed,
    File(Rc<RefCell<File>>),
    Gather(Rc<RefCell<Vec<u8>>>),
    Pipe(Rc<RefCell<Pipe>>),
}

#[derive(Clone)]
pub enum Input {
    /// The bytes are pushed: this applet is behind a pipe.
    Piped,
    From(Rc<RefCell<Source>>),
}

/// A buffered input that commands of one shell share: what one does not take, the next one finds.
pub struct Source {
    buffer: Vec<u8>,
    at: usize,
    origin: Origin,
}

enum Origin {
    Nothing,
    Stdin,
    File(File),
}

/// The writing end of a pipe and all that hangs behind it.
pub struct Pipe {
    reader: Option<Box<dyn Filter>>,
    /// Once the reader wants no more.
    room: Option<Room>,
    code: i32,
    /// A write of the reader's failed.
    failed: bool,
    broken: bool,
}

/// What a pipe takes that nobody reads: as much as fits, until its writer waits for anything. By then a reader that is a
/// process would be gone.
struct Room {
    bytes: usize,
    waits: u64,
}

thread_local! {
    static STDOUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    /// A write to a file has failed, or to memory, and no command has answered for it yet.
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a write failed while this ran. Who asks answers for it with an exit code: nobody further out hears of it.
pub fn noticed<T>(run: impl FnOnce() -> T) -> (T, bool) {
    let before = FAILED.replace(false);
    let result = run();
    (result, FAILED.replace(before))
}

/// The exit code of what ran: no success if what it wrote is not there, whether it looked or not.
pub fn answered(run: impl FnOnce() -> i32) -> i32 {
    match noticed(run) {
        (0, true) => 1,
        (code, _) => code,
    }
}

// === impl Output ===

impl Output {
    pub fn write(&self, bytes: &[u8]) -> Written {
        match self {
            Self::Null => Ok(()),
            Self::Closed => Err(Closed),
            Self::Stdout => buffered(bytes),
            Self::Stderr => {
                flush();
                io::stderr().write_all(bytes).map_err(|_| Closed)
            }
            Self::File(file) => file.borrow_mut().write_all(bytes).map_err(|error| {
                let message = format!("write error: {}\n", why(&error));
                let _ = io::stderr().write_all(message.as_bytes());
                FAILED.set(true);
                Closed
            }),
            Self::Gather(gathered) => {
                let mut gathered = gathered.borrow_mut();
                if gathered.len() + bytes.len() > GATHER {
                    too_much();
                    return Err(Closed);
                }
                gathered.extend_from_slice(bytes);
                Ok(())
            }
            Self::Pipe(pipe) => match pipe.try_borrow_mut() {
                Ok(mut pipe) => pipe.push(bytes),
                // A reader that writes into its own pipe.
                Err(_) => Err(Closed),
            },
        }
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Stdout | Self::Stderr) && os::screen()
    }
}

/// Says that it does, and that what is written is not whole.
pub fn too_much() {
    FAILED.set(true);
    let message = format!(
        "more than {} MiB for a reader that cannot be fed in pieces\n",
        GATHER >> 20
    );
    let _ = io::stderr().write_all(message.as_bytes());
}

fn buffered(bytes: &[u8]) -> Written {
    if os::interrupted() {
        return Err(Closed);
    }
    let full = STDOUT.with_borrow_mut(|buffer| {
        buffer.extend_from_slice(bytes);
        buffer.len() >= CHUNK
    });
    if full { flush_or_closed() } else { Ok(()) }
}

fn flush_or_closed() -> Written {
    os::look_for_interrupt();
    STDOUT.with_borrow_mut(|buffer| {
        if buffer.is_empty() {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let written = out.write_all(buffer).and_then(|()| out.flush());
        buffer.clear();
        written.map_err(|_| Closed)
    })
}

/// Lets go of what waits for stdout: before anything that blocks, and after every command.
pub fn flush() {
    let _ = flush_or_closed();
}

/// Text for people; a closed stream does not want it.
pub fn print(output: &Output, text: &str) {
    let _ = output.write(text.as_bytes());
}

/// An error as other tools word it.
pub fn why(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

// === impl Input ===

impl Input {
    pub fn outside() -> Self {
        Self::new(Vec::new(), Origin::Stdin)
    }

    pub fn nothing() -> Self {
        Self::new(Vec::new(), Origin::Nothing)
    }

    pub fn bytes(bytes: Vec<u8>) -> Self {
        Self::new(bytes, Origin::Nothing)
    }

    pub fn file(file: File) -> Self {
        Self::new(Vec::new(), Origin::File(file))
    }

    fn new(buffer: Vec<u8>, origin: Origin) -> Self {
        Self::From(Rc::new(RefCell::new(Source {
            buffer,
            at: 0,
            origin,
        })))
    }

    /// The next bytes, none at the end.
    pub fn chunk(&self) -> io::Result<Vec<u8>> {
        let Self::From(source) = self else {
            return Ok(Vec::new());
        };
        let mut source = source.borrow_mut();
        let bytes = source.fill_buf()?.to_vec();
        source.consume(bytes.len());
        Ok(bytes)
    }

    /// The next line with its end, if it has one; nothing at the end.
    pub fn line(&self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        if let Self::From(source) = self {
            source.borrow_mut().read_until(b'\n', &mut line)?;
        }
        Ok(line)
    }

    /// What can be had without waiting: nothing yet is empty, `None` the end.
    pub fn available(&self) -> io::Result<Option<Vec<u8>>> {
        let Self::From(source) = self else {
            return Ok(None);
        };
        let source = &mut *source.borrow_mut();
        if source.at >= source.buffer.len()
            && let Origin::Stdin = source.origin
        {
            return os::poll_stdin();
        }
        let bytes = source.fill_buf()?.to_vec();
        source.consume(bytes.len());
        Ok((!bytes.is_empty()).then_some(bytes))
    }

    /// Whether nothing is left of what was given beforehand.
    pub fn is_drained(&self) -> bool {
        match self {
            Self::Piped => true,
            Self::From(source) => source.borrow().at >= source.borrow().buffer.len(),
        }
    }

    /// Everything, or an error: never a part of it.
    pub fn rest(&self) -> io::Result<Vec<u8>> {
        let mut all = Vec::new();
        if let Self::From(source) = self {
            Read::by_ref(&mut *source.borrow_mut())
                .take(GATHER as u64 + 1)
                .read_to_end(&mut all)?;
        }
        if all.len() > GATHER {
            let message = format!("more than {} MiB", GATHER >> 20);
            return Err(io::Error::other(message));
        }
        Ok(all)
    }

    /// The terminal, if a person may be sitting there.
    pub fn is_terminal(&self) -> bool {
        match self {
            Self::Piped => false,
            Self::From(source) => matches!(source.borrow().origin, Origin::Stdin) && os::terminal(),
        }
    }
}

// === impl Source ===

impl BufRead for Source {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at >= self.buffer.len() {
            self.at = 0;
            self.buffer.resize(CHUNK, 0);
            let read = match &mut self.origin {
                Origin::Nothing => Ok(0),
                Origin::File(file) => file.read(&mut self.buffer),
                Origin::Stdin => {
                    flush();
                    os::read_stdin(&mut self.buffer)
                }
            };
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            read?;
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        self.at += amount;
    }
}

impl Read for Source {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(into.len());
        into[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

// === impl Pipe ===

impl Pipe {
    /// The pipe into what was started behind it.
    pub fn into(started: Started, context: &Context) -> Self {
        let reader: Option<Box<dyn Filter>> = match started {
            Started::Done(code) => return Self::to_nobody(code),
            Started::Reads(files, mut filter) if files.is_empty() => {
                filter.begin("-");
                Some(filter)
            }
            Started::Reads(files, filter) if files.iter().any(|file| file == "-") => {
                let mut context = context.clone();
                Some(Box::new(Gather::new(move |input| {
                    context.stdin = input;
                    drive(&context, &files, filter)
                })))
            }
            started @ Started::Reads(..) => return Self::to_nobody(complete(context, started)),
            Started::Pulls(run) => Some(Box::new(Gather::new(run))),
        };
        Self {
            reader,
            room: None,
            code: 0,
            failed: false,
            broken: false,
        }
    }

    /// To a reader that has ended with this code.
    fn to_nobody(code: i32) -> Self {
        Self {
            reader: None,
            room: Some(Room::new()),
            code,
            failed: false,
            broken: false,
        }
    }

    /// Whether somebody has written what nobody will read.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    fn push(&mut self, bytes: &[u8]) -> Written {
        if let (None, Some(reader)) = (&self.room, &mut self.reader) {
            let (written, failed) = noticed(|| reader.push(bytes));
            self.failed |= failed;
            if written.is_err() {
                self.room = Some(Room::new());
            }
            return Ok(());
        }
        if self
            .room
            .as_mut()
            .is_some_and(|room| room.take(bytes.len()))
        {
            return Ok(());
        }
        self.broken = true;
        Err(Closed)
    }

    /// The writer has ended; so do all behind it.
    pub fn end(&mut self) -> i32 {
        if let Some(mut reader) = self.reader.take() {
            let (code, failed) = noticed(|| {
                reader.finish();
                reader.end()
            });
            self.code = match code {
                0 if failed || self.failed => 1,
                code => code,
            };
            self.room = None;
        }
        self.code
    }
}

// === impl Room ===

impl Room {
    fn new() -> Self {
        Self {
            bytes: PIPE,
            waits: os::waits(),
        }
    }

    fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.bytes && self.waits == os::waits();
        if fits {
            self.bytes -= bytes;
        }
        fits
    }
}

/// Collects what is pushed, for a reader that pulls: it runs when its input has ended.
struct Gather<F> {
    bytes: Vec<u8>,
    overflown: bool,
    run: Option<F>,
}

impl<F: FnOnce(Input) -> i32> Gather<F> {
    fn new(run: F) -> Self {
        Self {
            bytes: Vec::new(),
            overflown: false,
            run: Some(run),
        }
    }
}

impl<F: FnOnce(Input) -> i32> Filter for Gather<F> {
    fn push(&mut self, bytes: &[u8]) -> Written {
        if self.bytes.len() + bytes.len() > GATHER {
            if !self.overflown {
                too_much();
            }
            self.overflown = true;
            return Err(Closed);
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> i32 {
        match self.run.take() {
            // Half of the input must not pass for all of it.
            Some(run) if !self.overflown => run(Input::bytes(std::mem::take(&mut self.bytes))),
            _ => 1,
        }
    }
}

/// Runs to its end what was started outside of a pipe.
pub fn complete(context: &Context, started: Started) -> i32 {
    answered(|| match started {
        Started::Done(code) => code,
        Started::Reads(files, filter) => drive(context, &files, filter),
        Started::Pulls(run) => run(context.stdin.clone()),
    })
}

/// Pushes the files, or stdin, through the filter.
fn drive(context: &Context, files: &[String], mut filter: Box<dyn Filter>) -> i32 {
    let stdin = ["-".to_owned()];
    let mut failed = 0;
    for name in if files.is_empty() { &stdin } else { files } {
        let input = match name.as_str() {
            "-" => context.stdin.clone(),
            name => match crate::files::open(&context.path(name)) {
                Ok(input) => input,
                Err(error) => {
                    failed = context.fail_on(name, &error);
                    continue;
                }
            },
        };
        filter.begin(name);
        loop {
            match input.chunk() {
                Ok(bytes) if bytes.is_empty() => break,
                Ok(bytes) => {
                    if filter.push(&bytes).is_err() {
                        break;
                    }
                    // A person watches, or the input is slow: what is known is shown.
                    if name == "-" {
                        flush();
                    }
                }
                Err(_) if os::interrupted() => return 130,
                Err(error) => {
                    failed = context.fail_on(name, &error);
                    break;
                }
            }
        }
        filter.finish();
    }
    match filter.end() {
        0 => failed,
        code => code,
    }
}

/// Cuts what is pushed into lines.
#[derive(Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Calls `line` with every whole line, its end included.
    pub fn push(&mut self, mut bytes: &[u8], mut line: impl FnMut(&[u8]) -> Written) -> Written {
        while let Some(at) = bytes.iter().position(|b| *b == b'\n') {
            let (head, rest) = bytes.split_at(at + 1);
            bytes = rest;
            if self.partial.is_empty() {
                line(head)?;
            } else {
                self.partial.extend_from_slice(head);
                line(&std::mem::take(&mut self.partial))?;
            }
        }
        self.partial.extend_from_slice(bytes);
        Ok(())
    }

    /// What stood after the last line's end.
    pub fn rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }
}

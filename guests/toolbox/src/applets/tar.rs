//! `tar` both ways, as `kubectl cp` needs it.

mod archive;

use std::fs::File;
use std::io::{self, Read};
use std::time::{Duration, SystemTime};

use super::change::{make_all, seconds, set_times};
use super::gzip::{MaybeGzip, Sink};
use super::{Answer, done};
use crate::context::Context;
use crate::files::{self, Kind};
use crate::io::{Closed, Filter, Output, Started, Written, print};
use crate::options::{Options, Spec, parse};
use crate::os;
use crate::shell::pattern;
use archive::{Entry, Reader, Step, What};

/// Modes are written for others; nothing here has one.
const FILE_MODE: u32 = 0o644;
const DIRECTORY_MODE: u32 = 0o755;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "cxtf:C:zmpovkOhE:S:",
        long: &[
            ("create", 'c'),
            ("extract", 'x'),
            ("list", 't'),
            ("file", 'f'),
            ("directory", 'C'),
            ("gzip", 'z'),
            ("touch", 'm'),
            ("preserve-permissions", 'p'),
            ("no-same-owner", 'o'),
            ("verbose", 'v'),
            ("exclude", 'E'),
            ("strip-components", 'S'),
            ("to-stdout", 'O'),
            ("no-same-permissions", 'o'),
            ("overwrite", 'o'),
            ("keep-old-files", 'k'),
            ("no-overwrite-dir", 'o'),
        ],
        stop: false,
    };
    let mut args = args.to_vec();
    // `tar xf …`, as it was before there were dashes.
    if let Some(first) = args.first_mut()
        && !first.starts_with('-')
    {
        first.insert(0, '-');
    }
    let options = parse(&SPEC, &args)?;
    if let Some(directory) = options.value('C') {
        let path = context.path(directory);
        if !files::stat(&path).is_ok_and(|about| about.is_dir()) {
            return done(context.fail(format_args!(
                "can't change directory to '{directory}': No such file or directory"
            )));
        }
        let mut inside = context.clone();
        inside.cwd = path.to_string_lossy().into_owned();
        return act(context, inside, options);
    }
    let inside = context.clone();
    act(context, inside, options)
}

fn act(context: &Context, inside: Context, options: Options) -> Answer {
    let archive = options.value('f').unwrap_or("-").to_owned();
    match options.last_of("cxt") {
        Some('c') => {
            let out = match archive.as_str() {
                "-" => context.stdout.clone(),
                name => match files::create(&context.path(name), false) {
                    Ok(out) => out,
                    Err(error) => return done(context.fail_on(name, &error)),
                },
            };
            done(create(&inside, &options, out))
        }
        Some(mode) => {
            let strip = options.number('S')?.unwrap_or(0) as usize;
            let out = Unpack {
                context: inside,
                list: mode == 't',
                options,
                strip,
                file: None,
                times: Vec::new(),
                code: 0,
            };
            let tar = Untar {
                reader: Reader::default(),
                out,
                ended: false,
            };
            let filter = Box::new(MaybeGzip::new(context.clone(), Box::new(tar)));
            let files = if archive == "-" {
                Vec::new()
            } else {
                vec![archive]
            };
            Ok(Started::Reads(files, filter))
        }
        None => Err("one of -c, -x and -t is needed".to_owned()),
    }
}

// === out of an archive ===

struct Untar {
    reader: Reader,
    out: Unpack,
    ended: bool,
}

impl Filter for Untar {
    fn push(&mut self, mut bytes: &[u8]) -> Written {
        while !bytes.is_empty() && !self.ended {
            let (used, step) = match self.reader.read(bytes) {
                Ok(read) => read,
                Err(error) => {
                    self.out.code = self.out.context.fail(error);
                    self.ended = true;
                    return Err(Closed);
                }
            };
            bytes = &bytes[used..];
            match step {
                Step::More => {}
                Step::Entry(entry) => self.out.begin(entry),
                Step::Data(data) => self.out.data(data),
                Step::EntryEnd => self.out.finish(),
                Step::ArchiveEnd => self.ended = true,
            }
        }
        // What follows the end is padding; the writer shall not fail over it.
        Ok(())
    }

    fn end(&mut self) -> i32 {
        if !self.ended && self.reader.inside() {
            self.out.code = self.out.context.fail("unexpected end of the archive");
        }
        // Last, because writing into a directory changes it.
        for (path, modified) in self.out.times.drain(..) {
            let _ = set_times(&path, Some(modified), None);
        }
        self.out.code
    }
}

struct Unpack {
    context: Context,
    options: Options,
    list: bool,
    strip: usize,
    file: Option<Output>,
    times: Vec<(std::path::PathBuf, SystemTime)>,
    code: i32,
}

impl Unpack {
    fn wanted(&self, name: &str) -> bool {
        let names = &self.options.operands;
        let name = name.trim_end_matches('/');
        let below = |wanted: &String| {
            let wanted = wanted.trim_end_matches('/');
            name == wanted
                || name
                    .strip_prefix(wanted)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        (names.is_empty() || names.iter().any(below)) && !excluded(&self.options, name)
    }

    fn begin(&mut self, entry: Entry) {
        self.file = None;
        if !self.wanted(&entry.name) {
            return;
        }
        if self.list || self.options.has('v') {
            // With the files themselves on stdout, their names go elsewhere.
            let to = if self.options.has('O') {
                &self.context.stderr
            } else {
                &self.context.stdout
            };
            print(to, &format!("{}\n", entry.name));
        }
        if self.list {
            return;
        }
        if self.options.has('O') {
            self.file = (entry.what == What::File).then(|| self.context.stdout.clone());
            return;
        }
        // A name that leads out of the directory is not followed.
        let parts = entry
            .name
            .split('/')
            .filter(|part| !matches!(*part, "" | "."));
        let parts: Vec<&str> = parts.skip(self.strip).collect();
        if parts.contains(&"..") {
            self.code = self.context.fail(format_args!(
                "'{}' leads out of the directory: skipped",
                entry.name
            ));
            return;
        }
        if parts.is_empty() {
            return;
        }
        let path = self.context.path(&parts.join("/"));
        let made = match &entry.what {
            What::Directory => make_all(&path),
            What::File | What::Link(_) | What::Hard(_) => path
                .parent()
                .map_or(Ok(()), make_all)
                .and_then(|()| self.place(&entry, &path)),
            What::Other(kind) => Err(io::Error::other(format!(
                "an entry of type '{kind}' cannot be made here"
            ))),
        };
        match made {
            Ok(()) if entry.what == What::File && !self.options.has('m') => {
                self.times.push((
                    path,
                    SystemTime::UNIX_EPOCH + Duration::from_secs(entry.modified),
                ));
            }
            Ok(()) => {}
            Err(error) => self.code = self.context.fail_on(&entry.name, &error),
        }
    }

    fn place(&mut self, entry: &Entry, path: &std::path::Path) -> io::Result<()> {
        let there = files::lstat(path);
        if self.options.has('k') && there.is_ok() {
            return Err(io::Error::other("File exists"));
        }
        // A link that is there must not lead the new file elsewhere.
        if there.is_ok_and(|about| {
            !about.is_dir() && (about.kind == Kind::Link || entry.what != What::File)
        }) {
            std::fs::remove_file(path)?;
        }
        match &entry.what {
            What::Link(target) => os::symlink(target, &path.to_string_lossy()),
            What::Hard(target) => std::fs::hard_link(self.context.path(target), path),
            _ => {
                self.file = Some(files::create(path, false)?);
                Ok(())
            }
        }
    }

    fn data(&mut self, bytes: &[u8]) {
        if let Some(file) = &self.file
            && file.write(bytes).is_err()
        {
            self.file = None;
            self.code = 1;
        }
    }

    fn finish(&mut self) {
        self.file = None;
    }
}

fn excluded(options: &Options, name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or(name);
    options
        .values('E')
        .any(|excluded| pattern::matches(excluded, name) || pattern::matches(excluded, base))
}

// === into an archive ===

fn create(context: &Context, options: &Options, out: Output) -> i32 {
    if options.operands.is_empty() {
        return context.fail("an empty archive is not made: name a file");
    }
    let mut pack = Pack {
        context,
        options,
        sink: Sink::new(out, options.has('z')),
        code: 0,
    };
    let packed = options.operands.iter().try_for_each(|name| pack.add(name));
    // An archive ends with two empty blocks.
    if packed.is_err() || pack.sink.write(&[0; 1_024]).is_err() || pack.sink.end().is_err() {
        return 1;
    }
    pack.code
}

struct Pack<'a> {
    context: &'a Context,
    options: &'a Options,
    sink: Sink,
    code: i32,
}

impl Pack<'_> {
    fn add(&mut self, name: &str) -> Written {
        if excluded(self.options, name.trim_end_matches('/')) || os::interrupted() {
            return Ok(());
        }
        let path = self.context.path(name);
        let about = if self.options.has('h') {
            files::stat(&path)
        } else {
            files::lstat(&path)
        };
        let about = match about {
            Ok(about) => about,
            Err(error) => {
                self.code = self.context.fail_on(name, &error);
                return Ok(());
            }
        };
        if self.options.has('v') {
            print(&self.context.stderr, &format!("{name}\n"));
        }
        // Relative, so that unpacking it stays where it is told to.
        let stored = name.trim_start_matches('/');
        let stored = if stored.is_empty() { "." } else { stored };
        let mut entry = Entry {
            name: stored.trim_end_matches('/').to_owned(),
            what: What::File,
            mode: FILE_MODE,
            size: 0,
            modified: seconds(about.modified).as_secs(),
        };
        match about.kind {
            Kind::Directory => {
                entry.name.push('/');
                entry.what = What::Directory;
                entry.mode = DIRECTORY_MODE;
                self.sink.write(&archive::header(&entry))?;
                let names = files::list(&path).unwrap_or_else(|error| {
                    self.code = self.context.fail_on(name, &error);
                    Vec::new()
                });
                names.iter().try_for_each(|below| {
                    self.add(&format!("{}/{below}", name.trim_end_matches('/')))
                })
            }
            Kind::Link => match std::fs::read_link(&path) {
                Ok(target) => {
                    entry.what = What::Link(target.to_string_lossy().into_owned());
                    self.sink.write(&archive::header(&entry))
                }
                Err(error) => {
                    self.code = self.context.fail_on(name, &error);
                    Ok(())
                }
            },
            _ => {
                entry.size = about.size;
                self.file(name, &path, &entry)
            }
        }
    }

    /// Exactly as many bytes as the header says, whatever happens to the file meanwhile.
    fn file(&mut self, name: &str, path: &std::path::Path, entry: &Entry) -> Written {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) => {
                self.code = self.context.fail_on(name, &error);
                return Ok(());
            }
        };
        self.sink.write(&archive::header(entry))?;
        let mut left = entry.size;
        let mut buffer = vec![0; 64 << 10];
        while left > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = match file.read(&mut buffer[..most]) {
                Ok(0) => {
                    self.code = self.context.fail(format_args!(
                        "{name}: the file has become shorter; filled with zeros"
                    ));
                    buffer.fill(0);
                    most
                }
                Ok(count) => count,
                Err(error) => {
                    self.code = self.context.fail_on(name, &error);
                    return Err(Closed);
                }
            };
            self.sink.write(&buffer[..count])?;
            left -= count as u64;
        }
        self.sink.write(&vec![0; archive::padding(entry.size)])
    }
}

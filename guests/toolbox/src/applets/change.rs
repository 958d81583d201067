//! Applets that change directories: `cp`, `mv`, `rm`, `mkdir`, `rmdir`, `touch`, `ln`, `mktemp`, `truncate`.

use std::fs::{self, File, FileTimes, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Answer, done};
use crate::context::Context;
use crate::files::{self, Kind};
use crate::io::{print, why};
use crate::options::{Options, Spec, parse};
use crate::os;

/// Where the sources go: into the last operand if that is a directory, else to it.
fn destinations(
    context: &Context,
    options: &Options,
    into: bool,
) -> Result<Vec<(String, String)>, String> {
    let (target, sources) = match (options.value('t'), options.operands.split_last()) {
        (Some(target), _) => (target.to_owned(), options.operands.as_slice()),
        (None, Some((target, sources))) if !sources.is_empty() => (target.clone(), sources),
        _ => return Err("a source and a destination are needed".to_owned()),
    };
    let directory = into && files::stat(&context.path(&target)).is_ok_and(|about| about.is_dir());
    if !directory && sources.len() > 1 {
        return Err(format!("target '{target}' is not a directory"));
    }
    let to = |source: &String| {
        if !directory {
            return target.clone();
        }
        let base = source
            .trim_end_matches('/')
            .rsplit('/')
            .next()
            .unwrap_or_default();
        format!("{}/{base}", target.trim_end_matches('/'))
    };
    Ok(sources
        .iter()
        .map(|source| (source.clone(), to(source)))
        .collect())
}

// === cp ===

pub fn cp(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "aRrfpdPLHnuvt:T",
        long: &[
            ("archive", 'a'),
            ("recursive", 'r'),
            ("force", 'f'),
            ("no-clobber", 'n'),
            ("verbose", 'v'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut copy = Copy {
        context,
        recursive: options.last_of("aRr").is_some(),
        times: options.last_of("ap").is_some(),
        links: options.last_of("adP").is_some() && !options.has('L'),
        keep: options.has('n'),
        newer: options.has('u'),
        verbose: options.has('v'),
        code: 0,
    };
    for (from, to) in destinations(context, &options, !options.has('T'))? {
        copy.one(&from, &to);
    }
    done(copy.code)
}

struct Copy<'a> {
    context: &'a Context,
    recursive: bool,
    times: bool,
    links: bool,
    keep: bool,
    newer: bool,
    verbose: bool,
    code: i32,
}

impl Copy<'_> {
    fn one(&mut self, from: &str, to: &str) {
        let (source, target) = (self.context.path(from), self.context.path(to));
        let about = if self.links {
            files::lstat(&source)
        } else {
            files::stat(&source)
        };
        let about = match about {
            Ok(about) => about,
            Err(error) => {
                self.code = self
                    .context
                    .fail(format_args!("can't stat '{from}': {}", why(&error)));
                return;
            }
        };
        if source == target || (about.is_dir() && target.starts_with(&source)) {
            self.code = self.context.fail(format_args!(
                "'{from}' and '{to}' are the same, or one is in the other"
            ));
            return;
        }
        if self.keep && files::lstat(&target).is_ok() {
            return;
        }
        if self.newer && files::stat(&target).is_ok_and(|there| there.modified >= about.modified) {
            return;
        }
        if about.is_dir() {
            self.directory(from, to, &source, &target);
            return;
        }
        if self.verbose {
            print(&self.context.stdout, &format!("'{from}' -> '{to}'\n"));
        }
        let copied = match about.kind {
            Kind::Link => copy_link(&source, &target),
            _ => fs::copy(&source, &target).map(|_| ()),
        };
        let done = copied.and_then(|()| match self.times && about.kind == Kind::File {
            true => set_times(&target, about.modified, about.accessed),
            false => Ok(()),
        });
        if let Err(error) = done {
            self.code = self
                .context
                .fail(format_args!("can't create '{to}': {}", why(&error)));
        }
    }

    fn directory(&mut self, from: &str, to: &str, source: &Path, target: &Path) {
        if !self.recursive {
            self.code = self
                .context
                .fail(format_args!("omitting directory '{from}'"));
            return;
        }
        if !files::stat(target).is_ok_and(|about| about.is_dir())
            && let Err(error) = fs::create_dir(target)
        {
            self.code = self.context.fail(format_args!(
                "can't create directory '{to}': {}",
                why(&error)
            ));
            return;
        }
        match files::list(source) {
            Ok(names) => {
                for name in names {
                    self.one(&format!("{from}/{name}"), &format!("{to}/{name}"));
                }
            }
            Err(error) => self.code = self.context.fail_on(from, &error),
        }
    }
}

fn copy_link(source: &Path, target: &Path) -> io::Result<()> {
    let to = fs::read_link(source)?;
    let _ = fs::remove_file(target);
    os::symlink(&to.to_string_lossy(), &target.to_string_lossy())
}

pub fn set_times(
    path: &Path,
    modified: Option<SystemTime>,
    accessed: Option<SystemTime>,
) -> io::Result<()> {
    let mut times = FileTimes::new();
    if let Some(time) = modified {
        times = times.set_modified(time);
    }
    if let Some(time) = accessed {
        times = times.set_accessed(time);
    }
    OpenOptions::new().write(true).open(path)?.set_times(times)
}

// === mv ===

pub fn mv(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "fnt:T",
        long: &[("force", 'f'), ("no-clobber", 'n')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut code = 0;
    for (from, to) in destinations(context, &options, !options.has('T'))? {
        let (source, target) = (context.path(&from), context.path(&to));
        if options.has('n') && files::lstat(&target).is_ok() {
            continue;
        }
        if let Err(error) = fs::rename(&source, &target) {
            // From one mount to another: copied, then removed.
            let missing = files::lstat(&source).is_err();
            let across = !missing && across_mounts(&source, &target);
            if !across {
                code = context.fail(format_args!("can't rename '{from}': {}", why(&error)));
                continue;
            }
            let mut copy = Copy {
                context,
                recursive: true,
                times: true,
                links: true,
                keep: false,
                newer: false,
                verbose: false,
                code: 0,
            };
            copy.one(&from, &to);
            code |= copy.code;
            if copy.code == 0
                && let Err(error) = remove(&source)
            {
                code = context.fail(format_args!("can't remove '{from}': {}", why(&error)));
            }
        }
    }
    done(code)
}

/// Whether the two lie in different mounts.
fn across_mounts(a: &Path, b: &Path) -> bool {
    let mounts = os::preopens();
    let mount = |path: &Path| {
        mounts
            .iter()
            .filter(|mount| path.starts_with(mount))
            .max_by_key(|mount| mount.len())
    };
    mount(a) != mount(b) || mounts.len() == 1
}

// === rm, rmdir ===

fn remove(path: &Path) -> io::Result<()> {
    match files::lstat(path)?.is_dir() {
        false => fs::remove_file(path),
        true => {
            for name in files::list(path)? {
                remove(&path.join(name))?;
            }
            fs::remove_dir(path)
        }
    }
}

pub fn rm(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "rRfdv",
        long: &[("recursive", 'r'), ("force", 'f'), ("verbose", 'v')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let force = options.has('f');
    if options.operands.is_empty() && !force {
        return Err("a name is needed".to_owned());
    }
    let recursive = options.last_of("rR").is_some();
    let mut code = 0;
    for name in &options.operands {
        let last = name.trim_end_matches('/').rsplit('/').next();
        if matches!(last, Some("." | "..")) {
            code = context.fail("refusing to remove '.' or '..' directory");
            continue;
        }
        let path = context.path(name);
        if path == Path::new("/") {
            code = context.fail(format_args!("refusing to remove '{name}'"));
            continue;
        }
        let removed = match files::lstat(&path) {
            Err(_) if force => continue,
            Err(error) => Err(error),
            Ok(about) if about.is_dir() && !recursive && !options.has('d') => {
                code = context.fail(format_args!("'{name}' is a directory"));
                continue;
            }
            Ok(about) if about.is_dir() && !recursive => fs::remove_dir(&path),
            Ok(_) => remove(&path),
        };
        match removed {
            Ok(()) if options.has('v') => print(&context.stdout, &format!("removed '{name}'\n")),
            Ok(()) => {}
            Err(error) => {
                code = context.fail(format_args!("can't remove '{name}': {}", why(&error)))
            }
        }
    }
    done(code)
}

pub fn rmdir(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "p",
        long: &[("parents", 'p')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut code = 0;
    for name in &options.operands {
        let mut name = name.trim_end_matches('/');
        loop {
            if let Err(error) = fs::remove_dir(context.path(name)) {
                code = context.fail(format_args!("'{name}': {}", why(&error)));
                break;
            }
            match name.rsplit_once('/') {
                Some((parent, _)) if options.has('p') && !parent.is_empty() => name = parent,
                _ => break,
            }
        }
    }
    done(code)
}

// === mkdir, touch, ln, mktemp, truncate ===

pub fn mkdir(context: &mut Context, args: &[String]) -> Answer {
    // A mode is accepted: files have none here, and images' scripts give one.
    const SPEC: Spec = Spec {
        short: "pm:v",
        long: &[("parents", 'p'), ("mode", 'm')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    if options.operands.is_empty() {
        return Err("a name is needed".to_owned());
    }
    let mut code = 0;
    for name in &options.operands {
        let path = context.path(name);
        let made = if options.has('p') {
            make_all(&path)
        } else {
            fs::create_dir(&path)
        };
        if let Err(error) = made {
            code = context.fail(format_args!(
                "can't create directory '{name}': {}",
                why(&error)
            ));
        }
    }
    done(code)
}

/// Also below directories that only mounts imply, which `create_dir_all` would try to make.
pub fn make_all(path: &Path) -> io::Result<()> {
    match files::stat(path) {
        Ok(about) if about.is_dir() => return Ok(()),
        Ok(_) => return Err(io::Error::other("File exists")),
        Err(_) => {}
    }
    if let Some(parent) = path.parent() {
        make_all(parent)?;
    }
    fs::create_dir(path)
}

pub fn touch(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "camd:r:",
        long: &[("no-create", 'c'), ("date", 'd'), ("reference", 'r')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let time = match (options.value('r'), options.value('d')) {
        (Some(file), _) => {
            let about = files::stat(&context.path(file))
                .map_err(|error| format!("{file}: {}", why(&error)))?;
            about.modified.map(super::date::since).unwrap_or_default()
        }
        (None, Some(text)) => {
            super::date::read(text, os::now()).ok_or_else(|| format!("invalid date '{text}'"))?
        }
        (None, None) => os::now(),
    };
    let time = SystemTime::UNIX_EPOCH + time;
    let mut code = 0;
    for name in &options.operands {
        let path = context.path(name);
        if options.has('c') && files::stat(&path).is_err() {
            continue;
        }
        let there = files::stat(&path).is_ok_and(|about| about.is_dir());
        let touched = match there {
            // WASI has no way to a directory's times through std.
            true => Ok(()),
            false => OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .and_then(|file| {
                    file.set_times(FileTimes::new().set_modified(time).set_accessed(time))
                }),
        };
        if let Err(error) = touched {
            code = context.fail_on(name, &error);
        }
    }
    done(code)
}

pub fn ln(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "sfnTt:",
        long: &[("symbolic", 's'), ("force", 'f')],
        stop: false,
    };
    let mut options = parse(&SPEC, args)?;
    if options.operands.len() == 1 {
        options.operands.push(".".to_owned());
    }
    let mut code = 0;
    for (target, link) in destinations(context, &options, !options.has('T') && !options.has('n'))? {
        let path = context.path(&link);
        if options.has('f') {
            let _ = fs::remove_file(&path);
        }
        let made = match options.has('s') {
            true => os::symlink(&target, &path.to_string_lossy()),
            false => fs::hard_link(context.path(&target), &path),
        };
        if let Err(error) = made {
            code = context.fail(format_args!("{link}: {}", why(&error)));
        }
    }
    done(code)
}

pub fn mktemp(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "dqtp:u",
        long: &[("directory", 'd'), ("tmpdir", 'p')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let template = options
        .operands
        .first()
        .map_or("tmp.XXXXXX", String::as_str);
    let kept = template.trim_end_matches('X');
    let marks = template.len() - kept.len();
    if marks < 6 {
        return Err(format!("'{template}' must end in XXXXXX"));
    }
    let below = match (
        options.value('p'),
        options.operands.is_empty() || options.has('t'),
    ) {
        (Some(directory), _) => Some(directory.to_owned()),
        (None, true) => Some(
            context
                .env
                .get("TMPDIR")
                .cloned()
                .unwrap_or_else(|| "/tmp".to_owned()),
        ),
        (None, false) => None,
    };
    let mut seed = os::now().subsec_nanos() as usize;
    for _ in 0..100 {
        let mut name = kept.to_owned();
        for _ in 0..marks {
            seed = seed.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            name.push(char::from(
                b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[(seed >> 8) % 62],
            ));
        }
        let name = match &below {
            Some(directory) => format!("{directory}/{name}"),
            None => name,
        };
        let path = context.path(&name);
        let made = match (options.has('u'), options.has('d')) {
            (true, _) => Ok(()),
            (_, true) => fs::create_dir(&path),
            _ => OpenOptions::new()
                .create_new(true)
                .write(true)
                .open(&path)
                .map(|_| ()),
        };
        match made {
            Ok(()) => {
                print(&context.stdout, &format!("{name}\n"));
                return done(0);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return done(context.fail_on(&name, &error)),
        }
    }
    done(context.fail("no free name was found"))
}

pub fn truncate(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "cs:",
        long: &[("size", 's'), ("no-create", 'c')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let text = options.value('s').ok_or("a size is needed")?;
    let digits = text.trim_end_matches(['k', 'K', 'M', 'G']);
    let unit = match &text[digits.len()..] {
        "" => 1,
        "k" | "K" => 1 << 10,
        "M" => 1 << 20,
        _ => 1 << 30,
    };
    let size: u64 = digits
        .parse()
        .map_err(|_| format!("invalid size '{text}'"))?;
    let mut code = 0;
    for name in &options.operands {
        let path: PathBuf = context.path(name);
        let file = OpenOptions::new()
            .write(true)
            .create(!options.has('c'))
            .truncate(false)
            .open(&path);
        if let Err(error) = file.and_then(|file: File| file.set_len(size.saturating_mul(unit))) {
            code = context.fail_on(name, &error);
        }
    }
    done(code)
}

/// Bits of a mode mean nothing here; whether the files are there does.
pub fn chmod(context: &mut Context, args: &[String]) -> Answer {
    let names = args.iter().filter(|arg| !arg.starts_with('-')).skip(1);
    let mut code = 0;
    for name in names {
        if let Err(error) = files::stat(&context.path(name)) {
            code = context.fail_on(name, &error);
        }
    }
    if code == 0 {
        context.fail("files have no modes and no owners here: nothing was changed");
    }
    done(code)
}

/// For `stat` and `tar`: since 1970.
pub fn seconds(time: Option<SystemTime>) -> Duration {
    time.map(super::date::since).unwrap_or_default()
}

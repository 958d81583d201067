//! Applets about names and what is behind them: `basename`, `dirname`, `realpath`, `readlink`, `stat`, `du`, `df`.

use super::change::seconds;
use super::{Answer, date, done, ls};
use crate::context::Context;
use crate::files::{self, Kind};
use crate::io::print;
use crate::options::{Spec, parse};

/// Links that are followed before it must be a loop.
const LINKS: u32 = 40;

pub fn basename(context: &mut Context, args: &[String]) -> Answer {
    let (path, suffix) = match args {
        [path] => (path, ""),
        [path, suffix] => (path, suffix.as_str()),
        _ => return Err("a path is needed".to_owned()),
    };
    let base = match path.trim_end_matches('/') {
        "" if path.starts_with('/') => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or_default(),
    };
    let base = base
        .strip_suffix(suffix)
        .filter(|rest| !rest.is_empty())
        .unwrap_or(base);
    print(&context.stdout, &format!("{base}\n"));
    done(0)
}

pub fn dirname(context: &mut Context, args: &[String]) -> Answer {
    let [path] = args else {
        return Err("a path is needed".to_owned());
    };
    let directory = match path.trim_end_matches('/') {
        "" if path.starts_with('/') => "/",
        trimmed => match trimmed.rsplit_once('/') {
            None => ".",
            Some((head, _)) => match head.trim_end_matches('/') {
                "" => "/",
                head => head,
            },
        },
    };
    print(&context.stdout, &format!("{directory}\n"));
    done(0)
}

/// Follows every link on the way.
fn real(context: &Context, path: &str, must_exist: bool) -> Result<String, String> {
    let mut todo: Vec<String> = files::absolute(&context.cwd, path)
        .split('/')
        .rev()
        .map(str::to_owned)
        .collect();
    let mut done = String::new();
    let mut links = 0;
    while let Some(part) = todo.pop() {
        match part.as_str() {
            "" | "." => continue,
            ".." => {
                done.truncate(done.rfind('/').unwrap_or(0));
                continue;
            }
            part => {
                let next = format!("{done}/{part}");
                match files::lstat(next.as_ref()) {
                    Ok(about) if about.kind == Kind::Link => {
                        links += 1;
                        if links > LINKS {
                            return Err("Too many levels of symbolic links".to_owned());
                        }
                        let target =
                            std::fs::read_link(&next).map_err(|error| crate::io::why(&error))?;
                        let target = target.to_string_lossy().into_owned();
                        if target.starts_with('/') {
                            done.clear();
                        }
                        todo.extend(target.split('/').rev().map(str::to_owned));
                    }
                    Err(error) if must_exist || !todo.is_empty() => {
                        return Err(crate::io::why(&error));
                    }
                    _ => done = next,
                }
            }
        }
    }
    Ok(if done.is_empty() {
        "/".to_owned()
    } else {
        done
    })
}

pub fn realpath(context: &mut Context, args: &[String]) -> Answer {
    let names = args.iter().filter(|arg| !arg.starts_with('-'));
    let mut code = 0;
    for name in names {
        match real(context, name, false) {
            Ok(path) => print(&context.stdout, &format!("{path}\n")),
            Err(error) => code = context.fail(format_args!("{name}: {error}")),
        }
    }
    done(code)
}

pub fn readlink(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "fne",
        long: &[("canonicalize", 'f')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut code = 0;
    for name in &options.operands {
        let target = match options.has('f') || options.has('e') {
            true => real(context, name, options.has('e')).ok(),
            false => std::fs::read_link(context.path(name))
                .ok()
                .map(|path| path.to_string_lossy().into_owned()),
        };
        match target {
            Some(target) => print(
                &context.stdout,
                &format!("{target}{}", if options.has('n') { "" } else { "\n" }),
            ),
            None => code = 1,
        }
    }
    done(code)
}

pub fn stat(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "Lc:",
        long: &[("format", 'c'), ("dereference", 'L')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut code = 0;
    for name in &options.operands {
        let path = context.path(name);
        let about = if options.has('L') {
            files::stat(&path)
        } else {
            files::lstat(&path)
        };
        let about = match about {
            Ok(about) => about,
            Err(error) => {
                code = context.fail(format_args!(
                    "can't stat '{name}': {}",
                    crate::io::why(&error)
                ));
                continue;
            }
        };
        let kind = match about.kind {
            Kind::File if about.size == 0 => "regular empty file",
            Kind::File => "regular file",
            Kind::Directory => "directory",
            Kind::Link => "symbolic link",
            Kind::Other => "special file",
        };
        let when = |time| date::show(seconds(time), "%Y-%m-%d %H:%M:%S.%N %z");
        let Some(format) = options.value('c') else {
            let (accessed, modified) = (when(about.accessed), when(about.modified));
            let size = about.size;
            let text = format!(
                "  File: {name}\n  Size: {size:<10}\t{kind}\nAccess: {accessed}\nModify: {modified}\n"
            );
            print(&context.stdout, &text);
            continue;
        };
        let mut text = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                text.push(c);
                continue;
            }
            match chars.next() {
                Some('n') => text.push_str(name),
                Some('s') => text.push_str(&about.size.to_string()),
                Some('F') => text.push_str(kind),
                Some('Y') => text.push_str(&seconds(about.modified).as_secs().to_string()),
                Some('y') => text.push_str(&when(about.modified)),
                Some('X') => text.push_str(&seconds(about.accessed).as_secs().to_string()),
                Some('x') => text.push_str(&when(about.accessed)),
                Some('%') => text.push('%'),
                Some(other) => return Err(format!("%{other}: WASI does not tell")),
                None => text.push('%'),
            }
        }
        print(&context.stdout, &format!("{text}\n"));
    }
    done(code)
}

/// Sizes of what files hold; blocks on the disk are not known.
pub fn du(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "sahkmcd:",
        long: &[
            ("summarize", 's'),
            ("all", 'a'),
            ("human-readable", 'h'),
            ("max-depth", 'd'),
        ],
        stop: false,
    };
    let mut options = parse(&SPEC, args)?;
    if options.operands.is_empty() {
        options.operands.push(".".to_owned());
    }
    let most = match options.has('s') {
        true => 0,
        false => options.number('d')?.unwrap_or(u64::MAX),
    };
    let show = |size: u64, name: &str| {
        let text = match options.last_of("hmk") {
            Some('h') => ls::human(size),
            Some('m') => size.div_ceil(1 << 20).to_string(),
            _ => size.div_ceil(1_024).to_string(),
        };
        print(&context.stdout, &format!("{text}\t{name}\n"));
    };
    let (mut code, mut total) = (0, 0);
    for name in &options.operands {
        let mut walk = Walk {
            context,
            show: &show,
            all: options.has('a'),
            most,
            code: 0,
        };
        total += walk.visit(name, 0);
        code |= walk.code;
    }
    if options.has('c') {
        show(total, "total");
    }
    done(code)
}

struct Walk<'a> {
    context: &'a Context,
    show: &'a dyn Fn(u64, &str),
    all: bool,
    most: u64,
    code: i32,
}

impl Walk<'_> {
    fn visit(&mut self, name: &str, depth: u64) -> u64 {
        let path = self.context.path(name);
        let about = match files::lstat(&path) {
            Ok(about) => about,
            Err(error) => {
                self.code = self.context.fail_on(name, &error);
                return 0;
            }
        };
        let mut size = about.size;
        if about.is_dir() {
            for entry in files::list(&path).unwrap_or_default() {
                size += self.visit(
                    &format!("{}/{entry}", name.trim_end_matches('/')),
                    depth + 1,
                );
            }
        }
        if depth == 0 || (depth <= self.most && (about.is_dir() || self.all)) {
            (self.show)(size, name);
        }
        size
    }
}

pub fn df(context: &mut Context, _: &[String]) -> Answer {
    done(context.fail("WASI does not tell how full a volume is"))
}

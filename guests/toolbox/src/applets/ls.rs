//! `ls`. Owners and modes are unknown to WASI; long lines show `?` for them.

use std::cmp::Reverse;
use std::path::Path;

use super::{Answer, date, done};
use crate::context::Context;
use crate::files::{self, Kind, Stat};
use crate::io::print;
use crate::options::{Options, Spec, parse};

/// Directories inside one another that `-R` follows.
const DEPTH: u32 = 128;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "1aACdFhlnpRrSt",
        long: &[
            ("all", 'a'),
            ("almost-all", 'A'),
            ("directory", 'd'),
            ("recursive", 'R'),
            ("reverse", 'r'),
        ],
        stop: false,
    };
    let mut options = parse(&SPEC, args)?;
    if options.operands.is_empty() {
        options.operands.push(".".to_owned());
    }
    let ls = Ls { context, options };
    done(ls.all())
}

struct Ls<'a> {
    context: &'a Context,
    options: Options,
}

impl Ls<'_> {
    fn all(&self) -> i32 {
        let (mut plain, mut directories, mut code) = (Vec::new(), Vec::new(), 0);
        for name in &self.options.operands {
            let path = self.context.path(name);
            let follow = !self.options.has('d') && !self.options.has('l');
            match if follow {
                files::stat(&path)
            } else {
                files::lstat(&path)
            } {
                Ok(about) if about.is_dir() && !self.options.has('d') => {
                    directories.push(name.clone())
                }
                Ok(about) => plain.push((name.clone(), about)),
                Err(error) => code = self.context.fail_on(name, &error),
            }
        }
        let titles = self.options.operands.len() > 1 || self.options.has('R');
        let mut first = plain.is_empty();
        self.show(plain, Path::new(&self.context.cwd));
        directories.sort();
        for name in directories {
            code |= self.directory(&name, titles, &mut first, 0);
        }
        code
    }

    fn directory(&self, name: &str, title: bool, first: &mut bool, depth: u32) -> i32 {
        if title {
            let gap = if *first { "" } else { "\n" };
            print(&self.context.stdout, &format!("{gap}{name}:\n"));
        }
        *first = false;
        let path = self.context.path(name);
        let names = match files::list(&path) {
            Ok(names) => names,
            Err(error) => return self.context.fail_on(name, &error),
        };
        let mut entries = Vec::new();
        if self.options.has('a') {
            for dot in [".", ".."] {
                let at = self.context.path(&format!("{name}/{dot}"));
                entries.extend(files::stat(&at).ok().map(|about| (dot.to_owned(), about)));
            }
        }
        for entry in names {
            if entry.starts_with('.') && !self.options.has('a') && !self.options.has('A') {
                continue;
            }
            // Gone since it was listed.
            if let Ok(about) = files::lstat(&path.join(&entry)) {
                entries.push((entry, about));
            }
        }
        let below: Vec<String> = match self.options.has('R') && depth < DEPTH {
            true => entries
                .iter()
                .filter(|(entry, about)| about.is_dir() && entry != "." && entry != "..")
                .map(|(entry, _)| format!("{}/{entry}", name.trim_end_matches('/')))
                .collect(),
            false => Vec::new(),
        };
        self.show(entries, &path);
        below.iter().fold(0, |code, name| {
            code | self.directory(name, true, first, depth + 1)
        })
    }

    fn show(&self, mut entries: Vec<(String, Stat)>, directory: &Path) {
        match self.options.last_of("tS") {
            Some('t') => entries.sort_by_key(|(_, about)| Reverse(about.modified)),
            Some(_) => entries.sort_by_key(|(_, about)| Reverse(about.size)),
            None => entries.sort_by(|(a, _), (b, _)| a.cmp(b)),
        }
        if self.options.has('r') {
            entries.reverse();
        }
        if self.options.has('l') || self.options.has('n') {
            for (name, about) in &entries {
                print(&self.context.stdout, &self.long(name, about, directory));
            }
            return;
        }
        let names: Vec<String> = entries
            .iter()
            .map(|(name, about)| self.marked(name, about))
            .collect();
        let columns =
            self.options.has('C') || (self.context.stdout.is_terminal() && !self.options.has('1'));
        match columns {
            true => print(&self.context.stdout, &in_columns(&names, 80)),
            false => {
                for name in names {
                    print(&self.context.stdout, &format!("{name}\n"));
                }
            }
        }
    }

    fn marked(&self, name: &str, about: &Stat) -> String {
        let mark = match about.kind {
            Kind::Directory if self.options.has('F') || self.options.has('p') => "/",
            Kind::Link if self.options.has('F') => "@",
            _ => "",
        };
        format!("{name}{mark}")
    }

    fn long(&self, name: &str, about: &Stat, directory: &Path) -> String {
        let kind = match about.kind {
            Kind::File => '-',
            Kind::Directory => 'd',
            Kind::Link => 'l',
            Kind::Other => 'c',
        };
        let size = match self.options.has('h') {
            true => human(about.size),
            false => about.size.to_string(),
        };
        let when = about.modified.map_or_else(String::new, |time| {
            date::show(date::since(time), "%b %e %H:%M")
        });
        let target = match about.kind {
            Kind::Link => std::fs::read_link(directory.join(name)).ok(),
            _ => None,
        };
        let target = target.map_or_else(String::new, |target| format!(" -> {}", target.display()));
        let name = self.marked(name, about);
        format!("{kind}?????????    ? ?        ?        {size:>9} {when:>12} {name}{target}\n")
    }
}

/// `1.5K`, `12M`.
pub fn human(size: u64) -> String {
    let mut value = size as f64;
    for unit in ["", "K", "M", "G"] {
        if value < 1_024.0 {
            return match unit.is_empty() || value >= 10.0 {
                true => format!("{value:.0}{unit}"),
                false => format!("{value:.1}{unit}"),
            };
        }
        value /= 1_024.0;
    }
    format!("{value:.1}T")
}

fn in_columns(names: &[String], width: usize) -> String {
    let longest = names
        .iter()
        .map(|name| name.chars().count())
        .max()
        .unwrap_or(0)
        + 2;
    let columns = (width / longest).max(1);
    let rows = names.len().div_ceil(columns);
    let mut out = String::new();
    for row in 0..rows {
        let line: Vec<&String> = names.iter().skip(row).step_by(rows).collect();
        for (at, name) in line.iter().enumerate() {
            match at + 1 == line.len() {
                true => out.push_str(name),
                false => out.push_str(&format!("{name:<longest$}")),
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_columns_from_top_to_bottom() {
        let names: Vec<String> = ["a", "bb", "ccc", "d", "e"].map(str::to_owned).into();
        assert_eq!(in_columns(&names, 10), "a    d\nbb   e\nccc\n");
        assert_eq!(in_columns(&[], 10), "");
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(
            [human(5), human(1_536), human(20 << 20)],
            ["5", "1.5K", "20M"]
        );
    }
}

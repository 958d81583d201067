//! `find`: what is there, and commands over it.

use std::time::Duration;

use super::{Answer, date, done, run_words};
use crate::context::Context;
use crate::files::{self, Kind, Stat};
use crate::os;
use crate::shell::pattern;

/// Directories inside one another that are followed.
const DEPTH: u64 = 256;

enum Test {
    Name {
        pattern: String,
        ignore_case: bool,
        whole: bool,
    },
    Type(char),
    Empty,
    /// `+n`, `-n`, `n` in this many bytes.
    Size {
        ordering: std::cmp::Ordering,
        number: u64,
        unit: u64,
    },
    /// The same in minutes since it was modified.
    Minutes {
        ordering: std::cmp::Ordering,
        number: u64,
        unit: u64,
    },
    Newer(Option<std::time::SystemTime>),
    Prune,
    Print {
        zero: bool,
    },
    Delete,
    Exec {
        words: Vec<String>,
        all: bool,
    },
    Not(Box<Test>),
    And(Vec<Test>),
    Or(Vec<Test>),
}

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    let split = args
        .iter()
        .position(|arg| arg.starts_with('-') || arg == "(" || arg == "!")
        .unwrap_or(args.len());
    let (starts, expression) = args.split_at(split);
    let mut reader = Reader {
        context,
        words: expression,
        at: 0,
        acts: false,
        depth_first: false,
        least: 0,
        most: DEPTH,
        nested: 0,
    };
    let mut test = reader.or()?;
    if let Some(word) = reader.words.get(reader.at) {
        return Err(format!("unexpected '{word}'"));
    }
    let (acts, depth_first, least, most) =
        (reader.acts, reader.depth_first, reader.least, reader.most);
    if !acts {
        test = Test::And(vec![test, Test::Print { zero: false }]);
    }
    let mut search = Search {
        context,
        test,
        depth_first,
        least,
        most,
        collected: Vec::new(),
        code: 0,
        closed: false,
    };
    let here = [".".to_owned()];
    for start in if starts.is_empty() { &here } else { starts } {
        search.visit(start, 0);
    }
    search.finish();
    done(search.code)
}

struct Reader<'a> {
    context: &'a Context,
    words: &'a [String],
    at: usize,
    /// Whether something is done with what is found, other than printing it.
    acts: bool,
    depth_first: bool,
    least: u64,
    most: u64,
    nested: u32,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&str> {
        self.words.get(self.at).map(String::as_str)
    }

    fn value(&mut self, of: &str) -> Result<String, String> {
        let value = self.words.get(self.at).cloned();
        self.at += 1;
        value.ok_or_else(|| format!("{of} requires an argument"))
    }

    fn or(&mut self) -> Result<Test, String> {
        let mut tests = vec![self.and()?];
        while matches!(self.peek(), Some("-o" | "-or")) {
            self.at += 1;
            tests.push(self.and()?);
        }
        Ok(Test::Or(tests))
    }

    fn and(&mut self) -> Result<Test, String> {
        let mut tests = Vec::new();
        loop {
            match self.peek() {
                None | Some("-o" | "-or" | ")") => return Ok(Test::And(tests)),
                Some("-a" | "-and") => self.at += 1,
                Some(_) => tests.push(self.primary()?),
            }
        }
    }

    fn comparison(&mut self, of: &str, text: &str) -> Result<(std::cmp::Ordering, u64), String> {
        use std::cmp::Ordering::{Equal, Greater, Less};
        let (ordering, digits) = match text.as_bytes().first() {
            Some(b'+') => (Greater, &text[1..]),
            Some(b'-') => (Less, &text[1..]),
            _ => (Equal, text),
        };
        let number = digits
            .parse()
            .map_err(|_| format!("{of}: invalid number '{text}'"))?;
        Ok((ordering, number))
    }

    fn primary(&mut self) -> Result<Test, String> {
        let word = self.value("find")?;
        Ok(match word.as_str() {
            "!" | "-not" => Test::Not(Box::new(self.primary()?)),
            "(" => {
                self.nested += 1;
                if self.nested > 50 {
                    return Err("nested too deeply".to_owned());
                }
                let test = self.or()?;
                if self.value("(")? != ")" {
                    return Err("unmatched (".to_owned());
                }
                test
            }
            "-name" | "-iname" | "-path" | "-ipath" | "-wholename" => {
                let ignore_case = word.starts_with("-i");
                let pattern = self.value(&word)?;
                Test::Name {
                    pattern: if ignore_case {
                        pattern.to_lowercase()
                    } else {
                        pattern
                    },
                    ignore_case,
                    whole: !word.ends_with("name") || word == "-wholename",
                }
            }
            "-type" => match self.value(&word)?.as_str() {
                "f" => Test::Type('f'),
                "d" => Test::Type('d'),
                "l" => Test::Type('l'),
                other => return Err(format!("-type {other}: only f, d and l are known here")),
            },
            "-empty" => Test::Empty,
            "-size" => {
                let text = self.value(&word)?;
                let (digits, unit) = match text.chars().last() {
                    Some('c') => (&text[..text.len() - 1], 1),
                    Some('k') => (&text[..text.len() - 1], 1_024),
                    Some('M') => (&text[..text.len() - 1], 1 << 20),
                    Some('G') => (&text[..text.len() - 1], 1 << 30),
                    _ => (text.as_str(), 512),
                };
                let (ordering, number) = self.comparison(&word, digits)?;
                Test::Size {
                    ordering,
                    number,
                    unit,
                }
            }
            "-mmin" | "-mtime" => {
                let text = self.value(&word)?;
                let (ordering, number) = self.comparison(&word, &text)?;
                let unit = if word == "-mmin" { 1 } else { 24 * 60 };
                Test::Minutes {
                    ordering,
                    number,
                    unit,
                }
            }
            "-newer" => {
                let file = self.value(&word)?;
                let about = files::stat(&self.context.path(&file))
                    .map_err(|error| format!("{file}: {error}"))?;
                Test::Newer(about.modified)
            }
            "-maxdepth" => {
                let text = self.value(&word)?;
                self.most = text
                    .parse()
                    .map_err(|_| format!("{word}: invalid number '{text}'"))?;
                Test::And(Vec::new())
            }
            "-mindepth" => {
                let text = self.value(&word)?;
                self.least = text
                    .parse()
                    .map_err(|_| format!("{word}: invalid number '{text}'"))?;
                Test::And(Vec::new())
            }
            "-depth" => {
                self.depth_first = true;
                Test::And(Vec::new())
            }
            "-xdev" | "-mount" | "-follow" => Test::And(Vec::new()),
            "-prune" => Test::Prune,
            "-print" | "-print0" => {
                self.acts = true;
                Test::Print {
                    zero: word == "-print0",
                }
            }
            "-delete" => {
                self.acts = true;
                self.depth_first = true;
                Test::Delete
            }
            "-exec" => self.exec()?,
            other => return Err(format!("unrecognized: {other}")),
        })
    }

    fn exec(&mut self) -> Result<Test, String> {
        self.acts = true;
        let mut words = Vec::new();
        loop {
            let word = self.value("-exec")?;
            let all = word == "+" && words.last().is_some_and(|last| last == "{}");
            if all {
                words.pop();
            }
            if all || word == ";" {
                return match words.is_empty() {
                    true => Err("-exec needs a command".to_owned()),
                    false => Ok(Test::Exec { words, all }),
                };
            }
            words.push(word);
        }
    }
}

struct Search<'a> {
    context: &'a Context,
    test: Test,
    depth_first: bool,
    least: u64,
    most: u64,
    /// For `-exec … +`.
    collected: Vec<String>,
    code: i32,
    closed: bool,
}

/// Something found, and what was decided about it.
struct Found<'a> {
    name: &'a str,
    about: Stat,
    pruned: bool,
}

impl Search<'_> {
    fn visit(&mut self, name: &str, depth: u64) {
        if self.closed || depth > self.most || os::interrupted() {
            return;
        }
        let path = self.context.path(name);
        let about = match files::lstat(&path) {
            Ok(about) => about,
            Err(error) => {
                self.code = self.context.fail_on(name, &error);
                return;
            }
        };
        let directory = about.is_dir();
        let mut found = Found {
            name,
            about,
            pruned: false,
        };
        if !self.depth_first {
            self.judge(&mut found, depth);
        }
        if directory && !found.pruned && depth < self.most {
            match files::list(&path) {
                Ok(names) => {
                    for entry in names {
                        self.visit(
                            &format!("{}/{entry}", name.trim_end_matches('/')),
                            depth + 1,
                        );
                    }
                }
                Err(error) => self.code = self.context.fail_on(name, &error),
            }
        }
        if self.depth_first {
            self.judge(&mut found, depth);
        }
    }

    fn judge(&mut self, found: &mut Found, depth: u64) {
        if depth < self.least {
            return;
        }
        let test = std::mem::replace(&mut self.test, Test::And(Vec::new()));
        self.is(&test, found);
        self.test = test;
    }

    fn is(&mut self, test: &Test, found: &mut Found) -> bool {
        match test {
            Test::And(tests) => tests.iter().all(|test| self.is(test, found)),
            Test::Or(tests) => tests.iter().any(|test| self.is(test, found)),
            Test::Not(test) => !self.is(test, found),
            Test::Name {
                pattern,
                ignore_case,
                whole,
            } => {
                let base = found
                    .name
                    .trim_end_matches('/')
                    .rsplit('/')
                    .next()
                    .filter(|base| !base.is_empty());
                let name = if *whole {
                    found.name
                } else {
                    base.unwrap_or("/")
                };
                match ignore_case {
                    true => pattern::matches(pattern, &name.to_lowercase()),
                    false => pattern::matches(pattern, name),
                }
            }
            Test::Type('f') => found.about.kind == Kind::File,
            Test::Type('l') => found.about.kind == Kind::Link,
            Test::Type(_) => found.about.is_dir(),
            Test::Empty => match found.about.is_dir() {
                true => {
                    files::list(&self.context.path(found.name)).is_ok_and(|names| names.is_empty())
                }
                false => found.about.size == 0,
            },
            Test::Size {
                ordering,
                number,
                unit,
            } => found.about.size.div_ceil(*unit).cmp(number) == *ordering,
            Test::Minutes {
                ordering,
                number,
                unit,
            } => {
                let modified = found.about.modified.map(date::since).unwrap_or_default();
                let age: Duration = os::now().saturating_sub(modified);
                (age.as_secs() / 60 / unit).cmp(number) == *ordering
            }
            Test::Newer(than) => found.about.modified > *than,
            Test::Prune => {
                found.pruned = true;
                true
            }
            Test::Print { zero } => {
                let end = if *zero { "\0" } else { "\n" };
                self.closed |= self
                    .context
                    .stdout
                    .write(format!("{}{end}", found.name).as_bytes())
                    .is_err();
                true
            }
            Test::Delete => {
                let path = self.context.path(found.name);
                let removed = match found.about.is_dir() {
                    true => std::fs::remove_dir(&path),
                    false => std::fs::remove_file(&path),
                };
                if let Err(error) = &removed {
                    self.code = self.context.fail_on(found.name, error);
                }
                removed.is_ok()
            }
            Test::Exec { all: true, .. } => {
                self.collected.push(found.name.to_owned());
                true
            }
            Test::Exec { words, .. } => {
                let words: Vec<String> = words
                    .iter()
                    .map(|word| word.replace("{}", found.name))
                    .collect();
                run_words(self.context, &words) == 0
            }
        }
    }

    fn finish(&mut self) {
        fn collecting(test: &Test) -> Option<&Vec<String>> {
            match test {
                Test::Exec { words, all: true } => Some(words),
                Test::And(tests) | Test::Or(tests) => tests.iter().find_map(collecting),
                Test::Not(test) => collecting(test),
                _ => None,
            }
        }
        if let Some(words) = collecting(&self.test)
            && !self.collected.is_empty()
        {
            let words: Vec<String> = words.iter().chain(&self.collected).cloned().collect();
            self.code |= run_words(self.context, &words);
        }
    }
}

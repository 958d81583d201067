//! `cut`, `tr`, `uniq`: work on characters and columns.

use super::Answer;
use super::text::{ByLine, chomp, lined};
use crate::context::Context;
use crate::io::{Filter, Output, Started, Written};
use crate::options::{Spec, parse};
use crate::shell::pattern;

// === cut ===

pub fn cut(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        // O: no letter of its own.
        short: "b:c:d:f:sO:",
        long: &[
            ("delimiter", 'd'),
            ("fields", 'f'),
            ("characters", 'c'),
            ("output-delimiter", 'O'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let (list, by) = match (options.value('f'), options.value('c'), options.value('b')) {
        (Some(list), None, None) => (list, By::Field),
        (None, Some(list), None) => (list, By::Char),
        (None, None, Some(list)) => (list, By::Byte),
        _ => return Err("expected a list of bytes, characters, or fields".to_owned()),
    };
    let delimiter = options.value('d').unwrap_or("\t");
    if delimiter.chars().count() != 1 {
        return Err("the delimiter must be a single character".to_owned());
    }
    let cut = Cut {
        out: context.stdout.clone(),
        ranges: ranges(list)?,
        by,
        delimiter: delimiter.to_owned(),
        joined: options.value('O').unwrap_or(delimiter).to_owned(),
        only_delimited: options.has('s'),
    };
    lined(options.operands, cut)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Field,
    Char,
    Byte,
}

struct Cut {
    out: Output,
    ranges: Vec<(usize, usize)>,
    by: By,
    delimiter: String,
    joined: String,
    only_delimited: bool,
}

/// `1,3-5,7-`: counted from one, both ends included.
fn ranges(list: &str) -> Result<Vec<(usize, usize)>, String> {
    let invalid = || format!("invalid list '{list}'");
    let number = |text: &str| {
        text.parse::<usize>()
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(invalid)
    };
    list.split(',')
        .map(|part| match part.split_once('-') {
            None => number(part).map(|n| (n, n)),
            Some(("", "")) => Err(invalid()),
            Some(("", to)) => number(to).map(|to| (1, to)),
            Some((from, "")) => number(from).map(|from| (from, usize::MAX)),
            Some((from, to)) => Ok((number(from)?, number(to)?)),
        })
        .collect()
}

impl Cut {
    fn wanted(&self, number: usize) -> bool {
        self.ranges
            .iter()
            .any(|(from, to)| (*from..=*to).contains(&number))
    }
}

impl ByLine for Cut {
    fn line(&mut self, line: &[u8]) -> Written {
        let line = chomp(line);
        let mut out: Vec<u8> = match self.by {
            By::Byte => {
                let bytes = line
                    .iter()
                    .enumerate()
                    .filter(|(at, _)| self.wanted(at + 1));
                bytes.map(|(_, byte)| *byte).collect()
            }
            By::Char => {
                let text = String::from_utf8_lossy(line);
                let chars = text
                    .chars()
                    .enumerate()
                    .filter(|(at, _)| self.wanted(at + 1));
                chars.map(|(_, c)| c).collect::<String>().into_bytes()
            }
            By::Field => {
                let text = String::from_utf8_lossy(line);
                if !text.contains(&self.delimiter) {
                    if self.only_delimited {
                        return Ok(());
                    }
                    text.as_bytes().to_vec()
                } else {
                    let fields = text.split(&self.delimiter).enumerate();
                    let fields: Vec<&str> = fields
                        .filter(|(at, _)| self.wanted(at + 1))
                        .map(|(_, f)| f)
                        .collect();
                    fields.join(&self.joined).into_bytes()
                }
            }
        };
        out.push(b'\n');
        self.out.write(&out)
    }
}

// === tr ===

pub fn tr(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "cCds",
        long: &[
            ("complement", 'c'),
            ("delete", 'd'),
            ("squeeze-repeats", 's'),
        ],
        stop: true,
    };
    let options = parse(&SPEC, args)?;
    let (from, to) = match options.operands.as_slice() {
        [from] if options.has('d') || options.has('s') => (from, None),
        [from, to] => (from, Some(to)),
        _ => return Err("expected one or two sets".to_owned()),
    };
    let complement = options.has('c') || options.has('C');
    let tr = Tr {
        out: context.stdout.clone(),
        table: Table {
            from: set(from),
            to: to.map(|to| set(to)),
            complement,
            delete: options.has('d'),
            squeeze: options.has('s'),
        },
        partial: Vec::new(),
        last: None,
    };
    Ok(Started::Reads(Vec::new(), Box::new(tr)))
}

struct Table {
    from: Vec<char>,
    to: Option<Vec<char>>,
    complement: bool,
    delete: bool,
    squeeze: bool,
}

/// The characters of a set: `a-z`, `[:upper:]`, `\n`.
fn set(text: &str) -> Vec<char> {
    let text = super::printf::unescaped(text);
    let chars: Vec<char> = text.chars().collect();
    let mut set = Vec::new();
    let mut at = 0;
    while at < chars.len() {
        if chars[at..].starts_with(&['[', ':'])
            && let Some(end) = chars[at + 2..].iter().position(|c| *c == ':')
            && chars.get(at + end + 3) == Some(&']')
        {
            let name: String = chars[at + 2..at + 2 + end].iter().collect();
            set.extend(
                (0..=255_u8)
                    .map(char::from)
                    .filter(|c| c.is_ascii() && pattern::class(&name, *c)),
            );
            at += end + 4;
        } else if chars.get(at + 1) == Some(&'-')
            && let Some(last) = chars.get(at + 2)
        {
            set.extend(chars[at]..=*last);
            at += 3;
        } else {
            set.push(chars[at]);
            at += 1;
        }
    }
    set
}

impl Table {
    /// What becomes of a character: nothing if it is deleted; and whether repeats of it are squeezed.
    fn apply(&self, c: char) -> Option<(char, bool)> {
        let at = self.from.iter().position(|from| *from == c);
        let member = at.is_some() != self.complement;
        if self.delete {
            let squeezed = self.squeeze && self.to.as_ref().is_some_and(|to| to.contains(&c));
            return (!member).then_some((c, squeezed));
        }
        let Some(to) = &self.to else {
            return Some((c, self.squeeze && member));
        };
        if !member {
            return Some((c, self.squeeze && to.contains(&c)));
        }
        let at = if self.complement {
            usize::MAX
        } else {
            at.unwrap_or(usize::MAX)
        };
        let mapped = to.get(at).or(to.last()).copied().unwrap_or(c);
        Some((mapped, self.squeeze))
    }
}

struct Tr {
    out: Output,
    table: Table,
    /// The beginning of a character whose end has not come.
    partial: Vec<u8>,
    last: Option<char>,
}

impl Filter for Tr {
    fn push(&mut self, bytes: &[u8]) -> Written {
        self.partial.extend_from_slice(bytes);
        let whole = match std::str::from_utf8(&self.partial) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.partial.len(),
        };
        let rest = self.partial.split_off(whole);
        let bytes = std::mem::replace(&mut self.partial, rest);
        let mut out = String::with_capacity(bytes.len());
        for c in String::from_utf8_lossy(&bytes).chars() {
            let Some((c, squeezed)) = self.table.apply(c) else {
                continue;
            };
            if squeezed && self.last == Some(c) {
                continue;
            }
            self.last = Some(c);
            out.push(c);
        }
        self.out.write(out.as_bytes())
    }

    fn end(&mut self) -> i32 {
        0
    }
}

// === uniq ===

pub fn uniq(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "cdui",
        long: &[
            ("count", 'c'),
            ("repeated", 'd'),
            ("unique", 'u'),
            ("ignore-case", 'i'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let mut files = options.operands.clone();
    let out = match files.len() {
        0 | 1 => context.stdout.clone(),
        2 => crate::files::create(&context.path(&files.remove(1)), false)
            .map_err(|error| error.to_string())?,
        _ => return Err("too many files".to_owned()),
    };
    let uniq = Uniq {
        out,
        counted: options.has('c'),
        repeated: options.has('d'),
        unique: options.has('u'),
        ignore_case: options.has('i'),
        last: None,
    };
    lined(files, uniq)
}

struct Uniq {
    out: Output,
    counted: bool,
    repeated: bool,
    unique: bool,
    ignore_case: bool,
    last: Option<(Vec<u8>, u64)>,
}

impl Uniq {
    fn show(&mut self) -> Written {
        let Some((line, count)) = self.last.take() else {
            return Ok(());
        };
        if (self.repeated && count < 2) || (self.unique && count > 1) {
            return Ok(());
        }
        if self.counted {
            self.out.write(format!("{count:>7} ").as_bytes())?;
        }
        self.out.write(&line)?;
        self.out.write(b"\n")
    }
}

impl ByLine for Uniq {
    fn line(&mut self, line: &[u8]) -> Written {
        let line = chomp(line);
        if let Some((last, count)) = &mut self.last {
            let same = match self.ignore_case {
                true => last.eq_ignore_ascii_case(line),
                false => last == line,
            };
            if same {
                *count += 1;
                return Ok(());
            }
        }
        self.show()?;
        self.last = Some((line.to_vec(), 1));
        Ok(())
    }

    fn end(&mut self) -> i32 {
        let _ = self.show();
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_ranges_are_read() {
        assert_eq!(
            ranges("1,3-5,7-"),
            Ok(vec![(1, 1), (3, 5), (7, usize::MAX)])
        );
        assert!(ranges("0").is_err() && ranges("a").is_err() && ranges("-").is_err());
    }

    #[test]
    fn sets_have_ranges_and_classes() {
        assert_eq!(set("a-c\\n"), ['a', 'b', 'c', '\n']);
        assert_eq!(set("[:digit:]").len(), 10);
        assert_eq!(set("a-"), ['a', '-']);
    }

    #[test]
    fn characters_are_mapped_deleted_and_squeezed() {
        let table = |from: &str, to: Option<&str>, complement, delete, squeeze| Table {
            from: set(from),
            to: to.map(set),
            complement,
            delete,
            squeeze,
        };
        assert_eq!(
            table("a-z", Some("A-Z"), false, false, false).apply('c'),
            Some(('C', false))
        );
        assert_eq!(
            table("abc", Some("x"), false, false, false).apply('c'),
            Some(('x', false))
        );
        assert_eq!(table("0-9", None, true, true, false).apply('c'), None);
        assert_eq!(
            table(" ", None, false, false, true).apply(' '),
            Some((' ', true))
        );
    }
}

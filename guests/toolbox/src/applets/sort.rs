//! `sort`.

use std::cmp::Ordering;

use super::Answer;
use super::text::{ByLine, chomp, lined};
use crate::context::Context;
use crate::io::{Output, Written, print};
use crate::options::{Spec, parse};

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "bcdfhik:no:rst:uVz",
        long: &[
            ("numeric-sort", 'n'),
            ("reverse", 'r'),
            ("unique", 'u'),
            ("key", 'k'),
            ("field-separator", 't'),
            ("ignore-case", 'f'),
            ("human-numeric-sort", 'h'),
            ("version-sort", 'V'),
            ("check", 'c'),
        ],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let global = Order::of(|letter| options.has(letter));
    let separator = match options.value('t').map(|t| t.chars().collect::<Vec<_>>()) {
        None => None,
        Some(chars) if chars.len() == 1 => Some(chars[0]),
        Some(_) => return Err("the separator must be a single character".to_owned()),
    };
    let keys = options
        .values('k')
        .map(|key| Key::read(key, global))
        .collect::<Result<Vec<_>, _>>()?;
    let out = match options.value('o') {
        // Opened at the end: it may be one of the inputs.
        Some(name) => Err(context.path(name)),
        None => Ok(context.stdout.clone()),
    };
    let sort = Sort {
        out,
        errors: context.stderr.clone(),
        rule: Rule {
            keys,
            separator,
            global,
        },
        unique: options.has('u'),
        check: options.has('c'),
        lines: Vec::new(),
    };
    lined(options.operands, sort)
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Order {
    numeric: bool,
    human: bool,
    version: bool,
    reverse: bool,
    fold: bool,
    blanks: bool,
    dictionary: bool,
}

impl Order {
    fn of(has: impl Fn(char) -> bool) -> Self {
        Self {
            numeric: has('n'),
            human: has('h'),
            version: has('V'),
            reverse: has('r'),
            fold: has('f'),
            blanks: has('b'),
            dictionary: has('d'),
        }
    }
}

/// `2,3n`: which fields, and in which order.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    from: (usize, usize),
    to: Option<(usize, usize)>,
    order: Order,
}

impl Key {
    fn read(text: &str, global: Order) -> Result<Self, String> {
        let invalid = || format!("invalid key '{text}'");
        let letters: String = text.chars().filter(|c| c.is_ascii_alphabetic()).collect();
        if letters.chars().any(|letter| !"bdfhinrV".contains(letter)) {
            return Err(invalid());
        }
        let position = |part: &str| -> Result<(usize, usize), String> {
            let digits = part.trim_end_matches(|c: char| c.is_ascii_alphabetic());
            let (field, at) = digits.split_once('.').unwrap_or((digits, "0"));
            Ok((
                field.parse().map_err(|_| invalid())?,
                at.parse().map_err(|_| invalid())?,
            ))
        };
        let (from, to) = match text.split_once(',') {
            Some((from, to)) => (position(from)?, Some(position(to)?)),
            None => (position(text)?, None),
        };
        if from.0 == 0 {
            return Err(invalid());
        }
        let order = match letters.as_str() {
            "" => global,
            letters => Order::of(|letter| letters.contains(letter)),
        };
        Ok(Self { from, to, order })
    }

    fn of<'a>(&self, line: &'a str, separator: Option<char>) -> &'a str {
        let fields = fields(line, separator);
        let start = match fields.get(self.from.0 - 1) {
            Some((start, end)) => (start + self.from.1.saturating_sub(1)).min(*end),
            None => return "",
        };
        let end = match self.to {
            None => line.len(),
            Some((field, at)) => match fields.get(field.wrapping_sub(1)) {
                Some((_, end)) if at == 0 => *end,
                Some((start, end)) => (start + at).min(*end),
                None => line.len(),
            },
        };
        line.get(start..end.max(start)).unwrap_or_default()
    }
}

/// Where fields begin and end; without a separator a field begins with the blanks before it.
fn fields(line: &str, separator: Option<char>) -> Vec<(usize, usize)> {
    let mut fields = Vec::new();
    let mut start = 0;
    if let Some(separator) = separator {
        for (at, _) in line.match_indices(separator) {
            fields.push((start, at));
            start = at + separator.len_utf8();
        }
        fields.push((start, line.len()));
        return fields;
    }
    let mut in_text = false;
    for (at, c) in line.char_indices() {
        let blank = c == ' ' || c == '\t';
        if blank && in_text {
            fields.push((start, at));
            start = at;
        }
        in_text = !blank;
    }
    fields.push((start, line.len()));
    fields
}

struct Rule {
    keys: Vec<Key>,
    separator: Option<char>,
    global: Order,
}

impl Rule {
    /// By the keys alone: what `-u` calls equal.
    fn by_keys(&self, a: &str, b: &str) -> Ordering {
        if self.keys.is_empty() {
            return compare(a, b, self.global);
        }
        let orders = self.keys.iter().map(|key| {
            compare(
                key.of(a, self.separator),
                key.of(b, self.separator),
                key.order,
            )
        });
        orders.fold(Ordering::Equal, Ordering::then)
    }

    fn compare(&self, a: &str, b: &str) -> Ordering {
        let whole = if self.global.reverse {
            b.cmp(a)
        } else {
            a.cmp(b)
        };
        self.by_keys(a, b).then(whole)
    }
}

fn compare(a: &str, b: &str, order: Order) -> Ordering {
    let (a, b) = match order.blanks || order.numeric {
        true => (a.trim_start(), b.trim_start()),
        false => (a, b),
    };
    let ordering = if order.numeric {
        number(a).total_cmp(&number(b))
    } else if order.human {
        human(a).total_cmp(&human(b))
    } else if order.version {
        version(a, b)
    } else if order.fold || order.dictionary {
        let key = |text: &str| -> String {
            let kept = text
                .chars()
                .filter(|c| !order.dictionary || c.is_alphanumeric() || c.is_whitespace());
            kept.map(|c| {
                if order.fold {
                    c.to_ascii_uppercase()
                } else {
                    c
                }
            })
            .collect()
        };
        key(a).cmp(&key(b))
    } else {
        a.cmp(b)
    };
    if order.reverse {
        ordering.reverse()
    } else {
        ordering
    }
}

/// The number a text begins with, or nothing.
fn number(text: &str) -> f64 {
    let text = text.trim_start();
    let mut dotted = false;
    let end = text
        .char_indices()
        .find(|(at, c)| match c {
            '-' => *at > 0,
            '.' => std::mem::replace(&mut dotted, true),
            c => !c.is_ascii_digit(),
        })
        .map_or(text.len(), |(at, _)| at);
    text[..end].parse().unwrap_or(0.0)
}

fn human(text: &str) -> f64 {
    let text = text.trim();
    let unit = text
        .trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == '-')
        .chars()
        .next();
    let power = unit
        .and_then(|unit| "KMGTPE".find(unit.to_ascii_uppercase()))
        .map_or(0, |at| at + 1);
    number(text) * 1_024_f64.powi(power as i32)
}

/// Digits compare as numbers.
fn version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let head = |text: &str| {
            text.find(|c: char| c.is_ascii_digit())
                .unwrap_or(text.len())
        };
        let (text_a, text_b) = (&a[..head(a)], &b[..head(b)]);
        if text_a != text_b {
            return text_a.cmp(text_b);
        }
        (a, b) = (&a[text_a.len()..], &b[text_b.len()..]);
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        let digits = |text: &str| {
            text.find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len())
        };
        let (digits_a, digits_b) = (&a[..digits(a)], &b[..digits(b)]);
        (a, b) = (&a[digits_a.len()..], &b[digits_b.len()..]);
        let (short_a, short_b) = (
            digits_a.trim_start_matches('0'),
            digits_b.trim_start_matches('0'),
        );
        let ordering = short_a.len().cmp(&short_b.len()).then(short_a.cmp(short_b));
        if ordering != Ordering::Equal {
            return ordering;
        }
    }
}

struct Sort {
    out: Result<Output, std::path::PathBuf>,
    errors: Output,
    rule: Rule,
    unique: bool,
    check: bool,
    lines: Vec<String>,
}

impl ByLine for Sort {
    fn line(&mut self, line: &[u8]) -> Written {
        self.lines
            .push(String::from_utf8_lossy(chomp(line)).into_owned());
        Ok(())
    }

    fn end(&mut self) -> i32 {
        let rule = &self.rule;
        if self.check {
            let wrong = self
                .lines
                .windows(2)
                .find(|pair| rule.compare(&pair[0], &pair[1]) == Ordering::Greater);
            return match wrong {
                Some(pair) => {
                    print(&self.errors, &format!("sort: disorder: {}\n", pair[1]));
                    1
                }
                None => 0,
            };
        }
        self.lines.sort_by(|a, b| rule.compare(a, b));
        if self.unique {
            self.lines
                .dedup_by(|b, a| rule.by_keys(a, b) == Ordering::Equal);
        }
        let out = match &self.out {
            Ok(out) => Ok(out.clone()),
            Err(path) => crate::files::create(path, false),
        };
        match out {
            Ok(out) => {
                for line in &self.lines {
                    if out.write(format!("{line}\n").as_bytes()).is_err() {
                        break;
                    }
                }
                0
            }
            Err(error) => {
                print(
                    &self.errors,
                    &format!("sort: can't write: {}\n", crate::io::why(&error)),
                );
                2
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sorted(
        letters: &str,
        keys: &[&str],
        separator: Option<char>,
        lines: &[&str],
    ) -> Vec<String> {
        let global = Order::of(|letter| letters.contains(letter));
        let keys = keys
            .iter()
            .map(|key| Key::read(key, global).unwrap())
            .collect();
        let rule = Rule {
            keys,
            separator,
            global,
        };
        let mut lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        lines.sort_by(|a, b| rule.compare(a, b));
        lines
    }

    #[test]
    fn lines_are_ordered_as_asked() {
        assert_eq!(sorted("", &[], None, &["b", "a", "B"]), ["B", "a", "b"]);
        assert_eq!(
            sorted("n", &[], None, &["10", "9", "x", "-1.5"]),
            ["-1.5", "x", "9", "10"]
        );
        assert_eq!(sorted("nr", &[], None, &["1", "3", "2"]), ["3", "2", "1"]);
        assert_eq!(sorted("", &["2n"], None, &["a 10", "b 9"]), ["b 9", "a 10"]);
        assert_eq!(
            sorted("", &["2,2", "1,1r"], Some(':'), &["a:x", "b:x", "c:a"]),
            ["c:a", "b:x", "a:x"]
        );
        assert_eq!(
            sorted("h", &[], None, &["1G", "2K", "3M"]),
            ["2K", "3M", "1G"]
        );
        assert_eq!(
            sorted("V", &[], None, &["v1.10", "v1.9", "v1.9.1"]),
            ["v1.9", "v1.9.1", "v1.10"]
        );
    }
}

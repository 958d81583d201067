//! `xargs`.

use super::text::chomp;
use super::{Answer, run_words};
use crate::context::Context;
use crate::io::{Filter, Input, Started, Written, print};
use crate::options::{Spec, parse};
use crate::os;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "0n:I:rtd:L:P:",
        long: &[
            ("null", '0'),
            ("max-args", 'n'),
            ("no-run-if-empty", 'r'),
            ("replace", 'I'),
        ],
        stop: true,
    };
    let options = parse(&SPEC, args)?;
    let mut words = options.operands.clone();
    if words.is_empty() {
        words.push("echo".to_owned());
    }
    let mut commands = context.clone();
    commands.stdin = Input::nothing();
    let replace = options.value('I').map(str::to_owned);
    let by = match (options.has('0'), options.value('d'), &replace) {
        (true, ..) => Some('\0'),
        (_, Some(text), _) => super::printf::unescaped(text).chars().next(),
        (_, _, Some(_)) => Some('\n'),
        _ => None,
    };
    let xargs = Xargs {
        context: commands,
        words,
        by,
        replace,
        most: options.number('n')?.unwrap_or(u64::MAX).max(1) as usize,
        lines: options.number('L')?.map(|lines| lines.max(1) as usize),
        even_empty: !options.has('r'),
        trace: options.has('t'),
        input: Vec::new(),
    };
    Ok(Started::Reads(Vec::new(), Box::new(xargs)))
}

struct Xargs {
    context: Context,
    words: Vec<String>,
    /// What separates; nothing: blanks, with quotes.
    by: Option<char>,
    replace: Option<String>,
    most: usize,
    /// So many lines that are not empty make a command.
    lines: Option<usize>,
    even_empty: bool,
    trace: bool,
    input: Vec<u8>,
}

/// The words of every so many lines.
fn by_lines(text: &str, most: usize) -> Result<Vec<Vec<String>>, String> {
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let lines: Vec<&str> = lines.collect();
    lines
        .chunks(most)
        .map(|some| words(&some.join("\n")))
        .collect()
}

/// Words separated by blanks, with quotes and backslashes.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        None => return Err(format!("unmatched {c}")),
                        Some(end) if end == c => break,
                        Some(quoted) => word.push(quoted),
                    }
                }
            }
            '\\' => word.get_or_insert_default().extend(chars.next()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

impl Filter for Xargs {
    fn push(&mut self, bytes: &[u8]) -> Written {
        self.input.extend_from_slice(bytes);
        Ok(())
    }

    fn end(&mut self) -> i32 {
        let text = String::from_utf8_lossy(chomp(&self.input)).into_owned();
        let items = match (self.by, self.lines) {
            (None, None) => words(&text).map(|words| (words, Vec::new())),
            (None, Some(most)) => by_lines(&text, most).map(|groups| (Vec::new(), groups)),
            (Some(by), _) => {
                let items = text.split(by).filter(|item| !item.is_empty());
                Ok((items.map(str::to_owned).collect(), Vec::new()))
            }
        };
        let (items, groups) = match items {
            Ok(items) => items,
            Err(error) => return self.context.fail(error),
        };
        let commands: Vec<Vec<String>> = match &self.replace {
            _ if !groups.is_empty() => {
                let with = |group: &Vec<String>| self.words.iter().chain(group).cloned().collect();
                groups.iter().map(with).collect()
            }
            Some(mark) => {
                let put = |item: &String| {
                    self.words
                        .iter()
                        .map(|word| word.replace(mark, item.trim_start()))
                        .collect()
                };
                items.iter().map(put).collect()
            }
            None if items.is_empty() && self.even_empty => vec![self.words.clone()],
            None => items
                .chunks(self.most)
                .map(|some| self.words.iter().chain(some).cloned().collect())
                .collect(),
        };
        let mut code = 0;
        for command in commands {
            if self.trace {
                print(&self.context.stderr, &format!("{}\n", command.join(" ")));
            }
            code = match run_words(&self.context, &command) {
                0 => code,
                126 | 127 => return 127,
                255 => return 124,
                _ => 123,
            };
            if os::interrupted() {
                return 130;
            }
        }
        code
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xargs_knows_quotes() {
        assert_eq!(
            words("a 'b c' d\\ e \"f\"g\n h"),
            Ok(["a", "b c", "d e", "fg", "h"].map(str::to_owned).into())
        );
        assert!(words("'a").is_err());
        let lines = by_lines("a b\n\nc\n d\n", 2).unwrap();
        assert_eq!(lines, [vec!["a", "b", "c"], vec!["d"]]);
    }
}

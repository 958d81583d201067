//! Reads a sed script: commands in a row, groups and labels turned into places to go on.

use std::collections::HashMap;

use crate::io::Output;
use crate::regex::{Flavor, Regex};

pub struct Command {
    pub selection: Selection,
    pub action: Action,
    /// For `{`: where to go on if it is not selected.
    pub skip_to: Option<usize>,
}

#[derive(Default)]
pub struct Selection {
    pub from: Option<Address>,
    pub to: Option<Address>,
    pub negated: bool,
}

pub enum Address {
    Line(u64),
    Last,
    Match(Regex),
    Step { first: u64, step: u64 },
    Plus(u64),
}

pub enum Action {
    /// `{`, `}` and labels.
    Nothing,
    Jump(usize),
    JumpIfSubstituted(usize),
    Substitute(Substitution),
    Translate(Vec<char>, Vec<char>),
    Delete,
    DeleteFirst,
    Print,
    PrintFirst,
    Number,
    Append(String),
    Insert(String),
    Change(String),
    Quit {
        print: bool,
        code: i32,
    },
    Next {
        join: bool,
    },
    Hold {
        append: bool,
    },
    Get {
        append: bool,
    },
    Exchange,
}

pub struct Substitution {
    regex: Regex,
    with: Vec<Piece>,
    all: bool,
    /// The first match that is replaced.
    nth: usize,
    pub print: bool,
    pub file: Option<Output>,
}

/// A piece of what is put in.
#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
    /// `\U`, `\L`, `\u`, `\l`, `\E`.
    Case(char),
}

impl Command {
    pub fn wants_more(&self) -> bool {
        matches!(self.action, Action::Next { .. })
    }

    pub fn wants_last(&self) -> bool {
        let addresses = [&self.selection.from, &self.selection.to];
        addresses
            .iter()
            .any(|address| matches!(address, Some(Address::Last)))
    }
}

impl Substitution {
    /// The text after it, if anything matched.
    pub fn apply(&self, text: &str) -> Option<String> {
        let mut out = String::new();
        let mut from = 0;
        let mut changed = false;
        for (number, found) in self.regex.inner().captures_iter(text).enumerate() {
            if number + 1 < self.nth {
                continue;
            }
            let whole = found.get(0)?;
            out.push_str(&text[from..whole.start()]);
            self.put(&found, &mut out);
            from = whole.end();
            changed = true;
            if !self.all {
                break;
            }
        }
        changed.then(|| out + &text[from..])
    }

    fn put(&self, found: &regex_lite::Captures, out: &mut String) {
        let (mut all, mut next) = ('E', None);
        for piece in &self.with {
            let text = match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Group(number) => found.get(*number).map_or("", |group| group.as_str()),
                Piece::Case(case @ ('u' | 'l')) => {
                    next = Some(*case);
                    continue;
                }
                Piece::Case(case) => {
                    all = *case;
                    continue;
                }
            };
            let mut text = match all {
                'U' => text.to_uppercase(),
                'L' => text.to_lowercase(),
                _ => text.to_owned(),
            };
            if let Some(first) = text.chars().next()
                && let Some(case) = next.take()
            {
                let rest = text.split_off(first.len_utf8());
                text = if case == 'u' {
                    first.to_uppercase().to_string()
                } else {
                    first.to_lowercase().to_string()
                };
                text.push_str(&rest);
            }
            out.push_str(&text);
        }
    }
}

/// Reads the whole script.
pub fn parse(text: &str, flavor: Flavor) -> Result<Vec<Command>, String> {
    let mut script = Script {
        chars: text.chars().collect(),
        at: 0,
        flavor,
        commands: Vec::new(),
        open: Vec::new(),
        labels: HashMap::new(),
        jumps: Vec::new(),
    };
    script.read()?;
    if !script.open.is_empty() {
        return Err("unmatched {".to_owned());
    }
    let end = script.commands.len();
    for (at, label) in std::mem::take(&mut script.jumps) {
        let to = match label.as_str() {
            "" => end,
            label => *script
                .labels
                .get(label)
                .ok_or_else(|| format!("no label '{label}'"))?,
        };
        script.commands[at].action = match script.commands[at].action {
            Action::Jump(_) => Action::Jump(to),
            _ => Action::JumpIfSubstituted(to),
        };
    }
    Ok(script.commands)
}

struct Script {
    chars: Vec<char>,
    at: usize,
    flavor: Flavor,
    commands: Vec<Command>,
    /// Groups that are not closed yet.
    open: Vec<usize>,
    labels: HashMap<String, usize>,
    jumps: Vec<(usize, String)>,
}

impl Script {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn skip(&mut self, chars: &str) {
        while self.peek().is_some_and(|c| chars.contains(c)) {
            self.at += 1;
        }
    }

    fn read(&mut self) -> Result<(), String> {
        loop {
            self.skip(" \t\n;");
            if self.peek().is_none() {
                return Ok(());
            }
            if self.peek() == Some('#') {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
                continue;
            }
            let selection = self.selection()?;
            self.command(selection)?;
        }
    }

    fn selection(&mut self) -> Result<Selection, String> {
        let mut selection = Selection {
            from: self.address(false)?,
            ..Selection::default()
        };
        self.skip(" \t");
        if selection.from.is_some() && self.peek() == Some(',') {
            self.at += 1;
            self.skip(" \t");
            selection.to = self.address(true)?;
            if selection.to.is_none() {
                return Err("unexpected ','".to_owned());
            }
        }
        self.skip(" \t");
        while self.peek() == Some('!') {
            self.at += 1;
            selection.negated = true;
            self.skip(" \t");
        }
        Ok(selection)
    }

    fn number(&mut self) -> Option<u64> {
        let start = self.at;
        while self.peek().is_some_and(|c| c.is_ascii_digit()) {
            self.at += 1;
        }
        self.chars[start..self.at]
            .iter()
            .collect::<String>()
            .parse()
            .ok()
    }

    fn address(&mut self, second: bool) -> Result<Option<Address>, String> {
        Ok(Some(match self.peek() {
            Some('$') => {
                self.at += 1;
                Address::Last
            }
            Some('+') if second => {
                self.at += 1;
                Address::Plus(self.number().ok_or("a number is needed after '+'")?)
            }
            Some(c) if c.is_ascii_digit() => {
                let first = self.number().ok_or("the line number is too large")?;
                if self.peek() == Some('~') {
                    self.at += 1;
                    let step = self.number().ok_or("a number is needed after '~'")?;
                    return Ok(Some(Address::Step { first, step }));
                }
                Address::Line(first)
            }
            Some(c @ ('/' | '\\')) => {
                self.at += 1;
                let delimiter = match c {
                    '/' => '/',
                    _ => self.take().ok_or("unterminated address")?,
                };
                let pattern = self
                    .delimited(delimiter, true)
                    .ok_or("unterminated address")?;
                let ignore_case = self.peek() == Some('I');
                self.at += usize::from(ignore_case);
                Address::Match(Regex::new(&pattern, self.flavor, ignore_case)?)
            }
            _ => return Ok(None),
        }))
    }

    /// Up to the delimiter; escaped ones lose their backslash. In a pattern, sets may hold the delimiter.
    fn delimited(&mut self, delimiter: char, pattern: bool) -> Option<String> {
        let mut text = String::new();
        let mut set = false;
        loop {
            let c = self.take()?;
            match c {
                '\\' => {
                    let escaped = self.take()?;
                    if escaped != delimiter {
                        text.push('\\');
                    }
                    text.push(escaped);
                }
                '[' if pattern && !set => {
                    set = true;
                    text.push(c);
                    // A bracket that comes first belongs to the set.
                    if self.peek() == Some('^') {
                        text.extend(self.take());
                    }
                    if self.peek() == Some(']') {
                        text.extend(self.take());
                    }
                }
                '[' if set && self.peek() == Some(':') => {
                    text.push(c);
                    while let Some(c) = self.take() {
                        text.push(c);
                        if c == ']' {
                            break;
                        }
                    }
                }
                ']' if set => {
                    set = false;
                    text.push(c);
                }
                c if c == delimiter && !set => return Some(text),
                c => text.push(c),
            }
        }
    }

    fn command(&mut self, selection: Selection) -> Result<(), String> {
        let at = self.commands.len();
        let letter = self.take().ok_or("missing command")?;
        let mut ends = true;
        let action = match letter {
            '{' => {
                self.open.push(at);
                ends = false;
                Action::Nothing
            }
            '}' => {
                let open = self.open.pop().ok_or("unexpected '}'")?;
                self.commands[open].skip_to = Some(at + 1);
                Action::Nothing
            }
            ':' => {
                let label = self.rest_of_line("; \t\n");
                if label.is_empty() {
                    return Err("a label is needed after ':'".to_owned());
                }
                self.labels.insert(label, at);
                Action::Nothing
            }
            'b' | 't' => {
                let label = self.rest_of_line("; \t\n}");
                self.jumps.push((at, label));
                if letter == 'b' {
                    Action::Jump(0)
                } else {
                    Action::JumpIfSubstituted(0)
                }
            }
            's' => self.substitution()?,
            'y' => self.translation()?,
            'd' => Action::Delete,
            'D' => Action::DeleteFirst,
            'p' => Action::Print,
            'P' => Action::PrintFirst,
            '=' => Action::Number,
            'a' => Action::Append(self.text()),
            'i' => Action::Insert(self.text()),
            'c' => Action::Change(self.text()),
            'q' | 'Q' => {
                self.skip(" \t");
                let code = self.number().unwrap_or(0) as i32;
                Action::Quit {
                    print: letter == 'q',
                    code,
                }
            }
            'n' => Action::Next { join: false },
            'N' => Action::Next { join: true },
            'h' => Action::Hold { append: false },
            'H' => Action::Hold { append: true },
            'g' => Action::Get { append: false },
            'G' => Action::Get { append: true },
            'x' => Action::Exchange,
            other => return Err(format!("unsupported command '{other}'")),
        };
        if ends {
            self.skip(" \t");
            if !matches!(self.peek(), None | Some(';' | '\n' | '}' | '#')) {
                return Err(format!("extra characters after command '{letter}'"));
            }
        }
        let skip_to = None;
        self.commands.push(Command {
            selection,
            action,
            skip_to,
        });
        Ok(())
    }

    fn rest_of_line(&mut self, ends: &str) -> String {
        self.skip(" \t");
        let start = self.at;
        while self.peek().is_some_and(|c| !ends.contains(c)) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    /// What `a`, `i` and `c` put: the rest of the line, further lines after a backslash.
    fn text(&mut self) -> String {
        self.skip(" \t");
        if self.peek() == Some('\\') {
            self.at += 1;
            self.skip(" \t");
            if self.peek() == Some('\n') {
                self.at += 1;
            }
        }
        let mut text = String::new();
        while let Some(c) = self.take() {
            match c {
                '\n' => break,
                '\\' => text.extend(self.take()),
                c => text.push(c),
            }
        }
        text
    }

    fn translation(&mut self) -> Result<Action, String> {
        let delimiter = self.take().ok_or("unterminated y command")?;
        let from = self
            .delimited(delimiter, false)
            .ok_or("unterminated y command")?;
        let to = self
            .delimited(delimiter, false)
            .ok_or("unterminated y command")?;
        let chars = |text: &str| {
            crate::applets::printf::unescaped(text)
                .chars()
                .collect::<Vec<_>>()
        };
        let (from, to) = (chars(&from), chars(&to));
        if from.len() != to.len() {
            return Err("strings for y command are different lengths".to_owned());
        }
        Ok(Action::Translate(from, to))
    }

    fn substitution(&mut self) -> Result<Action, String> {
        let delimiter = self.take().ok_or("unterminated s command")?;
        let pattern = self
            .delimited(delimiter, true)
            .ok_or("unterminated s command")?;
        let with = self
            .delimited(delimiter, false)
            .ok_or("unterminated s command")?;
        let (mut all, mut nth, mut print, mut ignore_case) = (false, 1, false, false);
        loop {
            match self.peek() {
                Some('g') => all = true,
                Some('p') => print = true,
                Some('i' | 'I') => ignore_case = true,
                Some(c) if c.is_ascii_digit() => {
                    nth = self
                        .number()
                        .filter(|n| *n > 0)
                        .ok_or("bad number in s command")? as usize;
                    continue;
                }
                Some(c) if c.is_ascii_alphabetic() => {
                    return Err(format!("unknown option to s: '{c}'"));
                }
                _ => break,
            }
            self.at += 1;
        }
        Ok(Action::Substitute(Substitution {
            regex: Regex::new(&pattern, self.flavor, ignore_case)?,
            with: pieces(&with),
            all,
            nth,
            print,
            file: None,
        }))
    }
}

/// `&`, `\1`, `\n`, `\U` in what is put in.
fn pieces(with: &str) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut text = String::new();
    let mut chars = with.chars();
    while let Some(c) = chars.next() {
        let piece = match c {
            '&' => Piece::Group(0),
            '\\' => match chars.next() {
                Some(digit @ '0'..='9') => Piece::Group(digit as usize - '0' as usize),
                Some(case @ ('U' | 'L' | 'u' | 'l' | 'E')) => Piece::Case(case),
                Some('n') => {
                    text.push('\n');
                    continue;
                }
                Some('t') => {
                    text.push('\t');
                    continue;
                }
                Some(c) => {
                    text.push(c);
                    continue;
                }
                None => continue,
            },
            c => {
                text.push(c);
                continue;
            }
        };
        if !text.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut text)));
        }
        pieces.push(piece);
    }
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
    pieces
}

//! Characters to tokens. A word keeps its quoting; nested commands are parsed where they stand.

use std::cell::OnceCell;
use std::rc::Rc;

use super::ast::{Param, ParamOp, Part, Word};
use super::parse::Parser;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Word(Word),
    /// A number directly before a redirection.
    Io(u32),
    Op(&'static str),
    Newline,
    End,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyntaxError {
    pub message: String,
    /// More input could make it right.
    pub incomplete: bool,
}

pub type Lexed<T> = Result<T, SyntaxError>;

pub fn wrong<T>(message: impl Into<String>) -> Lexed<T> {
    Err(SyntaxError {
        message: message.into(),
        incomplete: false,
    })
}

fn unfinished<T>(what: &str) -> Lexed<T> {
    Err(SyntaxError {
        message: format!("syntax error: unterminated {what}"),
        incomplete: true,
    })
}

/// More than any script needs, less than the stack holds.
const DEPTH: u32 = 40;

/// Longest first.
const OPERATORS: &[&str] = &[
    "&>>", "<<-", "<<<", "&&", "||", ";;", "<<", ">>", "<&", ">&", "<>", ">|", "&>", "&", "|", ";",
    "<", ">", "(", ")",
];

/// A here-document whose body is still to come.
struct Pending {
    delimiter: String,
    literal: bool,
    strip_tabs: bool,
    body: Rc<OnceCell<Word>>,
}

pub struct Lexer {
    text: Rc<[char]>,
    pub at: usize,
    pending: Vec<Pending>,
    /// Commands, parameters and quotes inside one another.
    depth: u32,
}

/// Where a word ends, and what quotes mean in it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Blank or operator.
    Blank,
    /// The `}` of a parameter; inside double quotes, single quotes are ordinary.
    Brace { quoted: bool },
    /// The `/` between the two words of a replacement, or the `}`.
    Slash,
    /// The `:` between offset and length, or the `}`.
    Colon,
}

impl Lexer {
    pub fn new(text: &str) -> Self {
        Self::inside(text.chars().collect(), 0, 0)
    }

    pub fn inside(text: Rc<[char]>, at: usize, depth: u32) -> Self {
        Self {
            text,
            at,
            pending: Vec::new(),
            depth,
        }
    }

    /// One level further in: a script cannot exhaust the stack.
    pub fn enter(&mut self) -> Lexed<()> {
        self.depth += 1;
        if self.depth > DEPTH {
            return wrong("syntax error: nested too deeply");
        }
        Ok(())
    }

    pub fn exit(&mut self) {
        self.depth -= 1;
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn starts_with(&self, text: &str) -> bool {
        text.chars()
            .enumerate()
            .all(|(i, c)| self.text.get(self.at + i) == Some(&c))
    }

    fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r') => self.at += 1,
                Some('\\') if self.starts_with("\\\n") => self.at += 2,
                Some('#') => {
                    while self.peek().is_some_and(|c| c != '\n') {
                        self.at += 1;
                    }
                }
                _ => return,
            }
        }
    }

    pub fn next(&mut self) -> Lexed<Token> {
        self.skip_blanks();
        let Some(c) = self.peek() else {
            return match self.pending.is_empty() {
                true => Ok(Token::End),
                false => unfinished("here-document"),
            };
        };
        if c == '\n' {
            self.at += 1;
            self.here_bodies()?;
            return Ok(Token::Newline);
        }
        if let Some(op) = OPERATORS.iter().find(|op| self.starts_with(op)) {
            self.at += op.len();
            return Ok(Token::Op(op));
        }
        let digits: String = self.text[self.at..]
            .iter()
            .take_while(|c| c.is_ascii_digit())
            .collect();
        if matches!(self.text.get(self.at + digits.len()), Some('<' | '>'))
            && let Ok(fd) = digits.parse()
        {
            self.at += digits.len();
            return Ok(Token::Io(fd));
        }
        Ok(Token::Word(Word(self.parts(Until::Blank)?)))
    }

    /// Registers a here-document; its body is filled in at the end of the line.
    pub fn here(&mut self, delimiter: &Word, strip_tabs: bool) -> Rc<OnceCell<Word>> {
        let mut literal = false;
        let mut text = String::new();
        for part in &delimiter.0 {
            match part {
                Part::Plain(plain) => text.push_str(plain),
                Part::Quoted(quoted) => {
                    literal = true;
                    text.push_str(quoted);
                }
                Part::Double(parts) => {
                    literal = true;
                    for part in parts {
                        if let Part::Quoted(quoted) | Part::Plain(quoted) = part {
                            text.push_str(quoted);
                        }
                    }
                }
                _ => {}
            }
        }
        let body = Rc::new(OnceCell::new());
        self.pending.push(Pending {
            delimiter: text,
            literal,
            strip_tabs,
            body: Rc::clone(&body),
        });
        body
    }

    fn here_bodies(&mut self) -> Lexed<()> {
        for pending in std::mem::take(&mut self.pending) {
            let mut body = String::new();
            loop {
                if self.at >= self.text.len() {
                    return unfinished("here-document");
                }
                let rest = &self.text[self.at..];
                let length = rest.iter().position(|c| *c == '\n');
                let mut line: String = rest[..length.unwrap_or(rest.len())].iter().collect();
                self.at += length.map_or(rest.len(), |length| length + 1);
                if pending.strip_tabs {
                    line = line.trim_start_matches('\t').to_owned();
                }
                if line == pending.delimiter {
                    break;
                }
                if length.is_none() {
                    return unfinished("here-document");
                }
                body.push_str(&line);
                body.push('\n');
            }
            let word = match pending.literal {
                true => Word(vec![Part::Quoted(body)]),
                false => Word(vec![Part::Double(
                    Lexer::inside(body.chars().collect(), 0, self.depth).double(None)?,
                )]),
            };
            let _ = pending.body.set(word);
        }
        Ok(())
    }

    fn parts(&mut self, until: Until) -> Lexed<Vec<Part>> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let in_double = until == Until::Brace { quoted: true };
        while let Some(c) = self.peek() {
            let ends = match until {
                Until::Blank => " \t\r\n;&|<>()".contains(c),
                Until::Brace { .. } => c == '}',
                Until::Slash => c == '}' || c == '/',
                Until::Colon => c == '}' || c == ':',
            };
            if ends {
                break;
            }
            let part = match c {
                '\'' if !in_double => {
                    self.at += 1;
                    Part::Quoted(self.single()?)
                }
                '"' => {
                    self.at += 1;
                    Part::Double(self.double(Some('"'))?)
                }
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        None => Part::Quoted("\\".to_owned()),
                        Some('\n') => {
                            self.at += 1;
                            continue;
                        }
                        Some(c) => {
                            self.at += 1;
                            Part::Quoted(c.to_string())
                        }
                    }
                }
                '$' if self.starts_with("$'") && !in_double => {
                    self.at += 2;
                    Part::Quoted(self.escaped()?)
                }
                '$' | '`' => match self.dollar(in_double)? {
                    Some(part) => part,
                    None => {
                        plain.push('$');
                        continue;
                    }
                },
                c => {
                    self.at += 1;
                    plain.push(c);
                    continue;
                }
            };
            if !plain.is_empty() {
                parts.push(Part::Plain(std::mem::take(&mut plain)));
            }
            parts.push(part);
        }
        if self.peek().is_none() && until != Until::Blank {
            return unfinished("${");
        }
        if !plain.is_empty() {
            parts.push(Part::Plain(plain));
        }
        Ok(parts)
    }

    fn single(&mut self) -> Lexed<String> {
        let rest = &self.text[self.at..];
        match rest.iter().position(|c| *c == '\'') {
            Some(end) => {
                self.at += end + 1;
                Ok(rest[..end].iter().collect())
            }
            None => unfinished("quoted string"),
        }
    }

    /// `$'…'`: escapes as printf knows them.
    fn escaped(&mut self) -> Lexed<String> {
        let mut text = String::new();
        loop {
            match self.peek() {
                None => return unfinished("quoted string"),
                Some('\'') => break,
                Some('\\') => {
                    text.push('\\');
                    self.at += 1;
                    text.extend(self.peek());
                }
                Some(c) => text.push(c),
            }
            self.at += 1;
        }
        self.at += 1;
        Ok(crate::applets::printf::unescaped(&text))
    }

    /// The inside of double quotes, or a here-document (which ends with the text).
    fn double(&mut self, end: Option<char>) -> Lexed<Vec<Part>> {
        let mut parts = Vec::new();
        let mut text = String::new();
        loop {
            let Some(c) = self.peek() else {
                if end.is_some() {
                    return unfinished("quoted string");
                }
                break;
            };
            if Some(c) == end {
                self.at += 1;
                break;
            }
            match c {
                '\\' => {
                    self.at += 1;
                    match self.peek() {
                        Some('\n') => {}
                        Some(c) if "$`\\".contains(c) || Some(c) == end => text.push(c),
                        other => {
                            text.push('\\');
                            text.extend(other);
                        }
                    }
                    self.at += 1;
                }
                '$' | '`' => match self.dollar(true)? {
                    Some(part) => {
                        if !text.is_empty() {
                            parts.push(Part::Quoted(std::mem::take(&mut text)));
                        }
                        parts.push(part);
                    }
                    None => text.push('$'),
                },
                c => {
                    self.at += 1;
                    text.push(c);
                }
            }
        }
        if !text.is_empty() {
            parts.push(Part::Quoted(text));
        }
        Ok(parts)
    }

    /// What `$` or a backquote begins; nothing if the dollar stands for itself (it is consumed).
    fn dollar(&mut self, quoted: bool) -> Lexed<Option<Part>> {
        self.enter()?;
        let part = self.expansion(quoted);
        self.exit();
        part
    }

    fn expansion(&mut self, quoted: bool) -> Lexed<Option<Part>> {
        if self.peek() == Some('`') {
            self.at += 1;
            return self.backquotes(quoted).map(Some);
        }
        self.at += 1;
        let name = match self.peek() {
            Some('(') => {
                if self.starts_with("((")
                    && let Some(part) = self.arithmetic()?
                {
                    return Ok(Some(part));
                }
                self.at += 1;
                let (list, at) = Parser::nested(Rc::clone(&self.text), self.at, self.depth)?;
                self.at = at;
                return Ok(Some(Part::Command(Rc::new(list))));
            }
            Some('{') => {
                self.at += 1;
                return self
                    .braced(quoted)
                    .map(|param| Some(Part::Param(Box::new(param))));
            }
            Some(c) if is_name_start(c) => self.name(),
            Some(c) if c.is_ascii_digit() || "@*#?-$!".contains(c) => {
                self.at += 1;
                c.to_string()
            }
            _ => return Ok(None),
        };
        Ok(Some(Part::Param(Box::new(Param {
            name,
            op: ParamOp::Value,
        }))))
    }

    fn name(&mut self) -> String {
        let rest = &self.text[self.at..];
        let name: String = rest.iter().take_while(|c| is_name(**c)).collect();
        self.at += name.chars().count();
        name
    }

    fn backquotes(&mut self, quoted: bool) -> Lexed<Part> {
        let mut script = String::new();
        loop {
            match self.peek() {
                None => return unfinished("backquote"),
                Some('`') => break,
                Some('\\') => {
                    self.at += 1;
                    match self.peek() {
                        Some(c) if "$`\\".contains(c) || (quoted && c == '"') => script.push(c),
                        other => {
                            script.push('\\');
                            script.extend(other);
                        }
                    }
                }
                Some(c) => script.push(c),
            }
            self.at += 1;
        }
        self.at += 1;
        let list = Parser::inside(&script, self.depth).all()?;
        Ok(Part::Command(Rc::new(list)))
    }

    /// `$((…))`; nothing if it turns out to be a command in a subshell.
    fn arithmetic(&mut self) -> Lexed<Option<Part>> {
        let mut depth = 0;
        let start = self.at + 2;
        let mut end = start;
        while let Some(c) = self.text.get(end) {
            match c {
                '(' => depth += 1,
                ')' if depth == 0 => break,
                ')' => depth -= 1,
                _ => {}
            }
            end += 1;
        }
        if end >= self.text.len() {
            return unfinished("$((");
        }
        if self.text.get(end + 1) != Some(&')') {
            return Ok(None);
        }
        let text: String = self.text[start..end].iter().collect();
        self.at = end + 2;
        let mut inner = Lexer::inside(text.chars().collect(), 0, self.depth);
        Ok(Some(Part::Arith(Word(inner.double(None)?))))
    }

    /// What follows `${`.
    fn braced(&mut self, quoted: bool) -> Lexed<Param> {
        let until = Until::Brace { quoted };
        if self.peek() == Some('#') && !self.starts_with("#}") {
            self.at += 1;
            let name = self.parameter()?;
            self.close_brace()?;
            let op = ParamOp::Length;
            return Ok(Param { name, op });
        }
        let name = self.parameter()?;
        let or_empty = self.peek() == Some(':');
        if or_empty && !matches!(self.text.get(self.at + 1), Some('-' | '=' | '?' | '+')) {
            self.at += 1;
            let offset = Word(self.parts(Until::Colon)?);
            let length = match self.peek() {
                Some(':') => {
                    self.at += 1;
                    Some(Word(self.parts(until)?))
                }
                _ => None,
            };
            self.close_brace()?;
            let op = ParamOp::Slice { offset, length };
            return Ok(Param { name, op });
        }
        self.at += usize::from(or_empty);
        let Some(c) = self.peek() else {
            return unfinished("${");
        };
        if c == '}' {
            self.at += 1;
            let op = ParamOp::Value;
            return Ok(Param { name, op });
        }
        self.at += 1;
        let doubled = self.peek() == Some(c) && "#%/".contains(c);
        self.at += usize::from(doubled);
        let op = match c {
            '-' => ParamOp::Default {
                or_empty,
                word: Word(self.parts(until)?),
            },
            '=' => ParamOp::Assign {
                or_empty,
                word: Word(self.parts(until)?),
            },
            '?' => ParamOp::Error {
                or_empty,
                word: Word(self.parts(until)?),
            },
            '+' => ParamOp::Alternate {
                or_empty,
                word: Word(self.parts(until)?),
            },
            '#' | '%' => ParamOp::Cut {
                suffix: c == '%',
                longest: doubled,
                pattern: Word(self.parts(Until::Brace { quoted: false })?),
            },
            '/' => {
                let pattern = Word(self.parts(Until::Slash)?);
                let with = match self.peek() {
                    Some('/') => {
                        self.at += 1;
                        Word(self.parts(Until::Brace { quoted: false })?)
                    }
                    _ => Word::default(),
                };
                ParamOp::Replace {
                    all: doubled,
                    pattern,
                    with,
                }
            }
            _ => return wrong("syntax error: bad substitution"),
        };
        self.close_brace()?;
        Ok(Param { name, op })
    }

    fn parameter(&mut self) -> Lexed<String> {
        match self.peek() {
            None => unfinished("${"),
            Some(c) if is_name_start(c) => Ok(self.name()),
            Some(c) if c.is_ascii_digit() => {
                let rest = &self.text[self.at..];
                let digits: String = rest.iter().take_while(|c| c.is_ascii_digit()).collect();
                self.at += digits.len();
                Ok(digits)
            }
            Some(c) if "@*#?-$!".contains(c) => {
                self.at += 1;
                Ok(c.to_string())
            }
            Some(_) => wrong("syntax error: bad substitution"),
        }
    }

    fn close_brace(&mut self) -> Lexed<()> {
        match self.peek() {
            Some('}') => {
                self.at += 1;
                Ok(())
            }
            None => unfinished("${"),
            Some(_) => wrong("syntax error: bad substitution"),
        }
    }
}

pub fn is_name_start(c: char) -> bool {
    c == '_' || c.is_ascii_alphabetic()
}

pub fn is_name(c: char) -> bool {
    c == '_' || c.is_ascii_alphanumeric()
}

//! Words to fields: parameters, commands, arithmetic, splitting, patterns, quotes removed.

use super::ast::{Param, ParamOp, Part, Word};
use super::{Jump, Shell, arith, pattern};

/// One field while it is put together: its text, and the same as a pattern in which quoted characters are escaped.
#[derive(Default)]
struct Field {
    text: String,
    pattern: String,
}

/// Fields in the making.
struct Fields {
    done: Vec<Field>,
    current: Option<Field>,
    /// The last thing seen was unquoted white space: a separator next to it ends nothing more.
    spaced: bool,
    /// Whether unquoted results are split.
    split: bool,
    separators: String,
}

impl Fields {
    fn new(split: bool, separators: String) -> Self {
        Self {
            done: Vec::new(),
            current: None,
            spaced: false,
            split,
            separators,
        }
    }

    fn quoted(&mut self, text: &str) {
        self.spaced = false;
        let field = self.current.get_or_insert_default();
        field.text.push_str(text);
        field.pattern.push_str(&pattern::escape(text));
    }

    fn plain(&mut self, text: &str) {
        self.spaced = false;
        let field = self.current.get_or_insert_default();
        field.text.push_str(text);
        field.pattern.push_str(text);
    }

    /// What an unquoted expansion gave.
    fn expanded(&mut self, text: &str) {
        if !self.split {
            if !text.is_empty() {
                self.plain(text);
            }
            return;
        }
        for c in text.chars() {
            if !self.separators.contains(c) {
                // A backslash that came out of a variable is no quote.
                self.spaced = false;
                let field = self.current.get_or_insert_default();
                field.text.push(c);
                if c == '\\' {
                    field.pattern.push('\\');
                }
                field.pattern.push(c);
            } else if c.is_ascii_whitespace() {
                if let Some(field) = self.current.take() {
                    self.done.push(field);
                    self.spaced = true;
                }
            } else if self.spaced {
                self.spaced = false;
            } else {
                self.done.push(self.current.take().unwrap_or_default());
            }
        }
    }

    fn cut(&mut self) {
        self.done.extend(self.current.take());
    }

    fn finish(mut self) -> Vec<Field> {
        self.cut();
        self.done
    }
}

impl Shell {
    /// The fields that these words become, patterns replaced by the files they match.
    pub fn expand(&mut self, words: &[Word]) -> Result<Vec<String>, Jump> {
        let mut all = Vec::new();
        for word in words {
            for field in self.fields(word, true)? {
                if !self.options.noglob && pattern::is_pattern(&field.pattern) {
                    let found = pattern::glob(&self.cwd, &field.pattern);
                    if !found.is_empty() {
                        all.extend(found);
                        continue;
                    }
                }
                all.push(field.text);
            }
        }
        Ok(all)
    }

    /// A word where only one can stand: no splitting, no files.
    pub fn expand_one(&mut self, word: &Word) -> Result<String, Jump> {
        let fields = self.fields(word, false)?;
        Ok(fields
            .into_iter()
            .map(|field| field.text)
            .collect::<Vec<_>>()
            .join(" "))
    }

    /// A word as a pattern.
    pub fn expand_pattern(&mut self, word: &Word) -> Result<String, Jump> {
        let fields = self.fields(word, false)?;
        Ok(fields
            .into_iter()
            .map(|field| field.pattern)
            .collect::<Vec<_>>()
            .join(" "))
    }

    fn fields(&mut self, word: &Word, split: bool) -> Result<Vec<Field>, Jump> {
        let separators = self.variable("IFS").unwrap_or_else(|| " \t\n".to_owned());
        let mut fields = Fields::new(split, separators);
        self.parts(&word.0, false, true, &mut fields)?;
        Ok(fields.finish())
    }

    fn parts(
        &mut self,
        parts: &[Part],
        quoted: bool,
        first: bool,
        into: &mut Fields,
    ) -> Result<(), Jump> {
        for (at, part) in parts.iter().enumerate() {
            match part {
                Part::Plain(text) if quoted => into.quoted(text),
                Part::Plain(text) => {
                    let text = match text.strip_prefix('~') {
                        Some(rest)
                            if first && at == 0 && (rest.is_empty() || rest.starts_with('/')) =>
                        {
                            into.quoted(&self.variable("HOME").unwrap_or_else(|| "/".to_owned()));
                            rest
                        }
                        _ => text,
                    };
                    if !text.is_empty() {
                        into.plain(text);
                    }
                }
                Part::Quoted(text) => into.quoted(text),
                Part::Double(parts) => {
                    // "$@" without parameters is no field at all, "" is an empty one.
                    let vanishes = matches!(parts.as_slice(), [Part::Param(param)]
                        if param.name == "@" && param.op == ParamOp::Value && self.params.is_empty());
                    if !vanishes {
                        into.quoted("");
                    }
                    self.parts(parts, true, false, into)?;
                }
                Part::Param(param) => self.param(param, quoted, into)?,
                Part::Command(list) => {
                    let text = self.substitute(list)?;
                    match quoted {
                        true => into.quoted(&text),
                        false => into.expanded(&text),
                    }
                }
                Part::Arith(word) => {
                    let text = self.expand_one(word)?;
                    let number = self.arithmetic(&text)?.to_string();
                    match quoted {
                        true => into.quoted(&number),
                        false => into.expanded(&number),
                    }
                }
            }
        }
        Ok(())
    }

    pub fn arithmetic(&mut self, text: &str) -> Result<i64, Jump> {
        arith::evaluate(text, self).map_err(Jump::Fail)
    }

    fn param(&mut self, param: &Param, quoted: bool, into: &mut Fields) -> Result<(), Jump> {
        let name = param.name.as_str();
        if matches!(name, "@" | "*") && param.op == ParamOp::Value {
            return {
                self.all_params(name, quoted, into);
                Ok(())
            };
        }
        let value = match name {
            "@" | "*" if param.op == ParamOp::Length => Some(self.params.len().to_string()),
            "@" | "*" if self.params.is_empty() => None,
            name => self.parameter(name),
        };
        let use_word = |value: &Option<String>, or_empty: bool| match value {
            None => true,
            Some(value) => or_empty && value.is_empty(),
        };
        let text = match &param.op {
            ParamOp::Value => self.set_or_fail(name, value)?,
            ParamOp::Length if matches!(name, "@" | "*") => value.unwrap_or_default(),
            ParamOp::Length => self.set_or_fail(name, value)?.chars().count().to_string(),
            ParamOp::Default { or_empty, word } => {
                if use_word(&value, *or_empty) {
                    return self.parts(&word.0, quoted, true, into);
                }
                if matches!(name, "@" | "*") {
                    self.all_params(name, quoted, into);
                    return Ok(());
                }
                value.unwrap_or_default()
            }
            ParamOp::Alternate { or_empty, word } => {
                if use_word(&value, *or_empty) {
                    return Ok(());
                }
                return self.parts(&word.0, quoted, true, into);
            }
            ParamOp::Assign { or_empty, word } => {
                if use_word(&value, *or_empty) {
                    let text = self.expand_one(word)?;
                    self.assign(name, text.clone())?;
                    text
                } else {
                    value.unwrap_or_default()
                }
            }
            ParamOp::Error { or_empty, word } => {
                if use_word(&value, *or_empty) {
                    let message = match self.expand_one(word)? {
                        text if text.is_empty() => "parameter not set or null".to_owned(),
                        text => text,
                    };
                    return Err(Jump::Fail(format!("{name}: {message}")));
                }
                value.unwrap_or_default()
            }
            ParamOp::Cut {
                suffix,
                longest,
                pattern,
            } => {
                let value = self.set_or_fail(name, value)?;
                let pattern = self.expand_pattern(pattern)?;
                cut(&value, &pattern, *suffix, *longest)
            }
            ParamOp::Slice { offset, length } => {
                let value = self.set_or_fail(name, value)?;
                let offset = self.expand_one(offset)?;
                let offset = self.arithmetic(&offset)?;
                let length = match length {
                    Some(length) => {
                        let length = self.expand_one(length)?;
                        Some(self.arithmetic(&length)?)
                    }
                    None => None,
                };
                slice(&value, offset, length)
            }
            ParamOp::Replace { all, pattern, with } => {
                let value = self.set_or_fail(name, value)?;
                let pattern = self.expand_pattern(pattern)?;
                let with = self.expand_one(with)?;
                replace(&value, &pattern, &with, *all)
            }
        };
        match quoted {
            true => into.quoted(&text),
            false => into.expanded(&text),
        }
        Ok(())
    }

    /// `$@` and `$*`.
    fn all_params(&mut self, name: &str, quoted: bool, into: &mut Fields) {
        if quoted && name == "*" {
            let separator = into.separators.chars().next().map(String::from);
            into.quoted(&self.params.join(&separator.unwrap_or_default()));
            return;
        }
        for (at, param) in self.params.iter().enumerate() {
            if at > 0 {
                match into.split {
                    true => into.cut(),
                    false => into.quoted(" "),
                }
            }
            match quoted {
                true => into.quoted(param),
                false => into.expanded(param),
            }
        }
    }

    fn set_or_fail(&self, name: &str, value: Option<String>) -> Result<String, Jump> {
        match value {
            Some(value) => Ok(value),
            None if self.options.nounset && !matches!(name, "@" | "*" | "!") => {
                Err(Jump::Fail(format!("{name}: parameter not set")))
            }
            None => Ok(String::new()),
        }
    }
}

/// `${x#p}` and its like.
fn cut(value: &str, pattern: &str, suffix: bool, longest: bool) -> String {
    let mut cuts: Vec<usize> = value.char_indices().map(|(at, _)| at).collect();
    cuts.push(value.len());
    // From the shortest piece to the longest, or the other way round.
    if suffix != longest {
        cuts.reverse();
    }
    for at in cuts {
        let (head, tail) = value.split_at(at);
        let (piece, rest) = if suffix { (tail, head) } else { (head, tail) };
        if pattern::matches(pattern, piece) {
            return rest.to_owned();
        }
    }
    value.to_owned()
}

/// `${x:offset:length}`; negative numbers count from the end.
fn slice(value: &str, offset: i64, length: Option<i64>) -> String {
    let chars: Vec<char> = value.chars().collect();
    let count = chars.len() as i64;
    let start = if offset < 0 { count + offset } else { offset }.clamp(0, count);
    let end = match length {
        None => count,
        Some(length) if length < 0 => count + length,
        Some(length) => start.saturating_add(length),
    };
    chars[start as usize..end.clamp(start, count) as usize]
        .iter()
        .collect()
}

fn replace(value: &str, pattern: &str, with: &str, all: bool) -> String {
    let mut out = String::new();
    let mut rest = value;
    while !rest.is_empty() {
        let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
        let found = ends
            .into_iter()
            .find(|end| pattern::matches(pattern, &rest[..*end]));
        let Some(end) = found else {
            let first = rest.chars().next().map_or(1, char::len_utf8);
            out.push_str(&rest[..first]);
            rest = &rest[first..];
            continue;
        };
        out.push_str(with);
        rest = &rest[end..];
        if !all {
            break;
        }
    }
    out + rest
}

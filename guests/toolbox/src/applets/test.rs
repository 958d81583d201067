//! `test`, `[` and `[[`: conditions about text, numbers and files.

use super::{Answer, done};
use crate::context::Context;
use crate::files::{self, Kind};
use crate::shell::pattern;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    let args = match context.name.as_str() {
        "[" | "[[" => {
            let close = if context.name == "[" { "]" } else { "]]" };
            match args.split_last() {
                Some((last, args)) if last == close => args,
                _ => return Err(format!("missing {close}")),
            }
        }
        _ => args,
    };
    let mut test = Test {
        args,
        at: 0,
        context,
        patterns: context.name == "[[",
        depth: 0,
    };
    let truth = test.all()?;
    done(i32::from(!truth))
}

struct Test<'a> {
    args: &'a [String],
    at: usize,
    context: &'a Context,
    /// In `[[`, the right side of `==` is a pattern.
    patterns: bool,
    depth: u32,
}

const BINARY: &[&str] = &[
    "=", "==", "!=", "<", ">", "-eq", "-ne", "-lt", "-le", "-gt", "-ge", "-nt", "-ot", "-ef", "=~",
];

impl Test<'_> {
    /// POSIX decides by the number of arguments; then comes the grammar.
    fn all(&mut self) -> Result<bool, String> {
        match self.args {
            [] => return Ok(false),
            [one] => return Ok(!one.is_empty()),
            [not, one] if not == "!" => return Ok(one.is_empty()),
            [a, op, b] if BINARY.contains(&op.as_str()) => return self.binary(a, op, b),
            [not, rest @ ..]
                if not == "!" && rest.len() == 3 && BINARY.contains(&rest[1].as_str()) =>
            {
                return self
                    .binary(&rest[0], &rest[1], &rest[2])
                    .map(|truth| !truth);
            }
            _ => {}
        }
        let truth = self.or()?;
        match self.peek() {
            None => Ok(truth),
            Some(word) => Err(format!("{word}: unexpected operator")),
        }
    }

    fn peek(&self) -> Option<&str> {
        self.args.get(self.at).map(String::as_str)
    }

    fn take(&mut self, words: &[&str]) -> bool {
        let found = self.peek().is_some_and(|word| words.contains(&word));
        self.at += usize::from(found);
        found
    }

    fn next(&mut self) -> Result<String, String> {
        let word = self.args.get(self.at).cloned().ok_or("argument expected")?;
        self.at += 1;
        Ok(word)
    }

    fn or(&mut self) -> Result<bool, String> {
        let mut truth = self.and()?;
        while self.take(if self.patterns {
            &["-o", "||"]
        } else {
            &["-o"]
        }) {
            truth |= self.and()?;
        }
        Ok(truth)
    }

    fn and(&mut self) -> Result<bool, String> {
        let mut truth = self.not()?;
        while self.take(if self.patterns {
            &["-a", "&&"]
        } else {
            &["-a"]
        }) {
            truth &= self.not()?;
        }
        Ok(truth)
    }

    fn not(&mut self) -> Result<bool, String> {
        let mut negated = false;
        while self.peek() == Some("!") && self.at + 1 < self.args.len() {
            self.at += 1;
            negated = !negated;
        }
        self.primary().map(|truth| truth != negated)
    }

    fn primary(&mut self) -> Result<bool, String> {
        let next = self.args.get(self.at + 1).map(String::as_str);
        if next.is_some_and(|next| BINARY.contains(&next)) && self.args.len() > self.at + 2 {
            let (a, op, b) = (self.next()?, self.next()?, self.next()?);
            return self.binary(&a, &op, &b);
        }
        if self.take(&["("]) {
            self.depth += 1;
            if self.depth > 50 {
                return Err("nested too deeply".to_owned());
            }
            let truth = self.or()?;
            return match self.take(&[")"]) {
                true => Ok(truth),
                false => Err("closing paren expected".to_owned()),
            };
        }
        let word = self.next()?;
        let unary = word.len() == 2 && word.starts_with('-') && self.peek().is_some();
        match (unary, word.as_bytes().get(1)) {
            (true, Some(letter)) if b"bcdefghLknprsStuwxz".contains(letter) => {
                let operand = self.next()?;
                self.unary(char::from(*letter), &operand)
            }
            _ => Ok(!word.is_empty()),
        }
    }

    fn unary(&self, letter: char, operand: &str) -> Result<bool, String> {
        match letter {
            'n' => return Ok(!operand.is_empty()),
            'z' => return Ok(operand.is_empty()),
            't' => {
                return Ok(match operand {
                    "0" => self.context.stdin.is_terminal(),
                    "1" => self.context.stdout.is_terminal(),
                    "2" => self.context.stderr.is_terminal(),
                    _ => false,
                });
            }
            _ => {}
        }
        let path = self.context.path(operand);
        let about = match letter {
            'h' | 'L' => files::lstat(&path),
            _ => files::stat(&path),
        };
        let Ok(about) = about else { return Ok(false) };
        Ok(match letter {
            'f' => about.kind == Kind::File,
            'd' => about.is_dir(),
            'h' | 'L' => about.kind == Kind::Link,
            's' => about.size > 0,
            // What may be read here may be written or not; only trying tells.
            'w' if about.kind == Kind::File => {
                std::fs::OpenOptions::new().append(true).open(&path).is_ok()
            }
            'x' => about.is_dir() || about.kind == Kind::File,
            'e' | 'r' | 'w' => true,
            'c' => about.kind == Kind::Other,
            _ => false,
        })
    }

    fn binary(&self, a: &str, op: &str, b: &str) -> Result<bool, String> {
        let number = |text: &str| {
            text.trim()
                .parse::<i64>()
                .map_err(|_| format!("{text}: bad number"))
        };
        let modified = |path: &str| {
            files::stat(&self.context.path(path))
                .ok()
                .and_then(|about| about.modified)
        };
        Ok(match op {
            "=" | "==" if self.patterns => pattern::matches(b, a),
            "!=" if self.patterns => !pattern::matches(b, a),
            "=" | "==" => a == b,
            "!=" => a != b,
            "<" => a < b,
            ">" => a > b,
            "-eq" => number(a)? == number(b)?,
            "-ne" => number(a)? != number(b)?,
            "-lt" => number(a)? < number(b)?,
            "-le" => number(a)? <= number(b)?,
            "-gt" => number(a)? > number(b)?,
            "-ge" => number(a)? >= number(b)?,
            "-nt" => modified(a) > modified(b),
            "-ot" => modified(a) < modified(b),
            "-ef" => self.context.path(a) == self.context.path(b),
            "=~" => crate::regex::Regex::new(b, crate::regex::Flavor::Extended, false)?
                .is_match(a.as_bytes()),
            op => return Err(format!("{op}: unknown operator")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(args: &[&str]) -> Result<bool, String> {
        let args: Vec<_> = args.iter().map(|a| (*a).to_owned()).collect();
        let context = Context::from_outside();
        let mut test = Test {
            args: &args,
            at: 0,
            context: &context,
            patterns: false,
            depth: 0,
        };
        test.all()
    }

    #[test]
    fn conditions_are_true_when_they_should_be() {
        for args in [
            &["a"][..],
            &["-n", "a"],
            &["-z", ""],
            &["a", "=", "a"],
            &["2", "-gt", "1"],
            &["!", ""],
            &["-d", "/"],
            &["a", "=", "a", "-a", "b", "!=", "c"],
            &["", "-o", "x"],
            &["(", "a", ")"],
            &["!", "a", "=", "b"],
            &["-n"],
            &["!"],
            &["-z", "", "-a", "(", "1", "-lt", "2", ")"],
            &["!", "-e", "/nowhere/at/all"],
        ] {
            assert_eq!(truth(args), Ok(true), "{args:?}");
        }
        for args in [
            &[][..],
            &[""],
            &["-n", ""],
            &["a", "=", "b"],
            &["!", "a"],
            &["-f", "/"],
            &["=", "!=", "="],
        ] {
            assert_eq!(truth(args), Ok(false), "{args:?}");
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(truth(&["a", "-eq", "1"]).is_err());
        assert!(truth(&["a", "b", "c", "d"]).is_err());
        assert!(truth(&["(", "a", "b", "c"]).is_err());
    }
}

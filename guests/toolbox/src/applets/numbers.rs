//! `expr`, `seq`, and commands run by time: `watch`, `time`.

use std::time::Duration;

use super::{Answer, date, done, run_words, sleep};
use crate::context::Context;
use crate::io::{Input, print};
use crate::options::{Spec, parse};
use crate::os;
use crate::regex::{Flavor, Regex};

// === expr ===

pub fn expr(context: &mut Context, args: &[String]) -> Answer {
    let mut expr = Expr {
        args,
        at: 0,
        depth: 0,
    };
    let result = expr.or();
    let value = match result {
        Ok(value) if expr.at == args.len() && !args.is_empty() => value,
        Ok(_) => {
            context.fail("syntax error");
            return done(2);
        }
        Err(error) => {
            context.fail(error);
            return done(2);
        }
    };
    print(&context.stdout, &format!("{value}\n"));
    done(i32::from(value.is_empty() || value == "0"))
}

struct Expr<'a> {
    args: &'a [String],
    at: usize,
    depth: u32,
}

type Value = Result<String, String>;

impl Expr<'_> {
    fn operator(&mut self, known: &[&str]) -> Option<String> {
        let word = self
            .args
            .get(self.at)
            .filter(|word| known.contains(&word.as_str()))?;
        self.at += 1;
        Some(word.clone())
    }

    fn or(&mut self) -> Value {
        let mut left = self.and()?;
        while self.operator(&["|"]).is_some() {
            let right = self.and()?;
            if left.is_empty() || left == "0" {
                left = right;
            }
        }
        Ok(left)
    }

    fn and(&mut self) -> Value {
        let mut left = self.comparison()?;
        while self.operator(&["&"]).is_some() {
            let right = self.comparison()?;
            if [&left, &right]
                .iter()
                .any(|value| value.is_empty() || *value == "0")
            {
                left = "0".to_owned();
            }
        }
        Ok(left)
    }

    fn comparison(&mut self) -> Value {
        let mut left = self.sum()?;
        while let Some(op) = self.operator(&["=", "==", "!=", "<", "<=", ">", ">="]) {
            let right = self.sum()?;
            let ordering = match (left.parse::<i64>(), right.parse::<i64>()) {
                (Ok(a), Ok(b)) => a.cmp(&b),
                _ => left.cmp(&right),
            };
            let truth = match op.as_str() {
                "=" | "==" => ordering.is_eq(),
                "!=" => ordering.is_ne(),
                "<" => ordering.is_lt(),
                "<=" => ordering.is_le(),
                ">" => ordering.is_gt(),
                _ => ordering.is_ge(),
            };
            left = i32::from(truth).to_string();
        }
        Ok(left)
    }

    fn sum(&mut self) -> Value {
        let mut left = self.product()?;
        while let Some(op) = self.operator(&["+", "-"]) {
            let (a, b) = (integer(&left)?, integer(&self.product()?)?);
            let value = if op == "+" {
                a.checked_add(b)
            } else {
                a.checked_sub(b)
            };
            left = value.ok_or("out of range")?.to_string();
        }
        Ok(left)
    }

    fn product(&mut self) -> Value {
        let mut left = self.matching()?;
        while let Some(op) = self.operator(&["*", "/", "%"]) {
            let (a, b) = (integer(&left)?, integer(&self.matching()?)?);
            let value = match op.as_str() {
                "*" => a.checked_mul(b).ok_or("out of range"),
                "/" => a.checked_div(b).ok_or("division by zero"),
                _ => a.checked_rem(b).ok_or("division by zero"),
            };
            left = value?.to_string();
        }
        Ok(left)
    }

    fn matching(&mut self) -> Value {
        let mut left = self.primary()?;
        while self.operator(&[":"]).is_some() {
            let pattern = self.primary()?;
            left = matched(&left, &pattern)?;
        }
        Ok(left)
    }

    fn word(&mut self) -> Value {
        let word = self.args.get(self.at).cloned().ok_or("syntax error")?;
        self.at += 1;
        Ok(word)
    }

    fn primary(&mut self) -> Value {
        self.depth += 1;
        if self.depth > 100 {
            return Err("nested too deeply".to_owned());
        }
        let word = self.word()?;
        match word.as_str() {
            "(" => {
                let value = self.or()?;
                match self.operator(&[")"]) {
                    Some(_) => Ok(value),
                    None => Err("syntax error".to_owned()),
                }
            }
            "length" if self.at < self.args.len() => Ok(self.word()?.chars().count().to_string()),
            "match" if self.at + 1 < self.args.len() => {
                let text = self.word()?;
                matched(&text, &self.word()?)
            }
            "index" if self.at + 1 < self.args.len() => {
                let (text, set) = (self.word()?, self.word()?);
                let at = text.chars().position(|c| set.contains(c));
                Ok(at.map_or(0, |at| at + 1).to_string())
            }
            "substr" if self.at + 2 < self.args.len() => {
                let text = self.word()?;
                let (from, length) = (integer(&self.word()?)?, integer(&self.word()?)?);
                let from = usize::try_from(from - 1).unwrap_or(usize::MAX);
                Ok(text
                    .chars()
                    .skip(from)
                    .take(usize::try_from(length).unwrap_or(0))
                    .collect())
            }
            _ => Ok(word),
        }
    }
}

fn integer(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "non-numeric argument".to_owned())
}

/// `text : pattern`: the group, or how much matched.
fn matched(text: &str, pattern: &str) -> Value {
    let regex = Regex::surrounded("^(?:", pattern, ")", Flavor::Basic, false)?;
    let grouped = regex.inner().captures_len() > 1;
    Ok(match regex.inner().captures(text) {
        Some(found) if grouped => found.get(1).map_or("", |group| group.as_str()).to_owned(),
        Some(found) => found
            .get(0)
            .map_or(0, |whole| whole.as_str().chars().count())
            .to_string(),
        None if grouped => String::new(),
        None => "0".to_owned(),
    })
}

// === seq ===

pub fn seq(context: &mut Context, args: &[String]) -> Answer {
    let (mut separator, mut wide) = ("\n".to_owned(), false);
    let mut rest = args;
    loop {
        match rest {
            [option, value, tail @ ..] if option == "-s" => {
                separator.clone_from(value);
                rest = tail;
            }
            [option, tail @ ..] if option.starts_with("-s") => {
                separator = option[2..].to_owned();
                rest = tail;
            }
            [option, tail @ ..] if option == "-w" => {
                wide = true;
                rest = tail;
            }
            _ => break,
        }
    }
    let number = |text: &String| {
        text.parse::<f64>()
            .map_err(|_| format!("invalid number '{text}'"))
    };
    let (first, step, last) = match rest {
        [last] => (1.0, 1.0, number(last)?),
        [first, last] => (number(first)?, 1.0, number(last)?),
        [first, step, last] => (number(first)?, number(step)?, number(last)?),
        _ => return Err("one to three numbers are needed".to_owned()),
    };
    if step == 0.0 {
        return Err("the step must not be 0".to_owned());
    }
    let decimals = |text: &String| text.split_once('.').map_or(0, |(_, after)| after.len());
    let decimals = rest.iter().map(decimals).max().unwrap_or(0);
    let width = match wide {
        true => [first, last]
            .iter()
            .map(|n| format!("{n:.decimals$}").len())
            .max()
            .unwrap_or(0),
        false => 0,
    };
    let mut at = 0_u64;
    loop {
        let value = first + step * at as f64;
        let over = if step > 0.0 {
            value > last + 1e-9
        } else {
            value < last - 1e-9
        };
        if over {
            break;
        }
        let gap = if at == 0 { "" } else { &separator };
        if context
            .stdout
            .write(format!("{gap}{value:0width$.decimals$}").as_bytes())
            .is_err()
        {
            return done(0);
        }
        at += 1;
    }
    if at > 0 {
        print(&context.stdout, "\n");
    }
    done(0)
}

// === commands by time ===

pub fn watch(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "n:t",
        long: &[("interval", 'n')],
        stop: true,
    };
    let options = parse(&SPEC, args)?;
    let every = options
        .value('n')
        .map_or(Ok(Duration::from_secs(2)), sleep::one)?;
    if options.operands.is_empty() {
        return Err("a command is needed".to_owned());
    }
    let command = options.operands.join(" ");
    let mut inner = context.clone();
    inner.stdin = Input::nothing();
    loop {
        let clear = if context.stdout.is_terminal() {
            "\x1b[H\x1b[J"
        } else {
            ""
        };
        let head = match options.has('t') {
            true => String::new(),
            false => format!(
                "Every {}s: {command}  {}\n\n",
                every.as_secs_f64(),
                date::show(os::now(), "%F %T")
            ),
        };
        if context
            .stdout
            .write(format!("{clear}{head}").as_bytes())
            .is_err()
        {
            return done(0);
        }
        run_words(&inner, &["sh".to_owned(), "-c".to_owned(), command.clone()]);
        if !os::pause(every) {
            return done(130);
        }
    }
}

pub fn time(context: &mut Context, args: &[String]) -> Answer {
    let args = if args.first().is_some_and(|arg| arg == "-p") {
        &args[1..]
    } else {
        args
    };
    let start = os::since_start();
    let code = run_words(context, args);
    let took = os::since_start() - start;
    let text = format!(
        "real\t{}m {:.2}s\n",
        took.as_secs() / 60,
        took.as_secs_f64() % 60.0
    );
    print(&context.stderr, &text);
    done(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(words: &[&str]) -> Value {
        let args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Expr {
            args: &args,
            at: 0,
            depth: 0,
        }
        .or()
    }

    #[test]
    fn expressions_have_values() {
        for (words, expected) in [
            (&["1", "+", "2", "*", "3"][..], "7"),
            (&["(", "1", "+", "2", ")", "*", "3"], "9"),
            (&["7", "%", "4"], "3"),
            (&["abc", ":", "a\\(.\\)c"], "b"),
            (&["abc", ":", "ab"], "2"),
            (&["abc", ":", "b"], "0"),
            (&["2", "<", "10"], "1"),
            (&["a", "=", "b"], "0"),
            (&["0", "|", "x"], "x"),
            (&["1", "&", "0"], "0"),
            (&["length", "abc"], "3"),
            (&["substr", "abcdef", "2", "3"], "bcd"),
            (&["index", "abc", "c"], "3"),
        ] {
            assert_eq!(value(words).as_deref(), Ok(expected), "{words:?}");
        }
        assert!(
            value(&["1", "/", "0"]).is_err()
                && value(&["a", "+", "1"]).is_err()
                && value(&["(", "1"]).is_err()
        );
    }
}

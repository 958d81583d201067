//! `$((…))`: C's integer expressions over 64 bits, with the shell's variables.

/// Where names have values.
pub trait Names {
    fn get(&self, name: &str) -> Option<String>;
    fn set(&mut self, name: &str, value: i64) -> Result<(), String>;
}

/// A variable may hold an expression; not for ever.
const DEPTH: u32 = 64;

pub fn evaluate(text: &str, names: &mut dyn Names) -> Result<i64, String> {
    evaluate_at(text, names, 0)
}

fn evaluate_at(text: &str, names: &mut dyn Names, depth: u32) -> Result<i64, String> {
    if depth > DEPTH {
        return Err("arithmetic: expression is nested too deeply".to_owned());
    }
    if text.trim().is_empty() {
        return Ok(0);
    }
    let mut parser = Arith {
        text,
        at: 0,
        names,
        depth,
        skip: 0,
    };
    let value = parser.comma()?;
    parser.blanks();
    match parser.rest() {
        "" => Ok(value),
        rest => Err(format!("arithmetic syntax error at '{rest}'")),
    }
}

struct Arith<'a> {
    text: &'a str,
    at: usize,
    names: &'a mut dyn Names,
    depth: u32,
    /// Inside the side of `&&`, `||` or `?:` that does not count.
    skip: u32,
}

/// Binary operators from the loosest to the tightest.
const LEVELS: &[&[&str]] = &[
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];

const OPERATORS: &[&str] = &[
    "<<=", ">>=", "**", "&&", "||", "==", "!=", "<=", ">=", "<<", ">>", "+=", "-=", "*=", "/=",
    "%=", "&=", "|=", "^=", "++", "--", "=", "+", "-", "*", "/", "%", "&", "|", "^", "<", ">", "!",
    "~", "?", ":", "(", ")", ",",
];

impl Arith<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start().len();
    }

    fn operator(&mut self) -> Option<&'static str> {
        self.blanks();
        OPERATORS
            .iter()
            .find(|op| self.rest().starts_with(**op))
            .copied()
    }

    fn take(&mut self, wanted: &str) -> bool {
        let found = self.operator() == Some(wanted);
        if found {
            self.at += wanted.len();
        }
        found
    }

    fn comma(&mut self) -> Result<i64, String> {
        let mut value = self.assignment()?;
        while self.take(",") {
            value = self.assignment()?;
        }
        Ok(value)
    }

    fn name(&mut self) -> Option<String> {
        self.blanks();
        let rest = self.rest();
        let length = rest
            .find(|c: char| !super::lex::is_name(c))
            .unwrap_or(rest.len());
        let name = rest[..length].to_owned();
        let begins = name.starts_with(super::lex::is_name_start);
        begins.then(|| {
            self.at += length;
            name
        })
    }

    fn assignment(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("arithmetic: expression is nested too deeply".to_owned());
        }
        let start = self.at;
        if let Some(name) = self.name()
            && let Some(op) = self.operator()
            && op.ends_with('=')
            && !matches!(op, "==" | "!=" | "<=" | ">=")
        {
            self.at += op.len();
            let right = self.assignment()?;
            let value = match op {
                "=" => right,
                op => {
                    let left = self.read(&name)?;
                    self.binary(&op[..op.len() - 1], left, right)?
                }
            };
            self.write(&name, value)?;
            self.depth -= 1;
            return Ok(value);
        }
        self.at = start;
        let value = self.ternary()?;
        self.depth -= 1;
        Ok(value)
    }

    fn read(&mut self, name: &str) -> Result<i64, String> {
        match self.names.get(name) {
            None => Ok(0),
            Some(value) => match number(value.trim()) {
                Some(number) => Ok(number),
                None => evaluate_at(&value, self.names, self.depth + 1),
            },
        }
    }

    fn write(&mut self, name: &str, value: i64) -> Result<(), String> {
        if self.skip > 0 {
            Ok(())
        } else {
            self.names.set(name, value)
        }
    }

    fn ternary(&mut self) -> Result<i64, String> {
        let condition = self.or()?;
        if !self.take("?") {
            return Ok(condition);
        }
        let yes = self.skipping(condition == 0, Self::assignment)?;
        if !self.take(":") {
            return Err("arithmetic syntax error: ':' expected".to_owned());
        }
        let no = self.skipping(condition != 0, Self::assignment)?;
        Ok(if condition != 0 { yes } else { no })
    }

    fn skipping(
        &mut self,
        skip: bool,
        part: impl FnOnce(&mut Self) -> Result<i64, String>,
    ) -> Result<i64, String> {
        self.skip += u32::from(skip);
        let value = part(self);
        self.skip -= u32::from(skip);
        value
    }

    fn or(&mut self) -> Result<i64, String> {
        let mut value = self.and()?;
        while self.take("||") {
            let right = self.skipping(value != 0, Self::and)?;
            value = i64::from(value != 0 || right != 0);
        }
        Ok(value)
    }

    fn and(&mut self) -> Result<i64, String> {
        let mut value = self.level(0)?;
        while self.take("&&") {
            let right = self.skipping(value == 0, |this| this.level(0))?;
            value = i64::from(value != 0 && right != 0);
        }
        Ok(value)
    }

    fn level(&mut self, level: usize) -> Result<i64, String> {
        let Some(operators) = LEVELS.get(level) else {
            return self.unary();
        };
        let mut value = self.level(level + 1)?;
        while let Some(op) = self.operator().filter(|op| operators.contains(op)) {
            self.at += op.len();
            let right = self.level(level + 1)?;
            value = self.binary(op, value, right)?;
        }
        Ok(value)
    }

    fn binary(&self, op: &str, a: i64, b: i64) -> Result<i64, String> {
        Ok(match op {
            "|" => a | b,
            "^" => a ^ b,
            "&" => a & b,
            "==" => i64::from(a == b),
            "!=" => i64::from(a != b),
            "<=" => i64::from(a <= b),
            ">=" => i64::from(a >= b),
            "<" => i64::from(a < b),
            ">" => i64::from(a > b),
            "<<" => a.wrapping_shl(b as u32),
            ">>" => a.wrapping_shr(b as u32),
            "+" => a.wrapping_add(b),
            "-" => a.wrapping_sub(b),
            "*" => a.wrapping_mul(b),
            "/" | "%" if b == 0 && self.skip > 0 => 0,
            "/" | "%" if b == 0 => return Err("divide by zero".to_owned()),
            "/" => a.wrapping_div(b),
            "%" => a.wrapping_rem(b),
            op => return Err(format!("arithmetic syntax error at '{op}'")),
        })
    }

    fn unary(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err("arithmetic: expression is nested too deeply".to_owned());
        }
        let op = self
            .operator()
            .filter(|op| matches!(*op, "!" | "~" | "-" | "+" | "++" | "--"));
        let value = if let Some(op) = op {
            self.at += op.len();
            match op {
                "++" | "--" => {
                    let Some(name) = self.name() else {
                        return Err(format!("arithmetic syntax error at '{}'", self.rest()));
                    };
                    let value = self
                        .read(&name)?
                        .wrapping_add(if op == "++" { 1 } else { -1 });
                    self.write(&name, value)?;
                    value
                }
                "!" => i64::from(self.unary()? == 0),
                "~" => !self.unary()?,
                "-" => self.unary()?.wrapping_neg(),
                _ => self.unary()?,
            }
        } else {
            self.power()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn power(&mut self) -> Result<i64, String> {
        let base = self.primary()?;
        if !self.take("**") {
            return Ok(base);
        }
        let exponent = self.unary()?;
        let exponent = u32::try_from(exponent).map_err(|_| "exponent less than 0".to_owned())?;
        Ok(base.wrapping_pow(exponent))
    }

    fn primary(&mut self) -> Result<i64, String> {
        if self.take("(") {
            let value = self.comma()?;
            return match self.take(")") {
                true => Ok(value),
                false => Err("arithmetic syntax error: ')' expected".to_owned()),
            };
        }
        if let Some(name) = self.name() {
            let value = self.read(&name)?;
            for (op, by) in [("++", 1), ("--", -1)] {
                if self.take(op) {
                    self.write(&name, value.wrapping_add(by))?;
                }
            }
            return Ok(value);
        }
        self.blanks();
        let rest = self.rest();
        let end = |c: char| !c.is_ascii_alphanumeric();
        let text = &rest[..rest.find(end).unwrap_or(rest.len())];
        match number(text) {
            Some(number) => {
                self.at += text.len();
                Ok(number)
            }
            None => Err(format!("arithmetic syntax error at '{rest}'")),
        }
    }
}

fn number(text: &str) -> Option<i64> {
    let (text, sign) = match text.strip_prefix('-') {
        Some(text) => (text, -1),
        None => (text, 1),
    };
    let magnitude = if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        i64::from_str_radix(hex, 16).ok()?
    } else if text.len() > 1 && text.starts_with('0') {
        i64::from_str_radix(text, 8).ok()?
    } else {
        text.parse::<i64>().ok()?
    };
    Some(magnitude.wrapping_mul(sign))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    impl Names for HashMap<String, String> {
        fn get(&self, name: &str) -> Option<String> {
            HashMap::get(self, name).cloned()
        }

        fn set(&mut self, name: &str, value: i64) -> Result<(), String> {
            self.insert(name.to_owned(), value.to_string());
            Ok(())
        }
    }

    fn value(text: &str) -> Result<i64, String> {
        evaluate(text, &mut HashMap::from([("x".to_owned(), "7".to_owned())]))
    }

    #[test]
    fn operators_bind_as_in_c() {
        for (text, expected) in [
            ("1+2*3", 7),
            ("(1+2)*3", 9),
            ("10-2-3", 5),
            ("1<<3|1", 9),
            ("5>3&&2>1", 1),
            ("1?2:3", 2),
            ("0||0", 0),
            ("-2**2", -4),
            ("!0", 1),
            ("~0", -1),
            ("0x10+010", 24),
            ("x%4", 3),
            ("x++ + x", 15),
            ("y=3,y*2", 6),
            ("7/2", 3),
            ("1 ? x == 7 ? 5 : 6 : 8", 5),
            ("", 0),
            ("x+=1", 8),
            ("1-1", 0),
            ("a-1", -1),
        ] {
            assert_eq!(value(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn the_side_that_does_not_count_has_no_effect() {
        assert_eq!(value("0 && 1/0"), Ok(0));
        assert_eq!(value("1 || (x=1)"), Ok(1));
        assert_eq!(value("(0 && (x=1)), x"), Ok(7));
    }

    #[test]
    fn nonsense_is_an_error_not_a_panic() {
        for text in [
            "1/0",
            "1+",
            "(1",
            "1 2",
            "08",
            "++",
            "9223372036854775808",
            &"(".repeat(500),
        ] {
            assert!(value(text).is_err(), "{text}");
        }
        let mut names = HashMap::from([("a".to_owned(), "a+1".to_owned())]);
        assert!(evaluate("a", &mut names).is_err());
    }
}

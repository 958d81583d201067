//! `printf`, and the escapes that `echo -e` and `$'…'` share with it.

use super::{Answer, done};
use crate::context::Context;

/// Widths and precisions beyond this are refused: they come out of scripts.
const WIDTH: usize = 4_096;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    let Some((format, args)) = args.split_first() else {
        return Err("a format is needed".to_owned());
    };
    let (text, error) = render(format, args)?;
    let failed = context.stdout.write(&text).is_err();
    if let Some(error) = error {
        return done(context.fail(error));
    }
    done(i32::from(failed))
}

/// The same where only text can stand.
pub fn unescaped(text: &str) -> String {
    String::from_utf8_lossy(&unescape(text).0).into_owned()
}

/// Replaces `\n`, `\t`, `\0101`, `\x41` …; the second is true if `\c` stopped it.
pub fn unescape(text: &str) -> (Vec<u8>, bool) {
    let mut out: Vec<u8> = Vec::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    let push =
        |out: &mut Vec<u8>, c: char| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    while let Some(c) = chars.next() {
        if c != '\\' {
            push(&mut out, c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push(b'\n'),
            Some('t') => out.push(b'\t'),
            Some('r') => out.push(b'\r'),
            Some('a') => out.push(7),
            Some('b') => out.push(8),
            Some('e') => out.push(27),
            Some('f') => out.push(12),
            Some('v') => out.push(11),
            Some('c') => return (out, true),
            Some('0') => out.push(number(&mut chars, 0, 8, 3)),
            Some('x') => out.push(number(&mut chars, 0, 16, 2)),
            Some(c) if c.is_digit(8) => {
                out.push(number(&mut chars, c.to_digit(8).unwrap_or(0), 8, 2))
            }
            Some(c @ ('\\' | '\'' | '"')) => push(&mut out, c),
            Some(c) => {
                out.push(b'\\');
                push(&mut out, c);
            }
            None => out.push(b'\\'),
        }
    }
    (out, false)
}

/// At most so many further digits.
fn number(
    chars: &mut std::iter::Peekable<std::str::Chars>,
    first: u32,
    radix: u32,
    most: usize,
) -> u8 {
    let mut value = first;
    for _ in 0..most {
        let Some(digit) = chars.peek().and_then(|c| c.to_digit(radix)) else {
            break;
        };
        value = value * radix + digit;
        chars.next();
    }
    value as u8
}

/// The format over the arguments, again until they are used up; what was wrong with one of them.
fn render(format: &str, args: &[String]) -> Result<(Vec<u8>, Option<String>), String> {
    let mut args = args.iter().peekable();
    let mut out = Vec::new();
    let mut error = None;
    loop {
        let before = args.len();
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            let (text, stopped) = unescape(&rest[..at]);
            out.extend_from_slice(&text);
            if stopped {
                return Ok((out, error));
            }
            rest = &rest[at + 1..];
            let mut directive = Directive::default();
            rest = directive.read(rest, &mut args)?;
            if directive.kind == '%' {
                out.push(b'%');
                continue;
            }
            let arg = args.next().map(String::as_str);
            if directive.kind == 'b' {
                let (text, stopped) = unescape(arg.unwrap_or_default());
                directive.pad_bytes(&text, &mut out);
                if stopped {
                    return Ok((out, error));
                }
                continue;
            }
            match directive.apply(arg) {
                Ok(text) => out.extend_from_slice(text.as_bytes()),
                Err((text, message)) => {
                    out.extend_from_slice(text.as_bytes());
                    error = Some(message);
                }
            }
        }
        let (text, stopped) = unescape(rest);
        out.extend_from_slice(&text);
        if stopped || args.peek().is_none() || args.len() == before {
            return Ok((out, error));
        }
    }
}

#[derive(Default)]
struct Directive {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: usize,
    precision: Option<usize>,
    kind: char,
}

type Args<'a> = std::iter::Peekable<std::slice::Iter<'a, String>>;

impl Directive {
    /// Reads what follows a `%`; the rest of the format.
    fn read<'a>(&mut self, format: &'a str, args: &mut Args) -> Result<&'a str, String> {
        let mut rest = format;
        loop {
            match rest.chars().next() {
                Some('-') => self.left = true,
                Some('0') => self.zero = true,
                Some('+') => self.plus = true,
                Some(' ') => self.space = true,
                Some('#') => self.alternate = true,
                _ => break,
            }
            rest = &rest[1..];
        }
        let mut number = |rest: &mut &'a str| -> Result<Option<i64>, String> {
            if let Some(after) = rest.strip_prefix('*') {
                *rest = after;
                return Ok(Some(
                    args.next().and_then(|arg| arg.parse().ok()).unwrap_or(0),
                ));
            }
            let end = rest
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(rest.len());
            let (digits, after) = rest.split_at(end);
            *rest = after;
            match digits {
                "" => Ok(None),
                digits => digits
                    .parse()
                    .map(Some)
                    .map_err(|_| format!("%{digits}: invalid format")),
            }
        };
        if let Some(width) = number(&mut rest)? {
            self.left |= width < 0;
            self.width = width.unsigned_abs() as usize;
        }
        if let Some(after) = rest.strip_prefix('.') {
            rest = after;
            self.precision = Some(number(&mut rest)?.unwrap_or(0).max(0) as usize);
        }
        if self.width > WIDTH || self.precision.is_some_and(|precision| precision > WIDTH) {
            return Err(format!("%{format}: too wide"));
        }
        let rest = rest.trim_start_matches(['l', 'h', 'q', 'j', 'z']);
        let kind = rest
            .chars()
            .next()
            .filter(|kind| "%diouxXcsbeEfFgG".contains(*kind));
        self.kind = kind.ok_or_else(|| format!("%{format}: invalid format"))?;
        Ok(&rest[1..])
    }

    /// The text, or what can be said and what was wrong.
    fn apply(&self, arg: Option<&str>) -> Result<String, (String, String)> {
        let arg = arg.unwrap_or_default();
        match self.kind {
            's' => Ok(self.pad(
                &arg.chars()
                    .take(self.precision.unwrap_or(usize::MAX))
                    .collect::<String>(),
            )),
            'c' => Ok(self.pad(&arg.chars().take(1).collect::<String>())),
            'e' | 'E' | 'f' | 'F' | 'g' | 'G' => match arg.trim().parse::<f64>() {
                Ok(number) => Ok(self.float(number)),
                Err(_) if arg.is_empty() => Ok(self.float(0.0)),
                Err(_) => Err((self.float(0.0), format!("invalid number '{arg}'"))),
            },
            _ => match integer(arg) {
                Some(number) => Ok(self.integer(number)),
                None => Err((self.integer(0), format!("invalid number '{arg}'"))),
            },
        }
    }

    fn integer(&self, number: i64) -> String {
        let (sign, mut digits) = match self.kind {
            'd' | 'i' => {
                let sign = match number {
                    ..0 => "-",
                    _ if self.plus => "+",
                    _ if self.space => " ",
                    _ => "",
                };
                (sign, number.unsigned_abs().to_string())
            }
            'o' => (if self.alternate { "0" } else { "" }, format!("{number:o}")),
            'x' => (
                if self.alternate { "0x" } else { "" },
                format!("{number:x}"),
            ),
            'X' => (
                if self.alternate { "0X" } else { "" },
                format!("{number:X}"),
            ),
            _ => ("", (number as u64).to_string()),
        };
        let wanted = match self.precision {
            Some(precision) => precision,
            None if self.zero && !self.left => self.width.saturating_sub(sign.len()),
            None => 0,
        };
        if digits.len() < wanted {
            digits = format!("{}{digits}", "0".repeat(wanted - digits.len()));
        }
        self.pad(&format!("{sign}{digits}"))
    }

    fn float(&self, number: f64) -> String {
        let precision = self.precision.unwrap_or(6);
        let magnitude = number.abs();
        let text = match self.kind {
            'f' | 'F' => format!("{magnitude:.precision$}"),
            'e' | 'E' => exponent(magnitude, precision),
            _ => general(magnitude, precision.max(1)),
        };
        let text = if self.kind.is_uppercase() {
            text.to_uppercase()
        } else {
            text
        };
        let sign = match number {
            n if n.is_sign_negative() => "-",
            _ if self.plus => "+",
            _ if self.space => " ",
            _ => "",
        };
        let zeros = match self.zero && !self.left {
            true => self.width.saturating_sub(text.len() + sign.len()),
            false => 0,
        };
        self.pad(&format!("{sign}{}{text}", "0".repeat(zeros)))
    }

    fn pad_bytes(&self, text: &[u8], out: &mut Vec<u8>) {
        let blanks = vec![b' '; self.width.saturating_sub(text.len())];
        let (before, after) = match self.left {
            true => (text, blanks.as_slice()),
            false => (blanks.as_slice(), text),
        };
        out.extend_from_slice(before);
        out.extend_from_slice(after);
    }

    fn pad(&self, text: &str) -> String {
        let width = self.width;
        match self.left {
            true => format!("{text:<width$}"),
            false => format!("{text:>width$}"),
        }
    }
}

/// `1.5e+03`, with two digits of exponent as C has it.
fn exponent(number: f64, precision: usize) -> String {
    let text = format!("{number:.precision$e}");
    match text.split_once('e') {
        Some((digits, power)) => {
            let power: i32 = power.parse().unwrap_or(0);
            let sign = if power < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", power.abs())
        }
        None => text,
    }
}

/// `%g`: the shorter of the two, without zeros at the end.
pub fn general(number: f64, precision: usize) -> String {
    let power = match number {
        0.0 => 0,
        n => format!("{n:.*e}", precision - 1)
            .rsplit('e')
            .next()
            .and_then(|p| p.parse::<i32>().ok())
            .unwrap_or(0),
    };
    let trim = |text: String| match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    };
    if power < -4 || power >= precision as i32 {
        let text = exponent(number, precision - 1);
        return match text.split_once('e') {
            Some((digits, power)) => format!("{}e{power}", trim(digits.to_owned())),
            None => text,
        };
    }
    let decimals = (precision as i32 - 1 - power).max(0) as usize;
    trim(format!("{number:.decimals$}"))
}

/// `12`, `-3`, `0x1f`, `017`, `'a`.
fn integer(text: &str) -> Option<i64> {
    let text = text.trim();
    if let Some(c) = text.strip_prefix(['\'', '"']) {
        return c.chars().next().map(|c| i64::from(u32::from(c)));
    }
    let (digits, negative) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text.strip_prefix('+').unwrap_or(text), false),
    };
    let magnitude = match digits {
        "" => return text.is_empty().then_some(0),
        hex if hex.starts_with("0x") || hex.starts_with("0X") => {
            u64::from_str_radix(&hex[2..], 16).ok()?
        }
        octal if octal.starts_with('0') && octal.len() > 1 => {
            u64::from_str_radix(&octal[1..], 8).ok()?
        }
        digits => digits.parse().ok()?,
    };
    let number = magnitude as i64;
    Some(if negative {
        number.wrapping_neg()
    } else {
        number
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(format: &str, args: &[&str]) -> String {
        let args: Vec<_> = args.iter().map(|a| (*a).to_owned()).collect();
        String::from_utf8(render(format, &args).unwrap().0).unwrap()
    }

    #[test]
    fn directives_are_those_of_c() {
        assert_eq!(
            printed("%s-%5s|%-5s|\\n", &["a", "b", "c"]),
            "a-    b|c    |\n"
        );
        assert_eq!(
            printed(
                "%d %05d %+d %x %#o %c",
                &["7", "-42", "3", "255", "8", "xyz"]
            ),
            "7 -0042 +3 ff 010 x"
        );
        assert_eq!(
            printed("%.2f %e %g %g", &["3.14159", "1500", "0.0001", "1e10"]),
            "3.14 1.500000e+03 0.0001 1e+10"
        );
        assert_eq!(printed("%.2s%%", &["abc"]), "ab%");
        assert_eq!(printed("%*d", &["5", "3"]), "    3");
        assert_eq!(printed("%d", &["0x10"]), "16");
        assert_eq!(printed("%b", &["a\\tb"]), "a\tb");
    }

    #[test]
    fn the_format_is_used_again_for_more_arguments() {
        assert_eq!(printed("%s=%s\\n", &["a", "1", "b", "2"]), "a=1\nb=2\n");
        assert_eq!(printed("x\\n", &["a", "b"]), "x\n");
        assert_eq!(printed("%s,%d;", &["a"]), "a,0;");
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(render("%y", &[]).is_err());
        assert!(render("%99999999d", &[]).is_err());
        assert!(render("%", &[]).is_err());
        assert_eq!(
            render("%d", &["x".into()]).unwrap().1,
            Some("invalid number 'x'".into())
        );
    }

    #[test]
    fn escapes_are_replaced() {
        assert_eq!(
            unescape("a\\n\\0101\\x41\\\\\\q"),
            ("a\nAA\\\\q".into(), false)
        );
        assert_eq!(unescape("a\\cb"), ("a".into(), true));
        let bytes = render("\\377%3b", &["\\xfe".to_owned()]).unwrap().0;
        assert_eq!(bytes, b"\xff  \xfe");
    }
}

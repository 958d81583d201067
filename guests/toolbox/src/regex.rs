//! POSIX regular expressions, basic and extended, in the words of the engine (regex-lite: linear time, no back-references).

/// Which of the two syntaxes, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flavor {
    Basic,
    Extended,
    Fixed,
}

#[derive(Clone, Debug)]
pub struct Regex(regex_lite::Regex);

impl Regex {
    pub fn new(pattern: &str, flavor: Flavor, ignore_case: bool) -> Result<Self, String> {
        Self::surrounded("", pattern, "", flavor, ignore_case)
    }

    /// The pattern between two pieces of the engine's own syntax (`\b`, `^(?:`).
    pub fn surrounded(
        before: &str,
        pattern: &str,
        after: &str,
        flavor: Flavor,
        ignore_case: bool,
    ) -> Result<Self, String> {
        let translated = match flavor {
            Flavor::Fixed => regex_lite::escape(pattern),
            flavor => translate(pattern, flavor == Flavor::Extended)?,
        };
        let translated = format!("{before}{translated}{after}");
        regex_lite::RegexBuilder::new(&translated)
            .case_insensitive(ignore_case)
            .build()
            .map(Self)
            .map_err(|error| format!("bad regex '{pattern}': {error}"))
    }

    /// Bytes that are no text are looked at as the replacement character.
    pub fn is_match(&self, bytes: &[u8]) -> bool {
        self.0.is_match(&String::from_utf8_lossy(bytes))
    }

    pub fn inner(&self) -> &regex_lite::Regex {
        &self.0
    }
}

/// From POSIX to the engine's syntax.
fn translate(pattern: &str, extended: bool) -> Result<String, String> {
    let chars: Vec<char> = pattern.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    // Where a `*` or a `^` stands for something else.
    let mut fresh = true;
    while let Some(&c) = chars.get(at) {
        at += 1;
        let begins = std::mem::replace(&mut fresh, false);
        match c {
            '\\' => {
                let Some(&escaped) = chars.get(at) else {
                    return Err(format!("bad regex '{pattern}': trailing backslash"));
                };
                at += 1;
                match escaped {
                    '1'..='9' => {
                        return Err(format!(
                            "bad regex '{pattern}': back-references are not supported"
                        ));
                    }
                    '(' | '|' if !extended => {
                        out.push(escaped);
                        fresh = true;
                    }
                    ')' | '{' | '}' | '+' | '?' if !extended => out.push(escaped),
                    '<' => out.push_str(r"\b{start}"),
                    '>' => out.push_str(r"\b{end}"),
                    'n' => out.push('\n'),
                    't' => out.push('\t'),
                    'w' | 'W' | 's' | 'S' | 'b' | 'B' => {
                        out.push('\\');
                        out.push(escaped);
                    }
                    other => push_literal(&mut out, other),
                }
            }
            '[' => {
                at = bracket(&chars, at, &mut out)
                    .ok_or_else(|| format!("bad regex '{pattern}': unmatched ["))?
            }
            '*' if begins => out.push_str(r"\*"),
            '(' | '|' if extended => {
                out.push(c);
                fresh = true;
            }
            '{' if extended && !chars.get(at).is_some_and(char::is_ascii_digit) => {
                out.push_str(r"\{")
            }
            '+' | '?' if extended && begins => push_literal(&mut out, c),
            ')' | '{' | '}' | '+' | '?' if extended => out.push(c),
            '^' if extended || begins => {
                out.push('^');
                fresh = true;
            }
            '$' => {
                let rest = &chars[at..];
                let ends = rest.is_empty()
                    || rest.starts_with(&['\\', ')'])
                    || rest.starts_with(&['\\', '|']);
                match extended || ends {
                    true => out.push('$'),
                    false => out.push_str(r"\$"),
                }
            }
            '*' | '.' => out.push(c),
            other => push_literal(&mut out, other),
        }
    }
    Ok(out)
}

fn push_literal(out: &mut String, c: char) {
    out.push_str(&regex_lite::escape(c.encode_utf8(&mut [0; 4])));
}

/// A set, in which a backslash means itself.
fn bracket(chars: &[char], mut at: usize, out: &mut String) -> Option<usize> {
    out.push('[');
    if chars.get(at) == Some(&'^') {
        out.push('^');
        at += 1;
    }
    let start = at;
    loop {
        match chars.get(at)? {
            ']' if at > start => {
                out.push(']');
                return Some(at + 1);
            }
            '[' if chars.get(at + 1) == Some(&':') => {
                let end = chars[at..].iter().position(|c| *c == ']')? + at;
                out.extend(&chars[at..=end]);
                at = end + 1;
            }
            '-' if at > start && chars.get(at + 1).is_some_and(|next| *next != ']') => {
                out.push('-');
                at += 1;
            }
            // As everybody writes it, though POSIX says otherwise.
            '\\' if matches!(chars.get(at + 1), Some('n' | 't')) => {
                out.push(if chars[at + 1] == 'n' { '\n' } else { '\t' });
                at += 2;
            }
            c => {
                if matches!(c, '[' | ']' | '\\' | '-' | '^' | '&' | '~') {
                    out.push('\\');
                }
                out.push(*c);
                at += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(flavor: Flavor, pattern: &str, text: &str) -> Option<String> {
        let regex = Regex::new(pattern, flavor, false).unwrap();
        regex
            .inner()
            .find(text)
            .map(|found| found.as_str().to_owned())
    }

    #[test]
    fn basic_and_extended_differ_in_what_is_special() {
        for (flavor, pattern, text, expected) in [
            (Flavor::Basic, "a+", "aa+", "a+"),
            (Flavor::Basic, r"a\+", "aa+", "aa"),
            (Flavor::Basic, r"\(ab\)\{2\}", "ababab", "abab"),
            (Flavor::Basic, "*a", "*a", "*a"),
            (Flavor::Basic, "a^b$c", "a^b$c", "a^b$c"),
            (Flavor::Basic, r"a\|b", "b", "b"),
            (Flavor::Extended, "a+|b{2}", "bb", "bb"),
            (Flavor::Extended, "^(x|y)$", "y", "y"),
            (Flavor::Extended, "[[:digit:]]+", "ab12", "12"),
            (Flavor::Extended, r"[^]\]+", r"]\ab", "ab"),
            (Flavor::Extended, r"\<foo\>", "a foo b", "foo"),
            (Flavor::Extended, "[a-c]", "b", "b"),
            (Flavor::Extended, "a{", "a{", "a{"),
            (Flavor::Fixed, "a.b", "axb a.b", "a.b"),
        ] {
            assert_eq!(
                found(flavor, pattern, text).as_deref(),
                Some(expected),
                "{pattern}"
            );
        }
    }

    #[test]
    fn what_the_engine_cannot_do_is_refused() {
        assert!(Regex::new(r"\(a\)\1", Flavor::Basic, false).is_err());
        assert!(Regex::new("[a", Flavor::Extended, false).is_err());
        assert!(Regex::new("(a", Flavor::Extended, false).is_err());
    }
}

//! Shell patterns: `*`, `?`, `[…]`. A backslash makes the next character mean itself.

use std::path::Path;

use crate::files;

/// Whether the whole text matches.
pub fn matches(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    matches_chars(&pattern, &text)
}

/// Goes back to the last star only: linear in practice, never exponential.
fn matches_chars(pattern: &[char], text: &[char]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
                continue;
            }
            None if t == text.len() => return true,
            None => None,
            Some(_) => text.get(t).and_then(|c| one(&pattern[p..], *c)),
        };
        match (step, star) {
            (Some(length), _) => {
                p += length;
                t += 1;
            }
            (None, Some((after, from))) if from < text.len() => {
                star = Some((after, from + 1));
                p = after;
                t = from + 1;
            }
            _ => return false,
        }
    }
}

/// How much of the pattern matches this one character.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match pattern {
        ['?', ..] => Some(1),
        ['\\', escaped, ..] => (*escaped == c).then_some(2),
        ['[', rest @ ..] => match bracket(rest, c) {
            Some((true, length)) => Some(length + 1),
            Some((false, _)) => None,
            None => (c == '[').then_some(1),
        },
        [plain, ..] => (*plain == c).then_some(1),
        [] => None,
    }
}

/// Whether `c` is in the set, and the set's length with its `]`; nothing if it is not closed.
fn bracket(set: &[char], c: char) -> Option<(bool, usize)> {
    let negated = matches!(set.first(), Some('!' | '^'));
    let mut at = usize::from(negated);
    let start = at;
    let mut found = false;
    loop {
        match set.get(at)? {
            ']' if at > start => return Some((found != negated, at + 1)),
            '[' if set.get(at + 1) == Some(&':') => {
                let rest = &set[at + 2..];
                let end = rest.iter().position(|c| *c == ':')?;
                let name: String = rest[..end].iter().collect();
                found |= class(&name, c);
                at += end + 4;
            }
            first => {
                let first = match first {
                    '\\' => {
                        at += 1;
                        set.get(at)?
                    }
                    first => first,
                };
                if set.get(at + 1) == Some(&'-') && set.get(at + 2).is_some_and(|c| *c != ']') {
                    found |= (*first..=set[at + 2]).contains(&c);
                    at += 3;
                } else {
                    found |= *first == c;
                    at += 1;
                }
            }
        }
    }
}

/// `[:alpha:]` and its like, also `tr`'s.
pub fn class(name: &str, c: char) -> bool {
    match name {
        "alpha" => c.is_alphabetic(),
        "digit" => c.is_ascii_digit(),
        "alnum" => c.is_alphanumeric(),
        "upper" => c.is_uppercase(),
        "lower" => c.is_lowercase(),
        "space" => c.is_whitespace(),
        "blank" => c == ' ' || c == '\t',
        "punct" => c.is_ascii_punctuation(),
        "xdigit" => c.is_ascii_hexdigit(),
        "cntrl" => c.is_control(),
        "print" => !c.is_control(),
        "graph" => !c.is_control() && !c.is_whitespace(),
        _ => false,
    }
}

/// The text with every special character made plain.
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if matches!(c, '*' | '?' | '[' | ']' | '\\' | '-' | '!' | '^') {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

fn unescape(pattern: &str) -> String {
    let mut text = String::with_capacity(pattern.len());
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' => chars.next().unwrap_or('\\'),
            c => c,
        });
    }
    text
}

pub fn is_pattern(text: &str) -> bool {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// The existing paths that match, sorted.
pub fn glob(cwd: &str, pattern: &str) -> Vec<String> {
    let mut found = vec![match pattern.starts_with('/') {
        true => "/".to_owned(),
        false => String::new(),
    }];
    let mut parts = pattern
        .split('/')
        .filter(|part| !part.is_empty())
        .peekable();
    while let Some(part) = parts.next() {
        let mut next = Vec::new();
        for base in &found {
            if !is_pattern(part) {
                let path = format!("{base}{}", unescape(part));
                if files::lstat(Path::new(&files::absolute(cwd, &path))).is_ok() {
                    next.push(path);
                }
                continue;
            }
            let names = files::list(Path::new(&files::absolute(cwd, base))).unwrap_or_default();
            let hidden = part.starts_with('.');
            let names = names
                .into_iter()
                .filter(|name| hidden || !name.starts_with('.'));
            next.extend(
                names
                    .filter(|name| matches(part, name))
                    .map(|name| format!("{base}{name}")),
            );
        }
        if parts.peek().is_some() {
            next.retain(|path| {
                files::stat(Path::new(&files::absolute(cwd, path))).is_ok_and(|s| s.is_dir())
            });
            for path in &mut next {
                path.push('/');
            }
        }
        found = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_marks_and_sets_match_as_in_a_shell() {
        for (pattern, text) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("*.tar.*", "x.tar.gz"),
            ("?b", "ab"),
            ("[a-c]x", "bx"),
            ("[!a-c]x", "dx"),
            ("[]]", "]"),
            ("[[:digit:]]*", "7up"),
            ("\\*", "*"),
            ("[", "["),
            ("a[", "a["),
            ("*a*b*c*", "xaybzc"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a*c", "ab"),
            ("?", ""),
            ("[a-c]", "d"),
            ("\\*", "x"),
            ("[!a]", "a"),
            ("a", "ab"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn escaped_text_matches_only_itself() {
        assert!(matches(&escape("a*[b]?\\"), "a*[b]?\\"));
        assert!(!is_pattern(&escape("a*")));
        assert_eq!(unescape(&escape("a*b")), "a*b");
    }

    #[test]
    fn many_stars_do_not_take_for_ever() {
        let pattern = "a*".repeat(40) + "c";
        assert!(!matches(&pattern, &("a".repeat(2_000) + "b")));
    }
}

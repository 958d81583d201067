//! Paths: the one form in which rules and requests are compared, what a rewrite makes of a request's, and what is sent on.
//! Knows no hosts and no routes.
//!
//! As nginx does it, a path is compared after its escapes are decoded (`%2F` too), its slashes merged and its dot segments
//! resolved: whoever writes a rule, or guards one, need not think of the ways to write the same path. In that form stay
//! escaped, in capitals: `%` itself, control characters and bytes that are no UTF-8. So a `%` in it begins an escape.
//!
//! Sent on is what came: backends may tell `a%2Fb` from `a/b`. Except when there were dot segments, which nobody sends who
//! means well: a backend that takes them literally would see a path below `/open` where it was judged as one below `/admin`,
//! or the other way round. Then the form that was judged is sent, escaped anew.

use regex::Regex;

/// A request's path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Requested {
    /// What rules are compared with: `/a b/c`.
    pub compared: String,
    /// What is sent on and what redirects repeat: `/a%20b//c`.
    pub sent: String,
}

/// Why a path is not served.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the path has a % that begins no escape")]
    Escape,
    #[error("the path has a NUL")]
    Nul,
    #[error("the path leads above the root")]
    AboveRoot,
}

#[derive(Clone, Debug)]
pub enum PathRule {
    Exact(String),
    /// Element by element, without a slash at the end: `` is everything.
    Prefix(String),
    Regex(Regex),
}

#[derive(Clone, Debug)]
pub enum PathChange {
    Full(String),
    /// Instead of the prefix that matched.
    Prefix(String),
    /// Groups of the route's expression: `/${2}`; `$$` is a dollar.
    Groups(String),
}

// === impl Requested ===

impl Requested {
    /// Of a path that begins with a slash.
    pub fn parse(path: &str) -> Result<Self, Error> {
        // Nearly all of them.
        if !["%", "//", "/."].iter().any(|odd| path.contains(odd)) {
            return Ok(Self {
                compared: path.to_owned(),
                sent: path.to_owned(),
            });
        }
        let (compared, dots) = resolve(&decode(path)?)?;
        let sent = if dots {
            escape(&compared)
        } else {
            path.to_owned()
        };
        Ok(Self { compared, sent })
    }

    /// What of the path as it is sent comes after a prefix of as many elements: empty, or with one slash in front.
    fn after(&self, prefix: &str) -> String {
        let mut rest = self.sent.as_str();
        for _ in prefix.split('/').filter(|element| !element.is_empty()) {
            rest = without_slashes(rest);
            rest = &rest[first_slash(rest)..];
        }
        if rest.is_empty() {
            String::new()
        } else {
            format!("/{}", without_slashes(rest))
        }
    }
}

// === impl PathRule ===

impl PathRule {
    /// Rules are written escaped or not.
    pub fn exact(path: &str) -> Self {
        Self::Exact(of_rule(path))
    }

    pub fn prefix(path: &str) -> Self {
        Self::Prefix(of_rule(path).trim_end_matches('/').to_owned())
    }

    /// Of a path in the form that is compared.
    pub fn matches(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}

// === impl PathChange ===

impl PathChange {
    /// The path that a request which matched `rule` gets, as it is sent; it may bring a query.
    pub fn apply(&self, rule: &PathRule, asked: &Requested) -> String {
        let changed = match (self, rule) {
            (Self::Full(full), _) => written(full),
            (Self::Groups(replacement), PathRule::Regex(regex)) => {
                match expand(replacement, regex, &asked.compared) {
                    Some(path) => path,
                    None => return asked.sent.clone(),
                }
            }
            (Self::Groups(replacement), _) => written(replacement),
            (Self::Prefix(new), PathRule::Prefix(old)) => {
                let new = written(new.trim_end_matches('/'));
                new + &asked.after(old)
            }
            (Self::Prefix(_), _) => return asked.sent.clone(),
        };
        if changed.starts_with('/') {
            changed
        } else {
            format!("/{changed}")
        }
    }
}

/// Groups are parts of a path, whatever is in them: a decoded `?` begins no query.
fn expand(replacement: &str, regex: &Regex, path: &str) -> Option<String> {
    let groups = regex.captures(path)?;
    let mut out = String::new();
    let mut rest = replacement;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(&written(before));
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let group = after.strip_prefix('{').and_then(|a| a.split_once('}'));
        let Some((name, after)) = group else {
            out.push('$');
            rest = after;
            continue;
        };
        let number = name.parse().ok();
        if let Some(group) = number.and_then(|number| groups.get(number)) {
            out.push_str(&escape(group.as_str()));
        }
        rest = after;
    }
    out.push_str(&written(rest));
    Some(out)
}

/// In the form that is compared; a `%` that begins no escape means itself.
fn of_rule(path: &str) -> String {
    let literal = || decode(&path.replace('%', "%25"));
    let decoded = decode(path).or_else(|_| literal());
    decoded.unwrap_or_else(|_| path.to_owned())
}

/// Without escapes, but for those that the form keeps.
fn decode(path: &str) -> Result<String, Error> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = match bytes[at] {
            b'%' => {
                let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
                let (high, low) = digit(at + 1).zip(digit(at + 2)).ok_or(Error::Escape)?;
                at += 2;
                u8::try_from(high << 4 | low).map_err(|_| Error::Escape)?
            }
            byte => byte,
        };
        at += 1;
        match byte {
            0 => return Err(Error::Nul),
            // Kept: an expression's `.` would stop at a line's end.
            b'%' | 1..=0x1f | 0x7f => decoded.extend(format!("%{byte:02X}").into_bytes()),
            byte => decoded.push(byte),
        }
    }
    let mut out = String::with_capacity(decoded.len());
    for chunk in decoded.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    Ok(out)
}

/// Slashes merged and dot segments gone; whether there were any.
fn resolve(path: &str) -> Result<(String, bool), Error> {
    let mut elements: Vec<&str> = Vec::new();
    let mut dots = false;
    // A dot at the end stands for a directory.
    let mut is_directory = true;
    for element in path.split('/') {
        is_directory = true;
        match element {
            "" => {}
            "." => dots = true,
            ".." => {
                dots = true;
                elements.pop().ok_or(Error::AboveRoot)?;
            }
            element => {
                elements.push(element);
                is_directory = false;
            }
        }
    }
    let mut out = String::with_capacity(path.len());
    for element in &elements {
        out.push('/');
        out.push_str(element);
    }
    if is_directory {
        out.push('/');
    }
    Ok((out, dots))
}

/// As a part of a path: only what means nothing else there stays.
fn escape(text: &str) -> String {
    escaped(text, b"-._~!$&'()*+,;=:@/")
}

/// What a user wrote into a rule: escaped already, perhaps with a query. Only what no target may have is escaped.
fn written(text: &str) -> String {
    escaped(text, b"-._~!$&'()*+,;=:@/?")
}

/// Escapes that are there stay.
fn escaped(text: &str, plain: &[u8]) -> String {
    let bytes = text.as_bytes();
    let mut out = String::with_capacity(text.len());
    for (at, byte) in bytes.iter().enumerate() {
        let is_digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
        let is_escape = *byte == b'%' && is_digit(at + 1) && is_digit(at + 2);
        if byte.is_ascii_alphanumeric() || plain.contains(byte) || is_escape {
            out.push(char::from(*byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Where a path's first slash is, however it is written; its end if there is none.
fn first_slash(path: &str) -> usize {
    let mut places = path.bytes().enumerate();
    let found = places.find(|(at, _)| slash(&path.as_bytes()[*at..]) > 0);
    found.map_or(path.len(), |(at, _)| at)
}

fn without_slashes(mut path: &str) -> &str {
    while let length @ 1.. = slash(path.as_bytes()) {
        path = &path[length..];
    }
    path
}

/// How long the slash is with which a path begins: 0 for none.
fn slash(path: &[u8]) -> usize {
    match path {
        [b'/', ..] => 1,
        [b'%', b'2', b'F' | b'f', ..] => 3,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(path: &str) -> Requested {
        Requested::parse(path).unwrap()
    }

    #[test]
    fn prefixes_go_by_element() {
        // The table of the Ingress documentation.
        let cases = [
            ("/", "/any/path", true),
            ("/foo", "/foo", true),
            ("/foo", "/foo/", true),
            ("/foo/", "/foo", true),
            ("/foo/", "/foo/", true),
            ("/aaa/bb", "/aaa/bbb", false),
            ("/aaa/bbb", "/aaa/bbb", true),
            ("/aaa/bbb/", "/aaa/bbb", true),
            ("/aaa/bbb", "/aaa/bbb/", true),
            ("/aaa/bbb", "/aaa/bbb/ccc", true),
            ("/aaa/bbb", "/aaa/bbbxyz", false),
            ("/aaa/bbb", "/ccc", false),
        ];
        for (prefix, path, expected) in cases {
            let matched = PathRule::prefix(prefix).matches(path);
            assert_eq!(matched, expected, "{prefix} and {path}");
        }
    }

    #[test]
    fn a_path_is_compared_in_one_form_and_sent_on_as_it_came() {
        // Path, as it is compared, as it is sent on where that differs.
        let cases = [
            ("/", "/", ""),
            ("/a/b/", "/a/b/", ""),
            ("//admin", "/admin", ""),
            ("/%61dmin", "/admin", ""),
            ("/%2Fadmin", "/admin", ""),
            ("/a%2fb", "/a/b", ""),
            ("/a%20b%C3%BC", "/a bü", ""),
            ("/a%3Fb%23", "/a?b#", ""),
            ("/%2561dmin", "/%2561dmin", ""),
            ("/a%0ab%ff", "/a%0Ab%FF", ""),
            ("/...", "/...", ""),
            ("/.well-known/a..b", "/.well-known/a..b", ""),
            ("/open/../admin", "/admin", "/admin"),
            ("/open/%2e%2E/admin", "/admin", "/admin"),
            ("/open%2F..%2Fadmin", "/admin", "/admin"),
            ("/open/x/.././/../admin", "/admin", "/admin"),
            ("/a/..", "/", "/"),
            ("/a/b/.", "/a/b/", "/a/b/"),
            ("/a/b/..", "/a/", "/a/"),
            ("/./a%20b%25%3F;c", "/a b%25?;c", "/a%20b%25%3F;c"),
        ];
        for (path, compared, sent) in cases {
            let sent = if sent.is_empty() { path } else { sent };
            let found = asked(path);
            assert_eq!((&*found.compared, &*found.sent), (compared, sent), "{path}");
        }
        for (path, error) in [
            ("/..", Error::AboveRoot),
            ("/a/../../b", Error::AboveRoot),
            ("/%2e%2e/b", Error::AboveRoot),
            ("/%", Error::Escape),
            ("/%4", Error::Escape),
            ("/%zz", Error::Escape),
            ("/a%00b", Error::Nul),
        ] {
            assert_eq!(Requested::parse(path), Err(error), "{path}");
        }
    }

    #[test]
    fn rules_are_written_escaped_or_not() {
        for (rule, path) in [
            ("/a%20b", "/a b"),
            ("/a b", "/a%20b"),
            ("/caf%c3%a9", "/café"),
            ("/100%", "/100%25"),
            ("/100%25", "/100%25"),
            ("/%FF", "/%ff"),
        ] {
            let path = asked(path).compared;
            assert!(PathRule::exact(rule).matches(&path), "{rule} and {path}");
            assert!(PathRule::prefix(rule).matches(&path), "{rule} and {path}");
        }
    }

    #[test]
    fn paths_are_rewritten() {
        let prefix = PathRule::prefix("/foo");
        let cases = [
            ("/xyz", "/foo/bar", "/xyz/bar"),
            ("/xyz/", "/foo/bar", "/xyz/bar"),
            ("/xyz", "/foo", "/xyz"),
            ("/", "/foo", "/"),
            ("/", "/foo/", "/"),
            ("", "/foo/bar", "/bar"),
            ("/xyz", "/foo/a%2Fb%3F", "/xyz/a%2Fb%3F"),
            ("/xyz", "//%66oo//a//b", "/xyz/a//b"),
            ("/", "/foo%2F/evil.test", "/evil.test"),
            ("/xyz", "/x/../foo/a%2Fb", "/xyz/a/b"),
            ("/x y", "/foo/a", "/x%20y/a"),
        ];
        for (new, path, expected) in cases {
            let change = PathChange::Prefix(new.to_owned());
            let changed = change.apply(&prefix, &asked(path));
            assert_eq!(changed, expected, "{new} for {path}");
        }
        let regex = PathRule::Regex(Regex::new("(?i)^/something(/|$)(.*)").unwrap());
        let change = PathChange::Groups("/${2}?x=$$1".to_owned());
        for (path, expected) in [
            ("/something/new", "/new?x=$1"),
            ("/something", "/?x=$1"),
            ("/something/a%3Fadmin=1%26", "/a%3Fadmin=1&?x=$1"),
            ("/something/a%2520%0A%ff", "/a%2520%0A%FF?x=$1"),
        ] {
            assert_eq!(change.apply(&regex, &asked(path)), expected, "{path}");
        }
        let full = PathChange::Full("there\n%20?a b".to_owned());
        let changed = full.apply(&prefix, &asked("/foo"));
        assert_eq!(changed, "/there%0A%20?a%20b");
    }

    proptest! {
        /// A backend that resolves what it gets, and one that takes it literally, see what was judged.
        #[test]
        fn what_is_sent_on_is_what_was_judged(path in "(/|%2f|\\.|\\.\\.|%2e|a|%61|%25|b ){1,12}") {
            if let Ok(found) = Requested::parse(&format!("/{path}")) {
                let again = asked(&found.sent);
                prop_assert_eq!(&again.compared, &found.compared);
                prop_assert_eq!(&again.sent, &found.sent);
                let literal = found.sent.split('/').any(|e| e == "." || e == "..");
                prop_assert!(!literal, "{}", found.sent);
            }
        }
    }
}

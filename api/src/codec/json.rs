//! Why a body is not JSON, in the words of Go's scanner. Pure.

/// The text for an error serde found: Go's words for bad syntax, serde's for the rest (too deep).
pub(super) fn error_text(body: &[u8], error: &serde_json::Error) -> String {
    const HEAD: &str = "couldn't get version/kind; json parse error:";
    match syntax_error(body) {
        Some(text) => format!("{HEAD} {text}"),
        None => format!("{HEAD} {error}"),
    }
}

/// Parses JSON; the error is Go's text.
pub fn parse(body: &[u8]) -> Result<serde_json::Value, String> {
    serde_json::from_slice(body)
        .map_err(|error| syntax_error(body).unwrap_or_else(|| error.to_string()))
}

/// What Go's scanner says about `body`; `None` when it is one well-formed value.
pub fn syntax_error(body: &[u8]) -> Option<String> {
    let mut scanner = Scanner { body, at: 0 };
    scanner.document().err()
}

const END: &str = "unexpected end of JSON input";

struct Scanner<'a> {
    body: &'a [u8],
    at: usize,
}

// === impl Scanner ===

impl Scanner<'_> {
    fn document(&mut self) -> Result<(), String> {
        self.values()?;
        self.space();
        match self.body.get(self.at) {
            None => Ok(()),
            Some(byte) => Err(invalid(*byte, "after top-level value")),
        }
    }

    /// One value with everything inside it; a stack of our own, so that depth costs no recursion.
    fn values(&mut self) -> Result<(), String> {
        let mut open: Vec<u8> = Vec::new();
        loop {
            let opened = self.value()?;
            if let Some(bracket) = opened {
                open.push(bracket);
                if self.opens(bracket)? {
                    continue;
                }
                open.pop();
            }
            loop {
                let Some(bracket) = open.last() else {
                    return Ok(());
                };
                if self.goes_on(*bracket)? {
                    break;
                }
                open.pop();
            }
        }
    }

    /// A scalar, or the bracket that opens a list or an object.
    fn value(&mut self) -> Result<Option<u8>, String> {
        self.space();
        match self.peek()? {
            bracket @ (b'{' | b'[') => {
                self.at += 1;
                Ok(Some(bracket))
            }
            b'"' => self.string().map(|()| None),
            b't' => self.literal("true").map(|()| None),
            b'f' => self.literal("false").map(|()| None),
            b'n' => self.literal("null").map(|()| None),
            b'-' | b'0'..=b'9' => self.number().map(|()| None),
            byte => Err(invalid(byte, "looking for beginning of value")),
        }
    }

    /// After an opening bracket: is there a first value? `false` when it is closed at once.
    fn opens(&mut self, bracket: u8) -> Result<bool, String> {
        self.space();
        let byte = self.peek()?;
        if byte == closing(bracket) {
            self.at += 1;
            return Ok(false);
        }
        if bracket == b'{' {
            self.key()?;
        }
        Ok(true)
    }

    /// After a value inside a bracket: is there another? `false` when the bracket closes.
    fn goes_on(&mut self, bracket: u8) -> Result<bool, String> {
        self.space();
        let byte = self.peek()?;
        self.at += 1;
        match (byte, bracket) {
            (b',', b'{') => self.key().map(|()| true),
            (b',', _) => Ok(true),
            (byte, bracket) if byte == closing(bracket) => Ok(false),
            (byte, b'{') => Err(invalid(byte, "after object key:value pair")),
            (byte, _) => Err(invalid(byte, "after array element")),
        }
    }

    fn key(&mut self) -> Result<(), String> {
        self.space();
        match self.peek()? {
            b'"' => self.string()?,
            byte => return Err(invalid(byte, "looking for beginning of object key string")),
        }
        self.space();
        match self.peek()? {
            b':' => {
                self.at += 1;
                Ok(())
            }
            byte => Err(invalid(byte, "after object key")),
        }
    }

    fn string(&mut self) -> Result<(), String> {
        self.at += 1;
        loop {
            let byte = self.next()?;
            match byte {
                b'"' => return Ok(()),
                b'\\' => self.escape()?,
                0..0x20 => return Err(invalid(byte, "in string literal")),
                _ => {}
            }
        }
    }

    fn escape(&mut self) -> Result<(), String> {
        let byte = self.next()?;
        match byte {
            b'b' | b'f' | b'n' | b'r' | b't' | b'\\' | b'/' | b'"' => Ok(()),
            b'u' => {
                for _ in 0..4 {
                    let byte = self.next()?;
                    if !byte.is_ascii_hexdigit() {
                        return Err(invalid(byte, "in \\u hexadecimal character escape"));
                    }
                }
                Ok(())
            }
            _ => Err(invalid(byte, "in string escape code")),
        }
    }

    fn literal(&mut self, word: &str) -> Result<(), String> {
        for expected in word.bytes() {
            let byte = self.next()?;
            if byte != expected {
                let place = format!("in literal {word} (expecting {})", quoted(expected));
                return Err(invalid(byte, &place));
            }
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), String> {
        if self.body[self.at] == b'-' {
            self.at += 1;
            self.digit("in numeric literal")?;
        } else {
            self.at += 1;
        }
        if self.body[self.at - 1] != b'0' {
            self.digits();
        }
        if self.body.get(self.at) == Some(&b'.') {
            self.at += 1;
            self.digit("after decimal point in numeric literal")?;
            self.digits();
        }
        if let Some(b'e' | b'E') = self.body.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.body.get(self.at) {
                self.at += 1;
            }
            self.digit("in exponent of numeric literal")?;
            self.digits();
        }
        Ok(())
    }

    fn digit(&mut self, place: &str) -> Result<(), String> {
        let byte = self.next()?;
        if byte.is_ascii_digit() {
            Ok(())
        } else {
            Err(invalid(byte, place))
        }
    }

    fn digits(&mut self) {
        while self.body.get(self.at).is_some_and(u8::is_ascii_digit) {
            self.at += 1;
        }
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.body.get(self.at) {
            self.at += 1;
        }
    }

    fn peek(&self) -> Result<u8, String> {
        self.body
            .get(self.at)
            .copied()
            .ok_or_else(|| END.to_owned())
    }

    fn next(&mut self) -> Result<u8, String> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }
}

fn closing(bracket: u8) -> u8 {
    if bracket == b'{' { b'}' } else { b']' }
}

fn invalid(byte: u8, place: &str) -> String {
    format!("invalid character {} {place}", quoted(byte))
}

/// Go's `quoteChar`: bytes, not characters.
fn quoted(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        0..0x20 | 0x7f => format!(r"'\x{byte:02x}'"),
        0x80..0xa0 => format!(r"'\u{byte:04x}'"),
        _ => format!("'{}'", char::from(byte)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(body: &str, expected: &str) {
        assert_eq!(
            syntax_error(body.as_bytes()).as_deref(),
            Some(expected),
            "{body}"
        );
        assert!(
            serde_json::from_str::<serde_json::Value>(body).is_err(),
            "{body}"
        );
    }

    #[test]
    fn bad_json_is_named_as_go_names_it() {
        check(
            "not json",
            "invalid character 'o' in literal null (expecting 'u')",
        );
        check(
            "{bad",
            "invalid character 'b' looking for beginning of object key string",
        );
        check("", "unexpected end of JSON input");
        check("{\"a\":1", "unexpected end of JSON input");
        check("{\"a\" 1}", "invalid character '1' after object key");
        check(
            "{\"a\":1 \"b\"}",
            "invalid character '\"' after object key:value pair",
        );
        check("[1 2]", "invalid character '2' after array element");
        check("{} x", "invalid character 'x' after top-level value");
        check(
            "[1.x]",
            "invalid character 'x' after decimal point in numeric literal",
        );
        check("\"\\q\"", "invalid character 'q' in string escape code");
    }

    #[test]
    fn good_json_has_no_error() {
        for body in [
            "{}",
            " [1, -0.5e+3, {\"a\": [null, true]}, \"\\u00e9\\n\"] ",
            "0",
        ] {
            assert_eq!(syntax_error(body.as_bytes()), None, "{body}");
        }
    }

    #[test]
    fn depth_does_not_overflow_the_stack() {
        let deep = "[".repeat(1_000_000);
        assert_eq!(syntax_error(deep.as_bytes()).as_deref(), Some(END));
    }
}

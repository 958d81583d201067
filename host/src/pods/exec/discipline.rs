//! A terminal's line discipline, cooked: what a person types becomes lines, and is echoed. PURE: no streams, no clock.
//!
//! ```text
//! Enter    the line is read                  ^H ^?  the last character goes        ^C  the line goes; [`Act::Interrupt`]
//! ^D       the line so far is read, or End   ^W     the last word goes             ^\  [`Act::Quit`]
//! arrows   swallowed (no line is kept)       ^U     the line goes                  ^R  the line is shown again
//! ```
//!
//! There is no raw mode: a guest of WASI cannot ask for one.

/// Longest line, as of the kernel's own discipline; what is typed beyond it rings the bell.
const LINE: usize = 4_095;

/// One terminal's.
#[derive(Debug, Default)]
pub(super) struct Discipline {
    line: Vec<u8>,
    escape: Escape,
    /// The last byte was a carriage return: a line feed after it is the same Enter.
    returned: bool,
}

/// Where in a key's sequence (`ESC [ 1 ; 5 C`) the last byte was.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
enum Escape {
    #[default]
    None,
    Begun,
    Control,
    Single,
}

/// What happened while some bytes were typed, in order.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Act {
    /// For the guest to read.
    Line(Vec<u8>),
    /// One read finds the end.
    End,
    Interrupt,
    Quit,
}

/// What to do, and what to show.
#[derive(Debug, Default, Eq, PartialEq)]
pub(super) struct Heard {
    pub(super) acts: Vec<Act>,
    pub(super) echo: Vec<u8>,
}

impl Discipline {
    pub(super) fn hear(&mut self, bytes: &[u8]) -> Heard {
        let mut heard = Heard::default();
        for byte in bytes {
            self.byte(*byte, &mut heard);
        }
        heard
    }

    fn byte(&mut self, byte: u8, heard: &mut Heard) {
        if self.in_escape(byte) {
            return;
        }
        let after_return = std::mem::replace(&mut self.returned, byte == b'\r');
        match byte {
            b'\n' if after_return => {}
            b'\r' | b'\n' => {
                self.line.push(b'\n');
                heard.echo.extend_from_slice(b"\r\n");
                heard.acts.push(Act::Line(std::mem::take(&mut self.line)));
            }
            0x03 => {
                self.line.clear();
                heard.echo.extend_from_slice(b"^C");
                heard.acts.push(Act::Interrupt);
            }
            0x1c => {
                self.line.clear();
                heard.echo.extend_from_slice(b"^\\");
                heard.acts.push(Act::Quit);
            }
            0x04 if self.line.is_empty() => heard.acts.push(Act::End),
            0x04 => heard.acts.push(Act::Line(std::mem::take(&mut self.line))),
            0x08 | 0x7f => self.erase(heard),
            0x12 => {
                heard.echo.extend_from_slice(b"^R\r\n");
                for byte in &self.line {
                    show(*byte, &mut heard.echo);
                }
            }
            0x15 => {
                while !self.line.is_empty() {
                    self.erase(heard);
                }
            }
            0x17 => {
                while self.line.last().is_some_and(u8::is_ascii_whitespace) {
                    self.erase(heard);
                }
                while self
                    .line
                    .last()
                    .is_some_and(|last| !last.is_ascii_whitespace())
                {
                    self.erase(heard);
                }
            }
            0x1b => self.escape = Escape::Begun,
            _ if self.line.len() >= LINE => heard.echo.push(0x07),
            byte => {
                self.line.push(byte);
                show(byte, &mut heard.echo);
            }
        }
    }

    /// Keys that send sequences mean nothing to a line.
    fn in_escape(&mut self, byte: u8) -> bool {
        self.escape = match (self.escape, byte) {
            (Escape::None, _) => return false,
            (Escape::Begun, b'[') => Escape::Control,
            (Escape::Begun, b'O') => Escape::Single,
            // Parameters and intermediates; the final byte ends it.
            (Escape::Control, 0x20..=0x3f) => Escape::Control,
            // A control character is meant, whatever came before it.
            (_, 0x00..=0x1f) => {
                self.escape = Escape::None;
                return false;
            }
            _ => Escape::None,
        };
        true
    }

    /// The last character, with the cells it takes.
    fn erase(&mut self, heard: &mut Heard) {
        let Some(mut last) = self.line.pop() else {
            return;
        };
        // The bytes of one UTF-8 character.
        while last & 0xc0 == 0x80 {
            match self.line.pop() {
                Some(before) => last = before,
                None => break,
            }
        }
        let cells = if last < 0x20 && last != b'\t' { 2 } else { 1 };
        for _ in 0..cells {
            heard.echo.extend_from_slice(b"\x08 \x08");
        }
    }
}

/// Control characters are shown as `^X`.
fn show(byte: u8, echo: &mut Vec<u8>) {
    match byte {
        b'\t' => echo.push(byte),
        0x00..=0x1f => echo.extend_from_slice(&[b'^', byte ^ 0x40]),
        byte => echo.push(byte),
    }
}

/// What a terminal is sent for what a program writes: each line feed begins a line at its beginning.
pub(super) fn printed(bytes: &[u8]) -> Vec<u8> {
    let mut printed = Vec::with_capacity(bytes.len() + 8);
    for byte in bytes {
        if *byte == b'\n' {
            printed.push(b'\r');
        }
        printed.push(*byte);
    }
    printed
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the guest reads, `$` for the end, `!` for an interrupt, `Q` for quit; and what is shown.
    fn typed(bytes: &[u8]) -> (String, String) {
        let heard = Discipline::default().hear(bytes);
        let read = heard.acts.iter().map(|act| match act {
            Act::Line(line) => String::from_utf8_lossy(line).into_owned(),
            Act::End => "$".to_owned(),
            Act::Interrupt => "!".to_owned(),
            Act::Quit => "Q".to_owned(),
        });
        let echo = String::from_utf8_lossy(&heard.echo).into_owned();
        (read.collect(), echo)
    }

    fn check(bytes: &[u8], read: &str, echo: &str) {
        let (was_read, was_shown) = typed(bytes);
        let typed = String::from_utf8_lossy(bytes);
        assert_eq!(was_read, read, "read of {typed:?}");
        assert_eq!(was_shown, echo, "shown of {typed:?}");
    }

    #[test]
    fn lines_are_edited_before_they_are_read() {
        check(b"ls\r", "ls\n", "ls\r\n");
        check(b"ls\n", "ls\n", "ls\r\n");
        check(b"a\r\nb\r\n", "a\nb\n", "a\r\nb\r\n");
        check(b"lx\x7fs\r", "ls\n", "lx\x08 \x08s\r\n");
        check(b"\x08\x7f\r", "\n", "\r\n");
        check("aé\x7fb\r".as_bytes(), "ab\n", "aé\x08 \x08b\r\n");
        check(b"a b\x17c\r", "a c\n", "a b\x08 \x08c\r\n");
        check(b"ab\x15c\r", "c\n", "ab\x08 \x08\x08 \x08c\r\n");
        check(b"\x01\x7f\r", "\n", "^A\x08 \x08\x08 \x08\r\n");
    }

    #[test]
    fn control_keys_do_what_a_terminal_does() {
        check(b"ab\x03c\r", "!c\n", "ab^Cc\r\n");
        check(b"\x04", "$", "");
        check(b"ab\x04", "ab", "ab");
        check(b"ab\x1c", "Q", "ab^\\");
        check(b"ab\x12\r", "ab\n", "ab^R\r\nab\r\n");
    }

    #[test]
    fn keys_that_send_sequences_are_swallowed() {
        check(b"a\x1b[A\x1b[1;5Cb\x1bOP\r", "ab\n", "ab\r\n");
        check(b"\x1b\x03", "!", "^C");
        let mut split = Discipline::default();
        split.hear(b"\x1b");
        split.hear(b"[");
        assert_eq!(split.hear(b"Dx").echo, b"x");
    }

    #[test]
    fn a_line_that_is_too_long_rings_the_bell() {
        let mut discipline = Discipline::default();
        discipline.hear(&vec![b'x'; LINE]);
        assert_eq!(discipline.hear(b"y").echo, [0x07]);
        let heard = discipline.hear(b"\r");
        assert!(matches!(&heard.acts[..], [Act::Line(line)] if line.len() == LINE + 1));
    }

    #[test]
    fn what_is_read_does_not_depend_on_how_the_keys_arrive() {
        // A small generator with a fixed seed: keys of every kind, in pieces of every size.
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut next = move |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        const KEYS: &[u8] = b"ab \r\n\x03\x04\x08\x15\x17\x1b[OA;~\xc3\xa9\x7f\x12\x1c\t";
        for _ in 0..2_000 {
            let length = next(40);
            let keys: Vec<u8> = (0..length)
                .map(|_| KEYS[next(KEYS.len() as u64) as usize])
                .collect();
            let whole = Discipline::default().hear(&keys);
            let mut pieces = Heard::default();
            let mut discipline = Discipline::default();
            let mut rest = &keys[..];
            while !rest.is_empty() {
                let (piece, left) = rest.split_at(1 + next(rest.len() as u64) as usize);
                let heard = discipline.hear(piece);
                pieces.acts.extend(heard.acts);
                pieces.echo.extend(heard.echo);
                rest = left;
            }
            assert_eq!(whole, pieces, "{:?}", String::from_utf8_lossy(&keys));
            assert!(discipline.line.len() <= LINE);
        }
    }

    #[test]
    fn a_terminal_is_sent_carriage_returns() {
        assert_eq!(printed(b"a\nb\n"), b"a\r\nb\r\n");
        assert_eq!(printed(b""), b"");
    }
}

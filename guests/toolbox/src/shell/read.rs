//! `read` and `getopts`: builtins that put what they find into variables.

use super::{Jump, Shell};
use crate::io;
use crate::options;
use crate::os;

const SPEC: options::Spec = options::Spec {
    short: "rsp:",
    long: &[],
    stop: true,
};

/// One line, cut at IFS; the last name gets the rest.
pub(super) fn read(shell: &mut Shell, args: &[String]) -> Result<i32, Jump> {
    let options = match options::parse(&SPEC, args) {
        Ok(options) => options,
        Err(error) => {
            shell.complain(format_args!("read: {error}"));
            return Ok(2);
        }
    };
    if let Some(prompt) = options.value('p') {
        io::print(&shell.output(2), prompt);
    }
    let raw = options.has('r');
    let mut line: Vec<(char, bool)> = Vec::new();
    let mut complete = false;
    while !complete {
        let bytes = match shell.input().line() {
            Ok(bytes) => bytes,
            Err(_) if os::interrupted() => return Err(Jump::Interrupted),
            Err(error) => {
                shell.complain(format_args!("read: {}", io::why(&error)));
                return Ok(1);
            }
        };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some(text) = text.strip_suffix('\n') else {
            line.extend(text.chars().map(|c| (c, false)));
            break;
        };
        complete = true;
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '\\' if !raw => match chars.next() {
                    Some(escaped) => line.push((escaped, true)),
                    // The line goes on.
                    None => complete = false,
                },
                c => line.push((c, false)),
            }
        }
    }
    let separators = shell.variable("IFS").unwrap_or_else(|| " \t\n".to_owned());
    let reply = ["REPLY".to_owned()];
    let names = match options.operands.as_slice() {
        [] => &reply,
        names => names,
    };
    for (name, value) in names.iter().zip(fields(&line, &separators, names.len())) {
        shell.assign(name, value)?;
    }
    Ok(i32::from(!complete))
}

/// Cuts a line into so many fields; characters that were escaped separate nothing.
fn fields(line: &[(char, bool)], separators: &str, count: usize) -> Vec<String> {
    let separates = |(c, escaped): &(char, bool)| !escaped && separators.contains(*c);
    let blank = |pair: &(char, bool)| separates(pair) && pair.0.is_ascii_whitespace();
    let mut rest = line;
    while let Some((first, tail)) = rest.split_first().filter(|(first, _)| blank(first)) {
        let _ = first;
        rest = tail;
    }
    let text = |part: &[(char, bool)]| part.iter().map(|(c, _)| *c).collect::<String>();
    let mut fields = Vec::new();
    while fields.len() + 1 < count {
        let end = rest.iter().position(separates).unwrap_or(rest.len());
        fields.push(text(&rest[..end]));
        rest = &rest[end..];
        // Blanks, at most one other separator, blanks.
        let mut other = false;
        while let Some((first, tail)) = rest.split_first() {
            if !separates(first) || (other && !blank(first)) {
                break;
            }
            other |= !blank(first);
            rest = tail;
        }
    }
    while let Some((_, head)) = rest.split_last().filter(|(last, _)| blank(last)) {
        rest = head;
    }
    // A single separator at the end of the last field is not part of it.
    if let Some((last, head)) = rest.split_last()
        && separates(last)
        && !head.iter().any(separates)
    {
        rest = head;
    }
    fields.push(text(rest));
    fields
}

/// `getopts optstring name [arg…]`.
pub(super) fn getopts(shell: &mut Shell, args: &[String]) -> Result<i32, Jump> {
    let [known, name, given @ ..] = args else {
        shell.complain("usage: getopts optstring var [arg]");
        return Ok(2);
    };
    let given = match given {
        [] => shell.params.clone(),
        given => given.to_vec(),
    };
    let (silent, known) = match known.strip_prefix(':') {
        Some(known) => (true, known),
        None => (false, known.as_str()),
    };
    let mut index: usize = shell
        .variable("OPTIND")
        .and_then(|text| text.parse().ok())
        .unwrap_or(1)
        .max(1);
    let mut at = shell.option_at;
    let word = given.get(index - 1).cloned().unwrap_or_default();
    if at == 0 && (!word.starts_with('-') || word == "-" || word == "--") {
        index += usize::from(word == "--");
        shell.assign("OPTIND", index.to_string())?;
        shell.assign(name, "?".to_owned())?;
        return Ok(1);
    }
    let letters: Vec<char> = word.chars().collect();
    at = at.max(1);
    let letter = letters.get(at).copied().unwrap_or('?');
    at += 1;
    let place = known.find(letter).filter(|_| letter != ':');
    let takes_value =
        place.is_some_and(|place| known[place + letter.len_utf8()..].starts_with(':'));
    let mut value = None;
    let mut missing = false;
    if takes_value {
        if at < letters.len() {
            value = Some(letters[at..].iter().collect::<String>());
        } else {
            index += 1;
            value = given.get(index - 1).cloned();
            missing = value.is_none();
        }
        at = letters.len();
    }
    if at >= letters.len() {
        at = 0;
        index += 1;
    }
    let (result, argument) = match (place, missing) {
        (Some(_), false) => (letter.to_string(), value),
        (Some(_), true) if silent => (":".to_owned(), Some(letter.to_string())),
        (None, _) if silent => ("?".to_owned(), Some(letter.to_string())),
        (place, _) => {
            let what = if place.is_some() {
                "No arg for"
            } else {
                "Illegal option"
            };
            shell.complain(format_args!("{what} -{letter}"));
            ("?".to_owned(), None)
        }
    };
    shell.assign("OPTIND", index.to_string())?;
    shell.option_at = at;
    match argument {
        Some(argument) => shell.assign("OPTARG", argument)?,
        None => {
            shell.variables.remove("OPTARG");
        }
    }
    shell.assign(name, result)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(line: &str, separators: &str, count: usize) -> Vec<String> {
        let line: Vec<_> = line.chars().map(|c| (c, false)).collect();
        fields(&line, separators, count)
    }

    #[test]
    fn lines_are_cut_as_posix_says() {
        assert_eq!(cut("  a b  c ", " \t\n", 2), ["a", "b  c"]);
        assert_eq!(cut("a:b:c", ":", 2), ["a", "b:c"]);
        assert_eq!(cut("a::c", ":", 3), ["a", "", "c"]);
        assert_eq!(cut("a", " ", 3), ["a", "", ""]);
        assert_eq!(cut("k = v", "= ", 2), ["k", "v"]);
        assert_eq!(cut(" x ", "", 1), [" x "]);
    }
}

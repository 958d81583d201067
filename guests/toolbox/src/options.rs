//! Reads an applet's options as getopt does: `-la`, `-n 3`, `-n3`, `--name=value`, `--`. Unknown ones are refused.

/// What an applet understands: single letters (`n:` takes a value) and long names that mean a letter.
#[derive(Clone, Copy)]
pub struct Spec {
    pub short: &'static str,
    pub long: &'static [(&'static str, char)],
    /// The first operand ends the options (`env`, `xargs`).
    pub stop: bool,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    given: Vec<(char, String)>,
    pub operands: Vec<String>,
}

impl Options {
    pub fn has(&self, letter: char) -> bool {
        self.given.iter().any(|(given, _)| *given == letter)
    }

    /// The last value given for the letter.
    pub fn value(&self, letter: char) -> Option<&str> {
        self.values(letter).last()
    }

    pub fn values(&self, letter: char) -> impl Iterator<Item = &str> {
        self.given
            .iter()
            .filter(move |(given, _)| *given == letter)
            .map(|(_, value)| value.as_str())
    }

    /// Which of these letters came last.
    pub fn last_of(&self, letters: &str) -> Option<char> {
        let mut of = self.given.iter().rev().map(|(given, _)| *given);
        of.find(|given| letters.contains(*given))
    }

    /// A number given for the letter, or what is wrong with it.
    pub fn number(&self, letter: char) -> Result<Option<u64>, String> {
        self.value(letter)
            .map(|text| text.parse().map_err(|_| format!("invalid number '{text}'")))
            .transpose()
    }
}

/// Takes the arguments apart.
pub fn parse(spec: &Spec, args: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        if arg == "--" {
            options.operands.extend(args.cloned());
            break;
        }
        if let Some(name) = arg.strip_prefix("--") {
            let (name, value) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (name, None),
            };
            let letter = spec.long.iter().find(|(long, _)| *long == name);
            let Some((_, letter)) = letter else {
                return Err(format!("unrecognized option '--{name}'"));
            };
            let value = match (takes_value(spec, *letter), value) {
                (true, Some(value)) => value.to_owned(),
                (true, None) => args
                    .next()
                    .cloned()
                    .ok_or_else(|| format!("option '--{name}' requires an argument"))?,
                (false, Some(_)) => {
                    return Err(format!("option '--{name}' doesn't allow an argument"));
                }
                (false, None) => String::new(),
            };
            options.given.push((*letter, value));
        } else if let Some(letters) = arg.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            cluster(spec, letters, &mut args, &mut options)?;
        } else {
            options.operands.push(arg.clone());
            if spec.stop {
                options.operands.extend(args.cloned());
                break;
            }
        }
    }
    Ok(options)
}

/// `-la`, `-n3`: letters behind one dash.
fn cluster(
    spec: &Spec,
    letters: &str,
    args: &mut std::slice::Iter<'_, String>,
    options: &mut Options,
) -> Result<(), String> {
    for (at, letter) in letters.char_indices() {
        if letter == ':' || !spec.short.contains(letter) {
            return Err(format!("unrecognized option: {letter}"));
        }
        if !takes_value(spec, letter) {
            options.given.push((letter, String::new()));
            continue;
        }
        let rest = &letters[at + letter.len_utf8()..];
        let value = match rest {
            "" => args
                .next()
                .cloned()
                .ok_or_else(|| format!("option requires an argument: {letter}"))?,
            rest => rest.to_owned(),
        };
        options.given.push((letter, value));
        return Ok(());
    }
    Ok(())
}

fn takes_value(spec: &Spec, letter: char) -> bool {
    spec.short
        .find(letter)
        .is_some_and(|at| spec.short[at + letter.len_utf8()..].starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: Spec = Spec {
        short: "lan:",
        long: &[("all", 'a'), ("lines", 'n')],
        stop: false,
    };

    fn parsed(args: &[&str]) -> Result<Options, String> {
        let args: Vec<_> = args.iter().map(|a| (*a).to_owned()).collect();
        parse(&SPEC, &args)
    }

    #[test]
    fn letters_values_and_long_names_are_told_apart() {
        let options = parsed(&["-la", "x", "-n3", "--lines=4", "--", "-l"]).unwrap();
        assert!(options.has('l') && options.has('a'));
        assert_eq!(options.values('n').collect::<Vec<_>>(), ["3", "4"]);
        assert_eq!(options.operands, ["x", "-l"]);
        assert_eq!(parsed(&["-"]).unwrap().operands, ["-"]);
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(parsed(&["-z"]).is_err());
        assert!(parsed(&["--color"]).is_err());
        assert!(parsed(&["-n"]).is_err());
        assert!(parsed(&["--all=1"]).is_err());
    }
}

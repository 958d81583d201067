//! `sed`: the script is read by `script`, lines are edited here.

mod script;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::rc::Rc;

use super::text::{ByLine, chomp, lined};
use super::{Answer, done};
use crate::context::Context;
use crate::files;
use crate::io::{Closed, Input, Output, Written, noticed, why};
use crate::options::{Spec, parse};
use crate::os;
use crate::regex::Flavor;
use script::{Action, Address, Command, Selection, Substitution};

/// Commands run on one line before a script that loops is stopped.
const STEPS: u32 = 1_000_000;
/// What is written to a file at once.
const CHUNK: usize = 64 << 10;

pub fn start(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        // A suffix belongs to -i itself, which no other option does: it is cut off below.
        short: "nEre:f:is",
        long: &[
            ("quiet", 'n'),
            ("silent", 'n'),
            ("regexp-extended", 'E'),
            ("expression", 'e'),
            ("in-place", 'i'),
        ],
        stop: false,
    };
    let mut suffix = String::new();
    let args: Vec<String> = args
        .iter()
        .map(|arg| {
            match arg
                .strip_prefix("-i")
                .or_else(|| arg.strip_prefix("--in-place="))
            {
                Some(rest) if !rest.is_empty() && rest.starts_with('.') => {
                    suffix = rest.to_owned();
                    "-i".to_owned()
                }
                _ => arg.clone(),
            }
        })
        .collect();
    let mut options = parse(&SPEC, &args)?;
    let mut text: Vec<String> = options.values('e').map(str::to_owned).collect();
    for file in options.values('f') {
        let script = files::open(&context.path(file)).and_then(|file| file.rest());
        let script = script.map_err(|error| format!("{file}: {}", why(&error)))?;
        text.push(String::from_utf8_lossy(&script).into_owned());
    }
    if text.is_empty() {
        if options.operands.is_empty() {
            return Err("a script is needed".to_owned());
        }
        text.push(options.operands.remove(0));
    }
    let flavor = match options.has('E') || options.has('r') {
        true => Flavor::Extended,
        false => Flavor::Basic,
    };
    let commands = Rc::new(script::parse(&text.join("\n"), flavor)?);
    let editor = |out: Output| Sed {
        commands: Rc::clone(&commands),
        quiet: options.has('n'),
        out,
        in_range: vec![None; commands.len()],
        number: 0,
        lines: VecDeque::new(),
        complete: false,
        hold: String::new(),
        quit: None,
        stuck: false,
    };
    if !options.has('i') {
        let sed = editor(context.stdout.clone());
        return lined(options.operands.clone(), sed);
    }
    let mut code = 0;
    for name in &options.operands {
        match in_place(&context.path(name), &suffix, &editor) {
            Ok(0) => {}
            Ok(quit) => code = quit,
            Err(error) => code = context.fail_on(name, &error),
        }
    }
    done(code)
}

/// Writes a new file beside the old one, which it replaces only if all went well.
fn in_place(path: &Path, suffix: &str, editor: &dyn Fn(Output) -> Sed) -> std::io::Result<i32> {
    let input = files::open(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.{}", os::now().as_nanos()));
    let edited = edit(&input, File::create_new(&fresh)?, editor);
    let replaced = edited.and_then(|code| {
        if !suffix.is_empty() {
            std::fs::rename(path, path.with_file_name(format!("{name}{suffix}")))?;
        }
        std::fs::rename(&fresh, path)?;
        Ok(code)
    });
    if replaced.is_err() {
        let _ = std::fs::remove_file(&fresh);
    }
    replaced
}

fn edit(input: &Input, mut file: File, editor: &dyn Fn(Output) -> Sed) -> std::io::Result<i32> {
    // A call for every line would take its time.
    let gathered = Rc::new(RefCell::new(Vec::new()));
    let mut sed = editor(Output::Gather(Rc::clone(&gathered)));
    let (code, failed) = noticed(|| {
        loop {
            let line = input.line()?;
            let over = line.is_empty() || sed.line(&line).is_err();
            let code = over.then(|| sed.end());
            if over || gathered.borrow().len() >= CHUNK {
                file.write_all(&gathered.take())?;
            }
            if let Some(code) = code {
                return Ok::<_, std::io::Error>(code);
            }
        }
    });
    if failed || sed.stuck {
        return Err(std::io::Error::other("left as it was"));
    }
    code
}

struct Sed {
    commands: Rc<Vec<Command>>,
    quiet: bool,
    out: Output,
    /// For every command with two addresses: the line its range began at.
    in_range: Vec<Option<u64>>,
    number: u64,
    /// Lines that have come and are not worked on yet, and whether they had an end.
    lines: VecDeque<(String, bool)>,
    complete: bool,
    hold: String,
    quit: Option<i32>,
    /// The script was stopped because it did not come to an end.
    stuck: bool,
}

/// What goes on with a line after a command.
enum Next {
    Command,
    At(usize),
    /// The line is done; printed unless told not to.
    End {
        print: bool,
    },
}

/// A line while it is worked on.
struct Work {
    space: String,
    ended: bool,
    after: String,
    substituted: bool,
}

impl ByLine for Sed {
    fn line(&mut self, line: &[u8]) -> Written {
        let text = String::from_utf8_lossy(chomp(line)).into_owned();
        self.lines.push_back((text, line.ends_with(b"\n")));
        // Scripts that ask for further lines wait until all are there; those that ask for the last one, for one more.
        let wait = if self.commands.iter().any(Command::wants_more) {
            usize::MAX
        } else {
            usize::from(self.commands.iter().any(Command::wants_last))
        };
        while self.lines.len() > wait {
            self.cycle()?;
        }
        Ok(())
    }

    fn end(&mut self) -> i32 {
        self.complete = true;
        while self.quit.is_none() && !self.lines.is_empty() && self.cycle().is_ok() {}
        self.quit.unwrap_or(0)
    }
}

impl Sed {
    fn is_last(&self) -> bool {
        self.complete && self.lines.is_empty()
    }

    /// The whole script over the next line.
    fn cycle(&mut self) -> Written {
        let Some((space, ended)) = self.lines.pop_front() else {
            return Ok(());
        };
        self.number += 1;
        let mut work = Work {
            space,
            ended,
            after: String::new(),
            substituted: false,
        };
        let commands = Rc::clone(&self.commands);
        let mut at = 0;
        let mut print = true;
        let mut steps = 0;
        while let Some(command) = commands.get(at) {
            steps += 1;
            if steps > STEPS {
                self.quit = Some(4);
                self.stuck = true;
                return Err(Closed);
            }
            if !self.selected(at, &command.selection, &work) {
                at = command.skip_to.unwrap_or(at + 1);
                continue;
            }
            match self.act(&command.action, &mut work)? {
                Next::Command => at += 1,
                Next::At(to) => at = to,
                Next::End { print: printed } => {
                    print = printed;
                    break;
                }
            }
        }
        if print && !self.quiet {
            self.write(&work.space, work.ended)?;
        }
        if !work.after.is_empty() {
            self.out.write(work.after.as_bytes())?;
        }
        if self.quit.is_some() {
            return Err(Closed);
        }
        Ok(())
    }

    fn write(&self, text: &str, ended: bool) -> Written {
        self.out.write(text.as_bytes())?;
        if ended { self.out.write(b"\n") } else { Ok(()) }
    }

    fn selected(&mut self, at: usize, selection: &Selection, work: &Work) -> bool {
        let last = self.is_last();
        let matches = |address: &Address, number: u64| match address {
            Address::Line(line) => *line == number,
            Address::Last => last,
            Address::Match(regex) => regex.is_match(work.space.as_bytes()),
            Address::Step { first, step } => {
                number >= *first
                    && (*step == 0 && number == *first
                        || *step > 0 && (number - first).is_multiple_of(*step))
            }
            Address::Plus(_) => false,
        };
        let number = self.number;
        let inside = match (&selection.from, &selection.to) {
            (None, _) => true,
            (Some(from), None) => matches(from, number),
            (Some(from), Some(to)) => match self.in_range[at] {
                Some(began) => {
                    let ends = match to {
                        Address::Line(line) => number >= *line,
                        Address::Plus(count) => number >= began + count,
                        to => matches(to, number),
                    };
                    if ends {
                        self.in_range[at] = None;
                    }
                    // A range whose last line is already past is over.
                    !matches!(to, Address::Line(line) if number > *line)
                }
                None if matches(from, number) => {
                    let over = match to {
                        Address::Line(line) => *line <= number,
                        Address::Plus(0) => true,
                        Address::Last => last,
                        _ => false,
                    };
                    if !over {
                        self.in_range[at] = Some(number);
                    }
                    true
                }
                None => false,
            },
        };
        inside != selection.negated
    }

    fn act(&mut self, action: &Action, work: &mut Work) -> Result<Next, Closed> {
        match action {
            Action::Nothing => {}
            Action::Jump(to) => return Ok(Next::At(*to)),
            Action::JumpIfSubstituted(to) => {
                if std::mem::take(&mut work.substituted) {
                    return Ok(Next::At(*to));
                }
            }
            Action::Substitute(substitution) => self.substitute(substitution, work)?,
            Action::Translate(from, to) => {
                let map = |c| {
                    from.iter()
                        .position(|f| *f == c)
                        .and_then(|at| to.get(at))
                        .copied()
                        .unwrap_or(c)
                };
                work.space = work.space.chars().map(map).collect();
            }
            Action::Delete => return Ok(Next::End { print: false }),
            Action::DeleteFirst => {
                return Ok(match work.space.find('\n') {
                    Some(at) => {
                        work.space.drain(..=at);
                        Next::At(0)
                    }
                    None => Next::End { print: false },
                });
            }
            Action::Print => self.write(&work.space, true)?,
            Action::PrintFirst => {
                let first = work.space.split('\n').next().unwrap_or_default().to_owned();
                self.write(&first, true)?;
            }
            Action::Number => self.write(&self.number.to_string(), true)?,
            Action::Append(text) => {
                work.after.push_str(text);
                work.after.push('\n');
            }
            Action::Insert(text) => self.write(text, true)?,
            Action::Change(text) => {
                self.write(text, true)?;
                return Ok(Next::End { print: false });
            }
            Action::Quit { print, code } => {
                self.quit = Some(*code);
                return Ok(Next::End { print: *print });
            }
            Action::Next { join } => return self.next_line(*join, work),
            Action::Hold { append } => {
                if *append {
                    self.hold.push('\n');
                } else {
                    self.hold.clear();
                }
                self.hold.push_str(&work.space);
            }
            Action::Get { append } => {
                if *append {
                    work.space.push('\n');
                } else {
                    work.space.clear();
                }
                work.space.push_str(&self.hold);
            }
            Action::Exchange => std::mem::swap(&mut self.hold, &mut work.space),
        }
        Ok(Next::Command)
    }

    fn next_line(&mut self, join: bool, work: &mut Work) -> Result<Next, Closed> {
        let Some((text, ended)) = self.lines.pop_front() else {
            self.quit = Some(0);
            return Ok(Next::End { print: true });
        };
        self.number += 1;
        match join {
            true => work.space = format!("{}\n{text}", work.space),
            false => {
                if !self.quiet {
                    self.write(&work.space, true)?;
                }
                work.space = text;
            }
        }
        work.ended = ended;
        Ok(Next::Command)
    }

    fn substitute(&mut self, substitution: &Substitution, work: &mut Work) -> Written {
        let Some(text) = substitution.apply(&work.space) else {
            return Ok(());
        };
        work.space = text;
        work.substituted = true;
        if substitution.print {
            self.write(&work.space, true)?;
        }
        if let Some(out) = &substitution.file {
            out.write(work.space.as_bytes())?;
            out.write(b"\n")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edited(script: &str, flavor: Flavor, quiet: bool, text: &str) -> String {
        let gathered = Rc::new(RefCell::new(Vec::new()));
        let commands = Rc::new(script::parse(script, flavor).unwrap());
        let mut sed = Sed {
            in_range: vec![None; commands.len()],
            commands,
            quiet,
            out: Output::Gather(Rc::clone(&gathered)),
            number: 0,
            lines: VecDeque::new(),
            complete: false,
            hold: String::new(),
            quit: None,
            stuck: false,
        };
        for line in text.split_inclusive('\n') {
            if sed.line(line.as_bytes()).is_err() {
                break;
            }
        }
        sed.end();
        String::from_utf8(gathered.take()).unwrap()
    }

    #[test]
    fn lines_are_edited_as_the_script_says() {
        for (script, text, expected) in [
            ("s/a/b/", "aa\na", "ba\nb"),
            ("s/a/b/g;s/b/<&>/2", "aa\n", "b<b>\n"),
            (r"s,\(x\)\(y\),\2\1,", "xy\n", "yx\n"),
            ("2d", "1\n2\n3\n", "1\n3\n"),
            ("$d", "1\n2\n", "1\n"),
            ("2,3d", "1\n2\n3\n4\n", "1\n4\n"),
            ("/b/,/d/d", "a\nb\nc\nd\ne\n", "a\ne\n"),
            ("/b/,+1d", "a\nb\nc\nd\n", "a\nd\n"),
            ("/b/!d", "a\nb\n", "b\n"),
            ("y/abc/xyz/", "cab\n", "zxy\n"),
            ("1i\\\nfirst", "a\n", "first\na\n"),
            ("a last", "a\n", "a\nlast\n"),
            ("/b/c changed", "a\nb\n", "a\nchanged\n"),
            (":a;N;$!ba;s/\\n/,/g", "1\n2\n3\n", "1,2,3\n"),
            ("n;d", "1\n2\n3\n", "1\n3\n"),
            ("1!G;h;$!d", "1\n2\n3\n", "3\n2\n1\n"),
            ("2q", "1\n2\n3\n", "1\n2\n"),
            ("/x/{s/x/y/;s/y/z/;}", "x\nb\n", "z\nb\n"),
            ("0~2d", "1\n2\n3\n4\n", "1\n3\n"),
            ("s/A/b/I", "a\n", "b\n"),
            (r"s/.*/\U&/", "ab\n", "AB\n"),
            ("s/x*/-/g", "abc\n", "-a-b-c-\n"),
            ("s/a\\/b/c/", "a/b\n", "c\n"),
        ] {
            assert_eq!(
                edited(script, Flavor::Basic, false, text),
                expected,
                "{script}"
            );
        }
        assert_eq!(
            edited("s/(a+)/[\\1]/p", Flavor::Extended, true, "baa\nc\n"),
            "b[aa]\n"
        );
        assert_eq!(edited("$=", Flavor::Basic, true, "a\nb\n"), "2\n");
    }

    #[test]
    fn a_large_file_is_edited_whole_or_not_at_all() {
        let path = std::env::temp_dir().join(format!("toolbox-sed-{}", std::process::id()));
        let text = "a line of text\n".repeat(700_000);
        std::fs::write(&path, &text).unwrap();
        let name = path.to_string_lossy().into_owned();
        let sed = |script: &str| {
            let args = ["-i", script, &name].map(str::to_owned);
            super::super::run(&mut Context::from_outside(), "sed", &args)
        };
        assert_eq!(sed("s/text/more/"), 0);
        let edited = std::fs::read_to_string(&path).unwrap();
        assert!(edited == text.replace("text", "more"));
        assert_eq!(sed(":a;ba"), 1, "it never ends");
        assert!(std::fs::read_to_string(&path).unwrap() == edited);
        assert_eq!(sed("2q5"), 5);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 30);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn nonsense_is_refused() {
        for script in [
            "s/a",
            "s/a/b/k",
            "x y z",
            "/a",
            "b nowhere",
            "{p",
            "}",
            "5,",
            "y/a/bc/",
        ] {
            assert!(script::parse(script, Flavor::Basic).is_err(), "{script}");
        }
    }
}

//! `sh`: reads commands from where it was told to, runs them one by one, keeps the state between them.
//!
//! There are no processes: a subshell is a copy of this state, a pipeline a chain of calls, and nothing runs in the
//! background (a `sleep` that is waited for is the one exception).

mod arith;
mod ast;
mod builtins;
mod expand;
mod fed;
mod lex;
mod parse;
pub mod pattern;
mod pipeline;
mod read;
mod redirect;
mod run;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

use crate::context::Context;
use crate::io::{self, Input, Output, Started};
use crate::os;
use ast::Command;
use parse::Parser;

/// Functions, subshells and `eval` inside one another: a script cannot exhaust the stack.
const DEPTH: u32 = 60;

/// Why commands stop being run one after another.
#[derive(Debug)]
pub enum Jump {
    Break(u32),
    Continue(u32),
    Return(i32),
    Exit(i32),
    /// ^C on the terminal.
    Interrupted,
    /// An error that ends a shell nobody types into.
    Fail(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Variable {
    value: Option<String>,
    exported: bool,
    readonly: bool,
}

#[derive(Clone, Copy, Default)]
struct Flags {
    errexit: bool,
    nounset: bool,
    xtrace: bool,
    noglob: bool,
    allexport: bool,
    noexec: bool,
    pipefail: bool,
}

#[derive(Clone)]
enum Fd {
    In(Input),
    Out(Output),
}

#[derive(Clone)]
pub struct Shell {
    name: String,
    cwd: String,
    variables: BTreeMap<String, Variable>,
    /// What functions that run have hidden: name and what it was.
    locals: Vec<Vec<(String, Option<Variable>)>>,
    functions: HashMap<String, Rc<Command>>,
    params: Vec<String>,
    fds: BTreeMap<u32, Fd>,
    options: Flags,
    /// By name: what to run.
    traps: BTreeMap<String, String>,
    status: i32,
    /// How the last `$(…)` of this command ended.
    substituted: Option<i32>,
    /// Inside conditions, where a failure is an answer.
    tested: u32,
    loops: u32,
    depth: u32,
    interactive: bool,
    /// Sleeps that were sent to the background.
    sleeps: Vec<(u32, std::time::Duration)>,
    /// Where in the current argument `getopts` is.
    option_at: usize,
}

const SPEC: crate::options::Spec = crate::options::Spec {
    // POSIX has the command in the first operand: `-ce 'false; true'` is `-c -e 'false; true'`.
    short: "co:seuxfanilv",
    long: &[("login", 'l')],
    stop: true,
};

/// The applet.
pub fn start(context: &mut Context, args: &[String]) -> Started {
    let options = match crate::options::parse(&SPEC, args) {
        Ok(options) => options,
        Err(error) => {
            context.fail(error);
            return Started::Done(2);
        }
    };
    let mut shell = Shell::new(context);
    for letter in "eufxan".chars() {
        if options.has(letter) {
            shell.options.set_letter(letter, true);
        }
    }
    for name in options.values('o') {
        if !shell.options.set_name(name, true) {
            context.fail(format_args!("illegal option -o {name}"));
            return Started::Done(2);
        }
    }
    let mut operands = options.operands.clone().into_iter();
    let set_name = |shell: &mut Shell, operands: &mut std::vec::IntoIter<String>| {
        if let Some(name) = operands.next() {
            shell.name = name;
        }
    };
    if options.has('c') {
        let Some(script) = operands.next() else {
            context.fail("option requires an argument: c");
            return Started::Done(2);
        };
        set_name(&mut shell, &mut operands);
        shell.params = operands.collect();
        return shell.pulls(move |shell| shell.script(&script));
    }
    if !options.has('s') && !options.operands.is_empty() {
        set_name(&mut shell, &mut operands);
        shell.params = operands.collect();
        let script =
            match crate::files::open(&context.path(&shell.name)).and_then(|file| file.rest()) {
                Ok(script) => String::from_utf8_lossy(&script).into_owned(),
                Err(error) => {
                    let message = format!("can't open '{}': {}", shell.name, io::why(&error));
                    context.fail(message);
                    return Started::Done(127);
                }
            };
        return shell.pulls(move |shell| shell.script(&script));
    }
    shell.params = operands.collect();
    shell.interactive = context.stdin.is_terminal() || options.has('i');
    shell.pulls(Shell::typed)
}

impl Flags {
    const NAMES: &'static [(&'static str, char)] = &[
        ("errexit", 'e'),
        ("nounset", 'u'),
        ("xtrace", 'x'),
        ("noglob", 'f'),
        ("allexport", 'a'),
        ("noexec", 'n'),
        ("pipefail", 'p'),
    ];

    fn slot(&mut self, letter: char) -> Option<&mut bool> {
        Some(match letter {
            'e' => &mut self.errexit,
            'u' => &mut self.nounset,
            'x' => &mut self.xtrace,
            'f' => &mut self.noglob,
            'a' => &mut self.allexport,
            'n' => &mut self.noexec,
            _ => return None,
        })
    }

    fn set_letter(&mut self, letter: char, on: bool) -> bool {
        self.slot(letter).map(|slot| *slot = on).is_some()
    }

    fn set_name(&mut self, name: &str, on: bool) -> bool {
        match Self::NAMES.iter().find(|(known, _)| *known == name) {
            Some(("pipefail", _)) => {
                self.pipefail = on;
                true
            }
            Some((_, letter)) => self.set_letter(*letter, on),
            None => false,
        }
    }

    fn is_on(&self, name: &str) -> bool {
        let mut copy = *self;
        match name {
            "pipefail" => self.pipefail,
            name => {
                let letter = Self::NAMES.iter().find(|(known, _)| *known == name);
                letter
                    .and_then(|(_, letter)| copy.slot(*letter))
                    .is_some_and(|slot| *slot)
            }
        }
    }

    fn letters(&self) -> String {
        let on = Self::NAMES
            .iter()
            .filter(|(name, _)| *name != "pipefail" && self.is_on(name));
        on.map(|(_, letter)| *letter).collect()
    }
}

impl Shell {
    fn new(context: &Context) -> Self {
        let mut variables: BTreeMap<String, Variable> = BTreeMap::new();
        for (name, value) in &context.env {
            let variable = Variable {
                value: Some(value.clone()),
                exported: true,
                readonly: false,
            };
            variables.insert(name.clone(), variable);
        }
        let mut shell = Self {
            name: match context.name.as_str() {
                "" => "sh".to_owned(),
                name => name.to_owned(),
            },
            cwd: context.cwd.clone(),
            variables,
            locals: Vec::new(),
            functions: HashMap::new(),
            params: Vec::new(),
            fds: BTreeMap::from([
                (0, Fd::In(context.stdin.clone())),
                (1, Fd::Out(context.stdout.clone())),
                (2, Fd::Out(context.stderr.clone())),
            ]),
            options: Flags::default(),
            traps: BTreeMap::new(),
            status: 0,
            substituted: None,
            tested: 0,
            loops: 0,
            depth: 0,
            interactive: false,
            sleeps: Vec::new(),
            option_at: 0,
        };
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        for (name, value) in [("PATH", path), ("IFS", " \t\n"), ("OPTIND", "1")] {
            let variable = shell.variables.entry(name.to_owned()).or_default();
            if variable.value.is_none() || name != "PATH" {
                variable.value = Some(value.to_owned());
            }
        }
        let cwd = shell.cwd.clone();
        shell.variables.entry("PWD".to_owned()).or_default().value = Some(cwd);
        shell
    }

    /// This shell as something that takes its own input.
    fn pulls(mut self, run: impl FnOnce(&mut Self) -> i32 + 'static) -> Started {
        Started::Pulls(Box::new(move |input| {
            self.fds.insert(0, Fd::In(input));
            run(&mut self)
        }))
    }

    /// A copy for `(…)`, `$(…)` and every part of a pipeline.
    fn subshell(&self) -> Self {
        let mut copy = self.clone();
        copy.traps.retain(|_, command| command.is_empty());
        copy.loops = 0;
        copy.interactive = false;
        copy.sleeps.clear();
        copy
    }

    fn output(&self, fd: u32) -> Output {
        match self.fds.get(&fd) {
            Some(Fd::Out(output)) => output.clone(),
            _ => Output::Closed,
        }
    }

    fn input(&self) -> Input {
        match self.fds.get(&0) {
            Some(Fd::In(input)) => input.clone(),
            _ => Input::nothing(),
        }
    }

    /// Says what went wrong, in the shell's name.
    fn complain(&self, message: impl std::fmt::Display) {
        io::print(&self.output(2), &format!("{}: {message}\n", self.name));
    }

    /// What an applet or another shell started from here is given.
    fn context(&self, name: &str) -> Context {
        let exported = self
            .variables
            .iter()
            .filter(|(_, variable)| variable.exported);
        let env = exported.filter_map(|(name, v)| Some((name.clone(), v.value.clone()?)));
        Context {
            name: name.to_owned(),
            env: env.collect(),
            cwd: self.cwd.clone(),
            stdin: self.input(),
            stdout: self.output(1),
            stderr: self.output(2),
        }
    }

    // === where commands come from ===

    /// Runs a whole text, line by line; the shell's exit code.
    fn script(&mut self, text: &str) -> i32 {
        let result = self.lines(text);
        self.leave(result)
    }

    fn lines(&mut self, text: &str) -> Result<i32, Jump> {
        let mut parser = Parser::new(text);
        let mut status = 0;
        loop {
            match parser.line() {
                Ok(Some(_)) if self.options.noexec => {}
                Ok(Some(list)) => status = self.list(&list)?,
                Ok(None) => return Ok(status),
                Err(error) => return Err(Jump::Fail(error.message)),
            }
        }
    }

    /// `eval`, `.` and traps: like a script, in this shell.
    fn evaluate(&mut self, text: &str) -> Result<i32, Jump> {
        self.deeper(|shell| shell.lines(text))
    }

    /// Counts how deeply commands run inside one another.
    fn deeper<T>(&mut self, run: impl FnOnce(&mut Self) -> Result<T, Jump>) -> Result<T, Jump> {
        if self.depth >= DEPTH {
            return Err(Jump::Fail(format!(
                "more than {DEPTH} functions or subshells inside one another"
            )));
        }
        self.depth += 1;
        let result = run(self);
        self.depth -= 1;
        result
    }

    /// The end of this shell: what is left to say, the EXIT trap, the exit code.
    fn leave(&mut self, result: Result<i32, Jump>) -> i32 {
        self.status = self.code(result);
        if let Some(command) = self.traps.remove("EXIT") {
            let status = self.status;
            self.status = match self.evaluate(&command) {
                Ok(_) => status,
                jump => self.code(jump),
            };
        }
        self.status
    }

    fn code(&mut self, result: Result<i32, Jump>) -> i32 {
        match result {
            Ok(code) | Err(Jump::Return(code) | Jump::Exit(code)) => code,
            Err(Jump::Break(_) | Jump::Continue(_)) => 0,
            Err(Jump::Interrupted) => 130,
            Err(Jump::Fail(message)) => {
                self.complain(message);
                2
            }
        }
    }

    /// Commands from stdin: by a person, or a script that shares stdin with the commands it runs.
    fn typed(&mut self) -> i32 {
        let mut text = String::new();
        let mut result = Ok(0);
        loop {
            if self.interactive {
                self.prompt(text.is_empty());
            }
            let line = match self.input().line() {
                Ok(line) => line,
                Err(_) if os::interrupted() && self.interactive => {
                    os::clear_interrupt();
                    io::print(&self.output(2), "\n");
                    text.clear();
                    self.status = 130;
                    continue;
                }
                Err(_) if os::interrupted() => return self.leave(Err(Jump::Interrupted)),
                Err(error) => {
                    self.complain(format_args!("stdin: {}", io::why(&error)));
                    break;
                }
            };
            let last = line.is_empty();
            text.push_str(&String::from_utf8_lossy(&line));
            let mut parser = Parser::new(&text);
            let parsed = match parser.all() {
                Ok(list) => Ok(list),
                Err(error) if error.incomplete && !last => continue,
                // The last line may end in a backslash, or without its end.
                Err(error) => Err(error),
            };
            let continued = text.ends_with("\\\n") && !last;
            if continued {
                continue;
            }
            text.clear();
            result = match parsed {
                Ok(list) if list.0.is_empty() => Ok(self.status),
                Ok(list) => self.list(&list),
                Err(error) => Err(Jump::Fail(error.message)),
            };
            io::flush();
            result = match result {
                Err(Jump::Fail(message)) if self.interactive => {
                    self.complain(message);
                    Ok(1)
                }
                Err(Jump::Interrupted) if self.interactive => {
                    io::print(&self.output(2), "\n");
                    Ok(130)
                }
                Err(jump) => return self.leave(Err(jump)),
                Ok(code) => Ok(code),
            };
            if self.interactive {
                os::clear_interrupt();
            }
            self.status = *result.as_ref().unwrap_or(&1);
            if last {
                break;
            }
        }
        self.leave(result)
    }

    /// `/ # `, or what PS1 says; `\w` and `\$` mean what they mean elsewhere.
    fn prompt(&self, first: bool) {
        io::flush();
        let text = match first {
            true => self
                .variable("PS1")
                .unwrap_or_else(|| "\\w \\$ ".to_owned()),
            false => self.variable("PS2").unwrap_or_else(|| "> ".to_owned()),
        };
        let home = self.variable("HOME").filter(|home| home.len() > 1);
        let cwd = match home.and_then(|home| self.cwd.strip_prefix(&home).map(str::to_owned)) {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("~{rest}"),
            _ => self.cwd.clone(),
        };
        let host = self.variable("HOSTNAME").unwrap_or_default();
        let text = text
            .replace("\\w", &cwd)
            .replace("\\$", "#")
            .replace("\\h", &host)
            .replace("\\u", "root");
        io::print(&self.output(2), &text);
    }

    // === variables ===

    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name)?.value.clone()
    }

    /// The value of anything that may follow a `$`.
    fn parameter(&self, name: &str) -> Option<String> {
        match name {
            "?" => Some(self.status.to_string()),
            "#" => Some(self.params.len().to_string()),
            "$" => Some("1".to_owned()),
            "!" => self.sleeps.last().map(|(number, _)| number.to_string()),
            "-" => Some(self.options.letters()),
            "@" | "*" => Some(self.params.join(" ")),
            "0" => Some(self.name.clone()),
            name => match name.parse::<usize>() {
                Ok(number) => self.params.get(number.wrapping_sub(1)).cloned(),
                Err(_) => self.variable(name),
            },
        }
    }

    fn assign(&mut self, name: &str, value: String) -> Result<(), Jump> {
        if !parse::is_variable(name) {
            return Err(Jump::Fail(format!("{name}: bad variable name")));
        }
        let variable = self.variables.entry(name.to_owned()).or_default();
        if variable.readonly {
            return Err(Jump::Fail(format!("{name}: is read only")));
        }
        variable.value = Some(value);
        variable.exported |= self.options.allexport;
        if name == "OPTIND" {
            self.option_at = 0;
        }
        Ok(())
    }
}

impl arith::Names for Shell {
    fn get(&self, name: &str) -> Option<String> {
        self.variable(name)
    }

    fn set(&mut self, name: &str, value: i64) -> Result<(), String> {
        self.assign(name, value.to_string())
            .map_err(|jump| match jump {
                Jump::Fail(message) => message,
                _ => name.to_owned(),
            })
    }
}

/// Words as a command line that means them.
pub fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| builtins::quote(word)).collect();
    words.join(" ")
}

//! What only the shell can do, because it is about the shell's own state.

use super::{Jump, Shell, parse};
use crate::applets;
use crate::files;
use crate::io;
use crate::os;

type Run = Result<i32, Jump>;
pub(super) type Builtin = fn(&mut Shell, &[String]) -> Run;

/// Names and functions, sorted.
const BUILTINS: &[(&str, Builtin)] = &[
    (".", dot),
    (":", |_, _| Ok(0)),
    ("alias", alias),
    ("break", |shell, args| leave_loop(shell, args, Jump::Break)),
    ("cd", cd),
    ("chdir", cd),
    ("command", command),
    ("continue", |shell, args| {
        leave_loop(shell, args, Jump::Continue)
    }),
    ("eval", |shell, args| shell.evaluate(&args.join(" "))),
    ("exec", exec),
    ("exit", |shell, args| Err(Jump::Exit(code(shell, args)?))),
    ("export", export),
    ("getopts", super::read::getopts),
    ("jobs", |_, _| Ok(0)),
    ("let", let_),
    ("local", local),
    ("pwd", pwd),
    ("read", super::read::read),
    ("readonly", readonly),
    ("return", |shell, args| {
        Err(Jump::Return(code(shell, args)?))
    }),
    ("set", set),
    ("shift", shift),
    ("source", dot),
    ("times", |shell, _| {
        Ok(shell.refuse("times", "this guest cannot tell"))
    }),
    ("trap", trap),
    ("type", type_),
    ("ulimit", |shell, _| {
        Ok(shell.refuse("ulimit", "limits are the pod's, not the shell's"))
    }),
    ("umask", umask),
    ("unalias", |_, _| Ok(0)),
    ("unset", unset),
    ("wait", wait),
];

pub(super) fn find(name: &str) -> Option<Builtin> {
    let at = BUILTINS
        .binary_search_by(|(known, _)| (*known).cmp(name))
        .ok()?;
    Some(BUILTINS[at].1)
}

/// As it could be typed again.
pub(super) fn quote(text: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "_-./:=,@%+".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

impl Shell {
    fn refuse(&self, name: &str, why: &str) -> i32 {
        self.complain(format_args!("{name}: {why}"));
        2
    }

    fn say(&self, text: &str) {
        io::print(&self.output(1), text);
    }
}

/// The exit code given, or the last one.
fn code(shell: &mut Shell, args: &[String]) -> Run {
    match args.first() {
        None => Ok(shell.status),
        Some(text) => match text.parse::<i64>() {
            Ok(code) => Ok((code & 0xff) as i32),
            Err(_) => Err(Jump::Fail(format!("Illegal number: {text}"))),
        },
    }
}

fn leave_loop(shell: &mut Shell, args: &[String], jump: fn(u32) -> Jump) -> Run {
    let levels = match args.first() {
        None => 1,
        Some(text) => match text.parse() {
            Ok(levels) if levels > 0 => levels,
            _ => return Err(Jump::Fail(format!("Illegal number: {text}"))),
        },
    };
    match shell.loops {
        0 => Ok(0),
        loops => Err(jump(levels.min(loops))),
    }
}

fn cd(shell: &mut Shell, args: &[String]) -> Run {
    let to = args
        .iter()
        .find(|arg| !matches!(arg.as_str(), "-L" | "-P" | "--"));
    let target = match to.map(String::as_str) {
        None => shell.variable("HOME").unwrap_or_else(|| "/".to_owned()),
        Some("-") => match shell.variable("OLDPWD") {
            Some(old) => {
                shell.say(&format!("{old}\n"));
                old
            }
            None => return Ok(shell.refuse("cd", "OLDPWD not set")),
        },
        Some(path) => path.to_owned(),
    };
    let path = files::absolute(&shell.cwd, &target);
    match files::stat(std::path::Path::new(&path)) {
        Ok(stat) if stat.is_dir() => {}
        Ok(_) => {
            shell.complain(format_args!("cd: can't cd to {target}: Not a directory"));
            return Ok(2);
        }
        Err(error) => {
            shell.complain(format_args!(
                "cd: can't cd to {target}: {}",
                io::why(&error)
            ));
            return Ok(2);
        }
    }
    let old = std::mem::replace(&mut shell.cwd, path.clone());
    shell.assign("OLDPWD", old)?;
    shell.assign("PWD", path)?;
    Ok(0)
}

fn pwd(shell: &mut Shell, _: &[String]) -> Run {
    shell.say(&format!("{}\n", shell.cwd));
    Ok(0)
}

fn dot(shell: &mut Shell, args: &[String]) -> Run {
    let Some(name) = args.first() else {
        return Err(Jump::Fail(".: filename argument required".to_owned()));
    };
    let path = files::absolute(&shell.cwd, name);
    let text = files::open(std::path::Path::new(&path)).and_then(|file| file.rest());
    let text =
        text.map_err(|error| Jump::Fail(format!(".: can't open '{name}': {}", io::why(&error))))?;
    match shell.evaluate(&String::from_utf8_lossy(&text)) {
        Err(Jump::Return(code)) => Ok(code),
        result => result,
    }
}

fn alias(shell: &mut Shell, args: &[String]) -> Run {
    match args {
        [] => Ok(0),
        _ => Ok(shell.refuse("alias", "aliases are not supported; use a function")),
    }
}

/// `command -v name`, `command -V name`, `command name …`: past functions.
fn command(shell: &mut Shell, args: &[String]) -> Run {
    match args.split_first() {
        None => Ok(0),
        Some((option, names)) if option == "-v" || option == "-V" => {
            let mut status = 0;
            for name in names {
                match (describe(shell, name), option.as_str()) {
                    (Some((short, _)), "-v") => shell.say(&format!("{short}\n")),
                    (Some((_, long)), _) => shell.say(&format!("{long}\n")),
                    (None, "-v") => status = 127,
                    (None, _) => {
                        shell.complain(format_args!("{name}: not found"));
                        status = 127;
                    }
                }
            }
            Ok(status)
        }
        Some((option, rest)) if option == "-p" || option == "--" => command(shell, rest),
        Some((name, rest)) => match shell.functions.remove(name) {
            Some(body) => {
                let result = shell.call(name, rest);
                shell.functions.insert(name.clone(), body);
                result
            }
            None => shell.call(name, rest),
        },
    }
}

fn type_(shell: &mut Shell, args: &[String]) -> Run {
    let mut status = 0;
    for name in args {
        match describe(shell, name) {
            Some((_, long)) => shell.say(&format!("{long}\n")),
            None => {
                shell.complain(format_args!("{name}: not found"));
                status = 127;
            }
        }
    }
    Ok(status)
}

fn describe(shell: &Shell, name: &str) -> Option<(String, String)> {
    const KEYWORDS: &[&str] = &[
        "if", "then", "else", "elif", "fi", "for", "while", "until", "do", "done", "case", "esac",
        "{", "}", "!",
    ];
    let is = |what: &str| Some((name.to_owned(), format!("{name} is a {what}")));
    if KEYWORDS.contains(&name) {
        return is("shell keyword");
    }
    if shell.functions.contains_key(name) {
        return is("function");
    }
    if find(name).is_some() {
        return is("shell builtin");
    }
    let context = shell.context(name);
    if name.contains('/') {
        let there =
            files::stat(&context.path(name)).is_ok() || applets::resolve(&context, name).is_some();
        return there.then(|| (name.to_owned(), format!("{name} is {name}")));
    }
    let path = format!("/bin/{}", applets::resolve(&context, name)?);
    Some((path.clone(), format!("{name} is {path}")))
}

fn exec(shell: &mut Shell, args: &[String]) -> Run {
    match args.split_first() {
        // The redirections were what was wanted, and they stay.
        None => Ok(0),
        Some((name, rest)) => {
            if find(name).is_some() {
                return Err(Jump::Fail(format!("exec: {name}: not found")));
            }
            let started = shell.start(name, rest, shell.input());
            let code = io::complete(&shell.context(name), started);
            // What replaced the shell has no traps.
            shell.traps.clear();
            Err(Jump::Exit(code))
        }
    }
}

/// `name` or `name=value`, for `export`, `readonly` and `local`.
fn declared(arg: &str) -> Result<(&str, Option<&str>), Jump> {
    let (name, value) = match arg.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (arg, None),
    };
    match parse::is_variable(name) {
        true => Ok((name, value)),
        false => Err(Jump::Fail(format!("{name}: bad variable name"))),
    }
}

fn export(shell: &mut Shell, args: &[String]) -> Run {
    let (off, args) = match args.split_first() {
        Some((first, rest)) if first == "-n" => (true, rest),
        Some((first, rest)) if first == "-p" => (false, rest),
        _ => (false, args),
    };
    if args.is_empty() {
        for (name, variable) in &shell.variables {
            if variable.exported {
                let value = variable
                    .value
                    .as_ref()
                    .map(|value| format!("={}", quote(value)));
                shell.say(&format!("export {name}{}\n", value.unwrap_or_default()));
            }
        }
    }
    for arg in args {
        let (name, value) = declared(arg)?;
        if let Some(value) = value {
            shell.assign(name, value.to_owned())?;
        }
        shell.variables.entry(name.to_owned()).or_default().exported = !off;
    }
    Ok(0)
}

fn readonly(shell: &mut Shell, args: &[String]) -> Run {
    if args.is_empty() || args == ["-p"] {
        for (name, variable) in shell
            .variables
            .iter()
            .filter(|(_, variable)| variable.readonly)
        {
            let value = variable
                .value
                .as_ref()
                .map(|value| format!("={}", quote(value)));
            shell.say(&format!("readonly {name}{}\n", value.unwrap_or_default()));
        }
        return Ok(0);
    }
    for arg in args {
        let (name, value) = declared(arg)?;
        if let Some(value) = value {
            shell.assign(name, value.to_owned())?;
        }
        shell.variables.entry(name.to_owned()).or_default().readonly = true;
    }
    Ok(0)
}

fn local(shell: &mut Shell, args: &[String]) -> Run {
    if shell.locals.is_empty() {
        return Err(Jump::Fail("local: not in a function".to_owned()));
    }
    for arg in args {
        let (name, value) = declared(arg)?;
        let before = shell.variables.get(name).cloned();
        if let Some(locals) = shell.locals.last_mut() {
            locals.push((name.to_owned(), before));
        }
        if let Some(value) = value {
            shell.assign(name, value.to_owned())?;
        }
    }
    Ok(0)
}

fn unset(shell: &mut Shell, args: &[String]) -> Run {
    let mut functions = false;
    for arg in args {
        match arg.as_str() {
            "-f" => functions = true,
            "-v" => functions = false,
            name if functions => {
                shell.functions.remove(name);
            }
            name => match shell.variables.get(name) {
                Some(variable) if variable.readonly => {
                    return Err(Jump::Fail(format!("{name}: is read only")));
                }
                _ => {
                    shell.variables.remove(name);
                }
            },
        }
    }
    Ok(0)
}

fn set(shell: &mut Shell, args: &[String]) -> Run {
    if args.is_empty() {
        for (name, variable) in &shell.variables {
            if let Some(value) = &variable.value {
                shell.say(&format!("{name}={}\n", quote(value)));
            }
        }
        return Ok(0);
    }
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let on = arg.starts_with('-');
        if arg == "--" || !(on || arg.starts_with('+')) {
            let first = (arg != "--").then(|| arg.clone());
            shell.params = first.into_iter().chain(args.cloned()).collect();
            return Ok(0);
        }
        for letter in arg[1..].chars() {
            if letter == 'o' {
                let Some(name) = args.next() else {
                    for (name, _) in super::Flags::NAMES {
                        let state = if shell.options.is_on(name) {
                            "on"
                        } else {
                            "off"
                        };
                        shell.say(&format!("{name:<16}{state}\n"));
                    }
                    return Ok(0);
                };
                if !shell.options.set_name(name, on) {
                    return Err(Jump::Fail(format!("set: illegal option {arg} {name}")));
                }
            } else if !shell.options.set_letter(letter, on) {
                return Err(Jump::Fail(format!(
                    "set: illegal option {}{letter}",
                    &arg[..1]
                )));
            }
        }
    }
    Ok(0)
}

fn shift(shell: &mut Shell, args: &[String]) -> Run {
    let count = match args.first() {
        None => 1,
        Some(text) => text
            .parse()
            .map_err(|_| Jump::Fail(format!("shift: Illegal number: {text}")))?,
    };
    if count > shell.params.len() {
        return Ok(1);
    }
    shell.params.drain(..count);
    Ok(0)
}

/// EXIT is run; no signal ever comes, so the others are kept for `trap` to list, and that is said.
fn trap(shell: &mut Shell, args: &[String]) -> Run {
    if args.is_empty() {
        for (name, command) in &shell.traps {
            shell.say(&format!("trap -- {} {name}\n", quote(command)));
        }
        return Ok(0);
    }
    let args = if args[0] == "--" { &args[1..] } else { args };
    let [command, signals @ ..] = args else {
        return Ok(0);
    };
    // `trap EXIT` is `trap - EXIT`.
    let (command, signals) = match signals {
        [] => ("-", std::slice::from_ref(command)),
        signals => (command.as_str(), signals),
    };
    for signal in signals {
        let name = signal.strip_prefix("SIG").unwrap_or(signal);
        let name = if name == "0" { "EXIT" } else { name };
        if command == "-" {
            shell.traps.remove(name);
            continue;
        }
        if name != "EXIT" && !matches!(command, "" | ":" | "true") {
            shell.complain(format_args!(
                "trap: no signals come here: the command for {name} will not run"
            ));
        }
        shell.traps.insert(name.to_owned(), command.to_owned());
    }
    Ok(0)
}

fn let_(shell: &mut Shell, args: &[String]) -> Run {
    let mut value = 0;
    for arg in args {
        value = shell.arithmetic(arg)?;
    }
    Ok(i32::from(value == 0))
}

fn umask(shell: &mut Shell, args: &[String]) -> Run {
    match args {
        [] => {
            shell.say("0022\n");
            Ok(0)
        }
        // Files have no modes here: there is nothing a mask could change.
        _ => Ok(0),
    }
}

/// Waits for the sleeps that were sent to the background.
fn wait(shell: &mut Shell, args: &[String]) -> Run {
    let wanted = |number: u32| args.is_empty() || args.iter().any(|arg| *arg == number.to_string());
    for arg in args {
        if !shell
            .sleeps
            .iter()
            .any(|(number, _)| number.to_string() == *arg)
        {
            return Ok(127);
        }
    }
    let sleeps = std::mem::take(&mut shell.sleeps);
    let (waited, left): (Vec<_>, Vec<_>) =
        sleeps.into_iter().partition(|(number, _)| wanted(*number));
    shell.sleeps = left;
    let until = waited.iter().map(|(_, end)| *end).max().unwrap_or_default();
    match os::pause(until.saturating_sub(os::since_start())) {
        true => Ok(0),
        false => Err(Jump::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted() {
        assert!(BUILTINS.is_sorted_by_key(|(name, _)| *name));
    }
}

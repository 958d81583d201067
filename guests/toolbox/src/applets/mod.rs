//! The table of applets: what each is called, how it is used, what it does.

mod about;
mod date;
mod echo;
mod ls;
pub mod printf;
pub mod sleep;
mod test;
mod text;

use crate::context::Context;
use crate::io::{self, Started};
use crate::shell;

/// What an applet made of its arguments, or what is wrong with them.
pub type Answer = Result<Started, String>;
type Start = fn(&mut Context, &[String]) -> Answer;

pub struct Applet {
    pub name: &'static str,
    /// The arguments, for people.
    usage: &'static str,
    start: Start,
}

const fn row(name: &'static str, usage: &'static str, start: Start) -> Applet {
    Applet { name, usage, start }
}

/// Sorted by name.
const APPLETS: &[Applet] = &[
    row("[", "EXPRESSION ]", test::start),
    row("[[", "EXPRESSION ]]", test::start),
    row(
        "ash",
        "[-eux] [-o OPTION] [-c SCRIPT [NAME [ARG]...] | FILE [ARG]... | -s [ARG]...]",
        shell,
    ),
    row("cat", "[-n] [FILE]...", text::cat),
    row("clear", "", about::clear),
    row(
        "date",
        "[-u] [-d @SECONDS|DATE] [-r FILE] [+FORMAT]",
        date::start,
    ),
    row("echo", "[-neE] [ARG]...", echo::start),
    row(
        "env",
        "[-i] [-u NAME]... [NAME=VALUE]... [COMMAND [ARG]...]",
        about::env,
    ),
    row("false", "", |_, _| done(1)),
    row("hostname", "", about::hostname),
    row("id", "[-u] [-g] [-n]", about::id),
    row("kill", "[-SIGNAL] PID...", about::kill),
    row("ls", "[-1AaCdFhlpRrSt] [FILE]...", ls::start),
    row("printenv", "[NAME]...", about::printenv),
    row("printf", "FORMAT [ARG]...", printf::start),
    row("ps", "", about::ps),
    row("pwd", "", about::pwd),
    row(
        "sh",
        "[-eux] [-o OPTION] [-c SCRIPT [NAME [ARG]...] | FILE [ARG]... | -s [ARG]...]",
        shell,
    ),
    row("sleep", "N[smhd]...|infinity", sleep::start),
    row("test", "EXPRESSION", test::start),
    row("true", "", |_, _| done(0)),
    row("uname", "[-amnrs]", about::uname),
    row("which", "NAME...", about::which),
    row("whoami", "", about::whoami),
];

/// The usual end of an applet.
pub fn done(code: i32) -> Answer {
    Ok(Started::Done(code))
}

fn shell(context: &mut Context, args: &[String]) -> Answer {
    Ok(shell::start(context, args))
}

pub fn names() -> impl Iterator<Item = &'static str> {
    APPLETS.iter().map(|applet| applet.name)
}

fn find(name: &str) -> Option<&'static Applet> {
    let at = APPLETS
        .binary_search_by(|applet| applet.name.cmp(name))
        .ok()?;
    Some(&APPLETS[at])
}

/// The applet that a command's name means: `ls`, or `/bin/ls` where no such file is mounted.
pub fn resolve(context: &Context, name: &str) -> Option<&'static str> {
    let Some((directory, base)) = name.rsplit_once('/') else {
        return find(name).map(|applet| applet.name);
    };
    let known = matches!(
        directory,
        "/bin" | "/sbin" | "/usr/bin" | "/usr/sbin" | "/usr/local/bin" | "/usr/local/sbin"
    );
    if !known || crate::files::lstat(&context.path(name)).is_ok() {
        return None;
    }
    find(base).map(|applet| applet.name)
}

/// Starts the applet; its input may still be pushed into it.
pub fn start(context: &mut Context, name: &str, args: &[String]) -> Started {
    let Some(applet) = find(name) else {
        context.name = name.to_owned();
        context.fail("applet not found");
        return Started::Done(127);
    };
    context.name = applet.name.to_owned();
    let wants_help = args.first().is_some_and(|arg| arg == "--help")
        && !matches!(name, "echo" | "test" | "[" | "[[");
    if wants_help {
        io::print(
            &context.stdout,
            &format!("usage: {} {}\n", applet.name, applet.usage),
        );
        return Started::Done(0);
    }
    match (applet.start)(context, args) {
        Ok(started) => started,
        Err(message) => {
            context.fail(message);
            io::print(
                &context.stderr,
                &format!("usage: {} {}\n", applet.name, applet.usage),
            );
            // 1 means "no" for these.
            Started::Done(
                if matches!(name, "test" | "[" | "[[" | "grep" | "egrep" | "fgrep") {
                    2
                } else {
                    1
                },
            )
        }
    }
}

/// Runs the applet from beginning to end.
pub fn run(context: &mut Context, name: &str, args: &[String]) -> i32 {
    let started = start(context, name, args);
    io::complete(context, started)
}

/// Runs a command that another applet was given (`env`, `xargs`, `find -exec`): an applet, no function of a shell.
pub fn run_words(context: &Context, words: &[String]) -> i32 {
    let Some((name, args)) = words.split_first() else {
        return 0;
    };
    let mut context = context.clone();
    match resolve(&context, name) {
        Some(applet) => run(&mut context, applet, args),
        None if name.contains('/') => {
            // A script: the shell knows what to do with it.
            let script = shell::quoted(words);
            run(&mut context, "sh", &["-c".to_owned(), script])
        }
        None => {
            context.fail(format_args!("{name}: not found"));
            127
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_the_list_is_true() {
        assert!(APPLETS.is_sorted_by_key(|applet| applet.name));
        let listed: Vec<&str> = include_str!("../../applets.txt").lines().collect();
        assert_eq!(listed, names().collect::<Vec<_>>());
    }
}

//! The table of applets: what each is called, how it is used, what it does.

mod about;
mod change;
mod columns;
mod curl;
mod date;
mod dns;
mod echo;
mod encode;
mod find;
mod grep;
mod gzip;
mod ls;
mod net;
mod numbers;
mod paths;
pub mod printf;
mod sed;
pub mod sleep;
mod sort;
mod tail;
mod tar;
mod test;
mod text;
mod wget;
mod xargs;

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

const SHELL: &str = "[-eux] [-o OPTION] [-c SCRIPT [NAME [ARG]...] | FILE [ARG]... | -s [ARG]...]";
const GREP: &str =
    "[-EFcHhiLlnoqrsvwx] [-m COUNT] [-ABC LINES] [-e PATTERN] [-f FILE] [PATTERN] [FILE]...";
const CURL: &str = "[-sSfiILGvO] [-o FILE] [-X METHOD] [-H HEADER]... [-d DATA]... [-T FILE] [-u USER:PASSWORD] [-A AGENT] \
    [-e REFERER] [-r RANGE] [-m SECONDS] [--connect-timeout SECONDS] [-w FORMAT] URL...";
const FIND: &str = "[PATH]... [-name|-iname|-path PATTERN] [-type f|d|l] [-size|-mmin|-mtime N] [-newer FILE] [-empty] \
    [-mindepth|-maxdepth N] [-prune] [-print|-print0] [-delete] [-exec COMMAND {} ;|+]";

/// Sorted by name.
const APPLETS: &[Applet] = &[
    row("[", "EXPRESSION ]", test::start),
    row("[[", "EXPRESSION ]]", test::start),
    row("ash", SHELL, shell),
    row("base64", "[-d] [-w COLUMNS] [FILE]", encode::base64),
    row("basename", "PATH [SUFFIX]", paths::basename),
    row("cat", "[-nb] [FILE]...", text::cat),
    row("chgrp", "[-R] GROUP FILE...", change::chmod),
    row("chmod", "[-R] MODE FILE...", change::chmod),
    row("chown", "[-R] OWNER[:GROUP] FILE...", change::chmod),
    row("clear", "", about::clear),
    row("cmp", "[-s] FILE FILE", encode::cmp),
    row("cp", "[-arRfpdPLHnuvT] SOURCE... DESTINATION", change::cp),
    row("curl", CURL, curl::start),
    row(
        "cut",
        "-b|-c|-f LIST [-d CHAR] [-s] [--output-delimiter TEXT] [FILE]...",
        columns::cut,
    ),
    row(
        "date",
        "[-uRI] [-d @SECONDS|DATE] [-r FILE] [+FORMAT]",
        date::start,
    ),
    row("df", "", paths::df),
    row("dirname", "PATH", paths::dirname),
    row("du", "[-sahkmc] [-d DEPTH] [FILE]...", paths::du),
    row("echo", "[-neE] [ARG]...", echo::start),
    row("egrep", GREP, grep::start),
    row(
        "env",
        "[-i] [-u NAME]... [NAME=VALUE]... [COMMAND [ARG]...]",
        about::env,
    ),
    row("expr", "EXPRESSION", numbers::expr),
    row("false", "", |_, _| done(1)),
    row("fgrep", GREP, grep::start),
    row("find", FIND, find::start),
    row("grep", GREP, grep::start),
    row("gunzip", "[-ckf] [FILE]...", gzip::start),
    row("gzip", "[-cdkf] [FILE]...", gzip::start),
    row("head", "[-n LINES] [-c BYTES] [-qv] [FILE]...", text::head),
    row("hexdump", "[-C] [FILE]...", encode::hexdump),
    row("hostname", "", about::hostname),
    row("id", "[-u] [-g] [-n]", about::id),
    row("kill", "[-SIGNAL] PID...", about::kill),
    row("less", "[FILE]...", text::less),
    row("ln", "[-sfnT] TARGET... LINK|DIRECTORY", change::ln),
    row("ls", "[-1AaCdFhlnpRrSt] [FILE]...", ls::start),
    row("md5sum", "[-c] [FILE]...", encode::checksum),
    row("mkdir", "[-p] [-m MODE] DIRECTORY...", change::mkdir),
    row(
        "mktemp",
        "[-dqtu] [-p DIRECTORY] [TEMPLATE]",
        change::mktemp,
    ),
    row("more", "[FILE]...", text::less),
    row("mv", "[-fnT] SOURCE... DESTINATION", change::mv),
    row("nc", "[-zv] [-w SECONDS] HOST PORT | -l [-p] PORT", net::nc),
    row("nl", "[-b a|t] [FILE]...", text::nl),
    row("nslookup", "[-type=TYPE] NAME [SERVER]", net::nslookup),
    row(
        "od",
        "[-A o|x|d|n] [-t c|x1|x2] [-cx] [FILE]...",
        encode::od,
    ),
    row("printenv", "[NAME]...", about::printenv),
    row("printf", "FORMAT [ARG]...", printf::start),
    row("ps", "", about::ps),
    row("pwd", "", about::pwd),
    row("readlink", "[-fen] FILE...", paths::readlink),
    row("realpath", "FILE...", paths::realpath),
    row("rev", "[FILE]...", text::rev),
    row("rm", "[-rfdv] FILE...", change::rm),
    row("rmdir", "[-p] DIRECTORY...", change::rmdir),
    row(
        "sed",
        "[-nErs] [-i[.SUFFIX]] [-e SCRIPT] [-f FILE] [SCRIPT] [FILE]...",
        sed::start,
    ),
    row(
        "seq",
        "[-w] [-s SEPARATOR] [FIRST [STEP]] LAST",
        numbers::seq,
    ),
    row("sh", SHELL, shell),
    row("sha1sum", "[-c] [FILE]...", encode::checksum),
    row("sha256sum", "[-c] [FILE]...", encode::checksum),
    row("sha512sum", "[-c] [FILE]...", encode::checksum),
    row("sleep", "N[smhd]...|infinity", sleep::start),
    row(
        "sort",
        "[-bcdfhnrsuV] [-k KEY]... [-t CHAR] [-o FILE] [FILE]...",
        sort::start,
    ),
    row("stat", "[-L] [-c FORMAT] FILE...", paths::stat),
    row("tac", "[FILE]...", text::tac),
    row(
        "tail",
        "[-n [+]LINES] [-c [+]BYTES] [-fFqv] [FILE]...",
        tail::start,
    ),
    row(
        "tar",
        "-c|-x|-t [-f FILE] [-C DIRECTORY] [-zmpovkOh] [--exclude PATTERN] [--strip-components N] [FILE]...",
        tar::start,
    ),
    row("tee", "[-a] [FILE]...", text::tee),
    row("test", "EXPRESSION", test::start),
    row("time", "COMMAND [ARG]...", numbers::time),
    row("touch", "[-c] [-d DATE] [-r FILE] FILE...", change::touch),
    row("tr", "[-cds] SET [SET]", columns::tr),
    row("true", "", |_, _| done(0)),
    row("truncate", "-s SIZE [-c] FILE...", change::truncate),
    row("uname", "[-amnrsv]", about::uname),
    row("uniq", "[-cdui] [FILE [OUTPUT]]", columns::uniq),
    row(
        "watch",
        "[-n SECONDS] [-t] COMMAND [ARG]...",
        numbers::watch,
    ),
    row("wc", "[-clmw] [FILE]...", text::wc),
    row(
        "wget",
        "[-qS] [-O FILE] [-P DIRECTORY] [-T SECONDS] [-U AGENT] [--header TEXT] [--post-data TEXT] [--spider] URL...",
        wget::start,
    ),
    row("which", "NAME...", about::which),
    row("whoami", "", about::whoami),
    row(
        "xargs",
        "[-0rt] [-n COUNT] [-I MARK] [-d CHAR] [COMMAND [ARG]...]",
        xargs::start,
    ),
    row("yes", "[WORD]...", text::yes),
    row("zcat", "[FILE]...", gzip::start),
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
    match io::noticed(|| (applet.start)(context, args)) {
        (Ok(Started::Done(0)), true) => Started::Done(1),
        (Ok(started), _) => started,
        (Err(message), _) => {
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

//! Applets that say where they are: environment, names, processes.

use super::{Answer, done, resolve, run_words};
use crate::context::Context;
use crate::io::print;
use crate::options::{Spec, parse};

pub fn pwd(context: &mut Context, _: &[String]) -> Answer {
    print(&context.stdout, &format!("{}\n", context.cwd));
    done(0)
}

pub fn clear(context: &mut Context, _: &[String]) -> Answer {
    print(&context.stdout, "\x1b[H\x1b[J");
    done(0)
}

pub fn env(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "iu:",
        long: &[("ignore-environment", 'i'), ("unset", 'u')],
        stop: true,
    };
    let options = parse(&SPEC, args)?;
    if options.has('i') {
        context.env.clear();
    }
    for name in options.values('u') {
        context.env.remove(name);
    }
    let mut words = options.operands.as_slice();
    while let Some((first, rest)) = words.split_first() {
        let Some((name, value)) = first.split_once('=') else {
            break;
        };
        context.env.insert(name.to_owned(), value.to_owned());
        words = rest;
    }
    if !words.is_empty() {
        return done(run_words(context, words));
    }
    for (name, value) in &context.env {
        print(&context.stdout, &format!("{name}={value}\n"));
    }
    done(0)
}

pub fn printenv(context: &mut Context, args: &[String]) -> Answer {
    if args.is_empty() {
        return env(context, &[]);
    }
    let mut missing = 0;
    for name in args {
        match context.env.get(name) {
            Some(value) => print(&context.stdout, &format!("{value}\n")),
            None => missing = 1,
        }
    }
    done(missing)
}

fn host(context: &Context) -> String {
    context
        .env
        .get("HOSTNAME")
        .cloned()
        .unwrap_or_else(|| "localhost".to_owned())
}

pub fn hostname(context: &mut Context, args: &[String]) -> Answer {
    if args.iter().any(|arg| !matches!(arg.as_str(), "-s" | "-f")) {
        return Err("the name is the pod's and cannot be changed".to_owned());
    }
    print(&context.stdout, &format!("{}\n", host(context)));
    done(0)
}

pub fn uname(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "amnrsvop",
        long: &[("all", 'a')],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let host = host(context);
    let parts = [
        ('s', "WASI"),
        ('n', host.as_str()),
        ('r', "0.2"),
        ('v', "coracle"),
        ('m', "wasm32"),
    ];
    let none = !parts.iter().any(|(letter, _)| options.has(*letter));
    let wanted = |letter| options.has('a') || options.has(letter) || (none && letter == 's');
    let words: Vec<&str> = parts
        .iter()
        .filter(|(l, _)| wanted(*l))
        .map(|(_, word)| *word)
        .collect();
    print(&context.stdout, &format!("{}\n", words.join(" ")));
    done(0)
}

/// WASI has no users; inside the sandbox everything that can be done may be done.
pub fn id(context: &mut Context, args: &[String]) -> Answer {
    const SPEC: Spec = Spec {
        short: "ugnG",
        long: &[],
        stop: false,
    };
    let options = parse(&SPEC, args)?;
    let short = options.last_of("ugG").is_some();
    let text = match (short, options.has('n')) {
        (true, true) => "root",
        (true, false) => "0",
        _ => "uid=0(root) gid=0(root)",
    };
    print(&context.stdout, &format!("{text}\n"));
    done(0)
}

pub fn whoami(context: &mut Context, _: &[String]) -> Answer {
    print(&context.stdout, "root\n");
    done(0)
}

/// What else runs in the pod, as the host told it (`CORACLE_PS`: lines `PID USER TIME COMMAND`), and this command.
pub fn ps(context: &mut Context, _: &[String]) -> Answer {
    print(&context.stdout, "PID   USER     TIME  COMMAND\n");
    let mut last = 0;
    for line in std::env::var("CORACLE_PS").unwrap_or_default().lines() {
        let mut words = line.split_whitespace();
        let (Some(pid), Some(user), Some(time)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        last = last.max(pid.parse().unwrap_or(0));
        let command = words.collect::<Vec<_>>().join(" ");
        print(
            &context.stdout,
            &format!("{pid:>5} {user:<8} {time:>5} {command}\n"),
        );
    }
    print(
        &context.stdout,
        &format!("{:>5} {:<8} {:>5} ps\n", last + 1, "root", "0:00"),
    );
    done(0)
}

pub fn kill(context: &mut Context, args: &[String]) -> Answer {
    if args.first().is_some_and(|arg| arg == "-l") {
        print(
            &context.stdout,
            "no signals: WebAssembly components have none\n",
        );
        return done(0);
    }
    done(context.fail("components get no signals; to stop one, delete its pod"))
}

pub fn which(context: &mut Context, args: &[String]) -> Answer {
    let mut missing = 0;
    for name in args {
        match resolve(context, name) {
            Some(_) if name.contains('/') => print(&context.stdout, &format!("{name}\n")),
            Some(applet) => print(&context.stdout, &format!("/bin/{applet}\n")),
            None => missing = 1,
        }
    }
    done(missing)
}

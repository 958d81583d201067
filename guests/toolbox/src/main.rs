//! Shows: a shell where there is none. One command that is `sh` and the tools people reach for in `kubectl exec`.
//!
//! The name it is called by says which tool it is, as with busybox: `sh`, `/bin/ls`, `toolbox wc -l`. There are no
//! processes here: the shell and every applet run in this one, and what flows through a pipeline is pushed from applet
//! to applet (`io::Filter`). Owns nothing but the choice of the applet.

mod applets;
mod context;
mod files;
mod http;
mod io;
mod options;
mod os;
mod regex;
mod shell;

use context::Context;

fn main() {
    let mut args = std::env::args();
    let name = args.next().unwrap_or_else(|| "toolbox".to_owned());
    let code = call(&mut Context::from_outside(), &name, args.collect());
    io::flush();
    os::exit(code);
}

/// Runs the applet that `name` means. Under any other name (`toolbox`, `busybox`) the first argument says it; without
/// one this is `sh`, as the image busybox does.
fn call(context: &mut Context, name: &str, args: Vec<String>) -> i32 {
    let base = name.rsplit('/').next().unwrap_or(name);
    let base = base.strip_prefix('-').unwrap_or(base);
    if applets::names().any(|applet| applet == base) {
        return applets::run(context, base, &args);
    }
    match args.split_first() {
        None => applets::run(context, "sh", &[]),
        Some((first, _)) if first == "--help" => {
            let names: Vec<_> = applets::names().collect();
            let about = "usage: toolbox [--list] APPLET [ARGUMENT]...";
            io::print(
                &context.stdout,
                &format!("{about}\n\n{}\n", names.join(" ")),
            );
            0
        }
        Some((first, _)) if first == "--list" => {
            for name in applets::names() {
                io::print(&context.stdout, &format!("{name}\n"));
            }
            0
        }
        // Also a script that is mounted somewhere.
        Some(_) => applets::run_words(context, &args),
    }
}

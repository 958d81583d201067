//! Shows: a shell where there is none. One command that is `sh` and the tools people reach for in `kubectl exec`.
//!
//! The name it is called by says which tool it is, as with busybox: `sh`, `/bin/ls`, `toolbox wc -l`. There are no
//! processes here: the shell and every applet run in this one, and what flows through a pipeline is pushed from applet
//! to applet (`io::Filter`). Owns nothing but the choice of the applet.

mod applets;
mod context;
mod files;
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

/// Runs the applet that `name` means; `toolbox` and `busybox` take it from their first argument.
fn call(context: &mut Context, name: &str, mut args: Vec<String>) -> i32 {
    let base = name.rsplit('/').next().unwrap_or(name);
    let base = base.strip_prefix('-').unwrap_or(base);
    let base = base.strip_suffix(".wasm").unwrap_or(base);
    if !matches!(base, "toolbox" | "busybox") {
        return applets::run(context, base, &args);
    }
    match args.first().map(String::as_str) {
        None | Some("--help") => {
            let names: Vec<_> = applets::names().collect();
            let about = "usage: toolbox [--list] APPLET [ARGUMENT]...";
            io::print(
                &context.stdout,
                &format!("{about}\n\n{}\n", names.join(" ")),
            );
            0
        }
        Some("--list") => {
            for name in applets::names() {
                io::print(&context.stdout, &format!("{name}\n"));
            }
            0
        }
        Some(_) => {
            let applet = args.remove(0);
            applets::run(context, &applet, &args)
        }
    }
}

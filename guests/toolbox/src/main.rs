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

/// Runs the applet that `name` means. As `toolbox` or `busybox` the first argument says it; without one this is `sh`,
/// as the image busybox does. Any other name is a command: a script that is mounted, or nothing that is here.
fn call(context: &mut Context, name: &str, mut args: Vec<String>) -> i32 {
    let base = name.rsplit('/').next().unwrap_or(name);
    // A login shell's name begins with a dash.
    let base = base.strip_prefix('-').unwrap_or(base);
    let base = base.strip_suffix(".wasm").unwrap_or(base);
    if !matches!(base, "toolbox" | "busybox") {
        let name = if name.starts_with('-') { base } else { name };
        args.insert(0, name.to_owned());
        return applets::run_words(context, &args);
    }
    match args.first().map(String::as_str) {
        None => applets::run(context, "sh", &[]),
        Some("--help") => {
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
        Some(_) => applets::run_words(context, &args),
    }
}

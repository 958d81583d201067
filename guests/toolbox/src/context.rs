//! What an applet has to itself: names, environment, working directory, three streams. The shell makes one per command.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::files;
use crate::io::{Input, Output};
use crate::os;

#[derive(Clone)]
pub struct Context {
    /// What messages begin with.
    pub name: String,
    pub env: BTreeMap<String, String>,
    /// Absolute and without `.` or `..`.
    pub cwd: String,
    pub stdin: Input,
    pub stdout: Output,
    pub stderr: Output,
}

impl Context {
    /// As the host started this component.
    pub fn from_outside() -> Self {
        let mut env: BTreeMap<_, _> = std::env::vars().collect();
        // What the host tells this component is not for scripts.
        env.retain(|name, _| !name.starts_with("CORACLE_"));
        Self {
            name: "toolbox".to_owned(),
            env,
            cwd: files::absolute("/", &os::initial_cwd().unwrap_or_else(|| "/".to_owned())),
            stdin: Input::outside(),
            stdout: Output::Stdout,
            stderr: Output::Stderr,
        }
    }

    /// Where a path leads from the working directory; an empty one leads nowhere.
    pub fn path(&self, path: &str) -> PathBuf {
        files::named(&self.cwd, path)
    }

    /// Says on stderr what failed and answers 1, the usual code for it.
    pub fn fail(&self, message: impl std::fmt::Display) -> i32 {
        crate::io::print(&self.stderr, &format!("{}: {message}\n", self.name));
        1
    }

    /// The same about a file or another object.
    pub fn fail_on(&self, object: &str, error: &std::io::Error) -> i32 {
        self.fail(format_args!("{object}: {}", crate::io::why(error)))
    }
}

//! `… | while read`: a loop that is fed line by line, so that it works on input that never ends (`tail -f log | …`).
//!
//! Only where nothing in the loop's body reads, too: there is no way to stop in the middle of a command and go on later.
//! Any other loop behind a pipe gets its input when that has ended.

use std::rc::Rc;

use super::ast::{Command, Compound, Item, List, Simple};
use super::{Fd, Jump, Shell};
use crate::io::{self, Closed, Filter, GATHER, Input, Written};

/// Commands that leave stdin alone, whatever their arguments are.
const QUIET: &[&str] = &[
    ":", "[", "[[", "basename", "break", "cd", "chmod", "continue", "cp", "date", "dirname",
    "echo", "exit", "export", "expr", "false", "let", "ln", "local", "ls", "mkdir", "mv",
    "nslookup", "printf", "pwd", "readonly", "return", "rm", "rmdir", "seq", "set", "shift",
    "sleep", "stat", "test", "touch", "trap", "true", "unset", "wget",
];

/// The condition and the body, if the command is such a loop.
fn parts(command: &Command) -> Option<(&List, &List)> {
    let Command::Compound(
        Compound::Loop {
            until: false,
            condition,
            body,
        },
        redirects,
    ) = command
    else {
        return None;
    };
    let simple = only(condition)?;
    let reads = simple.words.first().and_then(super::parse::plain) == Some("read");
    (redirects.is_empty() && reads && simple.redirects.is_empty() && quiet(body))
        .then_some((condition, body))
}

/// The one simple command of a list.
fn only(list: &List) -> Option<&Simple> {
    let [
        Item {
            chain,
            background: false,
        },
    ] = list.0.as_slice()
    else {
        return None;
    };
    match (
        chain.first.negated,
        chain.first.commands.as_slice(),
        chain.rest.as_slice(),
    ) {
        (false, [command], []) => match command.as_ref() {
            Command::Simple(simple) => Some(simple),
            _ => None,
        },
        _ => None,
    }
}

/// Whether no command reads stdin; what stands behind a pipe reads that.
fn quiet(list: &List) -> bool {
    list.0.iter().all(|item| {
        let pipelines = std::iter::once(&item.chain.first)
            .chain(item.chain.rest.iter().map(|(_, pipeline)| pipeline));
        pipelines.into_iter().all(|pipeline| {
            pipeline
                .commands
                .first()
                .is_none_or(|command| quiet_command(command))
        })
    })
}

fn quiet_command(command: &Command) -> bool {
    match command {
        Command::Function(..) => true,
        Command::Simple(simple) => match simple.words.first() {
            None => true,
            Some(word) => super::parse::plain(word).is_some_and(|name| QUIET.contains(&name)),
        },
        Command::Compound(compound, _) => match compound {
            Compound::Group(list) | Compound::Subshell(list) => quiet(list),
            Compound::If { arms, otherwise } => {
                arms.iter()
                    .all(|(condition, body)| quiet(condition) && quiet(body))
                    && otherwise.as_ref().is_none_or(quiet)
            }
            Compound::Loop {
                condition, body, ..
            } => quiet(condition) && quiet(body),
            Compound::For { body, .. } => quiet(body),
            Compound::Case { arms, .. } => arms.iter().all(|(_, body)| quiet(body)),
        },
    }
}

/// The loop as a filter, if it can be fed.
pub(super) fn filter(shell: &Shell, command: &Rc<Command>) -> Option<Box<dyn Filter>> {
    let (condition, body) = parts(command)?;
    // A function may be called like any command.
    if !shell.functions.is_empty() {
        return None;
    }
    Some(Box::new(Fed {
        condition: condition.clone(),
        body: body.clone(),
        shell: shell.clone(),
        waiting: Vec::new(),
        status: 0,
        over: false,
        left: false,
    }))
}

struct Fed {
    shell: Shell,
    condition: List,
    body: List,
    /// Less than a line.
    waiting: Vec<u8>,
    status: i32,
    over: bool,
    /// The whole subshell has ended, not only the loop.
    left: bool,
}

impl Fed {
    /// Turns until these lines are used up or the loop is left.
    fn run(&mut self, lines: Vec<u8>) {
        let input = Input::bytes(lines);
        self.shell.fds.insert(0, Fd::In(input.clone()));
        while !self.over && !input.is_drained() {
            match self.turn() {
                Ok(Some(status)) => self.status = status,
                Ok(None) => self.over = true,
                Err(jump) => {
                    self.status = self.shell.leave(Err(jump));
                    self.over = true;
                    self.left = true;
                }
            }
        }
    }

    fn turn(&mut self) -> Result<Option<i32>, Jump> {
        let condition = &self.condition;
        match self.shell.once(|shell| shell.condition(condition))? {
            Some(0) => {}
            _ => return Ok(None),
        }
        let body = &self.body;
        self.shell.once(|shell| shell.list(body))
    }
}

impl Filter for Fed {
    fn push(&mut self, bytes: &[u8]) -> Written {
        if self.over {
            return Err(Closed);
        }
        if self.waiting.len() + bytes.len() > GATHER {
            io::too_much();
            self.over = true;
            return Err(Closed);
        }
        self.waiting.extend_from_slice(bytes);
        // A line that a backslash continues waits for the next one.
        let ends =
            |at: &usize| self.waiting[*at] == b'\n' && (*at == 0 || self.waiting[*at - 1] != b'\\');
        let Some(end) = (0..self.waiting.len()).rev().find(ends) else {
            return Ok(());
        };
        let rest = self.waiting.split_off(end + 1);
        let lines = std::mem::replace(&mut self.waiting, rest);
        self.run(lines);
        if self.over { Err(Closed) } else { Ok(()) }
    }

    fn end(&mut self) -> i32 {
        if !self.over {
            let rest = std::mem::take(&mut self.waiting);
            self.run(rest);
        }
        if !self.left {
            self.status = self.shell.leave(Ok(self.status));
        }
        self.status
    }
}

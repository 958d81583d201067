//! Pipelines and `$(…)`: every part is a subshell; what the first writes is pushed through the others.

use std::cell::RefCell;
use std::rc::Rc;

use super::ast::{Command, List};
use super::{Fd, Jump, Shell, builtins, fed};
use crate::applets;
use crate::io::{Input, Output, Pipe, Started};
use crate::os;

impl Shell {
    pub(super) fn pipeline(&mut self, commands: &[Rc<Command>]) -> Result<i32, Jump> {
        let Some((first, readers)) = commands.split_first() else {
            return Ok(0);
        };
        let mut output = self.output(1);
        let mut pipes = Vec::new();
        for command in readers.iter().rev() {
            let pipe = self.deeper(|shell| Ok(shell.reader(command, output.clone())))?;
            let pipe = Rc::new(RefCell::new(pipe));
            output = Output::Pipe(Rc::clone(&pipe));
            pipes.push(pipe);
        }
        let mut writer = self.subshell();
        writer.fds.insert(1, Fd::Out(output));
        let result = writer.deeper(|shell| shell.command(first));
        let mut codes = vec![writer.leave(result)];
        drop(writer);
        for pipe in pipes.into_iter().rev() {
            codes.push(pipe.borrow_mut().end());
        }
        if os::interrupted() {
            return Err(Jump::Interrupted);
        }
        let last = codes.last().copied().unwrap_or(0);
        if !self.options.pipefail {
            return Ok(last);
        }
        Ok(codes.into_iter().rev().find(|code| *code != 0).unwrap_or(0))
    }

    /// What stands behind a `|`, as the pipe that leads to it.
    fn reader(&self, command: &Rc<Command>, output: Output) -> Pipe {
        let mut shell = self.subshell();
        shell.fds.insert(0, Fd::In(Input::Piped));
        shell.fds.insert(1, Fd::Out(output));
        let filter = shell.filter(command);
        let context = shell.context(first_word(command).unwrap_or("sh"));
        let started = match filter {
            Ok(Some(started)) => started,
            Ok(None) if let Some(fed) = fed::filter(&shell, command) => {
                Started::Reads(Vec::new(), fed)
            }
            Ok(None) => {
                let command = Rc::clone(command);
                shell.pulls(move |shell| {
                    let result = shell.command(&command);
                    shell.leave(result)
                })
            }
            Err(jump) => Started::Done(shell.leave(Err(jump))),
        };
        Pipe::into(started, &context)
    }

    /// An applet is fed while its writer still writes; nothing if it takes a shell to run this.
    fn filter(&mut self, command: &Command) -> Result<Option<Started>, Jump> {
        let Command::Simple(simple) = command else {
            return Ok(None);
        };
        // Looked at before anything is expanded, because that may have effects and must happen once.
        let Some(name) = first_word(command) else {
            return Ok(None);
        };
        let shells = self.functions.contains_key(name) || builtins::find(name).is_some();
        if shells || applets::resolve(&self.context(name), name).is_none() {
            return Ok(None);
        }
        let words = self.words(simple)?;
        let Some((name, args)) = words.split_first() else {
            return Ok(None);
        };
        if !self.redirect(&simple.redirects)? {
            return Ok(Some(Started::Done(1)));
        }
        self.assign_for_one(&simple.assigns)?;
        let input = self.input();
        let piped = matches!(input, Input::Piped);
        let started = self.start(name, args, input);
        if piped {
            return Ok(Some(started));
        }
        Ok(Some(Started::Done(crate::io::complete(
            &self.context(name),
            started,
        ))))
    }

    /// What a command writes, without the newlines at its end.
    pub(super) fn substitute(&mut self, list: &List) -> Result<String, Jump> {
        let gathered = Rc::new(RefCell::new(Vec::new()));
        let mut inner = self.subshell();
        inner
            .fds
            .insert(1, Fd::Out(Output::Gather(Rc::clone(&gathered))));
        let result = self.deeper(|_| {
            let result = inner.deeper(|shell| shell.list(list));
            Ok(inner.leave(result))
        })?;
        self.substituted = Some(result);
        self.status = result;
        let bytes = gathered.take();
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.trim_end_matches('\n').to_owned())
    }
}

/// What a simple command is called, if that stands there as it is.
fn first_word(command: &Command) -> Option<&str> {
    match command {
        Command::Simple(simple) => simple.words.first().and_then(super::parse::plain),
        _ => None,
    }
}

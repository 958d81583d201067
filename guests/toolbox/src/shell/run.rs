//! Runs what was parsed: lists, compound commands, simple commands. Says with [`Jump`] when the order is left.

use std::rc::Rc;

use super::ast::{Chain, Command, Compound, Item, Join, List, Pipeline, Simple, Word};
use super::{Jump, Shell, Variable, builtins};
use crate::applets;
use crate::context::Context;
use crate::io::{self, Input, Output, Started};
use crate::os;

type Run = Result<i32, Jump>;

/// 128 and SIGPIPE.
const PIPE: i32 = 141;

impl Shell {
    pub(super) fn list(&mut self, list: &List) -> Run {
        let mut status = 0;
        for item in &list.0 {
            status = match item.background {
                true => self.background(item)?,
                false => self.chain(&item.chain)?,
            };
            self.status = status;
        }
        Ok(status)
    }

    /// `sleep … &` is remembered for `wait`; nothing else can run beside the shell.
    fn background(&mut self, item: &Item) -> Run {
        if let ([], [command]) = (
            item.chain.rest.as_slice(),
            item.chain.first.commands.as_slice(),
        ) && let Command::Simple(simple) = command.as_ref()
            && simple.assigns.is_empty()
        {
            let words = self.expand(&simple.words)?;
            if let Some(("sleep", times)) = words
                .split_first()
                .map(|(name, rest)| (name.as_str(), rest))
                && let Ok(time) = applets::sleep::duration(times)
            {
                let number = self.sleeps.last().map_or(2, |(last, _)| last + 1);
                self.sleeps.push((number, os::since_start() + time));
                return Ok(0);
            }
        }
        Err(Jump::Fail(
            "background jobs are not supported here".to_owned(),
        ))
    }

    fn chain(&mut self, chain: &Chain) -> Run {
        let last = chain.rest.len();
        let mut status = self.tested_pipeline(&chain.first, last > 0)?;
        for (at, (join, pipeline)) in chain.rest.iter().enumerate() {
            if (*join == Join::And) == (status == 0) {
                status = self.tested_pipeline(pipeline, at + 1 < last)?;
            }
        }
        Ok(status)
    }

    /// A pipeline whose failure may be an answer; otherwise `set -e` looks at it.
    fn tested_pipeline(&mut self, pipeline: &Pipeline, tested: bool) -> Run {
        let tested = tested || pipeline.negated;
        self.tested += u32::from(tested);
        let result = match pipeline.commands.as_slice() {
            [command] => self.command(command),
            commands => self.pipeline(commands),
        };
        self.tested -= u32::from(tested);
        let status = result?;
        let judged = match pipeline.commands.as_slice() {
            [command] => matches!(
                command.as_ref(),
                Command::Simple(_) | Command::Compound(Compound::Subshell(_), _)
            ),
            _ => true,
        };
        if status != 0 && self.options.errexit && self.tested == 0 && !tested && judged {
            return Err(Jump::Exit(status));
        }
        self.status = match pipeline.negated {
            true => i32::from(status == 0),
            false => status,
        };
        Ok(self.status)
    }

    /// A list that is a condition.
    pub(super) fn condition(&mut self, list: &List) -> Run {
        self.tested += 1;
        let result = self.list(list);
        self.tested -= 1;
        result
    }

    pub(super) fn command(&mut self, command: &Command) -> Run {
        if os::interrupted() {
            return Err(Jump::Interrupted);
        }
        match command {
            Command::Simple(simple) => self.simple(simple),
            Command::Function(name, body) => {
                self.functions.insert(name.clone(), Rc::clone(body));
                Ok(0)
            }
            Command::Compound(compound, redirects) => {
                let saved = self.fds.clone();
                let result = match self.redirect(redirects) {
                    Ok(true) => self.compound(compound),
                    Ok(false) => Ok(1),
                    Err(jump) => Err(jump),
                };
                self.fds = saved;
                result
            }
        }
    }

    fn compound(&mut self, compound: &Compound) -> Run {
        match compound {
            Compound::Group(list) => self.list(list),
            Compound::Subshell(list) => {
                let mut inner = self.subshell();
                let result = inner.deeper(|shell| shell.list(list));
                Ok(inner.leave(result))
            }
            Compound::If { arms, otherwise } => {
                for (condition, body) in arms {
                    if self.condition(condition)? == 0 {
                        return self.list(body);
                    }
                }
                otherwise.as_ref().map_or(Ok(0), |body| self.list(body))
            }
            Compound::Loop {
                until,
                condition,
                body,
            } => {
                let mut status = 0;
                loop {
                    match self.once(|shell| shell.condition(condition))? {
                        Some(code) if (code == 0) != *until => {}
                        _ => return Ok(status),
                    }
                    match self.once(|shell| shell.list(body))? {
                        Some(code) => status = code,
                        None => return Ok(0),
                    }
                }
            }
            Compound::For { name, words, body } => {
                let words = match words {
                    Some(words) => self.expand(words)?,
                    None => self.params.clone(),
                };
                let mut status = 0;
                for word in words {
                    self.assign(name, word)?;
                    match self.once(|shell| shell.list(body))? {
                        Some(code) => status = code,
                        None => return Ok(0),
                    }
                }
                Ok(status)
            }
            Compound::Case { word, arms } => {
                let word = self.expand_one(word)?;
                for (patterns, body) in arms {
                    for pattern in patterns {
                        let pattern = self.expand_pattern(pattern)?;
                        if super::pattern::matches(&pattern, &word) {
                            return self.list(body);
                        }
                    }
                }
                Ok(0)
            }
        }
    }

    /// One turn of a loop: nothing if the loop is left. Jumps to outer loops go on.
    pub(super) fn once(&mut self, run: impl FnOnce(&mut Self) -> Run) -> Result<Option<i32>, Jump> {
        os::look_for_interrupt();
        if os::interrupted() {
            return Err(Jump::Interrupted);
        }
        self.loops += 1;
        let result = run(self);
        self.loops -= 1;
        match result {
            Ok(code) => Ok(Some(code)),
            Err(Jump::Break(1)) => Ok(None),
            Err(Jump::Continue(1)) => Ok(Some(0)),
            Err(Jump::Break(outer)) => Err(Jump::Break(outer - 1)),
            Err(Jump::Continue(outer)) => Err(Jump::Continue(outer - 1)),
            Err(jump) => Err(jump),
        }
    }

    fn simple(&mut self, simple: &Simple) -> Run {
        self.substituted = None;
        let words = self.words(simple)?;
        self.trace(simple, &words);
        let saved = self.fds.clone();
        // `exec >file` is meant to last.
        let lasting = matches!(words.as_slice(), [only] if only == "exec");
        let result = match self.redirect(&simple.redirects) {
            Ok(true) => self.execute(simple, words),
            Ok(false) => Ok(1),
            Err(jump) => Err(jump),
        };
        if !lasting {
            self.fds = saved;
        }
        result
    }

    /// The words of a command; those of `[[ … ]]` are neither split nor replaced by files, and neither are the values of
    /// commands that assign.
    pub(super) fn words(&mut self, simple: &Simple) -> Result<Vec<String>, Jump> {
        let name = simple.words.first().and_then(super::parse::plain);
        match name {
            Some("[[") => {
                let mut words: Vec<String> = Vec::new();
                for word in &simple.words {
                    let pattern =
                        matches!(words.last().map(String::as_str), Some("=" | "==" | "!="));
                    words.push(match pattern {
                        true => self.expand_pattern(word)?,
                        false => self.expand_one(word)?,
                    });
                }
                Ok(words)
            }
            Some(name @ ("export" | "readonly" | "local"))
                if !self.functions.contains_key(name) =>
            {
                let mut words = Vec::new();
                for word in &simple.words {
                    match super::parse::assignment(word) {
                        Some((name, value)) => {
                            let value = self.expand_one(&value)?;
                            words.push(format!("{name}={value}"));
                        }
                        None => words.extend(self.expand(std::slice::from_ref(word))?),
                    }
                }
                Ok(words)
            }
            _ => self.expand(&simple.words),
        }
    }

    fn trace(&mut self, simple: &Simple, words: &[String]) {
        if !self.options.xtrace {
            return;
        }
        let assigns = simple.assigns.iter().map(|(name, _)| format!("{name}=…"));
        let words = words.iter().map(|word| builtins::quote(word));
        let line: Vec<String> = assigns.chain(words).collect();
        io::print(&self.output(2), &format!("+ {}\n", line.join(" ")));
    }

    fn execute(&mut self, simple: &Simple, words: Vec<String>) -> Run {
        let Some((name, args)) = words.split_first() else {
            for (name, value) in &simple.assigns {
                let value = self.expand_one(value)?;
                self.assign(name, value)?;
            }
            return Ok(self.substituted.take().unwrap_or(0));
        };
        let before = self.assign_for_one(&simple.assigns)?;
        let result = self.call(name, args);
        for (name, variable) in before {
            self.restore(name, variable);
        }
        result
    }

    /// `NAME=value command`: set and exported while it runs; what the names were.
    pub(super) fn assign_for_one(
        &mut self,
        assigns: &[(String, Word)],
    ) -> Result<Vec<(String, Option<Variable>)>, Jump> {
        let mut before = Vec::new();
        for (name, value) in assigns {
            let value = self.expand_one(value);
            let known = self.variables.get(name).cloned();
            if let Err(jump) = value.and_then(|value| self.assign(name, value)) {
                for (name, variable) in before.into_iter().rev() {
                    self.restore(name, variable);
                }
                return Err(jump);
            }
            before.push((name.clone(), known));
            if let Some(variable) = self.variables.get_mut(name) {
                variable.exported = true;
            }
        }
        before.reverse();
        Ok(before)
    }

    pub(super) fn restore(&mut self, name: String, variable: Option<Variable>) {
        match variable {
            Some(variable) => self.variables.insert(name, variable),
            None => self.variables.remove(&name),
        };
    }

    /// Functions, then what only the shell can do, then applets and scripts.
    pub(super) fn call(&mut self, name: &str, args: &[String]) -> Run {
        if let Some(body) = self.functions.get(name).cloned() {
            return self.function(&body, args);
        }
        if let Some(builtin) = builtins::find(name) {
            return builtin(self, args);
        }
        let started = self.start(name, args, self.input());
        let code = io::complete(&self.context(name), started);
        if os::interrupted() {
            return Err(Jump::Interrupted);
        }
        match self.output(1) {
            Output::Stdout => io::flush(),
            // What SIGPIPE does: a loop that writes for nobody must not go on.
            Output::Pipe(pipe) if pipe.try_borrow().is_ok_and(|pipe| pipe.is_broken()) => {
                return Err(Jump::Exit(PIPE));
            }
            _ => {}
        }
        Ok(code)
    }

    fn function(&mut self, body: &Command, args: &[String]) -> Run {
        let params = std::mem::replace(&mut self.params, args.to_vec());
        let loops = std::mem::take(&mut self.loops);
        self.locals.push(Vec::new());
        let result = self.deeper(|shell| shell.command(body));
        for (name, variable) in self.locals.pop().unwrap_or_default().into_iter().rev() {
            self.restore(name, variable);
        }
        self.loops = loops;
        self.params = params;
        match result {
            Err(Jump::Return(code)) => Ok(code),
            result => result,
        }
    }

    /// Starts an applet, or a script that is a file.
    pub(super) fn start(&self, name: &str, args: &[String], input: Input) -> Started {
        let mut context = self.context(name);
        context.stdin = input;
        let Some(applet) = applets::resolve(&context, name) else {
            return self.start_file(context, name, args);
        };
        context.name = applet.to_owned();
        applets::start(&mut context, applet, args)
    }

    fn start_file(&self, mut context: Context, name: &str, args: &[String]) -> Started {
        let refuse = |code, message: &str| {
            self.complain(format_args!("{name}: {message}"));
            Started::Done(code)
        };
        if !name.contains('/') {
            return refuse(127, "not found");
        }
        match crate::files::stat(&context.path(name)) {
            Err(_) => return refuse(127, "not found"),
            Ok(stat) if stat.is_dir() => return refuse(126, "Permission denied"),
            Ok(_) => {}
        }
        let first = crate::files::open(&context.path(name)).and_then(|file| file.line());
        let interpreter = match &first {
            Ok(line) if line.starts_with(b"#!") => {
                String::from_utf8_lossy(&line[2..]).trim().to_owned()
            }
            Ok(line) if line.starts_with(b"\0asm") || line.starts_with(b"\x7fELF") => {
                return refuse(126, "only scripts can be run here: there are no processes");
            }
            Ok(_) => "/bin/sh".to_owned(),
            Err(_) => return refuse(126, "Permission denied"),
        };
        let mut words = interpreter.split_whitespace().map(str::to_owned);
        let shell = words.next().unwrap_or_default();
        let Some(applet) = applets::resolve(&context, &shell) else {
            return refuse(127, &format!("its interpreter {shell} is not here"));
        };
        context.name = applet.to_owned();
        let args: Vec<String> = words
            .chain([name.to_owned()])
            .chain(args.iter().cloned())
            .collect();
        applets::start(&mut context, applet, &args)
    }
}

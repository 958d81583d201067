//! `<`, `>`, `2>&1`, here-documents: which stream a number means while a command runs.

use std::fs::OpenOptions;
use std::path::PathBuf;

use super::ast::{Redirect, RedirectKind, Word};
use super::{Fd, Jump, Shell};
use crate::files;
use crate::io::{self, Input, Output};

impl Shell {
    /// Redirects in order; `false` after a complaint.
    pub(super) fn redirect(&mut self, redirects: &[Redirect]) -> Result<bool, Jump> {
        for redirect in redirects {
            if let Err(message) = self.redirect_one(redirect)? {
                self.complain(message);
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn redirect_one(&mut self, redirect: &Redirect) -> Result<Result<(), String>, Jump> {
        let fd = match &redirect.kind {
            RedirectKind::Read(word) => {
                let (name, path) = self.target(word)?;
                match name.as_str() {
                    // The same stream, not a second reader of it.
                    "/dev/stdin" => Fd::In(self.input()),
                    _ => match files::open(&path) {
                        Ok(input) => Fd::In(input),
                        Err(error) => {
                            return Ok(Err(format!("can't open {name}: {}", io::why(&error))));
                        }
                    },
                }
            }
            RedirectKind::Write(word) => match self.create(word, false)? {
                Ok(output) => Fd::Out(output),
                Err(message) => return Ok(Err(message)),
            },
            RedirectKind::Append(word) => match self.create(word, true)? {
                Ok(output) => Fd::Out(output),
                Err(message) => return Ok(Err(message)),
            },
            RedirectKind::Both { to, append } => match self.create(to, *append)? {
                Ok(output) => {
                    self.fds.insert(2, Fd::Out(output.clone()));
                    Fd::Out(output)
                }
                Err(message) => return Ok(Err(message)),
            },
            RedirectKind::ReadWrite(word) => {
                let (name, path) = self.target(word)?;
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path);
                match file {
                    Ok(file) if redirect.fd == 0 => Fd::In(Input::file(file)),
                    Ok(file) => Fd::Out(Output::File(std::rc::Rc::new(std::cell::RefCell::new(
                        file,
                    )))),
                    Err(error) => {
                        return Ok(Err(format!("can't open {name}: {}", io::why(&error))));
                    }
                }
            }
            RedirectKind::Duplicate(word) => {
                let target = self.expand_one(word)?;
                if target == "-" {
                    self.fds.remove(&redirect.fd);
                    return Ok(Ok(()));
                }
                match target.parse().ok().and_then(|fd: u32| self.fds.get(&fd)) {
                    Some(fd) => fd.clone(),
                    None => return Ok(Err(format!("{target}: Bad file descriptor"))),
                }
            }
            RedirectKind::Here(body) => {
                let text = match body.get() {
                    Some(word) => self.expand_one(word)?,
                    None => String::new(),
                };
                Fd::In(Input::bytes(text.into_bytes()))
            }
        };
        self.fds.insert(redirect.fd, fd);
        Ok(Ok(()))
    }

    fn target(&mut self, word: &Word) -> Result<(String, PathBuf), Jump> {
        let name = self.expand_one(word)?;
        let path = files::named(&self.cwd, &name);
        Ok((name, path))
    }

    fn create(&mut self, word: &Word, append: bool) -> Result<Result<Output, String>, Jump> {
        let (name, path) = self.target(word)?;
        Ok(match name.as_str() {
            "/dev/stdout" => Ok(self.output(1)),
            "/dev/stderr" => Ok(self.output(2)),
            "" => Err("can't create : No such file or directory".to_owned()),
            _ => files::create(&path, append)
                .map_err(|error| format!("can't create {name}: {}", io::why(&error))),
        })
    }
}

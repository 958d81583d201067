//! The door for `exec` and `attach`: which container is meant, and whether it can be asked. What carries the streams (WebSocket,
//! SPDY) is none of its business; it sees readers and writers.

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use super::known::Known;

/// Which container.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Target {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// `None`: whichever pod has the name.
    pub(crate) uid: Option<String>,
    pub(crate) container: String,
}

/// The client's terminal, in characters.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Size {
    pub(crate) width: u16,
    pub(crate) height: u16,
}

/// The client's end. What it did not ask for is absent; a writer that fails says that the client is gone.
pub(crate) struct Session {
    pub(crate) stdin: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub(crate) stdout: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Absent with a terminal: everything is on `stdout` there.
    pub(crate) stderr: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Closed when the client sends no sizes.
    pub(crate) resize: mpsc::Receiver<Size>,
    pub(crate) tty: bool,
}

/// In the kubelet's words.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ExecError {
    #[error("pod does not exist")]
    NoPod,
    #[error("container not found (\"{container}\")")]
    NoContainer { container: String },
    #[error("container {container} is not running")]
    NotRunning { container: String },
    #[error("{what} is not supported by this node yet")]
    NotYet { what: &'static str },
}

impl Known {
    /// What can be said before any stream is open.
    pub(crate) fn check(&self, target: &Target) -> Result<(), ExecError> {
        let record = self
            .find(&target.namespace, &target.pod)
            .filter(|record| target.uid.as_ref().is_none_or(|uid| *uid == record.uid))
            .ok_or(ExecError::NoPod)?;
        let container =
            record
                .container(&target.container)
                .ok_or_else(|| ExecError::NoContainer {
                    container: target.container.clone(),
                })?;
        match container.running {
            Some(_) => Ok(()),
            None => Err(ExecError::NotRunning {
                container: target.container.clone(),
            }),
        }
    }

    /// Runs `command` beside the container until it ends; its exit code. Cancel by dropping: the guest ends.
    pub(crate) async fn exec(
        &self,
        target: Target,
        _command: Vec<String>,
        _session: Session,
    ) -> Result<i32, ExecError> {
        self.check(&target)?;
        Err(ExecError::NotYet { what: "exec" })
    }

    /// Joins the container's own streams until it ends; its exit code. Cancel by dropping: the container goes on.
    pub(crate) async fn attach(&self, target: Target, _session: Session) -> Result<i32, ExecError> {
        self.check(&target)?;
        Err(ExecError::NotYet { what: "attach" })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::super::known::Record;
    use super::*;

    #[test]
    fn what_cannot_be_asked_is_said_before_any_stream_is_open() {
        let known = Known::default();
        let record = Record::new(
            "default",
            "web",
            "u1",
            PathBuf::new(),
            std::iter::once("app".to_owned()),
        );
        known.insert(Arc::new(record));
        let target = |pod: &str, uid: Option<&str>, container: &str| Target {
            namespace: "default".to_owned(),
            pod: pod.to_owned(),
            uid: uid.map(str::to_owned),
            container: container.to_owned(),
        };
        let said = |target| known.check(&target).expect_err("refused").to_string();
        assert_eq!(said(target("db", None, "app")), "pod does not exist");
        assert_eq!(said(target("web", Some("u0"), "app")), "pod does not exist");
        assert_eq!(
            said(target("web", Some("u1"), "x")),
            "container not found (\"x\")"
        );
        assert_eq!(
            said(target("web", None, "app")),
            "container app is not running"
        );
    }
}

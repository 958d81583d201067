//! Exec and attach: the client's streams become a [`Session`], and what became of it a Status on the error stream, in the
//! kubelet's words. Knows no wire, and not how a command is run.

use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use super::outlet::Outlet;
use super::spdy::{Opened, Stream};
use crate::pods::exec::{ExecError, Session, Size, Target};
use crate::pods::known::Known;

/// For a client to open all the streams it asked for.
const ALL_STREAMS: Duration = Duration::from_secs(30);
/// Sizes that wait for who draws.
const SIZES: usize = 4;
/// A size in JSON is not longer.
const MAX_SIZE: usize = 256;
/// Words of a command, and their bytes together: what a URL can hold is less.
const MAX_COMMAND: usize = 64 * 1024;

/// What is asked for.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) target: Target,
    pub(super) what: What,
    pub(super) options: Options,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum What {
    Exec(Vec<String>),
    Attach,
}

/// Which streams, and whether they are a terminal's.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub(super) struct Options {
    pub(super) stdin: bool,
    pub(super) stdout: bool,
    pub(super) stderr: bool,
    pub(super) tty: bool,
}

/// The client's streams, whatever carries them.
pub(super) struct Ends {
    pub(super) stdin: Option<DuplexStream>,
    pub(super) stdout: Option<Outlet>,
    pub(super) stderr: Option<Outlet>,
    pub(super) error: Outlet,
    pub(super) resize: Option<DuplexStream>,
}

/// What is written to the error stream: a Status, or before v4 a sentence and nothing for a success.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Status,
    Text,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resize {
    width: u16,
    height: u16,
}

// === impl Options ===

impl Options {
    /// The kubelet's parameters: `input=1&output=1&error=1&tty=1`.
    pub(super) fn read(query: &[(String, String)]) -> Result<Self, String> {
        let has = |name: &str| query.iter().any(|(key, value)| key == name && value == "1");
        let tty = has("tty");
        let options = Self {
            stdin: has("input"),
            stdout: has("output"),
            // A terminal has one stream for both.
            stderr: has("error") && !tty,
            tty,
        };
        if !options.stdin && !options.stdout && !options.stderr {
            return Err("you must specify at least 1 of stdin, stdout, stderr".to_owned());
        }
        Ok(options)
    }
}

/// `?command=ls&command=-l`
pub(super) fn command(query: &[(String, String)]) -> Result<Vec<String>, String> {
    let words: Vec<String> = query
        .iter()
        .filter(|(name, _)| name == "command")
        .map(|(_, word)| word.clone())
        .collect();
    let length: usize = words.iter().map(String::len).sum();
    match (words.is_empty(), length) {
        (true, _) => Err("you must specify at least one command for the container".to_owned()),
        (_, MAX_COMMAND..) => Err(format!("a command of more than {MAX_COMMAND} bytes")),
        _ => Ok(words),
    }
}

/// Runs what is asked until it ends, and says how. Dropped when the client is gone.
pub(super) async fn run(known: &Known, ask: Ask, ends: Ends, verdict: Verdict) {
    let Ends {
        stdin,
        stdout,
        stderr,
        mut error,
        resize,
    } = ends;
    let (sizes, resizes) = mpsc::channel(SIZES);
    let session = Session {
        stdin: stdin.map(|stdin| Box::new(stdin) as _),
        stdout: stdout.map(|stdout| Box::new(stdout) as _),
        stderr: stderr.map(|stderr| Box::new(stderr) as _),
        resize: resizes,
        tty: ask.options.tty,
    };
    let attach = ask.what == What::Attach;
    let work = async {
        match ask.what {
            What::Exec(command) => known.exec(ask.target, command, session).await,
            What::Attach => known.attach(ask.target, session).await,
        }
    };
    let result = tokio::select! {
        result = work => result,
        () = watch_sizes(resize, sizes) => return,
    };
    let said = match verdict {
        Verdict::Status => status(&result, attach).to_string(),
        Verdict::Text => sentence(&result, attach),
    };
    // A client that is gone needs no verdict.
    drop(error.write_all(said.as_bytes()).await);
    drop(error.shutdown().await);
}

/// Sizes as they come; one that nobody has taken gives way to a newer one. Never returns.
async fn watch_sizes(resize: Option<DuplexStream>, sizes: mpsc::Sender<Size>) {
    if let Some(mut resize) = resize {
        let (mut buffer, mut newest) = (BytesMut::with_capacity(MAX_SIZE), None);
        loop {
            tokio::select! {
                read = resize.read_buf(&mut buffer) => match read {
                    Ok(1..) => newest = last_size(&mut buffer).or(newest),
                    _ => break,
                },
                Ok(place) = sizes.reserve(), if newest.is_some() => {
                    if let Some(size) = newest.take() {
                        place.send(size);
                    }
                }
            }
        }
    }
    // The sender stays: a client that says nothing of sizes has not closed its terminal.
    std::future::pending::<()>().await;
}

/// Pure: takes whole objects off the buffer; the newest size among them. What is no size is passed over.
fn last_size(buffer: &mut BytesMut) -> Option<Size> {
    let mut newest = None;
    while let Some(end) = buffer.iter().position(|byte| *byte == b'}') {
        let object = buffer.split_to(end + 1);
        if let Ok(Resize { width, height }) = serde_json::from_slice(&object) {
            newest = Some(Size { width, height });
        }
    }
    if buffer.len() > MAX_SIZE {
        buffer.advance(buffer.len());
    }
    newest
}

/// Collects the streams of one SPDY connection, then as above.
pub(super) async fn over_spdy(
    mut opened: mpsc::Receiver<Opened>,
    known: &Known,
    ask: Ask,
    verdict: Verdict,
    resizes: bool,
) {
    let mut found: [Option<Stream>; 5] = Default::default();
    const NAMES: [&str; 5] = ["stdin", "stdout", "stderr", "error", "resize"];
    let Options {
        stdin,
        stdout,
        stderr,
        tty,
    } = ask.options;
    let wanted = [stdin, stdout, stderr, true, tty && resizes];
    let deadline = Instant::now() + ALL_STREAMS;
    while found
        .iter()
        .zip(wanted)
        .any(|(stream, wanted)| wanted && stream.is_none())
    {
        // Too late, or gone: the connection ends.
        let Ok(Some(stream)) = timeout_at(deadline, opened.recv()).await else {
            tracing::debug!("timed out waiting for client to create streams");
            return;
        };
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        let place = NAMES.iter().position(|name| *name == kind);
        match place.filter(|place| wanted[*place] && found[*place].is_none()) {
            Some(place) => found[place] = Some(stream.accept().await),
            None => stream.refuse().await,
        }
    }
    let [stdin, stdout, stderr, Some(error), resize] = found else {
        return;
    };
    let ends = Ends {
        stdin: stdin.map(|stream| stream.inlet),
        stdout: stdout.map(|stream| stream.outlet),
        stderr: stderr.map(|stream| stream.outlet),
        error: error.outlet,
        resize: resize.map(|stream| stream.inlet),
    };
    run(known, ask, ends, verdict).await;
}

/// Attaching to what ends is a success, however it ended: as upstream.
fn status(result: &Result<i32, ExecError>, attach: bool) -> Value {
    match result {
        Ok(code) if *code == 0 || attach => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => {
            let doing = if attach {
                "attaching to container"
            } else {
                "executing command in container"
            };
            let why = format!("error {doing}: {error}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {why}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": why}]},
                "code": 500,
            })
        }
    }
}

fn sentence(result: &Result<i32, ExecError>, attach: bool) -> String {
    let status = status(result, attach);
    status["message"].as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Vec<(String, String)> {
        let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect()
    }

    #[test]
    fn streams_are_asked_for_in_the_kubelets_words() {
        let options = Options::read(&query("input=1&output=1&error=1&tty=1")).expect("options");
        assert!(options.stdin && options.stdout && options.tty);
        assert!(!options.stderr, "a terminal has one stream for both");
        assert!(Options::read(&query("tty=1&output=0")).is_err());
        let words = command(&query("command=ls&output=1&command=-l"));
        assert_eq!(words, Ok(vec!["ls".to_owned(), "-l".to_owned()]));
        assert!(command(&query("output=1")).is_err());
    }

    #[test]
    fn an_exit_code_is_a_cause_of_a_status() {
        assert_eq!(status(&Ok(0), false)["status"], "Success");
        assert_eq!(status(&Ok(1), true)["status"], "Success");
        let failed = status(&Ok(3), false);
        assert_eq!(failed["reason"], "NonZeroExitCode");
        assert_eq!(
            failed["details"]["causes"][0],
            json!({"reason": "ExitCode", "message": "3"})
        );
        let error = status(&Err(ExecError::NoPod), false);
        assert_eq!(
            error["message"],
            "Internal error occurred: error executing command in container: pod does not exist"
        );
        assert_eq!(sentence(&Ok(0), false), "");
        assert_eq!(
            sentence(&Ok(3), false),
            "command terminated with non-zero exit code: exit status 3"
        );
    }

    #[test]
    fn sizes_are_read_as_they_come_and_rubbish_is_passed_over() {
        let mut buffer = BytesMut::from(&b"{\"Width\":80,\"Height\":24}\n{\"Width\":1"[..]);
        let size = |width, height| Some(Size { width, height });
        assert_eq!(last_size(&mut buffer), size(80, 24));
        buffer.extend_from_slice(b"00,\"Height\":30}nonsense}");
        assert_eq!(last_size(&mut buffer), size(100, 30));
        buffer.extend_from_slice(&[b'x'; 1_000]);
        assert_eq!(last_size(&mut buffer), None);
        assert!(buffer.is_empty());
    }

    #[tokio::test]
    async fn the_newest_size_wins_when_nobody_takes_them() {
        let (mut client, resize) = tokio::io::duplex(4_096);
        let (sizes, mut taken) = mpsc::channel(1);
        let watching = tokio::spawn(watch_sizes(Some(resize), sizes));
        for width in 1..=50 {
            let size = format!("{{\"Width\":{width},\"Height\":2}}");
            client.write_all(size.as_bytes()).await.expect("written");
        }
        let mut last = 0;
        while last < 50 {
            last = taken.recv().await.expect("a size").width;
        }
        watching.abort();
    }
}

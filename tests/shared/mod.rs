//! What tests of one host and of several need alike: patience, and the smallest HTTP client. Knows no cluster.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

/// Asks again and again until the answer is `Some`; panics with `what` at the deadline.
pub(crate) fn wait_for<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "waited {patience:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// One GET over a stream that is then done with: status and body.
pub(crate) fn http_get(
    mut stream: impl Read + Write,
    host: &str,
    path: &str,
) -> io::Result<(u16, String)> {
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )?;
    stream.flush()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    let malformed = || io::Error::new(io::ErrorKind::UnexpectedEof, "no whole answer");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let chunked = head.to_lowercase().contains("transfer-encoding: chunked");
    let body = match chunked {
        true => unchunk(body).ok_or_else(malformed)?,
        false => body.to_owned(),
    };
    Ok((status.ok_or_else(malformed)?, body))
}

/// `None` when the last chunk is missing.
fn unchunk(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length.trim(), 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..length)?);
        body = rest.get(length + 2..)?;
    }
}

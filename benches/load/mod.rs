//! A closed loop of HTTP/1.1 clients, the same for whatever is measured: each sends, reads the whole answer, sends again.
//! It knows no more HTTP than that, so that most of the machine is left to the server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

/// How long one answer may take.
const ANSWER: Duration = Duration::from_secs(30);

/// What a run measured.
pub(crate) struct Outcome {
    pub(crate) elapsed: Duration,
    /// Of each request, shortest first.
    pub(crate) latencies: Vec<Duration>,
}

/// One connection that answers one request after the other.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// `clients` connections for `time`; `request` makes the bytes of a client's n-th request.
pub(crate) async fn run(
    address: SocketAddr,
    tls: Option<&TlsConnector>,
    clients: usize,
    time: Duration,
    request: impl Fn(usize, usize) -> Vec<u8> + Send + Sync + 'static,
) -> Result<Outcome> {
    let request = Arc::new(request);
    let mut connections = Vec::new();
    for _ in 0..clients {
        connections.push(Connection::open(address, tls).await?);
    }
    let begun = Instant::now();
    let end = begun + time;
    let tasks: Vec<_> = connections
        .into_iter()
        .enumerate()
        .map(|(client, mut connection)| {
            let request = Arc::clone(&request);
            tokio::spawn(async move {
                let mut latencies = Vec::with_capacity(1 << 16);
                loop {
                    let bytes = request(client, latencies.len());
                    let sent = Instant::now();
                    if sent >= end {
                        return anyhow::Ok(latencies);
                    }
                    let (status, _) = connection.call(&bytes).await?;
                    ensure!((200..300).contains(&status), "the answer was {status}");
                    latencies.push(sent.elapsed());
                }
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    let elapsed = begun.elapsed();
    latencies.sort_unstable();
    ensure!(!latencies.is_empty(), "nothing was answered in {time:?}");
    Ok(Outcome { elapsed, latencies })
}

// === impl Connection ===

impl Connection {
    pub(crate) async fn open(address: SocketAddr, tls: Option<&TlsConnector>) -> Result<Self> {
        let stream = TcpStream::connect(address)
            .await
            .with_context(|| format!("{address}"))?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(stream),
            Some(tls) => Box::new(tls.connect(address.ip().into(), stream).await?),
        };
        Ok(Self {
            stream,
            buffer: Vec::with_capacity(16 * 1024),
        })
    }

    /// Sends a request; returns the status and how long the answer was.
    pub(crate) async fn call(&mut self, request: &[u8]) -> Result<(u16, usize)> {
        let answer = async {
            self.stream.write_all(request).await?;
            self.stream.flush().await?;
            self.answer().await
        };
        tokio::time::timeout(ANSWER, answer)
            .await
            .context("no answer in time")?
    }

    async fn answer(&mut self) -> Result<(u16, usize)> {
        self.buffer.clear();
        let mut head = None;
        loop {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the server closed the connection");
            }
            if head.is_none() {
                head = Head::parse(&self.buffer)?;
            }
            let Some(head) = &head else { continue };
            let whole = match head.body {
                Some(length) => self.buffer.len() >= head.length + length,
                None => self.buffer.ends_with(b"\r\n0\r\n\r\n"),
            };
            if whole {
                return Ok((head.status, self.buffer.len()));
            }
        }
    }
}

/// As much of a response's head as matters here.
struct Head {
    status: u16,
    length: usize,
    /// Length of the body; `None`: it comes in chunks.
    body: Option<usize>,
}

// === impl Head ===

impl Head {
    fn parse(buffer: &[u8]) -> Result<Option<Self>> {
        let Some(end) = buffer.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let text = std::str::from_utf8(&buffer[..end])?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(|line| line.get(9..12));
        let length = lines
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map(|(_, value)| value.trim().parse())
            .transpose()?;
        Ok(Some(Self {
            status: status.context("no status line")?.parse()?,
            length: end + 4,
            body: length,
        }))
    }
}

// === impl Outcome ===

impl Outcome {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `part` of the requests did not exceed: 0.5, 0.99.
    pub(crate) fn quantile(&self, part: f64) -> Duration {
        let at = (self.latencies.len() as f64 * part) as usize;
        self.latencies[at.min(self.latencies.len() - 1)]
    }
}

//! Questions about names that are not the cluster's: asked of the servers the node itself asks, over UDP and, when the answer
//! is too long for that, TCP. Bounded in number and time; keeps what may be kept. Never looks at the cluster's zone.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use types::error::chain;

use super::cache::{Cache, Key};
use super::wire::{PAYLOAD, Reply};
use crate::bind::interfaces;

/// Questions on their way; more are answered SERVFAIL.
const AT_ONCE: usize = 512;
/// What one server has for an answer, and all of them together: less than a client waits.
const TRY: Duration = Duration::from_millis(1_500);
const DEADLINE: Duration = Duration::from_millis(4_500);
/// Datagrams are lost sometimes.
const ROUNDS: usize = 2;
/// How long the servers are believed.
const RELOAD: Duration = Duration::from_secs(30);
const SERVERS: usize = 8;
const SEARCHES: usize = 16;
const RESOLV_CONF: &str = "/etc/resolv.conf";
const LARGEST: usize = 4_096;

/// Where the servers come from.
enum Source {
    Given(Vec<SocketAddr>),
    File(PathBuf),
}

pub(crate) struct Forward {
    source: Source,
    /// Ourselves: asking these would never end. Held for a few instructions, as what follows.
    own: Mutex<Vec<SocketAddr>>,
    /// The servers of a moment ago, without ourselves.
    known: Mutex<Option<(Instant, Arc<Vec<SocketAddr>>)>>,
    /// Held while the file is read.
    reading: tokio::sync::Mutex<()>,
    told: AtomicBool,
    permits: Semaphore,
    /// Held for a few instructions, never over an await.
    cache: Mutex<Cache>,
    /// The server that answered last is asked first.
    first: AtomicUsize,
    pub(crate) asked: AtomicU64,
    pub(crate) cached: AtomicU64,
}

// === impl Forward ===

impl Forward {
    /// To `servers`, or to those of the node's `resolv.conf` when there are none.
    pub(crate) fn new(servers: Vec<SocketAddr>) -> Self {
        let source = if servers.is_empty() {
            Source::File(PathBuf::from(RESOLV_CONF))
        } else {
            Source::Given(servers)
        };
        Self {
            source,
            own: Mutex::default(),
            known: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            told: AtomicBool::new(false),
            permits: Semaphore::new(AT_ONCE),
            cache: Mutex::default(),
            first: AtomicUsize::new(0),
            asked: AtomicU64::new(0),
            cached: AtomicU64::new(0),
        }
    }

    /// The answer of the first server that has one, owned by the name as it was asked. Cancel by dropping.
    pub(crate) async fn ask(
        &self,
        query: &Query,
        dnssec_ok: bool,
        checking_disabled: bool,
    ) -> Reply {
        let key = Key {
            name: query.name().to_lowercase(),
            kind: query.query_type(),
            dnssec_ok,
            checking_disabled,
        };
        if let Some(known) = self.known(query, &key) {
            return known;
        }
        let Ok(_permit) = self.permits.try_acquire() else {
            return Reply::of(ResponseCode::ServFail);
        };
        self.ask_anew(query, key).await
    }

    /// For callers that are counted elsewhere, with nothing out of the ordinary to ask. Cancel by dropping.
    pub(crate) async fn ask_plainly(&self, query: &Query) -> Reply {
        let key = Key {
            name: query.name().to_lowercase(),
            kind: query.query_type(),
            dnssec_ok: false,
            checking_disabled: false,
        };
        match self.known(query, &key) {
            Some(known) => known,
            None => self.ask_anew(query, key).await,
        }
    }

    fn known(&self, query: &Query, key: &Key) -> Option<Reply> {
        let known = self.cache().get(key, Instant::now())?;
        self.cached.fetch_add(1, Ordering::Relaxed);
        Some(renamed(known, query.name()))
    }

    async fn ask_anew(&self, query: &Query, key: Key) -> Reply {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answered = tokio::time::timeout(DEADLINE, self.ask_all(query, &key)).await;
        let Ok(Some(reply)) = answered else {
            return Reply::of(ResponseCode::ServFail);
        };
        self.cache().put(key, &reply, Instant::now());
        renamed(reply, query.name())
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One server after the other; those that will not answer are passed over, though their word is better than none.
    async fn ask_all(&self, query: &Query, key: &Key) -> Option<Reply> {
        let servers = self.servers().await;
        let first = self.first.load(Ordering::Relaxed);
        let mut refusal = None;
        for turn in 0..servers.len() * ROUNDS {
            let index = (first + turn) % servers.len();
            let server = servers[index];
            match tokio::time::timeout(TRY, exchange(server, query, key)).await {
                Ok(Ok(reply)) => match reply.code {
                    ResponseCode::NoError | ResponseCode::NXDomain => {
                        self.first.store(index, Ordering::Relaxed);
                        return Some(reply);
                    }
                    code => refusal = Some(Reply::of(code)),
                },
                Ok(Err(error)) => {
                    tracing::debug!(%server, error = %chain(&error), "Name server failed")
                }
                Err(_) => tracing::debug!(%server, "Name server did not answer in time"),
            }
            if refusal.is_some() && turn + 1 >= servers.len() {
                break;
            }
        }
        refusal
    }

    /// We answer at these from now on.
    pub(crate) fn answers_at(&self, addresses: impl IntoIterator<Item = SocketAddr>) {
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.extend(addresses);
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    async fn servers(&self) -> Arc<Vec<SocketAddr>> {
        let known = || {
            let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            let (read, servers) = known.clone()?;
            Some((read.elapsed() < RELOAD, servers))
        };
        // One reads, and whoever asks meanwhile goes by what was read last.
        let _reading = match (known(), self.reading.try_lock()) {
            (Some((true, servers)), _) | (Some((false, servers)), Err(_)) => return servers,
            (_, Ok(reading)) => reading,
            (None, Err(_)) => self.reading.lock().await,
        };
        let last = match known() {
            Some((true, servers)) => return servers,
            last => last.map(|(_, servers)| servers),
        };
        let servers = match &self.source {
            Source::Given(servers) => self.without_ourselves(servers.clone()),
            Source::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => self.without_ourselves(servers(&text)),
                Err(error) => {
                    tracing::debug!(path = %path.display(), error = %chain(&error), "Failed to read name servers");
                    last.unwrap_or_default()
                }
            },
        };
        let now = Instant::now();
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((now, Arc::clone(&servers)));
        servers
    }

    fn without_ourselves(&self, mut servers: Vec<SocketAddr>) -> Arc<Vec<SocketAddr>> {
        let own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|server| {
            let ourselves = own.iter().any(|own| is_ourselves(*own, *server, interfaces));
            if ourselves && !self.told.swap(true, Ordering::Relaxed) {
                tracing::warn!(%server, "This name server is the node's own DNS server: it is not asked");
            }
            !ourselves
        });
        Arc::new(servers)
    }
}

/// Whether who asks `server` asks who answers at `own`.
fn is_ourselves(
    own: SocketAddr,
    server: SocketAddr,
    interfaces: impl FnOnce() -> BTreeSet<IpAddr>,
) -> bool {
    let (at, asked) = (own.ip().to_canonical(), server.ip().to_canonical());
    if own.port() != server.port() {
        return false;
    }
    // All addresses, of IPv6 those of IPv4 too; asking "all addresses" is asking the loopback.
    let everywhere = at.is_unspecified() && (at.is_ipv6() || asked.is_ipv4());
    let anywhere = |ip: IpAddr| ip.is_loopback() || ip.is_unspecified();
    at == asked
        || at.is_loopback() && asked.is_unspecified()
        || everywhere && (anywhere(asked) || interfaces().contains(&asked))
}

/// The `nameserver` lines of a `resolv.conf`.
fn servers(text: &str) -> Vec<SocketAddr> {
    let lines = text.lines().filter_map(|line| {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver"))
            .then(|| words.next())
            .flatten()
    });
    let mut servers: Vec<SocketAddr> = lines
        .filter_map(|word| word.parse().ok())
        .map(|ip: IpAddr| SocketAddr::new(ip, 53))
        .collect();
    servers.dedup();
    servers.truncate(SERVERS);
    servers
}

/// The machine's own search list; none when it cannot be read.
pub(crate) async fn searches() -> Vec<String> {
    match tokio::fs::read_to_string(RESOLV_CONF).await {
        Ok(text) => searched(&text),
        Err(error) => {
            tracing::debug!(path = RESOLV_CONF, error = %chain(&error), "Failed to read the search list");
            Vec::new()
        }
    }
}

/// The last `search` or `domain` line of a `resolv.conf`: it counts.
fn searched(text: &str) -> Vec<String> {
    let last = text.lines().rev().find_map(|line| {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        matches!(words.next(), Some("search" | "domain")).then_some(words)
    });
    let plain = |word: &str| word.trim_end_matches('.').to_ascii_lowercase();
    let words = last.into_iter().flatten().map(plain);
    words
        .filter(|word| !word.is_empty())
        .take(SEARCHES)
        .collect()
}

/// Owner names that are the question's are written as the client wrote it, whoever asked before.
fn renamed(mut reply: Reply, name: &Name) -> Reply {
    for record in &mut reply.answers {
        if record.name == *name {
            record.name = name.clone();
        }
    }
    reply
}

/// Asks one server.
async fn exchange(server: SocketAddr, query: &Query, key: &Key) -> io::Result<Reply> {
    let mut question = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.metadata.checking_disabled = key.checking_disabled;
    question.add_query(query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(PAYLOAD);
    edns.set_dnssec_ok(key.dnssec_ok);
    question.set_edns(edns);
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let answer = datagram(server, &bytes, &question).await?;
    let answer = if answer.metadata.truncation {
        stream(server, &bytes, &question).await?
    } else {
        answer
    };
    Ok(Reply {
        code: answer.metadata.response_code,
        authoritative: false,
        answers: answer.answers,
        authorities: answer.authorities,
        additionals: answer.additionals,
    })
}

/// A socket of its own for every question: its port is half of what a forger would have to guess.
async fn datagram(server: SocketAddr, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; LARGEST];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Whatever else comes, the answer may still.
        if let Ok(answer) = Message::from_vec(&buffer[..length])
            && answers(&answer, question)
        {
            return Ok(answer);
        }
    }
}

async fn stream(server: SocketAddr, bytes: &[u8], question: &Message) -> io::Result<Message> {
    let mut socket = TcpStream::connect(server).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    socket.write_all(&framed).await?;
    let mut answer = vec![0; usize::from(socket.read_u16().await?)];
    socket.read_exact(&mut answer).await?;
    let answer = Message::from_vec(&answer).map_err(io::Error::other)?;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::other("the answer is to another question"))
    }
}

fn answers(answer: &Message, question: &Message) -> bool {
    answer.metadata.id == question.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && (answer.queries == question.queries
            // Servers that could not read the question do not repeat it.
            || answer.queries.is_empty() && answer.metadata.response_code != ResponseCode::NoError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_resolvers_read_them() {
        let text = "# a comment\nsearch example.com\nnameserver 10.0.0.1 # first\n\
            nameserver\t::1\nnameserver fe80::1%eth0\nnameserver nonsense\n;nameserver 1.1.1.1\nnameservers 2.2.2.2\n";
        let expected: Vec<SocketAddr> =
            vec!["10.0.0.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(servers(text), expected);
        assert!(servers("").is_empty());
        let lists = "domain old.example\nsearch Lab.example. corp.example . # not this\n#search no\nnameserver 1.1.1.1\n";
        assert_eq!(searched(lists), ["lab.example", "corp.example"]);
        assert!(searched(text.split_once("\nnameserver").unwrap().1).is_empty());
    }

    #[test]
    fn who_answers_everywhere_is_itself_at_every_address_of_the_machine() {
        let machine =
            || BTreeSet::from(["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()]);
        for (own, server, expected) in [
            ("127.0.0.1:53", "127.0.0.1:53", true),
            ("127.0.0.1:53", "127.0.0.1:54", false),
            ("127.0.0.1:53", "127.0.0.53:53", false),
            ("127.0.0.1:53", "0.0.0.0:53", true),
            ("127.0.0.1:53", "[::ffff:127.0.0.1]:53", true),
            ("0.0.0.0:53", "127.0.0.1:53", true),
            ("0.0.0.0:53", "127.0.0.53:53", true),
            ("0.0.0.0:53", "192.0.2.7:53", true),
            ("0.0.0.0:53", "192.0.2.8:53", false),
            ("0.0.0.0:53", "192.0.2.7:54", false),
            ("0.0.0.0:53", "[2001:db8::7]:53", false),
            ("[::]:53", "192.0.2.7:53", true),
            ("[::]:53", "[::1]:53", true),
            ("[::]:53", "[2001:db8::8]:53", false),
        ] {
            let (at, asked) = (own.parse().unwrap(), server.parse().unwrap());
            assert_eq!(is_ourselves(at, asked, machine), expected, "{own} {server}");
        }
    }

    #[tokio::test]
    async fn servers_that_were_given_are_not_ourselves_either() {
        let servers = ["127.0.0.1:5353", "192.0.2.1:53"].map(|server| server.parse().unwrap());
        let forward = Forward::new(servers.to_vec());
        assert_eq!(*forward.servers().await, servers);
        forward.answers_at(["0.0.0.0:5353".parse().unwrap()]);
        assert_eq!(*forward.servers().await, servers[1..]);
    }
}

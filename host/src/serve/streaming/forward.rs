//! Port-forward: pairs of streams (data and error) that a client opens per connection, and what happens to them: a connection
//! inside the pod, to its loopback. Errors in the kubelet's words. Knows no wire.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream, copy_buf, join, split,
};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::outlet::Outlet;
use super::spdy::{Headers, Opened, Stream};
use crate::network::PodNetwork;

/// For the second stream of a pair.
const SECOND_STREAM: Duration = Duration::from_secs(30);
const CHUNK: usize = 32 * 1024;
/// For a client to say what is left, once the pod has closed: many only wait for the end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Requests of one connection whose second stream has not come.
const MOST_WAITING: usize = 256;
/// Ports of one connection of the old kind.
const MOST_PORTS: usize = 64;

const PORT: &str = "port";
const STREAM_TYPE: &str = "streamtype";
const REQUEST_ID: &str = "requestid";

/// Where connections go.
pub(super) struct Destination {
    pub(super) pod: Arc<PodNetwork>,
}

/// Two streams of one request, as far as they have come.
struct Pair {
    port: u16,
    data: Option<Stream>,
    error: Option<Stream>,
    deadline: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Data,
    Error,
}

// === impl Destination ===

impl Destination {
    /// Until the pod has closed, and the client too or soon after. The error is for the error stream.
    async fn forward(
        &self,
        port: u16,
        data: &mut (impl AsyncRead + AsyncWrite + Unpin),
    ) -> Result<(), String> {
        let failed = |why: String| {
            let identity = self.pod.identity();
            format!(
                "error forwarding port {port} to pod {}, uid {}: {why}",
                identity.name, identity.uid
            )
        };
        // From inside, so that what listens on the pod's loopback is there too, and policies have no say: as upstream.
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = self.pod.connect(to).await.map_err(|error| {
            failed(format!(
                "failed to connect to localhost:{port} inside the pod: dial tcp4 {to}: connect: {error}"
            ))
        })?;
        let (from_pod, mut to_pod) = split(stream.into_io());
        let (from_client, mut to_client) = split(data);
        // How a connection ends that was there is the business of those at its ends.
        let up = async {
            let mut from_client = BufReader::with_capacity(CHUNK, from_client);
            drop(copy_buf(&mut from_client, &mut to_pod).await);
            drop(to_pod.shutdown().await);
        };
        let down = async {
            let mut from_pod = BufReader::with_capacity(CHUNK, from_pod);
            drop(copy_buf(&mut from_pod, &mut to_client).await);
            drop(to_client.shutdown().await);
        };
        tokio::pin!(up, down);
        tokio::select! {
            () = &mut down => drop(timeout(LAST_WORDS, up).await),
            // What is asked may be answered after the asking has ended.
            () = &mut up => down.await,
        }
        Ok(())
    }
}

/// Serves the streams of one SPDY connection, for as long as it opens any.
pub(super) async fn over_spdy(mut opened: mpsc::Receiver<Opened>, to: Arc<Destination>) {
    let mut pairs: HashMap<String, Pair> = HashMap::new();
    let mut forwards = JoinSet::new();
    loop {
        let next = pairs.values().map(|pair| pair.deadline).min();
        let expired = async {
            match next {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            stream = opened.recv() => match stream {
                Some(stream) => {
                    if let Some(pair) = take(stream, &mut pairs).await {
                        forwards.spawn(run(pair, Arc::clone(&to)));
                    }
                }
                None => return,
            },
            () = expired => expire(&mut pairs, Instant::now()).await,
            Some(_) = forwards.join_next() => {}
        }
    }
}

/// Puts a stream to its pair; the pair when it is complete.
async fn take(
    opened: Opened,
    pairs: &mut HashMap<String, Pair>,
) -> Option<(u16, Stream, Option<Stream>)> {
    let read = read(&opened.headers, opened.id);
    let room = |request: &String| pairs.len() < MOST_WAITING || pairs.contains_key(request);
    let Some((request, kind, port)) = read.ok().filter(|(request, ..)| room(request)) else {
        opened.refuse().await;
        return None;
    };
    let stream = opened.accept().await;
    let pair = pairs.entry(request.clone()).or_insert_with(|| Pair {
        port,
        data: None,
        error: None,
        deadline: Instant::now() + SECOND_STREAM,
    });
    let place = match kind {
        Kind::Data => &mut pair.data,
        Kind::Error => &mut pair.error,
    };
    if place.is_some() {
        let kind = if kind == Kind::Data { "data" } else { "error" };
        let why = format!(
            "error processing stream for request {request}: {kind} stream already assigned"
        );
        close(stream, "").await;
        tell(pair, &why).await;
        return None;
    }
    *place = Some(stream);
    if pair.data.is_none() || pair.error.is_none() {
        return None;
    }
    let pair = pairs.remove(&request)?;
    Some((pair.port, pair.data?, pair.error))
}

/// Pure: which request, which of its streams, to which port.
fn read(headers: &Headers, id: u32) -> Result<(String, Kind, u16), ()> {
    let port = headers.get(PORT).and_then(|port| port.parse().ok());
    let port = port.filter(|port| *port > 0).ok_or(())?;
    let kind = match headers.get(STREAM_TYPE) {
        Some("data") => Kind::Data,
        Some("error") => Kind::Error,
        _ => return Err(()),
    };
    let request = match headers.get(REQUEST_ID).filter(|id| !id.is_empty()) {
        Some(request) => request.to_owned(),
        // Clients from before there were ids open the error stream first and the data stream right after it.
        None if kind == Kind::Data => format!("stream {}", id.saturating_sub(2)),
        None => format!("stream {id}"),
    };
    Ok((request, kind, port))
}

async fn expire(pairs: &mut HashMap<String, Pair>, now: Instant) {
    let late: Vec<String> = pairs
        .iter()
        .filter(|(_, pair)| pair.deadline <= now)
        .map(|(request, _)| request.clone())
        .collect();
    for request in late {
        if let Some(mut pair) = pairs.remove(&request) {
            let why = format!("(request={request}) timed out waiting for streams");
            tell(&mut pair, &why).await;
            if let Some(data) = pair.data {
                close(data, "").await;
            }
        }
    }
}

/// Says why on the error stream, if there is one, and closes it.
async fn tell(pair: &mut Pair, why: &str) {
    if let Some(error) = pair.error.take() {
        close(error, why).await;
    }
}

async fn close(stream: Stream, why: &str) {
    let Stream { mut outlet, .. } = stream;
    finish(&mut outlet, why).await;
}

/// A last word, and the end. An outlet that fails belongs to a client that is gone.
async fn finish(outlet: &mut Outlet, why: &str) {
    if !why.is_empty() {
        drop(outlet.write_all(why.as_bytes()).await);
    }
    drop(outlet.shutdown().await);
}

async fn run((port, data, error): (u16, Stream, Option<Stream>), to: Arc<Destination>) {
    let Stream {
        inlet,
        outlet,
        gone,
    } = data;
    let mut both = join(inlet, outlet);
    let forwarded = tokio::select! {
        forwarded = to.forward(port, &mut both) => forwarded,
        // The client has what it wanted.
        () = gone.cancelled() => Ok(()),
    };
    if let Some(error) = error {
        close(error, forwarded.err().as_deref().unwrap_or_default()).await;
    }
    drop(both.shutdown().await);
}

/// The ports of `?port=80,443&port=8080`, for the old protocol.
pub(super) fn ports(query: &[(String, String)]) -> Result<Vec<u16>, String> {
    let mut ports = Vec::new();
    let named = query.iter().filter(|(name, _)| name == PORT);
    for text in named.flat_map(|(_, list)| list.split(',')) {
        if text.is_empty() {
            return Err(format!("query parameter {PORT:?} cannot be empty"));
        }
        let port: u16 = text
            .parse()
            .map_err(|error| format!("unable to parse {text:?} as a port: {error}"))?;
        if port == 0 {
            return Err(format!("port {text:?} must be > 0"));
        }
        ports.push(port);
    }
    match ports.len() {
        0 => Err(format!("query parameter {PORT:?} is required")),
        1..=MOST_PORTS => Ok(ports),
        more => Err(format!("{more} ports, more than {MOST_PORTS}")),
    }
}

/// One port of the old protocol: both channels begin with its number.
pub(super) async fn over_channels(
    port: u16,
    inlet: DuplexStream,
    mut data: Outlet,
    mut error: Outlet,
    to: Arc<Destination>,
) {
    for outlet in [&mut data, &mut error] {
        if outlet.write_all(&port.to_le_bytes()).await.is_err() {
            return;
        }
    }
    let mut both = join(inlet, data);
    if let Err(why) = to.forward(port, &mut both).await {
        finish(&mut error, &why).await;
    }
    drop(both.shutdown().await);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_old_protocol_names_its_ports_in_the_query() {
        let several = query(&[("port", "80,443"), ("x", "y"), ("port", "8080")]);
        assert_eq!(ports(&several), Ok(vec![80, 443, 8080]));
        for (wrong, why) in [
            (query(&[]), "query parameter \"port\" is required"),
            (
                query(&[("port", "")]),
                "query parameter \"port\" cannot be empty",
            ),
            (query(&[("port", "0")]), "port \"0\" must be > 0"),
            (
                query(&[("port", "http")]),
                "unable to parse \"http\" as a port: invalid digit found in string",
            ),
        ] {
            assert_eq!(ports(&wrong), Err(why.to_owned()));
        }
    }
}

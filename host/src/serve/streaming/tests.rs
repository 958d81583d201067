//! Port-forward as clients speak it, against pods that are closures: SPDY as it is, in a WebSocket, and the old protocol.

mod exec;

use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use hyper::server::conn::http1;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};

use super::spdy::frame::{Decoder, Frame};
use super::spdy::headers::Packer;
use super::*;
use crate::network::tests::{network, pod, web};
use crate::network::{PodNetwork, Serving};
use crate::pods::known::Record;

const PATH: &str = "/portForward/shop/web";

/// A node with one pod, which answers HTTP on every port but 7 (an echo) and 9 (nobody).
struct Node {
    streaming: Streaming,
    stop: CancellationToken,
    _pods: Vec<(Arc<PodNetwork>, Option<Serving>)>,
}

impl Node {
    fn new(http: bool) -> Self {
        let network = Arc::new(network());
        let pods = match http {
            true => {
                let (pod, serving) = web(&network, "web");
                (pod, Some(serving))
            }
            false => (pod(&network, "web"), None),
        };
        let known = Known::default();
        let record = Record::new(
            "shop",
            "web",
            "u1",
            PathBuf::new(),
            std::iter::once("app".to_owned()),
        );
        known.insert(Arc::new(record));
        let stop = CancellationToken::new();
        Self {
            streaming: Streaming::new(known, network, TaskTracker::new(), stop.clone()),
            stop,
            _pods: vec![pods],
        }
    }

    /// What port 7 is sent it sends back, and closes when the other end does. On loopback only: port-forward is inside.
    fn echo(&self) {
        let listener = self._pods[0]
            .0
            .bind_tcp("127.0.0.1:7".parse().expect("an address"))
            .and_then(|bound| bound.listen(8));
        let mut listener = listener.expect("a listener");
        tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = tokio::io::split(stream.into_io());
                    drop(tokio::io::copy(&mut from, &mut to).await);
                    drop(to.shutdown().await);
                });
            }
        });
    }

    /// Port 5 says a word and closes, whatever the other end does.
    fn farewell(&self) {
        let listener = self._pods[0]
            .0
            .bind_tcp("127.0.0.1:5".parse().expect("an address"))
            .and_then(|bound| bound.listen(8));
        let mut listener = listener.expect("a listener");
        tokio::spawn(async move {
            while let Ok(stream) = listener.accept().await {
                let mut io = stream.into_io();
                drop(io.write_all(b"bye").await);
                drop(io.shutdown().await);
                tokio::spawn(async move { io.read_to_end(&mut Vec::new()).await });
            }
        });
    }

    /// A connection to the node's endpoint, without TLS.
    fn connect(&self) -> DuplexStream {
        let (here, there) = duplex(1 << 16);
        let app = TowerToHyperService::new(self.streaming.clone().routes());
        tokio::spawn(
            http1::Builder::new()
                .serve_connection(TokioIo::new(there), app)
                .with_upgrades(),
        );
        here
    }

    async fn websocket(
        &self,
        path: &str,
        protocol: &'static str,
    ) -> Result<WebSocketStream<DuplexStream>, Error> {
        let mut request = format!("ws://node{path}").into_client_request()?;
        let name = axum::http::header::SEC_WEBSOCKET_PROTOCOL;
        request.headers_mut().insert(name, protocol.parse()?);
        let (socket, response) = client_async(request, self.connect()).await?;
        assert_eq!(response.headers()["sec-websocket-protocol"], protocol);
        Ok(socket)
    }

    /// A connection that has become SPDY.
    async fn spdy(&self) -> DuplexStream {
        let mut io = self.connect();
        let request = format!(
            "POST {PATH} HTTP/1.1\r\nHost: node\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
             X-Stream-Protocol-Version: portforward.k8s.io\r\nContent-Length: 0\r\n\r\n"
        );
        io.write_all(request.as_bytes()).await.expect("written");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.expect("a head"));
        }
        let head = String::from_utf8_lossy(&head).to_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        assert!(head.contains("x-stream-protocol-version: portforward.k8s.io"));
        io
    }
}

/// A client as moby/spdystream is one.
struct Client<S> {
    io: S,
    decoder: Decoder,
    buffer: BytesMut,
    packer: Packer,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    fn new(io: S) -> Self {
        Self {
            io,
            decoder: Decoder::default(),
            buffer: BytesMut::new(),
            packer: Packer::new().expect("a packer"),
        }
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.io.write_all(&bytes).await.expect("written");
        self.io.flush().await.expect("flushed");
    }

    async fn open(&mut self, stream: u32, kind: &str, port: &str, request: &str) {
        let headers = [("streamtype", kind), ("port", port), ("requestid", request)];
        let block = self.packer.pack(&headers).expect("packed");
        let fin = false;
        self.send(Frame::Open { stream, fin, block }).await;
    }

    /// The two streams of a request, the error stream half closed: as kubectl does.
    async fn request(&mut self, first: u32, port: &str) {
        let request = first.to_string();
        self.open(first, "error", port, &request).await;
        self.data(first, b"", true).await;
        self.open(first + 2, "data", port, &request).await;
    }

    async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) {
        let bytes = Bytes::copy_from_slice(bytes);
        self.send(Frame::Data { stream, bytes, fin }).await;
    }

    async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.buffer).expect("a frame") {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.buffer).await.ok()? == 0 {
                return None;
            }
        }
    }

    /// All that comes on `wanted` until its end; what comes on others is dropped.
    async fn read_all(&mut self, wanted: u32) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(frame) = self.next().await {
            if let Frame::Data { stream, bytes, fin } = frame
                && stream == wanted
            {
                all.extend_from_slice(&bytes);
                if fin {
                    return all;
                }
            }
        }
        panic!("the connection ended before stream {wanted}");
    }
}

async fn forwards<S: AsyncRead + AsyncWrite + Unpin>(io: S) {
    let mut client = Client::new(io);
    client.request(1, "8080").await;
    let get = b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    client.data(3, get, false).await;
    let answer = client.read_all(3).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.ends_with("web x /a"), "{answer}");
    client
        .send(Frame::Reset {
            stream: 3,
            status: 5,
        })
        .await;
    // Another on the same connection, to a socket, with more than any window; and a question in between.
    client.request(5, "7").await;
    let large: Vec<u8> = (0..400_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    let echoed = async {
        for piece in large.chunks(40_000) {
            client.data(7, piece, false).await;
            client.send(Frame::Ping(1)).await;
            // As a client that does two things at once would.
            let mut seen = Vec::new();
            while seen.len() < piece.len() {
                if let Some(Frame::Data {
                    stream: 7, bytes, ..
                }) = client.next().await
                {
                    seen.extend_from_slice(&bytes);
                }
            }
            assert!(seen == piece, "what came back is what was sent");
        }
        client.data(7, b"", true).await;
        assert!(client.read_all(7).await.is_empty());
    };
    echoed.await;
    assert!(client.read_all(5).await.is_empty(), "no error was told");
}

#[tokio::test]
async fn connections_are_forwarded_over_spdy() {
    let node = Node::new(true);
    node.echo();
    forwards(node.spdy().await).await;
}

#[tokio::test]
async fn connections_are_forwarded_over_spdy_in_a_websocket() {
    let node = Node::new(true);
    node.echo();
    let socket = node.websocket(PATH, FORWARD_TUNNEL).await.expect("agreed");
    forwards(Tunnel::new(socket)).await;
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_told_on_the_error_stream() {
    let node = Node::new(false);
    let mut client = Client::new(node.spdy().await);
    client.request(1, "9").await;
    let why = String::from_utf8(client.read_all(1).await).expect("text");
    assert_eq!(
        why,
        "error forwarding port 9 to pod web, uid : failed to connect to localhost:9 inside the pod: \
         dial tcp4 127.0.0.1:9: connect: connection refused"
    );
    assert!(client.read_all(3).await.is_empty());
    // The connection stands.
    client.send(Frame::Ping(3)).await;
    assert_eq!(client.next().await, Some(Frame::Ping(3)));
}

#[tokio::test]
async fn streams_that_make_no_sense_are_refused_and_the_others_go_on() {
    let node = Node::new(true);
    let mut client = Client::new(node.spdy().await);
    client.open(1, "data", "0", "0").await;
    client.open(3, "video", "80", "0").await;
    for stream in [1, 3] {
        let refused = Frame::Reset { stream, status: 3 };
        assert_eq!(client.next().await, Some(refused));
    }
    client.open(5, "error", "80", "7").await;
    client.open(7, "error", "80", "7").await;
    let why = String::from_utf8(client.read_all(5).await).expect("text");
    assert!(why.contains("error stream already assigned"), "{why}");
    // A number that was there ends the connection.
    client.open(5, "error", "80", "8").await;
    while client.next().await.is_some() {}
}

#[tokio::test(start_paused = true)]
async fn a_data_stream_that_never_comes_is_waited_for_thirty_seconds() {
    let node = Node::new(true);
    let mut client = Client::new(node.spdy().await);
    client.open(1, "error", "80", "a").await;
    let begun = tokio::time::Instant::now();
    let why = String::from_utf8(client.read_all(1).await).expect("text");
    assert_eq!(why, "(request=a) timed out waiting for streams");
    assert_eq!(begun.elapsed().as_secs(), 30);
}

#[tokio::test]
async fn the_old_protocol_has_two_channels_per_port() {
    let node = Node::new(false);
    node.echo();
    let path = format!("{PATH}?port=7&port=9");
    let mut socket = node.websocket(&path, V4).await.expect("agreed");
    let hello = Message::Binary(Bytes::from_static(b"\0hello"));
    socket.send(hello).await.expect("sent");
    let mut said: [Vec<u8>; 4] = Default::default();
    while said[0].len() < 7 || said[3].len() < 100 {
        if let Message::Binary(bytes) = socket.next().await.expect("a message").expect("whole") {
            said[usize::from(bytes[0])].extend_from_slice(&bytes[1..]);
        }
    }
    assert_eq!(said[0], b"\x07\0hello");
    assert_eq!(said[1], b"\x07\0");
    assert_eq!(said[2], b"\x09\0");
    let why = String::from_utf8_lossy(&said[3][2..]).into_owned();
    assert!(
        why.starts_with("error forwarding port 9 to pod web"),
        "{why}"
    );
    let base64 = format!("{PATH}?port=7");
    let mut socket = node.websocket(&base64, V4_BASE64).await.expect("agreed");
    socket
        .send(Message::Text("0aGk=".into()))
        .await
        .expect("sent");
    let mut texts = Vec::new();
    while texts.len() < 3 {
        if let Message::Text(text) = socket.next().await.expect("a message").expect("whole") {
            texts.push(text.to_string());
        }
    }
    texts.sort();
    assert_eq!(texts, ["0BwA=", "0aGk=", "1BwA="]);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_the_pod_closes_ends_for_a_client_that_only_reads() {
    let node = Node::new(false);
    node.farewell();
    let begun = tokio::time::Instant::now();
    let mut client = Client::new(node.spdy().await);
    client.request(1, "5").await;
    assert_eq!(client.read_all(3).await, b"bye");
    assert!(client.read_all(1).await.is_empty(), "no error was told");
    let path = format!("{PATH}?port=5");
    let mut socket = node.websocket(&path, V4).await.expect("agreed");
    let mut said = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(bytes) if bytes[0] == 0 => said.extend_from_slice(&bytes[1..]),
            Message::Close(_) => break,
            _ => {}
        }
    }
    assert_eq!(said, b"\x05\0bye");
    assert_eq!(begun.elapsed().as_secs(), 2, "one for each");
}

#[tokio::test]
async fn what_cannot_begin_is_refused_before_the_upgrade() {
    let node = Node::new(true);
    for (path, protocol, status, why) in [
        (
            "/portForward/shop/x",
            FORWARD_TUNNEL,
            404,
            "pod does not exist",
        ),
        (PATH, V4, 400, "query parameter \"port\" is required"),
        (PATH, "chat", 400, "unable to negotiate protocol"),
        (
            "/exec/shop/web/app?output=1",
            V5,
            400,
            "at least one command",
        ),
        (
            "/exec/shop/web/x?output=1&command=ls",
            V5,
            404,
            "container not found (\"x\")",
        ),
        (
            "/attach/shop/web/app?input=1",
            V5,
            400,
            "container app is not running",
        ),
        (
            "/attach/shop/web/app",
            V5,
            400,
            "at least 1 of stdin, stdout, stderr",
        ),
    ] {
        let refused = node.websocket(path, protocol).await;
        let Err(Error::Http(response)) = refused else {
            panic!("{path} {protocol}: not refused");
        };
        assert_eq!(response.status().as_u16(), status, "{path} {protocol}");
        let body = response.body().clone().unwrap_or_default();
        let body = String::from_utf8_lossy(&body).into_owned();
        assert!(body.contains(why), "{body}");
    }
}

#[tokio::test]
async fn streams_end_with_the_node_and_with_who_sends_nonsense() {
    let node = Node::new(true);
    let mut client = Client::new(node.spdy().await);
    client.request(1, "8080").await;
    let mut nonsense = node.spdy().await;
    nonsense.write_all(&[0xff; 64]).await.expect("written");
    assert_eq!(
        nonsense.read_to_end(&mut Vec::new()).await.expect("ended"),
        0
    );
    node.stop.cancel();
    while client.next().await.is_some() {}
    node.streaming.tasks.close();
    node.streaming.tasks.wait().await;
}

//! Connections of every kind: HTTP/2, TLS and its certificates, upgrades, ports that come and go.

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpListener;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;

/// A certificate for these names, and what a client needs to trust it.
fn issue(names: &[&str]) -> (Arc<CertifiedKey>, CertificateDer<'static>) {
    let key = rcgen::KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let certificate = rcgen::CertificateParams::new(names)
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let (pem, key) = (certificate.pem(), key.serialize_pem());
    let parsed = types::certificate::parse(pem.as_bytes(), key.as_bytes());
    (Arc::new(parsed.unwrap()), certificate.der().clone())
}

async fn connect(
    at: SocketAddr,
    name: &str,
    trusted: &CertificateDer<'static>,
    alpn: &[&[u8]],
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    let socket = TcpStream::connect(at).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
}

async fn ask_tls(stream: &mut TlsStream<TcpStream>, host: &str) -> String {
    let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let read = async {
        while !String::from_utf8_lossy(&seen).contains(&format!("{host} /")) {
            assert!(stream.read_buf(&mut seen).await.unwrap() > 0);
        }
    };
    tokio::time::timeout(DEADLINE, read).await.unwrap();
    String::from_utf8_lossy(&seen).into_owned()
}

async fn over_http2<S>(io: S, uri: &str) -> (u16, String)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::get(uri)
        .version(Version::HTTP_2)
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    (status, String::from_utf8_lossy(&body).into_owned())
}

#[tokio::test]
async fn http2_is_spoken_with_and_without_tls() {
    let mut rig = Rig::new();
    let (pod, _serving) = guests::web(&rig.network, "web");
    rig.service("web", &[&pod]);
    let (key, root) = issue(&["h.test"]);
    rig.certificates.insert(Key::new("shop", "cert"), key);
    let tls = json!([{"hosts": ["h.test"], "secretName": "cert"}]);
    rig.ingress_at("h.test", "/", "web", json!({"ssl-redirect": "false"}), tls);
    let plain = TcpStream::connect(rig.http().await).await.unwrap();
    assert_eq!(
        over_http2(plain, "http://h.test/a").await,
        (200, "web h.test /a".to_owned())
    );
    let stream = connect(rig.at(443).await, "h.test", &root, &[b"h2", b"http/1.1"])
        .await
        .unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(
        over_http2(stream, "https://h.test/b").await,
        (200, "web h.test /b".to_owned())
    );
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn each_name_has_its_certificate_and_a_new_one_needs_no_new_listener() {
    let mut rig = Rig::new();
    let (pod, _serving) = guests::web(&rig.network, "web");
    rig.service("web", &[&pod]);
    let (exact, exact_root) = issue(&["a.w.test"]);
    let (wild, wild_root) = issue(&["*.w.test"]);
    rig.certificates.insert(Key::new("shop", "exact"), exact);
    rig.certificates.insert(Key::new("shop", "wild"), wild);
    let tls = json!([{"hosts": ["*.w.test"], "secretName": "wild"}, {"hosts": ["a.w.test"], "secretName": "exact"},
        {"hosts": ["none.test"], "secretName": "missing"}]);
    rig.ingress_at("*.w.test", "/", "web", json!({}), tls);
    let at = rig.at(443).await;
    let http1: &[&[u8]] = &[b"http/1.1"];
    let mut old = connect(at, "a.w.test", &exact_root, http1).await.unwrap();
    assert!(
        ask_tls(&mut old, "a.w.test")
            .await
            .contains("web a.w.test /")
    );
    connect(at, "b.w.test", &wild_root, http1).await.unwrap();
    // No Secret for it: a certificate nobody trusts, but a handshake.
    assert!(connect(at, "none.test", &wild_root, http1).await.is_err());

    let (renewed, new_root) = issue(&["a.w.test"]);
    rig.certificates.insert(Key::new("shop", "exact"), renewed);
    assert_eq!(rig.at(443).await, at, "the listener stays");
    assert!(connect(at, "a.w.test", &exact_root, http1).await.is_err());
    connect(at, "a.w.test", &new_root, http1).await.unwrap();
    assert!(
        ask_tls(&mut old, "a.w.test")
            .await
            .contains("web a.w.test /"),
        "the old connection stays"
    );

    let http = rig.http().await;
    let answer = curl(http, &get(&format!("a.w.test:{}", http.port()), "/x?y")).await;
    assert_eq!(status(&answer), "308");
    let location = format!("location: https://a.w.test:{}/x?y", at.port());
    assert!(answer.contains(&location), "{answer}");
    rig.network.shutdown(Duration::ZERO).await;
}

/// A process behind a socket that agrees to every upgrade and echoes what comes then; others are told no.
fn echo_after_upgrade(pod: &Arc<PodNetwork>) {
    let mut listener = pod.listen(8080, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Some(Ok(chunk)) = stream.reader.read().await else {
                        return;
                    };
                    head.extend_from_slice(&chunk);
                }
                let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
                let answer: &'static [u8] = if head.contains("upgrade: websocket") {
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n"
                } else {
                    b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
                };
                stream
                    .writer
                    .write_all(Bytes::from_static(answer))
                    .await
                    .unwrap();
                while let Some(Ok(chunk)) = stream.reader.read().await {
                    stream.writer.write_all(chunk).await.unwrap();
                }
            });
        }
    });
}

const WEBSOCKET: &str = "GET /chat HTTP/1.1\r\nHost: ws.test\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

#[tokio::test]
async fn a_websocket_reaches_a_process_behind_a_socket() {
    let mut rig = Rig::limits(|limits| limits.upgraded = Duration::from_millis(300));
    let pod = guests::pod(&rig.network, "ws");
    echo_after_upgrade(&pod);
    rig.service("ws", &[&pod]);
    rig.ingress("ws.test", "ws", json!({}));
    let at = rig.http().await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(WEBSOCKET.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\n") {
        socket.read_buf(&mut seen).await.unwrap();
    }
    let head = String::from_utf8_lossy(&seen).to_ascii_lowercase();
    assert!(
        head.starts_with("http/1.1 101") && head.contains("sec-websocket-accept: x"),
        "{head}"
    );
    assert!(head.contains("upgrade: websocket"), "{head}");
    for text in [&b"ping"[..], b"pong"] {
        socket.write_all(text).await.unwrap();
        let mut echo = [0; 4];
        socket.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, text);
    }
    // Nothing moves: it is closed.
    assert_eq!(rest(&mut socket).await, "");
    assert_eq!(status(&curl(at, &get("ws.test", "/")).await), "426");
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn an_upgrade_that_is_not_wanted_is_an_ordinary_answer() {
    let mut rig = Rig::new();
    let (pod, _serving) = guests::web(&rig.network, "web");
    rig.service("web", &[&pod]);
    rig.ingress("ws.test", "web", json!({}));
    let at = rig.http().await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(WEBSOCKET.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"web ws.test /chat") {
        assert!(socket.read_buf(&mut seen).await.unwrap() > 0);
    }
    assert!(seen.starts_with(b"HTTP/1.1 200"));
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_node_that_stops_waits_for_requests_and_not_for_idle_clients() {
    let mut rig = Rig::new();
    let pod = guests::pod(&rig.network, "web");
    let (entered, mut inside) = tokio::sync::mpsc::channel(1);
    let (go, gone) = watch::channel(false);
    let guest = guests::Guest(move |_| {
        let (entered, mut gone) = (entered.clone(), gone.clone());
        async move {
            entered.send(()).await.unwrap();
            gone.wait_for(|gone| *gone).await.unwrap();
            Ok(http::Response::new(crate::network::full_body("late")))
        }
    });
    let _serving = pod
        .serve_http(crate::network::Ports::All, Arc::new(guest))
        .unwrap();
    rig.service("web", &[&pod]);
    rig.ingress("a.test", "web", json!({}));
    let at = rig.http().await;
    let idle = TcpStream::connect(at).await.unwrap();
    let asking = tokio::spawn(async move { curl(at, &get("a.test", "/")).await });
    inside.recv().await.unwrap();
    let stopping = async {
        // Far longer than the deadline of this test.
        let stopped = rig.network.shutdown(Duration::from_secs(60));
        tokio::time::timeout(DEADLINE, stopped).await.unwrap();
    };
    let release = async {
        while TcpStream::connect(at).await.is_ok() {
            tokio::task::yield_now().await;
        }
        go.send_replace(true);
    };
    tokio::join!(stopping, release);
    assert!(asking.await.unwrap().ends_with("late"));
    drop(idle);
}

#[tokio::test]
async fn ports_are_open_only_while_something_is_served_and_taken_ones_replaced() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut rig = Rig::with(|config| config.http.set_port(port));
    assert!(rig.shared.listening.borrow().is_empty());
    rig.ingress("a.test", "web", json!({}));
    let at = rig.http().await;
    assert_ne!(at.port(), port);
    let problem = rig.shared.listening.borrow()[0].problem.clone();
    assert_eq!(
        problem.unwrap(),
        format!("port {port} is taken on 127.0.0.1")
    );
    rig.world.ingresses.clear();
    let compiled = compile(&rig.world);
    rig.live.send_replace(Arc::new(Live {
        table: compiled.table,
        certificates: HashMap::new(),
    }));
    let mut listening = rig.shared.listening.subscribe();
    let gone = listening.wait_for(|all| all.is_empty());
    tokio::time::timeout(DEADLINE, gone).await.unwrap().unwrap();
    rig.network.shutdown(Duration::ZERO).await;
}

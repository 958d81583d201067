//! Streams of bytes between pods of two nodes, and what happens when one of the nodes does not behave.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::{Authority, Cluster, Host, eventually};
use crate::network::tests::pod;
use crate::network::{Limits, Listener, PodNetwork, SocketError, Stream};

/// Sends back what it gets, until the client is done.
fn echo(mut listener: Listener) {
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                while let Some(Ok(chunk)) = stream.reader.read().await {
                    if stream.writer.write_all(chunk).await.is_err() {
                        return;
                    }
                }
                stream.writer.shutdown();
            });
        }
    });
}

async fn rest(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.reader.read().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    all
}

async fn say(stream: &mut Stream, text: &'static str) {
    let bytes = Bytes::from_static(text.as_bytes());
    stream.writer.write_all(bytes).await.unwrap();
}

/// A client on the first host, a server on the second that listens on 7.
fn pair(cluster: &Cluster) -> (Arc<PodNetwork>, Arc<PodNetwork>, Listener, SocketAddr) {
    let client = pod(&cluster.hosts[0].network, "client");
    let server = pod(&cluster.hosts[1].network, "server");
    let listener = server.listen(7, 128).unwrap();
    let address = SocketAddr::from((server.address(), 7));
    (client, server, listener, address)
}

#[tokio::test]
async fn a_pod_connects_to_a_pod_of_another_node() {
    let cluster = Cluster::of(2);
    let (client, _server, mut listener, address) = pair(&cluster);
    let connecting = client.connect(address);
    let (stream, accepted) = tokio::join!(connecting, listener.accept());
    let (mut stream, mut accepted) = (stream.unwrap(), accepted.unwrap());
    assert_eq!(stream.peer, address);
    assert_eq!(accepted.local, address);
    assert_eq!(accepted.peer, stream.local, "the source is the pod itself");
    say(&mut stream, "ping").await;
    assert_eq!(accepted.reader.read().await.unwrap().unwrap(), "ping");
    // Half closed: the other direction still works.
    stream.writer.shutdown();
    assert!(accepted.reader.read().await.is_none());
    say(&mut accepted, "pong").await;
    accepted.writer.shutdown();
    assert_eq!(rest(&mut stream).await, b"pong");
    let flows = cluster.hosts[1].network.flows();
    assert_eq!(flows.len(), 1);
    assert_eq!(
        (&*flows[0].source, &*flows[0].destination),
        ("shop/client", "shop/server")
    );
}

#[tokio::test]
async fn a_reset_reaches_the_other_node() {
    let cluster = Cluster::of(2);
    let (client, _server, mut listener, address) = pair(&cluster);
    let (stream, accepted) = tokio::join!(client.connect(address), listener.accept());
    let mut accepted = accepted.unwrap();
    stream.unwrap().reset();
    assert_eq!(accepted.reader.read().await, Some(Err(SocketError::Reset)));
    assert_eq!(accepted.writer.ready().await, Err(SocketError::Reset));
}

#[tokio::test]
async fn nobody_listens_or_nobody_is_there() {
    let cluster = Cluster::of(2);
    let (client, server, listener, address) = pair(&cluster);
    let other = SocketAddr::new(address.ip(), 8);
    assert_eq!(
        client.connect(other).await.err(),
        Some(SocketError::Refused)
    );
    let nobody = SocketAddr::from(([100, 64, 90, 90], 7));
    assert_eq!(
        client.connect(nobody).await.err(),
        Some(SocketError::Refused)
    );
    let no_node = SocketAddr::from(([100, 64, 190, 90], 7));
    assert_eq!(
        client.connect(no_node).await.err(),
        Some(SocketError::Unreachable)
    );
    drop(listener);
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Refused)
    );
    let started = Instant::now();
    cluster.hosts[1].network.detach_pod(&server);
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Refused)
    );
    assert!(started.elapsed() < Duration::from_secs(1), "at once");
}

#[tokio::test]
async fn much_arrives_whole_both_ways() {
    let cluster = Cluster::of(2);
    let (client, _server, listener, address) = pair(&cluster);
    echo(listener);
    let Stream {
        mut reader,
        mut writer,
        ..
    } = client.connect(address).await.unwrap();
    const TOTAL: usize = 32 << 20;
    let sending = async {
        let mut sent = 0_usize;
        while sent < TOTAL {
            // All sizes, and the bytes say where they belong.
            let length = (sent / 7 % 60_000 + 1).min(TOTAL - sent);
            let chunk: Vec<u8> = (sent..sent + length)
                .map(|n| (n / 251 % 256) as u8)
                .collect();
            writer.write_all(chunk.into()).await.unwrap();
            sent += length;
        }
        writer.shutdown();
    };
    let receiving = async {
        let mut at = 0_usize;
        while let Some(chunk) = reader.read().await {
            for byte in chunk.unwrap() {
                assert_eq!(byte, (at / 251 % 256) as u8, "at {at}");
                at += 1;
            }
        }
        at
    };
    let ((), received) = tokio::join!(sending, receiving);
    assert_eq!(received, TOTAL);
}

#[tokio::test]
async fn a_slow_reader_stops_the_sender_and_nobody_else() {
    let cluster = Cluster::of(2);
    let (client, server, mut listener, address) = pair(&cluster);
    let (stream, accepted) = tokio::join!(client.connect(address), listener.accept());
    let (mut stream, mut accepted) = (stream.unwrap(), accepted.unwrap());
    let mut sent = 0;
    let chunk = Bytes::from(vec![7; 16 * 1024]);
    while let Ok(room) =
        tokio::time::timeout(Duration::from_millis(300), stream.writer.ready()).await
    {
        let part = chunk.slice(..room.unwrap().min(chunk.len()));
        sent += part.len();
        stream.writer.send(part).unwrap();
    }
    // The window, the pipes at both ends, what is queued to be sent.
    assert!(sent < (2 << 20), "{sent} bytes are under way");
    assert!(
        server.queued_bytes() <= (1 << 20) + 128 * 1024,
        "{}",
        server.queued_bytes()
    );
    // Another stream of the same connection is as fast as ever.
    let (other, accepted_too) = tokio::join!(client.connect(address), listener.accept());
    let (mut other, mut accepted_too) = (other.unwrap(), accepted_too.unwrap());
    say(&mut other, "hello").await;
    assert_eq!(accepted_too.reader.read().await.unwrap().unwrap(), "hello");
    stream.writer.shutdown();
    assert_eq!(rest(&mut accepted).await.len(), sent);
    eventually(Duration::from_secs(2), "nothing is charged", || {
        server.queued_bytes() == 0
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_never_reads_holds_a_bounded_amount() {
    let authority = Authority::new();
    let limits = Limits {
        buffers_per_pod: 256 * 1024,
        ..Limits::default()
    };
    let hosts = vec![
        Host::start(&authority, 0),
        Host::start_with(&authority, 1, |_| {}, limits),
    ];
    let cluster = Cluster { authority, hosts };
    cluster.introduce();
    let (client, server, mut listener, address) = pair(&cluster);
    let mut held = Vec::new();
    let mut reset = 0;
    for _ in 0..24 {
        let (stream, accepted) = tokio::join!(client.connect(address), listener.accept());
        let (mut stream, accepted) = (stream.unwrap(), accepted.unwrap());
        let all = stream.writer.write_all(vec![1; 4 << 20].into());
        match tokio::time::timeout(Duration::from_millis(100), all).await {
            Ok(Err(SocketError::Reset)) => reset += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_) => {}
        }
        held.push((stream, accepted));
    }
    assert!(reset > 0, "some were reset");
    assert!(
        server.queued_bytes() < (3 << 20),
        "{}",
        server.queued_bytes()
    );
}

#[tokio::test]
async fn thousands_of_streams_share_a_connection() {
    let authority = Authority::new();
    let limits = Limits {
        sockets_per_pod: 10_000,
        ..Limits::default()
    };
    let hosts = vec![
        Host::start_with(&authority, 0, |_| {}, limits),
        Host::start_with(&authority, 1, |_| {}, limits),
    ];
    let cluster = Cluster { authority, hosts };
    cluster.introduce();
    let (client, server, listener, address) = pair(&cluster);
    echo(listener);
    let mut streams = Vec::new();
    for _ in 0..3_000 {
        streams.push(client.connect(address).await.unwrap());
    }
    assert_eq!(cluster.hosts[1].tunnel().incoming.of("node-0"), 1);
    for stream in &mut streams {
        say(stream, "x").await;
    }
    for stream in &mut streams {
        assert_eq!(stream.reader.read().await.unwrap().unwrap(), "x");
    }
    drop(streams);
    eventually(
        Duration::from_secs(10),
        "the server's sockets are free",
        || server.open_sockets() <= 1,
    )
    .await;
}

#[tokio::test]
async fn who_is_no_node_gets_nothing() {
    let cluster = Cluster::of(1);
    let address = cluster.hosts[0].network.tunnel_address().unwrap();
    let strangers = [
        cluster
            .authority
            .certificates("node-9", "system:kube-scheduler", "system:masters"),
        cluster
            .authority
            .certificates("node-9", "system:node:node-9", "somebody"),
        Authority::new().node("node-9"),
    ];
    for stranger in strangers {
        let mut config = stranger.client_config(&[b"h2"]).unwrap();
        // The stranger trusts us, whatever we think of it.
        let mut roots = rustls::RootCertStore::empty();
        let trusted = cluster.authority.node("x");
        roots.add(trusted.authority()[0].clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
        config.dangerous().set_certificate_verifier(verifier);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let socket = TcpStream::connect(address).await.unwrap();
        let name = "node-0".try_into().unwrap();
        let mut got = Vec::new();
        if let Ok(mut tls) = connector.connect(name, socket).await {
            drop(tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await);
            drop(tls.read_to_end(&mut got).await);
        }
        assert!(got.is_empty(), "{got:?}");
    }
}

#[tokio::test]
async fn a_node_speaks_only_for_its_own_addresses() {
    let cluster = Cluster::of(3);
    let (client, _server, _listener, address) = pair(&cluster);
    // The API has given the first host's addresses to nobody, then to the third.
    let [first, second, third] = &cluster.hosts[..] else {
        panic!()
    };
    second.learn(vec![third.truth()]);
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Denied)
    );
    let mut stolen = first.truth();
    stolen.metadata.name = Some(third.name.clone());
    second.learn(vec![stolen]);
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Denied)
    );
}

#[tokio::test]
async fn who_answers_must_be_the_node_that_was_asked() {
    let cluster = Cluster::of(3);
    let (client, _server, _listener, address) = pair(&cluster);
    let third = cluster.hosts[2].network.tunnel_address().unwrap();
    let host = &cluster.hosts[0];
    host.learn(vec![cluster.hosts[1].object(&third.to_string())]);
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Unreachable)
    );
    assert!(!host.sees(&cluster.hosts[1]));
}

/// Forwards connections to `target` until told to be silent: then nothing passes, and nothing is closed.
async fn proxy(target: SocketAddr) -> (SocketAddr, tokio::sync::watch::Sender<bool>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (silence, silent) = tokio::sync::watch::channel(false);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let mut silent = silent.clone();
            tokio::spawn(async move {
                if *silent.borrow() {
                    std::future::pending::<()>().await;
                }
                let mut server = TcpStream::connect(target).await.unwrap();
                tokio::select! {
                    done = tokio::io::copy_bidirectional(&mut client, &mut server) => drop(done),
                    () = async { drop(silent.wait_for(|silent| *silent).await) } => {}
                }
                std::future::pending::<()>().await;
            });
        }
    });
    (address, silence)
}

#[tokio::test]
async fn a_silent_peer_is_noticed_within_a_second_and_its_streams_end() {
    let cluster = Cluster::of(2);
    let (client, _server, listener, address) = pair(&cluster);
    echo(listener);
    let [first, second] = &cluster.hosts[..] else {
        panic!()
    };
    let (through, silence) = proxy(second.network.tunnel_address().unwrap()).await;
    first.learn(vec![second.object(&through.to_string())]);
    let mut stream = client.connect(address).await.unwrap();
    say(&mut stream, "x").await;
    assert_eq!(stream.reader.read().await.unwrap().unwrap(), "x");
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert!(first.sees(second), "a quiet stream is no silent peer");

    silence.send_replace(true);
    let cut = Instant::now();
    eventually(Duration::from_secs(1), "noticed", || !first.sees(second)).await;
    assert!(cut.elapsed() > Duration::from_millis(300), "not rash");
    let failed = client.connect(address).await.err();
    assert_eq!(failed, Some(SocketError::Unreachable));
    assert_eq!(stream.reader.read().await, Some(Err(SocketError::Reset)));
    assert!(cut.elapsed() < Duration::from_secs(4));

    // The link is mended: a new connection is found without anybody asking.
    silence.send_replace(false);
    eventually(Duration::from_secs(10), "reachable again", || {
        first.sees(second)
    })
    .await;
    let mut stream = client.connect(address).await.unwrap();
    say(&mut stream, "y").await;
    assert_eq!(stream.reader.read().await.unwrap().unwrap(), "y");
}

#[tokio::test]
async fn a_node_that_restarts_elsewhere_is_found_again() {
    let mut cluster = Cluster::of(2);
    let (client, _server, _listener, address) = pair(&cluster);
    let stopped = cluster.hosts.pop().unwrap();
    assert!(
        client
            .connect(SocketAddr::new(address.ip(), 9))
            .await
            .is_err(),
        "the tunnel is up"
    );
    stopped.network.shutdown(Duration::ZERO).await;
    let first = &cluster.hosts[0];
    eventually(Duration::from_secs(1), "noticed", || !first.sees(&stopped)).await;
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Unreachable)
    );

    let again = Host::start(&cluster.authority, 1);
    first.learn(vec![again.truth()]);
    again.learn(vec![first.truth()]);
    let server = pod(&again.network, "server");
    echo(server.listen(7, 8).unwrap());
    eventually(Duration::from_secs(5), "reachable again", || {
        first.sees(&again)
    })
    .await;
    let mut stream = client
        .connect(SocketAddr::from((server.address(), 7)))
        .await
        .unwrap();
    say(&mut stream, "z").await;
    assert_eq!(stream.reader.read().await.unwrap().unwrap(), "z");
}

#[tokio::test]
async fn a_node_that_is_deleted_is_cut_off() {
    let cluster = Cluster::of(2);
    let (client, _server, listener, address) = pair(&cluster);
    echo(listener);
    let mut stream = client.connect(address).await.unwrap();
    say(&mut stream, "x").await;
    assert_eq!(stream.reader.read().await.unwrap().unwrap(), "x");
    cluster.hosts[0].learn(Vec::new());
    assert_eq!(stream.reader.read().await, Some(Err(SocketError::Reset)));
    assert_eq!(
        client.connect(address).await.err(),
        Some(SocketError::Unreachable)
    );
}

#[tokio::test]
async fn shutdown_lets_streams_finish_and_takes_no_new_ones() {
    let cluster = Cluster::of(2);
    let (client, _server, listener, address) = pair(&cluster);
    echo(listener);
    let mut stream = client.connect(address).await.unwrap();
    let [first, second] = &cluster.hosts[..] else {
        panic!()
    };
    let stopping = second.network.shutdown(Duration::from_secs(5));
    let talking = async {
        say(&mut stream, "last words").await;
        assert_eq!(stream.reader.read().await.unwrap().unwrap(), "last words");
        eventually(Duration::from_secs(2), "new ones are refused", || {
            second.network.fabric.draining.is_cancelled()
        })
        .await;
        let refused = loop {
            // The first ones may still have been under way when shutdown began.
            match client.connect(address).await {
                Ok(stream) => drop(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(refused, SocketError::Unreachable);
        assert!(!first.sees(second));
        say(&mut stream, "the very last").await;
        stream.writer.shutdown();
        assert_eq!(rest(&mut stream).await, b"the very last");
    };
    let started = Instant::now();
    tokio::join!(stopping, talking);
    assert!(
        started.elapsed() < Duration::from_secs(4),
        "nothing had to be dropped"
    );
}

#[tokio::test]
async fn a_node_stops_at_once_though_streams_are_open() {
    let cluster = Cluster::of(2);
    let (client, _server, mut listener, address) = pair(&cluster);
    let (stream, accepted) = tokio::join!(client.connect(address), listener.accept());
    let (mut stream, _accepted) = (stream.unwrap(), accepted.unwrap());
    say(&mut stream, "ping").await;
    for host in &cluster.hosts {
        host.network.shutdown(Duration::ZERO).await;
        let left = (host.network.fabric.tasks.len(), host.tunnel().tasks().len());
        assert_eq!(left, (0, 0), "{}: tasks that were given up", host.name);
    }
}

#[tokio::test]
async fn callers_of_one_address_keep_no_others_out() {
    let cluster = Cluster::of(2);
    let tunnel = cluster.hosts[1].network.tunnel_address().unwrap();
    let dial = async |ip: [u8; 4]| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((ip, 0))).unwrap();
        socket.connect(tunnel).await.unwrap()
    };
    let mut silent = Vec::new();
    for _ in 0..super::super::server::PER_SOURCE {
        silent.push(dial([127, 0, 0, 3]).await);
    }
    let mut refused = dial([127, 0, 0, 3]).await;
    let end = tokio::time::timeout(Duration::from_secs(4), refused.read_u8()).await;
    assert!(end.unwrap().is_err(), "sooner than a handshake times out");
    let certificates = cluster.authority.node("node-0");
    let config = certificates.client_config(&[b"h2"]).unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config));
    let name = cluster.hosts[1].name.clone().try_into().unwrap();
    let other = tls.connect(name, dial([127, 0, 0, 4]).await).await;
    assert!(other.is_ok(), "{other:?}");
    // Nor those who come through a server.
    let (near, far) = tokio::io::duplex(1 << 16);
    cluster.hosts[1]
        .network
        .accept_tunnel(Box::new(far), "a test");
    let name = cluster.hosts[1].name.clone().try_into().unwrap();
    assert!(tls.connect(name, near).await.is_ok());
    drop(silent);
}

//! TCP and UDP between pods and Services, and names.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::network::{Limits, Policy, ResolveError, SocketError, Stream};

async fn read_all(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(chunk) = stream.reader.read().await {
        all.extend_from_slice(&chunk.unwrap());
    }
    all
}

/// Accepts `count` connections and answers each with its name, at end of input.
fn echo(pod: &Arc<PodNetwork>, port: u16, name: &'static str) {
    let mut listener = pod.listen(port, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                let said = read_all(&mut stream).await;
                let answer = [name.as_bytes(), b" heard ", &said].concat();
                stream.writer.write_all(answer.into()).await.unwrap();
            });
        }
    });
}

async fn say(
    from: &PodNetwork,
    to: SocketAddr,
    words: &'static [u8],
) -> Result<String, SocketError> {
    let mut stream = from.connect(to).await?;
    stream.writer.write_all(Bytes::from_static(words)).await?;
    stream.writer.shutdown();
    Ok(String::from_utf8(read_all(&mut stream).await).unwrap())
}

fn at(pod: &PodNetwork, port: u16) -> SocketAddr {
    SocketAddr::from((pod.address(), port))
}

#[tokio::test]
async fn a_pod_reaches_another_and_sees_its_address() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    assert_ne!(a.address(), b.address());
    let mut listener = b.listen(8080, 1).unwrap();
    assert_eq!(listener.local(), "0.0.0.0:8080".parse().unwrap());
    let client = a.connect(at(&b, 8080)).await.unwrap();
    let server = listener.accept().await.unwrap();
    assert_eq!(server.peer, client.local);
    assert_eq!(server.peer.ip(), IpAddr::V4(a.address()));
    assert_eq!(server.local, at(&b, 8080));
    assert_eq!(client.peer, at(&b, 8080));
}

#[tokio::test]
async fn half_closed_connections_carry_the_answer() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    echo(&b, 8080, "b");
    assert_eq!(say(&a, at(&b, 8080), b"hi").await.unwrap(), "b heard hi");
}

#[tokio::test]
async fn nobody_there_is_refused_and_nobodys_address_is_unreachable() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let refused = a.connect(at(&b, 1)).await.err();
    assert_eq!(refused, Some(SocketError::Refused));
    let nobody = a.connect("100.64.63.9:80".parse().unwrap()).await.err();
    assert_eq!(nobody, Some(SocketError::Unreachable));
    let no_service = a.connect("10.96.200.1:80".parse().unwrap()).await.err();
    assert_eq!(no_service, Some(SocketError::Unreachable));
}

#[tokio::test]
async fn loopback_is_the_pod_itself() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let mut private = a
        .bind_tcp("127.0.0.1:9000".parse().unwrap())
        .unwrap()
        .listen(4)
        .unwrap();
    let from_inside = a.connect("127.0.0.1:9000".parse().unwrap()).await.unwrap();
    let accepted = private.accept().await.unwrap();
    assert_eq!(accepted.peer, from_inside.local);
    assert!(accepted.peer.ip().is_loopback());
    assert!(a.connect("[::1]:9000".parse().unwrap()).await.is_ok());
    assert!(
        a.connect("[::ffff:127.0.0.1]:9000".parse().unwrap())
            .await
            .is_ok()
    );
    let from_outside = b.connect(at(&a, 9000)).await.err();
    assert_eq!(from_outside, Some(SocketError::Refused));
    let own = b.connect("127.0.0.1:9000".parse().unwrap()).await.err();
    assert_eq!(
        own,
        Some(SocketError::Refused),
        "another pod's loopback is another"
    );
}

#[tokio::test]
async fn hundreds_of_pods_listen_on_the_same_port_and_one_pod_only_once() {
    let network = network();
    let pods: Vec<_> = (0..300).map(|n| pod(&network, &format!("p{n}"))).collect();
    let listeners: Vec<_> = pods.iter().map(|p| p.listen(8080, 1).unwrap()).collect();
    assert_eq!(pods[0].listen(8080, 1).err(), Some(SocketError::InUse));
    drop(listeners);
    let bound = pods[0].bind_tcp("[::]:8080".parse().unwrap()).unwrap();
    assert_eq!(pods[0].listen(8080, 1).err(), Some(SocketError::InUse));
    drop(bound);
    let picked = pods[0].listen(0, 1).unwrap();
    assert_ne!(picked.local().port(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_backlog_makes_clients_wait_then_time_out() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let mut listener = b.listen(8080, 2).unwrap();
    let _waiting = [
        a.connect(at(&b, 8080)).await.unwrap(),
        a.connect(at(&b, 8080)).await.unwrap(),
    ];
    assert_eq!(
        a.connect(at(&b, 8080)).await.err(),
        Some(SocketError::TimedOut)
    );
    listener.accept().await.unwrap();
    assert!(a.connect(at(&b, 8080)).await.is_ok());
}

#[tokio::test]
async fn a_closed_listener_resets_who_was_not_accepted() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let listener = b.listen(8080, 2).unwrap();
    let mut waiting = a.connect(at(&b, 8080)).await.unwrap();
    drop(listener);
    assert_eq!(waiting.reader.read().await, Some(Err(SocketError::Reset)));
    assert_eq!(
        a.connect(at(&b, 8080)).await.err(),
        Some(SocketError::Refused)
    );
}

#[tokio::test]
async fn a_million_sockets_are_a_few_thousand() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let mut listener = b.listen(8080, 128).unwrap();
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok(stream) = listener.accept().await {
            held.push(stream);
        }
    });
    let mut held = Vec::new();
    let mut denied = 0;
    for _ in 0..20_000 {
        match a.connect(at(&b, 8080)).await {
            Ok(stream) => held.push(stream),
            Err(error) => {
                assert!(matches!(error, SocketError::TooMany | SocketError::Refused));
                denied += 1;
            }
        }
    }
    let limit = Limits::default().sockets_per_pod;
    // The listener is one of b's sockets.
    assert_eq!((held.len(), denied), (limit - 1, 20_000 - limit + 1));
    drop(held);
    assert_eq!(a.open_sockets(), 0, "closed sockets are given back");
    let mut udp = Vec::new();
    while let Ok(socket) = a.bind_udp(0) {
        udp.push(socket);
    }
    assert_eq!(udp.len(), limit);
}

#[tokio::test]
async fn a_detached_pod_answers_no_more_and_its_address_is_free() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    echo(&b, 8080, "b");
    network.detach_pod(&b);
    network.detach_pod(&b);
    assert_eq!(
        a.connect(at(&b, 8080)).await.err(),
        Some(SocketError::Unreachable)
    );
    assert_eq!(b.listen(1, 1).err(), Some(SocketError::NotAvailable));
    let again = PodIdentity {
        address: Some(b.address()),
        ..PodIdentity::default()
    };
    assert_eq!(network.attach_pod(again).unwrap().address(), b.address());
}

#[tokio::test]
async fn a_service_address_leads_to_its_ready_endpoints_in_turn() {
    let network = network();
    let (a, b, c) = (pod(&network, "a"), pod(&network, "b"), pod(&network, "c"));
    echo(&b, 8080, "b");
    echo(&c, 8080, "c");
    hello(&network, &[&b, &c]);
    let vip: SocketAddr = "10.96.0.7:80".parse().unwrap();
    let stream = a.connect(vip).await.unwrap();
    assert_eq!(stream.peer, vip, "the client sees whom it asked");
    drop(stream);
    let mut heard = [0, 0];
    for _ in 0..100 {
        let answer = say(&a, vip, b"hi").await.unwrap();
        heard[usize::from(answer.starts_with('c'))] += 1;
    }
    assert!(heard[0] > 20 && heard[1] > 20, "{heard:?}");
    hello(&network, &[&c]);
    for _ in 0..10 {
        assert_eq!(say(&a, vip, b"hi").await.unwrap(), "c heard hi");
    }
    hello(&network, &[]);
    assert_eq!(a.connect(vip).await.err(), Some(SocketError::Refused));
    let no_port = a.connect("10.96.0.7:81".parse().unwrap()).await.err();
    assert_eq!(no_port, Some(SocketError::Refused));
}

#[tokio::test]
async fn endpoints_that_refuse_are_passed_over() {
    let network = network();
    let (a, b, c) = (pod(&network, "a"), pod(&network, "b"), pod(&network, "c"));
    echo(&c, 8080, "c");
    hello(&network, &[&b, &c]);
    for _ in 0..50 {
        assert_eq!(
            say(&a, "10.96.0.7:80".parse().unwrap(), b"hi")
                .await
                .unwrap(),
            "c heard hi"
        );
    }
}

#[tokio::test]
async fn a_client_with_affinity_stays_where_it_was() {
    let network = network();
    let (a, b, c) = (pod(&network, "a"), pod(&network, "b"), pod(&network, "c"));
    echo(&b, 8080, "b");
    echo(&c, 8080, "c");
    let spec =
        json!({"clusterIP": "10.96.0.7", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]});
    publish(&network, "hello", spec, json!([{"port": 8080}]), &[&b, &c]);
    let vip = "10.96.0.7:80".parse().unwrap();
    let first = say(&a, vip, b"hi").await.unwrap();
    for _ in 0..30 {
        assert_eq!(say(&a, vip, b"hi").await.unwrap(), first);
    }
}

#[tokio::test]
async fn datagrams_reach_pods_and_services_and_answers_come_from_whom_was_asked() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let server = b.bind_udp(53).unwrap();
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 5353, "protocol": "UDP"}]});
    publish(
        &network,
        "dns",
        spec,
        json!([{"port": 53, "protocol": "UDP"}]),
        &[&b],
    );
    let client = a.bind_udp(0).unwrap();
    for to in [at(&b, 53), "10.96.0.10:5353".parse().unwrap()] {
        client
            .send(Bytes::from_static(b"question"), to)
            .await
            .unwrap();
        let (question, from) = server.recv().await.unwrap();
        assert_eq!(question, "question");
        assert_eq!(from, at(&a, client.local().port()));
        server
            .send(Bytes::from_static(b"answer"), from)
            .await
            .unwrap();
        assert_eq!(
            client.recv().await.unwrap(),
            (Bytes::from_static(b"answer"), to)
        );
    }
    // Nobody reads: the queue is bounded, the sender never blocks.
    for _ in 0..10_000 {
        client
            .send(Bytes::from(vec![0; 1000]), at(&b, 53))
            .await
            .unwrap();
    }
    let huge = client.send(Bytes::from(vec![0; 70_000]), at(&b, 53)).await;
    assert_eq!(huge, Err(SocketError::TooLarge));
    let own = a.bind_udp(7).unwrap();
    client
        .send(Bytes::from_static(b"me"), "127.0.0.1:7".parse().unwrap())
        .await
        .unwrap();
    assert!(own.recv().await.unwrap().1.ip().is_loopback());
}

#[tokio::test]
async fn names_lead_where_kubernetes_says() {
    let network = network();
    let a = network
        .attach_pod(PodIdentity {
            namespace: "shop".to_owned(),
            name: "a".to_owned(),
            hostname: "a-host".to_owned(),
            host_aliases: vec![([1, 2, 3, 4].into(), vec!["alias.example".to_owned()])],
            ..PodIdentity::default()
        })
        .unwrap();
    let b = pod(&network, "b");
    hello(&network, &[&b]);
    let headless = json!({"clusterIP": "None", "ports": [{"port": 80}]});
    publish(
        &network,
        "db",
        headless.clone(),
        json!([{"port": 8080}]),
        &[&b],
    );
    publish(&network, "empty", headless, json!([{"port": 8080}]), &[]);
    let alias = |name: &str| json!({"type": "ExternalName", "externalName": name});
    publish(
        &network,
        "alias",
        alias("hello.shop.svc.cluster.local"),
        json!([]),
        &[],
    );
    publish(
        &network,
        "circle",
        alias("circle.shop.svc.cluster.local"),
        json!([]),
        &[],
    );
    publish(&network, "here", alias("localhost"), json!([]), &[]);

    let vip = Ok(vec![IpAddr::from([10, 96, 0, 7])]);
    let own = Ok(vec![IpAddr::V4(a.address())]);
    let pod_b = Ok(vec![IpAddr::V4(b.address())]);
    let dashed = format!(
        "{}.shop.pod.cluster.local",
        b.address().to_string().replace('.', "-")
    );
    for (name, expected) in [
        ("hello", &vip),
        ("hello.shop", &vip),
        ("hello.shop.svc", &vip),
        ("HELLO.shop.svc.cluster.local.", &vip),
        ("alias", &vip),
        ("db", &pod_b),
        (&dashed, &pod_b),
        ("empty", &Err(ResolveError::NotFound)),
        ("circle", &Err(ResolveError::NotFound)),
        (
            "hello.other.svc.cluster.local",
            &Err(ResolveError::NotFound),
        ),
        ("a-host", &own),
        ("alias.example", &Ok(vec![[1, 2, 3, 4].into()])),
        ("localhost", &Ok(vec![Ipv4Addr::LOCALHOST.into()])),
        ("here", &Ok(vec![Ipv4Addr::LOCALHOST.into()])),
        ("HERE.shop", &Ok(vec![Ipv4Addr::LOCALHOST.into()])),
        ("10.1.2.3", &Ok(vec![[10, 1, 2, 3].into()])),
        ("", &Err(ResolveError::NotFound)),
    ] {
        assert_eq!(a.resolve(name).await, *expected, "{name}");
    }
}

#[tokio::test]
async fn the_hosts_own_loopback_is_closed_to_pods_unless_allowed() {
    let real = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = real.local_addr().unwrap();
    let closed = network();
    // For a pod 127.0.0.1 is itself; the host's loopback hides behind other names, too.
    let smuggle = |network: &Network| {
        let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 80}]});
        behind(
            network,
            ("shop", "s"),
            spec,
            json!([{"port": to.port()}]),
            &["127.0.0.1"],
        );
    };
    smuggle(&closed);
    let a = pod(&closed, "a");
    let vip = "10.96.0.9:80".parse().unwrap();
    assert_eq!(a.connect(vip).await.err(), Some(SocketError::Denied));
    let metadata = a.connect("169.254.169.254:80".parse().unwrap()).await.err();
    assert_eq!(metadata, Some(SocketError::Denied));

    let open = Network::new(Config {
        egress: Policy {
            allow: vec!["127.0.0.1/32".parse().unwrap()],
            ..Policy::default()
        },
        ..Config::default()
    })
    .unwrap();
    smuggle(&open);
    let b = pod(&open, "b");
    let server = tokio::spawn(async move {
        let (mut socket, _) = real.accept().await.unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).await.unwrap();
        socket
            .write_all(said.to_uppercase().as_bytes())
            .await
            .unwrap();
    });
    assert_eq!(say(&b, vip, b"egress").await.unwrap(), "EGRESS");
    server.await.unwrap();
}

#[tokio::test]
async fn the_api_server_is_reached_at_its_service_address_though_it_is_on_loopback() {
    let real = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let network = network();
    let port = real.local_addr().unwrap().port();
    let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443}]});
    let ports = json!([{"name": "https", "port": port}]);
    behind(
        &network,
        ("default", "kubernetes"),
        spec,
        ports,
        &["127.0.0.1"],
    );
    let a = pod(&network, "a");
    assert!(a.connect("10.96.0.1:443".parse().unwrap()).await.is_ok());
    real.accept().await.unwrap();
}

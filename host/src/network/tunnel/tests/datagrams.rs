//! Datagrams between pods of two nodes, directly and through Services.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderValue;
use serde_json::json;

use super::super::incoming::Incoming;
use super::Cluster;
use crate::network::UdpSocket;
use crate::network::table::Protocol;
use crate::network::tests::{pod, publish};
use crate::network::udp::{Client, LARGEST};

/// Sends `payload` until an answer comes: any one datagram may be lost.
async fn asked(socket: &UdpSocket, payload: &Bytes, to: SocketAddr) -> (Bytes, SocketAddr) {
    for _ in 0..50 {
        socket.send(payload.clone(), to).await.unwrap();
        if let Ok(answer) = tokio::time::timeout(Duration::from_millis(200), socket.recv()).await {
            return answer.unwrap();
        }
    }
    panic!("no answer from {to}");
}

fn echo(socket: UdpSocket) {
    tokio::spawn(async move {
        while let Ok((payload, from)) = socket.recv().await {
            socket.send(payload, from).await.unwrap();
        }
    });
}

#[tokio::test]
async fn a_datagram_reaches_a_pod_of_another_node_and_its_answer_comes_back() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let server = pod(&cluster.hosts[1].network, "server");
    echo(server.bind_udp(53).unwrap());
    let socket = client.bind_udp(0).unwrap();
    let address = SocketAddr::from((server.address(), 53));
    for length in [0, 100, 1_500, LARGEST] {
        let payload = Bytes::from(vec![3; length]);
        assert_eq!(asked(&socket, &payload, address).await, (payload, address));
    }
}

#[tokio::test]
async fn a_service_answers_by_its_own_address_whichever_node_its_pod_is_on() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let server = pod(&cluster.hosts[1].network, "server");
    echo(server.bind_udp(5353).unwrap());
    let spec = json!({"clusterIP": "10.96.0.9", "ports": [{"port": 53, "protocol": "UDP"}]});
    let ports = json!([{"port": 5353, "protocol": "UDP"}]);
    publish(&cluster.hosts[0].network, "names", spec, ports, &[&server]);
    let socket = client.bind_udp(0).unwrap();
    let service = SocketAddr::from(([10, 96, 0, 9], 53));
    let (payload, from) = asked(&socket, &Bytes::from_static(b"who?"), service).await;
    assert_eq!((&payload[..], from), (&b"who?"[..], service));

    // A client outside, through a NodePort: the node's own socket speaks for it.
    let fabric = Arc::clone(&cluster.hosts[0].network.fabric);
    let listener = Arc::new(tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap());
    listener.writable().await.unwrap();
    let real = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let outside = Client::new(&fabric, &listener, real.local_addr().unwrap()).unwrap();
    let table = fabric.services.borrow().clone();
    let port = table
        .get("shop", "names")
        .unwrap()
        .port(53, Protocol::Udp)
        .unwrap();
    for round in 0.. {
        assert!(round < 50, "no answer");
        outside.send(Bytes::from_static(b"me?"), port).unwrap();
        let mut answer = [0; 8];
        let length = tokio::time::timeout(Duration::from_millis(200), real.recv(&mut answer));
        if let Ok(length) = length.await {
            assert_eq!(&answer[..length.unwrap()], b"me?");
            break;
        }
    }
}

#[tokio::test]
async fn what_nobody_takes_is_lost_and_nobody_waits() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let server = pod(&cluster.hosts[1].network, "server");
    let socket = client.bind_udp(0).unwrap();
    let flood = Bytes::from(vec![1; 60_000]);
    for port in [9, 10] {
        for _ in 0..500 {
            socket
                .send(flood.clone(), SocketAddr::from((server.address(), port)))
                .await
                .unwrap();
        }
    }
    echo(server.bind_udp(53).unwrap());
    let address = SocketAddr::from((server.address(), 53));
    let payload = Bytes::from_static(b"after the flood");
    assert_eq!(asked(&socket, &payload, address).await.0, payload);
    // No node has this address.
    let nowhere = SocketAddr::from(([100, 64, 200, 1], 53));
    assert!(socket.send(payload, nowhere).await.is_err());
}

#[tokio::test]
async fn datagrams_throw_nothing_away_that_requests_have_shown() {
    let cluster = Cluster::of(2);
    let host = &cluster.hosts[1];
    let fabric = Arc::clone(&host.network.fabric);
    let incoming = Incoming::new(fabric, Arc::clone(host.tunnel()), "node-0");
    let named = HeaderValue::from_static("shop/web-1/default/web");
    let believe = |identity| incoming.believe([100, 64, 0, 9].into(), identity).unwrap();
    let source = believe(Some(&named));
    assert!(believe(None).identity.is_none());
    assert!(Arc::ptr_eq(&source, &believe(Some(&named))));
}

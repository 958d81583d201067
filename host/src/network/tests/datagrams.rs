//! Datagrams of clients outside: how many there may be, where they are led, and what comes back.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::net::UdpSocket;

use super::api::{Api, SERVICES, SLICES};
use super::rim::{DEADLINE, eventually, free_port, service, slice, started};
use super::*;
use crate::network::Policy;
use crate::network::udp::{Client, Why};

fn node_port(api: &Api, port: u16) -> SocketAddr {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7",
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": port}]});
    api.put(SERVICES, service("dns", spec));
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Asks once, from a socket of its own.
async fn asked(at: SocketAddr, patience: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(at).await.unwrap();
    socket.send(b"question").await.ok()?;
    let mut answer = vec![0; 64];
    let length = tokio::time::timeout(patience, socket.recv(&mut answer)).await;
    answer.truncate(length.ok()?.ok()?);
    Some(answer)
}

#[tokio::test]
async fn every_client_is_answered_however_many_there_were() {
    let api = Api::new();
    let at = node_port(&api, free_port());
    let network = started(&api).await;
    let guest = pod(&network, "dns");
    let server = guest.bind_udp(53).unwrap();
    tokio::spawn(async move {
        while let Ok((question, from)) = server.recv().await {
            server.send(question, from).await.unwrap();
        }
    });
    let port = json!({"port": 53, "protocol": "UDP"});
    api.put(SLICES, slice("dns", port, &[&guest]));
    eventually(async || asked(at, Duration::from_millis(50)).await).await;
    // As a resolver does it: another port for every question.
    for number in 0..5_000 {
        let answer = asked(at, DEADLINE).await;
        assert_eq!(answer.as_deref(), Some(&b"question"[..]), "number {number}");
    }
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_service_leads_clients_outside_the_cluster_as_far_as_pods_get() {
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let its_port = elsewhere.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = elsewhere.recv_from(&mut buffer).await {
            let answer = [b"re: ", &buffer[..length]].concat();
            elsewhere.send_to(&answer, from).await.unwrap();
        }
    });
    for allow in [vec!["127.0.0.0/8".parse().unwrap()], Vec::new()] {
        let allowed = !allow.is_empty();
        let api = Api::new();
        let at = node_port(&api, free_port());
        let mut slice = slice("dns", json!({"port": its_port, "protocol": "UDP"}), &[]);
        slice["endpoints"] = json!([{"addresses": ["127.0.0.1"]}]);
        api.put(SLICES, slice);
        let egress = Policy {
            allow,
            ..Policy::default()
        };
        let network = Network::new(Config {
            egress,
            ..Config::default()
        })
        .unwrap();
        network.start(api.client.clone()).unwrap();
        tokio::time::timeout(DEADLINE, network.wait_synced())
            .await
            .unwrap();
        let denied = || network.fabric.lost.of(Why::Denied) > 0;
        if allowed {
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.connect(at).await.unwrap();
            let mut answer = [0; 64];
            for question in [&b"one"[..], b"two"] {
                client.send(question).await.unwrap();
                let length = tokio::time::timeout(DEADLINE, client.recv(&mut answer));
                let length = length.await.unwrap().unwrap();
                assert_eq!(&answer[..length], [b"re: ", question].concat());
            }
            assert!(!denied());
        } else {
            let asking = async || {
                assert_eq!(asked(at, Duration::from_millis(20)).await, None);
                denied().then_some(())
            };
            eventually(asking).await;
            let text = network.metrics();
            assert!(text.contains("reason=\"denied\"} "), "{text}");
        }
        network.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_forgotten_client_gives_its_port_back_and_hears_nothing_more() {
    let network = network();
    let fabric = &network.fabric;
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let mut all: Vec<Client> = (1..=u16::MAX)
        .map_while(|port| {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            Client::new(fabric, &socket, address)
        })
        .collect();
    assert_eq!(all.len(), 64_512, "every port of the node's address");
    let another = || Client::new(fabric, &socket, "192.0.2.1:1".parse().unwrap());
    assert!(another().is_none());
    all.pop();
    assert!(another().is_some());
    drop(all);
    assert!(
        Arc::into_inner(socket).is_some(),
        "the listener's socket can be closed"
    );
}

#[tokio::test]
async fn answers_of_two_services_with_one_endpoint_come_from_whom_was_asked() {
    let network = network();
    let (a, b) = (pod(&network, "a"), pod(&network, "b"));
    let server = b.bind_udp(53).unwrap();
    let ports = json!([{"port": 53, "protocol": "UDP"}]);
    for (name, ip) in [("one", "10.96.0.1"), ("two", "10.96.0.2")] {
        let spec = json!({"clusterIP": ip, "ports": [{"port": 53, "protocol": "UDP"}]});
        publish(&network, name, spec, ports.clone(), &[&b]);
    }
    let client = a.bind_udp(0).unwrap();
    let itself = SocketAddr::from((b.address(), 53)).to_string();
    for to in [
        "10.96.0.1:53",
        "10.96.0.2:53",
        &itself,
        "10.96.0.1:53",
        &itself,
    ] {
        let to: SocketAddr = to.parse().unwrap();
        client.send(Bytes::from_static(b"?"), to).await.unwrap();
        let (_, from) = server.recv().await.unwrap();
        server.send(Bytes::from_static(b"!"), from).await.unwrap();
        assert_eq!(client.recv().await.unwrap().1, to);
    }
}

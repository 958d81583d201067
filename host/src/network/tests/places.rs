//! What listeners and their clients may keep: ports, connections, the words they may use.

use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::api::{Api, SERVICES, SLICES};
use super::rim::{DEADLINE, GET, curl, eventually, free_port, listening, service, slice, started};
use super::*;
use crate::network::ListenerKind;

#[tokio::test]
async fn a_client_cannot_connect_through_us() {
    let api = Api::new();
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": free_port()}]});
    api.put(SERVICES, service("web", spec));
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    let address = network.listeners()[0].address.unwrap();
    eventually(async || curl(address, GET).await.ok()).await;
    let target = format!("{}:8080", pod.address());
    let connect =
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
    let answer = curl(address, &connect).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    // As a stream of bytes from the node itself, or from a pod.
    let mut io = network
        .dial(target.parse().unwrap())
        .await
        .unwrap()
        .into_io();
    io.write_all(connect.as_bytes()).await.unwrap();
    let mut answer = String::new();
    io.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_listener_that_makes_room_for_another_leaves_it_the_port() {
    let api = Api::new();
    let port = free_port();
    for protocol in ["TCP", "UDP"] {
        let ports = json!([{"port": port, "protocol": protocol}]);
        let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": ports});
        api.put(SERVICES, service("web", spec));
        let network = started(&api).await;
        listening(&network, |all| all.iter().any(|l| l.protocol == protocol)).await;
        if protocol == "UDP" {
            // A client whose answers share the socket.
            let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            client.send_to(b"?", ("127.0.0.1", port)).await.unwrap();
        }
        let ports = json!([{"port": 80, "nodePort": port, "protocol": protocol}]);
        let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": ports});
        api.put(SERVICES, service("web", spec));
        let all = listening(&network, |all| {
            all.iter().any(|l| l.origin == ListenerKind::NodePort)
        });
        let all = all.await;
        assert_eq!(all[0].problem, None, "{all:?}");
        assert_eq!(all[0].address.unwrap().port(), port);
        network.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn a_port_that_was_taken_is_had_when_it_is_free() {
    let api = Api::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    api.put(SERVICES, service("web", spec));
    let network = started(&api).await;
    listening(&network, |all| all.iter().any(|l| l.problem.is_some())).await;
    drop(taken);
    let all = listening(&network, |all| all.iter().all(|l| l.problem.is_none())).await;
    assert_eq!(all[0].address.unwrap().port(), port);
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_client_that_does_nothing_keeps_no_place() {
    let api = Api::new();
    let limits = crate::network::Limits {
        header_timeout: Duration::from_millis(300),
        ..Default::default()
    };
    let network = Network::new(Config {
        limits,
        ..Config::default()
    });
    let network = network.unwrap();
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": free_port()}]});
    api.put(SERVICES, service("web", spec));
    network.start(api.client.clone()).unwrap();
    tokio::time::timeout(DEADLINE, network.wait_synced())
        .await
        .unwrap();
    let pod = pod(&network, "web");
    let guest = Guest(|_| async { Ok(Response::new(serve::full(vec![0; 64 << 20]))) });
    let _serving = pod.serve_http(Ports::All, Arc::new(guest)).unwrap();
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    let address = network.listeners()[0].address.unwrap();
    let places = || network.fabric.rim_connections.free();
    let free = places();
    let unread = eventually(async || {
        let mut socket = TcpStream::connect(address).await.ok()?;
        socket.write_all(GET.as_bytes()).await.ok()?;
        socket.read_u8().await.ok()?;
        Some(socket)
    });
    let unread = unread.await;
    let socket = TcpStream::connect(address).await.unwrap();
    let (_client, connection) = h2::client::handshake(socket).await.unwrap();
    // It answers pings as long as it lives, and asks nothing.
    tokio::time::timeout(DEADLINE, connection)
        .await
        .unwrap()
        .unwrap();
    eventually(async || (places() == free).then_some(())).await;
    drop(unread);
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn balancers_learn_a_nodes_health_though_clients_have_all_its_connections() {
    let api = Api::new();
    let mut config = Config::default();
    config.limits.listener_connections = 1;
    let network = Network::new(config).unwrap();
    let (port, health) = (free_port(), free_port());
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": health, "ports": [{"port": port}]});
    api.put(SERVICES, service("web", spec));
    network.start(api.client.clone()).unwrap();
    tokio::time::timeout(DEADLINE, network.wait_synced())
        .await
        .unwrap();
    let (pod, _serving) = web(&network, "web");
    let mut local = slice("web", json!({"port": 8080}), &[&pod]);
    local["endpoints"][0]["nodeName"] = json!("node");
    api.put(SLICES, local);
    let at = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    eventually(async || curl(at(port), GET).await.ok()).await;
    eventually(async || (network.fabric.rim_connections.free() == 1).then_some(())).await;
    let idle = TcpStream::connect(at(port)).await.unwrap();
    eventually(async || (network.fabric.rim_connections.free() == 0).then_some(())).await;
    assert!(curl(at(port), GET).await.is_err(), "no place is left");
    let answer = curl(at(health), GET).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    drop(idle);
    network.shutdown(Duration::ZERO).await;
}

//! DNS as pods and the node's other programs meet it: at the cluster's address, at a real one, and without an API server.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{Message, Query};
use hickory_proto::rr::{Name, RecordType};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;

use super::*;
use crate::network::{DnsConfig, SocketError};

const DEADLINE: Duration = Duration::from_secs(10);
const SERVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(10, 96, 0, 10)), 53);

fn question(name: &str) -> Bytes {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap().into()
}

fn told(answer: &[u8]) -> String {
    let answer = Message::from_vec(answer).unwrap();
    let data: Vec<String> = answer.answers.iter().map(|r| r.data.to_string()).collect();
    format!("{:?} {}", answer.metadata.response_code, data.join(" "))
}

#[tokio::test]
async fn a_guest_that_speaks_dns_itself_is_answered() {
    let network = network();
    let client = pod(&network, "client");
    hello(&network, &[]);
    let socket = client.bind_udp(0).unwrap();
    let name = "hello.shop.svc.cluster.local.";
    socket.send(question(name), SERVER).await.unwrap();
    let (answer, from) = tokio::time::timeout(DEADLINE, socket.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(from, SERVER);
    assert_eq!(told(&answer), "NoError 10.96.0.7");

    let mut stream = client.connect(SERVER).await.unwrap().into_io();
    for name in [name, "nothing.shop.svc.cluster.local."] {
        let asked = question(name);
        stream
            .write_u16(u16::try_from(asked.len()).unwrap())
            .await
            .unwrap();
        stream.write_all(&asked).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        let known = told(&answer) == "NoError 10.96.0.7";
        assert_eq!(known, name.starts_with("hello"), "{}", told(&answer));
    }
    drop(stream);
    let other = SocketAddr::new(SERVER.ip(), 80);
    assert_eq!(
        client.connect(other).await.err(),
        Some(SocketError::Unreachable)
    );
    assert_eq!(
        client.resolve("ns.dns.cluster.local").await.unwrap(),
        [SERVER.ip()]
    );
    network.shutdown(Duration::ZERO).await;
    assert_eq!(client.open_sockets(), 1, "the UDP socket");
    assert_eq!(network.dns_counted().answers["NOERROR"], 2);
}

#[tokio::test]
async fn a_service_of_that_address_stands_for_the_server_until_it_leads_somewhere() {
    let network = network();
    let client = pod(&network, "client");
    let spec = json!({"clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 9153}]});
    let ports = json!([{"port": 5353, "protocol": "UDP"}]);
    let publish = |addresses: &[&str]| {
        let name = ("kube-system", "kube-dns");
        behind(&network, name, spec.clone(), ports.clone(), addresses);
    };
    publish(&[]);
    let socket = client.bind_udp(0).unwrap();
    let name = question("kube-dns.kube-system.svc.cluster.local.");
    socket.send(name.clone(), SERVER).await.unwrap();
    let (answer, _) = tokio::time::timeout(DEADLINE, socket.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(told(&answer), "NoError 10.96.0.10");

    let own = pod(&network, "own-dns");
    let listener = own.bind_udp(5353).unwrap();
    publish(&[&own.address().to_string()]);
    socket.send(name.clone(), SERVER).await.unwrap();
    let (asked, _) = tokio::time::timeout(DEADLINE, listener.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(asked, name);
}

#[tokio::test]
async fn the_node_answers_at_a_real_address_without_an_api_server() {
    let config = Config {
        dns: DnsConfig {
            listen: vec![SocketAddr::from((Ipv4Addr::LOCALHOST, 0))],
            ..DnsConfig::default()
        },
        ..Config::default()
    };
    let network = Network::new(config).unwrap();
    let addresses = network.serve_dns().unwrap();
    hello(&network, &[]);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let asked = question("hello.shop.svc.cluster.local.");
    socket.send_to(&asked, addresses[0]).await.unwrap();
    let mut buffer = [0; 512];
    let answer = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer)).await;
    assert_eq!(
        told(&buffer[..answer.unwrap().unwrap()]),
        "NoError 10.96.0.7"
    );
    network.shutdown(Duration::from_secs(1)).await;
    let again = std::net::UdpSocket::bind(addresses[0]);
    assert!(again.is_ok(), "the address is free again: {again:?}");
}

#[tokio::test]
async fn a_taken_address_is_an_error_unless_it_was_only_the_usual_one() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let serve = |optional| {
        let config = Config {
            dns: DnsConfig {
                listen: vec![address],
                optional,
                ..DnsConfig::default()
            },
            ..Config::default()
        };
        Network::new(config).unwrap().serve_dns()
    };
    let error = serve(false).unwrap_err().to_string();
    assert_eq!(error, format!("the DNS server cannot listen on {address}"));
    assert!(serve(true).unwrap().is_empty());
}

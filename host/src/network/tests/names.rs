//! Names outside the cluster, as pods meet them: asked of the servers that the node was given, in the order of resolvers, and
//! bounded whatever callers do.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use serde_json::json;
use tokio::net::UdpSocket;

use super::*;
use crate::network::{DnsConfig, ResolveError};

const DEADLINE: Duration = Duration::from_secs(10);

/// A name server that knows `names`, says nothing of those below `silent.example`, and that the others are not there.
async fn server(names: &'static [&'static str]) -> (SocketAddr, Arc<AtomicU64>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let query = &question.queries[0];
            let name = query.name().to_lowercase().to_string();
            let name = name.trim_end_matches('.');
            if name.ends_with("silent.example") {
                continue;
            }
            let (id, op_code) = (question.metadata.id, question.metadata.op_code);
            let mut answer = Message::response(id, op_code);
            answer.queries.clone_from(&question.queries);
            if !names.contains(&name) {
                answer.metadata.response_code = ResponseCode::NXDomain;
            } else if query.query_type() == RecordType::A {
                let data = RData::A(A(Ipv4Addr::new(9, 9, 9, 9)));
                let record = Record::from_rdata(query.name().clone(), 60, data);
                answer.answers.push(record);
            }
            let bytes = answer.to_vec().unwrap();
            socket.send_to(&bytes, from).await.unwrap();
        }
    });
    (address, asked)
}

fn asking(server: SocketAddr) -> Network {
    let dns = DnsConfig {
        upstream: vec![server],
        searches: vec!["lab.example".to_owned()],
        ..DnsConfig::default()
    };
    Network::new(Config {
        dns,
        ..Config::default()
    })
    .unwrap()
}

fn outside() -> Result<Vec<IpAddr>, ResolveError> {
    Ok(vec![IpAddr::from([9, 9, 9, 9])])
}

async fn resolve(pod: &PodNetwork, name: &str) -> Result<Vec<IpAddr>, ResolveError> {
    tokio::time::timeout(DEADLINE, pod.resolve(name))
        .await
        .expect("an answer in time")
}

#[tokio::test]
async fn pods_ask_the_servers_that_the_node_was_given() {
    let (address, asked) = server(&["x.example", "nas.lab.example"]).await;
    let network = asking(address);
    let pod = pod(&network, "a");
    assert_eq!(resolve(&pod, "x.example.").await, outside());
    let before = asked.load(Ordering::Relaxed);
    assert_eq!(resolve(&pod, "X.example.").await, outside());
    let again = asked.load(Ordering::Relaxed);
    // That there is no IPv6 address is not kept: nobody says for how long.
    assert_eq!(again, before + 1, "what was told is remembered");
    let of_the_site = resolve(&pod, "nas").await;
    assert_eq!(of_the_site, outside(), "by the node's own search list");
    let nothing = resolve(&pod, "nothing.example").await;
    assert_eq!(nothing, Err(ResolveError::NotFound));
    let error = ask(&pod, "http://nothing.example./").await.unwrap_err();
    assert!(
        matches!(error, HttpError::NotFound(_) | HttpError::Connect(_)),
        "{error}"
    );
}

#[tokio::test]
async fn the_outside_is_asked_when_it_is_its_turn() {
    let (address, _) = server(&["hello.shop", "www.example"]).await;
    let network = asking(address);
    let with = |ndots| {
        let identity = PodIdentity {
            namespace: "shop".to_owned(),
            searches: vec!["corp.example".to_owned()],
            ndots: Some(ndots),
            ..PodIdentity::default()
        };
        network.attach_pod(identity).unwrap()
    };
    let (early, late) = (with(1), with(5));
    hello(&network, &[]);
    let alias = |name: &str, to: &str| {
        let spec = json!({"type": "ExternalName", "externalName": to});
        publish(&network, name, spec, json!([]), &[]);
    };
    alias("twice", "hello.shop");
    alias("out", "www.example");
    alias("lost", "hello");
    let inside = Ok(vec![IpAddr::from([10, 96, 0, 7])]);
    for (pod, name, expected) in [
        (&late, "hello.shop", inside.clone()),
        (&early, "hello.shop", outside()),
        // Not there: the cluster's names come after it.
        (&early, "hello.shop.svc", inside.clone()),
        (&early, "hello", inside),
        // A target is one name, and no search list makes another of it.
        (&late, "twice", outside()),
        (&late, "out", outside()),
        (&late, "lost", Err(ResolveError::NotFound)),
    ] {
        assert_eq!(resolve(pod, name).await, expected, "{name}");
    }
}

#[tokio::test]
async fn lookups_that_are_given_up_are_over() {
    let (address, _) = server(&["x.example"]).await;
    let network = asking(address);
    let (greedy, other) = (pod(&network, "greedy"), pod(&network, "other"));
    for n in 0..1_000 {
        let name = format!("n{n}.silent.example.");
        assert!(greedy.resolve(&name).now_or_never().is_none());
    }
    assert_eq!(resolve(&greedy, "x.example.").await, outside());
    let waiting: Vec<_> = (0..1_000)
        .map(|n| {
            let pod = Arc::clone(&greedy);
            tokio::spawn(async move { pod.resolve(&format!("w{n}.silent.example.")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    assert_eq!(resolve(&other, "x.example.").await, outside());
    let uncached = resolve(&other, "nothing.example.").await;
    assert_eq!(
        uncached,
        Err(ResolveError::NotFound),
        "they wait, others do not"
    );
    for task in waiting {
        task.abort();
    }
}

#[test]
fn a_lookup_takes_no_thread() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let (free, held) = std::sync::mpsc::channel::<()>();
    let taken = runtime.spawn_blocking(move || held.recv());
    runtime.block_on(async {
        let (address, _) = server(&["x.example"]).await;
        let network = asking(address);
        let pod = pod(&network, "a");
        assert_eq!(resolve(&pod, "x.example.").await, outside());
    });
    drop(free);
    assert!(runtime.block_on(taken).unwrap().is_err());
}

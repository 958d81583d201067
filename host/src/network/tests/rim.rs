//! Listeners on real ports, fed by an API.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use types::listeners::Report;

use super::api::{Api, SERVICES, SLICES};
use super::*;
use crate::network::{ListenerKind, Listening};

pub(super) const DEADLINE: Duration = Duration::from_secs(10);

pub(super) fn service(name: &str, spec: Value) -> Value {
    json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}"), "resourceVersion": "1"},
        "spec": spec})
}

pub(super) fn slice(name: &str, port: Value, pods: &[&PodNetwork]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|pod| json!({"addresses": [pod.address().to_string()]}))
        .collect();
    json!({"addressType": "IPv4", "ports": [port], "endpoints": endpoints,
        "metadata": {"name": name, "namespace": "shop", "resourceVersion": "1", "labels": {"kubernetes.io/service-name": name}}})
}

/// A port that was free a moment ago.
pub(super) fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

pub(super) async fn started(api: &Api) -> Network {
    let network = network();
    network.start(api.client.clone()).unwrap();
    tokio::time::timeout(DEADLINE, network.wait_synced())
        .await
        .unwrap();
    network
}

pub(super) async fn listening(
    network: &Network,
    until: impl Fn(&[Listening]) -> bool,
) -> Vec<Listening> {
    let mut watch = network.watch_listeners();
    let seen = watch.wait_for(|all| until(all));
    let seen = tokio::time::timeout(DEADLINE, seen).await;
    seen.unwrap_or_else(|_| panic!("listeners: {:?}", network.listeners()))
        .unwrap()
        .to_vec()
}

/// What the node says in its annotation.
fn reported(network: &Network) -> Report {
    let annotations = network.fabric.config.annotations.subscribe();
    let text = annotations.borrow()["coracle.dev/listeners"].clone();
    Report::parse(&text.unwrap()).unwrap()
}

pub(super) async fn curl(address: SocketAddr, request: &str) -> std::io::Result<String> {
    let mut socket = TcpStream::connect(address).await?;
    socket.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    tokio::time::timeout(DEADLINE, socket.read_to_string(&mut answer)).await??;
    Ok(answer)
}

pub(super) const GET: &str = "GET /x HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";

pub(super) async fn eventually<T>(mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = check().await {
                return found;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, found).await.unwrap()
}

#[tokio::test]
async fn a_load_balancer_serves_http_guests_and_says_where() {
    let mut api = Api::new();
    let port = free_port();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    api.put(SERVICES, service("web", spec));
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    let open = network.listeners();
    assert_eq!(open.len(), 1);
    assert_eq!(
        (open[0].origin, open[0].problem.clone()),
        (ListenerKind::LoadBalancer, None)
    );
    let address = open[0].address.unwrap();
    assert_eq!(address, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    let answer = eventually(async || curl(address, GET).await.ok()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with("web shop /x"), "{answer}");

    let report = reported(&network);
    assert_eq!(report.address, Some(address.ip()));
    assert_eq!(report.balanced.len(), 7, "one Service: {report:?}");
    assert!(report.deviations.is_empty());
    assert!(api.writes.try_recv().is_err(), "a node writes no Service");
    network.shutdown(Duration::from_secs(5)).await;
    assert!(
        curl(address, GET).await.is_err(),
        "nothing listens any more"
    );
}

#[tokio::test]
async fn a_taken_port_is_replaced_and_the_node_says_so() {
    let api = Api::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    api.put(SERVICES, service("web", spec));
    let network = started(&api).await;
    let open = network.listeners();
    let address = open[0].address.unwrap();
    assert_ne!(address.port(), port);
    let problem = format!("port {port} is taken on 127.0.0.1");
    assert_eq!(open[0].problem.as_deref(), Some(problem.as_str()));

    let report = reported(&network);
    let [deviation] = report.deviations.as_slice() else {
        panic!("one: {report:?}");
    };
    assert_eq!(
        (deviation.namespace.as_str(), deviation.service.as_str()),
        ("shop", "web")
    );
    assert_eq!(
        (deviation.wanted, deviation.got),
        (port, Some(address.port()))
    );
    assert_eq!(deviation.problem, problem);
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_replaced_port_is_the_same_after_a_restart() {
    let api = Api::new();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, before) = (taken.local_addr().unwrap().port(), free_port());
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    let mut object = service("web", spec);
    object["metadata"]["annotations"] =
        json!({"coracle.dev/listeners": format!("{port}={before}")});
    api.put(SERVICES, object);
    let network = started(&api).await;
    assert_eq!(network.listeners()[0].address.unwrap().port(), before);
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn node_ports_open_and_close_with_their_service() {
    let api = Api::new();
    let port = free_port();
    let network = started(&api).await;
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": port}]});
    api.put(SERVICES, service("web", spec));
    let open = listening(&network, |all| !all.is_empty()).await;
    assert_eq!(open[0].origin, ListenerKind::NodePort);
    assert_eq!(open[0].address.unwrap().port(), port);
    let spec = json!({"type": "ClusterIP", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    api.put(SERVICES, service("web", spec));
    listening(&network, <[Listening]>::is_empty).await;
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_socket_guest_behind_a_listener_gets_the_bytes_as_they_are() {
    let api = Api::new();
    let port = free_port();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    api.put(SERVICES, service("echo", spec));
    let network = started(&api).await;
    let guest = pod(&network, "echo");
    let mut listener = guest.listen(7, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            assert!(stream.peer.ip().is_loopback(), "the guest sees the client");
            stream
                .writer
                .write_all(Bytes::from_static(b"I speak first: "))
                .await
                .unwrap();
            while let Some(Ok(chunk)) = stream.reader.read().await {
                stream.writer.write_all(chunk).await.unwrap();
            }
        }
    });
    api.put(SLICES, slice("echo", json!({"port": 7}), &[&guest]));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut socket = eventually(async || {
        let mut socket = TcpStream::connect(address).await.ok()?;
        let mut hello = [0; 15];
        socket.read_exact(&mut hello).await.ok()?;
        assert_eq!(&hello, b"I speak first: ");
        Some(socket)
    })
    .await;
    let data = vec![7; 1 << 20];
    let (mut read, mut write) = socket.split();
    let mut back = Vec::new();
    let sent = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    tokio::join!(sent, async { read.read_to_end(&mut back).await.unwrap() });
    assert!(back == data, "a megabyte comes back after half-close");
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_request_in_flight_is_finished_when_the_node_drains() {
    let api = Api::new();
    let port = free_port();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    api.put(SERVICES, service("slow", spec));
    let network = Arc::new(started(&api).await);
    let guest = pod(&network, "slow");
    let (go, gate) = (
        Arc::new(tokio::sync::Notify::new()),
        Arc::new(tokio::sync::Notify::new()),
    );
    let (arrived, open) = (Arc::clone(&gate), Arc::clone(&go));
    let handler = Guest(move |_| {
        let (arrived, open) = (Arc::clone(&arrived), Arc::clone(&open));
        async move {
            arrived.notify_one();
            open.notified().await;
            Ok(Response::new(serve::full("finished")))
        }
    });
    let _serving = guest.serve_http(Ports::All, Arc::new(handler)).unwrap();
    api.put(SLICES, slice("slow", json!({"port": 80}), &[&guest]));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let request = "GET / HTTP/1.1\r\nHost: shop\r\n\r\n";
    let client = eventually(async || curl(address, request).await.ok());
    let drain = async {
        tokio::time::timeout(DEADLINE, gate.notified())
            .await
            .unwrap();
        let draining = tokio::spawn({
            let network = Arc::clone(&network);
            async move { network.shutdown(DEADLINE).await }
        });
        eventually(async || TcpStream::connect(address).await.is_err().then_some(())).await;
        go.notify_one();
        draining.await.unwrap();
    };
    let (answer, ()) = tokio::join!(client, drain);
    assert!(answer.ends_with("finished"), "{answer}");
}

#[tokio::test]
async fn http2_without_tls_is_understood() {
    let api = Api::new();
    let port = free_port();
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]});
    api.put(SERVICES, service("web", spec));
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new())
        .http2_only(true)
        .build_http::<Body>();
    let uri = format!("http://127.0.0.1:{port}/two");
    let response = eventually(async || client.request(get(&uri)).await.ok()).await;
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, format!("web 127.0.0.1:{port} /two"));
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn datagrams_come_in_through_a_node_port_and_find_their_way_back() {
    let api = Api::new();
    let port = free_port();
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7",
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": port}]});
    api.put(SERVICES, service("dns", spec));
    let network = started(&api).await;
    let guest = pod(&network, "dns");
    let server = guest.bind_udp(53).unwrap();
    tokio::spawn(async move {
        while let Ok((question, from)) = server.recv().await {
            let answer = [b"re: ", &question[..]].concat();
            server.send(answer.into(), from).await.unwrap();
        }
    });
    api.put(
        SLICES,
        slice("dns", json!({"port": 53, "protocol": "UDP"}), &[&guest]),
    );
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", port)).await.unwrap();
    let mut buffer = [0; 64];
    let length = eventually(async || {
        client.send(b"question").await.ok()?;
        let answer = client.recv(&mut buffer);
        tokio::time::timeout(Duration::from_millis(50), answer)
            .await
            .ok()?
            .ok()
    })
    .await;
    assert_eq!(&buffer[..length], b"re: question");
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_node_port_passes_on_only_what_its_endpoint_says() {
    let api = Api::new();
    let port = free_port();
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7",
        "ports": [{"port": 53, "protocol": "UDP", "nodePort": port}]});
    api.put(SERVICES, service("dns", spec));
    let network = started(&api).await;
    let (guest, stranger) = (pod(&network, "dns"), pod(&network, "stranger"));
    let server = guest.bind_udp(53).unwrap();
    let (forger, neighbour) = (
        stranger.bind_udp(53).unwrap(),
        guest.bind_udp(5353).unwrap(),
    );
    api.put(
        SLICES,
        slice("dns", json!({"port": 53, "protocol": "UDP"}), &[&guest]),
    );
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.connect(("127.0.0.1", port)).await.unwrap();
    let from = eventually(async || {
        client.send(b"question").await.ok()?;
        let asked = tokio::time::timeout(Duration::from_millis(50), server.recv());
        Some(asked.await.ok()?.unwrap().1)
    })
    .await;
    for other in [&forger, &neighbour] {
        other
            .send(Bytes::from_static(b"forged"), from)
            .await
            .unwrap();
    }
    server
        .send(Bytes::from_static(b"answer"), from)
        .await
        .unwrap();
    let mut buffer = [0; 64];
    let answer = tokio::time::timeout(DEADLINE, client.recv(&mut buffer)).await;
    assert_eq!(&buffer[..answer.unwrap().unwrap()], b"answer");
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn listeners_without_clients_keep_no_connection_from_others() {
    let api = Api::new();
    let mut config = Config::default();
    config.limits.listener_connections = 1;
    let network = Network::new(config).unwrap();
    network.start(api.client.clone()).unwrap();
    let (pod, _serving) = web(&network, "web");
    let names = ["one", "two", "three"];
    for (name, ip) in names.iter().zip(7..) {
        let spec = json!({"type": "NodePort", "clusterIP": format!("10.96.0.{ip}"),
            "ports": [{"port": 80, "nodePort": free_port()}]});
        api.put(SERVICES, service(name, spec));
        api.put(SLICES, slice(name, json!({"port": 8080}), &[&pod]));
    }
    let open = listening(&network, |all| all.len() == names.len()).await;
    for listener in &open {
        let address = listener.address.unwrap();
        let answer = eventually(async || {
            let answer = curl(address, GET).await.ok()?;
            answer.starts_with("HTTP/1.1 200").then_some(answer)
        });
        assert!(answer.await.ends_with("web shop /x"));
    }
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_health_check_port_tells_whether_there_are_endpoints_here() {
    let api = Api::new();
    let (port, health) = (free_port(), free_port());
    let spec = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "externalTrafficPolicy": "Local",
        "healthCheckNodePort": health, "ports": [{"port": port}]});
    api.put(SERVICES, service("web", spec));
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    let at = SocketAddr::from((Ipv4Addr::LOCALHOST, health));
    let answer = curl(at, GET).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("\"localEndpoints\": 0"), "{answer}");
    let mut local = slice("web", json!({"port": 8080}), &[&pod]);
    local["endpoints"][0]["nodeName"] = json!("node");
    api.put(SLICES, local);
    let answer = eventually(async || {
        let answer = curl(at, GET).await.ok()?;
        answer.starts_with("HTTP/1.1 200").then_some(answer)
    });
    let answer = answer.await;
    assert!(
        answer.contains("x-load-balancing-endpoint-weight: 1"),
        "{answer}"
    );
    let served = curl(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), GET)
        .await
        .unwrap();
    assert!(served.ends_with("web shop /x"), "{served}");
    let mut elsewhere = slice("web", json!({"port": 8080}), &[&pod]);
    elsewhere["endpoints"][0]["nodeName"] = json!("other");
    api.put(SLICES, elsewhere);
    let refused = async || {
        curl(SocketAddr::from((Ipv4Addr::LOCALHOST, port)), GET)
            .await
            .is_err()
            .then_some(())
    };
    eventually(refused).await;
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_pool_address_is_served_here_when_this_machine_has_it() {
    let api = Api::new();
    let port = free_port();
    let mut web_service = service(
        "web",
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": port}]}),
    );
    let given = |ip: &str| {
        json!({"loadBalancer": {"ingress": [{"ip": ip, "ipMode": "VIP"}]},
            "conditions": [{"type": "coracle.dev/PoolAddress", "status": "True", "reason": "Assigned",
                            "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]})
    };
    web_service["status"] = given("192.0.2.40");
    api.put(SERVICES, web_service.clone());
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    assert!(network.listeners().is_empty(), "another machine has it");
    let inside = eventually(async || {
        ask(&pod, &format!("http://192.0.2.40:{port}/in"))
            .await
            .ok()
    });
    assert!(inside.await.ends_with("/in"), "pods reach it all the same");
    web_service["status"] = given("127.0.0.1");
    api.put(SERVICES, web_service);
    let open = listening(&network, |all| !all.is_empty()).await;
    let answer = curl(open[0].address.unwrap(), GET).await.unwrap();
    assert!(answer.ends_with("web shop /x"), "{answer}");
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn source_ranges_keep_others_out() {
    let api = Api::new();
    let port = free_port();
    let spec = |ranges: Value| {
        json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "loadBalancerSourceRanges": ranges,
            "ports": [{"port": port}]})
    };
    api.put(SERVICES, service("web", spec(json!(["192.0.2.0/24"]))));
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    eventually(async || {
        ask(&pod, "http://10.96.0.7:1/")
            .await
            .is_err()
            .then_some(())
    })
    .await;
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually(async || ask(&pod, &format!("http://10.96.0.7:{port}/")).await.ok()).await;
    assert!(
        curl(address, GET).await.is_err(),
        "this client is not in the range"
    );
    api.put(
        SERVICES,
        service("web", spec(json!(["192.0.2.0/24", "127.0.0.0/8"]))),
    );
    eventually(async || curl(address, GET).await.ok()).await;
    network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_balancers_pods_are_clients_like_others() {
    let api = Api::new();
    let mut object = service("web", json!(null));
    object["status"] = json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.40", "ipMode": "VIP"}]},
        "conditions": [{"type": "coracle.dev/PoolAddress", "status": "True", "reason": "Assigned",
                        "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let mut allow = |ranges: Value| {
        object["spec"] = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}],
            "loadBalancerSourceRanges": ranges});
        api.put(SERVICES, object.clone());
    };
    allow(json!(["192.0.2.0/24"]));
    let network = started(&api).await;
    let (pod, _serving) = web(&network, "web");
    api.put(SLICES, slice("web", json!({"port": 8080}), &[&pod]));
    eventually(async || ask(&pod, "http://10.96.0.7/").await.ok()).await;
    let balanced = async || ask(&pod, "http://192.0.2.40/").await.ok();
    assert_eq!(balanced().await, None, "it is not in the range");
    allow(json!(["192.0.2.0/24", "100.64.0.0/10"]));
    eventually(balanced).await;
    network.shutdown(Duration::ZERO).await;
}

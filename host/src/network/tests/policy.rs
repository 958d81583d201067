//! NetworkPolicies as pods feel them: streams, requests, datagrams and names, inside and outside, now and when they change.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::api::{Api, SERVICES, SLICES};
use super::*;
use crate::network::{DnsConfig, Policy, ResolveError, SocketError};

const DEADLINE: Duration = Duration::from_secs(10);
const POLICIES: &str = "/apis/networking.k8s.io/v1/networkpolicies";
pub(super) const PODS: &str = "/api/v1/pods";
const NAMESPACES: &str = "/api/v1/namespaces";

pub(super) struct Cluster {
    pub(super) api: Api,
    pub(super) network: Network,
}

impl Cluster {
    /// Two namespaces and no policy; real addresses of this machine may be reached.
    async fn new() -> Self {
        let api = Api::new();
        for name in ["shop", "lab", "kube-system"] {
            let labels = json!({"kubernetes.io/metadata.name": name});
            api.put(
                NAMESPACES,
                json!({"metadata": {"name": name, "resourceVersion": "1", "labels": labels}}),
            );
        }
        let cluster = Self {
            network: local(),
            api,
        };
        cluster.network.start(cluster.api.client.clone()).unwrap();
        cluster.network.wait_synced().await;
        cluster
    }

    pub(super) fn pod(&self, namespace: &str, name: &str) -> Arc<PodNetwork> {
        let labels = json!({"app": name});
        let identity = PodIdentity {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            labels: serde_json::from_value(labels.clone()).unwrap(),
            ..PodIdentity::default()
        };
        let pod = self.network.attach_pod(identity).unwrap();
        let ip = pod.address().to_string();
        self.api.put(PODS, json!({
            "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"), "labels": labels, "resourceVersion": "1"},
            "spec": {"containers": []}, "status": {"phase": "Running", "podIP": ip},
        }));
        pod
    }

    /// Applies a policy of `shop` and waits until it is in force.
    pub(super) async fn apply(&self, name: &str, spec: Value) {
        let metadata = json!({"namespace": "shop", "name": name, "resourceVersion": "1"});
        self.api
            .put(POLICIES, json!({"metadata": metadata, "spec": spec}));
        self.in_force(|table| table.of("shop").iter().any(|policy| policy.name == name))
            .await;
    }

    async fn remove(&self, name: &str) {
        let metadata = json!({"namespace": "shop", "name": name, "resourceVersion": "1"});
        self.api
            .delete(POLICIES, json!({"metadata": metadata, "spec": {}}));
        self.in_force(|table| !table.of("shop").iter().any(|policy| policy.name == name))
            .await;
    }

    pub(super) async fn in_force(&self, check: impl Fn(&crate::network::policy::Table) -> bool) {
        let settled = self.network.fabric.policy.in_force(check);
        tokio::time::timeout(DEADLINE, settled).await.unwrap();
    }

    fn denied(&self, name: &str) -> u64 {
        let all = self.network.policy_decisions();
        all.iter()
            .filter(|d| d.policy == name)
            .map(|d| d.denied)
            .sum()
    }
}

fn local() -> Network {
    let config = Config {
        egress: Policy {
            allow: vec!["127.0.0.0/8".parse().unwrap()],
            deny: Vec::new(),
        },
        dns: DnsConfig::default(),
        ..Config::default()
    };
    Network::new(config).unwrap()
}

/// A pod that keeps what it accepts and answers each chunk with itself.
pub(super) fn echo(pod: &Arc<PodNetwork>, port: u16) {
    let mut listener = pod.listen(port, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(mut stream) = listener.accept().await {
            tokio::spawn(async move {
                while let Some(Ok(chunk)) = stream.reader.read().await {
                    if stream.writer.write_all(chunk).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
}

pub(super) fn at(pod: &PodNetwork, port: u16) -> SocketAddr {
    SocketAddr::from((pod.address(), port))
}

async fn reaches(from: &PodNetwork, to: SocketAddr) -> Result<(), SocketError> {
    let connected = tokio::time::timeout(DEADLINE, from.connect(to))
        .await
        .unwrap();
    connected.map(drop)
}

pub(super) fn only_from(app: &str) -> Value {
    json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": app}}}]}]})
}

#[tokio::test]
async fn streams_pass_as_policies_of_both_sides_say() {
    let cluster = Cluster::new().await;
    let (web, api, db) = (
        cluster.pod("shop", "web"),
        cluster.pod("shop", "api"),
        cluster.pod("shop", "db"),
    );
    let stranger = cluster.pod("lab", "web");
    echo(&db, 5432);
    assert_eq!(
        reaches(&stranger, at(&db, 5432)).await,
        Ok(()),
        "without policies everything passes"
    );
    cluster.apply("only-web", only_from("web")).await;
    assert_eq!(reaches(&web, at(&db, 5432)).await, Ok(()));
    assert_eq!(reaches(&api, at(&db, 5432)).await, Err(SocketError::Denied));
    assert_eq!(
        reaches(&stranger, at(&db, 5432)).await,
        Err(SocketError::Denied),
        "the same label elsewhere"
    );
    assert_eq!(
        reaches(&db, at(&db, 5432)).await,
        Ok(()),
        "nothing keeps a pod from itself"
    );
    assert_eq!(
        reaches(&db, SocketAddr::from((Ipv4Addr::LOCALHOST, 5432))).await,
        Ok(())
    );
    assert!(
        cluster.network.dial(at(&db, 5432)).await.is_ok(),
        "the node probes its pods"
    );
    assert_eq!(cluster.denied("only-web"), 2);
    let no_egress =
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"]});
    cluster.apply("no-egress", no_egress).await;
    assert_eq!(reaches(&web, at(&db, 5432)).await, Err(SocketError::Denied));
    assert_eq!(cluster.denied("no-egress"), 1);
    cluster.remove("no-egress").await;
    cluster.remove("only-web").await;
    assert_eq!(reaches(&api, at(&db, 5432)).await, Ok(()));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_new_policy_cuts_what_it_forbids_and_nothing_else() {
    let cluster = Cluster::new().await;
    let (web, api, db) = (
        cluster.pod("shop", "web"),
        cluster.pod("shop", "api"),
        cluster.pod("shop", "db"),
    );
    echo(&db, 5432);
    let mut allowed = web.connect(at(&db, 5432)).await.unwrap();
    let mut forbidden = api.connect(at(&db, 5432)).await.unwrap();
    cluster.apply("only-web", only_from("web")).await;
    let end = tokio::time::timeout(DEADLINE, forbidden.reader.read())
        .await
        .unwrap();
    assert_eq!(end, Some(Err(SocketError::Reset)));
    allowed
        .writer
        .write_all(Bytes::from_static(b"still here"))
        .await
        .unwrap();
    let echoed = tokio::time::timeout(DEADLINE, allowed.reader.read())
        .await
        .unwrap();
    assert_eq!(echoed, Some(Ok(Bytes::from_static(b"still here"))));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn nothing_passes_before_policies_are_known() {
    let network = local();
    let silent = tower::service_fn(|_: http::Request<kube::client::Body>| async {
        std::future::pending::<Result<http::Response<kube::client::Body>, std::convert::Infallible>>().await
    });
    let db = pod(&network, "db");
    network.start(kube::Client::new(silent, "default")).unwrap();
    let web = pod(&network, "web");
    echo(&db, 5432);
    let early = tokio::time::timeout(Duration::from_millis(50), web.connect(at(&db, 5432))).await;
    assert!(early.is_err(), "it waits");
    assert!(network.dial(at(&db, 5432)).await.is_ok() || !network.fabric.policy.is_open());
}

#[tokio::test]
async fn requests_are_judged_each_whatever_connection_they_take() {
    let cluster = Cluster::new().await;
    let (web, api) = (cluster.pod("shop", "web"), cluster.pod("shop", "api"));
    let db = cluster.pod("shop", "db");
    let guest = Guest(|_| async { Ok(Response::new(serve::full("rows"))) });
    let _serving = db
        .serve_http(Ports::Only(vec![8080]), Arc::new(guest))
        .unwrap();
    // One that listens on a socket, too: connections to it are pooled.
    let mut listener = db.listen(9090, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            tokio::spawn(async move {
                let mut io = stream.into_io();
                let mut buffer = [0; 4096];
                while io.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nrows")
                        .await
                        .unwrap();
                }
            });
        }
    });
    let uri = |port: u16| format!("http://{}/", at(&db, port));
    for port in [8080, 9090] {
        assert_eq!(ask(&api, &uri(port)).await.unwrap(), "rows");
    }
    cluster.apply("only-web", only_from("web")).await;
    for port in [8080, 9090] {
        assert_eq!(ask(&web, &uri(port)).await.unwrap(), "rows");
        let error = ask(&api, &uri(port)).await.unwrap_err();
        assert!(
            matches!(&error, HttpError::Forbidden(why) if why.contains("NetworkPolicy")),
            "{error}"
        );
    }
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn an_answer_that_flows_ends_when_it_is_forbidden() {
    let cluster = Cluster::new().await;
    let (api, db) = (cluster.pod("shop", "api"), cluster.pod("shop", "db"));
    let (rows, feed) =
        tokio::sync::mpsc::channel::<Result<http_body::Frame<Bytes>, std::convert::Infallible>>(4);
    let feed = Arc::new(std::sync::Mutex::new(Some(feed)));
    let guest = Guest(move |_| {
        let feed = feed.lock().unwrap().take().unwrap();
        async move {
            let stream = tokio_stream::wrappers::ReceiverStream::new(feed);
            let body = http_body_util::StreamBody::new(stream);
            Ok(Response::new(
                body.map_err(|never| match never {}).boxed_unsync(),
            ))
        }
    });
    let _serving = db.serve_http(Ports::All, Arc::new(guest)).unwrap();
    let mut answer = api
        .http(get(&format!("http://{}/", at(&db, 80))))
        .await
        .unwrap()
        .into_body();
    let row = || Ok(http_body::Frame::data(Bytes::from_static(b"row")));
    rows.send(row()).await.unwrap();
    assert!(answer.frame().await.unwrap().is_ok());
    cluster.apply("only-web", only_from("web")).await;
    rows.send(row()).await.unwrap();
    assert!(answer.frame().await.unwrap().is_err());
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn datagrams_and_their_answers() {
    let cluster = Cluster::new().await;
    let (web, db) = (cluster.pod("shop", "web"), cluster.pod("shop", "db"));
    cluster
        .apply(
            "quiet",
            json!({"podSelector": {}, "policyTypes": ["Egress", "Ingress"]}),
        )
        .await;
    let (client, server) = (web.bind_udp(4000).unwrap(), db.bind_udp(53).unwrap());
    let hello = || Bytes::from_static(b"hello");
    assert_eq!(
        client.send(hello(), at(&db, 53)).await,
        Err(SocketError::Denied)
    );
    let egress = json!({"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {}}], "ports": [{"port": 53, "protocol": "UDP"}]}]});
    cluster.apply("out", egress).await;
    assert_eq!(
        client.send(hello(), at(&db, 53)).await,
        Err(SocketError::Denied),
        "the other side's say"
    );
    cluster.apply("in", only_from("web")).await;
    client.send(hello(), at(&db, 53)).await.unwrap();
    let (_, from) = tokio::time::timeout(DEADLINE, server.recv())
        .await
        .unwrap()
        .unwrap();
    server.send(hello(), from).await.unwrap();
    assert_eq!(
        tokio::time::timeout(DEADLINE, client.recv())
            .await
            .unwrap()
            .unwrap()
            .1,
        at(&db, 53)
    );
    let unasked = SocketAddr::new(from.ip(), 4001);
    assert_eq!(
        server.send(hello(), unasked).await,
        Err(SocketError::Denied),
        "no answer to anything"
    );
    cluster.remove("in").await;
    assert_eq!(
        client.send(hello(), at(&db, 53)).await,
        Err(SocketError::Denied)
    );
    assert_eq!(
        server.send(hello(), from).await,
        Err(SocketError::Denied),
        "nor to what is forbidden by now"
    );
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn the_outside_is_an_address_like_others() {
    let cluster = Cluster::new().await;
    let web = cluster.pod("shop", "web");
    let outside = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = outside.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut socket, _) = outside.accept().await.unwrap();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    socket
                        .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
                        .await
                        .unwrap();
                }
            });
        }
    });
    // "localhost" is the pod itself: a name that only the node knows leads outside.
    let by_address = format!("http://{address}/");
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let datagrams = web.bind_udp(0).unwrap();
    let to = udp.local_addr().unwrap();
    // 127.0.0.1 is the pod's own; another address of the range is the machine's.
    let seen =
        |address: SocketAddr| SocketAddr::from((Ipv4Addr::new(127, 0, 0, 1), address.port()));
    assert_eq!(seen(to), to);
    let block = |cidr: &str| json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [{"ipBlock": {"cidr": cidr}}]}]});
    cluster.apply("block", block("10.0.0.0/8")).await;
    let elsewhere: SocketAddr = "192.0.2.1:80".parse().unwrap();
    assert_eq!(reaches(&web, elsewhere).await, Err(SocketError::Denied));
    assert_eq!(
        datagrams.send(Bytes::from_static(b"x"), elsewhere).await,
        Err(SocketError::Denied)
    );
    let error = ask(&web, "http://192.0.2.1/").await.unwrap_err();
    assert!(matches!(error, HttpError::Forbidden(_)), "{error}");
    drop((by_address, datagrams));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn names_need_a_way_to_dns() {
    let cluster = Cluster::new().await;
    let web = cluster.pod("shop", "web");
    hello(&cluster.network, &[]);
    assert!(web.resolve("hello").await.is_ok());
    cluster
        .apply(
            "no-egress",
            json!({"podSelector": {}, "policyTypes": ["Egress"]}),
        )
        .await;
    assert_eq!(web.resolve("hello").await, Err(ResolveError::Temporary));
    assert!(
        web.resolve("web").await.is_ok(),
        "its own name is in its hosts file"
    );
    let error = ask(&web, "http://hello/").await.unwrap_err();
    assert!(
        matches!(&error, HttpError::Forbidden(why) if why.contains("DNS")),
        "{error}"
    );
    let server: SocketAddr = "10.96.0.10:53".parse().unwrap();
    assert_eq!(reaches(&web, server).await, Err(SocketError::Denied));
    let dns = json!({"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}}});
    let ports = json!([{"port": 53, "protocol": "UDP"}, {"port": 53}]);
    let spec = json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": [dns], "ports": ports}]});
    cluster.apply("dns", spec).await;
    assert!(web.resolve("hello").await.is_ok());
    assert_eq!(reaches(&web, server).await, Ok(()));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn clients_outside_are_judged_by_their_address() {
    let cluster = Cluster::new().await;
    let db = cluster.pod("shop", "db");
    echo(&db, 5432);
    cluster.apply("only-web", only_from("web")).await;
    let connect = async |from: &str| {
        let fabric = &cluster.network.fabric;
        let caller = fabric.rim_from(from.parse().unwrap());
        fabric.connect(&caller, at(&db, 5432)).await.map(drop)
    };
    assert_eq!(connect("192.0.2.7:4000").await, Err(SocketError::Denied));
    assert_eq!(
        connect("127.0.0.1:4000").await,
        Ok(()),
        "a program of this very machine"
    );
    let block = json!({"podSelector": {}, "ingress": [{"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.128/25"]}}]}]});
    cluster.apply("office", block).await;
    assert_eq!(connect("192.0.2.7:4000").await, Ok(()));
    assert_eq!(connect("192.0.2.200:4000").await, Err(SocketError::Denied));
    // A program of this machine that goes by one of its addresses is a client like others: so are pods that go out and in.
    assert_eq!(connect("198.51.100.1:4000").await, Err(SocketError::Denied));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_service_is_judged_by_the_pod_it_leads_to() {
    let cluster = Cluster::new().await;
    let (web, api, db) = (
        cluster.pod("shop", "web"),
        cluster.pod("shop", "api"),
        cluster.pod("shop", "db"),
    );
    echo(&db, 5432);
    let metadata = json!({"name": "db", "namespace": "shop", "resourceVersion": "1", "labels": {"kubernetes.io/service-name": "db"}});
    cluster.api.put(
        SERVICES,
        json!({"metadata": metadata, "spec": {"clusterIP": "10.96.0.9", "ports": [{"port": 1}]}}),
    );
    cluster.api.put(
        SLICES,
        json!({"metadata": metadata, "addressType": "IPv4", "ports": [{"port": 5432}],
        "endpoints": [{"addresses": [db.address().to_string()]}]}),
    );
    cluster.apply("only-web", json!({"podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]})).await;
    let vip: SocketAddr = "10.96.0.9:1".parse().unwrap();
    let wait = async {
        while reaches(&web, vip).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
    assert_eq!(reaches(&api, vip).await, Err(SocketError::Denied));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_socket_of_the_machine_reaches_no_guest_it_may_not() {
    // The rim's own pooled client must not lend its identity, the node's, to clients outside.
    let cluster = Cluster::new().await;
    let db = cluster.pod("shop", "db");
    echo(&db, 9090);
    cluster.apply("deny", json!({"podSelector": {}})).await;
    let fabric = &cluster.network.fabric;
    let call = crate::network::http::Call {
        fabric,
        caller: fabric.rim_from("192.0.2.7:4000".parse().unwrap()),
    };
    let address = at(&db, 9090);
    let answer = call
        .address(address, false, "db", get(&format!("http://{address}/")))
        .await;
    assert!(matches!(answer, Err(HttpError::Forbidden(_))), "{answer:?}");
    drop(TcpStream::connect("127.0.0.1:1").await);
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_policy_for_the_ingress_controller_admits_ingress_and_nobody_else() {
    let cluster = Cluster::new().await;
    let db = cluster.pod("shop", "db");
    let guest = Guest(|_| async { Ok(Response::new(serve::full("rows"))) });
    let _serving = db.serve_http(Ports::All, Arc::new(guest)).unwrap();
    let fabric = &cluster.network.fabric;
    let from: SocketAddr = "192.0.2.7:4000".parse().unwrap();
    let address = at(&db, 80);
    let asks = async |caller| {
        let call = crate::network::http::Call { fabric, caller };
        let request = get(&format!("http://{address}/"));
        call.address(address, false, "db", request).await.is_ok()
    };
    let both = async || {
        (
            asks(fabric.ingress_from(from)).await,
            asks(fabric.rim_from(from)).await,
        )
    };
    assert_eq!(both().await, (true, true), "without policies");
    cluster.apply("deny", json!({"podSelector": {}})).await;
    assert_eq!(both().await, (false, false));
    let admitting = |from: Value| json!({"podSelector": {}, "ingress": [{"from": [from]}]});
    let namespace = |name: &str| json!({"matchLabels": {"kubernetes.io/metadata.name": name}});
    let controller = json!({"matchLabels": {"app.kubernetes.io/name": "ingress-nginx"}});
    for (from, admits) in [
        (
            json!({"namespaceSelector": namespace("ingress-nginx")}),
            true,
        ),
        (
            json!({"namespaceSelector": namespace("ingress-nginx"), "podSelector": controller}),
            true,
        ),
        (
            json!({"namespaceSelector": {}, "podSelector": controller}),
            true,
        ),
        (
            json!({"namespaceSelector": namespace("kube-system")}),
            false,
        ),
        (json!({"podSelector": controller}), false),
        (json!({"podSelector": {}}), false),
    ] {
        cluster.apply("ingress", admitting(from.clone())).await;
        assert_eq!(both().await, (admits, false), "{from}");
        cluster.remove("ingress").await;
    }
    let block = json!({"ipBlock": {"cidr": "192.0.2.0/24"}});
    cluster.apply("ingress", admitting(block)).await;
    assert_eq!(
        both().await,
        (true, true),
        "by its client's address as well"
    );
    cluster.network.shutdown(Duration::ZERO).await;
}

//! HTTP between pods of two nodes: the same as on one, and what is sent elsewhere when nobody saw it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::json;
use tokio::time::Instant;

use super::{Cluster, Host, eventually};
use crate::network::http::Call;
use crate::network::tests::{Guest, ask, get, pod, post, sliced, text, web};
use crate::network::{
    Body, Hops, HttpError, HttpHandler, Network, PodIdentity, PodNetwork, Ports, Serving, serve,
};

/// A pod of `host` that answers with what `answer` says.
fn guest<F, R>(host: &Host, name: &str, answer: F) -> (Arc<PodNetwork>, Serving)
where
    F: Fn(Request<Body>) -> R + Send + Sync + 'static,
    R: Future<Output = Result<Response<Body>, HttpError>> + Send + 'static,
{
    let pod = pod(&host.network, name);
    let handler: Arc<dyn HttpHandler> = Arc::new(Guest(answer));
    let serving = pod.serve_http(Ports::All, handler).unwrap();
    (pod, serving)
}

fn uri(pod: &PodNetwork, path: &str) -> String {
    format!("http://{}:8080{path}", pod.address())
}

/// Tells `network` of the Service `hello` (10.96.0.7:80 → 8080) with pods on these hosts.
fn hello(network: &Network, pods: &[(&Host, &PodNetwork)]) {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|(host, pod)| json!({"addresses": [pod.address()], "nodeName": host.name}))
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "IPv4",
        "metadata": {"name": "hello", "namespace": "shop", "labels": {"kubernetes.io/service-name": "hello"}},
        "ports": [{"port": 8080}], "endpoints": endpoints}))
    .unwrap();
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    sliced(network, ("shop", "hello"), spec, &slice);
}

#[tokio::test]
async fn a_handler_on_another_node_is_called() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let (server, _serving) = web(&cluster.hosts[1].network, "server");
    let address = format!("{}:8080", server.address());
    assert_eq!(
        ask(&client, &uri(&server, "/a")).await.unwrap(),
        format!("server {address} /a")
    );
    let answer = client
        .http(post(&uri(&server, "/b"), "body"))
        .await
        .unwrap();
    let answer = text(answer).await;
    assert_eq!(answer, format!("server {address} /b body"));
    // Whoever answers counts it, and knows who asked and how.
    let flows = cluster.hosts[1].network.flows();
    let flow = &flows[0];
    assert_eq!(
        (&*flow.source, &*flow.destination),
        ("shop/client", "shop/server")
    );
    assert_eq!((flow.requests, flow.security.as_str()), (2, "mutual_tls"));
    let answered = answer.len() + format!("server {address} /a").len();
    assert_eq!(
        (flow.bytes_sent, flow.bytes_received),
        (4, answered as u64),
        "what really passed"
    );
    assert!(cluster.hosts[0].network.flows().is_empty());
}

#[tokio::test]
async fn headers_hops_and_failures_travel_and_ours_do_not() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let (server, _serving) = guest(
        &cluster.hosts[1],
        "server",
        |request: Request<Body>| async move {
            let headers = request.headers();
            assert!(
                headers
                    .keys()
                    .all(|name| !name.as_str().starts_with("coracle-")),
                "{headers:?}"
            );
            assert_eq!(headers["traceparent"], "00-1-2-03");
            assert_eq!(request.extensions().get::<Hops>().unwrap().0, 4);
            match request.uri().path() {
                "/fails" => Err(HttpError::Guest("it trapped".to_owned())),
                "/loops" => Err(HttpError::Loop("32 calls".to_owned())),
                _ => {
                    let mut answer = Response::new(serve::full("teapot"));
                    *answer.status_mut() = StatusCode::IM_A_TEAPOT;
                    let headers = answer.headers_mut();
                    headers.insert("x-answer", HeaderValue::from_static("1"));
                    headers.insert("connection", HeaderValue::from_static("close"));
                    headers.insert("coracle-refused", HeaderValue::from_static("refused"));
                    Ok(answer)
                }
            }
        },
    );
    let request = |path| {
        let mut request = get(&uri(&server, path));
        request.extensions_mut().insert(Hops(3));
        let headers = request.headers_mut();
        headers.insert("traceparent", HeaderValue::from_static("00-1-2-03"));
        headers.insert("coracle-identity", HeaderValue::from_static("a/b/c/d"));
        request
    };
    let answer = client.http(request("/")).await.unwrap();
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    // And the length, which was known over there.
    assert_eq!(answer.headers().len(), 2, "{:?}", answer.headers());
    assert_eq!(answer.headers()["content-length"], "6");
    assert_eq!(text(answer).await, "teapot");
    let failed = client.http(request("/fails")).await.unwrap_err();
    assert!(
        matches!(&failed, HttpError::Guest(text) if text == "it trapped"),
        "{failed}"
    );
    let failed = client.http(request("/loops")).await.unwrap_err();
    assert!(matches!(failed, HttpError::Loop(_)), "{failed}");
}

#[tokio::test]
async fn bodies_stream_both_ways_with_trailers() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let (server, _serving) = guest(
        &cluster.hosts[1],
        "echo",
        |request: Request<Body>| async move { Ok(Response::new(request.into_body())) },
    );
    const CHUNKS: usize = 200;
    let chunks = futures::stream::iter(0..CHUNKS).map(|n| {
        // Slow at first, so that the answer begins before the request has ended.
        Ok(Frame::data(Bytes::from(vec![n as u8; 10_000])))
    });
    let trailers = futures::stream::once(async {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("42"));
        Ok(Frame::trailers(trailers))
    });
    let body = StreamBody::new(chunks.chain(trailers)).boxed_unsync();
    let request = Request::post(uri(&server, "/")).body(body).unwrap();
    let answer = client.http(request).await.unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "42");
    let bytes = collected.to_bytes();
    assert_eq!(bytes.len(), CHUNKS * 10_000);
    assert!((0..CHUNKS).all(|n| bytes[n * 10_000..][..10_000].iter().all(|b| *b == n as u8)));
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_the_call() {
    struct Gone(Arc<AtomicUsize>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let gone = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&gone);
    let (server, _serving) = guest(
        &cluster.hosts[1],
        "server",
        move |request: Request<Body>| {
            let guard = Gone(Arc::clone(&counted));
            async move {
                if request.uri().path() == "/never" {
                    std::future::pending::<()>().await;
                }
                // An answer without end, as of a server that sends events.
                let events = futures::stream::unfold(guard, |guard| async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    Some((Ok(Frame::data(Bytes::from_static(b"event"))), guard))
                });
                Ok(Response::new(StreamBody::new(events).boxed_unsync()))
            }
        },
    );
    let never = client.http(get(&uri(&server, "/never")));
    assert!(
        tokio::time::timeout(Duration::from_millis(200), never)
            .await
            .is_err()
    );
    eventually(Duration::from_secs(1), "the handler was dropped", || {
        gone.load(Ordering::SeqCst) == 1
    })
    .await;
    let mut events = client
        .http(get(&uri(&server, "/events")))
        .await
        .unwrap()
        .into_body();
    events.frame().await.unwrap().unwrap();
    drop(events);
    eventually(Duration::from_secs(1), "the body was dropped", || {
        gone.load(Ordering::SeqCst) == 2
    })
    .await;
}

#[tokio::test]
async fn a_pod_that_listens_on_a_socket_is_asked_and_sees_who_asks() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let server = pod(&cluster.hosts[1].network, "server");
    let mut listener = server.listen(8080, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let peer = stream.peer.ip();
            let service = service_fn(move |request: Request<hyper::body::Incoming>| async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let body = String::from_utf8_lossy(&body).into_owned();
                Ok::<_, std::convert::Infallible>(Response::new(format!("{peer} {path} {body}")))
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream.into_io());
                drop(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(io, service)
                        .await,
                );
            });
        }
    });
    for _ in 0..2 {
        let answer = client
            .http(post(&uri(&server, "/x"), "body"))
            .await
            .unwrap();
        assert_eq!(text(answer).await, format!("{} /x body", client.address()));
    }
}

#[tokio::test]
async fn a_request_nobody_saw_goes_to_another_node_with_its_body() {
    let cluster = Cluster::of(3);
    let [first, second, third] = &cluster.hosts[..] else {
        panic!()
    };
    let client = pod(&first.network, "client");
    // The second host's pod listens to nothing: it has just ended.
    let ended = pod(&second.network, "ended");
    let (server, _serving) = web(&third.network, "server");
    hello(&first.network, &[(second, &ended), (third, &server)]);
    for n in 0..30 {
        let request = post("http://hello/x", "a body that must not be lost");
        let answer = client.http(request).await.unwrap();
        let answer = text(answer).await;
        assert_eq!(
            answer, "server hello /x a body that must not be lost",
            "request {n}"
        );
    }
    // A large one, of which the other end has seen nothing either.
    let large: Vec<u8> = vec![b'x'; 300_000];
    for _ in 0..4 {
        ended_is_picked_again(first);
        let chunks = futures::stream::iter(
            large
                .chunks(30_000)
                .map(Bytes::copy_from_slice)
                .collect::<Vec<_>>(),
        );
        let body = StreamBody::new(chunks.map(|c| Ok(Frame::data(c)))).boxed_unsync();
        let answer = client
            .http(Request::post("http://hello/x").body(body).unwrap())
            .await
            .unwrap();
        assert_eq!(
            text(answer).await.len(),
            "server hello /x ".len() + large.len()
        );
    }
}

/// Ejections are over.
fn ended_is_picked_again(host: &Host) {
    let table = host.network.fabric.services.borrow().clone();
    let service = table.get("shop", "hello").unwrap();
    let port = service
        .port(80, crate::network::table::Protocol::Tcp)
        .unwrap();
    port.endpoints
        .iter()
        .for_each(|endpoint| endpoint.load.succeeded());
}

#[tokio::test]
async fn requests_spread_over_the_nodes_and_leave_one_that_is_killed() {
    let mut cluster = Cluster::of(3);
    let served = [0, 1, 2].map(|n| web(&cluster.hosts[n].network, &format!("web-{n}")));
    let client = pod(&cluster.hosts[0].network, "client");
    let pods: Vec<_> = cluster
        .hosts
        .iter()
        .zip(&served)
        .map(|(h, (p, _))| (h, &**p))
        .collect();
    hello(&cluster.hosts[0].network, &pods[1..]);
    let mut counts = [0; 3];
    for _ in 0..60 {
        let answer = ask(&client, "http://hello/").await.unwrap();
        counts[usize::from(answer.as_bytes()[4] - b'0')] += 1;
    }
    assert!(counts[1] > 10 && counts[2] > 10, "{counts:?}");

    // Killed: its sockets close, nobody says goodbye.
    let killed = cluster.hosts.pop().unwrap();
    killed.network.fabric.draining.cancel();
    killed.network.fabric.stop.cancel();
    let died = Instant::now();
    let mut failed = 0;
    let mut last = None;
    while died.elapsed() < Duration::from_secs(2) {
        match ask(&client, "http://hello/").await {
            Ok(answer) => {
                assert!(answer.starts_with("web-1") || died.elapsed() < Duration::from_millis(500))
            }
            Err(_) => {
                failed += 1;
                last = Some(died.elapsed());
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(failed <= 2, "{failed} failed, the last {last:?} after");
    assert!(!cluster.hosts[0].sees(&killed));
}

#[tokio::test]
async fn an_identity_comes_with_the_request() {
    let cluster = Cluster::of(2);
    let [first, second] = &cluster.hosts[..] else {
        panic!()
    };
    let identity = PodIdentity {
        namespace: "shop".to_owned(),
        name: "web-1".to_owned(),
        workload: "web".to_owned(),
        service_account: "cart".to_owned(),
        ..PodIdentity::default()
    };
    let client = first.network.attach_pod(identity).unwrap();
    let caller = client.caller();
    let mut headers = HeaderMap::new();
    super::super::words::identify(&mut headers, caller.identity);
    let from = HeaderValue::try_from(caller.from.to_string()).unwrap();
    headers.insert(super::super::words::FROM, from);
    let incoming = super::super::incoming::Incoming::new(
        Arc::clone(&second.network.fabric),
        Arc::clone(second.tunnel()),
        &first.name,
    );
    let (source, port) = incoming.source(&headers).unwrap();
    assert_eq!(SocketAddr::from((source.address, port)), caller.from);
    let known = source.identity.as_ref().unwrap();
    assert_eq!(
        known.spiffe().to_string(),
        "spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(source.workload.name(), "shop/web");

    // Ingress shows itself as what policies name, and counts as the outside it answers for.
    let client = "192.0.2.7:4000".parse().unwrap();
    let caller = first.network.fabric.ingress_from(client);
    super::super::words::identify(&mut headers, caller.identity);
    let from = super::super::outgoing::source(&first.network.fabric, &caller);
    let from = HeaderValue::try_from(from.to_string()).unwrap();
    headers.insert(super::super::words::FROM, from);
    let (source, _) = incoming.source(&headers).unwrap();
    assert!(source.identity.as_ref().unwrap().is_ingress());
    assert_eq!(source.workload.name(), "outside");
}

#[tokio::test]
async fn a_call_that_dies_with_its_node_is_told_by_the_caller() {
    let cluster = Cluster::of(2);
    let [first, second] = &cluster.hosts[..] else {
        panic!()
    };
    let client = pod(&first.network, "client");
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let (hangs, _serving) = guest(second, "hangs", move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        std::future::pending()
    });
    hello(&first.network, &[(second, &hangs)]);
    let call = tokio::spawn({
        let client = Arc::clone(&client);
        async move { client.http(post("http://hello/", "x")).await }
    });
    eventually(Duration::from_secs(10), "it is asked", || {
        asked.load(Ordering::Relaxed) > 0
    })
    .await;
    second.network.fabric.draining.cancel();
    second.network.fabric.stop.cancel();
    let error = call.await.unwrap().unwrap_err();
    assert!(matches!(error, HttpError::Broken(_)), "{error}");
    let flow = first.network.flows().remove(0);
    assert_eq!(flow.destination, "shop/hello");
    assert_eq!((flow.requests, flow.errors), (1, 1));
}

#[tokio::test]
async fn a_busy_pod_of_another_node_is_not_taken_for_a_dead_one() {
    let cluster = Cluster::of(2);
    let [first, second] = &cluster.hosts[..] else {
        panic!()
    };
    let client = pod(&first.network, "client");
    let (busy, _serving) = guest(second, "busy", |request| async move {
        Err(HttpError::Returned {
            reason: "it has too much to do".to_owned(),
            busy: true,
            request: crate::network::ReturnedRequest::new(request),
        })
    });
    hello(&first.network, &[(second, &busy)]);
    let begun = Instant::now();
    let error = ask(&client, "http://hello/").await.unwrap_err();
    assert!(matches!(error, HttpError::NotReached(_)), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(1), "it did not wait");
    let table = first.network.fabric.services.borrow().clone();
    let service = table.get("shop", "hello").unwrap();
    let port = service.port(80, crate::network::table::Protocol::Tcp);
    let endpoint = &port.unwrap().endpoints[0];
    assert!(!endpoint.load.is_ejected(first.network.fabric.now()));
}

#[tokio::test]
async fn a_node_says_what_its_pods_are() {
    let cluster = Cluster::of(2);
    let [first, second] = &cluster.hosts[..] else {
        panic!()
    };
    let (web, _serving) = web(&second.network, "web");
    let socket = pod(&second.network, "socket");
    let _listener = socket.listen(8080, 8).unwrap();
    let fabric = &first.network.fabric;
    let peer = fabric.peer(web.address()).unwrap();
    for _ in 0..2 {
        for (pod, port, http) in [
            (&web, 8080, true),
            (&socket, 8080, false),
            (&socket, 9, false),
        ] {
            let endpoint = SocketAddr::from((pod.address(), port));
            assert_eq!(
                crate::network::tunnel::speaks_http(fabric, &peer, endpoint).await,
                http
            );
        }
    }
}

/// Tells `network` of a headless Service `db` of namespace `shop` with pods on these hosts.
fn headless(network: &Network, pods: &[(&Host, &PodNetwork)]) {
    let endpoints: Vec<_> = pods
        .iter()
        .map(|(host, pod)| json!({"addresses": [pod.address()], "nodeName": host.name}))
        .collect();
    let slice: EndpointSlice = serde_json::from_value(json!({"addressType": "IPv4",
        "metadata": {"name": "db", "namespace": "shop", "labels": {"kubernetes.io/service-name": "db"}},
        "ports": [{"port": 8080}], "endpoints": endpoints}))
    .unwrap();
    let spec = json!({"clusterIP": "None", "ports": [{"port": 8080}]});
    sliced(network, ("shop", "db"), spec, &slice);
}

#[tokio::test]
async fn a_headless_name_leads_past_pods_that_nobody_reaches() {
    let cluster = Cluster::of(3);
    let client = pod(&cluster.hosts[0].network, "client");
    let (one, serving) = web(&cluster.hosts[1].network, "one");
    let (two, _serving) = web(&cluster.hosts[2].network, "two");
    let behind = [(&cluster.hosts[1], &*one), (&cluster.hosts[2], &*two)];
    headless(&cluster.hosts[0].network, &behind);
    let asked = || async {
        for _ in 0..10 {
            let answer = ask(&client, "http://db:8080/").await.unwrap();
            assert!(answer.starts_with("two "), "{answer}");
        }
    };
    // Nobody listens there any more, but the node answers.
    drop(serving);
    asked().await;
    // The node itself is gone, and is known to be.
    cluster.hosts[1].network.shutdown(Duration::ZERO).await;
    asked().await;
}

#[tokio::test]
async fn nobody_gets_to_say_the_tunnels_own_word() {
    let cluster = Cluster::of(2);
    let client = pod(&cluster.hosts[0].network, "client");
    let (server, _serving) = web(&cluster.hosts[1].network, "server");
    let to = SocketAddr::from((server.address(), 8080));
    let connect = |authority: &str| {
        let request = Request::connect(authority);
        request.body(serve::empty()).unwrap()
    };
    let answer = client.http(connect(&to.to_string())).await;
    assert!(matches!(answer, Err(HttpError::Invalid(_))), "{answer:?}");
    // Whoever lets one pass: the tunnel does not.
    let fabric = &cluster.hosts[0].network.fabric;
    for authority in ["datagrams:1", "kind:1", &to.to_string()] {
        let call = Call {
            fabric,
            caller: fabric.rim_from("192.0.2.7:4000".parse().unwrap()),
        };
        let answer = call.address(to, false, "server", connect(authority)).await;
        assert!(matches!(answer, Err(HttpError::Invalid(_))), "{answer:?}");
    }
}

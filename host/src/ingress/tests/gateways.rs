//! Gateways and HTTPRoutes on real sockets: filters, weights, mirrors.

use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use http_body_util::BodyExt;

use super::*;
use crate::network::{Body, Ports, full_body};
use guests::Guest;

impl Rig {
    /// One Gateway in `shop` with an HTTP listener, and a route with these rules.
    fn route(&mut self, port: u16, rules: Value) {
        self.world.gateways = vec![object(json!({
            "metadata": {"name": "edge", "namespace": "shop"},
            "spec": {"gatewayClassName": "coracle", "listeners": [{"name": "web", "port": port, "protocol": "HTTP"}]},
        }))];
        self.world.routes = vec![object(json!({
            "metadata": {"name": "r", "namespace": "shop"},
            "spec": {"parentRefs": [{"name": "edge"}], "rules": rules},
        }))];
    }
}

fn at(path: &str) -> Value {
    json!([{"path": {"type": "PathPrefix", "value": path}}])
}

fn to(service: &str) -> Value {
    json!([{"name": service, "port": 80}])
}

#[tokio::test]
async fn filters_change_requests_and_answers() {
    let mut rig = Rig::new();
    let pod = guests::pod(&rig.network, "web");
    let guest = Guest(|request: Request<Body>| async move {
        let header = |name: &str| {
            let value = request.headers().get(name);
            value.map_or("-".to_owned(), |v| v.to_str().unwrap().to_owned())
        };
        let text = format!(
            "{} {} {} {}",
            request.uri(),
            header("host"),
            header("x-a"),
            header("x-b")
        );
        let mut response = Response::new(full_body(text));
        response.headers_mut().insert("x-old", "1".parse().unwrap());
        Ok(response)
    });
    let _serving = pod.serve_http(Ports::All, Arc::new(guest)).unwrap();
    rig.service("web", &[&pod]);
    rig.route(80, json!([
        {"matches": at("/rewrite"), "backendRefs": to("web"), "filters": [
            {"type": "URLRewrite", "urlRewrite": {"hostname": "inner", "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}},
            {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "X-A", "value": "set"}], "remove": ["x-b"]}},
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"add": [{"name": "X-New", "value": "2"}], "remove": ["X-Old"]}}]},
        {"matches": at("/away"), "filters": [{"type": "RequestRedirect", "requestRedirect":
            {"scheme": "https", "hostname": "new.test", "statusCode": 301, "path": {"type": "ReplaceFullPath", "replaceFullPath": "/there"}}}]},
        {"matches": at("/port"), "filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 8443}}]},
        {"matches": at("/none")},
        {"matches": at("/missing"), "backendRefs": to("missing")},
        // An Ingress may lead to another name, a route may not.
        {"matches": at("/name"), "backendRefs": to("name")},
    ]));
    let name = json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local",
        "ports": [{"port": 80}]});
    guests::publish(&rig.network, "name", name, json!([]), &[]);
    let address = rig.http().await;
    let request = "GET /rewrite/x?q HTTP/1.1\r\nHost: g.test\r\nX-A: sent\r\nX-B: sent\r\nConnection: close\r\n\r\n";
    let answer = curl(address, request).await;
    assert_eq!(body(&answer), "/new/x?q inner set -");
    assert!(
        answer.contains("x-new: 2") && !answer.contains("x-old"),
        "{answer}"
    );
    let answer = curl(address, &get("g.test", "/away/x?q")).await;
    assert_eq!(status(&answer), "301");
    assert!(
        answer.contains("location: https://new.test/there?q\r\n"),
        "{answer}"
    );
    let answer = curl(address, &get("g.test", "/port/x")).await;
    assert!(
        answer.contains("location: http://g.test:8443/port/x\r\n"),
        "{answer}"
    );
    for path in ["/none", "/missing", "/name"] {
        assert_eq!(
            status(&curl(address, &get("g.test", path)).await),
            "500",
            "{path}"
        );
    }
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn weights_share_requests_and_zero_is_nothing() {
    let mut rig = Rig::new();
    let (one, _a) = guests::web(&rig.network, "one");
    let (two, _b) = guests::web(&rig.network, "two");
    rig.service("one", &[&one]);
    rig.service("two", &[&two]);
    let backend = |name: &str, weight: u32| json!({"name": name, "port": 80, "weight": weight});
    rig.route(
        80,
        json!([
            {"matches": at("/never"), "backendRefs": [backend("one", 0), backend("two", 5)]},
            {"matches": at("/mix"), "backendRefs": [backend("one", 1), backend("two", 3)]},
            {"matches": at("/zero"), "backendRefs": [backend("one", 0)]},
        ]),
    );
    let address = rig.http().await;
    let mut ones = 0;
    for _ in 0..60 {
        let answer = curl(address, &get("g", "/mix")).await;
        ones += usize::from(body(&answer).starts_with("one"));
        let answer = curl(address, &get("g", "/never")).await;
        assert!(body(&answer).starts_with("two"));
    }
    // A quarter of 60; outside of this once in a hundred million runs.
    assert!((1..40).contains(&ones), "{ones}");
    assert_eq!(status(&curl(address, &get("g", "/zero")).await), "500");
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_mirror_gets_a_copy_and_its_answer_nobody() {
    let mut rig = Rig::new();
    let (web, _web) = guests::web(&rig.network, "web");
    let shadow = guests::pod(&rig.network, "shadow");
    let (seen, mut told) = tokio::sync::mpsc::channel(4);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let guest = Guest(move |request: Request<Body>| {
        let (seen, counted) = (seen.clone(), Arc::clone(&counted));
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
            let path = request.uri().path().to_owned();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            seen.send((path, body)).await.unwrap();
            Ok(Response::new(full_body("shadow")))
        }
    });
    let _shadow = shadow.serve_http(Ports::All, Arc::new(guest)).unwrap();
    rig.service("web", &[&web]);
    let spec = json!({"clusterIP": "10.96.0.8", "ports": [{"name": "http", "port": 80}]});
    guests::publish(
        &rig.network,
        "shadow",
        spec,
        json!([{"name": "http", "port": 8080}]),
        &[&shadow],
    );
    let mirror = json!({"backendRef": {"name": "shadow", "port": 80}});
    rig.route(80, json!([{"backendRefs": to("web"), "filters": [{"type": "RequestMirror", "requestMirror": mirror}]}]));
    let address = rig.http().await;
    let request =
        "POST /m HTTP/1.1\r\nHost: g\r\nContent-Length: 4\r\nConnection: close\r\n\r\ncopy";
    assert_eq!(body(&curl(address, request).await), "web g /m copy");
    let (path, copy) = tokio::time::timeout(DEADLINE, told.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!((path.as_str(), &copy[..]), ("/m", &b"copy"[..]));
    assert_eq!(count.load(Ordering::Relaxed), 1);
    // When too many copies are under way there is none, and the request goes its way.
    let others = Arc::clone(&rig.shared.mirrors).acquire_owned();
    let _others = tokio::time::timeout(DEADLINE, others).await.unwrap();
    assert_eq!(body(&curl(address, request).await), "web g /m copy");
    assert_eq!(count.load(Ordering::Relaxed), 1);
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_gateway_opens_ports_of_its_own_and_bounds_a_whole_exchange() {
    let mut rig = Rig::new();
    let slow = guests::pod(&rig.network, "slow");
    let never =
        Guest(|_| std::future::pending::<Result<Response<Body>, crate::network::HttpError>>());
    let _serving = slow.serve_http(Ports::All, Arc::new(never)).unwrap();
    rig.service("slow", &[&slow]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    rig.route(
        port,
        json!([{"backendRefs": to("slow"), "timeouts": {"request": "50ms"}}]),
    );
    let address = rig.at(port).await;
    let answer = curl(address, &get("g", "/")).await;
    assert_eq!(status(&answer), "504");
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_route_that_says_how_long_it_may_take_is_not_cut_off_by_the_nodes_default() {
    let mut rig = Rig::limits(|limits| limits.read = Duration::from_millis(50));
    let late = guests::pod(&rig.network, "late");
    let guest = Guest(|_| async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (pieces, rest) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            drop(pieces.send(bytes::Bytes::from_static(b"late")).await);
        });
        let rest = futures::stream::unfold(rest, |mut rest| async {
            let piece = rest.recv().await?;
            Some((Ok(http_body::Frame::data(piece)), rest))
        });
        let body = http_body_util::StreamBody::new(rest);
        Ok(Response::new(body.boxed_unsync()))
    });
    let _serving = late.serve_http(Ports::All, Arc::new(guest)).unwrap();
    rig.service("late", &[&late]);
    let within = |path: &str, timeouts: Value| json!({"matches": at(path), "backendRefs": to("late"), "timeouts": timeouts});
    rig.route(
        80,
        json!([
            within("/long", json!({"request": "5s"})),
            within("/never", json!({"request": "0s"})),
            within("/backend", json!({"backendRequest": "5s"})),
            within(
                "/short",
                json!({"request": "0s", "backendRequest": "100ms"})
            ),
            within("/default", json!({})),
        ]),
    );
    let address = rig.http().await;
    for path in ["/long", "/never", "/backend"] {
        let answer = curl(address, &get("g", path)).await;
        assert_eq!(status(&answer), "200", "{path}");
        assert!(answer.contains("late"), "{path}: {answer}");
    }
    for path in ["/short", "/default"] {
        let answer = curl(address, &get("g", path)).await;
        assert_eq!(status(&answer), "504", "{path}");
    }
    rig.network.shutdown(Duration::ZERO).await;
}

//! What happens to a request: routing, headers, limits, failures.

use http::{Request, Response};
use http_body_util::BodyExt;

use super::*;
use crate::network::{Body, HttpError, Ports, Serving, full_body};
use guests::Guest;

/// A pod that answers with the head of the request it got.
fn mirror(rig: &Rig) -> (Arc<PodNetwork>, Serving) {
    let pod = guests::pod(&rig.network, "mirror");
    let guest = Guest(|request: Request<Body>| async move {
        let mut text = format!("{} {}\n", request.method(), request.uri());
        for (name, value) in request.headers() {
            text.push_str(&format!("{name}: {}\n", value.to_str().unwrap()));
        }
        let mut response = Response::new(full_body(text));
        let headers = response.headers_mut();
        headers.insert("connection", "x-private".parse().unwrap());
        headers.insert("x-private", "1".parse().unwrap());
        Ok(response)
    });
    let serving = pod.serve_http(Ports::All, Arc::new(guest)).unwrap();
    (pod, serving)
}

/// A pod that answers with the body it got, and fails when that is not whole.
fn echo(rig: &Rig) -> (Arc<PodNetwork>, Serving) {
    let pod = guests::pod(&rig.network, "echo");
    let guest = Guest(|request: Request<Body>| async move {
        match request.into_body().collect().await {
            Ok(body) => Ok(Response::new(full_body(body.to_bytes()))),
            Err(error) => Err(HttpError::Guest(error.to_string())),
        }
    });
    let serving = pod.serve_http(Ports::All, Arc::new(guest)).unwrap();
    (pod, serving)
}

#[tokio::test]
async fn requests_go_by_host_and_path_and_failures_have_codes() {
    let mut rig = Rig::new();
    let (one, _a) = guests::web(&rig.network, "one");
    let (two, _b) = guests::web(&rig.network, "two");
    rig.service("one", &[&one]);
    rig.service("two", &[&two]);
    rig.service("empty", &[]);
    rig.ingress("one.test", "one", json!({}));
    rig.ingress("*.two.test", "two", json!({}));
    rig.ingress("empty.test", "empty", json!({}));
    rig.ingress("gone.test", "gone", json!({}));
    let at = rig.http().await;
    assert_eq!(
        body(&curl(at, &get("ONE.test:8080", "/x")).await),
        "one ONE.test:8080 /x"
    );
    assert!(
        curl(at, &get("a.two.test", "/"))
            .await
            .ends_with("two a.two.test /")
    );
    for (request, expected) in [
        (get("other.test", "/"), "404"),
        (get("empty.test", "/"), "503"),
        (get("gone.test", "/"), "503"),
        (
            "GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "TRACE / HTTP/1.1\r\nHost: one.test\r\nConnection: close\r\n\r\n".to_owned(),
            "405",
        ),
    ] {
        assert_eq!(status(&curl(at, &request).await), expected, "{request}");
    }
    // The request line counts before the Host header.
    let absolute = "GET http://one.test/y HTTP/1.1\r\nHost: two\r\nConnection: close\r\n\r\n";
    assert_eq!(body(&curl(at, absolute).await), "one one.test /y");
    let head = curl(at, &get("one.test", "/x").replace("GET", "HEAD")).await;
    assert_eq!((status(&head), body(&head)), ("200", ""));
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn backends_learn_of_the_client_and_hop_by_hop_headers_stay_behind() {
    let mut rig = Rig::new();
    let (pod, _serving) = mirror(&rig);
    rig.service("mirror", &[&pod]);
    rig.ingress("m.test", "mirror", json!({"upstream-vhost": "inner"}));
    let at = rig.http().await;
    let request = "GET /a?b=c HTTP/1.1\r\nHost: m.test:81\r\nX-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\n\
        Keep-Alive: 5\r\nX-Secret: 1\r\nConnection: close, x-secret\r\n\r\n";
    let answer = curl(at, request).await;
    let text = body(&answer);
    assert!(text.starts_with("GET /a?b=c\n"), "{answer}");
    for line in [
        "host: inner",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http",
        "x-forwarded-host: m.test:81",
        "x-forwarded-port: 81",
        "x-real-ip: 127.0.0.1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} in {text}");
    }
    for gone in ["forwarded: for", "keep-alive", "x-secret", "connection"] {
        assert!(!text.contains(gone), "{gone} in {text}");
    }
    assert!(!answer.contains("x-private"), "{answer}");
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn annotations_rewrite_redirect_and_guard() {
    let mut rig = Rig::new();
    let (pod, _serving) = guests::web(&rig.network, "web");
    rig.service("web", &[&pod]);
    let rewrite = json!({"rewrite-target": "/$2"});
    rig.ingress_at("r.test", "/api(/|$)(.*)", "web", rewrite, Value::Null);
    rig.ingress("root.test", "web", json!({"app-root": "/app"}));
    rig.ingress(
        "moved.test",
        "web",
        json!({"permanent-redirect": "https://new.test/"}),
    );
    rig.ingress("safe.test", "web", json!({"force-ssl-redirect": "true"}));
    rig.ingress(
        "inner.test",
        "web",
        json!({"whitelist-source-range": "10.0.0.0/8"}),
    );
    rig.ingress("auth.test", "web", json!({"auth-url": "http://who/"}));
    let at = rig.http().await;
    assert_eq!(
        body(&curl(at, &get("r.test", "/api/x/y")).await),
        "web r.test /x/y"
    );
    assert_eq!(
        body(&curl(at, &get("r.test", "/API")).await),
        "web r.test /"
    );
    for (host, code, location) in [
        ("root.test", "302", "location: /app"),
        ("moved.test", "301", "location: https://new.test/"),
        ("safe.test", "308", "location: https://safe.test/?q"),
        ("inner.test", "403", ""),
        ("auth.test", "503", ""),
    ] {
        let path = if host == "safe.test" { "/?q" } else { "/" };
        let answer = curl(at, &get(host, path)).await;
        assert_eq!(status(&answer), code, "{host}: {answer}");
        assert!(answer.contains(location), "{host}: {answer}");
    }
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_guarded_path_is_guarded_however_it_is_written() {
    let mut rig = Rig::new();
    let (pod, _serving) = mirror(&rig);
    rig.service("web", &[&pod]);
    let guard = json!({"whitelist-source-range": "10.0.0.0/8"});
    rig.ingress_at("h", "/admin", "web", guard, Value::Null);
    rig.ingress_at("h", "/", "web", json!({}), Value::Null);
    let rewrite = json!({"rewrite-target": "/$1"});
    rig.ingress_at("h", "/api/(.*)", "web", rewrite, Value::Null);
    let at = rig.http().await;
    for (path, code) in [
        ("/admin", "403"),
        ("/open/../admin", "403"),
        ("//admin", "403"),
        ("/%61dmin/x", "403"),
        ("/open%2f..%2Fadmin", "403"),
        ("/./admin?q", "403"),
        ("/../admin", "400"),
        ("/%", "400"),
        ("/a%00", "400"),
    ] {
        assert_eq!(status(&curl(at, &get("h", path)).await), code, "{path}");
    }
    // What backends see: what came, but for dot segments, which they might read otherwise than we did.
    for (path, sent) in [
        ("/a%2Fb//c%20?x=%2F", "/a%2Fb//c%20?x=%2F"),
        ("/admin/../a%2Fb?x=../y", "/a/b?x=../y"),
        ("/api/a%20b%3Fc%25/%2e%2E/d?x", "/d?x"),
        ("/api/a%20b%3Fc%2561?x", "/a%20b%3Fc%2561?x"),
    ] {
        let answer = curl(at, &get("h", path)).await;
        let line = body(&answer).lines().next();
        assert_eq!(line, Some(&*format!("GET {sent}")), "{path}: {answer}");
    }
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn large_bodies_and_heads_are_refused() {
    let mut rig = Rig::new();
    let (pod, _serving) = echo(&rig);
    rig.service("web", &[&pod]);
    rig.ingress("small.test", "web", json!({"proxy-body-size": "10"}));
    let at = rig.http().await;
    let post =
        |rest: &str| format!("POST / HTTP/1.1\r\nHost: small.test\r\nConnection: close\r\n{rest}");
    let fits = post("Content-Length: 10\r\n\r\n0123456789");
    assert!(curl(at, &fits).await.ends_with("0123456789"));
    let announced = post("Content-Length: 11\r\n\r\n01234567890");
    assert_eq!(status(&curl(at, &announced).await), "413");
    let surprising =
        post("Transfer-Encoding: chunked\r\n\r\n8\r\n01234567\r\n8\r\n01234567\r\n0\r\n\r\n");
    assert_eq!(status(&curl(at, &surprising).await), "413");
    let waits = post("Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
    let mut socket = TcpStream::connect(at).await.unwrap();
    socket.write_all(waits.as_bytes()).await.unwrap();
    let mut first = [0; 25];
    socket.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    socket.write_all(b"12345").await.unwrap();
    assert!(rest(&mut socket).await.ends_with("12345"));
    let long = format!(
        "GET / HTTP/1.1\r\nHost: small.test\r\nConnection: close\r\nX: {}\r\n\r\n",
        "x".repeat(100 << 10)
    );
    assert_eq!(status(&curl(at, &long).await), "431");
    let many: String = (0..200).map(|i| format!("X{i}: 1\r\n")).collect();
    let many = format!("GET / HTTP/1.1\r\nHost: small.test\r\n{many}\r\n");
    assert_eq!(status(&curl(at, &many).await), "431");
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_backend_that_does_not_answer_is_a_504_and_one_that_fails_a_502() {
    let mut rig = Rig::new();
    let slow = guests::pod(&rig.network, "slow");
    let never = Guest(|_| std::future::pending::<Result<Response<Body>, HttpError>>());
    let _never = slow.serve_http(Ports::All, Arc::new(never)).unwrap();
    let bad = guests::pod(&rig.network, "bad");
    let fails = Guest(|_| async { Err(HttpError::Guest("trap".to_owned())) });
    let _fails = bad.serve_http(Ports::All, Arc::new(fails)).unwrap();
    rig.service("slow", &[&slow]);
    rig.service("bad", &[&bad]);
    rig.ingress("slow.test", "slow", json!({"proxy-read-timeout": "1"}));
    rig.ingress("bad.test", "bad", json!({}));
    let at = rig.http().await;
    assert_eq!(status(&curl(at, &get("slow.test", "/")).await), "504");
    let answer = curl(at, &get("bad.test", "/")).await;
    assert_eq!(status(&answer), "502");
    assert!(
        !answer.contains("trap"),
        "the inside is nobody's business: {answer}"
    );
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn slow_clients_are_cut_off() {
    let mut rig = Rig::limits(|limits| {
        limits.header = Duration::from_millis(100);
        limits.send = Duration::from_millis(100);
        limits.idle = Duration::from_millis(100);
    });
    let (pod, _serving) = echo(&rig);
    rig.service("web", &[&pod]);
    rig.ingress("web.test", "web", json!({}));
    let at = rig.http().await;
    // Says nothing; says half a head; says a head and nothing of its body; is silent after an answer.
    assert_eq!(curl(at, "").await, "");
    assert!(
        !curl(at, "GET / HTTP/1.1\r\nHost: we")
            .await
            .starts_with("HTTP/1.1 200")
    );
    let head = "POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 5\r\n\r\n1";
    assert_eq!(status(&curl(at, head).await), "408");
    let answer = curl(at, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    rig.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn bodies_stream_both_ways_before_either_ends() {
    let mut rig = Rig::new();
    let pod = guests::pod(&rig.network, "echo");
    let echo =
        Guest(|request: Request<Body>| async move { Ok(Response::new(request.into_body())) });
    let _serving = pod.serve_http(Ports::All, Arc::new(echo)).unwrap();
    rig.service("echo", &[&pod]);
    rig.ingress("echo.test", "echo", json!({}));
    let at = rig.http().await;
    let mut socket = TcpStream::connect(at).await.unwrap();
    let head = "POST / HTTP/1.1\r\nHost: echo.test\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    let first = async {
        while !seen.ends_with(b"abc\r\n") {
            socket.read_buf(&mut seen).await.unwrap();
        }
    };
    tokio::time::timeout(DEADLINE, first).await.unwrap();
    socket.write_all(b"3\r\ndef\r\n0\r\n\r\n").await.unwrap();
    assert!(rest(&mut socket).await.contains("def"));
    rig.network.shutdown(Duration::ZERO).await;
}

/// A Service that is another name, with port 80 (`http`) standing for `target`.
fn alias(rig: &Rig, name: &str, to: &str, target: u16) {
    let spec = json!({"type": "ExternalName", "externalName": to,
        "ports": [{"name": "http", "port": 80, "targetPort": target}]});
    guests::publish(&rig.network, name, spec, json!([]), &[]);
}

#[tokio::test]
async fn a_service_that_is_a_name_leads_there_within_the_egress_policy() {
    let real = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = real.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = real.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(socket.read_u8().await.unwrap());
            }
            let head = String::from_utf8(head).unwrap().to_lowercase();
            let upgrade = head.contains("upgrade: echo");
            let (code, body) = match upgrade {
                true => (
                    "101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo",
                    "joined",
                ),
                false => ("200 OK\r\nConnection: close\r\nContent-Length: 4", "real"),
            };
            assert!(head.contains("host: out.test\r\n"), "{head}");
            let answer = format!("HTTP/1.1 {code}\r\n\r\n{body}");
            socket.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let open = |allow: &[&str]| {
        let egress = crate::network::Policy {
            allow: allow.iter().map(|net| net.parse().unwrap()).collect(),
            ..Default::default()
        };
        Network::new(crate::network::Config {
            egress,
            ..Default::default()
        })
        .unwrap()
    };
    for (allow, code) in [(&["127.0.0.0/8"][..], "200"), (&[], "403")] {
        let mut rig = Rig::on(open(allow), |_| {});
        let (one, _serving) = guests::web(&rig.network, "one");
        rig.service("one", &[&one]);
        alias(&rig, "out", "localhost", port);
        alias(&rig, "in", "one.shop.svc.cluster.local", 80);
        alias(&rig, "circle", "circle.shop.svc.cluster.local", 80);
        for name in ["out", "in", "circle"] {
            rig.ingress(&format!("{name}.test"), name, json!({}));
        }
        let at = rig.http().await;
        let answer = curl(at, &get("out.test", "/")).await;
        assert_eq!(status(&answer), code, "{answer}");
        let upgrade = "GET / HTTP/1.1\r\nHost: out.test\r\nConnection: upgrade, close\r\nUpgrade: echo\r\n\r\n";
        let answer = curl(at, upgrade).await;
        let joined = answer.starts_with("HTTP/1.1 101") && answer.ends_with("joined");
        assert_eq!(joined, code == "200", "{answer}");
        let answer = curl(at, &get("in.test", "/x")).await;
        assert_eq!(body(&answer), "one in.test /x");
        let answer = curl(at, &get("circle.test", "/")).await;
        assert_eq!(status(&answer), "502", "{answer}");
        rig.network.shutdown(Duration::ZERO).await;
    }
}

#[tokio::test]
async fn every_answer_is_counted_by_its_route_and_code() {
    let mut rig = Rig::limits(|limits| limits.read = Duration::from_millis(50));
    let (web, _serving) = guests::web(&rig.network, "web");
    rig.service("web", &[&web]);
    rig.service("empty", &[]);
    let hangs = guests::pod(&rig.network, "hangs");
    let never = Arc::new(guests::Guest(|_| std::future::pending()));
    let _hanging = hangs.serve_http(crate::network::Ports::All, never).unwrap();
    rig.service("hangs", &[&hangs]);
    for name in ["web", "empty", "hangs"] {
        rig.ingress(&format!("{name}.test"), name, json!({}));
    }
    let at = rig.http().await;
    for (name, code) in [
        ("web", "200"),
        ("empty", "503"),
        ("hangs", "504"),
        ("no", "404"),
    ] {
        let answer = curl(at, &get(&format!("{name}.test"), "/")).await;
        assert_eq!(status(&answer), code, "{name}: {answer}");
    }
    let metrics = rig.network.metrics();
    for labels in [
        r#"kind="Ingress",namespace="shop",name="i0",code="200""#,
        r#"kind="Ingress",namespace="shop",name="i1",code="503""#,
        r#"kind="Ingress",namespace="shop",name="i2",code="504""#,
        r#"kind="",namespace="",name="",code="404""#,
    ] {
        let line = format!("coracle_ingress_requests_total{{{labels}}} 1\n");
        assert!(metrics.contains(&line), "{line}in {metrics}");
    }
    let of_hangs = metrics.lines().find(|line| {
        line.starts_with("coracle_mesh_requests_total")
            && line.contains(r#"destination_workload="hangs""#)
    });
    assert!(
        of_hangs.unwrap().ends_with(r#"response_class="none"} 1"#),
        "{of_hangs:?}"
    );
    rig.network.shutdown(Duration::ZERO).await;
}

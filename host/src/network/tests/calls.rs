//! HTTP between pods: by name, by address, over sockets, with retries.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body_util::StreamBody;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::network::http::strip_hop_by_hop;
use crate::network::{Hops, HttpProbe, Limits};

#[tokio::test]
async fn a_service_is_called_by_name_by_address_and_by_pod() {
    let network = network();
    let client = pod(&network, "client");
    let (web, _serving) = web(&network, "web");
    hello(&network, &[&web]);
    for uri in [
        "http://hello/path",
        "http://hello:80/path",
        "http://hello.shop.svc.cluster.local/path",
        "http://10.96.0.7/path",
    ] {
        let host = uri.trim_start_matches("http://").trim_end_matches("/path");
        assert_eq!(
            ask(&client, uri).await.unwrap(),
            format!("web {host} /path")
        );
    }
    let by_pod = format!("http://{}:12345/", web.address());
    assert!(
        ask(&client, &by_pod).await.unwrap().starts_with("web "),
        "every port answers"
    );
    assert!(
        ask(&web, "http://localhost:8080/")
            .await
            .unwrap()
            .starts_with("web ")
    );
    assert!(
        ask(&web, "http://127.0.0.1:8080/")
            .await
            .unwrap()
            .starts_with("web ")
    );
    let mut request = post("http://hello/", "body");
    request
        .headers_mut()
        .insert("host", "shop.example".parse().unwrap());
    let answer = text(client.http(request).await.unwrap()).await;
    assert_eq!(
        answer, "web shop.example / body",
        "a Host that was set stays"
    );
}

#[tokio::test]
async fn errors_say_what_was_not_there() {
    let network = network();
    let client = pod(&network, "client");
    hello(&network, &[]);
    let failed = |uri: &'static str| {
        let client = Arc::clone(&client);
        async move { ask(&client, uri).await.unwrap_err() }
    };
    assert!(matches!(
        failed("http://hello/").await,
        HttpError::NotReached(_)
    ));
    assert!(matches!(
        failed("http://hello:81/").await,
        HttpError::Connect(_)
    ));
    assert!(matches!(
        failed("http://nobody.shop.svc.cluster.local/").await,
        HttpError::NotFound(_)
    ));
    assert!(matches!(
        failed("http://169.254.169.254/latest").await,
        HttpError::Forbidden(_)
    ));
    assert!(matches!(
        failed("http://100.64.3.3/").await,
        HttpError::Connect(_)
    ));
    assert!(matches!(
        failed("/no-authority").await,
        HttpError::Invalid(_)
    ));
}

#[tokio::test]
async fn requests_spread_over_endpoints_and_leave_those_that_stop() {
    let network = network();
    let client = pod(&network, "client");
    let (a, serving_a) = web(&network, "a");
    let (b, _serving_b) = web(&network, "b");
    hello(&network, &[&a, &b]);
    let mut heard = [0, 0];
    for _ in 0..100 {
        let answer = ask(&client, "http://hello/").await.unwrap();
        heard[usize::from(answer.starts_with('b'))] += 1;
    }
    assert!(heard[0] > 20 && heard[1] > 20, "{heard:?}");
    // The pod stops before the table knows.
    drop(serving_a);
    for _ in 0..50 {
        let answer = text(client.http(post("http://hello/", "x")).await.unwrap()).await;
        assert_eq!(
            answer, "b hello / x",
            "the body arrives at the second endpoint"
        );
    }
}

#[tokio::test]
async fn only_a_request_nobody_saw_is_sent_again() {
    let network = network();
    let client = pod(&network, "client");
    let (bad, good) = (pod(&network, "bad"), web(&network, "good"));
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&calls);
    let refusing = Guest(move |request| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move { Err(HttpError::NotReached("draining".to_owned()).returning(request)) }
    });
    let serving = bad.serve_http(Ports::All, Arc::new(refusing)).unwrap();
    hello(&network, &[&bad, &good.0]);
    for _ in 0..20 {
        assert_eq!(
            text(client.http(post("http://hello/", "x")).await.unwrap()).await,
            "good hello / x"
        );
    }
    let refused = calls.load(Ordering::Relaxed);
    assert!(
        (1..=3).contains(&refused),
        "ejected after it refused, not asked {refused} times"
    );
    drop(serving);

    let failing = Guest(|_| async { Err(HttpError::Guest("trap".to_owned())) });
    let _serving = bad.serve_http(Ports::All, Arc::new(failing)).unwrap();
    hello(&network, &[&bad]);
    let error = ask(&client, "http://hello/").await.unwrap_err();
    assert!(matches!(error, HttpError::Guest(_)), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_successor_of_a_pod_that_has_ended() {
    let network = network();
    let client = pod(&network, "client");
    let ended = pod(&network, "ended");
    let (next, _serving) = web(&network, "next");
    hello(&network, &[&ended]);
    let known_late = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        hello(&network, &[&next]);
    };
    let call = async { text(client.http(post("http://hello/", "x")).await.unwrap()).await };
    let connect = client.connect("10.96.0.7:80".parse().unwrap());
    let (answer, connected, ()) = tokio::join!(call, connect, known_late);
    assert_eq!(answer, "next hello / x");
    assert!(connected.is_ok());
    hello(&network, &[&ended]);
    let error = ask(&client, "http://hello/").await.unwrap_err();
    assert!(matches!(error, HttpError::NotReached(_)), "{error}");
}

#[tokio::test]
async fn a_call_to_a_socket_guest_goes_over_its_socket() {
    let network = network();
    let client = pod(&network, "client");
    let server = pod(&network, "server");
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let mut listener = server.listen(8080, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            counter.fetch_add(1, Ordering::Relaxed);
            let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
                let host = request.headers()["host"].to_str().unwrap().to_owned();
                Ok::<_, std::convert::Infallible>(Response::new(host))
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream.into_io()), service);
            tokio::spawn(connection);
        }
    });
    hello(&network, &[&server]);
    for _ in 0..10 {
        assert_eq!(ask(&client, "http://hello/").await.unwrap(), "hello");
    }
    assert_eq!(
        connections.load(Ordering::Relaxed),
        1,
        "the connection is kept"
    );
}

#[tokio::test]
async fn a_socket_client_finds_an_http_server_at_an_http_guest() {
    let network = network();
    let client = pod(&network, "client");
    let (web, _serving) = web(&network, "web");
    let to = (web.address(), 8080).into();
    let mut stream = client.connect(to).await.unwrap();
    let request = Bytes::from_static(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    stream.writer.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    while let Some(chunk) = stream.reader.read().await {
        answer.extend_from_slice(&chunk.unwrap());
    }
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("web h /x"), "{answer}");
}

#[tokio::test]
async fn a_pod_that_calls_itself_comes_to_an_end() {
    let network = network();
    let own = pod(&network, "own");
    let me = Arc::clone(&own);
    let guest = Guest(move |request: Request<Body>| {
        let me = Arc::clone(&me);
        async move {
            // As the runtime does: the request's hops go with the guest's own.
            let hops = *request.extensions().get::<Hops>().unwrap();
            let mut next = get("http://localhost/");
            next.extensions_mut().insert(hops);
            me.http(next).await
        }
    });
    let _serving = own.serve_http(Ports::All, Arc::new(guest)).unwrap();
    let error = ask(&own, "http://localhost/").await.unwrap_err();
    assert!(matches!(error, HttpError::Loop(_)), "{error}");
}

#[tokio::test]
async fn a_busy_pod_refuses_and_load_ends_with_the_body() {
    let network = Network::new(Config {
        limits: Limits {
            requests_per_pod: 1,
            ..Limits::default()
        },
        ..Config::default()
    })
    .unwrap();
    let client = pod(&network, "client");
    let slow = pod(&network, "slow");
    let guest = Guest(|_| async {
        let (sender, frames) = tokio::sync::mpsc::channel(1);
        // The stream stays open as long as somebody reads it.
        tokio::spawn(async move { sender.closed().await });
        let frames = tokio_stream::wrappers::ReceiverStream::new(frames);
        Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
    });
    let _serving = slow.serve_http(Ports::All, Arc::new(guest)).unwrap();
    hello(&network, &[&slow]);
    let streaming = client.http(get("http://hello/")).await.unwrap();
    let refused = client.http(get("http://hello/")).await.unwrap_err();
    assert!(matches!(refused, HttpError::NotReached(_)), "{refused}");
    // Nor as bytes on a connection of its own.
    let asked = async || {
        let to = SocketAddr::from((slow.address(), 80));
        let mut io = client.connect(to).await.unwrap().into_io();
        io.write_all(b"GET / HTTP/1.1\r\nHost: hello\r\nConnection: close\r\n\r\n")
            .await
            .unwrap();
        let mut code = [0; 12];
        io.read_exact(&mut code).await.unwrap();
        (String::from_utf8(code.to_vec()).unwrap(), io)
    };
    assert_eq!(asked().await.0, "HTTP/1.1 503");
    drop(streaming);
    let (code, streaming) = asked().await;
    assert_eq!(code, "HTTP/1.1 200");
    let refused = client.http(get("http://hello/")).await.unwrap_err();
    assert!(matches!(refused, HttpError::NotReached(_)), "{refused}");
    let flows = network.flows();
    let answers = |destination| {
        flows
            .iter()
            .find(|f| f.destination == destination)
            .unwrap()
            .answers
    };
    assert_eq!(
        answers("shop/slow"),
        [0, 2, 0, 0, 0, 1],
        "both ways: {flows:?}"
    );
    assert_eq!(
        answers("shop/hello"),
        [0, 0, 0, 0, 0, 2],
        "and in no way: {flows:?}"
    );
    drop(streaming);
    let free = async {
        while client.http(get("http://hello/")).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), free)
        .await
        .unwrap();
}

#[tokio::test]
async fn probes_ask_the_pod_itself() {
    let network = network();
    let (web, _serving) = web(&network, "web");
    let silent = pod(&network, "silent");
    let second = Duration::from_secs(1);
    let probe = HttpProbe {
        port: 8080,
        path: "healthz".to_owned(),
        ..HttpProbe::default()
    };
    let answer = network.probe_http(&web, &probe, second).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, format!("web {}:8080 /healthz", web.address()));
    assert!(network.probe_tcp(&web, 8080, second).await.is_ok());
    let refused = network
        .probe_http(&silent, &probe, second)
        .await
        .unwrap_err();
    let expected = format!("Get \"http://{}:8080/healthz\": ", silent.address());
    assert!(refused.starts_with(&expected), "{refused}");
    assert!(refused.ends_with("connection refused"), "{refused}");
    let refused = network.probe_tcp(&silent, 1, second).await.unwrap_err();
    assert_eq!(
        refused,
        format!(
            "dial tcp {}:1: connect: connection refused",
            silent.address()
        )
    );
}

#[tokio::test(start_paused = true)]
async fn a_probe_nobody_answers_times_out() {
    let network = network();
    let stuck = pod(&network, "stuck");
    let never = Guest(|_| std::future::pending());
    let _serving = stuck
        .serve_http(Ports::Only(vec![8080]), Arc::new(never))
        .unwrap();
    let probe = HttpProbe {
        port: 8080,
        ..HttpProbe::default()
    };
    let error = network
        .probe_http(&stuck, &probe, Duration::from_secs(1))
        .await
        .unwrap_err();
    assert!(error.contains("context deadline exceeded"), "{error}");
}

#[tokio::test]
async fn http_ports_of_containers_exclude_each_other() {
    let network = network();
    let pod = pod(&network, "pod");
    let guest = || Arc::new(Guest(|_| async { Ok(Response::new(serve::empty())) }));
    let first = pod.serve_http(Ports::Only(vec![80, 81]), guest()).unwrap();
    assert!(pod.serve_http(Ports::Only(vec![81]), guest()).is_err());
    assert!(pod.listen(80, 1).is_err());
    let all = pod.serve_http(Ports::All, guest()).unwrap();
    assert!(pod.serve_http(Ports::All, guest()).is_err());
    drop((first, all));
    assert!(pod.serve_http(Ports::All, guest()).is_ok());
}

#[tokio::test]
async fn who_talked_to_whom_is_counted() {
    let network = network();
    let client = pod(&network, "client");
    let (web, serving) = web(&network, "web");
    hello(&network, &[&web]);
    ask(&client, "http://hello/").await.unwrap();
    ask(&client, "http://hello/").await.unwrap();
    drop(serving);
    let failing = Guest(|_| async {
        let mut response = Response::new(serve::empty());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        Ok(response)
    });
    let _serving = web.serve_http(Ports::All, Arc::new(failing)).unwrap();
    ask(&client, "http://hello/").await.unwrap();
    let flows = network.flows();
    let flow = flows
        .iter()
        .find(|f| f.source == "shop/client" && f.destination == "shop/web")
        .unwrap();
    assert_eq!((flow.requests, flow.errors), (3, 1));
}

#[test]
fn what_belongs_to_one_connection_ends_with_it() {
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("connection", "keep-alive, X-Private, host, TE"),
        ("keep-alive", "timeout=5"),
        ("x-private", "1"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("te", "trailers"),
        ("host", "h"),
        ("x-public", "1"),
    ] {
        headers.insert(name, value.parse().unwrap());
    }
    strip_hop_by_hop(&mut headers);
    let mut left: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    left.sort_unstable();
    assert_eq!(left, ["host", "te", "x-public"]);
}

#[tokio::test]
async fn headless_services_are_called_at_their_pods_ports() {
    let network = network();
    let client = pod(&network, "client");
    let (web, _serving) = web(&network, "web");
    let spec = json!({"clusterIP": "None", "ports": [{"port": 80}]});
    publish(&network, "db", spec, json!([{"port": 8080}]), &[&web]);
    assert_eq!(
        ask(&client, "http://db:8080/").await.unwrap(),
        "web db:8080 /"
    );
}

#[tokio::test]
async fn a_kept_connection_is_told_to_go_elsewhere_when_its_pod_ends() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let network = network();
    let (server, serving) = web(&network, "web");
    let client = pod(&network, "client");
    let stream = client.connect((server.address(), 80).into()).await.unwrap();
    let mut io = stream.into_io();
    let mut answers = String::new();
    io.write_all(b"GET /one HTTP/1.1\r\nHost: shop\r\n\r\n")
        .await
        .unwrap();
    let mut buffer = [0; 1024];
    while !answers.ends_with("/one") {
        let read = io.read(&mut buffer).await.unwrap();
        assert!(read > 0, "{answers}");
        answers.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert!(
        !answers.to_lowercase().contains("connection: close"),
        "{answers}"
    );
    drop(serving);
    let rest = tokio::time::timeout(std::time::Duration::from_secs(10), io.read(&mut buffer));
    assert_eq!(
        rest.await.unwrap().unwrap(),
        0,
        "an idle one is closed in order"
    );
    assert!(client.connect((server.address(), 80).into()).await.is_err());
}

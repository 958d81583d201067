//! What is told of a request: the trace it belongs to, the span a collector gets, a line of the access log, its bytes.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::{Guest, ask, get, hello, network, pod, publish, text, web};
use crate::network::{Config, Network, Ports, Security, observe, serve};

/// A collector that takes one batch and hands over what it got.
async fn collector() -> (String, mpsc::Receiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, batches) = mpsc::channel(1);
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut got = Vec::new();
        loop {
            stream.read_buf(&mut got).await.unwrap();
            let Some(end) = got.windows(4).position(|four| four == b"\r\n\r\n") else {
                continue;
            };
            let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.lines().next().unwrap().parse().unwrap();
            if got.len() >= end + 4 + length {
                break;
            }
        }
        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
        sender.send(got).await.unwrap();
    });
    (format!("http://{address}"), batches)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_joins_its_callers_trace_and_is_logged() {
    let (endpoint, mut batches) = collector().await;
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let network = Network::new(Config {
        observe: observe::Config {
            otlp_endpoint: Some(endpoint),
            access_log: Some(log.clone()),
            ..observe::Config::default()
        },
        ..Config::default()
    })
    .unwrap();
    let client = pod(&network, "client");
    let web = pod(&network, "web");
    let guest = Guest(|request: Request<_>| async move {
        let parent = request.headers().get("traceparent").cloned();
        let body: super::Body = request.into_body();
        body.collect().await.unwrap();
        let parent = parent.map_or_else(String::new, |p| p.to_str().unwrap().to_owned());
        Ok(Response::new(serve::full(parent)))
    });
    let _serving = web.serve_http(Ports::All, Arc::new(guest)).unwrap();
    hello(&network, &[&web]);

    let trace = "0af7651916cd43dd8448eb211c80319c";
    let caller = "b7ad6b7169203331";
    let request = Request::post("http://hello/cart?secret=1")
        .header("traceparent", format!("00-{trace}-{caller}-01"))
        .body(serve::full("12345"))
        .unwrap();
    let seen = text(client.http(request).await.unwrap()).await;
    assert!(
        seen.starts_with(&format!("00-{trace}-")),
        "the same trace: {seen}"
    );
    assert!(
        !seen.contains(caller),
        "the span between is the parent: {seen}"
    );

    network.shutdown(Duration::from_secs(1)).await;
    let batch = tokio::time::timeout(Duration::from_secs(10), batches.recv());
    let batch = batch.await.expect("spans within ten seconds").unwrap();
    let id = (0..16).map(|at| u8::from_str_radix(&trace[at * 2..at * 2 + 2], 16).unwrap());
    let id: Vec<u8> = id.collect();
    assert!(
        batch.windows(16).any(|bytes| bytes == id),
        "the span is of that trace"
    );
    assert!(batch.starts_with(b"POST /v1/traces "));

    let flow = network.flows().remove(0);
    assert_eq!(
        (flow.source.as_str(), flow.security),
        ("shop/client", Security::InProcess)
    );
    assert_eq!(flow.bytes_sent, 5);
    assert_eq!(flow.bytes_received, seen.len() as u64);
    drop(network);
    let line = loop {
        let text = std::fs::read_to_string(&log).unwrap();
        if text.ends_with('\n') {
            break text;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["path"], "/cart", "without the query");
    assert_eq!(line["status"], 200);
    assert_eq!(line["trace_id"], trace);
    assert_eq!(
        (&line["source"], &line["destination"]),
        (&"shop/client".into(), &"shop/web".into())
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_answered_is_told_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let network = Network::new(Config {
        observe: observe::Config {
            access_log: Some(log.clone()),
            ..observe::Config::default()
        },
        ..Config::default()
    })
    .unwrap();
    let (client, web) = (pod(&network, "client"), pod(&network, "web"));
    let never = Guest(|_| std::future::pending());
    let _serving = web.serve_http(Ports::All, Arc::new(never)).unwrap();
    hello(&network, &[&web]);
    let call = client.http(get("http://hello/slow"));
    let given_up = tokio::time::timeout(Duration::from_millis(50), call).await;
    assert!(given_up.is_err());
    let flow = network.flows().remove(0);
    assert_eq!(flow.destination, "shop/web");
    assert_eq!(flow.answers, [0, 0, 0, 0, 0, 1]);
    assert_eq!(flow.duration, Duration::from_millis(50));

    let spec = json!({"clusterIP": "10.96.0.8", "ports": [{"port": 80}]});
    publish(&network, "empty", spec, json!([{"port": 8080}]), &[]);
    assert!(client.http(get("http://empty/")).await.is_err());
    let gone = pod(&network, "gone");
    assert!(
        client
            .http(get(&format!("http://{}/", gone.address())))
            .await
            .is_err()
    );
    let flows = network.flows();
    let errors: Vec<(&str, u64)> = flows
        .iter()
        .map(|f| (f.destination.as_str(), f.errors))
        .collect();
    assert_eq!(
        errors,
        [("shop/empty", 1), ("shop/gone", 1), ("shop/web", 1)]
    );

    network.shutdown(Duration::ZERO).await;
    drop((client, web, gone, network));
    let lines = tokio::task::spawn_blocking(move || {
        loop {
            let text = std::fs::read_to_string(&log).unwrap();
            if text.lines().count() >= 3 {
                break text;
            }
            std::thread::yield_now();
        }
    });
    let lines = lines.await.unwrap();
    let line = |n: usize| {
        serde_json::from_str::<serde_json::Value>(lines.lines().nth(n).unwrap()).unwrap()
    };
    assert_eq!(line(0)["path"], "/slow");
    assert_eq!(line(0)["error"], "given up by the caller");
    assert_eq!(line(1)["destination"], "shop/empty");
    assert!(
        line(1)["error"]
            .as_str()
            .unwrap()
            .contains("no ready endpoint")
    );
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_lets_everybody_wait_is_passed_over() {
    let network = network();
    let client = pod(&network, "client");
    let hangs = pod(&network, "hangs");
    let never = Guest(|_| std::future::pending());
    let _serving = hangs.serve_http(Ports::All, Arc::new(never)).unwrap();
    let (good, _good) = web(&network, "good");
    hello(&network, &[&hangs, &good]);
    let mut waited = 0;
    for _ in 0..200 {
        let call = client.http(get("http://hello/"));
        if tokio::time::timeout(Duration::from_secs(2), call)
            .await
            .is_err()
        {
            waited += 1;
            if waited == 5 {
                break;
            }
        }
    }
    assert_eq!(waited, 5, "it is asked");
    for _ in 0..50 {
        assert_eq!(ask(&client, "http://hello/").await.unwrap(), "good hello /");
    }
}

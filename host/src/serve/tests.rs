//! The node endpoint without TLS: its routes and what a query asks.

use std::path::PathBuf;

use http_body_util::BodyExt;
use tower::ServiceExt;

use super::*;
use crate::pods::known::Record;
use crate::pods::logs::{Log, Logs, WriterThread};
use crate::runtime::{LogSink, LogStream};

async fn ask(router: &Router, path: &str) -> (StatusCode, String) {
    let request = http::Request::get(path)
        .body(Body::empty())
        .expect("a request");
    let response = router.clone().oneshot(request).await.expect("infallible");
    let status = response.status();
    let bytes = response
        .into_body()
        .collect()
        .await
        .expect("a body")
        .to_bytes();
    (status, String::from_utf8(bytes.to_vec()).expect("text"))
}

fn network() -> Arc<Network> {
    let network = Network::new(crate::network::Config::default());
    Arc::new(network.expect("a network of no pods"))
}

fn plain_router(known: Known, network: Arc<Network>) -> Router {
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let streaming = Streaming::new(known.clone(), Arc::clone(&network), tasks, stop);
    router(known, network, streaming)
}

#[tokio::test]
async fn metrics_and_the_graph_name_the_node() {
    let router = plain_router(Known::default(), network());
    let (status, text) = ask(&router, "/metrics").await;
    assert_eq!(status, StatusCode::OK);
    assert!(text.contains("# TYPE coracle_mesh_requests_total counter"));
    let (_, graph) = ask(&router, "/graph").await;
    let graph: serde_json::Value = serde_json::from_str(&graph).expect("JSON");
    assert_eq!(graph["node"], "node");
    assert_eq!(graph["edges"], serde_json::json!([]));
}

#[tokio::test]
async fn what_is_not_there_yet_says_so() {
    let router = plain_router(Known::default(), network());
    assert_eq!(
        ask(&router, "/healthz").await,
        (StatusCode::OK, "ok".to_owned())
    );
    let (status, text) = ask(&router, "/run/default/web/app").await;
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(text.contains("not supported by this node yet"), "{text}");
    for path in [
        "/exec/default/web/app?output=1&command=ls",
        "/attach/default/web/app?output=1",
        "/portForward/default/web",
    ] {
        let (status, text) = ask(&router, path).await;
        assert_eq!(
            (status, text.as_str()),
            (StatusCode::NOT_FOUND, "pod does not exist")
        );
    }
    let (status, text) = ask(&router, "/containerLogs/default/web/app").await;
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::NOT_FOUND, "pod \"default/web\" not found")
    );
}

/// A pod `web` of which a container runs, its log, and the node's endpoint.
struct Logging {
    log: Arc<Log>,
    router: Router,
    _thread: WriterThread,
    _directory: tempfile::TempDir,
}

fn logging() -> Logging {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let (logs, thread) = Logs::start(directory.path().to_owned()).expect("started");
    let pod: PathBuf = logs.pod_directory("default", "web", "u1");
    let log = logs.open(&pod, "app", 0);
    let record = Record::new(
        "default",
        "web",
        "u1",
        pod,
        std::iter::once("app".to_owned()),
    );
    record.update(0, |container| {
        container.instances = 1;
        container.log = Some(Arc::clone(&log));
    });
    let known = Known::default();
    known.insert(Arc::new(record));
    Logging {
        log,
        router: plain_router(known, network()),
        _thread: thread,
        _directory: directory,
    }
}

#[tokio::test]
async fn who_follows_logs_takes_no_place_of_others() {
    let node = logging();
    node.log.write(LogStream::Stdout, b"one\n");
    let path = "/containerLogs/default/web/app?follow=true";
    let mut followers = Vec::new();
    for _ in 0..READERS {
        let request = http::Request::get(path).body(Body::empty());
        let answer = node.router.clone().oneshot(request.expect("a request"));
        let answer = answer.await.expect("infallible");
        assert_eq!(answer.status(), StatusCode::OK);
        followers.push(answer);
    }
    let (status, why) = ask(&node.router, path).await;
    assert_eq!(
        (status, why.as_str()),
        (
            StatusCode::TOO_MANY_REQUESTS,
            "1024 logs of this node are being read already"
        )
    );
    assert_eq!(ask(&node.router, "/healthz").await.0, StatusCode::OK);
    followers.pop();
    let (status, _) = ask(&node.router, "/containerLogs/default/web/app").await;
    assert_eq!(status, StatusCode::OK, "a place is given back");
}

#[tokio::test]
async fn a_followed_log_ends_with_its_instance() {
    let node = logging();
    let (log, router) = (&node.log, &node.router);
    log.write(LogStream::Stdout, b"one\n");
    log.write(LogStream::Stderr, b"two\n");
    let asking = ask(router, "/containerLogs/default/web/app?follow=true");
    let writing = async {
        log.write(LogStream::Stdout, b"three\n");
        log.close();
    };
    let ((status, text), ()) = tokio::join!(asking, writing);
    assert_eq!(
        (status, text.as_str()),
        (StatusCode::OK, "one\ntwo\nthree\n")
    );
    let (_, text) = ask(router, "/containerLogs/default/web/app?tailLines=1").await;
    assert_eq!(text, "three\n");
    let (_, text) = ask(router, "/containerLogs/default/web/app?stream=Stderr").await;
    assert_eq!(text, "two\n");
    let (status, text) = ask(router, "/containerLogs/default/web/app?previous=true").await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "{text}");
    let (status, text) = ask(router, "/containerLogs/default/web/app?tailLines=-1").await;
    assert_eq!(
        (status, text.as_str()),
        (
            StatusCode::BAD_REQUEST,
            "tailLines: must be greater than or equal to 0"
        )
    );
}

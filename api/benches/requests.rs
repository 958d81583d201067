//! Requests per second of the whole API server over TLS, with 64 clients: durable creates, GETs, a list of 10,000 pods,
//! and the time from a write to its watch event. `cargo bench -p api --bench requests`.
//!
//! Clients and server share the machine's processors, so these are lower bounds. Reference on a 2-core machine,
//! kube-apiserver with etcd: 681 creates/s, 1,679 GETs/s, 142 ms per list of 10,000, 3.5 ms from write to event.

#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::time::Duration;

use api::{Config, Handle};
use axum::body::Body;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::BodyExt as _;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::json;
use tokio::time::Instant;

const CLIENTS: usize = 64;
const PODS: usize = 10_000;
const GETS: usize = 40_000;
const PODS_URI: &str = "/api/v1/namespaces/default/pods";

/// One of the 64: its own connection.
#[derive(Clone)]
struct Caller {
    client: Client<HttpsConnector<HttpConnector>, Body>,
    url: String,
}

impl Caller {
    fn new(handle: &Handle) -> Self {
        let admin = handle.pki().admin().expect("an identity");
        let shown = api::pki::Shown::new(&admin).expect("usable");
        let tls = handle.pki().client_config(shown).expect("a client");
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .build();
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            url: handle.url(),
        }
    }

    async fn send(&self, method: Method, uri: &str, body: Bytes) -> Bytes {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{uri}", self.url))
            .header("content-type", "application/json")
            .body(Body::from(body))
            .expect("a request");
        let response = self.client.request(request).await.expect("an answer");
        let status = response.status();
        let bytes = response
            .into_body()
            .collect()
            .await
            .expect("a body")
            .to_bytes();
        assert!(
            status.is_success(),
            "{status} {}",
            String::from_utf8_lossy(&bytes)
        );
        bytes
    }
}

fn pod(name: &str) -> Bytes {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": name, "labels": { "app": "bench", "tier": "web" } },
        "spec": { "containers": [{ "name": "c", "image": "registry.example/app:v1",
            "env": [{ "name": "A", "value": "b" }], "ports": [{ "containerPort": 8080 }],
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } } }] },
    });
    pod.to_string().into()
}

/// Runs `work` `count` times on 64 callers; returns times per second.
async fn rate<F>(handle: &Handle, count: usize, work: impl Fn(Caller, usize) -> F) -> f64
where
    F: Future<Output = ()> + Send + 'static,
{
    let callers: Vec<Caller> = (0..CLIENTS).map(|_| Caller::new(handle)).collect();
    let each = count / CLIENTS;
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, caller) in callers.into_iter().enumerate() {
        // The futures are made in advance and run one after the other: one request at a time per client.
        let mine: Vec<F> = (0..each)
            .map(|i| work(caller.clone(), n * each + i))
            .collect();
        tasks.spawn(async move {
            for one in mine {
                one.await;
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    let done = each * CLIENTS;
    done as f64 / started.elapsed().as_secs_f64()
}

fn cpu() -> Duration {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF);
    let usage = usage.expect("usage");
    let of = |time: nix::sys::time::TimeVal| {
        Duration::new(
            u64::try_from(time.tv_sec()).unwrap_or(0),
            u32::try_from(time.tv_usec()).unwrap_or(0) * 1_000,
        )
    };
    of(usage.user_time()) + of(usage.system_time())
}

fn main() {
    // `cargo test` runs benches too; measuring takes a release build and time.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(measure());
}

async fn measure() {
    let directory = tempfile::tempdir().expect("a directory");
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        ..Config::at(directory.path().to_owned())
    };
    let handle = api::start(config).await.expect("starts");
    let admin = Caller::new(&handle);

    let before = cpu();
    let creates = rate(&handle, PODS, |caller, i| async move {
        caller
            .send(Method::POST, PODS_URI, pod(&format!("p{i}")))
            .await;
    })
    .await;
    report(
        "durable creates/s, 64 clients (pods, SQLite)",
        creates,
        before,
        PODS,
    );

    let before = cpu();
    let one = rate(&handle, GETS, |caller, i| async move {
        let uri = format!("{PODS_URI}/p{}", i % 9_000);
        caller.send(Method::GET, &uri, Bytes::new()).await;
    })
    .await;
    report("GET/s, 64 clients (pods)", one, before, GETS);

    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..11 {
        let started = Instant::now();
        bytes = admin.send(Method::GET, PODS_URI, Bytes::new()).await.len();
        times.push(started.elapsed());
    }
    times.sort();
    println!(
        "list of {PODS}: {:?} median, {bytes} bytes",
        times[times.len() / 2]
    );
    watch_latency(&handle, &admin).await;
    serial_creates(&admin).await;
    handle.shutdown().await;
}

async fn watch_latency(handle: &Handle, admin: &Caller) {
    let uri = format!(
        "{}/api/v1/configmaps?watch=true&resourceVersion={}",
        handle.url(),
        handle.store().cache().revision()
    );
    let request = Request::get(uri).body(Body::empty()).expect("a request");
    let watcher = Caller::new(handle);
    let mut events = watcher
        .client
        .request(request)
        .await
        .expect("a watch")
        .into_body();
    let mut times = Vec::new();
    for i in 0..200 {
        let map = json!({"metadata": {"name": format!("m{i}")}, "data": {"a": "b"}}).to_string();
        let started = Instant::now();
        let write = admin.send(
            Method::POST,
            "/api/v1/namespaces/default/configmaps",
            map.into(),
        );
        let event = async {
            events.frame().await.expect("an event").expect("a frame");
            started.elapsed()
        };
        let (_, took) = tokio::join!(write, event);
        times.push(took);
    }
    times.sort();
    println!(
        "request sent -> watch event: {:?} median",
        times[times.len() / 2]
    );
}

async fn serial_creates(admin: &Caller) {
    let started = Instant::now();
    for i in 0..500 {
        admin
            .send(Method::POST, PODS_URI, pod(&format!("serial{i}")))
            .await;
    }
    let rate = 500.0 / started.elapsed().as_secs_f64();
    println!("durable creates/s, 1 client: {rate:.0}");
}

fn report(what: &str, rate: f64, before: Duration, count: usize) {
    let each = (cpu() - before).as_secs_f64() * 1e6 / count as f64;
    println!("{what}: {rate:.0} ({each:.0} µs CPU each, clients included)");
}

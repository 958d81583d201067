//! The runtime with the repository's own guests. Each test has its own node network; compiled guests are shared.

mod commands;
mod http;
mod loading;
mod sockets;

use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};

use super::*;
use crate::network::{self, Body, HttpError, Network, PodIdentity};

/// Long enough for a slow machine, short enough for a person.
const DEADLINE: Duration = Duration::from_secs(60);

/// Everything a guest wrote, with an optional bound on what is taken.
#[derive(Default)]
struct Lines {
    text: Mutex<String>,
    full: std::sync::atomic::AtomicBool,
    written: tokio::sync::Notify,
}

impl Lines {
    fn text(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// Waits until the guest has written `needle`.
    async fn wait_for(&self, needle: &str) {
        let waiting = async {
            loop {
                let written = self.written.notified();
                if self.text().contains(needle) {
                    return;
                }
                written.await;
            }
        };
        if tokio::time::timeout(DEADLINE, waiting).await.is_err() {
            panic!("{needle:?} was not written; the log is:\n{}", self.text());
        }
    }
}

impl LogSink for Lines {
    fn capacity(&self) -> usize {
        if self.full.load(std::sync::atomic::Ordering::SeqCst) {
            0
        } else {
            1 << 20
        }
    }

    fn write(&self, _: LogStream, bytes: &[u8]) {
        self.text
            .lock()
            .unwrap()
            .push_str(&String::from_utf8_lossy(bytes));
        self.written.notify_waiters();
    }

    fn writable(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::pending())
    }
}

/// A pod on a network of its own, or on one shared with others.
struct Pod {
    network: Arc<Network>,
    pod: Arc<PodNetwork>,
    logs: Arc<Lines>,
}

impl Pod {
    fn new() -> Self {
        Self::on(&Arc::new(
            Network::new(network::Config::default()).expect("a network for a test"),
        ))
    }

    fn on(network: &Arc<Network>) -> Self {
        let identity = PodIdentity {
            namespace: "default".to_owned(),
            name: "test".to_owned(),
            uid: uuid::Uuid::new_v4().to_string(),
            hostname: "test".to_owned(),
            ..PodIdentity::default()
        };
        Self {
            network: Arc::clone(network),
            pod: network.attach_pod(identity).expect("an address"),
            logs: Arc::default(),
        }
    }

    fn workload(&self, args: &[&str]) -> Workload {
        Workload {
            name: "default/test/app".to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            env: Vec::new(),
            working_dir: None,
            mounts: Vec::new(),
            limits: Limits::default(),
            reuse: None,
            stdin: None,
            terminal: false,
            logs: Arc::clone(&self.logs) as Arc<dyn LogSink>,
            network: Arc::clone(&self.pod),
        }
    }
}

/// Shared by the tests of one process; the directory lives in the operating system's temporary space.
fn runtime() -> Runtime {
    static CACHE: LazyLock<tempfile::TempDir> =
        LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));
    Runtime::new(Config {
        max_pods: 64,
        cache_dir: CACHE.path().join("compiled"),
    })
    .expect("a runtime")
}

fn guest(name: &str) -> Bytes {
    let path = format!("{}/../guests/built/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
    Bytes::from(std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}")))
}

async fn load(runtime: &Runtime, name: &str) -> Arc<Component> {
    runtime
        .load(guest(name), &format!("sha256:{name}"))
        .await
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

async fn start(runtime: &Runtime, name: &str, workload: Workload) -> Running {
    let component = load(runtime, name).await;
    runtime.start(&component, workload).expect("started")
}

async fn exit(running: &Running) -> Exit {
    tokio::time::timeout(DEADLINE, running.wait())
        .await
        .expect("the workload ends")
}

fn get(path: &str) -> ::http::Request<Body> {
    ::http::Request::get(path)
        .header("host", "test")
        .body(Empty::new().map_err(|never| match never {}).boxed_unsync())
        .expect("a request")
}

fn post(path: &str, body: &'static [u8]) -> ::http::Request<Body> {
    ::http::Request::post(path)
        .header("host", "test")
        .body(
            Full::new(Bytes::from_static(body))
                .map_err(|never| match never {})
                .boxed_unsync(),
        )
        .expect("a request")
}

async fn ask(running: &Running, request: ::http::Request<Body>) -> Result<(u16, Bytes), HttpError> {
    let handler = running.http().expect("an HTTP component");
    let asking = async {
        let response = handler.handle(request).await?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .expect("a whole body")
            .to_bytes();
        Ok((status, body))
    };
    tokio::time::timeout(DEADLINE, asking)
        .await
        .expect("an answer")
}

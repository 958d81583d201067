//! Requests per second and CPU per request of HTTP guests behind hyper, beside plain hyper with the same bytes, in one run:
//! `cargo bench -p host --bench http [-- SECONDS ROUNDS]`. The server has one thread, whose CPU time is what is counted; 16
//! keep-alive connections ask from other threads. Modes alternate, medians are printed: ratios survive a busy machine.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use nix::time::{ClockId, clock_gettime};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::time::Instant;

use host::network::{self, Body, HttpHandler, Network, PodIdentity};
use host::runtime::{Config, Limits, LogSink, LogStream, Reuse, Running, Runtime, Workload};

const CONNECTIONS: usize = 16;

/// What is measured, in the order of the table; the first is what the others are compared with.
const MODES: [&str; 6] = [
    "plain hyper",
    "0.2, instance per request",
    "0.2, instance per request, cpu limit",
    "0.2, reused",
    "0.3, default reuse",
    "0.2 calls 0.2, instance per request",
];

/// Nobody reads the logs of a benchmark.
struct Nowhere;

/// A server on a thread of its own.
struct Server {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    thread: JoinHandle<Duration>,
}

#[derive(Clone, Copy)]
struct Measured {
    per_second: f64,
    cpu_micros: f64,
}

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse().ok());
    let seconds = Duration::from_secs(numbers.next().unwrap_or(3));
    let rounds = numbers.next().unwrap_or(5);
    let cache = tempfile::tempdir().expect("a temporary directory");
    let mut measured: BTreeMap<usize, Vec<Measured>> = BTreeMap::new();
    for _ in 0..rounds {
        for mode in 0..MODES.len() {
            let server = Server::start(mode, cache.path().to_owned());
            let result = measure(server, seconds);
            measured.entry(mode).or_default().push(result);
        }
    }
    println!(
        "{:<38} {:>10} {:>8} {:>10}",
        "mode", "req/s", "ratio", "CPU µs/req"
    );
    let plain = median(&measured[&0]).per_second;
    for (mode, results) in &measured {
        let Measured {
            per_second,
            cpu_micros,
        } = median(results);
        println!(
            "{:<38} {per_second:>10.0} {:>8.2} {cpu_micros:>10.1}",
            MODES[*mode],
            per_second / plain
        );
    }
}

fn median(results: &[Measured]) -> Measured {
    let middle = |pick: fn(&Measured) -> f64| {
        let mut values: Vec<f64> = results.iter().map(pick).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Measured {
        per_second: middle(|result| result.per_second),
        cpu_micros: middle(|result| result.cpu_micros),
    }
}

fn measure(server: Server, seconds: Duration) -> Measured {
    let client = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let count = Arc::new(AtomicU64::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let elapsed = client.block_on(async {
        let connections: Vec<_> = (0..CONNECTIONS)
            .map(|_| tokio::spawn(ask(server.address, Arc::clone(&count), Arc::clone(&over))))
            .collect();
        let start = Instant::now();
        tokio::time::sleep(seconds).await;
        over.store(true, Ordering::Relaxed);
        let elapsed = start.elapsed();
        for connection in connections {
            connection.await.expect("a client");
        }
        elapsed
    });
    let cpu = server.stop();
    let count = count.load(Ordering::Relaxed).max(1) as f64;
    Measured {
        per_second: count / elapsed.as_secs_f64(),
        cpu_micros: cpu.as_secs_f64() * 1e6 / count,
    }
}

async fn ask(address: SocketAddr, count: Arc<AtomicU64>, over: Arc<AtomicBool>) {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    while !over.load(Ordering::Relaxed) {
        let request = Request::get("/")
            .header("host", "bench")
            .body(Empty::<Bytes>::new())
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), 200);
        let body = response.into_body().collect().await.expect("a body");
        assert_eq!(&body.to_bytes()[..], b"Hello World!\n");
        count.fetch_add(1, Ordering::Relaxed);
    }
}

// === impl Server ===

impl Server {
    fn start(mode: usize, cache: std::path::PathBuf) -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(async {
                    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
                    // Held until the end: dropping a workload ends it.
                    let (handler, _running) = handler(mode, cache).await;
                    let address = listener.local_addr().expect("an address");
                    tell.send(address).expect("the measuring thread");
                    let before = thread_time();
                    tokio::select! {
                        () = serve(listener, handler) => {}
                        _ = stopped => {}
                    }
                    thread_time() - before
                })
        });
        Self {
            address: told.recv().expect("a server"),
            stop,
            thread,
        }
    }

    fn stop(self) -> Duration {
        let _ = self.stop.send(());
        self.thread.join().expect("a server")
    }
}

async fn serve(listener: TcpListener, handler: Option<Arc<dyn HttpHandler>>) {
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        stream.set_nodelay(true).expect("a socket");
        let handler = handler.clone();
        let service = service_fn(move |request| answer(handler.clone(), request));
        tokio::spawn(
            hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service),
        );
    }
}

async fn answer(
    handler: Option<Arc<dyn HttpHandler>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let Some(handler) = handler else {
        let hello = Full::new(Bytes::from_static(b"Hello World!\n"));
        return Ok(Response::new(hello.map_err(|e| match e {}).boxed_unsync()));
    };
    let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
    Ok(handler.handle(request).await.expect("an answer"))
}

/// The handler of a mode, with what must live as long as it.
async fn handler(
    mode: usize,
    cache: std::path::PathBuf,
) -> (
    Option<Arc<dyn HttpHandler>>,
    Vec<(Running, Option<network::Serving>)>,
) {
    let network = Arc::new(Network::new(network::Config::default()).expect("a network"));
    let runtime = Runtime::new(Config {
        max_pods: 64,
        cache_dir: cache,
    })
    .expect("a runtime");
    let start = async |name: &str, cpu_millis, reuse, env: Vec<(String, String)>| {
        let pod = network
            .attach_pod(PodIdentity {
                namespace: "default".to_owned(),
                name: name.to_owned(),
                uid: name.to_owned(),
                ..PodIdentity::default()
            })
            .expect("an address");
        let path = format!("{}/../guests/built/{name}.wasm", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).expect("a guest");
        let component = runtime.load(bytes.into(), name).await.expect("a component");
        let workload = Workload {
            name: name.to_owned(),
            args: Vec::new(),
            env,
            working_dir: None,
            mounts: Vec::new(),
            limits: Limits {
                memory_bytes: 64 << 20,
                cpu_millis,
            },
            reuse,
            stdin: None,
            terminal: false,
            logs: Arc::new(Nowhere),
            network: Arc::clone(&pod),
        };
        let running = runtime.start(&component, workload).expect("started");
        (running, pod)
    };
    let reuse = Some(Reuse {
        requests: u32::MAX,
        concurrent: 1,
    });
    let (running, _pod) = match mode {
        0 => return (None, Vec::new()),
        1 => start("hello-http", 0, None, Vec::new()).await,
        // A limit that is never met: what the accounting costs.
        2 => start("hello-http", 100_000, None, Vec::new()).await,
        3 => start("hello-http", 0, reuse, Vec::new()).await,
        4 => start("hello-http-p3", 0, None, Vec::new()).await,
        _ => {
            let (hello, pod) = start("hello-http", 0, None, Vec::new()).await;
            let serving = pod
                .serve_http(network::Ports::All, hello.http().expect("HTTP"))
                .expect("free ports");
            let target = format!("{}:8080", pod.address());
            let env = vec![("TARGET".to_owned(), target)];
            let (caller, _) = start("caller", 0, None, env).await;
            return (caller.http(), vec![(caller, None), (hello, Some(serving))]);
        }
    };
    (running.http(), vec![(running, None)])
}

fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .expect("Linux has this clock")
        .into()
}

impl LogSink for Nowhere {
    fn capacity(&self) -> usize {
        usize::MAX
    }

    fn write(&self, _: LogStream, _: &[u8]) {}

    fn writable(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(std::future::ready(()))
    }
}

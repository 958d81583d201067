//! What a hop costs: pod → Service → pod on one node, across two nodes, and beside plain HTTP over TCP; and the bytes per
//! second of one stream across two nodes, over plain TLS and over plain TCP. One process, one run, modes alternating,
//! medians and ratios: `cargo bench -p host --bench tunnel [-- SECONDS ROUNDS [WORD] [NAME=ADDR:PORT]…]`. Each
//! NAME=ADDR:PORT is an HTTP server that answers 200 on `/`, asked like the plain one: a proxy that makes the same hop,
//! say. With a WORD only what has it in its name is measured. Processor time is this process's: all ends of a hop.

#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use host::network::{self, Body, HttpError, HttpHandler, Network, PodIdentity, PodNetwork, Ports};
use host::{Certificates, NodeTls};

const CALLERS: usize = 32;
const HELLO: &[u8] = b"Hello World!\n";
const CHUNK: usize = 64 * 1024;

/// The Service all pods call.
const SERVICE: &str = "http://10.96.0.7/";

/// Answers every request.
struct Hello;

/// Two nodes that know each other, a client on the first.
struct Nodes {
    client: Arc<PodNetwork>,
    server: Arc<PodNetwork>,
    _held: (Network, Network, network::Serving),
}

#[derive(Clone)]
enum Hop {
    Pods(Arc<PodNetwork>),
    Plain(SocketAddr),
}

struct Rate {
    per_second: f64,
    p50: f64,
    p99: f64,
    /// Microseconds for each request.
    cpu: f64,
}

struct Speed {
    per_second: f64,
    /// Seconds for each gigabyte.
    cpu: f64,
}

fn main() {
    let mut arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let others: Vec<(String, SocketAddr)> = arguments
        .extract_if(.., |arg| arg.contains('='))
        .map(|arg| {
            let (name, address) = arg.split_once('=').expect("it has one");
            (name.to_owned(), address.parse().expect("ADDR:PORT"))
        })
        .collect();
    let mut numbers = arguments.iter().filter_map(|arg| arg.parse().ok());
    let seconds = Duration::from_secs(numbers.next().unwrap_or(3));
    let rounds = numbers.next().unwrap_or(3);
    let word = arguments.iter().find(|arg| arg.parse::<u64>().is_err());
    let word = word.map_or("", String::as_str);
    tokio::runtime::Runtime::new()
        .expect("a runtime")
        .block_on(run(seconds, rounds, word, others));
}

async fn run(seconds: Duration, rounds: u64, word: &str, others: Vec<(String, SocketAddr)>) {
    let authority = Authority::new();
    let here = Nodes::start(&authority, true).await;
    let across = Nodes::start(&authority, false).await;
    let mut hops = vec![
        ("plain HTTP over TCP".to_owned(), Hop::Plain(plain().await)),
        (
            "pod to Service to pod, one node".to_owned(),
            Hop::Pods(Arc::clone(&here.client)),
        ),
        (
            "pod to Service to pod, two nodes".to_owned(),
            Hop::Pods(Arc::clone(&across.client)),
        ),
    ];
    hops.extend(
        others
            .into_iter()
            .map(|(name, address)| (name, Hop::Plain(address))),
    );
    hops.retain(|(name, _)| name.contains(word));
    let mut rates: Vec<Vec<Rate>> = hops.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for ((_, hop), rates) in hops.iter().zip(&mut rates) {
            rates.push(requests(hop, seconds).await);
        }
    }
    println!(
        "{:<36} {:>9} {:>7} {:>9} {:>9} {:>12}",
        "hop", "req/s", "ratio", "p50 µs", "p99 µs", "CPU µs/req"
    );
    let mut base = None;
    for ((name, _), rates) in hops.iter().zip(&rates) {
        let median = |of: fn(&Rate) -> f64| middle(rates.iter().map(of).collect());
        let per_second = median(|rate| rate.per_second);
        println!(
            "{name:<36} {per_second:>9.0} {:>7.2} {:>9.0} {:>9.0} {:>12.1}",
            per_second / *base.get_or_insert(per_second),
            median(|rate| rate.p50),
            median(|rate| rate.p99),
            median(|rate| rate.cpu),
        );
    }

    let mut streams = vec!["plain TLS", "plain TCP", "a stream between two nodes"];
    streams.retain(|name| name.contains(word));
    let mut speeds: Vec<Vec<Speed>> = streams.iter().map(|_| Vec::new()).collect();
    for _ in 0..rounds {
        for (name, speeds) in streams.iter().zip(&mut speeds) {
            let before = cpu();
            let (started, bytes) = match *name {
                "plain TLS" => over_tls(&authority, seconds).await,
                "plain TCP" => over_tcp(seconds).await,
                _ => over_tunnel(&across, seconds).await,
            };
            speeds.push(Speed {
                per_second: bytes as f64 / started.elapsed().as_secs_f64(),
                cpu: (cpu() - before).as_secs_f64() * 1e9 / bytes as f64,
            });
        }
    }
    println!(
        "\n{:<36} {:>9} {:>7} {:>12}",
        "one stream", "MB/s", "ratio", "CPU s/GB"
    );
    let mut base = None;
    for (name, speeds) in streams.iter().zip(&speeds) {
        let median = |of: fn(&Speed) -> f64| middle(speeds.iter().map(of).collect());
        let speed = median(|speed| speed.per_second);
        println!(
            "{name:<36} {:>9.0} {:>7.2} {:>12.2}",
            speed / 1e6,
            speed / *base.get_or_insert(speed),
            median(|speed| speed.cpu),
        );
    }
}

/// Processor time this process has used.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").expect("a process has one");
    let (_, fields) = text.rsplit_once(") ").expect("a name");
    let ticks = fields.split(' ').skip(11).take(2);
    let ticks: u64 = ticks.map(|ticks| ticks.parse().unwrap_or(0)).sum();
    // `USER_HZ` is 100 on every architecture we run on.
    Duration::from_millis(ticks * 10)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// As many as [`CALLERS`] can make, one after the other each.
async fn requests(hop: &Hop, seconds: Duration) -> Rate {
    let before = cpu();
    let end = Instant::now() + seconds;
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let hop = hop.clone();
            tokio::spawn(async move {
                match hop {
                    Hop::Pods(client) => call_pods(&client, end).await,
                    Hop::Plain(address) => call_plain(address, end).await,
                }
            })
        })
        .collect();
    let mut took = Vec::new();
    for caller in callers {
        took.extend(caller.await.expect("a caller"));
    }
    let used = cpu() - before;
    took.sort_unstable();
    let at = |share: f64| {
        let index = (took.len() as f64 * share) as usize;
        took[index.min(took.len() - 1)].as_secs_f64() * 1e6
    };
    Rate {
        per_second: took.len() as f64 / seconds.as_secs_f64(),
        p50: at(0.5),
        p99: at(0.99),
        cpu: used.as_secs_f64() * 1e6 / took.len() as f64,
    }
}

async fn call_pods(client: &PodNetwork, end: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    while Instant::now() < end {
        let body = Empty::new().map_err(|never: Infallible| match never {});
        let request = Request::get(SERVICE).body(body.boxed_unsync());
        let started = Instant::now();
        let answer = client.http(request.expect("a request")).await;
        let answer = answer.expect("an answer");
        let body = answer.into_body().collect().await.expect("a body");
        assert_eq!(&body.to_bytes()[..], HELLO);
        took.push(started.elapsed());
    }
    took
}

async fn call_plain(address: SocketAddr, end: Instant) -> Vec<Duration> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .expect("a handshake");
    tokio::spawn(connection);
    let mut took = Vec::new();
    while Instant::now() < end {
        let request = Request::get("/").header("host", "bench");
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let started = Instant::now();
        let answer = sender.send_request(request).await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.into_body().collect().await.expect("a body");
        took.push(started.elapsed());
    }
    took
}

/// A server without any of ours.
async fn plain() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.expect("a connection");
            stream.set_nodelay(true).expect("a socket");
            let service = service_fn(|_: Request<hyper::body::Incoming>| async {
                Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(HELLO))))
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

/// When it began, and the bytes that have arrived.
async fn pour(
    mut from: impl AsyncWrite + Unpin + Send + 'static,
    mut to: impl AsyncRead + Unpin,
    seconds: Duration,
) -> (Instant, usize) {
    let pouring = tokio::spawn(async move {
        let chunk = vec![7; CHUNK];
        while from.write_all(&chunk).await.is_ok() {}
    });
    let mut buffer = vec![0; CHUNK];
    let (started, mut total) = (Instant::now(), 0);
    while started.elapsed() < seconds {
        total += to.read(&mut buffer).await.expect("bytes");
    }
    pouring.abort();
    (started, total)
}

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (client, server) = tokio::join!(TcpStream::connect(address), listener.accept());
    let (client, server) = (client.expect("a client"), server.expect("a server").0);
    client.set_nodelay(true).expect("a socket");
    (client, server)
}

async fn over_tcp(seconds: Duration) -> (Instant, usize) {
    let (client, server) = sockets().await;
    pour(client, server, seconds).await
}

async fn over_tls(authority: &Authority, seconds: Duration) -> (Instant, usize) {
    let certificates = authority.node("plain");
    let client_config = certificates.client_config(&[b"h2"]).expect("TLS");
    let server_config = certificates.server_config(&[b"h2"]).expect("TLS");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(client_config));
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server_config));
    let (client, server) = sockets().await;
    let name = "plain".try_into().expect("a name");
    let (client, server) = tokio::join!(connector.connect(name, client), acceptor.accept(server));
    pour(
        client.expect("a client"),
        server.expect("a server"),
        seconds,
    )
    .await
}

async fn over_tunnel(nodes: &Nodes, seconds: Duration) -> (Instant, usize) {
    let mut listener = nodes.server.listen(9, 1).expect("a port");
    let address = SocketAddr::from((nodes.server.address(), 9));
    let (client, server) = tokio::join!(nodes.client.connect(address), listener.accept());
    let (mut client, mut server) = (client.expect("a client"), server.expect("a server"));
    let pouring = tokio::spawn(async move {
        let chunk = Bytes::from(vec![7; CHUNK]);
        while client.writer.write_all(chunk.clone()).await.is_ok() {}
    });
    let (started, mut total) = (Instant::now(), 0);
    while started.elapsed() < seconds {
        total += server
            .reader
            .read()
            .await
            .expect("more")
            .expect("bytes")
            .len();
    }
    pouring.abort();
    (started, total)
}

impl HttpHandler for Hello {
    fn handle(
        self: Arc<Self>,
        _: Request<Body>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Body>, HttpError>> + Send>> {
        let body = Full::new(Bytes::from_static(HELLO)).map_err(|never| match never {});
        Box::pin(std::future::ready(Ok(Response::new(body.boxed_unsync()))))
    }
}

// === impl Nodes ===

impl Nodes {
    /// With the Service's pod on the client's own node, or on the other.
    async fn start(authority: &Authority, on_one: bool) -> Self {
        let tunnels = [free_port(), free_port()];
        let networks = [0, 1].map(|number: usize| {
            let mut tunnel = network::TunnelConfig::new(authority.node(&format!("node-{number}")));
            tunnel.listen = Some(tunnels[number]);
            let mut config = network::Config::default();
            config.node_name = format!("node-{number}");
            config.pod_cidr = cidr(number).parse().expect("a range");
            config.tunnel = Some(tunnel);
            Network::new(config).expect("a network")
        });
        let [first, second] = networks;
        let client = pod(&first, "client");
        let server = pod(if on_one { &first } else { &second }, "server");
        // Port 9 is left to streams.
        let serving = server.serve_http(Ports::Only(vec![8080]), Arc::new(Hello));
        for network in [&first, &second] {
            let objects = objects(tunnels, server.address());
            network.start(api(objects)).expect("a started network");
            network.wait_synced().await;
        }
        let nodes = Self {
            client,
            server,
            _held: (first, second, serving.expect("a free port")),
        };
        // Nodes are learnt beside Services.
        for _ in 0..1_000 {
            let probe = SocketAddr::from((nodes.server.address(), 8080));
            if nodes.client.connect(probe).await.is_ok() {
                return nodes;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the nodes do not find each other");
    }
}

fn pod(network: &Network, name: &str) -> Arc<PodNetwork> {
    let identity = PodIdentity {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        service_account: "default".to_owned(),
        ..PodIdentity::default()
    };
    network.attach_pod(identity).expect("an address")
}

fn cidr(number: usize) -> String {
    format!("100.64.{}.0/18", number * 64)
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address")
}

/// What the API has: two nodes, a Service, its endpoint.
fn objects(tunnels: [SocketAddr; 2], endpoint: Ipv4Addr) -> Vec<(&'static str, Vec<Value>)> {
    let node = |number: usize| {
        json!({"metadata": {"name": format!("node-{number}"),
            "annotations": {"coracle.dev/tunnel": tunnels[number].to_string()}},
            "spec": {"podCIDR": cidr(number)}})
    };
    let service = json!({"metadata": {"name": "hello", "namespace": "default", "uid": "1"},
        "spec": {"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
            "ports": [{"port": 80, "protocol": "TCP"}]}});
    let slice = json!({"metadata": {"name": "hello-1", "namespace": "default", "uid": "2",
            "labels": {"kubernetes.io/service-name": "hello"}}, "addressType": "IPv4",
        "ports": [{"port": 8080, "protocol": "TCP"}], "endpoints": [{"addresses": [endpoint]}]});
    vec![
        ("nodes", vec![node(0), node(1)]),
        ("services", vec![service]),
        ("endpointslices", vec![slice]),
    ]
}

/// An API that lists these objects and reports no change.
fn api(objects: Vec<(&'static str, Vec<Value>)>) -> kube::Client {
    let objects = Arc::new(objects);
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        let objects = Arc::clone(&objects);
        async move {
            if request
                .uri()
                .query()
                .is_some_and(|query| query.contains("watch=true"))
            {
                let never = futures::stream::pending::<Result<_, Infallible>>();
                let body = http_body_util::StreamBody::new(never);
                return Ok::<_, Infallible>(Response::new(body.boxed_unsync()));
            }
            let path = request.uri().path();
            let items = objects.iter().find(|(kind, _)| path.ends_with(kind));
            let items = items.map_or_else(Vec::new, |(_, items)| items.clone());
            let list = json!({"apiVersion": "v1", "kind": "List",
                "metadata": {"resourceVersion": "1"}, "items": items});
            let body = Full::new(Bytes::from(list.to_string()));
            Ok(Response::new(body.boxed_unsync()))
        }
    });
    kube::Client::new(service, "default")
}

/// A cluster's authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

// === impl Authority ===

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    fn node(&self, name: &str) -> Arc<Certificates> {
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        params.distinguished_name = DistinguishedName::new();
        let subject = &mut params.distinguished_name;
        subject.push(DnType::CommonName, format!("system:node:{name}"));
        subject.push(DnType::OrganizationName, "system:nodes");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certificates::new(&NodeTls {
            ca_pem: self.pem.clone().into_bytes(),
            cert_pem: certificate.pem().into_bytes(),
            key_pem: key.serialize_pem().into_bytes(),
        })
        .expect("certificates")
    }
}

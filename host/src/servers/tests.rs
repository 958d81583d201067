//! A client that moves between API servers: one real server behind doors that can be shut, or fall silent.

use std::net::SocketAddr;
use std::time::Duration;

use std::convert::Infallible;

use futures::{StreamExt as _, TryStreamExt as _};
use http_body_util::combinators::BoxBody;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, ListParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::*;
use crate::{Certificates, NodeTls};

const PATIENCE: Duration = Duration::from_secs(30);

fn addresses(texts: &[&str]) -> Vec<Address> {
    let parse = |text: &&str| text.parse().expect("an address");
    texts.iter().map(parse).collect()
}

#[test]
fn the_server_that_answered_stays_first_until_it_is_lost() {
    let all = addresses(&["a", "b", "c"]);
    let (b, gone) = (&all[1], &addresses(&["gone"])[0]);
    assert_eq!(order(&all, None, None), all);
    assert_eq!(order(&all, Some(b), None), addresses(&["b", "a", "c"]));
    assert_eq!(order(&all, Some(b), Some(b)), addresses(&["a", "c", "b"]));
    assert_eq!(
        order(&all, Some(gone), None),
        addresses(&["gone", "a", "b", "c"])
    );
}

#[test]
fn a_path_goes_to_the_name_that_all_servers_have() {
    let path = Uri::from_static("/api/v1/nodes?watch=true");
    let absolute = absolute(&path).expect("a path");
    assert_eq!(
        absolute.to_string(),
        "https://kubernetes.default.svc/api/v1/nodes?watch=true"
    );
}

/// Passes connections on to the server until it is dropped, or silently nowhere once it is `silent`.
struct Door {
    address: SocketAddr,
    silent: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

impl Door {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let silent = CancellationToken::new();
        let hush = silent.clone();
        let task = tokio::spawn(async move {
            let mut passing = tokio::task::JoinSet::new();
            loop {
                let (mut here, _) = listener.accept().await.expect("accepted");
                let hush = hush.clone();
                passing.spawn(async move {
                    let mut there = TcpStream::connect(server).await.expect("connected");
                    let mut passed = Box::pin(tokio::io::copy_bidirectional(&mut here, &mut there));
                    tokio::select! {
                        _ = &mut passed => {}
                        // Both ends stay open, and nothing passes any longer.
                        () = hush.cancelled() => std::future::pending().await,
                    }
                });
            }
        });
        Self {
            address,
            silent,
            _task: AbortOnDropHandle::new(task),
        }
    }

    fn server(&self) -> Address {
        self.address.into()
    }
}

async fn cluster() -> (api::Handle, Door, Door, Servers) {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let api = api::start(api::Config::in_memory()).await;
    let api = api.expect("the API server starts");
    let (one, two) = tokio::join!(Door::to(api.local_addr()), Door::to(api.local_addr()));
    let identity = api.pki().admin().expect("a certificate");
    let tls = Certificates::new(&NodeTls {
        ca_pem: api.pki().ca_pem().as_bytes().to_vec(),
        cert_pem: identity.certificate_pem.as_bytes().to_vec(),
        key_pem: identity.key_pem.as_bytes().to_vec(),
    })
    .expect("certificates that fit");
    let tls = Arc::new(tls.client_config(&[b"h2"]).expect("TLS"));
    let servers = Servers::new(vec![one.server(), two.server()], Vec::new(), tls);
    (api, one, two, servers)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_stay_with_a_server_until_it_goes_away_and_then_reach_another() {
    let (api, one, two, servers) = cluster().await;
    let namespaces: Api<Namespace> = Api::all(servers.client());
    for _ in 0..3 {
        namespaces
            .list(&ListParams::default())
            .await
            .expect("listed");
        assert_eq!(servers.current(), Some(one.server()));
    }
    let gone = one.server();
    drop(one);
    namespaces
        .list(&ListParams::default())
        .await
        .expect("listed by the other");
    assert_eq!(servers.current(), Some(two.server()));
    drop(two);
    let error = namespaces.list(&ListParams::default()).await;
    let text = chain(&error.expect_err("nobody is left"));
    assert!(text.contains(&gone.to_string()), "{text}");
    api.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_through_a_server_that_falls_silent_goes_on_through_another_in_seconds() {
    let (api, one, two, servers) = cluster().await;
    let admin = kube::Client::new(api.router_as(api::auth::User::admin()), "default");
    let client = servers.client();
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let mut changes = watcher(maps, watcher::Config::default())
        .default_backoff()
        .applied_objects()
        // Errors are what this is about; the watcher goes on by itself.
        .filter(|change| std::future::ready(change.is_ok()))
        .boxed();
    let mut until = async |name: &str| {
        let seen = async {
            while let Some(map) = changes.try_next().await.expect("errors are left out") {
                if map.metadata.name.as_deref() == Some(name) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, seen)
            .await
            .expect("seen in time");
    };
    let create = async |name: &str| {
        let map = ConfigMap {
            metadata: kube::core::ObjectMeta {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            ..ConfigMap::default()
        };
        let maps: Api<ConfigMap> = Api::default_namespaced(admin.clone());
        maps.create(&PostParams::default(), &map)
            .await
            .expect("created");
    };
    create("before").await;
    until("before").await;
    assert_eq!(servers.current(), Some(one.server()));
    one.silent.cancel();
    create("after").await;
    let begun = Instant::now();
    until("after").await;
    assert!(
        begun.elapsed() < Duration::from_secs(12),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(servers.current(), Some(two.server()));
}

/// A server that has lost what it stands on: not ready, no answer to writes, 503 to reads, and watches that say nothing.
struct Sick {
    address: SocketAddr,
    _task: AbortOnDropHandle<()>,
}

impl Sick {
    async fn start(api: &api::Handle) -> Self {
        use rustls::pki_types::pem::PemObject as _;
        use rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let identity = api.pki().api_server([10, 96, 0, 1].into(), &[], &[]);
        let identity = identity.expect("a certificate");
        let certificate = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes());
        let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes());
        let mut tls = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.expect("PEM")], key.expect("PEM"))
            .expect("a pair");
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let address = listener.local_addr().expect("an address");
        let task = tokio::spawn(async move {
            let mut serving = tokio::task::JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let acceptor = acceptor.clone();
                serving.spawn(async move {
                    let stream = acceptor.accept(stream).await.expect("a client of ours");
                    let stream = hyper_util::rt::TokioIo::new(stream);
                    let executor = hyper_util::rt::TokioExecutor::new();
                    let answering = hyper::service::service_fn(Self::answer);
                    let builder = hyper::server::conn::http2::Builder::new(executor);
                    drop(builder.serve_connection(stream, answering).await);
                });
            }
        });
        Self {
            address,
            _task: AbortOnDropHandle::new(task),
        }
    }

    async fn answer(
        request: Request<Incoming>,
    ) -> Result<Response<BoxBody<bytes::Bytes, Infallible>>, Infallible> {
        let is_watch = |query: &str| query.contains("watch=true");
        let mut answer = Response::new(BoxBody::default());
        let status = match request.uri().path() {
            "/readyz" => StatusCode::INTERNAL_SERVER_ERROR,
            _ if request.method() != Method::GET => std::future::pending::<StatusCode>().await,
            _ if request.uri().query().is_some_and(is_watch) => {
                let nothing = futures::stream::pending::<Result<bytes::Bytes, Infallible>>();
                let frames = nothing.map_ok(hyper::body::Frame::data);
                *answer.body_mut() = BoxBody::new(http_body_util::StreamBody::new(frames));
                StatusCode::OK
            }
            _ => StatusCode::SERVICE_UNAVAILABLE,
        };
        *answer.status_mut() = status;
        Ok(answer)
    }

    fn server(&self) -> Address {
        self.address.into()
    }
}

/// Names of ConfigMaps that are watched through these servers.
fn watch_maps(servers: &Servers) -> tokio::sync::mpsc::Receiver<String> {
    let maps: Api<ConfigMap> = Api::default_namespaced(servers.client());
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    tokio::spawn(async move {
        let mut changes = watcher(maps, watcher::Config::default())
            .default_backoff()
            .applied_objects()
            .boxed();
        while let Some(change) = changes.next().await {
            let Ok(map) = change else { continue };
            let name = map.metadata.name.unwrap_or_default();
            if sender.send(name).await.is_err() {
                return;
            }
        }
    });
    receiver
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_has_lost_its_database_is_left_for_one_that_is_ready() {
    let (api, _, well, servers) = cluster().await;
    let sick = Sick::start(&api).await;
    let tls = Arc::clone(&servers.0.tls);
    let map = |name: &str| ConfigMap {
        metadata: kube::core::ObjectMeta {
            name: Some(name.to_owned()),
            ..Default::default()
        },
        ..ConfigMap::default()
    };

    // A read is answered with 503, and then by the other.
    let servers = Servers::new(
        vec![sick.server(), well.server()],
        Vec::new(),
        Arc::clone(&tls),
    );
    let maps: Api<ConfigMap> = Api::default_namespaced(servers.client());
    maps.list(&ListParams::default()).await.expect("listed");
    assert_eq!(servers.current(), Some(well.server()));

    // A write has no answer; what was under way ends, and goes on through the other.
    let servers = Servers::new(
        vec![sick.server(), well.server()],
        Vec::new(),
        Arc::clone(&tls),
    );
    let request = http::Request::get("/api/v1/configmaps?watch=true").body(Vec::new());
    let client = servers.client();
    let watching = client.request_events::<ConfigMap>(request.expect("a request"));
    let watching = watching.await.expect("a watch that says nothing");
    let mut watching = Box::pin(watching);
    assert_eq!(servers.current(), Some(sick.server()));
    let maps: Api<ConfigMap> = Api::default_namespaced(servers.client());
    let begun = Instant::now();
    let params = PostParams::default();
    maps.create(&params, &map("a"))
        .await
        .expect_err("whether it happened is not known");
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "the node's deadline"
    );
    assert_eq!(servers.current(), Some(well.server()));
    let ended = tokio::time::timeout(PATIENCE, watching.try_next()).await;
    assert!(!matches!(ended.expect("in time"), Ok(Some(_))), "it ended");
    maps.create(&params, &map("a")).await.expect("created");
    let mut seen = watch_maps(&servers);
    let seen = tokio::time::timeout(PATIENCE, async {
        while seen.recv().await.as_deref() != Some("a") {}
    });
    seen.await.expect("seen");

    // Where nobody is ready nobody is left.
    let other = Sick::start(&api).await;
    let servers = Servers::new(vec![sick.server(), other.server()], Vec::new(), tls);
    let maps: Api<ConfigMap> = Api::default_namespaced(servers.client());
    for _ in 0..3 {
        let error = maps.list(&ListParams::default()).await;
        let error = error.expect_err("nobody can");
        assert!(
            matches!(&error, kube::Error::Api(status) if status.code == 503),
            "{error:?}"
        );
        assert_eq!(servers.current(), Some(sick.server()));
    }
    api.shutdown().await;
}

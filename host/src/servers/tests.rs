//! A client that moves between API servers: one real server behind doors that can be shut, or fall silent.

use std::net::SocketAddr;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
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

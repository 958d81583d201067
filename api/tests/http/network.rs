//! Over real sockets: certificates, the kubeconfig, restarts on the same data directory, draining.

use std::time::Duration;

use api::{Config, Handle};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use rcgen::{CertificateParams, DnType, KeyPair};

use crate::support::configmap;

async fn start(directory: &std::path::Path) -> Handle {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = Config {
        listen: ([127, 0, 0, 1], 0).into(),
        ..Config::at(directory.to_owned())
    };
    api::start(config).await.expect("starts")
}

async fn client(handle: &Handle) -> Client {
    let kubeconfig = Kubeconfig::read_from(handle.kubeconfig()).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .expect("a configuration");
    Client::try_from(config).expect("a client")
}

#[tokio::test]
async fn the_kubeconfig_leads_to_the_server_and_everything_survives_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&first).await);
    let map: ConfigMap = serde_json::from_value(configmap("a")).expect("a ConfigMap");
    let created = maps
        .create(&PostParams::default(), &map)
        .await
        .expect("created");
    first.shutdown().await;

    let second = start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&second).await);
    let read = maps.get("a").await.expect("still there");
    assert_eq!(read.metadata.uid, created.metadata.uid);
    assert_eq!(
        read.metadata.resource_version,
        created.metadata.resource_version
    );
    let labelled = ListParams::default().fields("metadata.name=a");
    let listed = maps.list(&labelled).await.expect("listed");
    assert_eq!(listed.items.len(), 1, "the index was made again");
    second.shutdown().await;
}

#[tokio::test]
async fn a_second_server_on_the_same_directory_is_refused() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = start(directory.path()).await;
    let second = api::start(Config::at(directory.path().to_owned())).await;
    let error = second.err().expect("refused");
    let source = std::error::Error::source(&error).expect("the store says why");
    assert!(source.to_string().contains("in use"), "{error}: {source}");
    first.shutdown().await;
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = start(directory.path()).await;
    let config = Config {
        listen: first.local_addr(),
        ..Config::in_memory()
    };
    let error = api::start(config).await.err().expect("refused");
    let expect = format!("cannot listen on {}", first.local_addr());
    assert_eq!(error.to_string(), expect);
    first.shutdown().await;
}

#[tokio::test]
async fn shutting_down_ends_watches_cleanly_and_soon() {
    use futures::TryStreamExt as _;
    let directory = tempfile::tempdir().expect("a directory");
    let handle = start(directory.path()).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&handle).await);
    let stream = maps.watch(&WatchParams::default(), "0").await;
    let mut stream = Box::pin(stream.expect("a watch"));
    stream
        .try_next()
        .await
        .expect("watches")
        .expect("the CA's copy");
    let stopped = tokio::time::timeout(Duration::from_secs(5), handle.shutdown());
    let (stopped, rest) = tokio::join!(stopped, stream.try_collect::<Vec<_>>());
    stopped.expect("in time");
    rest.expect("a clean end");
}

/// An administrator whose certificate is good for `life`.
#[expect(clippy::disallowed_methods, reason = "TLS reads the real clock")]
async fn administrator_for(handle: &Handle, life: Duration) -> Client {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let names = &mut params.distinguished_name;
    names.push(DnType::OrganizationName, "system:masters");
    names.push(DnType::CommonName, "brief");
    let key = KeyPair::generate().expect("a key");
    let request = params.serialize_request(&key).expect("a request");
    let usages = ["digital signature", "client auth"];
    let signed = handle
        .pki()
        .sign(request.der(), &usages, life, jiff::Timestamp::now());
    let certificate = STANDARD.encode(signed.expect("signed"));
    let key = STANDARD.encode(key.serialize_pem());
    let text = std::fs::read_to_string(handle.kubeconfig()).expect("a kubeconfig");
    let mut config: serde_json::Value = serde_norway::from_str(&text).expect("YAML");
    let user = &mut config["users"][0]["user"];
    user["client-certificate-data"] = certificate.into();
    user["client-key-data"] = key.into();
    let config = Kubeconfig::from_yaml(&config.to_string()).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(config, &options).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

#[tokio::test]
async fn a_connection_does_not_outlive_the_certificate_it_began_with() {
    let directory = tempfile::tempdir().expect("a directory");
    let handle = start(directory.path()).await;
    let client = administrator_for(&handle, Duration::from_secs(6)).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    maps.list(&ListParams::default())
        .await
        .expect("while it is good");
    let refused = async {
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        // On the connection there is, as long as it is one.
        while maps.list(&ListParams::default()).await.is_ok() {
            tick.tick().await;
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(30), refused);
    refused.await.expect("it ends with the certificate");
    handle.shutdown().await;
}

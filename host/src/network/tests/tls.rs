//! Calls that leave plain HTTP: TLS inside the cluster, real servers outside, the limits of both.

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};

use super::*;
use crate::network::{Limits, Policy, SocketError};

/// A CA, and a TLS server's configuration with a certificate of it for `name`.
fn authority(name: &str) -> (CertificateDer<'static>, tokio_rustls::TlsAcceptor) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap();
    let issuer = Issuer::new(params, key);
    let leaf_key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()])
        .unwrap()
        .signed_by(&leaf_key, &issuer)
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![leaf.der().clone()],
            PrivateKeyDer::Pkcs8(leaf_key.serialize_der().into()),
        )
        .unwrap();
    (ca.der().clone(), Arc::new(config).into())
}

/// Answers every request on a connection with its path.
async fn paths(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = service_fn(|request: Request<hyper::body::Incoming>| async move {
        let path = request.uri().path().to_owned();
        Ok::<_, std::convert::Infallible>(Response::new(path))
    });
    let connection = hyper::server::conn::http1::Builder::new();
    drop(connection.serve_connection(TokioIo::new(io), service).await);
}

#[tokio::test]
async fn a_socket_guest_with_a_certificate_of_the_cluster_is_called_over_tls() {
    let (ca, acceptor) = authority("hello.shop.svc.cluster.local");
    let network = Network::new(Config {
        cluster_ca: vec![ca],
        ..Config::default()
    })
    .unwrap();
    let client = pod(&network, "client");
    let server = pod(&network, "server");
    let mut listener = server.listen(8443, 8).unwrap();
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(tls) = acceptor.accept(stream.into_io()).await {
                    paths(tls).await;
                }
            });
        }
    });
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 443}]});
    publish(&network, "hello", spec, json!([{"port": 8443}]), &[&server]);
    let answer = ask(&client, "https://hello.shop.svc.cluster.local/path").await;
    assert_eq!(answer.unwrap(), "/path");
    let wrong_name = ask(&client, "https://hello/path").await.unwrap_err();
    assert!(matches!(wrong_name, HttpError::Tls(_)), "{wrong_name}");
}

#[tokio::test]
async fn an_http_guest_speaks_no_tls() {
    let network = network();
    let client = pod(&network, "client");
    let (web, _serving) = web(&network, "web");
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 443}]});
    publish(&network, "hello", spec, json!([{"port": 8080}]), &[&web]);
    let error = ask(&client, "https://hello/").await.unwrap_err();
    assert!(matches!(error, HttpError::Tls(_)), "{error}");
}

#[tokio::test]
async fn real_servers_are_called_within_policy_and_limits() {
    let real = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = real.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = real.accept().await {
            tokio::spawn(paths(socket));
        }
    });
    let network = Network::new(Config {
        egress: Policy {
            allow: vec!["127.0.0.1/32".parse().unwrap()],
            ..Policy::default()
        },
        limits: Limits {
            outside_per_pod: 1,
            ..Limits::default()
        },
        ..Config::default()
    })
    .unwrap();
    let client = pod(&network, "client");
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    behind(
        &network,
        ("shop", "real"),
        spec,
        json!([{"port": port}]),
        &["127.0.0.1"],
    );
    assert_eq!(ask(&client, "http://real/one").await.unwrap(), "/one");
    assert_eq!(
        ask(&client, "http://real/two").await.unwrap(),
        "/two",
        "on the same connection"
    );
    let second = client.connect("10.96.0.7:80".parse().unwrap()).await;
    assert_eq!(second.err(), Some(SocketError::TooMany));
    let client = pod(&network, "another");
    let error = ask(&client, "http://no-such-host.invalid/")
        .await
        .unwrap_err();
    assert!(
        matches!(error, HttpError::NotFound(_) | HttpError::Timeout(_)),
        "{error:?}"
    );
}

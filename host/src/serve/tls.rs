//! Who may ask this node: TLS with client certificates of the cluster's authority, and of those only the API server's.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use types::well_known::USER_KUBELET_CLIENT;

/// The certificates of this node cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{what}: {text}")]
    Pem { what: &'static str, text: String },
    #[error("the node's TLS cannot be set up: {0}")]
    Setup(String),
}

pub(crate) fn certificates(
    pem: &[u8],
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |text: String| Error::Pem { what, text };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| wrong(error.to_string()))?;
    if found.is_empty() {
        Err(wrong("no certificate in it".to_owned()))
    } else {
        Ok(found)
    }
}

pub(crate) fn config(
    ca_pem: &[u8],
    cert_pem: &[u8],
    key_pem: &[u8],
) -> Result<Arc<ServerConfig>, Error> {
    let setup = |error: &dyn std::fmt::Display| Error::Setup(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca_pem, "the cluster's CA certificate")? {
        roots.add(certificate).map_err(|error| setup(&error))?;
    }
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| Error::Pem {
        what: "the node's private key",
        text: error.to_string(),
    })?;
    let chain = certificates(cert_pem, "the node's certificate")?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| setup(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| setup(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The verified certificate's common name is the API server's.
pub(super) fn is_api_server(connection: &ServerConnection) -> bool {
    let Some(certificate) = connection
        .peer_certificates()
        .and_then(|chain| chain.first())
    else {
        return false;
    };
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let mut names = certificate.subject().iter_common_name();
    names.next().and_then(|name| name.as_str().ok()) == Some(USER_KUBELET_CLIENT)
}

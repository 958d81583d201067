//! Which certificate a TLS client sees: chosen at each handshake from the newest table, so that a changed Secret needs no
//! connection to end. Makes the self-signed one that stands in where nothing fits.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use types::certificate::parse;

use super::Shared;
use crate::tls::Error;

/// For one port.
pub(super) struct Chooser {
    pub(super) shared: Arc<Shared>,
    pub(super) port: u16,
}

// === impl Chooser ===

impl Chooser {
    fn choose(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        let live = Arc::clone(&self.shared.live.borrow());
        let door = live.table.doors.get(&self.port);
        let found = door.and_then(|door| {
            let mut secrets = door.certificate(name);
            secrets.find_map(|secret| live.certificates.get(secret))
        });
        Arc::clone(found.unwrap_or(&self.shared.fallback))
    }
}

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chooser({})", self.port)
    }
}

impl ResolvesServerCert for Chooser {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.choose(hello.server_name()))
    }
}

/// HTTP/2 and HTTP/1.1 over TLS, certificates as the table has them.
pub(super) fn server_config(shared: &Arc<Shared>, port: u16) -> Result<ServerConfig, Error> {
    let chooser = Chooser {
        shared: Arc::clone(shared),
        port,
    };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::Setup(error.to_string()))?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(chooser));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

pub(super) fn self_signed() -> Result<Arc<CertifiedKey>, Error> {
    let setup = |error: rcgen::Error| Error::Setup(error.to_string());
    let key = rcgen::KeyPair::generate().map_err(setup)?;
    let mut params =
        rcgen::CertificateParams::new(vec!["ingress.invalid".to_owned()]).map_err(setup)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(
        rcgen::DnType::CommonName,
        "Coracle self-signed certificate: no Secret for this name",
    );
    let certificate = params.self_signed(&key).map_err(setup)?;
    parse(certificate.pem().as_bytes(), key.serialize_pem().as_bytes())
        .map(Arc::new)
        .map_err(Error::Setup)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

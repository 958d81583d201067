//! What this node shows to others and whom it trusts: one authority, one certificate as a client, one as a server.
//!
//! Both may be replaced while the node runs ([`Certificates::replace`]): every new connection uses the newest. Reads no
//! file and asks nobody; whoever joins the cluster does that.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig, SignatureScheme};
use tokio::sync::watch;
use types::well_known::{GROUP_NODES, USER_KUBELET_CLIENT};

/// PEM texts: the cluster's authority, and a certificate that is good as a client and as a server.
pub struct NodeTls {
    pub ca_pem: Vec<u8>,
    pub cert_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
}

/// The certificates of this node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{what}: {text}")]
    Pem { what: &'static str, text: String },
    #[error("the node's TLS cannot be set up: {0}")]
    Setup(String),
}

/// Shared by everything on this node that speaks TLS inside the cluster.
pub struct Certificates {
    authority: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    client: Arc<Slot>,
    server: Arc<Slot>,
    /// Told when there is another client certificate.
    renewed: watch::Sender<()>,
}

/// Which of the two certificates.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// Shown to the API server and to other nodes.
    Client,
    /// Shown by the node's endpoint and by its tunnel.
    Server,
}

/// A certificate that connections pick up when they are made.
struct Slot(RwLock<Arc<CertifiedKey>>);

/// Who is at the other end, from a certificate that TLS has verified.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Peer {
    pub(crate) common_name: String,
    pub(crate) organizations: Vec<String>,
}

// === impl Certificates ===

impl Certificates {
    /// One certificate for both roles.
    pub fn new(tls: &NodeTls) -> Result<Arc<Self>, Error> {
        let key = certified(&tls.cert_pem, &tls.key_pem)?;
        let authority = certificates(&tls.ca_pem, "the cluster's CA certificate")?;
        let mut roots = RootCertStore::empty();
        for certificate in &authority {
            roots
                .add(certificate.clone())
                .map_err(|error| Error::Setup(error.to_string()))?;
        }
        Ok(Arc::new(Self {
            authority,
            roots: Arc::new(roots),
            client: Arc::new(Slot(RwLock::new(Arc::clone(&key)))),
            server: Arc::new(Slot(RwLock::new(key))),
            renewed: watch::Sender::default(),
        }))
    }

    /// New connections show this one from now on; those that are open stay.
    pub fn replace(&self, role: Role, cert_pem: &[u8], key_pem: &[u8]) -> Result<(), Error> {
        let key = certified(cert_pem, key_pem)?;
        let slot = match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        };
        *slot.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        if role == Role::Client {
            self.renewed.send_replace(());
        }
        Ok(())
    }

    /// Changes when there is another client certificate.
    pub(crate) fn renewed(&self) -> watch::Receiver<()> {
        self.renewed.subscribe()
    }

    pub fn authority(&self) -> &[CertificateDer<'static>] {
        &self.authority
    }

    /// Asks every client for a certificate of the cluster's authority. `alpn` in the order of preference.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, Error> {
        let setup = |error: &dyn fmt::Display| Error::Setup(error.to_string());
        let provider = provider();
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::clone(&self.roots),
            Arc::clone(&provider),
        )
        .build()
        .map_err(|error| setup(&error))?;
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(&self.server) as _;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| setup(&error))?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(resolver);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }

    /// Trusts the cluster's authority only, and shows the node's client certificate.
    pub fn client_config(&self, alpn: &[&[u8]]) -> Result<ClientConfig, Error> {
        let resolver: Arc<dyn ResolvesClientCert> = Arc::clone(&self.client) as _;
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Setup(error.to_string()))?
            .with_root_certificates(Arc::clone(&self.roots))
            .with_client_cert_resolver(resolver);
        // A resumed session would go on with a certificate that has been replaced.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(config)
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates in a PEM text; an error when there is none.
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

fn certified(cert_pem: &[u8], key_pem: &[u8]) -> Result<Arc<CertifiedKey>, Error> {
    let chain = certificates(cert_pem, "the node's certificate")?;
    let key = PrivateKeyDer::from_pem_slice(key_pem).map_err(|error| Error::Pem {
        what: "the node's private key",
        text: error.to_string(),
    })?;
    let key = CertifiedKey::from_der(chain, key, &provider())
        .map_err(|error| Error::Setup(error.to_string()))?;
    Ok(Arc::new(key))
}

// === impl Slot ===

impl Slot {
    fn get(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot")
    }
}

impl ResolvesServerCert for Slot {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }
}

impl ResolvesClientCert for Slot {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.get())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

// === impl Peer ===

impl Peer {
    /// `None` when the other end has shown no certificate that can be read.
    pub(crate) fn of(connection: &CommonState) -> Option<Self> {
        let certificate = connection.peer_certificates()?.first()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
        let subject = certificate.subject();
        let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            name.as_str().map(str::to_owned).ok()
        };
        Some(Self {
            common_name: subject.iter_common_name().next().and_then(text)?,
            organizations: subject.iter_organization().filter_map(text).collect(),
        })
    }

    pub(crate) fn is_api_server(&self) -> bool {
        self.common_name == USER_KUBELET_CLIENT
    }

    /// The name of the node this is, if it is one.
    pub(crate) fn node(&self) -> Option<&str> {
        let of_nodes = self.organizations.iter().any(|group| group == GROUP_NODES);
        self.common_name
            .strip_prefix("system:node:")
            .filter(|_| of_nodes)
    }
}

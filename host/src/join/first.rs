//! The first handshake with a cluster whose CA the node does not have yet: it believes the one whose hash its token names.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use sha2::{Digest, Sha256};

/// The chain must contain the certificate with this hash, and the server's must come from it.
#[derive(Debug)]
pub(crate) struct Pinned {
    ca: [u8; 32],
    provider: Arc<CryptoProvider>,
    found: OnceLock<CertificateDer<'static>>,
    /// A server has shown another authority.
    other: AtomicBool,
}

#[derive(Debug, thiserror::Error)]
#[error("the server shows no CA with the hash that the token names")]
struct AnotherCluster;

// === impl Pinned ===

impl Pinned {
    pub(crate) fn new(ca: [u8; 32]) -> Arc<Self> {
        Arc::new(Self {
            ca,
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            found: OnceLock::new(),
            other: AtomicBool::new(false),
        })
    }

    /// Shows no certificate: there is none yet.
    pub(crate) fn client_config(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(self) as _)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// The cluster's CA, once a server has proved that it has it.
    pub(crate) fn ca(&self) -> Option<&CertificateDer<'static>> {
        self.found.get()
    }

    /// Servers answer, and none of them is of the cluster that is meant.
    pub(crate) fn is_refused(&self) -> bool {
        self.other.load(Ordering::Relaxed) && self.found.get().is_none()
    }

    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<(), Error> {
        let pinned = |certificate: &&CertificateDer<'_>| {
            Sha256::digest(certificate.as_ref()).as_slice() == self.ca
        };
        let Some(ca) = chain.iter().find(pinned) else {
            self.other.store(true, Ordering::Relaxed);
            let other = OtherError(Arc::new(AnotherCluster));
            return Err(Error::InvalidCertificate(CertificateError::Other(other)));
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&self.provider),
        );
        let verifier = verifier
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        verifier.verify_server_cert(leaf, chain, name, &[], now)?;
        // The signature with the leaf's key follows; without it the handshake fails and nothing is sent.
        let _ = self.found.set(ca.clone().into_owned());
        Ok(())
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, chain, name, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let algorithms = &self.provider.signature_verification_algorithms;
        algorithms.supported_schemes()
    }
}

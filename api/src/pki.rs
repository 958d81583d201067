//! The cluster's certificates: one CA, and what it has signed. Owns the files below `pki/` in the data directory.
//!
//! | file | who | signed for |
//! | --- | --- | --- |
//! | `ca` | the cluster | itself, ten years |
//! | `apiserver` | the API's listener | `kubernetes.default.svc`, 10.96.0.1, localhost, the listen addresses |
//! | `admin` | the admin kubeconfig | CN `kubernetes-admin`, O `system:masters` |
//! | `kubelet-client` | the API server calling a node | CN `kube-apiserver-kubelet-client`, O `system:masters` |
//! | `node-NAME` | a node, as server and client | CN `system:node:NAME`, O `system:nodes` |
//!
//! | `sa` | service accounts' tokens | a key alone (EC P-256) |
//!
//! Files (mode 0600) are used again on the next start; a leaf that is about to expire, or that does not cover an address
//! it is wanted for, is issued anew. Private keys never leave this directory but through [`Identity`]. Where several
//! servers share a store, `ca` and `sa` are in the store ([`material`]), and each server signs its own leaves.

mod files;
pub mod kubeconfig;
mod material;
mod shown;
mod sign;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use types::well_known::{GROUP_MASTERS, GROUP_NODES, USER_KUBELET_CLIENT};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use self::material::Material;
pub use self::material::RESOURCE as MATERIAL;
pub use self::shown::Shown;

/// A certificate and its private key, both PEM.
#[derive(Clone)]
pub struct Identity {
    pub certificate_pem: String,
    pub key_pem: String,
}

/// The cluster's authority. Cheap to clone.
#[derive(Clone)]
pub struct Pki {
    ca_pem: Arc<str>,
    issuer: Arc<Issuer<'static, KeyPair>>,
    service_account_key: Arc<str>,
    service_account_public_key: Arc<str>,
    /// `None` keeps everything in memory.
    directory: Option<PathBuf>,
    now: jiff::Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot make a certificate for {name}")]
    Make { name: String, source: rcgen::Error },
    #[error("cannot read the certificate of {name}: {reason}")]
    Read { name: String, reason: String },
    #[error("cannot keep {name} in the store")]
    Store { name: String, source: store::Error },
    #[error("no certificate can be for the usage {0:?}")]
    Usage(String),
    #[error("cannot set up TLS for {name}")]
    Tls { name: String, source: rustls::Error },
}

/// What a leaf certificate says.
struct Leaf<'a> {
    /// Name of the files.
    file: &'a str,
    common_name: &'a str,
    organization: Option<&'a str>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    server: bool,
    client: bool,
}

/// Certificates begin this much before they are made, as clocks differ.
const BACKDATE: time::Duration = time::Duration::hours(1);
const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
/// A leaf with less than a part in this many of its life left is issued anew.
const RENEW_AT: i64 = 3;

// === impl Pki ===

impl Pki {
    /// Reads or makes the authority. With a directory, its files are made there; without, everything stays in memory.
    pub fn open(directory: Option<&Path>, now: jiff::Timestamp) -> Result<Self, Error> {
        let directory = directory.map(|directory| directory.join("pki"));
        if let Some(directory) = &directory {
            files::make_directory(directory)?;
        }
        let material = match &directory {
            Some(directory) => Material::in_files(directory, now)?,
            None => Material::in_memory(now)?,
        };
        Self::of(material, directory, now)
    }

    /// With an authority that is kept elsewhere; the directory is for leaves.
    pub fn with(
        material: Material,
        directory: Option<&Path>,
        now: jiff::Timestamp,
    ) -> Result<Self, Error> {
        let directory = directory.map(|directory| directory.join("pki"));
        if let Some(directory) = &directory {
            files::make_directory(directory)?;
        }
        Self::of(material, directory, now)
    }

    fn of(
        material: Material,
        directory: Option<PathBuf>,
        now: jiff::Timestamp,
    ) -> Result<Self, Error> {
        let Material {
            ca,
            service_account_key,
        } = material;
        let key = KeyPair::from_pem(&ca.key_pem).map_err(|source| make("the CA", source))?;
        let issuer = Issuer::from_ca_cert_pem(&ca.certificate_pem, key)
            .map_err(|source| make("the CA", source))?;
        Ok(Self {
            ca_pem: Arc::from(ca.certificate_pem),
            issuer: Arc::new(issuer),
            service_account_public_key: material::public_half(&service_account_key)?,
            service_account_key: service_account_key.into(),
            directory,
            now,
        })
    }

    /// The same authority at another time: leaves are judged and issued as of `now`.
    pub fn at(&self, now: jiff::Timestamp) -> Self {
        Self {
            now,
            ..self.clone()
        }
    }

    /// What signs service accounts' tokens: PEM, PKCS8, EC P-256. The same for all servers of a cluster.
    pub fn service_account_key(&self) -> &str {
        &self.service_account_key
    }

    /// Its public half: PEM, SubjectPublicKeyInfo.
    pub fn service_account_public_key(&self) -> &str {
        &self.service_account_public_key
    }

    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// For the API's listener. `addresses` are those it may be reached at beside loopback and the Service's.
    pub fn api_server(
        &self,
        service: IpAddr,
        addresses: &[IpAddr],
        names: &[String],
    ) -> Result<Identity, Error> {
        let mut all_names: Vec<String> = [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "localhost",
        ]
        .map(str::to_owned)
        .to_vec();
        all_names.extend(names.iter().cloned());
        let mut all = vec![service, IpAddr::from([127, 0, 0, 1])];
        all.push(std::net::Ipv6Addr::LOCALHOST.into());
        all.extend(addresses.iter().filter(|a| !a.is_unspecified()));
        all.dedup();
        self.leaf(&Leaf {
            file: "apiserver",
            common_name: "kube-apiserver",
            organization: None,
            names: all_names,
            addresses: all,
            server: true,
            client: false,
        })
    }

    pub fn admin(&self) -> Result<Identity, Error> {
        self.client("admin", "kubernetes-admin", Some(GROUP_MASTERS))
    }

    /// What the API server shows to a node's endpoint.
    pub fn kubelet_client(&self) -> Result<Identity, Error> {
        self.client("kubelet-client", USER_KUBELET_CLIENT, Some(GROUP_MASTERS))
    }

    /// A node's certificate, for its endpoint and as a client of the API.
    pub fn node(&self, name: &str, addresses: &[IpAddr]) -> Result<Identity, Error> {
        self.leaf(&Leaf {
            file: &format!("node-{name}"),
            common_name: &format!("system:node:{name}"),
            organization: Some(GROUP_NODES),
            names: vec![name.to_owned(), "localhost".to_owned()],
            addresses: addresses.to_vec(),
            server: true,
            client: true,
        })
    }

    /// A client certificate for anybody: the CN is the user, the O its group.
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity, Error> {
        self.leaf(&Leaf {
            file,
            common_name: user,
            organization: group,
            names: Vec::new(),
            addresses: Vec::new(),
            server: false,
            client: true,
        })
    }

    /// What the API's listener shows: the leaf and the authority, so that whoever joins can compare the authority with
    /// what its token says within the first handshake.
    pub fn chain(&self, identity: &Identity) -> Identity {
        Identity {
            certificate_pem: format!("{}{}", identity.certificate_pem, self.ca_pem),
            key_pem: identity.key_pem.clone(),
        }
    }

    /// Offers h2 and http/1.1; a client may show a certificate of this CA, and one of any other authority is refused.
    pub fn server_config(&self, shown: Arc<Shown>) -> Result<rustls::ServerConfig, Error> {
        let tls = |source| Error::Tls {
            name: "the API's listener".to_owned(),
            source,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(self.roots()?), provider.clone())
                .allow_unauthenticated()
                .build()
                .map_err(|error| tls(rustls::Error::General(error.to_string())))?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(shown);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }

    /// Trusts this CA only and shows what is in `shown`.
    pub fn client_config(&self, shown: Arc<Shown>) -> Result<rustls::ClientConfig, Error> {
        let tls = |source| Error::Tls {
            name: "calls to nodes".to_owned(),
            source,
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(tls)?
            .with_root_certificates(self.roots()?)
            .with_client_cert_resolver(shown);
        Ok(config)
    }

    /// When the authority's own certificate ends.
    fn ends(&self) -> OffsetDateTime {
        let ends = || {
            let ca = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()).ok()?;
            let (_, ca) = X509Certificate::from_der(&ca).ok()?;
            let end = ca.validity().not_after.timestamp();
            OffsetDateTime::from_unix_timestamp(end).ok()
        };
        ends().unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    fn roots(&self) -> Result<RootCertStore, Error> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            let certificate = certificate.map_err(|error| read("the CA", error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| read("the CA", error.to_string()))?;
        }
        Ok(roots)
    }

    fn leaf(&self, leaf: &Leaf<'_>) -> Result<Identity, Error> {
        if let Some(directory) = &self.directory
            && let Some(identity) = files::read(directory, leaf.file)?
            && self.still_serves(&identity, leaf)
        {
            return Ok(identity);
        }
        let identity = self.issue(leaf)?;
        if let Some(directory) = &self.directory {
            files::write(directory, leaf.file, &identity)?;
        }
        Ok(identity)
    }

    fn issue(&self, leaf: &Leaf<'_>) -> Result<Identity, Error> {
        let failed = |source| make(leaf.common_name, source);
        let mut params = CertificateParams::new(leaf.names.clone()).map_err(failed)?;
        let addresses = leaf.addresses.iter().copied().map(SanType::IpAddress);
        params.subject_alt_names.extend(addresses);
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(organization) = leaf.organization {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organization);
        }
        params
            .distinguished_name
            .push(DnType::CommonName, leaf.common_name);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        if leaf.server {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if leaf.client {
            params.insert_extended_key_usage(ExtendedKeyUsagePurpose::ClientAuth);
        }
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = validity(self.now, LEAF_DAYS);
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &*self.issuer).map_err(failed)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }

    fn has_signed(&self, certificate: &X509Certificate<'_>) -> bool {
        let Ok(ca) = CertificateDer::from_pem_slice(self.ca_pem.as_bytes()) else {
            return false;
        };
        X509Certificate::from_der(&ca)
            .is_ok_and(|(_, ca)| certificate.verify_signature(Some(ca.public_key())).is_ok())
    }

    /// Is so little left of its life that a new one should be issued?
    pub fn is_due(&self, identity: &Identity) -> bool {
        let due = || {
            let (chain, _) = identity.der().ok()?;
            let (_, leaf) = X509Certificate::from_der(chain.first()?).ok()?;
            Some(self.due(&leaf))
        };
        due().unwrap_or(true)
    }

    fn due(&self, certificate: &X509Certificate<'_>) -> bool {
        let validity = certificate.validity();
        let (begin, end) = (
            validity.not_before.timestamp(),
            validity.not_after.timestamp(),
        );
        (end - self.now.as_second()) * RENEW_AT <= end - begin
    }

    /// Not about to expire, signed by this CA's key, and good for every name and address it is wanted for.
    fn still_serves(&self, identity: &Identity, leaf: &Leaf<'_>) -> bool {
        use x509_parser::extensions::GeneralName;
        let Ok((chain, _)) = identity.der() else {
            return false;
        };
        let Some(Ok((_, certificate))) = chain.first().map(|der| X509Certificate::from_der(der))
        else {
            return false;
        };
        let mut names: Vec<&str> = Vec::new();
        let mut addresses: Vec<&[u8]> = Vec::new();
        if let Ok(Some(extension)) = certificate.subject_alternative_name() {
            for name in &extension.value.general_names {
                match name {
                    GeneralName::DNSName(name) => names.push(name),
                    GeneralName::IPAddress(bytes) => addresses.push(bytes),
                    _ => {}
                }
            }
        }
        let covers = |address: &IpAddr| match address {
            IpAddr::V4(v4) => addresses.contains(&v4.octets().as_slice()),
            IpAddr::V6(v6) => addresses.contains(&v6.octets().as_slice()),
        };
        !self.due(&certificate)
            && self.has_signed(&certificate)
            && leaf.names.iter().all(|name| names.contains(&&**name))
            && leaf.addresses.iter().all(covers)
    }
}

// === impl Identity ===

impl Identity {
    /// Chain and key as rustls takes them.
    pub fn der(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let failed = |error: rustls_pki_types::pem::Error| read("an identity", error.to_string());
        let chain = CertificateDer::pem_slice_iter(self.certificate_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let key = PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(failed)?;
        Ok((chain, key))
    }
}

fn make_ca(now: jiff::Timestamp) -> Result<Identity, Error> {
    let failed = |source| make("the CA", source);
    let mut params = CertificateParams::new(Vec::new()).map_err(failed)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "kubernetes");
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    (params.not_before, params.not_after) = validity(now, CA_DAYS);
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(Identity {
        certificate_pem: certificate.pem(),
        key_pem: key.serialize_pem(),
    })
}

/// For `days` from now.
fn validity(now: jiff::Timestamp, days: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now =
        OffsetDateTime::from_unix_timestamp(now.as_second()).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    (now - BACKDATE, now + time::Duration::days(days))
}

fn make(name: &str, source: rcgen::Error) -> Error {
    Error::Make {
        name: name.to_owned(),
        source,
    }
}

fn read(name: &str, reason: String) -> Error {
    Error::Read {
        name: name.to_owned(),
        reason,
    }
}

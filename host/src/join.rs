//! How a machine becomes a node of a cluster: a token, a certificate signed by the cluster's CA, and its renewal.
//!
//! ```text
//! first start   token ─► handshake that proves the CA ─► CSR as system:bootstrap:ID ─► client certificate ─┐
//! later starts  certificate on the disk, not expired ──────────────────────────────────────────────────────┤
//! registered                  CSR for the node's endpoint and tunnel, as system:node:NAME ◄────────────────┘
//! then          both are renewed when most of their life is over, on the disk and in what runs
//! ```
//! Everything is kept below `pki/` in the node's data directory. Tokens are never written or logged.

pub(crate) mod files;
mod first;
mod leaf;
mod renew;
mod request;
#[cfg(test)]
pub(crate) mod tests;
mod token;

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use rustls::pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;

use crate::servers::{Address, Servers, learn};
use crate::tls::{self, Certificates, NodeTls, Role};
use files::Files;
use first::Pinned;
use leaf::Leaf;
pub use token::{Token, TokenError};

/// What a node is told about its cluster.
pub struct Config {
    /// Where API servers are; may be empty when an earlier start has learnt it.
    pub servers: Vec<Address>,
    /// Needed when there is no valid certificate.
    pub token: Option<Token>,
    pub node_name: String,
    /// The node's own.
    pub data_dir: PathBuf,
    /// The node's address for others; by default the one that leads to the API server.
    pub node_ip: Option<IpAddr>,
    /// How long certificates are asked for; by default the signer decides.
    pub lifetime: Option<Duration>,
}

/// A member of the cluster. Its certificates are renewed until [`Joined::shutdown`].
pub struct Joined {
    pub tls: Arc<Certificates>,
    pub servers: Servers,
    /// The node's address for others.
    pub address: IpAddr,
    /// Becomes true when `tls` has the certificate of the node's endpoint. Nobody signs it before the Node is registered
    /// with its address.
    pub serving: watch::Receiver<bool>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Why a machine is no node of the cluster.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("no API server is known: give one with --server")]
    NoServer,
    #[error(
        "this machine has no certificate of the cluster: make a token with `coracle token create` where the server runs, and give it with --token"
    )]
    NoToken,
    #[error(
        "the certificate in {} expired at {at}: make a new token with `coracle token create` where the server runs, and give it with --token", path.display()
    )]
    Expired { path: PathBuf, at: Timestamp },
    #[error(
        "{} belongs to {was}, not to {is}: start the node with --node-name as before, or with another --data-dir", path.display()
    )]
    OtherNode {
        path: PathBuf,
        was: String,
        is: String,
    },
    #[error(
        "the token is for another cluster than the one in {}: use another --data-dir, or leave the token away", path.display()
    )]
    OtherCluster { path: PathBuf },
    #[error(
        "{servers} shows no CA with the hash that the token names: it is another cluster's token, or another cluster's server"
    )]
    AnotherServer { servers: String },
    #[error("{}: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("cannot make a certificate request for {name}: {reason}")]
    Make { name: String, reason: String },
    #[error(
        "the API server does not know the token {id} (any longer): make another with `coracle token create`"
    )]
    Unauthorized { id: String },
    #[error("CertificateSigningRequest {name}: {reason}")]
    Request { name: String, reason: String },
    #[error("CertificateSigningRequest {name} was denied: {reason}")]
    Denied { name: String, reason: String },
    #[error(
        "CertificateSigningRequest {name} was neither approved nor denied within {after:?}: approve it with `kubectl certificate approve {name}` and start again"
    )]
    Waited { name: String, after: Duration },
    #[error("cannot say by which address this machine reaches {server}: give one with --node-ip")]
    NoAddress { server: String },
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// Between attempts to get a certificate that nobody refused.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(15);

/// Returns when the node has its certificate as a client; the one for its endpoint follows. As long as no server answers it keeps trying and says so in the log; a token
/// or a request that is refused is an error at once.
pub async fn join(config: Config) -> Result<Joined, Error> {
    let files = Arc::new(Files::open(&config.data_dir)?);
    let learnt = learn::recall(&files.servers());
    if config.servers.is_empty() && learnt.is_empty() {
        return Err(Error::NoServer);
    }
    let (ca_pem, client_pem) = match present(&files, &config)? {
        Some(present) => present,
        None => bootstrap(&files, &config).await?,
    };
    let tls = Certificates::new(&NodeTls {
        ca_pem: ca_pem.into_bytes(),
        cert_pem: client_pem.clone().into_bytes(),
        key_pem: client_pem.into_bytes(),
    })?;
    let client_config = Arc::new(tls.client_config(&[b"h2"])?);
    let servers = Servers::new(config.servers.clone(), learnt, client_config);
    let address = match config.node_ip {
        Some(address) => address,
        None => route(&servers).await?,
    };
    let (serving, serves) = watch::channel(false);
    let renewal = renew::Renewal {
        certificates: Arc::clone(&tls),
        files: Arc::clone(&files),
        servers: servers.clone(),
        node_name: config.node_name,
        address,
        lifetime: config.lifetime,
        serving,
    };
    if let Some(pem) = renewal.present(Role::Server)? {
        tls.replace(Role::Server, pem.as_bytes(), pem.as_bytes())?;
        renewal.serving.send_replace(true);
    }
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let learning = learn::run(servers.clone(), files.servers());
    tasks.spawn(stop.clone().run_until_cancelled_owned(learning));
    tasks.spawn(stop.clone().run_until_cancelled_owned(renewal.run()));
    Ok(Joined {
        tls,
        servers,
        address,
        serving: serves,
        stop,
        tasks,
    })
}

// === impl Joined ===

impl Joined {
    /// A Kubernetes client that speaks as this node.
    pub fn client(&self) -> Client {
        self.servers.client()
    }

    /// Nothing is renewed any longer.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(2), self.tasks.wait()).await;
    }
}

/// CA and client certificate of an earlier start; `None` when the token must do.
fn present(files: &Files, config: &Config) -> Result<Option<(String, String)>, Error> {
    let path = files.pair(Role::Client);
    let (Some(ca), Some(pem)) = (files::read(&files.ca())?, files::read(&path)?) else {
        return Ok(None);
    };
    if let Some(token) = &config.token
        && !is_pinned(&ca, token)?
    {
        return Err(Error::OtherCluster { path: files.ca() });
    }
    let leaf = Leaf::read(&path, &pem)?;
    let wanted = user_name(&config.node_name);
    if leaf.common_name != wanted {
        return Err(Error::OtherNode {
            path,
            was: leaf.common_name,
            is: wanted,
        });
    }
    if leaf.ends > now() {
        return Ok(Some((ca, pem)));
    }
    match config.token {
        Some(_) => Ok(None),
        None => Err(Error::Expired {
            path,
            at: leaf.ends,
        }),
    }
}

fn is_pinned(ca_pem: &str, token: &Token) -> Result<bool, Error> {
    let mut all = tls::certificates(ca_pem.as_bytes(), "the cluster's CA certificate")?.into_iter();
    Ok(all.any(|ca| Sha256::digest(&ca).as_slice() == token.ca()))
}

/// The first certificate, with the token.
async fn bootstrap(files: &Files, config: &Config) -> Result<(String, String), Error> {
    let token = config.token.as_ref().ok_or(Error::NoToken)?;
    if config.servers.is_empty() {
        return Err(Error::NoServer);
    }
    let pinned = Pinned::new(*token.ca());
    let tls = pinned
        .client_config()
        .map_err(|error| tls::Error::Setup(error.to_string()))?;
    let given = config.servers.clone();
    let servers = Servers::with_token(given, Arc::new(tls), &token.bearer());
    let wanted = request::Wanted {
        role: Role::Client,
        node_name: &config.node_name,
        address: None,
        lifetime: config.lifetime,
    };
    let client = servers.client();
    let attempt = || async {
        let obtained = request::obtain(&client, &wanted, Some(token.id())).await;
        obtained.map_err(|error| {
            if pinned.is_refused() {
                Error::AnotherServer {
                    servers: config
                        .servers
                        .iter()
                        .map(Address::to_string)
                        .collect::<Vec<_>>()
                        .join(", "),
                }
            } else {
                error
            }
        })
    };
    let client_pem = persist(attempt).await?;
    let ca = pinned.ca().ok_or(Error::NoToken)?;
    let ca_pem = pem(ca);
    files::write_private(&files.ca(), ca_pem.as_bytes())?;
    files::write_private(&files.pair(Role::Client), client_pem.as_bytes())?;
    tracing::info!(node = %config.node_name, token = token.id(), "Joined the cluster");
    Ok((ca_pem, client_pem))
}

/// Again and again, unless somebody said no.
async fn persist<F>(attempt: impl Fn() -> F) -> Result<String, Error>
where
    F: Future<Output = Result<String, Error>>,
{
    let mut again = AGAIN;
    loop {
        let error = match attempt().await {
            Ok(pem) => return Ok(pem),
            Err(error) => error,
        };
        if !matches!(error, Error::Request { .. }) {
            return Err(error);
        }
        tracing::warn!(error = %chain(&error), "No certificate yet; trying again");
        tokio::time::sleep(again).await;
        again = (again * 2).min(AGAIN_AT_MOST);
    }
}

/// The address of this machine on the way to the API servers. Nothing is sent.
async fn route(servers: &Servers) -> Result<IpAddr, Error> {
    let all = Arc::clone(&servers.addresses().borrow());
    let first = servers.current().into_iter();
    for server in first.chain(all.iter().cloned()) {
        let Ok(targets) = tokio::net::lookup_host(server.target()).await else {
            continue;
        };
        if let Some(address) = targets.filter_map(local_address).next() {
            return Ok(address);
        }
    }
    Err(Error::NoAddress {
        server: all.first().map(Address::to_string).unwrap_or_default(),
    })
}

fn local_address(target: SocketAddr) -> Option<IpAddr> {
    let any: SocketAddr = match target {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

/// The first part of a token: whom to trust.
pub fn ca_hash(der: &[u8]) -> String {
    let digest = Sha256::digest(der);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn user_name(node: &str) -> String {
    format!("system:node:{node}")
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

#[expect(
    clippy::disallowed_methods,
    reason = "certificates end at a time of day"
)]
fn now() -> Timestamp {
    Timestamp::now()
}

//! The running API server: opens the store, makes the certificates, listens, drains. Knows nothing of what is asked.
//!
//! ```text
//! start ─► store ─► pki ─► listener ─► furniture ─► accept ─┬─► connection: TLS, client certificate ─► handlers::serve
//!                                                          └─► in process: Handle::router()        ─► handlers::serve
//! shutdown ─► watches end, no new connections ─► requests finish (or are cut off at the deadline) ─► store closes
//! ```

mod activity;
mod backing;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use ipnet::Ipv4Net;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use types::error::chain;

use self::activity::Activity;
use self::backing::Certificates;
use crate::admission::TolerationSeconds;
use crate::auth::tokens::Tokens;
use crate::auth::{self, Access, User};
use crate::furniture::Replica;
use crate::handlers::{self, Api, Room, Settings};
use crate::kinds::strategy::NodeRanges;
use crate::links::Links;
use crate::metrics::Metrics;
use crate::nodes::Nodes;
use crate::pki::{self, Pki};
use crate::store::{self, Place, Store, seal};
use crate::streams::Streams;
use crate::{certificates, furniture, kinds, schema};

/// What a server needs to know. [`Config::at`] and [`Config::in_memory`] fill in the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// `None`: nothing touches a disk and nothing survives.
    pub data_dir: Option<PathBuf>,
    pub store: Place,
    /// The file with the keys that Secrets are sealed with; `None`: they are not.
    pub encryption_keys: Option<PathBuf>,
    /// Where others reach this server; port 0: where it listens. `None`: the listen address, or the default route's.
    pub advertise: Option<SocketAddr>,
    /// Where the admin kubeconfig is written; empty: nowhere.
    pub kubeconfig: PathBuf,
    pub service_cidr: Ipv4Net,
    pub node_ports: RangeInclusive<u16>,
    /// Pod ranges that a node may register with; others it has to be given.
    pub node_ranges: Option<NodeRanges>,
    /// Names of IngressClasses that are served here beside `coracle`.
    pub ingress_classes: Vec<String>,
    /// How long pods stay on a node that does not answer, where they say nothing themselves.
    pub tolerations: TolerationSeconds,
    /// The longest that certificates live which this server signs for others.
    pub cluster_signing_duration: Duration,
    /// Names or addresses for the serving certificate, beside the listen address and the usual ones.
    pub names: Vec<String>,
    /// How long requests may take to finish once the server is told to stop.
    pub drain: Duration,
}

/// A server that runs. Dropping it stops it without draining.
pub struct Handle {
    api: Arc<Api>,
    pki: Pki,
    local: SocketAddr,
    kubeconfig: PathBuf,
    tasks: TaskTracker,
    /// Cancelled when whoever has not finished by the deadline is cut off.
    cut_off: CancellationToken,
    drain: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the data directory {}", path.display())]
    DataDirectory {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot prepare the cluster's certificates")]
    Pki(#[from] pki::Error),
    #[error("cannot open the store")]
    Store(#[from] store::Error),
    #[error("cannot use the encryption keys")]
    Keys(#[from] seal::Error),
    #[error("cannot listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("the service range {0} has no room for its first address")]
    ServiceCidr(Ipv4Net),
    #[error("cannot make what every cluster begins with")]
    Furniture(#[from] crate::status::Error),
}

/// Connections at once; more wait in the kernel's queue.
const MOST_CONNECTIONS: usize = 4_096;
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For a request's headers, and how long an idle HTTP/1 connection is kept.
const HEADERS: Duration = Duration::from_secs(60);
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long a connection may go without a request, or with answers that the client does not take.
const IDLE: Duration = Duration::from_secs(90);
/// How long an idle connection has for its goodbye (and for the last piece of an answer) before it is cut.
const GOODBYE: Duration = Duration::from_secs(60);
/// How long the kernel keeps what the peer does not acknowledge, or has no room for.
const STALLED: Duration = Duration::from_secs(60);
/// A peer that says nothing is asked after this long whether it is still there.
const PROBE: Duration = Duration::from_secs(30);
const MOST_STREAMS: u32 = 250;

// === impl Config ===

impl Config {
    pub fn at(data_dir: PathBuf) -> Self {
        Self {
            kubeconfig: data_dir.join("kubeconfig"),
            data_dir: Some(data_dir),
            ..Self::in_memory()
        }
    }

    /// For tests: a free port, the memory store, certificates that are written nowhere.
    pub fn in_memory() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data_dir: None,
            store: Place::default(),
            encryption_keys: None,
            advertise: None,
            kubeconfig: PathBuf::new(),
            service_cidr: Ipv4Net::new_assert([10, 96, 0, 0].into(), 16),
            node_ports: 30_000..=32_767,
            node_ranges: Some(NodeRanges {
                within: Ipv4Net::new_assert([100, 64, 0, 0].into(), 10),
                prefix: 18,
            }),
            names: Vec::new(),
            ingress_classes: Vec::new(),
            tolerations: TolerationSeconds::default(),
            cluster_signing_duration: certificates::LIFETIME,
            drain: Duration::from_secs(10),
        }
    }
}

/// Starts a server; when this returns, it answers.
pub async fn start(config: Config) -> Result<Handle, Error> {
    if let Some(directory) = &config.data_dir {
        make_data_directory(directory)?;
    }
    let service = config.service_cidr.hosts().next();
    let service = service.ok_or(Error::ServiceCidr(config.service_cidr))?;
    let kinds = kinds::table();
    let store = backing::open_store(&config, kinds).await?;
    let pki = backing::open_pki(&config, &*store).await?;
    let failed = |source| Error::Listen {
        address: config.listen,
        source,
    };
    let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let advertised = advertised(config.advertise, local);
    let (names, addresses) = names(&config, local, advertised);
    let mut certificates = Certificates::new(&pki, service.into(), addresses, names)?;
    let tls = certificates.server_config()?;
    let links = Arc::new(Links::default());
    let api = Arc::new(Api {
        cache: Arc::clone(store.cache()),
        access: Access::new(store.cache(), Tokens::new(&pki)?),
        store,
        schema: schema::builtin(),
        kinds,
        settings: Settings {
            service_cidr: config.service_cidr,
            node_ports: config.node_ports.clone(),
            advertised,
            node_ranges: config.node_ranges,
            names: config.names.clone(),
            ingress_classes: config.ingress_classes.clone(),
            tolerations: config.tolerations,
            cluster_signing_duration: config.cluster_signing_duration,
        },
        nodes: Nodes::new(certificates.client_config()?, Arc::clone(&links)),
        links,
        streams: Streams::default(),
        metrics: Metrics::default(),
        stopping: CancellationToken::new(),
        tasks: TaskTracker::new(),
        cut_off: CancellationToken::new(),
        room: Room::default(),
    });
    furniture::place(&api, &pki, service).await?;
    let replica = match api.store.is_shared() {
        true => Some(Replica::join(Arc::clone(&api)).await?),
        false => None,
    };
    let handle = Handle {
        tasks: api.tasks.clone(),
        cut_off: api.cut_off.clone(),
        api,
        pki,
        local,
        kubeconfig: config.kubeconfig,
        drain: config.drain,
    };
    if !handle.kubeconfig.as_os_str().is_empty() {
        certificates.write_kubeconfig(handle.kubeconfig.clone(), handle.url())?;
    }
    handle.spawn(listener, tls, certificates, replica);
    Ok(handle)
}

fn make_data_directory(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| Error::DataDirectory {
            path: path.to_owned(),
            source,
        })
}

/// Names and addresses for the certificate.
fn names(config: &Config, local: SocketAddr, advertised: SocketAddr) -> (Vec<String>, Vec<IpAddr>) {
    let mut addresses = vec![local.ip(), advertised.ip()];
    let mut names = Vec::new();
    for name in &config.names {
        match name.parse() {
            Ok(address) => addresses.push(address),
            Err(_) => names.push(name.clone()),
        }
    }
    (names, addresses)
}

/// Where others reach us: as asked, or where we listen. Listening everywhere, that is the address that this host sends
/// from, or loopback where there is no route.
fn advertised(asked: Option<SocketAddr>, local: SocketAddr) -> SocketAddr {
    match asked {
        Some(asked) if asked.port() == 0 => SocketAddr::new(asked.ip(), local.port()),
        Some(asked) => asked,
        None if local.ip().is_unspecified() => SocketAddr::new(outward(local.ip()), local.port()),
        None => local,
    }
}

/// The address packets to the outside would come from. Nothing is sent: the addresses are for documentation.
fn outward(any: IpAddr) -> IpAddr {
    let (far, near): (IpAddr, IpAddr) = match any {
        IpAddr::V4(_) => ([192, 0, 2, 1].into(), [127, 0, 0, 1].into()),
        IpAddr::V6(_) => (
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
            std::net::Ipv6Addr::LOCALHOST.into(),
        ),
    };
    let ask = || {
        let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    };
    ask()
        .filter(|found| !found.is_unspecified())
        .unwrap_or(near)
}

// === impl Handle ===

impl Handle {
    /// The real address, also where port 0 was asked for.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// `https://127.0.0.1:6443`: for clients on this host.
    pub fn url(&self) -> String {
        let local = self.local;
        let address = match local.ip() {
            ip if !ip.is_unspecified() => local,
            IpAddr::V4(_) => SocketAddr::from(([127, 0, 0, 1], local.port())),
            IpAddr::V6(_) => SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, local.port())),
        };
        format!("https://{address}")
    }

    /// Where others reach this server.
    pub fn advertised(&self) -> SocketAddr {
        self.api.settings.advertised
    }

    /// The same server without sockets. The caller says who it is by putting a [`User`] into each request's extensions;
    /// without one it is anonymous.
    pub fn router(&self) -> Router {
        Router::new()
            .fallback(in_process)
            .with_state(Arc::clone(&self.api))
    }

    /// [`Handle::router`] for one caller.
    pub fn router_as(&self, user: User) -> Router {
        self.router().layer(axum::middleware::from_fn_with_state(
            user,
            |State(user): State<User>, mut request: Request, next: axum::middleware::Next| async move {
                request.extensions_mut().insert(user);
                next.run(request).await
            },
        ))
    }

    pub fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The admin kubeconfig that was written; empty when none was.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    pub fn store(&self) -> &Arc<dyn Store> {
        &self.api.store
    }

    /// Drains and stops. What has not finished after the configured time is cut off.
    pub async fn shutdown(self) {
        self.api.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(self.drain, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("Cut off requests that did not finish in time");
            self.cut_off.cancel();
            self.tasks.wait().await;
        }
        self.api.store.close().await;
    }

    fn spawn(
        &self,
        listener: TcpListener,
        tls: rustls::ServerConfig,
        certificates: Certificates,
        replica: Option<Replica>,
    ) {
        let accept = Acceptor {
            api: Arc::clone(&self.api),
            tls: TlsAcceptor::from(Arc::new(tls)),
            tasks: self.tasks.clone(),
            cut_off: self.cut_off.clone(),
            room: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
        };
        self.tasks.spawn(accept.run(listener));
        self.tasks
            .spawn(certificates.keep(self.api.stopping.clone()));
        if let Some(replica) = replica {
            self.tasks.spawn(replica.keep());
        }
        let ca = self.pki.ca_pem().to_owned();
        self.tasks
            .spawn(furniture::keep_root_certificates(Arc::clone(&self.api), ca));
        self.tasks
            .spawn(furniture::reap_events(Arc::clone(&self.api)));
        self.tasks
            .spawn(furniture::keep_aggregated(Arc::clone(&self.api)));
        self.tasks.spawn(auth::keep(Arc::clone(&self.api)));
        self.tasks
            .spawn(certificates::run(Arc::clone(&self.api), self.pki.clone()));
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.api.stopping.cancel();
        self.cut_off.cancel();
    }
}

async fn in_process(State(api): State<Arc<Api>>, request: Request) -> Response {
    handlers::serve(api, request).await
}

/// Takes connections until told to stop.
#[derive(Clone)]
struct Acceptor {
    api: Arc<Api>,
    tls: TlsAcceptor,
    tasks: TaskTracker,
    cut_off: CancellationToken,
    room: Arc<Semaphore>,
}

// === impl Acceptor ===

impl Acceptor {
    async fn run(self, listener: TcpListener) {
        loop {
            let Ok(permit) = Arc::clone(&self.room).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                biased;
                () = self.api.stopping.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let acceptor = self.clone();
                    self.tasks.spawn(async move {
                        if let Err(error) = acceptor.serve(stream, peer.ip()).await {
                            tracing::debug!(%peer, error = %chain(&*error), "Connection failed");
                        }
                        drop(permit);
                    });
                }
                // Out of file descriptors, most likely: waiting is all there is.
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "Could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(
        &self,
        stream: TcpStream,
        peer: IpAddr,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        bound_silence(&stream)?;
        let stream = tokio::time::timeout(HANDSHAKE, self.tls.accept(stream)).await??;
        let (_, session) = stream.get_ref();
        let user = session
            .peer_certificates()
            .and_then(|chain| chain.first())
            .and_then(|certificate| User::from_certificate(certificate))
            .map(|user| User {
                address: Some(peer),
                ..user
            });
        let until = user.as_ref().and_then(|user| user.until);
        let api = Arc::clone(&self.api);
        let activity = Arc::new(Activity::default());
        let active = Arc::clone(&activity);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            // Extensions come from us alone; a client cannot send any.
            if let Some(user) = &user {
                request.extensions_mut().insert(user.clone());
            }
            let api = Arc::clone(&api);
            let active = Arc::clone(&active);
            async move {
                let working = active.begin();
                let response = handlers::serve(api, request.map(Body::new)).await;
                drop(working);
                Ok::<_, std::convert::Infallible>(activity::follow(response, active))
            }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADERS);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MOST_STREAMS)
            .keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            biased;
            result = connection.as_mut() => return result,
            () = self.api.stopping.cancelled() => connection.as_mut().graceful_shutdown(),
            () = activity.idle(IDLE) => connection.as_mut().graceful_shutdown(),
            // Whoever has a new certificate comes again with it.
            () = handlers::passed(until) => connection.as_mut().graceful_shutdown(),
        }
        let cut = until.map(|until| until.checked_add(GOODBYE).unwrap_or(until));
        tokio::select! {
            result = connection => result,
            () = self.cut_off.cancelled() => Ok(()),
            () = activity.idle(GOODBYE) => Err("nothing was asked for, or taken".into()),
            () = handlers::passed(cut) => {
                Err("the client's certificate has ended".into())
            }
        }
    }
}

/// A peer that is gone, or that does not read, ends as an error of the socket.
fn bound_silence(stream: &TcpStream) -> nix::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    #[cfg(target_os = "linux")]
    {
        let probe = u32::try_from(PROBE.as_secs()).unwrap_or(u32::MAX);
        let stalled = u32::try_from(STALLED.as_millis()).unwrap_or(u32::MAX);
        setsockopt(stream, sockopt::TcpKeepIdle, &probe)?;
        setsockopt(stream, sockopt::TcpKeepInterval, &probe)?;
        setsockopt(stream, sockopt::TcpUserTimeout, &stalled)?;
    }
    Ok(())
}

//! The way out of the cluster: real TCP connections and a pooled HTTP(S) client, behind one policy.
//! Never decides whether an address is inside the cluster; `vnet` and `http` do.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper::rt;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::connect::{self, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use ipnet::IpNet;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Body, Config, Error, HttpError, SocketError};
use crate::dns::upstream::{self, Upstream};

const IDLE: Duration = Duration::from_secs(30);
const IDLE_PER_HOST: usize = 8;
/// Connections that may stay open after their request, of all pods to all hosts. Those beyond are closed with it: what
/// is idle is in nobody's `OutsideSlot`.
const KEPT: usize = 256;

/// Which real addresses pods may reach.
///
/// By default everything but the host's loopback (127.0.0.0/8, ::1), link-local addresses (169.254.0.0/16, fe80::/10:
/// cloud metadata lives there), "this network" (0.0.0.0/8, ::), multicast and broadcast. The API server is reached at
/// its Service's address whatever it really listens on. `allow` wins over `deny`, both over the defaults.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    pub allow: Vec<IpNet>,
    pub deny: Vec<IpNet>,
}

pub(crate) struct Egress {
    connect_timeout: Duration,
    /// For names and addresses outside.
    client: Client<Connector, Body>,
    /// The same without a pool, while as many connections are kept as may be.
    unpooled: Client<Connector, Body>,
    kept: Arc<Semaphore>,
    connector: Connector,
    /// For TLS to addresses inside the cluster.
    pub(crate) cluster_tls: Arc<ClientConfig>,
}

/// Whether a real address may be connected to.
pub(crate) type Check = Arc<dyn Fn(SocketAddr) -> bool + Send + Sync>;

/// A client of one pod that asks before it connects.
#[derive(Clone)]
pub(crate) struct Restricted(Client<Connector, Body>);

/// Counts the connections that may be kept.
#[derive(Clone)]
struct Connector {
    https: HttpsConnector<HttpConnector<Resolver>>,
    kept: Arc<Semaphore>,
    resolver: Resolver,
    tls: Arc<ClientConfig>,
    connect_timeout: Duration,
    check: Option<Check>,
}

/// One connection; without a permit it serves one request.
struct Connection {
    stream: MaybeHttpsStream<TokioIo<TcpStream>>,
    kept: Option<OwnedSemaphorePermit>,
}

/// Asks the node's name servers, and drops what the policy forbids: a name cannot smuggle an address in.
#[derive(Clone)]
struct Resolver {
    policy: Arc<Policy>,
    upstream: Arc<Upstream>,
    /// With the port that is asked for.
    check: Option<(Check, u16)>,
}

// === impl Policy ===

impl Policy {
    /// `Denied`, when a pod may not talk to `ip`.
    pub(crate) fn check(&self, ip: IpAddr) -> Result<(), SocketError> {
        let ip = ip.to_canonical();
        if self.allow.iter().any(|net| net.contains(&ip)) {
            return Ok(());
        }
        if is_local(ip) || self.deny.iter().any(|net| net.contains(&ip)) {
            return Err(SocketError::Denied);
        }
        Ok(())
    }
}

fn is_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            ip.is_loopback()
                || ip.is_link_local()
                || ip.is_multicast()
                || ip == Ipv4Addr::BROADCAST
                || ip.octets()[0] == 0
        }
        IpAddr::V6(ip) => {
            ip.is_loopback()
                || ip.is_unspecified()
                || ip.is_multicast()
                || ip.is_unicast_link_local()
        }
    }
}

// === impl Egress ===

impl Egress {
    pub(crate) fn new(config: &Config, upstream: Arc<Upstream>) -> Result<Self, Error> {
        let tls = |error: rustls::Error| Error::Tls(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = || {
            ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .map_err(tls)
        };
        let outside = if config.extra_roots.is_empty() {
            builder()?.with_webpki_roots().with_no_client_auth()
        } else {
            let mut roots = RootCertStore::empty();
            for root in &config.extra_roots {
                roots.add(root.clone()).map_err(tls)?;
            }
            builder()?
                .with_root_certificates(roots)
                .with_no_client_auth()
        };
        let mut roots = RootCertStore::empty();
        for root in &config.cluster_ca {
            roots.add(root.clone()).map_err(tls)?;
        }
        let cluster = builder()?
            .with_root_certificates(roots)
            .with_no_client_auth();

        let mut outside = outside;
        outside.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let resolver = Resolver {
            policy: Arc::new(config.egress.clone()),
            upstream,
            check: None,
        };
        let (tls, connect_timeout) = (Arc::new(outside), config.limits.connect_timeout);
        let kept = Arc::new(Semaphore::new(KEPT));
        let connector = Connector {
            https: https(resolver.clone(), &tls, connect_timeout),
            kept: Arc::clone(&kept),
            resolver,
            tls,
            connect_timeout,
            check: None,
        };
        Ok(Self {
            connect_timeout,
            client: client(connector.clone(), IDLE_PER_HOST),
            unpooled: client(connector.clone(), 0),
            connector,
            kept,
            cluster_tls: Arc::new(cluster),
        })
    }

    /// A real TCP connection. The policy has been asked.
    pub(crate) async fn connect(&self, to: SocketAddr) -> Result<TcpStream, SocketError> {
        let stream = tokio::time::timeout(self.connect_timeout, TcpStream::connect(to))
            .await
            .map_err(|_| SocketError::TimedOut)?
            .map_err(|error| SocketError::from(&error))?;
        // Only latency depends on it.
        drop(stream.set_nodelay(true));
        Ok(stream)
    }

    /// A client that asks `check` about every address a name leads to.
    pub(crate) fn restricted(&self, check: Check) -> Restricted {
        let connector = Connector {
            check: Some(check),
            ..self.connector.clone()
        };
        Restricted(client(connector, IDLE_PER_HOST))
    }

    /// Sends to a name or address outside, by the pod's own client where it has one. An address literal has been checked
    /// against all policies.
    pub(crate) async fn request(
        &self,
        restricted: Option<&Restricted>,
        request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let authority = request
            .uri()
            .authority()
            .map_or_else(String::new, ToString::to_string);
        let client = match restricted {
            Some(restricted) => &restricted.0,
            None if self.kept.available_permits() > 0 => &self.client,
            None => &self.unpooled,
        };
        match client.request(request).await {
            Ok(response) => Ok(response.map(|body| body.map_err(Into::into).boxed_unsync())),
            Err(error) => Err(explain(&authority, &error)),
        }
    }
}

fn client(connector: Connector, idle: usize) -> Client<Connector, Body> {
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(idle)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .build(connector)
}

fn https(
    resolver: Resolver,
    tls: &Arc<ClientConfig>,
    connect_timeout: Duration,
) -> HttpsConnector<HttpConnector<Resolver>> {
    let mut http = HttpConnector::new_with_resolver(resolver);
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(connect_timeout));
    HttpsConnector::from((http, Arc::clone(tls)))
}

/// What went wrong, with the innermost cause that says something.
fn explain(authority: &str, error: &hyper_util::client::legacy::Error) -> HttpError {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut text = String::new();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            if io.get_ref().is_some_and(|e| e.is::<rustls::Error>()) {
                return HttpError::Tls(format!("{authority}: {io}"));
            }
            match io.kind() {
                io::ErrorKind::NotFound => return HttpError::NotFound(authority.to_owned()),
                io::ErrorKind::PermissionDenied => {
                    return HttpError::Forbidden(format!("{authority}: {io}"));
                }
                io::ErrorKind::TimedOut => {
                    return HttpError::Timeout(format!("connect to {authority}"));
                }
                _ => {}
            }
        }
        text = cause.to_string();
        source = cause.source();
    }
    HttpError::Connect(format!("{authority}: {text}"))
}

// === impl Connector ===

impl tower::Service<Uri> for Connector {
    type Response = Connection;
    type Error = Box<dyn std::error::Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connecting = match &self.check {
            Some(check) => {
                let tls = to.scheme() == Some(&http::uri::Scheme::HTTPS);
                let port = to.port_u16().unwrap_or(if tls { 443 } else { 80 });
                let resolver = Resolver {
                    check: Some((Arc::clone(check), port)),
                    ..self.resolver.clone()
                };
                https(resolver, &self.tls, self.connect_timeout).call(to)
            }
            None => self.https.call(to),
        };
        let kept = Arc::clone(&self.kept);
        Box::pin(async move {
            Ok(Connection {
                stream: connecting.await?,
                kept: kept.try_acquire_owned().ok(),
            })
        })
    }
}

// === impl Connection ===

impl connect::Connection for Connection {
    fn connected(&self) -> connect::Connected {
        let connected = self.stream.connected();
        if self.kept.is_none() {
            connected.poison();
        }
        connected
    }
}

impl rt::Read for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl rt::Write for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }
}

// === impl Resolver ===

impl tower::Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let Self {
            policy,
            upstream,
            check,
        } = self.clone();
        let places = upstream::places();
        Box::pin(async move {
            let found = upstream.lookup_for(places.as_deref(), name.as_str()).await;
            let found = found.map_err(|error| {
                let kind = match error {
                    super::ResolveError::NotFound => io::ErrorKind::NotFound,
                    super::ResolveError::Temporary => io::ErrorKind::TimedOut,
                };
                io::Error::new(kind, error)
            })?;
            let allowed: Vec<SocketAddr> = found
                .into_iter()
                .filter(|ip| policy.check(*ip).is_ok())
                .filter(|ip| match &check {
                    Some((check, port)) => check(SocketAddr::new(*ip, *port)),
                    None => true,
                })
                .map(|ip| SocketAddr::new(ip, 0))
                .collect();
            if allowed.is_empty() {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "every address of the name is denied by the node's egress policy or a NetworkPolicy",
                ));
            }
            Ok(allowed.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn allowed(policy: &Policy, ip: &str) -> bool {
        policy.check(ip.parse().unwrap()).is_ok()
    }

    #[test]
    fn local_addresses_are_denied_whatever_they_are_dressed_as() {
        let policy = Policy::default();
        for ip in [
            "127.0.0.1",
            "127.8.8.8",
            "::1",
            "::ffff:127.0.0.1",
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "fe80::1",
            "0.0.0.0",
            "::",
            "224.0.0.1",
            "255.255.255.255",
        ] {
            assert!(!allowed(&policy, ip), "{ip}");
        }
        for ip in ["93.184.216.34", "192.168.1.1", "2606:2800:220:1::1"] {
            assert!(allowed(&policy, ip), "{ip}");
        }
    }

    #[test]
    fn allow_wins_over_deny() {
        let policy = Policy {
            allow: vec!["127.0.0.1/32".parse().unwrap()],
            deny: vec!["0.0.0.0/0".parse().unwrap()],
        };
        assert!(allowed(&policy, "127.0.0.1"));
        assert!(!allowed(&policy, "127.0.0.2"));
        assert!(!allowed(&policy, "8.8.8.8"));
    }

    #[tokio::test]
    async fn connections_beyond_those_kept_end_with_their_request() {
        let forward = crate::dns::server::Forward::new(Vec::new());
        let upstream = Arc::new(Upstream::new(Arc::new(forward)));
        let egress = Egress::new(&Config::default(), upstream).unwrap();
        egress.kept.forget_permits(KEPT - 1);
        let mut left = Vec::new();
        for _ in 0..3 {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let uri = format!("http://{}/", listener.local_addr().unwrap());
            let server = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                assert!(socket.read(&mut head).await.unwrap() > 0);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                socket.write_all(answer).await.unwrap();
                socket
            };
            let client = async {
                let request = Request::get(uri).body(crate::network::serve::empty());
                let response = egress.request(None, request.unwrap()).await.unwrap();
                response.into_body().collect().await.unwrap().to_bytes()
            };
            let (socket, body) = tokio::join!(server, client);
            assert_eq!(body, "ok");
            left.push(socket);
        }
        for socket in &mut left[1..] {
            let mut more = Vec::new();
            let closed =
                tokio::time::timeout(Duration::from_secs(10), socket.read_to_end(&mut more));
            assert_eq!(closed.await.expect("closed").unwrap(), 0);
        }
        let kept = left[0].try_read(&mut [0; 1]);
        assert!(kept.is_err(), "the first one is still open: {kept:?}");
        assert_eq!(egress.kept.available_permits(), 0);
    }
}

//! Calls from the API server to the nodes' own endpoints, over mutual TLS: dialled, or over the link that a node keeps.
//! Knows addresses, not what is asked.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::upgrade::Upgraded;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use tokio::net::TcpStream;
use tower::Service;
use types::well_known::{ANNOTATION_TUNNEL, TUNNEL_RELAY};

use crate::handlers::Api;
use crate::links::Links;
use crate::status::{Error, Reason};

/// One client for all nodes; connections are kept.
pub struct Nodes {
    client: Client<HttpsConnector<Dialler>, Body>,
}

const CONNECT: Duration = Duration::from_secs(5);
/// Until the node's headers are there; the body may take as long as it likes.
const ANSWER: Duration = Duration::from_secs(30);
/// A node that is silent this long is asked whether it is still there: streams may be silent for hours.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// Stands for "over the link of the node with this name": no endpoint listens there.
const OVER_LINK: u16 = 1;

// === impl Nodes ===

impl Nodes {
    pub fn new(tls: rustls::ClientConfig, links: Arc<Links>) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(Dialler { tcp, links });
        Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
        }
    }

    /// GET `path?query` at the node's endpoint.
    pub async fn get(
        &self,
        api: &Api,
        node: &str,
        path: &str,
        query: &str,
    ) -> Result<Response<Incoming>, Error> {
        let separator = if query.is_empty() { "" } else { "?" };
        let request = Request::get(format!("{path}{separator}{query}"))
            .body(Body::empty())
            .map_err(|error| Error::internal(error.to_string()))?;
        self.request(api, node, request).await
    }

    /// Any request to the node's endpoint; the URI is a path. An upgrade goes through.
    pub async fn request(
        &self,
        api: &Api,
        node: &str,
        request: Request<Body>,
    ) -> Result<Response<Incoming>, Error> {
        self.send(api, node, request, ANSWER).await
    }

    /// As [`Nodes::request`], with another patience until the answer's headers are there.
    pub async fn send(
        &self,
        api: &Api,
        node: &str,
        mut request: Request<Body>,
        patience: Duration,
    ) -> Result<Response<Incoming>, Error> {
        let endpoint = endpoint(api, node)?;
        let path = request.uri().path_and_query();
        let path = path.map_or("/", |path| path.as_str()).to_owned();
        let failed = |why: &str| {
            let path = path.split('?').next().unwrap_or_default();
            let url = format!("https://{endpoint}{path}");
            Error::internal(format!("error calling node {node:?} at {url}: {why}"))
        };
        *request.uri_mut() = format!("https://{endpoint}{path}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(&error.to_string()))?;
        match tokio::time::timeout(patience, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(&types::error::chain(&error))),
            Err(_) => Err(failed("it did not answer in time")),
        }
    }
}

/// TCP, or a stream over a node's link; the TLS and HTTP on it are the same.
#[derive(Clone)]
struct Dialler {
    tcp: HttpConnector,
    links: Arc<Links>,
}

enum Way {
    Tcp(TokioIo<TcpStream>),
    Link(Upgraded),
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Dialler {
    type Response = Way;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Way, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        if uri.port_u16() == Some(OVER_LINK) {
            let links = Arc::clone(&self.links);
            return Box::pin(async move {
                let node = uri.host().unwrap_or_default();
                Ok(Way::Link(links.endpoint(node).await?))
            });
        }
        let dialling = self.tcp.call(uri);
        Box::pin(async move { Ok(Way::Tcp(dialling.await?)) })
    }
}

impl Connection for Way {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Way {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_read(context, buffer),
            Self::Link(io) => Pin::new(io).poll_read(context, buffer),
        }
    }
}

impl Write for Way {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_write(context, bytes),
            Self::Link(io) => Pin::new(io).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_flush(context),
            Self::Link(io) => Pin::new(io).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(io) => Pin::new(io).poll_shutdown(context),
            Self::Link(io) => Pin::new(io).poll_shutdown(context),
        }
    }
}

/// `address:port` as the node's status has it; a node that keeps a link is not dialled.
fn endpoint(api: &Api, name: &str) -> Result<String, Error> {
    let stored = api
        .cache
        .find("nodes", "", name)
        .ok_or_else(|| Error::not_found("", "nodes", name))?;
    let node: Value = serde_json::from_slice(&stored.bytes)
        .map_err(|error| Error::internal(format!("a stored Node is broken: {error}")))?;
    if api.links.has(name) {
        return Ok(format!("{name}:{OVER_LINK}"));
    }
    if node["metadata"]["annotations"][ANNOTATION_TUNNEL] == TUNNEL_RELAY {
        return Err(Error::new(
            Reason::ServiceUnavailable,
            format!("node {name:?} cannot be dialled and keeps no link to this API server now"),
        ));
    }
    address(&node).ok_or_else(|| {
        Error::internal(format!(
            "node {name:?} has no endpoint yet: no address or port in its status"
        ))
    })
}

fn address(node: &Value) -> Option<String> {
    let addresses = node["status"]["addresses"].as_array()?;
    let of = |kind: &str| {
        addresses
            .iter()
            .find(|address| address["type"] == kind)
            .and_then(|address| address["address"].as_str())
    };
    let host = of("InternalIP")
        .or_else(|| of("Hostname"))
        .or_else(|| of("ExternalIP"))?;
    let port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"].as_u64()?;
    Some(if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_endpoint_is_the_internal_address_and_the_kubelets_port() {
        let node = json!({"status": {
            "addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "192.0.2.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
        }});
        assert_eq!(address(&node).as_deref(), Some("192.0.2.1:10250"));
        assert_eq!(address(&json!({"status": {}})), None);
    }
}

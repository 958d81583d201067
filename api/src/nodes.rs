//! Calls from the API server to the nodes' own endpoints, over mutual TLS. Knows addresses, not what is asked.

use std::time::Duration;

use axum::body::Body;
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::handlers::Api;
use crate::status::Error;

/// One client for all nodes; connections are kept.
pub struct Nodes {
    client: Client<HttpsConnector<HttpConnector>, Body>,
}

const CONNECT: Duration = Duration::from_secs(5);
/// Until the node's headers are there; the body may take as long as it likes.
const ANSWER: Duration = Duration::from_secs(30);

// === impl Nodes ===

impl Nodes {
    pub fn new(tls: rustls::ClientConfig) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        tcp.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_only()
            .enable_http1()
            .wrap_connector(tcp);
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
        let endpoint = endpoint(api, node)?;
        let separator = if query.is_empty() { "" } else { "?" };
        let failed = |why: &str| {
            let url = format!("https://{endpoint}{path}");
            Error::internal(format!("error calling node {node:?} at {url}: {why}"))
        };
        let uri: Uri = format!("https://{endpoint}{path}{separator}{query}")
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(&error.to_string()))?;
        let request = Request::get(uri)
            .body(Body::empty())
            .map_err(|error| failed(&error.to_string()))?;
        match tokio::time::timeout(ANSWER, self.client.request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(failed(&chain(&error))),
            Err(_) => Err(failed("it did not answer in time")),
        }
    }
}

/// The error and what caused it; hyper's own text alone says nothing.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

/// `address:port` as the node's status has it.
fn endpoint(api: &Api, name: &str) -> Result<String, Error> {
    let stored = api
        .cache
        .find("nodes", "", name)
        .ok_or_else(|| Error::not_found("", "nodes", name))?;
    let node: Value = serde_json::from_slice(&stored.bytes)
        .map_err(|error| Error::internal(format!("a stored Node is broken: {error}")))?;
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

//! How the node itself reaches a pod: probes, and requests it sends on. Answers in the words of the kubelet's probers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::uri::{Authority, Scheme};
use http::{HeaderName, HeaderValue, Request, Uri};
use http_body_util::BodyExt;

use super::http::Call;
use super::{Body, HttpError, Network, PodNetwork, SocketError, Stream, client, serve};

/// What of a probe's answer is kept, for the message of a failed one.
const BODY: usize = 10 * 1024;

/// `httpGet` of a probe or a lifecycle hook.
#[derive(Clone, Debug, Default)]
pub struct HttpProbe {
    pub port: u16,
    /// `/healthz?full`
    pub path: String,
    /// `httpGet.host`: an address; `None` is the pod's own.
    pub host: Option<String>,
    pub https: bool,
    /// In order; `Host` replaces the default one.
    pub headers: Vec<(String, String)>,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProbeAnswer {
    pub status: u16,
    /// At most 10 KiB of it.
    pub body: Bytes,
}

// === impl Network ===

impl Network {
    /// A connection from the node to a pod or a Service's address. Policy as for pods. Cancel by dropping.
    pub async fn dial(&self, to: SocketAddr) -> Result<Stream, SocketError> {
        self.fabric.connect(&self.fabric.rim(), to).await
    }

    /// The network of one of this node's pods, by name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<Arc<PodNetwork>> {
        let is_it = |pod: &Arc<PodNetwork>| {
            pod.identity().name == name && pod.identity().namespace == namespace
        };
        self.fabric.pods().into_iter().find(is_it)
    }

    /// `Ok` when something listens. The error is text for an Event.
    pub async fn probe_tcp(
        &self,
        pod: &PodNetwork,
        port: u16,
        timeout: Duration,
    ) -> Result<(), String> {
        let address = SocketAddr::from((pod.address(), port));
        match tokio::time::timeout(timeout, self.dial(address)).await {
            Ok(Ok(_stream)) => Ok(()),
            Ok(Err(error)) => Err(format!("dial tcp {address}: connect: {error}")),
            Err(_) => Err(format!("dial tcp {address}: i/o timeout")),
        }
    }

    /// One GET, redirects not followed. The error is text for an Event.
    pub async fn probe_http(
        &self,
        pod: &PodNetwork,
        probe: &HttpProbe,
        timeout: Duration,
    ) -> Result<ProbeAnswer, String> {
        let host = probe
            .host
            .clone()
            .unwrap_or_else(|| pod.address().to_string());
        let scheme = if probe.https { "https" } else { "http" };
        let slash = if probe.path.starts_with('/') { "" } else { "/" };
        let url = format!("{scheme}://{host}:{}{slash}{}", probe.port, probe.path);
        let get = self.get(pod, probe, &host);
        match tokio::time::timeout(timeout, get).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("Get \"{url}\": {error}")),
            Err(_) => Err(format!(
                "Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )),
        }
    }

    async fn get(
        &self,
        pod: &PodNetwork,
        probe: &HttpProbe,
        host: &str,
    ) -> Result<ProbeAnswer, HttpError> {
        let request = request(probe, host)?;
        let ip = client::literal(host)
            .ok_or_else(|| HttpError::Invalid(format!("probe host {host} is not an address")))?;
        let address = SocketAddr::new(ip, probe.port);
        let call = Call {
            fabric: &self.fabric,
            caller: self.fabric.rim(),
        };
        let response = if probe.https {
            let stream = self
                .dial(address)
                .await
                .map_err(|error| client::from_socket(address, error))?;
            client::request_tls(&self.fabric, stream, host, request).await?
        } else if address.ip() == pod.address() {
            call.pod(pod, address, request, None).await?
        } else {
            call.address(address, false, host, request).await?
        };
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut kept = BytesMut::new();
        while kept.len() < BODY {
            match body.frame().await {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        kept.extend_from_slice(&data[..data.len().min(BODY - kept.len())]);
                    }
                }
                Some(Err(error)) => {
                    return Err(HttpError::Connect(format!("{address}: {error}")));
                }
                None => break,
            }
        }
        Ok(ProbeAnswer {
            status,
            body: kept.freeze(),
        })
    }
}

fn request(probe: &HttpProbe, host: &str) -> Result<Request<Body>, HttpError> {
    let invalid = |what: &str, error: &dyn std::error::Error| {
        HttpError::Invalid(format!("probe {what}: {error}"))
    };
    let authority: Authority = format!("{host}:{}", probe.port)
        .parse()
        .map_err(|error| invalid("host", &error))?;
    let path = if probe.path.starts_with('/') {
        probe.path.clone()
    } else {
        format!("/{}", probe.path)
    };
    let uri = Uri::builder()
        .scheme(if probe.https {
            Scheme::HTTPS
        } else {
            Scheme::HTTP
        })
        .authority(authority.clone())
        .path_and_query(path)
        .build()
        .map_err(|error| invalid("path", &error))?;
    let mut request = Request::new(serve::empty());
    *request.uri_mut() = uri;
    let headers = request.headers_mut();
    for (name, value) in &probe.headers {
        let name: HeaderName = name.parse().map_err(|error| invalid("header", &error))?;
        let value: HeaderValue = value.parse().map_err(|error| invalid("header", &error))?;
        headers.append(name, value);
    }
    let mut default = |name: HeaderName, value: &str| {
        if !headers.contains_key(&name)
            && let Ok(value) = HeaderValue::from_str(value)
        {
            headers.insert(name, value);
        }
    };
    default(http::header::HOST, authority.as_str());
    default(
        http::header::USER_AGENT,
        concat!("kube-probe/", env!("CARGO_PKG_VERSION")),
    );
    default(http::header::ACCEPT, "*/*");
    Ok(request)
}

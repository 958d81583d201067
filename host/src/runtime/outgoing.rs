//! A guest's outgoing `wasi:http` calls, 0.2 and 0.3: handed to the pod network with the guest's timeouts. Opens no socket.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, RequestOptions, Result, WasiBody, WasiHttpHooks};

use crate::network::{Hops, HttpError, PodNetwork};

/// What wasmtime's own client uses where the guest says nothing.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);

type Transmission = Box<dyn Future<Output = Result<()>> + Send>;

/// The hooks of one instance.
pub(super) struct Outgoing {
    network: Arc<PodNetwork>,
    /// Of the request this instance answers.
    pub(super) hops: Hops,
}

/// A response body whose frames must come within `limit` of each other.
struct Timed {
    body: WasiBody,
    limit: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Outgoing {
    pub(super) fn new(network: Arc<PodNetwork>) -> Self {
        Self {
            network,
            hops: Hops::default(),
        }
    }
}

impl WasiHttpHooks for Outgoing {
    /// Differs from wasmtime's own: a guest that names no scheme means `http`, as everybody in a cluster does.
    fn default_scheme(&mut self) -> Option<Scheme> {
        Some(Scheme::HTTP)
    }

    fn send_request(
        &mut self,
        mut request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _response_processed: Transmission,
    ) -> Box<dyn Future<Output = Result<(http::Response<WasiBody>, Transmission)>> + Send> {
        let network = Arc::clone(&self.network);
        request.extensions_mut().insert(self.hops);
        Box::new(async move {
            let response = send(&network, request, options.unwrap_or_default()).await?;
            let sent: Transmission = Box::new(std::future::ready(Ok(())));
            Ok((response, sent))
        })
    }
}

/// Connecting happens inside the network, mostly by a call: the two first timeouts are one here.
async fn send(
    network: &PodNetwork,
    request: http::Request<WasiBody>,
    options: RequestOptions,
) -> Result<http::Response<WasiBody>> {
    let connect = options.connect_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let first = options.first_byte_timeout.unwrap_or(DEFAULT_TIMEOUT);
    let response = tokio::time::timeout(connect.saturating_add(first), network.http(request))
        .await
        .map_err(|_| Error::HttpResponseTimeout)?
        .map_err(to_error)?;
    Ok(match options.between_bytes_timeout {
        None => response,
        Some(limit) => response.map(|body| {
            Timed {
                body,
                limit,
                sleep: None,
            }
            .boxed_unsync()
        }),
    })
}

fn to_error(error: HttpError) -> Error {
    match error {
        HttpError::NotReached(_) | HttpError::Returned { .. } => Error::DestinationUnavailable,
        HttpError::Guest(_) => Error::HttpResponseIncomplete,
        HttpError::Timeout(_) => Error::HttpResponseTimeout,
        HttpError::Connect(_) => Error::ConnectionRefused,
        HttpError::Broken(_) => Error::ConnectionTerminated,
        HttpError::Tls(_) => Error::TlsProtocolError,
        HttpError::Forbidden(_) => Error::HttpRequestDenied,
        HttpError::Invalid(_) => Error::HttpRequestUriInvalid,
        HttpError::Loop(_) => Error::LoopDetected,
        HttpError::NotFound(name) => Error::DnsError {
            rcode: Some(format!("NXDOMAIN: {name}")),
            info_code: None,
        },
    }
}

impl http_body::Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) {
            this.sleep = None;
            return Poll::Ready(frame);
        }
        let limit = this.limit;
        let sleep = this
            .sleep
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + limit)));
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Some(Err(Error::ConnectionReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

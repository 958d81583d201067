//! Spans of requests between workloads, sent to a collector (OTLP over HTTP) when one is configured. Trace context is W3C's:
//! what comes in is the parent, the guest finds the span's own context in `traceparent` and hands it on if it likes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_http::{HeaderExtractor, HeaderInjector, HttpClient, HttpError};
use opentelemetry_otlp::{WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, Span};
use types::error::chain;

/// How long the collector may take for one batch.
const EXPORT: Duration = Duration::from_secs(10);
/// How long what is left may take at the end.
const FLUSH: Duration = Duration::from_secs(2);
/// Of the collector's answer.
const ANSWER: usize = 64 * 1024;

/// Where spans go.
pub(crate) struct Tracer {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
    propagator: TraceContextPropagator,
}

/// One request's span; ends when it is dropped.
pub(crate) struct Traced(Span);

#[derive(Debug, thiserror::Error)]
#[error("spans cannot be sent to {endpoint}: {reason}")]
pub struct Error {
    endpoint: String,
    reason: String,
}

// === impl Tracer ===

impl Tracer {
    /// `endpoint` is the collector's base, `http://192.0.2.5:4318`; of traces that begin here, `ratio` (0 to 1) are kept;
    /// of others, what their beginning decided. Call inside a tokio runtime.
    pub(crate) fn new(endpoint: &str, ratio: f64, node: &str) -> Result<Self, Error> {
        let failed = |reason: String| Error {
            endpoint: endpoint.to_owned(),
            reason,
        };
        let base = endpoint.trim_end_matches('/');
        let url = format!("{base}/v1/traces");
        let parsed: Uri = url
            .parse()
            .map_err(|error: http::uri::InvalidUri| failed(error.to_string()))?;
        if !matches!(parsed.scheme_str(), Some("http" | "https")) {
            return Err(failed("it is no http or https URL".to_owned()));
        }
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new().map_err(|error| failed(error.to_string()))?)
            .with_endpoint(url)
            .with_timeout(EXPORT)
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let resource = Resource::builder()
            .with_service_name("coracle")
            .with_attribute(KeyValue::new("k8s.node.name", node.to_owned()))
            .build();
        let root = Sampler::TraceIdRatioBased(ratio);
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_sampler(Sampler::ParentBased(Box::new(root)))
            .with_resource(resource)
            .build();
        Ok(Self {
            tracer: provider.tracer("coracle"),
            provider,
            propagator: TraceContextPropagator::new(),
        })
    }

    /// Begins the span of a request and puts its context into the headers.
    pub(crate) fn begin(
        &self,
        name: String,
        attributes: Vec<KeyValue>,
        headers: &mut HeaderMap,
    ) -> Traced {
        let parent = self.propagator.extract(&HeaderExtractor(headers));
        let builder = SpanBuilder::from_name(name)
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        let span = self.tracer.build_with_context(builder, &parent);
        let context = Context::new().with_remote_span_context(span.span_context().clone());
        self.propagator
            .inject_context(&context, &mut HeaderInjector(headers));
        Traced(span)
    }

    /// Sends what is left. Blocks for at most two seconds.
    pub(crate) fn shutdown(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(FLUSH) {
            tracing::warn!(error = %chain(&error), "Could not send the last spans");
        }
    }
}

// === impl Traced ===

impl Traced {
    pub(crate) fn id(&self) -> String {
        self.0.span_context().trace_id().to_string()
    }

    pub(crate) fn answered(&mut self, answer: Result<u16, String>) {
        match answer {
            Ok(status) => {
                let code = KeyValue::new("http.response.status_code", i64::from(status));
                self.0.set_attribute(code);
                if status >= 500 {
                    self.0.set_status(Status::error(""));
                }
            }
            Err(error) => self.0.set_status(Status::error(error)),
        }
    }
}

/// The HTTP client of the exporter, whose thread has no runtime: requests are made on ours.
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: tokio::runtime::Handle,
}

// === impl Collector ===

impl Collector {
    fn new() -> Result<Self, tokio::runtime::TryCurrentError> {
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: tokio::runtime::Handle::try_current()?,
        })
    }
}

impl std::fmt::Debug for Collector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Collector")
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let send = async move {
            let response = client.request(request.map(Full::new)).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        // The clock, too, is the runtime's: the timeout is made there.
        let task = self
            .runtime
            .spawn(async { tokio::time::timeout(EXPORT, send).await });
        task.await??
    }
}

/// Shared by all requests of a node.
pub(crate) type Shared = Option<Arc<Tracer>>;

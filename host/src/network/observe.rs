//! What is remembered of one HTTP request between workloads: counters always, a span and a line of the access log when
//! asked for. Changes nothing of the request but its trace context.

mod access_log;
pub(crate) mod trace;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, header};
use opentelemetry::KeyValue;
use tokio::time::Instant;

use self::access_log::AccessLog;
pub(crate) use self::access_log::Line;
use self::trace::{Traced, Tracer};
use super::identity::Identity;
use super::traffic::{Pair, Security, Workload};
use super::vnet::Caller;
use super::{Body, HttpError};

/// What a node is asked to tell beside its metrics. The default tells nothing.
#[derive(Clone, Debug)]
pub struct Config {
    /// The collector's base URL, `http://192.0.2.5:4318`.
    pub otlp_endpoint: Option<String>,
    /// Of the traces that begin here, how many are kept: 0 to 1.
    pub trace_ratio: f64,
    /// A file, or `-`.
    pub access_log: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Trace(#[from] trace::Error),
    #[error("the access log {path} cannot be written")]
    AccessLog {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// Said of a request whose caller did not wait for its answer.
pub(crate) const GIVEN_UP: &str = "given up by the caller";

/// Whoever wants to know of requests.
#[derive(Default)]
pub(crate) struct Observer {
    node: String,
    tracer: trace::Shared,
    log: Option<AccessLog>,
}

/// One request that is being answered. Dropped before that, its caller has given it up.
pub(crate) struct Observed<'a> {
    observer: &'a Observer,
    pair: Option<Arc<Pair>>,
    started: Instant,
    span: Option<Traced>,
    line: Option<Box<Line>>,
    /// Nothing is left to tell.
    over: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            trace_ratio: 1.0,
            access_log: None,
        }
    }
}

/// Between whom a request passes.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    pub(crate) source: &'a Workload,
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) destination: &'a Workload,
    pub(crate) address: SocketAddr,
    pub(crate) security: Security,
}

/// How the bytes of this caller came here.
pub(crate) fn security(caller: &Caller<'_>) -> Security {
    if caller.pod.is_some() {
        Security::InProcess
    } else if caller.remote.is_some() {
        Security::MutualTls
    } else {
        Security::Outside
    }
}

// === impl Observer ===

impl Observer {
    /// Call inside a tokio runtime.
    pub(crate) fn new(config: &Config, node: &str) -> Result<Self, Error> {
        let endpoint = config.otlp_endpoint.as_deref();
        let tracer = endpoint
            .map(|endpoint| Tracer::new(endpoint, config.trace_ratio, node))
            .transpose()?;
        let log = config.access_log.as_deref().map(|path| {
            AccessLog::open(path).map_err(|source| Error::AccessLog {
                path: path.to_owned(),
                source,
            })
        });
        Ok(Self {
            node: node.to_owned(),
            tracer: tracer.map(Arc::new),
            log: log.transpose()?,
        })
    }

    /// A request is about to be sent.
    pub(crate) fn begin<'a>(
        &'a self,
        ends: Ends<'_>,
        pair: Option<Arc<Pair>>,
        request: &mut Request<Body>,
    ) -> Observed<'a> {
        let span = self.tracer.as_ref().map(|tracer| {
            let attributes = attributes(ends, request);
            let name = request.method().to_string();
            tracer.begin(name, attributes, request.headers_mut())
        });
        let line = self.log.as_ref().map(|_| {
            let trace_id = span.as_ref().map(Traced::id);
            Box::new(self.line(ends, request, trace_id))
        });
        Observed {
            observer: self,
            pair,
            started: Instant::now(),
            span,
            line,
            over: false,
        }
    }

    /// There is an access log.
    pub(crate) fn has_log(&self) -> bool {
        self.log.is_some()
    }

    /// A request is about to be sent to who tells of it there: what the access log would say if no answer comes.
    pub(crate) fn depart(&self, ends: Ends<'_>, request: &Request<Body>) -> Option<Box<Line>> {
        self.has_log()
            .then(|| Box::new(self.line(ends, request, None)))
    }

    /// What [`Observer::depart`] gave got no answer, or nobody was there to begin with.
    pub(crate) fn unanswered(
        &self,
        pair: Option<&Pair>,
        line: Option<Box<Line>>,
        took: Duration,
        error: &str,
    ) {
        if let Some(pair) = pair {
            pair.answered(None, took);
        }
        if let Some(line) = line {
            self.write(line, None, Some(error.to_owned()), took);
        }
    }

    fn write(
        &self,
        mut line: Box<Line>,
        status: Option<u16>,
        error: Option<String>,
        took: Duration,
    ) {
        if let Some(log) = &self.log {
            line.duration_ms = took.as_secs_f64() * 1e3;
            line.status = status;
            line.error = error;
            log.add(*line);
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a log carries the time of what happened"
    )]
    fn line(&self, ends: Ends<'_>, request: &Request<Body>, trace_id: Option<String>) -> Line {
        Line {
            time: jiff::Timestamp::now(),
            node: self.node.clone(),
            source: ends.source.name().to_owned(),
            source_identity: ends
                .identity
                .filter(|id| !id.is_ingress())
                .map(|id| id.spiffe().to_string()),
            destination: ends.destination.name().to_owned(),
            address: ends.address.to_string(),
            security: ends.security.as_str(),
            method: request.method().to_string(),
            host: host(request).to_owned(),
            path: request.uri().path().to_owned(),
            status: None,
            error: None,
            duration_ms: 0.0,
            trace_id,
        }
    }

    /// Sends what is left. May block a moment.
    pub(crate) fn shutdown(&self) {
        if let Some(tracer) = &self.tracer {
            tracer.shutdown();
        }
    }
}

fn host(request: &Request<Body>) -> &str {
    let header = request.headers().get(header::HOST);
    header
        .and_then(|host| host.to_str().ok())
        .unwrap_or_default()
}

/// OpenTelemetry's names for them.
fn attributes(ends: Ends<'_>, request: &Request<Body>) -> Vec<KeyValue> {
    vec![
        KeyValue::new("http.request.method", request.method().to_string()),
        KeyValue::new("url.path", request.uri().path().to_owned()),
        KeyValue::new("server.address", host(request).to_owned()),
        KeyValue::new("coracle.source", ends.source.name().to_owned()),
        KeyValue::new("coracle.destination", ends.destination.name().to_owned()),
        KeyValue::new("coracle.security", ends.security.as_str()),
    ]
}

// === impl Observed ===

impl Observed<'_> {
    /// The head of the answer is there, or there will be none.
    pub(crate) fn answered(mut self, answer: &Result<Response<Body>, HttpError>) {
        match answer {
            Ok(response) => self.end(Ok(response.status().as_u16())),
            Err(error) => self.end(Err(error)),
        }
    }

    /// Nobody saw it: it goes elsewhere, and whoever finds nobody for it counts it.
    pub(crate) fn returned(mut self, reason: &str) {
        self.over = true;
        if let Some(span) = &mut self.span {
            span.answered(Err(reason.to_owned()));
        }
    }

    /// There was nobody who could have answered; how long somebody was looked for.
    pub(crate) fn lost(mut self, reason: &str, took: Duration) {
        self.over = true;
        if let Some(span) = &mut self.span {
            span.answered(Err(reason.to_owned()));
        }
        let line = self.line.take();
        self.observer
            .unanswered(self.pair.as_deref(), line, took, reason);
    }

    fn end(&mut self, outcome: Result<u16, &dyn std::fmt::Display>) {
        self.over = true;
        let took = self.started.elapsed();
        let status = outcome.as_ref().ok().copied();
        if let Some(pair) = &self.pair {
            pair.answered(status, took);
        }
        if let Some(span) = &mut self.span {
            span.answered(outcome.map_err(ToString::to_string));
        }
        if let Some(line) = self.line.take() {
            let error = outcome.err().map(ToString::to_string);
            self.observer.write(line, status, error, took);
        }
    }
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        if !self.over {
            self.end(Err(&GIVEN_UP));
        }
    }
}

//! One request: find its route, check it, change it, pass it to a backend, pass the answer back. Every failure is a short
//! text with the right code. Cancel by dropping.

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as _, Incoming};
use rand::RngExt;
use tokio::time::Instant;
use types::error::chain;
use types::routing::origin::{Origin, RouteKind};
use types::routing::path::Requested;
use types::routing::table::{Asked, Backend, Filter, Patience, Policy, Route, Target};

use super::bodies::{Fault, Inbound, Outbound, tee};
use super::filters::{self, Place, plain};
use super::forwarded::{self, Client};
use super::serve::Connection;
use super::upgrade;
use crate::network::gate;
use crate::network::{Body, HttpError, from_wire, strip_hop_by_hop};

/// How long a mirror may take; nobody waits for it.
const MIRROR: Duration = Duration::from_secs(30);

/// Why a request is not served.
struct Refusal(StatusCode, String);

type Served = Result<Response<Body>, Refusal>;

/// Answers one request.
pub(super) async fn handle(
    connection: &Arc<Connection>,
    mut request: Request<Incoming>,
) -> Response<Body> {
    let busy = connection.activity.begin();
    // Kept by an upgrade, which needs it before the request is taken apart.
    let upgrade = upgrade::wanted(&mut request);
    let mut origin = None;
    let served = serve(connection, request.map(from_wire), upgrade, &mut origin).await;
    let response = served.unwrap_or_else(|Refusal(code, text)| plain(code, &text));
    let gate = &connection.shared.gate;
    gate.answered(origin.as_deref(), response.status());
    response.map(|body| Outbound::busy(body, busy))
}

async fn serve(
    connection: &Arc<Connection>,
    mut request: Request<Body>,
    upgrade: Option<upgrade::Wanted>,
    origin: &mut Option<Arc<Origin>>,
) -> Served {
    let shared = &connection.shared;
    let head = head_bytes(&request);
    if head > shared.config.limits.header_bytes {
        let text = format!("the request's head has {head} bytes");
        return refuse(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, text);
    }
    let host = host(&request)?;
    let (path, target) = target(&request)?;
    let name = filters::name_of(host.to_str().unwrap_or_default())
        .trim_end_matches('.')
        .to_ascii_lowercase();
    let live = Arc::clone(&shared.live.borrow());
    let door = live.table.doors.get(&connection.port);
    let Some(door) = door else {
        return refuse(StatusCode::NOT_FOUND, "nothing is served here any more");
    };
    if let Some(asked) = &connection.name
        && door.is_misdirected(asked, &name)
    {
        let text = format!("{name} is not served on a connection for {asked}");
        return refuse(StatusCode::MISDIRECTED_REQUEST, text);
    }
    let asked = Asked {
        host: &name,
        path: &path.compared,
        query: target.query().unwrap_or_default(),
        method: request.method(),
        headers: request.headers(),
    };
    let Some(route) = door.find(&asked).map(Arc::clone) else {
        let text = format!("no route for {name}{}", target.path());
        return refuse(StatusCode::NOT_FOUND, text);
    };
    *origin = Some(Arc::clone(&route.action.origin));
    let client = Client::of(
        connection.peer,
        connection.tls,
        request.headers(),
        &shared.config.trusted,
    );
    let policy = &route.action.policy;
    if !client.may(&policy.allow, &policy.deny) {
        return refuse(StatusCode::FORBIDDEN, "not for this client");
    }
    let host_text = host.to_str().unwrap_or_default().to_owned();
    let place = Place {
        host: &host_text,
        path: &path,
        query: target.query().unwrap_or_default(),
        tls: connection.tls,
        https_port: https_port(connection, &host_text),
        port: connection.port,
    };
    if let Some(answer) = filters::answer(&route, &place, &client) {
        return Ok(answer);
    }
    let limit = policy.body_limit.unwrap_or(shared.config.limits.body);
    if limit > 0 && request.body().size_hint().lower() > limit {
        return refuse(StatusCode::PAYLOAD_TOO_LARGE, too_large(limit));
    }
    let fault = Fault::default();
    let send = policy.send_timeout.unwrap_or(shared.config.limits.send);
    request = request.map(|body| Inbound::wrap(body, limit, send, &fault));
    strip_hop_by_hop(request.headers_mut());
    // We have said 100 (Continue) ourselves by reading the body.
    request.headers_mut().remove(header::EXPECT);
    client.tell(request.headers_mut(), &host, connection.tls);
    if let Some(prefix) = &policy.forwarded_prefix {
        forwarded::set_prefix(request.headers_mut(), prefix);
    }
    let mut exchange = Exchange {
        connection,
        route: &route,
        backend: choose(&route.action.backends),
        deadline: policy.total_timeout.map(|total| Instant::now() + total),
        read: patience(policy, shared.config.limits.read),
        limit,
        fault,
    };
    let request = exchange.prepare(request, host, &target, &place)?;
    exchange.run(request, upgrade).await
}

fn refuse<T>(code: StatusCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal(code, text.into()))
}

fn too_large(limit: u64) -> String {
    format!("the request's body is larger than {limit} bytes")
}

/// hyper reads a little more than it is told to, if that completes a head.
fn head_bytes(request: &Request<Body>) -> usize {
    let target = request
        .uri()
        .path_and_query()
        .map_or(0, |p| p.as_str().len());
    let headers = request.headers().iter();
    headers.fold(target, |sum, (name, value)| {
        sum + name.as_str().len() + value.len() + ": \r\n".len()
    })
}

/// Whom the client asks: the authority of the request line, or its one Host header.
fn host(request: &Request<Body>) -> Result<HeaderValue, Refusal> {
    let bad = |text: &str| Refusal(StatusCode::BAD_REQUEST, text.to_owned());
    if matches!(*request.method(), Method::CONNECT | Method::TRACE) {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "this method is not served");
    }
    if let Some(authority) = request.uri().authority() {
        if authority.as_str().contains('@') {
            return Err(bad("the request's authority names a user"));
        }
        return HeaderValue::from_str(authority.as_str()).map_err(|_| bad("bad authority"));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) if host.to_str().is_ok_and(|host| !host.is_empty()) => Ok(host.clone()),
        (None, _) => Err(bad("the request has no Host")),
        _ => Err(bad("the request's Host is not valid")),
    }
}

/// The path as it is judged, and the target as backends are asked for it where nothing is rewritten.
fn target(request: &Request<Body>) -> Result<(Requested, PathAndQuery), Refusal> {
    let target = request.uri().path_and_query().cloned();
    let target = target.unwrap_or_else(|| PathAndQuery::from_static("/"));
    if !target.path().starts_with('/') {
        return refuse(StatusCode::BAD_REQUEST, "the request's target is no path");
    }
    let path = Requested::parse(target.path())
        .map_err(|error| Refusal(StatusCode::BAD_REQUEST, error.to_string()))?;
    if path.sent == target.path() {
        return Ok((path, target));
    }
    let query = target.query().map(|query| format!("?{query}"));
    let sent = format!("{}{}", path.sent, query.unwrap_or_default());
    match sent.parse() {
        Ok(target) => Ok((path, target)),
        Err(_) => refuse(StatusCode::URI_TOO_LONG, "the request's target is too long"),
    }
}

/// How long an answer may let wait; `None` is for ever.
fn patience(policy: &Policy, of_node: Duration) -> Option<Duration> {
    match policy.read_timeout {
        Patience::OfNode => Some(of_node),
        Patience::Within(longest) => Some(longest),
        Patience::Endless => None,
    }
}

/// Clients that name a port, and those of a listener that is not where it should be, must be told the real one.
fn https_port(connection: &Connection, host: &str) -> Option<u16> {
    let listening = connection.shared.listening.borrow();
    let https = listening.iter().find(|l| l.port == types::routing::HTTPS)?;
    let names_port = forwarded::port_of(host.as_bytes()).is_some();
    let port = https.address?.port();
    ((names_port || https.problem.is_some()) && port != types::routing::HTTPS).then_some(port)
}

/// By weight; `None` when there is none.
fn choose(backends: &[Backend]) -> Option<&Backend> {
    if let [only] = backends {
        return (only.weight > 0).then_some(only);
    }
    let total: u64 = backends.iter().map(|b| u64::from(b.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut drawn = rand::rng().random_range(0..total);
    backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let hit = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        hit
    })
}

/// One request and its answer.
struct Exchange<'a> {
    connection: &'a Arc<Connection>,
    route: &'a Arc<Route>,
    backend: Option<&'a Backend>,
    deadline: Option<Instant>,
    /// `None` waits for as long as `deadline` lets it, or the client.
    read: Option<Duration>,
    limit: u64,
    fault: Fault,
}

// === impl Exchange ===

impl Exchange<'_> {
    fn filters(&self) -> impl Iterator<Item = &Filter> {
        let backend = self.backend.map_or(&[][..], |backend| &backend.filters);
        self.route.action.filters.iter().chain(backend)
    }

    /// The request as the backend gets it; mirrors are sent theirs.
    fn prepare(
        &mut self,
        mut request: Request<Body>,
        host: HeaderValue,
        target: &PathAndQuery,
        place: &Place<'_>,
    ) -> Result<Request<Body>, Refusal> {
        *request.version_mut() = Version::HTTP_11;
        *request.uri_mut() = Uri::from(target.clone());
        request.headers_mut().insert(header::HOST, host);
        for filter in self.filters() {
            match filter {
                Filter::RequestHeaders(change) => filters::change(request.headers_mut(), change),
                Filter::Rewrite { host, path } => {
                    if let Some(host) = host {
                        request.headers_mut().insert(header::HOST, host.clone());
                    }
                    if let Some(path) = path {
                        let Some(target) = filters::rewritten(path, self.route, place) else {
                            let text = "the request's target is too long once rewritten";
                            return refuse(StatusCode::URI_TOO_LONG, text);
                        };
                        *request.uri_mut() = Uri::from(target);
                    }
                }
                _ => {}
            }
        }
        let mirrors: Vec<&Target> = self
            .filters()
            .filter_map(|filter| match filter {
                Filter::Mirror { target, share } => {
                    let drawn = rand::rng().random_range(0..1_000_000u32);
                    (drawn < *share).then_some(target)
                }
                _ => None,
            })
            .collect();
        for mirror in mirrors {
            request = self.mirror(mirror, request);
        }
        Ok(request)
    }

    /// Sends a copy; its answer is read and forgotten.
    fn mirror(&self, to: &Target, request: Request<Body>) -> Request<Body> {
        let gate = &self.connection.shared.gate;
        let Target::Service { key, port } = to else {
            return request;
        };
        let Some(target) = gate.target(key, port).filter(|target| !target.is_name()) else {
            return request;
        };
        let Ok(permit) = Arc::clone(&self.connection.shared.mirrors).try_acquire_owned() else {
            tracing::debug!(mirror = %key, "Request not copied: too many copies are under way");
            return request;
        };
        let (parts, body) = request.into_parts();
        let (body, copy) = tee(body);
        let mut mirrored = Request::new(copy);
        *mirrored.method_mut() = parts.method.clone();
        *mirrored.uri_mut() = parts.uri.clone();
        *mirrored.headers_mut() = parts.headers.clone();
        // The copy may end early: its length is not promised.
        mirrored.headers_mut().remove(header::CONTENT_LENGTH);
        let (own, peer) = (gate.clone(), self.connection.peer);
        gate.spawn(async move {
            let exchange = async {
                if let Ok(response) = own.call(peer, &target, mirrored).await {
                    drop(http_body_util::BodyExt::collect(response.into_body()).await);
                }
            };
            drop(tokio::time::timeout(MIRROR, exchange).await);
            drop(permit);
        });
        Request::from_parts(parts, body)
    }

    async fn run(self, request: Request<Body>, upgrade: Option<upgrade::Wanted>) -> Served {
        let target = self.target()?;
        let gate = &self.connection.shared.gate;
        let begun = async {
            match upgrade {
                Some(upgrade) => upgrade::run(self.connection, &target, request, upgrade).await,
                None => gate.call(self.connection.peer, &target, request).await,
            }
        };
        let until = self.read.map(|read| Instant::now() + read);
        let answer = match until.into_iter().chain(self.deadline).min() {
            Some(until) => tokio::time::timeout_at(until, begun).await,
            // The route's author wants it so; when the client goes, so does this.
            None => Ok(begun.await),
        };
        let mut response = match answer {
            Ok(Ok(response)) => response,
            _ if self.fault.is_too_large() => {
                return refuse(StatusCode::PAYLOAD_TOO_LARGE, too_large(self.limit));
            }
            _ if self.fault.is_too_slow() => {
                return refuse(
                    StatusCode::REQUEST_TIMEOUT,
                    "the request's body came too slowly",
                );
            }
            Ok(Err(error)) => return Err(self.failure(&error)),
            Err(_) => {
                return refuse(
                    StatusCode::GATEWAY_TIMEOUT,
                    "the backend did not answer in time",
                );
            }
        };
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            strip_hop_by_hop(response.headers_mut());
            let (read, deadline) = (self.read, self.deadline);
            response = response.map(|body| Outbound::wrap(body, read, deadline));
        }
        for filter in self.filters() {
            if let Filter::ResponseHeaders(change) = filter {
                filters::change(response.headers_mut(), change);
            }
        }
        Ok(response)
    }

    fn target(&self) -> Result<gate::Target, Refusal> {
        let action = &self.route.action;
        let (key, port) = match self.backend.map(|backend| &backend.target) {
            Some(Target::Service { key, port }) => (key, port),
            Some(Target::Broken { code, why }) => {
                return refuse(*code, format!("{}: {why}", action.origin));
            }
            None => {
                let text = format!("{} has no backend", action.origin);
                return refuse(StatusCode::INTERNAL_SERVER_ERROR, text);
            }
        };
        let of_ingress = action.origin.kind == RouteKind::Ingress;
        let found = self.connection.shared.gate.target(key, port);
        // The Gateway API advises against ExternalNames, Ingresses have always led to them.
        let found = found.filter(|target| of_ingress || !target.is_name());
        found.ok_or_else(|| {
            // The Gateway API wants 500 where it says ResolvedRefs=False.
            let code = if of_ingress {
                StatusCode::SERVICE_UNAVAILABLE
            } else {
                StatusCode::INTERNAL_SERVER_ERROR
            };
            let text = format!(
                "{}: there is no port {port} of Service {key}",
                action.origin
            );
            Refusal(code, text)
        })
    }

    fn failure(&self, error: &HttpError) -> Refusal {
        let code = match error {
            // For a client outside it is the backend that failed.
            HttpError::Guest(_) => StatusCode::BAD_GATEWAY,
            error => error.status(),
        };
        tracing::debug!(origin = %self.route.action.origin, error = %chain(error), "Backend failed");
        // What went wrong inside is for the log and the Service's owner.
        let text = match code {
            StatusCode::SERVICE_UNAVAILABLE => "no endpoint took the request",
            StatusCode::GATEWAY_TIMEOUT => "the backend did not answer in time",
            StatusCode::BAD_GATEWAY => "the backend failed",
            StatusCode::LOOP_DETECTED => "the request goes round in a loop",
            _ => "the backend refused the request",
        };
        Refusal(code, text.to_owned())
    }
}

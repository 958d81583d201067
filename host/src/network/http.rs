//! Where an HTTP request goes, and the call itself: a handler on this node is called directly with the same body, an
//! endpoint that listens on a socket through a pooled client, the outside through `egress`.
//!
//! Timeouts are the caller's: cancelling is dropping. A request is sent to another endpoint only when nobody saw it. Hop-by-hop headers end here. The Host header stays.

mod head;
mod told;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::Scheme;
use http::{Request, Response};
use rand::RngExt;

use super::balancer::{ATTEMPTS, InFlight, Millis, Tried};
use super::bodies::{Flow, Guard, counted, guarded};
use super::client::{self, literal};
use super::pod::PodNetwork;
use super::policy::{Watched, Way};
use super::ports::Target;
use super::table::{Kind, Port, Protocol, Service};
use super::tunnel;
use super::vnet::{Caller, Fabric, RENEWALS, Route};
use super::{Body, HttpError, ReturnedRequest, SocketError, serve};
use crate::dns::{self, Found, upstream};

pub(crate) use self::head::{readdress, strip_hop_by_hop};
use self::told::{Asked, Away, Whom};

/// Calls in a row that one request may cause.
const HOPS: u8 = 32;
const HOPS_ON_ONE_STACK: u8 = 8;

const NO_ENDPOINT: &str = "the Service has no ready endpoint";

/// How many calls led to this request, as an extension. The network counts it up on every call; whoever runs a guest
/// copies it from the request the guest answers to those it sends, so that a Service that calls itself comes to an end.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hops(pub u8);

/// A guest's outgoing call.
pub(crate) async fn send(
    pod: &PodNetwork,
    mut request: Request<Body>,
) -> Result<Response<Body>, HttpError> {
    let hops = request.extensions().get::<Hops>().map_or(0, |hops| hops.0);
    if hops >= HOPS {
        return Err(HttpError::Loop(format!(
            "{} calls in a row to {}",
            HOPS,
            request.uri()
        )));
    }
    request.extensions_mut().insert(Hops(hops + 1));
    serve::refuse_connect(&request)?;
    let uri = request.uri();
    let authority = uri
        .authority()
        .ok_or_else(|| HttpError::Invalid("the request has no authority".to_owned()))?
        .clone();
    let tls = uri.scheme() == Some(&Scheme::HTTPS);
    let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
    strip_hop_by_hop(request.headers_mut());
    if !request.headers().contains_key(header::HOST) {
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|error| HttpError::Invalid(format!("authority {authority}: {error}")))?;
        request.headers_mut().insert(header::HOST, host);
    }

    let fabric = pod.fabric();
    let call = Call {
        fabric,
        caller: pod.caller(),
    };
    let host = authority.host();
    let found = match literal(host) {
        Some(ip) => Found::Addresses(vec![ip]),
        None => {
            dns::admit(pod, host)
                .await
                .map_err(|error| HttpError::Forbidden(format!("DNS for {host}: {error}")))?;
            let found = dns::find(pod, host);
            if found.goes_on() {
                // Search domains outside: whoever is there first.
                let led = dns::settle(pod, found).await;
                led.map_err(|error| HttpError::NotFound(format!("{host}: {error}")))?
                    .found()
            } else {
                found
            }
        }
    };
    match found {
        Found::Service(service) if tls => {
            let address =
                service_address(fabric, &service, port).ok_or_else(|| no_port(&service, port))?;
            call.tls(address, host, request).await
        }
        Found::Service(service) => call.service(&service, port, request).await,
        Found::Addresses(ips) => {
            let ip = ips
                .first()
                .ok_or_else(|| HttpError::NotFound(host.to_owned()))?;
            let address = SocketAddr::new(ip.to_canonical(), port);
            call.address(address, tls, host, request).await
        }
        Found::Outside(target, _) => {
            if !target.eq_ignore_ascii_case(host) {
                readdress(&mut request, &target, authority.port_u16())?;
            }
            call.outside(request).await
        }
        Found::Nothing => Err(HttpError::NotFound(host.to_owned())),
    }
}

/// One call, and who makes it.
pub(crate) struct Call<'a> {
    pub(crate) fabric: &'a Arc<Fabric>,
    pub(crate) caller: Caller<'a>,
}

// === impl Call ===

impl Call<'_> {
    pub(crate) async fn service(
        &self,
        service: &Service,
        port: u16,
        request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        if service.kind != Kind::Headless {
            let port = service
                .port(port, Protocol::Tcp)
                .ok_or_else(|| no_port(service, port))?;
            return self.balanced(port, request).await;
        }
        self.headless(service, port, request).await
    }

    /// DNS leads straight to the pods: the port is the pods', not one of the Service. One that nobody answers at is followed
    /// by another, as a client would try the next address.
    async fn headless(
        &self,
        service: &Service,
        port: u16,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        // Who has a choice does not wait for a node that is slow to answer.
        let patient = service.hosts.len() == 1;
        let begun = self.fabric.now();
        let whom = Whom::Service(&service.key);
        let mut reason = None;
        for ip in hosts(self.fabric, service).take(ATTEMPTS) {
            let address = SocketAddr::new(ip, port);
            match self.endpoint(address, request, None, patient, whom).await {
                Err(HttpError::Returned {
                    reason: why,
                    request: back,
                    ..
                }) => {
                    request = back.into_inner();
                    reason = Some(why);
                }
                other => return other,
            }
        }
        let reason = reason.unwrap_or_else(|| NO_ENDPOINT.to_owned());
        Err(self.lost(whom, begun, reason, request))
    }

    /// To an endpoint of a Service's port; one that does not take the request is followed by another. When none did,
    /// others may come.
    pub(crate) async fn balanced(
        &self,
        port: &Port,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let begun = self.fabric.now();
        let mut now = begun;
        let mut renewed: Option<Arc<Port>> = None;
        let mut renewals = 0;
        loop {
            let port = renewed.as_deref().unwrap_or(port);
            let (reason, busy, back) = match self.attempts(port, request, now).await {
                Err(HttpError::Returned {
                    reason,
                    busy,
                    request,
                }) => (reason, busy, request),
                other => return other,
            };
            request = back.into_inner();
            // Others will not come because these have too much to do.
            let hopeless = busy || port.endpoints.is_empty() || renewals == RENEWALS;
            let next = if hopeless {
                None
            } else {
                self.fabric.renewed(port).await
            };
            if next.is_none() {
                let whom = Whom::Service(&port.service);
                return Err(self.lost(whom, begun, reason, request));
            }
            renewals += 1;
            renewed = next;
            now = self.fabric.now();
        }
    }

    /// To one endpoint after the other; `Returned` when none took the request, busy when one is there and had too much to do.
    async fn attempts(
        &self,
        port: &Port,
        mut request: Request<Body>,
        mut now: Millis,
    ) -> Result<Response<Body>, HttpError> {
        let mut tried = Tried::default();
        let (mut reason, mut busy) = (None, 0);
        loop {
            let client = Some(self.caller.from.ip());
            let picked = self.fabric.pick_at(port, client, &tried, now);
            let picked = picked.map(Arc::clone);
            let Some(endpoint) = picked.filter(|_| busy < ATTEMPTS) else {
                let reason = reason.unwrap_or_else(|| NO_ENDPOINT.to_owned());
                return Err(returned(reason, busy > 0, request));
            };
            let load = endpoint.load.begin();
            let asked = Asked::new(self.fabric, port, &endpoint, now);
            let whom = Whom::Service(&port.service);
            let answer = self
                .endpoint(endpoint.address, request, Some(load), false, whom)
                .await;
            asked.answered();
            match answer {
                Ok(response) => {
                    if response.status().is_server_error() {
                        port.endpoints.failed(&endpoint, self.fabric.now());
                    } else {
                        endpoint.load.succeeded();
                    }
                    return Ok(response);
                }
                Err(HttpError::Returned {
                    reason: why,
                    busy: is_busy,
                    request: back,
                }) => {
                    now = self.fabric.now();
                    // Who has too much to do is avoided by its load.
                    if is_busy {
                        busy += 1;
                    } else {
                        endpoint.load.refused(now);
                    }
                    request = back.into_inner();
                    if !tried.add(endpoint.address) {
                        return Err(returned(why, busy > 0, request));
                    }
                    reason = Some(why);
                }
                Err(error) => {
                    use HttpError::{Broken, Connect, Guest, Timeout};
                    if matches!(error, Broken(_) | Connect(_) | Guest(_) | Timeout(_)) {
                        port.endpoints.failed(&endpoint, self.fabric.now());
                    }
                    return Err(error);
                }
            }
        }
    }

    pub(crate) async fn address(
        &self,
        address: SocketAddr,
        tls: bool,
        host: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let own = self.caller.pod.map(PodNetwork::address);
        let begun = self.fabric.now();
        let route = self.fabric.route(own, address, Protocol::Tcp);
        let (whom, answer) = match &route {
            Route::Outside => return self.outside(request).await,
            Route::Nowhere(error) => return Err(client::from_socket(address, *error)),
            // It speaks no HTTP.
            Route::Dns => return Err(client::from_socket(address, SocketError::Refused)),
            _ if tls => return self.tls(address, host, request).await,
            Route::Service(port) => return self.balanced(port, request).await,
            Route::Own => match self.caller.pod {
                Some(pod) => {
                    let answer = self.pod(pod, address, request, None).await;
                    (Whom::Workload(pod.workload()), answer)
                }
                None => return Err(client::from_socket(address, SocketError::Unreachable)),
            },
            Route::Pod(pod) => {
                let answer = self.pod(pod, address, request, None).await;
                (Whom::Workload(pod.workload()), answer)
            }
            Route::Node(_) => {
                let whom = Whom::Nobody;
                let answer = self.endpoint(address, request, None, true, whom).await;
                (whom, answer)
            }
        };
        match answer {
            Err(HttpError::Returned {
                reason, request, ..
            }) => Err(self.lost(whom, begun, reason, request.into_inner())),
            answer => answer,
        }
    }

    /// Policies are asked for every request: connections are shared by many.
    async fn admit(
        &self,
        pod: Option<&PodNetwork>,
        address: SocketAddr,
    ) -> Result<Flow, HttpError> {
        if let (Some(from), Some(to)) = (self.caller.pod, pod)
            && std::ptr::eq(from, to)
        {
            return Ok(None);
        }
        let caller = &self.caller;
        match self.fabric.admit(caller, pod, address, address).await {
            Ok(admitted) => {
                let way = Way::of(caller, pod, address, address);
                Ok(Some(Watched::new(self.fabric, admitted, way)))
            }
            Err(_) => Err(HttpError::Forbidden(format!(
                "{address}: denied by a NetworkPolicy"
            ))),
        }
    }

    /// `patient`: there is no other, so one that is slow to answer is waited for.
    async fn endpoint(
        &self,
        address: SocketAddr,
        request: Request<Body>,
        load: Option<InFlight>,
        patient: bool,
        whom: Whom<'_>,
    ) -> Result<Response<Body>, HttpError> {
        if let IpAddr::V4(ip) = address.ip() {
            if let Some(pod) = self.fabric.pod(ip) {
                return self.pod(&pod, address, request, load).await;
            }
            if let Some(peer) = self.fabric.peer(ip) {
                let away = Away::new(self, &peer, address, whom, &request);
                return self.remote(away, request, load, patient).await;
            }
            if self.fabric.config.cluster_cidr.contains(&ip) {
                // No longer anywhere.
                return Err(gone(format!("{address}: host unreachable"), request));
            }
        }
        let flow = self.admit(None, address).await?;
        Box::pin(self.over_socket(address, request, load, None, flow)).await
    }

    /// To a pod of this node. Hot: a call of its handler, nothing else.
    pub(crate) async fn pod(
        &self,
        pod: &PodNetwork,
        address: SocketAddr,
        mut request: Request<Body>,
        load: Option<InFlight>,
    ) -> Result<Response<Body>, HttpError> {
        let own = self
            .caller
            .pod
            .is_some_and(|caller| std::ptr::eq(caller, pod));
        let flow = self.admit(Some(pod), address).await?;
        let handler = match pod.ports().target(address.port(), own) {
            Some(Target::Http(handler)) => handler,
            Some(Target::Socket(_)) => {
                let sent = self.over_socket(address, request, load, Some(pod), flow);
                return Box::pin(sent).await;
            }
            None => return Err(gone(format!("{address}: connection refused"), request)),
        };
        let Some(slot) = pod.requests().begin() else {
            let reason = format!("{address}: the pod is too busy");
            return Err(returned(reason, true, request));
        };
        let (observed, pair) = self.observe(Some(pod), address, &mut request);
        let request = counted(request, pair.as_ref());
        let hops = request.extensions().get::<Hops>().map_or(0, |hops| hops.0);
        let answer = if hops > 0 && hops.is_multiple_of(HOPS_ON_ONE_STACK) {
            // Calls inside calls are polled inside each other: a long chain gets a fresh stack now and then.
            let task = tokio::spawn(handler.handle(request));
            tokio_util::task::AbortOnDropHandle::new(task)
                .await
                .unwrap_or_else(|error| Err(HttpError::Guest(error.to_string())))
        } else {
            handler.handle(request).await
        };
        match &answer {
            Err(HttpError::Returned { reason, .. }) => observed.returned(reason),
            answer => observed.answered(answer),
        }
        let guard = Guard {
            load,
            request: Some(slot),
            pair,
            ..Guard::default()
        };
        Ok(guarded(answer?, guard, flow))
    }

    /// To something that listens on a socket. Large: callers box it, so that they stay small.
    async fn over_socket(
        &self,
        address: SocketAddr,
        mut request: Request<Body>,
        load: Option<InFlight>,
        pod: Option<&PodNetwork>,
        flow: Flow,
    ) -> Result<Response<Body>, HttpError> {
        // A pod's 127.0.0.1 is not an address an endpoint can be reached at.
        let ip = pod.map_or(address.ip(), |pod| IpAddr::V4(pod.address()));
        let address = SocketAddr::new(ip, address.port());
        let client = match (self.caller.pod, self.caller.remote) {
            (Some(pod), _) => pod.client(),
            (None, Some(remote)) => remote.client(self.fabric),
            (None, None) => self.fabric.rim_client(),
        };
        // The bytes are counted by the connection; what goes to another node is counted there.
        let elsewhere = pod.is_none() && self.fabric.is_of_cluster(address.ip());
        let observed = (!elsewhere).then(|| self.observe(pod, address, &mut request).0);
        let answer = client.request(address, request).await;
        match (observed, &answer) {
            (Some(observed), Err(HttpError::Returned { reason, .. })) => observed.returned(reason),
            (Some(observed), answer) => observed.answered(answer),
            (None, _) => {}
        }
        let guard = Guard {
            load,
            ..Guard::default()
        };
        let mut response = answer?;
        strip_hop_by_hop(response.headers_mut());
        Ok(guarded(response, guard, flow))
    }

    /// To a pod of another node, which counts what it hears of.
    async fn remote(
        &self,
        away: Away<'_>,
        request: Request<Body>,
        load: Option<InFlight>,
        patient: bool,
    ) -> Result<Response<Body>, HttpError> {
        let (peer, address) = (away.peer, away.address);
        let flow = self.admit(None, address).await;
        let flow = match flow {
            Ok(flow) => flow,
            Err(error) => {
                away.answered();
                return Err(error);
            }
        };
        let answer = tunnel::send(self.fabric, peer, &self.caller, address, request, patient).await;
        match &answer {
            Err(error @ HttpError::Broken(_)) => away.broken(error),
            _ => away.answered(),
        }
        let guard = Guard {
            load,
            ..Guard::default()
        };
        Ok(guarded(answer?, guard, flow))
    }

    async fn tls(
        &self,
        address: SocketAddr,
        host: &str,
        request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let stream = self
            .fabric
            .connect(&self.caller, address)
            .await
            .map_err(|error| client::from_socket(address, error))?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut response = client::request_tls(self.fabric, stream, host, request).await?;
        strip_hop_by_hop(response.headers_mut());
        Ok(response)
    }

    /// To the authority of the request's URI.
    pub(crate) async fn outside(
        &self,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        if let Some(ip) = request.uri().host().and_then(literal) {
            // The client does not ask its resolver about literals, and so not the policy.
            let policy = &self.fabric.config.egress;
            policy
                .check(ip)
                .map_err(|error| HttpError::Forbidden(format!("{ip}: {error}")))?;
            let tls = request.uri().scheme() == Some(&Scheme::HTTPS);
            let port = request.uri().port_u16();
            let port = port.unwrap_or(if tls { 443 } else { 80 });
            self.admit(None, SocketAddr::new(ip.to_canonical(), port))
                .await?;
        }
        let restricted = match self.caller.pod {
            Some(pod) if !self.fabric.policy.is_open() && pod.isolation().egress() => {
                self.fabric.policies_known().await;
                Some(pod.restricted())
            }
            _ => None,
        };
        let slot = self
            .fabric
            .outside_slot(self.caller.pod)
            .map_err(|error| HttpError::Connect(error.to_string()))?;
        let address = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
        let (observed, pair) = self.observe(None, address, &mut request);
        let request = counted(request, pair.as_ref());
        let sent = self.fabric.egress.request(restricted.as_ref(), request);
        let answer = match self.caller.pod {
            Some(pod) => upstream::counted(pod.lookups(), sent).await,
            None => sent.await,
        };
        observed.answered(&answer);
        let mut response = answer?;
        strip_hop_by_hop(response.headers_mut());
        let guard = Guard {
            outside: Some(slot),
            pair,
            ..Guard::default()
        };
        Ok(guarded(response, guard, None))
    }
}

/// Nobody is there.
fn gone(reason: String, request: Request<Body>) -> HttpError {
    returned(reason, false, request)
}

fn returned(reason: String, busy: bool, request: Request<Body>) -> HttpError {
    HttpError::Returned {
        reason,
        busy,
        request: ReturnedRequest::new(request),
    }
}

/// The addresses behind a headless Service, from a random one on, those on nodes that do not answer last.
fn hosts(fabric: &Fabric, service: &Service) -> impl Iterator<Item = IpAddr> {
    let count = service.hosts.len();
    let start = rand::rng().random_range(0..count.max(1));
    let (before, after) = service.hosts.split_at(start);
    let walk = move || after.iter().chain(before).map(|host| host.address);
    let answers = move |ip: &IpAddr| match ip {
        IpAddr::V4(ip) => fabric.peer(*ip).is_none_or(|peer| peer.is_reachable()),
        IpAddr::V6(_) => true,
    };
    walk()
        .filter(answers)
        .chain(walk().filter(move |ip| !answers(ip)))
}

/// Where a TLS connection to a Service goes.
fn service_address(fabric: &Fabric, service: &Service, port: u16) -> Option<SocketAddr> {
    if service.kind == Kind::Headless {
        return Some(SocketAddr::new(hosts(fabric, service).next()?, port));
    }
    service.port(port, Protocol::Tcp)?;
    Some(SocketAddr::new(*service.cluster_ips.first()?, port))
}

fn no_port(service: &Service, port: u16) -> HttpError {
    HttpError::Connect(format!(
        "Service {}/{} has no port {port}",
        service.key.namespace, service.key.name
    ))
}

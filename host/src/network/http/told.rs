//! What is told of requests where they come from: those that nobody answered, of which nobody else can tell. Decides nothing
//! but that an endpoint that lets its callers wait is not well.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use tokio::time::Instant;

use super::Call;
use crate::network::balancer::{Endpoint, Millis};
use crate::network::observe::{self, Ends, GIVEN_UP, Line, Observed};
use crate::network::pod::PodNetwork;
use crate::network::table::{Key, Port};
use crate::network::traffic::{NOBODY, Pair, Security, Workload};
use crate::network::tunnel::Peer;
use crate::network::vnet::Fabric;
use crate::network::{Body, HttpError};

/// Who gives up after this long says something about the endpoint; who does sooner may have changed his mind.
const PATIENCE: Duration = Duration::from_secs(1);

/// Who should have answered.
#[derive(Clone, Copy)]
pub(super) enum Whom<'a> {
    /// One of its pods: which one is not known, or does not matter.
    Service(&'a Key),
    Workload(&'a Arc<Workload>),
    /// An address that nothing is known of.
    Nobody,
}

/// A request that an endpoint has and has not answered. Dropped, its caller has given it up.
pub(super) struct Asked<'a> {
    fabric: &'a Fabric,
    port: &'a Port,
    endpoint: &'a Endpoint,
    since: Millis,
    over: bool,
}

/// A request that another node has. Dropped, its caller has given it up, of which that node tells if it still can.
pub(super) struct Away<'a> {
    call: &'a Call<'a>,
    pub(super) peer: &'a Peer,
    pub(super) address: SocketAddr,
    whom: Whom<'a>,
    started: Instant,
    line: Option<Box<Line>>,
    over: bool,
}

// === impl Asked ===

impl<'a> Asked<'a> {
    pub(super) fn new(
        fabric: &'a Fabric,
        port: &'a Port,
        endpoint: &'a Endpoint,
        since: Millis,
    ) -> Self {
        Self {
            fabric,
            port,
            endpoint,
            since,
            over: false,
        }
    }

    pub(super) fn answered(mut self) {
        self.over = true;
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let now = self.fabric.now();
        if Duration::from_millis(now.saturating_sub(self.since)) >= PATIENCE {
            self.port.endpoints.failed(self.endpoint, now);
        }
    }
}

// === impl Away ===

impl<'a> Away<'a> {
    pub(super) fn new(
        call: &'a Call<'a>,
        peer: &'a Peer,
        address: SocketAddr,
        whom: Whom<'a>,
        request: &Request<Body>,
    ) -> Self {
        let line = if call.fabric.observer.has_log() {
            let destination = call.workload(whom);
            let ends = call.ends(&destination, address, Security::MutualTls);
            call.fabric.observer.depart(ends, request)
        } else {
            None
        };
        Self {
            call,
            peer,
            address,
            whom,
            started: Instant::now(),
            line,
            over: false,
        }
    }

    /// By the other node, which has told of it, or by nobody there: then it comes back.
    pub(super) fn answered(mut self) {
        self.over = true;
    }

    /// The way to the other node has ended; whether that one can tell is not known.
    pub(super) fn broken(mut self, error: &HttpError) {
        self.tell(&error.to_string());
    }

    fn tell(&mut self, error: &str) {
        self.over = true;
        let fabric = self.call.fabric;
        let destination = self.call.workload(self.whom);
        let source = self.call.caller.workload;
        let pair = fabric
            .traffic
            .pair(source, &destination, Security::MutualTls);
        let (line, took) = (self.line.take(), self.started.elapsed());
        fabric
            .observer
            .unanswered(pair.as_deref(), line, took, error);
    }
}

impl Drop for Away<'_> {
    fn drop(&mut self) {
        if !self.over && !self.peer.is_reachable() {
            self.tell(GIVEN_UP);
        }
    }
}

// === impl Call ===

impl Call<'_> {
    /// Begins to watch a request; `None` is the outside.
    pub(super) fn observe(
        &self,
        pod: Option<&PodNetwork>,
        address: SocketAddr,
        request: &mut Request<Body>,
    ) -> (Observed<'_>, Option<Arc<Pair>>) {
        let (destination, security) = match pod {
            Some(pod) => (pod.workload(), observe::security(&self.caller)),
            None => (&self.fabric.outside, Security::Outside),
        };
        self.observe_as(destination, security, address, request)
    }

    fn observe_as(
        &self,
        destination: &Workload,
        security: Security,
        address: SocketAddr,
        request: &mut Request<Body>,
    ) -> (Observed<'_>, Option<Arc<Pair>>) {
        let pair = self
            .fabric
            .traffic
            .pair(self.caller.workload, destination, security);
        let ends = self.ends(destination, address, security);
        let observed = self.fabric.observer.begin(ends, pair.clone(), request);
        (observed, pair)
    }

    fn ends<'a>(
        &'a self,
        destination: &'a Workload,
        address: SocketAddr,
        security: Security,
    ) -> Ends<'a> {
        Ends {
            source: self.caller.workload,
            identity: self.caller.identity.map(|identity| &**identity),
            destination,
            address,
            security,
        }
    }

    fn workload(&self, whom: Whom<'_>) -> Arc<Workload> {
        let traffic = &self.fabric.traffic;
        match whom {
            Whom::Service(key) => traffic.workload(&format!("{}/{}", key.namespace, key.name)),
            Whom::Workload(workload) => Arc::clone(workload),
            Whom::Nobody => traffic.workload(NOBODY),
        }
    }

    /// Nobody took the request, since `begun`: counted here, as a call of whoever it was for.
    pub(super) fn lost(
        &self,
        whom: Whom<'_>,
        begun: Millis,
        reason: String,
        mut request: Request<Body>,
    ) -> HttpError {
        let destination = self.workload(whom);
        let security = observe::security(&self.caller);
        let address = SocketAddr::from((std::net::Ipv4Addr::UNSPECIFIED, 0));
        let (observed, _) = self.observe_as(&destination, security, address, &mut request);
        let took = self.fabric.now().saturating_sub(begun);
        observed.lost(&reason, Duration::from_millis(took));
        HttpError::NotReached(reason)
    }
}

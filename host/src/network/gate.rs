//! The way in for who serves the outside on real sockets and is no Service's listener: Ingress and Gateway. Lends the
//! network's calls, bounds and shutdown; never decides what is served. A Service that is a name of something outside leads
//! there as the node resolves it, and as far as pods get.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use types::routing::Key as RouteKey;
use types::routing::origin::Origin;
use types::routing::table::PortRef;

use super::balancer::ATTEMPTS;
use super::http::{Call, readdress};
use super::places::Place;
use super::table::{Kind, Port, Protocol, Service};
use super::vnet::{Caller, Fabric};
use super::{Body, Config, HttpError, Network, SocketError, Stream};
use crate::dns::{self, Found, zone};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    fabric: Arc<Fabric>,
}

/// A port of a Service, as the table has it at this moment.
pub(crate) enum Target {
    Endpoints(Arc<Port>),
    /// Of an ExternalName: a name and a port there.
    Name(String, u16),
}

// === impl Target ===

impl Target {
    /// It leads to a name, wherever that is.
    pub(crate) fn is_name(&self) -> bool {
        matches!(self, Self::Name(..))
    }
}

impl Network {
    pub(crate) fn gate(&self) -> Gate {
        Gate {
            fabric: Arc::clone(&self.fabric),
        }
    }
}

// === impl Gate ===

impl Gate {
    pub(crate) fn config(&self) -> &Config {
        &self.fabric.config
    }

    /// `None` when the Service or its port does not exist.
    pub(crate) fn target(&self, key: &RouteKey, port: &PortRef) -> Option<Target> {
        let table = self.fabric.services.borrow();
        let service = table.get(&key.namespace, &key.name)?;
        if let Kind::ExternalName(name) = &service.kind {
            return Some(Target::Name(name.clone(), port_outside(service, port)?));
        }
        let found = match port {
            PortRef::Number(number) => service.port(*number, Protocol::Tcp),
            PortRef::Name(name) => service
                .ports
                .iter()
                .find(|port| port.name == *name && port.protocol == Protocol::Tcp),
        };
        found.map(|port| Target::Endpoints(Arc::clone(port)))
    }

    /// Sends a request of the client at `from` to an endpoint. Cancel by dropping.
    pub(crate) async fn call(
        &self,
        from: SocketAddr,
        target: &Target,
        request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        let call = Call {
            fabric: &self.fabric,
            caller: self.fabric.ingress_from(from),
        };
        match target {
            Target::Endpoints(port) => call.balanced(port, request).await,
            Target::Name(name, port) => self.call_named(&call, name, *port, request).await,
        }
    }

    async fn call_named(
        &self,
        call: &Call<'_>,
        name: &str,
        port: u16,
        mut request: Request<Body>,
    ) -> Result<Response<Body>, HttpError> {
        match dns::lead(&self.fabric, name) {
            Found::Service(service) => call.service(&service, port, request).await,
            Found::Addresses(ips) => {
                let ip = ips.first().copied();
                let ip = ip.ok_or_else(|| HttpError::NotFound(name.to_owned()))?;
                let to = SocketAddr::new(ip, port);
                call.address(to, false, name, request).await
            }
            Found::Outside(name, _) => {
                let known = self.fabric.upstream.of_machine(&name).await;
                let Some(ip) = known.and_then(|ips| ips.first().copied()) else {
                    readdress(&mut request, &name, Some(port))?;
                    return call.outside(request).await;
                };
                let literal = match ip {
                    IpAddr::V4(ip) => ip.to_string(),
                    IpAddr::V6(ip) => format!("[{ip}]"),
                };
                readdress(&mut request, &literal, Some(port))?;
                let to = SocketAddr::new(ip, port);
                call.address(to, false, &name, request).await
            }
            Found::Nothing => Err(HttpError::NotFound(name.to_owned())),
        }
    }

    /// A connection of the client at `from` to an endpoint, for what is no request and answer.
    pub(crate) async fn connect(
        &self,
        from: SocketAddr,
        target: &Target,
        seen: SocketAddr,
    ) -> Result<Stream, SocketError> {
        let caller = self.fabric.ingress_from(from);
        match target {
            Target::Endpoints(port) => self.fabric.connect_service(&caller, port, seen).await,
            Target::Name(name, port) => self.connect_named(&caller, name, *port).await,
        }
    }

    async fn connect_named(
        &self,
        caller: &Caller<'_>,
        name: &str,
        port: u16,
    ) -> Result<Stream, SocketError> {
        let ips = match dns::lead(&self.fabric, name) {
            Found::Service(service) => zone::addresses(&service),
            Found::Addresses(ips) => ips,
            Found::Outside(name, _) => match self.fabric.upstream.of_machine(&name).await {
                Some(ips) => ips,
                None => {
                    let found = self.fabric.upstream.lookup(&name).await;
                    found.map_err(|_| SocketError::Unreachable)?
                }
            },
            Found::Nothing => return Err(SocketError::Unreachable),
        };
        let mut last = SocketError::Unreachable;
        for ip in ips.into_iter().take(ATTEMPTS) {
            match self.fabric.connect(caller, SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// One more connection from outside, of a client at `from`, if there may be one.
    pub(crate) fn place(&self, from: IpAddr) -> Option<Place<IpAddr>> {
        self.fabric.rim_connections.take(from.to_canonical())
    }

    /// A client was answered, by us or by a backend. There is no origin when no route was found.
    pub(crate) fn answered(&self, origin: Option<&Origin>, status: StatusCode) {
        self.fabric.answers.add(origin, status.as_u16());
    }

    /// Runs until it ends, or the network stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        let stop = self.fabric.stop.clone();
        self.fabric.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        })
    }

    /// Cancelled when nothing new is to be accepted.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.fabric.draining
    }
}

/// The port at what an ExternalName names: as the Service says, or as the route does when the Service says nothing of that
/// number.
fn port_outside(service: &Service, wanted: &PortRef) -> Option<u16> {
    let spec = service.object.spec.as_ref();
    let mut listed = spec
        .and_then(|spec| spec.ports.as_ref())
        .into_iter()
        .flatten();
    let found = listed.find(|port| match wanted {
        PortRef::Number(number) => port.port == i32::from(*number),
        PortRef::Name(name) => port.name.as_ref() == Some(name),
    });
    match (found, wanted) {
        (Some(port), _) => match &port.target_port {
            Some(IntOrString::Int(target)) => u16::try_from(*target).ok(),
            // There are no containers to ask.
            Some(IntOrString::String(_)) => None,
            None => u16::try_from(port.port).ok(),
        },
        (None, PortRef::Number(number)) => Some(*number),
        (None, PortRef::Name(_)) => None,
    }
}

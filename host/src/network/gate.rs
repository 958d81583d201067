//! The way in for who serves the outside on real sockets and is no Service's listener: Ingress and Gateway. Lends the
//! network's calls, bounds and shutdown; never decides what is served.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Request, Response};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use types::routing::Key as RouteKey;
use types::routing::table::PortRef;

use super::http::Call;
use super::table::{Port, Protocol};
use super::vnet::Fabric;
use super::{Body, Config, HttpError, Network, SocketError, Stream};

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Gate {
    fabric: Arc<Fabric>,
}

/// A port of a Service, as the table has it at this moment.
pub(crate) struct Target(Arc<Port>);

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
        let found = match port {
            PortRef::Number(number) => service.port(*number, Protocol::Tcp),
            PortRef::Name(name) => service
                .ports
                .iter()
                .find(|port| port.name == *name && port.protocol == Protocol::Tcp),
        };
        found.map(|port| Target(Arc::clone(port)))
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
            caller: self.fabric.rim_from(from),
        };
        call.balanced(&target.0, request).await
    }

    /// A connection of the client at `from` to an endpoint, for what is no request and answer.
    pub(crate) async fn connect(
        &self,
        from: SocketAddr,
        target: &Target,
        seen: SocketAddr,
    ) -> Result<Stream, SocketError> {
        let caller = self.fabric.rim_from(from);
        self.fabric.connect_service(&caller, &target.0, seen).await
    }

    /// One more connection from outside, if there may be one.
    pub(crate) fn permit(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.fabric.rim_connections)
            .try_acquire_owned()
            .ok()
    }

    /// Runs until it ends, or the network stops.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.fabric.stop.clone();
        self.fabric.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Cancelled when nothing new is to be accepted.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.fabric.draining
    }
}

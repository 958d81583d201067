//! Both ends of a connection whose destination on this node, or outside, has been decided: policies are asked, the pipe is
//! made, and whoever serves the other end gets it. Chooses nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use super::balancer::InFlight;
use super::pipe::{self, Account};
use super::pod::PodNetwork;
use super::policy::Way;
use super::ports::{Sockets, Target};
use super::serve::Front;
use super::traffic::{Connected, Security, Workload};
use super::vnet::{Caller, Fabric};
use super::{SocketError, Stream, forward, observe, serve};
use crate::dns::server::rim;

// === impl Fabric ===

impl Fabric {
    fn counted(
        &self,
        caller: &Caller<'_>,
        destination: &Workload,
        security: Security,
    ) -> Option<Connected> {
        let pair = self.traffic.pair(caller.workload, destination, security);
        pair.map(|pair| pair.connected())
    }

    /// Both ends of a pipe to a pod's port: a socket's backlog, or an HTTP/1.1 server in front of its handler.
    pub(super) async fn deliver(
        self: &Arc<Self>,
        pod: &PodNetwork,
        caller: &Caller<'_>,
        seen: SocketAddr,
        endpoint: SocketAddr,
        load: Option<InFlight>,
    ) -> Result<Stream, SocketError> {
        let own = caller.pod.is_some_and(|caller| std::ptr::eq(caller, pod));
        let admitted = match own {
            // Nothing keeps a pod from itself.
            true => None,
            false => Some(self.admit(caller, Some(pod), seen, endpoint).await?),
        };
        let target = pod
            .ports()
            .target(endpoint.port(), own)
            .ok_or(SocketError::Refused)?;
        let client = Account {
            budget: Arc::clone(caller.budget),
            slot: caller.sockets.map(Sockets::take).transpose()?,
            load,
            counted: self.counted(caller, pod.workload(), observe::security(caller)),
        };
        let server = Account {
            budget: Arc::clone(pod.budget()),
            slot: Some(pod.sockets().take().map_err(|_| SocketError::Refused)?),
            load: None,
            counted: None,
        };
        let from = if own && endpoint.ip().is_loopback() {
            SocketAddr::new(endpoint.ip(), caller.from.port())
        } else {
            caller.from
        };
        let (client, server) = pipe::connection(client, server);
        let client = Stream {
            local: from,
            peer: seen,
            reader: client.0,
            writer: client.1,
        };
        let server = Stream {
            local: endpoint,
            peer: from,
            reader: server.0,
            writer: server.1,
        };
        match target {
            Target::Socket(backlog) => {
                let queued = backlog.send(Box::new(server));
                tokio::time::timeout(self.config.limits.connect_timeout, queued)
                    .await
                    .map_err(|_| SocketError::TimedOut)?
                    .map_err(|_| SocketError::Refused)?;
            }
            Target::Http(handler) => {
                let front = Front {
                    handler,
                    ended: pod.ports().ended(),
                    requests: Arc::clone(pod.requests()),
                    source: Arc::clone(caller.workload),
                    identity: caller.identity.map(Arc::clone),
                    destination: Arc::clone(pod.workload()),
                    security: observe::security(caller),
                };
                serve::spawn(self, server, front);
            }
        }
        if let Some(admitted) = admitted {
            let way = Way::of(caller, Some(pod), seen, endpoint);
            self.opened(admitted, client.reader.cut(), way);
        }
        Ok(client)
    }

    /// To a real address, through a real socket; the node's egress policy has been asked.
    pub(super) async fn connect_outside(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        seen: SocketAddr,
        endpoint: SocketAddr,
        load: Option<InFlight>,
    ) -> Result<Stream, SocketError> {
        let mut client = Account {
            budget: Arc::clone(caller.budget),
            slot: caller.sockets.map(Sockets::take).transpose()?,
            load,
            counted: None,
        };
        let admitted = self.admit(caller, None, seen, endpoint).await?;
        let permit = self.outside_slot(caller.pod)?;
        let socket = self.egress.connect(endpoint).await?;
        client.counted = self.counted(caller, &self.outside, Security::Outside);
        let server = Account {
            budget: Arc::clone(caller.budget),
            slot: None,
            load: None,
            counted: None,
        };
        let (client, server) = pipe::connection(client, server);
        let server = Stream {
            local: endpoint,
            peer: caller.from,
            reader: server.0,
            writer: server.1,
        };
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = forward::forward(socket, server) => {}
            }
            drop(permit);
        });
        self.opened(
            admitted,
            client.0.cut(),
            Way::of(caller, None, seen, endpoint),
        );
        Ok(Stream {
            local: caller.from,
            peer: seen,
            reader: client.0,
            writer: client.1,
        })
    }
    /// To the node's DNS server.
    pub(super) async fn connect_dns(
        self: &Arc<Self>,
        caller: &Caller<'_>,
        to: SocketAddr,
    ) -> Result<Stream, SocketError> {
        let admitted = self.admit(caller, None, to, to).await?;
        let account = |slot| Account {
            budget: Arc::clone(caller.budget),
            slot,
            load: None,
            counted: None,
        };
        let slot = caller.sockets.map(Sockets::take).transpose()?;
        let (client, server) = pipe::connection(account(slot), account(None));
        let server = Stream {
            local: to,
            peer: caller.from,
            reader: server.0,
            writer: server.1,
        };
        let (dns, stop) = (Arc::clone(&self.dns), self.stop.clone());
        let questions = caller.pod.map(|pod| Arc::clone(pod.questions()));
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = rim::stream(&dns, server.into_io(), questions.as_deref()) => {}
            }
        });
        self.opened(admitted, client.0.cut(), Way::of(caller, None, to, to));
        Ok(Stream {
            local: caller.from,
            peer: to,
            reader: client.0,
            writer: client.1,
        })
    }
}

//! A UDP socket of a guest: bound or not, connected or not. The versions' words are in `p2` and `p3`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;

use super::address::Family;
use super::{Fault, Sockets};
use crate::network::{SocketError, UdpSocket};

#[expect(unreachable_pub, reason = "the generated bindings re-export it")]
pub struct Udp {
    pub(super) family: Family,
    pub(super) hop_limit: u8,
    pub(super) receive_buffer: u64,
    pub(super) send_buffer: u64,
    socket: Option<Arc<UdpSocket>>,
    peer: Option<SocketAddr>,
}

/// A bound socket with the peer it is limited to, if any.
#[derive(Clone)]
pub(super) struct Flow {
    family: Family,
    socket: Arc<UdpSocket>,
    peer: Option<SocketAddr>,
}

// === impl Udp ===

impl Udp {
    pub(super) fn new(family: Family) -> Self {
        Self {
            family,
            hop_limit: 64,
            receive_buffer: 64 * 1024,
            send_buffer: 64 * 1024,
            socket: None,
            peer: None,
        }
    }

    pub(super) fn bind(&mut self, sockets: &Sockets, address: SocketAddr) -> Result<(), Fault> {
        if self.socket.is_some() {
            return Err(Fault::InvalidState);
        }
        let socket = sockets.network.bind_udp_at(self.family.local(address)?)?;
        self.socket = Some(Arc::new(socket));
        Ok(())
    }

    /// 0.3 binds by itself; 0.2 asks first.
    pub(super) fn bind_if_needed(&mut self, sockets: &Sockets) -> Result<(), Fault> {
        if self.socket.is_some() {
            return Ok(());
        }
        let any = match self.family {
            Family::V4 => SocketAddr::from(([0; 4], 0)),
            Family::V6 => SocketAddr::from(([0_u16; 8], 0)),
        };
        self.bind(sockets, any)
    }

    /// Limits the socket to one peer, or to none.
    pub(super) fn connect(&mut self, peer: Option<SocketAddr>) -> Result<(), Fault> {
        self.peer = peer.map(|peer| self.family.remote(peer)).transpose()?;
        Ok(())
    }

    pub(super) fn flow(&self) -> Result<Flow, Fault> {
        Ok(Flow {
            family: self.family,
            socket: Arc::clone(self.socket.as_ref().ok_or(Fault::InvalidState)?),
            peer: self.peer,
        })
    }

    pub(super) fn local(&self) -> Result<SocketAddr, Fault> {
        let socket = self.socket.as_ref().ok_or(Fault::InvalidState)?;
        Ok(self.family.show(socket.local()))
    }

    pub(super) fn peer(&self) -> Result<SocketAddr, Fault> {
        self.peer.ok_or(Fault::InvalidState)
    }
}

// === impl Flow ===

impl Flow {
    /// The next datagram, from the peer only where there is one.
    pub(super) fn poll_receive(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Bytes, SocketAddr), SocketError>> {
        loop {
            let (data, from) = ready!(self.socket.poll_recv(cx))?;
            let from = self.family.show(from);
            if self.peer.is_none_or(|peer| peer == from) {
                return Poll::Ready(Ok((data, from)));
            }
        }
    }

    /// Sends or, where a real socket has no room at this moment, loses the datagram, as UDP may.
    pub(super) fn send(&self, data: Vec<u8>, to: Option<SocketAddr>) -> Result<(), Fault> {
        let to = match (self.peer, to) {
            (Some(peer), None) => peer,
            (Some(peer), Some(to)) if peer == to => peer,
            (None, Some(to)) => self.family.remote(to)?,
            _ => return Err(Fault::InvalidArgument),
        };
        let mut nobody = Context::from_waker(Waker::noop());
        match self.socket.poll_send(&mut nobody, &Bytes::from(data), to) {
            Poll::Ready(result) => Ok(result?),
            Poll::Pending => Ok(()),
        }
    }
}

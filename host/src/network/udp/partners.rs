//! With whom a UDP socket exchanges datagrams, where policies had to be asked: what answers an allowed datagram needs no
//! policy that allows it. Bounded; silence ends it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use crate::network::SocketError;
use crate::network::balancer::Millis;
use crate::network::policy::Way;
use crate::network::vnet::Fabric;

/// Partners of one socket, and how long silence leaves them so.
const MOST: usize = 1024;
const IDLE: Millis = 120_000;

/// Somebody to answer, or to hear.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Partner {
    /// This socket sent first.
    ours: bool,
    last: Millis,
    /// As of when it was allowed.
    epoch: u64,
}

/// Of one socket.
#[derive(Default)]
pub(crate) struct Partners {
    /// Held for a few instructions, never over an await.
    known: Mutex<HashMap<SocketAddr, Partner>>,
}

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Sends {
    We,
    They,
}

/// Whether policies let a datagram go its `way` between the socket of `partners` and `who`. What answers an allowed one, or
/// goes on after it, may; when decisions have changed since, those about who sent first count.
pub(crate) fn pass(
    fabric: &Fabric,
    partners: &Partners,
    who: SocketAddr,
    way: &Way,
    sends: Sends,
) -> Result<Partner, SocketError> {
    let (last, epoch) = (fabric.now(), fabric.policy.epoch());
    let mut ours = sends == Sends::We;
    match partners.get(who, last) {
        Some(known) if known.epoch == epoch => ours = known.ours,
        Some(known) if known.ours != ours && fabric.admit_now(&way.reversed()).is_ok() => {
            ours = known.ours;
        }
        _ => {
            partners.forget(who);
            fabric.admit_now(way)?;
        }
    }
    let partner = Partner { ours, last, epoch };
    partners.remember(who, partner);
    Ok(partner)
}

// === impl Partner ===

impl Partner {
    /// The same, as the other socket remembers it.
    pub(crate) fn seen_from_there(self) -> Self {
        Self {
            ours: !self.ours,
            ..self
        }
    }
}

// === impl Partners ===

impl Partners {
    pub(crate) fn get(&self, who: SocketAddr, now: Millis) -> Option<Partner> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let partner = *known.get(&who)?;
        (now.saturating_sub(partner.last) < IDLE).then_some(partner)
    }

    pub(crate) fn remember(&self, who: SocketAddr, partner: Partner) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&who) {
            known.retain(|_, old| partner.last.saturating_sub(old.last) < IDLE);
            let oldest = known.iter().min_by_key(|(_, old)| old.last);
            if let Some(oldest) = oldest.map(|(who, _)| *who)
                && known.len() >= MOST
            {
                known.remove(&oldest);
            }
        }
        known.insert(who, partner);
    }

    fn forget(&self, who: SocketAddr) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(&who);
    }
}

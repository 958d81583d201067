//! What is open already: the way it goes, so that it can be judged again when policies change, and cut.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use super::gate::{Admitted, Decision};
use crate::network::identity::Identity;
use crate::network::pipe::Cut;
use crate::network::pod::PodNetwork;
use crate::network::table::Protocol;
use crate::network::vnet::{Caller, Fabric};

/// Entries before the first look for those that have ended.
const FEW: usize = 64;
const CLOSED: &str = "Closed connection: denied by NetworkPolicy";

/// Who connects to what.
#[derive(Clone, Debug)]
pub(crate) struct Way {
    /// The pod of this node it comes from.
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) from: SocketAddr,
    /// Of a pod of another node.
    pub(crate) identity: Option<Arc<Identity>>,
    /// The pod of this node it goes to.
    pub(crate) destination: Option<Ipv4Addr>,
    /// What the source believes to be connected to: a Service's address, perhaps.
    pub(crate) seen: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
}

/// All streams of this node's pods.
#[derive(Default)]
pub(crate) struct Opened {
    /// Held to add one, or to look at all; never over an await.
    all: Mutex<Streams>,
}

#[derive(Default)]
struct Streams {
    open: Vec<(Cut, Way)>,
    /// How many there were after the last look for those that have ended.
    left: usize,
}

/// One thing that flows for long: asks again when decisions may have changed.
pub(crate) struct Watched {
    fabric: Arc<Fabric>,
    way: Way,
    epoch: u64,
}

// === impl Way ===

impl Way {
    pub(crate) fn of(
        caller: &Caller<'_>,
        pod: Option<&PodNetwork>,
        seen: SocketAddr,
        to: SocketAddr,
    ) -> Self {
        Self {
            source: caller.pod.map(PodNetwork::address),
            from: caller.from,
            identity: match caller.pod {
                Some(_) => None,
                None => caller.identity.map(Arc::clone),
            },
            destination: pod.map(PodNetwork::address),
            seen,
            to,
            protocol: Protocol::Tcp,
        }
    }
}

impl Way {
    /// From its destination to its source.
    pub(crate) fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            from: self.to,
            identity: None,
            destination: self.source,
            seen: self.from,
            to: self.from,
            protocol: self.protocol,
        }
    }
}

// === impl Opened ===

impl Opened {
    fn add(&self, cut: Cut, way: Way) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        if all.open.len() >= FEW.max(all.left * 2) {
            all.open.retain(|(cut, _)| cut.is_open());
            all.left = all.open.len();
        }
        all.open.push((cut, way));
    }

    /// Cuts those that are denied, by what is decided at `epoch`. Others may do so at the same time, and see only what
    /// nobody is looking at: who puts streams back after decisions have changed looks again.
    fn cut<J: FnMut(&Way) -> bool>(&self, epoch: impl Fn() -> u64, mut judge: impl FnMut() -> J) {
        let lock = || self.all.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let began = epoch();
            let mut all = std::mem::take(&mut lock().open);
            let mut is_denied = judge();
            all.retain(|(cut, way)| {
                let stays = cut.is_open() && !is_denied(way);
                if !stays {
                    cut.cut();
                }
                stays
            });
            lock().open.append(&mut all);
            if epoch() == began {
                return;
            }
        }
    }
}

// === impl Fabric ===

impl Fabric {
    /// Remembers a stream for as long as it is open. What was decided since it was admitted holds for it too.
    pub(crate) fn opened(&self, admitted: Admitted, cut: Cut, way: Way) {
        if self.policy.epoch() != admitted.epoch()
            && let Decision::Denied(direction, policy) = self.decide(&self.policy.table(), &way)
        {
            self.denied(direction, &policy, &way, CLOSED);
            cut.cut();
            return;
        }
        self.policy.opened.add(cut, way);
        if self.policy.epoch() != admitted.epoch() {
            self.cut_denied();
        }
    }

    /// Cuts the streams that would not be opened any more.
    pub(super) fn cut_denied(&self) {
        let gate = &self.policy;
        gate.opened.cut(
            || gate.epoch(),
            || {
                let table = gate.table();
                move |way: &Way| match self.decide(&table, way) {
                    Decision::Denied(direction, policy) => {
                        self.denied(direction, &policy, way, CLOSED);
                        true
                    }
                    // What is not known is not taken back.
                    Decision::Pass(_) | Decision::Wait(_) => false,
                }
            },
        );
    }
}

// === impl Watched ===

impl Watched {
    pub(crate) fn new(fabric: &Arc<Fabric>, admitted: Admitted, way: Way) -> Self {
        Self {
            fabric: Arc::clone(fabric),
            way,
            epoch: admitted.epoch(),
        }
    }

    /// Hot: one load while nothing has changed.
    pub(crate) fn is_denied(&mut self) -> bool {
        let epoch = self.fabric.policy.epoch();
        if self.epoch == epoch {
            return false;
        }
        self.epoch = epoch;
        let table = self.fabric.policy.table();
        match self.fabric.decide(&table, &self.way) {
            Decision::Denied(direction, policy) => {
                let what = "Ended answer: denied by NetworkPolicy";
                self.fabric.denied(direction, &policy, &self.way, what);
                true
            }
            Decision::Pass(_) | Decision::Wait(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::network::SocketError;
    use crate::network::pipe::{self, Account, Budget};

    #[tokio::test]
    async fn what_one_looks_at_while_another_denies_it_is_looked_at_again() {
        let account = || Account {
            budget: Arc::new(Budget::new(1 << 16)),
            slot: None,
            load: None,
            counted: None,
        };
        let (mut client, _server) = pipe::connection(account(), account());
        let address: SocketAddr = "100.64.0.5:80".parse().unwrap();
        let way = Way {
            source: None,
            from: address,
            identity: None,
            destination: None,
            seen: address,
            to: address,
            protocol: Protocol::Tcp,
        };
        let (opened, epoch) = (Opened::default(), Cell::new(1));
        opened.add(client.0.cut(), way);
        opened.cut(
            || epoch.get(),
            || {
                let began = epoch.get();
                if began == 1 {
                    // Decisions change, and who looks then finds nothing: the stream is in our hands.
                    epoch.set(2);
                    opened.cut(|| epoch.get(), || |_: &Way| unreachable!());
                }
                move |_: &Way| began == 2
            },
        );
        assert_eq!(client.0.read().await, Some(Err(SocketError::Reset)));
    }
}

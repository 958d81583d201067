//! What the network knows of the cluster's nodes, and whether each can be reached now. Shared and never locked for long.
//!
//! The tunnel says whether a node answers ([`Node::set_reachable`]); the balancer asks before it picks an endpoint there.
//! A node is the same [`Node`] for as long as anybody holds it, so tables may keep it across rebuilds.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;

/// One node, by name.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: Box<str>,
    /// This very node: its endpoints are a function call away.
    pub(crate) local: bool,
    unreachable: AtomicBool,
    /// Another number each time it could be reached again.
    returns: AtomicU32,
    /// Told each time.
    returned: watch::Sender<()>,
}

#[derive(Default)]
pub(crate) struct Nodes {
    own: Box<str>,
    all: RwLock<HashMap<Box<str>, Arc<Node>>>,
    returned: watch::Sender<()>,
}

// === impl Nodes ===

impl Nodes {
    pub(crate) fn new(own: &str) -> Self {
        Self {
            own: own.into(),
            all: RwLock::default(),
            returned: watch::Sender::default(),
        }
    }

    /// The node of that name, whether it exists yet or not. A new one counts as reachable until it proves otherwise.
    pub(crate) fn get(&self, name: &str) -> Arc<Node> {
        let known = {
            let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
            all.get(name).cloned()
        };
        known.unwrap_or_else(|| {
            let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
            let node = all.entry(name.into()).or_insert_with(|| {
                Arc::new(Node {
                    name: name.into(),
                    local: *name == *self.own,
                    unreachable: AtomicBool::new(false),
                    returns: AtomicU32::new(0),
                    returned: self.returned.clone(),
                })
            });
            Arc::clone(node)
        })
    }

    /// Changes each time that a node can be reached again.
    pub(crate) fn returned(&self) -> watch::Receiver<()> {
        self.returned.subscribe()
    }

    /// This node's name.
    pub(crate) fn own(&self) -> &str {
        &self.own
    }

    pub(crate) fn is_own(&self, name: &str) -> bool {
        *name == *self.own
    }

    /// Forgets nodes nobody refers to.
    pub(crate) fn prune(&self) {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, node| Arc::strong_count(node) > 1);
    }
}

// === impl Node ===

impl Node {
    pub(crate) fn is_reachable(&self) -> bool {
        !self.unreachable.load(Ordering::Relaxed)
    }

    pub(crate) fn set_reachable(&self, reachable: bool) {
        let was_unreachable = self.unreachable.swap(!reachable, Ordering::Relaxed);
        if reachable && was_unreachable {
            self.returns.fetch_add(1, Ordering::Relaxed);
            self.returned.send_replace(());
        }
    }

    /// How often it has come back: what was true of its endpoints before need not be any more.
    pub(crate) fn returns(&self) -> u32 {
        self.returns.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_one_object_until_nobody_holds_it() {
        let nodes = Nodes::new("a");
        let (own, other) = (nodes.get("a"), nodes.get("b"));
        assert!(own.local && !other.local && other.is_reachable());
        let returned = nodes.returned();
        other.set_reachable(false);
        assert!(!returned.has_changed().expect("it lives"));
        other.set_reachable(true);
        assert!(
            returned.has_changed().expect("it lives"),
            "who waits hears it"
        );
        other.set_reachable(false);
        assert!(!nodes.get("b").is_reachable());
        drop(other);
        nodes.prune();
        assert!(nodes.get("b").is_reachable(), "forgotten, and made anew");
    }
}

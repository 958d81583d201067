//! Datagrams that were dropped, by reason: UDP may lose them, but nobody should have to guess why. Decides nothing.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Why one was dropped.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Why {
    /// The receiving socket's queue is full.
    Unread,
    /// A Service without endpoints, or with one that is gone.
    NoEndpoint,
    /// By the egress policy or a NetworkPolicy.
    Denied,
    /// No port, or no real socket, is left for one more client outside.
    NoRoom,
    /// The real socket has no room, or cannot send there.
    Socket,
    /// Too much waits for that node, of this pod or at all; or the node does not answer.
    Node,
}

const WORDS: [(Why, &str); 6] = [
    (Why::Unread, "receiver_full"),
    (Why::NoEndpoint, "no_endpoint"),
    (Why::Denied, "denied"),
    (Why::NoRoom, "no_room"),
    (Why::Socket, "socket"),
    (Why::Node, "node"),
];

/// Of one node, since its start.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    datagrams: [AtomicU64; WORDS.len()],
    /// Clients outside that were forgotten before their time, for others.
    clients: AtomicU64,
}

// === impl Lost ===

impl Lost {
    pub(crate) fn count(&self, why: Why) {
        self.add(why, 1);
    }

    pub(crate) fn add(&self, why: Why, datagrams: usize) {
        self.datagrams[why as usize].fetch_add(datagrams as u64, Ordering::Relaxed);
    }

    pub(crate) fn client(&self) {
        self.clients.fetch_add(1, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn of(&self, why: Why) -> u64 {
        self.datagrams[why as usize].load(Ordering::Relaxed)
    }

    /// Prometheus' text format 0.0.4.
    pub(crate) fn prometheus(&self) -> String {
        let name = "coracle_udp_dropped_datagrams_total";
        let mut out =
            format!("# HELP {name} Datagrams dropped by this node\n# TYPE {name} counter\n");
        for (why, word) in WORDS {
            let count = self.datagrams[why as usize].load(Ordering::Relaxed);
            // Writing into a String cannot fail.
            let _ = writeln!(out, "{name}{{reason=\"{word}\"}} {count}");
        }
        let name = "coracle_udp_forgotten_clients_total";
        let clients = self.clients.load(Ordering::Relaxed);
        let _ = writeln!(
            out,
            "# HELP {name} Clients of UDP listeners forgotten early to make room for others\n\
             # TYPE {name} counter\n{name} {clients}"
        );
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_counter() {
        let lost = Lost::default();
        for (times, (why, _)) in WORDS.into_iter().enumerate() {
            lost.add(why, times);
        }
        lost.count(Why::Unread);
        lost.client();
        let text = lost.prometheus();
        for line in [
            "coracle_udp_dropped_datagrams_total{reason=\"receiver_full\"} 1\n",
            "coracle_udp_dropped_datagrams_total{reason=\"no_endpoint\"} 1\n",
            "coracle_udp_dropped_datagrams_total{reason=\"node\"} 5\n",
            "coracle_udp_forgotten_clients_total 1\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}

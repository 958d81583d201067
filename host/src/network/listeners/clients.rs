//! Who sends datagrams to one listener: each client is remembered while either side speaks, and forgotten as the kernel's
//! connection tracking would. When there are too many, the one unheard for longest makes room, those that asked once and
//! got their answer (or none) before those that keep talking. PURE.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;

use crate::network::balancer::Millis;

/// Silence that ends a flow.
const SHORT: Millis = 30_000;
/// The same for one that both sides have used for longer than [`PROVEN`].
const LONG: Millis = 120_000;
const PROVEN: Millis = 2_000;

/// What is kept for a client.
pub(super) trait Flow {
    /// When it was sent an answer last.
    fn answered(&self) -> Option<Millis>;
}

/// Of one listener.
pub(super) struct Clients<T> {
    known: HashMap<SocketAddr, Known<T>>,
    /// As far as is known; answers are looked at when it matters.
    order: BTreeSet<(Rank, SocketAddr)>,
    most: usize,
}

struct Known<T> {
    flow: T,
    /// When the client spoke first and last.
    first: Millis,
    last: Millis,
    /// Where it is in the order.
    rank: Rank,
}

/// Those that prove themselves later are forgotten later; of the others, those heard of later.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Rank {
    proven: bool,
    last: Millis,
}

// === impl Clients ===

impl<T: Flow> Clients<T> {
    pub(super) fn new(most: usize) -> Self {
        Self {
            known: HashMap::new(),
            order: BTreeSet::new(),
            most,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// The client's flow, now that it has spoken.
    pub(super) fn heard(&mut self, client: SocketAddr, now: Millis) -> Option<&T> {
        let known = self.known.get_mut(&client)?;
        known.last = now;
        let rank = known.rank();
        if rank != known.rank {
            self.order.remove(&(known.rank, client));
            self.order.insert((rank, client));
            known.rank = rank;
        }
        Some(&known.flow)
    }

    /// Remembers a new client. Whom it took the place of, if there were too many.
    pub(super) fn insert(&mut self, client: SocketAddr, flow: T, now: Millis) -> Option<T> {
        let evicted = if self.known.len() >= self.most {
            self.evict()
        } else {
            None
        };
        let rank = Rank {
            proven: false,
            last: now,
        };
        let known = Known {
            flow,
            first: now,
            last: now,
            rank,
        };
        if let Some(before) = self.known.insert(client, known) {
            self.order.remove(&(before.rank, client));
        }
        self.order.insert((rank, client));
        evicted
    }

    /// Forgets the one that will be missed least.
    pub(super) fn evict(&mut self) -> Option<T> {
        let (_, client) = self.first(false).or_else(|| self.first(true))?;
        self.remove(client)
    }

    /// Forgets those that have been silent for long enough.
    pub(super) fn expire(&mut self, now: Millis) {
        for (proven, idle) in [(false, SHORT), (true, LONG)] {
            while let Some((last, client)) = self.first(proven)
                && now.saturating_sub(last) >= idle
            {
                self.remove(client);
            }
        }
    }

    fn remove(&mut self, client: SocketAddr) -> Option<T> {
        let known = self.known.remove(&client)?;
        self.order.remove(&(known.rank, client));
        Some(known.flow)
    }

    /// The longest unheard of its sort. Those that were answered meanwhile get the place they deserve.
    fn first(&mut self, proven: bool) -> Option<(Millis, SocketAddr)> {
        let from = (Rank { proven, last: 0 }, SocketAddr::from(([0; 4], 0)));
        loop {
            let (rank, client) = *self.order.range(from..).next()?;
            if rank.proven != proven {
                return None;
            }
            // Both are always changed together.
            let known = self.known.get_mut(&client)?;
            let now = known.rank();
            if now == rank {
                return Some((rank.last, client));
            }
            self.order.remove(&(rank, client));
            self.order.insert((now, client));
            known.rank = now;
        }
    }
}

// === impl Known ===

impl<T: Flow> Known<T> {
    fn rank(&self) -> Rank {
        let answered = self.flow.answered();
        let last = answered.map_or(self.last, |answered| answered.max(self.last));
        Rank {
            proven: answered.is_some() && last.saturating_sub(self.first) > PROVEN,
            last,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use super::*;

    /// A flow that is its own name.
    #[derive(Clone, Debug, Default)]
    struct Test {
        name: u16,
        answered: Rc<Cell<Option<Millis>>>,
    }

    impl Flow for Test {
        fn answered(&self) -> Option<Millis> {
            self.answered.get()
        }
    }

    fn client(port: u16) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, 1], port))
    }

    /// Speaks for the first time.
    fn speak(clients: &mut Clients<Test>, port: u16, now: Millis) -> (Test, Option<u16>) {
        let flow = Test {
            name: port,
            ..Test::default()
        };
        let evicted = clients.insert(client(port), flow.clone(), now);
        (flow, evicted.map(|evicted| evicted.name))
    }

    #[test]
    fn who_only_sends_stays_for_as_long_as_he_sends() {
        let mut clients = Clients::new(16);
        speak(&mut clients, 1, 0);
        for now in (0..300_000).step_by(20_000) {
            clients.expire(now);
            let flow = clients.heard(client(1), now);
            assert!(flow.is_some(), "forgotten after {now} ms");
        }
        clients.expire(280_000 + SHORT);
        assert!(clients.is_empty());
    }

    #[test]
    fn one_question_and_its_answer_are_soon_forgotten_and_a_conversation_is_not() {
        let mut clients = Clients::new(16);
        let (asked, _) = speak(&mut clients, 1, 0);
        let (talks, _) = speak(&mut clients, 2, 0);
        asked.answered.set(Some(5));
        talks.answered.set(Some(5));
        clients.heard(client(2), 3_000);
        clients.expire(SHORT + 5);
        assert!(clients.heard(client(1), SHORT + 5).is_none());
        talks.answered.set(Some(100_000));
        clients.expire(100_000 + LONG - 1);
        assert_eq!(clients.known.len(), 1, "answers count as much as questions");
        clients.expire(100_000 + LONG);
        assert!(clients.is_empty() && clients.order.is_empty());
    }

    #[test]
    fn the_longest_unheard_makes_room_and_conversations_come_last() {
        let mut clients = Clients::new(4);
        let talks = speak(&mut clients, 1, 0).0;
        talks.answered.set(Some(1));
        clients.heard(client(1), PROVEN + 1);
        let answered = speak(&mut clients, 2, 2_000).0;
        speak(&mut clients, 3, 3_000);
        speak(&mut clients, 4, 4_000);
        answered.answered.set(Some(3_500));
        assert_eq!(
            speak(&mut clients, 5, 5_000).1,
            Some(3),
            "2 was heard later"
        );
        assert_eq!(speak(&mut clients, 6, 5_000).1, Some(2));
        for port in 7..1_000 {
            let (_, evicted) = speak(&mut clients, port, 5_000 + Millis::from(port));
            assert!(evicted.is_some_and(|name| name != 1));
        }
        assert!(
            clients.heard(client(1), 7_000).is_some(),
            "a flood ends no talk"
        );
        let proven: Vec<Test> = (7..20)
            .map(|port| {
                let flow = speak(&mut clients, port, 8_000).0;
                flow.answered.set(Some(8_000 + PROVEN + Millis::from(port)));
                flow
            })
            .collect();
        assert_eq!(clients.known.len(), 4);
        assert!(
            clients.heard(client(1), 20_000).is_none(),
            "now it was its turn"
        );
        assert!(proven.len() > 4);
    }

    #[test]
    fn the_order_has_each_client_once_whatever_happens() {
        let mut clients = Clients::<Test>::new(8);
        for step in 0..10_000_u64 {
            let (port, now) = ((step * 7 % 23) as u16, step * 13);
            match clients.heard(client(port), now) {
                Some(flow) if step % 3 == 0 => flow.answered.set(Some(now)),
                Some(_) => {}
                None => drop(speak(&mut clients, port, now)),
            }
            if step % 5 == 0 {
                clients.expire(now);
            }
            assert_eq!(clients.order.len(), clients.known.len());
            assert!(clients.known.len() <= 8);
        }
    }
}

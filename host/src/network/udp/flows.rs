//! Which endpoint a pod's socket talks to behind each Service's address, and whose word an endpoint's is. PURE.

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::network::balancer::Millis;

/// Services one socket talks to at once; each keeps its endpoint while it is in use.
const MOST: usize = 256;
/// What is silent both ways for so long is over.
const IDLE: Millis = 60_000;

/// Of one socket.
///
/// Differs from Kubernetes: two Services that lead one socket to the same endpoint are not kept apart by source ports, so
/// an answer is of the one that was asked last.
#[derive(Default)]
pub(super) struct Flows {
    by_service: HashMap<SocketAddr, Flow>,
    /// The Service through which we spoke to an endpoint last.
    by_endpoint: HashMap<SocketAddr, SocketAddr>,
}

#[derive(Clone, Copy)]
struct Flow {
    endpoint: SocketAddr,
    last: Millis,
}

// === impl Flows ===

impl Flows {
    /// Where datagrams to `service` go.
    pub(super) fn endpoint(&self, service: SocketAddr, now: Millis) -> Option<SocketAddr> {
        let flow = self.by_service.get(&service)?;
        flow.is_used(now).then_some(flow.endpoint)
    }

    /// What is sent to `service` goes to `endpoint`.
    pub(super) fn keep(&mut self, service: SocketAddr, endpoint: SocketAddr, now: Millis) {
        let flow = Flow {
            endpoint,
            last: now,
        };
        match self.by_service.insert(service, flow) {
            Some(before) if before.endpoint != endpoint => self.unmap(service, before.endpoint),
            None if self.by_service.len() > MOST => self.forget_oldest(service),
            _ => {}
        }
        self.by_endpoint.insert(endpoint, service);
    }

    /// Nothing could be sent there: the next datagram may go elsewhere.
    pub(super) fn forget(&mut self, service: SocketAddr) {
        if let Some(flow) = self.by_service.remove(&service) {
            self.unmap(service, flow.endpoint);
        }
    }

    /// What is sent to `to` goes there, and comes from there.
    pub(super) fn direct(&mut self, to: SocketAddr) {
        self.by_endpoint.remove(&to);
    }

    /// The Service through which we talk to `from`, or `from`.
    pub(super) fn heard(&mut self, from: SocketAddr, now: Millis) -> SocketAddr {
        let Some(service) = self.by_endpoint.get(&from).copied() else {
            return from;
        };
        match self.by_service.get_mut(&service) {
            Some(flow) if flow.is_used(now) => {
                flow.last = now;
                service
            }
            _ => from,
        }
    }

    fn forget_oldest(&mut self, newest: SocketAddr) {
        let others = self.by_service.iter().filter(|(it, _)| **it != newest);
        let oldest = others.min_by_key(|(_, flow)| flow.last);
        if let Some(oldest) = oldest.map(|(service, _)| *service) {
            self.forget(oldest);
        }
    }

    /// `service` no longer leads to `endpoint`; another one may.
    fn unmap(&mut self, service: SocketAddr, endpoint: SocketAddr) {
        if self.by_endpoint.get(&endpoint) != Some(&service) {
            return;
        }
        let others = self.by_service.iter();
        let others = others.filter(|(it, flow)| **it != service && flow.endpoint == endpoint);
        match others.max_by_key(|(_, flow)| flow.last) {
            Some((other, _)) => self.by_endpoint.insert(endpoint, *other),
            None => self.by_endpoint.remove(&endpoint),
        };
    }
}

// === impl Flow ===

impl Flow {
    fn is_used(&self, now: Millis) -> bool {
        now.saturating_sub(self.last) < IDLE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 96, 0, number], 53))
    }

    fn pod(number: u8) -> SocketAddr {
        SocketAddr::from(([100, 64, 0, number], 5353))
    }

    #[test]
    fn an_answer_comes_from_the_service_that_was_asked_last() {
        let mut flows = Flows::default();
        flows.keep(service(1), pod(1), 0);
        assert_eq!(flows.heard(pod(1), 1), service(1));
        flows.keep(service(2), pod(1), 2);
        assert_eq!(flows.heard(pod(1), 3), service(2));
        flows.keep(service(1), pod(1), 4);
        assert_eq!(flows.heard(pod(1), 5), service(1));
        flows.keep(service(1), pod(2), 6);
        assert_eq!(flows.heard(pod(2), 7), service(1));
        assert_eq!(flows.heard(pod(1), 7), service(2), "the one that is left");
        assert_eq!(flows.heard(pod(3), 7), pod(3));
    }

    #[test]
    fn who_was_spoken_to_directly_answers_for_itself() {
        let mut flows = Flows::default();
        flows.keep(service(1), pod(1), 0);
        flows.direct(pod(1));
        assert_eq!(flows.heard(pod(1), 1), pod(1));
        assert_eq!(
            flows.endpoint(service(1), 1),
            Some(pod(1)),
            "it stays there"
        );
        flows.keep(service(1), pod(1), 2);
        assert_eq!(flows.heard(pod(1), 3), service(1));
    }

    #[test]
    fn silence_ends_a_flow_and_either_side_breaks_it() {
        let mut flows = Flows::default();
        flows.keep(service(1), pod(1), 0);
        for minute in 1..5 {
            let now = minute * 50_000;
            assert_eq!(flows.heard(pod(1), now), service(1), "it streams");
            assert_eq!(flows.endpoint(service(1), now), Some(pod(1)));
        }
        let over = 4 * 50_000 + IDLE;
        assert_eq!(flows.endpoint(service(1), over), None);
        assert_eq!(flows.heard(pod(1), over), pod(1));
    }

    #[test]
    fn what_could_not_be_sent_binds_nobody() {
        let mut flows = Flows::default();
        flows.keep(service(1), pod(1), 0);
        flows.forget(service(1));
        assert_eq!(flows.endpoint(service(1), 0), None);
        assert!(flows.by_endpoint.is_empty());
    }

    #[test]
    fn flows_are_bounded_and_the_oldest_makes_room() {
        let mut flows = Flows::default();
        for number in 0..1_000_u16 {
            let [high, low] = number.to_be_bytes();
            let service = SocketAddr::from(([10, 96, high, low], 53));
            let pod = SocketAddr::from(([100, 64, high, low], 53));
            flows.keep(service, pod, Millis::from(number));
        }
        assert_eq!(flows.by_service.len(), MOST);
        assert_eq!(flows.by_endpoint.len(), MOST);
        assert!(flows.by_service.values().all(|flow| flow.last >= 744));
    }
}

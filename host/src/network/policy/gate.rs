//! Asks the policies before a connection, a request or a datagram goes its way. Where no policy selects the pods concerned
//! that is one load. Waits, with a deadline, for what is not known yet: nothing passes because it is not known.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use super::counts::Decisions;
use super::index::Published;
use super::open::{Opened, Way};
use super::rules::{self, At, Direction, End, Facts, NamedPort, Policy, Verdict};
use super::table::{Peer, Table};
use crate::network::SocketError;
use crate::network::identity;
use crate::network::namespaces::Labels;
use crate::network::pod::PodNetwork;
use crate::network::table::Protocol;
use crate::network::vnet::{Caller, Fabric};

/// How long a connection waits for the API to tell who is at its other end: a pod may connect before its address is known
/// everywhere.
const STRANGER: Duration = Duration::from_secs(1);

const INGRESS: u8 = 1;
const EGRESS: u8 = 2;

pub(crate) struct Gate {
    table: watch::Sender<Arc<Table>>,
    /// There is no policy at all.
    open: AtomicBool,
    /// Counts the times that decisions may have changed.
    epoch: AtomicU64,
    pub(super) opened: Opened,
    /// The latest table that everything follows.
    #[cfg(test)]
    settled: watch::Sender<Arc<Table>>,
}

/// Which directions of a pod some policy may restrict.
pub(crate) struct Isolation {
    flags: AtomicU8,
    /// Held while the flags are made anew, so that the last to do so has seen the latest table.
    refreshing: Mutex<()>,
}

/// The policies let something pass; said at [`Gate::epoch`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admitted {
    epoch: u64,
}

/// What the policies say of one way.
pub(crate) enum Decision {
    /// Allowed by these, where they were asked: the source's, the destination's.
    Pass([Option<Arc<Policy>>; 2]),
    Denied(Direction, Arc<Policy>),
    /// Not enough is known. The policy, if any, is who denies it as long as that is so.
    Wait(Option<(Direction, Arc<Policy>)>),
}

/// The node's DNS server, as a policy would select it in any cluster.
static DNS: LazyLock<(Labels, Vec<NamedPort>)> = LazyLock::new(|| {
    let labels = Labels::from([("k8s-app".to_owned(), "kube-dns".to_owned())]);
    let port = |name: &str, protocol| NamedPort {
        name: name.to_owned(),
        protocol,
        number: crate::dns::server::PORT,
    };
    (
        labels,
        vec![port("dns", Protocol::Udp), port("dns-tcp", Protocol::Tcp)],
    )
});

// === impl Isolation ===

impl Default for Isolation {
    /// Nothing is known: anything may be restricted.
    fn default() -> Self {
        Self {
            flags: AtomicU8::new(INGRESS | EGRESS),
            refreshing: Mutex::default(),
        }
    }
}

impl Isolation {
    fn has(&self, flag: u8) -> bool {
        self.flags.load(Ordering::Relaxed) & flag != 0
    }

    pub(crate) fn egress(&self) -> bool {
        self.has(EGRESS)
    }

    pub(crate) fn ingress(&self) -> bool {
        self.has(INGRESS)
    }

    fn any(&self) -> bool {
        self.has(INGRESS | EGRESS)
    }
}

// === impl Gate ===

impl Default for Gate {
    /// No policy anywhere, until somebody says otherwise.
    fn default() -> Self {
        Self {
            table: watch::Sender::new(Arc::new(Table::default())),
            open: AtomicBool::new(true),
            epoch: AtomicU64::new(0),
            opened: Opened::default(),
            #[cfg(test)]
            settled: watch::Sender::new(Arc::new(Table::unknown())),
        }
    }
}

impl Gate {
    pub(crate) fn table(&self) -> Arc<Table> {
        Arc::clone(&self.table.borrow())
    }

    /// There may be policies: nothing passes before they have been listed.
    pub(crate) fn expect_policies(&self) {
        self.open.store(false, Ordering::Relaxed);
        self.table.send_replace(Arc::new(Table::unknown()));
    }

    /// Whether a table of which `check` holds has been put in force everywhere.
    #[cfg(test)]
    pub(crate) async fn in_force(&self, check: impl Fn(&Table) -> bool) {
        let mut settled = self.settled.subscribe();
        let found = settled.wait_for(|table| table.is_complete() && check(table));
        drop(found.await);
    }

    /// There is no policy at all.
    pub(crate) fn is_open(&self) -> bool {
        self.open.load(Ordering::Relaxed)
    }

    /// Who reads it finds the table of that moment, or a later one.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// No policy restricts what `source` sends or `destination` takes.
    pub(crate) fn is_free(
        &self,
        source: Option<&PodNetwork>,
        destination: Option<&PodNetwork>,
    ) -> bool {
        self.is_open()
            || !source.is_some_and(|pod| pod.isolation().egress())
                && !destination.is_some_and(|pod| pod.isolation().ingress())
    }

    /// Nor what they might answer.
    pub(crate) fn is_free_both_ways(
        &self,
        one: Option<&PodNetwork>,
        other: Option<&PodNetwork>,
    ) -> bool {
        self.is_open()
            || !one.is_some_and(|pod| pod.isolation().any())
                && !other.is_some_and(|pod| pod.isolation().any())
    }

    /// Makes the pod's flags what the latest table says.
    pub(crate) fn refresh(&self, pod: &PodNetwork) {
        let isolation = pod.isolation();
        let _refreshing = isolation
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let table = self.table();
        let facts = facts(&table, pod);
        let selected = |direction| {
            let mut policies = table.of(facts.namespace).iter();
            !table.known || policies.any(|policy| policy.selects(direction, facts.labels))
        };
        let mut flags = 0;
        if selected(Direction::Ingress) {
            flags |= INGRESS;
        }
        if selected(Direction::Egress) {
            flags |= EGRESS;
        }
        isolation.flags.store(flags, Ordering::Relaxed);
    }

    /// By policy and direction; those that have decided nothing yet as well.
    pub(crate) fn decisions(&self) -> Vec<Decisions> {
        let table = self.table();
        let ordered: BTreeMap<_, _> = table.policies.iter().collect();
        let policies = ordered.values().flat_map(|policies| policies.iter());
        let each = policies.flat_map(|policy| {
            [Direction::Ingress, Direction::Egress].map(|direction| {
                let (allowed, denied) = policy.counts.read(direction);
                Decisions {
                    direction,
                    namespace: policy.namespace.clone(),
                    policy: policy.name.clone(),
                    allowed,
                    denied,
                }
            })
        });
        each.collect()
    }
}

/// What is known of a pod of this node: the API's word once it is here, else what it was started with.
fn facts<'a>(table: &'a Table, pod: &'a PodNetwork) -> Facts<'a> {
    let identity = pod.identity();
    match table.peers.named(&identity.namespace, &identity.name) {
        Some(peer) if *peer.uid == *identity.uid => peer.facts(),
        _ => Facts {
            namespace: &identity.namespace,
            labels: &identity.labels,
            ports: &identity.ports,
        },
    }
}

fn count([source, destination]: &[Option<Arc<Policy>>; 2]) {
    if let Some(policy) = source {
        policy.counts.allowed(Direction::Egress);
    }
    if let Some(policy) = destination {
        policy.counts.allowed(Direction::Ingress);
    }
}

// === impl Admitted ===

impl Admitted {
    pub(super) fn epoch(self) -> u64 {
        self.epoch
    }
}

// === impl Fabric ===

impl Fabric {
    /// Puts a table in force: for what is new at once, then for what is open already.
    pub(crate) fn publish_policies(&self, published: Published) {
        let open = published.table.is_open();
        let gate = &self.policy;
        gate.table.send_replace(Arc::new(published.table));
        for pod in self.pods() {
            gate.refresh(&pod);
        }
        gate.open.store(open, Ordering::Relaxed);
        if published.decisions {
            gate.epoch.fetch_add(1, Ordering::Release);
            self.cut_denied();
        }
        #[cfg(test)]
        gate.settled.send_replace(gate.table());
    }

    /// Whether `caller` may reach `to`, which is of `pod` when that is on this node. `Denied`, at the latest when the time
    /// to connect is over. Cancel by dropping.
    pub(crate) async fn admit(
        &self,
        caller: &Caller<'_>,
        pod: Option<&PodNetwork>,
        seen: SocketAddr,
        to: SocketAddr,
    ) -> Result<Admitted, SocketError> {
        let admitted = Admitted {
            epoch: self.policy.epoch(),
        };
        if !self.policy.is_free(caller.pod, pod) {
            self.ask(&Way::of(caller, pod, seen, to)).await?;
        }
        Ok(admitted)
    }

    /// Whether names may be resolved.
    pub(crate) async fn admit_dns(&self, pod: &PodNetwork) -> Result<(), SocketError> {
        let Some(server) = self.dns.address() else {
            return Ok(());
        };
        let mut way = Way::of(&pod.caller(), None, server, server);
        way.protocol = Protocol::Udp;
        self.ask(&way).await
    }

    /// Waits until policies have been listed, or the time to connect is over.
    pub(crate) async fn policies_known(&self) {
        let mut tables = self.policy.table.subscribe();
        let known = tables.wait_for(|table| table.known);
        drop(tokio::time::timeout(self.config.limits.connect_timeout, known).await);
    }

    async fn ask(&self, way: &Way) -> Result<(), SocketError> {
        let mut tables = self.policy.table.subscribe();
        let started = Instant::now();
        loop {
            let table = Arc::clone(&tables.borrow_and_update());
            let patience = if table.is_complete() {
                STRANGER
            } else {
                self.config.limits.connect_timeout
            };
            let denied = match self.decide(&table, way) {
                Decision::Pass(by) => {
                    count(&by);
                    return Ok(());
                }
                Decision::Denied(direction, policy) => Some((direction, policy)),
                Decision::Wait(policy) => {
                    let changed = tokio::time::timeout_at(started + patience, tables.changed());
                    match changed.await {
                        Ok(Ok(())) => continue,
                        _ => policy,
                    }
                }
            };
            if let Some((direction, policy)) = denied {
                self.denied(direction, &policy, way, "Denied by NetworkPolicy");
            }
            return Err(SocketError::Denied);
        }
    }

    /// Without waiting; what is not known is denied. For datagrams, which may be lost.
    pub(crate) fn admit_now(&self, way: &Way) -> Result<(), SocketError> {
        match self.decide(&self.policy.table(), way) {
            Decision::Pass(by) => {
                count(&by);
                Ok(())
            }
            Decision::Denied(direction, policy) => {
                self.denied(direction, &policy, way, "Denied by NetworkPolicy");
                Err(SocketError::Denied)
            }
            Decision::Wait(_) => Err(SocketError::Denied),
        }
    }

    pub(super) fn denied(&self, direction: Direction, policy: &Policy, way: &Way, what: &str) {
        if let Some(untold) = policy.counts.denied(direction, self.now()) {
            info!(
                direction = direction.as_str(),
                namespace = %policy.namespace,
                policy = %policy.name,
                source = %self.describe(way.from.ip(), way.identity.as_deref()),
                destination = %self.describe(way.to.ip(), None),
                port = way.to.port(),
                protocol = way.protocol.as_str(),
                untold,
                "{what}",
            );
        }
    }

    /// `shop/web-1 (100.64.0.5)`, as far as is known.
    fn describe(
        &self,
        ip: IpAddr,
        identity: Option<&crate::network::identity::Identity>,
    ) -> String {
        let known = match (identity, ip) {
            (Some(identity), _) if identity.is_ingress() => return format!("Ingress ({ip})"),
            (Some(identity), _) => Some((identity.namespace.clone(), identity.pod.clone())),
            (None, IpAddr::V4(address)) => self.pod(address).map(|pod| {
                let identity = pod.identity();
                (identity.namespace.clone(), identity.name.clone())
            }),
            (None, IpAddr::V6(_)) => None,
        };
        let known = known.or_else(|| {
            let table = self.policy.table();
            let peer = table.peers.at(ip)?;
            Some((peer.namespace.to_string(), peer.name.to_string()))
        });
        known.map_or_else(
            || ip.to_string(),
            |(namespace, name)| format!("{namespace}/{name} ({ip})"),
        )
    }

    /// What the policies of both sides say, as far as they are on this node.
    pub(super) fn decide(&self, table: &Table, way: &Way) -> Decision {
        if !table.known {
            return Decision::Wait(None);
        }
        let at = At {
            port: way.to.port(),
            protocol: way.protocol,
        };
        let source = way.source.and_then(|address| self.pod(address));
        let destination = way.destination.and_then(|address| self.pod(address));
        if way.source.is_some() && source.is_none() {
            // It has ended: nothing says what it was allowed.
            return if self.policy.is_open() {
                Decision::Pass([None, None])
            } else {
                Decision::Wait(None)
            };
        }
        let mut allowed = [None, None];
        let mut waiting = None;
        if let Some(source) = &source {
            let subject = facts(table, source);
            let mut verdict = Verdict::Open;
            for to in self.alternatives(way) {
                let other = self.destination(table, way, destination.as_deref(), to.ip());
                let at = At {
                    port: to.port(),
                    ..at
                };
                let policies = table.of(subject.namespace);
                let direction = Direction::Egress;
                verdict =
                    rules::judge(policies, &table.namespaces, direction, &subject, &other, at);
                if matches!(verdict, Verdict::Open | Verdict::Allowed(_)) {
                    break;
                }
            }
            match verdict {
                Verdict::Open => {}
                Verdict::Allowed(policy) => allowed[0] = Some(Arc::clone(policy)),
                Verdict::Denied(policy) => {
                    return Decision::Denied(Direction::Egress, Arc::clone(policy));
                }
                Verdict::Unknown(policy) => waiting = Some((Direction::Egress, Arc::clone(policy))),
            }
        }
        if let Some(destination) = &destination
            && !self.is_node(way)
        {
            let subject = facts(table, destination);
            let other = self.origin(table, way, source.as_deref());
            let policies = table.of(subject.namespace);
            let direction = Direction::Ingress;
            match rules::judge(policies, &table.namespaces, direction, &subject, &other, at) {
                Verdict::Open => {}
                Verdict::Allowed(policy) => allowed[1] = Some(Arc::clone(policy)),
                Verdict::Denied(policy) => return Decision::Denied(direction, Arc::clone(policy)),
                Verdict::Unknown(policy) => {
                    waiting = waiting.or_else(|| Some((direction, Arc::clone(policy))));
                }
            }
        }
        match waiting {
            Some(_) => Decision::Wait(waiting),
            None => Decision::Pass(allowed),
        }
    }

    /// The API server is allowed under either of its addresses: what a policy's author knows is mostly the Service's.
    fn alternatives(&self, way: &Way) -> impl Iterator<Item = SocketAddr> + use<> {
        let trusted = way.seen != way.to && {
            let services = self.services.borrow();
            let mut at = services.at(way.seen.ip()).into_iter().flatten();
            let port = at.find_map(|service| service.port(way.seen.port(), way.protocol));
            port.is_some_and(|port| port.trusted)
        };
        std::iter::once(way.to).chain(trusted.then_some(way.seen))
    }

    /// The node itself and what runs on it beside the pods: never kept from its pods, as in Kubernetes.
    fn is_node(&self, way: &Way) -> bool {
        let ip = way.from.ip();
        way.source.is_none()
            && way.identity.as_ref().is_none_or(|id| id.is_ingress())
            && (ip.is_loopback() || ip == IpAddr::V4(self.node_address))
    }

    /// Whether the pod that another node says to speak for can be at `ip`: a node's word counts for its own pods only. The
    /// address is the API's word; before the pod has one there, it is one of the node the pod was given to.
    fn is_at(&self, peer: &Peer, ip: IpAddr) -> bool {
        if !peer.addresses.is_empty() {
            return peer.addresses.contains(&ip);
        }
        match (ip, &self.tunnel) {
            (IpAddr::V4(ip), Some(tunnel)) => tunnel.speaks_for(&peer.node, ip),
            _ => false,
        }
    }

    fn origin<'a>(&self, table: &'a Table, way: &Way, source: Option<&'a PodNetwork>) -> End<'a> {
        let ip = way.from.ip();
        let known = match (source, &way.identity) {
            (Some(source), _) => Some(facts(table, source)),
            // Its client's address counts as well: so it is where policies name no controller.
            (None, Some(identity)) if identity.is_ingress() => Some(Facts {
                namespace: identity::INGRESS,
                labels: identity::ingress_labels(),
                ports: &[],
            }),
            (None, Some(identity)) => {
                let peer = table.peers.named(&identity.namespace, &identity.pod);
                let peer = peer.filter(|peer| self.is_at(peer, ip));
                peer.map(|peer| peer.facts())
            }
            (None, None) => table.peers.at(ip).map(|peer| peer.facts()),
        };
        End {
            ip,
            pod: known,
            stranger: known.is_none() && way.identity.is_some(),
        }
    }

    fn destination<'a>(
        &self,
        table: &'a Table,
        way: &Way,
        pod: Option<&'a PodNetwork>,
        ip: IpAddr,
    ) -> End<'a> {
        let is_dns = pod.is_none() && self.dns.address() == Some(way.to);
        let known = match pod {
            Some(pod) => Some(facts(table, pod)),
            None if is_dns => Some(Facts {
                namespace: types::well_known::NAMESPACE_SYSTEM,
                labels: &DNS.0,
                ports: &DNS.1,
            }),
            None => table.peers.at(ip).map(|peer| peer.facts()),
        };
        let ours = |ip: Ipv4Addr| self.config.cluster_cidr.contains(&ip);
        End {
            ip,
            pod: known,
            stranger: known.is_none() && matches!(ip, IpAddr::V4(ip) if ours(ip)),
        }
    }
}

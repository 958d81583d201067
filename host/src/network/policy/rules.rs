//! A NetworkPolicy compiled, and what policies say of one connection: objects in, verdicts out. PURE.
//!
//! A pod that no policy selects for a direction is open in it. One that is selected lets pass what any of its policies
//! allows, and nothing else. Who is at the other end may not be known yet: then the verdict is [`Verdict::Unknown`].

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::networking::v1 as networking;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::counts::Counts;
use super::selector::Selector;
use crate::network::identity;
use crate::network::namespaces::{Labels, Namespaces};
use crate::network::table::Protocol;

#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Direction {
    Ingress,
    Egress,
}

/// One NetworkPolicy.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) namespace: String,
    pub(crate) name: String,
    selector: Selector,
    /// `None`: it says nothing about that direction.
    ingress: Option<Vec<Rule>>,
    egress: Option<Vec<Rule>>,
    pub(crate) counts: Arc<Counts>,
}

#[derive(Debug)]
struct Rule {
    /// `None`: everybody.
    peers: Option<Vec<Peers>>,
    /// `None`: every port.
    ports: Option<Vec<Ports>>,
}

#[derive(Debug)]
enum Peers {
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<Selector>,
        pods: Option<Selector>,
    },
    Block {
        cidr: IpNet,
        except: Vec<IpNet>,
    },
}

#[derive(Debug)]
struct Ports {
    protocol: Protocol,
    port: Wanted,
}

#[derive(Debug)]
enum Wanted {
    Any,
    Range(u16, u16),
    Named(String),
}

/// A named port of a pod's containers.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NamedPort {
    pub name: String,
    pub(crate) protocol: Protocol,
    pub(crate) number: u16,
}

/// What is known of a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) labels: &'a Labels,
    pub(crate) ports: &'a [NamedPort],
}

/// One end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End<'a> {
    pub(crate) ip: IpAddr,
    pub(crate) pod: Option<Facts<'a>>,
    /// It should be a pod, but none is known to have the address yet.
    pub(crate) stranger: bool,
}

/// A port somebody is asked at.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct At {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

#[derive(Debug)]
pub(crate) enum Verdict<'a> {
    /// No policy selects the pod.
    Open,
    Allowed(&'a Arc<Policy>),
    /// By all that select it; this is the first.
    Denied(&'a Arc<Policy>),
    /// As above, but a rule might allow it once the other end is known.
    Unknown(&'a Arc<Policy>),
}

/// Whether something holds, as far as is known.
#[derive(Clone, Copy, Eq, Ord, PartialEq, PartialOrd)]
enum Holds {
    No,
    Maybe,
    Yes,
}

/// What `policies`, all of `subject`'s namespace, say about `other` at the port `at` of whoever is the destination.
pub(crate) fn judge<'a>(
    policies: &'a [Arc<Policy>],
    namespaces: &Namespaces,
    direction: Direction,
    subject: &Facts<'_>,
    other: &End<'_>,
    at: At,
) -> Verdict<'a> {
    let selecting = policies
        .iter()
        .filter(|policy| policy.selects(direction, subject.labels));
    let (mut first, mut unknown) = (None, None);
    for policy in selecting {
        let ports = match direction {
            Direction::Ingress => Some(subject.ports),
            Direction::Egress => other.pod.map(|pod| pod.ports),
        };
        match policy.allows(namespaces, direction, other, ports, at) {
            Holds::Yes => return Verdict::Allowed(policy),
            Holds::Maybe => unknown = unknown.or(Some(policy)),
            Holds::No => first = first.or(Some(policy)),
        }
    }
    match (unknown, first) {
        (Some(policy), _) => Verdict::Unknown(policy),
        (None, Some(policy)) => Verdict::Denied(policy),
        (None, None) => Verdict::Open,
    }
}

// === impl Direction ===

impl Direction {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

// === impl Policy ===

impl Policy {
    /// With what of it cannot be understood: those parts allow nothing.
    pub(crate) fn compile(
        object: &networking::NetworkPolicy,
        counts: Arc<Counts>,
    ) -> (Self, Vec<String>) {
        let mut problems = Vec::new();
        let spec = object.spec.clone().unwrap_or_default();
        let types = spec.policy_types.clone().unwrap_or_default();
        let says = |direction: &str| types.iter().any(|kind| kind == direction);
        let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
        let ingress = (types.is_empty() || says("Ingress")).then(|| {
            let rules = spec.ingress.iter().flatten();
            rules
                .map(|rule| {
                    Rule::compile(rule.from.as_deref(), rule.ports.as_deref(), &mut problems)
                })
                .collect()
        });
        let egress = (says("Egress") || types.is_empty() && has_egress).then(|| {
            let rules = spec.egress.iter().flatten();
            rules
                .map(|rule| Rule::compile(rule.to.as_deref(), rule.ports.as_deref(), &mut problems))
                .collect()
        });
        let selector = Selector::parse(&spec.pod_selector.unwrap_or_default());
        let selector = selector.unwrap_or_else(|problem| {
            // Whom it means is not clear: it isolates everybody rather than nobody.
            problems.push(problem);
            Selector::default()
        });
        let policy = Self {
            namespace: object.metadata.namespace.clone().unwrap_or_default(),
            name: object.metadata.name.clone().unwrap_or_default(),
            selector,
            ingress,
            egress,
            counts,
        };
        (policy, problems)
    }

    fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    pub(crate) fn selects(&self, direction: Direction, labels: &Labels) -> bool {
        self.rules(direction).is_some() && self.selector.matches(labels)
    }

    fn allows(
        &self,
        namespaces: &Namespaces,
        direction: Direction,
        other: &End<'_>,
        ports: Option<&[NamedPort]>,
        at: At,
    ) -> Holds {
        let rules = self.rules(direction).unwrap_or_default().iter();
        let each = rules.map(|rule| {
            let port = rule.has_port(ports, other, at);
            if port == Holds::No {
                return Holds::No;
            }
            port.min(rule.has_peer(&self.namespace, namespaces, other))
        });
        each.max().unwrap_or(Holds::No)
    }
}

// === impl Rule ===

impl Rule {
    fn compile(
        peers: Option<&[networking::NetworkPolicyPeer]>,
        ports: Option<&[networking::NetworkPolicyPort]>,
        problems: &mut Vec<String>,
    ) -> Self {
        // An empty list is no list.
        let peers = peers.filter(|peers| !peers.is_empty());
        let ports = ports.filter(|ports| !ports.is_empty());
        let mut understood = |problem| problems.push(problem);
        Self {
            peers: peers.map(|peers| {
                let peers = peers.iter().map(Peers::compile);
                peers
                    .filter_map(|peer| peer.map_err(&mut understood).ok())
                    .collect()
            }),
            ports: ports.map(|ports| {
                let ports = ports.iter().map(Ports::compile);
                ports
                    .filter_map(|port| port.map_err(&mut understood).ok())
                    .collect()
            }),
        }
    }

    fn has_port(&self, named: Option<&[NamedPort]>, other: &End<'_>, at: At) -> Holds {
        let Some(ports) = &self.ports else {
            return Holds::Yes;
        };
        let each = ports
            .iter()
            .filter(|port| port.protocol == at.protocol)
            .map(|port| {
                let holds = match &port.port {
                    Wanted::Any => true,
                    Wanted::Range(first, last) => (*first..=*last).contains(&at.port),
                    Wanted::Named(name) => match named {
                        Some(named) => named.iter().any(|port| {
                            port.name == *name
                                && port.protocol == at.protocol
                                && port.number == at.port
                        }),
                        None if other.stranger => return Holds::Maybe,
                        None => false,
                    },
                };
                if holds { Holds::Yes } else { Holds::No }
            });
        each.max().unwrap_or(Holds::No)
    }

    fn has_peer(&self, own: &str, namespaces: &Namespaces, other: &End<'_>) -> Holds {
        let Some(peers) = &self.peers else {
            return Holds::Yes;
        };
        let each = peers.iter().map(|peer| peer.holds(own, namespaces, other));
        each.max().unwrap_or(Holds::No)
    }
}

// === impl Peers ===

impl Peers {
    fn compile(peer: &networking::NetworkPolicyPeer) -> Result<Self, String> {
        if let Some(block) = &peer.ip_block {
            let parse = |text: &String| {
                let net: IpNet = text.parse().map_err(|_| format!("ipBlock {text:?}"))?;
                Ok::<_, String>(net.trunc())
            };
            return Ok(Self::Block {
                cidr: parse(&block.cidr)?,
                except: block
                    .except
                    .iter()
                    .flatten()
                    .map(parse)
                    .collect::<Result<_, _>>()?,
            });
        }
        if peer.namespace_selector.is_none() && peer.pod_selector.is_none() {
            return Err("a peer that names nobody".to_owned());
        }
        let parse = |selector: &Option<_>| selector.as_ref().map(Selector::parse).transpose();
        Ok(Self::Pods {
            namespaces: parse(&peer.namespace_selector)?,
            pods: parse(&peer.pod_selector)?,
        })
    }

    fn holds(&self, own: &str, known: &Namespaces, other: &End<'_>) -> Holds {
        let (namespaces, pods) = match self {
            Self::Block { cidr, except } => {
                let ip = other.ip.to_canonical();
                let inside = cidr.contains(&ip) && !except.iter().any(|net| net.contains(&ip));
                return if inside { Holds::Yes } else { Holds::No };
            }
            Self::Pods { namespaces, pods } => (namespaces, pods),
        };
        let Some(pod) = &other.pod else {
            return if other.stranger {
                Holds::Maybe
            } else {
                Holds::No
            };
        };
        if pods.as_ref().is_some_and(|pods| !pods.matches(pod.labels)) {
            return Holds::No;
        }
        let holds = match namespaces {
            None => pod.namespace == own,
            Some(selector) => match known.labels(pod.namespace) {
                Some(labels) => selector.matches(labels),
                None if !known.complete => return Holds::Maybe,
                None => identity::namespace_labels(pod.namespace)
                    .is_some_and(|labels| selector.matches(labels)),
            },
        };
        if holds { Holds::Yes } else { Holds::No }
    }
}

// === impl Ports ===

impl Ports {
    fn compile(port: &networking::NetworkPolicyPort) -> Result<Self, String> {
        let number = |number: i32| {
            u16::try_from(number).map_err(|_| format!("port {number} of a NetworkPolicy"))
        };
        let wanted = match (&port.port, port.end_port) {
            (None, None) => Wanted::Any,
            (Some(IntOrString::Int(first)), last) => {
                let first = number(*first)?;
                Wanted::Range(first, last.map_or(Ok(first), number)?)
            }
            (Some(IntOrString::String(name)), None) => Wanted::Named(name.clone()),
            (None | Some(IntOrString::String(_)), Some(_)) => {
                return Err("endPort without a number to begin with".to_owned());
            }
        };
        Ok(Self {
            protocol: Protocol::parse(port.protocol.as_deref()),
            port: wanted,
        })
    }
}

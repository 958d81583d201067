//! NetworkPolicies: which pods may talk to whom. Compiled purely into one immutable table, enforced at connect on both
//! sides of every stream, request and datagram, by the node of each side.
//!
//! ```text
//!  NetworkPolicies, Pods (while there is a policy), Namespaces ──► index ──► Table ──► gate ◄── vnet, http, udp, dns, tunnel
//!                                                                  rules::judge (pure) ◄──┘
//! ```
//! Differs from Kubernetes: what is denied fails at once instead of timing out; names cannot be resolved either by a pod
//! that may not reach the cluster's DNS, though no packet would be sent; streams that a new policy forbids are cut.

mod counts;
mod gate;
mod index;
mod open;
mod rules;
mod selector;
mod table;

#[cfg(test)]
mod tests;

pub use self::counts::Decisions;
pub(crate) use self::counts::prometheus;
pub(crate) use self::gate::{Gate, Isolation};
pub(crate) use self::index::run;
pub(crate) use self::open::{Watched, Way};
pub use self::rules::{Direction, NamedPort};
#[cfg(test)]
pub(crate) use self::table::Table;
pub(crate) use self::table::named_ports;

//! The plugins, in order, with their weights; nothing else.

mod inter_pod_affinity;
mod node_affinity;
mod node_name;
mod node_ports;
mod node_resources_fit;
mod node_unschedulable;
mod pod_topology_spread;
mod taint_toleration;

use super::plugin::{Filter, Score};
use inter_pod_affinity::InterPodAffinity;
use node_affinity::NodeAffinity;
use node_name::NodeName;
use node_ports::NodePorts;
use node_resources_fit::NodeResourcesFit;
use node_unschedulable::NodeUnschedulable;
use pod_topology_spread::PodTopologySpread;
use taint_toleration::TaintToleration;

/// Asked in this order; the first that refuses a node says why.
pub const FILTERS: &[&dyn Filter] = &[
    &NodeUnschedulable,
    &NodeName,
    &TaintToleration,
    &NodeAffinity,
    &NodePorts,
    &NodeResourcesFit,
    &PodTopologySpread,
    &InterPodAffinity,
];

pub const SCORES: &[(&dyn Score, i64)] = &[
    (&TaintToleration, 3),
    (&NodeAffinity, 2),
    (&PodTopologySpread, 2),
    (&InterPodAffinity, 2),
    (&NodeResourcesFit, 1),
];

//! A node: pods in wasmtime sandboxes, images, the virtual network, the node's own endpoint.
//!
//! The tree of tasks: [`start`] → node registration and lease ([`node`]), one worker per pod ([`pods`]), the network's
//! index and listeners ([`network`]), the node endpoint ([`serve`]). [`runtime`] knows wasmtime and has never heard of a
//! Pod; [`pods`] does not know wasmtime; they meet in [`runtime::Workload`]. [`network`] is where all of a guest's bytes go.
//!
//! Everything a node keeps lies below its data directory: `pods/<uid>/volumes`, `logs`, `images`, `compiled`.

mod args;
mod bind;
mod dns;
mod idle;
mod images;
pub mod ingress;
pub mod join;
pub mod link;
pub mod network;
mod node;
mod pods;
pub mod runtime;
mod serve;
pub mod servers;
mod start;
#[cfg(test)]
mod tests;
pub mod tls;

pub use args::{Args, MirrorFlag, machine_name};
pub use dns::args::DnsArgs;
pub use node::given::{GivenError, Labels, Taints};
pub use pods::toolbox::Toolbox;
pub use start::{Config, Error, Handle, start};
pub use tls::{Certificates, NodeTls};

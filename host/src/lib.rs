//! A node: pods in wasmtime sandboxes, images, the virtual network, the node's own endpoint.
//!
//! The tree of tasks: `start` → node registration and lease ([`node`]), one worker per pod ([`pods`]), the network's
//! index and listeners ([`network`]), the node endpoint ([`serve`]). [`runtime`] knows wasmtime and has never heard of a
//! Pod; [`pods`] does not know wasmtime; they meet in [`runtime::Workload`]. [`network`] is where all of a guest's bytes go.

mod dns;
pub mod network;
pub mod runtime;

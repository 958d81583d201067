//! Several hosts: the real binary in network namespaces, real kubectl, real Postgres, and what happens when any of it goes
//! away. Needs the right to make network namespaces.
#![expect(
    clippy::disallowed_methods,
    reason = "the tests wait in real time: the cluster is other processes"
)]
#![expect(
    clippy::print_stdout,
    reason = "a skipped test says why, a failed one shows the cluster"
)]

mod cluster;
mod guests;
mod lab;
mod load;
mod nat;
mod postgres;
#[path = "../shared/mod.rs"]
mod shared;
mod web;

mod balancers;
mod cuts;
mod edge;
mod failure;
mod ingress;
mod network;
mod policy;
mod quiet;
mod servers;

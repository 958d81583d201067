//! End to end: the real binary, the real kubectl, real sockets. User-visible promises only; one binary, one harness.
#![expect(
    clippy::disallowed_methods,
    reason = "the tests wait in real time: the cluster is another process"
)]
#![expect(
    clippy::print_stdout,
    reason = "a skipped test says why, a failed one shows the cluster"
)]

mod harness;
#[path = "../shared/mod.rs"]
mod shared;

mod beside;
mod clients;
mod durability;
mod joining;
mod kubectl;
mod main_job;
mod manifests;
mod network;
mod pods;
mod shell;
mod streams;
mod trouble;

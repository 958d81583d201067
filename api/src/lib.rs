//! The Kubernetes API server: one generic path for every kind, on one store.
//!
//! The journey of one request:
//! 1. [`server`] accepts TLS (or `up` calls the same router in process); [`auth`] says who is calling.
//! 2. [`request`] parses path and query into a `RequestInfo`; `auth` says whether they may.
//! 3. [`handlers`] holds one file per verb; none of these names a kind. Reads come from [`cache`] as finished bytes.
//! 4. A write is decoded by [`codec`] against the type graph of [`schema`], strictly when asked.
//! 5. A patch ([`patch`]) becomes an ordinary update; field ownership is computed there too.
//! 6. [`kinds`] is the table of kinds; a row's `Strategy` defaults, prepares and validates what is special.
//! 7. [`admission`] has the built-in plugins.
//! 8. [`store`] commits: one gap-free revision per change, many requests per transaction, then watchers hear of it.
//! 9. Whatever went wrong becomes a `Status` in [`status`], and nowhere else.
//!
//! [`discovery`], [`openapi`] and [`table`] are derived from the kinds and the schema, never written by hand.

pub mod admission;
pub mod args;
pub mod auth;
pub mod cache;
pub mod certificates;
pub mod codec;
pub mod discovery;
mod furniture;
pub mod handlers;
pub mod kinds;
mod links;
mod metrics;
mod nodes;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod pki;
pub mod registry;
pub mod request;
pub mod schema;
pub mod selector;
pub mod server;
pub mod status;
pub mod store;
mod streams;
mod table;

pub use args::Args;
pub use kinds::strategy::NodeRanges;
pub use server::{Config, Handle, start};

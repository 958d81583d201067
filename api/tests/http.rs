//! The API as clients see it: a real kube client over the in-process router, on the memory store.

#[path = "http/support.rs"]
mod support;

#[path = "http/access.rs"]
mod access;
#[path = "http/certificates.rs"]
mod certificates;
#[path = "http/network.rs"]
mod network;
#[path = "http/nodes.rs"]
mod nodes;
#[path = "http/objects.rs"]
mod objects;
#[path = "support/postgres.rs"]
mod postgres_server;
#[path = "http/replicas.rs"]
mod replicas;
#[path = "http/streams.rs"]
mod streams;
#[path = "http/tokens.rs"]
mod tokens;
#[path = "http/watches.rs"]
mod watches;
#[path = "http/words.rs"]
mod words;

//! What strategies and admission may look at: the cache, the clock of this request, the cluster's configuration.

use std::ops::RangeInclusive;
use std::sync::Arc;

use jiff::Timestamp;

use crate::handlers::Api;
use crate::kinds::strategy::{Lookup, NodeRanges};
use crate::store::{Key, Stored};

/// The world as one write sees it.
pub struct Lookups<'a> {
    api: &'a Api,
    now: Timestamp,
}

// === impl Lookups ===

impl<'a> Lookups<'a> {
    pub fn new(api: &'a Api, now: Timestamp) -> Self {
        Self { api, now }
    }
}

impl Lookup for Lookups<'_> {
    fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.api.cache.get(key)
    }

    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Stored>> {
        let snapshot = self.api.cache.snapshot(resource);
        snapshot.page(namespace, None).cloned().collect()
    }

    fn now(&self) -> Timestamp {
        self.now
    }

    fn service_cidr(&self) -> ipnet::Ipv4Net {
        self.api.settings.service_cidr
    }

    fn node_ports(&self) -> RangeInclusive<u16> {
        self.api.settings.node_ports.clone()
    }

    fn node_ranges(&self) -> Option<NodeRanges> {
        self.api.settings.node_ranges
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

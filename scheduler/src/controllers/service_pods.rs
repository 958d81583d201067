//! Pods behind Services, from the stores: which there are, and whose endpoints a change of one alters. Shared by
//! EndpointSlices and Endpoints; decides nothing about them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Shared, service_ports};
use crate::objects::{Key, Pod, Service};
use crate::reconcile::Queue;

/// Adds to `queue` every Service whose endpoints a change of a pod can alter.
pub(super) fn wake_services(shared: &Arc<Shared>, queue: &Arc<Queue<Key>>) {
    let waker = Arc::clone(queue);
    shared.informers.services.on_change(move |change| {
        if let Some(service) = change.latest() {
            waker.add(service.metadata.key());
        }
    });
    let waker = Arc::clone(queue);
    let shared_by_handler = Arc::downgrade(shared);
    shared.informers.pods.on_change(move |change| {
        if let (Some(old), Some(new)) = (change.old, change.new)
            && !service_ports::differs(old, new)
        {
            return;
        }
        let Some(shared) = shared_by_handler.upgrade() else {
            return;
        };
        // A pod without an address never was, and is not, behind anything.
        let pods: Vec<&Arc<Pod>> = change
            .both()
            .filter(|p| service_ports::has_address(p))
            .collect();
        let Some(first) = pods.first() else { return };
        let services = shared
            .informers
            .services
            .in_namespace(&first.metadata.namespace, |s| {
                service_ports::selector(s).is_some_and(|selector| {
                    pods.iter().any(|p| selects(selector, &p.metadata.labels))
                })
            });
        for service in services {
            waker.add(service.metadata.key());
        }
    });
}

/// The pods a Service selects.
pub(super) fn pods_behind(shared: &Shared, service: &Service) -> Vec<Arc<Pod>> {
    let Some(selector) = service_ports::selector(service) else {
        return Vec::new();
    };
    shared
        .informers
        .pods
        .in_namespace(&service.metadata.namespace, |pod| {
            service_ports::has_address(pod) && selects(selector, &pod.metadata.labels)
        })
}

/// A Service's selector is equality only.
fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

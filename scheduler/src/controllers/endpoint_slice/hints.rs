//! Hints: for which zones and nodes an endpoint is meant, where a Service asks for short ways. PURE.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::{EndpointHints, ForNode, ForZone};

use super::Observed;
use crate::objects::{Pod, Service};

const MODE: &str = "service.kubernetes.io/topology-mode";
/// A zone may have this much more of the load than its share of the endpoints, in percent.
const OVERLOAD: usize = 20;

/// The hints of a ready endpoint. `spec.trafficDistribution`: the same zone, or the same node and else the same zone.
pub(super) fn of(
    service: &Service,
    pod: &Pod,
    zone: Option<&str>,
    zonal: bool,
) -> Option<EndpointHints> {
    let wanted = service.spec.traffic_distribution.as_deref();
    let zones = || {
        zone.map(|zone| {
            vec![ForZone {
                name: zone.to_owned(),
            }]
        })
    };
    match wanted {
        _ if zonal => Some(EndpointHints {
            for_nodes: None,
            for_zones: zones(),
        }),
        // With the annotation it is the annotation that counts, as upstream.
        _ if asks_for_auto(service) => None,
        Some("PreferClose" | "PreferSameZone") => zones().map(|zones| EndpointHints {
            for_nodes: None,
            for_zones: Some(zones),
        }),
        Some("PreferSameNode") if !pod.spec.node_name.is_empty() => Some(EndpointHints {
            for_nodes: Some(vec![ForNode {
                name: pod.spec.node_name.clone(),
            }]),
            for_zones: zones(),
        }),
        _ => None,
    }
}

fn asks_for_auto(service: &Service) -> bool {
    let mode = service.metadata.annotations.get(MODE);
    mode.is_some_and(|mode| mode == "Auto" || mode == "auto")
}

/// `topology-mode: Auto`: every endpoint is meant for its own zone, if no zone has much more load than endpoints: the load
/// of a zone is its share of the nodes.
///
/// Differs from Kubernetes: shares are of nodes, not of their processors, and no endpoint is lent to another zone; where
/// zones are too uneven for that there are no hints.
pub(super) fn is_zonal(observed: &Observed) -> bool {
    if !asks_for_auto(&observed.service) {
        return false;
    }
    let mut nodes: BTreeMap<&str, usize> = BTreeMap::new();
    for zone in observed.nodes.values().flatten() {
        *nodes.entry(zone).or_default() += 1;
    }
    let mut endpoints: BTreeMap<&str, usize> = BTreeMap::new();
    let ready = observed
        .pods
        .iter()
        .filter(|pod| pod.is_ready() && !pod.metadata.is_deleting());
    let mut total = 0;
    for pod in ready {
        let Some(zone) = observed.zone_of(&pod.spec.node_name) else {
            return false;
        };
        *endpoints.entry(zone).or_default() += 1;
        total += 1;
    }
    let all: usize = nodes.values().sum();
    nodes.len() > 1
        && nodes.iter().all(|(zone, count)| {
            // endpoints / total >= (count / all) / 1.2
            let here = endpoints.get(zone).copied().unwrap_or(0);
            here > 0 && here * all * (100 + OVERLOAD) >= count * total * 100
        })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;

    use serde_json::{Value, json};

    use super::super::{Action, plan};
    use super::*;
    use crate::controllers::endpoint_slice::tests::{pod, service};

    /// Endpoints on nodes a1, a2 (zone a) and b1 (zone b), with their hints.
    fn hinted(distribution: Option<&str>, annotations: &[(&str, &str)], on: &[&str]) -> Vec<Value> {
        let mut service = service(json!([{"port": 80}]));
        service.spec.traffic_distribution = distribution.map(str::to_owned);
        let annotations = annotations
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        service.metadata.annotations = annotations.collect();
        let pods = on.iter().enumerate().map(|(i, node)| {
            let mut pod = (*pod(&format!("p{i}"), &format!("10.0.0.{i}"), true)).clone();
            pod.spec.node_name = (*node).to_owned();
            Arc::new(pod)
        });
        let zone = |(node, zone): (&str, &str)| (node.to_owned(), Some(zone.to_owned()));
        let mut nodes = HashMap::from([("a1", "a"), ("a2", "a"), ("b1", "b")].map(zone));
        nodes.insert("nowhere".to_owned(), None);
        let observed = Observed {
            service: Arc::new(service),
            pods: pods.collect(),
            slices: Vec::new(),
            nodes,
        };
        let actions = plan(&observed);
        let [Action::Create(slice)] = actions.as_slice() else {
            panic!("one slice: {actions:?}");
        };
        slice
            .endpoints
            .iter()
            .flatten()
            .map(|e| json!(e.hints))
            .collect()
    }

    #[test]
    fn a_distribution_becomes_hints() {
        let zone = |name: &str| json!({"forZones": [{"name": name}]});
        assert_eq!(hinted(None, &[], &["a1", "b1"]), [json!(null), json!(null)]);
        for same in ["PreferClose", "PreferSameZone"] {
            assert_eq!(
                hinted(Some(same), &[], &["a1", "b1"]),
                [zone("a"), zone("b")]
            );
        }
        assert_eq!(
            hinted(Some("PreferSameNode"), &[], &["a1"]),
            [json!({"forNodes": [{"name": "a1"}], "forZones": [{"name": "a"}]})]
        );
        assert_eq!(
            hinted(Some("PreferClose"), &[], &["nowhere"]),
            [json!(null)]
        );
    }

    #[test]
    fn automatic_hints_need_endpoints_where_the_load_is() {
        let auto = [(MODE, "Auto")];
        let zone = |name: &str| json!({"forZones": [{"name": name}]});
        assert_eq!(
            hinted(None, &auto, &["a1", "a2", "b1"]),
            [zone("a"), zone("a"), zone("b")]
        );
        assert_eq!(
            hinted(None, &auto, &["a1", "b1"]),
            [json!(null), json!(null)],
            "a has two thirds of the nodes"
        );
        assert_eq!(
            hinted(None, &auto, &["a1", "a2"]),
            [json!(null), json!(null)],
            "nobody in b"
        );
    }
}

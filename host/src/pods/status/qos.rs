//! A pod's quality-of-service class, from its requests and limits. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use types::quantity::Quantity;

use crate::pods::ephemeral;

/// `Guaranteed`: every container limits CPU and memory and requests as much; `BestEffort`: nobody says anything.
pub(crate) fn qos_class(spec: &PodSpec) -> &'static str {
    let containers = || {
        spec.init_containers
            .iter()
            .flatten()
            .chain(ephemeral::split(spec).0)
    };
    if containers().all(says_nothing) {
        "BestEffort"
    } else if containers().all(is_guaranteed) {
        "Guaranteed"
    } else {
        "Burstable"
    }
}

const COUNTED: [&str; 2] = ["cpu", "memory"];

fn says_nothing(container: &Container) -> bool {
    let Some(resources) = &container.resources else {
        return true;
    };
    let maps = [&resources.requests, &resources.limits];
    COUNTED
        .iter()
        .all(|name| maps.iter().all(|map| amount(map.as_ref(), name).is_none()))
}

fn is_guaranteed(container: &Container) -> bool {
    let Some(resources) = &container.resources else {
        return false;
    };
    COUNTED.iter().all(|name| {
        let limit = amount(resources.limits.as_ref(), name);
        let request = amount(resources.requests.as_ref(), name).or(limit);
        limit.is_some() && limit == request
    })
}

fn amount(map: Option<&BTreeMap<String, ApiQuantity>>, name: &str) -> Option<Quantity> {
    let quantity = Quantity::try_from(map?.get(name)?).ok()?;
    (!quantity.is_zero()).then_some(quantity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(resources: serde_json::Value) -> &'static str {
        let spec = serde_json::json!({"containers": [{"name": "a", "resources": resources}]});
        qos_class(&serde_json::from_value(spec).expect("the test's spec is well formed"))
    }

    #[test]
    fn the_three_classes() {
        assert_eq!(class(serde_json::json!({})), "BestEffort");
        assert_eq!(
            class(serde_json::json!({"requests": {"cpu": "1"}})),
            "Burstable"
        );
        assert_eq!(
            class(serde_json::json!({"limits": {"cpu": "500m", "memory": "1Gi"}})),
            "Guaranteed"
        );
        assert_eq!(
            class(
                serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})
            ),
            "Burstable"
        );
    }
}

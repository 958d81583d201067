//! What EndpointSlice plans promise.

use std::collections::HashMap;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

pub(in crate::controllers) fn service(ports: Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "default", "uid": "s"},
        "spec": {"selector": {"app": "web"}, "ports": ports, "clusterIP": "10.96.0.7"}
    }))
    .expect("a service")
}

pub(in crate::controllers) fn pod(name: &str, ip: &str, ready: bool) -> Arc<Pod> {
    let status = if ready { "True" } else { "False" };
    Arc::new(
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "n", "containers": [{"ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIP": ip, "conditions": [{"type": "Ready", "status": status}]}
        }))
        .expect("a pod"),
    )
}

fn observed(pods: Vec<Arc<Pod>>, slices: Vec<Arc<EndpointSlice>>) -> Observed {
    Observed {
        service: Arc::new(service(json!([{"port": 80, "targetPort": "http"}]))),
        pods,
        slices,
        nodes: HashMap::from([("n".to_owned(), None)]),
    }
}

/// What the server would hold after the actions.
fn carry_out(
    slices: &[Arc<EndpointSlice>],
    actions: Vec<Action>,
    step: usize,
) -> Vec<Arc<EndpointSlice>> {
    let mut slices: Vec<EndpointSlice> = slices.iter().map(|s| (**s).clone()).collect();
    for (index, action) in actions.into_iter().enumerate() {
        match action {
            Action::Create(slice) => {
                let mut slice: EndpointSlice =
                    serde_json::from_value(json!(slice)).expect("a slice");
                slice.metadata.name = format!("web-{step}-{index}");
                slices.push(slice);
            }
            Action::Delete { name, .. } => slices.retain(|s| s.metadata.name != name),
            Action::Patch { name, patch } => {
                let slice = slices
                    .iter_mut()
                    .find(|s| s.metadata.name == name)
                    .expect("a known slice");
                if let Some(endpoints) = patch.get("endpoints") {
                    slice.endpoints = serde_json::from_value(endpoints.clone()).expect("endpoints");
                    slice.ports = serde_json::from_value(patch["ports"].clone()).expect("ports");
                }
            }
        }
    }
    slices.into_iter().map(Arc::new).collect()
}

#[test]
fn ready_serving_and_terminating_are_told_apart() {
    let mut leaving = (*pod("b", "10.0.0.2", true)).clone();
    leaving.metadata.deletion_timestamp =
        serde_json::from_value(json!("2026-01-01T00:00:00Z")).ok();
    let actions = plan(&observed(
        vec![pod("a", "10.0.0.1", false), Arc::new(leaving)],
        Vec::new(),
    ));
    let [Action::Create(slice)] = actions.as_slice() else {
        panic!("one slice: {actions:?}");
    };
    let conditions: Vec<(Option<bool>, Option<bool>, Option<bool>)> = slice
        .endpoints
        .iter()
        .flatten()
        .filter_map(|e| e.conditions.as_ref())
        .map(|c| (c.ready, c.serving, c.terminating))
        .collect();
    assert_eq!(
        conditions,
        [
            (Some(false), Some(false), Some(false)),
            (Some(false), Some(true), Some(true))
        ]
    );
    assert_eq!(slice.ports.as_ref().expect("ports")[0].port, Some(8080));
}

#[test]
fn a_service_without_pods_has_one_empty_slice() {
    let actions = plan(&observed(Vec::new(), Vec::new()));
    let slices = carry_out(&[], actions, 0);
    assert_eq!(slices.len(), 1);
    assert!(slices[0].endpoints.is_empty());
    assert!(plan(&observed(Vec::new(), slices)).is_empty());
}

#[test]
fn slices_of_a_service_that_had_the_name_before_are_replaced() {
    let pods = vec![pod("a", "10.0.0.1", true)];
    let before = carry_out(&[], plan(&observed(pods.clone(), Vec::new())), 0);
    let mut again = observed(pods, before.clone());
    Arc::make_mut(&mut again.service).metadata.uid = "another".to_owned();
    let actions = plan(&again);
    let [Action::Delete { name, .. }, Action::Create(slice)] = actions.as_slice() else {
        panic!("one goes, one comes: {actions:?}");
    };
    assert_eq!(*name, before[0].metadata.name);
    let owner = &slice.metadata.owner_references.as_ref().expect("an owner")[0];
    assert_eq!(owner.uid, "another");
    assert_eq!(slice.endpoints.as_ref().map(Vec::len), Some(1));
}

#[test]
fn what_ran_on_a_node_that_is_gone_is_listed_only_when_asked_for() {
    let mut stray = (*pod("b", "10.0.0.2", true)).clone();
    stray.spec.node_name = "gone".to_owned();
    let mut now = observed(
        vec![pod("a", "10.0.0.1", true), Arc::new(stray)],
        Vec::new(),
    );
    let listed = |observed: &Observed| {
        let slices = carry_out(&[], plan(observed), 0);
        let all = slices.iter().flat_map(|s| &s.endpoints);
        all.map(|e| e.addresses[0].clone()).collect::<Vec<_>>()
    };
    assert_eq!(listed(&now), ["10.0.0.1"]);
    Arc::make_mut(&mut now.service)
        .spec
        .publish_not_ready_addresses = Some(true);
    assert_eq!(listed(&now), ["10.0.0.1", "10.0.0.2"]);
}

#[test]
fn pods_that_name_other_numbers_get_slices_of_their_own() {
    let mut other = (*pod("b", "10.0.0.2", true)).clone();
    other.spec.containers[0].ports[0].container_port = 9090;
    let actions = plan(&observed(
        vec![pod("a", "10.0.0.1", true), Arc::new(other)],
        Vec::new(),
    ));
    assert_eq!(actions.len(), 2);
}

proptest! {
    /// Whatever comes and goes: all ready pods are listed once, no slice is too full, and planning again does nothing.
    #[test]
    fn plans_converge_and_are_idempotent(steps in prop::collection::vec(prop::collection::btree_set(0usize..350, 0..330), 1..5)) {
        let mut slices: Vec<Arc<EndpointSlice>> = Vec::new();
        for (step, pods) in steps.into_iter().enumerate() {
            let pods: Vec<Arc<Pod>> = pods
                .into_iter()
                .map(|i| pod(&format!("p{i}"), &format!("10.0.{}.{}", i / 250, i % 250), i % 7 != 0))
                .collect();
            let now = observed(pods.clone(), slices.clone());
            slices = carry_out(&slices, plan(&now), step);
            prop_assert!(slices.iter().all(|s| s.endpoints.len() <= MOST_ENDPOINTS));
            prop_assert!(slices.len() == 1 || slices.iter().all(|s| !s.endpoints.is_empty()));
            let mut listed: Vec<&str> = slices.iter().flat_map(|s| &s.endpoints).map(uid).collect();
            listed.sort_unstable();
            let mut expected: Vec<&str> = pods.iter().map(|p| p.metadata.uid.as_str()).collect();
            expected.sort_unstable();
            prop_assert_eq!(listed, expected);
            let again = observed(pods, slices.clone());
            prop_assert!(plan(&again).is_empty());
        }
    }
}

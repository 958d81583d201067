//! What decisions promise.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::decision::Scheduler;
use super::pod::PodInfo;
use super::snapshot::Cluster;

fn node(name: &str, extra: Value) -> (String, Value) {
    let mut node = json!({
        "metadata": {"name": name, "labels": {"zone": "a", "kubernetes.io/hostname": name}},
        "spec": {},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}}
    });
    merge(&mut node, extra);
    (name.to_owned(), node)
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn cluster(nodes: Vec<(String, Value)>) -> Scheduler {
    let mut cluster = Cluster::default();
    for (name, node) in nodes {
        let node = serde_json::from_value(node).expect("a node");
        cluster.set_node(&name, Some(Arc::new(node)));
    }
    Scheduler::new(cluster, 7)
}

fn pod(name: &str, spec: Value) -> Arc<PodInfo> {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"app": "a"}},
        "spec": {"containers": [{"name": "c"}]}
    });
    merge(&mut pod, json!({ "spec": spec }));
    Arc::new(PodInfo::new(&Arc::new(
        serde_json::from_value(pod).expect("a pod"),
    )))
}

fn requesting(name: &str, cpu: &str) -> Arc<PodInfo> {
    pod(
        name,
        json!({"containers": [{"resources": {"requests": {"cpu": cpu}}}]}),
    )
}

fn refusal(scheduler: &mut Scheduler, pod: &PodInfo) -> String {
    scheduler.decide(pod).expect_err("no node fits").message()
}

#[test]
fn a_full_node_is_described_as_upstream_does() {
    let mut scheduler = cluster(vec![node("n", json!({}))]);
    scheduler.cluster.place(requesting("a", "800m"), "n");
    assert_eq!(
        refusal(&mut scheduler, &requesting("b", "300m")),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
         1 No preemption victims found for incoming pod."
    );
    assert_eq!(
        refusal(&mut scheduler, &requesting("c", "3")),
        "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
         1 Preemption is not helpful for scheduling."
    );
}

#[test]
fn every_reason_is_counted() {
    let mut scheduler = cluster(vec![
        node(
            "cordoned",
            json!({"spec": {"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]}}),
        ),
        node(
            "tainted",
            json!({"spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}}),
        ),
        node("elsewhere", json!({"metadata": {"labels": {"zone": "b"}}})),
        node(
            "small",
            json!({"status": {"allocatable": {"cpu": "100m", "memory": "1Mi", "pods": "0"}}}),
        ),
    ]);
    let picky = pod(
        "p",
        json!({
            "nodeSelector": {"zone": "a"},
            "containers": [{"resources": {"requests": {"cpu": "200m", "memory": "2Mi"}}}]
        }),
    );
    assert_eq!(
        refusal(&mut scheduler, &picky),
        "0/4 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 1 Too many pods, \
         1 node(s) didn't match Pod's node affinity/selector, 1 node(s) had untolerated taint(s), \
         1 node(s) were unschedulable. preemption: 0/4 nodes are available: \
         4 Preemption is not helpful for scheduling."
    );
    assert_eq!(
        refusal(&mut cluster(Vec::new()), &picky),
        "no nodes available to schedule pods"
    );
}

#[test]
fn host_ports_are_given_once() {
    let mut scheduler = cluster(vec![node("n", json!({}))]);
    let port = |name| {
        pod(
            name,
            json!({"containers": [{"ports": [{"containerPort": 80, "hostPort": 80}]}]}),
        )
    };
    scheduler.cluster.place(port("a"), "n");
    assert!(refusal(&mut scheduler, &port("b")).contains("didn't have free ports"));
}

#[test]
fn affinity_reads_labels_and_names() {
    let mut scheduler = cluster(vec![
        node("a", json!({"metadata": {"labels": {"disk": "ssd"}}})),
        node("b", json!({})),
    ]);
    let required = |term: Value| {
        pod(
            "p",
            json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}}),
        )
    };
    let ssd = required(
        json!({"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}),
    );
    assert_eq!(scheduler.decide(&ssd).as_deref(), Ok("a"));
    let not = required(
        json!({"matchExpressions": [{"key": "disk", "operator": "NotIn", "values": ["ssd"]}]}),
    );
    assert_eq!(scheduler.decide(&not).as_deref(), Ok("b"));
    let named = required(
        json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}),
    );
    assert_eq!(scheduler.decide(&named).as_deref(), Ok("b"));
    let preferred = pod(
        "p",
        json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
        {"weight": 5, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}]}}}),
    );
    assert_eq!(scheduler.decide(&preferred).as_deref(), Ok("a"));
}

#[test]
fn pods_keep_away_from_each_other_when_they_ask_to() {
    let mut scheduler = cluster(vec![node("a", json!({})), node("b", json!({}))]);
    let apart = |name| {
        pod(
            name,
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
            {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "a"}}}]}}}),
        )
    };
    let first = scheduler.decide(&apart("1")).expect("a place");
    scheduler.cluster.place(apart("1"), &first);
    let second = scheduler.decide(&apart("2")).expect("another place");
    assert_ne!(first, second);
    scheduler.cluster.place(apart("2"), &second);
    assert!(refusal(&mut scheduler, &apart("3")).contains("didn't match pod anti-affinity rules"));
    assert!(refusal(&mut scheduler, &pod("4", json!({}))).contains("existing pods anti-affinity"));
}

#[test]
fn skew_is_bounded() {
    let mut scheduler = cluster(vec![
        node("a", json!({"metadata": {"labels": {"zone": "a"}}})),
        node("b", json!({"metadata": {"labels": {"zone": "b"}}})),
    ]);
    let spread = |name: &str| {
        pod(
            name,
            json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "a"}}}]}),
        )
    };
    for i in 0..6 {
        let pod = spread(&i.to_string());
        let node = scheduler.decide(&pod).expect("a place");
        scheduler.cluster.place(pod, &node);
    }
    let counts: Vec<usize> = scheduler.cluster.nodes().map(|n| n.pods.len()).collect();
    assert_eq!(counts, [3, 3]);
}

#[test]
fn replicas_spread_over_nodes_and_a_seed_repeats_itself() {
    let place = || {
        let mut scheduler = cluster((0..5).map(|i| node(&format!("n{i}"), json!({}))).collect());
        (0..10)
            .map(|i| {
                let mut pod = (*pod(&i.to_string(), json!({}))).clone();
                pod.owner = Some("owner".into());
                let pod = Arc::new(pod);
                let node = scheduler.decide(&pod).expect("a place");
                scheduler.cluster.place(pod, &node);
                node
            })
            .collect::<Vec<String>>()
    };
    let placement = place();
    for i in 0..5 {
        let there = placement.iter().filter(|n| **n == format!("n{i}")).count();
        assert_eq!(there, 2, "{placement:?}");
    }
    assert_eq!(placement, place());
}

proptest! {
    /// Whatever is asked for in whatever order, and whatever leaves again: no node ever holds more than it has.
    #[test]
    fn nothing_is_overcommitted(
        steps in prop::collection::vec((0u8..4, 1i64..900, 1i64..900, 0usize..30), 1..120),
        seed in any::<u64>(),
    ) {
        let mut scheduler = cluster((0..3).map(|i| node(&format!("n{i}"), json!({}))).collect());
        scheduler = Scheduler::new(scheduler.cluster, seed);
        for (step, (what, cpu, memory, which)) in steps.into_iter().enumerate() {
            if what == 0 {
                scheduler.cluster.remove(&format!("p{which}"));
            } else {
                let pod = pod(&format!("p{step}"), json!({"containers": [{"resources": {"requests":
                    {"cpu": format!("{cpu}m"), "memory": format!("{memory}Mi")}}}]}));
                if let Ok(node) = scheduler.decide(&pod) {
                    scheduler.cluster.place(pod, &node);
                }
            }
            for node in scheduler.cluster.nodes() {
                prop_assert!(node.requested.millicores <= node.allocatable.millicores);
                prop_assert!(node.requested.memory <= node.allocatable.memory);
                prop_assert!(node.pods.len() <= node.most_pods);
                let sum: i64 = node.pods.values().map(|p| p.requests.millicores).sum();
                prop_assert_eq!(sum, node.requested.millicores);
            }
        }
    }
}

/// The goal is 10,000 decisions a second at 1,000 nodes; only an optimised build can be held to it.
#[test]
fn decisions_are_quick_on_a_large_cluster() {
    let nodes = (0..1000).map(|i| {
        node(
            &format!("n{i:04}"),
            json!({"status": {"allocatable": {"cpu": "64", "memory": "256Gi", "pods": "500"}}}),
        )
    });
    let mut scheduler = cluster(nodes.collect());
    let count = if cfg!(debug_assertions) { 200 } else { 20_000 };
    let mut template = (*requesting("p", "100m")).clone();
    template.owner = Some("owner".into());
    let started = tokio::time::Instant::now();
    for i in 0..count {
        let mut pod = template.clone();
        pod.uid = format!("p{i}").into();
        let pod = Arc::new(pod);
        let node = scheduler.decide(&pod).expect("a place");
        scheduler.cluster.place(pod, &node);
    }
    let per_second = f64::from(count) / started.elapsed().as_secs_f64();
    println!("{per_second:.0} decisions per second at 1,000 nodes");
    if !cfg!(debug_assertions) {
        assert!(
            per_second > 10_000.0,
            "{per_second:.0} decisions per second"
        );
    }
}

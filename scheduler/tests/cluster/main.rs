//! The controllers and scheduling against the real API server, in one process and without sockets.

mod world;

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, Pod, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::Ingress;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, EvictParams, ListParams, PostParams};
use serde_json::json;
use world::{World, deployment, event, event_that, object, service};

const REVISION: &str = "deployment.kubernetes.io/revision";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_and_its_service_come_up() {
    let world = World::new(&[4, 4]).await;
    world.create::<Service>(service("web")).await;
    world.create::<Deployment>(deployment("web", 3, "v1")).await;
    let ready = world.until_available("web", 3).await;
    let conditions = ready.status.and_then(|s| s.conditions).unwrap_or_default();
    let reasons: Vec<&str> = conditions
        .iter()
        .filter_map(|c| c.reason.as_deref())
        .collect();
    assert!(reasons.contains(&"MinimumReplicasAvailable"), "{reasons:?}");
    assert_eq!(
        ready.metadata.annotations.expect("annotations")[REVISION],
        "1"
    );
    let pods = world
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .expect("pods");
    let mut nodes: Vec<String> = pods
        .iter()
        .filter_map(|p| p.spec.as_ref()?.node_name.clone())
        .collect();
    nodes.sort();
    nodes.dedup();
    assert_eq!(nodes.len(), 2, "replicas are spread");

    let three = |e: Option<&Endpoints>| {
        let subset = e.and_then(|e| e.subsets.as_ref()?.first());
        subset
            .and_then(|s| s.addresses.as_ref())
            .is_some_and(|a| a.len() == 3)
    };
    world.until(world.api::<Endpoints>(), "web", three).await;
    let selector = ListParams::default().labels("kubernetes.io/service-name=web");
    let slices = world
        .api::<EndpointSlice>()
        .list(&selector)
        .await
        .expect("slices");
    // Written by another controller than Endpoints: perhaps a moment later.
    let full =
        |s: Option<&EndpointSlice>| s.and_then(|s| s.endpoints.as_ref()).map(Vec::len) == Some(3);
    let name = slices.items[0].name_any();
    let slice = world.until(world.api(), &name, full).await;
    let slice = slice.expect("it is there");
    assert_eq!(slices.items.len(), 1);
    assert_eq!(slice.endpoints.as_ref().map(Vec::len), Some(3));
    assert_eq!(slice.ports.as_ref().expect("ports")[0].port, Some(8080));
    assert_eq!(
        slice.ports.as_ref().expect("ports")[0].name.as_deref(),
        Some("web")
    );
    let scheduled = event(&world, &pods.items[0].name_any(), "Scheduled").await;
    assert!(
        scheduled
            .message
            .is_some_and(|m| m.starts_with("Successfully assigned default/web-"))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_goes_forth_and_back() {
    let world = World::new(&[4]).await;
    world.create::<Deployment>(deployment("web", 4, "v1")).await;
    world.until_available("web", 4).await;
    let image = |image: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}});
    world.patch::<Deployment>("web", image("v2")).await;
    let second = world.until_available("web", 4).await;
    assert_eq!(second.annotations()[REVISION], "2");
    world.patch::<Deployment>("web", image("v1")).await;
    let third = world.until_available("web", 4).await;
    assert_eq!(third.annotations()[REVISION], "3");
    let sets = world
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .expect("sets");
    assert_eq!(sets.items.len(), 2, "the first set was taken back");
    let pods = world
        .api::<Pod>()
        .list(&ListParams::default().labels("app=web"))
        .await
        .expect("pods");
    let image = |p: &Pod| p.spec.as_ref().and_then(|s| s.containers[0].image.clone());
    let current = pods
        .iter()
        .filter(|p| p.metadata.deletion_timestamp.is_none());
    assert!(
        current
            .into_iter()
            .all(|p| image(p).as_deref() == Some("v1"))
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why() {
    let world = World::new(&[1]).await;
    world
        .create::<Pod>(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "large"},
            "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "2"}}}]}
        }))
        .await;
    let told = |p: Option<&Pod>| {
        let conditions = p.and_then(|p| p.status.as_ref()?.conditions.as_ref());
        conditions
            .into_iter()
            .flatten()
            .any(|c| c.reason.as_deref() == Some("Unschedulable"))
    };
    world.until(world.api::<Pod>(), "large", told).await;
    let event = event(&world, "large", "FailedScheduling").await;
    assert_eq!(
        event.message.as_deref(),
        Some(
            "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: \
             1 Preemption is not helpful for scheduling."
        )
    );
    assert_eq!(
        event.reporting_component.as_deref(),
        Some("default-scheduler")
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ingress_is_told_of_its_certificate_until_it_is_there() {
    let world = World::new(&[]).await;
    let ingress = |name: &str, secret: &str| {
        json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": name},
            "spec": {"ingressClassName": "coracle", "tls": [{"hosts": [name], "secretName": secret}],
                "defaultBackend": {"service": {"name": "web", "port": {"number": 80}}}}
        })
    };
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "half"}, "data": {"tls.crt": "LS0tLS1CRUdJTiBYLS0tLS0="}
    });
    world.create::<Secret>(secret).await;
    world.create::<Ingress>(ingress("a", "none")).await;
    world.create::<Ingress>(ingress("b", "half")).await;
    let none = event(&world, "a", "InvalidCertificate").await;
    let message = none.message.unwrap_or_default();
    assert!(
        message.starts_with("Secret default/none does not exist"),
        "{message}"
    );
    let half = event(&world, "b", "InvalidCertificate").await;
    let message = half.message.unwrap_or_default();
    assert!(
        message.starts_with("Secret default/half has no tls.key"),
        "{message}"
    );
    // It comes, and then it is only half of one: the change is seen though only this one Secret is watched.
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "none"}, "data": {"tls.key": "eA=="}
    });
    world.create::<Secret>(secret).await;
    let says = |message: &str| message.starts_with("Secret default/none has no tls.crt");
    event_that(&world, "a", "InvalidCertificate", says).await;
    // Halves of two: both are PEM, and no node can use them.
    let issue = || {
        let key = rcgen::KeyPair::generate().expect("a key");
        let names = vec!["c".to_owned()];
        let certificate = rcgen::CertificateParams::new(names).expect("a name");
        let certificate = certificate.self_signed(&key).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    };
    let (certificate, key) = (issue().0, issue().1);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "mixed"},
        "stringData": {"tls.crt": certificate, "tls.key": key}
    });
    world.create::<Secret>(secret).await;
    world.create::<Ingress>(ingress("c", "mixed")).await;
    let says = |message: &str| {
        message.starts_with("Secret default/mixed cannot be used for TLS: tls.crt and tls.key: ")
    };
    event_that(&world, "c", "InvalidCertificate", says).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deleting_cascades_as_asked() {
    let world = World::new(&[4]).await;
    for name in ["background", "foreground", "orphan"] {
        world.create::<Deployment>(deployment(name, 2, "v1")).await;
    }
    for (name, how) in [
        ("background", DeleteParams::background()),
        ("foreground", DeleteParams::foreground()),
        ("orphan", DeleteParams::orphan()),
    ] {
        world.until_available(name, 2).await;
        let deployments = world.api::<Deployment>();
        let sets = world.api::<ReplicaSet>();
        let set = sets
            .list(&ListParams::default().labels(&format!("app={name}")))
            .await
            .expect("sets");
        let set = set.items[0].name_any();
        deployments.delete(name, &how).await.expect("it is deleted");
        world.until_gone(deployments, name).await;
        if name == "orphan" {
            let free = |s: Option<&ReplicaSet>| s.is_some_and(|s| s.owner_references().is_empty());
            world.until(sets, &set, free).await;
            continue;
        }
        if name == "foreground" {
            assert!(
                sets.get_opt(&set).await.expect("an answer").is_none(),
                "dependents go first"
            );
        }
        world.until_gone(sets, &set).await;
        let pods = world.api::<Pod>();
        for pod in pods
            .list(&ListParams::default().labels(&format!("app={name}")))
            .await
            .expect("pods")
        {
            world.until_gone(pods.clone(), &pod.name_any()).await;
        }
    }
    // A new Deployment adopts what matches.
    world
        .create::<Deployment>(deployment("orphan", 2, "v1"))
        .await;
    world.until_available("orphan", 2).await;
    let sets = world.names::<ReplicaSet>().await;
    assert_eq!(
        sets.iter().filter(|s| s.starts_with("orphan")).count(),
        1,
        "{sets:?}"
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_is_furnished_and_goes_with_all_it_holds() {
    let world = World::new(&[4]).await;
    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    let name = "team";
    namespaces
        .create(
            &PostParams::default(),
            &object(json!({"metadata": {"name": name}})),
        )
        .await
        .expect("a namespace");
    let accounts: Api<ServiceAccount> = Api::namespaced(world.client.clone(), name);
    world
        .until(accounts, "default", |a: Option<&ServiceAccount>| {
            a.is_some()
        })
        .await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), name);
    maps.create(
        &PostParams::default(),
        &object(json!({"metadata": {"name": "m"}, "data": {"a": "b"}})),
    )
    .await
    .expect("a config map");
    let deployments: Api<Deployment> = Api::namespaced(world.client.clone(), name);
    deployments
        .create(&PostParams::default(), &object(deployment("web", 2, "v1")))
        .await
        .expect("a deployment");
    let running =
        |d: Option<&Deployment>| d.and_then(|d| d.status.as_ref()?.available_replicas) == Some(2);
    world.until(deployments.clone(), "web", running).await;
    namespaces
        .delete(name, &DeleteParams::default())
        .await
        .expect("it is deleted");
    world.until_gone(namespaces, name).await;
    assert!(
        maps.list(&ListParams::default())
            .await
            .expect("a list")
            .items
            .is_empty()
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_gets_addresses_of_its_own() {
    let world = World::new(&[1, 1, 1]).await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let has = |n: Option<&Node>| n.is_some_and(|n| cidr(n).is_some());
    let mut cidrs = Vec::new();
    for name in ["node-0", "node-1", "node-2"] {
        let node = world.until(nodes.clone(), name, has).await;
        cidrs.extend(node.and_then(|n| cidr(&n)));
    }
    assert_eq!(
        cidrs,
        ["100.64.0.0/18", "100.64.64.0/18", "100.64.128.0/18"]
    );
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_planes_take_turns() {
    let mut world = World::led_by(&[1], "first").await;
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), "kube-system");
    let locks = ["kube-scheduler", "kube-controller-manager"];
    let held = |by: &'static str| {
        move |l: Option<&Lease>| {
            let spec = l.and_then(|l| l.spec.as_ref());
            spec.and_then(|s| s.holder_identity.as_deref()) == Some(by)
        }
    };
    for lock in locks {
        world.until(leases.clone(), lock, held("first")).await;
    }
    world.create::<Deployment>(deployment("one", 2, "v1")).await;
    world.until_available("one", 2).await;
    world.hand_over("second").await;
    for lock in locks {
        let lease = world.until(leases.clone(), lock, held("second")).await;
        let spec = lease.and_then(|l| l.spec).unwrap_or_default();
        assert_eq!(spec.lease_transitions, Some(1), "{lock}");
        assert_eq!(spec.lease_duration_seconds, Some(15));
    }
    world.create::<Deployment>(deployment("two", 2, "v1")).await;
    world.until_available("two", 2).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_held_to_the_disruption_budget() {
    let world = World::new(&[4]).await;
    world.create::<Deployment>(deployment("web", 3, "v1")).await;
    world.until_available("web", 3).await;
    world
        .create::<PodDisruptionBudget>(json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "web"},
            "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "web"}}}
        }))
        .await;
    let allows = |count: i32, generation: i64| {
        move |b: Option<&PodDisruptionBudget>| {
            let status = b.and_then(|b| b.status.as_ref());
            status.is_some_and(|s| {
                s.observed_generation == Some(generation)
                    && s.disruptions_allowed == Some(count)
                    && (s.expected_pods, s.current_healthy) == (Some(3), Some(3))
            })
        }
    };
    let budgets = world.api::<PodDisruptionBudget>();
    world.until(budgets.clone(), "web", allows(0, 1)).await;
    let pods = world.api::<Pod>();
    let names = world.names::<Pod>().await;
    let refused = pods.evict(&names[0], &EvictParams::default()).await;
    let Err(kube::Error::Api(status)) = refused else {
        panic!("the budget allows none: {refused:?}");
    };
    assert_eq!(status.code, 429);
    let cause = &status.details.as_ref().expect("details").causes[0];
    assert_eq!(cause.reason, "DisruptionBudget");
    assert_eq!(
        cause.message,
        "The disruption budget web needs 3 healthy pods and has 3 currently"
    );

    let one = json!({"spec": {"maxUnavailable": 1}});
    world.patch::<PodDisruptionBudget>("web", one).await;
    for name in names {
        // Each waits until the replacement of the one before is ready, as a drain does.
        world.until(budgets.clone(), "web", allows(1, 2)).await;
        pods.evict(&name, &EvictParams::default())
            .await
            .expect("one may go");
        world.until_gone(pods.clone(), &name).await;
    }
    world.until(budgets, "web", allows(1, 2)).await;
    world.until_available("web", 3).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_is_replaced_and_welcome_back() {
    let mut world = World::impatient(&[4, 4, 4], Duration::from_secs(3)).await;
    let mut web = deployment("web", 3, "v1");
    web["spec"]["template"]["spec"]["tolerations"] = json!([
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    ]);
    world.create::<Service>(service("web")).await;
    world.create::<Deployment>(web).await;
    world.until_available("web", 3).await;
    let pods = world.api::<Pod>();
    let all = pods.list(&ListParams::default()).await.expect("pods");
    let on = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone());
    let lost = all.iter().find(|p| on(p).as_deref() == Some("node-0"));
    let lost = lost.expect("replicas are spread").name_any();

    world.kill(0);
    let nodes: Api<Node> = Api::all(world.client.clone());
    let told = |n: Option<&Node>| taints(n).contains(&"NoExecute".to_owned());
    world.until(nodes.clone(), "node-0", told).await;
    let leaving = |p: Option<&Pod>| p.is_none_or(|p| p.metadata.deletion_timestamp.is_some());
    world.until(pods.clone(), &lost, leaving).await;
    world.until_available("web", 3).await;
    let slices = world.api::<EndpointSlice>();
    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    let slice = slices.list(&of_web).await.expect("slices").items[0].name_any();
    let elsewhere = |s: Option<&EndpointSlice>| {
        let endpoints = s.and_then(|s| s.endpoints.as_ref()).into_iter().flatten();
        let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true));
        let nodes: Vec<_> = ready.map(|e| e.node_name.as_deref()).collect();
        nodes.len() == 3 && !nodes.contains(&Some("node-0"))
    };
    world.until(slices, &slice, elsewhere).await;

    world.revive(0);
    world.until_gone(pods, &lost).await;
    let clean = |n: Option<&Node>| taints(n).is_empty();
    world.until(nodes, "node-0", clean).await;
    world.until_available("web", 3).await;
    assert_eq!(world.names::<Pod>().await.len(), 3, "nothing runs twice");
    world.stop().await;
}

/// The effects of a node's taints.
fn taints(node: Option<&Node>) -> Vec<String> {
    let spec = node.and_then(|n| n.spec.as_ref());
    let taints = spec.and_then(|s| s.taints.as_ref()).into_iter().flatten();
    taints.map(|t| t.effect.clone()).collect()
}

fn cidr(node: &Node) -> Option<String> {
    node.spec.as_ref()?.pod_cidr.clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_replicas_come_up_and_are_listed() {
    let world = World::new(&[100]).await;
    world.create::<Service>(service("web")).await;
    world.create::<Deployment>(deployment("web", 1, "v1")).await;
    world.until_available("web", 1).await;
    world
        .patch::<Deployment>("web", json!({"spec": {"replicas": 1000}}))
        .await;
    world.until_available("web", 1000).await;
    let selector = ListParams::default().labels("kubernetes.io/service-name=web");
    let full = async {
        loop {
            let slices = world
                .api::<EndpointSlice>()
                .list(&selector)
                .await
                .expect("slices");
            let ready = slices
                .iter()
                .flat_map(|s| s.endpoints.iter().flatten())
                .count();
            if ready == 1000 {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), full)
        .await
        .expect("all endpoints in time");
    world.stop().await;
}

//! The node over time: registration, restarts, what changes under running pods, what is left on the disk.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn the_node_registers_itself_and_is_adopted_again() {
    let mut world = World::start().await;
    let nodes: Api<Node> = Api::all(world.client.clone());
    let node = nodes.get("n1").await.expect("registered");
    let labels = node.metadata.labels.clone().expect("labels");
    assert_eq!(labels["kubernetes.io/os"], "linux");
    assert_eq!(labels["coracle.dev/runtime"], "wasm");
    let status = node.status.expect("a status");
    let ready = status
        .conditions
        .iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    assert!(ready, "{:?}", status.conditions);
    assert!(
        status
            .capacity
            .is_some_and(|capacity| capacity.contains_key("memory"))
    );
    let port = |node: &Node| {
        let endpoints = node.status.as_ref()?.daemon_endpoints.as_ref()?;
        endpoints
            .kubelet_endpoint
            .as_ref()
            .map(|endpoint| endpoint.port)
    };
    world.halt().await;
    world.boot().await;
    let again = nodes.get("n1").await.expect("registered");
    assert_eq!(again.metadata.uid, node.metadata.uid, "the same object");
    let endpoint = world.node.as_ref().expect("a node").endpoint();
    assert_eq!(port(&again), Some(i32::from(endpoint.port())));
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_come_back_after_the_process_ends() {
    let mut world = World::start().await;
    world
        .create("web", json!({"containers": [app("hello", json!({}))]}))
        .await;
    world
        .create(
            "done",
            json!({"restartPolicy": "Never", "containers": [app("show", json!({}))]}),
        )
        .await;
    let before = world.until("web", "ready", types::pod::is_ready).await;
    world.phase("done", "Succeeded").await;
    world.halt().await;
    let stopped = world.pods().get("web").await.expect("there");
    assert!(types::pod::is_ready(&stopped), "the API is told nothing");
    world.boot().await;
    let after = world
        .until("web", "restarted", |pod| {
            types::pod::is_ready(pod) && first(pod).is_some_and(|status| status.restart_count == 1)
        })
        .await;
    assert_eq!(after.metadata.uid, before.metadata.uid);
    assert_eq!(
        after.status.and_then(|status| status.pod_ip),
        before.status.and_then(|status| status.pod_ip)
    );
    assert_eq!(
        types::pod::phase(&world.pods().get("done").await.expect("there")),
        "Succeeded"
    );
    assert!(
        world.log("done", false).await.contains("args []"),
        "logs outlive the process"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_deleted_pod_stays_on_the_disk() {
    let world = World::start().await;
    world
        .create(
            "gone",
            json!({"volumes": [{"name": "work", "emptyDir": {}}], "containers": [app("show", json!({
        "env": [{"name": "STAY_MS", "value": "600000"}],
        "volumeMounts": [{"name": "work", "mountPath": "/work"}]}))]}),
        )
        .await;
    world.until("gone", "ready", types::pod::is_ready).await;
    let entries = |name: &str| {
        let directory = world.data.path().join("node").join(name);
        std::fs::read_dir(directory)
            .map(Iterator::count)
            .unwrap_or(0)
    };
    // The log's directory comes with its first line.
    let there = async {
        while (entries("pods"), entries("logs")) != (1, 1) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, there)
        .await
        .expect("files of a running pod");
    let gone = world.gone("gone");
    let delete = async {
        world
            .pods()
            .delete("gone", &DeleteParams::default())
            .await
            .expect("deleted")
    };
    tokio::join!(gone, delete);
    let cleaned = async {
        while entries("pods") + entries("logs") > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, cleaned)
        .await
        .expect("cleaned");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_outgrows_its_limit_is_the_end_of_the_pod() {
    let world = World::start().await;
    world
        .create(
            "full",
            json!({"volumes": [{"name": "work", "emptyDir": {"sizeLimit": "1"}}], "containers": [app("show", json!({
                "env": [
                    {"name": "STAY_MS", "value": "600000"},
                    {"name": "POD_NAME", "value": "more than one byte"},
                    {"name": "WRITE_FILE", "value": "/work/out"}],
                "volumeMounts": [{"name": "work", "mountPath": "/work"}]}))]}),
        )
        .await;
    let pod = world.phase("full", "Failed").await;
    let status = pod.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Evicted"));
    let message = status.message.unwrap_or_default();
    assert_eq!(
        message,
        "Usage of EmptyDir volume \"work\" exceeds the limit \"1\". "
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_config_map_reaches_a_running_pod() {
    let world = World::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(world.client.clone());
    let map = |value: &str| {
        let map = json!({"metadata": {"name": "settings"}, "data": {"a": value}});
        serde_json::from_value(map).expect("well formed")
    };
    maps.create(&PostParams::default(), &map("old"))
        .await
        .expect("created");
    world
        .create(
            "reader",
            json!({"volumes": [{"name": "conf", "configMap": {"name": "settings"}}], "containers": [app("show", json!({
                "env": [{"name": "STAY_MS", "value": "600000"}],
                "volumeMounts": [{"name": "conf", "mountPath": "/etc/conf"}]}))]}),
        )
        .await;
    let pod = world.until("reader", "ready", types::pod::is_ready).await;
    maps.replace("settings", &PostParams::default(), &map("new"))
        .await
        .expect("replaced");
    let uid = pod.metadata.uid.expect("a uid");
    let file = world
        .data
        .path()
        .join("node/pods")
        .join(uid)
        .join("volumes/conf/a");
    let changed = async {
        while std::fs::read_to_string(&file).expect("always there") != "new" {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, changed)
        .await
        .expect("brought up to date");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_image_replaces_the_container_in_place() {
    let world = World::start().await;
    world
        .create("web", json!({"containers": [app("hello", json!({}))]}))
        .await;
    world.until("web", "ready", types::pod::is_ready).await;
    let patch = json!({"spec": {"containers": [{"name": "app", "image": "guests.local/show"}]}});
    let params = kube::api::PatchParams::default();
    let patch = kube::api::Patch::Strategic(patch);
    world
        .pods()
        .patch("web", &params, &patch)
        .await
        .expect("patched");
    world
        .until("web", "replaced", |pod| {
            first(pod)
                .is_some_and(|status| status.restart_count > 0 && status.image_id.contains("show"))
        })
        .await;
}

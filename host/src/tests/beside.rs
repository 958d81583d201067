//! What runs beside a container: commands of probes and hooks, and containers that come later.

use super::*;

fn busybox(more: Value) -> Value {
    app("toolbox", more)
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_tell_whether_a_container_is_ready_and_whether_it_lives() {
    let world = World::start().await;
    let work = json!([{"name": "work", "mountPath": "/work"}]);
    let spec = json!({
        "volumes": [{"name": "work", "emptyDir": {}}],
        "containers": [busybox(json!({
            "command": ["sh", "-c", "touch /work/alive; sleep 1000"],
            "volumeMounts": work,
            "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo up > /work/started"]}}},
            "readinessProbe": {"exec": {"command": ["cat", "/work/started"]}, "periodSeconds": 1},
            "livenessProbe": {"periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1,
                "exec": {"command": ["sh", "-c", "test -e /work/dead && echo dead && exit 1; exit 0"]}},
            "terminationMessagePolicy": "FallbackToLogsOnError"})),
            json!({"name": "killer", "image": "guests.local/toolbox", "volumeMounts": work,
                "command": ["sh", "-c", "sleep 3; echo x > /work/dead; sleep 1000"]})],
        "terminationGracePeriodSeconds": 0});
    world.create("probed", spec).await;
    world.until("probed", "ready", types::pod::is_ready).await;
    let restarted = |pod: &Pod| first(pod).is_some_and(|app| app.restart_count > 0);
    world.until("probed", "restarted", restarted).await;
    let told = world.told("probed", &["Unhealthy", "Killing"]).await;
    let unhealthy = "Liveness probe failed: dead\n";
    assert!(
        told.iter().any(|(_, message)| message == unhealthy),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_whose_command_fails_is_told() {
    let world = World::start().await;
    let hook = |name: &str| json!({"lifecycle": {name: {"exec": {"command": ["sh", "-c", "echo no; exit 5"]}}}});
    world
        .create(
            "begins",
            json!({"containers": [app("hello", hook("postStart"))]}),
        )
        .await;
    let message = world.waits("begins", "RunContainerError").await;
    assert_eq!(
        message,
        "PostStartHookError: command 'sh -c echo no; exit 5' exited with 5: no\n"
    );
    world
        .create(
            "ends",
            json!({"containers": [app("hello", hook("preStop"))]}),
        )
        .await;
    world.until("ends", "ready", types::pod::is_ready).await;
    let deleted = world.pods().delete("ends", &DeleteParams::default()).await;
    deleted.expect("deleted");
    let told = world.told("ends", &["FailedPreStopHook"]).await;
    let failed = "PreStopHook failed: command 'sh -c echo no; exit 5' exited with 5: no\n";
    assert!(
        told.iter().any(|(_, message)| message == failed),
        "{told:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ephemeral_container_runs_once_beside_the_others() {
    let mut world = World::start().await;
    world
        .create("web", json!({"containers": [app("hello", json!({}))]}))
        .await;
    world.until("web", "ready", types::pod::is_ready).await;
    let debug = json!({"spec": {"ephemeralContainers": [{"name": "debug", "image": "guests.local/toolbox",
        "targetContainerName": "app", "command": ["sh", "-c", "hostname; exit 2"]}]}});
    world
        .pods()
        .patch_ephemeral_containers(
            "web",
            &kube::api::PatchParams::default(),
            &kube::api::Patch::Strategic(debug),
        )
        .await
        .expect("added");
    let ended = |pod: &Pod| {
        let statuses = pod.status.as_ref()?.ephemeral_container_statuses.as_ref()?;
        statuses.first()?.state.as_ref()?.terminated.clone()
    };
    let pod = world
        .until("web", "looked at", |pod| ended(pod).is_some())
        .await;
    assert_eq!(ended(&pod).map(|exit| exit.exit_code), Some(2));
    assert!(types::pod::is_ready(&pod), "nobody waits for it");
    let params = LogParams {
        container: Some("debug".to_owned()),
        ..LogParams::default()
    };
    // The log's last lines are written by a thread of their own, perhaps after the status.
    let written = async {
        while world.pods().logs("web", &params).await.expect("a log") != "web\n" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written)
        .await
        .expect("what it said is in its log");
    // The next process of the node does not run it again.
    world.halt().await;
    world.boot().await;
    let again = |pod: &Pod| first(pod).is_some_and(|app| app.restart_count == 1 && app.ready);
    let pod = world.until("web", "back", again).await;
    assert_eq!(ended(&pod).map(|exit| exit.exit_code), Some(2));
}

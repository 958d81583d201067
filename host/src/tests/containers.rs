//! Containers, from their image to their end, with the reasons Kubernetes gives.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_http_pod_becomes_ready_and_goes_when_deleted() {
    let world = World::start().await;
    world
        .create(
            "web",
            json!({"containers": [app("hello", json!({
        "readinessProbe": {"httpGet": {"port": 8080, "path": "/"}, "periodSeconds": 1}}))]}),
        )
        .await;
    let pod = world.until("web", "ready", types::pod::is_ready).await;
    for type_ in [
        "PodReadyToStartContainers",
        "Initialized",
        "ContainersReady",
        "PodScheduled",
    ] {
        assert_eq!(condition(&pod, type_), "True", "{type_}");
    }
    let status = pod.status.as_ref().expect("a status");
    for condition in status.conditions.iter().flatten() {
        let said = (&condition.reason, &condition.message);
        assert_eq!(said, (&None, &None), "of before: {condition:?}");
    }
    assert!(
        status
            .pod_ip
            .as_ref()
            .is_some_and(|ip| ip.starts_with("100.64.")),
        "{status:?}"
    );
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    world.told("web", &["Pulled", "Created", "Started"]).await;
    let gone = world.gone("web");
    let delete = async {
        world
            .pods()
            .delete("web", &DeleteParams::default())
            .await
            .expect("deleted")
    };
    tokio::join!(gone, delete);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_sees_its_environment_and_volumes_and_completes() {
    let world = World::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(world.client.clone());
    let secrets: Api<Secret> = Api::default_namespaced(world.client.clone());
    let map =
        json!({"metadata": {"name": "settings"}, "data": {"colour": "red", "app.conf": "a = 1"}});
    maps.create(
        &PostParams::default(),
        &serde_json::from_value(map).expect("well formed"),
    )
    .await
    .expect("created");
    let secret = json!({"metadata": {"name": "keys"}, "data": {"token": "aHVzaA=="}});
    secrets
        .create(
            &PostParams::default(),
            &serde_json::from_value(secret).expect("well formed"),
        )
        .await
        .expect("created");
    world.create("show", json!({
        "restartPolicy": "Never",
        "volumes": [
            {"name": "conf", "configMap": {"name": "settings"}},
            {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
            {"name": "work", "emptyDir": {}}],
        "containers": [app("show", json!({
            "args": ["--colour=$(COLOUR)"],
            "env": [
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "token"}}},
                {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                {"name": "SHOW_DIRS", "value": "/etc/conf:/etc/info"},
                {"name": "WRITE_FILE", "value": "/work/out"}],
            "resources": {"limits": {"cpu": "500m"}},
            "volumeMounts": [
                {"name": "conf", "mountPath": "/etc/conf"},
                {"name": "info", "mountPath": "/etc/info"},
                {"name": "work", "mountPath": "/work"}]}))]})).await;
    let pod = world.phase("show", "Succeeded").await;
    let exit = first(&pod)
        .and_then(|status| status.state.clone()?.terminated)
        .expect("an exit");
    assert_eq!(
        (exit.exit_code, exit.reason.as_deref()),
        (0, Some("Completed"))
    );
    assert_eq!(condition(&pod, "Ready"), "False");
    let log = world.log("show", false).await;
    for line in [
        "args [\"--colour=red\"]",
        "env TOKEN=hush",
        "env POD_NAME=show",
        "env CPUS=500",
        "env KUBERNETES_SERVICE_HOST=10.96.0.1",
        "file /etc/conf/app.conf \"a = 1\"",
        "file /etc/info/labels \"app=\\\"show\\\"\"",
        "wrote /work/out",
    ] {
        assert!(log.lines().any(|logged| logged == line), "{line} in {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crashing_process_is_restarted_with_back_off_and_shows_why() {
    let world = World::start().await;
    world
        .create(
            "crash",
            json!({"containers": [app("crash", json!({"args": ["trap"]}))]}),
        )
        .await;
    let message = world.waits("crash", "CrashLoopBackOff").await;
    assert!(
        message.starts_with("back-off 10s restarting failed container=app pod=crash_default("),
        "{message}"
    );
    let pod = world.pods().get("crash").await.expect("there");
    let status = first(&pod).expect("a container");
    assert_eq!(status.restart_count, 1);
    let last = status
        .last_state
        .clone()
        .and_then(|state| state.terminated)
        .expect("an exit");
    assert_eq!(
        (last.exit_code, last.reason.as_deref()),
        (134, Some("Error"))
    );
    assert!(
        last.message
            .as_deref()
            .is_some_and(|message| message.contains("unreachable")),
        "{last:?}"
    );
    for previous in [false, true] {
        let log = world.log("crash", previous).await;
        assert!(
            log.contains("about to end\n") && log.contains("this line is on stderr\n"),
            "{log}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_hog_is_killed_and_said_so() {
    let world = World::start().await;
    world
        .create(
            "hog",
            json!({"restartPolicy": "Never", "containers": [app("hog", json!({
        "args": ["memory"], "resources": {"limits": {"memory": "32Mi"}}}))]}),
        )
        .await;
    let pod = world.phase("hog", "Failed").await;
    let exit = first(&pod)
        .and_then(|status| status.state.clone()?.terminated)
        .expect("an exit");
    assert_eq!(
        (exit.exit_code, exit.reason.as_deref()),
        (137, Some("OOMKilled"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_pulled_configured_or_run_says_why() {
    let world = World::start().await;
    let file = world.data.path().join("not.wasm");
    std::fs::write(&file, b"\0asm\x01\0\0\0").expect("written");
    let image = format!("file://{}", file.display());
    world
        .create(
            "missing",
            json!({"containers": [{"name": "app", "image": "file:///no/such.wasm"}]}),
        )
        .await;
    world
        .create(
            "never",
            json!({"containers": [
        {"name": "app", "image": "example.com/app", "imagePullPolicy": "Never"}]}),
        )
        .await;
    world
        .create(
            "empty",
            json!({"containers": [{"name": "app", "image": image}]}),
        )
        .await;
    world.create("unset", json!({"restartPolicy": "Never", "containers": [app("show", json!({
        "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "later", "key": "a"}}}]}))]})).await;
    let message = world.waits("missing", "ErrImagePull").await;
    assert!(message.contains("/no/such.wasm"), "{message}");
    let message = world.waits("missing", "ImagePullBackOff").await;
    assert!(
        message.starts_with("Back-off pulling image \"file:///no/such.wasm\""),
        "{message}"
    );
    world.waits("never", "ErrImageNeverPull").await;
    let message = world.waits("empty", "CreateContainerError").await;
    assert!(message.contains("exports none of"), "{message}");
    let message = world.waits("unset", "CreateContainerConfigError").await;
    assert_eq!(message, "configmap \"later\" not found");
    let maps: Api<ConfigMap> = Api::default_namespaced(world.client.clone());
    let map = json!({"metadata": {"name": "later"}, "data": {"a": "now"}});
    maps.create(
        &PostParams::default(),
        &serde_json::from_value(map).expect("well formed"),
    )
    .await
    .expect("created");
    world.phase("unset", "Succeeded").await;
    assert!(world.log("unset", false).await.contains("env A=now\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_fails_the_pod_and_names_the_field() {
    let world = World::start().await;
    world
        .create(
            "shared",
            json!({"hostNetwork": true, "containers": [app("hello", json!({
        "livenessProbe": {"grpc": {"port": 80}}}))]}),
        )
        .await;
    let pod = world.phase("shared", "Failed").await;
    let status = pod.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Unsupported"));
    let message = status.message.unwrap_or_default();
    assert!(
        message.contains("spec.hostNetwork:") && message.contains("livenessProbe.grpc:"),
        "{message}"
    );
    world
        .pods()
        .delete("shared", &DeleteParams::default())
        .await
        .expect("deleted");
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_run_first_and_a_sidecar_does_not_keep_the_pod_from_ending() {
    let world = World::start().await;
    let named = |name: &str, mut container: Value| {
        container["name"] = json!(name);
        container
    };
    world
        .create(
            "chain",
            json!({
        "restartPolicy": "Never",
        "initContainers": [
            named("first", app("show", json!({}))),
            named("beside", app("hello", json!({"restartPolicy": "Always"})))],
        "containers": [named("last", app("show", json!({})))]}),
        )
        .await;
    let pod = world.phase("chain", "Succeeded").await;
    let status = pod.status.expect("a status");
    let init = status.init_container_statuses.expect("init containers");
    assert!(
        init.iter().all(|status| status
            .state
            .as_ref()
            .is_some_and(|state| state.terminated.is_some())),
        "{init:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_liveness_probe_restarts_the_container() {
    let world = World::start().await;
    world
        .create(
            "sick",
            json!({"containers": [app("hello", json!({"livenessProbe":
        {"tcpSocket": {"port": 1}, "periodSeconds": 1, "failureThreshold": 1},
        "ports": [{"containerPort": 8080}]}))]}),
        )
        .await;
    world
        .until("sick", "restarted", |pod| {
            first(pod).is_some_and(|status| status.restart_count > 0)
        })
        .await;
    let told = world.told("sick", &["Unhealthy", "Killing"]).await;
    assert!(
        told.iter().any(
            |(reason, text)| reason == "Unhealthy" && text.starts_with("Liveness probe failed")
        ),
        "{told:?}"
    );
    assert!(
        told.iter()
            .any(|(_, text)| text == "Container app failed liveness probe, will be restarted"),
        "{told:?}"
    );
}

//! The node against the real API server (memory store) and real guests: what a person sees of a pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Event, Node, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};

use crate::{Config, Handle, NodeTls, start};

const HELLO: &[u8] = include_bytes!("../../guests/built/hello-http.wasm");
const SHOW: &[u8] = include_bytes!("../../guests/built/show.wasm");
const CRASH: &[u8] = include_bytes!("../../guests/built/crash.wasm");
const HOG: &[u8] = include_bytes!("../../guests/built/hog.wasm");

/// Compiling a guest in a debug build on a busy machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

struct World {
    api: api::Handle,
    client: kube::Client,
    node: Option<Handle>,
    data: tempfile::TempDir,
}

impl World {
    async fn start() -> World {
        // A second install in the same process is refused: fine.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api = api::start(api::Config::in_memory())
            .await
            .expect("the API server starts");
        let client = kube::Client::new(api.router_as(api::auth::User::admin()), "default");
        let data = tempfile::tempdir().expect("a temporary directory");
        let mut world = World {
            api,
            client,
            node: None,
            data,
        };
        world.boot().await;
        world
    }

    /// A process of the node, on the data directory of the one before.
    async fn boot(&mut self) {
        let identity = self
            .api
            .pki()
            .node("n1", &[[127, 0, 0, 1].into()])
            .expect("a certificate");
        let tls = NodeTls {
            ca_pem: self.api.pki().ca_pem().as_bytes().to_vec(),
            cert_pem: identity.certificate_pem.as_bytes().to_vec(),
            key_pem: identity.key_pem.as_bytes().to_vec(),
        };
        let bundled = [
            ("hello", HELLO),
            ("show", SHOW),
            ("crash", CRASH),
            ("hog", HOG),
        ];
        let node = start(Config {
            bundled: bundled
                .map(|(name, bytes)| (format!("guests.local/{name}"), bytes))
                .to_vec(),
            ..Config::new(
                "n1".to_owned(),
                self.data.path().join("node"),
                self.client.clone(),
                tls,
            )
        })
        .await
        .expect("the node starts");
        tokio::time::timeout(PATIENCE, node.ready())
            .await
            .expect("the node becomes ready");
        self.node = Some(node);
    }

    async fn halt(&mut self) {
        if let Some(node) = self.node.take() {
            node.shutdown(Duration::from_secs(5)).await;
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::default_namespaced(self.client.clone())
    }

    /// A pod bound to the node, as the scheduler would have it.
    async fn create(&self, name: &str, mut spec: Value) {
        spec["nodeName"] = json!("n1");
        let pod = json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec});
        let pod = serde_json::from_value(pod).expect("the test's pod is well formed");
        self.pods()
            .create(&PostParams::default(), &pod)
            .await
            .expect("created");
    }

    async fn until(&self, name: &str, what: &str, condition: impl Fn(&Pod) -> bool) -> Pod {
        let met = await_condition(self.pods(), name, |pod: Option<&Pod>| {
            pod.is_some_and(&condition)
        });
        match tokio::time::timeout(PATIENCE, met).await {
            Ok(Ok(Some(pod))) => pod,
            _ => panic!("{name} never was {what}: {}", self.picture(name).await),
        }
    }

    async fn phase(&self, name: &str, phase: &str) -> Pod {
        self.until(name, phase, |pod| types::pod::phase(pod) == phase)
            .await
    }

    /// A container waits for this reason.
    async fn waits(&self, name: &str, reason: &str) -> String {
        let waiting = |pod: &Pod| {
            let state = first(pod)?.state.clone()?.waiting?;
            (state.reason.as_deref() == Some(reason)).then(|| state.message.unwrap_or_default())
        };
        let pod = self.until(name, reason, |pod| waiting(pod).is_some()).await;
        waiting(&pod).unwrap_or_default()
    }

    async fn gone(&self, name: &str) {
        let pod = self.pods().get(name).await.expect("there");
        let uid = pod.metadata.uid.expect("a uid");
        let gone = await_condition(
            self.pods(),
            name,
            kube::runtime::conditions::is_deleted(&uid),
        );
        tokio::time::timeout(PATIENCE, gone)
            .await
            .expect("in time")
            .expect("watched");
    }

    async fn log(&self, name: &str, previous: bool) -> String {
        let params = LogParams {
            previous,
            ..LogParams::default()
        };
        self.pods().logs(name, &params).await.expect("a log")
    }

    async fn events(&self, name: &str) -> Vec<(String, String)> {
        let api: Api<Event> = Api::default_namespaced(self.client.clone());
        let params = ListParams::default().fields(&format!("involvedObject.name={name}"));
        let events = api.list(&params).await.expect("listed").items.into_iter();
        events
            .map(|event| {
                (
                    event.reason.unwrap_or_default(),
                    event.message.unwrap_or_default(),
                )
            })
            .collect()
    }

    async fn picture(&self, name: &str) -> String {
        let pod = self
            .pods()
            .get_opt(name)
            .await
            .ok()
            .flatten()
            .and_then(|pod| pod.status);
        format!(
            "{} {:?}",
            serde_json::to_string_pretty(&pod).unwrap_or_default(),
            self.events(name).await
        )
    }
}

fn first(pod: &Pod) -> Option<&ContainerStatus> {
    pod.status.as_ref()?.container_statuses.as_ref()?.first()
}

fn condition(pod: &Pod, type_: &str) -> String {
    let conditions = pod
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten());
    let mut found = conditions.filter(|condition| condition.type_ == type_);
    found
        .next()
        .map(|condition| condition.status.clone())
        .unwrap_or_default()
}

fn app(image: &str, more: Value) -> Value {
    let mut container = json!({"name": "app", "image": format!("guests.local/{image}")});
    if let (Some(container), Some(more)) = (container.as_object_mut(), more.as_object()) {
        container.extend(more.clone());
    }
    container
}

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
    assert!(
        status
            .pod_ip
            .as_ref()
            .is_some_and(|ip| ip.starts_with("100.64.")),
        "{status:?}"
    );
    assert_eq!(status.host_ip.as_deref(), Some("127.0.0.1"));
    let reasons: Vec<String> = world
        .events("web")
        .await
        .into_iter()
        .map(|(reason, _)| reason)
        .collect();
    for reason in ["Pulled", "Created", "Started"] {
        assert!(
            reasons.iter().any(|told| told == reason),
            "{reason} in {reasons:?}"
        );
    }
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
        "livenessProbe": {"exec": {"command": ["true"]}}}))]}),
        )
        .await;
    let pod = world.phase("shared", "Failed").await;
    let status = pod.status.expect("a status");
    assert_eq!(status.reason.as_deref(), Some("Unsupported"));
    let message = status.message.unwrap_or_default();
    assert!(
        message.contains("spec.hostNetwork:") && message.contains("livenessProbe.exec:"),
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
    let told = world.events("sick").await;
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
    assert_eq!((entries("pods"), entries("logs")), (1, 1));
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

/// `cargo nextest run -p host --run-ignored only a_thousand` prints how long a thousand pods take and what they cost.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_thousand_idle_http_pods() {
    let world = World::start().await;
    world
        .create("warm", json!({"containers": [app("hello", json!({}))]}))
        .await;
    world.until("warm", "ready", types::pod::is_ready).await;
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:").map(str::to_owned));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    let before = resident();
    let began = tokio::time::Instant::now();
    for n in 0..1_000 {
        world
            .create(
                &format!("web-{n}"),
                json!({"containers": [app("hello", json!({}))]}),
            )
            .await;
    }
    let created = began.elapsed();
    let ready = async {
        loop {
            let pods = world
                .pods()
                .list(&ListParams::default())
                .await
                .expect("listed");
            if pods
                .items
                .iter()
                .filter(|pod| types::pod::is_ready(pod))
                .count()
                > 1_000
            {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, ready)
        .await
        .expect("in time");
    println!("created in {created:?}, all ready in {:?}", began.elapsed());
    println!(
        "{} KiB per pod, API objects included",
        (resident() - before) / 1_000
    );
}

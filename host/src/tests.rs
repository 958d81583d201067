//! The node against the real API server (memory store) and real guests: what a person sees of a pod.

mod beside;
mod containers;
mod links;
mod node;

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Event, Node, Pod, Secret};
use kube::api::{Api, DeleteParams, ListParams, LogParams, PostParams};
use kube::runtime::wait::await_condition;
use serde_json::{Value, json};

use crate::{Certificates, Config, Handle, NodeTls, start};

const HELLO: &[u8] = include_bytes!("../../guests/built/hello-http.wasm");
const SHOW: &[u8] = include_bytes!("../../guests/built/show.wasm");
const CRASH: &[u8] = include_bytes!("../../guests/built/crash.wasm");
const HOG: &[u8] = include_bytes!("../../guests/built/hog.wasm");
const TOOLBOX: crate::Toolbox = crate::Toolbox {
    component: include_bytes!("../../guests/built/toolbox.wasm"),
    applets: include_str!("../../guests/toolbox/applets.txt"),
};

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
        let tls = Certificates::new(&NodeTls {
            ca_pem: self.api.pki().ca_pem().as_bytes().to_vec(),
            cert_pem: identity.certificate_pem.as_bytes().to_vec(),
            key_pem: identity.key_pem.as_bytes().to_vec(),
        })
        .expect("certificates that fit");
        let bundled = [
            ("hello", HELLO),
            ("show", SHOW),
            ("crash", CRASH),
            ("hog", HOG),
            ("toolbox", TOOLBOX.component),
        ];
        let node = start(Config {
            bundled: bundled
                .map(|(name, bytes)| (format!("guests.local/{name}"), bytes))
                .to_vec(),
            toolbox: Some(TOOLBOX),
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

    /// Waits until the pod's Events have all these reasons (Events may lag); returns reasons and messages.
    async fn told(&self, name: &str, reasons: &[&str]) -> Vec<(String, String)> {
        let told = async {
            loop {
                let events = self.events(name).await;
                let is_told = |reason: &&str| events.iter().any(|(told, _)| told == reason);
                if reasons.iter().all(is_told) {
                    return events;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, told)
            .await
            .unwrap_or_else(|_| panic!("Events with {reasons:?} of {name}"))
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

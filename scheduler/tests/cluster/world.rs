//! A cluster for one test: the real API server in memory, this crate, and nodes whose pods are ready as soon as they are
//! bound. Everything a test waits for is waited for by watching, with a deadline.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use api::auth::User;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::{Condition, await_condition};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use scheduler::{Args, Config, Handle};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower::ServiceExt;

const DEADLINE: Duration = Duration::from_secs(60);
const HEARTBEAT: Duration = Duration::from_millis(500);

pub(crate) struct World {
    pub(crate) client: Client,
    api: api::Handle,
    scheduler: Handle,
    nodes: Vec<JoinHandle<()>>,
}

impl World {
    /// A cluster with nodes of that many cores.
    pub(crate) async fn new(cores: &[u32]) -> Self {
        Self::build(cores, None, Args::default()).await
    }

    /// The same, where nodes that are silent for so long are lost.
    pub(crate) async fn impatient(cores: &[u32], grace: Duration) -> Self {
        let args = Args {
            node_monitor_grace_period: grace,
            ..Args::default()
        };
        Self::build(cores, None, args).await
    }

    /// The node falls silent, and nothing on it changes any more.
    pub(crate) fn kill(&self, index: usize) {
        self.nodes[index].abort();
    }

    /// It is back, with whatever it ran.
    pub(crate) fn revive(&mut self, index: usize) {
        let name = format!("node-{index}");
        // Other addresses than before.
        let node = run_node(self.client.clone(), name, index + 16);
        self.nodes[index] = tokio::spawn(node);
    }

    /// The same, with a control plane that has to be elected.
    pub(crate) async fn led_by(cores: &[u32], identity: &str) -> Self {
        Self::build(cores, Some(identity), Args::default()).await
    }

    /// Starts another control plane and ends the one there was.
    pub(crate) async fn hand_over(&mut self, identity: &str) {
        let next = scheduler::start(config(&self.api, Some(identity)));
        std::mem::replace(&mut self.scheduler, next)
            .shutdown()
            .await;
    }

    async fn build(cores: &[u32], identity: Option<&str>, args: Args) -> Self {
        let api = api::start(api::Config::in_memory())
            .await
            .expect("the API server starts");
        let client = client(&api, User::admin());
        let scheduler = scheduler::start(Config {
            args,
            ..config(&api, identity)
        });
        let mut world = Self {
            client,
            api,
            scheduler,
            nodes: Vec::new(),
        };
        for (index, cores) in cores.iter().enumerate() {
            world
                .add_node(&format!("node-{index}"), index, *cores)
                .await;
        }
        world
    }

    async fn add_node(&mut self, name: &str, index: usize, cores: u32) {
        let node: Node = object(json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        }));
        let nodes: Api<Node> = Api::all(self.client.clone());
        nodes
            .create(&PostParams::default(), &node)
            .await
            .expect("a node");
        let status = json!({"status": {
            "allocatable": {"cpu": cores.to_string(), "memory": "64Gi", "pods": "5000"},
            "capacity": {"cpu": cores.to_string(), "memory": "64Gi", "pods": "5000"},
            "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
        }});
        nodes
            .patch_status(name, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .expect("the node's status");
        // Nodes begin tainted, until the controllers have seen that they are ready.
        let clean = |n: Option<&Node>| {
            n.and_then(|n| n.spec.as_ref())
                .is_none_or(|s| s.taints.iter().flatten().next().is_none())
        };
        self.until(nodes, name, clean).await;
        self.nodes.push(tokio::spawn(run_node(
            self.client.clone(),
            name.to_owned(),
            index,
        )));
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn create<K>(&self, value: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + serde::Serialize
            + Clone
            + Debug,
    {
        self.api::<K>()
            .create(&PostParams::default(), &object::<K>(value))
            .await
            .expect("it is created")
    }

    pub(crate) async fn patch<K>(&self, name: &str, patch: Value) -> K
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        self.api::<K>()
            .patch(name, &PatchParams::default(), &Patch::Strategic(&patch))
            .await
            .expect("it is patched")
    }

    /// Waits until the object is as it should be, and shows the cluster when it does not become so.
    pub(crate) async fn until<K>(
        &self,
        api: Api<K>,
        name: &str,
        condition: impl Condition<K>,
    ) -> Option<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
    {
        let waited = tokio::time::timeout(DEADLINE, await_condition(api, name, condition)).await;
        match waited {
            Ok(Ok(object)) => object,
            Ok(Err(error)) => panic!("waiting for {name}: {error}"),
            Err(_) => panic!("waited for {name} in vain\n{}", self.describe().await),
        }
    }

    pub(crate) async fn until_available(&self, name: &str, replicas: i32) -> Deployment {
        let done = move |d: Option<&Deployment>| {
            d.is_some_and(|d| {
                let status = d.status.clone().unwrap_or_default();
                status.observed_generation == d.metadata.generation
                    && status.available_replicas.unwrap_or(0) == replicas
                    && status.updated_replicas.unwrap_or(0) == replicas
                    && status.replicas.unwrap_or(0) == replicas
            })
        };
        self.until(self.api(), name, done)
            .await
            .expect("the deployment is there")
    }

    pub(crate) async fn until_gone<K>(&self, api: Api<K>, name: &str)
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug + Send + 'static,
    {
        self.until(api, name, |o: Option<&K>| o.is_none()).await;
    }

    pub(crate) async fn names<K>(&self) -> Vec<String>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let list = self
            .api::<K>()
            .list(&ListParams::default())
            .await
            .expect("a list");
        list.iter().map(ResourceExt::name_any).collect()
    }

    async fn describe(&self) -> String {
        let deployments = self.api::<Deployment>().list(&ListParams::default()).await;
        let sets = self.api::<ReplicaSet>().list(&ListParams::default()).await;
        let pods = self.api::<Pod>().list(&ListParams::default()).await;
        let events = self.api::<Event>().list(&ListParams::default()).await;
        let events: Vec<String> = events
            .iter()
            .flat_map(|e| &e.items)
            .map(|e| format!("{:?} {:?}", e.reason, e.message))
            .collect();
        let pods: Vec<String> = pods
            .iter()
            .flat_map(|p| &p.items)
            .take(20)
            .map(|p| {
                format!(
                    "{} on {:?}: {:?}",
                    p.name_any(),
                    p.spec.as_ref().and_then(|s| s.node_name.clone()),
                    p.status
                )
            })
            .collect();
        let status: Vec<String> = deployments
            .iter()
            .flat_map(|d| &d.items)
            .map(|d| format!("{:?}", d.status))
            .collect();
        let sets: Vec<String> = sets
            .iter()
            .flat_map(|d| &d.items)
            .map(|d| format!("{} {:?}", d.name_any(), d.status))
            .collect();
        format!("{status:#?}\n{sets:#?}\n{pods:#?}\n{events:#?}")
    }

    pub(crate) async fn stop(self) {
        for node in self.nodes {
            node.abort();
        }
        self.scheduler.shutdown().await;
        // Whatever the test was about: no component asked for what its role does not let it do.
        let request = http::Request::get("/metrics").body(Vec::new());
        let page = self.client.request_text(request.expect("a request")).await;
        let page = page.expect("the metrics");
        assert!(
            page.contains("apiserver_authorization_decisions_total{decision=\"denied\"} 0\n"),
            "{page}"
        );
        self.api.shutdown().await;
    }
}

/// Every component with its own identity, as `coracle up` gives them.
pub(crate) fn config(api: &api::Handle, identity: Option<&str>) -> Config {
    let router = api.router();
    Config {
        client: client(api, User::component("system:kube-controller-manager")),
        scheduler_client: client(api, User::component("system:kube-scheduler")),
        controller_client: Arc::new(move |name| {
            client_of(router.clone(), User::service_account("kube-system", name))
        }),
        identity: identity.map(str::to_owned),
        args: Args::default(),
    }
}

fn client(api: &api::Handle, user: User) -> Client {
    client_of(api.router(), user)
}

fn client_of(router: axum::Router, user: User) -> Client {
    let service = router.map_request(move |request: http::Request<kube::client::Body>| {
        let mut request = request.map(axum::body::Body::new);
        request.extensions_mut().insert(user.clone());
        request
    });
    Client::new(service, "default")
}

pub(crate) fn object<K: DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the test's object is well formed")
}

/// A node on which everything is ready at once and ends at once.
async fn run_node(client: Client, name: String, index: usize) {
    let all: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={name}"));
    let mut known = BTreeMap::<String, usize>::new();
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut pods = std::pin::pin!(watcher(all, config).default_backoff().applied_objects());
    loop {
        let pod = tokio::select! {
            pod = pods.next() => pod,
            _ = heartbeat.tick() => {
                live(&client, &name).await;
                continue;
            }
        };
        let Some(pod) = pod else { return };
        let Ok(pod) = pod else { continue };
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
        let uid = pod.uid().unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            tokio::spawn(async move {
                let now = DeleteParams::default().grace_period(0);
                let _ = api.delete(&pod.name_any(), &now).await;
            });
            continue;
        }
        let next = known.len();
        let doubted = pod.status.as_ref().is_some_and(|s| {
            let mut conditions = s.conditions.iter().flatten();
            conditions.any(|c| c.type_ == "Ready" && c.status == "False")
        });
        if known.contains_key(&uid) && !doubted {
            continue;
        }
        let count = *known.entry(uid).or_insert(next);
        let ip = format!("100.{}.{}.{}", 64 + index, count / 250, count % 250 + 1);
        let now = "2026-01-01T00:00:00Z";
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "hostIP": "127.0.0.1",
            "conditions": [
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": now},
                {"type": "Ready", "status": "True", "lastTransitionTime": now}],
        }});
        tokio::spawn(async move {
            let _ = api
                .patch_status(
                    &pod.name_any(),
                    &PatchParams::default(),
                    &Patch::Merge(&status),
                )
                .await;
        });
    }
}

/// Renews the node's Lease, and says that it is ready when it is not called so.
#[expect(
    clippy::disallowed_methods,
    reason = "the rim: a node renews its Lease by the clock"
)]
async fn live(client: &Client, name: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let now = k8s_openapi::jiff::Timestamp::now();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40,
            "renewTime": k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(now)},
    });
    let params = PatchParams::apply("kubelet").force();
    let _ = leases.patch(name, &params, &Patch::Apply(&lease)).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let Ok(node) = nodes.get(name).await else {
        return;
    };
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    if conditions
        .iter()
        .any(|c| c.type_ == "Ready" && c.status == "Unknown")
    {
        let ready = json!({"status": {"conditions": [
            {"type": "Ready", "status": "True", "reason": "KubeletReady"}]}});
        let params = PatchParams::default();
        let _ = nodes
            .patch_status(name, &params, &Patch::Merge(&ready))
            .await;
    }
}

pub(crate) fn deployment(name: &str, replicas: i32, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "c", "image": image, "ports": [{"name": "http", "containerPort": 8080}],
                    "resources": {"requests": {"cpu": "10m"}}}]}
            }
        }
    })
}

pub(crate) fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"selector": {"app": name}, "ports": [{"name": "web", "port": 80, "targetPort": "http"}]}
    })
}

/// Waits for the first Event about an object with that reason.
pub(crate) async fn event(world: &World, about: &str, reason: &str) -> Event {
    event_that(world, about, reason, |_| true).await
}

/// The same, of those whose message is meant.
pub(crate) async fn event_that(
    world: &World,
    about: &str,
    reason: &str,
    says: impl Fn(&str) -> bool,
) -> Event {
    let events: Api<Event> = world.api();
    let fields = format!("involvedObject.name={about},reason={reason}");
    let config = watcher::Config::default().fields(&fields);
    let mut stream = std::pin::pin!(watcher(events, config).applied_objects());
    let found = async {
        loop {
            let event = stream.try_next().await.expect("the watch works");
            let event = event.expect("the watch does not end");
            if says(event.message.as_deref().unwrap_or_default()) {
                return event;
            }
        }
    };
    tokio::time::timeout(DEADLINE, found)
        .await
        .expect("the Event comes in time")
}

//! Real client libraries: kube-rs and the Python client list, watch and create.

use std::process::Command;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Api, ListParams, PostParams, WatchEvent, WatchParams};

use crate::harness::{Cluster, have};

#[test]
fn kube_rs_lists_watches_and_creates() {
    if !have("kubectl") {
        return;
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cluster = Cluster::start();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let deadline = std::time::Duration::from_secs(30);
    let work = async {
        let file = kube::config::Kubeconfig::read_from(cluster.kubeconfig()).expect("a kubeconfig");
        let config =
            kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                .await
                .expect("valid");
        let client = kube::Client::try_from(config).expect("a client");
        let nodes: Api<Node> = Api::all(client.clone());
        assert_eq!(
            nodes
                .list(&ListParams::default())
                .await
                .expect("listed")
                .items
                .len(),
            1
        );
        let maps: Api<ConfigMap> = Api::default_namespaced(client);
        let before = maps.list(&ListParams::default()).await.expect("listed");
        let version = before
            .metadata
            .resource_version
            .expect("a list has a version");
        let mut events = maps
            .watch(&WatchParams::default(), &version)
            .await
            .expect("watched")
            .boxed();
        let map: ConfigMap =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "made"}}))
                .expect("valid");
        maps.create(&PostParams::default(), &map)
            .await
            .expect("created");
        let event = events
            .try_next()
            .await
            .expect("no error")
            .expect("an event");
        assert!(
            matches!(event, WatchEvent::Added(map) if map.metadata.name.as_deref() == Some("made"))
        );
    };
    runtime
        .block_on(async { tokio::time::timeout(deadline, work).await })
        .expect("in time");
}

#[test]
fn the_python_client_lists_watches_and_creates() {
    let python = std::env::var("CORACLE_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let importable = Command::new(&python)
        .args(["-c", "import kubernetes"])
        .output()
        .is_ok_and(|o| o.status.success());
    if !importable {
        assert!(
            std::env::var_os("CORACLE_REQUIRE_TOOLS").is_none(),
            "the Python client is not installed, and tools are required"
        );
        println!("skipped: the Python package kubernetes is not installed");
        return;
    }
    if !have("kubectl") {
        return;
    }
    let cluster = Cluster::start();
    let script = "
import sys
from kubernetes import client, config, watch
config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
assert len(core.list_node().items) == 1
version = core.list_namespaced_config_map('default').metadata.resource_version
core.create_namespaced_config_map('default', client.V1ConfigMap(metadata=client.V1ObjectMeta(name='py'), data={'a': 'b'}))
for event in watch.Watch().stream(core.list_namespaced_config_map, 'default', resource_version=version, timeout_seconds=20):
    assert event['type'] == 'ADDED' and event['object'].metadata.name == 'py', event
    break
else:
    sys.exit('no event came')
core.patch_namespaced_config_map('py', 'default', {'data': {'a': 'c'}})
assert core.read_namespaced_config_map('py', 'default').data == {'a': 'c'}
core.delete_namespaced_config_map('py', 'default')
print('fine')
";
    let output = Command::new(&python)
        .args(["-c", script])
        .arg(cluster.kubeconfig())
        .output()
        .expect("python runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

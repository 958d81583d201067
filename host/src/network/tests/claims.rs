//! What other nodes say of who connects, and how far they are believed.

use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;

use super::api::Api;
use super::policy::{Cluster, PODS, at, echo, only_from};
use super::*;
use crate::network::SocketError;

/// With a tunnel, and two other nodes: `b` has 100.64.64.0/18, `c` 100.64.128.0/18.
async fn among_nodes() -> Cluster {
    let api = Api::new();
    for (name, cidr) in [("b", "100.64.64.0/18"), ("c", "100.64.128.0/18")] {
        let metadata = json!({"name": name, "resourceVersion": "1"});
        api.put(
            "/api/v1/nodes",
            json!({"metadata": metadata, "spec": {"podCIDR": cidr}}),
        );
    }
    let certificates = crate::network::tunnel::tests::Authority::new().node("a");
    let network = Network::new(Config {
        node_name: "a".to_owned(),
        tunnel: Some(crate::network::TunnelConfig::new(certificates)),
        ..Config::default()
    });
    let cluster = Cluster {
        network: network.unwrap(),
        api,
    };
    cluster.network.start(cluster.api.client.clone()).unwrap();
    cluster.network.wait_synced().await;
    cluster
}

impl Cluster {
    /// A connection to `to` that another node says is of pod `pod`.
    async fn claims(&self, pod: &str, from: &str, to: SocketAddr) -> Result<(), SocketError> {
        let identity = Arc::new(crate::network::identity::Identity {
            namespace: "shop".to_owned(),
            pod: pod.to_owned(),
            ..Default::default()
        });
        let fabric = &self.network.fabric;
        let mut caller = fabric.rim_from(SocketAddr::new(from.parse().unwrap(), 4000));
        caller.identity = Some(&identity);
        fabric.connect(&caller, to).await.map(drop)
    }
}

/// Pod `NAME-1` of node `b`.
fn elsewhere(app: &str, ip: Option<&str>) -> Value {
    json!({"metadata": {"namespace": "shop", "name": format!("{app}-1"), "uid": app, "labels": {"app": app}, "resourceVersion": "1"},
        "spec": {"nodeName": "b", "containers": []}, "status": {"podIP": ip}})
}

#[tokio::test]
async fn a_pod_of_another_node_is_known_by_its_name_before_its_address_is() {
    let cluster = among_nodes().await;
    let db = cluster.pod("shop", "db");
    echo(&db, 5432);
    let db = at(&db, 5432);
    cluster.apply("only-web", only_from("web")).await;
    let connect = async |pod: &str| cluster.claims(pod, "100.64.64.2", db).await;
    cluster.api.put(PODS, elsewhere("api", None));
    let asked = connect("web-1");
    // It comes while somebody waits for it.
    cluster.api.put(PODS, elsewhere("web", None));
    assert_eq!(asked.await, Ok(()));
    assert_eq!(connect("api-1").await, Err(SocketError::Denied));
    assert_eq!(
        connect("nobody").await,
        Err(SocketError::Denied),
        "after a moment"
    );
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn a_node_poses_as_no_pod_of_another() {
    let cluster = among_nodes().await;
    let db = cluster.pod("shop", "db");
    echo(&db, 5432);
    let db = at(&db, 5432);
    cluster.apply("only-web", only_from("web")).await;
    cluster.api.put(PODS, elsewhere("web", None));
    let own = cluster.claims("web-1", "100.64.64.2", db);
    let posed = cluster.claims("web-1", "100.64.128.2", db);
    let (own, posed) = tokio::join!(own, posed);
    assert_eq!((own, posed), (Ok(()), Err(SocketError::Denied)));
    cluster.api.put(PODS, elsewhere("web", Some("100.64.64.2")));
    cluster
        .in_force(|table| table.peers.at([100, 64, 64, 2].into()).is_some())
        .await;
    let own = cluster.claims("web-1", "100.64.64.2", db);
    let other = cluster.claims("web-1", "100.64.64.3", db);
    let posed = cluster.claims("web-1", "100.64.128.2", db);
    let (own, other, posed) = tokio::join!(own, other, posed);
    let denied = Err(SocketError::Denied);
    assert_eq!((own, other, posed), (Ok(()), denied, denied));
    cluster.network.shutdown(Duration::ZERO).await;
}

#[tokio::test]
async fn another_nodes_ingress_passes_where_a_policy_names_it() {
    let cluster = among_nodes().await;
    let db = cluster.pod("shop", "db");
    echo(&db, 5432);
    let spec = json!({"podSelector": {}, "ingress": [{"from": [{"namespaceSelector":
        {"matchLabels": {"kubernetes.io/metadata.name": "ingress-nginx"}}}]}]});
    cluster.apply("ingress", spec).await;
    let fabric = &cluster.network.fabric;
    let node: SocketAddr = "100.64.64.1:4000".parse().unwrap();
    let connect = async |caller| fabric.connect(&caller, at(&db, 5432)).await.map(drop);
    assert_eq!(connect(fabric.ingress_from(node)).await, Ok(()));
    assert_eq!(
        connect(fabric.rim_from(node)).await,
        Err(SocketError::Denied),
        "a NodePort"
    );
    cluster.network.shutdown(Duration::ZERO).await;
}

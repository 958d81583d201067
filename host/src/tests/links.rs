//! A node that nobody can dial: the API server and other nodes reach it over the link it keeps.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::*;
use crate::join::tests::Cluster;
use crate::join::{self, Joined};
use crate::link::Links;
use crate::network::{Dial as _, TunnelConfig};

async fn member(cluster: &Cluster, name: &str, data: &tempfile::TempDir) -> (Joined, Arc<Links>) {
    let config = join::Config {
        // Nothing answers there (RFC 5737).
        node_ip: Some([192, 0, 2, 1].into()),
        ..cluster.config(name, &data.path().join(name))
    };
    let joined = tokio::time::timeout(PATIENCE, join::join(config)).await;
    let joined = joined.expect("joined in time").expect("joined");
    let links = Links::new(joined.servers.clone(), &joined.tls, name.to_owned());
    (joined, Arc::new(links.expect("TLS")))
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_and_other_nodes_reach_a_node_over_its_link() {
    let cluster = Cluster::start().await;
    let data = tempfile::tempdir().expect("a temporary directory");
    let (joined, links) = member(&cluster, "n1", &data).await;
    let mut tunnel = TunnelConfig::new(Arc::clone(&joined.tls));
    tunnel.relay = Some(Arc::clone(&links) as _);
    let node = start(Config {
        bundled: vec![("guests.local/show".to_owned(), SHOW)],
        endpoint: SocketAddr::from(([127, 0, 0, 1], 0)),
        address: Some(joined.address),
        serving: Some(joined.serving.clone()),
        tunnel: Some(tunnel),
        links: Some(links),
        ..Config::new(
            "n1".to_owned(),
            data.path().join("n1"),
            joined.client(),
            Arc::clone(&joined.tls),
        )
    });
    let node = tokio::time::timeout(PATIENCE, node).await;
    let node = node.expect("in time").expect("the node starts");
    tokio::time::timeout(PATIENCE, node.ready())
        .await
        .expect("the node becomes ready");
    let pods: Api<Pod> = Api::default_namespaced(cluster.admin.clone());
    let pod = json!({"metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "restartPolicy": "Never", "containers": [app("show", json!({}))]}});
    let pod = serde_json::from_value(pod).expect("well formed");
    pods.create(&PostParams::default(), &pod)
        .await
        .expect("created");
    let over = await_condition(pods.clone(), "p", |pod: Option<&Pod>| {
        pod.is_some_and(|pod| types::pod::phase(pod) == "Succeeded")
    });
    let over = tokio::time::timeout(PATIENCE, over).await;
    over.expect("in time").expect("watched");
    let log = pods.logs("p", &LogParams::default()).await;
    let log = log.expect("a log, although the address leads nowhere");
    assert!(log.contains("args []"), "{log}");
    // The API says how it is reached.
    let nodes: Api<Node> = Api::all(cluster.admin.clone());
    let told = await_condition(nodes, "n1", |node: Option<&Node>| {
        let annotations = node.and_then(|node| node.metadata.annotations.as_ref());
        annotations
            .is_some_and(|all| all.get("coracle.dev/tunnel").map(String::as_str) == Some("relay"))
    });
    let told = tokio::time::timeout(PATIENCE, told).await;
    told.expect("in time").expect("watched");
    let (other, links) = member(&cluster, "n2", &data).await;
    let io = links.dial("n1").await.expect("connected");
    let config = other.tls.client_config(&[b"h2"]).expect("TLS");
    let name = ServerName::try_from("n1").expect("a name");
    let shaken = TlsConnector::from(Arc::new(config)).connect(name, io);
    let shaken = tokio::time::timeout(PATIENCE, shaken).await;
    let session = shaken.expect("in time").expect("it is n1 that answers");
    assert_eq!(session.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let nobody = links.dial("n3").await.err().expect("there is no n3");
    assert!(nobody.to_string().contains("keeps no link"), "{nobody}");
    node.shutdown(Duration::from_secs(5)).await;
}

//! Creates the Node object, or takes over the one of an earlier process with the same name.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use types::error::chain;
use types::well_known::{LABEL_ARCH, LABEL_HOSTNAME, LABEL_OS, LABEL_RUNTIME, RUNTIME_WASM};

use super::Identity;

/// How often somebody is told that the node waits for its addresses.
const REMIND: Duration = Duration::from_secs(15);

/// The Node as the API has it afterwards, with `status`.
pub(super) async fn register(
    client: &Client,
    identity: &Identity,
    status: NodeStatus,
) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let node = Node {
        metadata: ObjectMeta {
            name: Some(identity.name.clone()),
            labels: Some(all_labels(identity)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: identity.pod_cidr.clone(),
            pod_cidrs: identity.pod_cidr.clone().map(|cidr| vec![cidr]),
            taints: Some(identity.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status.clone()),
    };
    match api.create(&PostParams::default(), &node).await {
        Ok(created)
            if created
                .status
                .as_ref()
                .is_some_and(|got| super::status::same(got, &status)) =>
        {
            return Ok(created);
        }
        Ok(_) => {}
        Err(kube::Error::Api(error)) if error.code == 409 => {
            let labels = serde_json::json!({"metadata": {"labels": labels(identity)}});
            let adopted = api
                .patch(
                    &identity.name,
                    &PatchParams::default(),
                    &Patch::Merge(labels),
                )
                .await?;
            let cidr = adopted
                .spec
                .as_ref()
                .and_then(|spec| spec.pod_cidr.as_deref());
            if let (Some(is), Some(wanted)) = (cidr, identity.pod_cidr.as_deref())
                && is != wanted
            {
                tracing::warn!(was = %is, is = %wanted, "The node was registered with another pod CIDR");
            }
        }
        Err(error) => return Err(error),
    }
    write_status(client, &identity.name, &status).await
}

/// Conditions of others stay: they merge by type.
pub(super) async fn write_status(
    client: &Client,
    name: &str,
    status: &NodeStatus,
) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let mut patch = serde_json::json!({"status": status});
    // An absent list would stay as it was.
    patch["status"]["images"] = serde_json::json!(status.images);
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
}

/// Waits until a controller has given the node its range of addresses. As long as it takes: the caller may go away.
pub(crate) async fn pod_cidr(client: &Client, name: &str) -> Result<Ipv4Net, PodCidrError> {
    let api: Api<Node> = Api::all(client.clone());
    let given = |node: Option<&Node>| node.and_then(of).is_some();
    loop {
        let waiting = await_condition(api.clone(), name, given);
        match tokio::time::timeout(REMIND, waiting).await {
            Ok(Ok(node)) => {
                if let Some(cidr) = node.as_ref().and_then(of) {
                    return cidr.parse().map_err(|_| PodCidrError {
                        node: name.to_owned(),
                        cidr: cidr.to_owned(),
                    });
                }
            }
            Ok(Err(error)) => {
                tracing::warn!(node = %name, error = %chain(&error), "Failed to watch the node's own object");
                tokio::time::sleep(super::AGAIN).await;
            }
            Err(_) => tracing::warn!(
                node = %name,
                "No controller has given this node a range of pod addresses (spec.podCIDR) yet: are the controllers running, and is there room in their --cluster-cidr?"
            ),
        }
    }
}

fn of(node: &Node) -> Option<&str> {
    let cidr = node.spec.as_ref()?.pod_cidr.as_deref()?;
    (!cidr.is_empty()).then_some(cidr)
}

/// The range cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("node {node}: spec.podCIDR {cidr:?} is no IPv4 range")]
pub struct PodCidrError {
    node: String,
    cidr: String,
}

/// At registration; later only [`labels`] are kept true.
fn all_labels(identity: &Identity) -> BTreeMap<String, String> {
    let mut all = identity.labels.clone();
    all.extend(labels(identity));
    all
}

fn labels(identity: &Identity) -> BTreeMap<String, String> {
    let pairs = [
        (LABEL_ARCH, identity.machine.architecture),
        (LABEL_HOSTNAME, identity.name.as_str()),
        (LABEL_OS, "linux"),
        (LABEL_RUNTIME, RUNTIME_WASM),
    ];
    pairs
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

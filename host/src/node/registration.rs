//! Creates the Node object, or takes over the one of an earlier process with the same name.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, NodeSpec, NodeStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use types::well_known::{LABEL_ARCH, LABEL_HOSTNAME, LABEL_OS, LABEL_RUNTIME, RUNTIME_WASM};

use super::Identity;

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
            labels: Some(labels(identity)),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            pod_cidr: Some(identity.pod_cidr.clone()),
            pod_cidrs: Some(vec![identity.pod_cidr.clone()]),
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
            if cidr.is_some_and(|cidr| cidr != identity.pod_cidr) {
                tracing::warn!(was = ?cidr, is = %identity.pod_cidr, "The node was registered with another pod CIDR");
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
    let patch = serde_json::json!({"status": status});
    api.patch_status(name, &PatchParams::default(), &Patch::Strategic(patch))
        .await
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

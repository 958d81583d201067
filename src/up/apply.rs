//! Applies manifests through the API, as `kubectl apply --server-side` does, and looks at what became of them.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiResource, Discovery, Scope};
use serde_json::Value;
use tokio::time::Instant;
use types::well_known::{MANAGER_UP, NAMESPACE_DEFAULT};

use super::manifests::Manifest;

/// How long a new namespace may take to get its ServiceAccount, and how often to look.
const NAMESPACE_SETTLES: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_millis(20);

/// One applied object: how to find it again.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    pub(crate) resource: ApiResource,
    /// Empty for cluster-scoped objects.
    pub(crate) namespace: String,
    pub(crate) name: String,
}

/// Applies each manifest, all of them even when some fail: nothing half-applied is hidden.
pub(crate) async fn apply(
    client: &kube::Client,
    manifests: &[Manifest],
) -> Result<Vec<(Manifest, Result<Applied>)>> {
    let mut resources = Resources::discover(client).await?;
    let mut outcomes = Vec::with_capacity(manifests.len());
    for manifest in manifests {
        let outcome = apply_one(client, &mut resources, manifest).await;
        outcomes.push((manifest.clone(), outcome));
    }
    Ok(outcomes)
}

async fn apply_one(
    client: &kube::Client,
    resources: &mut Resources,
    manifest: &Manifest,
) -> Result<Applied> {
    let (resource, scope) = resources.find(client, manifest).await?;
    let namespace = match scope {
        Scope::Cluster => String::new(),
        Scope::Namespaced if manifest.namespace.is_empty() => NAMESPACE_DEFAULT.to_owned(),
        Scope::Namespaced => manifest.namespace.clone(),
    };
    let applied = Applied {
        resource,
        namespace,
        name: manifest.name.clone(),
    };
    // Manifests are the word of whoever starts the cluster, so conflicts are decided for them.
    let params = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply(MANAGER_UP).force()
    };
    let deadline = Instant::now() + NAMESPACE_SETTLES;
    loop {
        let api = applied.api(client);
        match api
            .patch(&manifest.name, &params, &Patch::Apply(&manifest.object))
            .await
        {
            Ok(_) => return Ok(applied),
            Err(error) if is_too_early(&error) && Instant::now() < deadline => {
                tokio::time::sleep(RETRY).await
            }
            Err(error) => return Err(readable(error)),
        }
    }
}

/// A pod in a namespace made a moment ago, before its `default` ServiceAccount is there.
fn is_too_early(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.message.contains("error looking up service account"))
}

/// The server's own words, without the wrapping of the client's error type.
fn readable(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => other.into(),
    }
}

/// What the server offers, by kind.
struct Resources(HashMap<GroupVersionKind, (ApiResource, Scope)>);

// === impl Resources ===

impl Resources {
    async fn discover(client: &kube::Client) -> Result<Self> {
        let discovery = Discovery::new(client.clone())
            .run_aggregated()
            .await
            .context("could not ask the API what it offers")?;
        let mut found = HashMap::new();
        for (resource, capabilities) in discovery.groups().flat_map(|group| {
            group
                .versions()
                .flat_map(|version| group.versioned_resources(version))
                .collect::<Vec<_>>()
        }) {
            let kind = GroupVersionKind::gvk(&resource.group, &resource.version, &resource.kind);
            found.insert(kind, (resource, capabilities.scope));
        }
        Ok(Self(found))
    }

    async fn find(
        &mut self,
        client: &kube::Client,
        manifest: &Manifest,
    ) -> Result<(ApiResource, Scope)> {
        let (group, version) = manifest
            .api_version
            .split_once('/')
            .unwrap_or(("", &manifest.api_version));
        let kind = GroupVersionKind::gvk(group, version, &manifest.kind);
        if !self.0.contains_key(&kind) {
            // A CustomResourceDefinition applied a moment ago may have brought it.
            *self = Self::discover(client).await?;
        }
        let found = self.0.get(&kind).cloned();
        found.with_context(|| {
            format!(
                "no matches for kind {:?} in version {:?}",
                manifest.kind, manifest.api_version
            )
        })
    }
}

// === impl Applied ===

impl Applied {
    pub(crate) fn api(&self, client: &kube::Client) -> Api<DynamicObject> {
        if self.namespace.is_empty() {
            Api::all_with(client.clone(), &self.resource)
        } else {
            Api::namespaced_with(client.clone(), &self.namespace, &self.resource)
        }
    }

    /// The object as it is now; `None` when it is gone.
    pub(crate) async fn get(&self, client: &kube::Client) -> Result<Option<Value>> {
        let object = self
            .api(client)
            .get_opt(&self.name)
            .await
            .map_err(readable)?;
        object
            .map(|object| {
                serde_json::to_value(object).context("an object from the API could not be read")
            })
            .transpose()
    }

    /// Pods that a selector of this object selects, for the reasons they give.
    pub(crate) async fn pods(&self, client: &kube::Client, object: &Value) -> Vec<Value> {
        let Some(labels) = object
            .pointer("/spec/selector/matchLabels")
            .and_then(Value::as_object)
        else {
            return Vec::new();
        };
        let selector: Vec<_> = labels
            .iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
            .collect();
        let pods: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), &self.namespace, &pod_resource());
        let list = pods
            .list(&ListParams::default().labels(&selector.join(",")))
            .await;
        list.map(|list| {
            list.items
                .iter()
                .filter_map(|pod| serde_json::to_value(pod).ok())
                .collect()
        })
        .unwrap_or_default()
    }

    /// `deployment/web`, with the namespace where it is not `default`.
    pub(crate) fn readable(&self) -> String {
        let kind = self.resource.kind.to_lowercase();
        match self.namespace.as_str() {
            "" | NAMESPACE_DEFAULT => format!("{kind}/{}", self.name),
            namespace => format!("{kind}/{} -n {namespace}", self.name),
        }
    }
}

fn pod_resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
}

//! Fetches the ConfigMaps and Secrets a pod refers to. Keeps nothing: who needs them again asks again.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

use super::environment::{Reference, Sources};

const FETCH: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to fetch {what}: {text}")]
    Api { what: String, text: String },
    #[error("failed to fetch {what}: no answer within {} s", FETCH.as_secs())]
    Timeout { what: String },
}

/// What does not exist is in the sources as `None`: whether that matters is for the reader of it to say.
pub(crate) async fn fetch(
    client: &Client,
    namespace: &str,
    references: &[Reference],
) -> Result<Sources, Error> {
    let mut sources = Sources::default();
    for reference in references {
        let what = match reference {
            Reference::ConfigMap(name) => format!("configmap {namespace}/{name}"),
            Reference::Secret(name) => format!("secret {namespace}/{name}"),
        };
        let fetched =
            tokio::time::timeout(FETCH, fetch_one(client, namespace, reference, &mut sources))
                .await;
        match fetched {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                return Err(Error::Api {
                    what,
                    text: error.to_string(),
                });
            }
            Err(_) => return Err(Error::Timeout { what }),
        }
    }
    Ok(sources)
}

async fn fetch_one(
    client: &Client,
    namespace: &str,
    reference: &Reference,
    sources: &mut Sources,
) -> Result<(), kube::Error> {
    match reference {
        Reference::ConfigMap(name) => {
            let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
            let found = api.get_opt(name).await?.map(Arc::new);
            sources.config_maps.insert(name.clone(), found);
        }
        Reference::Secret(name) => {
            let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
            let found = api.get_opt(name).await?.map(Arc::new);
            sources.secrets.insert(name.clone(), found);
        }
    }
    Ok(())
}

//! Fetches the ConfigMaps and Secrets a pod refers to. Who needs them again asks again; only when no API server answers is
//! what a container was given before good enough ([`Memory`]).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, Client};

use super::environment::{Reference, Sources};

const FETCH: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("failed to fetch {what}: {text}")]
    Api { what: String, text: String },
    /// No API server answered.
    #[error("failed to fetch {what}: {text}")]
    Away { what: String, text: String },
    #[error("failed to fetch {what}: no answer within {} s", FETCH.as_secs())]
    Timeout { what: String },
}

/// What one container was given last. It goes with the container.
pub(crate) type Memory = Arc<Mutex<Option<Sources>>>;

/// As [`fetch`]; while no API server answers, what was there the last time: a container that crashes then is started again.
pub(crate) async fn fetch_or_recall(
    client: &Client,
    namespace: &str,
    references: &[Reference],
    memory: &Memory,
) -> Result<Sources, Error> {
    let fetched = fetch(client, namespace, references).await;
    let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
    match fetched {
        Ok(sources) => {
            *memory = Some(sources.clone());
            Ok(sources)
        }
        Err(error @ (Error::Away { .. } | Error::Timeout { .. })) => {
            let remembered = memory.clone().ok_or(error)?;
            tracing::info!(
                ns = namespace,
                "No API server answers: a container is started with what it was given before"
            );
            Ok(remembered)
        }
        Err(error) => Err(error),
    }
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
                let text = error.to_string();
                return Err(match error {
                    kube::Error::Api(_) => Error::Api { what, text },
                    _ => Error::Away { what, text },
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU8, Ordering};

    #[tokio::test]
    async fn while_nobody_answers_a_container_gets_what_it_had_and_a_refusal_is_a_refusal() {
        let mode = Arc::new(AtomicU8::new(0));
        let served = Arc::clone(&mode);
        let service = tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let mode = served.load(Ordering::Relaxed);
            let answer = |code: u16, body: &str| {
                let body = http_body_util::Full::new(bytes::Bytes::from(body.to_owned()));
                let answer = http::Response::builder().status(code).body(body);
                Ok(answer.expect("well formed"))
            };
            let answer = match mode {
                0 => answer(200, r#"{"metadata":{"name":"m"},"data":{"a":"1"}}"#),
                1 => Err(std::io::Error::other("away")),
                _ => answer(403, r#"{"status":"Failure","message":"no","code":403}"#),
            };
            std::future::ready(answer)
        });
        let client = Client::new(service, "default");
        let references = [Reference::ConfigMap("m".to_owned())];
        let ask =
            async |memory: &Memory| fetch_or_recall(&client, "default", &references, memory).await;
        let memory = Memory::default();
        mode.store(1, Ordering::Relaxed);
        assert!(matches!(ask(&memory).await, Err(Error::Away { .. })));
        mode.store(0, Ordering::Relaxed);
        ask(&memory).await.expect("fetched");
        mode.store(1, Ordering::Relaxed);
        let sources = ask(&memory).await.expect("remembered");
        assert!(sources.config_maps["m"].is_some());
        mode.store(2, Ordering::Relaxed);
        assert!(matches!(ask(&memory).await, Err(Error::Api { .. })));
    }
}

//! Every write of this crate: one request with a deadline, answered by the metadata of what was written.
//!
//! Never retries: a controller returns the error and is asked again later.

use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE};
use http::{Method, Request};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, Preconditions};
use kube::Client;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::objects::{Meta, Resource, collection_url};

/// A write may wait for a slow disk, not for ever.
const DEADLINE: Duration = Duration::from_secs(30);
/// Requests one call of [`all`] has open at once.
const IN_FLIGHT: usize = 64;

const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// What the controllers write as, like upstream's.
pub const CONTROLLER_MANAGER: &str = "kube-controller-manager";
pub const SCHEDULER: &str = "kube-scheduler";

/// Writes under one field manager, as long as its fence is open.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    manager: &'static str,
    fence: Fence,
}

/// Until when its holder may write: what a leader has for sure. `None` inside: for ever.
#[derive(Clone, Debug, Default)]
pub struct Fence(Option<watch::Receiver<Instant>>);

/// Names one object and how it is served.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub api_version: String,
    pub plural: String,
    pub namespace: String,
    pub name: String,
}

/// The answer to a write. Empty where the server answered with a `Status`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Written {
    #[serde(default)]
    pub metadata: Meta,
}

/// How dependents are treated when an object is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Background,
    Foreground,
    Orphan,
}

/// Conditions of a delete.
#[derive(Clone, Debug, Default)]
pub struct Delete {
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub grace_seconds: Option<i64>,
    pub propagation: Option<Propagation>,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{verb} {url}")]
    Refused {
        verb: Method,
        url: String,
        source: Box<kube::Error>,
    },
    #[error("{verb} {url}: no answer within {DEADLINE:?}")]
    Deadline { verb: Method, url: String },
    /// Somebody else may lead by now. The request was not sent, or was given up: it may have happened while we led.
    #[error("{verb} {url}: no longer the leader")]
    Deposed { verb: Method, url: String },
    #[error("{verb} {url}: build the request")]
    Request {
        verb: Method,
        url: String,
        source: http::Error,
    },
    #[error("encode the body for {url}")]
    Encode {
        url: String,
        source: serde_json::Error,
    },
    /// The watch has not shown our own writes yet; deciding now could do them twice.
    #[error("the cache of {what} has not caught up with revision {revision}")]
    Behind { what: &'static str, revision: u64 },
}

/// Runs writes as tasks of their own, a bounded number at once, and hands back their results in the order of completion.
///
/// Dropping the future aborts the writes that are still open; each of them may or may not have happened.
pub async fn all<T: Send + 'static, F>(writes: impl IntoIterator<Item = F>) -> Vec<T>
where
    F: Future<Output = T> + Send + 'static,
{
    let mut results = Vec::new();
    let mut open = JoinSet::new();
    for write in writes {
        if open.len() >= IN_FLIGHT
            && let Some(Ok(result)) = open.join_next().await
        {
            results.push(result);
        }
        open.spawn(write);
    }
    while let Some(done) = open.join_next().await {
        results.extend(done);
    }
    results
}

/// The merge patch that turns `old` into `new`; `None` when there is nothing to do.
pub fn merge_patch(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(before), Value::Object(after)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = Map::new();
    for (name, value) in after {
        match before.get(name) {
            Some(known) => {
                if let Some(inner) = merge_patch(known, value) {
                    patch.insert(name.clone(), inner);
                }
            }
            None => {
                patch.insert(name.clone(), value.clone());
            }
        }
    }
    for name in before.keys().filter(|name| !after.contains_key(*name)) {
        patch.insert(name.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The merge patch from one serializable value to another.
pub fn merge_patch_of<T: Serialize>(old: &T, new: &T) -> Option<Value> {
    merge_patch(
        &serde_json::to_value(old).ok()?,
        &serde_json::to_value(new).ok()?,
    )
}

// === impl Writer ===

impl Writer {
    pub fn new(client: Client, manager: &'static str) -> Self {
        Self {
            client,
            manager,
            fence: Fence::default(),
        }
    }

    /// Sends nothing, and waits for nothing, once the fence is closed.
    #[must_use]
    pub fn fenced(mut self, fence: Fence) -> Self {
        self.fence = fence;
        self
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub async fn create(
        &self,
        resource: Resource,
        namespace: &str,
        body: &impl Serialize,
    ) -> Result<Written, Error> {
        let url = resource.url(namespace);
        let body = encode(&url, body)?;
        self.create_encoded(url, body).await
    }

    /// Posts a body that is already JSON: many equal objects are encoded once.
    pub async fn create_encoded(&self, url: String, body: Vec<u8>) -> Result<Written, Error> {
        let uri = format!("{url}?fieldManager={}", self.manager);
        self.send(Method::POST, url, uri, "application/json", body)
            .await
    }

    /// Creates an object and reads more than metadata of the answer.
    pub async fn create_as<T: serde::de::DeserializeOwned>(
        &self,
        resource: Resource,
        namespace: &str,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let url = resource.url(namespace);
        let body = encode(&url, body)?;
        let uri = format!("{url}?fieldManager={}", self.manager);
        self.send(Method::POST, url, uri, "application/json", body)
            .await
    }

    /// Puts the whole object. Its `metadata.resourceVersion` is a precondition.
    pub async fn replace<T: serde::de::DeserializeOwned>(
        &self,
        target: &Target,
        body: &impl Serialize,
    ) -> Result<T, Error> {
        let url = target.url();
        let body = encode(&url, body)?;
        let uri = format!("{url}?fieldManager={}", self.manager);
        self.send(Method::PUT, url, uri, "application/json", body)
            .await
    }

    /// Posts to a subresource, such as `binding`.
    pub async fn create_subresource(
        &self,
        target: &Target,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<Written, Error> {
        let url = format!("{}/{subresource}", target.url());
        let body = encode(&url, body)?;
        self.create_encoded(url, body).await
    }

    /// Puts to a subresource, such as `finalize`.
    pub async fn replace_subresource(
        &self,
        target: &Target,
        subresource: &str,
        body: &impl Serialize,
    ) -> Result<Written, Error> {
        let url = format!("{}/{subresource}", target.url());
        let body = encode(&url, body)?;
        let uri = format!("{url}?fieldManager={}", self.manager);
        self.send(Method::PUT, url, uri, "application/json", body)
            .await
    }

    /// Merge patch. A `metadata.resourceVersion` or `metadata.uid` in it is a precondition.
    pub async fn patch(&self, target: &Target, patch: &Value) -> Result<Written, Error> {
        self.patch_url(target.url(), patch).await
    }

    pub async fn patch_status(&self, target: &Target, patch: &Value) -> Result<Written, Error> {
        self.patch_url(format!("{}/status", target.url()), patch)
            .await
    }

    /// Strategic merge patch: of a list with keys, such as a pod's conditions, only the entries in the patch change.
    pub async fn merge_status(&self, target: &Target, patch: &Value) -> Result<Written, Error> {
        self.patch_as(format!("{}/status", target.url()), patch, STRATEGIC)
            .await
    }

    async fn patch_url(&self, url: String, patch: &Value) -> Result<Written, Error> {
        self.patch_as(url, patch, "application/merge-patch+json")
            .await
    }

    async fn patch_as(
        &self,
        url: String,
        patch: &Value,
        kind: &'static str,
    ) -> Result<Written, Error> {
        let body = encode(&url, patch)?;
        let uri = format!("{url}?fieldManager={}", self.manager);
        self.send(Method::PATCH, url, uri, kind, body).await
    }

    pub async fn delete(&self, target: &Target, options: Delete) -> Result<Written, Error> {
        let url = target.url();
        let body = encode(&url, &options.into_options())?;
        self.send(Method::DELETE, url.clone(), url, "application/json", body)
            .await
    }

    /// Deletes everything of one resource in one namespace.
    pub async fn delete_collection(
        &self,
        api_version: &str,
        plural: &str,
        namespace: &str,
    ) -> Result<(), Error> {
        let url = collection_url(api_version, plural, namespace);
        let options = Delete {
            propagation: Some(Propagation::Background),
            ..Delete::default()
        };
        let body = encode(&url, &options.into_options())?;
        // The answer is the list of what was deleted: not read.
        self.send::<serde::de::IgnoredAny>(
            Method::DELETE,
            url.clone(),
            url,
            "application/json",
            body,
        )
        .await
        .map(drop)
    }

    /// The object's metadata as the server has it now; `None` when there is no such object.
    pub async fn metadata(&self, target: &Target) -> Result<Option<Meta>, Error> {
        match self.get::<Written>(target.url()).await {
            Ok(found) => Ok(Some(found.metadata)),
            Err(error) if error.code() == Some(404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub async fn get<T: serde::de::DeserializeOwned>(&self, url: String) -> Result<T, Error> {
        self.send(
            Method::GET,
            url.clone(),
            url,
            "application/json",
            Vec::new(),
        )
        .await
    }

    async fn send<T: serde::de::DeserializeOwned>(
        &self,
        verb: Method,
        url: String,
        uri: String,
        content_type: &'static str,
        body: Vec<u8>,
    ) -> Result<T, Error> {
        let request = Request::builder()
            .method(verb.clone())
            .uri(uri)
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, content_type)
            .body(body)
            .map_err(|source| Error::Request {
                verb: verb.clone(),
                url: url.clone(),
                source,
            })?;
        let answer = async {
            tokio::select! {
                biased;
                () = self.fence.closed() => None,
                answer = self.client.request(request) => Some(answer),
            }
        };
        let answer = match timeout(DEADLINE, answer).await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => return Err(Error::Deposed { verb, url }),
            Err(late) => Err(late),
        };
        match answer {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(source)) => Err(Error::Refused {
                verb,
                url,
                source: Box::new(source),
            }),
            Err(_) => Err(Error::Deadline { verb, url }),
        }
    }
}

// === impl Fence ===

impl Fence {
    /// A fence that closes at the instant the sender holds; the sender may put it off, and dropping it does not.
    pub fn until(deadline: watch::Receiver<Instant>) -> Self {
        Self(Some(deadline))
    }

    /// Waits until it closes; at once when it is closed already.
    pub async fn closed(&self) {
        let Some(mut deadline) = self.0.clone() else {
            return std::future::pending().await;
        };
        loop {
            let until = *deadline.borrow_and_update();
            if until <= Instant::now() {
                return;
            }
            // Whether it was put off is looked at only when it would close: renewals wake no writer.
            tokio::time::sleep_until(until).await;
        }
    }
}

// === impl Target ===

impl Target {
    pub fn new(resource: Resource, namespace: &str, name: &str) -> Self {
        Self {
            api_version: resource.api_version.to_owned(),
            plural: resource.plural.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    pub fn of(resource: Resource, meta: &Meta) -> Self {
        Self::new(resource, &meta.namespace, &meta.name)
    }

    pub fn url(&self) -> String {
        let collection = collection_url(&self.api_version, &self.plural, &self.namespace);
        format!("{collection}/{}", self.name)
    }
}

// === impl Delete ===

impl Delete {
    /// Only if it is still the same object.
    pub fn of(uid: &str) -> Self {
        Self {
            uid: Some(uid.to_owned()),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn propagated(mut self, propagation: Propagation) -> Self {
        self.propagation = Some(propagation);
        self
    }

    #[must_use]
    pub fn at_once(mut self) -> Self {
        self.grace_seconds = Some(0);
        self
    }

    fn into_options(self) -> DeleteOptions {
        let conditional = self.uid.is_some() || self.resource_version.is_some();
        DeleteOptions {
            api_version: Some("v1".to_owned()),
            kind: Some("DeleteOptions".to_owned()),
            grace_period_seconds: self.grace_seconds,
            preconditions: conditional.then_some(Preconditions {
                uid: self.uid,
                resource_version: self.resource_version,
            }),
            propagation_policy: self.propagation.map(|p| format!("{p:?}")),
            ..DeleteOptions::default()
        }
    }
}

// === impl Error ===

impl Error {
    /// The HTTP status the server refused with.
    pub fn code(&self) -> Option<u16> {
        self.status().map(|status| status.code)
    }

    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Refused { source, .. } => match &**source {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            _ => None,
        }
    }

    pub fn is_not_found(&self) -> bool {
        self.code() == Some(404)
    }

    pub fn is_conflict(&self) -> bool {
        self.code() == Some(409)
    }

    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|s| s.reason == "AlreadyExists")
    }

    /// The namespace is going away: trying again is pointless.
    pub fn is_namespace_terminating(&self) -> bool {
        self.status()
            .and_then(|s| s.details.as_ref())
            .is_some_and(|d| d.causes.iter().any(|c| c.reason == "NamespaceTerminating"))
    }

    /// What a user is shown: the server's words where there are some.
    pub fn user_message(&self) -> String {
        match self.status() {
            Some(status) => status.message.clone(),
            None => self.to_string(),
        }
    }
}

/// Treats "it is gone already" as done.
pub fn gone_is_fine(result: Result<Written, Error>) -> Result<Written, Error> {
    match result {
        Err(error) if error.is_not_found() => Ok(Written::default()),
        other => other,
    }
}

fn encode(url: &str, body: &impl Serialize) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(body).map_err(|source| Error::Encode {
        url: url.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_merge_patch_says_only_what_differs() {
        let old = json!({"a": 1, "b": {"c": [1], "d": 2}, "e": 3});
        let new = json!({"a": 1, "b": {"c": [2], "d": 2}, "f": 4});
        assert_eq!(
            merge_patch(&old, &new),
            Some(json!({"b": {"c": [2]}, "e": null, "f": 4}))
        );
        assert_eq!(merge_patch(&old, &old), None);
    }

    #[test]
    fn delete_options_read_as_kubernetes_wants_them() {
        let options = Delete::of("u")
            .propagated(Propagation::Foreground)
            .at_once();
        assert_eq!(
            serde_json::to_value(options.into_options()).expect("options"),
            json!({"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
                   "preconditions": {"uid": "u"}, "propagationPolicy": "Foreground"})
        );
    }
}

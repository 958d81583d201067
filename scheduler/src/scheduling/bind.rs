//! The one write of scheduling, POST `pods/binding`, and the condition of pods that cannot be scheduled.

use std::sync::Arc;

use serde_json::{Value, json};
use tracing::debug;
use types::error::chain;

use super::pod::PodInfo;
use super::queue::Entry;
use crate::objects::{Key, PODS};
use crate::write::{Error, Target, Writer};

/// What became of one write.
pub(super) enum Done {
    Bound { pod: Arc<PodInfo>, node: String },
    Refused { entry: Entry, error: Error },
    Reported,
}

pub(super) async fn bind(writer: Writer, entry: Entry, node: String) -> Done {
    let pod = Arc::clone(&entry.pod);
    let target = Target::new(PODS, &pod.key.namespace, &pod.key.name);
    let body = json!({
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": pod.key.name, "namespace": pod.key.namespace, "uid": &*pod.uid},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    });
    match writer.create_subresource(&target, "binding", &body).await {
        Ok(_) => Done::Bound { pod, node },
        Err(error) => Done::Refused { entry, error },
    }
}

pub(super) async fn report(writer: Writer, pod: Key, patch: Value) -> Done {
    let target = Target::new(PODS, &pod.namespace, &pod.name);
    if let Err(error) = writer.patch_status(&target, &patch).await {
        // The next attempt says it again.
        debug!(%pod, error = %chain(&error), "Condition was not written");
    }
    Done::Reported
}

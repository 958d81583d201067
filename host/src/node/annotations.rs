//! What parts of this node want said in its Node object's annotations. Merges; one task writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Cheap to clone; whoever holds it may say something. The Node's keeper writes what changed, and again whatever somebody
/// else took away.
#[derive(Clone)]
pub(crate) struct Annotations(Arc<watch::Sender<BTreeMap<&'static str, Option<String>>>>);

// === impl Annotations ===

impl Annotations {
    pub(crate) fn new() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }

    /// `None` takes the annotation away.
    pub(crate) fn set(&self, key: &'static str, value: Option<String>) {
        self.0.send_if_modified(|all| {
            let before = all.insert(key, value.clone());
            before != Some(value)
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<BTreeMap<&'static str, Option<String>>> {
        self.0.subscribe()
    }
}

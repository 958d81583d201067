//! Follows Namespaces: which there are, for DNS, and their labels, for policies. One task owns them; readers get the latest
//! set through a `watch` channel.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Namespace;
use kube::runtime::watcher::Event;
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::services::follow;

pub(crate) type Labels = BTreeMap<String, String>;

/// All Namespaces of the cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct Namespaces {
    labels: HashMap<String, Arc<Labels>>,
    /// They have been listed completely at least once.
    pub(crate) complete: bool,
}

/// Events in, sets out.
#[derive(Default)]
struct Index {
    known: Namespaces,
    /// What a relist has not mentioned yet is gone when it ends.
    relisted: Option<HashSet<String>>,
}

/// Runs until `stop`. Watch errors are retried inside kube's watcher; the last set stays meanwhile.
pub(crate) async fn run(
    client: Client,
    published: watch::Sender<Arc<Namespaces>>,
    stop: CancellationToken,
) {
    let mut events = std::pin::pin!(follow::<Namespace>(client, "Namespace"));
    let mut index = Index::default();
    loop {
        let event = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        let Some(event) = event else { return };
        if index.apply(event) {
            published.send_replace(Arc::new(index.known.clone()));
        }
    }
}

// === impl Namespaces ===

impl Namespaces {
    pub(crate) fn has(&self, name: &str) -> bool {
        self.labels.contains_key(name)
    }

    pub(crate) fn labels(&self, name: &str) -> Option<&Arc<Labels>> {
        self.labels.get(name)
    }

    #[cfg(test)]
    pub(crate) fn of(names: &[&str]) -> Self {
        let labels = names.iter().map(|name| {
            let key = types::well_known::LABEL_NAMESPACE_NAME.to_owned();
            let labels = Labels::from([(key, (*name).to_owned())]);
            ((*name).to_owned(), Arc::new(labels))
        });
        Self {
            labels: labels.collect(),
            complete: true,
        }
    }

    #[cfg(test)]
    pub(crate) fn label(mut self, name: &str, key: &str, value: &str) -> Self {
        let labels = Arc::make_mut(self.labels.entry(name.to_owned()).or_default());
        labels.insert(key.to_owned(), value.to_owned());
        self
    }
}

// === impl Index ===

impl Index {
    /// True when there is something to tell.
    fn apply(&mut self, event: Event<Namespace>) -> bool {
        match event {
            Event::Init => self.relisted = Some(HashSet::new()),
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.relisted {
                    seen.insert(object.name_any());
                }
                self.put(object);
            }
            Event::Apply(object) => return self.put(object),
            Event::Delete(object) => {
                return self.known.labels.remove(&object.name_any()).is_some();
            }
            Event::InitDone => {
                let seen = self.relisted.take().unwrap_or_default();
                self.known.labels.retain(|name, _| seen.contains(name));
                self.known.complete = true;
                return true;
            }
        }
        false
    }

    fn put(&mut self, object: Namespace) -> bool {
        let name = object.name_any();
        let labels = object.metadata.labels.unwrap_or_default();
        if self.known.labels(&name).is_some_and(|old| **old == labels) {
            return false;
        }
        self.known.labels.insert(name, Arc::new(labels));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str, value: &str) -> Namespace {
        let object = serde_json::json!({"metadata": {"name": name, "labels": {"a": value}}});
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_relist_forgets_what_is_gone() {
        let mut index = Index::default();
        for event in [
            Event::Init,
            Event::InitApply(namespace("one", "1")),
            Event::InitApply(namespace("two", "1")),
        ] {
            assert!(!index.apply(event), "half a list is not told");
        }
        assert!(index.apply(Event::InitDone) && index.known.complete);
        assert!(
            !index.apply(Event::Apply(namespace("one", "1"))),
            "nothing new"
        );
        assert!(index.apply(Event::Apply(namespace("one", "2"))));
        assert_eq!(index.known.labels("one").unwrap()["a"], "2");
        index.apply(Event::Init);
        index.apply(Event::InitApply(namespace("one", "2")));
        assert!(index.known.has("two"), "until the list is complete");
        assert!(index.apply(Event::InitDone));
        assert!(!index.known.has("two"));
        assert!(index.apply(Event::Delete(namespace("one", "2"))));
        assert!(!index.apply(Event::Delete(namespace("one", "2"))));
    }
}

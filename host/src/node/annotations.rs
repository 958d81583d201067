//! What parts of this node want said in its Node object's annotations. Merges; one task writes.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// Annotations by key; `None` takes one away.
type Wanted = BTreeMap<&'static str, Option<String>>;

/// Cheap to clone; whoever holds it may say something. The Node's keeper writes what changed, and again whatever somebody
/// else took away.
#[derive(Clone, Debug)]
pub(crate) struct Annotations(Arc<watch::Sender<Wanted>>);

// === impl Annotations ===

impl Default for Annotations {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(BTreeMap::new())))
    }
}

impl Annotations {
    /// `None` takes the annotation away.
    pub(crate) fn set(&self, key: &'static str, value: Option<String>) {
        self.0.send_if_modified(|all| {
            let before = all.insert(key, value.clone());
            before != Some(value)
        });
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Wanted> {
        self.0.subscribe()
    }
}

/// What has to be written so that a Node with the annotations `there` says what is wanted; `None` when it does.
pub(super) fn patch(
    wanted: &Wanted,
    there: Option<&BTreeMap<String, String>>,
) -> Option<serde_json::Value> {
    let differs = |(key, value): &(&&'static str, &Option<String>)| {
        there.and_then(|there| there.get(**key)) != value.as_ref()
    };
    let changes: serde_json::Map<_, _> = wanted
        .iter()
        .filter(differs)
        .map(|(key, value)| ((*key).to_owned(), value.clone().into()))
        .collect();
    (!changes.is_empty()).then(|| serde_json::json!({"metadata": {"annotations": changes}}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_written_and_what_is_unwanted_taken_away() {
        let annotations = Annotations::default();
        annotations.set("same", Some("1".to_owned()));
        annotations.set("changed", Some("2".to_owned()));
        annotations.set("unwanted", None);
        annotations.set("never there", None);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let there = BTreeMap::from([
            pair("same", "1"),
            pair("changed", "1"),
            pair("unwanted", "1"),
            pair("of others", "1"),
        ]);
        let wanted = annotations.subscribe().borrow().clone();
        let written = patch(&wanted, Some(&there)).expect("something to write");
        assert_eq!(
            written,
            json!({"metadata": {"annotations": {"changed": "2", "unwanted": null}}})
        );
        annotations.set("changed", Some("1".to_owned()));
        annotations.set("unwanted", Some("1".to_owned()));
        let wanted = annotations.subscribe().borrow().clone();
        assert_eq!(patch(&wanted, Some(&there)), None);
    }

    #[test]
    fn saying_the_same_again_wakes_nobody() {
        let annotations = Annotations::default();
        annotations.set("a", Some("1".to_owned()));
        let mut seen = annotations.subscribe();
        seen.mark_unchanged();
        annotations.set("a", Some("1".to_owned()));
        assert!(!seen.has_changed().expect("the sender lives"));
    }
}

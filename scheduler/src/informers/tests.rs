//! What a store tells of new lists, and how it asks.

use super::*;
use crate::objects::Metadata;
use std::sync::atomic::{AtomicUsize, Ordering};

fn object(name: &str, uid: &str, revision: u64) -> Metadata {
    let mut object = Metadata::default();
    object.metadata.name = name.to_owned();
    object.metadata.uid = uid.to_owned();
    object.metadata.resource_version = revision.to_string();
    object
}

#[tokio::test]
async fn a_new_list_is_told_as_differences() {
    let store = Store::<Metadata>::indexed("/x".to_owned(), |o| Some(o.metadata.uid.clone()));
    let (added, removed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counters = (Arc::clone(&added), Arc::clone(&removed));
    store.on_change(move |change| {
        match (change.old, change.new) {
            (None, Some(_)) => counters.0.fetch_add(1, Ordering::Relaxed),
            (Some(_), None) => counters.1.fetch_add(1, Ordering::Relaxed),
            _ => 0,
        };
    });
    store
        .inner
        .replace(vec![object("a", "1", 1), object("b", "2", 2)], 2);
    store
        .inner
        .replace(vec![object("b", "3", 3), object("c", "4", 4)], 4);
    // `a` went, `b` was replaced by another object of the same name, `c` came.
    assert_eq!(added.load(Ordering::Relaxed), 4);
    assert_eq!(removed.load(Ordering::Relaxed), 2);
    assert!(store.by_index("2").is_empty());
    assert_eq!(store.by_index("3").len(), 1);
    assert!(store.reached(4, Duration::from_secs(1)).await);
    assert!(!store.reached(5, Duration::from_millis(1)).await);
}

#[test]
fn tokens_are_escaped() {
    assert_eq!(percent_encode("a+/=").collect::<String>(), "a%2B%2F%3D");
}

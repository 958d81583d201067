//! Is what a ServiceAccount token is bound to still there? Asked at every use; reads the cache and parses only what is being
//! deleted.

use jiff::Timestamp;
use serde_json::Value;

use super::tokens::{Bound, Claims, LEEWAY};
use crate::cache::Cache;
use crate::store::Stored;

/// The account, and the pod, Secret or node the token was made for. A pod that is ending keeps its token until it should be
/// over, and a minute longer.
pub(super) fn holds(cache: &Cache, claims: &Claims, now: Timestamp) -> bool {
    let namespace = &*claims.namespace;
    let there = |resource: &str, namespace: &str, bound: &Bound| {
        let stored = cache.find(resource, namespace, &bound.name);
        stored.is_some_and(|stored| is_same(&stored, &bound.uid) && !is_over(&stored, now))
    };
    let optional = |resource: &str, namespace: &str, bound: Option<&Bound>| {
        bound.is_none_or(|bound| there(resource, namespace, bound))
    };
    // A token that is bound to a pod only mentions its node.
    let node = claims.node.as_ref().filter(|_| claims.pod.is_none());
    there("serviceaccounts", namespace, &claims.account)
        && optional("pods", namespace, claims.pod.as_ref())
        && optional("secrets", namespace, claims.secret.as_ref())
        && optional("nodes", "", node)
}

fn is_same(stored: &Stored, uid: &str) -> bool {
    *stored.index.uid == *uid
}

fn is_over(stored: &Stored, now: Timestamp) -> bool {
    let key = b"\"deletionTimestamp\":\"";
    let mentioned = stored.bytes.windows(key.len()).any(|window| window == key);
    if !mentioned {
        return false;
    }
    let object: Value = serde_json::from_slice(&stored.bytes).unwrap_or_default();
    let Some(at) = object["metadata"]["deletionTimestamp"].as_str() else {
        return false;
    };
    let at: Option<Timestamp> = at.parse().ok();
    at.is_none_or(|at| at.as_second().saturating_add(LEEWAY) < now.as_second())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::auth::tokens::tests::claims;
    use crate::store::memory::Memory;
    use crate::store::{Change, Draft, Expect, Index, Key, Operation, Store as _};

    async fn put(
        store: &Memory,
        resource: &str,
        namespace: &str,
        name: &str,
        uid: &str,
        deleted: Option<&str>,
    ) {
        let object = json!({"metadata": {"name": name, "uid": uid, "deletionTimestamp": deleted}});
        let draft = Draft {
            head: "{\"revision\":".into(),
            tail: format!(",{}", &object.to_string()[1..]).into(),
            index: Index {
                uid: uid.into(),
                ..Index::default()
            },
        };
        let operation = Operation {
            key: Key::new(resource, namespace, name),
            expect: Expect::Any,
            change: Change::Put(draft),
        };
        store.commit(vec![operation]).await.expect("committed");
    }

    #[tokio::test]
    async fn a_token_ends_with_what_it_is_bound_to() {
        let store = Memory::new();
        let now: Timestamp = "2026-11-23T12:00:00Z".parse().expect("a time");
        let good = || holds(store.cache(), &claims(), now);
        assert!(!good(), "no account");
        put(&store, "serviceaccounts", "ns", "robot", "u1", None).await;
        assert!(!good(), "no pod");
        put(&store, "pods", "ns", "p", "u2", None).await;
        assert!(good(), "the node is only mentioned");
        put(
            &store,
            "pods",
            "ns",
            "p",
            "u2",
            Some("2026-11-23T12:00:30Z"),
        )
        .await;
        assert!(good(), "the pod is ending");
        put(
            &store,
            "pods",
            "ns",
            "p",
            "u2",
            Some("2026-11-23T11:58:59Z"),
        )
        .await;
        assert!(!good(), "the pod should be over");
        put(&store, "pods", "ns", "p", "other", None).await;
        assert!(!good(), "another pod of that name");
        put(&store, "pods", "ns", "p", "u2", None).await;
        put(&store, "serviceaccounts", "ns", "robot", "other", None).await;
        assert!(!good(), "another account of that name");
    }
}

//! Lists in pages, watches, revisions.

use std::time::Duration;

use futures::TryStreamExt as _;
use http::Request;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use serde_json::{Value, json};

use crate::support::{Answer, CONFIGMAPS, World, configmap};

fn lines(answer: &Answer) -> Vec<Value> {
    answer
        .text
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

fn summary(events: &[Value]) -> Vec<String> {
    events
        .iter()
        .map(|event| {
            let name = event["object"]["metadata"]["name"].as_str().unwrap_or("-");
            format!("{} {name}", event["type"].as_str().unwrap_or("?"))
        })
        .collect()
}

#[tokio::test]
async fn pages_are_of_one_revision_and_cover_everything_once() {
    let world = World::start().await;
    for name in ["a", "b", "c", "d"] {
        world.post(CONFIGMAPS, &configmap(name)).await.expect(201);
    }
    let first = world
        .get(&format!("{CONFIGMAPS}?limit=2"))
        .await
        .expect(200)
        .json();
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    assert!(
        first["items"][0].get("kind").is_none(),
        "items leave their kind out"
    );
    world.post(CONFIGMAPS, &configmap("bb")).await.expect(201);
    let mut names = Vec::new();
    let mut page = first.clone();
    loop {
        for item in page["items"].as_array().expect("items") {
            names.push(
                item["metadata"]["name"]
                    .as_str()
                    .expect("a name")
                    .to_owned(),
            );
        }
        assert_eq!(
            page["metadata"]["resourceVersion"],
            first["metadata"]["resourceVersion"]
        );
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        page = world
            .get(&format!("{CONFIGMAPS}?limit=2&continue={token}"))
            .await
            .expect(200)
            .json();
    }
    assert_eq!(names, ["a", "b", "c", "d", "kube-root-ca.crt"]);
}

#[tokio::test]
async fn an_expired_page_hands_out_a_token_that_goes_on() {
    let world = World::start().await;
    for name in ["a", "b", "c"] {
        world.post(CONFIGMAPS, &configmap(name)).await.expect(201);
    }
    let first = world.get(&format!("{CONFIGMAPS}?limit=1")).await.json();
    let token = first["metadata"]["continue"].as_str().expect("more");
    world.post(CONFIGMAPS, &configmap("aa")).await.expect(201);
    let store = world.handle.store();
    store
        .compact(store.cache().revision())
        .await
        .expect("compacted");
    let expired = world
        .get(&format!("{CONFIGMAPS}?limit=1&continue={token}"))
        .await
        .expect(410)
        .json();
    assert_eq!(expired["reason"], "Expired");
    let token = expired["metadata"]["continue"]
        .as_str()
        .expect("an inconsistent token");
    let next = world
        .get(&format!("{CONFIGMAPS}?limit=1&continue={token}"))
        .await
        .expect(200)
        .json();
    assert_eq!(next["items"][0]["metadata"]["name"], "aa");
}

#[tokio::test]
async fn a_watch_tells_what_happened_after_its_revision() {
    let world = World::start().await;
    let created = world.post(CONFIGMAPS, &configmap("a")).await.json();
    let revision = created["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision");
    world
        .patch(
            &format!("{CONFIGMAPS}/a"),
            "merge",
            &json!({"data": {"b": "2"}}),
        )
        .await
        .expect(200);
    world.post(CONFIGMAPS, &configmap("b")).await.expect(201);
    world
        .delete(&format!("{CONFIGMAPS}/a"), &json!({}))
        .await
        .expect(200);
    let uri = format!("{CONFIGMAPS}?watch=true&timeoutSeconds=1&resourceVersion={revision}");
    let events = lines(&world.get(&uri).await.expect(200));
    assert_eq!(summary(&events), ["MODIFIED a", "ADDED b", "DELETED a"]);
    let gone = &events[2]["object"]["metadata"]["resourceVersion"];
    let before = &events[1]["object"]["metadata"]["resourceVersion"];
    let number = |value: &Value| value.as_str().and_then(|text| text.parse::<u64>().ok());
    assert_eq!(
        number(gone),
        number(before).map(|n| n + 1),
        "the deletion's own revision"
    );
}

#[tokio::test]
async fn leaving_a_selector_is_a_deletion_and_entering_it_an_addition() {
    let world = World::start().await;
    let created = world.post(CONFIGMAPS, &configmap("a")).await.json();
    let revision = created["metadata"]["resourceVersion"]
        .as_str()
        .expect("a revision");
    for label in [json!("x"), json!("y"), json!("x")] {
        let labels = json!({"metadata": {"labels": {"l": label}}});
        world
            .patch(&format!("{CONFIGMAPS}/a"), "merge", &labels)
            .await
            .expect(200);
    }
    let uri = format!(
        "{CONFIGMAPS}?watch=true&timeoutSeconds=1&resourceVersion={revision}&labelSelector=l%3Dx"
    );
    let events = lines(&world.get(&uri).await.expect(200));
    assert_eq!(summary(&events), ["ADDED a", "DELETED a", "ADDED a"]);
    assert_eq!(
        events[1]["object"]["metadata"]["labels"]["l"], "x",
        "as it was"
    );
}

#[tokio::test]
async fn initial_events_end_with_their_bookmark() {
    let world = World::start().await;
    world.post(CONFIGMAPS, &configmap("a")).await.expect(201);
    let uri = format!(
        "{CONFIGMAPS}?watch=true&timeoutSeconds=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let events = lines(&world.get(&uri).await.expect(200));
    assert_eq!(
        summary(&events),
        ["ADDED a", "ADDED kube-root-ca.crt", "BOOKMARK -"]
    );
    assert_eq!(
        events[2]["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
}

#[tokio::test]
async fn a_watch_from_before_the_horizon_ends_with_410() {
    let world = World::start().await;
    world.post(CONFIGMAPS, &configmap("a")).await.expect(201);
    let store = world.handle.store();
    store
        .compact(store.cache().revision())
        .await
        .expect("compacted");
    let uri = format!("{CONFIGMAPS}?watch=true&resourceVersion=1");
    let events = lines(&world.get(&uri).await.expect(200));
    assert_eq!(events[0]["type"], "ERROR");
    assert_eq!(events[0]["object"]["code"], 410);
    assert_eq!(events[0]["object"]["reason"], "Expired");
}

#[tokio::test]
async fn kubes_watcher_follows_in_both_of_its_modes() {
    let world = World::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(world.client());
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let name = format!("w-{}", rand_name());
        let stream = watcher(maps.clone(), config).applied_objects();
        let mut stream = std::pin::pin!(stream);
        world.post(CONFIGMAPS, &configmap(&name)).await.expect(201);
        let found = async {
            while let Some(map) = stream.try_next().await.expect("watches") {
                if map.metadata.name.as_deref() == Some(&name) {
                    return;
                }
            }
            panic!("the watch ended");
        };
        tokio::time::timeout(Duration::from_secs(5), found)
            .await
            .expect("in time");
    }
}

fn rand_name() -> u32 {
    uuid::Uuid::new_v4().as_fields().0
}

#[tokio::test]
async fn tables_and_bare_metadata_are_other_shapes_of_the_same() {
    let world = World::start().await;
    world.post(CONFIGMAPS, &configmap("a")).await.expect(201);
    let shaped = |accept: &'static str, uri: String| {
        Request::get(uri)
            .header("accept", accept)
            .body(axum::body::Body::empty())
            .expect("a request")
    };
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let list = world
        .call(shaped(table, CONFIGMAPS.to_owned()))
        .await
        .expect(200)
        .json();
    assert_eq!(list["kind"], "Table");
    assert_eq!(list["rows"][0]["cells"][0], "a");
    let partial = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
    let list = world
        .call(shaped(partial, CONFIGMAPS.to_owned()))
        .await
        .expect(200)
        .json();
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    assert!(list["items"][0].get("data").is_none());
    let uri = format!("{CONFIGMAPS}?watch=true&timeoutSeconds=1&fieldSelector=metadata.name%3Da");
    let events = lines(&world.call(shaped(table, uri)).await.expect(200));
    assert_eq!(events[0]["object"]["kind"], "Table");
    assert_eq!(events[0]["object"]["rows"][0]["cells"][0], "a");
}

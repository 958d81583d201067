//! What a store tells of new lists, and how it asks.

use super::*;
use crate::controllers::Informers;
use crate::objects::{Metadata, Object, Unread};
use api::schema::{GroupVersionKind, Schema, Type, TypeId};
use kube::client::Body;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::convert::Infallible;
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

/// Of a kind whose number the API knows to be any, and this program believes to be small.
#[derive(Clone, Default, Deserialize)]
struct Small {
    #[expect(dead_code, reason = "only decoded")]
    size: u8,
}

fn small(name: &str, revision: u64, size: i64) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": revision.to_string()}, "spec": {"size": size}})
}

#[tokio::test]
async fn what_cannot_be_read_is_left_out_and_holds_up_nothing() {
    let answer = |request: http::Request<Body>| async move {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let events = [
            ("MODIFIED", small("was-good", 4, -1)),
            ("MODIFIED", small("was-bad", 5, 1)),
            ("ADDED", small("bad", 6, 256)),
            ("ADDED", small("good", 7, 1)),
            ("DELETED", small("bad", 8, 256)),
        ];
        let text = if !query.contains("watch=true") {
            let items = [
                small("stays", 1, 1),
                small("was-bad", 2, -1),
                small("was-good", 3, 1),
            ];
            json!({"metadata": {"resourceVersion": "3"}, "items": items}).to_string()
        } else if query.contains("resourceVersion=3&") {
            let line = |(kind, object)| format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n");
            events.map(line).concat()
        } else {
            String::new()
        };
        Ok::<_, Infallible>(http::Response::new(Body::from(text.into_bytes())))
    };
    let client = Client::new(tower::service_fn(answer), "default");
    let store = Store::<Object<Small, Unread>>::new("/x".to_owned());
    let stop = CancellationToken::new();
    let (running, asking) = (store.during(&stop), stop.clone());
    let running = tokio::spawn(async move { running.run(client, asking).await });
    assert!(store.reached(8, Duration::from_secs(10)).await);
    let names: Vec<String> = store.keys().into_iter().map(|key| key.name).collect();
    assert_eq!(names, ["good", "stays", "was-bad"]);
    stop.cancel();
    running.await.expect("it ends");
}

/// Everything that can stand in an object of a type, with the same number wherever there is an integer.
fn filled(schema: &Schema, ty: TypeId, number: fn(u8) -> i64, above: &mut Vec<TypeId>) -> Value {
    match schema.get(ty) {
        // A type inside itself ends there.
        Type::Struct(_) if above.contains(&ty) => json!({}),
        Type::Struct(fields) => {
            above.push(ty);
            let fields = fields
                .fields
                .iter()
                .map(|(name, field)| (name.to_string(), filled(schema, field.ty, number, above)));
            let fields: Map<String, Value> = fields.collect();
            above.pop();
            fields.into()
        }
        Type::Map { value, .. } => json!({"k": filled(schema, *value, number, above)}),
        Type::List { item, .. } => json!([filled(schema, *item, number, above)]),
        Type::Integer { bits } => number(*bits).into(),
        Type::IntOrString => number(32).into(),
        Type::String => "text".into(),
        Type::Number => 0.5.into(),
        Type::Boolean => true.into(),
        Type::Bytes => "AAAA".into(),
        Type::Quantity => "1".into(),
        Type::Time => "2026-01-01T00:00:00Z".into(),
        Type::MicroTime => "2026-01-01T00:00:00.000000Z".into(),
        Type::Any => json!({}),
    }
}

#[test]
fn whatever_number_can_be_stored_can_be_read() {
    let (schema, kinds) = (api::schema::builtin(), api::kinds::table());
    for (url, decode) in Informers::new().decoders() {
        // `/api/v1/pods`, `/api/v1/namespaces/NAME/secrets`, `/apis/GROUP/VERSION/PLURAL`
        let path: Vec<&str> = url.split('/').skip(1).collect();
        let (group, version) = match path[0] {
            "api" => ("", path[1]),
            _ => (path[1], path[2]),
        };
        let plural = path[path.len() - 1];
        let kind = kinds.find(group, version, plural).expect("a kind");
        let gvk = GroupVersionKind::new(group, version, &*kind.kind);
        let ty = schema.kind(&gvk).expect("a type");
        let numbers: [fn(u8) -> i64; 2] = [
            |_| -1,
            |bits| match bits {
                32 => i32::MAX.into(),
                _ => i64::MAX,
            },
        ];
        for number in numbers {
            let object = filled(schema, ty, number, &mut Vec::new());
            if let Err(error) = decode(&object.to_string()) {
                panic!("{url}: {error}\n{object:#}");
            }
        }
    }
}

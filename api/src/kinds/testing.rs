//! A small world of stored objects, and checks of a kind's rules, for tests.

use std::net::Ipv4Addr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use serde_json::Value;

use super::strategy::{Door, Lookup, NodeRanges, Strategy};
use super::table;
use crate::object::Object;
use crate::status::Cause;
use crate::store::{Change, Draft, Expect, Index, Key, Operation, Stored};

/// Objects that a `Lookup` finds; random numbers count up from zero.
#[derive(Default)]
pub(crate) struct World {
    objects: Vec<Arc<Stored>>,
    random: std::sync::atomic::AtomicU64,
}

// === impl World ===

impl World {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub(crate) fn with(mut self, resource: &str, object: Value) -> Self {
        let text = |key: &str| {
            object["metadata"][key]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        let key = Key::new(resource, &text("namespace"), &text("name"));
        self.put(key, object);
        self
    }

    fn put(&mut self, key: Key, object: Value) {
        let fields = table().stored(&key.resource).map(|kind| {
            let object = Object::new(object.clone()).expect("an object");
            kind.strategy.fields(&object)
        });
        let fields = fields.into_iter().flatten();
        self.objects.retain(|stored| stored.key != key);
        self.objects.push(Arc::new(Stored {
            key,
            revision: 1,
            created: 1,
            bytes: object.to_string().into(),
            index: Index {
                uid: object["metadata"]["uid"]
                    .as_str()
                    .unwrap_or_default()
                    .into(),
                fields: fields.map(|(name, value)| (name, value.into())).collect(),
                ..Index::default()
            },
        }));
    }

    /// Does what a commit would, if every expectation holds.
    pub(crate) fn commit(&mut self, operations: Vec<Operation>) -> Result<(), Key> {
        for operation in &operations {
            let found = self.get(&operation.key);
            let fine = match operation.expect {
                Expect::Absent => found.is_none(),
                Expect::At(revision) => found.is_some_and(|found| found.revision == revision),
                Expect::Any => true,
            };
            if !fine {
                return Err(operation.key.clone());
            }
        }
        for operation in operations {
            match operation.change {
                Change::Put(draft) => self.put(operation.key, parse(&draft)),
                Change::Delete(_) => self.objects.retain(|stored| stored.key != operation.key),
            }
        }
        Ok(())
    }
}

fn parse(draft: &Draft) -> Value {
    serde_json::from_slice(&draft.finish(1)).expect("a draft is JSON")
}

impl Lookup for World {
    fn get(&self, key: &Key) -> Option<Arc<Stored>> {
        self.objects
            .iter()
            .find(|stored| stored.key == *key)
            .cloned()
    }

    fn list(&self, resource: &str, namespace: Option<&str>) -> Vec<Arc<Stored>> {
        self.objects
            .iter()
            .filter(|stored| &*stored.key.resource == resource)
            .filter(|stored| namespace.is_none_or(|name| &*stored.key.namespace == name))
            .cloned()
            .collect()
    }

    fn now(&self) -> jiff::Timestamp {
        jiff::Timestamp::UNIX_EPOCH
    }

    fn service_cidr(&self) -> ipnet::Ipv4Net {
        ipnet::Ipv4Net::new(Ipv4Addr::new(10, 96, 0, 0), 28).expect("a valid range")
    }

    fn node_ports(&self) -> RangeInclusive<u16> {
        30000..=30002
    }

    fn node_ranges(&self) -> Option<NodeRanges> {
        let within = ipnet::Ipv4Net::new(Ipv4Addr::new(100, 64, 0, 0), 10).expect("a range");
        Some(NodeRanges { within, prefix: 18 })
    }

    fn random(&self) -> u64 {
        self.random
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    }
}

/// An object from YAML.
pub(crate) fn yaml(text: &str) -> Object {
    let value: Value = serde_norway::from_str(text).expect("valid YAML");
    Object::new(value).expect("an object")
}

fn strategy(plural: &str) -> &'static dyn Strategy {
    let mut rows = table().all().iter().filter(|kind| kind.is_stored());
    rows.find(|kind| kind.plural == plural)
        .expect("served")
        .strategy
}

/// A new object as its strategy leaves it.
pub(crate) fn defaulted(plural: &str, text: &str) -> Value {
    let mut object = yaml(text);
    strategy(plural).default(&mut object);
    let once = object.clone();
    strategy(plural).default(&mut object);
    assert_eq!(object, once, "defaulting twice is the same as once");
    strategy(plural).prepare(&mut object, None, Door::Main);
    object.into_value()
}

/// The causes a new object gets, as `field: message`, must be exactly these.
pub(crate) fn check(plural: &str, text: &str, expected: &[&str]) {
    let mut object = yaml(text);
    strategy(plural).default(&mut object);
    let causes = strategy(plural).validate(&object, None, Door::Main);
    assert_eq!(lines(&causes), expected, "{text}");
}

/// The causes an update gets.
pub(crate) fn check_update(plural: &str, old: &str, new: &str, expected: &[&str]) {
    let (mut old, mut new) = (yaml(old), yaml(new));
    strategy(plural).default(&mut old);
    strategy(plural).default(&mut new);
    strategy(plural).prepare(&mut new, Some(&old), Door::Main);
    let causes = strategy(plural).validate(&new, Some(&old), Door::Main);
    assert_eq!(lines(&causes), expected);
}

fn lines(causes: &[Cause]) -> Vec<String> {
    causes
        .iter()
        .map(|cause| format!("{}: {}", cause.field, cause.message))
        .collect()
}

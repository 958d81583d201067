//! What a server sends of objects: lists, and each object by itself, readable or not. Decides nothing and keeps nothing.
//!
//! One object that this program cannot read must not hold up all others of its kind: it is told apart, with its name.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::objects::Key;

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
pub(super) struct List<T> {
    pub(super) metadata: ListMeta,
    #[serde(default = "Vec::new")]
    pub(super) items: Vec<Item<T>>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct ListMeta {
    pub(super) resource_version: String,
    #[serde(rename = "continue")]
    pub(super) continue_: String,
}

#[derive(Clone)]
pub(super) enum Item<T> {
    Readable(T),
    Unreadable(Unreadable),
}

/// What is known of an object that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Unreadable {
    pub(super) key: Key,
    pub(super) revision: u64,
    pub(super) why: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Named {
    metadata: Name,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Name {
    name: String,
    namespace: String,
    resource_version: String,
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let error = match serde_json::from_str(raw.get()) {
            Ok(object) => return Ok(Self::Readable(object)),
            Err(error) => error,
        };
        let Named { metadata } = serde_json::from_str(raw.get()).unwrap_or_default();
        Ok(Self::Unreadable(Unreadable {
            key: Key::new(metadata.namespace, metadata.name),
            revision: metadata.resource_version.parse().unwrap_or(0),
            why: error.to_string(),
        }))
    }
}

//! A parsed object: a JSON tree and the questions everyone asks of its metadata.
//!
//! An [`Object`] lives only while a write is worked on; at rest an object is finished bytes (`store::Stored`).
//! Never does I/O, never knows a kind.

use serde_json::{Map, Value};

/// One API object as a JSON tree. The root is always a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object(Value);

// === impl Object ===

impl Object {
    /// Wraps a tree; anything but a JSON object is refused and handed back.
    pub fn new(value: Value) -> Result<Self, Value> {
        if value.is_object() {
            Ok(Self(value))
        } else {
            Err(value)
        }
    }

    pub fn value(&self) -> &Value {
        &self.0
    }

    pub fn into_value(self) -> Value {
        self.0
    }

    pub fn map(&self) -> &Map<String, Value> {
        self.0
            .as_object()
            .expect("the root of an Object is a JSON object")
    }

    pub fn map_mut(&mut self) -> &mut Map<String, Value> {
        self.0
            .as_object_mut()
            .expect("the root of an Object is a JSON object")
    }

    /// The value at `path`, object keys only: `at(&["spec", "replicas"])`.
    pub fn at(&self, path: &[&str]) -> Option<&Value> {
        path.iter().try_fold(&self.0, |value, key| value.get(key))
    }

    pub fn at_mut(&mut self, path: &[&str]) -> Option<&mut Value> {
        path.iter()
            .try_fold(&mut self.0, |value, key| value.get_mut(key))
    }

    pub fn str_at(&self, path: &[&str]) -> Option<&str> {
        self.at(path)?.as_str()
    }

    pub fn i64_at(&self, path: &[&str]) -> Option<i64> {
        self.at(path)?.as_i64()
    }

    pub fn bool_at(&self, path: &[&str]) -> bool {
        self.at(path).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Items of the list at `path`; empty when absent.
    pub fn list_at(&self, path: &[&str]) -> &[Value] {
        self.at(path)
            .and_then(Value::as_array)
            .map_or(&[], Vec::as_slice)
    }

    /// Sets `path`, making the objects on the way; whatever else stood on the way is replaced.
    pub fn set(&mut self, path: &[&str], value: Value) {
        let (last, parents) = path.split_last().expect("a path has at least one key");
        let mut map = self.map_mut();
        for key in parents {
            let slot = map.entry(*key).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            map = slot
                .as_object_mut()
                .expect("the line above made it an object");
        }
        map.insert((*last).to_owned(), value);
    }

    /// Sets `path` only where nothing (or null) stands there.
    pub fn set_default(&mut self, path: &[&str], value: Value) {
        if self.at(path).is_none_or(Value::is_null) {
            self.set(path, value);
        }
    }

    pub fn remove(&mut self, path: &[&str]) -> Option<Value> {
        let (last, parents) = path.split_last().expect("a path has at least one key");
        self.at_mut(parents)?.as_object_mut()?.remove(*last)
    }

    pub fn api_version(&self) -> &str {
        self.str_at(&["apiVersion"]).unwrap_or_default()
    }

    pub fn kind(&self) -> &str {
        self.str_at(&["kind"]).unwrap_or_default()
    }

    pub fn name(&self) -> &str {
        self.meta_str("name")
    }

    /// Empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.meta_str("namespace")
    }

    pub fn uid(&self) -> &str {
        self.meta_str("uid")
    }

    pub fn resource_version(&self) -> &str {
        self.meta_str("resourceVersion")
    }

    pub fn generation(&self) -> i64 {
        self.i64_at(&["metadata", "generation"]).unwrap_or(0)
    }

    pub fn labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.strings_at(&["metadata", "labels"])
    }

    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        self.strings_at(&["metadata", "annotations"])
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.str_at(&["metadata", "annotations", key])
    }

    pub fn finalizers(&self) -> impl Iterator<Item = &str> {
        self.list_at(&["metadata", "finalizers"])
            .iter()
            .filter_map(Value::as_str)
    }

    pub fn is_deleting(&self) -> bool {
        self.at(&["metadata", "deletionTimestamp"])
            .is_some_and(|at| !at.is_null())
    }

    fn meta_str(&self, key: &str) -> &str {
        self.str_at(&["metadata", key]).unwrap_or_default()
    }

    fn strings_at(&self, path: &[&str]) -> impl Iterator<Item = (&str, &str)> {
        let map = self.at(path).and_then(Value::as_object);
        map.into_iter()
            .flatten()
            .filter_map(|(key, value)| Some((key.as_str(), value.as_str()?)))
    }
}

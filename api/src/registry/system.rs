//! The fields of metadata that belong to the system: names, uids, times, generations. Pure but for randomness.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

use crate::object::Object;

/// No vowels, so that no words come out; no 0, 1, 3.
const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A name is 63 at most, and five characters are appended.
const LONGEST_BASE: usize = 58;

/// RFC 3339 in seconds: `2026-11-23T16:00:00Z`.
pub fn time(at: Timestamp) -> String {
    let second = Timestamp::from_second(at.as_second()).unwrap_or(at);
    second.to_string()
}

/// `base` and five random characters.
pub(super) fn generate_name(base: &str) -> String {
    let mut end = base.len().min(LONGEST_BASE);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    let mut name = base[..end].to_owned();
    name.push_str(&suffix(rand::random()));
    name
}

/// Five characters that make a name of its own.
pub(crate) fn suffix(mut random: u64) -> String {
    let letters = ALPHABET.len() as u64;
    let mut suffix = String::with_capacity(5);
    for _ in 0..5 {
        let letter = usize::try_from(random % letters).unwrap_or(0);
        suffix.push(char::from(ALPHABET[letter]));
        random /= letters;
    }
    suffix
}

/// Gives a new object its identity; what only the system may say is taken out first.
pub(super) fn identify(new: &mut Object, now: Timestamp) {
    for key in [
        "selfLink",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "resourceVersion",
    ] {
        new.remove(&["metadata", key]);
    }
    new.set(
        &["metadata", "uid"],
        json!(uuid::Uuid::new_v4().to_string()),
    );
    new.set(&["metadata", "creationTimestamp"], json!(time(now)));
}

/// Carries over what an update may leave out, and what it may never change by itself.
pub(super) fn inherit(new: &mut Object, old: &Object) {
    for key in ["name", "namespace", "uid", "creationTimestamp"] {
        let path = ["metadata", key];
        let absent = new.at(&path).is_none_or(|v| v.is_null() || v == "");
        if absent && let Some(value) = old.at(&path) {
            new.set(&path, value.clone());
        }
    }
    for key in ["generation", "selfLink", "generateName"] {
        keep(new, old, &["metadata", key]);
    }
    // A deletion cannot be taken back, nor its time be moved, by an update.
    for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
        keep(new, old, &["metadata", key]);
    }
}

/// Makes `path` in `new` what it is in `old`.
pub(super) fn keep(new: &mut Object, old: &Object, path: &[&str]) {
    match old.at(path) {
        Some(value) => {
            if new.at(path) != Some(value) {
                new.set(path, value.clone());
            }
        }
        None => {
            new.remove(path);
        }
    }
}

/// Does anything but metadata and status differ?
pub(super) fn spec_changed(new: &Object, old: &Object) -> bool {
    let rest = |key: &str| !matches!(key, "metadata" | "status" | "kind" | "apiVersion");
    differ(new.map(), old.map(), rest)
}

/// Equal but for the times at which managers last wrote the same fields, and the revision.
pub(super) fn same_but_for_times(new: &Object, old: &Object) -> bool {
    if differ(new.map(), old.map(), |key| key != "metadata") {
        return false;
    }
    let (Some(a), Some(b)) = (map_at(new, "metadata"), map_at(old, "metadata")) else {
        return new == old;
    };
    let plain = |key: &str| !matches!(key, "managedFields" | "resourceVersion");
    !differ(a, b, plain) && same_managers(new, old)
}

fn same_managers(new: &Object, old: &Object) -> bool {
    let path = ["metadata", "managedFields"];
    let (a, b) = (new.list_at(&path), old.list_at(&path));
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| match (a, b) {
            (Value::Object(a), Value::Object(b)) => !differ(a, b, |key| key != "time"),
            (a, b) => a == b,
        })
}

/// Do two maps differ in the keys that count?
fn differ(a: &Map<String, Value>, b: &Map<String, Value>, counts: impl Fn(&str) -> bool) -> bool {
    let in_a = a.iter().filter(|(key, _)| counts(key));
    let in_b = b.keys().filter(|key| counts(key)).count();
    let mut number = 0;
    for (key, value) in in_a {
        number += 1;
        if b.get(key) != Some(value) {
            return true;
        }
    }
    number != in_b
}

fn map_at<'o>(object: &'o Object, key: &str) -> Option<&'o Map<String, Value>> {
    object.at(&[key])?.as_object()
}

/// Marks the object as deleting from now, to be gone in `grace` seconds.
pub(super) fn mark_deleting(object: &mut Object, now: Timestamp, grace: i64) {
    let at = now
        .checked_add(SignedDuration::from_secs(grace))
        .unwrap_or(now);
    object.set(&["metadata", "deletionTimestamp"], json!(time(at)));
    object.set(&["metadata", "deletionGracePeriodSeconds"], json!(grace));
    if object.generation() > 0 {
        let next = object.generation() + 1;
        object.set(&["metadata", "generation"], json!(next));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(value: Value) -> Object {
        Object::new(value).expect("an object")
    }

    #[test]
    fn generated_names_are_cut_so_that_five_characters_fit() {
        let name = generate_name(&"x".repeat(70));
        assert_eq!(name.len(), 63);
        assert!(name.bytes().skip(58).all(|b| ALPHABET.contains(&b)));
        assert_ne!(generate_name("web-"), generate_name("web-"));
    }

    #[test]
    fn only_what_is_neither_metadata_nor_status_moves_the_generation() {
        let old = object(json!({"metadata": {"name": "a"}, "spec": {"x": 1}, "status": {}}));
        let mut new = old.clone();
        new.set(&["metadata", "labels", "a"], json!("b"));
        new.set(&["status", "x"], json!(2));
        assert!(!spec_changed(&new, &old));
        new.set(&["spec", "x"], json!(2));
        assert!(spec_changed(&new, &old));
        let without = object(json!({"metadata": {"name": "a"}, "status": {}}));
        assert!(spec_changed(&without, &old));
    }

    #[test]
    fn a_manager_that_writes_the_same_again_changes_nothing() {
        let at = |time: &str| {
            object(json!({"metadata": {"managedFields": [{"manager": "m", "time": time}]}}))
        };
        assert!(same_but_for_times(&at("1"), &at("2")));
        let mut other = at("2");
        other.set(&["metadata", "labels", "a"], json!("b"));
        assert!(!same_but_for_times(&at("1"), &other));
    }
}

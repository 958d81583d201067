//! Field paths: rendered only when something is wrong, and the pattern language of the rule tables.
//!
//! A pattern is keys joined by dots; `[]` behind a key means every item of the list there, `{}` every value of the map:
//! `spec.template.spec.containers[].ports[].protocol`.

use std::fmt;

use serde_json::Value;

/// Where one value stands, as a chain of borrowed steps on the stack: `spec.ports[0].port`.
#[derive(Clone, Copy)]
pub struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    step: Step<'a>,
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Key(&'a str),
    Index(usize),
    Entry(&'a str),
}

// === impl Path ===

impl<'a> Path<'a> {
    pub const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Root,
    };

    /// `self.name`; the name may hold dots (`spec.template`).
    pub fn key(&'a self, name: &'a str) -> Path<'a> {
        self.step(Step::Key(name))
    }

    /// `self[3]`.
    pub fn index(&'a self, at: usize) -> Path<'a> {
        self.step(Step::Index(at))
    }

    /// `self[key]`, an entry of a map.
    pub fn entry(&'a self, key: &'a str) -> Path<'a> {
        self.step(Step::Entry(key))
    }

    fn step(&'a self, step: Step<'a>) -> Path<'a> {
        Path {
            parent: Some(self),
            step,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut first = true;
        if let Some(parent) = self.parent {
            parent.fmt(out)?;
            first = parent.is_root();
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Key(name) if first => out.write_str(name),
            Step::Key(name) => write!(out, ".{name}"),
            Step::Index(at) => write!(out, "[{at}]"),
            Step::Entry(key) => write!(out, "[{key}]"),
        }
    }
}

impl Path<'_> {
    fn is_root(&self) -> bool {
        matches!(self.step, Step::Root) && self.parent.is_none()
    }
}

impl From<&Path<'_>> for String {
    fn from(path: &Path<'_>) -> Self {
        path.to_string()
    }
}

impl From<Path<'_>> for String {
    fn from(path: Path<'_>) -> Self {
        path.to_string()
    }
}

/// Calls `visit` at each place `pattern` names below `value`, with `None` where only the last key is absent (or null).
/// Places whose parents are absent are not visited.
pub fn walk<'v>(
    path: &Path<'_>,
    value: &'v Value,
    pattern: &str,
    visit: &mut dyn FnMut(&Path<'_>, Option<&'v Value>),
) {
    let (segment, rest) = match pattern.split_once('.') {
        Some((segment, rest)) => (segment, Some(rest)),
        None => (pattern, None),
    };
    let mut next = |path: &Path<'_>, found: Option<&'v Value>| match (rest, found) {
        (None, found) => visit(path, found),
        (Some(rest), Some(found)) => walk(path, found, rest, visit),
        (Some(_), None) => {}
    };
    if let Some(key) = segment.strip_suffix("[]") {
        let path = path.key(key);
        let items = value.get(key).and_then(Value::as_array);
        for (i, item) in items.into_iter().flatten().enumerate() {
            next(&path.index(i), Some(item));
        }
    } else if let Some(key) = segment.strip_suffix("{}") {
        let path = path.key(key);
        let entries = value.get(key).and_then(Value::as_object);
        for (name, item) in entries.into_iter().flatten() {
            next(&path.entry(name), Some(item));
        }
    } else {
        let found = value.get(segment).filter(|found| !found.is_null());
        next(&path.key(segment), found);
    }
}

/// Calls `visit` with every place `pattern` names that exists, to change it in place.
pub fn walk_mut(value: &mut Value, pattern: &str, visit: &mut dyn FnMut(&mut Value)) {
    let (segment, rest) = match pattern.split_once('.') {
        Some((segment, rest)) => (segment, Some(rest)),
        None => (pattern, None),
    };
    let mut next = |found: &mut Value| match rest {
        None => visit(found),
        Some(rest) => walk_mut(found, rest, visit),
    };
    if let Some(key) = segment.strip_suffix("[]") {
        let items = value.get_mut(key).and_then(Value::as_array_mut);
        items.into_iter().flatten().for_each(next);
    } else if let Some(key) = segment.strip_suffix("{}") {
        let entries = value.get_mut(key).and_then(Value::as_object_mut);
        entries
            .into_iter()
            .flat_map(|map| map.values_mut())
            .for_each(next);
    } else if let Some(found) = value.get_mut(segment).filter(|found| !found.is_null()) {
        next(found);
    }
}

/// Sets `key` of an object; anything else stays as it is (decoding has checked types, so it is an object or null).
pub fn put(value: &mut Value, key: &str, new: impl Into<Value>) {
    if let Value::Object(map) = value {
        map.insert(key.to_owned(), new.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn places(pattern: &str, value: &Value) -> Vec<(String, bool)> {
        let mut places = Vec::new();
        walk(&Path::ROOT, value, pattern, &mut |path, found| {
            places.push((path.to_string(), found.is_some()));
        });
        places
    }

    #[test]
    fn a_pattern_names_every_place_and_says_which_are_empty() {
        let value = json!({"spec": {"ports": [{"port": 1}, {}], "limits": {"cpu": "1"}}});
        assert_eq!(
            places("spec.ports[].port", &value),
            [
                ("spec.ports[0].port".into(), true),
                ("spec.ports[1].port".into(), false)
            ]
        );
        assert_eq!(
            places("spec.limits{}", &value),
            [("spec.limits[cpu]".into(), true)]
        );
        assert_eq!(places("spec.none.port", &value), []);
        assert_eq!(places("spec.none", &value), [("spec.none".into(), false)]);
    }
}

//! Sets of paths into an object, and their `FieldsV1` form. Pure set algebra; knows no types and no managers.
//!
//! ```text
//! {"f:spec": {"f:replicas": {}, "f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}}}}}
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// One step of a path.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Step {
    /// `f:name`: a field of a struct or a key of a map.
    Field(String),
    /// `k:{"name":"a"}`: the item of a keyed list; the canonical JSON of its keys, sorted.
    Key(String),
    /// `v:"a"`: the item of a set; its canonical JSON.
    Value(String),
    /// `i:0`: an item by position. We never make one; it is kept when a client sends one.
    Index(String),
}

/// A set of paths, as a tree. A path is a member or merely on the way to one.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Fields {
    steps: BTreeMap<Step, Node>,
}

#[derive(Clone, Debug, Default, Eq, PartialEq)]
struct Node {
    member: bool,
    below: Fields,
}

// === impl Step ===

impl Step {
    fn text(&self) -> String {
        match self {
            Self::Field(name) => format!("f:{name}"),
            Self::Key(keys) => format!("k:{keys}"),
            Self::Value(value) => format!("v:{value}"),
            Self::Index(at) => format!("i:{at}"),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        Some(match kind {
            "f" => Self::Field(rest.to_owned()),
            // Parsed and printed again, so that spacing and key order do not matter.
            "k" => Self::Key(
                serde_json::from_str::<BTreeMap<String, Value>>(rest)
                    .ok()
                    .map(|keys| json(&keys))?,
            ),
            "v" => Self::Value(
                serde_json::from_str::<Value>(rest)
                    .ok()
                    .map(|value| json(&value))?,
            ),
            "i" => Self::Index(rest.to_owned()),
            _ => return None,
        })
    }

    /// The step to the list item with these key fields.
    pub fn key(keys: &BTreeMap<&str, &Value>) -> Self {
        Self::Key(json(keys))
    }

    /// The step to the item `value` of a set.
    pub fn value(value: &Value) -> Self {
        Self::Value(json(value))
    }

    /// As conflict messages write it: `.image`, `[name="a"]`, `[="x"]`.
    fn readable(&self) -> String {
        match self {
            Self::Field(name) => format!(".{name}"),
            Self::Key(keys) => {
                let keys: BTreeMap<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<_> = keys
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                format!("[{}]", keys.join(","))
            }
            Self::Value(value) => format!("[={value}]"),
            Self::Index(at) => format!("[{at}]"),
        }
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("a JSON tree can always be printed")
}

// === impl Fields ===

impl Fields {
    pub fn is_empty(&self) -> bool {
        self.steps
            .values()
            .all(|node| !node.member && node.below.is_empty())
    }

    pub fn insert(&mut self, path: &[Step]) {
        let Some((first, rest)) = path.split_first() else {
            return;
        };
        let node = self.steps.entry(first.clone()).or_default();
        if rest.is_empty() {
            node.member = true;
        } else {
            node.below.insert(rest);
        }
    }

    /// Is the path one step below the root a member?
    pub fn has(&self, step: &Step) -> bool {
        self.steps.get(step).is_some_and(|node| node.member)
    }

    /// What lies below a step, if anything.
    pub fn below(&self, step: &Step) -> Option<&Self> {
        self.steps
            .get(step)
            .map(|node| &node.below)
            .filter(|below| !below.is_empty())
    }

    pub fn union(&self, other: &Self) -> Self {
        let mut all = self.clone();
        for (step, theirs) in &other.steps {
            let node = all.steps.entry(step.clone()).or_default();
            node.member |= theirs.member;
            node.below = node.below.union(&theirs.below);
        }
        all
    }

    /// Members of `self` that are not members of `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(|step, node| match other.steps.get(step) {
            Some(theirs) => Node {
                member: node.member && !theirs.member,
                below: node.below.difference(&theirs.below),
            },
            None => node.clone(),
        })
    }

    /// As [`Self::difference`], and everything below a member of `other` goes too.
    pub fn without(&self, other: &Self) -> Self {
        self.combine(|step, node| match other.steps.get(step) {
            Some(theirs) if theirs.member => Node::default(),
            Some(theirs) => Node {
                member: node.member,
                below: node.below.without(&theirs.below),
            },
            None => node.clone(),
        })
    }

    /// Members of both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(|step, node| match other.steps.get(step) {
            Some(theirs) => Node {
                member: node.member && theirs.member,
                below: node.below.intersection(&theirs.below),
            },
            None => Node::default(),
        })
    }

    fn combine(&self, mut decide: impl FnMut(&Step, &Node) -> Node) -> Self {
        let mut steps = BTreeMap::new();
        for (step, node) in &self.steps {
            let node = decide(step, node);
            if node.member || !node.below.is_empty() {
                steps.insert(step.clone(), node);
            }
        }
        Self { steps }
    }

    /// Makes every step for which `named` holds a member when anything below it is: `named` gets the steps from the root.
    pub fn with_named(&self, named: &mut impl FnMut(&[Step]) -> bool) -> Self {
        self.with_named_at(&mut Vec::new(), named)
    }

    fn with_named_at(&self, path: &mut Vec<Step>, named: &mut impl FnMut(&[Step]) -> bool) -> Self {
        let mut steps = BTreeMap::new();
        for (step, node) in &self.steps {
            path.push(step.clone());
            let below = node.below.with_named_at(path, named);
            let member = node.member || (!below.is_empty() && named(path));
            path.pop();
            steps.insert(step.clone(), Node { member, below });
        }
        Self { steps }
    }

    /// Every member, as conflict messages write it: `.spec.containers[name="a"].image`.
    pub fn readable(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.read_into("", &mut all);
        all
    }

    fn read_into(&self, prefix: &str, all: &mut Vec<String>) {
        for (step, node) in &self.steps {
            let mut path = prefix.to_owned();
            let _ = write!(path, "{}", step.readable());
            if node.member {
                all.push(path.clone());
            }
            node.below.read_into(&path, all);
        }
    }

    /// The `fieldsV1` form.
    pub fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (step, node) in &self.steps {
            let mut below = node.below.to_json();
            if node.member
                && !node.below.is_empty()
                && let Value::Object(below) = &mut below
            {
                below.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(step.text(), below);
        }
        Value::Object(map)
    }

    /// Reads the `fieldsV1` form; `None` when it is none.
    pub fn from_json(value: &Value) -> Option<Self> {
        let mut steps = BTreeMap::new();
        for (text, below) in value.as_object()? {
            if text == "." {
                continue;
            }
            let children = below.as_object()?;
            let member = children.is_empty() || children.contains_key(".");
            steps.insert(
                Step::parse(text)?,
                Node {
                    member,
                    below: Self::from_json(below)?,
                },
            );
        }
        Some(Self { steps })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn the_json_form_survives_a_round_trip() {
        let form = json!({"f:spec": {"f:replicas": {}, "f:list": {
            ".": {}, "k:{\"name\":\"a\"}": {".": {}, "f:image": {}}, "v:\"x\"": {}}}});
        let fields = Fields::from_json(&form).expect("well formed");
        assert_eq!(fields.to_json(), form);
        assert_eq!(
            fields.readable(),
            [
                ".spec.list",
                ".spec.list[name=\"a\"]",
                ".spec.list[name=\"a\"].image",
                ".spec.list[=\"x\"]",
                ".spec.replicas"
            ]
        );
        assert!(Fields::from_json(&json!({"x:y": {}})).is_none());
        assert!(Fields::from_json(&json!({"k:nojson": {}})).is_none());
    }

    fn any_fields() -> impl Strategy<Value = Fields> {
        proptest::collection::vec(proptest::collection::vec("[abc]", 1..4), 0..8).prop_map(
            |paths| {
                let mut fields = Fields::default();
                for path in paths {
                    fields.insert(&path.into_iter().map(Step::Field).collect::<Vec<_>>());
                }
                fields
            },
        )
    }

    proptest! {
        #[test]
        fn the_set_laws_hold(a in any_fields(), b in any_fields()) {
            prop_assert_eq!(a.union(&b), b.union(&a));
            prop_assert_eq!(a.intersection(&b), b.intersection(&a));
            prop_assert_eq!(a.difference(&b).union(&a.intersection(&b)), a.clone());
            prop_assert!(a.difference(&a).is_empty());
            prop_assert!(a.without(&b).intersection(&b).is_empty());
            prop_assert_eq!(Fields::from_json(&a.to_json()).expect("printed by us"), a);
        }
    }
}

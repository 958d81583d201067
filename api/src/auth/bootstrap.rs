//! The roles and bindings every cluster begins with: upstream's, from `facts/rbac.txt`, and ours. What is missing of them is
//! put back at every start unless somebody forbade it by annotation, as upstream does; nothing is taken away. Pure.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::rbac::GROUP;
use super::rules::{self, Rule};
use crate::kinds::label_selector;
use crate::object::Object;

const UPSTREAM: &str = include_str!("../facts/rbac.txt");
const OURS: &str = include_str!("../facts/rbac-coracle.txt");
const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// One of them.
#[derive(Debug)]
pub struct Wanted {
    pub plural: &'static str,
    /// Empty for what is the cluster's.
    pub namespace: String,
    pub name: String,
    pub value: Value,
}

/// A role that gathers the rules of others, and those others.
pub struct Role<'a> {
    pub name: &'a str,
    pub value: &'a Value,
}

/// All of them, roles before bindings.
pub fn objects() -> Vec<Wanted> {
    let mut objects: Vec<Wanted> = Vec::new();
    for line in UPSTREAM.lines().chain(OURS.lines()) {
        let below = line.strip_prefix('\t');
        let words: Vec<&str> = below.unwrap_or(line).split_whitespace().collect();
        match (below, words.as_slice()) {
            (None, ["role", namespace, name, labels @ ..]) => {
                objects.push(role(absent(namespace), name, labels));
            }
            (None, ["binding", namespace, name, to, subjects @ ..]) => {
                objects.push(binding(absent(namespace), name, to, subjects));
            }
            (Some(_), words) => {
                if let Some(role) = objects.last_mut() {
                    extend(&mut role.value, words);
                }
            }
            _ => {}
        }
    }
    objects.sort_by_key(|object| object.plural.ends_with("bindings"));
    objects
}

fn absent(word: &str) -> String {
    if word == "-" {
        String::new()
    } else {
        word.to_owned()
    }
}

fn metadata(namespace: &str, name: &str, labels: &[&str]) -> Value {
    let mut all = Map::new();
    all.insert(
        "kubernetes.io/bootstrapping".to_owned(),
        json!("rbac-defaults"),
    );
    for (key, value) in labels.iter().filter_map(|label| label.split_once('=')) {
        all.insert(key.to_owned(), json!(value));
    }
    let mut metadata = json!({
        "name": name, "labels": all, "annotations": { (AUTOUPDATE): "true" },
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    metadata
}

fn role(namespace: String, name: &str, labels: &[&str]) -> Wanted {
    Wanted {
        plural: if namespace.is_empty() {
            "clusterroles"
        } else {
            "roles"
        },
        value: json!({ "metadata": metadata(&namespace, name, labels), "rules": [] }),
        namespace,
        name: name.to_owned(),
    }
}

/// A role below the one it is bound in: upstream's ClusterRoles are bound everywhere, its Roles where they are.
fn binding(namespace: String, name: &str, to: &str, subjects: &[&str]) -> Wanted {
    let subjects: Vec<Value> = subjects.iter().filter_map(|word| subject(word)).collect();
    let cluster = namespace.is_empty();
    let kind = if cluster { "ClusterRole" } else { "Role" };
    Wanted {
        plural: if cluster {
            "clusterrolebindings"
        } else {
            "rolebindings"
        },
        value: json!({
            "metadata": metadata(&namespace, name, &[]),
            "subjects": subjects,
            "roleRef": { "apiGroup": GROUP, "kind": kind, "name": to },
        }),
        namespace,
        name: name.to_owned(),
    }
}

fn subject(word: &str) -> Option<Value> {
    let (kind, name) = word.split_once(':')?;
    Some(match kind {
        "account" => {
            let (namespace, name) = name.split_once('/')?;
            json!({ "kind": "ServiceAccount", "namespace": namespace, "name": name })
        }
        "user" => json!({ "kind": "User", "apiGroup": GROUP, "name": name }),
        _ => json!({ "kind": "Group", "apiGroup": GROUP, "name": name }),
    })
}

/// One line of a role.
fn extend(role: &mut Value, words: &[&str]) {
    let list = |word: &str| -> Vec<String> { word.split(',').map(absent).collect() };
    let rule = match words {
        [label] => {
            let label = label.trim_start_matches('+');
            role["aggregationRule"] =
                json!({ "clusterRoleSelectors": [{ "matchLabels": { (label): "true" } }] });
            return;
        }
        [verbs, urls] => json!({ "verbs": list(verbs), "nonResourceURLs": list(urls) }),
        [verbs, groups, resources] => json!({
            "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources),
        }),
        [verbs, groups, resources, names] => json!({
            "verbs": list(verbs), "apiGroups": list(groups), "resources": list(resources),
            "resourceNames": list(names),
        }),
        _ => return,
    };
    if let Some(rules) = role["rules"].as_array_mut() {
        rules.push(rule);
    }
}

/// What a stored role or binding must become so that it has all that is wanted; as it is, mostly.
pub fn reconciled(old: &Object, wanted: &Value) -> Object {
    let mut new = old.clone();
    if old.annotation(AUTOUPDATE) == Some("false") {
        return new;
    }
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            new.set_default(&["metadata", field, key], value.clone());
        }
    }
    if wanted.get("aggregationRule").is_some() {
        add_missing(
            &mut new,
            &["aggregationRule", "clusterRoleSelectors"],
            wanted,
        );
    } else if wanted.get("rules").is_some() {
        let missing = rules::missing(&Rule::all(old.value()), &Rule::all(wanted));
        if !missing.is_empty() {
            let mut all = old.list_at(&["rules"]).to_vec();
            all.extend(missing.iter().map(Rule::to_value));
            new.set(&["rules"], all.into());
        }
    }
    if wanted.get("subjects").is_some() {
        add_missing(&mut new, &["subjects"], wanted);
    }
    new
}

/// Items of the list at `path` that are not in `new` yet.
fn add_missing(new: &mut Object, path: &[&str], wanted: &Value) {
    let mut all = new.list_at(path).to_vec();
    let before = all.len();
    let items = path.iter().try_fold(wanted, |value, key| value.get(key));
    for item in items.and_then(Value::as_array).into_iter().flatten() {
        if !all.contains(item) {
            all.push(item.clone());
        }
    }
    if all.len() > before {
        new.set(path, all.into());
    }
}

/// The rules a role with an `aggregationRule` must have: those of every role it selects, by their names, and where such a
/// role gathers too, of those that it selects. `None` for a role that has no such rule.
///
/// What a gathering role has at the moment is not asked: roles that gather each other would pass the same rules on for ever.
pub fn aggregated(role: &Value, all: &[Role<'_>]) -> Option<Vec<Value>> {
    role["aggregationRule"]["clusterRoleSelectors"].as_array()?;
    let mut rules: Vec<Value> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut next = vec![role];
    while let Some(role) = next.pop() {
        let name = role["metadata"]["name"].as_str().unwrap_or_default();
        if !seen.insert(name) {
            continue;
        }
        let Some(selectors) = role["aggregationRule"]["clusterRoleSelectors"].as_array() else {
            for rule in role["rules"].as_array().into_iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
            continue;
        };
        let selected = all.iter().filter(|other| {
            let labels = &other.value["metadata"]["labels"];
            let mut selectors = selectors.iter();
            selectors.any(|selector| label_selector::matches(selector, labels))
        });
        // `all` is sorted by names, as the cache is; the last one in is the first one out.
        let before = next.len();
        next.extend(selected.map(|other| other.value));
        next[before..].reverse();
    }
    Some(rules)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_that_gather_each_other_come_to_rest() {
        let rule =
            |resource: &str| json!({"verbs": ["get"], "apiGroups": [""], "resources": [resource]});
        let gathers = |name: &str| {
            json!({"metadata": {"name": name, "labels": {"x": "y"}},
                "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"x": "y"}}]}})
        };
        let mut roles = vec![
            gathers("a"),
            gathers("b"),
            json!({"metadata": {"name": "c", "labels": {"x": "y"}}, "rules": [rule("pods"), rule("nodes")]}),
        ];
        // As they may have been left: in another order each, and with what nobody gives any longer.
        roles[0]["rules"] = json!([rule("pods"), rule("gone"), rule("nodes")]);
        roles[1]["rules"] = json!([rule("nodes"), rule("pods")]);
        let round = |roles: &[Value]| -> Vec<Value> {
            let all: Vec<Role<'_>> = roles
                .iter()
                .map(|value| Role {
                    name: value["metadata"]["name"].as_str().unwrap_or_default(),
                    value,
                })
                .collect();
            let next = roles.iter().map(|role| {
                let mut role = role.clone();
                if let Some(rules) = aggregated(&role, &all) {
                    role["rules"] = rules.into();
                }
                role
            });
            next.collect()
        };
        let once = round(&roles);
        assert_eq!(round(&once), once, "they come to rest");
        for role in &once {
            assert_eq!(role["rules"], json!([rule("pods"), rule("nodes")]));
        }
    }

    #[test]
    fn every_cluster_begins_with_upstreams_roles() {
        let objects = objects();
        let count = |plural: &str, ours: bool| {
            let of = objects.iter().filter(|object| object.plural == plural);
            of.filter(|object| object.name.starts_with("coracle:") == ours)
                .count()
        };
        assert_eq!(count("clusterroles", false), 70);
        assert_eq!(count("clusterrolebindings", false), 51);
        assert_eq!(count("roles", false), 7);
        assert_eq!(count("rolebindings", false), 7);
        assert_eq!(count("roles", true) + count("rolebindings", true), 0);
        let find = |name: &str| {
            let found = objects.iter().find(|object| object.name == name);
            &found.expect("there").value
        };
        assert_eq!(
            find("system:kube-dns")["rules"],
            json!([{"verbs": ["list", "watch"], "apiGroups": [""], "resources": ["endpoints", "services"]}])
        );
        assert_eq!(
            find("cluster-admin")["rules"][1],
            json!({"verbs": ["*"], "nonResourceURLs": ["*"]})
        );
        for object in &objects {
            let to = object.value["roleRef"]["name"].as_str();
            let known = |name: &str| {
                let mut roles = objects.iter().filter(|role| role.plural.ends_with("roles"));
                roles.any(|role| role.name == name && role.namespace == object.namespace)
            };
            assert!(to.is_none_or(known), "{}", object.name);
        }
    }

    #[test]
    fn what_is_missing_is_put_back_and_what_was_added_stays() {
        let wanted = json!({"metadata": {"labels": {"a": "b"}}, "rules": [
            {"verbs": ["get", "list"], "apiGroups": [""], "resources": ["pods"]}]});
        let old = |annotation: &str| {
            let old = json!({"metadata": {"name": "r", "annotations": {(AUTOUPDATE): annotation}}, "rules": [
                {"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]}]});
            Object::new(old).expect("an object")
        };
        let new = reconciled(&old("true"), &wanted);
        assert_eq!(
            new.list_at(&["rules"]),
            json!([{"verbs": ["get"], "apiGroups": ["*"], "resources": ["pods"]},
                {"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}])
            .as_array()
            .expect("a list")
        );
        assert_eq!(new.labels().collect::<Vec<_>>(), [("a", "b")]);
        assert_eq!(reconciled(&new, &wanted), new, "nothing is left to do");
        assert_eq!(reconciled(&old("false"), &wanted), old("false"));
    }

    #[test]
    fn an_aggregated_role_has_the_rules_of_those_it_selects() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let a = json!({"metadata": {"name": "a", "labels": {"to": "x"}}, "rules": [rule("get"), rule("list")]});
        let b = json!({"metadata": {"name": "b", "labels": {"to": "x"}}, "rules": [rule("get"), rule("watch")]});
        let c = json!({"metadata": {"name": "c"}, "rules": [rule("delete")]});
        let x = json!({"metadata": {"name": "x", "labels": {"to": "x"}}, "rules": [rule("patch")],
            "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"to": "x"}}]}});
        let all =
            [("a", &a), ("b", &b), ("c", &c), ("x", &x)].map(|(name, value)| Role { name, value });
        assert_eq!(
            aggregated(&x, &all),
            Some(vec![rule("get"), rule("list"), rule("watch")])
        );
        assert_eq!(aggregated(&a, &all), None);
    }
}

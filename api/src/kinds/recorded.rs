//! What a stock server's discovery says, as `facts.py` kept it (which explains the form). Only for tests to compare with.

use serde_json::{Value, json};

/// One resource of one group and version, as the aggregated document has it.
pub(crate) struct Recorded {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) document: Value,
}

/// In the order of the document.
pub(crate) fn resources() -> Vec<Recorded> {
    let mut found: Vec<Recorded> = Vec::new();
    let text = include_str!("../facts/discovery.txt");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let words: Vec<&str> = line.trim_start().split(' ').map(word).collect();
        match words[..] {
            [name, group, version, kind, verbs] => {
                let document = &mut found.last_mut().expect("a resource is above").document;
                let mut below = document["subresources"].take();
                below = if below.is_null() { json!([]) } else { below };
                below.as_array_mut().expect("a list").push(json!({
                    "subresource": name,
                    "responseKind": {"group": group, "version": version, "kind": kind},
                    "verbs": list(verbs),
                }));
                document["subresources"] = below;
            }
            [
                group,
                version,
                resource,
                singular,
                kind,
                scope,
                verbs,
                short,
                categories,
            ] => {
                let mut document = json!({
                    "resource": resource,
                    "responseKind": {"group": "", "version": "", "kind": kind},
                    "scope": scope,
                    "singularResource": singular,
                    "verbs": list(verbs),
                });
                for (name, words) in [("shortNames", short), ("categories", categories)] {
                    if !words.is_empty() {
                        document[name] = list(words).into();
                    }
                }
                found.push(Recorded {
                    group,
                    version,
                    document,
                });
            }
            _ => panic!("{line:?} is no row"),
        }
    }
    found
}

/// The aggregated document of `/api` (the core group) or `/apis`.
pub(crate) fn aggregated(core: bool) -> Value {
    let mut groups: Vec<Value> = Vec::new();
    for resource in resources() {
        if resource.group.is_empty() != core {
            continue;
        }
        let metadata = if core {
            json!({})
        } else {
            json!({"name": resource.group})
        };
        if groups.last().is_none_or(|g| g["metadata"] != metadata) {
            groups.push(json!({"metadata": metadata, "versions": []}));
        }
        let group = groups.last_mut().expect("there is one");
        let versions = group["versions"].as_array_mut().expect("a list");
        let same = |v: &Value| v["version"] == resource.version;
        if !versions.last().is_some_and(same) {
            versions.push(
                json!({"version": resource.version, "resources": [], "freshness": "Current"}),
            );
        }
        let version = versions.last_mut().expect("there is one");
        let resources = version["resources"].as_array_mut().expect("a list");
        resources.push(resource.document);
    }
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": "apidiscovery.k8s.io/v2",
        "metadata": {},
        "items": groups,
    })
}

fn word(text: &'static str) -> &'static str {
    if text == "-" { "" } else { text }
}

fn list(words: &str) -> Vec<&str> {
    words.split(',').collect()
}

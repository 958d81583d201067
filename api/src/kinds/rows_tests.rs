//! The rows against upstream's recorded discovery documents, where those are present.

use std::path::Path;

use serde_json::{Value, json};

use crate::kinds::{Kind, Scope, table};
use crate::schema::GroupVersionKind;

/// What discovery says of one row, in the shape of the aggregated document.
fn discovered(kind: &Kind) -> Value {
    let response = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": response("", "", &kind.kind),
        "scope": if kind.scope == Scope::Cluster { "Cluster" } else { "Namespaced" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        out["subresources"] = kind
            .subresources
            .iter()
            .map(|sub| {
                json!({
                    "subresource": sub.name,
                    "responseKind": response(sub.group, sub.version, sub.kind),
                    "verbs": sub.verbs,
                })
            })
            .collect();
    }
    out
}

#[test]
fn the_rows_are_those_a_stock_1_36_serves() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/k8s/discovery-1.36.json");
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: {} is not here", path.display());
        return;
    };
    let document: Value = serde_json::from_str(&text).expect("the recording is JSON");
    let mut expected = Vec::new();
    for part in ["api", "apis"] {
        for group in document[part]["items"].as_array().into_iter().flatten() {
            let name = group["metadata"]["name"].as_str().unwrap_or_default();
            for version in group["versions"].as_array().into_iter().flatten() {
                for resource in version["resources"].as_array().into_iter().flatten() {
                    expected.push((
                        name.to_owned(),
                        version["version"].as_str().unwrap_or_default().to_owned(),
                        resource.clone(),
                    ));
                }
            }
        }
    }
    let actual: Vec<_> = table()
        .all()
        .iter()
        .map(|kind| {
            (
                kind.group.to_string(),
                kind.version.to_string(),
                discovered(kind),
            )
        })
        .collect();
    assert_eq!(actual, expected, "rows and discovery agree, order included");
}

#[test]
fn a_row_is_found_by_resource_and_by_kind() {
    let row = table().find("apps", "v1", "deployments").expect("served");
    assert_eq!(row.kind, "Deployment");
    assert_eq!(row.storage, "apps/deployments");
    assert_eq!(row.definition, "io.k8s.api.apps.v1.Deployment");
    let gvk = GroupVersionKind {
        group: String::new(),
        version: "v1".into(),
        kind: "Pod".into(),
    };
    let pod = table().by_kind(&gvk).expect("served");
    assert_eq!((&*pod.plural, &*pod.storage), ("pods", "pods"));
    assert!(table().find("apps", "v1beta1", "deployments").is_none());
}

#[test]
fn every_stored_resource_has_exactly_one_stored_form() {
    for kind in table().all().iter().filter(|kind| kind.is_stored()) {
        let stored = table()
            .all()
            .iter()
            .filter(|row| row.storage == kind.storage && row.convert.is_none())
            .count();
        assert_eq!(stored, 1, "{}", kind.resource());
    }
}

#[test]
fn the_preferred_version_comes_first() {
    assert_eq!(table().versions("autoscaling"), ["v2", "v1"]);
    assert_eq!(table().groups()[0], "");
}

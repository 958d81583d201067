//! The rows against a stock server's discovery, and every kind's rules against objects of any shape.

use serde_json::{Value, json};

use crate::codec::protobuf::full;
use crate::kinds::strategy::Door;
use crate::kinds::testing::World;
use crate::kinds::{Kind, Scope, metadata, recorded, table};
use crate::object::Object;
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
    let expected: Vec<_> = recorded::resources()
        .into_iter()
        .map(|row| (row.group.to_owned(), row.version.to_owned(), row.document))
        .collect();
    let actual: Vec<_> = table()
        .all()
        .iter()
        // Ours beside them; upstream installs it as CRDs.
        .filter(|kind| kind.group != types::well_known::GATEWAY_GROUP)
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

/// What any object goes through, whatever it holds.
fn exercise(kind: &Kind, object: &Object) {
    let mut new = object.clone();
    kind.strategy.default(&mut new);
    for door in [
        Door::Main,
        Door::Subresource("status"),
        Door::Subresource("approval"),
    ] {
        for old in [None, Some(object)] {
            let mut new = new.clone();
            kind.strategy.prepare(&mut new, old, door);
            kind.strategy.validate(&new, old, door);
        }
    }
    kind.strategy.warnings(&new, Some(object));
    kind.strategy.fields(&new);
    kind.strategy.grace_seconds(&new, None);
    let allocated = kind
        .strategy
        .allocate(&mut new, Some(object), &World::new());
    drop(allocated);
    kind.strategy.release(&new, &World::new());
    metadata::validate(kind, &new);
    metadata::validate_update(&new, object);
    let cells = (kind.columns.cells)(new.value(), jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(cells.len(), kind.columns.definitions.len());
    if let Some(convert) = kind.convert {
        convert.serve(convert.store(new));
    }
}

#[test]
fn an_object_with_every_field_passes_through_its_kinds_rules() {
    let mut seen = 0;
    for kind in table().all() {
        // Upstream serves these as CRDs, which have no protobuf form to go by.
        let Some(value) = full::object(kind) else {
            assert_eq!(kind.group, types::well_known::GATEWAY_GROUP);
            continue;
        };
        let object = Object::new(value).expect("an object");
        exercise(kind, &object);
        let mut once = object.clone();
        kind.strategy.default(&mut once);
        let mut twice = once.clone();
        kind.strategy.default(&mut twice);
        assert_eq!(
            twice, once,
            "defaulting a {} twice is the same as once",
            kind.kind
        );
        seen += 1;
    }
    assert!(seen > 50, "only {seen} kinds are served");
}

/// Keys that the rules look at.
const KEYS: &[&str] = &[
    "spec",
    "status",
    "metadata",
    "name",
    "template",
    "containers",
    "initContainers",
    "ports",
    "port",
    "nodePort",
    "selector",
    "matchLabels",
    "matchExpressions",
    "rules",
    "resources",
    "limits",
    "requests",
    "cpu",
    "type",
    "default",
    "min",
    "max",
    "subjects",
    "roleRef",
    "kind",
    "webhooks",
    "metrics",
    "behavior",
    "scaleUp",
    "strategy",
    "updateStrategy",
    "rollingUpdate",
    "clusterIP",
    "clusterIPs",
    "volumes",
    "env",
    "valueFrom",
    "data",
    "stringData",
    "taints",
    "subsets",
    "addresses",
    "endpoints",
    "finalizers",
    "ownerReferences",
    "labels",
    "annotations",
    "jobTemplate",
    "podSelector",
    "egress",
    "tolerations",
    "affinity",
    "nodeAffinity",
    "conditions",
    "containerStatuses",
    "initContainerStatuses",
    "state",
    "versions",
];

fn anything() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        prop_oneof![
            Just("LoadBalancer"),
            Just("Container"),
            Just("User"),
            Just("1Gi"),
            Just("25%"),
            Just("")
        ]
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 48, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec((proptest::sample::select(KEYS), inner), 0..5).prop_map(
                |pairs| {
                    pairs
                        .into_iter()
                        .map(|(key, value)| (key.to_owned(), value))
                        .collect()
                }
            ),
        ]
    })
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn nonsense_of_any_shape_never_panics(spec in anything(), other in anything()) {
        let value = json!({"metadata": other, "spec": spec, "status": other, "rules": spec, "webhooks": other, "data": other});
        let object = Object::new(value).expect("an object");
        for kind in table().all() {
            exercise(kind, &object);
        }
    }
}

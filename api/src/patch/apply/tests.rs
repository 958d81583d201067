//! Ownership, case by case: the observed behaviour of a real server, in small.

use super::*;
use crate::schema;

const CONFIG_MAP: &str = "io.k8s.api.core.v1.ConfigMap";
const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";

fn object(value: Value) -> Object {
    Object::new(value).expect("the test's object is one")
}

fn by(name: &str) -> Manager<'_> {
    let now = "2026-01-02T03:04:05.678Z".parse().expect("a timestamp");
    Manager {
        name,
        subresource: "",
        force: false,
        now,
    }
}

fn applied(
    definition: &str,
    live: Option<&Object>,
    config: Value,
    manager: Manager<'_>,
) -> Result<Object, Error> {
    let schema = schema::builtin();
    let ty = schema.named(definition).expect("a served definition");
    apply(schema, ty, live, &object(config), manager, &[])
}

fn updated(definition: &str, old: Option<&Object>, new: Value, manager: &str) -> Object {
    let schema = schema::builtin();
    let ty = schema.named(definition).expect("a served definition");
    let mut new = object(new);
    own(schema, ty, old, &mut new, by(manager), &[]);
    new
}

fn config_map(data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "s"}, "data": data})
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec})
}

fn fields_of<'o>(object: &'o Object, manager: &str) -> Option<&'o Value> {
    let entries = object.list_at(&["metadata", "managedFields"]);
    entries
        .iter()
        .find(|e| e["manager"] == manager)
        .map(|e| &e["fieldsV1"])
}

#[test]
fn the_first_apply_owns_what_it_states() {
    let made =
        applied(CONFIG_MAP, None, config_map(json!({"a": "1"})), by("m1")).expect("no conflict");
    let want = json!([{"manager": "m1", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-02T03:04:05Z",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:data": {"f:a": {}}}}]);
    assert_eq!(made.at(&["metadata", "managedFields"]), Some(&want));
}

#[test]
fn another_manager_conflicts_until_it_forces() {
    let live =
        applied(CONFIG_MAP, None, config_map(json!({"a": "1"})), by("m1")).expect("no conflict");
    let wanted = config_map(json!({"a": "3", "b": "1"}));
    let error = applied(CONFIG_MAP, Some(&live), wanted.clone(), by("m3")).expect_err("m1 owns a");
    assert_eq!(error.reason, Reason::Conflict);
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"m1\": .data.a"
    );
    assert_eq!(error.details.causes[0].field, ".data.a");
    assert_eq!(error.details.causes[0].message, "conflict with \"m1\"");

    let forced = applied(
        CONFIG_MAP,
        Some(&live),
        wanted,
        Manager {
            force: true,
            ..by("m3")
        },
    )
    .expect("forced");
    assert_eq!(forced.at(&["data"]), Some(&json!({"a": "3", "b": "1"})));
    assert_eq!(fields_of(&forced, "m1"), None);
    assert_eq!(
        fields_of(&forced, "m3"),
        Some(&json!({"f:data": {"f:a": {}, "f:b": {}}}))
    );
}

#[test]
fn the_same_value_is_owned_together_and_stays_when_one_lets_go() {
    let live = applied(
        CONFIG_MAP,
        None,
        config_map(json!({"a": "1", "b": "1"})),
        by("m1"),
    )
    .expect("no conflict");
    let both = applied(
        CONFIG_MAP,
        Some(&live),
        config_map(json!({"a": "1"})),
        by("m2"),
    )
    .expect("shared");
    let left = applied(CONFIG_MAP, Some(&both), config_map(json!({})), by("m1")).expect("gives up");
    assert_eq!(
        left.at(&["data"]),
        Some(&json!({"a": "1"})),
        "b was m1's alone and goes, a is m2's too and stays"
    );
}

#[test]
fn what_is_no_longer_applied_is_removed() {
    let live = applied(
        CONFIG_MAP,
        None,
        config_map(json!({"a": "1", "b": "1"})),
        by("m1"),
    )
    .expect("no conflict");
    let less = applied(
        CONFIG_MAP,
        Some(&live),
        config_map(json!({"b": "1"})),
        by("m1"),
    )
    .expect("own fields");
    assert_eq!(less.at(&["data"]), Some(&json!({"b": "1"})));
}

#[test]
fn list_items_are_owned_by_key() {
    let containers = |list: Value| deployment(json!({"template": {"spec": {"containers": list}}}));
    let live = applied(
        DEPLOYMENT,
        None,
        containers(json!([{"name": "a", "image": "1", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "1"}])),
        by("m1"),
    )
    .expect("no conflict");
    let entry = &fields_of(&live, "m1").expect("m1 applied")["f:spec"]["f:template"]["f:spec"]["f:containers"];
    assert_eq!(
        entry["k:{\"name\":\"a\"}"],
        json!({".": {}, "f:name": {}, "f:image": {}, "f:ports": {
            "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}})
    );
    let less = applied(
        DEPLOYMENT,
        Some(&live),
        containers(json!([{"name": "b", "image": "2"}, {"name": "c"}])),
        by("m1"),
    )
    .expect("own fields");
    assert_eq!(
        less.at(&["spec", "template", "spec", "containers"]),
        Some(&json!([{"name": "b", "image": "2"}, {"name": "c"}]))
    );
}

#[test]
fn an_update_takes_what_it_changes_without_conflict() {
    let live = applied(
        DEPLOYMENT,
        None,
        deployment(json!({"replicas": 1, "paused": true})),
        by("m1"),
    )
    .expect("no conflict");
    let mut scaled = live.clone();
    scaled.set(&["spec", "replicas"], json!(3));
    let scaled = updated(
        DEPLOYMENT,
        Some(&live),
        scaled.into_value(),
        "kubectl-scale",
    );
    assert_eq!(
        fields_of(&scaled, "kubectl-scale"),
        Some(&json!({"f:spec": {"f:replicas": {}}}))
    );
    assert_eq!(
        fields_of(&scaled, "m1"),
        Some(&json!({"f:spec": {"f:paused": {}}}))
    );
    let error = applied(
        DEPLOYMENT,
        Some(&scaled),
        deployment(json!({"replicas": 1})),
        by("m1"),
    )
    .expect_err("scaled since");
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"kubectl-scale\" using apps/v1: .spec.replicas"
    );
}

#[test]
fn a_creation_owns_new_maps_and_items_themselves() {
    let made = updated(
        DEPLOYMENT,
        None,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d", "labels": {"app": "x"}},
            "spec": {"selector": {"matchLabels": {"app": "x"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}},
                "template": {"spec": {"containers": [{"name": "a", "resources": {}}]}}}}),
        "kubectl-create",
    );
    assert_eq!(
        fields_of(&made, "kubectl-create"),
        Some(&json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
            "f:spec": {"f:selector": {}, "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
                "f:template": {"f:spec": {"f:containers": {
                    "k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:resources": {}}}}}}}))
    );
}

#[test]
fn managed_fields_can_be_reset_but_not_applied() {
    let live =
        applied(CONFIG_MAP, None, config_map(json!({"a": "1"})), by("m1")).expect("no conflict");
    let mut reset = live.clone();
    reset.set(&["metadata", "managedFields"], json!([]));
    let reset = updated(CONFIG_MAP, Some(&live), reset.into_value(), "m2");
    assert_eq!(reset.at(&["metadata", "managedFields"]), None);
    let mut config = object(config_map(json!({})));
    config.set(&["metadata", "managedFields"], json!([{}]));
    let error = applied(CONFIG_MAP, None, config.into_value(), by("m1")).expect_err("not allowed");
    assert_eq!(error.message, "metadata.managedFields must be nil");
}

#[test]
fn what_stood_before_the_first_apply_belongs_to_nobody_we_know() {
    let live = object(config_map(json!({"a": "1"})));
    let error = applied(
        CONFIG_MAP,
        Some(&live),
        config_map(json!({"a": "2"})),
        by("m1"),
    )
    .expect_err("a was there");
    assert_eq!(
        error.message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.a"
    );
}

#[test]
fn a_write_that_changes_nothing_keeps_the_times() {
    let live = updated(CONFIG_MAP, None, config_map(json!({"a": "1"})), "m1");
    let mut later = live.clone();
    let schema = schema::builtin();
    let ty = schema.named(CONFIG_MAP).expect("a served definition");
    let now = "2027-01-01T00:00:00Z".parse().expect("a timestamp");
    own(
        schema,
        ty,
        Some(&live),
        &mut later,
        Manager { now, ..by("m1") },
        &[],
    );
    assert_eq!(later, live);
}

#[test]
fn old_updaters_become_ancient() {
    let mut live = updated(CONFIG_MAP, None, config_map(json!({"k0": "0"})), "m0");
    for n in 1..15 {
        let mut next = live.clone();
        next.set(&["data", &format!("k{n}")], json!("x"));
        live = updated(CONFIG_MAP, Some(&live), next.into_value(), &format!("m{n}"));
    }
    assert_eq!(
        live.list_at(&["metadata", "managedFields"]).len(),
        MOST_UPDATERS
    );
    assert!(fields_of(&live, ANCIENT).is_some_and(|fields| fields["f:data"]["f:k0"].is_object()));
}
